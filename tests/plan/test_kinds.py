import dataclasses

import pytest

from fcn_jax.errors import ConfigError
from fcn_jax.plan import kinds


@pytest.mark.parametrize("name", ["TPUv5e", "tpu-v5e", "TPU V5E", "tpu_v5e"])
def test_spelling_of_a_kind_is_free(name):
    assert kinds.find(name).name == "TPUv5e"


def test_unknown_kind_names_the_nearest_and_lists_all():
    with pytest.raises(ConfigError, match=r"--kind H10: unknown .* Did you mean 'H100'\?") as error:
        kinds.find("H10")
    assert all(name in str(error.value) for name in kinds.KINDS)


@pytest.mark.parametrize("kind", kinds.KINDS.values(), ids=lambda kind: kind.name)
def test_numbers_are_plausible_and_have_sources(kind):
    assert kind.sources
    assert kind.float32 <= kind.tf32 <= kind.bfloat16 <= 1e15
    assert 16e9 <= kind.memory <= 200e9
    assert 3e11 <= kind.bandwidth <= 1e13
    assert kind.network <= kind.link <= kind.bandwidth
    assert kind.linked >= kind.host


def test_default_precision_of_float32_is_faster_than_highest():
    kind = kinds.find("TPUv6e")
    assert kind.peak("float32") == kind.peak("bfloat16") == 6 * kind.peak("float32", "highest")
    assert kind.peak("float16") == kind.bfloat16


def test_numbers_are_those_of_the_datasheets():
    h100 = dataclasses.asdict(kinds.find("H100"))
    assert {k: h100[k] for k in ("memory", "bandwidth", "link", "linked")} == {
        "memory": 80e9,
        "bandwidth": 3.35e12,
        "link": 900e9 / 2,
        "linked": 8,
    }
