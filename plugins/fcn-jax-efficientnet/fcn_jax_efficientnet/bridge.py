"""The names of EfficientNets in PyTorch, and timm's network as the reference."""

from __future__ import annotations

from typing import Any

from fcn_jax.api import TorchBridge, Weights
from fcn_jax.errors import WeightsError
from fcn_jax.pytorch import Rule, Table, conv, conv_norm, drop, import_torchvision
from fcn_jax_efficientnet.architecture import FEATURES, Architecture


def bridge(plan: Architecture, weights: dict[str, Weights]) -> TorchBridge:
    """The link between an EfficientNet and PyTorch's.

    Files have timm's names, or those of lukemelas/EfficientNet-PyTorch, which many packages have
    taken over. In both, the last convolution belongs to the classifier.
    """
    timm = _timm_table()

    def standalone(options: Any) -> dict[str, Table]:
        return {
            "torchvision": timm + _without("conv_head.*", "bn2.*", "classifier.*"),
            "lukemelas": _lukemelas_table(plan) + _without("_conv_head.*", "_bn1.*", "_fc.*"),
        }

    return TorchBridge(
        # "smp": the encoder "tu-NAME" of segmentation_models_pytorch.
        tables={"torchvision": timm, "smp": timm.under("encoder.model.", "")},
        standalone_tables=standalone,
        reference=lambda options, output_stride: _reference(plan, options, output_stride),
        weights=weights,
    )


def _without(*globs: str) -> Table:
    reason = "the ImageNet classifier, which a segmentation model does not have"
    return Table(*(drop(glob, reason) for glob in globs))


def _timm_table() -> Table:
    def norms(stage: str, numbered: tuple[tuple[str, str, int], ...]) -> list[Rule]:
        here = f"blocks.{stage}.{{b}}"
        return [
            rule
            for theirs, ours, number in numbered
            for rule in conv_norm(f"{here}.{theirs}", f"{here}.bn{number}", f"{here}.{ours}")
        ]

    return Table(
        conv_norm("conv_stem", "bn1", "stem"),
        # The first stage does not expand, so its normalizations have other numbers.
        norms("0", (("conv_dw", "depthwise", 1), ("conv_pw", "project", 2))),
        norms("{s}", (("conv_pw", "expand", 1), ("conv_dw", "depthwise", 2))),
        norms("{s}", (("conv_pwl", "project", 3),)),
        conv("blocks.{s}.{b}.se.conv_reduce", bias=True),
        conv("blocks.{s}.{b}.se.conv_expand", bias=True),
    )


def _lukemelas_table(plan: Architecture) -> Table:
    """The blocks of all stages have running numbers there."""
    rules = conv_norm("_conv_stem", "_bn0", "stem")
    places = [(s, b) for s, stage in enumerate(plan.blocks()) for b in range(len(stage))]
    for number, (s, b) in enumerate(places):
        theirs, ours = f"_blocks.{number}", f"blocks.{s}.{b}"
        layers = (("expand", 0), ("depthwise", 1), ("project", 2))
        for layer, norm in layers[s == 0 :]:
            rules += conv_norm(f"{theirs}._{layer}_conv", f"{theirs}._bn{norm}", f"{ours}.{layer}")
        if not plan.lite:
            for layer in ("reduce", "expand"):
                rules += conv(f"{theirs}._se_{layer}", f"{ours}.se.conv_{layer}", bias=True)
    return Table(rules)


def import_timm() -> Any:
    """Import and return the package timm.

    Raises:
        WeightsError: torch, torchvision or timm is not installed.
    """
    import_torchvision()  # timm imports it, too
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"{error}: a comparison of an EfficientNet with PyTorch needs timm; "
            "pip install --no-deps timm"
        ) from error
    return timm


def _reference(plan: Architecture, options: Any, output_stride: int) -> Any:
    """The network of timm, which returns its features by name."""
    network = import_timm().create_model(
        plan.name,
        features_only=True,
        output_stride=output_stride,
        drop_path_rate=options.drop_path_rate,
    )

    class Reference(type(network)):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return dict(zip(FEATURES.values(), super().forward(x), strict=True))

    network.__class__ = Reference
    return network
