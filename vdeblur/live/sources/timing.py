"""Times of live sources: on one line, on the clock of this machine, and how long to wait.

Knows no libav and no threads of its own.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any


@dataclass
class Timeline:
    """Source times → seconds on one line that neither jumps nor goes back.

    The source's own intervals are kept exactly; only where it jumps (a clock set, a counter wrapped
    round, another connection) is the line carried on by the time that really passed. Sound and
    picture of a connection share one offset. jumps: how often it had to.
    """

    jumps: int = 0
    _offset: Fraction | None = None
    _end: Fraction = Fraction(0)
    _end_at: float = 0.0
    _streams: dict[str, tuple[Fraction, Fraction, float]] = field(default_factory=dict)

    #: Seconds that a stream may go back, and forward beyond the time that passed, by itself.
    BACK, FORWARD = Fraction(1, 2), 2.0

    def begin(self) -> None:
        """Another connection: its times have nothing to do with those before."""
        self._streams.clear()
        self._offset = None

    def place(self, stream: str, at: Fraction, now: float) -> Fraction:
        """Seconds on the line of source time `at` (seconds), which arrived at monotonic `now`."""
        known = self._streams.get(stream)
        started = self._end_at > 0
        expected = self._end + Fraction(max(0.0, now - self._end_at)) if started else Fraction(0)
        if known is not None:
            last, offset, last_at = known
            step = at - last
            if -self.BACK <= step <= self.FORWARD + (now - last_at):
                return self._moved(stream, at, offset, now)
        # The other stream may have made the same jump already.
        if self._offset is not None and abs(at + self._offset - expected) < self.FORWARD:
            return self._moved(stream, at, self._offset, now)
        if known is not None:
            self.jumps += 1
        self._offset = expected - at
        return self._moved(stream, at, self._offset, now)

    def _moved(self, stream: str, at: Fraction, offset: Fraction, now: float) -> Fraction:
        self._streams[stream] = (at, offset, now)
        placed = at + offset
        if placed > self._end or self._end_at == 0:
            self._end, self._end_at = placed, now
        return placed


class Clock:
    """When a time of the line was, on the monotonic clock, if nothing had been in its way.

    The quickest arrivals of the last half minute tell; slower ones were held up, and are that late
    already. So latency counts from the moment the source could have been here.
    """

    WINDOW = 15.0  # seconds; two of them are looked at

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Another connection, another delay."""
        self._best = self._earlier = float("inf")
        self._since = 0.0

    def captured(self, seconds: float, now: float) -> float:
        """The monotonic time of line time `seconds`, which arrived at `now`; never after it."""
        if now - self._since > self.WINDOW:
            self._earlier, self._best, self._since = self._best, float("inf"), now
        self._best = min(self._best, now - seconds)
        return seconds + min(self._best, self._earlier)


class Backoff:
    """Seconds to wait before try 1, 2, …: a third as much again up to `cap`, and shaken, so that
    many do not come back at once."""

    def __init__(self, first: float = 0.5, cap: float = 30.0) -> None:
        self.first, self.cap, self.tries = first, cap, 0

    def next(self, *, slow: bool = False) -> float:
        """The next wait; slow: at once the longest, as for a refused password."""
        self.tries += 1
        full = self.cap if slow else min(self.cap, self.first * 1.3 ** min(self.tries - 1, 64))
        return full * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self.tries = 0


@dataclass
class Held:
    """A decoded picture on its way to the taker. rate: frames a second, where it is another."""

    picture: Any
    seconds: Fraction
    arrived: float
    decoding: float
    rate: float


class Backlog:
    """The first pictures of a connection: libav has read ahead while it looked at the streams, and
    servers begin with the last seconds. How old they are shows only when the first one comes that
    had to be waited for; given on at once, they would be taken for new ones, and be late for ever.

    held: what is not older than the newest by `limit` seconds; left_out: how many were.
    """

    #: Seconds after which it has to be over.
    LONGEST = 3.0
    #: Pictures at most.
    MOST = 256

    def __init__(self, limit: float) -> None:
        self.held: deque[Held] = deque()
        self.left_out = 0
        self.steps: list[float] = []  # seconds between pictures; not more than LONGEST brings
        self._limit = limit
        self._began: float | None = None

    def add(self, held: Held) -> bool:
        """One more; True when it was waited for, so that there is no more backlog."""
        before = self.held[-1] if self.held else None
        self.held.append(held)
        while held.seconds - self.held[0].seconds > self._limit or len(self.held) > self.MOST:
            self.held.popleft()
            self.left_out += 1
        if before is None or self._began is None:
            self._began = held.arrived
            return False
        step, waited = float(held.seconds - before.seconds), held.arrived - before.arrived
        self.steps.append(step)
        return waited > step / 2 or held.arrived - self._began > self.LONGEST


class Rate:
    """The rate that frames really have, told when it is not what it was, or what was stated.

    usual: seconds between frames, as they are stated.
    """

    def __init__(self, usual: float) -> None:
        self._steps: list[float] = []
        self._last: float | None = None
        self._usual = usual

    def of(self, seconds: float) -> float:
        """Frames a second once they have changed by half or more for 25 frames; else 0."""
        if self._last is not None:
            self._steps.append(seconds - self._last)
        self._last = seconds
        return self._told() if len(self._steps) >= 25 else 0.0

    def begin(self, steps: list[float]) -> float:
        """The same, of what shows before anything was told; of a few steps nothing does."""
        if len(steps) < 5:
            return 0.0
        self._steps = list(steps)
        return self._told()

    def _told(self) -> float:
        middle = sorted(self._steps)[len(self._steps) // 2] if self._steps else 0.0
        self._steps.clear()
        if middle > 0 and not 2 / 3 < middle / self._usual < 3 / 2:
            self._usual = middle
            return 1 / middle
        return 0.0


class Pacer:
    """Holds back what comes faster than it happened; what comes late is not hurried."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._start = stop, float("-inf")

    def wait(self, seconds: Fraction) -> float:
        """Until line time `seconds` is due; the monotonic time it was due at."""
        now = time.monotonic()
        due = self._start + float(seconds)
        if due < now - 0.05:  # the first, or the source was held up
            self._start, due = now - float(seconds), now
        self._stop.wait(max(0.0, due - now))
        return max(due, now)

    def time_of(self, seconds: Fraction) -> float:
        """When that line time is due; now, before the first picture."""
        return max(self._start + float(seconds), time.monotonic())
