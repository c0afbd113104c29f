"""deblur_video and deblur_frames: which frames change, how, and what the report says."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.helpers.clips import (
    INTERLACED,
    MKV,
    PLAIN,
    Audio,
    make,
    picture,
    read_frames,
    same_frames,
    scene,
    write_frames,
)
from vdeblur import (
    Cancelled,
    Deblurrer,
    DeviceError,
    EncodeOptions,
    InputError,
    OutputError,
    UsageError,
    deblur_frames,
    deblur_video,
)
from vdeblur.deblur import motion_threads
from vdeblur.media.default_names import default_output
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter

RED = 40  # codes of 255
FAST = EncodeOptions(preset="ultrafast")


class Echo(nn.Module):
    """Returns its input; unlike the network "identity", all of the colour path is run."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


LOSSLESS: dict[str, tuple[str, str, str]] = {
    f"{codec} {pix_fmt}": (suffix, codec, pix_fmt)
    for suffix, codec, formats in (
        (
            ".mkv",
            "ffv1",
            "yuv420p yuv422p yuv444p yuv440p yuv411p yuv410p "
            "yuv420p10le yuv422p10le yuv444p10le yuv420p12le yuv422p12le yuv444p12le "
            "yuv420p16le yuv444p16le gray gray10le gray12le gray16le "
            "gbrp9le gbrp10le gbrp12le gbrp14le gbrp16le bgr0 rgb48le "
            "yuva420p yuva444p yuva422p10le yuva444p16le bgra rgba64le ya8",
        ),
        (".avi", "utvideo", "yuv420p yuv422p gbrp gbrap"),
        (".avi", "huffyuv", "yuv422p rgb24 bgra"),
        (".avi", "ffvhuff", "yuv420p10le"),
        (".mov", "png", "rgb24 rgba gray gray16be rgb48be ya8"),
        (".mov", "v210", "yuv422p10le"),
        (".mov", "rawvideo", "yuyv422 uyvy422 rgb24"),
        (".nut", "rawvideo", "nv12 yuv420p bgr24 rgb48le gbrp"),
        (".y4m", "rawvideo", "yuv420p yuv444p10le gray"),
    )
    for pix_fmt in formats.split()
}


