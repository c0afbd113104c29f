"""Sources of live pictures, each with a real peer where there can be one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.helpers import peers
from tests.helpers.live import (
    QUICK,
    Network,
    clip,
    count,
    needs_ffmpeg,
    needs_nginx,
    needs_rtsp,
    numbers_of,
    session,
)
from vdeblur.errors import UsageError
from vdeblur.live.session import Session
from vdeblur.live.sources import devices, source
from vdeblur.live.sources.source import SourceOptions


@needs_rtsp
def test_rtsp_over_udp(tmp_path: Path) -> None:
    options = replace(QUICK, source=SourceOptions(timeout=1.5, transport="udp"))
    with (
        peers.rtsp_server("--sound") as (rtsp, server),
        session(rtsp, tmp_path / "a.mkv", options=options) as (live, events),
    ):
        peers.until(lambda: count(live) > 40, 40, lambda: str(events))
        assert server.process is not None
        # Only over UDP does the server hold sockets of it.
        sockets = _sockets(server.process.pid)
        table = Path("/proc/net/udp").read_text().splitlines()[1:]
        assert sockets & {line.split()[9] for line in table}
    numbers = numbers_of(tmp_path / "a.mkv")
    assert numbers == sorted(numbers)
    assert len(numbers) > 0.9 * (numbers[-1] - numbers[0])


def _sockets(process: int) -> set[str]:
    """Inodes of a process's sockets."""
    names = [str(f.readlink()) for f in Path(f"/proc/{process}/fd").iterdir()]
    return {name[8:-1] for name in names if name.startswith("socket:[")}


@needs_nginx
def test_rtmp(tmp_path: Path) -> None:
    with (
        peers.nginx(tmp_path / "nginx") as (rtmp, _, _),
        session("test:160x90@25", f"{rtmp}/cam") as (feeding, _),
    ):
        peers.until(lambda: feeding.snapshot()[0]["sinks"][0]["connected"])
        with session(f"{rtmp}/cam", tmp_path / "a.mkv") as (live, events):
            peers.until(lambda: count(live) > 30, 40, lambda: str(events))
    assert len(numbers_of(tmp_path / "a.mkv")) > 25
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"


@needs_ffmpeg
def test_mjpeg_over_http(tmp_path: Path) -> None:
    port = peers.free_port()
    file = str(clip(tmp_path / "a.mkv", frames=100))
    jpeg = ("-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p", "-f", "mpjpeg")
    kind = ("-content_type", "multipart/x-mixed-replace;boundary=ffmpeg", "-listen", "1")
    to = f"http://127.0.0.1:{port}/video"
    with (
        peers.ffmpeg("-re", "-stream_loop", "-1", "-i", file, *jpeg, *kind, to),
        session(to, tmp_path / "b.mkv") as (live, events),
    ):
        peers.until(lambda: count(live) > 20, 40, lambda: str(events))
        assert live.snapshot()[0]["codec"] == "mjpeg"
    assert len(numbers_of(tmp_path / "b.mkv")) > 20


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["udp", "srt"])
def test_sources_that_ffmpeg_sends(kind: str, tmp_path: Path) -> None:
    clip(tmp_path / "a.ts", frames=100)
    if kind == "srt" and not peers.ffmpeg_knows("srt"):
        pytest.skip("this ffmpeg has no SRT")
    port = peers.free_port()
    to = f"udp://127.0.0.1:{port}?pkt_size=1316" if kind == "udp" else (
        f"srt://127.0.0.1:{port}?mode=listener")  # fmt: skip
    sending = ("-re", "-stream_loop", "-1", "-i", str(tmp_path / "a.ts"), "-c", "copy")
    with (
        peers.ffmpeg(*sending, "-f", "mpegts", to),
        session(to.partition("?")[0], tmp_path / "b.mkv") as (live, _),
    ):
        peers.until(lambda: count(live) > 30, 40, lambda: str(live.snapshot()[0]))
    assert len(numbers_of(tmp_path / "b.mkv")) > 25  # some may come late


