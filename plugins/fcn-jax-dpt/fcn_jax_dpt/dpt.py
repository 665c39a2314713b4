"""DPT: features of a vision transformer as a pyramid, fused from deep to shallow.

Ranftl et al. 2021, arXiv:2103.13413; `DPT` of segmentation_models_pytorch (SMP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
from fcn_jax_smp_heads import parts
from flax import nnx
from pydantic import PositiveInt

from fcn_jax import nn
from fcn_jax.api import FeatureSpec, Head, TorchBridge
from fcn_jax.errors import ConfigError
from fcn_jax.pytorch import Table, batch_norm, conv, conv_norm, conv_transpose, linear

STRIDES = (4, 8, 16, 32)
"""Strides of the pyramid for patches of 16 pixels."""

_Four = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


@dataclasses.dataclass(frozen=True)
class DPTOptions:
    """Options of `dpt`.

    Attributes:
        readout: use of the class token, which the backbone's option `class_token` appends to its
            features. "project" mixes it in by a linear layer and GELU, "add" adds it, "ignore"
            leaves it out. Without a class token, "project" is a layer of the feature alone.
        intermediate_channels: channels of the pyramid's levels, from shallow to deep.
        fusion_channels: channels of the fusion.
        refine_deepest: the deepest level passes two residual units, as in SMP; otherwise one, as in
            the authors' code and transformers.
        dropout: fraction of the last channels that are set to 0 in train mode.
    """

    readout: Literal["project", "add", "ignore"] = "project"
    intermediate_channels: _Four = (256, 512, 1024, 1024)
    fusion_channels: PositiveInt = 256
    refine_deepest: bool = True
    dropout: parts.Dropout = 0.1


class Reassemble(nnx.Module):
    """From a feature to a level of the pyramid.

    Attributes:
        project: 1x1, to the level's channels.
        resize: transposed convolution or convolution of stride 2; None to keep the size.
        to_fusion: 3x3, to the channels of the fusion.
    """

    def __init__(
        self, in_channels: int, channels: int, fusion: int, factor: float, **types: Any
    ) -> None:
        """Draw the parameters; the side of the level is `factor` times that of the feature."""
        settings = {**parts.INIT, **types}
        self.project = nn.Conv(in_channels, channels, 1, **settings)
        self.resize = _resize(channels, factor, **types)
        self.to_fusion = nn.Conv(channels, fusion, 3, padding=1, use_bias=False, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, h, w, C] -> f[N, h', w', F]."""
        x = self.project(x)
        return self.to_fusion(x if self.resize is None else self.resize(x))


def _resize(channels: int, factor: float, **types: Any) -> nn.Conv | nn.ConvTranspose | None:
    if factor == 1:
        return None
    if factor < 1:
        return nn.Conv(channels, channels, 3, stride=2, padding=1, **parts.INIT, **types)
    size = int(factor)
    init = nn.torch_default(channels * size**2)
    return nn.ConvTranspose(channels, channels, size, stride=size, kernel_init=init, **types)


