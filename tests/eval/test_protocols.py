"""Names and settings of protocols, errors, and the pixels that d2l and resize score."""

import numpy as np
import pytest

from fcn_jax import config
from fcn_jax.api import Example
from fcn_jax.errors import ConfigError
from fcn_jax.eval import protocols
from fcn_jax.eval.protocols import D2L, Multiscale, Native, Resize, Sliding, choose, make


def test_every_setting_is_a_key_of_the_section_eval():
    assert set(protocols.SETTING_NAMES) <= set(config.keys(config.EvalConfig))
    assert set(config.keys(config.EvalConfig)) - set(protocols.SETTING_NAMES) == {
        "protocol",
        "also",
        "metrics",
        "batch_size",
    }


def test_settings_imply_the_protocol():
    assert make() == Native()
    assert make(None, {"size": (8, 9)}) == Resize((8, 9))
    assert make(None, {"scales": (0.5,), "flip": False}) == Multiscale((0.5,), False)
    assert make(None, {"flip": True}) == Multiscale()
    assert make(None, {"window": (8, 9), "flip": True}) == Sliding((8, 9), flip=True)
    assert make(None, {"seed": 3}) == D2L(seed=3)


def test_to_dict_has_name_and_settings():
    assert Sliding((512, 256), overlap=0.25).to_dict() == {
        "name": "sliding",
        "window": [512, 256],
        "overlap": 0.25,
        "blend": "gaussian",
        "average": "probabilities",
        "flip": False,
    }
    assert Native().to_dict() == {"name": "native"}
    assert str(Multiscale((0.5, 1.0))) == "multiscale (scales 0.5,1, flip yes)"
    assert str(Resize((8, 9))) == "resize (size 8x9, labels native)"
    assert str(Native()) == "native"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "slidng",
            {},
            "no evaluation protocol 'slidng'. Did you mean 'sliding'? Available: d2l, multiscale, "
            "native, resize, sliding.",
        ),
        ("sliding", {}, "protocol sliding: window is missing, such as 512x512"),
        (
            "sliding",
            {"window": (8, 8), "overlap": 1.0, "blend": "gausian", "average": "logits"},
            "protocol sliding: overlap is 1.0: expected at least 0 and below 1 (0.5: windows "
            "overlap by half); blend is gausian: Did you mean 'gaussian'? Available: gaussian, "
            "uniform",
        ),
        (
            "native",
            {"window": (8, 8)},
            "protocol native has no setting 'window', which belongs to sliding",
        ),
        (
            None,
            {"window": (8, 8), "scales": (1.0,)},
            "no evaluation protocol has all of these settings: window of sliding, scales of "
            "multiscale",
        ),
        (
            "resize",
            {"size": (0, 8)},
            "protocol resize: size is 0x8: expected height and width, each at least 1 pixel",
        ),
        (
            "multiscale",
            {"scales": (0.5, 0.0)},
            "protocol multiscale: scales is 0.5,0: expected one or more numbers above 0, at most 8",
        ),
        (
            "d2l",
            {"drop_last": 0, "seed": -1},
            "protocol d2l: drop_last is 0: expected 1 or more images; seed is -1: expected 0 to "
            "4294967295",
        ),
    ],
)
def test_one_error_names_all_problems(name, settings, message):
    with pytest.raises(ConfigError) as error:
        make(name, settings)
    assert str(error.value) == message


def recipe(**section):
    return config.parse({"eval": section, "data": {"crop_size": [64, 96]}})


def test_choice_starts_from_the_recipe():
    run = recipe(protocol="sliding", overlap=0.25)
    assert choose(recipe=run) == Sliding((64, 96), overlap=0.25)
    assert choose(None, {"overlap": 0.75}, run) == Sliding((64, 96), overlap=0.75)
    assert choose("sliding", {"blend": "uniform"}, run) == Sliding((64, 96), 0.25, "uniform")
    # Other protocols start from their defaults.
    assert choose("native", {}, run) == Native()
    assert choose(None, {"scales": (1.0,)}, run) == Multiscale((1.0,))
    assert choose("sliding", {}, recipe(size=[8, 8])) == Sliding((64, 96))
    assert choose(recipe=recipe(overlap=0.0)) == Sliding((64, 96), 0.0)
    assert choose(recipe=recipe()) == Native()
    assert choose(D2L(), {}, run) == D2L()
    with pytest.raises(ConfigError, match="constructor"):
        choose(D2L(), {"seed": 1}, run)


