"""The plugin contract: the descriptors that a plugin registers.

A descriptor is a frozen dataclass: plain metadata, and the functions that build the plugin. It is
registered as an entry point, as the built-in plugins are:

    [project.entry-points."fcn_jax.backbones"]
    resnet18 = "fcn_jax.models.resnet:RESNET18"

A head sees `FeatureSpec`s and never a backbone's name, so any head works with any backbone whose
features meet its needs. `fcn_jax.testing` compares a descriptor with what it builds.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from fcn_jax.pytorch.rules import Table

API_VERSION = (2, 1)
"""Version (major, minor). Plugins of another major or a newer minor version are refused."""

Task = Literal["multiclass", "binary", "multilabel"]
"""One class per pixel by softmax; class 1 or not by the sigmoid of one logit; or any number of
classes per pixel by sigmoids."""

IGNORE_INDEX = 255
"""The label of pixels that losses and metrics ignore. Datasets map their void labels to it."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a plugin without options."""


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One feature of a backbone, as the descriptor promises it.

    Attributes:
        name: key in the backbone's output.
        channels: size of the last axis, at least 1.
        stride: input pixels per feature pixel, at least 1.
        size: function from the input's height or width in pixels to the feature's, such as
            `ceil_size(stride)` or `floor_size(stride)`. Equal specs need equal functions, so do not
            write a lambda here: two lambdas are never equal.
        offset: number of input pixels by which the feature's first pixel begins above and to the
            left of the image's corner, at least 0. It is 0 if every layer pads by half its kernel.
            More padding adds to it; less padding subtracts from it.
        class_token: whether the second half of the channels is a token of the whole image, such as
            the class token of a vision transformer, repeated at each position. Heads may treat it
            in a way of its own.
    """

    name: str
    channels: int
    stride: int
    size: Callable[[int], int]
    offset: int = 0
    class_token: bool = False

    def covers(self, length: int) -> bool:
        """Whether the feature covers a whole image side of `length` pixels."""
        return self.size(length) * self.stride >= length + self.offset


@functools.cache  # equal strides give the same function, so that equal specs compare equal
def ceil_size(stride: int) -> Callable[[int], int]:
    """`FeatureSpec.size` of layers that pad by half their kernel: ceil(n / stride)."""
    return lambda length: -(-length // stride)


@functools.cache
def floor_size(stride: int) -> Callable[[int], int]:
    """`FeatureSpec.size` of layers that drop incomplete windows: floor(n / stride)."""
    return lambda length: length // stride


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a u8 RGB image becomes the input: `(channels(image) / 255 * scale - mean) / std`.

    Attributes:
        mean: per channel, in the scaled range, in the network's channel order.
        std: per channel, in the scaled range, in the network's channel order, above 0.
        scale: largest value of the range: 1.0 for torchvision's networks, 255.0 for Caffe's.
        channel_order: "rgb", or "bgr" for Caffe's networks.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 1.0
    channel_order: str = "rgb"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Attributes:
        url: address of a `.pth` or `.safetensors` file; `pip://DISTRIBUTION/PATH` is that of a file
            of an installed Python distribution, `hf://OWNER/NAME` that of a repository on the
            Hugging Face Hub with one weights file.
        sha256: leading hexadecimal digits of the file's SHA-256 (torchvision publishes eight); ""
            for an `hf://` address, whose file is not compared.
        summary: the training data and the published score.
        license: of the weights, such as "apache-2.0"; recorded when they are loaded.
        restricted: what the license forbids or requires, such as "no commercial use", if its
            acceptance is needed before the file is fetched (`--accept-license`); otherwise "".
    """

    url: str
    sha256: str
    summary: str = ""
    license: str = ""
    restricted: str = ""

    @classmethod
    def torchvision(cls, file: str, summary: str) -> Weights:
        """A file of torchvision by its name, such as "resnet18-f37072fd" (the end is the hash)."""
        url = f"https://download.pytorch.org/models/{file}.pth"
        return cls(url, file.rpartition("-")[2], summary)

    @classmethod
    def huggingface(
        cls, repository: str, summary: str, *, license: str, restricted: str = ""
    ) -> Weights:
        """The file of a repository "owner/name" on the Hugging Face Hub."""
        return cls(f"hf://{repository}", "", summary, license, restricted)


