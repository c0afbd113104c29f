"""How long the shutter was open, and so how far every place of a frame moved meanwhile.

The exposure is what was asked for, or read off the pictures: what moves between two frames says
which way each place is blurred, and how long the blur is says for how long it moved. That is read
off the spectra of some windows (`vdeblur.stripes`). A camera has one exposure, which changes
slowly: what windows say is pooled over places and over time, and anew after a cut.
Gives `Frame.motion` to the frames of a stream. Knows no files.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.blur_field import Shown, luma_plane, shown_motion
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.motion import Floats, Movement, follow, reduced
from vdeblur.stripes import WINDOW, Found, Stripes, stripes
from vdeblur.threads import Helpers
from vdeblur.views import linked

#: Share of a frame's time that is taken where nothing tells: film's usual half, which is also safe:
#: too short a motion restores too little, too long a one does damage.
USUAL_SHARE = 0.5
_NONE = 0.05  # share below which the shutter blurs nothing
#: Of the way that flow finds during an exposure, what is told of it. Eleven films of known
#: exposure, rendered and real, were restored best at 1.06 to 1.12: a pixel has a width, and flow
#: falls short.
TOLD = 1.06
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture, but for errors of the flow
_TOO_LONG = 1.25  # share from which on the flow is not what blurred a picture: it turned meanwhile

_AREA = 1280 * 720  # pixels that larger pictures are reduced to
#: Pixels to the next picture that a window can be asked about.
_SHORTEST, _LONGEST = 4.0, 48.0
#: A blur of more than so many pixels is read off a picture of half the size that is this many
#: windows high: its stripes are hardly apart any more. The lower it is, the fewer windows there are
#: to ask, and the longer the blur has to be.
_LONG_BLURS = ((4 * WINDOW, 8.0), (3 * WINDOW, 15.0))
#: Share of its places whose motion the picture itself must bear out to be believed then; a place
#: does, to half of the longer of the two and these pixels.
_BORNE_OUT, _APART, _APART_PIXELS = 0.4, 0.5, 1.0
_RECENT = 8  # frames of a shot that tell whether it turns, and whether it is blurred
_EAGER = 4  # frames of a shot that are read at once
_EVERY = 16  # after those, one of so many
_WINDOWS = 32  # that are read of a frame
_CLOSE = WINDOW // 4  # pixels from one window that may be read to the next
_WORTH = 0.15  # least worth of a window to be read
_FEW = 4  # good windows, below which others are read too
_BAR = 0.04  # of white, that a row or a column of a bar beside the picture differs by at most
#: Of the contrast in a window, what may be at clipped pixels, whose spectra are not the blur's.
_CLIPPED = 0.1
#: Beside what stands still, what moves seems sharp: of a window only what has its motion is looked
#: at, all that is off by less than this share of it, nothing that is off by twice that. `_CELL`
#: pixels of a window have one motion; around what moves so many of them are left out too, for the
#: flow is not sure of its edge, which is blurred into what is behind. And how much of a window has
#: to be left, of a good one and of any.
_OFF, _CELL, _RIM, _LEFT, _LEFT_AT_LEAST = 0.2, 4, 2, 0.5, 0.1
#: Spectra are of a window's middle: contrast counts by a Gaussian of so many pixels.
_MIDDLE = 9.0
_ENOUGH = 4  # readings before a film's first frame is given out
_MOST_HELD = 6  # frames that wait for them
_MOST_ITEMS = 256  # frames and others that wait for whatever
_KEPT = 12  # readings that count, the last ones
_FULL = 16  # windows from which on they are believed
#: How much of the spectra stripes have to explain, and how much of that no other length may: up to
#: the first they are taken for chance, from the second on for a blur. Of 74 sharp films the first
#: is 0.014 at most, or the second below 0.2. But what was enlarged is soft across and down more
#: than aslant, like a blur of 4 pixels that explains 0.03: short ones have to explain more; and so
#: do few windows, of which more is chance.
_SHORT, _LONG, _DISTINCT = (0.028, 0.042), (0.0145, 0.0185), (0.2, 0.35)
#: The same of what was found as of a film that was coded, be it short or long. Near to each other:
#: by half of its length a blur is not restored by half, but hardly at all.
_IF_CODED = 0.0165, 0.018
_SHORT_PIXELS, _LONG_PIXELS = 4.5, 6.5
_MANY = 80  # windows


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
    """Gives the frames of a film their motion. exposure: as `exposure_of` takes it.

    Of live pictures, which may not wait, `vdeblur.live.LiveGuide` does.
    """

    def __init__(self, exposure: str | float | Fraction | Exposure = AUTO) -> None:
        self.exposure = exposure_of(exposure)
        self._meters: dict[int, Meter] = {}
        self._shots: dict[int, _Shot] = {}
        self._moved = False  # whether any picture had a neighbour that shows the same scene
        self._shares, self._seconds_read = array("d"), array("d")

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """The items in their order, frames with their `motion` and what is `around` them, or None
        where there is none.

        The first frames of a shot wait for a few more, so that their exposure is known already;
        each waits for the next one's motion. threads: with two or more, that many frames and some
        are looked ahead at, at once.
        """
        with Helpers(threads) as helpers:
            yield from linked(self._guided(items, helpers))

    def _guided(
        self, items: Iterable[Any], helpers: Helpers
    ) -> Iterator[tuple[Any, Movement | None]]:
        held: deque[tuple[Any, Movement | None]] = deque()
        coming: deque[deque[_Told]] = deque()
        frames = 0
        for item, movement in follow(items, helpers=helpers):
            is_frame = isinstance(item, Frame)
            if is_frame and held and self._new_shot(item, movement):
                coming.append(self._told(held, helpers))
                yield from self._given(coming, helpers.ahead)
                frames = 0
            held.append((item, movement))
            frames += is_frame
            if is_frame:
                self._measure(item, movement)
            del item
            if (
                frames > _MOST_HELD
                or len(held) > _MOST_ITEMS
                or all(meter.settled for meter in self._meters.values())
            ):
                coming.append(self._told(held, helpers))
                yield from self._given(coming, helpers.ahead)
                frames = 0
        coming.append(self._told(held, helpers))
        yield from self._given(coming, 0)

    def notes(self) -> list[str]:
        """What a report should say of the exposure, once frames were given out."""
        if self.exposure != AUTO or not self._moved:
            return []
        if not self._shares:
            return [
                "the pictures do not tell how long the shutter was open: "
                f"taken as {USUAL_SHARE:g} of a frame's time"
            ]
        shares, seconds = np.array(self._shares), np.array(self._seconds_read)
        low, share, high = np.quantile(shares, [0.1, 0.5, 0.9])
        spread = f", at times {low:.2f}, at times {high:.2f}" if high > 1.5 * low + 0.05 else ""
        if share < _NONE:
            # Or the film was coded so strongly that little is left of the stripes.
            return [
                "the shutter was open too shortly to blur what moves, by what the pictures tell: "
                "it is left as it is; if it is blurred, give an exposure such as 0.5"
            ]
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

    def _told(self, held: deque[tuple[Any, Movement | None]], helpers: Helpers) -> deque[_Told]:
        """What is known of those that wait, by now; they wait no more."""
        # All tell how their shot turns, and what they show, before any is given out.
        for item, movement in held:
            if isinstance(item, Frame) and movement is not None:
                self._shot(item, movement).turns.append(movement.doubtful)
        told: deque[_Told] = deque()
        for item, movement in held:
            entry = _Told(item, movement)
            told.append(entry)
            if not isinstance(item, Frame):
                continue
            flow = None
            if movement is not None:
                entry.shot = shot = self._shot(item, movement)
                entry.seconds = self._seconds(item, movement)
                entry.read = self.exposure == AUTO and self._meter(item).measured
                if not movement.doubtful and sum(shot.turns) <= len(shot.turns) / 2:
                    continue
                # Off a vibration, whose flow is wrong, no exposure is read, or none at all.
                interval = movement.interval_seconds
                short = entry.seconds <= _NONE * interval
                flow = movement.during(USUAL_SHARE * interval if short else entry.seconds)[:2]
            entry.shown = helpers.begin(partial(shown_by, item, flow))
        held.clear()
        return told

    def _given(
        self, coming: deque[deque[_Told]], ahead: int
    ) -> Iterator[tuple[Any, Movement | None]]:
        """Those that were looked at; the last `ahead` frames may wait to be."""
        while coming and (
            all(entry.shown is None for entry in coming[0])
            or sum(map(len, coming)) > _MOST_ITEMS
            or sum(isinstance(entry.item, Frame) for told in coming for entry in told) > ahead
        ):
            told = coming.popleft()
            shown = deque(None if entry.shown is None else entry.shown() for entry in told)
            for entry, own in zip(told, shown, strict=True):
                if own is not None and entry.shot is not None:
                    entry.shot.blurred.append(own.blurred)
            while told:
                entry = told.popleft()
                if isinstance(entry.item, Frame):
                    self._give(entry, shown.popleft())
                else:
                    shown.popleft()
                yield entry.item, entry.movement
                del entry

    def _seconds(self, frame: Frame, movement: Movement) -> float:
        """How long the shutter was open, as asked for or as far as the pictures tell by now."""
        if self.exposure.seconds is not None:
            return self.exposure.seconds
        if self.exposure.share is not None:
            return self.exposure.share * movement.interval_seconds
        return self._meter(frame).seconds(movement.interval_seconds)

    def _shot(self, frame: Frame, movement: Movement) -> _Shot:
        shot = self._shots.get(frame.stream)
        if shot is None or shot.number != movement.shot:
            shot = self._shots[frame.stream] = _Shot(movement.shot)
        return shot

    def _give(self, told: _Told, shown: Shown | None) -> None:
        frame, movement, shot = told.item, told.movement, told.shot
        frame.motion = None
        if movement is None or shot is None:
            # No neighbour shows the same scene.
            frame.motion = None if shown is None else shown.motion * np.float32(shown.blurred)
            return
        self._moved = True
        interval, seconds = movement.interval_seconds, told.seconds
        if told.read and shown is None:
            self._shares.append(seconds / interval)
            self._seconds_read.append(seconds)
        frame.motion = movement.during(TOLD * seconds)
        if shown is not None:
            # Of a vibration the flow knows little, and no exposure was read off it.
            still = shown.motion * np.float32(shot.believed(shown))
            if seconds <= _NONE * interval or not borne_out(frame.motion, still):
                frame.motion = still


@dataclass
class _Told:
    """An item with its movement. Of a frame, how long the shutter was open, and whether that was
    read off the pictures; its shot, if it has a neighbour there; and what gives what it shows by
    itself, where nothing else tells how it moved.
    """

    item: Any
    movement: Movement | None
    seconds: float = 0.0
    read: bool = False
    shot: _Shot | None = None
    shown: Callable[[], Shown | None] | None = None


class _Shot:
    """A shot of a stream: which of its last frames turn too fast to be followed, and how far what
    those show is to be believed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.turns: deque[bool] = deque(maxlen=_RECENT)
        self.blurred: deque[float] = deque(maxlen=_RECENT)

    def believed(self, shown: Shown) -> float:
        """0 … 1. A shot whose frames are blurred has one exposure: those that vibration leaves
        nearly sharp are blurred a little. Half of them must show it.
        """
        return max(shown.blurred, min(1.0, 2 * sum(self.blurred) / len(self.blurred)))


