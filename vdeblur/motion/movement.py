"""Follow the places of a film's pictures: flow to both neighbors, one frame ahead.

What moves between two frames moves while the shutter is open too. A picture that a film shows
several times is one picture. Two pictures are matched independently of all others
(`vdeblur.motion.flow`), so that threads can match several pairs at once. Knows no files and no
networks; how long the shutter was open is the business of `vdeblur.motion.meter`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.frames import Frame
from vdeblur.motion.flow import (
    LEAST_AREA,
    MOST_AREA,
    Floats,
    Flow,
    FlowPair,
    match_pictures,
    reduced,
    same_picture,
)
from vdeblur.system.thread_shares import Helpers

#: A picture shown more often than this is frozen: its frames no longer wait for the next one.
_MOST_SHOWN = 6
#: Items (frames of all streams, packets) and frames that may wait for a neighbor, which is then
#: given up.
_MOST_ITEMS = 256
_MOST_FRAMES = 16
_WINDOW = 8  # distinct pictures that the frame rate is measured over
#: A picture whose places bend by more than this share of their way plus these pixels, from one
#: picture to the next, turns faster than pictures follow each other (a vibration), or was matched
#: with another scene (a cut that was not recognized).
_BENT, _BENT_PIXELS = 0.3, 0.5


@dataclass(frozen=True)
class Movement:
    """The movement of the places of one picture around its time.

    Attributes:
        field: (4, h, w) float32. Velocity x and y in pixels of the luma plane per second, then bend
            x and y in pixels per second²: at t seconds from the picture's time, a place is at
            c + velocity·t + bend·t².
        trust: (h, w) float32 in [0, 1], confidence in the field.
        interval_seconds: usual time from one picture to the next.
        shot: number of the shot; rises by one at each cut.
        ahead: (2, h, w) float32, displacement x and y in pixels of the luma plane to the next
            picture; None if that does not show the same scene.
        back: the same to the picture before.
    """

    field: Floats
    trust: Floats
    interval_seconds: float
    shot: int = 0
    ahead: Floats | None = None
    back: Floats | None = None

    def during(self, seconds: float) -> Floats:
        """Return chord and bend, (4, h, w) as in `Frame.motion`, of an exposure of `seconds`."""
        scale = np.array([seconds, seconds, seconds**2, seconds**2], np.float32)
        moved: Floats = self.field * scale[:, None, None]
        return moved

    @cached_property
    def doubtful(self) -> bool:
        """Whether the picture turns too fast to be followed."""
        chord, bend = (
            float(np.median(np.hypot(*part)))
            for part in np.split(self.during(self.interval_seconds), 2)
        )
        return bend > _BENT * chord + _BENT_PIXELS


def follow(
    items: Iterable[Any], *, look_ahead: bool = True, helpers: Helpers | None = None
) -> Iterator[tuple[Any, Movement | None]]:
    """Yield items in their order, each with the movement of its picture.

    The movement is None for items that are no frames, and for frames without a neighbour that
    shows the same scene. A frame waits for the next one of its stream, a repeated frame for the
    next that differs. Only reduced copies of yielded frames are kept, so that the caller may write
    to their planes.

    Args:
        items: frames and other items of a reader, of any number of streams.
        look_ahead: False for live pictures: no frame waits, and each is compared with the one
            before it alone.
        helpers: threads that match up to `helpers.ahead` pictures ahead.
    """
    waiting: deque[_Waiting] = deque()
    tracks: dict[int, _Track] = {}
    frames = 0
    most = MOST_AREA if look_ahead else LEAST_AREA
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
    """Yield items in order, frames with what was seen of them; the frames ahead are matched."""
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


class LiveTracker:
    """Movement of one live stream: each picture is compared with the one before it at once."""

    def __init__(self) -> None:
        self._eye, self._track = _Eye(LEAST_AREA), _Track(look_ahead=False)

    def see(self, frame: Frame) -> Movement | None:
        """Return the movement of the next frame; None if nothing shows it."""
        entry = _Waiting(frame)
        self._track.add(entry, self._eye.see(frame, Helpers()))
        return entry.movement


class _Waiting:
    """An item that waits in its place for its movement."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.movement: Movement | None = None
        self.settled = not isinstance(item, Frame)

    def settle(self, movement: Movement | None) -> None:
        self.movement, self.settled = movement, True


