"""What travels with pictures in their coding: user data of cameras and drones, and captions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import pytest

from tests.helpers.clips import PLAIN, failed, make
from vdeblur.deblur import deblur_video
from vdeblur.media.encoders import picture_data
from vdeblur.media.verify import verify

UUID = bytes(range(1, 17))


def with_user_data(path: Path, *, captions: bool = True) -> Path:
    """A film of whose pictures each carries user data (H.264 SEI, type 5), and captions."""
    plain = path.with_name("plain.ts")
    make(plain, replace(PLAIN, rotation=None, captions=captions, suffix=".ts"))
    with av.open(str(plain)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        number = 0
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            data = UUID + b"GPS%05d" % number
            head = b"\0\0\0\1\x06\x05" + bytes([len(data)]) + data + b"\x80"
            copy = av.Packet(head + bytes(packet))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            output.mux(copy)
            number += 1
    return path


def user_data(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        frames = [picture_data(frame, "h264") for frame in container.decode(video=0)]
    return [data for frame in frames for data in frame.get("SEI_UNREGISTERED", [])]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_user_data(tmp_path_factory.mktemp("source") / "source.mkv")


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
