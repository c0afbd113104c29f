"""How every place of a film's pictures moves: dense flow to both neighbours, one frame ahead.

What moves between two frames moves while the shutter is open too. Pictures are reduced to half
their size, or to 320 × 180 to 640 × 360, and matched both ways by DIS (T. Kroeger et al., "Fast
Optical Flow using Dense Inverse Search", ECCV 2016). Places that are not found again on the way
back are hidden in one of the two: they are filled from what is sure around them. Across a cut
nothing is matched; a picture that a film shows several times is one picture. Two pictures are
matched whatever others show, so that it can be done by threads beside each other. Knows no files
and no networks; how long the shutter was open is the business of `vdeblur.motion.exposure`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.frames import Frame
from vdeblur.system.thread_shares import Helpers

Floats = NDArray[np.float32]

#: Pixels that pictures are reduced to before they are matched, a whole number of pixels to one: a
#: quarter of theirs, within these. Live ones, which may not wait, are always reduced to the first.
_LEAST_AREA, _MOST_AREA = 320 * 180, 640 * 360
_LEAST = 16  # pixels a side that DIS needs; smaller pictures have no motion that anyone sees
#: The field has one vector for so many reduced pixels in a row and in a column.
_STEP = 4
#: Kernels, in steps, that vectors are averaged with, and how much each counts: where nothing near
#: is sure, what is farther away decides.
_KERNELS = ((0.75, 1.0), (3.0, 0.02), (12.0, 0.0004))
#: Share of places that are found again on the way back (measured: 0.16 at most in 323 cuts, 0.37
#: with a shift; in one scene whose shift was found, 0.83 and more). Below the first, a shift of the
#: whole picture is tried; below the second it is a cut; between them the detail of both has to be
#: alike, once matched (a correlation; of cuts, 0.25 at most).
_SURE, _CUT, _ALIKE = 0.5, 0.12, 0.35
#: A picture shown more often than this is frozen, and not waited for.
_MOST_SHOWN = 6
#: Items that may wait for a neighbour: another stream's frames, packets. Then it is given up.
_MOST_ITEMS = 256
_MOST_FRAMES = 16
_WINDOW = 8  # distinct pictures over which the rate is taken
#: Where the places of a picture bend by more than this share of their way, and pixels, from one
#: picture to the next, they turn faster than pictures follow each other (a vibration), or were not
#: found again (a cut that looks like none).
_BENT, _BENT_PIXELS = 0.3, 0.5


@dataclass(frozen=True)
class Movement:
    """How the places of one picture move around its moment.

    field: (4, h, w) float32, velocity x and y in pixels of the luma plane a second, and bend x and
    y in pixels a second²: a place is at c + velocity·t + bend·t² at t seconds from the picture's
    moment. trust: (h, w) float32 in [0, 1], how far that is known. interval_seconds: from one
    picture to the next, as is usual here. shot: rises by one at each cut. ahead, back: (2, h, w)
    float32, how far away in pixels of the luma plane each place is in the next picture and in the
    one before; None where that is not known to show the same scene.
    """

    field: Floats
    trust: Floats
    interval_seconds: float
    shot: int = 0
    ahead: Floats | None = None
    back: Floats | None = None

    def during(self, seconds: float) -> Floats:
        """(4, h, w): chord and bend, as `Frame.motion` has them, of an exposure this long."""
        scale = np.array([seconds, seconds, seconds**2, seconds**2], np.float32)
        moved: Floats = self.field * scale[:, None, None]
        return moved

    @cached_property
    def doubtful(self) -> bool:
        """Whether it turns too fast to be followed."""
        chord, bend = (
            float(np.median(np.hypot(*part)))
            for part in np.split(self.during(self.interval_seconds), 2)
        )
        return bend > _BENT * chord + _BENT_PIXELS


def follow(
    items: Iterable[Any], *, look_ahead: bool = True, helpers: Helpers | None = None
) -> Iterator[tuple[Any, Movement | None]]:
    """The items in their order, each with the movement of its picture.

    Frames have one unless no neighbour shows the same scene; other items have None. A frame waits
    for the next of its stream, a repeated one for the next that differs. look_ahead False: for live
    pictures, nothing waits, and each is compared with the one before it alone. helpers: match
    pictures `helpers.ahead` of those that are given out. Of a frame that was given out nothing is
    kept but a reduced copy: its planes may be written.
    """
    waiting: deque[_Waiting] = deque()
    tracks: dict[int, _Track] = {}
    frames = 0
    most = _MOST_AREA if look_ahead else _LEAST_AREA
    for item, seen in _seen(items, most, helpers or Helpers()):
        entry = _Waiting(item)
        waiting.append(entry)
        if seen is not None:
            frames += 1
            track = tracks.setdefault(item.stream, _Track(look_ahead))
            track.add(entry, seen)
        while waiting and (
            waiting[0].settled or len(waiting) > _MOST_ITEMS or frames > _MOST_FRAMES
        ):
            if not waiting[0].settled:
                tracks[waiting[0].item.stream].settle()
            first = waiting.popleft()
            frames -= isinstance(first.item, Frame)
            yield first.item, first.movement
        del item, entry, seen  # not to be kept alive while waiting for the next
    for track in tracks.values():
        track.settle()
    while waiting:
        first = waiting.popleft()
        yield first.item, first.movement


def _seen(items: Iterable[Any], most: int, helpers: Helpers) -> Iterator[tuple[Any, _Seen | None]]:
    """The items in their order, frames with what was seen of them; those to come are matched."""
    coming: deque[tuple[Any, _Seen | None]] = deque()
    eyes: dict[int, _Eye] = {}
    frames = 0
    for item in items:
        seen = None
        if isinstance(item, Frame):
            frames += 1
            seen = eyes.setdefault(item.stream, _Eye(most)).see(item, helpers)
        coming.append((item, seen))
        del item, seen
        while coming and (
            coming[0][1] is None or len(coming) > _MOST_ITEMS or frames > helpers.ahead
        ):
            frames -= coming[0][1] is not None
            yield coming.popleft()
    while coming:
        yield coming.popleft()


class Watch:
    """One live stream: each picture is compared with the one before it, and nothing waits."""

    def __init__(self) -> None:
        self._eye, self._track = _Eye(_LEAST_AREA), _Track(look_ahead=False)

    def see(self, frame: Frame) -> Movement | None:
        """The movement of the next frame."""
        entry = _Waiting(frame)
        self._track.add(entry, self._eye.see(frame, Helpers()))
        return entry.movement


class _Waiting:
    """An item that has its place in the stream, and will have its movement."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.movement: Movement | None = None
        self.settled = not isinstance(item, Frame)

    def settle(self, movement: Movement | None) -> None:
        self.movement, self.settled = movement, True


