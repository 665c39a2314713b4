import pytest

from fcn_jax import errors


def test_names_the_nearest_and_then_all():
    assert (
        errors.did_you_mean("resnet81", ["vgg16", "resnet18"])
        == "Did you mean 'resnet18'? Available: resnet18, vgg16."
    )


def test_lists_the_names_if_none_is_near():
    assert errors.did_you_mean("zzz", ["b", "a"]) == "Available: a, b."
    assert errors.did_you_mean("a", []) == "Available: none."


def test_cuts_a_long_listing_with_a_count():
    assert errors.listing(["a", "b"]) == "a, b"
    assert errors.listing(map(str, range(5)), limit=3) == "0, 1, 2 and 2 more"


@pytest.mark.parametrize(
    "name",
    ["ConfigError", "PluginError", "WeightsError", "DataError", "CheckpointError", "TrainingError"],
)
def test_user_errors_share_a_base(name):
    assert issubclass(getattr(errors, name), errors.FcnJaxError)
