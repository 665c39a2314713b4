"""Verification of a model against its PyTorch reference."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from fcn_jax.config import OptimConfig
from fcn_jax.convert.load import load_torch
from fcn_jax.convert.report import LoadReport
from fcn_jax.convert.tables import tables
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.build import build
from fcn_jax.models.preprocess import normalize
from fcn_jax.models.segmenter import Segmenter
from fcn_jax.models.spec import registered_spec, resolve
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, ModelSpec
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Table
from fcn_jax.verify import evidence, few_values, jax_side
from fcn_jax.verify.calls import compare_outputs, compare_train_mode
from fcn_jax.verify.criterion import FACTORS
from fcn_jax.verify.gradients import compare_gradients
from fcn_jax.verify.layers import compare_layers
from fcn_jax.verify.mutation import add_mutation
from fcn_jax.verify.ports.nnx_port import NnxPort
from fcn_jax.verify.predictions import agreement_at, pictures_of
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.reference import build_reference
from fcn_jax.verify.report import Report
from fcn_jax.verify.runs import recipe_for
from fcn_jax.verify.scenes import cross_entropy, scenes, thinned, training_batch
from fcn_jax.verify.sensitivity import add_sensitivity
from fcn_jax.verify.sides import paired, state_digest
from fcn_jax.verify.third_opinion import ThirdOpinion
from fcn_jax.verify.torch_side import import_torch, to_nchw
from fcn_jax.verify.trained import as_weights_file, spec_of_trained
from fcn_jax.verify.training import Condition, Mode, Plan, compare_training, plan_problems
from fcn_jax.verify.types import Advance

PRECISIONS = ("highest", "high", "default")
"""Precisions of matrix products and convolutions."""

SMALLEST = 32
"""Smallest height and width of the images, in pixels."""

MUTATION_SIZE = 64
"""Largest height and width of the images on which faults are planted, in pixels."""

DEFAULT_HEAD = "fcn32s"
"""Head on which a backbone is verified."""


def verify_model(
    model: str | ModelSpec = "fcn32s_resnet18",
    *,
    weights: str | Path | None = None,
    reinit: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str = "",
    sizes: Sequence[tuple[int, int]] = ((320, 480),),
    batch: int = 2,
    grad: bool = False,
    train_steps: int = 0,
    train_mode: Mode = "synced",
    train_recipes: Sequence[str | OptimConfig] = ("sgd",),
    train_lr: float | None = None,
    train_seeds: int = 8,
    train_condition: Condition | None = None,
    mutate: bool | int = False,
    matmul_precision: str = "highest",
    seed: int = 0,
    third_opinion: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    **changes: Any,
) -> Report:
    """Show that a model computes the same function as its PyTorch reference.

    Both networks get the values of one state dict and run on the same drawn scenes. See
    `fcn_jax.verify.criterion` for the criterion. Layers and logits are compared in eval mode; the
    logits and running statistics of one call, gradients and training steps in train mode without
    dropout.

    Args:
        model: a spec, a registered model, or a registered backbone; or a trained model: a run,
            checkpoint or portable directory, or the id of one on the hub, whose weights are the
            default of `weights`.
        weights: a `.pth` or `.safetensors` file, the name of published weights, or a trained model.
            None draws all values at random, such that every tensor matters; see
            `fcn_jax.verify.randomize`.
        reinit: globs over names that the file lacks on purpose; their values are random.
        drop: globs over the file's names of tensors that are dropped.
        key: which of several state dicts of the file to load, such as "model_ema".
        sizes: heights and widths of the images in pixels, at least 32 each. Layers, gradients and
            training use the first.
        batch: number of images, at least 1.
        grad: also compare the gradient of the loss with respect to every parameter.
        train_steps: number of training steps to compare, 0 or more.
        train_mode: `synced` starts each step from the same values on all sides, `free` lets each
            side go on from its own, `seeds` compares the distribution of the errors of free runs;
            see `fcn_jax.verify.training`.
        train_recipes: "sgd", "adamw", "adamw-ema", or settings of the optimizer as in a recipe's
            [optim]; the steps are compared with each of them.
        train_lr: learning rate instead of the recipe's, above 0. Networks without BatchNorm may
            need less for PyTorch's loss to stay finite.
        train_seeds: number of runs in the mode `seeds`, at least 2.
        train_condition: called before each step of the mode `synced`; see
            `fcn_jax.verify.training.Condition`.
        mutate: also plant faults in JAX's side, one at a time, and count those that the comparison
            of layers, outputs and train mode catches; see `fcn_jax.verify.mutation`. A number
            plants at most so many of each kind. The images have the first size, but at most
            64x64 pixels.
        matmul_precision: of JAX's matrix products and convolutions: "highest" (float32), "high" or
            "default". The others are TF32 on GPUs and bfloat16 on TPUs, and no network is then
            equal to its reference; the report shows the errors. CPUs always use float32.
        seed: random seed, 0 or more.
        third_opinion: also run the PyTorch network by torchax, if that is installed.
        progress: called after every step with the number of finished steps, the approximate total,
            and the name of the step.
        changes: fields of `fcn_jax.api.ModelSpec` to replace, such as `num_classes=3` or
            `dtype="bfloat16"`; None keeps the model's value. A backbone gets the head `fcn32s` if
            no head is given. Options are added to those of the model.

    Returns:
        The report; `report.equal` is the verdict.

    Raises:
        ConfigError: an unknown name, a size or number out of range, a part without PyTorch
            reference, or a reference that is random in train mode.
        WeightsError: the weights do not fit, or torch is not installed.
    """
    torch = import_torch()
    if isinstance(model, str) and (trained := spec_of_trained(model)) is not None:
        weights = weights or model
        model = trained
    name = model if isinstance(model, str) else None
    registered = model if isinstance(model, ModelSpec) else registered_spec(model)
    changes = {key: value for key, value in changes.items() if value is not None}
    spec = _changed(name, registered, changes)
    numbers = {
        **{"batch": (batch, 1), "train_steps": (train_steps, 0), "train_seeds": (train_seeds, 2)},
        **{"mutate": (int(mutate), 0), "seed": (seed, 0)},
    }
    problems = [*plan_problems(train_mode, train_recipes, train_lr)]
    if matmul_precision not in PRECISIONS:
        problems.append(
            f"matmul_precision is '{matmul_precision}'; it must be one of {', '.join(PRECISIONS)}"
        )
    _check(spec, sizes, numbers, problems)
    preprocess = resolve(spec).preprocess
    network = jax_side.blank(lambda: build(spec, rngs=nnx.Rngs(seed)))
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state unchanged
        torch.manual_seed(seed)
        reference, key_format = _reference(name, registered, spec)
    drawn = [scenes(size, batch, spec.num_classes, seed) for size in sizes]
    inputs = [np.asarray(normalize(jax.numpy.asarray(images), preprocess)) for images, _ in drawn]
    small = thinned(inputs[0])
    images = torch.from_numpy(to_nchw(small).copy())
    randomize(reference, seed, run=lambda network: network(images))
    table = tables(spec).get(("model", key_format))
    if table is None:
        raise ConfigError(
            f"{spec.backbone} + {spec.head} have no table of PyTorch names for the key format "
            f"'{key_format}' to compare by"
        )
    coverage, origin = _load(
        network, reference, table, key_format, weights, seed, reinit, drop=drop, key=key
    )
    port = NnxPort(network, _outputs)
    port.precision = matmul_precision
    report = Report(
        _subject(name, registered, spec, changes),
        spec.dtype,
        evidence.environment(_distributions(spec), matmul_precision),
        coverage=coverage,
        weights={**origin, "state_sha256": state_digest(reference)},
        settings={
            "model": name,
            "spec": dataclasses.asdict(spec),
            "weights": None if weights is None else str(weights),
            **{"reinit": [*reinit], "drop": [*drop], "key": key, "sizes": [*map(list, sizes)]},
            **{"batch": batch, "grad": grad, "train_steps": train_steps, "train_mode": train_mode},
            "train_recipes": [
                each.model_dump(mode="json") if isinstance(each, OptimConfig) else each
                for each in train_recipes
            ],
            **{"train_lr": train_lr, "train_seeds": train_seeds, "mutate": mutate, "seed": seed},
        },
        sources=evidence.sources(
            reference,
            *port.parts,
            also=(
                build.__module__,
                *(evidence.training_modules(steps=train_steps > 0) if grad or train_steps else ()),
            ),
        ),
        third_opinion=ThirdOpinion() if third_opinion else None,
    )
    with paired(reference, port, table, spec.dtype) as pair:
        runs = len(train_recipes) * (train_seeds if train_mode == "seeds" else 1)
        total = 13 + len(pair.layers) + 6 * len(sizes) + 7 * grad + train_steps * runs
        advance = _counted(progress, total)
        report.add_layers(compare_layers(pair, inputs[:1], advance))
        for size, (images, _), x in zip(sizes, drawn, inputs, strict=True):
            title = f"logits at {size[0]}x{size[1]}"
            opinion = report.third_opinion
            section, outputs = compare_outputs(pair, (x,), title, advance, opinion)
            report.sections.append(section)
            if any(comparison.fault for comparison in section.comparisons):
                continue  # there are no predictions to compare
            report.agreement.append(agreement_at(size, outputs, spec.num_classes))
            report.pictures = report.pictures or pictures_of(images[0], outputs, spec.num_classes)
        add_sensitivity(report, pair, (small,), report.sections[-len(sizes) :])
        advance("sensitivity")
        few = few_values.find(pair.torch, inputs[:1], resize=True)
        if few.impossible:
            report.sections.append(few.skipped("train mode", FACTORS["gradients"]))
            return report
        pair.torch.check_deterministic((small,))
        in_train_mode = compare_train_mode(pair, inputs[:1], advance)
        report.sections.append(few.settled(in_train_mode, few.before))
        if grad:
            loss = cross_entropy(drawn[0][1])
            attempts = report.attempts
            gradients = compare_gradients(pair, inputs[:1], loss, advance, attempts)
            report.sections += map(few.settled, gradients)
        if mutate:
            height, width = (min(side, MUTATION_SIZE) for side in sizes[0])
            images, _ = scenes((height, width), batch, spec.num_classes, seed)
            x = np.asarray(normalize(jax.numpy.asarray(images), preprocess))
            add_mutation(report, pair, (x,), mutate, progress)
        if train_steps:
            attempts = report.attempts

            def draw(step: int, attempt: int) -> tuple[np.ndarray, np.ndarray]:
                number = seed + step + attempt * train_steps
                return training_batch(sizes[0], batch, spec.num_classes, number)

            for each in train_recipes:
                recipe = recipe_for(each, network)
                if train_lr is not None:
                    recipe = recipe.model_copy(update={"lr": train_lr})
                plan = Plan(train_steps, train_mode, recipe, train_seeds, train_condition)
                steps = compare_training(pair, network, draw, preprocess, plan, advance, attempts)
                report.sections += steps if recipe.freeze_batch_norm else map(few.settled, steps)
    return report


def _changed(name: str | None, spec: ModelSpec, changes: dict[str, Any]) -> ModelSpec:
    """The spec to verify, with changed fields; `name` is that of a registered model or backbone."""
    fields = {field.name for field in dataclasses.fields(ModelSpec)}
    if unknown := changes.keys() - fields:
        raise TypeError(f"verify_model has no argument {', '.join(sorted(unknown))}")
    if name and spec.head and (changes.get("head") or changes.get("aux_head")):
        raise ConfigError(
            f"'{name}' is a model with the head '{spec.head}'; head and aux_head are for backbones"
        )
    own_head = registry.default().own_name("heads", DEFAULT_HEAD, registry.OWN_DISTRIBUTION)
    values = {"head": spec.head or own_head, **changes}
    for options in ("backbone_options", "head_options", "aux_head_options"):
        values[options] = {**getattr(spec, options), **changes.get(options, {})}
    return dataclasses.replace(spec, **values)


def _check(
    spec: ModelSpec,
    sizes: Sequence[tuple[int, int]],
    numbers: Mapping[str, tuple[int, int]],
    further: Sequence[str],
) -> None:
    """Raise `ConfigError`; `numbers` are names with values and the least values allowed."""
    problems = [
        f"size {h}x{w}: expected height and width of at least {SMALLEST}"
        for h, w in sizes
        if min(h, w) < SMALLEST
    ]
    if not sizes:
        problems.append("sizes is empty: expected at least one")
    problems += [
        f"{name} is {value}: expected {least} or more"
        for name, (value, least) in numbers.items()
        if value < least
    ]
    problems += further
    if spec.num_classes > IGNORE_INDEX:
        problems.append(f"num_classes is {spec.num_classes}: expected {IGNORE_INDEX} or less")
    if spec.in_channels != 3 or spec.mean is not None:
        problems.append(
            f"in_channels is {spec.in_channels}, mean {spec.mean}: PyTorch references take RGB; "
            "expected 3 channels and no mean"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def _reference(name: str | None, registered: ModelSpec, spec: ModelSpec) -> tuple[Any, str]:
    """The PyTorch network and its key format.

    A registered model's own PyTorch class if it has one and only the number of classes or the dtype
    is changed; otherwise the references of the parts.
    """
    if name and registered.head:
        descriptor = registry.default().model(name)
        alike = dataclasses.replace(registered, num_classes=spec.num_classes, dtype=spec.dtype)
        if alike == spec and descriptor.reference_model:
            aux = spec.aux_head is not None
            network = descriptor.reference_model(num_classes=spec.num_classes, aux=aux)
            return network, descriptor.key_format
    return build_reference(spec), "torchvision"


def _distributions(spec: ModelSpec) -> list[str]:
    """The distributions that provide a model's parts."""
    parts = (("backbones", spec.backbone), ("heads", spec.head), ("heads", spec.aux_head))
    plugins = registry.default()
    return [plugins.find(kind, name).distribution for kind, name in parts if name is not None]


