"""No stream's trouble stops another's: late, unknown, empty and refused streams."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import MP4, make, picture
from vdeblur import InputError, VideoReader, deblur_video
from vdeblur.frames import Frame
from vdeblur.media import first_pictures
from vdeblur.media.containers import Container, muxer_options
from vdeblur.media.copied_streams import CopiedStreams
from vdeblur.media.header_trial import refused_streams
from vdeblur.media.losses import Losses
from vdeblur.media.mp4.tracks import read_tracks
from vdeblur.media.stream_facts import sound_of
from vdeblur.media.verify import verify


def film(
    path: Path | io.BytesIO,
    frames: int = 10,
    *,
    begin: int = 0,
    sounds: tuple[str, ...] = ("aac",),
    seconds: float | None = None,
    gop: int = 12,
    videos: int = 1,
    layout: str = "mono",
    tags: dict[str, str] | None = None,
    **opening: Any,
) -> Any:
    """Write a film of 25 frames a second, and streams of sound; begin: in frames, of all times."""
    with av.open(path if isinstance(path, io.BytesIO) else str(path), "w", **opening) as output:
        pictures = []
        for _ in range(videos):
            video: Any = output.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            video.width, video.height, video.gop_size = 64, 48, gop
            video.metadata.update(tags or {})
            pictures.append(video)
        audios: list[Any] = []
        for codec in sounds:
            audio: Any = output.add_stream(codec, rate=48_000, layout=layout)
            audio.metadata.update(tags or {})
            audios.append(audio)
        output.start_encoding()
        packets = []
        for video in pictures:
            for number in range(frames):
                frame = picture(number)
                frame.pts, frame.time_base = begin + number, Fraction(1, 25)
                packets += video.encode(frame)
            packets += video.encode(None)
        for audio in audios:
            length = round((frames / 25 if seconds is None else seconds) * 48_000)
            form = audio.codec_context.format.name
            channels = audio.codec_context.layout.nb_channels
            at = 0
            while at < length:
                dtype = {"fltp": np.float32, "s32": np.int32, "s16": np.int16}[form]
                shape = (channels, 1024) if form.endswith("p") else (1, 1024 * channels)
                sound = av.AudioFrame.from_ndarray(np.zeros(shape, dtype), form, layout)
                sound.sample_rate, sound.pts = 48_000, at + begin * 1920
                sound.time_base = Fraction(1, 48_000)
                packets += audio.encode(sound)
                at += 1024
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            output.mux(packet)
    return path


def count(path: Path) -> tuple[int, list[str]]:
    """Frames of the first video, and the kinds of streams."""
    with av.open(str(path)) as container:
        kinds = [str(stream.type) for stream in container.streams]
        return sum(1 for _ in container.decode(video=0)), kinds


# -- found late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2])
def test_thousands_of_packets_before_the_first_picture(tmp_path: Path, frames: int) -> None:
    source, output = tmp_path / "still.mkv", tmp_path / "out.mkv"
    film(source, frames, sounds=("aac",), seconds=100)
    report = deblur_video(source, output, model="identity")
    assert count(output) == (frames, ["video", "audio"])
    assert not report.lost
    assert not report.differences


def flv_tags(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 13
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        time = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        yield data[at], time, data[at + 11 : at + 11 + size]
        at += 15 + size


def late_flv(path: Path) -> Path:
    """Pictures for 16 s, sound from 12 s on."""
    both = []
    for kind, options in ((9, {"sounds": ()}), (8, {"begin": 300})):
        data = film(io.BytesIO(), 400 if kind == 9 else 100, format="flv", **options).getvalue()
        both += [(k, max(t, 12_000 * (k == 8)), b) for k, t, b in flv_tags(data) if k == kind]
    with path.open("wb") as file:
        file.write(b"FLV\x01\x01\0\0\0\x09\0\0\0\0")
        for kind, time, body in sorted(both, key=lambda tag: tag[1]):
            head = bytes([kind]) + len(body).to_bytes(3, "big")
            head += (time & 0xFFFFFF).to_bytes(3, "big") + bytes([time >> 24, 0, 0, 0])
            file.write(head + body + struct.pack(">I", len(body) + 11))
    return path


def test_sound_of_a_recorded_stream_that_begins_late(tmp_path: Path) -> None:
    source = late_flv(tmp_path / "late.flv")
    report = deblur_video(source, tmp_path / "out.mkv", model="identity")
    assert count(tmp_path / "out.mkv") == (400, ["video", "audio"])
    assert report.kept == ["audio aac"]


def test_late_sound_that_is_not_found_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.media.probing.deeper", lambda container: {})
    source = late_flv(tmp_path / "late.flv")
    report = deblur_video(source, tmp_path / "out.mkv", model="identity")
    assert count(tmp_path / "out.mkv")[0] == 400
    assert any(line.startswith("audio aac: it begins too far") for line in report.lost)


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_sound_of_a_broadcast_that_begins_late(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "late.ts"
    one = film(io.BytesIO(), 200, sounds=(), format="mpegts").getvalue()
    two = film(io.BytesIO(), 50, begin=200, format="mpegts").getvalue()
    source.write_bytes(one + two)
    with VideoReader(source) as reader:
        assert sound_of(reader.templates[1]).rate == 48_000
    output = tmp_path / f"out{suffix}"
    report = deblur_video(source, output, model="identity")
    assert count(output) == (250, ["video", "audio"])
    assert not [line for line in report.lost if line.startswith("audio")]


def test_a_recording_that_begins_long_before_its_next_keyframe(tmp_path: Path) -> None:
    data = film(io.BytesIO(), 200, gop=150, sounds=(), format="mpegts").getvalue()
    source, output = tmp_path / "late.ts", tmp_path / "out.mkv"
    source.write_bytes(data[len(data) // 5 // 188 * 188 :])
    report = deblur_video(source, output, model="identity")
    assert count(output)[0] == 50
    assert any("before its first keyframe" in line for line in report.damage)


def test_a_recording_without_a_keyframe_is_refused(tmp_path: Path) -> None:
    data = film(io.BytesIO(), 60, gop=1000, sounds=(), format="mpegts").getvalue()
    source, output = tmp_path / "none.ts", tmp_path / "out.mkv"
    source.write_bytes(data[len(data) // 2 // 188 * 188 :])
    with pytest.raises(InputError, match="has no keyframe"):
        deblur_video(source, output, model="identity")
    assert list(tmp_path.iterdir()) == [source]


# -- a second video ------------------------------------------------------------------------------


def test_what_waits_for_a_late_picture_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe cannot be read ahead: its header has to do."""
    source = tmp_path / "two.mkv"
    film(source, 60, videos=2, sounds=())
    monkeypatch.setattr(first_pictures, "_HELD_BYTES", 100_000)
    with VideoReader(source) as reader:
        reader.path = None
        waiting = first_pictures.FirstPictures(reader, {})
        items = (i for i in reader.items() if not (isinstance(i, Frame) and i.stream == 1))
        held = next(n for n, item in enumerate(items) if waiting.add(item))
        assert held < 40
        assert waiting.assumed == {1}
        assert (waiting.pictures[1].width, waiting.pictures[1].height) == (64, 48)


