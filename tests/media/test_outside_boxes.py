"""What lies behind the last box of an MP4, and MP4 files under a camera's own suffix."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.clips import MP4, PLAIN, failed, make
from vdeblur.cli.main import main
from vdeblur.deblur import deblur_video
from vdeblur.media.default_names import default_output
from vdeblur.media.mp4 import boxes
from vdeblur.media.verify import verify

INSTA360 = b"\x01\x02gyro" * 500 + b"8db42d694ccc418790edff439fe026bf"
TAILS = {
    "Insta360": INSTA360,
    "Samsung": b"\0\0\1\x0a" + b"Image_UTC" + bytes(20) + b"SEFT",
    "zeros": bytes(4096),
    "one byte": b"x",
    "a box that claims too much": struct.pack(">I4sQ", 1, b"zzzz", 1 << 40) + b"abc",
    "a maker's box and more": struct.pack(">I4s", 32, b"inst") + bytes(24) + b"rest" * 9,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    media = replace(PLAIN, audio=MP4.audio[:1], rotation=None, pts=MP4.pts[:6])
    return make(tmp_path_factory.mktemp("plain") / "plain.mp4", media).read_bytes()


@pytest.mark.parametrize("name", TAILS)
def test_what_lies_behind_the_last_box_is_kept(tmp_path: Path, plain: bytes, name: str) -> None:
    tail, source = TAILS[name], tmp_path / "VID_1.mp4"
    source.write_bytes(plain + tail)
    output = tmp_path / "output.mp4"
    report = deblur_video(source, output, model="identity")
    assert output.read_bytes().endswith(tail)
    assert not report.damage
    assert not report.differences
    assert report.frames == 6
    # That the check can fail.
    output.write_bytes(output.read_bytes()[: -len(tail)])
    assert "maker boxes" in failed(verify(source, output))


@pytest.mark.parametrize("part", [False, True], ids=["another container", "a part"])
def test_what_cannot_be_kept_behind_the_boxes_is_said(
    tmp_path: Path, plain: bytes, part: bool
) -> None:
    source, output = tmp_path / "VID_1.mp4", tmp_path / ("output.mp4" if part else "output.mkv")
    source.write_bytes(plain + INSTA360)
    report = deblur_video(source, output, model="identity", start=0.05 if part else None)
    assert any("Insta360's trailer of 3032 bytes" in line for line in report.lost)
    assert not report.differences


@pytest.mark.parametrize("name", ["VID_1.insv", "GL010001.LRV", "GS010001.360"])
def test_an_mp4_under_another_name_stays_one(tmp_path: Path, plain: bytes, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(plain)
    output = Path(default_output(source))
    assert output.suffix == source.suffix
    assert main(["video", str(source), "--model", "identity", "--quiet"]) == 0
    assert boxes.brand(output) == boxes.brand(source) == b"isom"
    assert not failed(verify(source, output))
    noise = tmp_path / f"noise{source.suffix}"
    noise.write_bytes(b"no film")
    assert Path(default_output(noise)).suffix == ".mkv"


def test_cut_off_is_what_lacks_bytes_of_a_film(tmp_path: Path, plain: bytes) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(plain + TAILS["a box that claims too much"])
    assert boxes.missing_bytes(source) == 0
    source.write_bytes(plain + struct.pack(">I4s", 4096, b"free") + bytes(100))
    assert boxes.missing_bytes(source) == 0
    source.write_bytes(plain + struct.pack(">I4s", 4096, b"moof") + bytes(100))
    assert boxes.missing_bytes(source) == 4096 - 108
    source.write_bytes(plain[:-50])  # moov first: the pictures end early
    assert boxes.missing_bytes(source) == 50
