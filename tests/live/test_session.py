"""Live streams with real peers on loopback; latency is read from the picture itself."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import vdeblur
from tests.helpers import peers
from tests.helpers.live import (
    QUICK,
    ROOT,
    Network,
    count,
    goes_on,
    needs_nginx,
    needs_rtsp,
    numbers_of,
    quantile,
    session,
    started,
)
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.live.addresses import Scene
from vdeblur.live.options import SessionOptions
from vdeblur.live.session import Session
from vdeblur.live.sources.demo_scene import draw


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
    # Of frames that come late where others work too, one may have to go.
    assert status["dropped"] <= 0.05 * status["received"]
    assert status["restored"] > 0.8 * status["received"]
    numbers = numbers_of(tmp_path / "a.mkv")
    assert len(numbers) >= 75
    assert goes_on(numbers)
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        assert sum(p.size > 0 for p in container.demux(audio=0)) > 20


@pytest.mark.parametrize("kind", ["test", "rtsp", "copied"])
def test_sound_stays_with_its_picture(kind: str, tmp_path: Path) -> None:
    """A slow network delays the picture: the sound has to be as late, whether it is encoded or
    copied, and whatever the source's clocks are. Pictures whose number divides by 25 come with a
    tone."""
    with ExitStack() as stack:
        source, wanted = "test:160x90@25", 90
        if kind == "rtsp":
            if peers.no_rtsp_server():
                pytest.skip(peers.no_rtsp_server())
            source, _ = stack.enter_context(peers.rtsp_server("--sound"))
        elif kind == "copied":
            with session(source, tmp_path / "source.mkv") as (live, _):
                peers.until(lambda: count(live) > 90)
            source, wanted = str(tmp_path / "source.mkv"), 80
        live, _ = stack.enter_context(session(source, tmp_path / "a.mkv", network=Network(0.1)))
        peers.until(lambda: count(live) > wanted)
        assert count(live, "restored") > 5
    numbers, times, beeps = [], [], []
    with av.open(str(tmp_path / "a.mkv")) as container:
        for frame in container.decode(video=0):
            code = peers.code_of(frame)
            assert code is not None
            numbers.append(code[0])
            times.append(float(frame.time or 0))
    # On a busy machine the very picture may be dropped: its time lies between those beside it.
    tolled = range(-(-numbers[0] // 25) * 25, numbers[-1] + 1, 25)
    flashes = [float(np.interp(number, numbers, times)) for number in tolled]
    with av.open(str(tmp_path / "a.mkv")) as container:
        silent = 0
        for sound in container.decode(audio=0):
            loud = np.abs(sound.to_ndarray()[0]) > 0.1
            step = sound.sample_rate // 1000
            for at in range(0, len(loud), step):
                if loud[at : at + step].any():
                    if silent > 300:
                        beeps.append(float(sound.time or 0) + at / sound.sample_rate)
                    silent = 0
                else:
                    silent += 1
    assert len(beeps) >= 2
    for beep in beeps:
        assert min(abs(beep - flash) for flash in flashes) < 0.05, (beeps, flashes)


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
        # On a machine that is busy otherwise, a frame may be dropped.
        peers.until(lambda: min(count(live, camera=0), count(live, camera=1)) > 24)
    assert len(numbers_of(tmp_path / "cam_1.mkv")) > 20
    assert len(numbers_of(tmp_path / "cam_2.mkv")) > 20
    with pytest.raises(UsageError, match=r"\{camera\}"):
        Session(sources, ["one.mkv"], Network())


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
    for stage in ("decode", "wait", "network", "encode"):
        found = re.search(
            rf'vdeblur_stage_seconds{{camera="1",quantile="0.5",stage="{stage}"}} (\S+)', metrics
        )
        assert found, stage
        assert 0 <= float(found[1]) < 0.3
    assert 'vdeblur_latency_seconds{camera="1",quantile="0.95"}' in metrics
    assert {"connected", "segment", "sink_gone"} <= {x.get("event") for x in lines}
    assert lines[-1]["type"] == "end"
    assert "Traceback" not in "".join(said)
    assert len(numbers_of(tmp_path / "a.mkv")) >= 50
    assert not list(tmp_path.glob("*.part*"))


def test_wrong_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from vdeblur.cli.main import main

    assert main(["camera", "test"]) == 2
    assert "no sink" in capsys.readouterr().err
    assert main(["camera", "test", "-o", "-", "--json"]) == 2
    assert main(["camera", "test", "-o", "a.png", "--model", "identity"]) == 2
    for wrong in (["--keep", "0"], ["--retry", "-1"], ["--batch", "4"]):
        assert main(["camera", "test", "-o", "a.mkv", *wrong]) == 2
    assert main(["camera", "test:9x9", "-o", f"{tmp_path}/a.mkv", "--model", "identity"]) == 2
    assert "no test scene" in capsys.readouterr().err
    assert main(["camera", "test", "-o", f"{tmp_path}/no/a.mkv", "--model", "identity"]) == 1
    assert "create it first" in capsys.readouterr().err
    assert main(["camera", "list", "--json"]) == 0
    assert '"test"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["camera", "test", "-o", "a.mkv", "--max-latency", "soon"])
    assert "write 300ms" in capsys.readouterr().err
    assert main(["camera", "test", "-o", "a.mkv", "--degrade", "tiny"]) == 2
    assert "no step" in capsys.readouterr().err


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


def smeared(number: int) -> tuple[np.ndarray[Any, Any], ...]:
    """A picture of the test scene, moved while it was taken."""
    luma, blue, red = draw(Scene(160, 90, 25), number)
    wide = sum(np.roll(luma.astype(np.float64), step, 1) for step in range(-4, 5)) / 9
    return np.asarray(wide).astype(np.uint8), blue, red


def test_frames_of_several_cameras_come_out_of_a_batch_as_they_would_alone() -> None:
    from vdeblur.frames import PlaneLayout
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.live.restorer import LiveDeblurrer

    restorer = LiveDeblurrer(Deblurrer(device="cpu"), ["half"])
    layout = PlaneLayout(160, 90)
    sources = [smeared(number) for number in (3, 17)]
    motions = [np.full((4, 1, 1), length, np.float32) for length in (6, 9)]
    for motion in motions:
        motion[1:] = 0
    for level in range(2):
        together, alone = (
            [
                Frame(tuple(p.copy() for p in s), layout, 0, Fraction(1, 25), motion=m)
                for s, m in zip(sources, motions, strict=True)
            ]
            for _ in range(2)
        )
        restorer.restore(together, level)
        for frame in alone:
            restorer.restore([frame], level)
        for a, b, was in zip(together, alone, sources, strict=True):
            assert all_close(a, b)
            assert not np.array_equal(a.planes[0], was[0])


def all_close(a: Frame, b: Frame) -> bool:
    """But for the last bit, where sums are taken in another order."""
    pairs = zip(a.planes, b.planes, strict=True)
    return max(int(np.abs(x.astype(int) - y).max()) for x, y in pairs) <= 1


def test_a_smaller_size_helps_and_keeps_detail() -> None:
    from vdeblur.frames import PlaneLayout
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.live.restorer import LiveDeblurrer

    deblurrer = Deblurrer(device="cpu")
    restorer = LiveDeblurrer(deblurrer, ["half", "identity"])
    assert list(restorer.levels) == [deblurrer.name, f"{deblurrer.name} at half size", "identity"]
    moved = np.zeros((4, 2, 2), np.float32)
    moved[0] = 9
    layout = PlaneLayout(160, 90)
    luma, blue, red = smeared(3)
    # What a picture of half the size cannot hold: a pattern of single pixels.
    rows, columns = np.indices(luma.shape)
    fine = np.where((rows + columns) % 2, 4, -4)
    planes = ((luma + fine).astype(np.uint8), blue, red)
    results = []
    for level in range(3):
        frame = Frame(
            tuple(p.copy() for p in planes), layout, 0, Fraction(1, 25), motion=moved.copy()
        )
        assert restorer.restore([frame], level) == [False]
        assert frame.motion is not None
        assert (frame.motion == moved).all()  # what the smaller picture had was its own
        results.append(frame.planes)
    assert all(np.array_equal(a, b) for a, b in zip(results[2], planes, strict=True))
    assert not np.array_equal(results[0][0], planes[0])
    changed = results[1][0].astype(int) - planes[0]
    assert changed.any()
    assert abs(float((changed * fine).mean())) < 1  # of the pattern's 16


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
