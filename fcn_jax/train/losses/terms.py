"""The weighted sum of losses that a recipe names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Integer

from fcn_jax.errors import ConfigError, FcnJaxError, PluginError
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.plugins import options as plugin_options
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Loss, LossContext, MeanLoss
from fcn_jax.train.losses.builtin import CROSS_ENTROPY
from fcn_jax.train.losses.softmax import unpacked

Outputs = Mapping[str, Float[Array, "N H W K"] | SubpixelLogits]


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of a sum.

    Attributes:
        name: the name in the recipe.
        weight: its factor in the sum, at least 0.
        loss: what the descriptor has built.
        any_layout: whether it takes the axis of the classes.
        options: its options as a JSON-able table, with everything filled in.
    """

    name: str
    weight: float
    loss: MeanLoss | Callable[..., Any]
    any_layout: bool
    options: Mapping[str, Any]

    def value(self, layouts: _Layouts, divisor: jax.Array | None) -> jax.Array:
        """The loss of one output; `divisor` is that of the whole batch, for a `MeanLoss`."""
        arguments = layouts.any if self.any_layout else layouts.plain
        if not isinstance(self.loss, MeanLoss):
            return self.loss(*arguments())
        divisor = jnp.asarray(divisor)
        mean = self.loss.total(*arguments()) / jnp.where(divisor > 0, divisor, 1).astype(
            jnp.float32
        )
        return jnp.where(divisor > 0, mean, 0)


