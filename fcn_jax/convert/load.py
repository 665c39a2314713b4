"""Loads weights into models: PyTorch files, published weights, state dicts, and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.checkpoint import place, portable
from fcn_jax.convert import architecture, hub, matching, reading
from fcn_jax.convert.matching import Leaves
from fcn_jax.convert.report import LoadReport, complaint, reparametrized
from fcn_jax.convert.tables import tables, title
from fcn_jax.errors import ConfigError, WeightsError, listing
from fcn_jax.models.build import build
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files, kinds
from fcn_jax.pytorch.rules import Rule, Table
from fcn_jax.pytorch.state_dicts import StateDict, Tensors


def load(
    model: str,
    weights: str | Path | Mapping[str, Any],
    *,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str = "",
    num_classes: int | None = None,
    aux_head: bool = True,
    dtype: str = "float32",
    rngs: nnx.Rngs | None = None,
) -> Segmenter:
    """Build a registered model and load weights into it.

        model = fcn_jax.load("fcn_resnet50", weights="COCO_WITH_VOC_LABELS_V1")
        mask = fcn_jax.Predictor(model)(image)

    Args:
        model: registered name; `fcn-jax plugins list` prints all.
        weights: the name of published weights, which are downloaded once; a weights file; or a
            state dict. See `load_torch`.
        reinit: globs over names of tensors that keep their random initial values.
        drop: globs over the file's names of tensors that are dropped.
        key: which of several state dicts of a file to load, such as "model_ema".
        num_classes: default: the model's. Another number needs `reinit` for the tensors that
            depend on it.
        aux_head: whether to build the auxiliary head, which only training uses, if the model has
            one. Otherwise the file's is dropped.
        dtype: compute dtype, "float32" or "bfloat16".
        rngs: source of the initial values that `reinit` needs, not changed; default
            `nnx.Rngs(0)`.

    Returns:
        The model in eval mode.

    Raises:
        ConfigError: no registered model has that name, or an argument is wrong.
        WeightsError: the weights cannot be read or downloaded, or do not fit.
        PluginError: a broken plugin.
    """
    spec = registered_spec(model)
    if spec.head is None:
        raise ConfigError(
            f"'{model}' is a backbone; load needs a model with a head. Give the backbone a head "
            "with build_model, then call load_torch"
        )
    changes: dict[str, Any] = {"dtype": dtype} if aux_head else {"dtype": dtype, "aux_head": None}
    if num_classes is not None:
        changes["num_classes"] = num_classes
    spec = dataclasses.replace(spec, **changes)

    def build_it() -> Segmenter:
        return build(spec, rngs=nnx.Rngs(0) if rngs is None else nnx.clone(rngs))

    network = nnx.eval_shape(build_it)
    load_torch(network, weights, reinit, drop=drop, key=key)
    init_missing(network, build_it)
    network.eval()
    return network


def load_torch(
    model: Segmenter,
    source: str | Path | Mapping[str, Any],
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """Load PyTorch weights into a model, in place, all or nothing.

    The tensors of a file are read twice, one at a time: all are checked before the first value of
    the model changes. No code of the file runs, and PyTorch is not needed.

    Checkpoints of training frameworks are read, too: the state dict is found under any keys, and
    prefixes of DataParallel, torch.compile, Lightning, running averages and networks around a
    backbone are removed. Of several ways to read the file, the one that fills most of the model is
    used; of equal ones, the weights before running averages of them, and the report names the
    others. The key format and the scope (the model, or the backbone alone) are recognized by the
    names.

    Every tensor of the file is used once, or dropped for a reason in the report. Every leaf of the
    model is filled, or named by `reinit`. With a file of the backbone alone, the head keeps its
    initial values; with a file of a network with another head, it does so if `reinit` names it
    ("head").

    Args:
        model: as `build_model` returns it.
        source: a weights file in PyTorch's formats or `.safetensors`, recognized by its contents;
            the name of published weights, such as "IMAGENET1K_V1", which are downloaded once; or a
            state dict of torch tensors or numpy arrays, which may be nested as in a file.
        reinit: globs over the file's names or the model's paths of tensors that keep the model's
            initial values.
        drop: globs over the file's names, with or without the prefix, of tensors that are dropped.
        key: which of several state dicts of a file to load, by its keys or its prefix, such as
            "model_ema".

    Returns:
        A report of the use of each tensor.

    Raises:
        WeightsError: the file cannot be read, or does not fit: all missing, surplus and misshapen
            names in one message. The model is then unchanged, unless a file changes while it is
            read.
    """
    return import_weights(model, model.spec, source, reinit, drop=drop, key=key)


def import_weights(
    module: nnx.Module,
    spec: ModelSpec,
    source: str | Path | Mapping[str, Any],
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """`load_torch` for any module that a spec describes; a backbone's spec has no head.

    The module may hold shapes instead of arrays, as `nnx.eval_shape` makes it. Leaves that are not
    loaded then stay shapes; see `init_missing`.
    """
    published = None
    if isinstance(source, Mapping):
        name, digest = "state dict", None
        states = files.state_dicts_of(source, name)
    else:
        published = hub.find(source, spec)
        path = Path(source) if published is None else hub.fetch(published)
        states = files.open_state_dicts(path)
        name, digest = str(path), files.sha256(path)
    candidates = tables(spec)
    if not candidates:
        raise WeightsError(
            f"backbone '{spec.backbone}' declares no table of PyTorch names, so {name} cannot be "
            "loaded"
        )
    targets = matching.leaves_of(module, spec)
    found = reading.readings(states, candidates, targets)
    if not found:
        raise WeightsError(_unknown(states, candidates, targets, name))
    chosen, also_fits = reading.choose(found, key, states, name)
    table = candidates[chosen.scope, chosen.key_format]
    others = reading.other_weights(chosen, states)
    names = chosen.all_names()
    entries = {new: chosen.state.tensors.entry(raw) for new, raw in names.items()}
    if chosen.scope == "backbone" and not key:
        entries |= (parts := reading.separate_parts(chosen, found, others, table))
        names |= {part: part for part in parts}
    renamed = {new: raw for new, raw in names.items() if raw != chosen.prefix + new}
    holds_weights = {
        key: any(f"{other.key}.".startswith(f"{key}.") for other in others)
        for key in chosen.state.other_keys
    }
    report = LoadReport(
        name,
        digest,
        chosen.key_format,
        chosen.scope,
        stripped=chosen.prefix,
        key=chosen.state.key,
        also_fits=also_fits,
        not_weights=[key for key, holds in holds_weights.items() if not holds],
        other_weights=[key for key, holds in holds_weights.items() if holds],
        renamed=renamed,
        license="" if published is None else published.license,
    )
    new_head = starts_new_head(targets, reinit, candidates)
    leftover = reading.leftovers(chosen, found, table, targets, new_head)
    shapes = {raw: chosen.state.tensors.shape(raw) for raw in chosen.state.tensors}
    _fill(targets, spec, Tensors(entries), table, report, reinit, drop, leftover, shapes)
    report.other_weights[:] = [
        key
        for key in report.other_weights
        if not any(name.startswith(f"{key}.") for name in report.dropped)
    ]
    used = {*report.loaded.values(), *report.dropped}
    for new in renamed.keys() - used:
        del renamed[new]
    return report


def starts_new_head(
    targets: Leaves, reinit: Sequence[str], candidates: reading.Tables | None = None
) -> bool:
    """Whether `reinit` names the complete head, by its paths or by the names of the tables."""
    whole = [table for (scope, _), table in (candidates or {}).items() if scope == "model"]
    heads = [
        (path, *(found[0] for table in whole if (found := table.to_torch(path)) is not None))
        for path in targets
        if path.startswith("head.")
    ]
    return bool(heads) and all(
        any(matching.is_named(glob, *names) for glob in reinit) for names in heads
    )


def _unknown(
    states: Sequence[StateDict], candidates: reading.Tables, targets: Leaves, name: str
) -> str:
    largest = max(states, key=lambda state: len(state.tensors)).tensors
    table = next(iter(candidates.values()))
    expected = table.names(targets).values()
    looks_like = architecture.guess({raw: largest.shape(raw) for raw in largest})
    guess = f"; it looks like {looks_like}" if looks_like else ""
    if how := reparametrized(largest):
        guess += f"; {how}"
    return (
        f"{name}: weights of another model: its names are unknown with any prefix (it has "
        f"{listing(largest, 4)}; expected are names such as {listing(expected, 4)}){guess}"
    )


def import_by_table(module: nnx.Module, tensors: Mapping[str, Any], table: Table) -> LoadReport:
    """Load a state dict into any module by a table, in place, all or nothing.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    report = LoadReport("state dict", key_format="given")
    values = files.tensors_of(tensors, report.source)
    _fill(leaves(module), type(module).__name__, values, table, report)
    return report


