"""The plugin contract: the descriptors that a backbone, head, whole model or dataset registers.

A descriptor is plain, frozen metadata and the functions that build the thing. It is found through
an entry point:

    [project.entry-points."fcn_jax.backbones"]
    resnet18 = "fcn_jax.models.resnet:RESNET18"

Built-ins are registered in the same way. A head sees `FeatureSpec`s, never a backbone's name, so
that any backbone works with any head whose needs it meets. `fcn_jax.testing` holds a
descriptor against what it really builds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fcn_jax.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from fcn_jax.pytorch.rules import Table

API_VERSION = (1, 0)
"""Version (major, minor) of this contract. A plugin of another major, or a newer minor, is refused."""

IGNORE_INDEX = 255
"""The label of pixels that neither the loss nor a metric counts. Every dataset maps its void labels to it."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a plugin that has none."""


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What a backbone promises of one of its features.

    Attributes:
        name: key in the backbone's output.
        channels: size of the last axis.
        stride: input pixels per feature pixel, which is the side of the cell of the image that it
            stands for.
        size: input height or width in pixels -> the feature's; `ceil_size(stride)` for ResNets,
            rounding down for VGG. The cells cover the image, or, where the backbone rounds down,
            one that is larger by less than twice the stride: the segmenter pads to it.
        offset: by how many input pixels the first cell begins above and to the left of the image's
            corner, 0 or more. It is 0 where each layer pads by half its kernel; padding beyond that
            adds to it, and padding short of that takes off. A head crops what lies before the
            image, or refuses such features in `select` (`require_no_offset`).
    """

    name: str
    channels: int
    stride: int
    size: Callable[[int], int]
    offset: int = 0

    def covers(self, length: int) -> bool:
        """Whether the cells reach over the whole of an image's side of `length` pixels."""
        return self.size(length) * self.stride >= length + self.offset