def test_a_second_video_that_cannot_be_decoded_is_damage(tmp_path: Path) -> None:
    source, output = tmp_path / "two.mkv", tmp_path / "out.mkv"
    film(tmp_path / "good.mkv", 10, sounds=())
    with av.open(str(tmp_path / "good.mkv")) as good, av.open(str(source), "w") as two:
        video = good.streams.video[0]
        for _ in range(2):
            two.add_stream_from_template(video, opaque=True)
        for packet in good.demux(video):
            if packet.size:
                broken: Any = av.Packet(b"\0\0\0\1\x41" + bytes(40))
                broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                parts: tuple[Any, Any] = (packet, broken)
                for target, part in zip(two.streams, parts, strict=True):
                    part.stream = target
                    two.mux(part)
    report = deblur_video(source, output, model="identity")
    assert count(output)[0] == 10
    assert any("a whole video stream is missing" in line for line in report.damage)
    assert any("none of its pictures" in line for line in report.lost)


# -- unknown, empty, refused ---------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "kept"), [(".mp4", True), (".mov", True), (".mkv", False)])
def test_sound_of_an_unknown_codec(tmp_path: Path, suffix: str, kept: bool) -> None:
    source, output = tmp_path / "phone.mp4", tmp_path / f"out{suffix}"
    film(source, 25, sounds=("aac", "aac"))
    data = source.read_bytes()
    at = data.rfind(b"mp4a")
    source.write_bytes(data[:at] + b"apac" + data[at + 4 :].replace(b"esds", b"dapa", 1))
    report = deblur_video(source, output, model="identity")
    assert count(output)[0] == 25
    assert ("track apac" in report.kept) == kept
    assert (b"apac" in output.read_bytes()) == kept
    assert any(line.startswith("audio apac") for line in report.lost) != kept
    assert all(check.passed for check in verify(source, source))


