"""The whole recipe of a training run: TOML in, one frozen object, JSON out. Unknown keys and bad values are all named at once."""

from __future__ import annotations

import contextlib
import copy
import importlib.resources
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
)

from fcn_jax.errors import CheckpointError, ConfigError, PluginError, did_you_mean, listing
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.runtime import json_text
from fcn_jax.runtime.text_file import decode_text, read_text


def _number(value: Any) -> Any:
    """Pydantic would read true as 1, and "8" as 8."""
    if isinstance(value, bool | str):
        raise ValueError("want a number, without quotes")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("want the path of a file or folder, or leave it out")
    return value


Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0.0, le=1.0)]
Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0.0)]
Beta = Annotated[float, BeforeValidator(_number), Field(ge=0.0, lt=1.0)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0.0)]
Whole = Annotated[int, BeforeValidator(_number)]
Count = Annotated[Whole, Field(ge=1)]
CountOrNone = Annotated[Whole, Field(ge=0)]
Flag = Annotated[bool, Field(strict=True)]
AnyPath = Annotated[str, BeforeValidator(_path)]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("want [low, high] with low < high")
    return pair


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InitConfig(_Section):
    """Where the parameters start."""

    weights: AnyPath | None = Field(
        None,
        description="a weights file of PyTorch's or .safetensors, or a checkpoint; random if not given",
    )
    reinit: tuple[str, ...] = Field(
        (), description="globs over names: tensors that stay random on purpose"
    )
    drop: tuple[str, ...] = Field(
        (), description="globs over names of the file: tensors that are left out on purpose"
    )
    key: str = Field(
        "", description="which of several state dicts of the file to take, such as model_ema"
    )
    reinit_lr_mult: NotNegative = Field(
        1.0,
        description="factor on the learning rate of the backbone's kernels that reinit names, unless one of optim.rules does",
    )


class DataConfig(_Section):
    """What it is trained on, and how images are cut and changed on the way."""

    dataset: str = Field("shapes", description="registered name, or distribution:name")
    root: AnyPath | None = Field(None, description="folder of the dataset (--data)")
    train_split: str = "train"
    val_split: str = "val"
    batch_size: Count = Field(8, description="images per step over all devices")
    crop: tuple[Count, Count] = Field(
        (320, 480), description="height and width of the training crop, in pixels"
    )
    scale: tuple[Positive, Positive] = Field(
        (1.0, 1.0), description="range of the random resize before the crop"
    )
    flip: Flag = Field(True, description="flip half of the images left to right")
    brightness: Fraction = Field(0.0, description="largest relative change; likewise the next two")
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    workers: CountOrNone = Field(
        0, description="input processes; 0 reads in threads of the training process"
    )
    value_range: Annotated[tuple[Number, Number], AfterValidator(_rising)] | None = Field(
        None,
        description="stored values of images of more than 8 bits that become 0 and 255; assumed from the largest if not given",
    )
    damaged: Literal["refuse", "skip"] = Field(
        "refuse",
        description="damaged image and mask files end the run, or are found before it, named and left out",
    )


class Rule(_Section):
    """Learning rate and decay of the parameters that a glob names. The first rule that matches a name decides."""

    match: str = Field(description="glob over names such as head.final_conv.kernel or backbone.*")
    lr: NotNegative = Field(1.0, description="factor on the learning rate; 0 freezes")
    weight_decay: NotNegative = Field(1.0, description="factor on the weight decay")


