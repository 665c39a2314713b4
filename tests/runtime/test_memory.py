"""Settings of a process, made in separate processes."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from fcn_jax.runtime import memory

PROGRAM = """
import resource
from fcn_jax.runtime.memory import tune_malloc
print(tune_malloc())
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**28
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


GIVING_BACK = """
import ctypes
from pathlib import Path
from fcn_jax.runtime.memory import trim_malloc, tune_malloc
tune_malloc()
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
blocks = [b"x" * 2**20 for _ in range(100)]
last = b"x" * 2**20
del blocks
before = resident()
trim_malloc()
print(before - resident())
"""


FREEING = """
import ctypes
from fcn_jax.runtime.memory import disable_async_dispatch
disable_async_dispatch()
import jax
import jax.numpy as jnp
libc = ctypes.CDLL(None)
class Mallinfo(ctypes.Structure):
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]
libc.mallinfo2.restype = Mallinfo
def held():
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd
x = jnp.zeros((1024, 1024))
product = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)) @ jnp.tan(x)).lower(x).compile()
def after():
    y = product(x).block_until_ready()
    return held()
after()
print(max(after() for _ in range(50)) - min(after() for _ in range(50)))
"""


def output_of(program, **environment):
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**plain, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def run(**environment):
    kept, faults = output_of(PROGRAM, **environment).split()
    return kept == "True", int(faults)


@glibc
def test_freed_memory_is_reused_without_the_system():
    kept, faults = run()
    assert kept
    assert faults < 1000  # 256 MiB are 65,536 pages of 4 KiB


@glibc
@pytest.mark.parametrize("variable", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_environment_takes_precedence(variable):
    kept, faults = run(
        **{variable: "4" if variable.startswith("MALLOC") else "glibc.malloc.tcache_count=4"}
    )
    assert not kept
    assert faults > 1000


@glibc
def test_trim_malloc_returns_freed_memory_to_the_system():
    assert int(output_of(GIVING_BACK)) > 90 * 1024, "KiB of the hundred MiB"


@glibc
@pytest.mark.slow
def test_call_frees_its_memory_before_it_returns():
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc before 2.33 has no mallinfo2")
    done = subprocess.run(
        [sys.executable, "-c", FREEING], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 2**20  # the temporaries of the program are about 12 MiB


def test_trim_malloc_does_nothing_in_another_c_library(monkeypatch):
    monkeypatch.setattr(memory, "_tuned", True)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.trim_malloc()


def test_trim_malloc_does_nothing_unless_the_process_was_tuned(monkeypatch):
    monkeypatch.setattr(memory, "_tuned", False)
    monkeypatch.setattr(memory.gc, "collect", lambda: pytest.fail("a library call changed this"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("as did this"))
    memory.trim_malloc()


def test_peak_memory_on_cpus_returns_that_of_the_process():
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    assert least <= memory.peak_memory() < least + 0.1
