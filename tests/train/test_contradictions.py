"""Settings of the optimizer that contradict each other, and bad values with the path of the key."""

import pytest

from fcn_jax import config
from fcn_jax.errors import ConfigError
from fcn_jax.train.settings import require_needed, require_valid


def test_contradictions_are_reported_together():
    settings = config.parse(
        {
            "init": {"reinit": ["head"]},
            "model": {"aux_feature": "layer3"},
            "optim": {
                "clip_norm": 1.0,
                "clip_value": 1.0,
                "ema_warmup": True,
                "schedule": "multi_step",
            },
        }
    )
    with pytest.raises(ConfigError) as caught:
        require_needed(settings)
    assert str(caught.value) == (
        "init.reinit: given without init.weights, to whose names they refer; name the weights with "
        "--weights; model.aux_feature: given without model.aux_head; name the auxiliary head, such "
        "as model.aux_head=fcn; optim.clip_norm and optim.clip_value: both given; choose one; "
        "optim.ema_warmup: given without optim.ema_decay; set it, such as optim.ema_decay=0.999; "
        "optim.schedule: 'multi_step' given without optim.milestones; name the fractions of the "
        "run at which the learning rate falls, such as 'optim.milestones=[0.6, 0.9]'"
    )
    require_needed(config.Config())


def test_problems_of_all_sections_are_reported_together_before_the_data_is_read():
    settings = config.parse(
        {
            "model": {"backbone_options": {"norm": 3}, "head_options": {"up": 1}},
            "data": {"dataset": "camvit", "scale_range": [2.0, 1.0]},
            "loss": {"dice": {"smooth": -1.0, "weight": 1.0}},
            "init": {"key": "model"},
            "eval": {"protocol": "resize", "also": ["natve"], "metrics": ["ecee"]},
        }
    )
    with pytest.raises(ConfigError) as caught:
        require_valid(settings)
    for part in (
        "the options of backbone 'resnet18' are wrong: 'norm' is 3",
        "(in [model.backbone_options])",
        "the options of head 'fcn32s' are wrong: unknown key 'up'",
        "(in [model.head_options])",
        "camvit",
        "scale_range = (2.0, 1.0)",
        "the options of loss 'dice' are wrong: 'smooth' is -1.0",
        "init.key: given without init.weights",
        "protocol resize: size is missing",
        "ecee",
    ):
        assert part in str(caught.value), part
    require_valid(config.Config())


def test_a_single_problem_keeps_its_message():
    with pytest.raises(
        ConfigError, match=r"^no evaluation protocol 'natve'. Did you mean 'native'"
    ):
        require_valid(config.parse({"eval": {"also": ["natve"]}}))


def test_auto_does_not_hide_other_problems():
    settings = config.parse(
        {
            "data": {"crop_size": "auto", "batch_size": "auto", "brightness": 0.5},
            "loss": {"cross_entropy": {"class_weights": "auto", "label_smoothing": 2.0}},
        }
    )
    with pytest.raises(ConfigError, match=r"'label_smoothing' is 2\.0.*\[loss\.cross_entropy\]"):
        require_valid(settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": [0.6, 1.5]}, r"optim\.milestones\[1\] is 1\.5: .*less than 1"),
        (
            {"milestones": [0.6, 0.6]},
            r"optim\.milestones is \[0\.6, 0\.6\]: item \[1\] is not above",
        ),
        ({"layer_decay": 0}, r"optim\.layer_decay is 0: .*greater than 0"),
        ({"layer_decay": 1.1}, r"optim\.layer_decay is 1\.1: .*less than or equal to 1"),
        ({"freeze": 3}, r"optim\.freeze is 3: expected a list in brackets"),
        ({"freeze": [1]}, r"optim\.freeze\[0\] is 1: .*valid string"),
        ({"freeze_batch_norm": 3}, r"optim\.freeze_batch_norm is 3: expected a list in brackets"),
        ({"div_factor": 0.5}, r"optim\.div_factor is 0\.5"),
        ({"rise": 1}, r"optim\.rise is 1: .*less than 1"),
        ({"betas": [0.9, float("nan")]}, r"optim\.betas\[1\] is nan"),
        ({"decay_norm_and_bias": "no"}, r"optim\.decay_norm_and_bias is 'no'"),
        ({"milestones": [2.0], "lr": -1}, r"optim\.lr is -1: .*; optim\.milestones\[0\] is 2\.0"),
    ],
)
def test_rejects_bad_values_with_the_path_of_the_key(settings, message):
    with pytest.raises(ConfigError, match=message):
        config.parse({"optim": settings})


def test_takes_one_glob_instead_of_a_list():
    assert config.parse({"optim": {"freeze": "backbone"}}).optim.freeze == ("backbone",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(True, ("*",)), (False, ()), ("backbone.*", ("backbone.*",)), (["a", "b"], ("a", "b"))],
)
def test_freeze_batch_norm_is_a_flag_a_glob_or_a_list(given, expected):
    found = config.parse({"optim": {"freeze_batch_norm": given}})
    assert found.optim.freeze_batch_norm == expected
    assert config.parse(found.model_dump(mode="json")) == found


def test_contradictions_of_augmentation_name_the_keys():
    table = {
        "data": {"scale_range": [0.5, 2.0], "hue": 0.1},
        "augment": {
            "resize": {"shorter_side": [100, 200]},
            "crop": {},
            "blur": {},
            "albumentations": {"transform": {}},
        },
    }
    with pytest.raises(ConfigError) as caught:
        require_needed(config.parse(table))
    assert str(caught.value) == (
        "augment.resize and data.scale_range: both given; choose one; data.scale_range, data.hue, "
        "augment.resize, augment.blur: given with augment.albumentations, which replaces all "
        "transforms except the crop; leave out one or the other"
    )
    alone = {"data": {"flip": False}, "augment": {"crop": {}, "albumentations": {"transform": {}}}}
    require_needed(config.parse(alone))