class OptimConfig(_Section):
    """How it is trained, by steps of the optimizer."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.02, description="peak learning rate")
    momentum: Annotated[float, BeforeValidator(_number), Field(ge=0.0, lt=1.0)] = Field(
        0.9, description="SGD's"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's")
    eps: Positive = Field(1e-8, description="AdamW's")
    weight_decay: NotNegative = Field(
        1e-4, description="coupled for SGD, decoupled for AdamW, as in PyTorch"
    )
    schedule: Literal["poly", "constant"] = "poly"
    power: Positive = Field(0.9, description="lr (1 - step / steps) ^ power")
    warmup_steps: Annotated[Whole, Field(ge=0, lt=2**31)] = Field(
        0, description="steps of linear rise to the schedule"
    )
    accumulate_steps: Count = Field(
        1,
        description="parts that a batch is computed in, one after the other; many take less memory",
    )
    remat: Flag = Field(
        False,
        description="compute normalizations and activations again in the backward pass; takes less memory, on CPUs with accumulate_steps alone",
    )
    loop_blocks: Flag | None = Field(
        None,
        description="compile many equal blocks in a row, as of a ResNet-101, as one loop; by default on CPUs alone",
    )
    aux_weight: NotNegative = Field(
        0.5, description="of the auxiliary head's loss, if the model has one, beside the head's"
    )
    rules: tuple[Rule, ...] = ()


class TrainConfig(_Section):
    """How long, and what is written on the way."""

    epochs: Count = 10
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = Field(
        0, description="of initial parameters, data order, augmentation and dropout"
    )
    log_every_steps: Count = Field(10, description="steps between records in metrics.jsonl")
    eval_every_epochs: Count = Field(
        1, description="epochs between evaluations, each with a checkpoint"
    )
    checkpoint_every_steps: CountOrNone = Field(
        0, description="steps between further checkpoints; 0 for none"
    )
    samples: CountOrNone = Field(4, description="validation images drawn at each evaluation")


def _without_num_classes(table: Any) -> Any:
    if isinstance(table, Mapping) and "num_classes" in table:
        raise ValueError("leave out num_classes, which comes from the dataset")
    return table


class Config(_Section):
    """A recipe: everything that decides a training run."""

    model: Annotated[ModelSpec, BeforeValidator(_without_num_classes)] = ModelSpec()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_serializer("model")
    def _model_table(self, model: ModelSpec) -> dict[str, Any]:
        return {key: value for key, value in asdict(model).items() if key != "num_classes"}

    def to_json(self) -> str:
        """The whole recipe, defaults included."""
        return json_text.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def anchored(self) -> Config:
        """The same recipe with absolute paths, so that a run can be read from any folder."""
        data, init = self.data, self.init
        if data.root is not None:
            data = data.model_copy(update={"root": str(Path(data.root).absolute())})
        if init.weights is not None and Path(init.weights).exists():
            init = init.model_copy(update={"weights": str(Path(init.weights).absolute())})
        return self.model_copy(update={"data": data, "init": init})


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = importlib.resources.files("fcn_jax") / "recipes"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Read a recipe's table.

    Args:
        name: a shipped recipe's name, or a path that ends in `.toml`.

    Raises:
        ConfigError: no such recipe or file, or it is not TOML.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(
                f"{path}: {'a folder, not a recipe file' if path.is_dir() else 'no such recipe file'}"
            )
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
        own = False
    else:
        if name not in recipes():
            raise ConfigError(
                f"no recipe '{name}'. {did_you_mean(name, recipes())} A file's name must end in .toml."
            )
        contents = (importlib.resources.files("fcn_jax") / "recipes" / f"{name}.toml").read_bytes()
        own = True
    try:
        table = tomllib.loads(decode_text(contents))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not a TOML file: {error}") from error
    return _with_own_names(table) if own else table


def override(
    table: Mapping[str, Any], settings: Sequence[str], option: str = "--set"
) -> dict[str, Any]:
    """A table with `a.b=value` settings put in; a value that is not TOML, such as a bare word, is taken as a string.

    Args:
        table: nested tables; it is not changed.
        settings: such as "optim.lr=0.01"; later ones win.
        option: what the command line calls a setting, for the error.

    Raises:
        ConfigError: a setting without `=`, one that goes through a value that is no table, or a
            list, table or string without its end.
    """
    result: dict[str, Any] = copy.deepcopy(dict(table))
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = [part.strip() for part in key.split(".")]
        if not equals or not all(parts):
            example = "optim.lr=0.01" if option == "--set" else "width=64"
            raise ConfigError(
                f"{option} {setting}: write it as KEY=VALUE, such as {option} {example}"
            )
        *parents, last = parts
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{option} {setting}: '{parent}' is a value, not a table")
        node[last] = _value(f"{option} {setting}", text.strip())
    return result


def _value(setting: str, text: str) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
        # A comment or a second line would be cut off without a word.
        if repr(tomllib.loads(f"value = [{text}]")["value"]) == repr([value]):
            return value
    except (ValueError, RecursionError) as error:
        if text[:1] in ("[", "{", '"', "'"):
            raise ConfigError(
                f"{setting}: the value is not TOML ({error}); quote it for the shell, as in 'data.crop=[64,64]'"
            ) from error
    return text


def parse(table: Mapping[str, Any], source: str = "recipe") -> Config:
    """Validate a table.

    Args:
        table: nested tables, as TOML or JSON gives them.
        source: what to call it in an error.

    Raises:
        ConfigError: every unknown key, with the nearest known one, and every bad value, with what
            is allowed.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{source}: is {_short(table)}; want a table of settings")
    try:
        table = _with_own_names(table, only_missing=True)
        if odd := _not_finite(table, ""):
            raise ConfigError(
                f"{source}: {listing(f'{key} is {value}' for key, value in odd)}: want a finite number"
            )
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(
            f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{source}: tables are nested too deeply") from error


def _with_own_names(table: Mapping[str, Any], *, only_missing: bool = False) -> dict[str, Any]:
    """A table of this distribution's own words: its plugins' names mean its own plugins, whoever else registers the same names.

    Args:
        table: a recipe.
        only_missing: change nothing but the defaults of names that the table lacks.
    """
    result = dict(table)
    for section, key, kind in _PLUGIN_NAMES:
        values = result.get(section, {})
        if not isinstance(values, Mapping) or (only_missing and key in values):
            continue
        name = values.get(key, getattr(getattr(Config(), section), key))
        if (
            isinstance(name, str)
            and (own := registry.default().own_name(kind, name, registry.OWN_DISTRIBUTION)) != name
        ):
            result[section] = {**values, key: own}
    return result


_PLUGIN_NAMES = (
    ("model", "backbone", "backbones"),
    ("model", "head", "heads"),
    ("model", "aux_head", "heads"),
    ("data", "dataset", "datasets"),
)


def same_plugins(table: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's table, with plugins by distribution and name, to compare it with another; names that are unknown here stay."""
    result = {section: dict(values) for section, values in table.items()}
    for section, key, kind in _PLUGIN_NAMES:
        name = result[section][key]
        if name is not None:
            with contextlib.suppress(ConfigError, PluginError):
                result[section][key] = registry.default().find(kind, name).full_name
    return result


def _not_finite(value: Any, key: str) -> list[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        return [(key, value)]
    items: Any = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    return [
        found
        for name, item in items
        for found in _not_finite(item, f"{key}.{name}" if key else str(name))
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _such_as(location: tuple[Any, ...]) -> str:
    default: Any = Config()
    for part in location:
        default = getattr(default, str(part), None)
    return f", such as {list(default)}" if default else ""


def _explain(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{location} is missing"
    if problem["type"] in ("model_type", "dataclass_type", "mapping_type", "dict_type"):
        return f"{location} is {_short(problem['input'])}: want a table, such as [{location}]"
    if problem["type"] == "tuple_type":
        return f"{location} is {_short(problem['input'])}: want a list in brackets{_such_as(problem['loc'])}"
    if problem["type"] == "value_error":
        return f"{location} is {_short(problem['input'])}: {problem['ctx']['error']}"
    if problem["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{location} is {_short(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    section: Any = Config
    for part in problem["loc"][:-1]:
        if isinstance(part, str) and part in _keys(section):
            section = Rule if part == "rules" else section.model_fields[part].annotation
    key = str(problem["loc"][-1])
    sections = {name: _keys(field.annotation) for name, field in Config.model_fields.items()}
    elsewhere = [f"'{name}.{key}'" for name, keys in sections.items() if key in keys]
    if elsewhere:
        return f"unknown key '{location}'. Did you mean {' or '.join(elsewhere)}?"
    return f"unknown key '{location}'. {did_you_mean(key, _keys(section))}"


def _keys(section: Any) -> list[str]:
    if section is ModelSpec:
        return [field.name for field in fields(ModelSpec) if field.name != "num_classes"]
    return list(getattr(section, "model_fields", ()))


def read_run(run: Path) -> Config:
    """The recipe that a run directory records; names of plugins mean those that the run was made with.

    Raises:
        CheckpointError: it records none, or none that this version reads.
    """
    path = run / "config.json"
    try:
        table = json.loads(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(
            f"{run}: no run to resume or evaluate here (it has no config.json)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise CheckpointError(f"{path}: the run's recipe cannot be read ({reason})") from error
    if isinstance(table, dict):
        _name_as_recorded(table, run)
    try:
        return parse(table, str(path))
    except ConfigError as error:
        raise CheckpointError(
            f"{error} (this fcn-jax did not write it: another version?)"
        ) from error


def _name_as_recorded(table: dict[str, Any], run: Path) -> None:
    try:
        recorded = json.loads(read_text(run / "versions.json"))
        owners = {
            ("model", part, kind): recorded["plugins"][part]["distribution"]
            for part, kind in (("backbone", "backbones"), ("head", "heads"), ("aux_head", "heads"))
            if part in recorded["plugins"]
        }
        owners["data", "dataset", "datasets"] = recorded.get("dataset", {}).get(
            "distribution", registry.OWN_DISTRIBUTION
        )
        for (section, key, kind), owner in owners.items():
            table[section][key] = registry.default().own_name(kind, table[section][key], owner)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # older runs have less there, and a name that is not ambiguous needs no record
