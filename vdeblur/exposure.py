"""How long the shutter was open, and so how far every place of a frame moved meanwhile.

The exposure is what was asked for, or read off the pictures: what moves between two frames says
which way each place is blurred, and how long the blur is says for how long it moved. A network
reads that off the spectra of some windows (`vdeblur.models.blur_field`). A camera has one exposure,
which changes slowly: what windows say is pooled over places and over time, and anew after a cut.
Gives `Frame.motion` to the frames of a stream. Knows no files and no threads.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import torch

from vdeblur.blur_field import blur_field_network, luma_plane, still_motion
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.models.blur_field import WINDOW, class_shares, spectra, windows_of
from vdeblur.motion import Floats, Movement, Watch, follow, reduced

#: Share of a frame's time that is taken where nothing tells: film's usual half, which is also safe:
#: too short a motion restores too little, too long a one does damage.
USUAL_SHARE = 0.5
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture, but for errors of the flow

#: Exposures that are told apart, seconds: none at all, then each a fourteenth longer than the last.
_SECONDS = np.concatenate([[0.0], 2.0 ** (np.arange(-150, 11) / 10)])
#: What is expected before any picture is seen: some third to threefold of the usual share, or, as
#: likely as a tenth of all others, no blur at all.
_SPREAD = 0.9  # of the logarithm

_AREA = 1280 * 720  # pixels that larger pictures are reduced to
#: Pixels to the next picture that a window can be asked about.
_SHORTEST, _LONGEST = 4.0, 48.0
_EAGER = 4  # frames of a shot that are read at once
_EVERY = 8  # after those, one of so many
_WINDOWS = 32  # that are read of a frame
_BELIEF = 0.3  # what a window's evidence counts: neighbours say in part the same
_ENOUGH = 3  # readings before a film's first frame is given out
_MOST_HELD = 6  # frames that wait for them
_KEPT = 12  # readings that count, the last ones
_CLEAR = 2.0  # how much likelier a blur must be than none, as a logarithm


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
            # No neighbour shows the same scene: what the picture says by itself.
            frame.motion = still_of(frame)
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


def still_of(frame: Frame) -> Floats | None:
    """`still_motion` of a frame, in pixels of its luma plane."""
    luma = luma_plane(frame)
    motion = still_motion(luma)
    if motion is not None:
        motion[1::2] *= frame.layout.height / luma.shape[0]
    return motion


class Meter:
    """The exposure of one stream, from what its pictures show."""

    def __init__(self) -> None:
        self.shot = -1
        self._anew = False
        self._known: deque[Floats] = deque(maxlen=_KEPT)
        self._frames = 0  # of this shot

    @property
    def measured(self) -> bool:
        """Whether the pictures say anything of it."""
        return len(self._known) > 0

    @property
    def settled(self) -> bool:
        """Whether waiting for more frames would not tell much more."""
        return self._frames >= _EAGER or len(self._known) >= _ENOUGH

    def see(self, frame: Frame, movement: Movement | None) -> None:
        """Read the frame, if it is time to."""
        if movement is None:
            return
        if movement.shot != self.shot:
            self.shot, self._frames, self._anew = movement.shot, 0, True
        turn, self._frames = self._frames, self._frames + 1
        if turn < _EAGER or turn % _EVERY == 0:
            found = reading(frame, movement, turn=turn)
            if found is not None:
                if self._anew:
                    self._known.clear()  # another shot's
                self._anew = False
                self._known.append(found)

    def seconds(self, interval: float) -> float:
        """How long the shutter is open, where pictures come `interval` seconds apart."""
        usual = USUAL_SHARE * interval
        if not self._known:
            return usual
        apart = np.log(np.maximum(_SECONDS, 1e-9) / usual) / _SPREAD
        expected = np.where(_SECONDS > 0, -(apart**2) / 2, -2.0)
        told = np.sum(self._known, axis=0)
        if told[0] >= told.max() - _CLEAR:
            return 0.0  # what may well be sharp is left alone
        belief = told + expected
        belief[_LONGEST_SHARE * interval < _SECONDS] = -np.inf
        likely = np.exp(belief - belief.max())
        return float(_SECONDS[np.searchsorted(np.cumsum(likely), 0.5 * likely.sum())])


def reading(frame: Frame, movement: Movement, *, turn: int = 0) -> Floats | None:
    """What one frame says of its exposure: for each of `_SECONDS` the logarithm of how likely it
    is, but for a constant; None if nothing tells. turn: another number looks at other windows.
    """
    luma = luma_plane(frame)
    shrink = max(1, round(math.sqrt(luma.size / _AREA)))
    velocity = (
        movement.field[:2] * np.array([1.0, luma.shape[0] / frame.layout.height])[:, None, None]
    )
    way = np.hypot(*velocity) * movement.interval_seconds
    moving = way[way > _SHORTEST]
    if not moving.size:
        return None
    # A long blur is read off a smaller picture.
    shrink *= max(1, 2 ** math.ceil(math.log2(float(np.median(moving)) / shrink / _LONGEST)))
    size = luma.shape[1] // shrink, luma.shape[0] // shrink
    if min(size) < WINDOW:
        return None
    if shrink > 1:
        luma = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.float32)
    windows = windows_of(torch.from_numpy(np.ascontiguousarray(luma)))
    rows, columns = windows.shape[:2]
    grid = columns, rows
    along = np.stack(
        [cv2.resize(v.astype(np.float32), grid, interpolation=cv2.INTER_AREA) for v in velocity]
    )
    along /= shrink
    worth = cv2.resize(_worth(frame, movement), grid, interpolation=cv2.INTER_AREA).ravel()
    way = np.hypot(*along).ravel() * movement.interval_seconds
    worth[(way < _SHORTEST) | (way > 2 * _LONGEST)] = 0
    order = np.argsort(-worth)[: int((worth > 0.02).sum())]
    if len(order) > 2 * _WINDOWS:
        order = order[turn % 2 : 2 * _WINDOWS : 2]
    if len(order) < 2:
        return None
    order = order[:_WINDOWS]
    with torch.inference_mode():
        chosen = windows.flatten(0, 1)[torch.from_numpy(order)]
        evidence = blur_field_network().evidence(spectra(chosen)).clamp_min(-4)
        speed = torch.from_numpy(along.reshape(2, -1).T[order].astype(np.float32))
        times = torch.from_numpy(_SECONDS.astype(np.float32))
        shares = class_shares((speed[:, None] * times[:, None]).flatten(0, 1))
        shares = shares.view(len(order), len(times), -1)
        # A length between two classes is as likely as the network's division between them is near
        # to its own: without its entropy the likeliest would always be a class's own length.
        found = (shares * evidence[:, None] - torch.xlogy(shares, shares)).sum((0, 2))
    return np.asarray(found.numpy() * _BELIEF, np.float32)


def _worth(frame: Frame, movement: Movement) -> Floats:
    """What each place of the field can tell, (h, w): slopes along a known motion."""
    small, _ = reduced(frame)
    field = movement.field
    size = field.shape[2], field.shape[1]
    speed = np.maximum(np.hypot(field[0], field[1]), 1e-3)
    slopes = [
        cv2.resize(np.abs(cv2.Sobel(small, cv2.CV_32F, dx, dy, scale=1 / 8)), size, interpolation=3)
        for dx, dy in ((1, 0), (0, 1))
    ]
    slope = (np.abs(field[0]) * slopes[0] + np.abs(field[1]) * slopes[1]) / speed
    worth: Floats = (movement.trust * slope / (slope + 3)).astype(np.float32)
    return worth
