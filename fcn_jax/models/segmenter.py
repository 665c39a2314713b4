"""A whole segmentation network: one backbone and one head, and perhaps an auxiliary one for training, at any image size."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fcn_jax.errors import ConfigError, FcnJaxError, PluginError, did_you_mean
from fcn_jax.nn import _valid
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, FeatureSpec, Head, Model, ModelSpec

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Segmenter(nnx.Module):
    """Images to logits: the backbone at the given size, the head's output cropped to it at the bottom and right.

    Only where the backbone rounds sizes down, so that the head's output would be too small, is the
    input padded with zeros (the mean color, as images come in normalized) at the bottom and right,
    to the next size that is enough.

    Attributes:
        backbone: module, f[N,H,W,3] -> features by name.
        head: module, features -> logits.
        aux_head: likewise, for training alone; or None.
        spec: what it was built from.
        features: what the backbone promises of its features, shallow to deep.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        head: nnx.Module,
        spec: ModelSpec,
        features: tuple[FeatureSpec, ...],
        aux_head: nnx.Module | None = None,
    ) -> None:
        """Put a backbone and heads together; `build_model` makes all of it."""
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.spec = nnx.static(spec)
        self.features = nnx.static(features)

    def __call__(self, x: jax.Array, hw: tuple[jax.Array, jax.Array] | None = None) -> jax.Array:
        """Compute logits; the auxiliary head has no part in it.

        Args:
            x: f[N, H, W, 3], normalized as the backbone's `preprocess` says; any H and W of at
                least 1.
            hw: height and width i32[] of images that fill only the top left corner of `x`, for
                parts that are `maskable`. The logits there are those of the images alone; outside
                they mean nothing.

        Returns:
            The logits in the compute dtype, [N, H, W, K].
        """
        return self._logits((self.head,), x, hw)[0]

    def outputs(self, x: jax.Array) -> dict[str, jax.Array]:
        """Compute all that a loss takes: the logits as "out" and, where there is an auxiliary head, its logits as "aux"."""
        heads = self._heads()
        return dict(zip(heads, self._logits(tuple(heads.values()), x, None), strict=True))

    def outputs_in_blocks(self, x: jax.Array) -> dict[str, jax.Array | SubpixelLogits]:
        """`outputs`, but in blocks where a head can give them so: the cheaper layout on GPUs and TPUs."""
        heads = self._heads()
        return dict(
            zip(heads, self._logits(tuple(map(_InBlocks, heads.values())), x, None), strict=True)
        )

    def subpixel_outputs(self, x: jax.Array) -> dict[str, jax.Array | SubpixelLogits]:
        """`outputs`, as `SubpixelLogits` where a head has them: cheaper on GPUs and TPUs."""
        return self.outputs_in_blocks(x)

    def in_blocks(
        self, x: jax.Array, hw: tuple[jax.Array, jax.Array] | None = None
    ) -> jax.Array | SubpixelLogits:
        """What calling the model computes, but in blocks where the head can give them so."""
        return self._logits((_InBlocks(self.head),), x, hw)[0]

    def _heads(self) -> dict[str, Any]:
        return {"out": self.head} | ({} if self.aux_head is None else {"aux": self.aux_head})

    def _logits(
        self, heads: tuple[Any, ...], x: jax.Array, hw: tuple[jax.Array, jax.Array] | None
    ) -> list[Any]:
        """Those of several heads on one run of the backbone."""
        height, width = x.shape[1:3]
        deepest, backbone = self.features[-1], self.spec.backbone
        rows, cols = (enough(size, deepest, backbone) for size in (height, width))
        masking: Any = contextlib.nullcontext()
        if hw is not None:
            with _valid.sizes({(height, width): hw}):
                x = _valid.filled(x)
            inner = (
                _enough_of(hw[0], height, deepest, backbone),
                _enough_of(hw[1], width, deepest, backbone),
            )
            masking = _valid.sizes({(rows, cols): inner})
        x = jnp.pad(x, ((0, 0), (0, rows - height), (0, cols - width), (0, 0)))
        with masking:
            features = self.backbone(x)
            _hold_to_promise(features, self.features, backbone, (rows, cols))
            # A head that resizes must be told the size of what the features are of, and the crop
            # comes after.
            return [_crop(head(features, out_hw=(rows, cols)), height, width) for head in heads]


@dataclasses.dataclass(frozen=True)
class _InBlocks:
    """A head that gives blocks if it can."""

    head: Any

    def __call__(
        self, features: Mapping[str, jax.Array], *, out_hw: tuple[int, int]
    ) -> jax.Array | SubpixelLogits:
        in_blocks = getattr(self.head, "_subpixel_logits", None) or getattr(
            self.head, "logits_in_blocks", None
        )
        logits = None if in_blocks is None else in_blocks(features, out_hw=out_hw)
        return self.head(features, out_hw=out_hw) if logits is None else logits


