"""Training steps on a mesh: their placement, lowered programs, losses and collectives.

`python -m tests.helpers.meshes golden` writes the golden table of partitions.
`python -m tests.helpers.meshes losses` and `... collectives PLATFORM` print JSON; they need eight
devices and the plugin of `tests/fixtures/tiny`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, AxisType

from fcn_jax.api import ModelSpec, Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.models.build import build
from fcn_jax.models.names import named
from fcn_jax.train import groups, optim, sharding
from fcn_jax.train import step as train_step
from fcn_jax.train.sharding import AXES, Placement

GOLDEN = Path(__file__).parents[1] / "train" / "golden_partitions.json"
MODELS = {
    "fcn32s_resnet18": ModelSpec("resnet18", "fcn32s", 21),
    "deeplabv3plus_resnet50": ModelSpec("resnet50", "deeplabv3plus", 21),
}
"""Models of the golden table. They are trained with AdamW and averages of the weights."""

BATCH, SIZE, STEPS = 8, (32, 32), 4
SPLITS = {
    "1": (1, 1, 1),
    "2": (2, 1, 1),
    "8": (8, 1, 1),
    "data 2, fsdp 4": (2, 4, 1),
    "fsdp 8": (1, 8, 1),
    "data 2, fsdp 2, spatial 2": (2, 2, 2),
    "data 2, spatial 4": (2, 1, 4),
}
"""Sizes of the axes of a mesh."""


def abstract(data: int = 1, fsdp: int = 1, spatial: int = 1, mib: float = 4.0) -> Placement:
    """A placement on devices that need not exist."""
    return Placement(AbstractMesh((data, fsdp, spatial), AXES, (AxisType.Auto,) * 3), mib)


def real(sizes: tuple[int, ...], mib: float = 0.0) -> Placement:
    """A placement on the first devices; all arrays are large enough for fsdp by default."""
    devices = jax.devices()[: int(np.prod(sizes))]
    return Placement(
        jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices), mib
    )


def table(name: str) -> dict[str, list[str | None]]:
    """The partitions of a model's training state on eight devices: data 2, fsdp 4."""

    def state() -> Any:
        return make(MODELS[name], None, OptimConfig(name="adamw", ema_decay=0.999))[0]

    return sharding.table(abstract(data=2, fsdp=4), jax.eval_shape(state))


def make(
    spec: ModelSpec, placement: Placement | None, config: OptimConfig, blocks: bool | None = None
) -> Any:
    """The state and the step of a model."""
    model = build(spec, rngs=nnx.Rngs(0))
    rates = groups.assign(config, nnx.state(model, nnx.Param))
    return train_step.make(
        model,
        optim.make(config, 100, rates),
        Preprocess(),
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
        blocks=blocks,
        placement=placement,
    )


def tiny(placement: Placement | None, config: OptimConfig, blocks: bool | None = None) -> Any:
    """The state, the jitted step and the shapes of its arguments, for the backbone `tiny`."""
    spec = ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 16})
    state, step = make(spec, placement, config, blocks)
    if placement is None:
        jitted = jax.jit(step, donate_argnums=0)
        return state, jitted, (state, train_step.batch_shapes(BATCH, SIZE, None))
    if placement.mesh.size == 1:
        shapes = placement.put(state)
    else:
        shapes = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            state,
            placement.of(state),
        )
    out = placement.of(state), placement.everywhere
    jitted = jax.jit(step, donate_argnums=0, out_shardings=out)
    return state, jitted, (shapes, train_step.batch_shapes(BATCH, SIZE, placement.batch))


# -------------------------------------------------------------------------------------- processes


def losses() -> dict[str, Any]:
    """Losses and final values of every split, with SGD; and of two splits with AdamW."""
    rng = np.random.default_rng(0)
    batches = [
        {
            "image": rng.integers(0, 256, (BATCH, *SIZE, 3), np.uint8),
            "mask": rng.choice([0, 1, 2, 255], (BATCH, *SIZE)).astype(np.uint8),
        }
        for _ in range(STEPS)
    ]
    sgd = OptimConfig(lr=0.1, clip_norm=0.5)
    # The gradient of a bias before batch normalization is rounding error, which Adam scales up
    # unless its epsilon is large.
    adamw = OptimConfig(name="adamw", lr=0.01, eps=1e-3, ema_decay=0.8, accumulate_steps=2)
    cases = [("sgd", sgd, split) for split in SPLITS]
    cases += [("adamw", adamw, split) for split in ("1", "data 2, fsdp 2, spatial 2")]
    found: dict[str, Any] = {"sgd": {}, "adamw": {}}
    for name, config, split in cases:
        placement = real(SPLITS[split])
        state, jitted, shapes = tiny(placement, config)
        compiled = jitted.lower(*shapes).compile()
        state, curve = placement.put(state), []
        for batch in batches:
            state, metrics = compiled(state, placement.put_batch(batch))
            curve.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        parts = state.params, state.batch_stats, *([state.ema] if config.ema_decay else [])
        values = [
            {key: np.asarray(leaf[...]).ravel().tolist() for key, leaf in named(part).items()}
            for part in parts
        ]
        found[name][split] = {"curve": curve, "values": values}
    return found


def collectives(platform: str) -> dict[str, Any]:
    """Collectives of the step of each split of eight devices, in the form for a platform.

    The form is compiled for CPUs; the partitioner treats it as it would on the platform.
    """
    from benchmarks.hlo import COLLECTIVES, Program

    def chosen(*args: Any, default: Any = None, **forms: Any) -> Any:
        return forms.get(platform, default)(*args)

    lax.platform_dependent = chosen
    found = {}
    for split, sizes in SPLITS.items():
        if np.prod(sizes) != 8 or sizes[2] > 2:  # four parts would have one row of features each
            continue
        placement = real(sizes, 2**-10)
        state, jitted, shapes = tiny(placement, OptimConfig(), blocks=platform != "cpu")
        program = Program(jitted.lower(*shapes).compile().as_text())
        arrays = [
            [instruction.opcode.removesuffix("-start"), dtype, shape]
            for instruction in program.stored()
            for dtype, shape in instruction.results
        ]
        held = jax.tree.leaves((state.params, state.batch_stats))
        found[split] = {
            "collectives": [array for array in arrays if array[0] in COLLECTIVES],
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "split": [leaf.shape for leaf in held if "fsdp" in placement.spec(leaf)],
        }
    return found


if __name__ == "__main__":
    if sys.argv[1] == "golden":
        text = json.dumps({name: table(name) for name in MODELS}).replace('], "', '],\n"')
        GOLDEN.write_text(text.replace(': {"', ':\n{"').replace('}, "', '},\n"') + "\n")
    else:
        print(json.dumps(losses() if sys.argv[1] == "losses" else collectives(sys.argv[2])))
