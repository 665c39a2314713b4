"""Import and export of PyTorch weights by the models' own tables: a bijection, checked name by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.convert import architecture, matching, named_weights, reading
from fcn_jax.convert.matching import LoadReport
from fcn_jax.errors import ConfigError, WeightsError, listing
from fcn_jax.models.names import leaves
from fcn_jax.models.segmenter import ModelSpec, Segmenter, describe
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Backbone, Head
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Drop, Rule, Table
from fcn_jax.pytorch.state_dicts import StateDict, Tensors
from fcn_jax.runtime.memory import trim_malloc

_AUXILIARY = Drop(
    "aux_classifier.*", "the auxiliary head, which takes part in PyTorch's training alone"
)


def tables(spec: ModelSpec) -> dict[tuple[str, str], Table]:
    """The tables that fit a spec, by (scope, naming scheme): of the whole model where both parts have one, and of the backbone.

    The Flax side has a whole model's paths in either case. In torchvision's names the parts of a
    whole model are `backbone.*`, `classifier.*` and `aux_classifier.*`, as in its segmentation
    models. In other schemes, such as the chapter's, whose network is one Sequential, there are no
    prefixes: each table's names are the whole model's.
    """
    backbone, head, aux_head = describe(spec)
    of_backbone = _part_tables(backbone, spec.backbone_options)
    alone = _tables_alone(backbone, spec.backbone_options)
    of_head = _part_tables(head, spec.head_options) if head is not None else {}
    of_aux_head = _part_tables(aux_head, spec.aux_head_options) if aux_head is not None else {}
    found: dict[tuple[str, str], Table] = {}
    for scheme in of_backbone:
        if scheme in of_head and (aux_head is None or scheme in of_aux_head):
            trunk, top, aux = (
                ("backbone.", "classifier.", "aux_classifier.")
                if scheme == "torchvision"
                else ("", "", "aux.")
            )
            whole = of_backbone[scheme].under(trunk, "backbone.") + of_head[scheme].under(
                top, "head."
            )
            if aux_head is not None:
                whole += of_aux_head[scheme].under(aux, "aux_head.")
            elif scheme == "torchvision":
                whole += Table(_AUXILIARY)
            found["model", scheme] = whole
    return found | {
        ("backbone", scheme): table.under("", "backbone.") for scheme, table in alone.items()
    }


def _part_tables(part: Backbone | Head, table: Mapping[str, Any]) -> Mapping[str, Table]:
    return part.torch.tables(registry.options(part, table)) if part.torch else {}


def _tables_alone(backbone: Backbone, table: Mapping[str, Any]) -> Mapping[str, Table]:
    """Those of a backbone's own files, whose names may differ from those that it has in a whole model."""
    if backbone.torch is None or backbone.torch.alone is None:
        return _part_tables(backbone, table)
    return backbone.torch.alone(registry.options(backbone, table))