@dataclass(frozen=True)
class _Seen:
    """A frame as its stream's `_Eye` sees it.

    scale: pixels of its luma plane per reduced pixel (x, y). again: it repeats the picture before
    it. pair: waits for the flow from the picture before to this one, and back.
    """

    seconds: float
    scale: tuple[float, float]
    again: bool = False
    pair: Callable[[], FlowPair | None] = lambda: None


class _Eye:
    """Compares the frames of one stream with the picture before them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last: tuple[NDArray[np.uint8], tuple[float, float]] | None = None
        self._shown = 0

    def see(self, frame: Frame, helpers: Helpers) -> _Seen:
        """Look at the next frame, and begin to match it."""
        small, scale = now = reduced(frame, most=self._most)
        last, seconds = self._last, frame.time_seconds
        if last is not None and same_picture(last[0], small):
            self._shown += 1
            return _Seen(seconds, scale, again=True)
        frozen = self._shown > _MOST_SHOWN
        self._last, self._shown = now, 1
        if last is None or frozen or last[0].shape != small.shape or last[1] != scale:
            return _Seen(seconds, scale)
        return _Seen(seconds, scale, pair=helpers.begin(partial(match_pictures, last[0], small)))


@dataclass
class _Picture:
    """A distinct picture; scale: pixels of its luma plane per reduced pixel (x, y)."""

    seconds: float
    scale: tuple[float, float]
    shown: int = 1
    entries: list[_Waiting] = field(default_factory=list)
    back: Flow | None = None
    back_seconds: float = 0.0
    movement: Movement | None = None
    settled: bool = False


class _Track:
    """The distinct pictures of one stream in turn."""

    def __init__(self, look_ahead: bool) -> None:
        self._look_ahead = look_ahead
        self._current: _Picture | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # intervals, times shown
        self._shot = 0

    def add(self, entry: _Waiting, seen: _Seen) -> None:
        """Add the next frame, and settle the entries whose movement it completes."""
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
        """Settle the current picture without its next neighbor."""
        if self._current is not None and not self._current.settled:
            self._give(self._current, None, 0.0)

    def _meet(self, before: _Picture, now: _Picture, pair: FlowPair | None) -> None:
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
        """Return the time between two pictures, by their timestamps and the usual interval."""
        usual = self._usual()
        if seconds <= 0:
            return usual or 1 / 30
        self._recent.append((seconds, shown))
        if not self._look_ahead and usual:
            # Arrival times jitter: they are near a whole number of the usual intervals.
            return max(1, round(seconds / usual)) * usual * 0.8 + 0.2 * seconds
        return self._usual() if self._pulled_down() else seconds

    def _pulled_down(self) -> bool:
        """Whether pictures alternate between being shown n and n + 1 times, as 24 frames/s do in
        30 or 60: they were taken evenly, but their timestamps are not even.
        """
        often = [shown for _, shown in self._recent]
        return max(often, default=1) > 1 and max(often) - min(often) <= 1

    def _usual(self) -> float:
        """Return the usual time from one picture to the next in seconds, 0 while unknown."""
        if not self._recent:
            return 0.0
        seconds = sorted(s for s, _ in self._recent)
        if self._pulled_down():
            return sum(seconds) / len(seconds)
        if self._look_ahead:
            return median(seconds)
        # Live pictures are dropped at times: intervals are near multiples of the usual one.
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
    """Return velocity and bend (4, h, w) in reduced pixels, and trust (h, w).

    after, before: seconds that the flows ahead and back span.
    """
    if ahead is None or back is None:
        one, sign_seconds = (ahead, after) if ahead is not None else (back, -before)
        assert one is not None
        velocity = one.field / np.float32(sign_seconds)
        return np.concatenate([velocity, np.zeros_like(velocity)]), one.trust
    there, here = ahead.field / np.float32(after), back.field / np.float32(-before)
    # A parabola through three places; a line where one of them is hidden.
    nearer = np.float32(before) * ahead.trust, np.float32(after) * back.trust
    velocity = (there * nearer[0] + here * nearer[1]) / (nearer[0] + nearer[1])
    both = np.minimum(ahead.trust, back.trust) / np.maximum(ahead.trust, back.trust)
    bend = (there - here) * both / np.float32(before + after)
    return np.concatenate([velocity, bend]), np.maximum(ahead.trust, back.trust)


def each_interval(ahead: Flow | None, back: Flow | None) -> Floats:
    """Return chord and bend (4, h, w), in reduced pixels, over one interval between pictures.

    Args:
        ahead: flow to the next picture.
        back: flow to the picture before. One of both may be None.
    """
    return _combined(ahead, 1.0, back, 1.0)[0]
