"""Settings that do not fit: the run, the model, or the machine."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from fcn_jax.config import Config, read_run, same_plugins
from fcn_jax.errors import ConfigError, FcnJaxError
from fcn_jax.train.ending import gist, is_out_of_memory


@contextlib.contextmanager
def settings_at_fault(what: str, config: Config) -> Iterator[None]:
    """Whatever goes wrong inside comes from the settings: the parts of the model were tried with others."""
    try:
        yield
    except FcnJaxError:
        raise
    except MemoryError as error:
        raise ConfigError(f"{what}: {_TOO_LARGE}") from error
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OverflowError):  # no size of an array
            raise ConfigError(f"{what}: {_TOO_LARGE}") from error
        model, data = config.model, config.data
        tables = {"backbone_options": model.backbone_options, "head_options": model.head_options}
        named = {
            "model.backbone": model.backbone,
            "model.head": model.head,
            "model.aux_head": model.aux_head,
            "model.output_stride": model.output_stride,
            **{f"model.{name}": table or None for name, table in tables.items()},
            "data.crop": list(data.crop),
            "data.batch_size": data.batch_size,
            "optim.accumulate_steps": config.optim.accumulate_steps
            if config.optim.accumulate_steps > 1
            else None,
        }
        settings = ", ".join(
            f"{name} = {value}" for name, value in named.items() if value is not None
        )
        raise ConfigError(f"{what} with {settings}: {gist(error)} (--debug shows where)") from error


_TOO_LARGE = "it takes more memory than there is; lower data.batch_size or data.crop, or raise optim.accumulate_steps"


def require_memory(compiled: Any) -> None:
    """Raise `ConfigError` where a program for CPUs needs more memory than the machine has; the system would kill the process."""
    if jax.default_backend() != "cpu":
        return
    with contextlib.suppress(AttributeError, OSError, ValueError, NotImplementedError):
        analysis = compiled.memory_analysis()
        needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > available:
            raise ConfigError(
                f"a training step needs {needed / 2**30:.0f} GiB of memory, and this machine has {available / 2**30:.0f}; lower "
                "data.batch_size or data.crop, or raise optim.accumulate_steps"
            )


def claim(run: Path, config: Config, resume: bool) -> None:
    """Make sure that nothing of another run is overwritten, and that a resumed run keeps its recipe."""
    if not resume:
        if run.exists() and any(run.iterdir()):
            raise ConfigError(
                f"{run}: exists and is not empty; go on with --resume, or name another directory with --run"
            )
        return
    if not run.exists() or not any(run.iterdir()):
        return
    before, now = read_run(run), config
    tables = [same_plugins(recipe.anchored().model_dump(mode="json")) for recipe in (before, now)]
    changed = [
        f"{s}.{k}"
        for s, values in tables[1].items()
        for k in values
        if values[k] != tables[0][s][k]
    ]
    changed = sorted(name for name in changed if name not in _FREE)
    if changed == ["train.epochs"]:
        if now.optim.schedule == "constant":
            return
        raise ConfigError(
            f"{run}: train.epochs cannot change from {before.train.epochs} to {now.train.epochs}, because the learning rates of "
            f"optim.schedule = '{now.optim.schedule}' follow from it; leave it as it was, or start another run from the parameters of "
            f"this one: fcn-jax train --init {shlex.quote(str(run))} --run NEW --set train.epochs={now.train.epochs}"
        )
    if changed:
        raise ConfigError(
            f"{run}: --resume keeps the run's recipe, but not here: {', '.join(changed)}; leave that as it was, or start another run "
            f"from the parameters of this one: --init {shlex.quote(str(run))} --run NEW"
        )


_FREE = frozenset(
    {
        "data.root",
        "data.workers",
        "data.damaged",
        "train.log_every_steps",
        "train.samples",
        "train.checkpoint_every_steps",
    }
)
"""Settings that may change when a run goes on: none of them changes what is computed."""


def require_meant(config: Config) -> None:
    """Raise `ConfigError` for settings that say nothing without another one, which was forgotten."""
    init, model = config.init, config.model
    given = [name for name in ("reinit", "drop", "key") if getattr(init, name)]
    if given and init.weights is None:
        names = ", ".join(f"init.{name}" for name in given)
        raise ConfigError(
            f"{names}: given without init.weights, whose names they are about; name the weights with --init"
        )
    for name in ("aux_feature", "aux_head_options"):
        if getattr(model, name) and model.aux_head is None:
            raise ConfigError(
                f"model.{name}: given without model.aux_head; name the auxiliary head, such as model.aux_head=fcn"
            )


def require_steps(config: Config, total: int) -> None:
    """Raise `ConfigError` if a run of `total` steps is too long, or too short for its warm-up."""
    if total >= 2**31:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}: that makes {total} steps; want fewer than {2**31}"
        )
    if config.optim.warmup_steps >= total:
        raise ConfigError(
            f"optim.warmup_steps is {config.optim.warmup_steps}, and the run has {total} steps; want fewer warm-up steps, or more epochs"
        )


def require_same_split(
    run: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any], split: str
) -> None:
    """Raise `ConfigError` if the images that a run trains on are not those that it started with; older runs do not record them."""
    if before is None or dict(before) == dict(now):
        return
    what = (
        f"has {now['images']} images" if now["images"] != before["images"] else "has other images"
    )
    raise ConfigError(
        f"{run}: split '{split}' {what}, and the run was started with {before['images']}; their order and the schedule follow from them. "
        f"Restore them, or start another run from the parameters of this one: --init {shlex.quote(str(run))} --run NEW"
    )
