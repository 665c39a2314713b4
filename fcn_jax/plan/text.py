"""A plan as text."""

from __future__ import annotations

from fcn_jax.config import Config
from fcn_jax.plan.plan import Plan
from fcn_jax.plan.scaling import Row

_EXPLAINED = {
    "parameters": "",
    "gathered": "whole arrays of which a device keeps a part",
    "statistics": "of batch normalization",
    "optimizer": "",
    "averages": "optim.ema_decay",
    "gradients": "",
    "inputs": "images and masks",
    "activations": "kept for the backward pass",
    "workspace": "an estimate: other temporary values",
}


def text(plan: Plan, name: str, config: Config) -> str:
    """Return a plan as lines for people.

    Args:
        plan: the plan.
        name: of the recipe.
        config: the recipe.
    """
    blocks = _title(plan, name, config), _memory(plan), _step(plan), _table(plan)
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _title(plan: Plan, name: str, config: Config) -> list[str]:
    kind, model, crop = plan.kind, config.model, config.data.crop_size
    size = "x".join(map(str, crop)) if isinstance(crop, tuple) else "320x480"
    parts = ", ".join(f"{axis} {count}" for axis, count in plan.mesh.items())
    mesh = "" if plan.mesh["data"] == plan.devices else f"; mesh: {parts}"
    return [
        f"{name} on {plan.devices} x {kind.name} ({_bytes(kind.memory)}, "
        f"{_bytes(kind.bandwidth)}/s)",
        f"{model.backbone} + {model.head}, {model.dtype}, crops of {size}: a batch of "
        f"{plan.here.images}, {plan.images} on each device{mesh}",
        "All figures are bounds from the traced step and from datasheets: no device was used. A",
        "real step takes longer; memory may differ by tens of percent.",
        *(f"note: {note}" for note in plan.notes),
    ]


def _memory(plan: Plan) -> list[str]:
    lines = ["memory of each device"]
    for part, size in plan.memory.items():
        if size or part not in ("averages", "gathered", "statistics"):
            lines.append(f"  {part:<16}{_bytes(size):>10}  {_EXPLAINED[part]}".rstrip())
    share = plan.kind.usable
    of = f"of {_bytes(plan.available)}"
    if share < 1:
        of += f", {share:.0%} of {_bytes(plan.kind.memory)} (XLA_PYTHON_CLIENT_MEM_FRACTION)"
    verdict = "fits" if plan.fits else "too much"
    lines.append(f"  {'sum':<16}{_bytes(plan.total):>10}  {of}: {verdict}")
    if plan.largest:
        batch = plan.largest * plan.devices // plan.mesh["spatial"]
        most = f"{plan.largest} images on each device, data.batch_size={batch}"
    else:
        most = "none: not even one image fits; lower data.crop_size, or set optim.remat=true"
    return [*lines, f"  {'largest batch':<16}{most}"]


def _step(plan: Plan) -> list[str]:
    here = plan.here
    lines = ["a step takes at least"]
    for operands, flops in plan.flops.items():
        dtype, precision = operands.split(", ")
        peak = plan.kind.peak(dtype, precision)
        exact = f", precision {precision}" if precision != "default" else ""
        lines.append(
            f"  {_seconds(flops / peak):>9}  {_scaled(flops)}FLOP at {_scaled(peak)}FLOP/s, the "
            f"peak for {dtype}{exact}"
        )
    slow = "memory" if plan.bytes_seconds > plan.compute_seconds else "arithmetic"
    lines += [
        f"  {_seconds(plan.bytes_seconds):>9}  {_bytes(plan.bytes)} read and written",
        f"  {_seconds(plan.alone_seconds):>9}  one operation after the other: limited by {slow}",
    ]
    if plan.devices > 1:
        lines += [
            f"  {_seconds(here.reduce_seconds):>9}  {_bytes(plan.reduced)} added up by all devices",
            f"  {_seconds(here.seconds):>9}  if they do so during the backward pass; after it "
            f"{_seconds(here.seconds_apart)}",
        ]
    hosts, rate = -(-plan.devices // plan.kind.host), here.images_per_second
    each = f", {_number(rate / hosts)} on each of {hosts} hosts" if hosts > 1 else ""
    return [*lines, f"  at most {_number(rate)} images/s{each}, which the input must deliver"]


def _table(plan: Plan) -> list[str]:
    lines = [
        f"with {plan.images} images on each device, at best",
        "  devices    batch  all-reduce  efficiency    images/s",
    ]
    return [*lines, *(_row(plan, row) for row in plan.table)]


def _row(plan: Plan, row: Row) -> str:
    low, high = row.efficiency(plan.alone_seconds)
    share = f"{100 * low:.0f}-{100 * high:.0f} %" if row.devices > 1 else "100 %"
    return (
        f"  {row.devices:>7}  {row.images:>7}  {_seconds(row.reduce_seconds):>10}  {share:>10}  "
        f"{_number(row.images_per_second):>10}"
    )


def _bytes(size: float) -> str:
    return f"{_scaled(size)}B"


def _scaled(value: float) -> str:
    """Three digits, and the prefix of the unit that follows."""
    for prefix, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def _number(value: float) -> str:
    """A number of three digits or fewer that count."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(seconds: float) -> str:
    if seconds == 0:
        return "0"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
