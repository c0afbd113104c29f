"""What travels with pictures in their coding: user data of cameras and drones, and captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from tests.helpers.clips import PLAIN, Media, failed, make
from vdeblur.deblur import deblur_video
from vdeblur.media.encoders import picture_data
from vdeblur.media.verify import verify

UUID = bytes(range(1, 17))
HEVC = replace(PLAIN, codec="libx265", options={"x265-params": "log-level=none"})


def with_sei(path: Path, media: Media, sei: Callable[[int], bytes]) -> Path:
    """A film that has the NAL unit `sei(number)` before each of its 24 pictures."""
    plain = make(path.with_name("plain.ts"), replace(media, rotation=None, suffix=".ts"))
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            copy = av.Packet(b"\0\0\0\1" + sei(number) + bytes(packet))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            output.mux(copy)
    return path


def user_data_sei(number: int) -> bytes:
    """User data of H.264 (payload type 5; ITU-T H.264, D.1.7)."""
    data = UUID + b"GPS%05d" % number
    return b"\x06\x05" + bytes([len(data)]) + data + b"\x80"


def user_data(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        frames = [picture_data(frame, "h264") for frame in container.decode(video=0)]
    return [data for frame in frames for data in frame.get("SEI_UNREGISTERED", [])]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.mkv"
    return with_sei(path, replace(PLAIN, captions=True), user_data_sei)


def test_user_data_and_captions_are_kept(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "output.mkv"
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    assert not report.lost
    assert sorted(user_data(output)) == sorted(user_data(source))
    assert len(user_data(output)) == report.frames == 24
    assert not failed(verify(source, output))
    plain = make(tmp_path / "plain.mkv", replace(PLAIN, rotation=None, suffix=".mkv"))
    assert {"user data", "closed captions"} <= failed(verify(source, plain))


@pytest.mark.parametrize(
    ("encoder", "suffix", "lost"),
    [
        ("libx265", ".mkv", {"user data"}),
    ],
)
def test_what_an_encoder_drops_is_said(
    tmp_path: Path, source: Path, encoder: str, suffix: str, lost: set[str]
) -> None:
    from vdeblur.media.encoders import EncodeOptions

    output = tmp_path / f"output{suffix}"
    report = deblur_video(
        source, output, model="identity", encode=EncodeOptions(encoder=encoder, preset=None)
    )
    said = {word for word in ("user data", "closed captions") if word in " ".join(report.lost)}
    assert said == lost
    assert all(not name.startswith(tuple(lost)) for name in report.differences)


def time_code_sei(hours: int, minutes: int, seconds: int, frames: int) -> bytes:
    """A time code SEI message of HEVC (payload type 136; ITU-T H.265, D.2.27), as a NAL unit."""
    fields = [(1, 2), (1, 1), (0, 1), (0, 5), (1, 1), (0, 1), (0, 1), (frames, 9)]
    fields += [(seconds, 6), (minutes, 6), (hours, 5), (0, 5)]
    bits = "".join(f"{value:0{width}b}" for value, width in fields) + "1"
    bits += "0" * (-len(bits) % 8)
    payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\x4e\x01\x88" + bytes([len(payload)]) + payload + b"\x80"


def test_time_codes_are_read_without_the_memory_behind_them(tmp_path: Path) -> None:
    source = with_sei(tmp_path / "source.mkv", HEVC, lambda n: time_code_sei(19, 26, 48, n))
    report = deblur_video(source, tmp_path / "output.mkv", model="identity")
    assert any("time codes" in line for line in report.lost)
    assert not report.differences
    for _ in range(5):
        assert not failed(verify(source, source))


def test_a_clock_that_was_never_set_is_no_loss(tmp_path: Path) -> None:
    source = with_sei(tmp_path / "source.mkv", HEVC, lambda n: time_code_sei(0, 0, 0, 0))
    report = deblur_video(source, tmp_path / "output.mkv", model="identity")
    assert report.lost == report.differences == []
