"""`vdeblur data check`: what is wrong with folders of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.pictures import build, put, scenery
from vdeblur.cli.main import main
from vdeblur.datasets.average import (
    average,
    response_table,
)
from vdeblur.datasets.camera_motion import Motion
from vdeblur.datasets.path_blur import camera_blur
from vdeblur.datasets.pictures import load_picture
from vdeblur.evaluation.check_pairs import check_folder, grey, light_gamma, shift_between


def shifted(x: float, y: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    wide = torch.tensor(scenery(288, 240)).permute(2, 0, 1)[None].float()
    moved = camera_blur(wide, Motion(torch.tensor([x, y]).expand(1, 4, 2)))
    a, b = (p[0, :, 24:-24, 24:-24].mean(dim=0).numpy() for p in (wide, moved))
    return a, b


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -1.6), (-7.25, 4.5)])
def test_shift_between_pictures(shift: tuple[float, float]) -> None:
    assert shift_between(*shifted(*shift)) == pytest.approx(shift, abs=0.1)


def test_gamma_of_the_light_that_was_averaged() -> None:
    bars = np.zeros((256, 256, 3), np.uint8) + np.uint8(40)
    bars[:, np.arange(256) // 8 % 2 == 1] = 200
    frames = np.stack([np.roll(bars, k, axis=1) for k in range(9)])
    for response, gamma in (("linear", 1.0), ("gamma:2.2", 2.2)):
        blurred = average(frames, response_table(response))
        assert light_gamma(blurred, frames[4]) == pytest.approx(gamma, abs=0.15)
    assert light_gamma(frames[4], frames[4]) is None


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "gopro", "gopro")
    assert main(["data", "check", str(tmp_path / "gopro")]) == 0
    said = capsys.readouterr().out
    assert "layout gopro" in said
    assert "train: 2 pairs in 2 sequences; 2 of 64x48" in said
    assert "identical" in said
    assert "median 0.00 pixels" in said
    put(tmp_path / "gopro" / "test" / "GOPR0384_11_00" / "blur" / "000048.png")
    put(tmp_path / "gopro" / "train" / "GOPR0372_07_00" / "sharp" / "000047.png", (60, 48))
    (tmp_path / "gopro" / "train" / "GOPR0372_07_01" / "blur" / "000047.png").write_bytes(
        b"\x89PNG"
    )
    assert main(["data", "check", str(tmp_path / "gopro"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["sound"]
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert "64x48" in train["mismatched"][0]
    assert "60x48" in train["mismatched"][0]
    assert "cannot be read" in train["unreadable"][0]
    assert "000048.png is missing" in test["missing"][0]
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 1
    assert "no pairs found" in capsys.readouterr().err


def test_check_measures_misalignment(tmp_path: Path) -> None:
    first, second = shifted(3.0, -1.0)
    for number in range(3):
        for kind, picture in (("sharp", first), ("blur", first if number else second)):
            path = tmp_path / kind / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    facts = check_folder(tmp_path).splits["all"]
    assert facts.shift == 0
    assert facts.measured[0].shift == pytest.approx((3.0, -1.0), abs=0.1)
    assert len(facts.identical) == 2
    assert grey(load_picture(tmp_path / "blur" / "0.png")).shape == (192, 240)