def borne_out(motion: Floats, still: Floats) -> bool:
    """Whether the motion of a frame (4, h, w) is the one that the picture shows by itself, in most
    of the places where that shows any.
    """
    size = still.shape[2], still.shape[1]
    there = np.stack([cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in motion[:2]])
    lengths = np.hypot(*there), np.hypot(*still[:2])
    # A blur has no sign.
    apart = np.minimum(np.hypot(*(there - still[:2])), np.hypot(*(there + still[:2])))
    near = apart <= _APART * np.maximum(*lengths) + _APART_PIXELS
    seen = np.maximum(*lengths) > _APART_PIXELS
    return bool(near[seen].mean() >= _BORNE_OUT) if seen.any() else True


def shown_by(frame: Frame, flow: Floats | None = None) -> Shown | None:
    """`shown_motion` of a frame, in its pixels, given its flow."""
    luma = luma_plane(frame)
    rows = np.array([[[1]], [[frame.layout.height / luma.shape[0]]]], np.float32)
    shown = shown_motion(luma, None if flow is None else flow / rows)
    if shown is not None:
        shown.motion[:2] *= rows
    return shown


def plain(found: Found) -> float:
    """How far what was found is to be taken for a blur, 0 … 1."""
    length = np.interp(found.pixels, [_SHORT_PIXELS, _LONG_PIXELS], [0, 1])
    of_length = [length * b + (1 - length) * a for a, b in zip(_SHORT, _LONG, strict=True)]
    more = math.sqrt(max(1.0, _MANY / max(found.windows, 1)))
    limits = [more * limit for limit in (_IF_CODED if found.coded else of_length)]
    explained = np.interp(found.explained, limits, [0, 1])
    return float(explained * np.interp(found.distinct, _DISTINCT, [0, 1]))


