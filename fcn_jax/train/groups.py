"""Which parameters are trained, and with which learning rate and weight decay, by their names."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.config import OptimConfig, ParamGroup
from fcn_jax.errors import ConfigError, listing
from fcn_jax.models.names import named


@dataclasses.dataclass(frozen=True)
class Rate:
    """How a parameter is trained.

    Attributes:
        lr_mult: factor of the learning rate; 0 for a frozen parameter.
        weight_decay: the parameter's weight decay.
        layer: number of the backbone's layer, from 0, if `optim.layer_decay` is set.
    """

    lr_mult: float
    weight_decay: float
    layer: int | None = None


def assign(
    config: OptimConfig, params: Any, layers: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Rate]:
    """Decide how each parameter is trained.

    The learning rate is multiplied by the `lr_mult` of the first of `optim.param_groups` that
    matches, and by `layer_decay ** (number of layers - layer)`, as for BEiT and ConvNeXt, where the
    layers of the backbone count from 0 and the heads have the full rate. Parameters of
    `optim.freeze` and those with `lr_mult = 0` are frozen.

    Args:
        config: settings of the optimizer.
        params: tree of parameters; names and shapes of its leaves are used.
        layers: see `backbone_layers`; needed for `layer_decay`.

    Returns:
        Parameter name -> rate.

    Raises:
        ConfigError: a param group or glob decides about no parameter.
    """
    names = parameter_names(params)
    ranks = dict(zip(names, (np.ndim(leaf) for leaf in jax.tree.leaves(params)), strict=True))
    layers = layers or {}
    depth = {name: number for number, layer in enumerate(layers.values()) for name in layer}
    problems = _unmatched("optim.freeze", config.freeze, names)
    frozen = {name for name in names if any(matches(name, glob) for glob in config.freeze)}
    groups = (*config.param_groups, ParamGroup(match="*"))
    used, rates = set(), {}
    for name in names:
        number = next(i for i, g in enumerate(groups) if fnmatch.fnmatchcase(name, g.match))
        group = groups[number]
        lr_mult, decay = group.lr_mult, config.weight_decay * group.decay_mult
        if name in frozen:
            lr_mult = 0.0
        else:
            used.add(number)
        if config.layer_decay is not None and name in depth:
            lr_mult *= config.layer_decay ** (len(layers) - depth[name])
        if not config.decay_norm_and_bias and ranks[name] < 2:
            decay = 0.0
        rates[name] = Rate(lr_mult, decay, depth.get(name))
    for i, group in enumerate(config.param_groups):
        if i not in used:
            some = any(fnmatch.fnmatchcase(name, group.match) for name in frozen)
            why = "; optim.freeze and groups before it decide about all that it matches"
            problems.append(
                f"optim.param_groups[{i}]: no parameter is left for {group.match}"
                f"{why if some else ''}"
            )
    if problems:
        raise ConfigError(f"{'; '.join(problems)}; names look like {names[0]}, {names[-1]}")
    return rates


def frozen_names(rates: Mapping[str, Rate]) -> frozenset[str]:
    """Names of the parameters that are not trained."""
    return frozenset(name for name, rate in rates.items() if rate.lr_mult == 0)


def notes(
    rates: Mapping[str, Rate], layers: Mapping[str, Sequence[str]], model: nnx.Module
) -> list[str]:
    """Describe frozen parameters and layers in lines for the log.

    Args:
        rates: the result of `assign`.
        layers: the layers that it received.
        model: the model in train mode.
    """
    found, frozen = [], frozen_names(rates)
    if frozen:
        leaves = named(nnx.state(model, nnx.Param))
        sizes = {name: leaf.get_value().size for name, leaf in leaves.items()}
        count = sum(size for name, size in sizes.items() if name not in frozen)
        found.append(f"trained: {count:,} of {sum(sizes.values()):,} parameters")
        moving = [name for name, norm in _norms(model).items() if not norm.use_running_average]
        if still := [name for name in moving if f"{name}.scale" in frozen]:
            found.append(
                f"{len(still)} batch normalizations are frozen, and their statistics still follow "
                "the data; optim.freeze_batch_norm keeps those, too"
            )
    if layers:
        described = [f"{rates[names[0]].lr_mult:.3g} ({layer})" for layer, names in layers.items()]
        found.append(
            f"learning rates of the backbone's {len(layers)} layers are multiplied by "
            f"{described[0]} to {described[-1]}; parameters.json lists them"
        )
    return found


def trained(params: nnx.State, frozen: frozenset[str]) -> tuple[nnx.State, nnx.State]:
    """Split parameters into those that are trained and those that are frozen."""
    if not frozen:
        return params, nnx.State({})
    ours, rest = nnx.split_state(
        params, lambda path, _: ".".join(map(str, path)) not in frozen, ...
    )
    return ours, rest


def freeze_batch_norm(model: nnx.Module, globs: Sequence[str]) -> None:
    """Let normalizations use their running statistics without updating them, as in eval mode.

    This is PyTorch's `module.eval()` for some layers of a network in train mode. Their scales and
    biases can still be trained.

    Args:
        model: a model in train mode, which is changed in place.
        globs: over names of normalizations, such as `backbone.layer1.*`, or of modules around them.

    Raises:
        ConfigError: a glob matches no batch normalization.
    """
    norms = _norms(model)
    if problems := _unmatched("optim.freeze_batch_norm", globs, norms):
        known = listing(sorted(norms), 2) or "none, because the model has no batch normalization"
        raise ConfigError(f"{'; '.join(problems)}; names of batch normalizations: {known}")
    for name, module in norms.items():
        if any(matches(name, glob) for glob in globs):
            module.use_running_average = True


def _norms(model: nnx.Module) -> dict[str, Any]:
    """Batch normalizations by name."""
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if hasattr(module, "use_running_average")
    }


def matches(name: str, glob: str) -> bool:
    """Whether a glob matches a name, or a module around it: `backbone`, `backbone.layer?`."""
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase(name, f"{glob}.*")


def _unmatched(setting: str, globs: Sequence[str], names: Iterable[str]) -> list[str]:
    names = list(names)
    return [
        f"{setting}[{i}]: {glob} matches nothing"
        for i, glob in enumerate(globs)
        if not any(matches(name, glob) for name in names)
    ]


def with_reinitialized(config: OptimConfig, names: Iterable[str], lr_mult: float) -> OptimConfig:
    """Multiply the learning rate of reinitialized kernels of a pretrained backbone.

    torchvision initializes a ResNet's convolutions for training from scratch. Under batch
    normalization a kernel's scale has no effect, but the larger it is, the smaller the change of
    direction per step: in a short fine-tuning such layers hardly move.

    Args:
        config: settings of the optimizer; their own param groups take precedence.
        names: names of the tensors that were reinitialized. Only kernels of the backbone are
            changed, because a head starts from random values in any case.
        lr_mult: learning rate multiplier, at least 0.
    """
    kernels = [
        name
        for name in names
        if name.startswith("backbone.")
        and name.endswith(".kernel")
        and not any(fnmatch.fnmatchcase(name, group.match) for group in config.param_groups)
        and not any(matches(name, glob) for glob in config.freeze)
    ]
    if lr_mult == 1 or not kernels:
        return config
    more = (ParamGroup(match=name, lr_mult=lr_mult) for name in kernels)
    return config.model_copy(update={"param_groups": (*config.param_groups, *more)})


def parameter_names(params: Any) -> list[str]:
    """Return dotted names of a tree's leaves, such as `head.final_conv.kernel`, in tree order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


