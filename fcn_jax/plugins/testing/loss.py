"""Compare a loss with its descriptor, on small batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import IGNORE_INDEX, Loss, LossContext, MeanLoss, Task
from fcn_jax.plugins.testing.contract import check_registration
from fcn_jax.plugins.testing.subject import (
    COMPILER_OPTIONS,
    TOLERANCE,
    Progress,
    Subject,
    difference,
    ignore,
    normal,
)

_CLASSES = 3


def check_loss(
    loss: str | Loss, options: Mapping[str, Any] | None = None, *, progress: Progress = ignore
) -> None:
    """Compare a loss with its descriptor, for each task that it supports.

    Checked: that complete options survive JSON and stay as they are; that value and gradient are
    finite, also for one pixel and for classes without pixels, and 0 if all pixels are ignored; that
    ignored pixels have no effect; that a `MeanLoss` of a batch is the sum over its parts; and that
    the layout has no effect on a loss with `any_layout`.

    Args:
        loss: a descriptor, or the name of a registered one.
        options: table of options, as in a recipe; None for the defaults.
        progress: called with each check's name before it runs.

    Raises:
        AssertionError: a promise is broken.
        ConfigError: an option is wrong.
    """
    descriptor = registry.default().loss(loss) if isinstance(loss, str) else loss
    subject = Subject(f"loss '{descriptor.name}'", progress)
    check_registration(subject, descriptor)
    kind = descriptor.options
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        subject.fail(f"options is {kind}; it must be a frozen dataclass")
    if "weight" in {field.name for field in dataclasses.fields(kind)}:
        subject.fail("options has the field 'weight', which is the factor of the loss in the sum")
    known = get_args(Task)
    if not descriptor.tasks or not set(descriptor.tasks) <= set(known):
        subject.fail(f"tasks is {descriptor.tasks}; it must name some of {', '.join(known)}")
    validated = plugin_options.validate(descriptor, options or {})
    for task in descriptor.tasks:
        _check_task(subject.part(f", task '{task}'"), descriptor, validated, task)


def _check_task(subject: Subject, descriptor: Loss, options: Any, task: Task) -> None:
    num_classes = 2 if task == "binary" else _CLASSES
    pixels = np.arange(1, num_classes + 1) * 100
    context = LossContext(num_classes, task, pixels, 2 * pixels)
    subject.start("options")
    complete = descriptor.complete(options, context)
    again = plugin_options.validate(descriptor, dataclasses.asdict(complete))
    if again != complete or descriptor.complete(again, LossContext(num_classes, task)) != complete:
        subject.fail(
            f"the options {complete} that `complete` returns are not the same after JSON and "
            "another `complete`, as a resumed run needs them"
        )
    built = descriptor.build(complete, context)
    if not isinstance(built, MeanLoss) and not callable(built):
        subject.fail(f"build returns a {type(built).__name__}; it must be a MeanLoss or a function")
    loss = functools.partial(_value, built)
    value = jax.jit(loss, static_argnums=2, compiler_options=COMPILER_OPTIONS)
    run = jax.jit(jax.value_and_grad(loss), compiler_options=COMPILER_OPTIONS)
    for name, labels in _batches(task, num_classes).items():
        part = subject.part(f", {name}")
        part.start("value and gradient")
        channels = 1 if task == "binary" else num_classes
        logits = 2 * normal(len(name), (*labels.shape[:3], channels))
        found = jax.eval_shape(loss, logits, labels)
        if found.shape != () or found.dtype != jnp.float32:
            part.fail(f"the loss is {found.dtype}{list(found.shape)}; it must be float32[]")
        _check_batch(part, run, logits, labels)
        if isinstance(built, MeanLoss) and labels.shape[0] > 1:
            _check_parts(part, built, logits, labels)
        if descriptor.any_layout:
            _check_layouts(part, value, logits, labels, task)


def _batches(task: Task, num_classes: int) -> dict[str, np.ndarray]:
    """Labels i32[N,H,W], or i32[N,H,W,K] for "multilabel"."""
    rng = np.random.default_rng(0)
    classes = (num_classes,) if task == "multilabel" else ()
    highest = 2 if task == "multilabel" else num_classes
    labels = rng.integers(0, highest, (3, 5, 7, *classes)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.2] = IGNORE_INDEX
    one_void = labels.copy()
    one_void[1] = IGNORE_INDEX
    return {
        "a batch": labels,
        "a batch with an image of ignored pixels": one_void,
        "a batch without the last class": np.where(labels == highest - 1, 0, labels),
        "one pixel": np.zeros((1, 1, 1, *classes), np.int32),
        "a batch of ignored pixels": np.full_like(labels, IGNORE_INDEX),
    }


def _value(built: MeanLoss | Callable[..., Any], *arguments: Any) -> jax.Array:
    """The loss as the training step computes it."""
    if not isinstance(built, MeanLoss):
        return built(*arguments)
    divisor = jnp.asarray(built.divisor(arguments[1]))
    mean = built.total(*arguments) / jnp.where(divisor > 0, divisor, 1)
    return jnp.where(divisor > 0, mean, 0)


def _check_batch(
    subject: Subject, run: Callable[..., Any], logits: np.ndarray, labels: np.ndarray
) -> None:
    loss, gradient = run(logits, labels)
    if not (np.isfinite(loss) and np.isfinite(gradient).all()):
        subject.fail(f"the loss is {float(loss)}, and it or its gradient is not finite")
    valid = labels != IGNORE_INDEX
    if not valid.any() and loss != 0:
        subject.fail(f"the loss is {float(loss)}; it must be 0 if all pixels are ignored")
    valid = np.broadcast_to(valid if valid.ndim == 4 else valid[..., None], logits.shape)
    if np.asarray(gradient)[~valid].any():
        subject.fail("ignored pixels have a gradient; it must be 0")
    other, _ = run(np.where(valid, logits, logits + 3), labels)
    if abs(other - loss) > TOLERANCE * max(abs(loss), 1):
        subject.fail("the logits of ignored pixels change the loss")


def _check_parts(subject: Subject, built: MeanLoss, logits: np.ndarray, labels: np.ndarray) -> None:
    whole = np.asarray(built.total(logits, labels))
    parts = sum(np.asarray(built.total(logits[i : i + 1], labels[i : i + 1])) for i in range(3))
    if difference(parts, whole) > TOLERANCE and abs(whole) > TOLERANCE:
        subject.fail(
            f"the total of a batch is {whole}, and the sum over its images {parts}; return a plain "
            "function instead of a MeanLoss if the loss is not a sum"
        )


def _check_layouts(
    subject: Subject,
    value: Callable[..., Any],
    logits: np.ndarray,
    labels: np.ndarray,
    task: Task,
) -> None:
    whole = value(logits, labels)
    if task == "multilabel":
        arguments = np.moveaxis(logits, -1, 1), np.moveaxis(labels, -1, 1)
    else:
        order = np.random.default_rng(0).permutation(labels[0].size)
        flat = logits.reshape(len(logits), -1, logits.shape[-1])[:, order]
        arguments = np.moveaxis(flat, -1, 1), labels.reshape(len(labels), -1)[:, order]
    other = value(*arguments, 1)
    if abs(other - whole) > TOLERANCE * max(abs(whole), 1):
        subject.fail(f"the loss is {whole}, and {other} with the classes along axis 1")