class Meter:
    """The exposure of one stream, from what its pictures show."""

    def __init__(self) -> None:
        self.shot = -1
        self._anew = True
        self._known: deque[Stripes] = deque(maxlen=_KEPT)
        self._found: Found | None = None  # of all of them
        self._unit = 0.0  # seconds that ways are of
        self._frames = 0  # of this shot

    @property
    def measured(self) -> bool:
        """Whether the pictures say anything of it."""
        return self._found is not None

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
        if movement.doubtful:
            return
        turn, self._frames = self._frames, self._frames + 1
        if turn < _EAGER or turn % _EVERY == 0:
            interval = movement.interval_seconds
            unit = interval if self._anew else self._unit
            share = self.seconds(interval) / interval
            seen = reading(frame, movement, unit, turn=turn, share=share)
            if seen is None or _impossible(seen.found(), unit / interval):
                return
            if self._anew:
                self._known.clear()  # another shot's
            self._anew, self._unit = False, unit
            self._known.append(seen)
            self._found = functools.reduce(operator.add, self._known).found()

    def seconds(self, interval: float) -> float:
        """How long the shutter is open, where pictures come `interval` seconds apart."""
        usual, found = USUAL_SHARE * interval, self._found
        if found is None:
            return usual
        seconds = found.share * self._unit
        # Little evidence may shorten an exposure, but not lengthen it.
        if seconds > usual:
            seconds = usual + min(1.0, found.windows / _FULL) * (seconds - usual)
        return float(min(seconds * plain(found), _LONGEST_SHARE * interval))


