"""The criterion, on made-up tensors."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.verify.criterion import (
    FLOOR,
    SCALAR_FLOOR,
    Comparison,
    ReferenceErrors,
    Section,
    compare_repeatedly,
)

REFERENCE = np.linspace(1, 2, 12).reshape(1, 3, 2, 2)


def off_by(error):
    """The reference with this relative L2 error."""
    direction = np.ones_like(REFERENCE)
    return REFERENCE + direction * error * np.linalg.norm(REFERENCE) / np.linalg.norm(direction)


def compared(found, reference_error=1e-5, factor=2.0, dtype="float32"):
    errors = ReferenceErrors({"x": REFERENCE}, dtype)
    errors.add({"x": off_by(reference_error)})
    (comparison,) = errors.compare({} if found is None else {"x": found}, factor)
    return comparison


@given(error=st.floats(1e-8, 1e-1), reference_error=st.floats(1e-8, 1e-1))
def test_passes_up_to_the_factor_of_the_reference_error(error, reference_error):
    comparison = compared(off_by(error), reference_error)
    assert comparison.error == pytest.approx(error, rel=1e-4)
    assert comparison.reference_error == pytest.approx(reference_error, rel=1e-4)
    assert comparison.limit == pytest.approx(2 * max(reference_error, FLOOR["float32"]), rel=1e-4)
    assert comparison.equal == (comparison.error <= comparison.limit)
    assert comparison.excess == pytest.approx(comparison.error / comparison.limit)


def test_reference_error_is_that_of_the_worst_run():
    errors = ReferenceErrors({"x": REFERENCE}, "float32")
    for error in (1e-6, 3e-5, 2e-6):
        errors.add({"x": off_by(error)})
    (comparison,) = errors.compare({"x": REFERENCE}, 2)
    assert comparison.reference_error == pytest.approx(3e-5, rel=1e-4)
    assert comparison.error == 0
    assert comparison.equal


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (np.full_like(REFERENCE, np.nan), "not finite"),
        (np.full_like(REFERENCE, np.inf), "not finite"),
        (REFERENCE.reshape(1, 3, 4, 1), r"shape (1, 3, 4, 1), in PyTorch (1, 3, 2, 2)"),
        (None, "no such tensor"),
    ],
)
def test_fails_with_the_reason_if_there_is_no_error(found, fault):
    comparison = compared(found)
    assert not comparison.equal
    assert fault in str(comparison)
    assert comparison.excess == math.inf
    assert comparison.to_dict()["error"] is None


def test_fails_if_the_reference_is_not_finite():
    errors = ReferenceErrors({"x": REFERENCE * np.inf}, "float32")
    (comparison,) = errors.compare({"x": REFERENCE * np.inf}, 2)
    assert "PyTorch's own result" in comparison.fault
    assert not comparison.equal


def test_single_numbers_have_a_higher_floor():
    errors = ReferenceErrors({"loss": np.float64(2.0)}, "bfloat16")
    (comparison,) = errors.compare({"loss": np.float32(2.0)}, 3)
    assert comparison.limit == 3 * SCALAR_FLOOR["bfloat16"] > 3 * FLOOR["bfloat16"]


def test_negligible_tensors_are_relative_to_the_least_norm():
    def error(found, reference, **settings):
        errors = ReferenceErrors({"x": np.array(reference)}, "float32", **settings)
        return errors.compare({"x": np.array(found)}, 2)[0].error

    assert error([2e-9], [1e-9]) == pytest.approx(1)
    assert error([2e-9], [1e-9], least_norm=1e-3) == pytest.approx(1e-6)
    assert error([0.0] * 3, [0.0] * 3) == 0
    assert error([1e-30] * 4, [0.0] * 4) == pytest.approx(2e-30)


def test_changes_are_measured_in_units_of_the_rounding_of_the_tensor():
    """A change of 1e-9 is lost in tensors that are stored with errors of 1e-8."""
    start, goal = {"x": np.ones(4)}, {"x": np.ones(4) + 1e-9}
    errors = ReferenceErrors(goal, "float32", start=start, rounding={"x": 1e-8})
    errors.add(start)
    (same,) = errors.compare(start, 3)
    assert same.error == pytest.approx(2e-9 / 8e-8)
    assert same.limit == pytest.approx(3 / 8)
    assert not same.inconclusive
    (far,) = errors.compare({"x": np.ones(4) + 2e-8}, 3)
    assert not far.equal
    # A larger change is compared with itself.
    errors = ReferenceErrors({"x": np.ones(4) + 1e-3}, "float32", start=start, rounding={"x": 1e-8})
    (large,) = errors.compare({"x": np.ones(4) + 1.1e-3}, 3)
    assert large.error == pytest.approx(0.1)
    assert large.limit == pytest.approx(3 * 1e-8 / 2e-3)


def test_changes_of_several_tensors_are_compared_as_one_vector():
    start = {"x": np.full((2, 2), 10.0), "y": np.full(5, -1.0)}
    reference = {"x": start["x"] + 3, "y": start["y"] + 2}
    errors = ReferenceErrors(
        reference, "float32", start=start, groups={"both": ["x", "y"], "y alone": ["y"]}
    )
    errors.add({"x": reference["x"] + 0.01, "y": reference["y"]})
    both, alone = errors.compare({"x": reference["x"], "y": reference["y"] + 0.1}, 2)
    assert (both.name, both.shape, alone.name, alone.shape) == ("both", (9,), "y alone", (5,))
    assert both.reference_error == pytest.approx(0.02 / math.sqrt(4 * 9 + 5 * 4))
    assert both.error == pytest.approx(math.sqrt(5) * 0.1 / math.sqrt(4 * 9 + 5 * 4))
    assert both.largest == pytest.approx(0.1 / 3)
    assert alone.reference_error == 0
    assert alone.error == pytest.approx(0.1 / 2)


def test_zeros_never_pass():
    comparison = compared(np.zeros_like(REFERENCE), reference_error=0.45, factor=3)
    assert not comparison.inconclusive
    assert comparison.limit < 1
    assert not comparison.equal


def test_is_inconclusive_if_pytorch_is_off_by_half():
    comparison = compared(off_by(0.7), reference_error=0.6)
    assert comparison.inconclusive
    assert comparison.equal
    assert comparison.excess == 0
    assert comparison.to_dict()["inconclusive"] is True


def test_fails_if_a_pytorch_run_is_not_finite():
    errors = ReferenceErrors({"x": REFERENCE}, "float32")
    errors.add({"x": REFERENCE * np.nan})
    (comparison,) = errors.compare({"x": REFERENCE * 3}, 2)
    assert "PyTorch's own result" in comparison.fault
    assert not comparison.equal


def test_surplus_tensor_is_a_fault():
    errors = ReferenceErrors({"x": REFERENCE}, "float32")
    right, surplus = errors.compare({"x": REFERENCE, "y": REFERENCE}, 2)
    assert right.equal
    assert not surplus.equal
    assert str(surplus) == "y: PyTorch has no such tensor"


def test_section_passes_if_its_worst_tensor_does():
    section = Section("s", 2.0, (compared(off_by(1e-6)), compared(off_by(1e-3))))
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


def test_each_tensor_counts_with_its_best_result():
    tried = [section(9.0, 1.0, 1.0), section(1.0, 9.0, 1.5), section(0.0, 0.0, 0.0)]
    (found,) = compare_repeatedly(lambda number: [tried[number]])
    assert [c.error for c in found.comparisons] == [1.0, 1.0, 1.0]
    assert found.equal
    assert found.attempts == 2, "equal sections need no further attempt"


def test_fails_if_all_attempts_fail():
    seen = []
    (found,) = compare_repeatedly(
        lambda number: seen.append(number) or [section(9.0, 8.0 - number)], attempts=3
    )
    assert seen == [0, 1, 2]
    assert not found.equal
    assert [c.error for c in found.comparisons] == [9.0, 6.0]


@pytest.mark.parametrize("when", [0, 1])
def test_fails_at_once_without_an_error(when):
    seen = []
    (found,) = compare_repeatedly(
        lambda number: seen.append(number) or [section(9.0, fault="NaN" if number == when else "")]
    )
    assert seen == list(range(when + 1))
    assert not found.equal
    assert found.comparisons[0].fault == "NaN"


def test_inconclusive_attempt_excuses_nothing():
    noisy = Section("gradients", 2.0, (Comparison("t0", (2,), 0.9, 0.9, 2.0, 0.0),))
    (found,) = compare_repeatedly(lambda number: [section(9.0) if number == 0 else noisy])
    assert not found.equal
