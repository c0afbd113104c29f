"""Decoded planes are those of the file, and are read as their stream says."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.video.format import VideoFormat

from tests.helpers.clips import (
    HDR,
    INTERLACED,
    MKV,
    MP4,
    PLAIN,
    PTS,
    make,
    picture,
    samples,
    scene,
    write_frames,
)
from vdeblur import Cancelled, Frame, InputError, VideoReader
from vdeblur.media.frame_factory import frame_of
from vdeblur.media.image_sequences import is_image, is_pattern
from vdeblur.media.input_formats import open_container
from vdeblur.media.pixel_formats import layout_of, planar_format, planes_of


def test_frames(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", PLAIN)
    with VideoReader(source) as reader:
        info = reader.info
        frames = list(reader)
    assert (info.width, info.height, info.codec, info.pix_fmt) == (64, 48, "h264", "yuv420p")
    assert info.frame_count == 24
    assert info.duration_seconds == pytest.approx(0.8108, abs=1e-4)
    assert [frame.pts for frame in frames] == list(PTS)
    assert {frame.time_base for frame in frames} == {Fraction(1, 90_000)}
    ends = [frame.pts + frame.duration for frame in frames]
    assert ends[:-1] == list(PTS[1:])
    assert frames[3].time_seconds == pytest.approx(PTS[3] / 90_000)
    assert reader.damage.notes == []
    # Frames are valid after the file is closed, and writable.
    with av.open(str(source)) as container:
        for frame, other in zip(frames, container.decode(video=0), strict=True):
            for plane, view in zip(frame.planes, samples(other), strict=True):
                assert np.array_equal(plane, view)
                plane[...] = 0
    assert [plane.shape for plane in frames[0].planes] == list(frames[0].layout.shapes)


@pytest.mark.parametrize(
    ("pix_fmt", "kind", "depth", "shift"),
    [
        ("yuv420p", "yuv", 8, (1, 1)),
        ("yuvj422p", "yuv", 8, (1, 0)),
        ("yuv411p", "yuv", 8, (2, 0)),
        ("yuv410p", "yuv", 8, (2, 2)),
        ("yuv440p", "yuv", 8, (0, 1)),
        ("yuva444p12le", "yuv", 12, (0, 0)),
        ("nv12", "yuv", 8, (1, 1)),
        ("yuyv422", "yuv", 8, (1, 0)),
        ("gray10le", "gray", 10, (0, 0)),
        ("ya16le", "gray", 16, (0, 0)),
        ("gbrp12le", "rgb", 12, (0, 0)),
        ("rgba64le", "rgb", 16, (0, 0)),
        ("bgr0", "rgb", 8, (0, 0)),
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (37, 23), (3, 1)])
def test_layout(
    pix_fmt: str, kind: str, depth: int, shift: tuple[int, int], size: tuple[int, int]
) -> None:
    if pix_fmt == "yuyv422":
        size = (size[0] // 2 * 2, size[1])
    frame = picture(0, pix_fmt, size)
    layout = layout_of(pix_fmt, *size, color_range=0, colorspace=2, interlaced=False)
    assert (layout.kind, layout.depth, layout.chroma_shift) == (kind, depth, shift)
    planes = planes_of(frame)
    assert [plane.shape for plane in planes] == list(layout.shapes)
    assert {plane.dtype for plane in planes} == {np.dtype(layout.dtype)}
    assert len(planes) == {"gray": 1}.get(kind, 3)
    for number, plane in enumerate(planes):
        before = bytes(frame.planes[0]) + bytes(frame.planes[len(frame.planes) - 1])
        plane[...] = np.uint8(77)
        after = bytes(frame.planes[0]) + bytes(frame.planes[len(frame.planes) - 1])
        assert before != after or number not in (0, len(frame.planes) - 1)


def test_planes_are_told_apart() -> None:
    # G, B, R; and Cb before Cr, also where they are packed the other way round.
    for pix_fmt in ("rgb24", "bgr24", "gbrp", "argb", "bgr0", "rgba64le"):
        deep = pix_fmt == "rgba64le"
        frame = av.VideoFrame.from_ndarray(np.full((8, 8, 3), (10, 20, 30), np.uint8), "rgb24")
        planes = planes_of(frame.reformat(format=pix_fmt))
        values = [int(plane[0, 0]) >> (8 if deep else 0) for plane in planes]
        assert values == [20, 30, 10], pix_fmt
    for pix_fmt in ("nv12", "nv21", "yuyv422", "uyvy422", "yvyu422", "nv16", "nv24"):
        frame = picture(1, "yuv420p", (8, 8))
        for value, view in zip((50, 60, 70), samples(frame), strict=True):
            view[...] = value
        planes = planes_of(frame.reformat(format=pix_fmt))
        assert [int(plane[1, 1]) for plane in planes] == [50, 60, 70], pix_fmt


@pytest.mark.parametrize(
    ("given", "colorspace", "size", "matrix"),
    [
        (1, 1, (64, 48), "bt709"),
        (2, 6, (64, 48), "bt601"),
        (1, 9, (64, 48), "bt2020"),
        (1, 5, (1920, 1080), "bt601"),
        (1, 7, (64, 48), "smpte240m"),
        (1, 4, (64, 48), "fcc"),
        (0, 2, (640, 480), "bt601"),
        (0, 2, (1280, 720), "bt709"),
        (0, 2, (3840, 2160), "bt709"),
    ],
)
def test_matrix(given: int, colorspace: int, size: tuple[int, int], matrix: str) -> None:
    layout = layout_of("yuv420p", *size, color_range=given, colorspace=colorspace, interlaced=False)
    assert layout.matrix == matrix
    assert layout.full_range == (given == 2)


def test_range_of_stills_and_of_yuvj() -> None:
    options = {"color_range": 0, "colorspace": 2, "interlaced": False}
    assert layout_of("yuvj420p", 64, 48, **options).full_range  # type: ignore[arg-type]
    assert layout_of("yuv420p", 64, 48, **options, codec="mjpeg").full_range  # type: ignore[arg-type]
    assert not layout_of("yuv420p", 64, 48, **options, codec="h264").full_range  # type: ignore[arg-type]
    assert layout_of("gbrp", 64, 48, **options).full_range  # type: ignore[arg-type]


def test_fields_and_depth(tmp_path: Path) -> None:
    with VideoReader(make(tmp_path / "a.mp4", INTERLACED)) as reader:
        assert {frame.layout.interlaced for frame in reader} == {True}
    with VideoReader(make(tmp_path / "b.mp4", HDR)) as reader:
        (layout,) = {frame.layout for frame in reader}
    assert (layout.depth, layout.matrix, layout.full_range) == (10, "bt2020", False)


def test_every_format_is_worked_on_as_one_that_holds_it() -> None:
    for name in ("p010le", "yuv420p10be", "pal8", "monow", "rgb565le", "x2rgb10le", "y210le"):
        there = VideoFormat(planar_format(name))
        assert there.components[0].bits >= min(VideoFormat(name).components[0].bits, 8)
    # Equal values after the conversion, at the low end of the word.
    frame = picture(1, "p010le", (16, 8))
    for view in samples(frame):
        view <<= 6
    low = frame.reformat(format=planar_format("p010le"))
    assert np.array_equal(samples(frame)[0] >> 6, samples(low)[0])


def test_items_and_roles(tmp_path: Path) -> None:
    with VideoReader(make(tmp_path / "a.mp4", MP4)) as reader:
        items = list(reader.items())
        roles = dict(reader.roles)
        kinds = {s.index: s.type for s in reader.container.streams}
        copied = {item.stream.index for item in items if not isinstance(item, Frame)}
    assert sum(isinstance(item, Frame) for item in items) == len(PTS)
    assert copied == {i for i, role in roles.items() if role in ("copy", "cover")}
    assert {kinds[i] for i, role in roles.items() if role == "copy"} >= {"audio", "subtitle"}
    assert list(roles.values()).count("cover") == 1
    assert list(roles.values()).count("regenerated") == 2  # chapter titles, timecode
    with VideoReader(make(tmp_path / "a.mkv", MKV)) as reader:
        assert [reader.roles[i] for i in reader.video_streams] == ["video"]
        assert "cover" in reader.roles.values()


def test_two_pictures(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4", replace(PLAIN, second_video=True))
    with VideoReader(source) as reader:
        frames = [item for item in reader.items() if isinstance(item, Frame)]
        assert len(reader.video_streams) == 2
    assert {(f.stream, f.layout.width) for f in frames} == {(0, 64), (1, 32)}
    with VideoReader(source) as reader:
        assert {f.stream for f in reader} == {0}


def test_start_and_duration(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(25)))
    with VideoReader(source, start=0.4, duration=0.2) as reader:
        frames = list(reader)
        assert reader.info.frame_count == 5
    assert [frame.time_seconds for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


def test_times_that_are_missing_or_step_back(tmp_path: Path) -> None:
    # A raw stream has no times at all.
    frames = (scene(n) for n in range(6))
    write_frames(tmp_path / "a.mp4", frames, "libx264", options={"bf": "0"})
    raw = tmp_path / "a.264"
    with av.open(str(tmp_path / "a.mp4")) as source, av.open(str(raw), "w", "h264") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    with VideoReader(raw) as reader:
        times = [frame.pts for frame in reader]
    assert len(times) == 6
    assert all(b > a for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("name", "image", "pattern"),
    [
        ("a.png", True, False),
        ("a.JPG", True, False),
        ("a%05d.jpeg", True, True),
        ("a/%d.png", True, True),
        ("a%05d.mp4", False, False),
        ("100%.png", True, False),
    ],
)
def test_names(name: str, image: bool, pattern: bool) -> None:
    assert is_image(name) == image
    assert is_pattern(name) == pattern


def test_a_decoder_that_is_not_there(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(3)))
    with VideoReader(source, hwaccel="cuda") as reader:
        assert len(list(reader)) == 3
    with pytest.raises(InputError, match="exist"):
        VideoReader(tmp_path / "b.mkv")
    with pytest.raises(InputError, match="folder"):
        VideoReader(tmp_path)


def test_a_device_that_cannot_be_shared_is_asked_for_a_decoder_of_its_own_then_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_frames(tmp_path / "clip.mkv", (scene(n) for n in range(3)))
    opened, asked = open_container, []

    def refused(file: Any, *, acceleration: Any = None) -> Any:
        asked.append(acceleration and (acceleration.device_id, acceleration.options))
        if acceleration is not None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(file, acceleration=acceleration)

    monkeypatch.setattr("vdeblur.media.opening.open_container", refused)
    with VideoReader(source, hwaccel="cuda", gpu=1) as reader:
        assert len(list(reader)) == 3
        assert reader.notes == ["no cuda decoder here: decoding on the CPU"]
    # torch's own context first: PyAV's default would want it with other flags.
    assert asked == [(1, {"primary_ctx": "0", "current_ctx": "1"}), (0, {}), None]


@pytest.mark.parametrize(
    ("packed", "planar"), [("p010le", "yuv420p10le"), ("p210le", "yuv422p10le")]
)
def test_each_row_is_what_was_decoded(packed: str, planar: str) -> None:
    dice = np.random.default_rng(0)
    for width in (322, 1366, 1922):
        picture = av.VideoFrame(width, 182, packed)
        rows = []
        for plane in picture.planes:
            values: Any = np.frombuffer(cast(Any, plane), "<u2").reshape(-1, plane.line_size // 2)
            values[:] = dice.integers(0, 1024, values.shape) << 6
            rows.append(values >> 6)
        luma, chroma = rows
        frame = frame_of(picture, pts=0, time_base=Fraction(1, 25), codec="h264")
        assert frame.layout == layout_of(
            planar, width, 182, color_range=0, colorspace=2, interlaced=False
        )
        parts = (luma[:, :width], chroma[:, 0:width:2], chroma[:, 1:width:2])
        assert all(map(np.array_equal, frame.planes, parts))


def test_a_hardware_format_that_hides_its_own_is_decoded_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a.mp4", PLAIN)
    opened = open_container
    monkeypatch.setattr(
        "vdeblur.media.opening.open_container", lambda file, *, acceleration=None: opened(file)
    )
    monkeypatch.setattr("vdeblur.media.opening.software_format", lambda stream: None)
    with VideoReader(source, hwaccel="cuda") as reader:
        assert reader.info.pix_fmt == "yuv420p"
        assert len(list(reader)) == 24
        assert reader.notes == ["no cuda decoder here: decoding on the CPU"]


def test_a_pipe_is_read_from_its_beginning_after_acceleration_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(3)))
    opened = open_container

    def refused(file: Any, *, acceleration: Any = None) -> Any:
        container = opened(file)
        if acceleration is not None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return container

    monkeypatch.setattr("vdeblur.media.opening.open_container", refused)
    with source.open("rb") as file:
        monkeypatch.setattr("sys.stdin", file)
        with VideoReader("-", hwaccel="cuda", gpu=1) as reader:
            assert len(list(reader)) == 3
            assert reader.notes == ["no cuda decoder here: decoding on the CPU"]


def test_a_source_that_is_closed_ends_whoever_still_reads_it(tmp_path: Path) -> None:
    path = write_frames(tmp_path / "in.mkv", [picture(n) for n in range(6)])
    reader = VideoReader(path)
    frames = iter(reader)
    first = next(frames)
    reader.close()
    with pytest.raises(Cancelled):
        next(frames)
    assert first.planes[0].any()
