"""The programs under pipelines/ run by their path; the public names are what they say."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vdeblur
from tests.media import same_frames, scene, write_frames
from vdeblur.checkpoints import load_network
from vdeblur.training.data import SyntheticPairs

ROOT = Path(__file__).parents[1]


def program(name: str, *arguments: object) -> str:
    words = [sys.executable, str(ROOT / "pipelines" / name), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names() -> None:
    assert sorted(vdeblur.__all__) == vdeblur.__all__
    for name in vdeblur.__all__:
        value = getattr(vdeblur, name)
        assert value.__name__ == name
        assert value.__module__.startswith("vdeblur.")
        assert name in dir(vdeblur)
    assert set(vdeblur._HOME) == set(vdeblur.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = vdeblur.deblur_everything
    errors = importlib.import_module("vdeblur.errors")
    for name in ("InputError", "OutputError", "Cancelled"):
        assert issubclass(getattr(errors, name), vdeblur.VdeblurError)


def test_deblur_file(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(4)))
    said = program("deblur_file.py", source, tmp_path / "b.mkv", "--model", "identity")
    assert "4 frames, 0 left as they were" in said
    assert same_frames(tmp_path / "b.mkv", source)


def test_benchmark_fps(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(4)))
    said = program("benchmark_fps.py", source, "--model", "identity", "--frames", 3)
    assert "3 frames, 3 rounds" in said
    assert "slowest stage" in said


def test_train_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 72)).save(photos / f"{number:02d}.png")

    class Small(SyntheticPairs):
        """A validation set that does not take half a minute."""

        def __init__(self, files: list[Path], *, batch: int = 8, crop: int = 192, **options: Any):
            super().__init__(files, batch=min(batch, 4), crop=min(crop, 64), **options)

    def train(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["train_synthetic.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "pipelines" / "train_synthetic.py"), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.setattr("vdeblur.training.data.SyntheticPairs", Small)
    weights, state = tmp_path / "weights.safetensors", tmp_path / "run.pt"
    options = ["--out", weights, "--state", state, "--device", "cpu", "--workers", 0]
    options += ["--base", 8, "--blocks", 1, "--unshuffle", 1, "--batch", 2, "--crop", 32]
    first = train(photos, *options, "--budget", 1)
    network = load_network("mimo-unet", weights)
    assert sum(p.numel() for p in network.parameters()) > 1000
    second = train(photos, *options, "--budget", 2)
    steps = [int(text.split("step ")[1].split()[0]) for text in (first, second)]
    assert steps[1] > steps[0] > 0  # it went on, and did not begin anew
    assert float(second.split()[0]) >= 2
