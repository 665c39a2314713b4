"""Averages of the weights: PyTorch's and timm's values, in the step, in a run, and in its files."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fcn_jax import checkpoint, config
from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.convert.command import export_file
from fcn_jax.convert.load import init_from
from fcn_jax.errors import CheckpointError, ConfigError, WeightsError
from fcn_jax.eval.evaluate import evaluate_checkpoint
from fcn_jax.eval.predictor import Predictor
from fcn_jax.models.build import build
from fcn_jax.models.names import named
from fcn_jax.train import ema, validation
from fcn_jax.train import step as train_step
from tests.helpers import scenes

RNG = np.random.default_rng(0)
STEPS = [
    {
        "weight": RNG.standard_normal((4, 3), np.float32),
        "running_mean": RNG.standard_normal(4, np.float32),
    }
    for _ in range(12)
]


def averages(decay, *, warmup=False):
    """Average the values of `STEPS`; the initial values must not count."""
    average = nnx.State({name: nnx.Param(jnp.full(x.shape, 7.0)) for name, x in STEPS[0].items()})
    update = jax.jit(
        lambda average, values, step: ema.updated(
            average, values, ema.new_weight(step, decay, warmup=warmup)
        )
    )
    for step, values in enumerate(STEPS):
        values = nnx.State({name: nnx.Param(jnp.asarray(x)) for name, x in values.items()})
        average = update(average, values, jnp.asarray(step))
    return {name: np.asarray(leaf[...]) for name, leaf in named(average).items()}


def torch_network(torch):
    network = torch.nn.Module()
    network.weight = torch.nn.Parameter(torch.full((4, 3), 7.0))
    network.register_buffer("running_mean", torch.full((4,), 7.0))
    return network


def fill(torch, network, values):
    with torch.no_grad():
        for name, x in values.items():
            network.state_dict()[name].copy_(torch.from_numpy(x))


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
def test_matches_torchs_averaged_model_with_buffers(decay):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    network = torch_network(torch)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for values in STEPS:
        fill(torch, network, values)
        theirs.update_parameters(network)
    for name, ours in averages(decay).items():
        expected = theirs.module.state_dict()[name].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_matches_timms_model_ema(torchvision):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm.utils")
    network = torch_network(torch)
    theirs = timm.ModelEmaV3(network, decay=0.95)
    for number, values in enumerate(STEPS, start=1):
        fill(torch, network, values)
        theirs.update(network, step=number)
    for name, ours in averages(0.95).items():
        expected = theirs.module.state_dict()[name].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_warmup_limits_the_decay_by_the_number_of_steps():
    expected = STEPS[0]["weight"].astype(np.float64)
    for t, values in enumerate(STEPS[1:], start=1):
        decay = min(0.5, (1 + t) / (10 + t))  # 0.5 is reached after eight steps
        expected = decay * expected + (1 - decay) * values["weight"]
    np.testing.assert_allclose(averages(0.5, warmup=True)["weight"], expected, rtol=1e-5)
    assert not np.allclose(averages(0.5)["weight"], expected, rtol=1e-3)


IMAGE = RNG.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
BATCH = {"image": IMAGE, "mask": (IMAGE[..., 0] > 127).astype(np.uint8)}


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_step_averages_its_own_parameters_and_statistics(tiny_plugin, accumulate_steps):
    model = build(
        ModelSpec("tiny", "fcn32s", 2, {"width": 4}, {"upsampling": "fixed"}), rngs=nnx.Rngs(0)
    )
    state, step = train_step.make(
        model,
        optax.sgd(0.1),
        Preprocess(),
        accumulate_steps=accumulate_steps,
        ema_decay=0.8,
    )
    advance = jax.jit(step, donate_argnums=0)
    expected = None
    for _ in range(4):
        state, _ = advance(state, BATCH)
        newest = named(state.params) | named(state.batch_stats)
        newest = {name: np.asarray(leaf[...], np.float64) for name, leaf in newest.items()}
        expected = (
            newest
            if expected is None
            else {name: 0.8 * expected[name] + 0.2 * value for name, value in newest.items()}
        )
    found = named(state.ema)
    left_out = newest.keys() - found.keys()
    assert left_out == {"backbone.conv1.bn.num_batches_tracked", "head.transpose_conv.kernel"}
    assert "backbone.conv1.bn.var" in found
    for name, leaf in found.items():
        assert leaf[...].dtype == jnp.float32
        np.testing.assert_allclose(leaf[...], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_step_without_a_decay_keeps_no_averages(tiny_plugin):
    model = build(ModelSpec("tiny", "fcn32s", 2), rngs=nnx.Rngs(0))
    state, step = train_step.make(model, optax.sgd(0.1), Preprocess())
    assert state.ema is None
    assert jax.eval_shape(step, state, BATCH)[0].ema is None


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), train=16)


@pytest.fixture(scope="module")
def here(data, tmp_path_factory):
    """Train in this process: run directory, settings -> result."""
    recipe = scenes.write_recipe(tmp_path_factory.mktemp("recipe"))
    return functools.partial(scenes.train_here, recipe, data)


SETTINGS = ("optim.ema_decay=0.9", "optim.schedule=constant", "optim.lr=0.2")


@pytest.fixture(scope="module")
def evaluated():
    """The bias of the head in the models that were evaluated during the run."""
    return []


@pytest.fixture(scope="module")
def run(here, evaluated, tmp_path_factory):
    """A run of two epochs, four steps."""

    def evaluate(predictor, *args, **settings):
        evaluated.append(np.asarray(predictor._state["head"]["final_conv"]["bias"][...]))
        return validation_evaluate(predictor, *args, **settings)

    validation_evaluate = validation.score_each
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "score_each", evaluate)
        return here(tmp_path_factory.mktemp("runs") / "run", *SETTINGS, "train.epochs=2").run


def newest(run):
    return run / "checkpoints" / "4"


def evaluations(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["event"] == "val"}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_evaluates_the_averages_and_records_so(run, evaluated):
    average = checkpoint.read_arrays(newest(run))["head.final_conv.bias"]
    np.testing.assert_array_equal(evaluated[1], average)
    found = evaluations(run)
    assert {record["weights"] for record in found.values()} == {"ema"}
    best = checkpoint.find(run)
    score = json.loads((best / "score.json").read_text())
    assert score == {"miou": max(record["miou"] for record in found.values()), "weights": "ema"}
    again = evaluate_checkpoint(newest(run))
    assert again.weights == "ema"
    assert again.scores.miou == found[4]["miou"]
    assert again.to_dict()["weights"] == "ema"
    assert "(ema)" in str(again)
    assert evaluate_checkpoint(newest(run), weights="raw").weights == "raw"


def test_loads_the_averages_by_default_and_the_raw_weights_on_request(run):
    average, raw = (checkpoint.read_arrays(newest(run), weights) for weights in (None, "raw"))
    assert not np.allclose(average["head.final_conv.bias"], raw["head.final_conv.bias"])
    assert not np.allclose(average["backbone.conv1.bn.mean"], raw["backbone.conv1.bn.mean"])
    assert average["backbone.conv1.bn.num_batches_tracked"] == 4
    for weights, expected in ((None, average), ("ema", average), ("raw", raw)):
        assert_same(checkpoint.arrays(checkpoint.load_model(newest(run), weights)[0]), expected)
    image = RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    predictors = [Predictor.from_checkpoint(newest(run), weights=w) for w in (None, "raw")]
    logits = [p._state["head"]["final_conv"]["bias"][...] for p in predictors]
    np.testing.assert_array_equal(logits[0], average["head.final_conv.bias"])
    np.testing.assert_array_equal(logits[1], raw["head.final_conv.bias"])
    assert predictors[0](image).shape == (40, 40)


def test_a_training_starts_from_the_averages(run):
    _, spec = checkpoint.load_model(run)
    for key, weights in (("", None), ("ema", "ema"), ("raw", "raw")):
        model = build(spec.model, rngs=nnx.Rngs(5))
        report = init_from(model, newest(run), key=key)
        assert_same(checkpoint.arrays(model), checkpoint.read_arrays(newest(run), weights))
        assert ("under 'ema'" in str(report)) == (weights != "raw")
    with pytest.raises(WeightsError, match=r"no key 'model_ema'.*raw.*ema"):
        init_from(build(spec.model, rngs=nnx.Rngs(5)), newest(run), key="model_ema")


def test_exports_the_averages_by_default(run, tmp_path):
    from safetensors.numpy import load_file

    reports, values = [], []
    for weights in (None, "raw"):
        path = tmp_path / f"{weights}.safetensors"
        reports.append(str(export_file(newest(run), path, weights=weights)))
        values.append(load_file(path)["backbone.conv1.weight"])
    assert "ema weights" in reports[0]
    assert "ema weights" not in reports[1]
    average, raw = (checkpoint.read_arrays(newest(run), weights) for weights in ("ema", "raw"))
    kernel = "backbone.conv1.conv.kernel"
    np.testing.assert_array_equal(values[0], average[kernel].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(values[1], raw[kernel].transpose(3, 2, 0, 1))


def test_resumes_bit_for_bit(here, run, tmp_path):
    here(tmp_path / "run", *SETTINGS, "train.epochs=1")
    resumed = here(tmp_path / "run", *SETTINGS, "train.epochs=2").run
    for weights in ("ema", "raw"):
        assert_same(
            checkpoint.read_arrays(newest(resumed), weights),
            checkpoint.read_arrays(newest(run), weights),
        )
    assert evaluations(resumed)[4]["miou"] == evaluations(run)[4]["miou"]


def test_detects_damaged_and_missing_averages(run, tmp_path):
    for number, damage in enumerate(("remove", "truncate")):
        copy = tmp_path / str(number)
        shutil.copytree(newest(run), copy)
        if damage == "remove":
            shutil.rmtree(copy / "ema")
        else:
            file = max((copy / "ema").rglob("*"), key=lambda path: path.stat().st_size)
            file.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"damaged: ema/"):
            checkpoint.find(copy)


def test_rejects_averages_that_a_checkpoint_lacks(tiny_plugin, tmp_path):
    model = build(ModelSpec("tiny", "fcn32s", 2), rngs=nnx.Rngs(0))
    spec = checkpoint.make_spec(model.spec)
    checkpoint.save_model(tmp_path / "model", spec, checkpoint.arrays(model))
    assert checkpoint.choose_weights(tmp_path / "model") == "raw"
    with pytest.raises(CheckpointError, match=r"model: holds no averaged weights.*ema_decay"):
        Predictor.from_checkpoint(tmp_path / "model", weights="ema")
    with pytest.raises(ConfigError, match="weights is 'best'; expected 'ema' or 'raw'"):
        Predictor.from_checkpoint(tmp_path / "model", weights="best")


@pytest.mark.parametrize("decay", [0.0, 1.0, -1, "0.9"])
def test_rejects_a_decay_out_of_range(decay):
    with pytest.raises(ConfigError, match=r"optim\.ema_decay is"):
        config.parse({"optim": {"ema_decay": decay}})


@pytest.mark.slow
def test_two_devices_match_one(data, tmp_path):
    recipe = scenes.write_recipe(tmp_path)
    settings = [f"--set={setting}" for setting in (*SETTINGS, "train.epochs=2")]
    settings += ["--set=model.backbone_options.dropout=0"]
    found = []
    for devices in (1, 2):
        outcome = scenes.train(recipe, data, tmp_path / str(devices), *settings, devices=devices)
        assert outcome.returncode == 0, outcome.stderr
        assert "val (ema) mIoU" in outcome.stderr
        found.append(checkpoint.read_arrays(newest(tmp_path / str(devices)), "ema"))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=2e-4, atol=1e-5, err_msg=name)
