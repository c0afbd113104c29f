"""Pairs made from sharp video of a high frame rate by averaging frames, as GoPro and REDS were.

Nah et al., "Deep Multi-scale Convolutional Neural Network for Dynamic Scene Deblurring", CVPR 2017:
a blurred picture is the mean of 7 to 13 frames, the sharp one is the middle of them. Written as
SEQUENCE/{blur,blur_gamma,sharp}: `blur` averages coded values, `blur_gamma` light, by a response
curve. Knows video files; knows no network.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.pictures import RGBImage, frame_to_rgb
from vdeblur.datasets.synthesise import check_replaceable
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.media.names import check_source
from vdeblur.system.files import replacing_folder
from vdeblur.system.optional import installed, optional

Reader = Literal["auto", "decord", "pyav"]
_CODES = np.arange(256) / 255.0
# frames/s below which a mean of frames is a row of ghosts, not a blur: GoPro was recorded at 240,
# REDS at 120 and interpolated further.
_SLOW = 100


@dataclass(frozen=True)
class AverageOptions:
    """How frames become pairs.

    Args:
        frames: Fewest and most frames to average. Counts are odd, so that there is a middle one.
        stride: Frames from the first of one window to that of the next; None for windows end to
            end.
        response: "linear", "srgb", "gamma:G" or a file, see `response_table`.
        max_blur: Windows whose middle frame has a greater `blur_measure` are left out; 1 keeps all.
        reader: "decord" seeks, "pyav" reads on; "auto" is decord where it is installed and most
            frames are not used.
        seed: Decides the counts.

    Raises:
        UsageError: `frames` holds no odd count of 3 or more, or another value is out of its range.
    """

    frames: tuple[int, int] = (7, 13)
    stride: int | None = None
    response: str = "gamma:2.2"
    max_blur: float = 0.5
    reader: Reader = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.frames
        if not 3 <= low <= high or not self.counts:
            raise UsageError(
                f"{low}..{high} frames cannot be averaged around a middle one: give an odd "
                "count of 3 or more, or a range that holds one, such as 7..13"
            )
        if not 0 <= self.max_blur <= 1:
            raise UsageError(f"`max_blur` is {self.max_blur:g}: give 0 to 1")
        if self.stride is not None and self.stride < 1:
            raise UsageError(f"a stride of {self.stride} does not move: give 1 or more")

    @property
    def counts(self) -> list[int]:
        """Return the odd counts between fewest and most."""
        return [n for n in range(self.frames[0], self.frames[1] + 1) if n % 2]


@dataclass
class AverageReport:
    """What became of a video.

    Args:
        source: The video.
        folder: Where the pairs are.
        reader: The reader in use, "decord" or "pyav".
        pairs: Number of pairs written.
        skipped: Number of windows skipped, by reason.
        notes: Sentences for the user.
    """

    source: str
    folder: str
    reader: str
    pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data, for JSON."""
        return self.__dict__ | {"skipped": dict(self.skipped)}


def response_table(response: str) -> NDArray[np.float64]:
    """Return the light of the codes 0 to 255, (256,), rising from 0 to 1.

    Args:
        response: "linear" (coded values are light), "srgb" (IEC 61966-2-1), "gamma:G", or a file
            with 256 numbers: the relative light of each code, from radiometric calibration (Debevec
            and Malik, SIGGRAPH 1997).

    Raises:
        UsageError: The response is none of these.
        InputError: The file does not hold 256 rising numbers.
    """
    if response == "linear":
        return _CODES.copy()
    if response == "srgb":
        return np.where(_CODES <= 0.04045, _CODES / 12.92, ((_CODES + 0.055) / 1.055) ** 2.4)
    if response.startswith("gamma:"):
        try:
            gamma = float(response[6:])
        except ValueError:
            gamma = 0.0
        if not 0.2 <= gamma <= 10:
            raise UsageError(f"{response!r} is no response curve: give gamma:G, such as gamma:2.2")
        table: NDArray[np.float64] = _CODES**gamma
        return table
    path = Path(response)
    if not path.is_file():
        raise UsageError(
            f"response {response!r} is neither linear, srgb, gamma:G nor a file with 256 numbers"
        )
    try:
        values = np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), float)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as 256 numbers: check the file") from error
    if values.shape != (256,) or np.any(np.diff(values) <= 0):
        raise InputError(
            f"{path} holds {values.size} numbers"
            + ("" if values.size != 256 else " that do not rise")
            + ": a response curve is 256 rising numbers, the light of codes 0 to 255"
        )
    return np.asarray((values - values[0]) / (values[-1] - values[0]))


