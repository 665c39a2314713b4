"""The training step of a recipe on one device, traced without arrays, data or the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fcn_jax.config import Config, InitConfig
from fcn_jax.data.labels.palette import voc_palette
from fcn_jax.data.labels.remap import Remap
from fcn_jax.errors import ConfigError
from fcn_jax.plan import equations, traffic
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Classes
from fcn_jax.train import groups, setup
from fcn_jax.train.settings import settings_at_fault
from fcn_jax.train.sharding import Placement
from fcn_jax.train.step import TrainState, batch_shapes

_STEPS = 10_000
"""Length of the run that the schedule gets. It changes neither work nor memory."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step on one device.

    Attributes:
        state: shapes and dtypes of the state.
        batch: those of the images and masks of this device.
        gradients: those of the gradients of all parameters that are trained.
        work: FLOPs, bytes and temporary values.
    """

    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]
    gradients: Sequence[jax.ShapeDtypeStruct]
    work: traffic.Work

    def parts(self, placement: Placement) -> dict[str, int]:
        """Bytes of memory by part on each device of a mesh, when most is held."""

        def held(tree: Any) -> int:
            return sum(
                nbytes(leaf) // (placement.mesh.shape["fsdp"] if placement.spec(leaf) else 1)
                for leaf in jax.tree.leaves(tree)
            )

        params = jax.tree.leaves(self.state.params)
        return {
            "parameters": held(params),
            "gathered": nbytes([leaf for leaf in params if placement.spec(leaf)]),
            "statistics": held(self.state.batch_stats),
            "optimizer": held(self.state.opt_state),
            "averages": held(self.state.ema),
            "gradients": held(self.gradients),
            "inputs": nbytes(dict(self.batch)),
            "activations": self.work.activations,
            "workspace": self.work.workspace,
        }

    @property
    def reduced(self) -> int:
        """Bytes that devices add up in a step.

        Those of the gradients, and of the moments of batch normalization, in both passes. Where
        parameters are split, adding up a part and gathering the whole send as much together.
        """
        floats = [
            leaf
            for leaf in jax.tree.leaves(self.state.batch_stats)
            if np.issubdtype(leaf.dtype, np.floating)
        ]
        return nbytes(self.gradients) + 2 * nbytes(floats)


def nbytes(tree: Any) -> int:
    """Return the bytes of a tree of arrays or shapes."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Made:
    """A training step that can be traced, without values.

    Attributes:
        step: function `(state, batch) -> (state, metrics)`.
        state: shapes and dtypes of the state.
        batch: those of images and masks.
        gradients: those of the gradients of all parameters that are trained.
    """

    step: Callable[[Any, Any], Any]
    state: TrainState
    batch: Mapping[str, jax.ShapeDtypeStruct]
    gradients: Sequence[jax.ShapeDtypeStruct]


def make(
    config: Config,
    classes: int,
    images: int,
    platform: str,
    placement: Placement | None = None,
) -> Made:
    """Make the training step of a recipe.

    Args:
        config: as for `trace`.
        classes: as for `trace`.
        images: images in the step, on all devices.
        platform: as for `trace`.
        placement: of state and batch; None for one device.

    Raises:
        ConfigError, PluginError: as `trace`.
    """
    config = config.model_copy(update={"init": InitConfig()})
    known = Classes(tuple(map(str, range(classes))), voc_palette(classes))
    pixels = np.ones(classes, np.int64)
    frozen: frozenset[str] = frozenset()

    def made() -> tuple[TrainState, Any]:
        nonlocal frozen
        blocks = platform != "cpu"
        found, state, step = setup.make(
            config, known, _STEPS, (pixels, pixels), blocks=blocks, placement=placement
        )
        frozen = groups.frozen_names(found.rates)
        return state, step

    # Inside a trace, building the model takes no memory. The step does not use its values.
    state = jax.eval_shape(lambda: made()[0])
    names, leaves = groups.parameter_names(state.params), jax.tree.leaves(state.params)
    return Made(
        lambda state, batch: made()[1](state, batch),
        state,
        batch_shapes(
            images,
            config.data.crop_size,
            placement.batch if placement else None,
            channels=config.model.in_channels,
            mask_channels=classes if config.model.task == "multilabel" else None,
        ),
        [leaf for name, leaf in zip(names, leaves, strict=True) if name not in frozen],
    )


def trace(config: Config, classes: int, images: int, platform: str) -> Step:
    """Trace the training step of a recipe.

    Args:
        config: the recipe, without "auto".
        classes: number of classes of the dataset.
        images: images in the step of one device.
        platform: JAX's name of the platform, such as "cuda".

    Raises:
        ConfigError, PluginError: as `fcn_jax.train.setup.make` says.
    """
    made = make(config, classes, images, platform)
    with settings_at_fault("the training step cannot be traced", config):
        jaxpr = jax.make_jaxpr(made.step)(made.state, made.batch).jaxpr
    work = traffic.work(equations.flatten(jaxpr, platform))
    return Step(made.state, made.batch, made.gradients, work)


def number_of_classes(config: Config) -> int:
    """Return the number of classes of a recipe without its data.

    Raises:
        ConfigError: it follows from the data.
    """
    data = config.data
    if isinstance(data.classes, tuple) and not Remap.of(data):
        return len(data.classes)
    fixed = registry.default().dataset(data.dataset).classes
    if fixed is None or Remap.of(data):
        why = "other classes are set in the section data" if fixed else "they follow from its files"
        raise ConfigError(
            f"dataset '{data.dataset}': its number of classes is not known, because {why}; name it "
            "with --num-classes N"
        )
    return len(fixed)
