"""Frozen parameters and batch normalizations in the training step, against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.models.build import build
from fcn_jax.models.names import named
from fcn_jax.train import groups, optim
from fcn_jax.train import step as train_step

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
BATCH = {"image": IMAGE, "mask": (IMAGE[..., 0] > 127).astype(np.uint8)}
PREPROCESS = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
STEPS = 3


def make(config, width=4, **more):
    """State, step and rates of the tiny model, with statistics that are not the initial ones."""
    spec = ModelSpec("tiny", "fcn32s", 2, {"width": width, "dropout": 0.0})
    model = build(spec, rngs=nnx.Rngs(0))
    norm = model.backbone.conv1.bn
    norm.mean[...] = jnp.linspace(-0.2, 0.3, width)
    norm.var[...] = jnp.linspace(0.5, 2.0, width)
    rates = groups.assign(config, nnx.state(model, nnx.Param))
    state, step = train_step.make(
        model,
        optim.make(config, STEPS, rates),
        PREPROCESS,
        frozen=groups.frozen_names(rates),
        freeze_batch_norm=config.freeze_batch_norm,
        **more,
    )
    return model, state, jax.jit(step)


def values(state):
    found = named(state.params) | named(state.batch_stats)
    return {name: np.asarray(leaf[...]) for name, leaf in found.items()}


def run(config, **more):
    model, state, step = make(config, **more)
    for _ in range(STEPS):
        state, metrics = step(state, BATCH)
    return model, state, metrics


def torchs(model, freeze, eval_norms):
    """The same steps of SGD in PyTorch in float64: its tensors by our names."""
    torch = pytest.importorskip("torch")
    from fcn_jax.convert.export import to_torch
    from fcn_jax.convert.tables import tables
    from fcn_jax.verify.reference import build_reference

    network = build_reference(model.spec).double()
    state = {name: torch.from_numpy(np.array(x)) for name, x in to_torch(model).items()}
    network.load_state_dict(state)
    network.train()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(part in name for part in freeze))
    for module in network.modules():
        if eval_norms and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.01)
    x = torch.tensor(IMAGE.astype(np.float64) / 255).permute(0, 3, 1, 2)
    x = (x - 0.5) / 0.25
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = network(x)
        logits = logits["out"] if isinstance(logits, dict) else logits
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(BATCH["mask"]).long())
        loss.backward()
        optimizer.step()
    names = tables(model.spec)["model", "torchvision"]
    found = {}
    for name, x in network.state_dict().items():
        path, rule = names.to_jax(name)
        found[path] = rule.op.to_jax(x.numpy())
    return found


FREEZE = ("backbone.conv1", "head.final_conv.bias")


@pytest.mark.parametrize("freeze", [(), FREEZE])
@pytest.mark.parametrize("eval_norms", [False, True])
def test_matches_torchs_requires_grad_and_eval(tiny_plugin, freeze, eval_norms):
    config = OptimConfig(
        lr=0.1,
        weight_decay=0.01,
        schedule="constant",
        freeze=freeze,
        freeze_batch_norm=("*",) if eval_norms else (),
    )
    model, state, _ = run(config)
    names = ("backbone.conv1", "backbone.bn1", "final_conv.bias") if freeze else ()
    expected, found = torchs(model, names, eval_norms), values(state)
    start = {
        name: np.asarray(leaf[...])
        for name, leaf in named(nnx.state(model)).items()
        if name in found
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    unchanged = {name for name, value in found.items() if np.array_equal(value, start[name])}
    parameters = {"conv.kernel", "conv.bias", "bn.scale", "bn.bias"}
    statistics = {"bn.mean", "bn.var", "bn.num_batches_tracked"}
    frozen = {f"backbone.conv1.{name}" for name in parameters} | {"head.final_conv.bias"}
    still = {f"backbone.conv1.{name}" for name in statistics}
    assert unchanged == (frozen if freeze else set()) | (still if eval_norms else set())


def test_frozen_parameters_have_no_gradient_optimizer_state_or_average(tiny_plugin):
    config = OptimConfig(name="adamw", freeze=("backbone",))
    _, state, _ = make(config, ema_decay=0.9)
    trained = sum(leaf.size for name, leaf in named(state.params).items() if "head." in name)
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(sizes) == 2 * trained
    assert not [
        name
        for name in named(state.ema)
        if name.endswith((".kernel", ".scale")) and name.startswith("backbone.")
    ]
    assert "backbone.conv1.bn.mean" in named(state.ema)
    _, _, metrics = run(config)
    assert float(metrics["grad_norm"]) > 0


def test_a_param_group_with_rate_zero_freezes_as_well(tiny_plugin):
    config = OptimConfig(param_groups=(ParamGroup(match="backbone.*", lr_mult=0),))
    _, state, _ = run(config)
    _, other, _ = run(OptimConfig(freeze=("backbone",)))
    jax.tree.map(np.testing.assert_array_equal, state, other)


def test_a_frozen_backbone_has_no_backward_pass(tiny_plugin):
    def flops(**settings):
        _, state, step = make(OptimConfig(**settings), width=32)
        return step.lower(state, BATCH).compile().cost_analysis()["flops"]

    everything, head = flops(), flops(freeze=("backbone",))
    forward = flops(freeze=("*",))
    assert head - forward < 0.5 * (everything - forward)


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_frozen_models_accumulate_and_remat(tiny_plugin, accumulate_steps):
    config = OptimConfig(lr=0.1, freeze=("backbone",), freeze_batch_norm=("*",))
    _, one, _ = run(config)
    _, state, _ = run(config, accumulate_steps=accumulate_steps, remat=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, state)


def test_a_model_of_which_everything_is_frozen_changes_nothing(tiny_plugin):
    model, state, metrics = run(OptimConfig(freeze=("*",)))
    assert float(metrics["grad_norm"]) == 0
    start = named(nnx.state(model, nnx.Param))
    for name, leaf in named(state.params).items():
        np.testing.assert_array_equal(leaf[...], start[name][...], err_msg=name)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lion", "muon"])
def test_matches_an_optimizer_that_multiplies_gradients_of_frozen_parameters_by_zero(
    tiny_plugin, name
):
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.01, freeze=("backbone",))
    model, state, step = make(config)
    rates = groups.assign(config, nnx.state(model, nnx.Param))
    masked, whole = train_step.make(model, optim.make(config, STEPS, rates), PREPROCESS)
    whole = jax.jit(whole)
    for _ in range(STEPS):
        state, found = step(state, BATCH)
        masked, expected = whole(masked, BATCH)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    expected = values(masked)
    for parameter, value in values(state).items():
        np.testing.assert_allclose(
            value, expected[parameter], rtol=1e-3, atol=1e-5, err_msg=parameter
        )
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert len(shapes) < len(jax.tree.leaves(masked.opt_state))


def test_clips_the_norm_of_the_trained_gradients_alone(tiny_plugin):
    settings = {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    config = OptimConfig(**settings, clip_norm=1e-3, freeze=("backbone",))
    _, state, step = make(config)
    before = values(state)
    state, metrics = step(state, BATCH)
    assert float(metrics["grad_norm"]) > config.clip_norm
    moved = [
        np.sum((value - before[name]) ** 2)
        for name, value in values(state).items()
        if name.startswith("head.")
    ]
    np.testing.assert_allclose(np.sqrt(sum(moved)), config.clip_norm, rtol=1e-2)
