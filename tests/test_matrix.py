"""Every registered backbone with every registered head that accepts its features.

The tests are generated from the registry, so every installed plugin is covered. Compiling each pair
would take an hour. Therefore each backbone is compiled once, and each head once for all backbones
with features of the same channels and sizes. The gradient of a pair follows from the chain rule:
the head's gradient with respect to the features is the cotangent of the backbone's backward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.api import FeatureSpec, ModelSpec
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import covering_size
from fcn_jax.models.spec import ResolvedHead, resolve
from fcn_jax.plugins import registry
from fcn_jax.plugins.options import validate
from fcn_jax.plugins.testing.subject import COMPILER_OPTIONS, normal
from fcn_jax.verify.jax_side import blank

PLUGINS = registry.default()
BACKBONES = [entry.full_name for entry in PLUGINS.entries("backbones")]
HEADS = [entry.full_name for entry in PLUGINS.entries("heads")]


def _plainness(name: str) -> tuple[int, int, str]:
    """Sorts small backbones first: by the channels of their features, then by name."""
    descriptor = PLUGINS.backbone(name)
    specs = descriptor.features(descriptor.options(), descriptor.output_strides[0])
    return (max(spec.channels for spec in specs), len(name), name)


# The plainest backbone of each distribution.
PLAINEST = [
    min((entry.full_name for entry in group), key=_plainness)
    for _, group in itertools.groupby(
        sorted(PLUGINS.entries("backbones"), key=lambda entry: entry.distribution),
        key=lambda entry: entry.distribution,
    )
]


def _alike() -> dict[str, str]:
    """For each backbone, the plainest one that has the same features.

    The backbones of one distribution are compared, at every output stride.
    """
    found: dict[Any, list[str]] = {}
    for entry in PLUGINS.entries("backbones"):
        descriptor = PLUGINS.backbone(entry.full_name)
        options = descriptor.options()
        promises = [
            [
                (spec.channels, spec.stride, spec.offset, *map(spec.size, range(1, 130)))
                for spec in descriptor.features(options, stride)
            ]
            for stride in descriptor.output_strides
        ]
        found.setdefault(repr((entry.distribution, promises)), []).append(entry.full_name)
    return {name: min(group, key=_plainness) for group in found.values() for name in group}


def _quick() -> set[str]:
    """The backbones of the ordinary run.

    For a head, two backbones with the same features are equal (`Placed`), so one of them is enough,
    and of each distribution three kinds.
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(set(_alike().values()), key=_plainness):
        kinds.setdefault(PLUGINS.find("backbones", name).distribution, []).append(name)
    return {name for names in kinds.values() for name in names[:3]}


QUICK = _quick()
# The other backbones are tested in the slow run.
ONE_OF_A_KIND = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in sorted(_alike())
]

SIZE = (33, 47)
CLASSES = 3
# With one image, global average pooling leaves one value per channel, and batch normalization
# rejects that in training.
BATCH = 2

TYPES: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float32}


def pairs(backbone: str, output_stride: int) -> Iterator[tuple[str, ResolvedHead | ConfigError]]:
    """Each head, resolved on a backbone, or the error that rejects the backbone."""
    for head in HEADS:
        try:
            yield (
                head,
                resolve(ModelSpec(backbone, head, CLASSES, output_stride=output_stride)).heads[
                    "out"
                ],
            )
        except ConfigError as error:
            yield head, error


def features_of(backbone: str, output_stride: int) -> tuple[FeatureSpec, ...]:
    descriptor = PLUGINS.backbone(backbone)
    return descriptor.features(descriptor.options(), output_stride)


def padded(size: tuple[int, int], deepest: FeatureSpec, backbone: str) -> tuple[int, int]:
    """The input size to which the segmenter pads an image if the backbone rounds sizes down."""
    return covering_size(size[0], deepest, backbone), covering_size(size[1], deepest, backbone)


@functools.cache
def abstract(backbone: str, output_stride: int) -> Any:
    """The backbone with shapes instead of arrays."""
    descriptor = PLUGINS.backbone(backbone)
    return nnx.eval_shape(
        lambda: descriptor.build(
            descriptor.options(), output_stride=output_stride, rngs=nnx.Rngs(0), **TYPES
        )
    )


class Placed(NamedTuple):
    """A head on features of known shapes.

    The features are renamed, because a head must not depend on a backbone's names. For a head, two
    backbones are equal if their features have the same channels, strides, offsets and sizes.
    """

    plan: ResolvedHead
    specs: tuple[FeatureSpec, ...]
    shapes: dict[str, tuple[int, ...]]
    out_hw: tuple[int, int]

    @property
    def key(self) -> tuple[Any, ...]:
        specs = tuple((spec.channels, spec.stride, spec.offset) for spec in self.specs)
        return self.plan.descriptor.name, specs, tuple(self.shapes.values()), self.out_hw

    def build(self) -> nnx.Module:
        return self.plan.descriptor.build(
            self.plan.options, self.specs, num_classes=CLASSES, rngs=nnx.Rngs(0), **TYPES
        )