@dataclass(frozen=True)
class Flow:
    """Displacement of places to another picture: (2, h, w) in reduced pixels; trust (h, w)."""

    field: Floats
    trust: Floats


_Pair = tuple[Flow, Flow]


@dataclass(frozen=True)
class _Seen:
    """A frame: when it came; pixels of its luma to a reduced one (x, y); whether it shows the
    picture again that was before it; and what gives the flow from that to it, and back.
    """

    seconds: float
    scale: tuple[float, float]
    again: bool = False
    pair: Callable[[], _Pair | None] = lambda: None


class _Eye:
    """One stream's frames as they come, each beside the picture before it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: tuple[NDArray[np.uint8], tuple[float, float]] | None = None
        self._shown = 0

    def see(self, frame: Frame, helpers: Helpers) -> _Seen:
        """The next frame; who matches it is begun with."""
        small, scale = now = reduced(frame, most=self._most)
        last, seconds = self._last, frame.time_seconds
        if last is not None and same_picture(last[0], small):
            self._shown += 1
            return _Seen(seconds, scale, again=True)
        frozen = self._shown > _MOST_SHOWN
        self._last, self._shown = now, 1
        if last is None or frozen or last[0].shape != small.shape or last[1] != scale:
            return _Seen(seconds, scale)
        return _Seen(seconds, scale, pair=helpers.begin(partial(match, last[0], small)))


@dataclass
class _Picture:
    """A distinct picture: when it came, and pixels of luma to a reduced one (x, y)."""

    seconds: float
    scale: tuple[float, float]
    shown: int = 1
    entries: list[_Waiting] = field(default_factory=list)
    back: Flow | None = None
    back_seconds: float = 0.0
    movement: Movement | None = None
    settled: bool = False


class _Track:
    """One stream's pictures, one after the other."""

    def __init__(self, look_ahead: bool) -> None:
        self._look_ahead = look_ahead
        self._current: _Picture | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # intervals, times shown
        self._shot = 0

    def add(self, entry: _Waiting, seen: _Seen) -> None:
        """The next frame; settles what it lets be known."""
        before = self._current
        if before is not None and seen.again:
            before.shown += 1
            if before.settled:
                entry.settle(before.movement)
                return
            before.entries.append(entry)
            if before.shown > _MOST_SHOWN:
                self.settle()
            return
        now = _Picture(seen.seconds, seen.scale, entries=[entry])
        if before is not None:
            self._meet(before, now, seen.pair())
        self._current = now
        if not self._look_ahead:
            self.settle()

    def settle(self) -> None:
        """No neighbour is waited for any more."""
        if self._current is not None and not self._current.settled:
            self._give(self._current, None, 0.0)

    def _meet(self, before: _Picture, now: _Picture, pair: _Pair | None) -> None:
        if pair is None:
            self.settle()
            if before.shown <= _MOST_SHOWN:
                self._recent.clear()
                self._shot += 1
            return
        seconds = self._interval(now.seconds - before.seconds, before.shown)
        now.back, now.back_seconds = pair[1], seconds
        if not before.settled:
            self._give(before, pair[0], seconds)

    def _interval(self, seconds: float, shown: int) -> float:
        """How long it was from one picture to the next, as far as their times tell."""
        usual = self._usual()
        if seconds <= 0:
            return usual or 1 / 30
        self._recent.append((seconds, shown))
        if not self._look_ahead and usual:
            # A network's times of arrival jitter: a whole number of the usual intervals.
            return max(1, round(seconds / usual)) * usual * 0.8 + 0.2 * seconds
        return self._usual() if self._pulled_down() else seconds

    def _pulled_down(self) -> bool:
        """Whether pictures are shown in turn once and twice, or thrice, as 24 frames/s are in 30 or
        60: they were taken evenly, but are not shown so.
        """
        often = [shown for _, shown in self._recent]
        return max(often, default=1) > 1 and max(often) - min(often) <= 1

    def _usual(self) -> float:
        """Seconds from one picture to the next, 0 if that is not known yet."""
        if not self._recent:
            return 0.0
        seconds = sorted(s for s, _ in self._recent)
        if self._pulled_down():
            return sum(seconds) / len(seconds)
        if self._look_ahead:
            return median(seconds)
        # Of live pictures some are left out: all are about a whole number of the usual interval.
        for usual in reversed(seconds[: (len(seconds) + 1) // 2]):
            counts = [max(1, round(s / usual)) for s in seconds]
            if all(abs(s / usual - n) < 0.4 for s, n in zip(seconds, counts, strict=True)):
                return median(s / n for s, n in zip(seconds, counts, strict=True))
        return median(seconds)

    def _give(self, picture: _Picture, ahead: Flow | None, seconds: float) -> None:
        back, back_seconds = picture.back, picture.back_seconds
        if ahead is not None or back is not None:
            known = [s for f, s in ((ahead, seconds), (back, back_seconds)) if f is not None]
            interval = min(self._usual() or known[0], sum(known) / len(known))
            values, trust = _combined(ahead, seconds, back, back_seconds)
            x, y = picture.scale
            values *= np.array([x, y, x, y], np.float32)[:, None, None]
            ways = (None if f is None else _in_pixels(f, picture.scale) for f in (ahead, back))
            picture.movement = Movement(values, trust, interval, self._shot, *ways)
        picture.settled = True
        for entry in picture.entries:
            entry.settle(picture.movement)
        picture.entries.clear()


def _in_pixels(flow: Flow, scale: tuple[float, float]) -> Floats:
    field: Floats = flow.field * np.array(scale, np.float32)[:, None, None]
    return field


def _combined(
    ahead: Flow | None, after: float, back: Flow | None, before: float
) -> tuple[Floats, Floats]:
    """Velocity and bend (4, h, w) in reduced pixels, and trust, of flows over so many seconds."""
    if ahead is None or back is None:
        one, sign_seconds = (ahead, after) if ahead is not None else (back, -before)
        assert one is not None
        velocity = one.field / np.float32(sign_seconds)
        return np.concatenate([velocity, np.zeros_like(velocity)]), one.trust
    there, here = ahead.field / np.float32(after), back.field / np.float32(-before)
    # Through three places runs one parabola; where one of them is hidden, a line.
    nearer = np.float32(before) * ahead.trust, np.float32(after) * back.trust
    velocity = (there * nearer[0] + here * nearer[1]) / (nearer[0] + nearer[1])
    both = np.minimum(ahead.trust, back.trust) / np.maximum(ahead.trust, back.trust)
    bend = (there - here) * both / np.float32(before + after)
    return np.concatenate([velocity, bend]), np.maximum(ahead.trust, back.trust)


def each_interval(ahead: Flow | None, back: Flow | None) -> Floats:
    """Chord and bend (4, h, w), in reduced pixels, of the time from one picture to the next, told
    by the flow to the next picture and to the one before; one of them may be None.
    """
    return _combined(ahead, 1.0, back, 1.0)[0]


# --- pictures -----------------------------------------------------------------------------------


def reduced(
    frame: Frame, *, most: int = _MOST_AREA
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """8-bit luma at 320 × 180 to 640 × 360 or so, a copy; how many pixels of luma one of it is wide
    and high.

    Of interlaced pictures the upper field's. most: pixels that it has at most, or so.
    """
    rows, layout = plane_rows(frame), frame.layout
    height, width = rows.shape
    area = layout.width * layout.height
    wanted = min(max(area / 4, _LEAST_AREA), most)
    ratio = max(1, round(math.sqrt(area / wanted)))
    down = max(1, ratio // 2) if layout.interlaced else ratio
    size = max(1, round(width / ratio)), max(1, round(height / down))
    if not rows.flags.c_contiguous and rows.strides[1] != rows.itemsize:
        rows = np.ascontiguousarray(rows)
    small = cv2.resize(rows, size, interpolation=cv2.INTER_AREA)
    if layout.depth > 8:
        small = cv2.convertScaleAbs(small, alpha=1 / (1 << (layout.depth - 8)))
    elif small is rows or np.shares_memory(small, rows):
        small = small.copy()
    return np.asarray(small, np.uint8), (layout.width / size[0], layout.height / size[1])


def plane_rows(frame: Frame) -> NDArray[Any]:
    """The plane that carries luma (of RGB, green), of interlaced pictures its upper field."""
    plane: NDArray[Any] = frame.planes[0]
    return plane[::2] if frame.layout.interlaced else plane


def same_picture(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> bool:
    """Whether two reduced pictures are one, shown twice: equal but for what coding does.

    Nowhere may they differ by more than a twelfth of a pixel's motion would make them.
    """
    if here.shape != there.shape:
        return False
    size = max(1, here.shape[1] // 8), max(1, here.shape[0] // 8)
    apart = cv2.resize(cv2.absdiff(here, there), size, interpolation=cv2.INTER_AREA)
    if apart.max() > 12:
        return False
    across = cv2.absdiff(here[:, 1:], here[:, :-1]) if here.shape[1] > 1 else here
    slope = cv2.resize(across, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return bool((apart <= 1 + slope / 12).all())


# --- matching -----------------------------------------------------------------------------------


def match(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> _Pair | None:
    """Flow from one reduced picture to another, and back; None where they show different scenes."""
    if min(here.shape) < _LEAST:
        return None
    contrasts = sorted(float(cv2.meanStdDev(picture)[1][0, 0]) for picture in (here, there))
    if contrasts[0] < 0.1 * contrasts[1] - 0.2:
        return None  # a scene and a blank
    there = _in_light_of(here, there)
    found = _both_ways(here, there, None)
    if found.share < _SURE:
        # Too far for DIS to find, or another scene.
        shift = _shift(here, there)
        moved = None if shift is None else _both_ways(here, there, shift)
        if moved is not None and moved.share > max(_SURE, found.share):
            found = moved
        elif found.share < _CUT or _likeness(here, there, found.forth) < _ALIKE:
            return None
    # Cuts are told by a strict measure; places are better weighed by a lenient one.
    return (
        _smoothed(found.forth, np.sqrt(np.sqrt(found.sure_forth))),
        _smoothed(found.back, np.sqrt(np.sqrt(found.sure_back))),
    )


@dataclass(frozen=True)
class _Found:
    """Flow forth and back, (h, w, 2) at half the size of the reduced pictures, in its own pixels,
    and how far the one returns to where the other came from, (h, w) in [0, 1].
    """

    forth: Floats
    back: Floats
    sure_forth: Floats
    sure_back: Floats

    @property
    def share(self) -> float:
        """Of the places that both pictures show, those which are found again on the way back.

        Between pictures of different scenes that is hardly any, whatever their light does.
        """
        height, width = self.forth.shape[:2]
        x, y = (float(np.median(self.forth[..., i] - self.back[..., i])) / 2 for i in (0, 1))
        overlap = max(1 - abs(x) / width, 0) * max(1 - abs(y) / height, 0)
        found = float(self.sure_forth.mean() + self.sure_back.mean()) / 2
        return found / overlap if overlap > 0.1 else 0.0


def _in_light_of(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`there` as light and as contrasted as `here` is, if a fade or a flash came between."""
    (mean, deviation), (other, others) = (
        (float(m[0, 0]), float(d[0, 0])) for m, d in (cv2.meanStdDev(p) for p in (here, there))
    )
    if abs(mean - other) < 3:
        return there
    gain = min(max((deviation + 1) / (others + 1), 1 / 3), 3.0)
    return np.asarray(cv2.convertScaleAbs(there, alpha=gain, beta=mean - gain * other), np.uint8)


def _both_ways(
    here: NDArray[np.uint8], there: NDArray[np.uint8], shift: tuple[float, float] | None
) -> _Found:
    library: Any = cv2  # whose types lack this
    dis = library.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # Down to half the size instead of a quarter: what lies beside is brought here by it, and a
    # pixel off is a faint double edge. Fewer refinements than the preset's 5 do as well.
    dis.setFinestScale(1)
    dis.setVariationalRefinementIterations(2)
    start = None if shift is None else np.full((*here.shape, 2), shift, np.float32)
    ahead = dis.calc(here, there, start)
    # Where all has gone far, the way back is looked for there too, on its own.
    start = None if shift is None else np.full((*here.shape, 2), (-shift[0], -shift[1]), np.float32)
    forth, back = (_halved(flow) for flow in (ahead, dis.calc(there, here, start)))
    return _Found(forth, back, _returns(forth, back), _returns(back, forth))


def _halved(flow: Floats) -> Floats:
    half = (flow.shape[1] + 1) // 2, (flow.shape[0] + 1) // 2
    return np.asarray(cv2.resize(flow, half, interpolation=cv2.INTER_AREA) * np.float32(0.5))


def _shift(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> tuple[float, float] | None:
    """How far the whole picture went, in pixels, by phase correlation; None if it did not."""
    size = max(here.shape[1] // 2, 1), max(here.shape[0] // 2, 1)
    a, b = (
        cv2.resize(p, size, interpolation=cv2.INTER_AREA).astype(np.float32) for p in (here, there)
    )
    (x, y), _ = cv2.phaseCorrelate(a, b, cv2.createHanningWindow(size, cv2.CV_32F))
    if not (math.isfinite(x) and math.isfinite(y)) or abs(x) + abs(y) < 8:
        return None
    return 2 * x, 2 * y


def _places(flow: Floats) -> tuple[Floats, Floats]:
    height, width = flow.shape[:2]
    x = np.asarray(flow[..., 0] + np.arange(width), np.float32)
    y = np.asarray(flow[..., 1] + np.arange(height)[:, None], np.float32)
    return x, y


def _returns(flow: Floats, back: Floats) -> Floats:
    """1 where the way back ends where the flow began, down to 0; 0 where it leaves the picture.

    The tolerance is that of N. Sundaram et al., ECCV 2010, equation 5, in reduced pixels.
    """
    x, y = _places(flow)
    there = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = flow + there
    error = apart[..., 0] ** 2 + apart[..., 1] ** 2
    length = flow[..., 0] ** 2 + flow[..., 1] ** 2
    inside = (x >= 0) & (y >= 0) & (x <= flow.shape[1] - 1) & (y <= flow.shape[0] - 1)
    return np.asarray(inside * np.exp(-error / (0.02 * length + 0.125)), np.float32)


def _likeness(here: NDArray[np.uint8], there: NDArray[np.uint8], flow: Floats) -> float:
    """Correlation, −1 … 1, of the detail of `here` with that of `there` brought to its places.

    Light that changes does not count. Where there is no detail but grain, it is about 0.
    """
    x, y = _places(flow)
    size = flow.shape[1], flow.shape[0]
    a, b = (
        np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA), np.float32)
        for p in (here, there)
    )
    b = np.asarray(
        cv2.remap(b, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )
    inside = (x >= 0) & (y >= 0) & (x <= size[0] - 1) & (y <= size[1] - 1)
    if not inside.any():
        return 0.0
    a, b = ((p - cv2.GaussianBlur(p, (0, 0), 3))[inside] for p in (a, b))
    return float(np.dot(a, b) / np.sqrt((np.dot(a, a) + a.size) * (np.dot(b, b) + a.size)))


def _smoothed(flow: Floats, sure: Floats) -> Flow:
    """The flow on the field's grid, in reduced pixels; unsure places are filled from sure ones."""
    size = max(1, round(flow.shape[1] * 2 / _STEP)), max(1, round(flow.shape[0] * 2 / _STEP))
    weighed = cv2.resize(
        cv2.merge([flow[..., 0] * sure, flow[..., 1] * sure, sure]),
        size,
        interpolation=cv2.INTER_AREA,
    )
    trust = np.maximum(weighed[..., 2], np.float32(1e-3))
    mixed = np.full(weighed.shape, 1e-12, np.float32)
    for sigma, share in _KERNELS:
        wide = cv2.GaussianBlur(weighed, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        mixed += np.float32(share) * np.asarray(wide, np.float32)
    field = (2 * mixed[..., :2] / mixed[..., 2:]).transpose(2, 0, 1)
    return Flow(np.ascontiguousarray(field), trust)