def _subject(
    name: str | None, registered: ModelSpec, spec: ModelSpec, changes: dict[str, Any]
) -> str:
    """The report's name of the model, with what was changed."""
    subject = name if name and registered.head else f"{name or spec.backbone} + {spec.head}"
    if spec.output_stride:
        subject += f" at output stride {spec.output_stride}"
    options = {**changes.get("backbone_options", {}), **changes.get("head_options", {})}
    return subject + "".join(f", {key}={value}" for key, value in options.items())


def _load(
    network: Segmenter,
    reference: Any,
    table: Table,
    key_format: str,
    weights: str | Path | None,
    seed: int,
    reinit: Sequence[str],
    **choice: Any,
) -> tuple[LoadReport, dict[str, Any]]:
    """Give both sides the same values; return the report of the user's file, and its origin."""
    if weights is None:
        return load_torch(network, reference.state_dict()), {"source": f"random, seed {seed}"}
    with as_weights_file(weights, network.spec, key_format) as file:
        record = load_torch(network, file, reinit, **choice)
        _fill_reference(reference, record, table)
    if file != weights:
        record = dataclasses.replace(record, source=str(weights))
    load_torch(network, reference.state_dict())
    return record, {
        "source": record.source,
        "sha256": record.sha256,
        "scope": record.scope,
        "random": record.reinit,
    }


def _fill_reference(reference: Any, record: LoadReport, table: Table) -> None:
    """Copy a file's tensors into the reference.

    They do not pass through JAX, because the way back could undo an error of the way there.
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
                f"{record.source}: {name} of shape {value.shape} does not fit PyTorch's "
                f"{found and found[0]}"
            )
        # float16 becomes float32, as on JAX's side.
        wide = value if value.dtype.kind in "iu" else value.astype(np.float32)
        state[found[0]].copy_(torch.from_numpy(np.array(wide)))


def _counted(progress: Callable[[int, int, str], None] | None, total: int) -> Advance:
    done = itertools.count(1)
    return lambda step: None if progress is None else progress(next(done), total, step)


def _outputs(network: Any, inputs: tuple[Any, ...]) -> Any:
    return network.outputs(*inputs)
