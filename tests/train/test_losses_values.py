"""Every loss against its definition in float64, and against PyTorch's and SMP's."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fcn_jax.plugins.api import LossContext
from fcn_jax.train.losses import builtin, terms
from tests.helpers import loss_definitions as define

SHAPES = ((2, 3, 4), (3, 1, 2), (1, 1, 1))
PIXELS = np.array([700, 20, 0, 280])
IMAGES = np.array([1000, 100, 0, 560])


@functools.cache
def compiled(descriptor, options, task, classes):
    """(logits, labels) -> value and gradient, as the training step computes them."""
    context = LossContext(classes, task, PIXELS[:classes], IMAGES[:classes])
    options = descriptor.complete(descriptor.options(**dict(options)), context)
    loss = terms.Losses((terms.Term("a", 1.0, descriptor.build(options, context), True, {}),))
    return jax.jit(jax.value_and_grad(lambda z, y: loss({"out": z}, y, 0.0)[0]))


def value_and_grad(descriptor, logits, labels, task="multiclass", **options):
    num_classes = 2 if task == "binary" else logits.shape[-1]
    run = compiled(descriptor, tuple(options.items()), task, num_classes)
    value, grad = run(logits.astype(np.float32), labels.astype(np.uint8))
    return float(value), np.asarray(grad, np.float64)


def batch(seed, shape, classes, ignored, task="multiclass", scale=2.0):
    rng = np.random.default_rng(seed)
    channels = 1 if task == "binary" else classes
    logits = (rng.standard_normal((*shape, channels)) * scale).astype(np.float32).astype(np.float64)
    size = (*shape, classes) if task == "multilabel" else shape
    highest = classes if task == "multiclass" else 2
    labels = rng.integers(0, highest, size)
    return logits, np.where(rng.random(size) < ignored, 255, labels)


def check(descriptor, definition, logits, labels, task="multiclass", tolerance=2e-5, **options):
    """Compare value and gradient with `definition(logits f64[P, K])`."""
    value, grad = value_and_grad(descriptor, logits, labels, task, **options)
    flat = logits.reshape(-1, logits.shape[-1])
    assert value == pytest.approx(definition(flat), rel=tolerance, abs=tolerance)
    expected = define.gradient(definition, flat).reshape(logits.shape)
    np.testing.assert_allclose(grad, expected, atol=tolerance, rtol=1e-4)
    ignored = labels == 255
    assert not grad[ignored].any()


examples = settings(max_examples=12, deadline=None)
batches = given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
)


WEIGHTS = (0.5, 2.0, 0.0, 1.5)


@examples
@batches
@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": WEIGHTS},
        {"label_smoothing": 0.2},
        {"class_weights": WEIGHTS, "label_smoothing": 0.3},
    ],
    ids=str,
)
def test_cross_entropy(seed, shape, ignored, options):
    logits, labels = batch(seed, shape, 4, ignored)
    weights, smoothing = options.get("class_weights"), options.get("label_smoothing", 0.0)
    check(
        builtin.CROSS_ENTROPY,
        lambda z: define.cross_entropy(z, labels.ravel(), weights, smoothing),
        logits,
        labels,
        **options,
    )


@examples
@batches
def test_binary_cross_entropy_is_softmax_of_zero_and_the_logit(seed, shape, ignored):
    logits, labels = batch(seed, shape, 2, ignored, "binary")
    check(
        builtin.CROSS_ENTROPY,
        lambda z: define.cross_entropy(
            np.concatenate([0 * z, z], 1), labels.ravel(), (0.3, 1.7), 0.1
        ),
        logits,
        labels,
        "binary",
        class_weights=(0.3, 1.7),
        label_smoothing=0.1,
    )


@examples
@batches
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.4, "min_kept": 2},
        {"threshold": 0.7, "min_kept": 0},
        {"threshold": 0.1, "min_kept": 5},
        {"fraction": 0.25},
    ],
    ids=str,
)
def test_ohem(seed, shape, ignored, options):
    logits, labels = batch(seed, shape, 3, ignored)
    definition = functools.partial(define.ohem, labels=labels.ravel(), images=shape[0], **options)
    check(builtin.OHEM, definition, logits, labels, **options)


def test_ohem_shares_the_last_places_among_equal_losses():
    logits, labels = np.zeros((1, 1, 4, 2)), np.zeros((1, 1, 4))
    value, grad = value_and_grad(builtin.OHEM, logits, labels, fraction=0.5)
    assert value == pytest.approx(np.log(2))
    np.testing.assert_allclose(grad[..., 1], 0.5 / 4, rtol=1e-6)


@examples
@batches
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal(seed, shape, ignored, gamma):
    logits, labels = batch(seed, shape, 4, ignored)
    definition = functools.partial(
        define.focal, labels=labels.ravel(), gamma=gamma, weights=WEIGHTS
    )
    check(builtin.FOCAL, definition, logits, labels, gamma=gamma, alpha=WEIGHTS)


@examples
@batches
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_focal_of_sigmoids(seed, shape, ignored, task):
    logits, labels = batch(seed, shape, 3, ignored, task)
    targets = (
        define.one_hot(labels.ravel(), 3)
        if task == "multiclass"
        else labels.reshape(-1, logits.shape[-1])
    )
    divisor = (labels != 255).sum()
    check(
        builtin.FOCAL,
        lambda z: define.sigmoid_focal(z, targets, divisor, 1.5, 0.3),
        logits,
        labels,
        task,
        gamma=1.5,
        alpha=0.3,
        **({"sigmoid": True} if task == "multiclass" else {}),
    )


@examples
@batches
@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_bce(seed, shape, ignored, task):
    logits, labels = batch(seed, shape, 3, ignored, task)
    weight = 2.5 if task == "binary" else (0.5, 1.0, 3.0)
    targets = labels.reshape(-1, logits.shape[-1])
    check(
        builtin.BCE,
        lambda z: define.bce(z, targets, weight, 0.1),
        logits,
        labels,
        task,
        pos_weight=weight,
        smooth_factor=0.1,
    )


@examples
@batches
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize(
    ("descriptor", "options", "meaning"),
    [
        (builtin.DICE, {"smooth": 0.5}, {}),
        (builtin.DICE, {"log": True}, {}),
        (builtin.JACCARD, {}, {"alpha": 1.0, "beta": 1.0}),
        (builtin.TVERSKY, {"alpha": 0.3, "beta": 0.9, "gamma": 0.75}, {}),
    ],
    ids=["dice", "log dice", "jaccard", "tversky"],
)
def test_region_losses(seed, shape, ignored, task, descriptor, options, meaning):
    logits, labels = batch(seed, shape, 3, ignored, task)
    if task == "multiclass":
        targets = define.one_hot(labels.ravel(), 3)
    else:
        targets = labels.reshape(-1, logits.shape[-1])

    def definition(z):
        p = np.exp(define.log_softmax(z)) if task == "multiclass" else 1 / (1 + np.exp(-z))
        return define.tversky(p, targets, **options, **meaning)

    assume(definition(logits.reshape(-1, logits.shape[-1])) not in (0.0, 1.0) or ignored == 1)
    check(descriptor, definition, logits, labels, task, **options)


def test_region_losses_of_some_classes():
    logits, labels = batch(0, (2, 3, 4), 3, 0.2)
    targets = define.one_hot(labels.ravel(), 3)
    check(
        builtin.DICE,
        lambda z: define.tversky(np.exp(define.log_softmax(z)), targets, classes=[1, 2]),
        logits,
        labels,
        classes=(1, 2),
    )


def distinct(errors):
    """Whether the order of all errors survives counting in bins."""
    gaps = np.diff(np.sort(errors.ravel()))
    return not gaps.size or gaps.min() > 2e-5


@examples
@batches
@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_softmax(seed, shape, ignored, per_image, present):
    logits, labels = batch(seed, shape, 4, ignored)
    q = np.exp(define.log_softmax(logits.reshape(-1, 4)))
    assume(distinct(np.abs(define.one_hot(labels.ravel() % 255, 4) - q).T))

    def definition(z):
        if not per_image:
            return define.lovasz_softmax(z, labels.ravel(), present)
        z = z.reshape(shape[0], -1, 4)
        return np.mean(
            [define.lovasz_softmax(z[i], labels[i].ravel(), present) for i in range(shape[0])]
        )

    classes = "present" if present else "all"
    check(builtin.LOVASZ, definition, logits, labels, per_image=per_image, classes=classes)


@examples
@batches
@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_hinge(seed, shape, ignored, task, per_image):
    logits, labels = batch(seed, shape, 3, ignored, task)
    errors = 1 - logits.ravel() * (2 * (labels.ravel() % 255) - 1)
    errors = errors[(errors > 0) & (labels.ravel() != 255)]
    assume(distinct(errors / (1 + errors)))

    def definition(z):
        z = z.reshape(labels.shape)
        if not per_image:
            return define.lovasz_hinge(z, labels)
        return np.mean([define.lovasz_hinge(z[i], labels[i]) for i in range(shape[0])])

    check(builtin.LOVASZ, definition, logits, labels, task, per_image=per_image)


def test_lovasz_is_at_most_a_bin_below_the_exact_value():
    rng = np.random.default_rng(0)
    # Many errors in each bin: 40,000 in 65,536 bins, most of them near 0.
    logits, labels = rng.standard_normal((2, 100, 200, 3)) * 4, rng.integers(0, 3, (2, 100, 200))
    value, _ = value_and_grad(builtin.LOVASZ, logits, labels)
    exact = torchs_lovasz(logits, labels)
    assert value == pytest.approx(exact, abs=2e-6)


def torchs_lovasz(logits, labels):
    """Sorted, in NumPy: the definition's loop would take too long."""
    q = np.exp(define.log_softmax(logits.reshape(-1, logits.shape[-1])))
    total = []
    for k in range(q.shape[1]):
        truth = (labels.ravel() == k).astype(np.float64)
        errors = np.abs(truth - q[:, k])
        order = np.argsort(-errors)
        errors, truth = errors[order], truth[order]
        jaccard = 1 - (truth.sum() - truth.cumsum()) / (truth.sum() + (1 - truth).cumsum())
        total.append(errors @ np.diff(jaccard, prepend=0))
    return np.mean(total)