@functools.cache  # so that the specs of two equal networks are equal, and jit knows them as one
def ceil_size(stride: int) -> Callable[[int], int]:
    """The `size` of a feature whose layers pad so that strides alone change sizes, as in ResNets: n -> ceil(n / stride)."""
    return lambda length: -(-length // stride)


def require_no_offset(head: str, features: Sequence[FeatureSpec]) -> None:
    """Refuse features that begin before the image does, as a map resized to the image's size would not lie on it.

    Args:
        head: name of the head, for the message.
        features: all that the head takes.

    Raises:
        ConfigError: one of them has an `offset`.
    """
    for feature in features:
        if feature.offset:
            raise ConfigError(
                f"head '{head}' resizes features to the image's size, so they must begin where the image does; '{feature.name}' begins "
                f"{feature.offset} pixels before it. Take a backbone that does not pad its input, or a head that crops, such as fcn32s"
            )


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How a u8 RGB image becomes a network's input: `(channels(image) / 255 * scale - mean) / std`.

    Attributes:
        mean: per channel, in the scaled range, in the network's channel order.
        std: per channel, likewise.
        scale: largest value of the range: 1.0 for torchvision's networks, 255.0 for Caffe's.
        channel_order: "rgb", or "bgr" for Caffe's networks.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: float = 1.0
    channel_order: str = "rgb"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights: where they are and how to know them.

    Attributes:
        url: address of a `.pth` or `.safetensors` file.
        sha256: leading hexadecimal digits of the file's SHA-256 (torchvision publishes eight).
        summary: what it was trained on, and the published score.
    """

    url: str
    sha256: str
    summary: str = ""


@dataclasses.dataclass(frozen=True)
class TorchBridge:
    """What ties a module to its PyTorch original.

    Attributes:
        tables: options -> the two-way rule tables, by naming scheme; "torchvision" is the default
            scheme, "d2l" the book chapter's. Another original has a scheme of its own, if backbone
            and head both have a table of it. In "torchvision" a whole model's parts are prefixed,
            as in its segmentation models; in any other scheme the tables' names are those of the
            whole model.
        reference: keyword arguments of `build` (options, output_stride; num_classes and features
            for a head) -> the equal `torch.nn.Module`, or None where there is none. Imports torch
            inside. Its state dict has the "torchvision" scheme's names. A backbone's returns the
            features by name when called with NCHW images, or has a submodule of each feature's
            name; a head's is called with the selected features in order; its output is resized
            bilinearly where it is smaller than the image, as in torchvision's segmentation models,
            otherwise cropped at the bottom and right.
        weights: published weight files by name, in the "torchvision" scheme.
        alone: options -> the tables of a backbone's own files, where its names differ from those
            that it has in a whole model, which are the tables'. torchvision's segmentation models
            keep `features` of a MobileNet, so that they call `backbone.0.0.weight` what the
            network's own files call `features.0.0.weight`. None where the names are the same.
    """

    tables: Callable[[Any], Mapping[str, Table]]
    reference: Callable[..., Any] | None = None
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    alone: Callable[[Any], Mapping[str, Table]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone:
    """Descriptor of a network that turns images into features.

    Attributes:
        name: the name it is registered under.
        summary: one line for `fcn-jax plugins list`.
        reference: paper or file it follows.
        options: frozen dataclass of its options; the recipe's `[model.backbone_options]` is
            validated by it.
        output_strides: the strides of the deepest feature that it can be built with; the first is
            the default.
        features: (options, output_stride) -> specs ordered shallow to deep; the last is the
            deepest. Pure: builds no arrays.
        build: (options, *, output_stride, dtype, param_dtype, rngs) -> module with `module(x:
            f[N,H,W,3]) -> {name: f[N,h,w,C]}`.
        preprocess: how its input is made from a u8 RGB image.
        torch: bridge to the PyTorch original, or None.
        maskable: whether it can run on images that fill a part of their array, as
            `fcn_jax.nn._valid` has it: whatever it does across pixels is done by the operators of
            `fcn_jax.nn`. Then one compiled program serves many image sizes.
        api_version: the contract it was written against.
    """

    name: str
    summary: str
    features: Callable[[Any, int], tuple[FeatureSpec, ...]]
    build: Callable[..., nnx.Module]
    reference: str = ""
    options: type = NoOptions
    output_strides: tuple[int, ...] = (32,)
    preprocess: Preprocess = Preprocess()
    torch: TorchBridge | None = None
    maskable: bool = False
    api_version: tuple[int, int] = API_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Descriptor of a network that turns features into logits at the image's size.

    Attributes:
        name: the name it is registered under.
        summary: one line for `fcn-jax plugins list`.
        reference: paper or file it follows.
        options: frozen dataclass of its options; the recipe's `[model.head_options]` is validated
            by it.
        select: (options, specs) -> names of the features it takes. Raises `ConfigError` when the
            backbone does not offer them.
        build: (options, selected specs, *, num_classes, dtype, param_dtype, rngs) -> module with
            `module(features, *, out_hw) -> f[N, out_hw[0], out_hw[1], num_classes]`, where out_hw
            is the size of the backbone's input. A module whose last step is a dense
            `fcn_jax.nn.ConvTranspose` may also have a method `logits_in_blocks(features, *,
            out_hw)`, which gives the same logits as `fcn_jax.nn._subpixel.SubpixelLogits`, the
            cheaper layout on GPUs and TPUs, or None where it cannot.
        torch: bridge to the PyTorch original, or None.
        maskable: as a backbone's.
        api_version: the contract it was written against.
    """

    name: str
    summary: str
    select: Callable[[Any, Sequence[FeatureSpec]], tuple[str, ...]]
    build: Callable[..., nnx.Module]
    reference: str = ""
    options: type = NoOptions
    torch: TorchBridge | None = None
    maskable: bool = False
    api_version: tuple[int, int] = API_VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Descriptor of a whole model by name: a backbone, a head and the weights published for the two together.

    Attributes:
        name: the name it is registered under.
        summary: one line for `fcn-jax plugins list`.
        backbone: registered backbone; one of a distribution that may be missing by its full name,
            `distribution:name`, which the error then names.
        head: registered head, likewise.
        num_classes: default number of classes.
        backbone_options: table validated by the backbone's options type.
        head_options: table validated by the head's options type.
        output_stride: stride of the backbone's deepest feature; None takes the backbone's default.
        aux_head: registered head that helps in training, from a shallower feature; None for none.
        aux_head_options: table validated by that head's options type.
        aux_feature: name of the deepest feature that the auxiliary head sees; None for the last but
            one.
        original: keyword arguments `num_classes` and `aux` (with the auxiliary head or without) ->
            the PyTorch original as one `torch.nn.Module`, whose state dict has the names of the
            scheme `names` and which gives {"out": logits, "aux": logits} at the image's size, as
            torchvision's segmentation models do. Imports torch inside. None where the parts' own
            references, put together, are all there is.
        names: naming scheme of the original; both parts have a table of it.
        weights: published weight files by name, in any scheme.
        reference: paper or file it follows.
        api_version: the contract it was written against.
    """

    name: str
    summary: str
    backbone: str
    head: str
    num_classes: int
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output_stride: int | None = None
    aux_head: str | None = None
    aux_head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aux_feature: str | None = None
    original: Callable[..., Any] | None = None
    names: str = "torchvision"
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)
    reference: str = ""
    api_version: tuple[int, int] = API_VERSION


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
    """One decoded image: `image` u8[H,W,3] RGB, `mask` u8[H,W] of labels 0 to K-1 or `IGNORE_INDEX`."""

    id: str
    image: np.ndarray
    mask: np.ndarray


class Source(Protocol):
    """Random access to one split of a dataset. Must pickle: input workers each hold a copy.

    A source may also have `decode_resized(record, factor: float) -> Example`, where it can decode
    an image at less than its whole size in less time, as JPEGs can be;
    `fcn_jax.data.decode.decode_record` does it. It gives what
    `fcn_jax.data.transforms.resize(decode(record), factor)` does: the same size and mask, and the
    same image where it is not shrunk to half or less. Where it is, photographs differ by about 2 of
    255 on average; fine regular patterns and noise may differ by tens. It raises what `decode`
    raises.

    It may have `labels`, the `fcn_jax.data.labels.label_map.LabelMap` with which
    `fcn_jax.data.decode.decode_record` reads its masks: they are looked over before training
    without their images. It may have `notes`, a tuple of lines on what was assumed when it was
    opened.
    """

    classes: Classes

    def __len__(self) -> int:
        """Number of images; never 0 (opening an empty split raises `DataError`)."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The record at `index`, 0 <= index < len. Reads no pixels."""
        ...

    def decode(self, record: Record) -> Example:
        """Decode a record. Raises `DataError` naming the file that is missing, unreadable, of another size or mislabeled."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Descriptor of a dataset.

    Attributes:
        name: the name it is registered under.
        summary: one line for `fcn-jax plugins list`.
        open: (root, split) -> source. `root` is `--data`, None where it was not given. Raises
            `DataError` naming the folder or file that is missing, or the splits that exist.
        reference: paper or page it follows.
        api_version: the contract it was written against.
    """

    name: str
    summary: str
    open: Callable[[Path | None, str], Source]
    reference: str = ""
    api_version: tuple[int, int] = API_VERSION
