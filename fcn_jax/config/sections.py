"""The sections of a recipe: settings with their types, defaults and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    WrapValidator,
    field_serializer,
)

from fcn_jax.config.augment import AugmentConfig
from fcn_jax.config.optim import OptimConfig
from fcn_jax.config.types import (
    AUTO,
    NUMBER,
    AnyPath,
    AxisSize,
    BelowOne,
    Count,
    CountOrZero,
    Flag,
    Fraction,
    NotNegative,
    Number,
    OrAuto,
    Positive,
    Section,
    Seed,
    short,
)
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.runtime import json_text


def _labels_or_names(table: Any) -> Any:
    for old, new in table.items() if isinstance(table, Mapping) else ():
        if isinstance(new, bool) or not isinstance(new, int | str):
            raise ValueError(f"{old} = {short(new)}: expected a label or a name")
    return table


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] >= pair[1]:
        raise ValueError("expected [low, high] with low < high")
    return pair


class InitConfig(Section):
    """The initial values of the parameters."""

    weights: AnyPath | None = None
    """Initial weights: a file (.pth, .safetensors), the name of published weights, or a run or
    checkpoint. Random if not set. Flag: --weights.
    """
    reinit: tuple[str, ...] = ()
    """Globs over names of tensors that keep their random values although the weights may have them.
    Flag: --reinit.
    """
    drop: tuple[str, ...] = ()
    """Globs over names of tensors in the weights that are ignored. Flag: --drop."""
    key: str = ""
    """Which state dict to load if the file holds several, such as model_ema. Flag: --key."""
    reinit_lr_mult: NotNegative = 1.0
    """Learning rate multiplier of the backbone kernels that init.reinit names. optim.param_groups
    take precedence.
    """


class DataConfig(Section):
    """The dataset, and how training images are cropped and augmented."""

    dataset: str = "shapes"
    """Registered dataset: NAME or DISTRIBUTION:NAME."""
    root: AnyPath | None = None
    """Folder of the dataset. Flag: --data."""
    train_split: str = "train"
    """Split to train on."""
    val_split: str = "val"
    """Split to evaluate on."""
    classes: Annotated[tuple[str, ...] | None, OrAuto()] = None
    """Classes of the dataset `folder`, one string for each line of classes.txt: "name", "name 255"
    or "name R G B". If not set, those of the folder's list. "auto" takes the list, and without one
    the values that the masks hold.
    """
    batch_size: Annotated[Count, OrAuto()] = 8
    """Images per training step, over all devices."""
    crop_size: Annotated[tuple[Count, Count], OrAuto()] = (320, 480)
    """Height and width of the training crop, in pixels."""
    drop_small: Flag = False
    """Leave out training images that are smaller than the crop, instead of padding them."""
    void_as_background: Flag = False
    """Train on ignored pixels as pixels of class 0. Scores do not count them in any case, except
    those of the protocol d2l.
    """
    scale_range: Annotated[tuple[Positive, Positive], OrAuto()] = (1.0, 1.0)
    """Range of the random resize factor, which is applied before the crop."""
    flip: Flag = True
    """Flip each image left to right with probability 1/2."""
    brightness: Fraction = 0.0
    """Largest relative change of the brightness."""
    contrast: Fraction = 0.0
    """Largest relative change of the contrast."""
    saturation: Fraction = 0.0
    """Largest relative change of the saturation."""
    hue: Annotated[float, Field(ge=0.0, le=0.5), NUMBER] = 0.0
    """Largest change of the hue, as a part of the color circle."""
    num_workers: CountOrZero = 0
    """Processes that read and augment images. With 0, threads of the training process do it."""
    value_range: Annotated[tuple[Number, Number], AfterValidator(_rising)] | None = None
    """Stored values of images with more than 8 bits that become 0 and 255. If not set, they follow
    from the largest stored value.
    """
    label_map: Annotated[dict[str, int | str], BeforeValidator(_labels_or_names)] = Field(
        default_factory=dict
    )
    """Other classes, as a table {old = new}. Old is a class's name or a stored value of the masks;
    new is a class's name or label, the name of a new class, or "ignore". See docs/data.md.
    """
    merge_classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Classes that become one, as a table {name = [names]}, such as {vehicle = ["car", "bus"]}."""
    ignore_classes: tuple[str, ...] = ()
    """Names of classes whose pixels count neither in the loss nor in a score."""
    reduce_zero_label: Flag = False
    """Ignore stored 0, and begin the list of classes at stored 1, as ADE20K's masks need it."""
    damaged: Literal["refuse", "skip"] = "refuse"
    """How to treat damaged image and mask files: refuse ends the run; skip finds them before the
    run, lists them and leaves them out.
    """


