"""From a `ModelSpec` to everything that it implies before a single array exists."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from fcn_jax.errors import ConfigError, FcnJaxError, PluginError, did_you_mean
from fcn_jax.models import channels
from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import (
    Backbone,
    FeatureSpec,
    Head,
    Model,
    ModelSpec,
    Preprocess,
    Task,
    TorchBridge,
)
from fcn_jax.pytorch.rules import Table

DTYPES = ("float32", "bfloat16")
TASKS = get_args(Task)


@dataclasses.dataclass(frozen=True)
class ResolvedHead:
    """A head of a model.

    Attributes:
        entry: its registration.
        descriptor: the registered head.
        options: its validated options.
        features: specs of the features that it takes, from shallow to deep.
    """

    entry: registry.Entry
    descriptor: Head
    options: Any
    features: tuple[FeatureSpec, ...]

    @property
    def tables(self) -> Mapping[str, Table]:
        """Its tables by key format. Raises `PluginError` if the plugin cannot build them."""
        return _tables(self.entry, self.descriptor.torch, self.options)


@dataclasses.dataclass(frozen=True)
class ResolvedModel:
    """A spec whose names are looked up and whose values are valid.

    Attributes:
        spec: the spec.
        entry: the backbone's registration.
        backbone: the registered backbone.
        options: the backbone's validated options.
        output_stride: stride of the deepest feature.
        features: specs of the backbone's features, from shallow to deep.
        heads: by output: "out" and, with an auxiliary head, "aux"; none for a backbone alone.
    """

    spec: ModelSpec
    entry: registry.Entry
    backbone: Backbone
    options: Any
    output_stride: int
    features: tuple[FeatureSpec, ...]
    heads: Mapping[str, ResolvedHead]

    @property
    def preprocess(self) -> Preprocess:
        """How the model's input is made from an image."""
        return channels.preprocess_of(self.backbone.preprocess, self.spec)

    def backbone_tables(self, *, standalone: bool = False) -> Mapping[str, Table]:
        """The backbone's tables by key format.

        Args:
            standalone: the tables for files of the backbone alone.

        Raises:
            PluginError: the plugin cannot build them.
        """
        return _tables(self.entry, self.backbone.torch, self.options, standalone)


def _tables(
    entry: registry.Entry, torch: TorchBridge | None, options: Any, standalone: bool = False
) -> Mapping[str, Table]:
    with _errors_of(entry, "tables"):
        return {} if torch is None else torch.tables_of(options, standalone=standalone)


@contextlib.contextmanager
def _errors_of(entry: registry.Entry, function: str) -> Iterator[None]:
    """Turn whatever a plugin's function raises into a `PluginError` that names the plugin."""
    try:
        yield
    except FcnJaxError:
        raise
    except Exception as error:
        raise PluginError(
            f"{entry} fails in `{function}`: {type(error).__name__}: {error}{entry.place(error)}"
        ) from error


def resolve(spec: ModelSpec) -> ResolvedModel:
    """Look up a spec's parts and validate all that it says.

    Raises:
        ConfigError: a name, option or value is wrong, or the backbone's features do not meet a
            head's needs.
        PluginError: a plugin is broken, or two distributions claim a name.
    """
    plugins = registry.default()
    entry, backbone = plugins.find("backbones", spec.backbone), plugins.backbone(spec.backbone)
    names = {"out": spec.head, "aux": spec.aux_head if spec.head else None}
    heads = {
        output: (plugins.find("heads", name), plugins.head(name))
        for output, name in names.items()
        if name is not None
    }
    if spec.dtype not in DTYPES:
        raise ConfigError(f"dtype is '{spec.dtype}'; it must be one of {', '.join(DTYPES)}")
    if spec.task not in TASKS:
        raise ConfigError(f"task is '{spec.task}'; it must be one of {', '.join(TASKS)}")
    channels.check(spec)
    if spec.num_classes < 1:
        raise ConfigError(f"num_classes is {spec.num_classes}; it must be at least 1")
    stride = backbone.output_strides[0] if spec.output_stride is None else spec.output_stride
    if stride not in backbone.output_strides:
        offered = ", ".join(map(str, backbone.output_strides))
        raise ConfigError(
            f"backbone '{backbone.name}' has no output stride {stride}; it offers {offered}"
        )
    options, head_options = _options(spec, backbone, {k: head for k, (_, head) in heads.items()})
    with _errors_of(entry, "features"):
        features = backbone.features(options, stride)
    resolved = {}
    for output, (head_entry, head) in heads.items():
        offered_features = _shallower(spec, features) if output == "aux" else features
        with _errors_of(head_entry, "select"):
            taken = select_features(head, head_options[output], offered_features)
        resolved[output] = ResolvedHead(head_entry, head, head_options[output], taken)
    return ResolvedModel(spec, entry, backbone, options, stride, features, resolved)