def _crop(logits: Any, height: int, width: int) -> Any:
    return (
        logits.crop(height, width)
        if isinstance(logits, SubpixelLogits)
        else logits[:, :height, :width]
    )


def _hold_to_promise(
    found: Mapping[str, jax.Array],
    promised: tuple[FeatureSpec, ...],
    backbone: str,
    size: tuple[int, int],
) -> None:
    """Tell a backbone that lies from a head that fails on it. Shapes alone are looked at, so that a compiled program pays nothing."""
    for spec in promised:
        shape = (spec.size(size[0]), spec.size(size[1]), spec.channels)
        if spec.name not in found or found[spec.name].shape[1:] != shape:
            gives = f"is {found[spec.name].shape[1:]}" if spec.name in found else "is missing"
            raise _broken_promise(
                backbone,
                f"of an image of {size[0]}x{size[1]} its feature '{spec.name}' {gives}, promised is {shape}",
            )


def _broken_promise(backbone: str, which: str) -> PluginError:
    try:
        found: object = registry.default().find("backbones", backbone)
    except FcnJaxError:  # of a module put together by hand
        found = f"backbone '{backbone}'"
    return PluginError(
        f"{found} breaks its promise: {which}; fcn-jax plugins check {backbone} says more"
    )


def _enough_of(length: jax.Array, longest: int, feature: FeatureSpec, backbone: str) -> jax.Array:
    """`enough` for a length that is known when the program runs, up to `longest`."""
    return jnp.asarray(
        [enough(size, feature, backbone) for size in range(1, longest + 1)], jnp.int32
    )[length - 1]


def enough(size: int, feature: FeatureSpec, backbone: str) -> int:
    """Smallest input size of at least `size` whose feature covers it: itself, but for backbones that round sizes down.

    Raises:
        PluginError: none within two strides does, as where layers do not pad; it names the
            backbone.
    """
    longest = size + 2 * feature.stride - 1
    found = next(filter(feature.covers, range(size, longest + 1)), None)
    if found is None:
        raise _broken_promise(
            backbone,
            f"its feature '{feature.name}' covers no image of {size} to {longest} pixels; of the longest it has, it says, "
            f"{feature.size(longest)} cells of {feature.stride} pixels, the first {feature.offset} pixels before the image",
        )
    return found


class Parts(NamedTuple):
    """The descriptors of a spec's parts."""

    backbone: Backbone
    head: Head | None
    aux_head: Head | None


def describe(spec: ModelSpec) -> Parts:
    """Look up a spec's descriptors. Raises `ConfigError` on an unknown name, `PluginError` on a broken plugin."""
    plugins = registry.default()
    head, aux_head = (
        None if name is None else plugins.head(name) for name in (spec.head, spec.aux_head)
    )
    return Parts(plugins.backbone(spec.backbone), head, aux_head)


def build_backbone(
    spec: ModelSpec, *, rngs: nnx.Rngs
) -> tuple[nnx.Module, tuple[FeatureSpec, ...]]:
    """Build a spec's backbone alone, with its feature specs. Raises `ConfigError` on options or a stride it does not offer."""
    backbone = describe(spec).backbone
    if spec.dtype not in DTYPES:
        raise ConfigError(f"dtype is '{spec.dtype}'; it must be one of {', '.join(DTYPES)}")
    output_stride = _output_stride(spec, backbone)
    options = registry.options(backbone, spec.backbone_options)
    module = backbone.build(
        options,
        output_stride=output_stride,
        dtype=DTYPES[spec.dtype],
        param_dtype=jnp.float32,
        rngs=rngs,
    )
    return module, backbone.features(options, output_stride)


def _output_stride(spec: ModelSpec, backbone: Backbone) -> int:
    stride = backbone.output_strides[0] if spec.output_stride is None else spec.output_stride
    if stride not in backbone.output_strides:
        offered = ", ".join(map(str, backbone.output_strides))
        raise ConfigError(
            f"backbone '{backbone.name}' has no output stride {stride}; it offers {offered}"
        )
    return stride


class HeadPlan(NamedTuple):
    """A head as a spec has it: descriptor, validated options, and the features that it takes."""

    head: Head
    options: Any
    features: tuple[FeatureSpec, ...]


def plan_heads(spec: ModelSpec) -> dict[str, HeadPlan]:
    """A spec's heads by the names of their outputs: "out" and, if there is an auxiliary one, "aux".

    Raises:
        ConfigError: there is no head, its options are wrong, the backbone does not offer the output
            stride or cannot feed the head, or `aux_feature` is not one of its features.
    """
    parts = describe(spec)
    if parts.head is None:
        raise ConfigError("a model needs a head, and the spec names none")
    stride = _output_stride(spec, parts.backbone)
    features = parts.backbone.features(
        registry.options(parts.backbone, spec.backbone_options), stride
    )
    plans = {"out": _plan(parts.head, spec.head_options, features)}
    if parts.aux_head is not None:
        plans["aux"] = _plan(
            parts.aux_head, spec.aux_head_options, _seen_by_aux_head(spec, features)
        )
    return plans


