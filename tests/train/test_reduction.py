"""Reduction of gradients over devices, read from the program that XLA's partitioner writes."""

import math
import os
import re
import subprocess
import sys

import pytest

PROCESS = """
import sys
import jax
import numpy as np
import optax
from flax import nnx
from jax import lax

# Take the implementation for another device; the partitioner treats it as it would there.
lax.platform_dependent = lambda *args, default=None, **forms: forms.get(sys.argv[1], default)(*args)

import fcn_jax
from fcn_jax.api import Preprocess
from fcn_jax.config import MeshConfig
from fcn_jax.train import sharding
from fcn_jax.train import step as train_step

placement = sharding.make_placement(MeshConfig(), 4)
model = fcn_jax.build_model("resnet18", "fcn32s", 5, dtype="bfloat16", rngs=nnx.Rngs(0))
tpu = sys.argv[1] == "tpu"
state, step = train_step.make(model, optax.sgd(0.1), Preprocess(), blocks=tpu, placement=placement)
batch = {"image": np.zeros((4, 64, 64, 3), np.uint8), "mask": np.zeros((4, 64, 64), np.uint8)}
state, batch = placement.put(state), placement.put_batch(batch)
jax.jit(step).lower(state, batch).compile()
print(sum(leaf.size for leaf in jax.tree.leaves(state.params)))
"""


@pytest.fixture
def split(tmp_path):
    """Return platform -> (collectives, number of parameters) of a training step on two devices.

    The step is in bfloat16. A collective is (kind, dtype, elements). The compiled text is of no
    use, because XLA for CPUs widens bfloat16 sums.
    """

    def run(platform):
        dump = (
            f"--xla_dump_to={tmp_path} --xla_dump_hlo_pass_re=spmd-partition.* "
            "--xla_dump_hlo_module_re=jit_step"
        )
        flags = (
            f"--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 {dump}"
        )
        # Programs from a cache are not dumped.
        uncached = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": "", "XLA_FLAGS": flags}
        environment = {**os.environ, **uncached}
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, platform],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        dumped = list(tmp_path.glob("*after_spmd-partition*"))
        assert len(dumped) == 1, (
            f"expected one file, the partitioned step: {[path.name for path in dumped]}"
        )
        text = dumped[0].read_text()
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        found = [
            (kind, dtype, math.prod(map(int, filter(None, shape.split(",")))))
            for arrays, kind in re.findall(rf" = (\(.*?\)|\S+) ({kinds})(?:-start)?\(", text)
            for dtype, shape in re.findall(r"\b([a-z]+\d+)\[([\d,]*)\]", arrays)
        ]
        return found, int(done.stdout)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_devices_sum_gradients_in_float32_and_exchange_nothing_larger(split, platform):
    found, parameters = split(platform)
    assert {kind for kind, _, _ in found} == {"all-reduce"}, "activations stay where they are"
    # On CPUs `fusion_barrier` looks at one number of each block.
    assert {dtype for _, dtype, elements in found if elements > 1} == {"f32"}
    total = sum(elements for _, dtype, elements in found if dtype == "f32")
    # The gradients of all parameters, and the statistics of batch normalization, which are a few
    # numbers per channel.
    assert parameters <= total < 1.01 * parameters
