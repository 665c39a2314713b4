"""The whole recipe of a training run: TOML in, one frozen object, JSON out. Unknown keys and bad values are all named at once."""

from __future__ import annotations

import copy
import importlib.resources
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fcn_jax.errors import ConfigError, did_you_mean
from fcn_jax.text_file import decode_text

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("want [low, high] with low < high")
    return pair


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """What is trained. The number of classes comes from the data set."""

    backbone: str = Field("resnet18", description="registered name, or distribution:name")
    head: str = Field("fcn32s", description="registered name, or distribution:name")
    backbone_options: dict[str, Any] = Field({}, description="the backbone's own options")
    head_options: dict[str, Any] = Field({}, description="the head's own options")
    output_stride: Count | None = Field(None, description="stride of the deepest feature; the backbone's default if not given")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype; parameters are float32 in both")
    aux_head: str | None = Field(None, description="registered head whose loss helps in training, from a shallower feature")
    aux_head_options: dict[str, Any] = Field({}, description="the auxiliary head's own options")
    aux_feature: str | None = Field(
        None, description="deepest feature that the auxiliary head sees; the last but one if not given"
    )


class InitConfig(_Section):
    """Where the parameters start."""

    weights: str | None = Field(
        None, description="a weights file of PyTorch's or .safetensors, or a checkpoint; random if not given"
    )
    reinit: tuple[str, ...] = Field((), description="globs over names: tensors that stay random on purpose")
    drop: tuple[str, ...] = Field((), description="globs over names of the file: tensors that are left out on purpose")
    key: str = Field("", description="which of several state dicts of the file to take, such as model_ema")
    reinit_lr: NotNegative = Field(
        1.0, description="factor on the learning rate of the backbone's kernels that reinit names, unless one of optim.rules does"
    )


class DataConfig(_Section):
    """What it is trained on, and how images are cut and changed on the way."""

    dataset: str = Field("shapes", description="registered name, or distribution:name")
    root: str | None = Field(None, description="folder of the data set (--data)")
    train_split: str = "train"
    val_split: str = "val"
    batch_size: Count = Field(8, description="images per step over all devices")
    crop: tuple[Count, Count] = Field((320, 480), description="height and width of the training crop, in pixels")
    scale: tuple[Positive, Positive] = Field((1.0, 1.0), description="range of the random resize before the crop")
    flip: bool = Field(True, description="flip half of the images left to right")
    brightness: Fraction = Field(0.0, description="largest relative change; likewise the next two")
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    workers: Annotated[int, Field(ge=0)] = Field(0, description="input processes; 0 reads in threads of the training process")
    value_range: Annotated[tuple[float, float], AfterValidator(_rising)] | None = Field(
        None,
        description="stored values of images of more than 8 bits that become 0 and 255; assumed from the largest if not given",
    )
    damaged: Literal["refuse", "skip"] = Field(
        "refuse", description="damaged image and mask files end the run, or are found before it, named and left out"
    )


class Rule(_Section):
    """Learning rate and decay of the parameters that a glob names. The first rule that matches a name decides."""

    match: str = Field(description="glob over names such as head.final_conv.kernel or backbone.*")
    lr: NotNegative = Field(1.0, description="factor on the learning rate; 0 freezes")
    weight_decay: NotNegative = Field(1.0, description="factor on the weight decay")


class OptimConfig(_Section):
    """How it is trained, by steps of the optimiser."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.02, description="peak learning rate")
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.9, description="SGD's")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="AdamW's")
    eps: Positive = Field(1e-8, description="AdamW's")
    weight_decay: NotNegative = Field(1e-4, description="coupled for SGD, decoupled for AdamW, as in PyTorch")
    schedule: Literal["poly", "constant"] = "poly"
    power: Positive = Field(0.9, description="lr (1 - step / steps) ^ power")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear rise to the schedule")
    micro_steps: Count = Field(1, description="parts that a batch is computed in, one after the other; many take less memory")
    remat: bool = Field(
        False,
        description="compute normalisations and activations again in the backward pass; takes less memory, on CPUs with micro_steps alone",
    )
    loop_blocks: bool | None = Field(
        None, description="compile many equal blocks in a row, as of a ResNet-101, as one loop; by default on CPUs alone"
    )
    aux_weight: NotNegative = Field(0.5, description="of the auxiliary head's loss, if the model has one, beside the head's")
    rules: tuple[Rule, ...] = ()


class TrainConfig(_Section):
    """How long, and what is written on the way."""

    epochs: Count = 10
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial parameters, data order, augmentation and dropout")
    log_every: Count = Field(10, description="steps between records in metrics.jsonl")
    eval_every: Count = Field(1, description="epochs between evaluations, each with a checkpoint")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(0, description="steps between further checkpoints; 0 for none")
    samples: Annotated[int, Field(ge=0)] = Field(4, description="validation images drawn at each evaluation")


class Config(_Section):
    """A recipe: everything that decides a training run."""

    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def to_json(self) -> str:
        """The whole recipe, defaults included."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = importlib.resources.files("fcn_jax") / "recipes"
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


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
            raise ConfigError(f"{path}: no such recipe file")
        contents = path.read_bytes()
    else:
        if name not in recipes():
            raise ConfigError(f"no recipe '{name}'. {did_you_mean(name, recipes())} A file's name must end in .toml.")
        contents = (importlib.resources.files("fcn_jax") / "recipes" / f"{name}.toml").read_bytes()
    try:
        return tomllib.loads(decode_text(contents))
    except ValueError as error:
        raise ConfigError(f"{name}: not a TOML file: {error}") from error


def override(table: Mapping[str, Any], settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """A table with `a.b=value` settings put in; a value that is not TOML, such as a bare word, is taken as a string.

    Args:
        table: nested tables; it is not changed.
        settings: such as "optim.lr=0.01"; later ones win.
        option: what the command line calls a setting, for the error.

    Raises:
        ConfigError: a setting without `=`, or one that goes through a value that is no table.
    """
    result: dict[str, Any] = copy.deepcopy(dict(table))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            example = "optim.lr=0.01" if option == "--set" else "width=64"
            raise ConfigError(f"{option} {setting}: write it as KEY=VALUE, such as {option} {example}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{option} {setting}: '{parent}' is a value, not a table")
        node[last] = value
    return result


def parse(table: Mapping[str, Any], source: str = "recipe") -> Config:
    """Validate a table.

    Args:
        table: nested tables, as TOML or JSON gives them.
        source: what to call it in an error.

    Raises:
        ConfigError: every unknown key, with the nearest known one, and every bad value, with what is allowed.
    """
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def _explain(problem: Any) -> str:
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{location} is {problem['input']!r}: {problem['msg'].lower()}"
    section: Any = Config
    for part in problem["loc"][:-1]:
        if isinstance(part, str) and part in section.model_fields:
            kind = section.model_fields[part].annotation
            section = Rule if part == "rules" else kind
    key = str(problem["loc"][-1])
    sections = {name: getattr(field.annotation, "model_fields", {}) for name, field in Config.model_fields.items()}
    elsewhere = [f"'{name}.{key}'" for name, keys in sections.items() if key in keys]
    if elsewhere:
        return f"unknown key '{location}'. Did you mean {' or '.join(elsewhere)}?"
    return f"unknown key '{location}'. {did_you_mean(key, section.model_fields)}"