@pytest.mark.parametrize(
    ("options", "suffix"),
    [({"movflags": "+frag_keyframe+empty_moov"}, ".mp4"), ({"movflags": "+frag_keyframe"}, ".mkv")],
)
def test_a_declared_track_without_packets(
    tmp_path: Path, options: dict[str, str], suffix: str
) -> None:
    source, output = tmp_path / "empty.mp4", tmp_path / f"out{suffix}"
    film(source, 10, sounds=("aac",), seconds=0, container_options=options)
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    kinds = count(output)[1]
    told = any("it has no packets" in line for line in report.lost)
    assert ("audio" in kinds) != told
    assert any(line.startswith("audio") for line in report.kept) != told


def high_definition(path: Path) -> Path:
    """A film with sound that libav calls experimental in MP4 (TrueHD)."""
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("libx264", rate=25)
        video.width, video.height = 64, 48
        output.add_mux_stream("truehd", rate=48_000)
        output.add_stream("aac", rate=48_000)
        for number in range(5):
            frame = picture(number)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
    return path


def test_a_refused_header_costs_the_stream_that_it_is_refused_for(tmp_path: Path) -> None:
    source, output = high_definition(tmp_path / "hd.mkv"), tmp_path / "out.mp4"
    with av.open(str(source)) as container:
        streams = dict(enumerate(container.streams))
        video = streams.pop(0)
        assert list(refused_streams("mp4", {}, [video], streams)) == [1]
        # What an MP4 holds already goes into another one.
        assert refused_streams("mp4", {"strict": "experimental"}, [video], streams) == {}
    report = deblur_video(source, output, model="identity")
    assert count(output)[0] == 5
    assert any(line.startswith("audio truehd: mp4 cannot hold it") for line in report.lost)


def test_what_a_source_holds_as_an_experiment_may_be_in_its_output(tmp_path: Path) -> None:
    with VideoReader(film(tmp_path / "a.mp4", 2)) as reader:
        made = muxer_options(Container.of("out.mp4", "mov,mp4"), reader, Losses())
    assert made["strict"] == "experimental"


def test_a_refused_packet_costs_no_more_than_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = film(tmp_path / "a.mp4", 25), tmp_path / "out.mp4"
    sound = [0]
    mux = CopiedStreams.copy

    def copy(self: CopiedStreams, packet: Any) -> None:
        sound[0] += 1
        if sound[0] == 9:
            packet.dts = -(2**62)  # libav refuses it
            packet.pts = packet.dts
            self._last_dts.clear()
        mux(self, packet)

    monkeypatch.setattr(CopiedStreams, "copy", copy)
    report = deblur_video(source, output, model="identity")
    assert count(output) == (25, ["video", "audio"])
    assert any(line.startswith("audio aac") and "refuses packets" in line for line in report.lost)


