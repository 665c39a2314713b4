"""The tables of names of a complete model, put together from those of its parts."""

from __future__ import annotations

from fcn_jax.models.spec import resolve
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch.rules import Table, drop

_NO_AUX_HEAD = Table(
    drop("aux_classifier.*", "the auxiliary head, which only PyTorch's training uses")
)


def title(spec: ModelSpec) -> str:
    """The names of a spec's parts for messages, such as "resnet18 + fcn32s"."""
    return spec.backbone if spec.head is None else f"{spec.backbone} + {spec.head}"


def tables(spec: ModelSpec) -> dict[tuple[str, str], Table]:
    """The tables for a spec by (scope, key format).

    The scope is "model", if both parts have a table of the key format, or "backbone". In both, the
    Flax paths are those of a complete model. In the key format "torchvision", names of a model's
    parts begin with `backbone.`, `classifier.` and `aux_classifier.`, as in torchvision's
    segmentation models. In other formats, such as d2l's single Sequential, the names of the parts
    have no prefixes (except `aux.`).

    Raises:
        ConfigError: the spec has a wrong name or value.
    """
    model = resolve(spec)
    found: dict[tuple[str, str], Table] = {}
    for key_format, table in model.backbone_tables().items() if model.heads else ():
        if not all(key_format in head.tables for head in model.heads.values()):
            continue
        prefixed = key_format == "torchvision"
        whole = table.under("backbone." if prefixed else "", "backbone.")
        whole += (
            model.heads["out"].tables[key_format].under("classifier." if prefixed else "", "head.")
        )
        if "aux" in model.heads:
            prefix = "aux_classifier." if prefixed else "aux."
            whole += model.heads["aux"].tables[key_format].under(prefix, "aux_head.")
        elif prefixed:
            whole += _NO_AUX_HEAD
        found["model", key_format] = whole
    for key_format, table in model.backbone_tables(standalone=True).items():
        found["backbone", key_format] = table.under("", "backbone.")
    return found
