"""A serialized pipeline of Albumentations: its seeds, and results that cannot be used."""

import json
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fcn_jax.api import IGNORE_INDEX, Example
from fcn_jax.config import parse
from fcn_jax.data.augment.albumentations_pipeline import Pipeline
from fcn_jax.data.transforms import Augment
from fcn_jax.errors import ConfigError

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


@pytest.fixture(scope="module")
def albumentations():
    return pytest.importorskip("albumentations")


def example(height=30, width=40, channels=3):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, channels), np.uint8)
    return Example("im", image, rng.integers(1, 5, (height, width), np.uint8))


def same(a, b):
    return np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)


@pytest.fixture
def table(albumentations, tmp_path):
    a = albumentations
    steps = [
        a.RandomScale((-0.3, 0.5), p=1),
        a.Rotate(20, fill_mask=IGNORE_INDEX),
        a.OneOf([a.HorizontalFlip(p=1), a.VerticalFlip(p=1)], p=0.5),
        a.ColorJitter(),
        a.CoarseDropout(),
    ]
    path = tmp_path / "pipeline.json"
    a.save(a.Compose(steps), path)
    return parse({"augment": {"albumentations": str(path)}}).augment.albumentations


def saved(albumentations, *steps):
    """The table of a pipeline, as a file holds it."""
    return json.loads(json.dumps(albumentations.to_dict(albumentations.Compose(steps))))


def test_seed_determines_the_result_in_any_order_thread_and_process(table):
    pipeline = Pipeline(table)
    whole = example()
    expected = [pipeline(whole, seed) for seed in range(6)]
    assert not all(same(expected[0], other) for other in expected[1:])
    assert all(same(pipeline(whole, seed), expected[seed]) for seed in (5, 0, 3, 3))
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda seed: pipeline(whole, seed), [*range(6)] * 4))
    assert all(same(a, b) for a, b in zip(found, expected * 4, strict=True))
    copy = pickle.loads(pickle.dumps(pipeline))
    assert same(copy(whole, 4), expected[4])


def test_result_is_cropped_to_the_crop_size(table):
    augment = Augment((24, 56), tables=parse({"augment": {"albumentations": table}}).augment)
    for seed in range(5):
        found = augment(example(), np.random.default_rng(seed))
        assert found.image.shape == (24, 56, 3)
        assert found.mask.shape == (24, 56)
        assert set(np.unique(found.mask)) <= {1, 2, 3, 4, IGNORE_INDEX}
        assert same(found, augment(example(), np.random.default_rng(seed)))


def test_single_transform_and_mask_of_a_crop_of_the_same_size_are_unchanged(albumentations):
    flip = albumentations.to_dict(albumentations.HorizontalFlip(p=1))
    augment = Augment((30, 40), tables=parse({"augment": {"albumentations": flip}}).augment)
    found = augment(example(), np.random.default_rng(0))
    assert np.array_equal(found.image, example().image[:, ::-1])
    assert np.array_equal(found.mask, example().mask[:, ::-1])


# Albumentations warns about its own file.
@pytest.mark.filterwarnings("ignore:Argument.* 'padding':UserWarning")
def test_rejects_settings_that_put_wrong_labels_into_masks(albumentations):
    a = albumentations
    steps = [
        a.Rotate(20),
        a.OneOf([a.Affine(mask_interpolation=1, fill_mask=IGNORE_INDEX)]),
        a.PadIfNeeded(64, 64),
        a.RandomCrop(8, 8),
        a.Rotate(20, border_mode=4),
    ]
    with pytest.raises(ConfigError) as caught:
        Pipeline(saved(a, *steps))
    assert str(caught.value) == (
        "augment.albumentations: Rotate fills masks with 0; set its fill_mask to 255 "
        "(ignored); Affine blends labels; set its mask_interpolation to 0 (nearest); PadIfNeeded "
        "fills masks with 0; set its fill_mask to 255 (ignored)"
    )


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (lambda a: a.Normalize(), "'im': the pipeline turns uint8 into float32; leave out Normal"),
        (lambda a: a.ToFloat(), "leave out Normalize and ToFloat"),
        (lambda a: a.RandomCrop(64, 64, p=1), "the pipeline fails on image 'im': .*"),
    ],
)
def test_rejects_results_that_are_not_images(albumentations, step, named):
    pipeline = Pipeline(saved(albumentations, step(albumentations)))
    with pytest.raises(ConfigError, match=named):
        pipeline(example(), 0)


def test_names_a_transform_that_albumentations_does_not_have(albumentations):
    table = {"__version__": "2.0.8", "transform": {"__class_fullname__": "Wobble", "p": 1.0}}
    with pytest.raises(ConfigError, match=r"Albumentations [\d.]+ does not read the pipeline: .*"):
        Pipeline(table)


def test_says_what_to_install_if_albumentations_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(ConfigError) as caught:
        Pipeline({"transform": {}})
    message = str(caught.value)
    assert message.startswith("augment.albumentations needs the package albumentations")
    assert message.endswith("pip install 'fcn-jax[albumentations]'")
