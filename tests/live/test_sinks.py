"""Sinks of live pictures: files, folders, pipes, servers, a virtual camera; and their ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import av
import numpy as np
import pytest

import vdeblur
from tests.helpers import peers
from tests.helpers.live import (
    QUICK,
    ROOT,
    clip,
    command,
    count,
    goes_on,
    needs_ffmpeg,
    needs_nginx,
    numbers_of,
    session,
    started,
)
from vdeblur.errors import OutputError, UsageError
from vdeblur.live.addresses import Scene
from vdeblur.live.encoding import LiveEncoding, PictureEncoder
from vdeblur.live.sinks.files import FileSink, HlsSink
from vdeblur.live.sinks.sink import SinkOptions
from vdeblur.live.sources.demo_scene import draw


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["rtsp", "udp", "tcp", "srt"])
def test_sinks_that_ffmpeg_receives(kind: str, tmp_path: Path) -> None:
    port = peers.free_port()
    heard = tmp_path / "heard.mkv"
    to = f"{kind}://127.0.0.1:{port}" + ("/live" if kind == "rtsp" else "")
    listen = {
        "rtsp": ["-rtsp_flags", "listen", "-i", to],
        "udp": ["-f", "mpegts", "-i", to],
        "tcp": ["-f", "mpegts", "-i", f"{to}?listen=1"],
        "srt": ["-f", "mpegts", "-i", f"{to}?mode=listener"],
    }[kind]
    with (
        peers.ffmpeg(*listen, "-map", "0:v", "-c", "copy", "-flush_packets", "1", str(heard)),
        session("test:160x90@25", to) as (live, events),
    ):
        peers.until(lambda: heard.exists() and heard.stat().st_size > 60_000, 45,
                    lambda: str(events))  # fmt: skip
        assert live.snapshot()[0]["sinks"][0]["connected"]
    numbers = numbers_of(heard)
    assert len(numbers) > 20
    assert all(b > a for a, b in pairwise(numbers))


def test_hls_folder_and_rotated_files(tmp_path: Path) -> None:
    options = replace(QUICK, sink=SinkOptions(rotate_seconds=1.0, keep=2, hls_seconds=1.0))
    sinks = (tmp_path / "cam.mkv", f"{tmp_path}/hls/", tmp_path / "cam.mp4")
    with session("test:160x90@25", *sinks, options=options) as (live, events):
        peers.until(lambda: count(live) > 125)
    names = [Path(e["file"]).name for e in events.of("segment") if e["file"].endswith(".mkv")]
    assert names[:3] == ["cam.mkv", "cam_0001.mkv", "cam_0002.mkv"]
    left = sorted(p.name for p in tmp_path.glob("*.mkv"))
    assert left == names[-2:]
    first, second = (numbers_of(tmp_path / name) for name in left)
    assert second[0] - first[-1] <= 2  # nothing is lost between two files
    assert 20 <= len(first) <= 60
    with av.open(str(tmp_path / left[0])) as container:
        assert container.start_time == pytest.approx(0, abs=50_000)
    playlist = (tmp_path / "hls" / "index.m3u8").read_text()
    assert playlist.count(".ts") >= 3
    assert numbers_of(tmp_path / "hls" / "index.m3u8") == sorted(
        numbers_of(tmp_path / "hls" / "index.m3u8")
    )
    assert not list(tmp_path.glob("*.part*"))


def test_hls_replaces_nothing_of_others(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "cam_000007.ts", tmp_path / "film1.ts"
    ours.write_text("of a killed run, or of somebody")
    theirs.write_text("precious")
    listed = "#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1.0,\n{}\n"
    for text in ("precious\n", listed.format("film1.ts"), listed.format("../cam_000001.ts")):
        (tmp_path / "film.m3u8").write_text(text)
        with pytest.raises(OutputError, match="is no playlist of an earlier run"):
            HlsSink(str(tmp_path / "film.m3u8"), SinkOptions())
        assert (tmp_path / "film.m3u8").read_text() == text
    options = replace(QUICK, sink=SinkOptions(hls_seconds=0.5))
    for _ in range(2):  # the second goes on with the playlist
        with session("test:160x90@25", tmp_path / "cam.m3u8", options=options) as (live, _events):
            peers.until(lambda: count(live) > 50)
    assert ours.read_text().startswith("of a killed run")
    names = [line for line in (tmp_path / "cam.m3u8").read_text().split() if line.endswith(".ts")]
    assert names == sorted(set(names))
    assert names[-1] > "cam_000010.ts"
    assert theirs.read_text() == "precious"


def test_rotation_by_size(tmp_path: Path) -> None:
    options = replace(QUICK, sink=SinkOptions(rotate_bytes=40_000))
    with session("test:160x90@25", tmp_path / "cam.mp4", options=options) as (live, _):
        peers.until(lambda: len(list(tmp_path.glob("cam*.mp4"))) >= 4)
        assert count(live) > 10
    files = sorted(tmp_path.glob("cam*.mp4"))
    assert [f.name for f in files[:3]] == ["cam.mp4", "cam_0001.mp4", "cam_0002.mp4"]
    # At the first keyframe after it is full, which is asked for at once.
    assert all(30_000 < f.stat().st_size < 90_000 for f in files[:-1])
    numbers = [n for f in files for n in numbers_of(f)]
    assert goes_on(numbers)


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [(LiveEncoding(bitrate=800_000), "h264"), (LiveEncoding(encoder="libx265"), "hevc")],
)
def test_how_it_is_encoded(encoding: LiveEncoding, codec: str, tmp_path: Path) -> None:
    options = replace(QUICK, encoding=encoding, max_latency=1.0)
    with session("test:160x90@25", tmp_path / "a.mkv", options=options) as (live, _):
        peers.until(lambda: count(live) > 20)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].codec_context.name == codec
    assert len(numbers_of(tmp_path / "a.mkv")) > 15
    for wrong in (LiveEncoding(encoder="nonsense"), LiveEncoding(preset="nonsense")):
        with (
            pytest.raises(vdeblur.EncoderError, match=r"name one such as|choose one of"),
            session("no-camera.mkv", tmp_path / "b.mkv", options=replace(options, encoding=wrong)),
        ):
            pass  # refused at the beginning, not with the first picture


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_kill_9_leaves_what_was_written(suffix: str, tmp_path: Path) -> None:
    process = started(
        *("test:160x90@25", "-o", tmp_path / f"a{suffix}", "--model", "identity", "--json"),
        *("--every", "200ms", "--rotate", "3s", "--quiet", "--device", "cpu"),
    )
    encoded = 0
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        status = json.loads(line)
        if status["type"] == "status":
            encoded = status["encoded"]
            if encoded > 135:
                break
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    whole = numbers_of(tmp_path / f"a{suffix}")
    assert len(whole) >= 70
    (part,) = tmp_path.glob(f"*.part{suffix}")
    rest = numbers_of(part)
    assert rest[0] - whole[-1] <= 2
    assert encoded - len(whole) - len(rest) <= 50  # two seconds


def test_standard_output(tmp_path: Path) -> None:
    source = clip(tmp_path / "source.mkv", frames=50)
    words = (source, "--realtime", "-o", "-", "--model", "identity", "--quiet")
    with (tmp_path / "a.mkv").open("wb") as file:
        done = subprocess.run(command(*words), stdout=file, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    numbers = numbers_of(tmp_path / "a.mkv")
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 45  # a busy machine may be late with some


def test_a_terminal_is_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    with pytest.raises(OutputError, match="is a terminal"), session("test", "-"):
        pass


def test_nobody_reads_what_is_told(tmp_path: Path) -> None:
    """A pipe that is full, as a terminal that is held: the picture goes on, and ends in order."""
    process = started(
        *("test:160x90@25", "-o", tmp_path / "a.mkv", "--model", "identity", "--json"),
        *("--every", "5ms", "--device", "cpu"),
    )
    try:
        peers.until(lambda: (tmp_path / "a.part.mkv").exists())
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
    finally:
        process.kill()
        said = process.communicate()[1]
    assert "Fatal" not in said
    assert "Traceback" not in said
    numbers = numbers_of(tmp_path / "a.mkv")
    assert len(numbers) > 75
    assert goes_on(numbers)


def test_a_reader_of_standard_output_that_goes(tmp_path: Path) -> None:
    words = command("test:160x90@25", "-o", "-", "--model", "identity", "--pipe-format", "mpegts")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(20_000)) == 20_000
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 1
    assert "standard output" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_full_disk(suffix: str, tmp_path: Path) -> None:
    """A limit of the system on the size of files stands in for the end of the disk."""
    resource = pytest.importorskip("resource")
    words = command(
        *("test:160x90@25", "-o", tmp_path / f"a{suffix}", "-o", f"{tmp_path}/hls/", "--json"),
        *("--every", "200ms", "--model", "identity", "--duration", "6s"),
    )
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    gone = [x for x in lines if x.get("event") == "sink_gone" and x["sink"].endswith(suffix)]
    assert gone
    assert "large" in gone[0]["reason"].lower()
    # What was written before can be played, the picture went on, and no empty files are left.
    files = sorted(tmp_path.glob(f"a*{suffix}"))
    assert 1 <= len(files) <= len(gone) + 1
    found = [len(numbers_of(f, torn=True)) for f in files]
    assert all(count > 5 for count in found), (files, found)
    assert lines[-1]["encoded"] > 100


def test_folders_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # which root never hears of
    for sink in (tmp_path / "a.mkv", f"{tmp_path}/"):
        with pytest.raises(OutputError, match="may not be written to"), session("test", sink):
            pass


def test_no_virtual_camera_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyvirtualcam")
    if list(Path("/dev").glob("video*")):
        pytest.skip("there may be one")
    with (
        pytest.raises(OutputError, match="no virtual camera"),
        session("test:160x90@25", "virtual") as (live, _),
    ):
        live.wait(20)


class _Device:
    """What pyvirtualcam's Camera is to the program; it breaks when told to."""

    made: ClassVar[list[_Device]] = []
    broken = False

    def __init__(self, width: int, height: int, fps: float, device: str | None = None) -> None:
        if _Device.broken:
            raise RuntimeError("device is gone")
        self.width, self.height, self.fps, self.device = width, height, fps, device
        self.pictures: list[np.ndarray[Any, Any]] = []
        _Device.made.append(self)

    def send(self, picture: np.ndarray[Any, Any]) -> None:
        if _Device.broken:
            raise RuntimeError("device is gone")
        self.pictures.append(picture)

    def close(self) -> None:
        self.device = "closed"


