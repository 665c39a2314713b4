"""What a run spent its time on."""

from __future__ import annotations

from collections.abc import Mapping

from fcn_jax.report.run import Run

COMPUTE = "steps"
WAIT = "waiting for input"
COMPILE = "compilation"
EVALUATION = "evaluation"
CHECKPOINTS = "checkpoints"
START = "starting (data, model, weights)"
OTHER = "other"


def spent(run: Run) -> dict[str, float]:
    """Return the seconds of each kind of work that the records of a run account for.

    `step_seconds` and `input_wait_seconds` of a training record are means over the steps since the
    record before. Steps that were taken again after a kill count once.
    """
    seconds = dict.fromkeys((COMPUTE, WAIT, COMPILE, EVALUATION, CHECKPOINTS, START, OTHER), 0.0)
    before = 0
    for record in run.records:
        kind = record.get("event")
        if kind == "compile":
            before = record["step"]
            seconds[COMPILE] += record.get("compile_seconds") or 0.0
            seconds[START] += record.get("setup_seconds") or 0.0
        elif kind == "train":
            steps = max(record["step"] - before, 0)
            before = record["step"]
            wait = steps * (record.get("input_wait_seconds") or 0.0)
            seconds[WAIT] += wait
            seconds[COMPUTE] += max(steps * (record.get("step_seconds") or 0.0) - wait, 0.0)
        elif kind == "val":
            seconds[EVALUATION] += record.get("seconds") or 0.0
        elif kind == "checkpoint":
            seconds[CHECKPOINTS] += record.get("seconds") or 0.0
    ends = run.events("end")
    if ends and len(ends) == len(run.events("compile")):
        whole = sum(record.get("seconds") or 0.0 for record in ends)
        seconds[OTHER] = max(whole - sum(seconds.values()), 0.0)
    return seconds


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the share in percent of each kind of work that took any time."""
    whole = sum(seconds.values())
    return {kind: 100 * spent / whole for kind, spent in seconds.items() if whole and spent}


def summary(run: Run) -> str | None:
    """Return one line about the time of a run; None if no time is recorded.

    Goodput is the share of the time in which training steps were computed.
    """
    seconds = spent(run)
    parts = shares(seconds)
    if not parts:
        return None
    named = ", ".join(
        f"{kind} {share:.0f} %" if share >= 1 else f"{kind} under 1 %"
        for kind, share in sorted(parts.items(), key=lambda part: -part[1])
    )
    whole = duration(sum(seconds.values()))
    return f"time: {whole}, of which {named}; goodput {parts.get(COMPUTE, 0):.0f} %"


def duration(seconds: float) -> str:
    """Return a duration in words, such as "1 h 05 min"."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
