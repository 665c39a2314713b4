import pytest

from fcn_jax import errors


def test_the_nearest_name_comes_first_and_then_all_of_them():
    assert (
        errors.did_you_mean("resnet81", ["vgg16", "resnet18"])
        == "Did you mean 'resnet18'? Available: resnet18, vgg16."
    )


def test_without_a_near_name_only_the_list():
    assert errors.did_you_mean("zzz", ["b", "a"]) == "Available: a, b."
    assert errors.did_you_mean("a", []) == "Available: none."


def test_a_long_listing_is_cut_with_a_count():
    assert errors.listing(["a", "b"]) == "a, b"
    assert errors.listing(map(str, range(5)), limit=3) == "0, 1, 2 and 2 more"


@pytest.mark.parametrize(
    "name",
    ["ConfigError", "PluginError", "WeightsError", "DataError", "CheckpointError", "TrainingError"],
)
def test_every_error_a_user_can_meet_has_one_base(name):
    assert issubclass(getattr(errors, name), errors.FcnJaxError)
