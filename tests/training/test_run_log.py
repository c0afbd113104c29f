"""The log of a run."""

from __future__ import annotations

from pathlib import Path

from vdeblur.training.run_log import RunLog, read_metrics


def test_the_log_forgets_what_was_not_saved(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    RunLog(tmp_path, step=2).add({"step": 3, "loss": 2.0})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0)]