def _options(
    spec: ModelSpec, backbone: Backbone, heads: Mapping[str, Head]
) -> tuple[Any, dict[str, Any]]:
    """Validate the options of the backbone and of the heads, and report all problems together."""
    named = {"out": "head_options", "aux": "aux_head_options"}
    parts = {"backbone_options": backbone} | {named[k]: head for k, head in heads.items()}
    found, problems = {}, []
    for key, part in parts.items():
        try:
            found[key] = plugin_options.validate(part, getattr(spec, key), f"model.{key}")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return found["backbone_options"], {output: found[named[output]] for output in heads}


def select_features(
    head: Head, options: Any, features: Sequence[FeatureSpec]
) -> tuple[FeatureSpec, ...]:
    """The features that a head takes of those that a backbone offers, from shallow to deep.

    Raises:
        ConfigError: the backbone does not offer them, or they begin before the image's corner and
            the head does not crop them.
    """
    names = head.select(options, features)
    taken = tuple(feature for feature in features if feature.name in names)
    for feature in () if head.handles_offset else taken:
        if feature.offset:
            raise ConfigError(
                f"head '{head.name}' does not crop features, so they must begin at the image's "
                f"corner; '{feature.name}' begins {feature.offset} pixels before it. Use a "
                "backbone that does not pad its input, or a head that crops, such as fcn32s"
            )
    return taken


def _shallower(spec: ModelSpec, features: tuple[FeatureSpec, ...]) -> tuple[FeatureSpec, ...]:
    """The features that the auxiliary head may see."""
    names = [feature.name for feature in features]
    if spec.aux_feature is None and len(features) > 1:
        return features[:-1]
    if spec.aux_feature not in names:
        raise ConfigError(
            f"aux_feature is {spec.aux_feature!r}; use one of the features of backbone "
            f"'{spec.backbone}': {', '.join(names)}"
        )
    return features[: names.index(spec.aux_feature) + 1]


def spec_of(model: Model, distribution: str) -> ModelSpec:
    """A registered model's spec, in which its distribution's own plugins come first.

    Args:
        model: the descriptor.
        distribution: the distribution that registers it. Its parts are meant even if other
            distributions register the same names.
    """
    parts = {"backbone": "backbones", "head": "heads", "aux_head": "heads"}
    named = {part: getattr(model.spec, part) for part in parts}
    own: dict[str, Any] = {
        part: registry.default().own_name(parts[part], name, distribution)
        for part, name in named.items()
        if name is not None
    }
    return dataclasses.replace(model.spec, **own)


def registered_spec(name: str) -> ModelSpec:
    """The spec of a registered model or, without a head, of a registered backbone.

    Raises:
        ConfigError: neither has that name.
        PluginError: the plugin is broken, or two distributions claim the name.
    """
    plugins = registry.default()
    if name.split(":")[-1] in plugins.names("models"):
        return spec_of(plugins.model(name), plugins.find("models", name).distribution)
    if ":" not in name and name not in plugins.names("backbones"):
        known = [*plugins.names("models"), *plugins.names("backbones")]
        raise ConfigError(
            f"'{name}' is neither a registered model nor a backbone. {did_you_mean(name, known)}"
        )
    plugins.backbone(name)
    return ModelSpec(backbone=name, head=None)
