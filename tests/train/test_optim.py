"""Optimizers against PyTorch's, or against their definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.train import groups, optim

torch = pytest.importorskip("torch")

STEPS = 5
RNG = np.random.default_rng(0)
START = {
    "backbone": {"w": RNG.standard_normal((3, 2), np.float32)},
    "head": {"b": RNG.standard_normal(4, np.float32)},
}
GRADS = [
    jax.tree.map(lambda p: RNG.standard_normal(p.shape, np.float32), START) for _ in range(STEPS)
]


def ours(config, start=START, all_grads=GRADS):
    rates = groups.assign(config, start)
    frozen = {name.split(".")[0] for name in groups.frozen_names(rates)}
    params = {name: jax.tree.map(jnp.asarray, p) for name, p in start.items() if name not in frozen}
    transform = optim.make(config, len(all_grads), rates)

    @jax.jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for grads in all_grads:
        params, state = step(params, state, {name: grads[name] for name in params})
    return {**start, **jax.tree.map(np.asarray, params)}


def torchs(make, own=None, schedule=None, start=START, all_grads=GRADS, clip=None, clip_value=None):
    """Take the same steps with a torch optimizer in float64.

    `own` gives parameters settings of their own; None leaves a parameter out. `clip` is the largest
    norm of the gradient, `clip_value` its largest value.
    """
    leaves = {
        name: np.asarray(next(iter(tree.values())), np.float64) for name, tree in start.items()
    }
    params = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in leaves.items()}
    given = {name: (own or {}).get(name, {}) for name in params}
    trained = [params[name] for name, group in given.items() if group is not None]
    optimizer = make(
        [{"params": [params[name]], **group} for name, group in given.items() if group is not None]
    )
    scheduler = schedule(optimizer) if schedule else None
    for grads in all_grads:
        for name, p in params.items():
            p.grad = torch.tensor(np.asarray(next(iter(grads[name].values())), np.float64))
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        if clip_value:
            torch.nn.utils.clip_grad_value_(trained, clip_value)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {
        "backbone": {"w": params["backbone"].detach().numpy()},
        "head": {"b": params["head"].detach().numpy()},
    }


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-6), a, b)


def poly(power, steps=STEPS):
    return lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(
        optimizer, total_iters=steps, power=power
    )


@st.composite
def trainings(draw):
    """Parameters of any shape, and the gradients of a few steps."""
    shapes = [draw(npst.array_shapes(min_dims=1, max_dims=4, max_side=4)) for _ in range(2)]
    rng = np.random.default_rng(0)
    trees = [
        {
            "backbone": {"w": rng.standard_normal(shapes[0], np.float32)},
            "head": {"b": rng.standard_normal(shapes[1], np.float32)},
        }
        for _ in range(draw(st.integers(2, 7)))
    ]
    return trees[0], trees[1:]


SHARE = st.floats(0.0, 0.95)


@settings(max_examples=8)
@given(training=trainings(), momentum=SHARE, decay=SHARE, power=st.floats(0.5, 2))
def test_sgd_of_any_settings_matches_torch(training, momentum, decay, power):
    start, grads = training
    config = OptimConfig(lr=0.3, momentum=momentum, weight_decay=decay, power=power)
    theirs = torchs(
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=momentum, weight_decay=decay),
        None,
        poly(power, len(grads)),
        start,
        grads,
    )
    assert_close(ours(config, start, grads), theirs)


@settings(max_examples=8)
@given(
    training=trainings(), decay=SHARE, betas=st.tuples(SHARE, st.sampled_from([0.9, 0.99, 0.999]))
)
def test_adamw_of_any_settings_matches_torch(training, decay, betas):
    start, grads = training
    config = OptimConfig(
        name="adamw", lr=0.01, weight_decay=decay, betas=betas, eps=1e-8, schedule="constant"
    )
    theirs = torchs(
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=decay, betas=betas),
        None,
        None,
        start,
        grads,
    )
    assert_close(ours(config, start, grads), theirs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_momentum_decay_and_poly_schedule_matches_torch(momentum):
    config = OptimConfig(lr=0.3, momentum=momentum, weight_decay=0.1, power=0.9)
    assert_close(
        ours(config),
        torchs(
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=momentum, weight_decay=0.1),
            schedule=poly(0.9),
        ),
    )


def test_adamw_matches_torch():
    config = OptimConfig(
        name="adamw", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3, schedule="constant"
    )
    assert_close(
        ours(config),
        torchs(
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3)
        ),
    )


def test_param_groups_scale_rate_and_decay_and_the_first_match_decides():
    param_groups = (
        ParamGroup(match="head.*", lr_mult=10, decay_mult=0),
        ParamGroup(match="*", lr_mult=0.5, decay_mult=3),
    )
    config = OptimConfig(
        lr=0.01, momentum=0.9, weight_decay=0.1, power=1.0, param_groups=param_groups
    )
    own = {
        "head": {"lr": 0.1, "weight_decay": 0.0},
        "backbone": {"lr": 0.005, "weight_decay": 0.3},
    }
    assert_close(
        ours(config), torchs(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), own, poly(1.0))
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clip", [0.7, 2.5, 1e3])
def test_clip_norm_matches_torchs_clip_grad_norm(clip, frozen):
    frozen_group = (ParamGroup(match="backbone.*", lr_mult=0),) if frozen else ()
    config = OptimConfig(lr=0.3, clip_norm=clip, weight_decay=0.1, param_groups=frozen_group)
    theirs = torchs(
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
        {"backbone": None} if frozen else None,
        poly(0.9),
        clip=clip,
    )
    assert_close(ours(config), theirs)
    if clip < 1:
        unclipped = config.model_copy(update={"clip_norm": None})
        difference = ours(config)["head"]["b"] - ours(unclipped)["head"]["b"]
        assert np.abs(difference).max() > 0.01, "the gradients are large enough to be clipped"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_lr_mult_of_zero_freezes_despite_decay(name):
    after = ours(
        OptimConfig(
            name=name, weight_decay=0.5, param_groups=(ParamGroup(match="backbone.*", lr_mult=0),)
        )
    )
    np.testing.assert_array_equal(after["backbone"]["w"], START["backbone"]["w"])
    assert not np.array_equal(after["head"]["b"], START["head"]["b"])


@pytest.mark.parametrize("clip", [0.05, 0.5, 10.0])
def test_clip_value_matches_torchs_clip_grad_value(clip):
    config = OptimConfig(lr=0.3, clip_value=clip, weight_decay=0.1)
    theirs = torchs(
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
        None,
        poly(0.9),
        clip_value=clip,
    )
    assert_close(ours(config), theirs)


def test_adam_matches_torch():
    config = OptimConfig(
        name="adam", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3, schedule="constant"
    )
    theirs = torchs(
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3)
    )
    assert_close(ours(config), theirs)


def test_default_betas_are_those_of_the_optimizers_authors():
    config = OptimConfig(name="adamw", lr=0.1, weight_decay=0, schedule="constant")
    theirs = torchs(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4), ours(config), theirs)
    lion = config.model_copy(update={"name": "lion"})
    assert_close(ours(lion), ours(lion.model_copy(update={"betas": (0.9, 0.99)})))


def test_lion_matches_its_definition():
    config = OptimConfig(
        name="lion", lr=0.01, weight_decay=0.3, betas=(0.8, 0.95), schedule="constant"
    )
    found = ours(config)
    for part, leaf in (("backbone", "w"), ("head", "b")):
        p = START[part][leaf].astype(np.float64)
        m = np.zeros_like(p)
        for grads in GRADS:
            g = grads[part][leaf].astype(np.float64)
            p = p - 0.01 * (np.sign(0.8 * m + 0.2 * g) + 0.3 * p)
            m = 0.95 * m + 0.05 * g
        np.testing.assert_allclose(found[part][leaf], p, rtol=2e-6, atol=1e-6)


KERNELS = {
    "backbone": {"kernel": RNG.standard_normal((3, 3, 4, 6), np.float32)},
    "head": {"bias": RNG.standard_normal(6, np.float32)},
}
KERNEL_GRADS = [
    jax.tree.map(lambda p: RNG.standard_normal(p.shape, np.float32), KERNELS) for _ in range(STEPS)
]


def orthogonal(x):
    """Five steps of Newton and Schulz for a matrix with at most as many rows as columns."""
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_matches_its_definition_for_kernels_and_adamw_for_the_rest():
    config = OptimConfig(
        name="muon", lr=0.02, momentum=0.9, weight_decay=0.1, schedule="constant", eps=1e-8
    )
    found = ours(config, KERNELS, KERNEL_GRADS)
    p = KERNELS["backbone"]["kernel"].astype(np.float64).reshape(36, 6)
    m = np.zeros_like(p)
    for t, grads in enumerate(KERNEL_GRADS, start=1):
        g = grads["backbone"]["kernel"].astype(np.float64).reshape(36, 6)
        m = 0.9 * m + 0.1 * g
        # Nesterov momentum, with Adam's correction of the bias toward zero.
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        p = p - 0.02 * (0.2 * np.sqrt(36) * orthogonal(ahead.T).T + 0.1 * p)
    np.testing.assert_allclose(
        found["backbone"]["kernel"], p.reshape(3, 3, 4, 6), rtol=1e-4, atol=1e-5
    )
    adamw = config.model_copy(update={"name": "adamw"})
    expected = ours(adamw, KERNELS, KERNEL_GRADS)["head"]["bias"]
    np.testing.assert_array_equal(found["head"]["bias"], expected)


def test_muon_moves_kernels_as_far_as_torchs():
    # torch's Muon orthogonalizes in bfloat16 and does not correct the momentum, which changes the
    # direction by some percent.
    matrix = {"backbone": {"w": KERNELS["backbone"]["kernel"].reshape(36, 6)}}
    grads = [{"backbone": {"w": g["backbone"]["kernel"].reshape(36, 6)}} for g in KERNEL_GRADS]
    config = OptimConfig(name="muon", lr=0.02, momentum=0.9, weight_decay=0.1, schedule="constant")
    found = ours(config, matrix, grads)["backbone"]["w"] - matrix["backbone"]["w"]
    parameter = torch.tensor(matrix["backbone"]["w"], requires_grad=True)
    optimizer = torch.optim.Muon(
        [parameter], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for g in grads:
        parameter.grad = torch.tensor(g["backbone"]["w"])
        optimizer.step()
    expected = parameter.detach().numpy() - matrix["backbone"]["w"]
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_decay_norm_and_bias_false_spares_parameters_with_one_axis():
    config = OptimConfig(lr=0.01, weight_decay=0.1, decay_norm_and_bias=False, power=1.0)
    own = {"head": {"weight_decay": 0.0}, "backbone": {"weight_decay": 0.1}}
    assert_close(
        ours(config), torchs(lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), own, poly(1.0))
    )


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion", "muon"])
def test_param_groups_scale_the_rate_of_every_optimizer(name):
    config = OptimConfig(name=name, lr=0.02, weight_decay=0.1, schedule="constant")
    half = config.model_copy(update={"lr": 0.01})
    group = config.model_copy(update={"param_groups": (ParamGroup(match="head.*", lr_mult=0.5),)})
    found = ours(group)
    assert_close(found, {"backbone": ours(config)["backbone"], "head": ours(half)["head"]})
