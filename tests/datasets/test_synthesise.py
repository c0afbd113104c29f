"""`vdeblur data synth`: pairs from photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vdeblur.cli.main import main
from vdeblur.datasets.blur_options import BlurOptions
from vdeblur.datasets.layouts import find_pairs
from vdeblur.datasets.pictures import load_picture


def test_synth(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "synth", str(photos), "--crop", "32", "--count", "3", "-o"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*command, str(tmp_path / name), "--seed", seed]) == 0
    assert "3 pairs of 32 pixels" in capsys.readouterr().err
    pairs = {name: find_pairs(tmp_path / name) for name in "abc"}
    assert [len(found) for found in pairs.values()] == [3, 3, 3]
    bytes_of = {name: [p.blurred.read_bytes() for p in found] for name, found in pairs.items()}
    assert bytes_of["a"] == bytes_of["b"]
    assert bytes_of["a"] != bytes_of["c"]
    made = json.loads((tmp_path / "a" / "made.json").read_text())
    assert made["seed"] == 1
    assert made["options"]["max_length"] == BlurOptions().max_length
    assert main([*command, str(tmp_path / "a")]) == 1
    assert "is not empty" in capsys.readouterr().err
    off = [
        f"--set={key}=0"
        for key in ("noise", "jpeg_share", "h264_share", "max_length", "smear_share")
    ]
    off += [
        "--set=layer_share=0",
        "--set=varying_share=0",
        "--set=highlight_share=0",
        "--set=lights_share=0",
    ]
    assert main([*command, str(tmp_path / "a"), "--force", *off]) == 0
    for pair in find_pairs(tmp_path / "a"):
        difference = load_picture(pair.blurred).astype(int) - load_picture(pair.sharp)
        assert np.abs(difference).max() <= 1
    for bad in (["--set", "blurriness=2"], ["--set", "noise"], ["--count", "0"]):
        assert main([*command, str(tmp_path / "d"), *bad]) == 2
    assert main(["data", "synth", str(photos)]) == 2
    assert not (tmp_path / "d").exists()


def test_sheet(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["data", "synth", str(photos), "--sheet", str(sheet), "--crop", "32"]
    assert main(words) == 0
    assert main(words) == 1  # it is there already
    picture = load_picture(sheet)
    assert picture.shape == (4 * (2 * 32 + 22) - 4, 6 * 36 - 4, 3)
    sharp, blurred = picture[18:50, :32].astype(int), picture[50:82, :32].astype(int)
    assert sharp.std() > 10
    assert np.abs(sharp - blurred).mean() > 1  # the first is nothing but a path
    assert (picture[:16, :80].min(axis=2) < 100).any()  # its name
    assert main(["data", "synth", str(photos), "--sheet", str(tmp_path / "a.none")]) == 1
    assert not (tmp_path / "a.none").exists()