def test_recipe_names_wrong_settings():
    with pytest.raises(ConfigError) as error:
        recipe(protocol="slide", overlap=1.0, windw=[8, 8])
    for part in (
        "eval.protocol is 'slide': input should be 'native', 'resize', 'multiscale', 'sliding' or",
        "eval.overlap is 1.0: input should be less than 1",
        "unknown key 'eval.windw'. Did you mean 'window'?",
    ):
        assert part in str(error.value)


def examples(*sizes):
    for number, size in enumerate(sizes):
        rows = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size)
        yield Example(str(number), np.repeat(rows[..., None], 3, -1), rows % 3)


def test_d2l_scores_one_crop_of_images_that_are_large_enough():
    protocol = D2L(crop=(4, 5), drop_last=1, seed=7)
    found = list(protocol.examples(examples((4, 5), (3, 9), (9, 9), (9, 9))))
    assert [example.id for example in found] == ["0", "2", "3"]
    for example in found:
        assert (example.image.shape, example.mask.shape) == ((4, 5, 3), (4, 5))
        # The mask is that of the image's pixels.
        np.testing.assert_array_equal(example.mask, example.image[..., 0] % 3)
    assert not np.array_equal(found[1].image, found[2].image), "one draw for each image"


def test_crops_of_d2l_depend_only_on_seed_and_position():
    sizes = [(40, 50)] * 4

    def crops(seed, sizes=sizes):
        protocol = D2L(crop=(4, 5), drop_last=1, seed=seed)
        return {example.id: example.image for example in protocol.examples(examples(*sizes))}

    first, again, other = crops(0), crops(0, [(2, 2), (2, 2), (2, 2), (40, 50)]), crops(1)
    np.testing.assert_array_equal(first["3"], again["3"])
    assert not np.array_equal(first["3"], other["3"])


def test_crops_of_d2l_reach_every_corner():
    tops, lefts = set(), set()
    whole = next(examples((6, 8)))
    for seed in range(60):
        (found,) = D2L(crop=(4, 5), drop_last=1, seed=seed).examples([whole])
        top, left = divmod(int(found.image[0, 0, 0]), 8)
        tops.add(top)
        lefts.add(left)
    assert (tops, lefts) == ({0, 1, 2}, {0, 1, 2, 3})


def test_d2l_leaves_out_images_that_fill_no_batch():
    found = list(D2L(crop=(2, 2), drop_last=3).examples(examples(*[(4, 4)] * 8)))
    assert [example.id for example in found] == list("012345")


def test_d2l_counts_ignored_pixels_as_background():
    example = Example("0", np.zeros((2, 2, 3), np.uint8), np.uint8([[255, 1], [2, 255]]))
    (found,) = D2L(crop=(2, 2), drop_last=1).examples([example])
    np.testing.assert_array_equal(found.mask, [[0, 1], [2, 0]])


def test_resize_scores_at_either_size():
    example = Example(
        "0", np.zeros((4, 6, 3), np.uint8), np.arange(24, dtype=np.uint8).reshape(4, 6)
    )
    (native,) = Resize((2, 3)).examples([example])
    assert native.mask.shape == (4, 6)
    (small,) = Resize((2, 3), "resized").examples([example])
    assert (small.image.shape, small.mask.shape) == ((2, 3, 3), (2, 3))
    assert set(small.mask.ravel()) <= set(range(24))


def test_prediction_covers_whole_images_at_their_size():
    assert Resize((2, 3), "resized").for_prediction() == Resize((2, 3))
    assert D2L().for_prediction() == Native()
    assert Sliding((8, 8)).for_prediction() == Sliding((8, 8))
