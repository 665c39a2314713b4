"""The criterion by itself, on made-up tensors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.verify.compare import (
    FLOOR,
    SCALAR_FLOOR,
    Comparison,
    Section,
    Yardstick,
    persistent,
    relative_error,
)

TRUTH = np.linspace(1, 2, 12).reshape(1, 3, 2, 2)


def off_by(error):
    """The truth with a relative L2 error of just so much."""
    direction = np.ones_like(TRUTH)
    return TRUTH + direction * error * np.linalg.norm(TRUTH) / np.linalg.norm(direction)


def judged(found, torch_error=1e-5, factor=2.0, dtype="float32"):
    yardstick = Yardstick({"x": TRUTH}, dtype)
    yardstick.add({"x": off_by(torch_error)})
    (comparison,) = yardstick.judge({} if found is None else {"x": found}, factor)
    return comparison


@given(error=st.floats(1e-8, 1e-1), torch_error=st.floats(1e-8, 1e-1))
def test_a_tensor_passes_while_its_error_is_within_the_factor_of_pytorchs(error, torch_error):
    comparison = judged(off_by(error), torch_error)
    assert comparison.error == pytest.approx(error, rel=1e-4)
    assert comparison.torch_error == pytest.approx(torch_error, rel=1e-4)
    assert comparison.limit == pytest.approx(2 * max(torch_error, FLOOR["float32"]), rel=1e-4)
    assert comparison.equal == (comparison.error <= comparison.limit)
    assert comparison.excess == pytest.approx(comparison.error / comparison.limit)


def test_the_yardstick_is_the_worst_run():
    yardstick = Yardstick({"x": TRUTH}, "float32")
    for error in (1e-6, 3e-5, 2e-6):
        yardstick.add({"x": off_by(error)})
    (comparison,) = yardstick.judge({"x": TRUTH}, 2)
    assert comparison.torch_error == pytest.approx(3e-5, rel=1e-4)
    assert comparison.error == 0
    assert comparison.equal


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (np.full_like(TRUTH, np.nan), "not finite"),
        (np.full_like(TRUTH, np.inf), "not finite"),
        (TRUTH.reshape(1, 3, 4, 1), r"shape (1, 3, 4, 1), in PyTorch (1, 3, 2, 2)"),
        (None, "no such tensor"),
    ],
)
def test_what_cannot_be_measured_fails_and_says_why(found, fault):
    comparison = judged(found)
    assert not comparison.equal
    assert fault in str(comparison)
    assert comparison.excess == math.inf
    assert comparison.to_dict()["error"] is None


def test_a_truth_that_is_not_finite_fails_too():
    yardstick = Yardstick({"x": TRUTH * np.inf}, "float32")
    (comparison,) = yardstick.judge({"x": TRUTH * np.inf}, 2)
    assert "PyTorch's own result" in comparison.fault
    assert not comparison.equal


def test_a_single_number_has_a_wider_floor():
    yardstick = Yardstick({"loss": np.float64(2.0)}, "bfloat16")
    (comparison,) = yardstick.judge({"loss": np.float32(2.0)}, 3)
    assert comparison.limit == 3 * SCALAR_FLOOR["bfloat16"] > 3 * FLOOR["bfloat16"]


def test_a_tensor_that_is_zero_but_for_rounding_is_measured_by_the_least_norm():
    assert relative_error(np.array([2e-9]), np.array([1e-9])) == pytest.approx(1)
    assert relative_error(np.array([2e-9]), np.array([1e-9]), least_norm=1e-3) == pytest.approx(
        1e-6
    )
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.full(4, 1e-30), np.zeros(4)) == pytest.approx(2e-30)


def test_a_tensor_of_zeros_does_not_pass_however_noisy_pytorch_is():
    comparison = judged(np.zeros_like(TRUTH), torch_error=0.45, factor=3)
    assert comparison.judged
    assert comparison.limit < 1
    assert not comparison.equal


def test_where_pytorch_itself_is_off_by_half_nothing_is_judged_and_it_is_said():
    comparison = judged(off_by(0.7), torch_error=0.6)
    assert not comparison.judged
    assert comparison.equal
    assert comparison.excess == 0
    assert comparison.to_dict()["judged"] is False


def test_a_run_of_pytorchs_that_is_not_finite_is_no_yardstick():
    yardstick = Yardstick({"x": TRUTH}, "float32")
    yardstick.add({"x": TRUTH * np.nan})
    (comparison,) = yardstick.judge({"x": TRUTH * 3}, 2)
    assert "PyTorch's own result" in comparison.fault
    assert not comparison.equal


def test_what_only_jax_has_is_a_fault():
    yardstick = Yardstick({"x": TRUTH}, "float32")
    right, surplus = yardstick.judge({"x": TRUTH, "y": TRUTH}, 2)
    assert right.equal
    assert not surplus.equal
    assert str(surplus) == "y: PyTorch has no such tensor"


def test_a_section_is_as_good_as_its_worst_tensor():
    section = Section("s", 2.0, (judged(off_by(1e-6)), judged(off_by(1e-3))))
    assert not section.equal
    assert section.worst is section.comparisons[1]
    assert section.worst_factor == pytest.approx(100, rel=1e-3)
    assert Section("empty", 2.0, ()).worst is None
    assert not Section("empty", 2.0, ()).equal


def section(*errors, fault=""):
    comparisons = tuple(
        Comparison(f"t{i}", (2,), error, 0.1, 2.0, 0.0, fault) for i, error in enumerate(errors)
    )
    return Section("gradients", 2.0, comparisons)


def test_a_tensor_counts_where_it_came_out_best():
    tried = [section(9.0, 1.0, 1.0), section(1.0, 9.0, 1.5), section(0.0, 0.0, 0.0)]
    (found,) = persistent(lambda number: [tried[number]])
    assert [c.error for c in found.comparisons] == [1.0, 1.0, 1.0]
    assert found.equal
    assert found.attempts == 2, "what is equal needs no further attempt"


def test_what_is_wrong_on_all_inputs_stays_wrong():
    seen = []
    (found,) = persistent(
        lambda number: seen.append(number) or [section(9.0, 8.0 - number)], attempts=3
    )
    assert seen == [0, 1, 2]
    assert not found.equal
    assert [c.error for c in found.comparisons] == [9.0, 6.0]


@pytest.mark.parametrize("when", [0, 1])
def test_what_cannot_be_measured_once_is_wrong(when):
    seen = []
    (found,) = persistent(
        lambda number: seen.append(number) or [section(9.0, fault="NaN" if number == when else "")]
    )
    assert seen == list(range(when + 1))
    assert not found.equal
    assert found.comparisons[0].fault == "NaN"


def test_a_noisy_input_excuses_nothing():
    noisy = Section("gradients", 2.0, (Comparison("t0", (2,), 0.9, 0.9, 2.0, 0.0),))
    (found,) = persistent(lambda number: [section(9.0) if number == 0 else noisy])
    assert not found.equal
