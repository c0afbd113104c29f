"""Live frames know how they move, by the frame before alone, and none of them waits for it."""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import vdeblur
from tests.helpers import peers
from tests.helpers.live import QUICK, Events, Network, count
from tests.motion.test_exposure import by_hand
from tests.motion.test_flow import FPS
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.live.counters import Prometheus
from vdeblur.live.frame_line import FrameLine, QueuedFrame
from vdeblur.live.restorer import LiveDeblurrer, LiveGuide
from vdeblur.live.session import Session
from vdeblur.motion.exposure import AUTO, Exposure
from vdeblur.motion.guide import MOTION_GAIN
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided

RATE = 25


class Seen(Network):
    """Keeps what comes to be restored."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        self.frames += [dataclasses.replace(frame, planes=()) for frame in frames]
        return super().restore(frames, level)


class AtOnce(Executor):
    """What is submitted is done when that returns."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Never(Executor):
    """What is submitted is not done."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return Future()


@pytest.fixture(scope="module")
def texture() -> Any:
    noise = np.random.default_rng(3).integers(0, 256, (420, 1200)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), np.zeros(0), 16, 235, cv2.NORM_MINMAX)


def frame(
    texture: Any, place: float, *, at: float, size: tuple[int, int] = (640, 360), blur: int = 1
) -> Frame:
    """The scene `place` pixels to the right of where it began, `at` seconds; blurred on its way."""
    left = 500 - round(place)
    views = [
        texture[: size[1], left + n - blur // 2 : left + n - blur // 2 + size[0]]
        for n in range(blur)
    ]
    luma = np.mean(views, axis=0).round().astype(np.uint8)
    layout = PlaneLayout(*size)
    chroma = np.full(layout.shapes[1], 128, np.uint8)
    return Frame((luma, chroma, chroma.copy()), layout, round(at * 90000), Fraction(1, 90000))


def across(seen: Frame) -> float:
    assert seen.motion is not None
    return float(np.median(seen.motion[0]))


# -- which frames are looked at ------------------------------------------------------------------


def test_a_frame_goes_to_the_network_when_it_was_seen(texture: Any) -> None:
    line, now = FrameLine(10, guided=True), time.monotonic()
    pictures = [QueuedFrame(frame(texture, 0, at=n / RATE), now, now) for n in range(4)]
    line.put(pictures[0])
    assert line.candidate() is None
    assert line.unseen(0) is pictures[0]
    line.seen(pictures[0])
    assert line.candidate() is pictures[0]
    assert line.unseen(0) is None
    # Two come at once: the newest is looked at, the other passes when the newest is restored.
    line.put(pictures[1])
    line.put(pictures[2])
    assert line.candidate() is pictures[0]
    assert line.unseen(0) is pictures[2]
    line.seen(pictures[2])
    line.pass_older(pictures[2])
    assert [p.state for p in pictures[:3]] == ["pass", "pass", "waiting"]
    # Whoever looked is gone: what comes goes on without.
    line.put(pictures[3])
    line.all_seen()
    assert line.candidate() is pictures[3]


def test_a_frame_that_is_never_seen_leaves_in_time(texture: Any) -> None:
    line, now = FrameLine(0.2, guided=True), time.monotonic()
    line.put(QueuedFrame(frame(texture, 0, at=0), now, now))
    left = line.next(1)
    assert isinstance(left, QueuedFrame)
    assert left.state == "pass"
    assert time.monotonic() - now < 0.3


# -- sessions ------------------------------------------------------------------------------------


def test_restored_frames_of_the_scene_carry_its_motion(tmp_path: Path) -> None:
    network, events = Seen(), Events()
    live = Session(
        ["test:320x180@10"],
        [str(tmp_path / "a.mkv")],
        network,
        options=dataclasses.replace(QUICK, max_latency=2.0),
        guide=lambda: LiveGuide(Exposure(seconds=1 / 20), AtOnce()),
        on_event=events,
    )
    with live:
        peers.until(lambda: count(live, "restored") > 12)
        (status,) = live.snapshot()
    assert not events.of("motion_failed")
    known = [f.motion for f in network.frames if f.motion is not None]
    assert len(known) > 0.6 * len(network.frames)
    # Its bars go 40 pixels a second to the left: 2 pixels in 1/20 s. Above them it is flat.
    bars = [np.median(motion[0][-motion.shape[1] // 3 :]) for motion in known]
    assert np.median(bars) == pytest.approx(-2, abs=0.3)
    assert status["exposure_ms"] == 50
    assert 0 < status["stage_ms"]["motion"]["p50"] < 500
    pytest.importorskip("prometheus_client")
    prometheus = Prometheus("127.0.0.1:0", live.snapshot)
    try:
        with urllib.request.urlopen(prometheus.url, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        prometheus.close()
    assert 'vdeblur_exposure_seconds{camera="1"} 0.05' in text


def test_no_frame_waits_for_the_next(tmp_path: Path) -> None:
    # A frame a second, which may take three: one that waited for the next would take one.
    network = Seen()
    live = Session(
        ["test:160x90@1"],
        [str(tmp_path / "a.mkv")],
        network,
        options=dataclasses.replace(QUICK, max_latency=3.0),
        guide=lambda: LiveGuide(AUTO, AtOnce()),
    )
    with live:
        peers.until(lambda: count(live, "restored") >= 3)
        (status,) = live.snapshot()
    assert status["latency_ms"]["p50"] < 700
    assert status["received"] - status["encoded"] <= 1
    assert status["dropped"] == 0


def test_what_fails_is_told_and_frames_go_on(tmp_path: Path) -> None:
    class Broken:
        exposure_seconds: float | None = None

        def see(self, frame: Frame) -> None:
            raise ValueError("no such motion")

        def forget(self) -> None:
            pass

        def close(self) -> None:
            pass

    events = Events()
    live = Session(
        ["test:160x90@25"],
        [str(tmp_path / "a.mkv")],
        Network(),
        options=dataclasses.replace(QUICK, max_latency=2.0),
        guide=Broken,
        on_event=events,
    )
    with live:
        peers.until(lambda: count(live, "restored") > 5)
    (told,) = events.of("motion_failed")
    assert "no such motion" in told["reason"]


def test_a_guided_network_in_a_stream() -> None:
    deblurrer = Deblurrer(MIMOUNetGuided(), device="cpu", backend="torch")
    with vdeblur.deblur_stream(
        "test:160x90@5", model=deblurrer, max_latency=20.0, exposure="1/10"
    ) as stream:
        peers.until(lambda: stream.stats()[0]["restored"] >= 3, 60)
        (status,) = stream.stats()
    assert status["exposure_ms"] == 100
    assert LiveDeblurrer(Deblurrer("identity", device="cpu")).guide() is None
    guide = LiveDeblurrer(deblurrer, ["half"]).guide()
    assert guide is not None
    guide.close()


def test_wrong_exposure_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    from vdeblur.cli.main import main

    words = ["camera", "test", "-o", "a.mkv", "--model", "identity", "--exposure", "soon"]
    assert main(words) == 2
    assert "exposure is 'soon'" in capsys.readouterr().err


# -- what a camera does to its frames ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["even", "dropped", "jittering"])
def test_the_speed_is_right_whatever_comes(kind: str, texture: Any) -> None:
    guide = LiveGuide(Exposure(seconds=0.02), AtOnce())
    dice = np.random.default_rng(1)
    found = []
    for n in range(24):
        if kind == "dropped" and n % 3 == 1:
            continue
        jitter = dice.uniform(-0.006, 0.006) if kind == "jittering" else 0
        seen = frame(texture, 6 * n, at=n / RATE + jitter)
        guide.see(seen)
        assert (seen.motion is None) == (n == 0)
        found += [across(seen)] if n > 4 else []
    # 150 pixels a second.
    right = [3.0 * MOTION_GAIN] * len(found)
    assert found == pytest.approx(right, rel=0.25 if kind == "jittering" else 0.05)


def test_another_size_and_a_jump_are_other_shots(texture: Any) -> None:
    guide = LiveGuide(Exposure(seconds=0.02), AtOnce())
    sizes = [(640, 360)] * 3 + [(320, 180)] * 3
    known = []
    for n, size in enumerate(sizes):
        seen = frame(texture, 6 * n, at=n / RATE, size=size)
        guide.see(seen)
        known.append(seen.motion is not None)
    assert known == [False, True, True, False, True, True]
    guide.forget()
    seen = frame(texture, 36, at=6 / RATE, size=(320, 180))
    guide.see(seen)
    assert seen.motion is None


def test_the_exposure_is_learned_and_kept(texture: Any) -> None:
    # 12 pixels from frame to frame, blurred by 9 of them: 0.75 of the time.
    guide = LiveGuide(AUTO, AtOnce())
    for n in range(10):
        seen = frame(texture, 12 * n, at=n / RATE, blur=9)
        guide.see(seen)
        if n == 1:
            assert across(seen) == pytest.approx(6, rel=0.1)  # before anything is known: a half
    seconds = guide.exposure_seconds
    assert seconds == pytest.approx(0.75 / RATE, rel=0.3)
    assert across(seen) == pytest.approx(12 * RATE * (seconds or 0), rel=0.1)
    guide.forget()
    assert guide.exposure_seconds == seconds


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.01), (0.9, 0.5, 1.0)])
def test_a_hand_that_moves_slowly_tells_it_by_what_changes(
    share: float, least: float, most: float
) -> None:
    """Too slowly for one picture to tell; of two it is those that follow each other."""
    guide = LiveGuide(AUTO, AtOnce())
    for item in by_hand(share, 3.0, 14):
        guide.see(item)
    assert guide.exposure_seconds is not None
    assert least <= guide.exposure_seconds * FPS <= most


def test_measuring_holds_no_frame_up(texture: Any) -> None:
    guide = LiveGuide(AUTO, Never())
    for n in range(4):
        seen = frame(texture, 6 * n, at=n / RATE)
        guide.see(seen)
    assert across(seen) == pytest.approx(3, rel=0.1)
    assert guide.exposure_seconds is None
