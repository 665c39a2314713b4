"""The model card of a portable directory: `README.md` with the metadata that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fcn_jax.plugins.api import Preprocess

_TEMPLATE = """\
---
{metadata}
---

# {title}

Semantic segmentation with fcn-jax (`pip install fcn-jax`): backbone `{backbone}`, head
`{head}`, {classes} classes, {dtype}.

```python
import fcn_jax

predictor = fcn_jax.Predictor.from_checkpoint("{where}")
mask = predictor("photo.jpg")  # u8[H,W]
```

{sections}
"""


def text(
    config: Mapping[str, Any],
    evidence: Mapping[str, Any] | None,
    preprocess: Preprocess,
    name: str,
) -> str:
    """The text of a model card.

    Args:
        config: the contents of `config.json`.
        evidence: the report of `fcn-jax verify`; None if there is none.
        preprocess: of the backbone.
        name: the path or id of the model, for the title and the example.
    """
    model = config["model"]
    sections = [_requirements(config), _preprocessing(model, preprocess), _classes(config)]
    sections += [_scores(config), _evidence(evidence), _license(config)]
    return _TEMPLATE.format(
        metadata=_metadata(config),
        title=name.rpartition("/")[2],
        backbone=model["backbone"],
        head=model["head"],
        classes=model["num_classes"],
        dtype=model["dtype"],
        where=name,
        sections="\n\n".join(section for section in sections if section),
    )


def _short(name: str) -> str:
    return name.rpartition(":")[2]


def _metadata(config: Mapping[str, Any]) -> str:
    """The YAML that the hub reads. JSON is YAML, so values are written as JSON."""
    scores = config.get("scores") or {}
    fields: dict[str, Any] = {
        "library_name": "fcn_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["fcn_jax", "jax", "flax", "semantic-segmentation"],
    }
    if config.get("license"):
        fields["license"] = config["license"]
    if scores.get("miou") is not None:
        metrics = [
            {"type": kind, "name": title, "value": round(scores[key], 4)}
            for kind, title, key in (
                ("mean_iou", "mean IoU", "miou"),
                ("accuracy", "pixel accuracy", "pixel_accuracy"),
            )
        ]
        dataset = scores.get("dataset") or "unknown"
        result = {
            "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
            "dataset": {"name": dataset, "type": dataset, "split": scores.get("split")},
            "metrics": metrics,
        }
        fields["model-index"] = [{"name": _short(config["model"]["backbone"]), "results": [result]}]
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())


def _requirements(config: Mapping[str, Any]) -> str:
    owners = {
        record["distribution"]: record["version"]
        for record in (config.get("plugins") or {}).values()
        if record["distribution"] not in ("fcn-jax", "unknown")
    }
    if not owners:
        return ""
    return f"Requires `pip install {' '.join(owners)}`."


def _preprocessing(model: Mapping[str, Any], preprocess: Preprocess) -> str:
    if model.get("mean") is not None:
        how = f"`(image - {list(model['mean'])}) / {list(model['std'])}`, of the stored values"
    else:
        scaled = "image" if preprocess.scale == 255 else f"image / {255 / preprocess.scale:g}"
        how = (
            f"`({scaled} - {list(preprocess.mean)}) / {list(preprocess.std)}`, channels "
            f"{preprocess.channel_order.upper()}"
        )
    return f"## Preprocessing\n\n{how}. `Predictor` does it, at any image size."


def _classes(config: Mapping[str, Any]) -> str:
    classes = config.get("classes")
    if not classes:
        return ""
    scores = ((config.get("scores") or {}).get("iou")) or {}
    lines = ["## Classes", "", "| label | class | color | IoU |", "|---|---|---|---|"]
    for label, (name, color) in enumerate(zip(classes["names"], classes["palette"], strict=True)):
        value = scores.get(name)
        shown = "" if value is None else f"{value:.3f}"
        lines.append(f"| {label} | {name} | `#{bytes(color).hex()}` | {shown} |")
    return "\n".join(lines)


def _scores(config: Mapping[str, Any]) -> str:
    scores = config.get("scores")
    if not scores or scores.get("miou") is None:
        return ""
    averaged = ", averaged weights" if config.get("averaged") else ""
    protocol = (scores.get("protocol") or {}).get("name", "native")
    return (
        f"## Scores\n\nmean IoU {scores['miou']:.4f}, pixel accuracy "
        f"{scores['pixel_accuracy']:.4f}, on {scores['images']} images of {scores['dataset']} "
        f"({scores['split']}), protocol `{protocol}`{averaged}."
    )


def _evidence(evidence: Mapping[str, Any] | None) -> str:
    if evidence is None:
        return ""
    versions = (evidence.get("environment") or {}).get("versions") or {}
    used = ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if name in versions)
    return (
        f"## Equality with PyTorch\n\n{evidence['verdict']}. The report is in `verify.json` "
        f"({used}); `fcn-jax verify --check DIRECTORY` says whether it still holds."
    )


def _license(config: Mapping[str, Any]) -> str:
    return f"## License\n\n{config['license']}" if config.get("license") else ""
