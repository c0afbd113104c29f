"""How long the shutter was open, and so how far every place of a frame moved meanwhile.

The exposure is what was asked for, or read off the pictures: a small network looks at a few crops
that move and have texture, and says which share of the way to the next picture their blur is long.
A camera has one exposure, which changes slowly: what places say is pooled over places and over
time, and anew after a cut. Gives `Frame.motion` to the frames of a stream. Knows no files and no
threads.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.models.exposure import ExposureNetwork, exposure_guidance
from vdeblur.motion import Floats, Movement, Watch, follow, plane_rows, reduced

#: Share of a frame's time that is taken where nothing tells: film's usual half, which is also safe:
#: too short a motion restores too little, too long a one does damage.
USUAL_SHARE = 0.5
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture, but for errors of the flow
WEIGHTS = Path(__file__).parent / "weights" / "exposure.safetensors"

_CROP = 128  # pixels a side that the network sees
_PLACE = 8  # pixels of a crop to one of its answers
_MOST_PLACES = 8  # of a frame, that are looked at in turn
_EDGE = 2  # answers at a crop's edge that are dropped
_SHORTEST, _LONGEST = 2.5, 36.0  # pixels of candidate motion that it can read
_EAGER, _EAGER_CROPS = 4, 2  # frames of a shot that are measured at once, and crops of each
_EVERY = 12  # after those, a crop of every so many frames
_MOST_HELD = 6  # frames that wait for them
_KEPT = 12  # measurements that count, the last ones
_FULL_EVIDENCE = 100.0  # weight of answers from which a measurement is believed
_SHARP_SHARE, _BLURRED_SHARE = 0.13, 0.24  # of the candidate: below is a sharp picture's answer


@dataclass(frozen=True)
class Exposure:
    """What was asked for: seconds, a share of a frame's time, or, both None, to find out."""

    seconds: float | None = None
    share: float | None = None


AUTO = Exposure()


def exposure_of(value: str | float | Fraction | Exposure) -> Exposure:
    """`auto`; `1/60`, `0.004s` or `4ms`, seconds; `0.5`, a share of the time of a frame.

    A number is a share, a Fraction seconds. UsageError for anything else.
    """
    if isinstance(value, Exposure):
        return value
    text = str(value).strip().lower()
    if text == "auto":
        return AUTO
    if isinstance(value, Fraction):
        text += "s"
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:/(\d+\.?\d*))? ?(m?s)?", text)
    number, below, unit = found.groups() if found else ("0", None, None)
    size = float(number) / (float(below or 1) or math.inf) * (1e-3 if unit == "ms" else 1)
    if (below or unit) and 0 < size <= 2:
        return Exposure(seconds=size)
    if not below and not unit and 0 < size <= 2:
        return Exposure(share=size)
    hint = f"; a shutter angle of {size:g} degrees is {size / 360:g}" if 2 < size <= 360 else ""
    raise UsageError(
        f"exposure is {str(value)!r}: give auto, seconds such as 1/60 or 0.004s, or the share of a "
        f"frame's time such as 0.5{hint}"
    )