# ------------------------------------------------------------------------------ PyTorch's and SMP's


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def smp(torch):
    """SMP's losses. They are imported alone, because the rest of SMP needs more packages."""
    found = importlib.util.find_spec("segmentation_models_pytorch")
    if found is None:
        pytest.skip("segmentation_models_pytorch is not installed")
    folder = Path(found.origin).parent / "losses"
    spec = importlib.util.spec_from_file_location(
        "smp_losses", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["smp_losses"] = module
    spec.loader.exec_module(module)
    return module


def theirs(torch, loss, logits, labels):
    """Value and gradient of `loss(logits f64[N,K,H,W], labels i64)`."""
    leaf = torch.tensor(np.ascontiguousarray(np.moveaxis(logits, -1, 1)), requires_grad=True)
    if labels.ndim == 4:
        labels = np.ascontiguousarray(np.moveaxis(labels, -1, 1))
    labels = torch.tensor(labels)
    value = loss(leaf, labels)
    value.backward()
    return value.item(), np.moveaxis(leaf.grad.numpy(), 1, -1)


def compare(torch, loss, descriptor, logits, labels, task="multiclass", **options):
    expected, expected_grad = theirs(torch, loss, logits, labels)
    value, grad = value_and_grad(descriptor, logits, labels, task, **options)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(grad, expected_grad, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"class_weights": WEIGHTS}])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_matches_torch(torch, seed, options, smoothing):
    logits, labels = batch(seed, (2, 3, 4), 4, 0.2)
    weights = torch.tensor(options["class_weights"], dtype=torch.float64) if options else None
    compare(
        torch,
        torch.nn.CrossEntropyLoss(weights, ignore_index=255, label_smoothing=smoothing),
        builtin.CROSS_ENTROPY,
        logits,
        labels,
        label_smoothing=smoothing,
        **options,
    )