@dataclasses.dataclass(frozen=True)
class Losses:
    """A weighted sum of losses.

    Attributes:
        terms: the losses, at least one.
    """

    terms: tuple[Term, ...]

    @property
    def of_whole_batches(self) -> tuple[str, ...]:
        """Names of the losses that cannot be computed in parts of a batch."""
        return tuple(term.name for term in self.terms if not isinstance(term.loss, MeanLoss))

    def divisors(self, labels: Integer[Array, "N H W *K"]) -> tuple[jax.Array | None, ...]:
        """The divisor of each `MeanLoss`, from the labels of the whole batch; None for others."""
        return tuple(
            term.loss.divisor(labels) if isinstance(term.loss, MeanLoss) else None
            for term in self.terms
        )

    def __call__(
        self,
        outputs: Outputs,
        labels: Integer[Array, "N H W *K"],
        aux_weight: float,
        divisors: tuple[jax.Array | None, ...] | None = None,
    ) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
        """The loss of a model's outputs: that of "out", plus `aux_weight` times that of "aux".

        Args:
            outputs: "out" and, if the model has an auxiliary head, "aux": f[N, H, W, K] or
                sub-pixel logits, as `Segmenter.outputs` returns them.
            labels: integers [N, H, W], 0 to K-1 or 255; for "multilabel" [N, H, W, K] of 0, 1 or
                255.
            aux_weight: at least 0.
            divisors: `divisors` of the whole batch, if `labels` are one part of it.

        Returns:
            f32[], and by name the losses of "out" without their weights, f32[] each.
        """
        divisors = self.divisors(labels) if divisors is None else divisors
        loss, values = self._sum(outputs["out"], labels, divisors)
        if "aux" in outputs:
            loss += aux_weight * self._sum(outputs["aux"], labels, divisors)[0]
        return loss, values

    def _sum(
        self, logits: Any, labels: jax.Array, divisors: tuple[jax.Array | None, ...]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        layouts = _Layouts(logits, labels)
        values = {
            term.name: term.value(layouts, divisor)
            for term, divisor in zip(self.terms, divisors, strict=True)
        }
        # A term of weight 0 is only logged, and may be infinite.
        weighted = [
            values[term.name] if term.weight == 1 else term.weight * values[term.name]
            for term in self.terms
            if term.weight
        ]
        values = {
            term.name: values[term.name] if term.weight else lax.stop_gradient(values[term.name])
            for term in self.terms
        }
        total = sum(weighted[1:], start=weighted[0]) if weighted else jnp.zeros((), jnp.float32)
        return total, values

    def record(self) -> dict[str, Any]:
        """Weights and complete options by name, for a checkpoint."""
        return {term.name: {"weight": term.weight, **term.options} for term in self.terms}


class _Layouts:
    """Logits and labels in the layouts that losses take."""

    def __init__(self, logits: jax.Array | SubpixelLogits, labels: jax.Array) -> None:
        self._logits, self._labels = logits, labels
        self._any: tuple[jax.Array, jax.Array, int] | None = None

    def any(self) -> tuple[jax.Array, jax.Array, int]:
        """Logits, labels and the axis of the classes, as the head has them."""
        self._any = self._any or unpacked(self._logits, self._labels)
        return self._any

    def plain(self) -> tuple[jax.Array, jax.Array]:
        """Logits f32[N, H, W, K] and labels i32[N, H, W]."""
        images = self._logits
        if isinstance(images, SubpixelLogits):
            images = images.images
        return images.astype(jnp.float32), self._labels.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Selected:
    """A loss of a recipe, before the dataset is known.

    Attributes:
        name: the name in the recipe.
        weight: at least 0.
        entry: its registration.
        descriptor: the registered loss.
        options: its validated options.
    """

    name: str
    weight: float
    entry: registry.Entry
    descriptor: Loss
    options: Any

    def built(self, context: LossContext) -> Term:
        """Build it. Raises `ConfigError` and `PluginError` that name it."""
        try:
            options = self.descriptor.complete(self.options, context)
            loss = self.descriptor.build(options, context)
        except ConfigError as error:
            raise ConfigError(f"loss.{self.name}: {error}") from error
        except FcnJaxError:
            raise
        except Exception as error:  # anything that a plugin's code raises
            raise PluginError(
                f"{self.entry} cannot be built: {type(error).__name__}: {error}"
                f"{self.entry.place(error)}"
            ) from error
        table = dataclasses.asdict(options)
        return Term(self.name, self.weight, loss, self.descriptor.any_layout, table)


def select(tables: Mapping[str, Mapping[str, Any]], task: str = "multiclass") -> list[Selected]:
    """Look up the losses of a recipe and validate their options.

    Args:
        tables: by registered name, the weight and the options; at least one.
        task: the task of the model.

    Raises:
        ConfigError: all unknown names, wrong options, and losses that do not support the task.
        PluginError: a plugin is broken, or two distributions claim a name.
    """
    plugins, problems, selected = registry.default(), [], []
    for name, table in tables.items():
        options = {key: value for key, value in table.items() if key != "weight"}
        try:
            entry, descriptor = plugins.find("losses", name), plugins.loss(name)
            if task not in descriptor.tasks:
                raise ConfigError(
                    f"loss '{name}' does not support model.task = '{task}', only "
                    f"{' and '.join(descriptor.tasks)}. {_supporting(task)}"
                )
            validated = plugin_options.validate(descriptor, options, f"loss.{name}")
            selected.append(Selected(name, table.get("weight", 1.0), entry, descriptor, validated))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return selected


def build(
    selected: Sequence[Selected],
    context: LossContext,
    recorded: Mapping[str, Mapping[str, Any]] | None = None,
) -> Losses:
    """Build the losses of a recipe.

    Args:
        selected: the losses, at least one.
        context: the dataset and the task.
        recorded: `Losses.record` of a run that is resumed, whose options are used again.

    Raises:
        ConfigError: options that do not fit the dataset.
        PluginError: a loss cannot be built.
    """
    terms, problems = [], []
    for loss in selected:
        if recorded and loss.name in recorded:
            options = {k: value for k, value in recorded[loss.name].items() if k != "weight"}
            validated = plugin_options.validate(loss.descriptor, options)
            loss = dataclasses.replace(loss, options=validated)
        try:
            terms.append(loss.built(context))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    return Losses(tuple(terms))


def _supporting(task: str) -> str:
    """Which registered losses support a task; broken plugins are left out."""
    plugins, names = registry.default(), []
    for entry in plugins.entries("losses"):
        try:
            if task in plugins.loss(entry.full_name).tasks:
                names.append(entry.name)
        except FcnJaxError:
            continue
    return f"Available: {', '.join(names)}."


def default_losses(num_classes: int = 2, task: Any = "multiclass") -> Losses:
    """Cross entropy alone."""
    context = LossContext(num_classes, task)
    options = CROSS_ENTROPY.options()
    table = dataclasses.asdict(options)
    loss = CROSS_ENTROPY.build(options, context)
    return Losses((Term(CROSS_ENTROPY.name, 1.0, loss, CROSS_ENTROPY.any_layout, table),))


def segmentation_loss(
    outputs: Outputs, labels: Integer[Array, "N H W"], aux_weight: float
) -> Float32[Array, ""]:
    """Cross entropy of a model's logits, plus `aux_weight` times that of its auxiliary head.

    This is the loss of torchvision's reference training (references/segmentation/train.py).

    Args:
        outputs: see `Losses.__call__`.
        labels: integers [N, H, W], 0 to K-1 or 255 for pixels that are left out.
        aux_weight: at least 0.

    Returns:
        f32[].
    """
    return default_losses()(outputs, labels, aux_weight)[0]
