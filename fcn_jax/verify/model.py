"""A registered model against its PyTorch original."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.convert.engine import load_torch, tables
from fcn_jax.convert.matching import LoadReport
from fcn_jax.data.datasets.shapes import draw_scene
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.eval.metrics import ConfusionMatrix
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import ModelSpec, build, by_name, describe
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Table
from fcn_jax.train.losses import segmentation_loss
from fcn_jax.verify import jax_side
from fcn_jax.verify.compare import Section, persistent
from fcn_jax.verify.modules import (
    Loss,
    Outputs,
    add_gradients,
    attempts_after,
    compare_layers,
    compare_outputs,
    paired,
)
from fcn_jax.verify.reference import build_reference, randomise_batch_norm
from fcn_jax.verify.report import Agreement, Pictures, Report, environment
from fcn_jax.verify.torch_side import import_torch
from fcn_jax.verify.training import RECIPE, compare_training, torch_loss

SMALLEST = 32
"""Least height and width, in pixels, of the images that a model is verified on."""

DEFAULT_HEAD = "fcn32s"
"""What a backbone is verified under."""


def verify_model(
    model: str = "fcn32s_resnet18",
    *,
    weights: str | Path | None = None,
    reinit: Sequence[str] = (),
    head: str | None = None,
    aux_head: str | None = None,
    num_classes: int | None = None,
    output_stride: int | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
    sizes: Sequence[tuple[int, int]] = ((320, 480),),
    batch: int = 2,
    dtype: str = "float32",
    grad: bool = False,
    train_steps: int = 0,
    train_lr: float = RECIPE.lr,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Show that a model here is the same function as its PyTorch original; or which layer is not.

    Both networks are filled from one state dict and run on the same drawn scenes. See
    `fcn_jax.verify.compare` for the criterion. Layers and logits are compared in eval mode;
    gradients and training steps in train mode, with dropout off.

    Args:
        model: a registered whole model, or a registered backbone, which is then verified under a
            head.
        weights: a `.pth` or `.safetensors` file, or the name of published weights. If not given,
            all is random, BatchNorm's statistics, scales and shifts too.
        reinit: globs over names that the file lacks on purpose; they are random.
        head: registered head for a backbone; None takes `fcn32s`.
        aux_head: registered auxiliary head for a backbone. A whole model is compared with its own,
            if it has one.
        num_classes: default: the registered model's, or 21.
        output_stride: of the backbone; None takes the default.
        backbone_options: as in a recipe, in place of the registered model's of those names.
        head_options: likewise.
        sizes: heights and widths of the images in pixels, at least 32 each. Layers, gradients and
            training use the first.
        batch: images, at least 1.
        dtype: compared precision, "float32" or "bfloat16".
        grad: compare the gradient of the loss by every parameter.
        train_steps: how many training steps to compare, 0 or more.
        train_lr: their first learning rate, above 0. Networks without BatchNorm may need less than
            the default, or PyTorch's loss is not finite after a few steps.
        seed: of everything random, 0 or more.
        progress: told of every step: how many are done, of about how many, and what was done last.

    Returns:
        The report; `report.equal` is the verdict.

    Raises:
        ConfigError: an unknown name, a size or number out of range, or a part without PyTorch
            reference.
        WeightsError: the weights do not fit, or torch is not installed.
    """
    torch = import_torch()
    spec = _spec(model, head, aux_head, num_classes, output_stride, dtype)
    spec = dataclasses.replace(
        spec,
        backbone_options={**spec.backbone_options, **(backbone_options or {})},
        head_options={**spec.head_options, **(head_options or {})},
    )
    _check(sizes, batch, train_steps, train_lr, seed, spec)
    network = jax_side.blank(lambda: build(spec, rngs=nnx.Rngs(seed)))
    with torch.random.fork_rng(devices=[]):  # the caller's random stream is the caller's
        torch.manual_seed(seed)
        original, names = _original(model, spec)
        reference = original or build_reference(spec)
    randomise_batch_norm(reference, seed)
    found = tables(spec)
    if ("model", names) not in found:
        raise ConfigError(
            f"{spec.backbone} + {spec.head} declare no '{names}' table of PyTorch names to compare by"
        )
    table = found["model", names]
    origin: dict[str, Any] = {"source": f"random, seed {seed}"}
    record = None
    if weights is not None:
        record = load_torch(network, weights, reinit)
        _fill_reference(reference, record, table)
        origin = {
            "source": record.source,
            "sha256": record.sha256,
            "scope": record.scope,
            "random": record.reinit,
        }
    filled = load_torch(network, reference.state_dict())
    coverage = (
        record or filled
    )  # of the user's file, not of the state dict that both sides were then given

    subject = model if by_name(model).head else f"{model} + {spec.head}"
    if spec.output_stride:
        subject += f" at output stride {spec.output_stride}"
    subject += "".join(
        f", {name}={value}"
        for name, value in {**(backbone_options or {}), **(head_options or {})}.items()
    )
    report = Report(subject, dtype, environment(), coverage=coverage, weights=origin)
    preprocess = describe(spec)[0].preprocess
    scenes = [_scenes(size, batch, spec.num_classes, seed) for size in sizes]
    inputs = [np.asarray(normalize(jax.numpy.asarray(images), preprocess)) for images, _ in scenes]
    with paired(reference, network, table, _torch_outputs, _jax_outputs, dtype) as pair:
        done = itertools.count(1)
        total = 6 + len(pair.layers) + 6 * len(sizes) + 6 * grad + train_steps

        def advance(what: str) -> None:
            if progress is not None:
                progress(next(done), total, what)

        compare_layers(pair, report, inputs[:1], advance)
        for i, (size, x) in enumerate(zip(sizes, inputs, strict=True)):
            section, outputs = compare_outputs(
                pair, (x,), f"logits at {size[0]}x{size[1]}", advance
            )
            report.add(section)
            if any(comparison.fault for comparison in section.comparisons):
                continue  # there are no predictions to compare
            report.agreement.append(_agreement(size, outputs, spec.num_classes))
            if i == 0:
                report.pictures = _pictures(scenes[0][0][0], outputs, spec.num_classes)
        if grad:
            add_gradients(pair, report, inputs[:1], _cross_entropy(scenes[0][1]), advance)
        if train_steps:

            def train(number: int) -> list[Section]:
                first = seed + 1 + number * train_steps
                batches = [
                    _scenes(sizes[0], batch, spec.num_classes, first + i)
                    for i in range(train_steps)
                ]
                return compare_training(pair, network, batches, preprocess, advance, train_lr)

            report.add(*persistent(train, attempts_after(report)))
    return report