def test_a_virtual_camera_that_goes_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("pyvirtualcam")
    module.Camera = _Device  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    _Device.made, _Device.broken = [], False
    with session("test:160x90@25", "/dev/video9", tmp_path / "a.mkv") as (live, events):
        peers.until(lambda: _Device.made and len(_Device.made[0].pictures) > 5)
        _Device.broken = True
        peers.until(lambda: events.of("sink_gone"))
        seen = count(live)
        _Device.broken = False
        peers.until(lambda: events.of("sink_back"))
        assert count(live) > seen  # the file did not notice
        peers.until(lambda: len(_Device.made[-1].pictures) > 3)
    first = _Device.made[0]
    assert (first.width, first.height, first.fps) == (160, 90, 25)
    assert first.pictures[0].shape == (90, 160, 3)
    assert {d.device for d in _Device.made} == {"closed"}
    assert first.pictures[0].max() != first.pictures[0].min()
    numbers = numbers_of(tmp_path / "a.mkv")
    assert goes_on(numbers)


def test_a_virtual_camera_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(UsageError, match=r"vdeblur\[virtualcam\]"), session("test", "virtual"):
        pass


def test_a_keyframe_that_waits_for_a_busy_sink_is_followed_by_what_follows_it(
    tmp_path: Path,
) -> None:
    """The sink's thread comes to a new segment after the segment's first keyframe is queued."""
    asked: list[bool] = []
    sink = FileSink(str(tmp_path / "a.mkv"), SinkOptions(), keyframe=lambda: asked.append(True))
    encoder = PictureEncoder(
        LiveEncoding(preset="ultrafast", keyframes=1.0), width=160, height=90, rate=Fraction(25)
    )
    planes = [plane.reshape(-1) for plane in draw(Scene.of("test:160x90@25"), 0)]
    picture = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(-1, 160), format="yuv420p")
    picture.time_base = Fraction(1, 90000)
    sink.begin(encoder.template, "format")
    for number in range(5):
        picture.pts = number * 3600
        for chunk in encoder.encode(picture):
            sink.offer(chunk)
        if not number:
            sink.start()
            peers.until(lambda: sink.connected)
    sink.end()
    assert sink.join(10)
    assert (sink.written, sink.dropped, asked) == (5, 0, [])
    assert len(numbers_of(tmp_path / "a.mkv")) == 5


