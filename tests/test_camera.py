"""Live streams with real peers on loopback; latency is read from the picture itself."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import vdeblur
from tests import peers
from vdeblur.camera.encoding import LiveEncoding
from vdeblur.camera.receiving import RetryOptions
from vdeblur.camera.session import Session, SessionOptions
from vdeblur.camera.sinks import SinkOptions
from vdeblur.camera.sources import Missing, Refused, SourceOptions
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.frames import Frame

ROOT = Path(__file__).parents[1]
needs_rtsp = pytest.mark.skipif(bool(peers.no_rtsp_server()), reason=peers.no_rtsp_server())
needs_nginx = pytest.mark.skipif(bool(peers.no_nginx()), reason=peers.no_nginx())
needs_ffmpeg = pytest.mark.skipif(bool(peers.no_ffmpeg()), reason=peers.no_ffmpeg())


class Network:
    """Changes nothing, in a given time; what it must not do is not change the picture's code."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.levels, self.seconds = ("whole",), seconds

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        time.sleep(self.seconds)
        return [False] * len(frames)


class Events(list[tuple[str, dict[str, Any]]]):
    """What happened, in order."""

    def __call__(self, name: str, **facts: Any) -> None:
        self.append((name, facts))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [facts for found, facts in list(self) if found == name]


QUICK = SessionOptions(
    source=SourceOptions(timeout=1.5),
    retry=RetryOptions(first=0.2, cap=1.0),
    sink=SinkOptions(timeout=1.5, retry_cap=1.0),
    encoding=LiveEncoding(preset="ultrafast", keyframes=1.0),
)


@contextmanager
def session(
    source: str | list[str],
    *sinks: object,
    network: Network | None = None,
    options: SessionOptions = QUICK,
) -> Iterator[tuple[Session, Events]]:
    events = Events()
    sources = [source] if isinstance(source, str) else source
    live = Session(
        sources, [str(s) for s in sinks], network or Network(), options=options, on_event=events
    )
    with live:
        yield live, events