@dataclasses.dataclass(frozen=True)
class TorchBridge:
    """The link between a module and its PyTorch reference.

    Attributes:
        tables: two-way rule tables by key format, or a single table of the format "torchvision".
            A function of the options may return either. "torchvision" is the default format; "d2l"
            is that of the book. Another format works for a model if backbone and head both have a
            table of it. In "torchvision", the parts of a model get torchvision's prefixes
            (`backbone.`, `classifier.`). In other formats, a table has the keys of the complete
            model.
        reference: function that builds the equal `torch.nn.Module`, with the keys of the format
            "torchvision"; None if there is none. Import torch inside the function. A backbone's
            function takes `options, output_stride`; its module returns the features by name for
            NCHW images, or has a submodule with each feature's name. A head's function takes
            `options, features, num_classes`; its module is called with the selected features in
            order, and with `out_hw` if its `forward` has such an argument. Smaller outputs than
            the image are resized bilinearly, as in torchvision's models; larger ones are cropped
            at the bottom and right.
        weights: published files by name, in the format "torchvision".
        standalone_tables: like `tables`, for files of the backbone alone, if their keys differ from
            those in a complete model. torchvision's MobileNets need it: `features.0.0.weight` in
            the backbone's file is `backbone.0.0.weight` in a segmentation model.
    """

    tables: Table | Mapping[str, Table] | Callable[[Any], Table | Mapping[str, Table]]
    reference: Callable[..., Any] | None = None
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    standalone_tables: (
        Table | Mapping[str, Table] | Callable[[Any], Table | Mapping[str, Table]] | None
    ) = None

    def tables_of(self, options: Any, *, standalone: bool = False) -> Mapping[str, Table]:
        """The tables by key format.

        Args:
            options: the plugin's validated options.
            standalone: the tables for files of the backbone alone.
        """
        tables = self.tables
        if standalone and self.standalone_tables is not None:
            tables = self.standalone_tables
        tables = tables(options) if callable(tables) else tables
        return tables if isinstance(tables, Mapping) else {"torchvision": tables}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Descriptor:
    """The fields that all descriptors share.

    Attributes:
        name: the name of the entry point.
        summary: one line for `fcn-jax plugins list`.
        reference: the paper or file that the plugin follows.
        api_version: version of the contract that the plugin was written for.
    """

    name: str
    summary: str
    reference: str = ""
    api_version: tuple[int, int] = API_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone(Descriptor):
    """A network that turns images into features.

    Attributes:
        features: function `(options, output_stride)` that returns the feature specs, from shallow
            to deep. It builds no arrays, and equal arguments give equal specs.
        build: `(options, *, output_stride, dtype, param_dtype, rngs)` -> module with
            `module(x: f[N,H,W,3]) -> {name: f[N,h,w,C]}`; usually the module's class.
        options: frozen dataclass that validates the recipe's `[model.backbone_options]`.
        output_strides: the strides of the deepest feature that it can be built with. The first is
            the default.
        preprocess: how its input is made from a u8 RGB image.
        torch: link to the PyTorch reference; None if there is none.
    """

    features: Callable[[Any, int], tuple[FeatureSpec, ...]]
    build: Callable[..., nnx.Module]
    options: type = NoOptions
    output_strides: tuple[int, ...] = (32,)
    preprocess: Preprocess = Preprocess()
    torch: TorchBridge | None = None


