"""Published weights by name: what the plugins of a model offer."""

from __future__ import annotations

from pathlib import Path

from fcn_jax.convert import download
from fcn_jax.errors import ConfigError, PluginError, WeightsError, did_you_mean
from fcn_jax.models.segmenter import ModelSpec, describe, spec_of
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Weights


def resolve(source: str | Path, spec: ModelSpec) -> Path:
    """The file that a path or a name stands for; what exists wins over a name, and a name's file is fetched if it is not cached.

    A name that the near models of `available` offer is taken from those; `available` lists what all
    offer, and raises where they differ.

    Args:
        source: a path, or the name of weights published for the model or its backbone, such as
            "IMAGENET1K_V1".
        spec: the model to be filled.

    Raises:
        WeightsError: there is neither such a file nor such a name, or its file cannot be fetched.
    """
    path, name = Path(source), str(source)
    if path.exists():
        return path
    # Whoever publishes weights of other distributions' parts is asked last: that imports every
    # plugin with a whole model.
    for near in (True, False):
        offered = available(spec, near=near)
        if name in offered:
            return download.fetch(offered[name])
    raise WeightsError(
        f"{name}: no such weights; give a weights file of PyTorch's or .safetensors, to train also a run or checkpoint, or the name of "
        f"published weights. {did_you_mean(name, offered)}"
    )


def available(spec: ModelSpec, *, near: bool = False) -> dict[str, Weights]:
    """Published weights that fit a model, by name: those of whole models with the same parts before those of its backbone.

    The number of classes is not compared: weights for another one load with the head
    re-initialized.

    Args:
        spec: the model.
        near: only whole models of fcn-jax, and of the distributions that its backbone and head come
            from; no other is imported.

    Raises:
        PluginError: two whole models give different files one name.
    """
    backbone = describe(spec).backbone
    whole: dict[str, tuple[str, Weights]] = {}
    for model, weights in _whole_models(spec, near):
        for name, published in weights.items():
            owner, known = whole.setdefault(name, (model, published))
            if (known.url, known.sha256) != (published.url, published.sha256):
                raise PluginError(
                    f"'{name}' names different weights of models '{owner}' and '{model}'; give a file"
                )
    return {
        **(backbone.torch.weights if backbone.torch else {}),
        **{name: weights for name, (_, weights) in whole.items()},
    }


def _whole_models(spec: ModelSpec, near: bool) -> list[tuple[str, dict[str, Weights]]]:
    """Names and weights of the registered models that are built from a spec's parts; broken plugins are passed over."""
    plugins, found = registry.default(), []
    if spec.head is None:
        return []
    home = {registry.OWN_DISTRIBUTION, *(part.distribution for part in _parts(spec))}
    for entry in plugins.entries("models"):
        if near and entry.distribution not in home:
            continue
        try:
            model = plugins.model(entry.full_name)
            own = spec_of(model, entry.distribution)
            if _parts(own) == _parts(spec) and _options(own) == _options(spec):
                found.append((entry.full_name, dict(model.weights)))
        except (ConfigError, PluginError):
            continue
    return found


# What decides whether weights fit: the plugins and their options, however they were written. An
# auxiliary head can be left out.


def _parts(spec: ModelSpec) -> tuple[registry.Entry, registry.Entry]:
    """Backbone and head, without importing them."""
    plugins = registry.default()
    assert spec.head is not None
    return plugins.find("backbones", spec.backbone), plugins.find("heads", spec.head)


def _options(spec: ModelSpec) -> tuple[object, object]:
    backbone, head, _ = describe(spec)
    assert head is not None
    return registry.options(backbone, spec.backbone_options), registry.options(
        head, spec.head_options
    )
