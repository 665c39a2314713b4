"""Groups of equal places in repeated blocks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.verify import Comparison
from fcn_jax.verify.series import grouped


def compared(name, error=1e-7, reference_error=1e-7):
    return Comparison(name, (2,), error, reference_error, 1e-6, 1e-6)


def test_groups_names_that_differ_in_numbers():
    names = ["conv1", "layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "fc"]
    stem, blocks, head = grouped(map(compared, names))
    assert (stem.name, blocks.name, head.name) == ("conv1", "layer*.*.conv1", "fc")
    assert [c.name for c in blocks.comparisons] == names[1:4]


def test_separates_failing_and_inconclusive_tensors():
    found = grouped(
        [compared("a0"), compared("a1", 1e-3), compared("a2", 1e-2), compared("a3", 1.0, 0.7)]
    )
    assert [(s.name, len(s.comparisons), s.equal) for s in found] == [
        *(("a0", 1, True), ("a*", 2, False), ("a3", 1, True)),
    ]
    assert found[1].worst.name == "a2"
    assert str(found[1]).startswith("a*: 2 tensors from a1 on; worst a2: error 1.0e-02")
    assert str(found[0]) == str(compared("a0"))


@given(st.lists(st.from_regex(r"[ab]{0,2}\d{0,2}\.?\d?", fullmatch=True), max_size=12))
def test_every_tensor_is_in_one_group_in_order(names):
    errors = np.logspace(-8, -5, 12)[: len(names)]
    found = grouped(compared(name, error) for error, name in zip(errors, names, strict=True))
    assert sorted(c.name for s in found for c in s.comparisons) == sorted(names)
    assert all("*" in s.name or len({c.name for c in s.comparisons}) == 1 for s in found)