class LossConfig(Section):
    """A loss, by its registered name. All keys except weight are the loss's own options."""

    model_config = ConfigDict(extra="allow")

    weight: NotNegative = 1.0
    """Factor of the loss in the sum."""


def _some_losses(losses: dict[str, LossConfig]) -> dict[str, LossConfig]:
    if not losses:
        raise ValueError("expected at least one loss, such as [loss.cross_entropy]")
    if all(loss.weight == 0 for loss in losses.values()):
        raise ValueError("the weights of all losses are 0; expected at least one above 0")
    return losses


class EarlyStoppingConfig(Section):
    """End the run when a validation score no longer rises."""

    patience: Count = 5
    """Evaluations in a row without a rise after which the run ends."""
    metric: Literal["miou", "pixel_accuracy", "class_accuracy", "fwiou"] = "miou"
    """The score."""
    min_delta: NotNegative = 0.0
    """A smaller rise above the best score does not count."""


class TrainConfig(Section):
    """The length of the run, and what it writes."""

    epochs: Annotated[Count, OrAuto()] = 10
    """Passes over the training split."""
    seed: Seed = 0
    """Seed of initial values, data order, augmentation and dropout."""
    log_every_steps: Count = 10
    """Steps between records in metrics.jsonl."""
    eval_every_epochs: Annotated[Count, OrAuto()] = 1
    """Epochs between evaluations; a checkpoint is saved before each."""
    checkpoint_every_steps: CountOrZero = 0
    """Steps between additional checkpoints; 0 saves none."""
    checkpoint_dir: AnyPath | None = None
    """Folder of this run's checkpoints and of copies of its records: a local one, or
    gs://BUCKET/FOLDER. If not set, the run directory.
    """
    keep_latest: Count = 2
    """Number of the last checkpoints that are kept."""
    keep_best: CountOrZero = 1
    """Number of checkpoints that are kept because their mIoU is the highest."""
    keep_every_steps: CountOrZero = 0
    """Keep the first checkpoint at or after each multiple of this number of steps; 0 keeps none."""
    num_visualizations: CountOrZero = 4
    """Validation images that are drawn at each evaluation, into samples/."""
    early_stopping: EarlyStoppingConfig | None = None
    """When to end the run early. Never if not set."""


class MeshConfig(Section):
    """How training is split over devices, whose number is the product of the three sizes."""

    data: AxisSize = -1
    """Parts of a batch whose devices each have a copy of the state. -1 takes the remaining devices.
    See docs/devices.md.
    """
    fsdp: AxisSize = 1
    """Parts of a batch whose devices divide the state: each keeps a part of every large parameter,
    of its optimizer state and of its average.
    """
    spatial: AxisSize = 1
    """Parts of an image, as bands of rows; for images too large for one device."""
    fsdp_min_mib: NotNegative = 4.0
    """Arrays of more MiB are split over fsdp."""