def import_leaves(
    shapes: Mapping[str, Any], what: str, tensors: Mapping[str, Any], table: Table
) -> tuple[dict[str, Any], LoadReport]:
    """The values of a state dict as the leaves of any network, by a table.

    Args:
        shapes: arrays or shapes by path.
        what: the network's name, for messages.
        tensors: the state dict.
        table: maps all leaves.

    Returns:
        The new leaves, and what was loaded.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    report = LoadReport("state dict", key_format="given")
    targets = {path: nnx.Param(leaf) for path, leaf in shapes.items()}
    _fill(targets, what, files.tensors_of(tensors, report.source), table, report)
    return {path: target.get_value() for path, target in targets.items()}, report


def init_from(
    model: Segmenter,
    source: str | Path,
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """Fill a model with initial weights for training (`train --weights`), in place, all or nothing.

    Tensors whose shapes depend on the number of classes keep their initial values if a run or
    checkpoint has another number than the model; the report names them.

    Args:
        model: as `build_model` returns it.
        source: a weights file with PyTorch's names, or the name of published weights; or a run, a
            checkpoint, a converted model or a portable directory; or the id of a model on the hub,
            of this or another library.
        reinit: globs over names of tensors that keep the model's initial values; `head` for
            another head, or for another number of classes in a file.
        drop: globs over names of the source, of tensors that are dropped.
        key: which of several state dicts of a file to load, such as "model_ema"; for a run or
            checkpoint "raw" or "ema", by default the averages if there are any.

    Returns:
        A report of the use of each tensor.

    Raises:
        WeightsError: the tensors do not fit: all missing, surplus and misshapen names in one
            message.
        CheckpointError: the folder is not a checkpoint, or it is incomplete.
    """
    source = hub.localize(source, model.spec)
    if not is_checkpoint(source):
        return load_torch(model, source, reinit, drop=drop, key=key)
    directory = checkpoint.find(source)
    if key not in ("", "ema", "raw"):
        raise WeightsError(
            f"{source}: a checkpoint has no key '{key}'; it holds its weights, raw, and perhaps "
            "averages of them, ema"
        )
    chosen = checkpoint.choose_weights(directory, key or None)
    arrays = checkpoint.read_arrays(directory, chosen)
    scope, spec = "model", checkpoint.read_spec(directory).model
    if spec.head is None:
        scope, arrays = "backbone", {f"backbone.{name}": array for name, array in arrays.items()}
    report = LoadReport(
        str(directory), None, "fcn-jax", scope, key="" if chosen == "raw" else chosen
    )
    targets = leaves(model)
    sizes = spec.num_classes, model.spec.num_classes
    if spec.head is not None and sizes[0] != sizes[1]:
        resized = [
            name
            for name, leaf in targets.items()
            if name in arrays and _is_resized(arrays[name].shape, leaf.shape, sizes)
        ]
        report.resized.extend(resized)
        report = dataclasses.replace(report, classes=sizes)
        reinit = [*reinit, *resized]
    same_names = Table(*(Rule(path, path) for path in targets))
    new_head = starts_new_head(targets, reinit)

    def leftover(name: str) -> str | None:
        return reading.OTHER_HEAD if new_head and not name.startswith("backbone.") else None

    _fill(targets, model.spec, arrays, same_names, report, reinit, drop, leftover)
    return report


def _is_resized(old: tuple[int, ...], new: tuple[int, ...], sizes: tuple[int, int]) -> bool:
    """Whether shapes differ, and only by the number of classes, which `sizes` holds."""
    if len(old) != len(new) or old == new:
        return False
    return all(pair == sizes for pair in zip(old, new, strict=True) if pair[0] != pair[1])


def is_checkpoint(source: str | Path) -> bool:
    """Whether a source is the directory of a run, checkpoint or portable model, not a weights file.

    A directory that holds nothing of a run or checkpoint is one, too, unless it holds weight files
    of other tools.
    """
    folder = Path(source)
    if place.is_remote(source):
        return True
    if not folder.is_dir():
        return False
    if portable.is_portable(folder):
        return True
    known = any((folder / name).exists() for name in (checkpoint.STEPS, "spec", "model"))
    return known or not any(
        child.suffix.lower() in kinds.WEIGHT_SUFFIXES
        for child in folder.iterdir()
        if child.is_file()
    )


def init_missing(module: nnx.Module, build: Callable[[], nnx.Module], which: Any = ...) -> None:
    """Give initial values to the variables that are still shapes, in place.

    To draw a complete network takes longer than to load it, and twice its memory. Under jit, XLA
    computes only the values that are needed. They equal those that `build` gives without jit.

    Args:
        module: the result of `nnx.eval_shape(build)`, partly filled.
        build: makes the same network with values.
        which: filter of NNX; other variables stay shapes.
    """
    missing = {
        path: leaf
        for path, leaf in nnx.to_flat_state(nnx.state(module, which))
        if isinstance(leaf.get_value(), jax.ShapeDtypeStruct)
    }

    def values() -> list[jax.Array]:
        built = dict(nnx.to_flat_state(nnx.state(build())))
        return [built[path].get_value() for path in missing]

    if missing:
        for leaf, value in zip(missing.values(), jax.jit(values)(), strict=True):
            leaf.set_value(value)


def _fill(
    targets: Leaves,
    module: ModelSpec | str,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    report: LoadReport,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    leftover: Callable[[str], str | None] | None = None,
    shapes: architecture.Shapes | None = None,
) -> None:
    """Fill leaves by a table, all or nothing, and complete the report.

    Messages describe the file by `shapes`, those of all its tensors.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    channels = module.in_channels if isinstance(module, ModelSpec) else 3
    problems = matching.match(tensors, targets, table, report, reinit, drop, leftover, channels)
    if problems:
        what, classes, backbone = str(module), None, None
        looks_like = architecture.guess(shapes or {})
        if isinstance(module, ModelSpec):
            what = module.backbone if report.scope == "backbone" else title(module)
            what += f" (read as {report.how_read()})"
            classes = module.num_classes if module.head is not None else None
            backbone = architecture.backbone_of(looks_like, registry.default().names("backbones"))
            backbone = None if backbone == module.backbone else backbone
        raise WeightsError(complaint(report, what, problems, looks_like, classes, backbone))
    for path, name in report.loaded.items():
        rule = table.to_torch(path)[1]  # type: ignore[index]  # the one that matched
        try:
            value = matching.as_leaf(tensors[name], rule, targets[path], channels)
        except matching.UnfitError as fault:
            raise WeightsError(
                f"{report.source}: changed while it was read, and is loaded in part "
                f"({name}: {fault})"
            ) from fault
        # A copy that nobody else can write to. `jnp.asarray` would compile one for each shape.
        targets[path].set_value(jax.device_put(np.array(value, order="C")))
        del value  # before the next tensor is read
