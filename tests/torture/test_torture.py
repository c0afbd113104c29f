"""A short round of the torture, and what its judge finds in outcomes and files that are wrong."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import clips
from tests.torture import judge, processes
from tests.torture.__main__ import main
from tests.torture.mutations import damaged
from tests.torture.processes import Outcome
from tests.torture.trials import Job

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks processes")


def test_one_round_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rounds", "1", "--jobs", "1", "--seed", "3"]) == 0, capsys.readouterr().out
    table = capsys.readouterr().out
    assert "| fuzz | 20 | 20 |" in table
    assert "| kill | 3 | 3 |" in table


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(0, "o.mp4: 24 frames", 1.0), None),
        (Outcome(1, "vdeblur: a.mp4 is empty", 1.0), None),
        (Outcome(1, "", 1.0), "exit"),
        (Outcome(70, "x", 1.0), "exit"),
        (Outcome(-11, "", 1.0), "crash"),
        (Outcome(None, "", 60.0), "hang"),
        (Outcome(1, "Traceback (most recent call last):\nKeyError: 1", 1.0), "traceback"),
        (Outcome(0, "done", 1.0, peak_mib=9000), "memory"),
    ],
)
def test_the_judge_names_what_an_outcome_shows(outcome: Outcome, kind: str | None) -> None:
    assert [fault.split(":")[0] for fault in judge.faults_of(outcome)] == ([kind] if kind else [])


def test_the_judge_names_short_and_missing_files_and_leftovers(tmp_path: Path) -> None:
    job = Job("film", (), {"out/o.mkv": 5}, ("out/1.png",))
    (tmp_path / "out").mkdir()
    assert job.faults(tmp_path, complete=False) == []
    assert len(job.faults(tmp_path, complete=True)) == 2
    clips.write_frames(tmp_path / "out" / "o.mkv", [clips.picture(n) for n in range(4)])
    (tmp_path / "out" / ".o.part").write_bytes(b"half")
    found = job.faults(tmp_path, complete=False) + judge.leftovers(tmp_path)
    assert found == ["lost: o.mkv has 4 of 5 frames", "leaked: out/.o.part"]


def test_damage_can_be_made_again() -> None:
    data = bytes(range(256)) * 8
    first = damaged(data, random.Random("a"))
    assert first == damaged(data, random.Random("a"))
    assert first != data


def _fail() -> None:
    raise RuntimeError("a fault of the program")


@pytest.mark.parametrize("prepare", [None, _fail])
def test_a_command_in_its_process(tmp_path: Path, prepare: Callable[[], None] | None) -> None:
    outcome = processes.run(["--version"], tmp_path, prepare=prepare)
    assert outcome.code == (0 if prepare is None else 70)
