"""Motion during the exposure by gyroscope and lens, and its check against the pictures."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.gopro_clips import FPS, Footage, footage, payload
from vdeblur import Deblurrer, gopro
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.gopro import motion
from vdeblur.gopro.motion import (
    Agreement,
    SensorGuide,
    Turning,
    compare_with_flow,
    measure_agreement,
)
from vdeblur.gopro.restoring import motion_guide
from vdeblur.gopro.telemetry import Telemetry, read_telemetry
from vdeblur.media.reader import VideoReader
from vdeblur.motion.exposure import AUTO, Exposure
from vdeblur.motion.guide import MOTION_GAIN, Guide
from vdeblur.motion.movement import Movement
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided

MEDIA = Path(__file__).parents[2] / ".." / "shared" / "media"
SIZE = (320, 192)
FOCAL = math.hypot(*SIZE) / math.radians(90)
EXPOSURE = 0.01
GRID = (24, 40)
AGREES = Agreement(20, 1.0, 1.0)


def sensors_of(rates: NDArray[np.float64], **more: Any) -> Telemetry:
    """A recording whose camera turns at such rates (n, 3) rad/s, 1000 a second."""
    angles = np.cumsum(rates / 1000, axis=0)
    known = {"readout": 0.0, "straight": True} | more
    exposures = np.array([EXPOSURE, EXPOSURE])
    return Telemetry(
        *("camera", np.arange(len(rates)) / 1000, angles, np.array([0.0, 2.0]), exposures),
        *(300.0, "given", known["readout"], (400, 240)),
        straight=known["straight"],
    )


def turning(axis: int, rate: float = 2.0) -> NDArray[np.float64]:
    rates = np.zeros((2000, 3))
    rates[:, axis] = rate
    return rates


def places() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[: GRID[0], : GRID[1]] + 0.5
    return x * 400 / GRID[1] - 200, y * 240 / GRID[0] - 120


# -- geometry ------------------------------------------------------------------------------------


def test_a_straight_lens_moves_places_as_geometry_says() -> None:
    x, y = places()
    step = 2.0 * EXPOSURE
    expected = {  # pixels during the exposure, to the first order
        0: (step * (300 + x * x / 300), step * x * y / 300),
        1: (-step * x * y / 300, -step * (300 + y * y / 300)),
        2: (-step * y, step * x),
    }
    for axis, field in expected.items():
        found = Turning(sensors_of(turning(axis))).during(1.0, EXPOSURE, GRID)
        assert found.shape == (4, *GRID)
        assert found[:2] == pytest.approx(np.array(field), abs=0.02)
        flow = Turning(sensors_of(turning(axis))).velocity(1.0, 1 / 30, GRID)
        assert flow * EXPOSURE == pytest.approx(np.array(field), abs=0.15)


def test_an_equidistant_lens_moves_its_middle_alike_and_its_corners_less() -> None:
    straight, round_ = (
        Turning(sensors_of(turning(0), straight=s)).during(1.0, EXPOSURE, GRID)[0]
        for s in (True, False)
    )
    assert round_[12, 20] == pytest.approx(straight[12, 20], rel=0.01)
    # Along the turn, distance is proportional to the angle: it moves as the middle does.
    assert round_[12, 0] == pytest.approx(6.0, rel=0.01)
    assert straight[12, 0] > 8


def test_a_path_that_bends_and_rows_that_are_exposed_one_after_the_other() -> None:
    rates = turning(0, 0.0)
    rates[:, 0] = 40.0 * (np.arange(2000) / 1000 - 1)  # 40 rad/s², still at 1 s
    still = Turning(sensors_of(rates)).during(1.0, EXPOSURE, GRID)
    assert still[0, 12, 20] == pytest.approx(0, abs=0.1)
    assert still[2, 12, 20] == pytest.approx(300 * 20 * EXPOSURE**2, rel=0.1)
    rows = Turning(sensors_of(rates, readout=0.02)).during(1.0, EXPOSURE, GRID)[0, :, 20]
    for row in (0, 23):
        seconds = 0.02 * (row + 0.5) / 24
        assert rows[row] == pytest.approx(300 * 40 * seconds * EXPOSURE, abs=0.15)


# -- the check -----------------------------------------------------------------------------------


def shake(seconds: float = 2.0) -> NDArray[np.float64]:
    t = np.arange(int(1000 * seconds)) / 1000
    ways = (0.9 * np.sin(9 * t), 0.6 * np.cos(13 * t), 0.3 * np.sin(21 * t))
    return np.stack(ways, axis=1)


def movements(sensors: Telemetry, *, late: float = 0.0, share: float = 1.0) -> Any:
    """What flow would see of a camera whose clock is `late`, with its errors."""
    dice = np.random.default_rng(2)
    for n in range(4, 34):
        velocity = Turning(sensors, late).velocity(n / 30, 1 / 30, GRID) * share
        velocity = velocity + dice.normal(0, 0.2, velocity.shape) * 30
        field = np.concatenate([velocity, np.zeros_like(velocity)]).astype(np.float32)
        yield n / 30, Movement(field, np.ones(GRID, np.float32), 1 / 30)


def test_a_clock_that_is_off_is_found() -> None:
    sensors = sensors_of(shake())
    for late in (-0.026, 0.0, 0.012):
        found = measure_agreement(movements(sensors, late=late), sensors)
        assert found.offset_seconds == pytest.approx(late, abs=0.0021)
        assert found.ratio == pytest.approx(1, abs=0.03)
        assert found.degrees < 5
        assert found.agrees


def test_stabilised_or_still_pictures_do_not_agree() -> None:
    sensors = sensors_of(shake())
    steady = measure_agreement(movements(sensors, share=0.3), sensors)
    assert steady.frames > 10
    assert not steady.agrees
    mirrored = measure_agreement(movements(sensors, share=-1.0), sensors)
    assert not mirrored.agrees
    still = sensors_of(np.zeros((2000, 3)))
    assert measure_agreement(movements(still), still).frames == 0
    assert not measure_agreement([], sensors).agrees
    assert "stabilised" in " ".join(SensorGuide(sensors, steady).notes())
    assert "hardly turned" in " ".join(SensorGuide(sensors, Agreement()).notes())


def guided(
    sensors: Telemetry,
    found: Agreement,
    movement: Movement | None,
    monkeypatch: pytest.MonkeyPatch,
    exposure: Exposure = AUTO,
) -> Any:
    layout = PlaneLayout(400, 240)
    frame = Frame((), layout, 30, Fraction(1, 30))
    monkeypatch.setattr(motion, "follow", lambda items, **_: ((i, movement) for i in items))
    (given,) = SensorGuide(sensors, found, exposure).run([frame])
    return given.motion


def test_what_moves_by_itself_is_added_and_errors_of_flow_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sensors = sensors_of(shake())
    (_, movement), *_ = (m for m in movements(sensors) if m[0] == 1)
    movement.field[0, 8:16, 10:20] += 20 * 30  # a car, 20 pixels from frame to frame
    found = guided(sensors, AGREES, movement, monkeypatch)
    exact = Turning(sensors).during(1.0, EXPOSURE, GRID)
    apart = found[:2] - exact[:2]
    car = apart[0, 8:16, 10:20]
    assert np.median(car) == pytest.approx(20 * 30 * EXPOSURE, rel=0.05)
    apart[:, 8:16, 10:20] = 0
    noise = 0.2 * 30 * EXPOSURE
    assert apart.std() < 0.5 * noise
    assert np.array_equal(found[2:], exact[2:])
    # Across a cut there is no flow; the gyroscope knows nonetheless.
    alone = guided(sensors, AGREES, None, monkeypatch)
    assert alone[0].mean() == pytest.approx(exact[0].mean(), abs=0.05)
    # Not believed: flow, for as long as the telemetry says.
    flow = guided(sensors, Agreement(), movement, monkeypatch)
    assert np.array_equal(flow, movement.during(MOTION_GAIN * EXPOSURE))
    assert guided(sensors, Agreement(), None, monkeypatch) is None
    # What is asked for goes before what was recorded.
    asked = guided(sensors, Agreement(), movement, monkeypatch, Exposure(share=0.5))
    assert asked == pytest.approx(movement.during(MOTION_GAIN / 60))


# -- films ---------------------------------------------------------------------------------------


def way(seconds: float) -> float:
    """Pixels to the left that the pictures have gone by then."""
    return 120 * seconds + 12 * math.sin(6 * seconds)


def panned(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = size
    noise = np.random.default_rng(5).integers(0, 256, (height, width + 400)).astype(np.uint8)
    soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), np.zeros(0), 20, 235, cv2.NORM_MINMAX)
    left = round(way(number / float(FPS)))
    view: NDArray[np.uint8] = np.asarray(soft[:, left : left + width], np.uint8)
    return view


def film(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Footage:
    """A pan that its gyroscope recorded."""
    monkeypatch.setattr("tests.helpers.gopro_clips.texture", panned)
    # The axis that telemetry-parser takes for the upright one of a camera that states none.
    monkeypatch.setattr(
        "tests.helpers.gopro_clips.payload",
        lambda rates, times: payload(rates[:, [1, 0, 2]], times),
    )
    names = ("GX010001.MP4", "GX020001.MP4")

    def rate(seconds: float) -> float:
        return -(120 + 72 * math.cos(6 * seconds)) / FOCAL

    return footage(folder, names, frames=24, size=SIZE, rate=rate, exposure=EXPOSURE)


def test_a_recording_from_its_chapters_to_its_motion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("telemetry_parser")
    made = film(tmp_path, monkeypatch)
    source = gopro.join(made.chapters)
    guide = motion_guide(source)
    assert isinstance(guide, SensorGuide)
    notes = " ".join(guide.notes())
    assert "recorded exposures of 1/100 s" in notes
    assert "motion by the gyroscope" in notes
    with VideoReader(source) as reader:
        frames = [item for item in guide.run(reader.items()) if isinstance(item, Frame)]
    assert len(frames) == 48
    for frame in frames[3:-3]:
        assert frame.motion is not None
        at = frame.time_seconds
        true = way(at - EXPOSURE / 2) - way(at + EXPOSURE / 2)
        assert frame.motion[0][8:-8].mean() == pytest.approx(true, abs=0.12)
    # Turned the other way, it is not believed.
    sensors = read_telemetry(source, size=SIZE, fps=FPS)
    wrong = dataclasses.replace(sensors, angles=-sensors.angles)
    assert not compare_with_flow(source, wrong).agrees


def test_the_report_says_what_the_motion_is_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("telemetry_parser")
    made = footage(tmp_path, ("GX010001.MP4",), frames=4, size=(96, 64), exposure=0.002)
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])], folder=tmp_path / "out")
    deblurrer = Deblurrer(MIMOUNetGuided(), device="cpu", backend="torch")
    monkeypatch.setattr(Deblurrer, "changes_nothing", False)
    report = gopro.restore(job, model=deblurrer)
    assert report.frames == 4
    assert "the camera recorded exposures of 1/500 s" in report.notes
    assert any(note.startswith("motion by flow alone") for note in report.notes)


def test_without_telemetry_the_pictures_tell(tmp_path: Path) -> None:
    made = footage(tmp_path, ("GX010001.MP4",), frames=3, telemetry=False)
    guide = motion_guide(made.chapters[0], "1/60")
    assert isinstance(guide, Guide)
    assert guide.exposure.seconds == pytest.approx(1 / 60)


@pytest.mark.parametrize(("name", "agrees"), [("karma.mp4", True), ("max-heromode.mp4", False)])
def test_real_recordings(name: str, agrees: bool) -> None:
    pytest.importorskip("telemetry_parser")
    source = MEDIA / name
    if not source.exists():
        pytest.skip("the GoPro samples are not here")
    with VideoReader(source) as reader:
        info = reader.info
    found = compare_with_flow(
        source, read_telemetry(source, size=(info.width, info.height), fps=info.fps)
    )
    assert found.agrees is agrees
    if agrees:  # a drone's pan, not stabilised
        assert found.ratio == pytest.approx(1, abs=0.05)
        assert found.degrees < 5
    else:  # stabilised in the camera
        assert found.ratio < 0.6
