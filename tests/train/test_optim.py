import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcn_jax.config import OptimConfig, Rule
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


def torchs(make, groups=None, schedule=None, start=START, all_grads=GRADS):
    """The same steps by a torch optimizer, in float64: `groups` gives each parameter its own settings."""
    leaves = {
        name: np.asarray(next(iter(tree.values())), np.float64) for name, tree in start.items()
    }
    params = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in leaves.items()}
    optimizer = make(
        [{"params": [p], **(groups or {}).get(name, {})} for name, p in params.items()]
    )
    scheduler = schedule(optimizer) if schedule else None
    for grads in all_grads:
        for name, p in params.items():
            p.grad = torch.tensor(np.asarray(next(iter(grads[name].values())), np.float64))
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
def test_any_sgd_equals_torch(training, momentum, decay, power):
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
def test_any_adamw_equals_torch(training, decay, betas):
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


@settings(max_examples=12)
@given(lr=st.floats(1e-4, 10), power=st.floats(0.3, 3), steps=st.integers(1, 40))
def test_any_poly_schedule_equals_torchs(lr, power, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = poly(power, steps)(optimizer)
    rate = optim.schedule(OptimConfig(lr=lr, power=power), steps)
    for step in range(steps + 3):
        assert float(rate(step)) == pytest.approx(
            scheduler.get_last_lr()[0], rel=2e-5, abs=1e-7 * lr
        ), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_with_momentum_decay_and_poly_schedule_equals_torch(momentum):
    config = OptimConfig(lr=0.3, momentum=momentum, weight_decay=0.1, power=0.9)
    assert_close(
        ours(config),
        torchs(
            lambda p: torch.optim.SGD(p, lr=0.3, momentum=momentum, weight_decay=0.1),
            schedule=poly(0.9),
        ),
    )


def test_adamw_equals_torch():
    config = OptimConfig(
        name="adamw", lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3, schedule="constant"
    )
    assert_close(
        ours(config),
        torchs(
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-3)
        ),
    )


def test_rules_give_groups_their_own_rate_and_decay_and_the_first_match_wins():
    rules = (Rule(match="head.*", lr=10, weight_decay=0), Rule(match="*", lr=0.5, weight_decay=3))
    config = OptimConfig(
        lr=0.01, momentum=0.9, weight_decay=0.1, schedule="poly", power=1.0, rules=rules
    )
    groups = {
        "head": {"lr": 0.1, "weight_decay": 0.0},
        "backbone": {"lr": 0.005, "weight_decay": 0.3},
    }
    assert_close(
        ours(config), torchs(lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), groups, poly(1.0))
    )


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_rate_of_zero_freezes_even_against_decay(name):
    after = ours(OptimConfig(name=name, weight_decay=0.5, rules=(Rule(match="backbone.*", lr=0),)))
    np.testing.assert_array_equal(after["backbone"]["w"], START["backbone"]["w"])
    assert not np.array_equal(after["head"]["b"], START["head"]["b"])


@pytest.mark.parametrize(
    "rules", [(Rule(match="bakbone.*"),), (Rule(match="*"), Rule(match="head.*"))]
)
def test_a_rule_that_decides_nothing_is_an_error_with_names_to_choose_from(rules):
    with pytest.raises(
        ConfigError,
        match=r"no parameter is left for (bakbone|head)\.\*; names look like backbone\.w, head\.b",
    ):
        ours(OptimConfig(rules=rules))


def test_poly_schedule_falls_from_the_rate_to_zero_and_no_further():
    rate = optim.schedule(OptimConfig(lr=2.0, power=0.9), 10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 5, 9, 10, 12)],
        [2, 2 * 0.5**0.9, 2 * 0.1**0.9, 0, 0],
        rtol=1e-5,
        atol=1e-7,
    )


def test_warmup_rises_in_equal_steps_to_the_schedule():
    rate = optim.schedule(OptimConfig(lr=2.0, schedule="constant", warmup_steps=4), 10)
    np.testing.assert_allclose(
        [float(rate(s)) for s in range(6)], [0.5, 1, 1.5, 2, 2, 2], rtol=1e-6
    )


def test_names_are_those_of_the_modules():
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


def test_kernels_drawn_anew_learn_at_their_own_rate_unless_a_rule_names_them():
    config = OptimConfig(rules=(Rule(match="backbone.stem.*", lr=2),))
    names = [
        "backbone.stem.kernel",
        "backbone.conv.kernel",
        "backbone.bn.scale",
        "head.conv.kernel",
    ]
    rules = optim.with_fresh(config, names, 6.0).rules
    assert [(rule.match, rule.lr) for rule in rules] == [
        ("backbone.stem.*", 2),
        ("backbone.conv.kernel", 6),
    ]
    assert optim.with_fresh(config, names, 1.0) is config
    assert optim.with_fresh(config, (), 6.0) is config
