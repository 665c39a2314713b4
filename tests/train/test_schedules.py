"""Schedules of the learning rate against PyTorch's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_jax.config import OptimConfig
from fcn_jax.train.schedules import schedule

torch = pytest.importorskip("torch")
schedulers = torch.optim.lr_scheduler


def assert_same_rates(config, make_scheduler, steps, *, after=0):
    """Compare all steps of a run, and `after` more."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    scheduler, rate = make_scheduler(optimizer), schedule(config, steps)
    for step in range(steps + after):
        expected = scheduler.get_last_lr()[0]
        assert float(rate(step)) == pytest.approx(expected, rel=2e-5, abs=2e-7 * config.lr), step
        optimizer.step()
        if step < steps - 1 or after:  # OneCycleLR refuses more steps than its length
            scheduler.step()


LR, STEPS = st.floats(1e-4, 10), st.integers(1, 40)


@settings(max_examples=12)
@given(lr=LR, power=st.floats(0.3, 3), steps=STEPS)
def test_poly_matches_torch(lr, power, steps):
    assert_same_rates(
        OptimConfig(lr=lr, power=power),
        lambda optimizer: schedulers.PolynomialLR(optimizer, total_iters=steps, power=power),
        steps,
        after=3,
    )


@settings(max_examples=12)
@given(lr=LR, steps=STEPS, final=st.floats(0, 1))
def test_cosine_matches_torch(lr, steps, final):
    assert_same_rates(
        OptimConfig(lr=lr, schedule="cosine", final_factor=final),
        lambda optimizer: schedulers.CosineAnnealingLR(optimizer, steps, eta_min=final * lr),
        steps,
        after=1,
    )


@settings(max_examples=12)
@given(
    lr=LR,
    steps=st.integers(2, 60),
    rise=st.floats(0.05, 0.95),
    div=st.floats(1, 50),
    final=st.floats(1, 1e5),
)
def test_one_cycle_matches_torch(lr, steps, rise, div, final):
    if abs(rise * steps - 1) < 0.05:
        return  # torch divides by almost nothing
    assert_same_rates(
        OptimConfig(lr=lr, schedule="one_cycle", rise=rise, div_factor=div, final_div_factor=final),
        lambda optimizer: schedulers.OneCycleLR(
            optimizer,
            lr,
            total_steps=steps,
            pct_start=rise,
            div_factor=div,
            final_div_factor=final,
            cycle_momentum=False,
        ),
        steps,
    )


@settings(max_examples=12)
@given(
    lr=LR,
    steps=STEPS,
    gamma=st.floats(0.05, 2),
    milestones=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=4, unique=True).map(sorted),
)
def test_multi_step_matches_torch(lr, steps, gamma, milestones):
    assert_same_rates(
        OptimConfig(lr=lr, schedule="multi_step", gamma=gamma, milestones=tuple(milestones)),
        lambda optimizer: schedulers.MultiStepLR(
            optimizer, [round(fraction * steps) for fraction in milestones], gamma
        ),
        steps,
        after=2,
    )


@pytest.mark.parametrize("warmup", [2, 7])
@pytest.mark.parametrize("name", ["poly", "cosine", "constant", "one_cycle", "multi_step"])
def test_warmup_matches_torchs_linear_lr(name, warmup):
    steps, milestones = 20, (0.25, 0.8)
    after = {
        "poly": lambda o: schedulers.PolynomialLR(o, total_iters=steps, power=0.9),
        "cosine": lambda o: schedulers.CosineAnnealingLR(o, steps),
        "constant": lambda o: schedulers.ConstantLR(o, factor=1.0),
        "multi_step": lambda o: schedulers.MultiStepLR(o, [5, 16], 0.1),
    }

    def chained(optimizer):
        linear = schedulers.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
        return schedulers.ChainedScheduler([linear, after[name](optimizer)], optimizer)

    config = OptimConfig(lr=0.3, schedule=name, warmup_steps=warmup, milestones=milestones)
    if name == "one_cycle":  # OneCycleLR sets rates instead of multiplying them
        bare = schedule(config.model_copy(update={"warmup_steps": 0}), steps)
        expected = [float(bare(step)) * min((step + 1) / warmup, 1) for step in range(steps)]
        rate = schedule(config, steps)
        np.testing.assert_allclose([rate(step) for step in range(steps)], expected, rtol=1e-5)
    else:
        assert_same_rates(config, chained, steps)


def test_warmup_of_one_step_changes_nothing():
    rate = schedule(OptimConfig(lr=0.3, schedule="constant", warmup_steps=1), 5)
    assert [float(rate(step)) for step in range(3)] == pytest.approx([0.3] * 3)


def test_milestones_that_round_to_one_step_count_twice():
    rate = schedule(OptimConfig(lr=1.0, schedule="multi_step", milestones=(0.49, 0.51)), 10)
    assert [float(rate(step)) for step in (4, 5, 9)] == pytest.approx([1, 0.01, 0.01])


def test_poly_falls_to_zero_and_stays_there():
    rate = schedule(OptimConfig(lr=2.0, power=0.9), 10)
    np.testing.assert_allclose(
        [rate(s) for s in (0, 5, 9, 10, 12)],
        [2, 2 * 0.5**0.9, 2 * 0.1**0.9, 0, 0],
        rtol=1e-5,
        atol=1e-7,
    )
