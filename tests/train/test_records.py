import json
from pathlib import Path

from fcn_jax.train.records import Records


def test_drops_records_after_the_checkpoint_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    records = Records(path, after_step=2)
    records.write(step=3, loss=float("nan"))
    records.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": None},
    ]


def test_drops_the_record_of_a_repeated_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "event": "val"}', '{"step": 2, "event": "train"}']
    path.write_text("\n".join([*lines, '{"step": 2, "event": "val"}']) + "\n")
    Records(path, after_step=2, evaluate_again=True).close()
    assert path.read_text().splitlines() == lines
