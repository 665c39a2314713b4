"""The end of a run whose score no longer rises."""

import functools
import json

import pytest

from fcn_jax import config
from fcn_jax.config import EarlyStoppingConfig
from fcn_jax.errors import ConfigError
from fcn_jax.train.early_stopping import EarlyStopping
from tests.helpers import scenes


def ends_after(scores, **settings):
    """The number of the evaluation after which the run ends, from 1, or None."""
    stopping = EarlyStopping(EarlyStoppingConfig(**settings))
    for number, score in enumerate(scores, start=1):
        stopping._add(number, score)
        if stopping.is_over:
            return number
    return None


@pytest.mark.parametrize(
    ("scores", "settings", "expected"),
    [
        ([0.1, 0.2, 0.3], {"patience": 1}, None),
        ([0.3, 0.2, 0.3, 0.1], {"patience": 3}, 4),  # an equal score is no rise
        ([0.3, 0.2, 0.4, 0.1, 0.1], {"patience": 2}, 5),  # a rise starts the count again
        ([0.1, 0.15, 0.19, 0.25], {"patience": 2, "min_delta": 0.1}, 3),  # of the best, not last
        ([0.1, 0.25, 0.3], {"patience": 2, "min_delta": 0.1}, None),
        ([None, float("nan"), 0.1], {"patience": 2}, 2),
        ([0.0, 0.0], {"patience": 1, "min_delta": 0.5}, 2),
    ],
)
def test_ends_after_patience_evaluations_without_a_rise(scores, settings, expected):
    assert ends_after(scores, **settings) == expected


def test_message_names_the_best_score():
    stopping = EarlyStopping(EarlyStoppingConfig(patience=2, min_delta=0.01))
    for step, score in ((10, 0.5), (20, 0.505), (30, 0.1)):
        stopping._add(step, score)
    assert str(stopping) == (
        "miou has not risen by more than 0.01 in 2 evaluations (best: 0.5000 after step 10)"
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"patience": 0}, r"train\.early_stopping\.patience is 0"),
        ({"metric": "loss"}, r"train\.early_stopping\.metric is 'loss': .*'miou'"),
        ({"min_delta": -1}, r"train\.early_stopping\.min_delta is -1"),
        ({"patienc": 3}, r"unknown key 'train\.early_stopping\.patienc'\. Did you mean 'patience'"),
        (3, r"train\.early_stopping is 3: expected a table"),
    ],
)
def test_rejects_bad_settings_with_their_path(table, message):
    with pytest.raises(ConfigError, match=message):
        config.parse({"train": {"early_stopping": table}})


def test_reads_the_evaluations_up_to_a_step(tmp_path):
    settings = config.parse({"train": {"early_stopping": {"metric": "fwiou"}}})
    lines = [
        {"step": 2, "event": "val", "fwiou": 0.5},
        {"step": 3, "event": "train", "loss": 1.0},
        {"step": 4, "event": "val", "fwiou": None},
        {"step": 6, "event": "val", "fwiou": 0.4},
        {"step": 8, "event": "val", "fwiou": 0.9},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 9, "ev'
    (tmp_path / "metrics.jsonl").write_text(text)

    def counted():
        found = EarlyStopping.read(settings, 6, tmp_path, tmp_path)
        return found.best, found.best_step, found.waited

    assert counted() == (0.5, 2, 1), "without a score, the evaluation after step 6 is done again"
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / "checkpoints" / "6" / "score.json").write_text('{"miou": 0.4}')
    assert counted() == (0.5, 2, 2)
    assert not EarlyStopping.read(config.Config(), 6, tmp_path, tmp_path).is_over


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    data = scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=8)
    recipe = scenes.write_recipe(tmp_path_factory.mktemp("recipe"))
    return functools.partial(scenes.train_here, recipe, data)


# Nothing is trained and dropout is off, so the score never changes after the first evaluation.
SETTINGS = (
    "optim.freeze=['*']",
    "optim.freeze_batch_norm=true",
    "model.backbone_options.dropout=0",
    "train.epochs=6",
)


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["miou"]) for line in lines if line["event"] == "val"]


def test_run_ends_early_and_resuming_keeps_the_count(here, tmp_path, capfd):
    stop = "train.early_stopping={patience=2}"
    whole = here(tmp_path / "whole", *SETTINGS, stop)
    assert whole.step == 3, "the first evaluation sets the score; two follow"
    assert whole.stopped_by is None
    said = capfd.readouterr().err
    assert "early stopping after step 3: miou has not risen in 2 evaluations (best: " in said

    parts = here(tmp_path / "parts", *SETTINGS, "train.early_stopping={patience=1}")
    assert parts.step == 2
    resumed = here(tmp_path / "parts", *SETTINGS, stop)
    assert resumed.step == 3
    assert records(resumed.run) == records(whole.run)

    again = here(tmp_path / "parts", *SETTINGS, stop)
    assert again.was_finished
    assert again.step == 3
    longer = here(tmp_path / "parts", *SETTINGS)
    assert longer.step == 6, "without early stopping the run continues to its end"