def average(frames: NDArray[np.uint8], table: NDArray[np.float64]) -> RGBImage:
    """Average the light of frames (K, H, W, 3) by a response table, and code it again."""
    total = np.zeros(frames.shape[1:])
    for frame in frames:
        total += table[frame]
    codes = np.interp(total / len(frames), table, np.arange(256))
    return np.asarray(codes.round(), np.uint8)


def blur_measure(picture: RGBImage) -> float:
    """Measure how blurred a picture is, 0 to 1: about 0.3 if sharp, 0.6 if blurred.

    The measure is the share of differences between neighbors that remains after blurring again, in
    the direction where it is larger (Crété et al., "The Blur Effect", SPIE 6492, 2007): sharp
    pictures lose much, blurred ones little, whatever their content.
    """
    luma = picture.mean(axis=2, dtype=np.float32)
    worst = 0.0
    for axis in (0, 1):
        lines = np.moveaxis(luma, axis, 0)
        padded = np.pad(lines, ((5, 4), (0, 0)), mode="edge")
        sums = padded.cumsum(axis=0, dtype=np.float64)
        again = (sums[9:] - sums[:-9]) / 9
        before = np.abs(np.diff(lines, axis=0))
        lost = (before - np.abs(np.diff(again, axis=0))).clip(0)
        total = float(before.sum())
        worst = max(worst, (total - float(lost.sum())) / total if total else 0.0)
    return worst


class _Frames(Protocol):
    name: str

    def window(self, first: int, count: int) -> NDArray[np.uint8] | None:
        """Return frames from `first` on, (count, H, W, 3); None if the video ends before."""


class _Sequential:
    """Frames read by PyAV in order: windows may only move forward."""

    name = "pyav"

    def __init__(self, source: Path) -> None:
        self._frames = self._decode(source)
        self._held: deque[RGBImage] = deque()
        self._first = 0

    def _decode(self, source: Path) -> Iterator[RGBImage]:
        from vdeblur.media.reader import VideoReader

        with VideoReader(source) as reader:
            for frame in reader:
                rgb = frame_to_rgb(frame)[0].mul(255).round().byte()
                yield np.ascontiguousarray(rgb.permute(1, 2, 0).numpy())

    def window(self, first: int, count: int) -> NDArray[np.uint8] | None:
        while self._first + len(self._held) < first + count:
            frame = next(self._frames, None)
            if frame is None:
                return None
            self._held.append(frame)
            if self._first < first:
                self._held.popleft()
                self._first += 1
        while self._first < first:
            self._held.popleft()
            self._first += 1
        return np.stack([self._held[k] for k in range(count)])

    def close(self) -> None:
        self._frames.close()  # type: ignore[attr-defined]


class _Seeking:
    """Frames read by decord, in any order."""

    name = "decord"

    def __init__(self, source: Path) -> None:
        decord = optional("decord", extra="train", purpose="seeking in videos (`reader='decord'`)")
        try:
            self._video = decord.VideoReader(str(source), num_threads=1)
        except Exception as error:  # decord's own class is not public
            raise InputError(f"decord cannot open {source}: try `reader='pyav'`") from error

    def window(self, first: int, count: int) -> NDArray[np.uint8] | None:
        if first + count > len(self._video):
            return None
        frames: NDArray[np.uint8] = self._video.get_batch(range(first, first + count)).asnumpy()
        return frames

    def close(self) -> None:
        del self._video


