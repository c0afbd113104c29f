"""What goes wrong with live streams, and what becomes of it."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import vdeblur
from tests.helpers import peers
from tests.helpers.live import QUICK, clip, count, needs_nginx, needs_rtsp, numbers_of, session
from vdeblur.cli.main import main
from vdeblur.errors import EncoderError, InputError
from vdeblur.live.encoding import PictureEncoder
from vdeblur.live.sources.receiver import RetryOptions
from vdeblur.live.sources.source import Missing, Refused, SourceOptions


@needs_rtsp
def test_a_server_that_goes_and_comes_back_changed(tmp_path: Path) -> None:
    with (
        peers.rtsp_server("--size", "160x96") as (rtsp, server),
        session(rtsp, tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: count(live) > 25)
        server.kill()
        peers.until(lambda: events.of("outage"), 20)
        assert live.snapshot()[0]["state"] == "outage"
        time.sleep(0.5)
        encoded = count(live)
        time.sleep(0.5)
        assert count(live) == encoded  # no frame is made up
        server.words[server.words.index("160x96")] = "240x128"
        server.start()
        peers.until(lambda: count(live) > encoded + 25)
        assert live.snapshot()[0]["reconnects"] == 1
        assert live.snapshot()[0]["outage_seconds"] > 0.5
        assert events.of("connected")[1]["outage_seconds"] > 0.5
    sizes = []
    for name in ("a.mkv", "a_0001.mkv"):
        with av.open(str(tmp_path / name)) as container:
            sizes.append(container.streams.video[0].width)
        assert len(numbers_of(tmp_path / name)) > 20
    assert sizes == [160, 240]


@needs_rtsp
def test_a_server_that_stalls(tmp_path: Path) -> None:
    with (
        peers.rtsp_server() as (rtsp, server),
        session(rtsp, tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: count(live) > 10)
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            peers.until(lambda: events.of("outage"), 20)
            assert time.monotonic() - began < 8
            assert "nothing came" in events.of("outage")[0]["reason"]
        finally:
            server.process.send_signal(signal.SIGCONT)
        seen = count(live)
        peers.until(lambda: count(live) > seen + 10)


@needs_rtsp
def test_refused_credentials_are_said_at_once_and_without_the_password() -> None:
    with peers.rtsp_server("--user", "admin:right") as (rtsp, _):
        bad = rtsp.replace("rtsp://", "rtsp://admin:wr0ng@")
        with (
            pytest.raises(Refused, match="refuses the name or the password") as raised,
            session(bad, "test_never.mkv") as (live, events),
        ):
            live.wait(20)
        assert "wr0ng" not in str(raised.value) + str(events)
        # A program that lets the error through prints what caused it, too.
        assert "wr0ng" not in "".join(traceback.format_exception(raised.value))
        good = rtsp.replace("rtsp://", "rtsp://admin:right@")
        with vdeblur.deblur_stream(good, model="identity") as stream:
            assert next(iter(stream)).picture.width == 160
            assert "right@" not in json.dumps(stream.stats())
    assert not Path("test_never.mkv").exists()


def test_a_camera_that_gave_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"rtsp://127.0.0.1:{peers.free_port()}/stream"
    words = ["camera", address, "-o", str(tmp_path / "a.mkv"), "--duration", "1s", "--quiet"]
    assert main([*words, "--model", "identity"]) == 1
    assert "no picture came: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_giving_up_when_told_to() -> None:
    options = replace(QUICK, retry=RetryOptions(tries=2, first=0.05, cap=0.1))
    address = f"rtsp://u:s3cr3t@127.0.0.1:{peers.free_port()}/x"
    with (
        pytest.raises(InputError, match="given up after 2 tries in a row") as raised,
        session(address, "-", options=options) as (live, events),
    ):
        live.wait(20)
    assert len(events.of("retry")) == 2
    assert "s3cr3t" not in str(raised.value) + str(events)
    assert "s3cr3t" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(Missing, match="does not exist"), session("no.mp4", "-") as (live, _):
        live.wait(20)


def test_a_server_that_never_answers_holds_no_end_up(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        options = replace(QUICK, source=SourceOptions(timeout=5))
        address = f"rtsp://127.0.0.1:{deaf.getsockname()[1]}/x"
        with session(address, tmp_path / "a.mkv", options=options) as (live, _):
            time.sleep(1)
            began, worked = time.monotonic(), time.process_time()
        assert live.complete
        assert time.monotonic() - began < 3
        assert time.process_time() - worked < 0.5  # it does not spin meanwhile
    live.cameras[0].receiver.join(10)  # for whoever counts threads


@contextmanager
def _answering(status: int) -> Iterator[str]:
    """The address of a web server with one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/video"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [401, 403])