def placed(
    plan: ResolvedHead, shapes: Mapping[str, tuple[int, ...]], out_hw: tuple[int, int]
) -> Placed:
    specs = tuple(
        dataclasses.replace(spec, name=f"feature{number}")
        for number, spec in enumerate(plan.features)
    )
    return Placed(
        plan,
        specs,
        {new.name: shapes[old.name] for new, old in zip(specs, plan.features, strict=True)},
        out_hw,
    )


_logits_shapes: dict[tuple[Any, ...], tuple[int, ...]] = {}


def logits_shape(head: Placed) -> tuple[int, ...]:
    if head.key not in _logits_shapes:
        inputs = {
            name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in head.shapes.items()
        }
        _logits_shapes[head.key] = nnx.eval_shape(
            lambda inputs: head.build()(inputs, out_hw=head.out_hw), inputs
        ).shape
    return _logits_shapes[head.key]


def promised(specs: Sequence[FeatureSpec], out_hw: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    return {
        spec.name: (BATCH, spec.size(out_hw[0]), spec.size(out_hw[1]), spec.channels)
        for spec in specs
    }


def check_features(backbone: str, output_stride: int) -> None:
    specs = features_of(backbone, output_stride)
    out_hw = padded((65, 97), specs[-1], backbone)
    image = jax.ShapeDtypeStruct((BATCH, *out_hw, 3), jnp.float32)
    outputs = nnx.eval_shape(lambda module, x: module(x), abstract(backbone, output_stride), image)
    assert {name: value.shape for name, value in outputs.items()} == promised(specs, out_hw)


@pytest.mark.parametrize("backbone", ONE_OF_A_KIND)
def test_heads_return_logits_of_the_image_size_at_every_output_stride(
    backbone: str,
) -> None:
    fed = set()
    for stride in PLUGINS.backbone(backbone).output_strides:
        specs = features_of(backbone, stride)
        out_hw = padded((65, 97), specs[-1], backbone)
        for head, plan in pairs(backbone, stride):
            if isinstance(plan, ConfigError):
                # The error names the head, and a feature or stride that the backbone offers.
                message = str(plan)
                assert f"'{head.rpartition(':')[2]}'" in message
                assert any(spec.name in message or str(spec.stride) in message for spec in specs), (
                    message
                )
                continue
            found = logits_shape(placed(plan, promised(specs, out_hw), out_hw))
            assert found == (BATCH, *out_hw, CLASSES), f"{head} at output stride {stride}"
            fed.add(head)
    assert fed, f"no head takes {backbone}"


@pytest.mark.parametrize("backbone", ONE_OF_A_KIND)
def test_backbone_returns_the_promised_features(backbone: str) -> None:
    check_features(backbone, PLUGINS.backbone(backbone).output_strides[0])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_returns_the_promised_features_at_other_output_strides(backbone: str) -> None:
    for stride in PLUGINS.backbone(backbone).output_strides[1:]:
        check_features(backbone, stride)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_fits_a_backbone(head: str) -> None:
    refusals = []
    for backbone in BACKBONES:
        try:
            _ = resolve(ModelSpec(backbone, head, CLASSES)).heads
            return
        except ConfigError as error:
            refusals.append(str(error))
    pytest.fail(f"{head} refuses every backbone: {refusals}")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rejects_an_output_stride_and_lists_those_offered(backbone: str) -> None:
    offered = ", ".join(map(str, PLUGINS.backbone(backbone).output_strides))
    with pytest.raises(ConfigError, match=f"has no output stride 7; it offers {offered}"):
        build(ModelSpec(backbone, HEADS[0], CLASSES, output_stride=7), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", [*BACKBONES, *HEADS])
def test_rejects_an_unknown_option_and_lists_the_known_ones(name: str) -> None:
    descriptor = PLUGINS.backbone(name) if name in BACKBONES else PLUGINS.head(name)
    with pytest.raises(
        ConfigError, match=rf"'{descriptor.name}' are wrong: unknown key 'no_such'.*Available: "
    ):
        validate(descriptor, {"no_such": 1})


# ---------------------------------------------------------------------------- forward and gradient


def filled(module: Any) -> Any:
    """Fill a module: kernels with He initialization, scales and variances with 1, others with 0."""
    rng = np.random.default_rng(0)
    for path, leaf in leaves(module).items():
        if len(leaf.shape) > 1:
            value = rng.standard_normal(leaf.shape, np.float32) * np.float32(
                np.sqrt(2 / np.prod(leaf.shape[:-1]))
            )
        else:
            value = np.full(leaf.shape, path.rpartition(".")[2] in ("scale", "var"), leaf.dtype)
        leaf.set_value(jax.device_put(value))
    return module


class Pass:
    """A compiled forward and backward pass of a network in train mode.

    Maps parameters, inputs and cotangents to the outputs and the gradients of parameters and
    inputs.
    """

    def __init__(self, module: Any, call: Any) -> None:
        module.train()
        graphdef, self.params, self.rest = nnx.split(module, nnx.Param, ...)

        @functools.partial(jax.jit, compiler_options=COMPILER_OPTIONS)
        def run(params: Any, rest: Any, inputs: Any, cotangents: Any) -> Any:
            outputs, pull = jax.vjp(
                lambda params, inputs: call(nnx.merge(graphdef, params, rest, copy=True), inputs),
                params,
                inputs,
            )
            return outputs, *pull(cotangents)

        self.run = run

    def __call__(self, inputs: Any, cotangents: Any) -> tuple[Any, Any, Any]:
        return self.run(self.params, self.rest, inputs, cotangents)


_passes: dict[tuple[Any, ...], Pass] = {}


def head_pass(head: Placed) -> Pass:
    if head.key not in _passes:
        module = filled(blank(head.build))
        _passes[head.key] = Pass(module, lambda module, inputs: module(inputs, out_hw=head.out_hw))
    return _passes[head.key]


def check_gradients(backbone: str, *, together: bool) -> None:
    """Run every head on a backbone's features, and its gradient through the backbone.

    Args:
        backbone: full name.
        together: run the backward pass of the backbone once, on the sum of the heads' gradients. A
            gradient that is not finite remains visible in the sum, and the cost does not grow with
            the number of heads.
    """
    descriptor = PLUGINS.backbone(backbone)
    stride = descriptor.output_strides[0]
    specs = features_of(backbone, stride)
    out_hw = padded(SIZE, specs[-1], backbone)
    build = functools.partial(descriptor.build, descriptor.options(), output_stride=stride, **TYPES)
    run_backbone = Pass(filled(blank(lambda: build(rngs=nnx.Rngs(0)))), lambda module, x: module(x))
    images = normal(0, (BATCH, *out_hw, 3))
    nothing = {name: np.zeros(shape, np.float32) for name, shape in promised(specs, out_hw).items()}
    features, _, _ = run_backbone(images, nothing)
    wanted: dict[str, Any] = {}
    for name, plan in pairs(backbone, stride):
        if isinstance(plan, ConfigError):
            continue
        head = placed(plan, {name: value.shape for name, value in features.items()}, out_hw)
        given = {
            new: features[old.name] for new, old in zip(head.shapes, plan.features, strict=True)
        }
        logits, of_head, by_features = head_pass(head)(given, normal(1, (BATCH, *out_hw, CLASSES)))
        assert finite((logits, of_head, by_features)), (
            f"{backbone} + {name}: not finite in the head"
        )
        deepest = np.asarray(by_features[list(head.shapes)[-1]])
        assert np.abs(deepest).max() > 0, f"{backbone} + {name}: no gradient reaches the backbone"
        wanted[name] = nothing | {
            old.name: by_features[new] for new, old in zip(head.shapes, plan.features, strict=True)
        }
    if together:
        wanted = {
            "all heads": {
                name: sum(np.asarray(one[name]) for one in wanted.values()) for name in nothing
            }
        }
    for name, cotangents in wanted.items():
        _, of_backbone, by_image = run_backbone(images, cotangents)
        assert finite((of_backbone, by_image)), f"{backbone} + {name}: not finite in the backbone"
        assert np.abs(np.asarray(by_image)).max() > 0, (
            f"{backbone} + {name}: no gradient reaches the image"
        )


def finite(tree: Any) -> bool:
    """Whether all values are finite. JAX would compile this for each shape, so numpy is used."""
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_smallest_backbone_learns_with_every_head() -> None:
    own = [
        entry.full_name
        for entry in PLUGINS.entries("backbones")
        if entry.distribution == registry.OWN_DISTRIBUTION
    ]
    check_gradients(
        min(
            own,
            key=lambda name: len(leaves(abstract(name, PLUGINS.backbone(name).output_strides[0]))),
        ),
        together=False,
    )


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=pytest.mark.slow if name in PLAINEST else pytest.mark.exhaustive)
        for name in BACKBONES
    ],
)
def test_every_pair_has_a_finite_gradient_with_respect_to_the_image(backbone: str) -> None:
    check_gradients(backbone, together=True)
    gc.collect()