CUSTOM_ORDER = """
import sys
import av
from vdeblur import deblur_video
from vdeblur.media.stream_facts import settle_layout, sound_of
from vdeblur.media.verify import verify
source, output = sys.argv[1:]
report = deblur_video(source, output, model="identity")
assert not report.differences and report.kept == ["audio pcm_s24le"], report
assert all(check.passed for check in verify(source, output))
with av.open(source) as container:
    stream = container.streams.audio[0]
    assert {sound_of(stream).channels for _ in range(9)} == {8}
    settle_layout(stream)
    for frame in container.decode(stream):
        assert len(repr(stream)) and frame.layout.nb_channels == 8
"""


def test_sound_with_a_channel_order_of_its_own(tmp_path: Path) -> None:
    """PyAV frees such an order twice: the process would die, so it is another one here."""
    source = tmp_path / "eight.mov"
    film(source, 25, sounds=("pcm_s24le",), layout="7.1")
    # QuickTime's MPEG_7_1_C instead of a set of channels (CoreAudioBaseTypes.h).
    chan = b"chan" + bytes(4)
    own, other = (1 << 16, 0x63F), ((128 << 16) + 8, 0)
    data = source.read_bytes().replace(
        chan + struct.pack(">2I", *own), chan + struct.pack(">2I", *other)
    )
    source.write_bytes(data)
    with av.open(str(source)) as container:
        assert "+" in sound_of(container.streams.audio[0]).layout  # no native order
    command = [sys.executable, "-c", CUSTOM_ORDER, str(source), str(tmp_path / "out.mov")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# -- facts of the old coding ---------------------------------------------------------------------

STATISTICS = {
    "BPS": "9876543",
    "BPS-eng": "9876543",
    "NUMBER_OF_BYTES": "1234567",
    "_STATISTICS_WRITING_APP": "mkvmerge v80",
    "ENCODER_OPTIONS": "crf=1",
    "title": "Ride",
}


def test_statistics_are_kept_of_copied_streams_only(tmp_path: Path) -> None:
    source, output = tmp_path / "s.mkv", tmp_path / "out.mkv"
    film(source, 10, tags=STATISTICS)
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    with av.open(str(output)) as container:
        video, audio = (stream.metadata for stream in container.streams)
    assert video["title"] == "Ride"
    assert not {"9876543", "1234567", "mkvmerge v80", "crf=1"} & set(video.values())
    assert audio["BPS"] == "9876543"
    assert audio["_STATISTICS_WRITING_APP"] == "mkvmerge v80"
    part = tmp_path / "part.mkv"
    deblur_video(source, part, model="identity", duration=0.2)
    with av.open(str(part)) as container:
        assert "BPS" not in container.streams.audio[0].metadata


# -- cut off -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".avi", ".flv", ".mp4"])
def test_a_file_without_its_last_bytes_is_said_to_be_cut_off(tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / f"film{suffix}", tmp_path / f"out{suffix}"
    film(source, 25, container_options={"movflags": "+faststart"} if suffix == ".mp4" else {})
    whole = deblur_video(source, output, model="identity")
    assert not whole.damage
    source.write_bytes(source.read_bytes()[:-50])
    report = deblur_video(source, output, model="identity", overwrite=True)
    assert any("the source is cut off" in line for line in report.damage)


def test_tracks_stand_in_the_order_of_the_source(tmp_path: Path) -> None:
    """Also those that are copied past libav, before the track of the chapters."""
    source = make(tmp_path / "source.mp4", replace(MP4, telemetry=()))
    deblur_video(source, tmp_path / "output.mp4", model="identity")
    order = [[t.fourcc for t in read_tracks(p)] for p in (source, tmp_path / "output.mp4")]
    assert order[0] == order[1]
    assert order[0].index("tx3g") < order[0].index("text")


def test_pictures_before_the_broken_one_are_not_lost_with_it(tmp_path: Path) -> None:
    source = tmp_path / "film.mp4"
    film(source, 60, sounds=(), container_options={"movflags": "+faststart"})
    with av.open(str(source)) as container:
        ends = [(p.pos or 0) + p.size for p in container.demux(video=0) if p.size]
    source.write_bytes(source.read_bytes()[: ends[29] - 20])  # in the middle of the thirtieth
    report = deblur_video(source, tmp_path / "out.mp4", model="identity")
    assert report.frames >= 29
    assert report.damage
