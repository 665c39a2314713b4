"""Time the forms of operators that the library can choose: `python -m benchmarks.forms`.

    python -m benchmarks.forms          # ResNet-18, batch 32, 320x480, bfloat16
    python -m benchmarks.forms --batch 4 --dtype float32

A form is one way to compute an operator; the library chooses it by the device. All forms of an
operator run in turn on the default device, forward and backward; normalization runs forward only,
in eval mode. The results are written to benchmarks/results/forms_DEVICE.json. Without a TPU,
`python -m benchmarks.tpu_aot --program forms` compiles the forms for one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.arguments import Parser
from benchmarks.operators import xla_conv_transpose
from benchmarks.setting import Setting
from benchmarks.timing import interleaved
from fcn_jax import compiler_options, nn
from fcn_jax.nn import _pooling
from fcn_jax.nn._bias import add_bias
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.nn._conv_transpose import conv_transpose_blocks
from fcn_jax.nn._conv_xla import Settings, space_to_depth, xla_conv
from fcn_jax.nn._subpixel import SubpixelLogits
from fcn_jax.runtime.atomic import write_json
from fcn_jax.train import losses
from fcn_jax.train.losses import cross_entropy

Function = Callable[..., Any]
Shapes = tuple[jax.ShapeDtypeStruct, ...]


def _with_gradients(form: Function) -> Function:
    """Return a function (gradient of the result, *arguments) -> (result, gradients)."""

    def run(grad: jax.Array, *arguments: jax.Array) -> Any:
        y, vjp = jax.vjp(form, *arguments)
        return y, vjp(grad)

    return run


_WINDOW = _pooling._Window(3, 2, ((1, 1), (1, 1)))


def _plain_stem(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 7x7 convolution: XLA's own on GPUs, the library's on other devices."""
    if jax.default_backend() == "gpu":
        return xla_conv(Settings(2, 3, 1, 1), x, kernel)
    return nn.conv(x, kernel, 2, 3)


def _scattered_pool(grad: jax.Array, x: jax.Array) -> Any:
    return _with_gradients(lambda x: _pooling._reduce_window(_WINDOW, x))(grad, x)


def _pool_by_winners(grad: jax.Array, x: jax.Array) -> Any:
    y, winner = _pooling._with_winners(_WINDOW, x)
    return y, _pooling._gradient_from_winners(_WINDOW, winner, x, grad)


