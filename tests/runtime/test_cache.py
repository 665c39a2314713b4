import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from fcn_jax import checkpoint
from fcn_jax.api import Classes, ModelSpec
from fcn_jax.models.build import build
from fcn_jax.runtime import cache


def test_environment_decides_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("FCN_JAX_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "fcn_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder() == tmp_path / ".cache" / "fcn_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "fcn_jax"
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own"


def test_compilation_cache_of_the_user_takes_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    cache.enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path))
    cache.enable_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "xla")


def test_a_program_that_was_cut_off_is_written_again(tmp_path, monkeypatch, capsys):
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def compute():
        jax.clear_caches()
        compilation_cache.reset_cache()

        def program_for_this_test(x):
            return 3 * x + 1

        return float(jax.jit(program_for_this_test)(2.0))

    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        assert compute() == 7
        (path,) = tmp_path.glob("jit_program_for_this_test-*-cache")
        others = {one: one.read_bytes() for one in tmp_path.glob("*-cache") if one != path}
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            cache.replace_damaged_programs()
            assert compute() == 7
            assert len(path.read_bytes()) > 0.9 * len(whole)
            assert f"{path} is damaged; it is compiled again" in capsys.readouterr().err
            assert compute() == 7
            assert capsys.readouterr().err == ""
        assert all(one.read_bytes() == contents for one, contents in others.items())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@pytest.mark.slow
def test_command_reuses_compiled_programs_of_an_earlier_one(tmp_path):
    spec = ModelSpec("resnet18", "fcn32s", 3)
    classes = Classes(("a", "b", "c"), ((0, 0, 0), (1, 0, 0), (2, 0, 0)))
    checkpoint.save_model(
        tmp_path / "model",
        checkpoint.make_spec(spec, classes),
        checkpoint.arrays(build(spec, rngs=nnx.Rngs(0))),
    )
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "image.png")
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {
        "FCN_JAX_CACHE": str(tmp_path)
    }
    command = [
        sys.executable,
        "-m",
        "fcn_jax",
        "predict",
        str(tmp_path / "model"),
        str(tmp_path / "image.png"),
    ]

    def kept() -> set[Path]:
        return {path for path in (tmp_path / "xla").iterdir() if path.name.endswith("-cache")}

    masks = []
    for number in range(2):
        subprocess.run(
            [*command, "-o", str(tmp_path / str(number))],
            env=environment,
            check=True,
            capture_output=True,
        )
        masks.append((tmp_path / str(number) / "image.png").read_bytes())
        if number == 0:
            first = kept()
    assert first
    assert kept() == first, "the second compiled something that the first had kept"
    assert masks[0] == masks[1]
