"""Recordings: chapters found by their names, on cards and beside each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vdeblur import gopro
from vdeblur.errors import InputError
from vdeblur.gopro import recordings


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["GX010042.MP4", "GX020042.MP4", "GX030042.MP4"], []),
        (["GH010007.MP4", "GH030007.MP4"], ["GH020007.MP4"]),
        (["GX020042.MP4"], ["GX010042.MP4"]),
        (["GL010042.MP4", "GL020042.MP4"], []),
        (["GS010001.360", "GS020001.360"], []),
        (["GOPR0042.MP4", "GP010042.MP4", "GP020042.MP4"], []),
        (["GOPR0042.MP4", "GP020042.MP4"], ["GP010042.MP4"]),
        (["GPFR0003.MP4", "GF010003.MP4"], []),
        (["GXAA0011.MP4", "GXAA0012.MP4", "GXAA0013.MP4"], []),
        (["G0010005.MP4", "G0010006.MP4"], []),
        (["gx010042.mp4", "gx020042.mp4"], []),
    ],
)
def test_finds_the_chapters_from_any_of_them(
    tmp_path: Path, names: list[str], missing: list[str]
) -> None:
    beside = ["GX010042.THM", "GL010042.LRV", "GOPR0042.JPG", "G0010001.JPG", "GX010099.MP4"]
    for name in {*names, *beside, "holiday.MP4", "GOPR0099.WAV"}:
        (tmp_path / name).touch()
    for name in names:
        found = gopro.recording_of(tmp_path / name)
        assert [path.name for path in found.chapters] == names
        assert list(found.missing) == missing


def test_a_card_is_searched_to_the_bottom(tmp_path: Path) -> None:
    for name in (
        "DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX020001.MP4", "DCIM/100GOPRO/GX010002.MP4",
        "DCIM/101GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010001.LRV", "DCIM/100GOPRO/GX010003.JPG",
        "DCIM/100GOPRO/GX010002_deblurred.MP4", "DCIM/100GOPRO/.GX010009.MP4", "MISC/version.txt",
        "DCIM/100GOPRO/GXAA0001.MP4", "DCIM/100GOPRO/GXAA0002.MP4", "DCIM/100GOPRO/GXAA0007.MP4",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = gopro.find_recordings([tmp_path, tmp_path / "DCIM/100GOPRO/GX020001.MP4"])
    assert [[p.name for p in r.chapters] for r in found] == [
        ["GX010001.MP4", "GX020001.MP4"],
        ["GX010002.MP4"],
        ["GXAA0001.MP4", "GXAA0002.MP4"],
        ["GXAA0007.MP4"],  # another loop: the camera numbers on
        ["GX010001.MP4"],
    ]
    out = tmp_path / "out"
    assert [str(job.output.relative_to(out)) for job in gopro.jobs(found, folder=out)] == [
        "100GOPRO/GX010001_deblurred.MP4",
        "GX010002_deblurred.MP4",
        "GXAA0001_deblurred.MP4",
        "GXAA0007_deblurred.MP4",
        "101GOPRO/GX010001_deblurred.MP4",
    ]
    assert len(gopro.jobs(found, keep_chapters=True)) == 7
    with pytest.raises(InputError, match="no GoPro footage"):
        gopro.find_recordings([tmp_path / "MISC"])
    with pytest.raises(InputError, match="does not exist"):
        gopro.find_recordings([tmp_path / "GX010077.MP4"])
    assert recordings.read_name(Path("ride.mp4")) is None


@pytest.mark.skipif(os.name == "nt", reason="no named pipes")
def test_what_is_no_recording_is_said_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "GX010001.MP4")
    with pytest.raises(InputError, match="is a pipe"):
        gopro.find_recordings([tmp_path / "GX010001.MP4"])
    with pytest.raises(InputError, match="is a device"):
        gopro.find_recordings(["/dev/null"])
    with pytest.raises(InputError, match="is an address") as caught:
        gopro.find_recordings(["rtsp://user:secret@host/GX010001.MP4"])
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="no possible name"):
        gopro.find_recordings(["a\0.mp4"])