def _impossible(found: Found, unit: float) -> bool:
    """Whether a blur is longer than the way to the next picture, which is 1 / unit of the found
    one's: it turned meanwhile, and what is known of its motion is not what blurred it.
    """
    return plain(found) > 0 and found.share * unit > _TOO_LONG


def reading(
    frame: Frame,
    movement: Movement,
    unit: float,
    *,
    turn: int = 0,
    share: float = USUAL_SHARE,
) -> Stripes | None:
    """What one frame says of its exposure, in ways of `unit` seconds; None if nothing tells.

    turn: another number looks at other windows. share: what the exposure is thought to be, of a
    frame's time.
    """
    luma = luma_plane(frame)
    shrink = max(1, round(math.sqrt(luma.size / _AREA)))
    rows_seen = luma.shape[0] / frame.layout.height  # of interlaced pictures, a field's
    way = movement.field[:2] * np.array([1.0, rows_seen], np.float32)[:, None, None]
    way = way * np.float32(movement.interval_seconds)
    moving = np.hypot(*way)
    moving = moving[moving > _SHORTEST]
    if not moving.size:
        return None
    inside = _inside_bars(luma)
    # A long blur is read off a smaller picture, as long as that holds some windows.
    way_there = float(np.median(moving)) / shrink
    while way_there > _LONGEST or any(
        share * way_there > blur and min(end - start for start, end in inside) >= height * shrink
        for height, blur in _LONG_BLURS
    ):
        shrink, way_there = 2 * shrink, way_there / 2
    size = luma.shape[1] // shrink, luma.shape[0] // shrink
    if min(size) < WINDOW:
        return None
    if shrink > 1:
        luma = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.float32)
    windows = _windows(luma, WINDOW)
    x, y, worth, clear = _told(frame, movement, way / np.float32(shrink), size, windows.shape[:2])
    length = np.hypot(x, y)
    down, across = (
        (first * shrink >= start) & ((first + WINDOW) * shrink <= end)
        for (start, end), first in zip(
            inside, (_CLOSE * np.arange(count) for count in windows.shape[:2]), strict=True
        )
    )
    told = (length > _SHORTEST) & (length < _LONGEST) & np.outer(down, across).ravel()
    worth = np.where(told, worth, 0)
    # Not those that tell most: the steepest slopes are where a blur is shorter than it seems.
    order = np.flatnonzero(worth * clear > _WORTH)
    if len(order) < _FEW:
        order = np.flatnonzero(worth > _WORTH)
    apart = max(1, round(len(order) / _WINDOWS))
    order = order[turn % apart :: apart]
    if not len(order):
        return None
    cells = -(-size[0] // _CELL), -(-size[1] // _CELL)
    with torch.inference_mode():
        places = tuple(map(torch.from_numpy, np.divmod(order, windows.shape[1])))
        ways = torch.stack(
            [_windows(cv2.resize(part / shrink, cells), WINDOW // _CELL)[places] for part in way], 1
        )
        chords = torch.from_numpy(np.stack([x[order], y[order]], axis=1).astype(np.float32))
        chords, masks, left = _one_motion(ways, chords)
        kept = left > _LEFT
        if int(kept.sum()) < _FEW:
            kept = left > _LEFT_AT_LEAST
        chosen, chords, masks = windows[places][kept], chords[kept], masks[kept]
        if not len(chosen):
            return None
        return stripes(_masked(chosen, masks), chords * (unit / movement.interval_seconds))


def _inside_bars(luma: Floats) -> list[tuple[int, int]]:
    """The first row of a picture and the one after its last, and the same of its columns, without
    the bars of one colour that a film of another shape has beside it: their edge is sharp whatever
    the shutter did.
    """
    found = []
    for axis in (1, 0):
        seen = np.flatnonzero(np.ptp(luma, axis=axis) > _BAR)
        found.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0))
    return found


def _windows(plane: NDArray[Any], side: int) -> Tensor:
    """All windows of a plane, (down, across, side, side), a quarter of their side apart."""
    there = torch.from_numpy(np.ascontiguousarray(plane, np.float32))
    return there.unfold(0, side, side // 4).unfold(1, side, side // 4)


def _one_motion(ways: Tensor, chords: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Windows' motions, cell by cell (N, 2, cells, cells), and which each is asked about (N, 2) →
    that more exactly; (N, WINDOW, WINDOW) in [0, 1], where the window has it; and how much of the
    window's middle that leaves, (N,).
    """
    hann = torch.hann_window(ways.shape[2])
    hann = hann[:, None] * hann / hann.sum() ** 2
    for _ in range(2):
        length = torch.hypot(chords[:, 0], chords[:, 1])[:, None, None]
        off = torch.hypot(ways[:, 0] - chords[:, :1, None], ways[:, 1] - chords[:, 1:, None])
        masks = (2 - off / (_OFF * length)).clamp(0, 1)
        counts = (masks * hann + 1e-9)[:, None]
        chords = (ways * counts).sum((2, 3)) / counts.sum((2, 3))
    near = F.pad(masks[:, None], (_RIM,) * 4, mode="replicate")
    masks = (2 * F.avg_pool2d(near, 2 * _RIM + 1, 1) - 1).clamp(0, 1)
    left = (masks[:, 0] * hann).sum((1, 2))
    return chords, F.interpolate(masks, scale_factor=_CELL, mode="bilinear")[:, 0], left


def _masked(windows: Tensor, masks: Tensor) -> Tensor:
    """Windows without what is masked, which leaves no edges of its own: it fades to the mean."""
    mean = (windows * masks).sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)
    return (windows - mean) * masks


def _told(
    frame: Frame, movement: Movement, way: Floats, size: tuple[int, int], grid: tuple[int, ...]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """What windows of a picture of `size` (width, height), `grid` of them down and across, tell.

    way: (2, h, w), the field's pixels to the next picture. Returns, a value a window: the mean of
    it over what has contrast and moves most, x and y; the worth of the window; and whether it is
    without clipped pixels.
    """
    small, _ = reduced(frame)
    cells = way.shape[2], way.shape[1]
    slopes = [cv2.Sobel(small, cv2.CV_32F, dx, dy, scale=1 / 8) for dx, dy in ((1, 0), (0, 1))]
    contrast = np.asarray(slopes[0] ** 2 + slopes[1] ** 2, np.float32)
    layout = frame.layout
    white = 250 if layout.kind == "rgb" or layout.full_range else 230
    clipped = cv2.dilate((small >= white).astype(np.float32), np.ones((3, 3)))
    weight, lost = (
        cv2.resize(part, cells, interpolation=cv2.INTER_AREA)
        for part in (contrast, contrast * clipped)
    )
    weight = np.asarray(weight + 1e-3, np.float32)
    # Places of the windows' middles among the field's.
    scale = cells[0] / size[0], cells[1] / size[1]
    across, down = (
        (WINDOW / 2 + _CLOSE * np.arange(count)) * per - 0.5
        for count, per in zip(grid[::-1], scale, strict=True)
    )
    to_x, to_y = (part.astype(np.float32) for part in np.meshgrid(across, down))

    def around(part: NDArray[Any]) -> Floats:
        wide = cv2.GaussianBlur(part, (0, 0), _MIDDLE * scale[0], sigmaY=_MIDDLE * scale[1])
        return np.asarray(cv2.remap(wide, to_x, to_y, cv2.INTER_LINEAR), np.float32).ravel()

    speed = (way**2).sum(axis=0) + np.float32(1e-3)
    moving = around(weight * speed)
    x, y, trust, off = (
        around(part * speed) / moving
        for part in (weight * way[0], weight * way[1], weight * movement.trust, lost)
    )
    slope = np.sqrt(around(weight))
    worth = np.asarray(trust * slope / (slope + 3), np.float32)
    return x, y, worth, off < _CLIPPED