def average_video(
    source: Path,
    out: Path,
    *,
    options: AverageOptions | None = None,
    overwrite: bool = False,
    on_progress: Callable[[AverageReport], None] | None = None,
) -> AverageReport:
    """Make pairs from a video, in out/STEM/{blur,blur_gamma,sharp} with STEM from its file name.

    Pictures are named after the number of their middle frame; made.json says how each was made.
    There is no blur_gamma for a linear response.

    Args:
        source: The video.
        out: The folder to write into.
        options: How frames become pairs.
        overwrite: Replace the video's folder if it exists.
        on_progress: Receives the report after every window.

    Raises:
        InputError: The video cannot be read, or yields no pairs.
        OutputError: The folder exists, or cannot be written.
        UsageError: The response curve is unknown.
    """
    options = options or AverageOptions()
    table = response_table(options.response)
    folder = out / source.stem
    check_replaceable(folder)
    if folder.exists() and not overwrite:
        raise OutputError(
            f"{folder} exists already: give another `out`, or `overwrite=True` to replace it"
        )
    frames = _open(source, options)
    report = AverageReport(str(source), str(folder), frames.name)
    report.notes += _notes(source, options)
    new = not out.exists()
    try:
        curved = options.response != "linear"
        names = ("blur", "blur_gamma", "sharp") if curved else ("blur", "sharp")
        with replacing_folder(folder, replace=overwrite) as partial:
            for name in names:
                (partial / name).mkdir()
            made = _write_windows(
                frames, partial, options, table if curved else None, report, on_progress
            )
            if not report.pairs:
                skipped = ", ".join(f"{n} {reason}" for reason, n in report.skipped.items())
                raise InputError(
                    f"{source} gives no pairs: "
                    + (
                        f"all windows were left out ({skipped})"
                        if skipped
                        else f"it has fewer than {options.counts[0]} frames"
                    )
                )
            facts: dict[str, Any] = {
                "source": source.name,
                "response": options.response,
                "stride": options.stride,
            }
            facts |= {"skipped": dict(report.skipped), "pairs": made}
            (partial / "made.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error})") from error
    finally:
        frames.close()
        if new and not report.pairs:
            with contextlib.suppress(OSError):
                out.rmdir()
    return report


def _notes(source: Path, options: AverageOptions) -> list[str]:
    from vdeblur.media.reader import VideoReader

    with VideoReader(source) as reader:
        rate = float(reader.info.fps or 0)
    if not 0 < rate < _SLOW:
        return []
    return [
        f"{source.name} has {rate:g} frames a second: a mean of {options.counts[0]} of them spans "
        f"{options.counts[0] / rate:.2g} s and shows ghosts, not blur; take video of 120 frames a "
        "second or more (slow motion, recorded at such a rate, is right as it is)"
    ]


def _open(source: Path, options: AverageOptions) -> _Sequential | _Seeking:
    check_source(source)
    sparse = options.stride is not None and options.stride > 3 * options.frames[1]
    if options.reader == "decord" or (options.reader == "auto" and sparse and installed("decord")):
        return _Seeking(source)
    return _Sequential(source)


def _write_windows(
    frames: _Sequential | _Seeking,
    folder: Path,
    options: AverageOptions,
    table: NDArray[np.float64] | None,
    report: AverageReport,
    on_progress: Callable[[AverageReport], None] | None,
) -> list[dict[str, Any]]:
    image = optional("PIL.Image", extra="train", purpose="writing pictures")
    rng = np.random.default_rng(options.seed)
    made: list[dict[str, Any]] = []
    first = 0
    while True:
        count = int(rng.choice(options.counts))
        window = frames.window(first, count)
        if window is None:
            return made
        reason = _unfit(window, options)
        if reason:
            report.skipped[reason] += 1
        else:
            middle = first + count // 2
            pictures = {"blur": average(window, _CODES), "sharp": window[count // 2]}
            if table is not None:
                pictures["blur_gamma"] = average(window, table)
            for name, picture in pictures.items():
                path = folder / name / f"{middle:06d}.png"
                image.fromarray(picture).save(path, compress_level=3)
            made.append({"name": f"{middle:06d}", "first_frame": first, "frames": count})
            report.pairs += 1
        if on_progress:
            on_progress(report)
        first += options.stride or count


def _unfit(window: NDArray[np.uint8], options: AverageOptions) -> str | None:
    """Why a window's mean is not a blurred picture of one scene; None if it is."""
    if any(np.array_equal(a, b) for a, b in pairwise(window)):
        return "with repeated frames"
    small = [_thumbnail(frame) for frame in window]
    steps = np.array([np.abs(b - a).mean() for a, b in pairwise(small)])
    # A cut exceeds all other steps of its window; fast motion makes all of them large.
    if steps.max() > 12 and steps.max() > 4 * np.median(steps):
        return "across a cut"
    if blur_measure(window[len(window) // 2]) > options.max_blur:
        return "already blurred"
    return None


def _thumbnail(frame: RGBImage) -> NDArray[np.float32]:
    """Means over a grid of at most 16 × 16 cells, in codes."""
    height, width = (max(1, side // 16) for side in frame.shape[:2])
    rows, columns = frame.shape[0] // height, frame.shape[1] // width
    gray = frame[: rows * height, : columns * width].mean(axis=2, dtype=np.float32)
    cells: NDArray[np.float32] = gray.reshape(rows, height, columns, width).mean(axis=(1, 3))
    return cells