# ------------------------------------------------------------------------------------------ layers


def backbone_layers(model: nnx.Module) -> dict[str, list[str]]:
    """Names of the backbone's parameters by layer, from the input on, for `optim.layer_decay`.

    The layers are those of timm's `param_groups_layer_decay`: the stem, which is all that the
    backbone defines before its first block, and then the blocks in the order of their definition.
    A convolution between stages belongs to the block after it, and parameters without a matrix,
    such as a normalization after the last block, to the layer before them. Lists of the backbone
    hold blocks or stages, and a module that itself holds a list of blocks of one class is a stage.
    Without blocks, each module of the backbone is a layer.

    Args:
        model: the model as it was built. `nnx.merge` would sort the attributes by name.
    """
    backbone: nnx.Module = model.backbone  # type: ignore[attr-defined]
    params = named(nnx.state(backbone, nnx.Param)).items()
    ranks = {f"backbone.{name}": np.ndim(leaf.get_value()) for name, leaf in params}
    parts = []
    for path, is_block in _parts(backbone, "backbone", is_backbone=True):
        if names := [name for name in ranks if f"{name}.".startswith(f"{path}.")]:
            parts.append((path, is_block, names))
    first = next((i for i, (_, is_block, _) in enumerate(parts) if is_block), None)
    layers: dict[str, list[str]] = {}
    if first:
        layers[parts[0][0]] = [name for _, _, names in parts[:first] for name in names]
    before: dict[str, list[str]] = {}
    for path, is_block, names in parts[first or 0 :]:
        if layers and not before and all(ranks[name] < 2 for name in names):
            layers[next(reversed(layers))] += names
        elif is_block or first is None:
            layers[path] = [*(name for some in before.values() for name in some), *names]
            before = {}
        else:
            before[path] = names
    return layers | before


def _parts(
    module: nnx.Module, name: str, *, is_backbone: bool = False, in_list: bool = False
) -> list[tuple[str, bool]]:
    """Paths of a backbone's blocks and of what lies outside of them, and whether it is a block."""
    found = []
    for key, child in _children(module):
        path = f"{name}.{key}"
        if (is_backbone and isinstance(child, nnx.List)) or _holds_blocks(child):
            found += _parts(child, path, in_list=isinstance(child, nnx.List))
        else:
            found.append((path, in_list))
    return found


def _holds_blocks(module: Any) -> bool:
    """Whether a module is a list of blocks, or a stage, which has such a list."""
    if isinstance(module, nnx.List):
        kinds = {type(item) for item in module}
        kind = kinds.pop() if len(kinds) == 1 else None
        return kind is not None and (
            issubclass(kind, nnx.List) or not kind.__module__.startswith("fcn_jax.nn.")
        )
    return isinstance(module, nnx.Module) and any(
        isinstance(child, nnx.List) and _holds_blocks(child) for _, child in _children(module)
    )


def _children(module: Any) -> list[tuple[str, Any]]:
    """Submodules and parameters of a module by name, in the order of their definition."""
    items = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    return [(str(key), item) for key, item in items if isinstance(item, nnx.Module | nnx.Param)]