@pytest.mark.parametrize("model", ["identity", "echo"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_nothing_is_changed_that_the_network_does_not_change(
    tmp_path: Path, name: str, model: str
) -> None:
    suffix, codec, pix_fmt = LOSSLESS[name]
    size = (37, 23) if codec in ("ffv1", "png") else (48, 32)
    source, output = tmp_path / f"source{suffix}", tmp_path / f"output{suffix}"
    write_frames(source, (picture(n, pix_fmt, size) for n in range(3)), codec)
    report = deblur_video(source, output, model="identity" if model == "identity" else Echo())
    assert same_frames(output, source)
    assert report.frames == 3
    assert (report.lost, report.damage, report.differences) == ([], [], [])


COLOURS = {
    "601": (1, 6, 6, 6),
    "601 full": (2, 6, 6, 5),
    "709": (1, 1, 1, 1),
    "709 full": (2, 1, 1, 1),
    "2020": (1, 9, 16, 9),
    "2020 full": (2, 9, 14, 9),
    "240M": (1, 7, 7, 7),
    "FCC": (1, 4, 4, 4),
    "YCgCo": (1, 1, 1, 8),
    "unsaid": (0, 2, 2, 2),
    "unheard of": (1, 2, 2, 14),
}


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p12le"])
@pytest.mark.parametrize("name", COLOURS)
def test_identity_in_every_colour_space(tmp_path: Path, name: str, pix_fmt: str) -> None:
    frames = [picture(n, pix_fmt, (37, 23)) for n in range(2)]
    source = write_frames(tmp_path / "source.mkv", frames, colour=COLOURS[name])
    deblur_video(source, tmp_path / "output.mkv", model=Echo())
    assert same_frames(tmp_path / "output.mkv", source)
    with av.open(str(source)) as a, av.open(str(tmp_path / "output.mkv")) as b:
        (x, y) = (next(c.decode(video=0)) for c in (a, b))
    for tag in ("color_range", "color_primaries", "color_trc", "colorspace"):
        assert getattr(x, tag) == getattr(y, tag), tag


def test_identity_through_lossless_h264(tmp_path: Path) -> None:
    frames = [picture(n) for n in range(3)]
    source = write_frames(tmp_path / "a.mp4", frames, "libx264", options={"qp": "0"})
    output = tmp_path / "b.mp4"
    deblur_video(source, output, model=Echo(), encode=EncodeOptions(crf=0, preset="ultrafast"))
    assert same_frames(output, source)


class Redder(nn.Module):
    """Adds to red; only to pictures brighter than `above`. Counts what it is given."""

    def __init__(self, above: float = -1.0) -> None:
        super().__init__()
        self.above = above
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        bright = (x.mean(dim=(1, 2, 3)) > self.above).to(x)
        change = torch.tensor([RED / 255, 0, 0], dtype=x.dtype)[None, :, None, None]
        return x + change * bright[:, None, None, None]


def rgb(path: Path) -> list[NDArray[np.int64]]:
    """Frames of a bgr0 file as (height, width, 3) integers."""
    frames = (planes[0] for _, planes in read_frames(path))
    return [p.reshape(len(p), -1, 4)[:, :, 2::-1].astype(int) for p in frames]


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven RGB frames, each 4 codes brighter than the one before."""
    path = tmp_path_factory.mktemp("colours") / "source.mkv"
    return write_frames(path, (scene(n, "bgr0") for n in range(7)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.5])
def test_strength(tmp_path: Path, colours: Path, strength: float) -> None:
    output = tmp_path / "output.mkv"
    report = deblur_video(colours, output, model=Redder(), strength=strength)
    before, after = rgb(colours), rgb(output)
    assert len(before) == len(after) == report.frames == 7
    assert report.replaced == 0
    for a, b in zip(before, after, strict=True):
        assert (b - a == [round(RED * strength), 0, 0]).all()


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 20])
def test_the_right_frames_change(tmp_path: Path, colours: Path, batch: int) -> None:
    before = rgb(colours)
    network = Redder(above=float(before[4].mean() - 1) / 255)
    deblur_video(colours, tmp_path / "output.mkv", model=network, batch=batch)
    changes = [b - a for a, b in zip(before, rgb(tmp_path / "output.mkv"), strict=True)]
    assert [bool(change.any()) for change in changes] == [False] * 4 + [True] * 3
    assert all((change == [RED, 0, 0]).all() for change in changes[4:])
    assert sum(shape[0] for shape in network.seen) == 7
    assert max(shape[0] for shape in network.seen) == min(batch, 7)


@pytest.mark.parametrize(
    ("pix_fmt", "colour"),
    [("yuv420p", (1, 1, 1, 1)), ("yuv444p10le", (1, 9, 14, 9)), ("yuv422p", (2, 6, 6, 6))],
)
def test_the_change_is_that_of_the_stream_s_own_colours(
    tmp_path: Path, pix_fmt: str, colour: tuple[int, int, int, int]
) -> None:
    source, output = tmp_path / "source.mkv", tmp_path / "output.mkv"
    write_frames(source, (scene(n, pix_fmt) for n in range(2)), colour=colour)
    deblur_video(source, output, model=Redder())
    kr, kb = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[colour[3]]
    wide = (219, 224) if colour[0] == 1 else (255, 255)
    scale = RED / 255 * (4 if "10" in pix_fmt else 1)
    expected = (kr * wide[0], -kr / (2 - 2 * kb) * wide[1], 0.5 * wide[1])
    for (_, a), (_, b) in zip(read_frames(source), read_frames(output), strict=True):
        for before, after, change in zip(a, b, expected, strict=True):
            difference = after.astype(int) - before.astype(int)
            assert np.abs(difference - change * scale).max() <= 0.51


def test_alpha_is_kept_aside(tmp_path: Path) -> None:
    source, output = tmp_path / "source.mkv", tmp_path / "output.mkv"
    write_frames(source, (picture(n, "yuva444p") for n in range(2)))
    deblur_video(source, output, model=Redder())
    for (_, a), (_, b) in zip(read_frames(source), read_frames(output), strict=True):
        assert np.array_equal(a[3], b[3])
        assert not np.array_equal(a[0], b[0])


def test_fields_are_restored_apart(tmp_path: Path) -> None:
    source = make(tmp_path / "source.mp4", replace(INTERLACED, pts=INTERLACED.pts[:5]))
    network = Redder()
    deblur_video(source, tmp_path / "output.mp4", model=network, encode=FAST)
    assert {shape[1:] for shape in network.seen} == {(3, 24, 64)}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_part(tmp_path: Path, suffix: str) -> None:
    source, output = tmp_path / f"source{suffix}", tmp_path / f"output{suffix}"
    frames = (scene(n) for n in range(25))
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    options = {"g": "12", "bf": "0" if suffix == ".avi" else "2"}
    write_frames(
        source,
        frames,
        codec,
        options=options,
        sound="libmp3lame" if suffix == ".avi" else "aac",
    )
    theirs = read_frames(source)
    begin = theirs[0][0]
    for start, duration in ((0.2, 0.2), (0.28, None), (None, 0.12), (0.0, 9.0)):
        end = 99 if duration is None else (start or 0) + duration
        wanted = [
            n for n, (at, _) in enumerate(theirs) if (start or 0) - 1e-9 <= at - begin < end - 1e-9
        ]
        first, count = wanted[0], len(wanted)
        report = deblur_video(
            source,
            output,
            model="identity",
            start=start,
            duration=duration,
            encode=EncodeOptions(crf=2),
            overwrite=True,
        )
        ours = read_frames(output)
        assert len(ours) == count == report.frames
        origin = ours[0][0]
        if suffix != ".ts" and start:
            assert origin == 0
        means = [planes[0].mean() for _, planes in ours]
        expected = [planes[0].mean() for _, planes in theirs[first : first + count]]
        assert np.abs(np.subtract(means, expected)).max() < 1.5
        for number, (at, _) in enumerate(ours):
            assert abs(at - origin - (theirs[first + number][0] - theirs[first][0])) < 0.002
        with av.open(str(output)) as container:
            times = [
                float(p.pts * p.time_base - origin)
                for p in container.demux(audio=0)
                if p.size and p.pts is not None
            ]
        assert times
        whole = 0.77 - (start or 0)
        assert min(times) < 0.05
        assert max(times) <= min(whole, duration or whole) + 0.03
        assert max(times) > min(whole, duration or whole) - 0.1
    assert begin >= 0


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "source.mkv", (scene(n) for n in range(5)))
    with pytest.raises(InputError, match="start"):
        deblur_video(source, tmp_path / "output.mkv", model="identity", start=60)
    assert list(tmp_path.iterdir()) == [source]


def test_progress(tmp_path: Path, colours: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    here: list[str] = []

    def progress(frames: int, expected: int | None) -> None:
        seen.append((frames, expected))
        here.append(threading.current_thread().name)

    deblur_video(colours, tmp_path / "a.mkv", model="identity", on_progress=progress)
    assert seen == [(n, 7) for n in range(1, 8)]
    assert set(here) == {threading.current_thread().name}


@pytest.mark.parametrize("after", [0, 3])
def test_cancel(tmp_path: Path, colours: Path, after: int) -> None:
    cancel = threading.Event()
    if after == 0:
        cancel.set()

    def progress(frames: int, expected: int | None) -> None:
        if frames == after:
            cancel.set()

    with pytest.raises(Cancelled):
        deblur_video(
            colours, tmp_path / "a.mkv", model="identity", on_progress=progress, cancel=cancel
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failing_network_or_callback_leaves_nothing(tmp_path: Path, colours: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("broken")

    def progress(frames: int, expected: int | None) -> None:
        raise KeyError(frames)

    with pytest.raises(LookupError, match="broken"):
        deblur_video(colours, tmp_path / "a.mkv", model=Broken())
    with pytest.raises(KeyError):
        deblur_video(colours, tmp_path / "a.mkv", model="identity", on_progress=progress)
    assert list(tmp_path.iterdir()) == []


class Unsound(Redder):
    """Damages the bright pictures in its own way."""

    def __init__(self, above: float, value: float) -> None:
        super().__init__(above)
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean(dim=(1, 2, 3), keepdim=True) > self.above
        return torch.where(bright, torch.full_like(x, self.value), super().forward(x))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 30.0])
def test_an_unsound_result_is_replaced(
    tmp_path: Path, colours: Path, value: float, batch: int
) -> None:
    before = rgb(colours)
    network = Unsound(float(before[5].mean() - 1) / 255, value)
    report = deblur_video(colours, tmp_path / "a.mkv", model=network, batch=batch)
    after = rgb(tmp_path / "a.mkv")
    assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == [False] * 7
    assert report.replaced == 2
    assert report.frames == 7


def test_out_of_memory_loses_no_frame(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n, "bgr0", (160, 136)) for n in range(5)))

    class Hungry(Redder):
        def forward(self, x: Tensor) -> Tensor:
            if x[:, 0].numel() > 128 * 128:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    report = deblur_video(source, tmp_path / "b.mkv", model=Hungry(), batch=4)
    before, after = rgb(source), rgb(tmp_path / "b.mkv")
    assert len(after) == 5
    assert all((b - a == [RED, 0, 0]).all() for a, b in zip(before, after, strict=True))
    assert any("batch 2" in note for note in report.notes)
    assert any("tiles of 128" in note for note in report.notes)

    class Starving(Redder):
        def forward(self, x: Tensor) -> Tensor:
            raise MemoryError

    with pytest.raises(DeviceError, match="too little memory"):
        deblur_video(source, tmp_path / "c.mkv", model=Starving())
    assert not (tmp_path / "c.mkv").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_memory_does_not_grow_with_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n, size=(16, 16)) for n in range(90)))
    alive: list[weakref.ref[Any]] = []
    most = 0
    whole = VideoReader.items

    def items(self: VideoReader) -> Iterator[Any]:
        nonlocal most
        for item in whole(self):
            alive.append(weakref.ref(item))
            yield item
            most = max(most, sum(ref() is not None for ref in alive))

    monkeypatch.setattr(VideoReader, "items", items)
    report = deblur_video(source, tmp_path / "b.mkv", model=Echo(), batch=batch)
    assert report.frames == len(alive) == 90
    # Two queues of two batches, one batch at each of three places, and a little in passing.
    assert most <= 7 * batch + 8


def test_report(tmp_path: Path) -> None:
    source = make(tmp_path / "source.mkv", MKV)
    report = deblur_video(source, tmp_path / "output.mkv", model="identity", encode=FAST)
    assert report.frames == len(MKV.pts)
    assert report.seconds > 0
    assert report.frames_per_second == report.frames / report.seconds
    kept = " ".join(report.kept)
    assert "audio aac (eng)" in kept
    assert "audio aac (fra)" in kept
    assert "2 chapters" in kept
    assert "one.ttf" in kept
    assert "subtitle" in kept
    assert "cover picture" in kept
    assert report.as_dict()["frames"] == len(MKV.pts)
    assert {times.name for times in report.stages} == {"decode", "encode"}


def test_a_difference_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(tmp_path / "source.mp4", replace(PLAIN, audio=(Audio(title=""),)))
    whole, count = VideoWriter._copy, 0

    def lossy(self: VideoWriter, packet: Any) -> None:
        nonlocal count
        count += 1
        if count != 9:
            whole(self, packet)

    monkeypatch.setattr(VideoWriter, "_copy", lossy)
    report = deblur_video(source, tmp_path / "a.mp4", model="identity", encode=FAST)
    assert any(line.startswith("packet count: audio 1") for line in report.differences)
    report = deblur_video(source, tmp_path / "b.mp4", model="identity", encode=FAST, check=False)
    assert report.differences == []


def test_names_of_outputs(tmp_path: Path, colours: Path) -> None:
    assert default_output("a/ride.mp4") == str(Path("a/ride_deblurred.mp4"))
    assert default_output("ride.bik") == "ride_deblurred.mkv"
    assert default_output("a/%05d.png") == str(Path("a/%05d_deblurred.png"))
    assert default_output("-") == "-"
    copy = tmp_path / "ride.mkv"
    copy.write_bytes(colours.read_bytes())
    report = deblur_video(copy, model="identity")
    assert report.output == str(tmp_path / "ride_deblurred.mkv")
    assert same_frames(Path(report.output), colours)
    before = Path(report.output).read_bytes()
    with pytest.raises(OutputError, match="`overwrite=True`"):
        deblur_video(copy, model="identity")
    with pytest.raises(OutputError, match="itself"):
        deblur_video(copy, copy, model="identity", overwrite=True)
    assert Path(report.output).read_bytes() == before
    deblur_video(copy, model=Redder(), overwrite=True)
    assert not same_frames(Path(report.output), colours)


def test_impossible_options(tmp_path: Path, colours: Path) -> None:
    for options in ({"batch": 0}, {"strength": -1.0}, {"tile": 3}, {"precision": "fp4"}):
        with pytest.raises(UsageError):
            deblur_video(colours, tmp_path / "a.mkv", model="identity", **options)
    assert list(tmp_path.iterdir()) == []


# --- pictures in memory --------------------------------------------------------------------------


def arrays(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 200, (h, w, 3), dtype=np.uint8) for w, h in sizes]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_frames_in_memory(batch: int) -> None:
    given = arrays(*[(40, 30)] * 3, *[(24, 33)] * 2, (40, 30))
    network = Redder()
    restored = list(deblur_frames(given, model=network, batch=batch))
    assert len(restored) == len(given)
    for before, after in zip(given, restored, strict=True):
        assert after.dtype == np.uint8
        assert (after.astype(int) - before == [RED, 0, 0]).all()
    assert max(shape[0] for shape in network.seen) == min(batch, 3)
    same = list(deblur_frames(given, model=Echo(), batch=batch))
    assert all(map(np.array_equal, same, given))


def test_frames_in_memory_come_as_they_go() -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((8, 8, 3), taken % 200, np.uint8)

    for number, frame in enumerate(deblur_frames(endless(), model="identity", batch=4), 1):
        assert frame[0, 0, 0] == number % 200
        assert taken <= number + 3
        if number == 50:
            break


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=["gray", "alpha", "floats"],
)
def test_frames_of_another_kind(wrong: Any) -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        list(deblur_frames([wrong], model="identity"))


def test_one_deblurrer_for_many(tmp_path: Path, colours: Path) -> None:
    deblurrer = Deblurrer(Redder(), device="cpu")
    for name in ("a.mkv", "b.mkv"):
        deblur_video(colours, tmp_path / name, model=deblurrer)
    assert same_frames(tmp_path / "a.mkv", tmp_path / "b.mkv")
    (frame,) = deblur_frames(arrays((16, 16)), model=deblurrer)
    assert frame.shape == (16, 16, 3)
    assert Fraction(len(rgb(tmp_path / "a.mkv"))) == 7


# --- guided by motion ---------------------------------------------------------------------------


class Guided(Deblurrer):
    """Restores nothing, and remembers which motion it was given."""

    def __init__(self) -> None:
        super().__init__(Echo())
        self.guided = True
        self.given: list[Tensor | None] = []

    def restore_planes(
        self, planes: Any, layout: Any, motion: Tensor | None = None, around: Any = None
    ) -> tuple[list[Tensor], Tensor]:
        self.given.append(motion)
        return list(planes), torch.zeros(len(planes[0]), dtype=torch.bool)


def panning(count: int, step: int = 5) -> list[NDArray[np.uint8]]:
    """(96, 160, 3) RGB pictures of a scene that moves by (step, 0) a frame."""
    rng = np.random.default_rng(0)
    # Large and small: squares of one size look like a blur of their length.
    sides = (2, 8, 16)
    parts = [rng.integers(0, 256, (96 // n, 480 // n, 3)).repeat(n, 0).repeat(n, 1) for n in sides]
    wide = np.mean(parts, axis=0).astype(np.uint8)
    return [wide[:, 200 - step * k : 360 - step * k].copy() for k in range(count)]


def test_frames_of_a_film_know_their_motion(tmp_path: Path) -> None:
    source = write_frames(
        tmp_path / "pan.mkv",
        [
            av.VideoFrame.from_ndarray(p, format="rgb24").reformat(format="yuv420p")
            for p in panning(9)
        ],
        sound="pcm_s16le",
    )
    seen: list[NDArray[np.float32] | None] = []
    deblurrer = Guided()

    def look(frame: Any) -> bool:
        seen.append(frame.motion)
        return True

    report = deblur_video(
        source,
        tmp_path / "out.mkv",
        model=deblurrer,
        exposure="1/100",
        choose=look,
        encode=EncodeOptions(encoder="ffv1"),
    )
    assert report.frames == 9
    assert not report.differences
    assert [stage.name for stage in report.stages] == ["decode", "motion", "encode"]
    assert same_frames(source, tmp_path / "out.mkv")
    for motion in seen:
        assert motion is not None
        assert np.median(motion[0]) == pytest.approx(5 * 25 / 100, abs=0.15)
    auto = deblur_video(source, tmp_path / "auto.mkv", model=deblurrer)
    assert any("the shutter was open" in note for note in auto.notes)


def test_motion_by_several_threads_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert motion_threads(torch.device("cpu")) == 1  # the network has the cores
    assert 1 <= motion_threads(torch.device("cuda")) <= 12
    pictures = [av.VideoFrame.from_ndarray(p, format="rgb24") for p in panning(14)]
    source = write_frames(
        tmp_path / "pan.mkv", [p.reformat(format="yuv420p") for p in pictures], sound="pcm_s16le"
    )

    def motions() -> list[Tensor | None]:
        deblurrer = Guided()
        report = deblur_video(source, tmp_path / "out.mkv", model=deblurrer, overwrite=True)
        assert not report.differences
        assert report.frames == 14
        return deblurrer.given

    alone = motions()
    monkeypatch.setattr("vdeblur.deblur.motion_threads", lambda device: 3)
    for one, other in zip(alone, motions(), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)

    def fail(here: Any, there: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("vdeblur.motion.movement.match_pictures", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        deblur_video(source, tmp_path / "none.mkv", model=Guided())
    assert {path.name for path in tmp_path.iterdir()} == {"pan.mkv", "out.mkv"}


def test_cancelled_no_thread_goes_on_looking_for_motion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.deblur.motion_threads", lambda device: 3)
    source = write_frames(
        tmp_path / "pan.mkv",
        [
            av.VideoFrame.from_ndarray(p, format="rgb24").reformat(format="yuv420p")
            for p in panning(30)
        ],
    )
    cancel, before = threading.Event(), set(threading.enumerate())
    with pytest.raises(Cancelled):
        deblur_video(
            source,
            tmp_path / "out.mkv",
            model=Guided(),
            on_progress=lambda *_: cancel.set(),
            cancel=cancel,
        )
    assert not set(threading.enumerate()) - before


def test_other_networks_cost_nothing(tmp_path: Path, colours: Path) -> None:
    seen: list[Any] = []

    def look(frame: Any) -> bool:
        seen.append(frame.motion)
        return True

    report = deblur_video(
        colours,
        tmp_path / "out.mkv",
        model=Echo(),
        choose=look,
    )
    assert [stage.name for stage in report.stages] == ["decode", "encode"]
    assert set(seen) == {None}


def smeared(length: int) -> NDArray[np.uint8]:
    """(96, 160, 3) RGB: a picture that moved `length` pixels to the right while it was exposed."""
    mean: NDArray[np.float64] = np.mean(panning(length + 1, step=1), axis=0)
    return mean.round().astype(np.uint8)


def test_a_still_s_motion_is_read_off_its_blur(tmp_path: Path) -> None:
    path, seen = tmp_path / "still.png", []

    def look(frame: Any) -> bool:
        seen.append(frame.motion)
        return True

    for size in (slice(None), slice(32)):
        picture = np.ascontiguousarray(smeared(8)[size])
        write_frames(
            path, [av.VideoFrame.from_ndarray(picture, format="rgb24")], "png", form="image2"
        )
        deblur_video(path, tmp_path / "o.png", model=Guided(), choose=look, overwrite=True)
        path.unlink()
    found, small = seen
    across, down = np.median(np.abs(found[:2]), axis=(1, 2))
    assert across == pytest.approx(8, rel=0.35)
    assert down < 1
    assert small is None  # too little of it to tell


def test_frames_in_memory_know_their_motion() -> None:
    deblurrer = Guided()
    given = panning(7)
    out = list(deblur_frames(given, model=deblurrer, batch=2, exposure=0.5))
    assert all(np.array_equal(a, b) for a, b in zip(given, out, strict=True))
    known = [motion for motion in deblurrer.given if motion is not None]
    assert [len(motion) for motion in known] == [2, 2, 2, 1]
    # The first and last have one neighbour, and are sharp: the picture is asked too.
    for motion in torch.cat(known[1:-1]):
        assert float(motion[0].median()) == pytest.approx(2.5, abs=0.3)


def test_a_single_picture_in_memory_is_read_by_itself() -> None:
    deblurrer = Guided()
    for size in (slice(None), slice(32)):
        assert len(list(deblur_frames([smeared(8)[size]], model=deblurrer))) == 1
    found, small = deblurrer.given
    assert found is not None
    assert float(found[0, 0].abs().median()) == pytest.approx(8, rel=0.35)
    assert small is None


def test_impossible_exposures(tmp_path: Path, colours: Path) -> None:
    with pytest.raises(UsageError, match="give auto, seconds such as 1/60"):
        deblur_video(colours, tmp_path / "out.mkv", model="identity", exposure="long")
    assert not (tmp_path / "out.mkv").exists()
    with pytest.raises(UsageError, match="have no seconds"):
        list(deblur_frames(panning(2), model="identity", exposure="1/60"))