def numbers_of(path: Path | str) -> list[int]:
    """The numbers in a file's pictures, in order."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            code = peers.code_of(frame)
            assert code is not None
            found.append(code[0])
    return found


def count(live: Session, key: str = "encoded", camera: int = 0) -> int:
    return int(live.snapshot()[camera][key])


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


# -- the way through -------------------------------------------------------------------------------


@needs_rtsp
@needs_nginx
def test_rtsp_to_rtmp_and_a_file(tmp_path: Path) -> None:
    with (
        peers.rtsp_server("--sound") as (rtsp, _),
        peers.nginx(tmp_path / "nginx") as (rtmp, _, _),
        session(rtsp, f"{rtmp}/cam", tmp_path / "a.mkv") as (live, events),
        peers.Reader(f"{rtmp}/cam", fflags="nobuffer", analyzeduration="500000") as reader,
    ):
        reader.wait(75)
        status = live.snapshot()[0]
        assert not events.of("outage")
    # Through camera encoder, RTSP, this program, RTMP, nginx and the reader.
    assert quantile(reader.latencies, 0.95) < 1.0
    assert reader.numbers == sorted(reader.numbers)
    assert len(reader.numbers) > 0.9 * (reader.numbers[-1] - reader.numbers[0])
    assert status["latency_ms"]["p95"] < 300
    assert status["dropped"] == 0
    assert status["restored"] > 0.8 * status["received"]
    numbers = numbers_of(tmp_path / "a.mkv")
    assert len(numbers) >= 75
    assert all(0 < b - a <= 3 for a, b in pairwise(numbers))
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert sum(p.size > 0 for p in container.demux(audio=0)) > 20


def test_sound_stays_with_its_picture(tmp_path: Path) -> None:
    # A slow network delays the picture: the sound has to be as late.
    with session("test:160x90@25", tmp_path / "a.mkv", network=Network(0.1)) as (live, _):
        peers.until(lambda: count(live) > 90)
        assert count(live, "restored") > 5
    flashes, beeps = [], []
    with av.open(str(tmp_path / "a.mkv")) as container:
        for frame in container.decode(video=0):
            code = peers.code_of(frame)
            assert code is not None
            if code[0] % 25 == 0:
                flashes.append(float(frame.time or 0))
    with av.open(str(tmp_path / "a.mkv")) as container:
        silent = 0
        for sound in container.decode(audio=0):
            loud = np.abs(sound.to_ndarray()[0]) > 0.1
            for at in range(0, len(loud), 48):  # milliseconds
                if loud[at : at + 48].any():
                    if silent > 300:
                        beeps.append(float(sound.time or 0) + at / 48000)
                    silent = 0
                else:
                    silent += 1
    assert len(beeps) >= 2
    for beep in beeps:
        assert min(abs(beep - flash) for flash in flashes) < 0.04, (beeps, flashes)


def test_times_are_those_of_the_source(tmp_path: Path) -> None:
    with session("test:160x90@24", tmp_path / "a.mp4") as (live, _):
        peers.until(lambda: count(live) > 40)
    with av.open(str(tmp_path / "a.mp4")) as container:
        times = [(frame.time or 0.0, peers.code_of(frame)) for frame in container.decode(video=0)]
    first = times[0][1]
    assert first is not None
    for at, code in times:
        assert code is not None
        assert at == pytest.approx((code[0] - first[0]) / 24, abs=2e-4)


@needs_rtsp
def test_a_network_ten_times_too_slow_holds_nothing_up(tmp_path: Path) -> None:
    with (
        peers.rtsp_server() as (rtsp, _),
        session(rtsp, tmp_path / "a.mkv", network=Network(0.4)) as (live, _),
    ):
        peers.until(lambda: count(live) > 75)
        status = live.snapshot()[0]
    assert status["passed"] > 60
    assert status["latency_ms"]["p95"] < 300
    numbers = numbers_of(tmp_path / "a.mkv")
    assert numbers == sorted(numbers)
    assert len(numbers) > 0.9 * (numbers[-1] - numbers[0])


def test_several_cameras_share_a_network(tmp_path: Path) -> None:
    options = SessionOptions(together=True, encoding=QUICK.encoding)
    sources = ["test:160x90@20", "test:160x90@20"]
    with session(sources, tmp_path / "cam_{camera}.mkv", options=options) as (live, _):
        peers.until(lambda: min(count(live, camera=0), count(live, camera=1)) > 20)
    assert len(numbers_of(tmp_path / "cam_1.mkv")) > 20
    assert len(numbers_of(tmp_path / "cam_2.mkv")) > 20
    with pytest.raises(UsageError, match=r"\{camera\}"):
        Session(sources, ["one.mkv"], Network())


def test_a_file_is_played_at_its_own_pace(tmp_path: Path) -> None:
    with session("test:160x90@25", tmp_path / "a.mkv") as (live, _):
        peers.until(lambda: count(live) > 30)
    numbers = numbers_of(tmp_path / "a.mkv")
    began = time.monotonic()
    with session(str(tmp_path / "a.mkv"), tmp_path / "b.ts") as (live, events):
        assert live.wait(20)
        took = time.monotonic() - began
    assert took > (len(numbers) - 2) / 25
    assert numbers_of(tmp_path / "b.ts") == numbers
    assert not events.of("outage")


# -- sources and sinks -----------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize("kind", ["udp", "srt"])
def test_sources_that_ffmpeg_sends(kind: str, tmp_path: Path) -> None:
    with session("test:160x90@25", tmp_path / "a.ts") as (live, _):
        peers.until(lambda: count(live) > 60)
    if kind == "srt":
        protocols = subprocess.run(["ffmpeg", "-protocols"], capture_output=True, text=True).stdout
        if "srt" not in protocols.split():
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
    assert len(numbers_of(tmp_path / "b.mkv")) > 30


@needs_nginx
def test_hls_and_mjpeg_sources(tmp_path: Path) -> None:
    from vdeblur.camera.preview import Preview

    with (
        peers.nginx(tmp_path / "nginx") as (rtmp, http, _),
        Preview("127.0.0.1:0", webrtc=False) as preview,
    ):
        events = Events()
        feeding = Session(
            ["test:160x90@25"],
            [f"{rtmp}/cam"],
            Network(),
            options=QUICK,
            viewers=[preview],
            on_event=events,
        )
        with feeding:
            with session(f"http://127.0.0.1:{preview.port}/stream.mjpeg?camera=1",
                         tmp_path / "jpeg.mkv") as (live, _):  # fmt: skip
                peers.until(lambda: count(live) > 20, 40, lambda: str(live.snapshot()[0]))
                assert live.snapshot()[0]["codec"] == "mjpeg"
            playlist = tmp_path / "nginx" / "hls" / "cam.m3u8"
            peers.until(lambda: playlist.exists() and playlist.read_text().count(".ts") >= 3)
            with session(f"{http}/cam.m3u8", tmp_path / "hls.mkv") as (live, _):
                peers.until(lambda: count(live) > 60, 40, lambda: str(live.snapshot()[0]))
                # What comes by the segment leaves by the frame.
                assert live.snapshot()[0]["dropped"] < 15
    assert numbers_of(tmp_path / "hls.mkv") == sorted(numbers_of(tmp_path / "hls.mkv"))


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
    from dataclasses import replace

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


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [(LiveEncoding(bitrate=800_000), "h264"), (LiveEncoding(encoder="libx265"), "hevc")],
)
def test_how_it_is_encoded(encoding: LiveEncoding, codec: str, tmp_path: Path) -> None:
    from dataclasses import replace

    options = replace(QUICK, encoding=encoding, max_latency=1.0)
    with session("test:160x90@25", tmp_path / "a.mkv", options=options) as (live, _):
        peers.until(lambda: count(live) > 20)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].codec_context.name == codec
    assert len(numbers_of(tmp_path / "a.mkv")) > 15
    wrong = replace(options, encoding=LiveEncoding(encoder="nonsense"))
    with (
        pytest.raises(vdeblur.EncoderError, match="name one such as"),
        session("test:160x90@25", tmp_path / "b.mkv", options=wrong) as (live, _),
    ):
        live.wait(20)


def test_the_screen(tmp_path: Path) -> None:
    import shutil

    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: apt install xvfb")
    number = 90 + os.getpid() % 100
    server = subprocess.Popen(
        ["Xvfb", f":{number}", "-screen", "0", "320x240x24"], stderr=subprocess.DEVNULL
    )
    try:
        peers.until(lambda: Path(f"/tmp/.X11-unix/X{number}").exists())
        with session(f"screen::{number}", tmp_path / "a.mkv") as (live, _):
            peers.until(lambda: count(live) > 10, 40, lambda: str(live.snapshot()[0]))
            assert live.snapshot()[0]["size"] == "320x240"
    finally:
        server.kill()
        server.wait()


# -- faults ----------------------------------------------------------------------------------------


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
        good = rtsp.replace("rtsp://", "rtsp://admin:right@")
        with vdeblur.deblur_stream(good, model="identity") as stream:
            assert next(iter(stream)).picture.width == 160
            assert "right@" not in json.dumps(stream.stats())
    assert not Path("test_never.mkv").exists()


def test_giving_up_when_told_to() -> None:
    from dataclasses import replace

    options = replace(QUICK, retry=RetryOptions(tries=2, first=0.05, cap=0.1))
    address = f"rtsp://u:s3cr3t@127.0.0.1:{peers.free_port()}/x"
    with (
        pytest.raises(InputError, match="given up after 2 tries in a row") as raised,
        session(address, "-", options=options) as (live, events),
    ):
        live.wait(20)
    assert len(events.of("retry")) == 2
    assert "s3cr3t" not in str(raised.value) + str(events)
    with pytest.raises(Missing, match="does not exist"), session("no.mp4", "-") as (live, _):
        live.wait(20)


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
    assert all(0 < b - a <= 3 for a, b in pairwise(numbers))  # the other sink did not notice


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
    assert all(0 < b - a <= 3 for a, b in pairwise(numbers))


def test_corrupt_packets_are_counted_and_not_shown(tmp_path: Path) -> None:
    options = QUICK
    with session("test:160x90@25", tmp_path / "a.ts", options=options) as (live, _):
        peers.until(lambda: count(live) > 100)
    data = bytearray((tmp_path / "a.ts").read_bytes())
    random = np.random.default_rng(3)
    for at in random.integers(20_000, len(data) - 20_000, 12):
        at = int(at) // 188 * 188
        data[at + 8 : at + 180] = random.bytes(172)
    (tmp_path / "bad.ts").write_bytes(data)
    with session(str(tmp_path / "bad.ts"), tmp_path / "b.mkv") as (live, events):
        assert live.wait(30)
        status = live.snapshot()[0]
    assert events.of("corrupt")
    assert status["corrupt"] >= 1
    assert 30 < status["encoded"] <= 105


# -- the command -----------------------------------------------------------------------------------


def camera(*words: object) -> list[str]:
    return [sys.executable, "-m", "vdeblur", "camera", *map(str, words)]


def started(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        camera(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )


def test_the_command_watched_and_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = peers.free_port()
    secret = f"rtmp://u:s3cr3t@127.0.0.1:{peers.free_port()}/live/k3y"
    process = started(
        *("env:VD_SOURCE", "-o", tmp_path / "a.mkv", "-o", "env:VD_SINK", "--model", "identity"),
        *("--json", "--metrics", f"127.0.0.1:{port}", "--device", "cpu"),
        env={"VD_SOURCE": "test:160x90@25", "VD_SINK": secret},
    )
    lines: list[dict[str, Any]] = []
    said: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None

    def listen(pipe: Any, keep: Callable[[str], None]) -> None:
        for line in pipe:
            keep(line)

    threads = [
        threading.Thread(
            target=listen, args=(process.stdout, lambda t: lines.append(json.loads(t)))
        ),
        threading.Thread(target=listen, args=(process.stderr, said.append)),
    ]
    for thread in threads:
        thread.start()
    try:
        peers.until(
            lambda: any(x["type"] == "status" and x["encoded"] > 50 for x in list(lines)),
            60,
            lambda: "".join(said),
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        for thread in threads:
            thread.join()
        process.stdout.close()
        process.stderr.close()
    assert "s3cr3t" not in metrics + str(lines) + "".join(said)
    assert "k3y" not in metrics + str(lines) + "".join(said)
    value = re.search(r'vdeblur_frames_encoded_total\{camera="1"\} (\S+)', metrics)
    assert value
    assert float(value[1]) > 40
    for name in ("frames_passed", "frames_dropped", "reconnects", "line_depth", "sink_depth"):
        assert f"vdeblur_{name}" in metrics
    assert 'vdeblur_latency_seconds{camera="1",quantile="0.95"}' in metrics
    assert {"connected", "segment", "sink_gone"} <= {x.get("event") for x in lines}
    assert lines[-1]["type"] == "end"
    assert "Traceback" not in "".join(said)
    assert len(numbers_of(tmp_path / "a.mkv")) >= 50
    assert not list(tmp_path.glob("*.part*"))


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
    words = ("test:160x90@25", "-o", "-", "--model", "identity", "--duration", "2s", "--quiet")
    with (tmp_path / "a.mkv").open("wb") as file:
        done = subprocess.run(camera(*words), stdout=file, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(numbers_of(tmp_path / "a.mkv")) > 25


def test_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from vdeblur.cli import main

    assert main(["camera", "test"]) == 2
    assert "no sink" in capsys.readouterr().err
    assert main(["camera", "test", "-o", "-", "--json"]) == 2
    assert main(["camera", "test", "-o", "a.png", "--model", "identity"]) == 2
    assert main(["camera", "test", "-o", f"{tmp_path}/no/a.mkv", "--model", "identity"]) == 1
    assert "create it first" in capsys.readouterr().err
    assert main(["camera", "list", "--json"]) == 0
    assert '"test"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["camera", "test", "-o", "a.mkv", "--max-latency", "soon"])
    assert "write 300ms" in capsys.readouterr().err
    assert main(["camera", "test", "-o", "a.mkv", "--degrade", "tiny"]) == 2
    assert "no step" in capsys.readouterr().err


# -- Python ----------------------------------------------------------------------------------------


def test_deblur_stream(tmp_path: Path) -> None:
    frames = []
    stream = vdeblur.deblur_stream("test:160x90@25", str(tmp_path / "a.mkv"), model="identity")
    for frame in stream:
        frames.append(frame)
        if len(frames) == 20:
            break
    stream.stop()
    assert frames[0].rgb().shape == (90, 160, 3)
    assert any(frame.restored for frame in frames)
    assert all(b.time_seconds > a.time_seconds for a, b in pairwise(frames))
    assert all(frame.latency_seconds < 2 for frame in frames)
    assert len(numbers_of(tmp_path / "a.mkv")) >= 20
    assert stream.stats()[0]["encoded"] >= 20


def test_a_slow_reader_holds_nobody_up(tmp_path: Path) -> None:
    stream = vdeblur.deblur_stream("test:160x90@50", str(tmp_path / "a.mkv"), model="identity")
    with stream:
        for number, _ in enumerate(stream):
            time.sleep(0.3)
            if number == 4:
                break
        status = stream.stats()[0]
    assert stream.missed > 20
    assert status["dropped"] < 10
    assert status["latency_ms"]["p95"] < 300


def test_a_smaller_size_helps_and_keeps_detail() -> None:
    from vdeblur.deblurrer import Deblurrer
    from vdeblur.frames import PlaneLayout
    from vdeblur.live import LiveDeblurrer

    restorer = LiveDeblurrer(Deblurrer(device="cpu"), ["half", "identity"])
    names = ["mimo-unet-small", "mimo-unet-small at half size", "identity"]
    assert list(restorer.levels) == names
    layout = PlaneLayout(162, 90)
    random = np.random.default_rng(5)
    planes = tuple(random.integers(30, 220, shape).astype(np.uint8) for shape in layout.shapes)
    results = []
    for level in range(3):
        frame = Frame(tuple(p.copy() for p in planes), layout, 0, Fraction(1, 25))
        assert restorer.restore([frame], level) in ([False], [True])
        results.append(frame.planes)
    assert all(np.array_equal(a, b) for a, b in zip(results[2], planes, strict=True))
    changed = np.abs(results[1][0].astype(int) - planes[0])
    # Noise that a picture of half the size does not hold is still there.
    assert changed.mean() < 0.5 * np.std(planes[0])


def test_no_virtual_camera_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyvirtualcam")
    if list(Path("/dev").glob("video*")):
        pytest.skip("there may be one")
    with (
        pytest.raises(OutputError, match="no virtual camera"),
        session("test:160x90@25", "virtual") as (live, _),
    ):
        live.wait(20)


def test_without_ffmpeg_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="needs an installed ffmpeg"):
        Session(["test"], ["srt://127.0.0.1:1"], Network())
    with (
        pytest.raises(UsageError, match="needs an installed ffmpeg"),
        session("srt://127.0.0.1:1", "-") as (live, _),
    ):
        live.wait(20)


def test_the_program_to_copy(tmp_path: Path) -> None:
    words = ("test:160x90@25", tmp_path / "a.mkv", "--model", "identity", "--seconds", "2.5")
    done = subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / "deblur_camera.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert " restored, " in done.stdout
    assert len(numbers_of(tmp_path / "a.mkv")) > 30


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