class Guide:
    """Gives frames their motion.

    exposure: as `exposure_of` takes it. look_ahead False: nothing waits (see `motion.follow`).
    """

    def __init__(
        self, exposure: str | float | Fraction | Exposure = AUTO, *, look_ahead: bool = True
    ) -> None:
        self.exposure = exposure_of(exposure)
        self._look_ahead = look_ahead
        self._meters: dict[int, Meter] = {}
        self._watches: dict[int, Watch] = {}
        self._shares, self._seconds = array("d"), array("d")

    def run(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items in their order, frames with their `motion`, or None where there is none.

        The first frames of a shot wait for a few more, so that their exposure is known already.
        """
        held: deque[tuple[Any, Movement | None]] = deque()
        frames = 0
        for item, movement in follow(items, look_ahead=self._look_ahead):
            is_frame = isinstance(item, Frame)
            if is_frame and held and self._new_shot(item, movement):
                yield from self._released(held)
                frames = 0
            held.append((item, movement))
            frames += is_frame
            if is_frame:
                self._measure(item, movement)
            if (
                not self._look_ahead
                or frames > _MOST_HELD
                or len(held) > 256
                or all(meter.settled for meter in self._meters.values())
            ):
                yield from self._released(held)
                frames = 0
            del item
        yield from self._released(held)

    def see(self, frame: Frame) -> None:
        """Set the motion of a live camera's next frame, by those before it."""
        movement = self._watches.setdefault(frame.stream, Watch()).see(frame)
        self._measure(frame, movement)
        self._give(frame, movement)

    def notes(self) -> list[str]:
        """What a report should say of the exposure, once frames were given out."""
        if self.exposure != AUTO or not self._meters:
            return []
        if not self._shares:
            return [
                "the pictures do not tell how long the shutter was open: "
                f"taken as {USUAL_SHARE:g} of a frame's time"
            ]
        shares, seconds = np.array(self._shares), np.array(self._seconds)
        low, share, high = np.quantile(shares, [0.1, 0.5, 0.9])
        spread = f", at times {low:.2f}, at times {high:.2f}" if high > 1.5 * low + 0.05 else ""
        if share < 0.05:
            return ["the shutter was open too shortly to blur what moves"]
        time = float(np.median(seconds))
        return [
            f"the shutter was open for about {share:.2f} of a frame's time "
            f"(1/{1 / time:.0f} s){spread}"
            if 1 / time >= 1.5
            else f"the shutter was open for about {share:.2f} of a frame's time{spread}"
        ]

    def _meter(self, frame: Frame) -> Meter:
        return self._meters.setdefault(frame.stream, Meter())

    def _new_shot(self, frame: Frame, movement: Movement | None) -> bool:
        meter = self._meters.get(frame.stream)
        return meter is not None and (movement is None or movement.shot != meter.shot)

    def _measure(self, frame: Frame, movement: Movement | None) -> None:
        if self.exposure == AUTO:
            self._meter(frame).see(frame, movement)

    def _released(self, held: deque[tuple[Any, Movement | None]]) -> Iterator[Any]:
        while held:
            item, movement = held.popleft()
            if isinstance(item, Frame):
                self._give(item, movement)
            yield item

    def _give(self, frame: Frame, movement: Movement | None) -> None:
        frame.motion = None
        if movement is None:
            return
        interval = movement.interval_seconds
        if self.exposure.seconds is not None:
            seconds = self.exposure.seconds
        elif self.exposure.share is not None:
            seconds = self.exposure.share * interval
        else:
            meter = self._meter(frame)
            seconds = meter.seconds(interval)
            if meter.measured:
                self._shares.append(seconds / interval)
                self._seconds.append(seconds)
        frame.motion = movement.during(seconds)


class Meter:
    """The exposure of one stream, from what its pictures show."""

    def __init__(self) -> None:
        self.shot = -1
        self.measured = False
        self._known: deque[tuple[float, float]] = deque(maxlen=_KEPT)  # seconds, evidence
        self._frames, self._stale = 0, False  # of this shot; whether what is known is another's

    @property
    def settled(self) -> bool:
        """Whether waiting for more frames would not tell much more."""
        return self._frames >= _EAGER

    def see(self, frame: Frame, movement: Movement | None) -> None:
        """Measure, if it is time to."""
        if movement is None:
            return
        if movement.shot != self.shot:
            # What was known stays until the new shot tells.
            self.shot, self._frames, self._stale = movement.shot, 0, True
        eager = self._frames < _EAGER
        turn, self._frames = self._frames, self._frames + 1
        if eager or turn % _EVERY == 0:
            found = measured(frame, movement, crops=_EAGER_CROPS if eager else 1, turn=turn)
            if found is not None:
                if self._stale:
                    self._known.clear()
                self._stale = False
                self._known.append(found)
                self.measured = True

    def seconds(self, interval: float) -> float:
        """How long the shutter is open, where pictures come `interval` seconds apart."""
        usual = USUAL_SHARE * interval
        if not self._known:
            return usual
        values, weights = (np.array(part) for part in zip(*self._known, strict=True))
        middle = weighted_quantile(values, weights, 0.5)
        # Little evidence may shorten an exposure, but not lengthen it.
        belief = min(1.0, float(weights.sum()) / _FULL_EVIDENCE)
        if middle > usual:
            middle = usual + belief * (middle - usual)
        return min(middle, _LONGEST_SHARE * interval)


@cache
def exposure_network() -> ExposureNetwork:
    """The network with the weights that ship, for inference on the CPU."""
    network = ExposureNetwork()
    network.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()})
    return network.eval().requires_grad_(False)


def measured(
    frame: Frame, movement: Movement, *, crops: int = 1, turn: int = 0
) -> tuple[float, float] | None:
    """The exposure of one frame in seconds, and the evidence for it; None if nothing tells.

    crops: how many places are looked at; turn: another number looks at others.
    """
    interval = movement.interval_seconds
    rows = plane_rows(frame)
    across = np.array([1.0, rows.shape[0] / frame.layout.height], np.float32)
    motion = movement.during(interval)[:2] * across[:, None, None]
    length = np.hypot(motion[0], motion[1])
    if not (length > _SHORTEST).any():
        return None
    # A long blur is read off a smaller picture.
    usual = float(np.median(length[length > _SHORTEST]))
    shrink = max(1, 2 ** math.ceil(math.log2(usual / _LONGEST)))
    worth = _worth(frame, movement, motion / shrink)
    shares, weights = [], []
    for y, x in _places(worth, rows.shape, _CROP * shrink, crops, turn):
        region = slice(y, y + _CROP * shrink), slice(x, x + _CROP * shrink)
        luma, candidate, trust = _cut(frame, rows, motion, worth, region, shrink)
        with torch.inference_mode():
            seen = exposure_guidance(torch.from_numpy(luma), torch.from_numpy(candidate))
            log, spread = exposure_network()(seen)
        inner = slice(_EDGE, -_EDGE or None)
        share = torch.exp(-log)[0, 0].numpy()[inner, inner]
        sure = spread[0, 0].numpy()[inner, inner]
        shares.append(share.ravel())
        weights.append((trust[inner, inner] / sure).ravel())
    if not shares:
        return None
    every, weight = np.concatenate(shares), np.concatenate(weights)
    if weight.sum() <= 1:
        return None
    middle = weighted_quantile(every, weight, 0.5)
    # Below what the network can tell, a picture is sharp.
    middle *= min(1.0, max(0.0, (middle - _SHARP_SHARE) / (_BLURRED_SHARE - _SHARP_SHARE)))
    return middle * interval, float(weight.sum())