@needs_ffmpeg
def test_an_srt_passphrase_is_on_no_command_line(tmp_path: Path) -> None:
    """Both ways through ffmpeg, encrypted, between two of our sessions."""
    if not peers.ffmpeg_knows("srt"):
        pytest.skip("this ffmpeg has no SRT")
    port, phrase = peers.free_port(), "k3ep-it-s3cret"
    to = f"srt://127.0.0.1:{port}?passphrase={phrase}"
    with (
        session(f"{to}&mode=listener", tmp_path / "a.mkv") as (live, heard),
        session("test:160x90@25", f"{to}&mode=caller&streamid=#!::u=x,r={phrase}") as (_, said),
    ):
        peers.until(lambda: count(live) > 20, 40, lambda: f"{heard} {said}")
        lines = [f.read_bytes() for f in Path("/proc").glob("[0-9]*/cmdline")]
        assert sum(f"127.0.0.1:{port}".encode() in line for line in lines) >= 1
        assert not any(phrase.encode() in line for line in lines)
    assert phrase not in str(heard) + str(said)
    assert len(numbers_of(tmp_path / "a.mkv")) >= 20


@needs_nginx
def test_hls(tmp_path: Path) -> None:
    with (
        peers.nginx(tmp_path / "nginx") as (rtmp, http, _),
        session("test:160x90@25", f"{rtmp}/cam"),
    ):
        playlist = tmp_path / "nginx" / "hls" / "cam.m3u8"
        peers.until(lambda: playlist.exists() and playlist.read_text().count(".ts") >= 3)
        with session(f"{http}/cam.m3u8", tmp_path / "hls.mkv") as (live, _):
            peers.until(lambda: count(live) > 60, 40, lambda: str(live.snapshot()[0]))
            # What comes by the segment leaves by the frame.
            assert live.snapshot()[0]["dropped"] < 15
    assert numbers_of(tmp_path / "hls.mkv") == sorted(numbers_of(tmp_path / "hls.mkv"))


def test_a_file_is_played_at_its_own_pace_and_again(tmp_path: Path) -> None:
    clip(tmp_path / "a.mkv", frames=40)
    began = time.monotonic()
    with session(str(tmp_path / "a.mkv"), tmp_path / "b.ts") as (live, events):
        assert live.wait(20)
        took = time.monotonic() - began
    assert 38 / 25 < took < 38 / 25 + 3
    numbers = numbers_of(tmp_path / "b.ts")
    assert numbers == sorted(set(numbers))
    assert len(numbers) > 35  # a busy machine may be late with some
    assert not events.of("outage")
    options = replace(QUICK, source=SourceOptions(loop=True))
    with session(str(tmp_path / "a.mkv"), tmp_path / "c.mkv", options=options) as (live, events):
        peers.until(lambda: count(live) > 90)
    assert not events.of("outage")
    numbers = numbers_of(tmp_path / "c.mkv")
    assert numbers[:90] == [*range(40), *range(40), *range(10)]


@needs_ffmpeg
def test_the_screen(tmp_path: Path) -> None:
    """Under a real X server, with a picture shown by another program: what is shown is taken."""
    import shutil

    if shutil.which("Xvfb") is None or not peers.ffmpeg_knows("sdl", "-devices"):
        pytest.skip("no Xvfb, or no ffmpeg that shows pictures: apt install xvfb ffmpeg")
    number = 90 + os.getpid() % 100
    server = subprocess.Popen(
        ["Xvfb", f":{number}", "-screen", "0", "320x240x24"], stderr=subprocess.DEVNULL
    )
    file = str(clip(tmp_path / "a.mkv", frames=50, size="320x240"))
    place = ("-window_x", "0", "-window_y", "0", "-window_borderless", "1")
    shown = ("-re", "-stream_loop", "-1", "-i", file, "-pix_fmt", "yuv420p", "-f", "sdl2")
    try:
        peers.until(lambda: Path(f"/tmp/.X11-unix/X{number}").exists())
        with (
            peers.ffmpeg(*shown, *place, "scene", env={"DISPLAY": f":{number}"}),
            session(f"screen::{number}", tmp_path / "b.mkv") as (live, events),
        ):
            peers.until(lambda: count(live) > 75, 40, lambda: str(events))
            assert live.snapshot()[0]["size"] == "320x240"
            found = [d.address for d in devices.devices()]
            assert f"screen::{number}" in found
    finally:
        server.terminate()
        server.wait()
    assert f"screen::{number}" not in [d.address for d in devices.devices()]
    numbers = set()
    with av.open(str(tmp_path / "b.mkv")) as container:
        for frame in container.decode(video=0):
            if (code := peers.code_of(frame)) is not None:
                numbers.add(code[0])
    assert len(numbers) > 15, numbers


