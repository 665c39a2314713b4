import pytest

from fcn_jax.api import FeatureSpec, by_stride, ceil_size
from fcn_jax.errors import ConfigError

FEATURES = [
    FeatureSpec(name, 8, stride, ceil_size(stride))
    for name, stride in (("a", 4), ("b", 8), ("c", 16), ("d", 16))
]


def test_takes_the_deepest_feature_of_each_stride_from_shallow_to_deep():
    assert by_stride("head 'x'", FEATURES, (16, 4)) == ("a", "d")


@pytest.mark.parametrize(("optional", "taken"), [((8,), ("b", "d")), ((2,), ("d",))])
def test_takes_an_optional_stride_if_there_is_one(optional, taken):
    assert by_stride("head 'x'", FEATURES, (16,), optional) == taken


def test_error_names_the_missing_strides_and_the_offered_features():
    with pytest.raises(
        ConfigError,
        match=r"head 'x' needs features of strides 2, 4, 32; the backbone offers a \(4\), b \(8\), "
        r"c \(16\), d \(16\) and lacks stride 2, 32\. Backbones such as resnet18",
    ):
        by_stride("head 'x'", FEATURES, (2, 4, 32))
