"""Choice of a backbone's features by their strides, for `Head.select`."""

from __future__ import annotations

from collections.abc import Sequence

from fcn_jax.errors import ConfigError
from fcn_jax.plugins.api import FeatureSpec


def by_stride(
    who: str, features: Sequence[FeatureSpec], strides: Sequence[int], optional: Sequence[int] = ()
) -> tuple[str, ...]:
    """The names of the deepest features of some strides, from shallow to deep.

    Args:
        who: the head for the error, such as "head 'unet'".
        features: specs of the features that a backbone offers, from shallow to deep.
        strides: required strides.
        optional: strides that are also taken if the backbone has them.

    Raises:
        ConfigError: the backbone has no feature of a required stride.
    """
    found = {feature.stride: feature.name for feature in features}  # the last one counts
    missing = [str(stride) for stride in strides if stride not in found]
    if missing:
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            f"{who} needs features of strides {', '.join(map(str, strides))}; the backbone offers "
            f"{offered} and lacks stride {', '.join(missing)}. Backbones such as resnet18 and "
            "mobilenet_v3_small have strides 2 to 32 at output stride 32. Use another output "
            "stride, backbone or head"
        )
    return tuple(found[stride] for stride in sorted((*strides, *optional)) if stride in found)
