"""Structure of the lowered training step and prediction, for devices that may be absent."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fcn_jax
from fcn_jax.api import Preprocess
from fcn_jax.eval.predictor import Predictor
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.nn._subpixel import prefers_subpixel
from fcn_jax.train import step as train_step
from fcn_jax.train.losses import cross_entropy

pytestmark = pytest.mark.lowering

PLATFORMS = ("cpu", "cuda", "tpu")
IN_BLOCKS = {"cuda", "tpu"}
"""Platforms on which loss and argmax are computed on sub-pixel logits."""
FOLDED = {"cuda"}
"""Platforms on which batch normalization is folded into the convolution before it."""
BATCH, SIZE, CLASSES = 2, (64, 96), 21
LOGITS = BATCH * SIZE[0] * SIZE[1] * CLASSES
"""Elements of the logits, which are larger than all other activations of this network."""

IMAGES = jax.ShapeDtypeStruct((BATCH, *SIZE, 3), np.uint8)
MASKS = jax.ShapeDtypeStruct((BATCH, *SIZE), np.uint8)


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def input_dilations(text):
    """Input dilations above 1 of a program's convolutions."""
    assert text.count("stablehlo.convolution")
    return {
        int(size) for pair in re.findall(r"lhs_dilate = \[(\d+), (\d+)\]", text) for size in pair
    } - {1}


@pytest.fixture(scope="module")
def program(make_model):
    """(name, dtype, platform) -> the jitted function for that platform, and its argument shapes."""

    @functools.cache
    def make(name, dtype, platform):
        model, blocks = make_model(CLASSES, dtype=dtype), platform in IN_BLOCKS
        if name == "mask":
            predictor = Predictor(model, blocks=blocks)
            return predictor._segment, (shapes(predictor._state), IMAGES)
        state, step = train_step.make(
            model, optax.sgd(0.1, momentum=0.9), Preprocess(), blocks=blocks
        )
        return jax.jit(step, donate_argnums=0), (shapes(state), {"image": IMAGES, "mask": MASKS})

    return make


@pytest.fixture(scope="module")
def lowered(program):
    """(name, platform) -> StableHLO of the program in bfloat16."""

    @functools.cache
    def lower(name, platform):
        function, arguments = program(name, "bfloat16", platform)
        with folding(platform in FOLDED):
            return function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()

    return lower


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["training", "mask"])
def test_exports_training_and_prediction_for_absent_devices(program, name, dtype, platform):
    function, arguments = program(name, dtype, platform)
    with folding(platform in FOLDED):
        exported = jax.export.export(function, platforms=(platform,))(*arguments)
    assert exported.platforms == (platform,)
    assert "stablehlo.convolution" in exported.mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["training", "mask"])
def test_accelerators_convolve_in_bfloat16(lowered, name, platform):
    types = re.findall(
        r"stablehlo\.convolution\(.*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\)",
        lowered(name, platform),
    )
    assert len(types) >= 20
    assert set(types) == {("bf16", "bf16")}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["training", "mask"])
def test_head_has_no_dilated_convolution(lowered, name, platform):
    # Gradients of convolutions with stride 2 are dilated twofold; the head's stride is 32.
    assert input_dilations(lowered(name, platform)) == ({2} if name == "training" else set())


def test_detects_a_dilated_convolution():
    x, kernel = (
        jax.ShapeDtypeStruct((1, 2, 3, CLASSES), jnp.bfloat16),
        jax.ShapeDtypeStruct((64, 64, CLASSES, CLASSES), jnp.bfloat16),
    )
    head = jax.jit(lambda x, kernel: jax.lax.conv_transpose(x, kernel, (32, 32), "SAME"))
    assert input_dilations(head.lower(x, kernel).as_text()) == {32}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_training_step_has_no_scatter(lowered, platform):
    text = lowered("training", platform)
    assert '"stablehlo.scatter"' not in text
    assert "stablehlo.gather" not in text.replace("stablehlo.gather_", ""), (
        "the logit of the label is selected by comparison"
    )
    # Only that of the max pool, on TPUs.
    assert text.count("stablehlo.select_and_scatter") == (platform == "tpu")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_training_step_reuses_the_memory_of_its_state(program, lowered, platform):
    _, (state, _) = program("training", "bfloat16", platform)
    # An argument whose memory a result takes is marked, at the head of the program.
    head = next(
        line
        for line in lowered("training", platform).splitlines()
        if "func.func public @main" in line
    )
    assert head.count("tf.aliasing_output") == len(jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["training", "mask"])
def test_accelerators_never_rearrange_the_logits(lowered, name):
    whole = f"tensor<{BATCH}x{SIZE[0]}x{SIZE[1]}x{CLASSES}x"
    assert {platform: whole in lowered(name, platform) for platform in PLATFORMS} == {
        "cpu": True,
        "cuda": False,
        "tpu": False,
    }


@pytest.mark.parametrize("platform", PLATFORMS)
def test_gpus_only_add_after_a_convolution(lowered, platform):
    # Of the widest activations, those of the stem; elsewhere they are multiplied by the
    # normalization's factor.
    products = re.findall(
        rf"stablehlo\.multiply .*tensor<{BATCH}x{SIZE[0] // 2}x{SIZE[1] // 2}x64x",
        lowered("mask", platform),
    )
    assert len(products) == (platform not in FOLDED)


def test_accelerators_prefer_subpixel_logits(monkeypatch):
    backends = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}
    found = set()
    for platform, backend in backends.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        if prefers_subpixel():
            found.add(platform)
    assert found == IN_BLOCKS


def test_loss_of_bfloat16_logits_stores_no_float32_copy():
    logits, labels = jax.ShapeDtypeStruct((*MASKS.shape, CLASSES), jnp.bfloat16), MASKS

    kept = jax.eval_shape(
        lambda logits, labels: jax.vjp(lambda logits: cross_entropy(logits, labels), logits)[1],
        logits,
        labels,
    )
    large = [leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.size >= LOGITS]
    assert large == [jnp.bfloat16]

    if jax.__version_info__ >= (0, 11):
        pytest.skip("XLA for CPUs then stores the inputs of reductions, whatever its options")
    # XLA's own reductions fuse with their inputs; those of the library that it may call on CPUs
    # do not.
    options = {"xla_cpu_experimental_ynn_fusion_type": ""} if fcn_jax.compiler_options() else {}
    compiled = (
        jax.jit(jax.value_and_grad(cross_entropy), compiler_options=options)
        .lower(logits, labels)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < LOGITS
