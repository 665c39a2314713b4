"""A plugin's tie to its PyTorch original, held against both: names, layouts, outputs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fcn_jax.api import FeatureSpec, TorchBridge
from fcn_jax.convert.rules import Table
from fcn_jax.errors import listing
from fcn_jax.models.names import leaves
from fcn_jax.testing.subject import COMPILER_OPTIONS, TOLERANCE, Subject, difference, require


def check_tables(subject: Subject, bridge: TorchBridge, options: Any) -> None:
    """Check that every table names every leaf once, and that each rule brings its values back bit for bit."""
    targets = leaves(nnx.eval_shape(lambda: subject.build(jnp.float32)))
    tables = bridge.tables(options)
    require("torchvision" in tables, f"{subject.label}: its tables are {listing(tables)}; the scheme 'torchvision' must be there")
    for scheme, table in tables.items():
        where = f"{subject.label}: the '{scheme}' table"
        owners: dict[str, str] = {}
        for path, leaf in targets.items():
            found = table.to_torch(path)
            if found is None:
                raise AssertionError(f"{where} has no rule for '{path}'")
            name, rule = found
            require(name not in owners, f"{where} gives both '{owners.get(name)}' and '{path}' the name '{name}'")
            owners[name] = path
            back = table.to_jax(name)
            require(back == (path, rule), f"{where} turns '{path}' into '{name}', but that back into '{back and back[0]}'")
            value = _random_like(leaf)
            there = np.asarray(rule.op.to_torch(value))
            here = np.asarray(rule.op.to_jax(there))
            require(
                here.shape == value.shape and here.dtype == value.dtype and here.tobytes() == value.tobytes(),
                f"{where}: '{rule.op.name}' does not bring '{path}' of shape {value.shape} back as it was",
            )


def _random_like(leaf: nnx.Variable[Any]) -> np.ndarray:
    rng = np.random.default_rng(0)
    if jnp.issubdtype(leaf.dtype, jnp.integer):
        return rng.integers(0, 1000, leaf.shape).astype(leaf.dtype)
    return rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype)


def check_reference(
    subject: Subject,
    bridge: TorchBridge,
    options: Any,
    inputs: Mapping[str, Any],
    build: Callable[[Any], Any],
    call: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """Check names, shapes and eval-mode outputs against the PyTorch original, if there is one and torch is installed."""
    if bridge.reference is None or importlib.util.find_spec("torch") is None:
        return
    import torch

    torch.manual_seed(0)
    reference = build(bridge.reference).eval()
    _randomise_batch_norm(reference)
    tensors = {name: value.numpy() for name, value in reference.state_dict().items()}
    module = subject.build(jnp.float32)
    module.eval()
    _fill(f"{subject.label} against its PyTorch reference", module, bridge.tables(options)["torchvision"], tensors)

    graphdef, state = nnx.split(module)
    inputs = {name: x[:1] for name, x in inputs.items()}
    with jax.default_matmul_precision("highest"):
        found = jax.jit(
            lambda state, inputs: subject.call(nnx.merge(graphdef, state), inputs), compiler_options=COMPILER_OPTIONS
        )(state, inputs)
    with torch.no_grad():
        nchw = {name: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))) for name, x in inputs.items()}
        wanted = {name: value.numpy().transpose(0, 2, 3, 1) for name, value in call(reference, nchw).items()}
    for name, value in wanted.items():
        require(
            found[name].shape == value.shape,
            f"{subject.label}: '{name}' has shape {found[name].shape}, in its PyTorch reference {value.shape}",
        )
        off = difference(found[name], value)
        require(
            off < TOLERANCE,
            f"{subject.label}: '{name}' differs from its PyTorch reference by {off:.1e} of the largest value; "
            f"allowed is {TOLERANCE:.0e}",
        )


def _randomise_batch_norm(reference: Any) -> None:
    """Give a fresh network statistics and scales that are not 0 and 1, which a mix-up would leave unnoticed."""
    import torch

    for layer in reference.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for value, low, high in (
                    (layer.weight, 0.5, 1.5),
                    (layer.bias, -0.5, 0.5),
                    (layer.running_mean, -0.5, 0.5),
                    (layer.running_var, 0.5, 1.5),
                ):
                    if value is not None:
                        value.uniform_(low, high)


def _fill(label: str, module: nnx.Module, table: Table, tensors: Mapping[str, np.ndarray]) -> None:
    """Put a state dict into a module, name by name."""
    names = set()
    for path, leaf in leaves(module).items():
        found = table.to_torch(path)
        assert found is not None  # the tables have been checked
        name, rule = found
        names.add(name)
        if name not in tensors:
            require(rule.optional, f"{label}: '{path}' is called '{name}', which the state dict does not have")
            continue
        value = rule.op.to_jax(tensors[name])
        require(
            value.shape == leaf.shape,
            f"{label}: '{name}' has shape {tensors[name].shape}, which becomes {value.shape}; '{path}' has {leaf.shape}",
        )
        leaf[...] = jnp.asarray(value)
    surplus = [name for name in tensors if name not in names and table.dropped(name) is None]
    require(not surplus, f"{label}: no rule uses or drops {listing(surplus)}")


def torch_features(label: str, reference: Any, images: Any, specs: Sequence[FeatureSpec]) -> Mapping[str, Any]:
    """A reference's features: what it returns, or the outputs of its submodules of the features' names."""
    modules = dict(reference.named_modules())
    features: dict[str, Any] = {}
    handles = [
        modules[spec.name].register_forward_hook(lambda _, __, output, name=spec.name: features.update({name: output}))
        for spec in specs
        if spec.name in modules
    ]
    returned = reference(images)
    for handle in handles:
        handle.remove()
    if isinstance(returned, Mapping):
        features = dict(returned)
    missing = [spec.name for spec in specs if spec.name not in features]
    require(
        not missing,
        f"{label}: its PyTorch reference shows no {listing(missing)}; it must return the features by name, or have a submodule "
        "of each feature's name",
    )
    return {spec.name: features[spec.name] for spec in specs}
