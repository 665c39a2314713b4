"""The forward pass of a segmentation model, at any image size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fcn_jax.errors import FcnJaxError, PluginError
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import FeatureSpec, ModelSpec


class Segmenter(nnx.Module):
    """A backbone, a head, and perhaps an auxiliary head for training: images to logits.

    If the backbone rounds sizes down, so that its deepest feature does not cover the image, the
    input is padded at the bottom and right with zeros: the mean color, since images are normalized.
    The logits are cropped to the image's size.

    Attributes:
        backbone: module, f[N,H,W,C] -> features by name.
        head: module, features -> logits.
        aux_head: module, features -> logits, for training only; or None.
        spec: the spec that it was built from.
        features: specs of the backbone's features, from shallow to deep.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        head: nnx.Module,
        spec: ModelSpec,
        features: tuple[FeatureSpec, ...],
        aux_head: nnx.Module | None = None,
    ) -> None:
        """Combine modules that are already built; `build_model` builds all of it."""
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.spec = nnx.static(spec)
        self.features = nnx.static(features)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W K"]:
        """Compute the logits, without the auxiliary head.

        Args:
            x: f[N, H, W, C], normalized as the model's `preprocess` says, H and W at least 1.

        Returns:
            The logits in the compute dtype, [N, H, W, K].
        """
        return self._logits(x, {"out": self.head})["out"]

    def outputs(self, x: jax.Array) -> dict[str, jax.Array]:
        """Compute the logits as "out" and, if there is an auxiliary head, its logits as "aux"."""
        return self._logits(x, self._heads())

    def subpixel_outputs(self, x: jax.Array) -> dict[str, jax.Array | SubpixelLogits]:
        """Compute `outputs` as `SubpixelLogits` where a head supports it.

        The layout is cheaper on GPUs and TPUs. Heads of this package support it if their last layer
        is a dense transposed convolution; they have a private method for it.
        """
        return self._logits(x, self._heads(), subpixel=True)

    def _heads(self) -> dict[str, Any]:
        return {"out": self.head} | ({} if self.aux_head is None else {"aux": self.aux_head})

    def _logits(
        self, x: jax.Array, heads: Mapping[str, Any], *, subpixel: bool = False
    ) -> dict[str, Any]:
        """The logits of several heads, from one run of the backbone."""
        height, width = x.shape[1:3]
        deepest, name = self.features[-1], self.spec.backbone
        padded = (covering_size(height, deepest, name), covering_size(width, deepest, name))
        x = jnp.pad(x, ((0, 0), (0, padded[0] - height), (0, padded[1] - width), (0, 0)))
        features = self.backbone(x)
        _require_promised(features, self.features, name, padded)
        logits = {}
        for output, head in heads.items():
            in_subpixels = getattr(head, "_subpixel_logits", None) if subpixel else None
            found = None if in_subpixels is None else in_subpixels(features, out_hw=padded)
            found = head(features, out_hw=padded) if found is None else found
            logits[output] = (
                found.crop(height, width)
                if isinstance(found, SubpixelLogits)
                else found[:, :height, :width]
            )
        return logits


def covering_size(length: int, feature: FeatureSpec, backbone: str) -> int:
    """The smallest input length, at least `length`, that the backbone's deepest feature covers.

    That is `length`, except for backbones that round sizes down.

    Raises:
        PluginError: there is none within two strides, as for layers that do not pad. The message
            names the backbone.
    """
    longest = length + 2 * feature.stride - 1
    found = next(filter(feature.covers, range(length, longest + 1)), None)
    if found is None:
        raise _broken_promise(
            backbone,
            f"its feature '{feature.name}' covers no image of {length} to {longest} pixels; for "
            f"{longest} pixels it declares {feature.size(longest)} cells of {feature.stride} "
            f"pixels, the first of which begins {feature.offset} pixels before the image",
        )
    return found


def _require_promised(
    found: Mapping[str, jax.Array],
    promised: tuple[FeatureSpec, ...],
    backbone: str,
    size: tuple[int, int],
) -> None:
    """Raise `PluginError` if features differ from their specs. Only shapes are compared."""
    for spec in promised:
        shape = (spec.size(size[0]), spec.size(size[1]), spec.channels)
        if spec.name not in found or found[spec.name].shape[1:] != shape:
            actual = f"is {found[spec.name].shape[1:]}" if spec.name in found else "is missing"
            raise _broken_promise(
                backbone,
                f"for an image of {size[0]}x{size[1]}, its feature '{spec.name}' {actual}; "
                f"promised is {shape}",
            )


def _broken_promise(backbone: str, fault: str) -> PluginError:
    try:
        owner = str(registry.default().find("backbones", backbone))
    except FcnJaxError:  # a module that is not registered
        owner = f"backbone '{backbone}'"
    return PluginError(f"{owner} breaks its promise: {fault}; see fcn-jax plugins check {backbone}")
