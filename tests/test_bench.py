"""The benchmark: what it measures, and how it says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.media import scene, write_frames
from vdeblur import InputError, UsageError, cli
from vdeblur.bench import BenchResult, bench, format_result


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "clip.mp4"
    return write_frames(path, (scene(n) for n in range(8)), "libx264")


def test_every_stage_is_measured(clip: Path) -> None:
    result = bench(clip, model="identity", device="cpu", frames=5, rounds=2, preset="ultrafast")
    assert (result.frames, result.rounds, result.size, result.batch) == (5, 2, "64x48", 1)
    assert (result.encoder, result.model) == ("libx264", "identity")
    rates = {name: getattr(result, name) for name in ("decode", "network", "encode")}
    assert all(rate > 0 for rate in (*rates.values(), result.pipeline))
    assert result.slowest == min(rates, key=lambda name: rates[name])
    assert result.efficiency == result.pipeline / rates[result.slowest]
    assert list(clip.parent.iterdir()) == [clip]


def test_how_it_is_shown() -> None:
    result = BenchResult(
        "a.mp4", "64x48", 5, 3, "identity", "CPU", "libx264", 1, 200.0, 50.0, 100.0, 40.0
    )
    assert result.slowest == "network"
    assert result.efficiency == 0.8
    text = format_result(result)
    marked = next(line for line in text.splitlines() if "<- slowest stage" in line)
    assert marked.split()[:2] == ["network", "50.0"]
    assert "0.80" in text
    assert json.loads(json.dumps(result.as_dict()))["efficiency"] == 0.8


def test_command(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(clip), "--model", "identity", "--frames", "3", "--rounds", "1", "--json"]
    assert cli.main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 3


def test_what_cannot_be_measured(tmp_path: Path, clip: Path) -> None:
    with pytest.raises(UsageError):
        bench(clip, model="identity", frames=0)
    with pytest.raises(InputError):
        bench(tmp_path / "none.mp4", model="identity")