def weighted_quantile(values: NDArray[Any], weights: NDArray[Any], share: float) -> float:
    """The value below which this share of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) - 0.5 * weights[order]
    return float(np.interp(share * weights.sum(), below, values[order]))


def _worth(frame: Frame, movement: Movement, motion: Floats) -> Floats:
    """What each place of the field can tell, (h, w): slopes along a known motion of fit length."""
    small, _ = reduced(frame)
    size = motion.shape[2], motion.shape[1]
    length = np.hypot(motion[0], motion[1])
    safe = np.maximum(length, 1e-3)
    slopes = [
        cv2.resize(np.abs(cv2.Sobel(small, cv2.CV_32F, dx, dy, scale=1 / 8)), size, interpolation=3)
        for dx, dy in ((1, 0), (0, 1))
    ]
    slope = (np.abs(motion[0]) * slopes[0] + np.abs(motion[1]) * slopes[1]) / safe
    fit = (length > _SHORTEST) & (length < 2 * _LONGEST)
    worth: Floats = movement.trust * fit * (slope / (slope + 3)).astype(np.float32)
    return worth


def _places(
    worth: Floats, shape: tuple[int, ...], side: int, count: int, turn: int
) -> list[tuple[int, int]]:
    """Row and column of the first pixel of the crops that can tell most, each apart from the rest.

    turn: another number takes others of the best, in turn: places differ in what they say.
    """
    height, width = shape[0], shape[1]
    window = (
        max(1, min(worth.shape[1], round(worth.shape[1] * side / width))),
        max(1, min(worth.shape[0], round(worth.shape[0] * side / height))),
    )
    sums = cv2.boxFilter(worth, -1, window, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    sums = sums[: worth.shape[0] - window[1] + 1, : worth.shape[1] - window[0] + 1].copy()
    best = float(sums.max())
    found: list[tuple[int, int]] = []
    while len(found) < _MOST_PLACES:
        _, value, _, (x, y) = cv2.minMaxLoc(sums)
        if value <= 0.02 or value < 0.4 * best:
            break
        found.append((round(y * height / worth.shape[0]), round(x * width / worth.shape[1])))
        top, left = max(0, y - window[1] // 2), max(0, x - window[0] // 2)
        sums[top : y + window[1] // 2 + 1, left : x + window[0] // 2 + 1] = 0
    return [found[(turn * count + k) % len(found)] for k in range(min(count, len(found)))]


def _cut(
    frame: Frame,
    rows: NDArray[Any],
    motion: Floats,
    worth: Floats,
    region: tuple[slice, slice],
    shrink: int,
) -> tuple[Floats, Floats, Floats]:
    """Of a region: luma (1, 1, H, W) in [0, 1], motion (1, 2, H / 8, W / 8), and worth."""
    layout = frame.layout
    part = rows[region].astype(np.float32)
    if layout.kind == "rgb":
        blue, red = (plane[::2] if layout.interlaced else plane for plane in frame.planes[1:])
        part = 0.587 * part + 0.114 * blue[region] + 0.299 * red[region]
    black, white = (
        (0.0, (1 << layout.depth) - 1.0)
        if layout.full_range or layout.kind == "rgb"
        else (16.0 * (1 << (layout.depth - 8)), 235.0 * (1 << (layout.depth - 8)))
    )
    height, width = (n // shrink // _PLACE * _PLACE for n in part.shape)
    height, width = max(height, _PLACE), max(width, _PLACE)
    luma = np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.float32)
    luma = (luma - np.float32(black)) / np.float32(white - black)
    # Of the field, the middle of each place of the crop.
    down, right = motion.shape[1] / rows.shape[0], motion.shape[2] / rows.shape[1]
    y = (region[0].start + (np.arange(height // _PLACE) + 0.5) * _PLACE * shrink) * down - 0.5
    x = (region[1].start + (np.arange(width // _PLACE) + 0.5) * _PLACE * shrink) * right - 0.5
    columns, lines = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
    fields = [
        np.asarray(
            cv2.remap(f, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.float32,
        )
        for f in (motion[0] / shrink, motion[1] / shrink, worth)
    ]
    return luma[None, None], np.stack(fields[:2])[None], fields[2]
