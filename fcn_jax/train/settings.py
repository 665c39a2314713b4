"""Checks of settings against the run, the model and the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax.config import AUTO, Config, same_plugins
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.transforms import Augment
from fcn_jax.data.value_range import Scaling, Stored
from fcn_jax.errors import ConfigError, FcnJaxError, PluginError, listing
from fcn_jax.eval.meter import EXTRA_METRICS, check_metrics
from fcn_jax.eval.protocols import Protocol, choose
from fcn_jax.models.spec import resolve
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes, ModelSpec
from fcn_jax.recipes import read_run
from fcn_jax.runtime import json_text
from fcn_jax.train import auto, losses, sharding
from fcn_jax.train.ending import gist, is_out_of_memory
from fcn_jax.train.run_directory import is_leftover


@contextlib.contextmanager
def settings_at_fault(what: str, config: Config) -> Iterator[None]:
    """Report an error of the block as one of the settings, which it lists.

    The parts of the model work with other settings, so these do not fit together.
    """
    try:
        yield
    except FcnJaxError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OverflowError):  # an array size
            raise ConfigError(f"{what}: {_TOO_LARGE}") from error
        model, parts = config.model, config.optim.accumulate_steps
        named = {
            "model.backbone": model.backbone,
            "model.head": model.head,
            "model.aux_head": model.aux_head,
            "model.output_stride": model.output_stride,
            "model.backbone_options": model.backbone_options or None,
            "model.head_options": model.head_options or None,
            "data.crop_size": list(config.data.crop_size),
            "data.batch_size": config.data.batch_size,
            "optim.accumulate_steps": parts if parts > 1 else None,
        }
        settings = ", ".join(
            f"{name} = {value}" for name, value in named.items() if value is not None
        )
        raise ConfigError(f"{what} with {settings}: {gist(error)} (--debug shows where)") from error


_LOWER = "lower data.batch_size or data.crop_size, or raise optim.accumulate_steps"
_TOO_LARGE = f"it needs more memory than there is; {_LOWER}"


def require_memory(compiled: Any) -> None:
    """Raise `ConfigError` if a program for CPUs needs more memory than the machine has.

    The system would kill the process.
    """
    if jax.default_backend() != "cpu":
        return
    # Not every platform reports its memory, and not every backend that of a program.
    with contextlib.suppress(AttributeError, OSError, ValueError, NotImplementedError):
        analysis = compiled.memory_analysis()
        needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise ConfigError(
                f"a training step needs {needed / 2**30:.0f} GiB of memory, and this machine has "
                f"{available / 2**30:.0f}; {_LOWER}"
            )


def claim(run: Path, config: Config, home: Path) -> bool:
    """Return whether there is a run to continue.

    Args:
        run: run directory.
        config: settings.
        home: folder with the run's records: the run directory, or where its checkpoints are.

    Raises:
        ConfigError: the run has other settings, or the directory holds other files.
        CheckpointError: the settings of the run cannot be read.
    """
    is_empty = not run.exists() or all(is_leftover(entry) for entry in run.iterdir())
    if is_empty and home == run:
        return False
    if not (home / "config.json").exists() or (home != run and not is_empty):
        raise ConfigError(
            f"{run}: exists, is not empty, and holds no run (it has no config.json); name another "
            "directory with --workdir"
        )
    before = read_run(home)
    old, new = (
        same_plugins(settings.with_absolute_paths().model_dump(mode="json"))
        for settings in (before, config)
    )
    weights = new["init"]["weights"]  # still relative if the file is gone
    if weights and str(Path(weights).absolute()) == old["init"]["weights"]:
        new["init"]["weights"] = old["init"]["weights"]
    changed = {
        name: f"{name} = {_shown(values.get(key))} (in the run: {_shown(old[section].get(key))})"
        for section, values in new.items()
        for key in {**values, **old[section]}
        if values.get(key) != old[section].get(key)
        and (name := f"{section}.{key.rpartition(':')[2]}") not in _FREE
        and section not in _FREE_SECTIONS
    }
    if not changed or (list(changed) == ["train.epochs"] and config.optim.schedule == "constant"):
        return True
    if list(changed) == ["train.epochs"]:
        raise ConfigError(
            f"{run}: train.epochs cannot change from {before.train.epochs} to "
            f"{config.train.epochs}, because the learning rates of optim.schedule = "
            f"'{config.optim.schedule}' depend on it; leave it as it was, or start another run "
            f"from the parameters of this one: fcn-jax train {start_from(run)} "
            f"--set train.epochs={config.train.epochs}"
        )
    raise ConfigError(
        f"{run}: holds a run with another recipe; these settings differ: "
        f"{', '.join(sorted(changed.values()))}; leave them as they were to continue it, or start "
        f"another run with --workdir NEW, from the parameters of this one with {start_from(run)}"
    )


def require_still(run: Path, config: Config, home: Path, continues: bool) -> None:
    """Raise `ConfigError` if `claim` no longer returns `continues`."""
    if claim(run, config, home) != continues:
        raise ConfigError(
            f"{run}: another process started a run here meanwhile; to continue it, start the same "
            "command again"
        )


def _shown(value: Any) -> str:
    """A value in a message."""
    if value is None:
        return "not set"
    text = json_text.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def start_from(run: Path) -> str:
    """Return the command-line options that start another run from the parameters of `run`."""
    return f"--weights {shlex.quote(str(run))} --workdir NEW"


_FREE = frozenset(
    {
        "data.root",
        "data.num_workers",
        "data.damaged",
        "eval.also",
        "train.log_every_steps",
        "train.num_visualizations",
        "train.checkpoint_every_steps",
        "train.keep_latest",
        "train.keep_best",
        "train.keep_every_steps",
        "train.early_stopping",
    }
)
"""Settings that may change when a run is continued: none of them changes what a step computes."""

_FREE_SECTIONS = frozenset({"log", "mesh"})
"""Sections whose settings may all change. Another mesh only changes the order of sums."""


def require_needed(config: Config) -> None:
    """Raise `ConfigError` for settings that contradict each other or need one that is missing."""
    init, model, optim, data = config.init, config.model, config.optim, config.data
    problems = []
    given = [f"init.{name}" for name in ("reinit", "drop", "key") if getattr(init, name)]
    if given and init.weights is None:
        problems.append(
            f"{', '.join(given)}: given without init.weights, to whose names they refer; "
            "name the weights with --weights"
        )
    for name in ("aux_feature", "aux_head_options"):
        if getattr(model, name) and model.aux_head is None:
            problems.append(
                f"model.{name}: given without model.aux_head; name the auxiliary head, such as "
                "model.aux_head=fcn"
            )
    if model.mean is not None and data.value_range is not None:
        problems.append(
            "data.value_range and model.mean: the range scales images to 8 bits, and the mean "
            "refers to stored values, which are not scaled; choose one"
        )
    if optim.clip_norm is not None and optim.clip_value is not None:
        problems.append("optim.clip_norm and optim.clip_value: both given; choose one")
    if optim.ema_warmup and optim.ema_decay is None:
        problems.append(
            "optim.ema_warmup: given without optim.ema_decay; set it, such as optim.ema_decay=0.999"
        )
    if optim.schedule == "multi_step" and not optim.milestones:
        problems.append(
            "optim.schedule: 'multi_step' given without optim.milestones; name the fractions of "
            "the run at which the learning rate falls, such as 'optim.milestones=[0.6, 0.9]'"
        )
    if model.task == "multilabel":
        problems += _multilabel_problems(config)
    problems += _augment_problems(config)
    if problems:
        raise ConfigError("; ".join(problems))


def _multilabel_problems(config: Config) -> list[str]:
    """Settings that need masks with one class per pixel."""
    data, augment, section = config.data, config.augment, config.eval
    given = {
        "data.label_map, merge_classes, ignore_classes or reduce_zero_label": bool(Remap.of(data)),
        "data.void_as_background": data.void_as_background,
        "augment.crop": augment.crop is not None,
        "augment.albumentations": augment.albumentations is not None,
        f"eval.metrics = {list(section.metrics)}": not {*section.metrics}.isdisjoint(EXTRA_METRICS),
        "eval.also": bool(section.also),
    }
    names = [name for name, is_given in given.items() if is_given]
    with contextlib.suppress(ConfigError):  # reported by another check
        if (first := choose(recipe=config)).name != "native":
            names.append(f"the protocol {first.name}")
    if not names:
        return []
    return [
        f"model.task is 'multilabel', and {', '.join(names)}: only for masks with one class per "
        "pixel; leave out the setting"
    ]


def _augment_problems(config: Config) -> list[str]:
    augment, data, problems = config.augment, config.data, []
    if augment.resize is not None and data.scale_range != (1.0, 1.0):
        problems.append("augment.resize and data.scale_range: both given; choose one")
    if augment.albumentations is not None:
        replaced = ("scale_range", "brightness", "contrast", "saturation", "hue")
        defaults = type(data).model_fields
        given = [f"data.{k}" for k in replaced if getattr(data, k) != defaults[k].default]
        tables = dict(augment)
        del tables["albumentations"], tables["crop"]
        given += [f"augment.{name}" for name, table in tables.items() if table is not None]
        if given:
            problems.append(
                f"{', '.join(given)}: given with augment.albumentations, which replaces all "
                "transforms except the crop; leave out one or the other"
            )
    return problems


def require_valid(config: Config) -> None:
    """Check all sections of a recipe without the data, and report their problems together.

    Raises:
        ConfigError: names, options or values are wrong, or do not fit together.
        PluginError: a plugin is broken, or two distributions claim a name.
    """
    known = auto.provisional(config)
    checks: tuple[Callable[[], Any], ...] = (
        lambda: resolve(known.model),
        lambda: registry.default().dataset(known.data.dataset),
        lambda: Augment.of(known.data, known.augment).require_channels(
            known.model.in_channels, np.uint8, f"model.in_channels is {known.model.in_channels}"
        ),
        lambda: losses.select(known.losses(), known.model.task),
        lambda: protocols(known),
        lambda: check_metrics(known.eval.metrics),
        lambda: require_needed(known),
        lambda: placement_of(config),
    )
    found: list[FcnJaxError] = []
    for check in checks:
        try:
            check()
        except (ConfigError, PluginError) as error:
            found.append(error)
    if len(found) == 1:
        raise found[0]
    if found:
        raise ConfigError("; ".join(map(str, found)))


def placement_of(config: Config) -> sharding.Placement:
    """Return the placement of state and batches on all devices.

    Settings that are still "auto" are not checked.

    Raises:
        ConfigError: see `fcn_jax.train.sharding.make_placement`.
    """
    batch_size, crop_size = config.data.batch_size, config.data.crop_size
    return sharding.make_placement(
        config.mesh,
        None if batch_size == AUTO else batch_size,
        accumulate_steps=config.optim.accumulate_steps,
        rows=None if crop_size == AUTO else crop_size[0],
    )


def protocols(config: Config) -> list[Protocol]:
    """Return the protocols by which training scores: that of `eval`, then those of `eval.also`.

    Raises:
        ConfigError: a name or setting is wrong.
    """
    return [choose(recipe=config), *(choose(name, recipe=config) for name in config.eval.also)]


def for_classes(model: ModelSpec, classes: Classes) -> ModelSpec:
    """Return the spec of a model for a dataset.

    Raises:
        ConfigError: the task is "binary", and the dataset does not have two classes.
    """
    if model.task != "binary":
        return dataclasses.replace(model, num_classes=len(classes))
    if len(classes) != 2:
        raise ConfigError(
            f"model.task is 'binary', and the dataset has {len(classes)} classes "
            f"({listing(classes.names)}); expected two, of which the second is the one to find. "
            "Use model.task = 'multiclass' for others"
        )
    return dataclasses.replace(model, num_classes=1)


def require_units(model: ModelSpec, scaling: Scaling) -> None:
    """Raise `ConfigError` if `model.std` of 8-bit RGB is given for values from 0 to 1."""
    if scaling == Stored("uint8") and model.in_channels == 3 and max(model.std or (2,)) <= 1:
        raise ConfigError(
            f"model.std is {list(model.std or ())}: model.mean and model.std are in units of the "
            "stored values, 0 to 255 for these images; multiply both by 255, or leave them out for "
            "those of the backbone"
        )


def require_steps(config: Config, total: int) -> None:
    """Raise `ConfigError` if a run of `total` steps is too long, or too short for its warm-up."""
    if total >= 2**31:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}: that makes {total} steps; "
            f"expected fewer than {2**31}"
        )
    if config.optim.warmup_steps >= total:
        raise ConfigError(
            f"optim.warmup_steps is {config.optim.warmup_steps}, and the run has {total} steps; "
            "lower it, or train more epochs"
        )


def other_order(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """Return a warning if the training images come in another order than the run had so far.

    Args:
        before: the order that the run recorded; None in runs of earlier versions.
        now: `fcn_jax.data.order.fingerprint`.
    """
    if before is None or before["digest"] == now["digest"]:
        return None
    return (
        f"warning: the training images come in another order than before (Grain {now['grain']}, "
        f"and {before['grain']} before): in the current epoch, some come twice and others not at "
        f"all. To continue exactly, pip install grain=={before['grain']}"
    )


def require_same_split(
    run: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any], split: str
) -> None:
    """Raise `ConfigError` if the training images are not those that the run was started with.

    Older runs do not record them.
    """
    if before is None or dict(before) == dict(now):
        return
    same_count = now["images"] == before["images"]
    what = "has other images" if same_count else f"has {now['images']} images"
    raise ConfigError(
        f"{run}: split '{split}' {what}, and the run was started with {before['images']}; their "
        "order and the schedule depend on them. Restore them, or start another run from the "
        f"parameters of this one: {start_from(run)}"
    )