def test_http_that_refuses(status: int) -> None:
    with (
        _answering(status) as address,
        pytest.raises(Refused, match="check them") as raised,
        session(f"http://u:s3cr3t@{address}?token=t0psecret", "-") as (live, events),
    ):
        live.wait(20)
    text = str(events) + "".join(traceback.format_exception(raised.value))
    assert "s3cr3t" not in text
    assert "t0psecret" not in text


# -- one connection whose contents change: MPEG-TS over TCP, at its own pace -----------------------


def test_another_size_in_mid_stream(tmp_path: Path) -> None:
    one = clip(tmp_path / "1.ts", size="160x90").read_bytes()
    two = clip(tmp_path / "2.ts", size="240x136", first=50, start=2).read_bytes()
    with (
        peers.serving((one, 2), (two, 2)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: len(events.of("segment")) == 2, 20, lambda: str(events))
        peers.until(lambda: count(live) > 80, 20, lambda: str(events))
        assert live.snapshot()[0]["size"] == "240x136"
        assert not events.of("outage")
    first, second = (numbers_of(tmp_path / n) for n in ("a.mkv", "a_0001.mkv"))
    assert max(first) < 50 <= min(second)
    assert len(second) > 25


def test_another_size_that_the_encoder_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of before is finished by then: the camera ends all the same, its file complete."""

    class Picky(PictureEncoder):
        def __init__(self, *args: Any, width: int, **more: Any) -> None:
            if width == 240:
                raise EncoderError("encoder libx264 refuses 240x136")
            super().__init__(*args, width=width, **more)

    monkeypatch.setattr("vdeblur.live.camera.PictureEncoder", Picky)
    one = clip(tmp_path / "1.ts", size="160x90").read_bytes()
    two = clip(tmp_path / "2.ts", size="240x136", first=50, start=2).read_bytes()
    with (
        peers.serving((one, 2), (two, 2)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        with pytest.raises(EncoderError, match="refuses 240x136"):
            assert live.wait(20), "it never ended"
        assert "refuses 240x136" in events.of("failed")[0]["reason"]
    assert live.complete
    assert len(numbers_of(tmp_path / "a.mkv")) > 25


def test_another_rate_in_mid_stream(tmp_path: Path) -> None:
    one = clip(tmp_path / "1.ts").read_bytes()
    two = clip(tmp_path / "2.ts", frames=60, rate=10, first=50, start=2).read_bytes()
    with (
        peers.serving((one, 2), (two, 6)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: live.snapshot()[0]["fps"] == 10, 20, lambda: str(events))
        assert not events.of("outage")
        assert live.snapshot()[0]["jumps"] == 0
    times = []
    for name in ("a.mkv", "a_0001.mkv"):
        with av.open(str(tmp_path / name)) as container:
            times.append([frame.time or 0.0 for frame in container.decode(video=0)])
    assert np.median(np.diff(times[0])) == pytest.approx(0.04, abs=0.002)
    assert np.median(np.diff(times[0][-10:])) == pytest.approx(0.1, abs=0.002)


def test_another_codec_in_mid_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packets go on and none can be decoded: it is an outage, and is connected to again."""
    monkeypatch.setattr("vdeblur.live.sources.connection.Connection.BLIND", 2.0)
    one = clip(tmp_path / "1.ts").read_bytes()
    two = clip(tmp_path / "2.ts", codec="libx265", first=50, start=2, frames=300).read_bytes()
    three = clip(tmp_path / "3.ts", codec="mpeg2video", first=50, start=2, frames=300).read_bytes()
    for other in (two, three):
        with (
            peers.serving((one, 2), (other, 12)) as port,
            session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
        ):
            peers.until(lambda: len(events.of("connected")) == 2, 30, lambda: str(events))
            assert count(live) > 30
        assert [e["codec"] for e in events.of("connected")] == ["h264", "h264"]


@pytest.mark.parametrize("start", [2**33 / 90000 - 1, 5000.0], ids=["wraps", "jumps"])
def test_times_that_wrap_or_jump_in_mid_stream(start: float, tmp_path: Path) -> None:
    one = clip(tmp_path / "1.ts", start=start).read_bytes()
    two = clip(tmp_path / "2.ts", first=50, start=10 if start == 5000 else 1).read_bytes()
    with (
        peers.serving((one, 2), (two, 2)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: count(live) > 85, 20, lambda: str(events))
        assert not events.of("outage")
        assert live.snapshot()[0]["latency_ms"]["p95"] < 1000  # a wrong clock is off by more
    with av.open(str(tmp_path / "a.mkv")) as container:
        found = [(frame.time or 0.0, peers.code_of(frame)) for frame in container.decode(video=0)]
    times = [at for at, _ in found]
    assert all(0 < b - a < 0.5 for a, b in pairwise(times)), times
    assert times[-1] < 6


def test_a_picture_that_ends_while_the_rest_goes_on(tmp_path: Path) -> None:
    data = clip(tmp_path / "1.ts", sound_seconds=14).read_bytes()
    with (
        peers.serving((data, 14)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: events.of("outage"), 25, lambda: str(live.snapshot()[0]))
        assert "no picture for" in events.of("outage")[0]["reason"]


def test_a_server_that_begins_with_the_past(tmp_path: Path) -> None:
    """Two seconds come at once, as from a server that keeps a group of pictures: what is too old is
    left out, and does not make all that follows late."""
    past = clip(tmp_path / "1.ts").read_bytes()
    now = clip(tmp_path / "2.ts", frames=75, first=50, start=2).read_bytes()
    with (
        peers.serving((past, 0.0), (now, 3)) as port,
        session(f"tcp://127.0.0.1:{port}", tmp_path / "a.mkv") as (live, events),
    ):
        peers.until(lambda: count(live) > 55, 20, lambda: str(events))
        status = live.snapshot()[0]
    assert status["dropped"] >= 30
    numbers = numbers_of(tmp_path / "a.mkv")
    assert 40 <= numbers[0] <= 60
    # A busy machine may make a few late; if the past had set the clock, all would be.
    assert all(b > a for a, b in pairwise(numbers))
    assert numbers[-1] - numbers[0] + 1 - len(numbers) <= 10, numbers


def test_corrupt_packets_are_counted_and_not_shown(tmp_path: Path) -> None:
    clip(tmp_path / "a.ts", frames=100)
    data = bytearray((tmp_path / "a.ts").read_bytes())
    random = np.random.default_rng(3)
    for at in random.integers(10_000, len(data) - 10_000, 12):
        at = int(at) // 188 * 188
        data[at + 8 : at + 180] = random.bytes(172)
    (tmp_path / "bad.ts").write_bytes(data)
    with session(str(tmp_path / "bad.ts"), tmp_path / "b.mkv") as (live, events):
        assert live.wait(30)
        status = live.snapshot()[0]
    assert events.of("corrupt")
    assert status["corrupt"] >= 1
    assert 30 < status["encoded"] <= 105


@needs_rtsp
@needs_nginx
def test_a_short_outage_keeps_the_servers_connection(tmp_path: Path) -> None:
    with (
        peers.rtsp_server() as (rtsp, server),
        peers.nginx(tmp_path / "nginx") as (rtmp, _, _),
        session(rtsp, f"{rtmp}/cam", tmp_path / "a.mkv") as (live, events),
        peers.Reader(f"{rtmp}/cam", fflags="nobuffer", analyzeduration="500000") as reader,
    ):
        reader.wait(20)
        server.kill()
        server.start()
        seen = len(reader.numbers)
        reader.wait(seen + 20)
        assert live.snapshot()[0]["reconnects"] == 1
        assert all(b > a for a, b in pairwise(reader.pts))
    pushed = [e for e in events.of("segment") if e["file"].startswith("rtmp")]
    assert len(pushed) == 1
    assert (tmp_path / "a_0001.mkv").exists()