def load_torch(
    model: Segmenter,
    source: str | Path | Mapping[str, Any],
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """Load PyTorch weights into a model, in place, all or nothing.

    A file is read tensor by tensor, twice: all of it is checked before the first value of the model
    changes, and memory holds the model and one tensor. No code of the file runs, and PyTorch is not
    needed.

    Files of training frameworks are seen through: the state dict is found under whatever keys it
    lies, and prefixes of DataParallel, torch.compile, Lightning, running averages and networks
    around a backbone are taken off. The reading by which most of the model is there is taken; of
    equal ones the weights before running averages of them, and the record names the others. The
    naming scheme and the scope (whole model, or backbone alone) are recognized by the names. Every
    tensor of the file is used once or dropped for a reason that the record gives; every leaf of the
    model is filled or named by `reinit`. From a file of the backbone alone the head keeps its
    initial values; from a file of a whole network with another head it does so if `reinit` names it
    ("head").

    Args:
        model: as `build_model` returns it.
        source: a file of weights in PyTorch's formats or `.safetensors`, known by its contents; the
            name of published weights, such as "IMAGENET1K_V1", which are fetched once; or a state
            dict of torch tensors or numpy arrays, which may be wrapped as in a file.
        reinit: globs over the file's names or the model's paths, whose tensors keep the model's
            initial values.
        drop: globs over the file's names, with or without the prefix, of tensors that are left out
            on purpose.
        key: which of several state dicts of a file to take, by its keys or its prefix, such as
            "model_ema".

    Returns:
        A record of what went where.

    Raises:
        WeightsError: the file cannot be read, or does not fit: all missing, surplus and misshapen
            names in one message. The model is as it was, except where a file changes while it is
            read.
    """
    return load_into(model, model.spec, source, reinit, drop=drop, key=key)


def load_into(
    module: nnx.Module,
    spec: ModelSpec,
    source: str | Path | Mapping[str, Any],
    reinit: Sequence[str] = (),
    *,
    drop: Sequence[str] = (),
    key: str = "",
) -> LoadReport:
    """`load_torch` for any module that a spec describes; for a backbone alone the spec's head is None.

    The module may hold shapes instead of arrays, as `nnx.eval_shape` makes it; leaves that are not
    loaded then stay shapes.
    """
    if isinstance(source, Mapping):
        name, digest = "state dict", None
        states = files.state_dicts_of(source, name)
    else:
        path = named_weights.resolve(source, spec)
        states = files.open_state_dicts(path)
        name, digest = str(path), files.sha256(path)
    candidates = tables(spec)
    if not candidates:
        raise WeightsError(
            f"backbone '{spec.backbone}' declares no table of PyTorch names, so {name} cannot be loaded"
        )
    targets = _targets(module, spec)
    found = reading.readings(states, candidates, targets)
    if not found:
        raise WeightsError(_unknown(states, candidates, targets, name))
    chosen, also_fits = reading.choose(found, key, states, name)
    table = candidates[chosen.scope, chosen.scheme]
    others = reading.other_weights(chosen, states)
    beside = {
        key: any(f"{other.key}.".startswith(f"{key}.") for other in others)
        for key in chosen.state.beside
    }
    record = LoadReport(
        name,
        digest,
        chosen.scheme,
        chosen.scope,
        {},
        {},
        [],
        [],
        chosen.prefix,
        key=chosen.state.key,
        also_fits=also_fits,
        beside=[key for key, holds_weights in beside.items() if not holds_weights],
        others=[key for key, holds_weights in beside.items() if holds_weights],
        renamed={new: raw for new, raw in chosen.names.items() if raw != chosen.prefix + new},
    )
    tensors = chosen.tensors()
    record.renamed.update(
        {raw: raw for raw in tensors if raw not in chosen.names and chosen.prefix}
    )
    new_head = starts_new_head(targets, reinit, candidates)
    leftover = reading.leftovers(chosen, found, table, targets, new_head)
    if chosen.scope == "backbone" and not key:
        tensors, leftover = _with_parts_apart(
            tensors, leftover, reading.parts_apart(chosen, found, others), table, record, new_head
        )
    shapes = {raw: chosen.state.tensors.shape(raw) for raw in chosen.state.tensors}
    load_named(
        module,
        spec,
        tensors,
        table,
        record,
        reinit,
        drop,
        leftover,
        lambda: architecture.guess(shapes),
    )
    record.others[:] = [
        key
        for key in record.others
        if not any(name.startswith(f"{key}.") for name in record.dropped)
    ]
    used = {*record.loaded.values(), *record.dropped}
    for new in [
        new
        for new in record.renamed
        if new not in used or (record.renamed[new] == new and new not in record.dropped)
    ]:
        del record.renamed[new]
    return record


def _with_parts_apart(
    tensors: Tensors,
    leftover: Callable[[str], str | None],
    apart: Sequence[StateDict],
    table: Table,
    record: LoadReport,
    new_head: bool,
) -> tuple[Tensors, Callable[[str], str | None]]:
    """What a file holds, with the tensors of other state dicts that may belong to the network, so that they are not lost in silence."""
    named = {
        f"{state.key}.{raw}" if state.key else raw: (state, raw)
        for state in apart
        for raw in state.tensors
    }
    # A name that the model knows would be loaded from there, which no one asked for.
    named = {
        name: place
        for name, place in named.items()
        if name not in tensors and table.to_jax(name) is None
    }
    record.renamed.update({name: name for name in named})

    def reason(name: str) -> str | None:
        if name not in named:
            return leftover(name)
        return table.dropped(name) or (reading.HEAD_LEFT if new_head else None)

    return tensors.with_others(
        {name: state.tensors.entry(raw) for name, (state, raw) in named.items()}
    ), reason


def starts_new_head(
    targets: Mapping[str, nnx.Variable],
    reinit: Sequence[str],
    candidates: Mapping[tuple[str, str], Table] | None = None,
) -> bool:
    """Whether `reinit` names all of the head, by its paths or by the names that tables give it."""
    heads = list(reading.names_of(reading.head_paths(targets), candidates or {}))
    return bool(heads) and all(
        any(matching.named_by(glob, *names) for glob in reinit) for names in heads
    )


def _unknown(
    states: Sequence[StateDict],
    candidates: Mapping[tuple[str, str], Table],
    targets: Mapping[str, nnx.Variable],
    name: str,
) -> str:
    largest = max(states, key=lambda state: len(state.tensors)).tensors
    table = next(iter(candidates.values()))
    expected = [place[0] for path in targets if (place := table.to_torch(path)) is not None]
    looks_like = architecture.guess({raw: largest.shape(raw) for raw in largest})
    guess = f"; it looks like {looks_like}" if looks_like else ""
    if how := matching.reparametrized(largest):
        guess += f"; {how}"
    return (
        f"{name}: weights of another model: no prefix makes its names known (it has {listing(largest, 4)}; expected are names such as "
        f"{listing(expected, 4)}){guess}"
    )


def load_named(
    module: nnx.Module,
    spec: ModelSpec,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    record: LoadReport,
    reinit: Sequence[str],
    drop: Sequence[str] = (),
    leftover: Callable[[str], str | None] | None = None,
    looks_like: Callable[[], str | None] = lambda: None,
) -> None:
    """Fill a module by a table, all or nothing, and fill in the record, whose scope says how much of the module is meant.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    what = spec.backbone if record.scope == "backbone" else f"{spec.backbone} + {spec.head}"
    what += f" (read as {record.how_read()})"
    _fill(
        _targets(module, spec),
        what,
        tensors,
        table,
        record,
        reinit,
        drop,
        leftover,
        looks_like,
        spec,
    )


def load_by_table(module: nnx.Module, tensors: Mapping[str, Any], table: Table) -> LoadReport:
    """Load a state dict into any module by a table of its own, in place, all or nothing; there need be no spec for it.

    Raises:
        WeightsError: all missing, surplus and misshapen names in one message.
    """
    record = LoadReport("state dict", None, "given", "model", {}, {}, [], [])
    _fill(
        leaves(module),
        type(module).__name__,
        files.tensors_of(tensors, record.source),
        table,
        record,
        (),
    )
    return record


def _fill(
    targets: Mapping[str, nnx.Variable],
    what: str,
    tensors: Mapping[str, np.ndarray],
    table: Table,
    record: LoadReport,
    reinit: Sequence[str],
    drop: Sequence[str] = (),
    leftover: Callable[[str], str | None] | None = None,
    looks_like: Callable[[], str | None] = lambda: None,
    spec: ModelSpec | None = None,
) -> None:
    problems = matching.match(tensors, targets, table, reinit, record, drop, leftover)
    if problems:
        guess = looks_like()
        classes = spec.num_classes if spec is not None and spec.head is not None else None
        backbone = (
            architecture.backbone_of(guess, registry.default().names("backbones"))
            if guess
            else None
        )
        if spec is not None and backbone == spec.backbone:
            backbone = None
        raise WeightsError(matching.complaint(record, what, problems, guess, classes, backbone))
    trim_malloc()  # what checking took, and building the model: for a small one as much as its values
    for path, name in record.loaded.items():
        rule = table.to_torch(path)[1]  # type: ignore[index]  # by which it was matched
        try:
            _set(targets[path], tensors[name], rule)
        except matching.UnfitError as fault:
            raise WeightsError(
                f"{record.source}: changed while it was read, and is loaded in part ({name}: {fault})"
            ) from fault


def _set(leaf: nnx.Variable, value: np.ndarray, rule: Rule) -> None:
    # A copy of our own, which no one else can write to. `jnp.asarray` would compile one for each
    # shape that it meets.
    leaf.set_value(jax.device_put(np.array(matching.as_leaf(value, rule, leaf), order="C")))


def _targets(module: nnx.Module, spec: ModelSpec) -> dict[str, nnx.Variable]:
    """A module's leaves by the paths that they have in a whole model, also where the module is a backbone alone."""
    prefix = "" if spec.head is not None else "backbone."
    return {prefix + path: leaf for path, leaf in leaves(module).items()}


def to_torch(model: Segmenter, names: str = "torchvision") -> dict[str, np.ndarray]:
    """A model's weights as a PyTorch state dict: the inverse of `load_torch`.

    Args:
        model: as `build_model` returns it.
        names: naming scheme. "torchvision" gives `backbone.*` and `classifier.*`; "d2l" the book
            chapter's Sequential (ResNet only); others are flat too, and offered by the parts that
            have a table of that name.

    Returns:
        Arrays by PyTorch's names, which `load_state_dict(strict=True)` takes after
        `torch.from_numpy`.

    Raises:
        ConfigError: the model's parts do not offer that scheme.
        WeightsError: a leaf of the model is named by no rule.
    """
    return export_from(model, model.spec, names)


def export_from(module: nnx.Module, spec: ModelSpec, names: str) -> dict[str, np.ndarray]:
    """`to_torch` for any module that a spec describes: for a backbone alone, whose spec's head is None, in its own names."""
    found, scope = tables(spec), "model" if spec.head is not None else "backbone"
    if (scope, names) not in found:
        what = f"{spec.backbone} + {spec.head}" if spec.head is not None else spec.backbone
        offered = ", ".join(scheme for kind, scheme in found if kind == scope) or "none"
        raise ConfigError(f"names='{names}' is not offered by {what}; offered: {offered}")
    return export(_targets(module, spec), found[scope, names])


def export(module_leaves: Mapping[str, nnx.Variable], table: Table) -> dict[str, np.ndarray]:
    """Name and lay out leaves as the state dict that `table` describes, in the order of its rules where that is PyTorch's."""
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in module_leaves.items():
        found = table.to_torch(path)
        if found is None:
            raise WeightsError(f"'{path}' is named by no rule, so it cannot be exported")
        name, rule = found
        tensors[name] = np.array(rule.op.to_torch(np.asarray(leaf[...])), order="C")
    return tensors
