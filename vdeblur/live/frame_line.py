"""A queue of one camera's frames between receiving and encoding, which releases each on time.

Knows frames and threads; knows no libav and no torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vdeblur.frames import Frame, Plane

FrameState = Literal["new", "waiting", "working", "done", "pass"]
#: Seconds by which a frame leaves before its limit: threads do not wake to the millisecond.
_MARGIN = 0.01


@dataclass
class QueuedFrame:
    """A frame in flight. All times are in seconds of the monotonic clock.

    Attributes:
        frame: The frame as received.
        captured: When it was taken; latency counts from here.
        arrived: When it was received.
        state: "new" until its motion is known, then "waiting" for the network, "working" in it,
            and finally "done" (restored) or "pass" (untouched).
        ready: When the state became final.
        network: Seconds that the network took.
        restored: The restored planes, until `write_back`.
        level: The restorer's level that it was given to.
        shot: Changes with each connection and each jump of the source's times.
    """

    frame: Frame
    captured: float
    arrived: float
    state: FrameState = "waiting"
    ready: float = 0.0
    network: float = 0.0
    restored: tuple[Plane, ...] | None = None
    level: int = 0
    shot: int = 0


class LineEvent:
    """Base of the events that keep their place between frames, such as a change of format."""


class FrameLine:
    """The frames of one camera, in order.

    A frame leaves at its limit at the latest, restored or not. It leaves no earlier than the
    restored frames of the last seconds did, so that the picture moves evenly whichever frames the
    network took.

    Args:
        limit: Seconds from capture to the end of encoding.
        capacity: Frames held at most.
        clock: The monotonic clock.
        changed: Notified on every change; a `Scheduler` replaces it with its own.
        guided: If true, a frame goes to the network only after `seen`. The guide takes the newest
            frame (`unseen`); frames that it skips pass untouched.
    """

    def __init__(
        self,
        limit: float,
        *,
        capacity: int = 64,
        clock: Callable[[], float] = time.monotonic,
        changed: threading.Condition | None = None,
        guided: bool = False,
    ) -> None:
        self.limit, self.capacity, self.clock = limit, capacity, clock
        self.guided = guided
        self.changed = changed or threading.Condition()
        self.reserve = 0.02  # seconds that encoding takes, as measured
        self.offered = self.restored = self.passed = self.dropped = self.late = 0
        #: Set while waiting is pointless: the network is being tried out, or has failed.
        self.pass_all = False
        self._items: deque[QueuedFrame | LineEvent] = deque()
        self._frames = 0
        self._delays = _UsualDelay(3.0)
        self._closed = False

    def put(self, item: QueuedFrame | LineEvent) -> None:
        """Append an item; a full line drops its oldest frame."""
        with self.changed:
            if isinstance(item, QueuedFrame):
                self.offered += 1
                self._frames += 1
                if self.pass_all:
                    item.state, item.ready = "pass", self.clock()
                elif self.guided:
                    item.state = "new"
                if self._frames > self.capacity:
                    self._drop_oldest()
            elif len(self._items) > 4 * self.capacity + 64:
                return  # events alone, which nothing takes: do not grow
            self._items.append(item)
            self.changed.notify_all()

    def _drop_oldest(self) -> None:
        for index, item in enumerate(self._items):
            if isinstance(item, QueuedFrame):
                del self._items[index]
                item.state = "pass"
                self._frames -= 1
                self.dropped += 1
                return

    def due(self, frame: QueuedFrame) -> float:
        """Return when the frame has to leave the line to be encoded within the limit."""
        return frame.captured + max(0.0, self.limit - self.reserve - _MARGIN)

    def candidate(self) -> QueuedFrame | None:
        """Return the newest frame that may be restored, unless it was taken. Hold `changed`."""
        for item in reversed(self._items):
            if isinstance(item, QueuedFrame) and item.state != "new":
                return item if item.state == "waiting" else None
        return None

    def unseen(self, timeout: float) -> QueuedFrame | None:
        """Wait for the newest frame to be one that was not `seen`; None after `timeout` seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self._closed or self._newest_is_new(), timeout)
            return self._newest() if self._newest_is_new() else None

    def seen(self, frame: QueuedFrame) -> None:
        """Let the frame go to the network, unless it has left."""
        with self.changed:
            if frame.state == "new":
                frame.state = "waiting"
            self.changed.notify_all()

    def all_seen(self) -> None:
        """Let all frames go to the network as they come, from now on."""
        with self.changed:
            self.guided = False
            for item in self._items:
                if isinstance(item, QueuedFrame) and item.state == "new":
                    item.state = "waiting"
            self.changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the line takes no more frames."""
        return self._closed

    def _newest(self) -> QueuedFrame | None:
        return next((item for item in reversed(self._items) if isinstance(item, QueuedFrame)), None)

    def _newest_is_new(self) -> bool:
        newest = self._newest()
        return newest is not None and newest.state == "new"

    def pass_older(self, than: QueuedFrame) -> None:
        """Let the waiting frames before this one pass untouched. Hold `changed`."""
        for item in self._items:
            if item is than:
                return
            if isinstance(item, QueuedFrame) and item.state in ("new", "waiting"):
                item.state, item.ready = "pass", self.clock()

    def next(self, timeout: float = 0.5) -> QueuedFrame | LineEvent | None:
        """Wait for the next item to leave; None after `timeout` seconds, or at the end once closed.

        A late frame is dropped if another one follows.
        """
        give_up = self.clock() + timeout
        with self.changed:
            while True:
                now = self.clock()
                at = give_up
                if self._items:
                    item = self._items[0]
                    if isinstance(item, LineEvent):
                        self._items.popleft()
                        return item
                    at = self._leaves(item, now)
                    if at <= now:
                        self._items.popleft()
                        self._frames -= 1
                        if now > item.captured + self.limit and self._frames:
                            item.state = "pass"
                            self.dropped += 1
                            continue
                        self._leave(item)
                        return item
                elif self._closed:
                    return None
                if now >= give_up:
                    return None
                self.changed.wait(max(0.0005, min(at, give_up) - now))

    def _leaves(self, frame: QueuedFrame, now: float) -> float:
        """Return when a frame leaves if nothing changes."""
        due = self.due(frame)
        if self._closed or frame.state in ("new", "waiting", "working"):
            return due if not self._closed or frame.state == "working" else now
        return min(due, frame.captured + self._delays.value(now))

    def _leave(self, frame: QueuedFrame) -> None:
        if frame.state == "done":
            self.restored += 1
            self._delays.add(frame.ready - frame.captured + 0.002, self.clock())
        else:
            frame.state = "pass"  # its time is up: a result that comes now is too late
            self.passed += 1

    def left_out(self, count: int) -> None:
        """Count frames that were too old to be put."""
        with self.changed:
            self.offered += count
            self.dropped += count

    def encoded(self, seconds: float) -> None:
        """Report how many seconds a frame took from leaving the line to the sinks."""
        # Quickly up, slowly down: the slow cases count.
        rate = 0.3 if seconds > self.reserve else 0.02
        self.reserve = min(self.limit / 2, self.reserve + rate * (seconds - self.reserve))

    def close(self) -> None:
        """Take no more frames: `next` returns the rest without waiting, then None."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def forget(self) -> None:
        """Forget past delays, as for another connection."""
        with self.changed:
            self._delays = _UsualDelay(3.0)

    @property
    def depth(self) -> int:
        """Number of frames in the line."""
        return self._frames


class _UsualDelay:
    """The 90th percentile of the values of the last `window` seconds.

    Not the maximum: a single slow moment would delay every frame of the following seconds.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._values: deque[tuple[float, float]] = deque(maxlen=256)
        self._usual = 0.0

    def add(self, value: float, now: float) -> None:
        self._values.append((now, value))
        self._forget(now)

    def value(self, now: float) -> float:
        if self._values and now - self._values[0][0] > self._window:
            self._forget(now)
        return self._usual

    def _forget(self, now: float) -> None:
        while self._values and now - self._values[0][0] > self._window:
            self._values.popleft()
        values = sorted(value for _, value in self._values)
        self._usual = values[int(0.9 * (len(values) - 1))] if values else 0.0


def write_back(queued: QueuedFrame) -> None:
    """Copy the restored planes into the frame's own memory."""
    if queued.restored is not None:
        for target, plane in zip(queued.frame.planes, queued.restored, strict=True):
            np.copyto(target, plane, casting="unsafe")
        queued.restored = None