def _block(folded: bool, dtype: Any) -> Function:
    """Return the end of a residual block: 3x3 convolution, batch norm in eval mode, sum, ReLU."""

    def run(x: jax.Array, kernel: jax.Array, statistics: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        layer = nnx.eval_shape(
            lambda: nn.ConvNormAct(
                channels, channels, 3, activation=None, dtype=dtype, rngs=nnx.Rngs(0)
            )
        )
        layer.conv.kernel.set_value(kernel)
        norm = layer.bn
        for leaf, values in zip(
            (norm.scale, norm.bias, norm.mean, norm.var), statistics, strict=True
        ):
            leaf.set_value(jnp.abs(values))
        layer.eval()
        with folding(folded):
            return nnx.relu(layer(x) + x)

    return run


def _loss_after(form: Function, stride: int) -> Function:
    """Return the loss of a head's logits with its gradients by features, kernel and bias."""

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(
            add_bias(form(x, kernel.astype(x.dtype), stride, stride // 2), bias), labels
        )

    return jax.value_and_grad(loss, (0, 1, 2))


def _loss_in_blocks(stride: int) -> Function:
    """Return the loss of the product head in blocks: labels are rearranged, logits are not."""

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array, labels: jax.Array) -> jax.Array:
        blocks = conv_transpose_blocks(x, kernel.astype(x.dtype), stride, stride // 2)
        return cross_entropy(
            dataclasses.replace(blocks, values=add_bias(blocks.values, bias, blocks.CLASS_AXIS)),
            labels,
        )

    return jax.value_and_grad(loss, (0, 1, 2))


def cases(setting: Setting) -> dict[str, dict[str, tuple[Function, Shapes]]]:
    """Return operator -> form -> (function, shapes of its arguments)."""
    height, width = setting.size
    batch, classes, stride, dtype = setting.batch, setting.num_classes, 32, jnp.dtype(setting.dtype)

    def shape(*sizes: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def stem(form: Function) -> Function:
        # The images need no gradient.
        return lambda grad, x, kernel: _with_gradients(lambda kernel: form(x, kernel))(grad, kernel)

    stem_shapes = (
        shape(batch, height // 2, width // 2, 64),
        shape(batch, height, width, 3),
        shape(7, 7, 3, 64),
    )
    pool_shapes = (
        shape(batch, height // 4, width // 4, 64),
        shape(batch, height // 2, width // 2, 64),
    )
    block_shapes = (
        shape(batch, height // 4, width // 4, 64),
        shape(3, 3, 64, 64, dtype=jnp.float32),
        shape(4, 64, dtype=jnp.float32),
    )
    head_shapes = (
        shape(batch, height // stride, width // stride, classes),
        shape(2 * stride, 2 * stride, classes, classes, dtype=jnp.float32),
        shape(classes, dtype=jnp.float32),
        shape(batch, height, width, dtype=jnp.uint8),
    )
    # The kernel covers two blocks along each axis, so there is one block more than features.
    blocks = (batch, height // stride + 1, width // stride + 1)
    loss_shapes = (
        shape(*blocks, classes, stride, stride),
        shape(*blocks, stride, stride, dtype=jnp.uint8),
    )
    return {
        "stem": {
            "7x7 on 3 channels": (stem(_plain_stem), stem_shapes),
            "4x4 on 16 channels": (
                stem(functools.partial(space_to_depth, Settings(2, 3, 1, 1), columns=1)),
                stem_shapes,
            ),
            "4x3 on 32 channels, to 2 columns": (
                stem(functools.partial(space_to_depth, Settings(2, 3, 1, 1), columns=2)),
                stem_shapes,
            ),
            "4x2 on 64 channels, to 4 columns": (
                stem(functools.partial(space_to_depth, Settings(2, 3, 1, 1), columns=4)),
                stem_shapes,
            ),
        },
        "max pool": {
            "select-and-scatter": (_scattered_pool, pool_shapes),
            "from the winners": (_pool_by_winners, pool_shapes),
        },
        "end of a block": {
            "normalization in the kernel": (_block(True, dtype), block_shapes),
            "separate normalization": (_block(False, dtype), block_shapes),
        },
        "loss, forward": {
            "in three passes": (
                functools.partial(losses._in_three_passes, SubpixelLogits.CLASS_AXIS),
                loss_shapes,
            ),
            "in one pass": (
                functools.partial(losses._in_one_pass, SubpixelLogits.CLASS_AXIS),
                loss_shapes,
            ),
        },
        "head and loss": {
            "product, loss in its blocks": (_loss_in_blocks(stride), head_shapes),
            "product": (_loss_after(nn.conv_transpose, stride), head_shapes),
            "lax.conv_general_dilated": (_loss_after(xla_conv_transpose, stride), head_shapes),
        },
    }


def _random(shapes: Shapes) -> tuple[jax.Array, ...]:
    """Return random arguments on the device; uint8 arrays are labels."""
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(
            rng.integers(0, 21, x.shape, np.uint8)
            if x.dtype == jnp.uint8
            else rng.standard_normal(x.shape),
            x.dtype,
        )
        for x in shapes
    )


def main() -> None:
    """Time the forms of each operator in turn, print and write the results."""
    parser = Parser("benchmarks.forms", __doc__)
    parser.add_setting(batch=32, dtype="bfloat16")
    parser.add_argument("--rounds", type=int, default=10, help="timed calls of each form")
    args = parser.parse_args()
    from benchmarks.record import RESULTS, environment  # requires PyTorch, which tpu_aot lacks
    from benchmarks.tasks import IN_A_ROW, Work

    setting = Setting(batch=args.batch, size=tuple(args.size), dtype=args.dtype)
    device = jax.default_backend()
    times, rows = 1 if device == "cpu" else IN_A_ROW, []
    for operator, found in cases(setting).items():
        calls = {}
        for form, (function, shapes) in found.items():
            run = functools.partial(
                jax.jit(function, compiler_options=compiler_options()), *_random(shapes)
            )
            calls[form] = functools.partial(Work(run, jax.block_until_ready, np.asarray), times)
        for form, taken in interleaved(calls, args.rounds, in_a_row=times).items():
            rows.append(
                {
                    "operator": operator,
                    "form": form,
                    "seconds": taken.median,
                    "quartiles": taken.spread,
                }
            )
            print(f"{operator:<14} {form:<32} {taken.median * 1000:9.3f} ms", flush=True)
    out = RESULTS / f"forms_{device}.json"
    write_json(
        out,
        {
            "environment": environment("cuda" if device == "gpu" else device),
            "setting": vars(args),
            "rows": rows,
        },
    )
    print(f"written: {out}")


if __name__ == "__main__":
    main()
