"""Optimizers and schedules against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.errors import ConfigError
from fcn_jax.train import optim

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
    params = jax.tree.map(jnp.asarray, start)
    transform = optim.make(config, len(all_grads), params)

    @jax.jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for grads in all_grads:
        params, state = step(params, state, grads)
    return jax.tree.map(np.asarray, params)


def torchs(make, groups=None, schedule=None, start=START, all_grads=GRADS, clip=None):
    """Take the same steps with a torch optimizer in float64.

    `groups` gives parameters settings of their own; None leaves a parameter out. `clip` is the
    largest norm of the gradient.
    """
    leaves = {
        name: np.asarray(next(iter(tree.values())), np.float64) for name, tree in start.items()
    }
    params = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in leaves.items()}
    given = {name: (groups or {}).get(name, {}) for name in params}
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


def cosine(optimizer, steps):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def assert_same_rates(rate, optimizer, scheduler, steps, lr):
    for step in range(steps):
        expected = scheduler.get_last_lr()[0]
        assert float(rate(step)) == pytest.approx(expected, rel=2e-5, abs=1e-7 * lr), step
        optimizer.step()
        scheduler.step()


@settings(max_examples=12)
@given(lr=st.floats(1e-4, 10), power=st.floats(0.3, 3), steps=st.integers(1, 40))
def test_poly_schedule_matches_torch(lr, power, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    rate = optim.schedule(OptimConfig(lr=lr, power=power), steps)
    assert_same_rates(rate, optimizer, poly(power, steps)(optimizer), steps + 3, lr)


@settings(max_examples=12)
@given(lr=st.floats(1e-4, 10), steps=st.integers(1, 40))
def test_cosine_schedule_matches_torch(lr, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    rate = optim.schedule(OptimConfig(lr=lr, schedule="cosine"), steps)
    assert_same_rates(rate, optimizer, cosine(optimizer, steps), steps, lr)


@pytest.mark.parametrize("name", ["poly", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [1, 2, 7])
def test_warmup_multiplies_the_schedule_by_a_linear_rise(name, warmup):
    lr, steps = 0.3, 20
    rate = optim.schedule(OptimConfig(lr=lr, schedule=name, warmup_steps=warmup), steps)
    expected = []
    for step in range(steps):
        fraction = {
            "poly": (1 - step / steps) ** 0.9,
            "cosine": (1 + np.cos(np.pi * step / steps)) / 2,
            "constant": 1.0,
        }[name]
        expected.append(lr * fraction * min((step + 1) / warmup, 1.0))
    np.testing.assert_allclose([float(rate(step)) for step in range(steps)], expected, rtol=1e-5)


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
    groups = {
        "head": {"lr": 0.1, "weight_decay": 0.0},
        "backbone": {"lr": 0.005, "weight_decay": 0.3},
    }
    assert_close(
        ours(config), torchs(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), groups, poly(1.0))
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("clip", [0.7, 2.5, 1e3])
def test_clip_norm_matches_torchs_clip_grad_norm(clip, frozen):
    groups = (ParamGroup(match="backbone.*", lr_mult=0),) if frozen else ()
    config = OptimConfig(lr=0.3, clip_norm=clip, weight_decay=0.1, param_groups=groups)
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


@pytest.mark.parametrize(
    "groups",
    [(ParamGroup(match="bakbone.*"),), (ParamGroup(match="*"), ParamGroup(match="head.*"))],
)
def test_rejects_a_param_group_without_parameters(groups):
    with pytest.raises(
        ConfigError,
        match=r"no parameter is left for (bakbone|head)\.\*; names look like backbone\.w, head\.b",
    ):
        ours(OptimConfig(param_groups=groups))


def test_poly_schedule_falls_to_zero_and_stays_there():
    rate = optim.schedule(OptimConfig(lr=2.0, power=0.9), 10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 5, 9, 10, 12)],
        [2, 2 * 0.5**0.9, 2 * 0.1**0.9, 0, 0],
        rtol=1e-5,
        atol=1e-7,
    )


def test_parameter_names_match_the_modules():
    from fcn_jax import nn

    class Net(nnx.Module):
        def __init__(self):
            self.stage = nnx.List([nn.Conv(1, 1, 1, rngs=nnx.Rngs(0))])
            self.bn = nn.BatchNorm(1)

    state = nnx.state(Net(), nnx.Param)
    assert sorted(optim.parameter_names(state)) == [
        "bn.bias",
        "bn.scale",
        "stage.0.bias",
        "stage.0.kernel",
    ]


def test_reinitialized_kernels_get_their_own_rate_unless_a_param_group_names_them():
    config = OptimConfig(param_groups=(ParamGroup(match="backbone.stem.*", lr_mult=2),))
    names = [
        "backbone.stem.kernel",
        "backbone.conv.kernel",
        "backbone.bn.scale",
        "head.conv.kernel",
    ]
    groups = optim.with_reinitialized(config, names, 6.0).param_groups
    assert [(group.match, group.lr_mult) for group in groups] == [
        ("backbone.stem.*", 2),
        ("backbone.conv.kernel", 6),
    ]
    assert optim.with_reinitialized(config, names, 1.0) is config
    assert optim.with_reinitialized(config, (), 6.0) is config