class ResidualUnit(nnx.Module):
    """Two times ReLU, convolution and batch normalization, with a shortcut.

    Attributes:
        conv1: 3x3, without an activation; so is `conv2`.
    """

    def __init__(self, channels: int, **types: Any) -> None:
        """Draw the parameters."""
        settings = {"activation": None, "kernel_init": parts.INIT["kernel_init"], **types}
        self.conv1 = nn.ConvNormAct(channels, channels, 3, **settings)
        self.conv2 = nn.ConvNormAct(channels, channels, 3, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f[N, h, w, F] -> f[N, h, w, F]."""
        return self.conv2(nnx.relu(self.conv1(nnx.relu(x)))) + x


class Fusion(nnx.Module):
    """The sum of a level and of the deeper ones, refined and resized.

    Attributes:
        residual1: of the level; None to take it as it is.
        residual2: of the sum.
        project: 1x1, of the resized result.
    """

    def __init__(self, channels: int, *, refine: bool, **types: Any) -> None:
        """Draw the parameters."""
        self.residual1 = ResidualUnit(channels, **types) if refine else None
        self.residual2 = ResidualUnit(channels, **types)
        self.project = nn.Conv(channels, channels, 1, **{**parts.INIT, **types})

    def __call__(
        self, level: jax.Array, deeper: jax.Array | None, size: tuple[int, int]
    ) -> jax.Array:
        """f[N, h, w, F] twice -> f[N, *size, F]."""
        x = level if self.residual1 is None else self.residual1(level)
        x = self.residual2(x if deeper is None else x + deeper)
        return self.project(nn.resize_bilinear(x, size, align_corners=True))


class DPTHead(nnx.Module):
    """The DPT decoder, and two convolutions to the classes at half the stride of the first level.

    Attributes:
        readouts: linear layers of the features with their class token; empty unless the option
            `readout` is "project".
        reassemble: the levels of the pyramid, from shallow to deep.
        fusion: from deep to shallow.
        last: 3x3, with batch normalization and ReLU.
        dropout: of its result.
        score: 1x1, F -> K, with bias.
    """

    def __init__(
        self,
        options: DPTOptions,
        features: Sequence[FeatureSpec],
        *,
        num_classes: int,
        **types: Any,
    ) -> None:
        """Draw the parameters as SMP does."""
        self.names = nnx.static(tuple(feature.name for feature in features))
        self.tokens = nnx.static(tuple(feature.class_token for feature in features))
        self.readout = options.readout
        width, last_init = options.fusion_channels, {**parts.INIT, "kernel_init": nn.xavier_uniform}
        project = features if options.readout == "project" else ()
        self.readouts = nnx.List(
            nn.Linear(feature.channels, _channels(feature), **last_init, **types)
            for feature in project
        )
        self.reassemble = nnx.List(
            Reassemble(_channels(feature), channels, width, factor, **types)
            for feature, channels, factor in zip(
                features, options.intermediate_channels, _factors(features), strict=True
            )
        )
        self.fusion = nnx.List(
            Fusion(width, refine=bool(i) or options.refine_deepest, **types)
            for i in range(len(STRIDES))
        )
        self.last = nn.ConvNormAct(width, width, 3, kernel_init=nn.xavier_uniform, **types)
        self.dropout = nnx.Dropout(options.dropout, rngs=types["rngs"])
        self.score = nn.Conv(width, num_classes, 1, **last_init, **types)

    def __call__(self, features: Any, *, out_hw: tuple[int, int]) -> jax.Array:
        """Features -> logits f[N, out_hw[0], out_hw[1], K]."""
        levels = [
            block(self._read(number, features[name]))
            for number, (name, block) in enumerate(zip(self.names, self.reassemble, strict=True))
        ]
        x = None
        for number, block in enumerate(self.fusion, start=1):
            level = levels[-number]
            nearer = levels[-number - 1] if number < len(levels) else None
            height, width = (nearer if nearer is not None else level).shape[1:3]
            size = (height, width) if nearer is not None else (2 * height, 2 * width)
            x = block(level, x, size)
        assert x is not None
        return nn.resize_bilinear(
            self.score(self.dropout(self.last(x))), out_hw, align_corners=True
        )

    def _read(self, number: int, x: jax.Array) -> jax.Array:
        if self.readouts:
            return nn.gelu(self.readouts[number](x))
        if not self.tokens[number]:
            return x
        channels = x.shape[-1] // 2
        own, token = x[..., :channels], x[..., channels:]
        return own + token if self.readout == "add" else own


def _channels(feature: FeatureSpec) -> int:
    """Channels without the class token."""
    return feature.channels // 2 if feature.class_token else feature.channels


def _factors(features: Sequence[FeatureSpec]) -> tuple[float, ...]:
    """Sides of the pyramid's levels, relative to those of the features."""
    strides = {feature.stride for feature in features}
    return (4, 2, 1, 0.5) if len(strides) == 1 else (1, 1, 1, 1)


def _select(options: DPTOptions, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    taken = features[-4:]
    strides = [feature.stride for feature in taken]
    steps = [strides[0] * 2**i for i in range(4)]
    if len(taken) < 4 or (len(set(strides)) > 1 and strides != steps):
        offered = ", ".join(f"{feature.name} ({feature.stride})" for feature in features)
        raise ConfigError(
            "head 'dpt' takes the four deepest features, whose strides are equal, or each twice "
            f"the one before; the backbone offers {offered}. Use another output stride or backbone"
        )
    if options.readout == "add" and not all(feature.class_token for feature in taken):
        raise ConfigError(
            "head 'dpt': readout is 'add', and the backbone's features have no class token; set "
            "model.backbone_options.class_token=true, or another readout"
        )
    return tuple(feature.name for feature in taken)


def _table(options: DPTOptions) -> Table:
    block, fused = "reassemble_blocks.{i}", "fusion_blocks.{i}.residual_conv_block{k}"
    resize = [
        *(conv_transpose(f"reassemble_blocks.{i}.upsample", f"reassemble.{i}.resize", bias=True)
          for i in (0, 1)),
        conv("reassemble_blocks.3.upsample", "reassemble.3.resize", bias=True),
    ]  # fmt: skip
    decoder = Table(
        linear("projection_blocks.{i}.project.0", "readouts.{i}"),
        conv(f"{block}.project_to_out_channel", "reassemble.{i}.project", bias=True),
        *resize,
        conv(f"{block}.project_to_feature_dim", "reassemble.{i}.to_fusion"),
        conv(f"{fused}.conv_{{j}}", "fusion.{i}.residual{k}.conv{j}.conv"),
        batch_norm(f"{fused}.batch_norm_{{j}}", "fusion.{i}.residual{k}.conv{j}.bn"),
        conv("fusion_blocks.{i}.project", "fusion.{i}.project", bias=True),
    )
    head = "segmentation_head.head"
    return decoder.under("decoder.", "") + Table(
        conv_norm(f"{head}.0", f"{head}.1", "last"), conv(f"{head}.4", "score", bias=True)
    )


def _tables(options: DPTOptions) -> dict[str, Table]:
    return dict.fromkeys(("torchvision", "smp"), _table(options))


def _reference(options: DPTOptions, features: Sequence[FeatureSpec], num_classes: int) -> Any:
    """SMP's decoder and head, with resizing to sizes instead of by a factor of two."""
    smp = parts.import_smp()
    import torch
    from torch.nn.functional import interpolate

    channels, width = [_channels(feature) for feature in features], options.fusion_channels
    tokens = [feature.class_token for feature in features]
    equal = len({feature.stride for feature in features}) == 1

    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = smp.decoders.dpt.decoder.DPTDecoder(
                channels,
                (16,) * 4 if equal else STRIDES,
                tokens[0],
                "cat" if options.readout == "project" else options.readout,
                options.intermediate_channels,
                width,
            )
            if not options.refine_deepest:
                self.decoder.fusion_blocks[0].residual_conv_block1 = torch.nn.Identity()
            self.segmentation_head = smp.decoders.dpt.decoder.DPTSegmentationHead(
                width, num_classes
            )
            self.segmentation_head.head[3].p = options.dropout
            smp.base.initialization.initialize_decoder(self.decoder)
            smp.base.initialization.initialize_head(self.segmentation_head)

        def forward(self, *maps: Any, out_hw: tuple[int, int]) -> Any:
            decoder = self.decoder
            levels = [
                block(self._read(*item))
                for block, item in zip(decoder.reassemble_blocks, enumerate(maps), strict=True)
            ]
            x = None
            for number, block in enumerate(decoder.fusion_blocks, start=1):
                y = block.residual_conv_block1(levels[-number])
                y = block.residual_conv_block2(y if x is None else y + x)
                size = [2 * side for side in y.shape[2:]]
                if number < len(levels):
                    size = levels[-number - 1].shape[2:]
                x = block.project(interpolate(y, size=size, mode="bilinear", align_corners=True))
            logits = self.segmentation_head.head(x)
            return interpolate(logits, size=out_hw, mode="bilinear", align_corners=True)

        def _read(self, number: int, x: Any) -> Any:
            if options.readout == "project":
                # SMP repeats the token there; the features have it at each position already.
                project = self.decoder.projection_blocks[number].project
                return project(x.movedim(1, -1)).movedim(-1, 1)
            if not tokens[number]:
                return x
            own, token = x.chunk(2, dim=1)
            return own + token if options.readout == "add" else own

    return Reference()


DPT = Head(
    name="dpt",
    summary="DPT of segmentation_models_pytorch: four features of a vision transformer as a "
    "pyramid, fused from deep to shallow",
    reference="Ranftl et al. 2021, arXiv:2103.13413; segmentation_models_pytorch.DPT",
    options=DPTOptions,
    select=_select,
    build=DPTHead,
    torch=TorchBridge(tables=_tables, reference=_reference),
)