def test_bce_matches_torch_and_smp(torch, smp):
    logits, labels = batch(0, (2, 3, 4), 3, 0.0, "multilabel")
    weight = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1)
    loss = torch.nn.BCEWithLogitsLoss(pos_weight=weight)
    compare(
        torch,
        lambda z, y: loss(z, y.double()),
        builtin.BCE,
        logits,
        labels,
        "multilabel",
        pos_weight=(0.5, 1.0, 3.0),
    )
    loss = smp.SoftBCEWithLogitsLoss(smooth_factor=0.1)
    compare(
        torch,
        lambda z, y: loss(z, y.double()),
        builtin.BCE,
        logits,
        labels,
        "multilabel",
        smooth_factor=0.1,
    )


@pytest.mark.parametrize("seed", range(3))
def test_softmax_focal_matches_smp(torch, smp, seed):
    logits, labels = batch(seed, (2, 3, 4), 4, 0.0)
    function = sys.modules["smp_losses._functional"].softmax_focal_loss_with_logits
    compare(torch, functools.partial(function, gamma=1.5), builtin.FOCAL, logits, labels, gamma=1.5)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_sigmoid_focal_matches_smp(torch, smp, task):
    logits, labels = batch(1, (2, 3, 4), 3, 0.2, task)
    compare(
        torch,
        smp.FocalLoss(task, alpha=0.25, gamma=2.0, ignore_index=255),
        builtin.FOCAL,
        logits,
        labels,
        task,
        alpha=0.25,
        **({"sigmoid": True} if task == "multiclass" else {}),
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("log", [False, True])
def test_dice_and_tversky_match_smp(torch, smp, task, log, seed):
    logits, labels = batch(seed, (2, 3, 4), 3, 0.2, task)
    labels[labels == 2] = 1  # a class without pixels
    both = {"smooth": 0.3, "log": log}
    compare(
        torch,
        smp.DiceLoss(task, log_loss=log, smooth=0.3, ignore_index=255),
        builtin.DICE,
        logits,
        labels,
        task,
        **both,
    )
    weights = {"alpha": 0.3, "beta": 0.8, "gamma": 1.5}
    compare(
        torch,
        smp.TverskyLoss(task, log_loss=log, smooth=0.3, ignore_index=255, **weights),
        builtin.TVERSKY,
        logits,
        labels,
        task,
        **both,
        **weights,
    )


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_jaccard_matches_smp(torch, smp, task):
    logits, labels = batch(3, (2, 3, 4), 3, 0.0, task)
    compare(torch, smp.JaccardLoss(task), builtin.JACCARD, logits, labels, task)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("per_image", [False, True])
def test_lovasz_matches_smp(torch, smp, task, per_image):
    logits, labels = batch(5, (2, 3, 4), 3, 0.2, task)
    loss = smp.LovaszLoss(task, per_image=per_image, ignore_index=255)
    compare(
        torch,
        lambda z, y: loss(z.float(), y),  # SMP's needs float32
        builtin.LOVASZ,
        logits,
        labels,
        task,
        per_image=per_image,
    )
