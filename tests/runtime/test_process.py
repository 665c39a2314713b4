"""Settings of a process, and their effect on XLA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_jax.runtime import process


@pytest.mark.parametrize(
    ("trains", "made"),
    [(True, ["tune_malloc", "disable_async_dispatch", "rolled"]), (False, ["tune_malloc"])],
)
def test_training_process_gets_more_settings(
    monkeypatch: pytest.MonkeyPatch, trains: bool, made: list[str]
) -> None:
    called: list[str] = []
    for name in ("tune_malloc", "disable_async_dispatch"):
        monkeypatch.setattr(process.memory, name, lambda name=name: called.append(name))
    monkeypatch.setattr(process, "disable_loop_unrolling", lambda: called.append("rolled"))
    process.configure_process(trains=trains)
    assert called == made


@pytest.mark.parametrize("flags", ["", "--xla_cpu_enable_fast_math=false"])
def test_adds_the_flag_once(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert process.disable_loop_unrolling()
    assert os.environ["XLA_FLAGS"].split() == [*flags.split(), process._ROLLED]
    assert not process.disable_loop_unrolling()
    assert os.environ["XLA_FLAGS"].count("unrolling") == 1


@pytest.mark.parametrize(
    "flags", ["--xla_backend_extra_options=xla_cpu_unroll_loops=true", "/some/flags.txt"]
)
def test_environment_takes_precedence(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert not process.disable_loop_unrolling()
    assert os.environ["XLA_FLAGS"] == flags


PROGRAM = """
from fcn_jax import compiler_options
from fcn_jax.runtime import process
if {rolled}:
    process.disable_loop_unrolling()
import jax
import jax.numpy as jnp
function = jax.jit(lambda x: jnp.argmax(x, -1), compiler_options=compiler_options())
function.lower(jnp.zeros((100, 64, 21))).compile()
"""


@pytest.mark.slow
def test_xla_unrolls_no_loop(tmp_path: Path) -> None:
    def size(*, rolled: bool) -> int:
        folder = tmp_path / str(rolled)
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": "",  # programs from a cache are not dumped
            "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_module_re=lambda",
        }
        subprocess.run(
            [sys.executable, "-c", PROGRAM.format(rolled=rolled)],
            env=environment,
            check=True,
            timeout=120,
        )
        return sum(path.stat().st_size for path in folder.glob("*with-opt.ll"))

    rolled, unrolled = size(rolled=True), size(rolled=False)
    if not unrolled:
        pytest.skip("this XLA shows no LLVM IR")
    assert 0 < 2 * rolled < unrolled