def _torch_outputs(network: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    return dict(network(*inputs))


def _jax_outputs(network: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    return dict(network.outputs(*inputs))


def _original(model: str, spec: ModelSpec) -> tuple[Any, str]:
    """A whole model's own PyTorch class, where its descriptor has it and the spec changes nothing but the number of classes.

    None otherwise; and the naming scheme of what the spec is then compared with.
    """
    registered = by_name(model)
    if (
        dataclasses.replace(spec, num_classes=registered.num_classes, dtype=registered.dtype)
        == registered
    ):
        descriptor = registry.default().model(model)
        if descriptor.original is not None:
            return descriptor.original(
                num_classes=spec.num_classes, aux=spec.aux_head is not None
            ), descriptor.names
    return None, "torchvision"


def _check(
    sizes: Sequence[tuple[int, int]],
    batch: int,
    train_steps: int,
    train_lr: float,
    seed: int,
    spec: ModelSpec,
) -> None:
    problems = [
        f"size {h}x{w}: want {SMALLEST} or more each way" for h, w in sizes if min(h, w) < SMALLEST
    ]
    if not sizes:
        problems.append("no size is given")
    for name, value, least in (
        ("batch", batch, 1),
        ("train_steps", train_steps, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            problems.append(f"{name} is {value}: want {least} or more")
    if not 0 < train_lr < math.inf:
        problems.append(f"train_lr is {train_lr}: want a number above 0")
    if spec.num_classes > IGNORE_INDEX:
        problems.append(f"num_classes is {spec.num_classes}: want {IGNORE_INDEX} or less")
    if problems:
        raise ConfigError("; ".join(problems))


def _spec(
    model: str,
    head: str | None,
    aux_head: str | None,
    num_classes: int | None,
    output_stride: int | None,
    dtype: str,
) -> ModelSpec:
    spec = by_name(model)
    if spec.head and (head or aux_head):
        raise ConfigError(
            f"'{model}' is a whole model, with the head '{spec.head}'; --head and --aux-head are for a backbone"
        )
    default_head = registry.default().own_name("heads", DEFAULT_HEAD, registry.OWN_DISTRIBUTION)
    changes: dict[str, Any] = {"dtype": dtype, "head": spec.head or head or default_head}
    if aux_head is not None:
        changes["aux_head"] = aux_head
    if num_classes is not None:
        changes["num_classes"] = num_classes
    if output_stride is not None:
        changes["output_stride"] = output_stride
    return dataclasses.replace(spec, **changes)


def _fill_reference(reference: Any, record: LoadReport, table: Table) -> None:
    """Put a file's tensors into the reference as they are.

    They do not come by way of JAX: an operation that is wrong both ways would bring them back
    unharmed.
    """
    torch = import_torch()
    tensors = files.open_tensors(
        record.source, record.key, [record.in_file(name) for name in record.loaded.values()]
    )
    state = reference.state_dict()
    for path, name in record.loaded.items():
        found = table.to_torch(path)
        value = tensors[record.in_file(name)]
        if found is None or tuple(state[found[0]].shape) != value.shape:
            raise WeightsError(
                f"{record.source}: {name} of shape {value.shape} does not fit PyTorch's {found and found[0]}"
            )
        wide = (
            value if value.dtype.kind in "iu" else value.astype(np.float32)
        )  # float16 is widened, as on JAX's side
        state[found[0]].copy_(torch.from_numpy(np.array(wide)))


def _scenes(
    size: tuple[int, int], batch: int, num_classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn scenes u8[N,H,W,3] and labels u8[N,H,W] of classes below `num_classes`, with their void border."""
    drawn = (max(64, size[0]), max(64, size[1]))
    scenes = [draw_scene(1000 * seed + i, drawn) for i in range(batch)]
    images = np.stack([image[: size[0], : size[1]] for image, _ in scenes])
    labels = np.stack([mask[: size[0], : size[1]] for _, mask in scenes])
    return images, np.where(labels == 255, 255, labels % num_classes).astype(np.uint8)


def _cross_entropy(labels: np.ndarray) -> Loss:
    torch = import_torch()
    target = torch.from_numpy(labels).long()
    return Loss(
        lambda outputs: torch_loss(outputs, target),
        lambda outputs, labels: segmentation_loss(outputs, labels, RECIPE.aux_weight),
        labels,
    )


def _agreement(size: tuple[int, int], outputs: Outputs, num_classes: int) -> Agreement:
    truth = outputs.truth["out"].argmax(1)
    ours = outputs.jax["out"].argmax(1)
    worst = min(float((run["out"].argmax(1) == truth).mean()) for run in outputs.torch)
    matrix = ConfusionMatrix(num_classes)
    matrix.add(truth.astype(np.uint8), ours.astype(np.uint8))
    return Agreement(size, float((ours == truth).mean()), worst, matrix.scores().miou)


def _pictures(image: np.ndarray, outputs: Outputs, num_classes: int) -> Pictures:
    truth, ours = outputs.truth["out"][0], outputs.jax["out"][0]
    difference = np.abs(ours - truth).max(0) / max(np.abs(truth).max(), 1e-300)
    return Pictures(
        image,
        truth.argmax(0).astype(np.uint8),
        ours.argmax(0).astype(np.uint8),
        difference.astype(np.float32),
        num_classes,
    )