def deepest(options: Any, features: Sequence[FeatureSpec]) -> tuple[str, ...]:
    """The default of `Head.select`: the deepest feature alone."""
    return (features[-1].name,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head(Descriptor):
    """A network that turns features into logits of the image's size.

    Attributes:
        build: `(options, features, *, num_classes, dtype, param_dtype, rngs)` -> module with
            `module(features, *, out_hw) -> f[N, out_hw[0], out_hw[1], num_classes]`; usually the
            module's class. `features` are the specs of the selected features, from shallow to
            deep; `out_hw` is the size of the backbone's input.
        select: function `(options, specs)` that returns the names of the features that the head
            takes. It raises `ConfigError` if the backbone does not offer them. The default takes
            the deepest feature.
        handles_offset: whether the head crops features that begin before the image's corner
            (`FeatureSpec.offset`). Other heads are refused on such features, since logits that are
            resized to the image's size would be misplaced.
        options: frozen dataclass that validates the recipe's `[model.head_options]`.
        torch: link to the PyTorch reference; None if there is none.
    """

    build: Callable[..., nnx.Module]
    select: Callable[[Any, Sequence[FeatureSpec]], tuple[str, ...]] = deepest
    handles_offset: bool = False
    options: type = NoOptions
    torch: TorchBridge | None = None


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A model as the names and options of its parts.

    Attributes:
        backbone: registered name, or `distribution:name`.
        head: registered name, or `distribution:name`; None for a backbone alone.
        num_classes: size of the logits' last axis, at least 1.
        backbone_options: the backbone's own options.
        head_options: the head's own options.
        output_stride: stride of the backbone's deepest feature; None for the backbone's default.
        dtype: compute dtype. Parameters and statistics are float32 in both.
        aux_head: registered head whose loss helps in training, from a shallower feature; None for
            none.
        aux_head_options: the auxiliary head's own options.
        aux_feature: the deepest feature that the auxiliary head sees; None for the last but one.
        task: how logits become labels. With "multiclass", the class with the largest logit. With
            "binary", for datasets of two classes, the model has one logit, whose sigmoid is the
            probability of class 1. "multilabel" is one such logit for each class.
        in_channels: channels of the images. With another number than 3, the backbone's first
            convolution gets as many; see docs/data.md.
        mean: mean of each channel, in units of the images' stored values (0 to 255 for 8 bits);
            None for the backbone's, in images scaled to 8 bits. With mean and std, images keep
            their stored values, also those of more than 8 bits. In recipes, "auto" measures both
            over all training images.
        std: standard deviation of each channel, above 0, in the same units.
    """

    backbone: str = "resnet18"
    head: str | None = "fcn32s"
    num_classes: int = 21
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output_stride: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    aux_head: str | None = None
    aux_head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aux_feature: str | None = None
    task: Task = "multiclass"
    in_channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Make tuples of lists, as JSON gives them."""
        for name in ("mean", "std"):
            if (values := getattr(self, name)) is not None and not isinstance(values, str):
                object.__setattr__(self, name, tuple(values))

    @property
    def num_labels(self) -> int:
        """Number of classes that masks of the model's task have."""
        return 2 if self.task == "binary" else self.num_classes

    def __hash__(self) -> int:
        """Hash by value, since jit hashes the spec in a module's graph, and dicts have no hash."""
        return hash(json.dumps(dataclasses.asdict(self), sort_keys=True, default=str))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Descriptor):
    """A complete model by name, with the weights that are published for it.

    Attributes:
        spec: the parts. A part of a distribution that may be missing needs its full name,
            `distribution:name`, so that the error names the distribution.
        reference_model: function `(*, num_classes, aux)` that builds the PyTorch model as one
            `torch.nn.Module`, with the keys of `key_format`; `aux` says whether it has the
            auxiliary head. It returns {"out": logits, "aux": logits} at the image's size, as
            torchvision's models do. Import torch inside the function. None if there is no model
            other than the references of the parts.
        key_format: key format of `reference_model`; both parts need a table of it.
        weights: published files by name, in any key format.
    """

    spec: ModelSpec
    reference_model: Callable[..., Any] | None = None
    key_format: str = "torchvision"
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a dataset.

    Attributes:
        names: one per class; the index is the label.
        palette: one u8 RGB color per class.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


class Record(NamedTuple):
    """One image of a dataset, still encoded: `image` and `mask` are files or their contents."""

    id: str
    image: Path | bytes
    mask: Path | bytes


