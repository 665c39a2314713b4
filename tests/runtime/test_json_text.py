"""JSON that every parser reads."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.runtime.json_text import dumps


def _reject(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_numbers_that_are_not_finite_become_null_at_any_depth() -> None:
    value = {
        "a": math.nan,
        "b": [1.0, math.inf, {"c": (np.float32(-np.inf), 2)}],
        "d": np.array([np.nan, 1.5]),
    }
    assert json.loads(dumps(value), parse_constant=_reject) == {
        "a": None,
        "b": [1.0, None, {"c": [None, 2]}],
        "d": [None, 1.5],
    }


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_finite_values_are_unchanged(value: object) -> None:
    assert json.loads(dumps(value)) == value
    assert json.loads(dumps(value, indent=2)) == value


def test_rejects_objects_that_json_cannot_express() -> None:
    with pytest.raises(TypeError):
        dumps({"a": object()})
