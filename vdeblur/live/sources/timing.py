"""Times of live sources: on one line, on this machine's clock, and between tries.

Knows no libav and starts no threads.
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
    """Puts source times on one line, in seconds, that neither jumps nor goes back.

    The source's own intervals are kept exactly. Only where they jump (a clock was set, a counter
    wrapped around, the connection is another), the line goes on by the time that has really passed.
    Sound and picture of a connection share one offset.

    Attributes:
        jumps: Number of jumps within connections.
    """

    jumps: int = 0
    _offset: Fraction | None = None
    _end: Fraction = Fraction(0)
    _end_at: float = 0.0
    _streams: dict[str, tuple[Fraction, Fraction, float]] = field(default_factory=dict)
    _steps: dict[str, Fraction] = field(default_factory=dict)

    #: Seconds that a stream may go back, and forward beyond the time that has passed.
    BACK, FORWARD = Fraction(1, 2), 2.0

    def begin(self) -> None:
        """Begin another connection, whose times are unrelated to those before."""
        self._streams.clear()
        self._offset = None

    def place(self, stream: str, at: Fraction, now: float) -> Fraction:
        """Return the seconds on the line of source time `at`, which arrived at monotonic `now`.

        Args:
            stream: "picture" or "sound".
            at: Seconds.
            now: Seconds.
        """
        known = self._streams.get(stream)
        started = self._end_at > 0
        expected = self._end + Fraction(max(0.0, now - self._end_at)) if started else Fraction(0)
        if known is not None:
            last, offset, last_at = known
            step = at - last
            usual = self._steps.get(stream, Fraction(0))
            if 0 < step < self.BACK:
                self._steps[stream] = step
            if -self.BACK <= step <= self.FORWARD + (now - last_at):
                return self._moved(stream, at, offset, now)
        # The other stream may have made the same jump already.
        if self._offset is not None and abs(at + self._offset - expected) < self.FORWARD:
            return self._moved(stream, at, self._offset, now)
        if known is not None:
            self.jumps += 1
            # What arrives together with the last one does not fall upon it.
            expected = max(expected, last + offset + usual)
        self._offset = expected - at
        return self._moved(stream, at, self._offset, now)

    def _moved(self, stream: str, at: Fraction, offset: Fraction, now: float) -> Fraction:
        self._streams[stream] = (at, offset, now)
        placed = at + offset
        if placed > self._end or self._end_at == 0:
            self._end, self._end_at = placed, now
        return placed


class Clock:
    """Maps times of the line to the monotonic clock: when they would arrive without any delay.

    The fastest arrivals of the last half minute define it; slower ones are late by the difference.
    So latency counts from the moment at which the picture could have been here.
    """

    WINDOW = 15.0  # seconds; two windows count

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the past, for another connection with another delay."""
        self._best = self._earlier = float("inf")
        self._since = 0.0

    def captured(self, seconds: float, now: float) -> float:
        """Return the monotonic time of line time `seconds`, which arrived at `now`; never later."""
        if now - self._since > self.WINDOW:
            self._earlier, self._best, self._since = self._best, float("inf"), now
        self._best = min(self._best, now - seconds)
        return seconds + min(self._best, self._earlier)


class Backoff:
    """Seconds to wait before try 1, 2, …: each a third longer, up to a cap, with random jitter.

    The jitter keeps many clients from coming back at once.

    Args:
        first: Seconds of the first wait, at most.
        cap: Seconds of the longest wait.
    """

    def __init__(self, first: float = 0.5, cap: float = 30.0) -> None:
        self.first, self.cap, self.tries = first, cap, 0

    def next(self, *, slow: bool = False) -> float:
        """Return the next wait; `slow` takes the longest at once, as for a refused password."""
        self.tries += 1
        full = self.cap if slow else min(self.cap, self.first * 1.3 ** min(self.tries - 1, 64))
        return full * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over, after a success."""
        self.tries = 0


@dataclass
class Held:
    """A decoded picture on its way to the taker.

    Attributes:
        picture: As decoded.
        seconds: On the session's line.
        arrived: Monotonic seconds.
        decoding: Seconds that decoding took.
        rate: Frames per second, if found to have changed; else 0.
    """

    picture: Any
    seconds: Fraction
    arrived: float
    decoding: float
    rate: float


class Backlog:
    """The first pictures of a connection, which may be old.

    libav reads ahead while it analyzes the streams, and servers begin with the last seconds. How
    old these pictures are is unknown until one comes that had to be waited for. Passed on earlier,
    they would be taken for new, and everything after them would be late for good.

    Args:
        limit: Seconds that a picture may be older than the newest.

    Attributes:
        held: The pictures within the limit.
        left_out: Number of pictures that were older.
        steps: Seconds between the pictures.
    """

    #: Seconds after which it ends in any case.
    LONGEST = 3.0
    #: Pictures held at most.
    MOST = 256

    def __init__(self, limit: float) -> None:
        self.held: deque[Held] = deque()
        self.left_out = 0
        self.steps: list[float] = []  # bounded, since it ends after LONGEST seconds
        self._limit = limit
        self._began: float | None = None

    def add(self, held: Held) -> bool:
        """Add a picture; return True if it had to be waited for, which ends the backlog."""
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
    """Measures the frame rate, and reports it when it is not the stated or the previous one.

    Args:
        usual: Seconds between frames, as stated by the stream.
    """

    def __init__(self, usual: float) -> None:
        self._steps: list[float] = []
        self._last: float | None = None
        self._usual = usual

    def of(self, seconds: float) -> float:
        """Return the frames per second if the rate has changed by half for 25 frames; else 0."""
        if self._last is not None:
            self._steps.append(seconds - self._last)
        self._last = seconds
        return self._change() if len(self._steps) >= 25 else 0.0

    def begin(self, steps: list[float]) -> float:
        """Return the same from the first intervals of a connection; 0 if they are few."""
        if len(steps) < 5:
            return 0.0
        self._steps = list(steps)
        return self._change()

    def _change(self) -> float:
        middle = sorted(self._steps)[len(self._steps) // 2] if self._steps else 0.0
        self._steps.clear()
        if middle > 0 and not 2 / 3 < middle / self._usual < 3 / 2:
            self._usual = middle
            return 1 / middle
        return 0.0


class Pacer:
    """Delays pictures that come faster than real time; late ones are not caught up with."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._start = stop, float("-inf")

    def wait(self, seconds: Fraction) -> float:
        """Wait until line time `seconds` is due; return the monotonic time at which it was."""
        now = time.monotonic()
        due = self._start + float(seconds)
        if due < now - 0.05:  # the first picture, or the source was held up
            self._start, due = now - float(seconds), now
        self._stop.wait(max(0.0, due - now))
        return max(due, now)

    def time_of(self, seconds: Fraction) -> float:
        """Return when a line time is due; now, before the first picture."""
        return max(self._start + float(seconds), time.monotonic())