class Example(NamedTuple):
    """A decoded image and its mask u8[H,W]: 0 to K-1 or `IGNORE_INDEX`.

    For the task "multilabel", the mask is u8[H,W,K] of 0, 1 and `IGNORE_INDEX`. The image is
    u8[H,W,3] RGB; by settings of the model, it has other channels, or is f32[H,W,C].
    """

    id: str
    image: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset(Descriptor):
    """A dataset.

    Attributes:
        open: function `(root, split)` that returns an `fcn_jax.api.Source`. `root` is `--data`, or
            None if it is not given. It raises `DataError` that names the missing folder or file,
            or the splits that exist.
        variant: function that returns the dataset of the name `NAME:REST` for REST, for a dataset
            that stands for many; None for other datasets. It raises `ConfigError`.
        open_with_classes: as `open`, with a third argument, the lines of a class list
            (`data.classes`), which replaces the dataset's own; None if its classes are fixed.
        classes: its classes if they do not depend on its files; None for others. `fcn-jax plan`
            needs no files then.
        find_classes: function `(root)` that returns the lines of a class list, made from the masks,
            and a note; `(None, "")` if the dataset has a list of its own. None if
            `open_with_classes` is.
    """

    open: Callable[[Path | None, str], Any]
    variant: Callable[[str], Dataset] | None = None
    open_with_classes: Callable[[Path | None, str, Sequence[str]], Any] | None = None
    find_classes: Callable[[Path | None], tuple[tuple[str, ...] | None, str]] | None = None
    classes: Classes | None = None


@dataclasses.dataclass(frozen=True)
class LossContext:
    """What a loss is built for.

    Attributes:
        num_classes: number of classes of the labels; 2 for "binary", whose logits have one channel.
        task: what logits and labels mean.
        class_pixels: i64[K], pixels of each class in the training split; None if not known.
        image_pixels: i64[K], labeled pixels of the training images in which each class occurs; None
            if not known.
    """

    num_classes: int
    task: Task = "multiclass"
    class_pixels: np.ndarray | None = None
    image_pixels: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class MeanLoss:
    """A loss that is a sum over the batch, divided by a number that follows from the labels alone.

    Such a loss can be computed in parts (`optim.accumulate_steps`); others need the whole batch.

    Attributes:
        total: `(logits, labels) -> f32[]`, the sum.
        divisor: `(labels) -> number[]`, such as the number of pixels that are not ignored. Where it
            is 0, the loss is 0.
    """

    total: Callable[..., Any]
    divisor: Callable[..., Any]


def keep_options(options: Any, context: LossContext) -> Any:
    """The default of `Loss.complete`: the options as they are."""
    return options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Descriptor):
    """A loss of logits and labels.

    Attributes:
        build: `(options, context)` that returns a `MeanLoss`, or, for a loss of the whole batch, a
            function `(logits, labels) -> f32[]`. Logits are f32[N,H,W,K], with one channel for
            "binary"; labels are i32[N,H,W] from 0 to K-1 or `IGNORE_INDEX`, or, for "multilabel",
            i32[N,H,W,K] of 0, 1 or `IGNORE_INDEX`. Ignored pixels contribute neither to the value
            nor to the gradient, and the loss is 0 if all are ignored. It is traced by `jax.jit`,
            with the batch of all devices, so reductions are over all of them.
        options: frozen dataclass that validates the recipe's `[loss.NAME]`, except for `weight`.
        tasks: the tasks that it supports.
        complete: function `(options, context)` that returns options in which everything that is
            computed from the dataset, such as class weights, is filled in. They are recorded, and a
            resumed run gets them again. It raises `ConfigError` if an option does not fit.
        any_layout: whether the functions take the axis of the classes as a third argument. Then
            they may also get logits f[N,...] of any float dtype with the classes along that axis,
            and labels i32[N,...] without it: some heads compute pixels in another order.
    """

    build: Callable[[Any, LossContext], MeanLoss | Callable[..., Any]]
    options: type = NoOptions
    tasks: tuple[Task, ...] = ("multiclass",)
    complete: Callable[[Any, LossContext], Any] = keep_options
    any_layout: bool = False