def _plan(head: Head, table: Mapping[str, Any], features: tuple[FeatureSpec, ...]) -> HeadPlan:
    options = registry.options(head, table)
    wanted = head.select(options, features)
    return HeadPlan(head, options, tuple(feature for feature in features if feature.name in wanted))


def _seen_by_aux_head(
    spec: ModelSpec, features: tuple[FeatureSpec, ...]
) -> tuple[FeatureSpec, ...]:
    names = [feature.name for feature in features]
    if spec.aux_feature is None and len(features) > 1:
        return features[:-1]
    if spec.aux_feature not in names:
        raise ConfigError(
            f"aux_feature is {spec.aux_feature!r}; name one of the features of backbone '{spec.backbone}': {', '.join(names)}"
        )
    return features[: names.index(spec.aux_feature) + 1]


def build(spec: ModelSpec, *, rngs: nnx.Rngs) -> Segmenter:
    """Build the model that a spec describes. Raises `ConfigError`, `PluginError`."""
    plans = plan_heads(spec)
    backbone, features = build_backbone(spec, rngs=rngs)
    if spec.num_classes < 1:
        raise ConfigError(f"num_classes is {spec.num_classes}; it must be at least 1")
    types: dict[str, Any] = {"dtype": DTYPES[spec.dtype], "param_dtype": jnp.float32}
    heads = {
        name: plan.head.build(
            plan.options, plan.features, num_classes=spec.num_classes, rngs=rngs, **types
        )
        for name, plan in plans.items()
    }
    return Segmenter(backbone, heads["out"], spec, features, heads.get("aux"))


def build_model(
    backbone: str = "resnet18",
    head: str = "fcn32s",
    num_classes: int = 21,
    *,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    output_stride: int | None = None,
    dtype: str = "float32",
    aux_head: str | None = None,
    aux_head_options: Mapping[str, Any] | None = None,
    aux_feature: str | None = None,
    rngs: nnx.Rngs,
) -> Segmenter:
    """Build a segmentation network from registered parts, with freshly drawn parameters.

    Args:
        backbone: registered name; `fcn-jax plugins list` shows them.
        head: registered name.
        num_classes: size K of the logits' last axis, at least 1.
        backbone_options: the backbone's own options.
        head_options: the head's own options.
        output_stride: stride of the deepest feature, one of those the backbone offers; None takes
            its default.
        dtype: compute dtype, "float32" or "bfloat16"; parameters and statistics are float32 in
            both.
        aux_head: registered head that helps in training, from a shallower feature; None for none.
        aux_head_options: that head's own options.
        aux_feature: the deepest feature that it sees; None takes the last but one, as torchvision
            does.
        rngs: source of the initial parameters, such as `nnx.Rngs(0)`.

    Returns:
        A module: `model(x: f[N,H,W,3]) -> f[N,H,W,K]`, in train mode until `model.eval()`;
        `model.outputs(x)` gives the auxiliary logits too, by name.

    Raises:
        ConfigError: an unknown name, option, output stride or dtype, or a head that the backbone
            cannot feed.
        PluginError: a broken plugin, or a name that two distributions claim.
    """
    spec = ModelSpec(
        backbone,
        head,
        num_classes,
        backbone_options or {},
        head_options or {},
        output_stride,
        dtype,
        aux_head,
        aux_head_options or {},
        aux_feature,
    )
    return build(spec, rngs=rngs)


def spec_of(model: Model, distribution: str | None = None) -> ModelSpec:
    """The spec of a whole model's descriptor: they have their fields' names in common.

    Args:
        model: the descriptor.
        distribution: who registers it. Its parts are that distribution's own where others register
            the same names.
    """
    from fcn_jax.models import spec

    return model.spec if distribution is None else spec.spec_of(model, distribution)


def by_name(name: str) -> ModelSpec:
    """The spec of a registered whole model or, without a head, of a registered backbone. Raises `ConfigError` if it is neither."""
    plugins = registry.default()
    if name.split(":")[-1] in plugins.names("models"):
        return spec_of(plugins.model(name), plugins.find("models", name).distribution)
    if ":" not in name and name not in plugins.names("backbones"):
        known = [*plugins.names("models"), *plugins.names("backbones")]
        raise ConfigError(
            f"'{name}' is neither a registered whole model nor a backbone. {did_you_mean(name, known)}"
        )
    plugins.backbone(name)
    return ModelSpec(backbone=name, head=None)