# -- devices: none is here, so what is asked of libav and of ffmpeg is looked at -------------------


def test_a_camera_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    with session("/dev/video97", tmp_path / "a.mkv") as (_, events):
        peers.until(lambda: len(events.of("retry")) > 1)
    assert "/dev/video97 is not there" in events.of("retry")[0]["reason"]
    assert not list(tmp_path.iterdir())


def test_what_is_asked_of_v4l2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A recording stands in for the device; libav gets the device's name and options."""
    asked = []
    opened = source.Source._av

    def _av(self: Any, file: Any, format: str | None = None, **options: str) -> Any:
        asked.append((file, format, options))
        return opened(self, file)

    monkeypatch.setattr(source, "source_kind", lambda address: "v4l2")
    monkeypatch.setattr(source.Source, "_av", _av)
    given = SourceOptions(size=(1280, 720), rate=Fraction(30), input_format="mjpeg")
    options = replace(QUICK, source=given)
    device = str(clip(tmp_path / "a.mkv", frames=60))
    with session(device, tmp_path / "b.mkv", options=options) as (live, _):
        peers.until(lambda: count(live) > 5)
    wanted = {"video_size": "1280x720", "framerate": "30", "input_format": "mjpeg"}
    assert asked[0] == (device, "v4l2", wanted)


def test_a_device_that_is_no_camera_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """libav's own v4l2, on something of another kind."""
    monkeypatch.setattr(source, "source_kind", lambda address: "v4l2")
    (tmp_path / "video0").write_bytes(bytes(1000))
    with session(str(tmp_path / "video0"), tmp_path / "a.mkv") as (_, events):
        peers.until(lambda: events.of("retry"))
    assert "video0 cannot be opened" in events.of("retry")[0]["reason"]


def test_what_v4l2_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in ((10, "Loopback"), (2, "USB Camera"), (3, "USB Camera: metadata")):
        folder = tmp_path / f"video{number}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
    abilities = {"video2": (True, False), "video3": (False, False), "video10": (False, True)}
    monkeypatch.setattr(devices, "_abilities", lambda path: abilities[path.name])
    found = [(d.address, d.kind) for d in devices._v4l2(tmp_path)]
    assert found == [("/dev/video2", "camera"), ("/dev/video10", "output")]


@needs_ffmpeg
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("avfoundation:0", "-f avfoundation -framerate 30 -i 0"),
        ("dshow:video=USB Camera", "-f dshow -i video=USB Camera"),
        ("decklink:DeckLink Mini", "-f decklink -i DeckLink Mini"),
    ],
)
def test_devices_that_ffmpeg_reads(
    address: str, asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of an ffmpeg with such devices stands one that writes down what it was asked,
    and reads a file instead."""
    import shutil

    file = clip(tmp_path / "a.mkv", frames=50)
    script = tmp_path / "bin" / "ffmpeg"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/asked\n'
        f"exec {shutil.which('ffmpeg')} -re -i {file} -f nut -codec copy -flush_packets 1 pipe:1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    with session(address, tmp_path / "b.mkv") as (live, events):
        peers.until(lambda: count(live) > 10, 40, lambda: str(events))
    assert asked in (tmp_path / "asked").read_text()
    numbers = numbers_of(tmp_path / "b.mkv")
    assert numbers == sorted(set(numbers))  # one that was late on a busy machine is left out
    assert len(numbers) > 8


def test_without_ffmpeg_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="needs an installed ffmpeg"):
        Session(["test"], ["srt://127.0.0.1:1"], Network())
    with (
        pytest.raises(UsageError, match="needs an installed ffmpeg"),
        session("srt://127.0.0.1:1", "-") as (live, _),
    ):
        live.wait(20)
