"""The contract of losses: the built-in ones meet it, and broken promises are named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from fcn_jax.api import Loss, MeanLoss
from fcn_jax.plugins.testing.command import check_plugin
from fcn_jax.testing import check_loss
from fcn_jax.train.losses import builtin

BUILTIN = {
    name: getattr(builtin, name.upper())
    for name in ("cross_entropy", "ohem", "focal", "dice", "jaccard", "tversky", "lovasz", "bce")
}


def test_all_losses_are_registered() -> None:
    file = Path(__file__).parents[3] / "pyproject.toml"
    groups = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["entry-points"]
    module = "fcn_jax.train.losses.builtin"
    assert groups["fcn_jax.losses"] == {name: f"{module}:{name.upper()}" for name in BUILTIN}
    assert all(loss.name == name for name, loss in BUILTIN.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {"class_weights": "median_frequency", "label_smoothing": 0.1}),
        ("ohem", {"min_kept": 5}),
        ("focal", {}),
        ("dice", {"smooth": 1.0}),
        ("jaccard", {"log": True}),
        ("tversky", {"alpha": 0.3, "gamma": 0.75}),
        pytest.param("lovasz", {}, marks=pytest.mark.slow),
        pytest.param("lovasz", {"per_image": True, "classes": "all"}, marks=pytest.mark.slow),
        ("bce", {"pos_weight": 3.0}),
    ],
    ids=str,
)
def test_builtin_losses_meet_the_contract(name: str, options: dict[str, Any]) -> None:
    checks: list[str] = []
    check_loss(BUILTIN[name], options, progress=checks.append)
    tasks = BUILTIN[name].tasks
    assert len(checks) == 6 * len(tasks)
    assert f"loss '{name}', task '{tasks[0]}', one pixel: value and gradient" in checks


def valid(labels: Any) -> Any:
    return labels != 255


def squares(logits: Any, labels: Any, axis: int = -1) -> Any:
    return jnp.where(jnp.expand_dims(valid(labels), axis), logits**2, 0)


def places(labels: Any) -> Any:
    return jnp.arange(labels.size, dtype=jnp.float32).reshape(labels.shape)


def scaled(logits: Any, labels: Any) -> Any:
    return squares(logits, labels).sum() / jnp.maximum(valid(labels).sum(), 1)


@dataclasses.dataclass(frozen=True)
class WithWeight:
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Random:
    number: float | None = None


def loss(build: Any, **fields: Any) -> Loss:
    return Loss(name="mine", summary="", build=lambda *_: build, **fields)


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (loss(lambda z, y: (z**2).mean()), "ignored pixels have a gradient; it must be 0"),
        (
            loss(lambda z, y: squares(z, y).sum() / valid(y).sum()),
            "the loss is nan, and it or its gradient is not finite",
        ),
        (loss(lambda z, y: scaled(z, y) + 1), "the loss is 1.0; it must be 0 if all pixels are"),
        (loss(squares), r"the loss is float32\[3, 5, 7, 3\]; it must be float32\[\]"),
        (
            loss(MeanLoss(lambda z, y: squares(z, y).sum() ** 2, lambda y: valid(y).sum())),
            "the total of a batch is .* and the sum over its images",
        ),
        (
            loss(
                lambda z, y, axis=-1: (squares(z, y, axis).sum(axis) * places(y)).sum(),
                any_layout=True,
            ),
            "with the classes along axis 1",
        ),
        (loss(3), "build returns a int; it must be a MeanLoss or a function"),
        (loss(scaled, options=WithWeight), "options has the field 'weight'"),
        (loss(scaled, tasks=("panoptic",)), "it must name some of multiclass, binary, multilabel"),
        (
            loss(scaled, options=Random, complete=lambda o, c: Random(float(id(object()) + id(c)))),
            "are not the same after JSON and another `complete`",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_the_broken_promise(mine: Loss, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_loss(mine)


def test_a_correct_loss_of_a_stranger_passes() -> None:
    check_loss(loss(scaled))
    check_loss(loss(MeanLoss(lambda z, y: squares(z, y).sum(), lambda y: valid(y).sum())))


def test_command_checks_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    from fcn_jax.plugins import registry

    module = "fcn_jax.train.losses.builtin"
    entry = registry.Entry("losses", "dice", "fcn-jax", "0.1.0", f"{module}:DICE")
    plugins = registry.Registry([entry])
    monkeypatch.setattr(registry, "default", lambda: plugins)
    monkeypatch.setattr(
        "fcn_jax.plugins.testing.command.run_isolated", lambda *_: ([[None, 0.0, []]], "")
    )
    findings = list(check_plugin(entry, options={"smooth": 1.0}, progress=lambda _: None))
    assert [finding.kept for finding in findings] == [True] * 3
    assert findings[-1].detail == "every promise is kept"
