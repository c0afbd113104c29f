"""Names of files that libav or a shell could take for something else, and inputs read once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.clips import png, read_frames, scene, write_frames
from vdeblur import EncodeOptions, InputError, OutputError, UsageError, VideoReader, deblur_video
from vdeblur.media.containers import format_name
from vdeblur.media.default_names import default_output, part_of_name
from vdeblur.media.image_sequences import is_pattern, numbered
from vdeblur.media.input_formats import readable_formats
from vdeblur.media.names import check_source, descriptor_of, is_address
from vdeblur.media.sample_frames import sample_frames
from vdeblur.media.verify import verify

FAST = EncodeOptions(preset="ultrafast")
AWKWARD = (
    "12:30",
    "2026-11-26T12:30:00",
    "concat:a|b",
    "data:video",
    "pipe:0",
    "subfile,,start,0,end,9,,:x",
    "http:x",
    "file:x",
    "-o",
    "a[1]",
    "*",
    "50%discount",
    "a%03d",
    "100%%",
    "q?a=b#c",
    "back\\slash",
    "new\nline",
    "space ",
    " dots..",
    os.fsdecode(b"\xff\xfe"),
)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames."""
    folder = tmp_path_factory.mktemp("film")
    return write_frames(folder / "film.mkv", (scene(n) for n in range(3)))


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_is_that_of_a_file(
    name: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    source, output = f"{name}.mkv", f"{name}_deblurred.mkv"
    Path(source).write_bytes(film.read_bytes())
    report = deblur_video(source, model="identity", encode=FAST)
    assert report.frames == 3
    assert sorted(os.listdir()) == sorted([source, output])  # noqa: PTH208
    assert all(check.passed for check in verify(source, output, quick=True))
    assert len(sample_frames([source])) > 0


@pytest.mark.parametrize("name", AWKWARD)
def test_a_picture_is_no_sequence_where_it_is_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    source = Path(name, f"{name}.png")
    source.write_bytes(png(picture_of_noise()))
    report = deblur_video(source, model="identity")
    assert (report.frames, report.output) == (1, str(source.with_stem(f"{name}_deblurred")))
    assert len(list(source.parent.iterdir())) == 2


@pytest.mark.parametrize("name", AWKWARD)
def test_a_sequence_in_a_folder_of_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    for number in range(7, 10):
        Path(name, f"5%_{number:03d}.png").write_bytes(png(picture_of_noise()))
    source, output = f"{name}/5%_%03d.png", f"{name}/out%%_%03d.png"
    assert deblur_video(source, output, model="identity").frames == 3
    assert sorted(p.name for p in Path(name).glob("out*")) == [
        f"out%_{n:03d}.png" for n in range(7, 10)
    ]


def picture_of_noise() -> NDArray[np.uint8]:
    """A picture of 16 by 16 pixels."""
    return np.random.default_rng(1).integers(0, 255, (16, 16, 3), np.uint8)


def test_patterns(tmp_path: Path) -> None:
    assert not is_pattern(tmp_path / "50%discount.png")
    assert not is_pattern("100%done/x.png")
    assert not is_pattern("a%%03d.png")
    assert is_pattern("100%done/%d.png")
    assert numbered("/100%done/5%_%03d.png", 7) == "/100%done/5%_007.png"
    assert numbered("a%d/%4d.png", 12) == "a%d/0012.png"
    (tmp_path / "a%03d.png").touch()
    assert not is_pattern(tmp_path / "a%03d.png")


def test_default_names_tell_the_part() -> None:
    assert default_output("ride.mp4", start=5, duration=2.5) == "ride_5s-7.5s_deblurred.mp4"
    assert default_output("ride.mp4", start=0.1, duration=0.2) == "ride_0.1s-0.3s_deblurred.mp4"
    assert default_output("ride.mp4", duration=2) == "ride_0s-2s_deblurred.mp4"
    assert default_output("ride.mp4", start=90) == "ride_90s-end_deblurred.mp4"
    assert default_output("ride.mp4", start=0) == "ride_deblurred.mp4"
    assert default_output("f_%05d.png", start=1) == "f_1s-end_%05d_deblurred.png"
    assert part_of_name("x/ride_5s-7.5s_deblurred.mp4") == (5, 2.5)
    assert part_of_name("x/ride_90s-end_deblurred.mp4") == (90, None)
    assert part_of_name("ride_deblurred.mp4") is None
    with pytest.raises(UsageError, match="/dev/stdin has no name"):
        default_output("/dev/stdin")


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("http://u:geheim@host/x.mp4", "download it first"),
        ("https://host/x.mp4?token=geheim", "download it first"),
        ("s3://bucket/x.mp4", "download it first"),
        ("rtsp://u:geheim@cam/1", "`vdeblur camera` reads streams"),
        ("srt://host:9000?passphrase=geheim", "`vdeblur camera` reads streams"),
        ("file:///films/a%20b.mp4", "give the path /films/a b.mp4"),
        ("http:/host/x.mp4", "download it first"),
    ],
)
def test_an_address_is_no_file(
    name: str, right: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_address(name)
    works: list[Callable[[], object]] = [
        lambda: check_source(name),
        lambda: VideoReader(name),
        lambda: VideoReader(Path(name)),
        lambda: default_output(name),
        lambda: verify(name, film),
        lambda: verify(film, name),
    ]
    for work in works:
        with pytest.raises(InputError, match="is an address") as error:
            work()
        assert right in str(error.value)
        assert "geheim" not in str(error.value)
    with pytest.raises(OutputError, match="is an address") as refused:
        deblur_video(film, name, model="identity")
    assert "geheim" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def fed(data: bytes, into: Callable[[], int]) -> threading.Thread:
    """Write bytes into a pipe on a thread of its own."""

    def write() -> None:
        with open(into(), "wb") as pipe:  # noqa: PTH123
            pipe.write(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_read_once_from_its_beginning(film: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "a.mkv"
    os.mkfifo(pipe)
    feeder = fed(film.read_bytes(), lambda: os.open(pipe, os.O_WRONLY))
    report = deblur_video(pipe, model="identity", encode=FAST)
    feeder.join()
    assert report.frames == 3
    assert read_frames(tmp_path / "a_deblurred.mkv")
    for work in (
        lambda: verify(pipe, film),
        lambda: verify(film, pipe),
        lambda: check_source(pipe),
    ):
        with pytest.raises(InputError, match="is a pipe, which can be read only once"):
            work()
    assert sample_frames([pipe]) == []


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd here")
@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_an_open_pipe_by_its_number(
    name: str, suffix: str, tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_frames(tmp_path / f"a{suffix}", (scene(n) for n in range(3)))
    reading, writing = os.pipe()
    feeder = fed(source.read_bytes(), lambda: writing)
    path = name.format(reading)
    assert descriptor_of(path) == reading
    with VideoReader(path) as reader:
        assert reader.path is None
        assert len(list(reader)) == 3
    feeder.join()
    os.close(reading)


def test_devices_and_terminals_are_no_files() -> None:
    with pytest.raises(InputError, match="is a device"):
        check_source("/dev/null")
    primary, secondary = os.openpty()
    with pytest.raises(InputError, match="is a device"):
        check_source(f"/dev/fd/{secondary}", once=True)
    os.close(primary)
    os.close(secondary)
    with pytest.raises(InputError, match="no possible name"):
        check_source("a\0b.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".mkv", ".ts", ""])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "an HLS playlist"),
        ("ffconcat version 1.0\nfile '{}'\n", "a list of files"),
        ("<?xml version='1.0'?><MPD><BaseURL>{}</BaseURL></MPD>", "DASH manifest"),
        ("v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=video 9 RTP/AVP 96\r\n", "(SDP)"),
    ],
)
def test_a_playlist_reads_no_other_file(
    text: str, what: str, suffix: str, film: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.mkv"
    secret.write_bytes(film.read_bytes())
    hostile = tmp_path / f"hostile{suffix}"
    hostile.write_text(text.format(secret.name))
    with pytest.raises(InputError, match="names other files") as error:
        VideoReader(hostile)
    assert what in str(error.value)
    with pytest.raises(InputError):
        verify(hostile, film)
    assert sample_frames([hostile]) == []


def test_formats_that_are_read() -> None:
    names = set(readable_formats().split(","))
    assert {"mov", "matroska", "webm", "mpegts", "avi", "image2", "png_pipe", "nut"} <= names
    assert not names & {"concat", "hls", "dash", "sdp", "rtsp", "lavfi", "tty", "v4l2", "x11grab"}


@pytest.mark.parametrize(
    ("destination", "asked"),
    [
        *(("o.mkv", name) for name in ("hls", "dash", "md5", "null", "segment", "ssegment", "tee")),
        *(("o.mkv", name) for name in ("framecrc", "rtp", "ffmetadata", "image2", "mp3", "srt")),
        *(
            (f"o{suffix}", None)
            for suffix in (".m3u8", ".mpd", ".txt", ".ffconcat", ".srt", ".wav")
        ),
    ],
)
def test_what_is_no_film_is_no_output(destination: str, asked: str | None) -> None:
    with pytest.raises(OutputError, match=r"use .mp4, .mov, .mkv, .webm or .ts"):
        format_name(destination, "", asked)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".avi", ".mxf", ".flv"])
def test_containers_of_films(suffix: str) -> None:
    assert format_name(f"o{suffix}", "")
