"""The camera knows when it shook: blur by telemetry, the filter, the check against the pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.clips import read_frames, write_frames
from tests.helpers.gopro_clips import FPS, Footage, footage
from vdeblur import Deblurrer, gopro
from vdeblur.cli import gopro as gopro_command
from vdeblur.cli import main as cli
from vdeblur.datasets.pictures import read_rgb
from vdeblur.errors import InputError, UsageError
from vdeblur.frames import Frame
from vdeblur.gopro import telemetry
from vdeblur.gopro.blur_plot import plot
from vdeblur.gopro.sharpness import (
    measure_sharpness,
    pairwise_agreement,
    rank_correlation,
    sharpness,
)
from vdeblur.gopro.telemetry import read_telemetry
from vdeblur.inference.transfers import Overlap
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.writer import VideoWriter

pytest.importorskip("telemetry_parser")

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / ".." / "shared" / "media"
SIZE = (192, 96)
# An equidistant lens of 90° from corner to corner.
FOCAL = math.hypot(*SIZE) / math.radians(90)
SHAKE = range(20, 32)  # frames
LENGTH = 6  # pixels
EXPOSURE = 0.01


class Brighter(nn.Module):
    """A network whose work shows: every sample it sees goes up."""

    def forward(self, image: Tensor) -> Tensor:
        return image + 0.05


def turn(seconds: float) -> float:
    """rad/s that blur the shaken frames by LENGTH pixels, and the others by a tenth of one."""
    number = seconds * float(FPS)
    shaken = SHAKE.start - 0.5 <= number < SHAKE.stop - 0.5
    return (LENGTH if shaken else 0.1) / (FOCAL * EXPOSURE)


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """A recording in two chapters whose pictures are blurred just where its gyroscope says so."""
    folder = tmp_path_factory.mktemp("shaken")
    names = ("GX010001.MP4", "GX020001.MP4")
    return footage(
        folder, names, frames=24, size=SIZE, rate=turn, exposure=EXPOSURE,
        blur=lambda number: LENGTH if number in SHAKE else 1,
    )  # fmt: skip


def job_of(made: Footage, folder: Path) -> gopro.Job:
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])], folder=folder)
    return job


def test_blur_is_rate_times_exposure_times_focal_length(shaken: Footage) -> None:
    source = gopro.join(shaken.chapters)
    sensors = read_telemetry(source, size=SIZE, fps=FPS)
    assert sensors.focal == pytest.approx(FOCAL)
    assert sensors.focal_source == "90° diagonally"
    assert sensors.camera == "GoPro HERO12 Black"
    times = np.arange(48) / float(FPS)
    assert sensors.exposure(times) == pytest.approx(EXPOSURE)
    blur = sensors.blur(times)
    inside = [n for n in SHAKE if SHAKE.start < n < SHAKE.stop - 1]
    assert blur[inside] == pytest.approx(LENGTH, rel=0.02)
    outside = [n for n in range(47) if not SHAKE.start - 1 <= n <= SHAKE.stop]
    assert blur[outside] == pytest.approx(0.1, abs=0.02)
    assert sensors.rate(times)[inside] == pytest.approx(turn(0.8), rel=0.02)
    assert np.isnan(sensors.blur(np.array([-1.0, 5.0]))).all()
    given = read_telemetry(source, size=SIZE, fps=FPS, focal=2 * FOCAL)
    assert given.blur(times)[inside] == pytest.approx(2 * LENGTH, rel=0.02)


def sensors_of(rates: Any, *, readout: float = 0.0, exposure: float = 0.01) -> Any:
    """A recording of two seconds, its rates (n, 3) in rad/s at 1 kHz."""
    times = np.arange(len(rates)) / 1000
    angles = np.cumsum(np.asarray(rates) / 1000, axis=0)
    return telemetry.Telemetry(
        "camera", times, angles, np.array([0.0, 2.0]), np.array([exposure, exposure]), 100.0,
        "given", readout, (400, 300),
    )  # fmt: skip


def test_axes_and_rolling_shutter() -> None:
    still = np.zeros((2000, 3))
    at = np.array([1.0])
    for axis, pixels in ((0, 100), (1, 100), (2, np.sqrt((400**2 + 300**2) / 12))):
        rates = still.copy()
        rates[:, axis] = 2.0
        assert sensors_of(rates).blur(at) == pytest.approx(2.0 * 0.01 * pixels, rel=1e-6)
    # A jerk 12 ms after the first row was exposed blurs the rows that are exposed then.
    jerk = still.copy()
    jerk[1008:1016, 1] = 2.0
    assert sensors_of(jerk).blur(at)[0] < 0.1
    assert sensors_of(jerk, readout=0.02).blur(at)[0] > 1.2
    # There and back again within the exposure is a short path, not a long one.
    shiver = still.copy()
    shiver[::2, 1], shiver[1::2, 1] = 2.0, -2.0
    assert sensors_of(shiver).blur(at)[0] < 0.25


def test_the_pictures_agree(shaken: Footage) -> None:
    source = gopro.join(shaken.chapters)
    blur = gopro.measure_blur(source, 1.5)
    assert len(blur.lengths) == len(blur.sharp) == 48
    assert abs(blur.chosen - len(SHAKE)) <= 2
    assert blur.agreement > 0.95
    assert blur.correlation < -0.4
    said = "\n".join(blur.lines())
    assert f"blur: {blur.chosen} of 48 frames" in said
    assert "exposures of 10.00 to 10.00 ms" in said
    assert "of pairs" in said


def test_the_pictures_disagree(tmp_path: Path) -> None:
    # The gyroscope shakes while the pictures stay sharp: that must show.
    made = footage(tmp_path, ("GX010001.MP4",), frames=48, size=SIZE, rate=turn, exposure=EXPOSURE)
    blur = gopro.measure_blur(made.chapters[0], 1.5)
    assert blur.chosen >= 10
    assert 0.1 < blur.agreement < 0.8


def test_the_sharpness_of_deep_rgb_is_the_same_each_time(tmp_path: Path) -> None:
    dice, frames = np.random.default_rng(0), []
    for _ in range(6):
        deep = av.VideoFrame(322, 182, "gbrp10le")
        for plane in deep.planes:
            np.frombuffer(cast(Any, plane), "<u2")[:] = dice.integers(
                0, 1024, plane.buffer_size // 2
            )
        frames.append(deep)
    source = write_frames(tmp_path / "a.mkv", frames)
    values = {tuple(measure_sharpness(source)[1]) for _ in range(4)}
    assert len(values) == 1


def test_sharpness() -> None:
    random = np.random.default_rng(1)
    sharp = random.integers(0, 255, (120, 160)).astype(np.uint8)
    values = []
    for length in (1, 2, 4, 8):
        blurred = np.mean([np.roll(sharp, n, axis=1) for n in range(length)], axis=0)
        values.append(sharpness(blurred))
        assert sharpness(blurred.T) == pytest.approx(values[-1])
        assert sharpness(blurred * 0.3) == pytest.approx(values[-1])
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.5 * values[2]
    assert np.isnan(sharpness(np.full((40, 40), 7)))
    ramp = np.arange(20.0)
    assert rank_correlation(ramp, -(ramp**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(ramp, np.ones(20)))
    assert pairwise_agreement(ramp > 9, -ramp) == 1
    assert pairwise_agreement(ramp > 9, ramp) == 0
    assert np.isnan(pairwise_agreement(ramp > 99, ramp))


def test_only_blurred_frames_meet_the_network(
    shaken: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[tuple[float, list[Any]]] = []
    write = VideoWriter.write

    def watch(writer: VideoWriter, item: Any) -> None:
        if isinstance(item, Frame):
            handed.append((item.time_seconds, [plane.copy() for plane in item.planes]))
        write(writer, item)

    monkeypatch.setattr(VideoWriter, "write", watch)
    deblurrer = Deblurrer(Brighter(), device="cpu", precision="fp32")
    report = gopro.restore(
        job_of(shaken, tmp_path), gopro.RestoreOptions(batch=4, only_blurred=1.5), model=deblurrer
    )
    assert report.frames == len(handed) == 48
    source = read_frames(shaken.whole)
    changed = []
    for number, ((at, planes), (time, before)) in enumerate(zip(handed, source, strict=True)):
        assert at == pytest.approx(float(time))
        if not all(map(np.array_equal, planes, before)):
            changed.append(number)
            # The rest of the frames is bit-identical; these went up by 0.05 of the range.
            assert np.median(planes[0].astype(int) - before[0]) == pytest.approx(13, abs=1)
    assert set(SHAKE) <= set(changed) <= set(range(SHAKE.start - 2, SHAKE.stop + 1))
    assert report.unchosen == 48 - len(changed)
    assert report.differences == []


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_frames_and_packets_keep_their_places(shaken: Footage, batch: int) -> None:
    from vdeblur.inference.batching import restore
    from vdeblur.media.reader import VideoReader

    deblurrer = Deblurrer(Brighter(), device="cpu", precision="fp32")
    sizes = []

    class Watched(Overlap):
        def run(self, batches: Any) -> Any:
            def watch() -> Any:
                for frames in batches:
                    sizes.append(len(frames))
                    yield frames

            return super().run(watch())

    with VideoReader(shaken.whole) as reader:
        items = list(reader.items())
    wanted = {id(i) for n, i in enumerate(i for i in items if isinstance(i, Frame)) if n % 3 == 1}
    done = list(restore(items, Watched(deblurrer), batch, choose=lambda frame: id(frame) in wanted))
    assert [id(item) for item, _ in done] == [id(item) for item in items]
    assert sum(sizes) == len(wanted)
    assert max(sizes) <= batch


def test_the_plan_says_and_plots(shaken: Footage, tmp_path: Path, run: Run) -> None:
    code, out, err = run("gopro", shaken.chapters[1], "-o", tmp_path, "--plan", "--only-blurred")
    assert code == 0, err
    assert f"GX010001.MP4, GX020001.MP4 -> {tmp_path}/GX010001_deblurred.MP4" in out
    assert "192×96 h264 8-bit, 29.97 frames/s, 48 frames, 1.6 s" in out
    assert "frames at 1.5 px or more".replace("frames ", "") in out
    assert "in all: about" in out
    assert "not kept: MUID of GX020001.MP4: the joined file has those of GX010001.MP4" in out
    assert gopro_command._THRESHOLD == gopro.THRESHOLD
    picture = tmp_path / "GX010001_blur.png"
    assert [p.name for p in tmp_path.iterdir()] == [picture.name]  # a plan restores nothing
    pixels = read_rgb(picture)
    assert pixels.shape == (1, 3, 652, 1280)
    orange = (pixels - torch.tensor([209, 84, 0]).view(1, 3, 1, 1) / 255).abs().amax(1) < 0.02
    assert int(orange.any(2).sum()) >= 2  # the threshold's line
    code, out, _ = run("gopro", shaken.chapters[1], "-o", tmp_path, "--plan", "--focal", "10")
    assert "focal length 10 px (given)" in out
    assert "blur: 0 of 48 frames" in out


def test_a_plan_without_matplotlib_is_a_plan(
    shaken: Footage, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, _ = run("gopro", shaken.chapters[1], "-o", tmp_path, "--plan")
    assert code == 0
    assert "not plotted: a plot of the blur needs the package matplotlib" in out
    assert "pip install 'vdeblur[plots]'" in out
    assert not list(tmp_path.iterdir())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`vdeblur ARGUMENTS --model identity`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([*map(str, arguments), "--model", "identity"])
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


def test_a_plot_of_hours_and_of_nothing() -> None:
    times = np.arange(60_000) / 5
    blur = np.abs(np.sin(times / 300)) * 4
    blur[30_000:40_000] = np.nan
    picture = plot(
        times, blur, threshold=3.9, sharp_times=times[::500], sharp=blur[::500] * 0 + 0.5,
        title="3:20 h", subtitle="",
    )  # fmt: skip
    assert picture.dtype == np.uint8
    empty = np.zeros(0)
    plot(empty, empty, threshold=1.5, sharp_times=empty, sharp=empty, title="", subtitle="")


def test_the_command_passes_its_options_on(
    shaken: Footage, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[gopro.RestoreOptions | None] = []

    def restore(job: gopro.Job, options: gopro.RestoreOptions, **_: object) -> None:
        given.append(options)
        raise InputError("enough")

    monkeypatch.setattr(gopro, "restore", restore)
    options = ("--exposure", "1/60", "--only-blurred", "2", "--focal", "300", "--allow-missing")
    run("gopro", shaken.chapters[0], "-o", tmp_path, *options, "--force", "--crf", "20")
    assert given == [
        gopro.RestoreOptions(
            exposure="1/60",
            encode=EncodeOptions(crf=20),
            only_blurred=2,
            focal=300,
            allow_missing=True,
            overwrite=True,
        )
    ]


def test_without_telemetry_all_is_restored(tmp_path: Path, run: Run) -> None:
    made = footage(tmp_path, ("GX010001.MP4",), frames=4, telemetry=False)
    with pytest.raises(InputError, match="no exposure times"):
        gopro.measure_blur(made.chapters[0], 1.5)
    deblurrer = Deblurrer(Brighter(), device="cpu", precision="fp32")
    job = job_of(made, tmp_path / "out")
    report = gopro.restore(job, gopro.RestoreOptions(only_blurred=1.5), model=deblurrer)
    assert (report.frames, report.unchosen) == (4, 0)
    assert any("no frame is left out for it" in note for note in report.notes)
    code, out, _ = run("gopro", made.chapters[0], "--plan")
    assert code == 0
    assert "blur not known" in out


def test_without_the_package_it_is_named(
    shaken: Footage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setitem(sys.modules, "telemetry_parser", None)
    code, _, err = run("gopro", shaken.chapters[0], "-o", tmp_path, "--only-blurred")
    assert code == 1
    assert "pip install 'vdeblur[gopro]'" in err
    assert not list(tmp_path.iterdir())
    code, out, _ = run("gopro", shaken.chapters[0], "-o", tmp_path, "--plan")
    assert code == 0
    assert "pip install 'vdeblur[gopro]'" in out
    with pytest.raises(UsageError):
        gopro.blur_filter(shaken.chapters[0], 1.5)


def test_what_other_cameras_say() -> None:
    # The forms in which telemetry-parser gives exposure, lens and attitude of other makers.
    sony = [{"Exposure": {"ShutterSpeed": [1, 200]}} for _ in range(3)]
    times, values = telemetry._exposures(sony, None, Fraction(25))
    assert times.tolist() == pytest.approx([0, 0.04, 0.08])
    assert values.tolist() == [0.005] * 3
    insta = [{"Exposure": {"Data": [{"t": 0.5, "v": 0.002}, {"t": 0.6, "v": 0.004}]}}]
    times, values = telemetry._exposures(insta, None, Fraction(30))
    assert (times.tolist(), values.tolist()) == ([0.5, 0.6], [0.002, 0.004])
    angle = [{"Exposure": {"ShutterAngle": 180.0}}]
    assert telemetry._exposures(angle, None, Fraction(50))[1].tolist() == [0.01]
    broken = [{"Exposure": {"Data": [float("nan"), -1.0, 0.004]}}, {"Exposure": 5}, None]
    assert telemetry._exposures(broken, None, Fraction(50))[1].tolist() == [0.004]

    def focal(**groups: Any) -> tuple[float, str]:
        return telemetry._focal([groups], (1920, 1080))

    assert focal(Lens={"LensZoomNative": 24.0}, Default={"SensorWidth": 36.0})[0] == 1280
    assert focal(Lens={"LensZoom35mm": 18.0})[0] == 960
    profile = {
        "fisheye_params": {"camera_matrix": [[1000.0, 0, 0]]},
        "calib_dimension": {"w": 3840},
    }
    assert focal(Lens={"Data": profile})[0] == 500
    view = focal(Default={"0x56464f56": "M", "0x445a4f4d": "Y"})
    assert view[0] == pytest.approx(0.607 * 1920)
    assert "zoomed" in view[1]
    assert "not said" in focal()[1]

    # DJI gives the camera's attitude: here 0.3 rad/s about its second axis.
    turns = [
        {"t": 1000 * t, "v": {"w": np.cos(0.15 * t), "x": 0.0, "y": np.sin(0.15 * t), "z": 0.0}}
        for t in np.arange(0, 1, 0.01).tolist()
    ]
    times, rates = telemetry._gyroscope([{"Quaternion": {"Data": turns}}], [])
    assert rates[:, 1] == pytest.approx(0.3, rel=1e-3)
    assert np.abs(rates[:, [0, 2]]).max() < 1e-9


@pytest.mark.parametrize(("name", "blurred"), [("karma.mp4", 4), ("max-heromode.mp4", 0)])
def test_real_telemetry(name: str, blurred: int) -> None:
    source = MEDIA / name
    if not source.exists():
        pytest.skip("the GoPro samples are not here")
    blur = gopro.measure_blur(source, 1.5)
    assert blur.chosen == blurred
    assert np.isfinite(blur.lengths).all()
    if blurred:  # the pan at the end of the flight
        assert np.flatnonzero(blur.lengths >= 1.5).min() > 355
        assert blur.agreement > 0.99