class EvalConfig(Section):
    """How a split is scored, in training and by `fcn-jax eval`."""

    protocol: Literal["native", "resize", "multiscale", "sliding", "d2l"] | None = None
    """Evaluation protocol. If not set, the first of these that has all settings below that are set:
    native without any.
    """
    size: tuple[Count, Count] | None = None
    """Of resize: height and width that the network sees, in pixels."""
    labels: Literal["native", "resized"] | None = None
    """Of resize: score at the images' own sizes (native, the default) or at the size that the
    network sees.
    """
    window: tuple[Count, Count] | None = None
    """Of sliding: height and width of a window, in pixels. If not set, data.crop_size."""
    overlap: BelowOne | None = None
    """Of sliding: share of a window that its neighbor covers. If not set, 0.5."""
    blend: Literal["gaussian", "uniform"] | None = None
    """Of sliding: weights of a window's pixels. If not set, gaussian."""
    average: Literal["probabilities", "logits"] | None = None
    """Of sliding: what is averaged where windows overlap. If not set, probabilities."""
    scales: Annotated[tuple[Positive, ...] | None, OrAuto()] = None
    """Of multiscale: factors of the image's sides. If not set, 0.5 to 1.75 in steps of 0.25."""
    flip: Flag | None = None
    """Of multiscale and sliding: also run mirrored images. If not set, multiscale does."""
    crop: tuple[Count, Count] | None = None
    """Of d2l: height and width of the random crop, in pixels. If not set, 320x480."""
    drop_last: Count | None = None
    """Of d2l: leave out the images that do not fill a batch of this size. If not set, 32."""
    seed: Seed | None = None
    """Of d2l: seed of the random crops. If not set, 0."""
    also: tuple[str, ...] = ()
    """Other protocols, with their default settings, by which training scores the validation split
    too, such as native.
    """
    metrics: tuple[str, ...] = ()
    """Metrics in addition to those of the confusion matrix: boundary_iou, ece."""
    batch_size: Count | None = None
    """Images of one size, or windows, that a device computes together. If not set, 8 windows on
    GPUs and TPUs, otherwise 1.
    """


class WandbConfig(Section):
    """Weights & Biases."""

    project: str
    """Project."""
    entity: str | None = None
    """User or team. If not set, your default one."""
    name: str | None = None
    """Name of the run. If not set, that of the run directory."""
    group: str | None = None
    """Group of runs."""
    tags: tuple[str, ...] = ()
    """Tags."""


class LogConfig(Section):
    """Where training writes its scalars and pictures, in addition to the run directory."""

    tensorboard: Flag = False
    """Write event files for TensorBoard, to tensorboard/ in the run directory. Needs pip install
    'fcn-jax[tensorboard]'.
    """
    histograms_every_steps: CountOrZero = 0
    """Steps between histograms of all parameters; 0 for none."""
    wandb: WandbConfig | None = None
    """Send to Weights & Biases, such as { project = "streets" }. Needs pip install wandb."""


def _without_num_classes(table: Any) -> Any:
    if isinstance(table, Mapping) and "num_classes" in table:
        raise ValueError("leave out num_classes, which comes from the dataset")
    return table


def _maybe_auto(table: Any, validate: Any) -> ModelSpec:
    """Read `mean` and `std` that are "auto", which `fcn_jax.train.auto` replaces by values."""
    if not isinstance(table, Mapping):
        return validate(table)
    undecided = {key: AUTO for key in AUTO_MODEL if table.get(key) == AUTO}
    model = validate({key: value for key, value in table.items() if key not in undecided})
    return replace(model, **undecided)


AUTO_MODEL = ("mean", "std")
"""Keys of the section model that may be "auto". Their static type is that of the value."""


class Config(Section):
    """All settings of a training run."""

    model: Annotated[
        ModelSpec, WrapValidator(_maybe_auto), BeforeValidator(_without_num_classes)
    ] = ModelSpec()
    init: InitConfig = InitConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: Annotated[dict[str, LossConfig], AfterValidator(_some_losses)] = Field(
        default={"cross_entropy": LossConfig()}
    )
    """The losses, by their registered names; their weighted sum is minimized. A recipe that names
    any replaces the default, cross entropy alone.
    """
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()

    @field_serializer("model")
    def _model_table(self, model: ModelSpec) -> dict[str, Any]:
        return {key: value for key, value in asdict(model).items() if key != "num_classes"}

    def losses(self) -> dict[str, dict[str, Any]]:
        """Return weight and options of each loss by name."""
        return {name: loss.model_dump() for name, loss in self.loss.items()}

    def to_json(self) -> str:
        """Return all settings, defaults included, as JSON."""
        return json_text.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    def with_absolute_paths(self) -> Config:
        """Return the same settings with absolute paths, valid in any working directory."""
        data, init, train = self.data, self.init, self.train
        if data.root is not None:
            data = data.model_copy(update={"root": str(Path(data.root).absolute())})
        if init.weights is not None and Path(init.weights).exists():
            init = init.model_copy(update={"weights": str(Path(init.weights).absolute())})
        if train.checkpoint_dir is not None and "://" not in train.checkpoint_dir:
            folder = str(Path(train.checkpoint_dir).absolute())
            train = train.model_copy(update={"checkpoint_dir": folder})
        return self.model_copy(update={"data": data, "init": init, "train": train})