@needs_nginx
def test_a_sink_that_goes_and_comes_back(tmp_path: Path) -> None:
    with (
        peers.nginx(tmp_path / "nginx") as (rtmp, _, server),
        session("test:160x90@25", f"{rtmp}/cam", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: live.snapshot()[0]["sinks"][0]["connected"])
        peers.until(lambda: count(live) > 20)
        server.kill()
        peers.until(lambda: events.of("sink_gone"), 20)
        seen = count(live)
        server.start()
        peers.until(lambda: events.of("sink_back"), 30, lambda: str(events))
        with peers.Reader(f"{rtmp}/cam", fflags="nobuffer") as reader:
            reader.wait(20)
        assert count(live) > seen
    numbers = numbers_of(tmp_path / "a.mkv")
    assert goes_on(numbers)  # the other sink did not notice


def test_a_sink_that_never_answers_stops_nobody(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        to = f"rtmp://127.0.0.1:{deaf.getsockname()[1]}/live/s3cr3t"
        with session("test:160x90@25", to, tmp_path / "a.mkv") as (live, events):
            peers.until(lambda: events.of("sink_gone"), 30)
            status = live.snapshot()[0]
            began = time.monotonic()
        assert time.monotonic() - began < 8
    assert "s3cr3t" not in str(events) + json.dumps(status)
    assert status["latency_ms"]["p95"] < 300
    numbers = numbers_of(tmp_path / "a.mkv")
    assert len(numbers) > 100
    assert goes_on(numbers)
