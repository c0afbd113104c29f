"""Which frames go through the network, which pass untouched, and which are dropped.

A `Line` holds the frames of one camera between receiving and encoding, in order, each with the
moment by which it has to be on its way. A `Scheduler` runs one network for one or several lines:
when it is free it takes the newest frame of each; older ones that wait pass as they are. Knows
frames and threads; knows no libav and no torch: what restores is a `Restorer`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

import numpy as np

from vdeblur.frames import Frame, Plane

State = Literal["new", "waiting", "working", "done", "pass"]
#: Seconds that a frame leaves before its limit: threads do not wake to the millisecond.
_MARGIN = 0.01


class Restorer(Protocol):
    """A network, and smaller ways to run it."""

    @property
    def levels(self) -> Sequence[str]:
        """Names of the ways, the asked-for one first, then what `--degrade` allows."""

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        """Restore frames of one layout in place; True for each whose source was kept instead."""


class Guide(Protocol):
    """What tells one camera's frames how their places move, each from those before it alone."""

    #: Seconds that the shutter is open, as it shows or was asked for; None: not known.
    exposure_seconds: float | None

    def see(self, frame: Frame) -> None:
        """Set the next frame's `motion`, and what is `around` it; frames may be left out."""

    def forget(self) -> None:
        """What comes next is another scene, or has another clock."""

    def close(self) -> None:
        """No more frames come."""


@dataclass
class Picture:
    """A frame on its way. captured, arrived, ready: monotonic seconds; network: seconds it took.

    shot: another number is another connection, or comes after a jump of the source's times.
    """

    frame: Frame
    captured: float
    arrived: float
    state: State = "waiting"
    ready: float = 0.0
    network: float = 0.0
    restored: tuple[Plane, ...] | None = None
    level: int = 0
    shot: int = 0


@dataclass
class Notice:
    """Something that stands between frames, in its place: a format, an outage, sound."""

    name: str
    payload: Any = None


class Line:
    """The frames of one camera, in order, at most `capacity` of them.

    limit: seconds from capture to the end of encoding. A frame leaves at the latest when its limit
    is reached, restored or not; at the earliest as late as the restored ones of the last seconds
    were, so that the picture goes evenly, whichever frames the network took.

    guided: a frame goes to the network only when `seen` has been said of it. Whoever says that
    takes the newest too; what it leaves out passes.
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
        self.reserve = 0.02  # seconds that encoding takes, as it shows
        self.offered = self.restored = self.passed = self.dropped = self.late = 0
        #: Set while nothing can come of waiting: the network is trying itself out, or has failed.
        self.pass_all = False
        self._items: deque[Picture | Notice] = deque()
        self._pictures = 0
        self._delays = _Usual(3.0)
        self._closed = False

    def put(self, item: Picture | Notice) -> None:
        """Append. Where the line is full, its oldest frame is dropped: the newest wins."""
        with self.changed:
            if isinstance(item, Picture):
                self.offered += 1
                self._pictures += 1
                if self.pass_all:
                    item.state, item.ready = "pass", self.clock()
                elif self.guided:
                    item.state = "new"
                if self._pictures > self.capacity:
                    self._drop_oldest()
            elif len(self._items) > 4 * self.capacity + 64:
                return  # sound without pictures to carry it; `offered` shows that there are none
            self._items.append(item)
            self.changed.notify_all()

    def _drop_oldest(self) -> None:
        for index, item in enumerate(self._items):
            if isinstance(item, Picture):
                del self._items[index]
                item.state = "pass"
                self._pictures -= 1
                self.dropped += 1
                return

    def due(self, picture: Picture) -> float:
        """When the picture has to leave the line, so that it is encoded within the limit."""
        return picture.captured + max(0.0, self.limit - self.reserve - _MARGIN)

    def candidate(self) -> Picture | None:
        """The newest frame that can, if it has not been given to the network. Hold `changed`."""
        for item in reversed(self._items):
            if isinstance(item, Picture) and item.state != "new":
                return item if item.state == "waiting" else None
        return None

    def unseen(self, timeout: float) -> Picture | None:
        """The newest frame, if it was not `seen`; None after `timeout` seconds without."""
        with self.changed:
            self.changed.wait_for(lambda: self._closed or self._newest_is_new(), timeout)
            return self._newest() if self._newest_is_new() else None

    def seen(self, picture: Picture) -> None:
        """The frame may go to the network, if it has not left."""
        with self.changed:
            if picture.state == "new":
                picture.state = "waiting"
            self.changed.notify_all()

    def all_seen(self) -> None:
        """From now on frames go to the network as they come."""
        with self.changed:
            self.guided = False
            for item in self._items:
                if isinstance(item, Picture) and item.state == "new":
                    item.state = "waiting"
            self.changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether no more frames come."""
        return self._closed

    def _newest(self) -> Picture | None:
        return next((item for item in reversed(self._items) if isinstance(item, Picture)), None)

    def _newest_is_new(self) -> bool:
        newest = self._newest()
        return newest is not None and newest.state == "new"

    def pass_older(self, than: Picture) -> None:
        """Frames that wait before this one pass untouched. Hold `changed`."""
        for item in self._items:
            if item is than:
                return
            if isinstance(item, Picture) and item.state in ("new", "waiting"):
                item.state, item.ready = "pass", self.clock()

    def next(self, timeout: float = 0.5) -> Picture | Notice | None:
        """The next item when it is to leave; None after `timeout` seconds without, or when closed.

        A frame that is late already is dropped if another one follows it.
        """
        give_up = self.clock() + timeout
        with self.changed:
            while True:
                now = self.clock()
                at = give_up
                if self._items:
                    item = self._items[0]
                    if isinstance(item, Notice):
                        self._items.popleft()
                        return item
                    at = self._leaves(item, now)
                    if at <= now:
                        self._items.popleft()
                        self._pictures -= 1
                        if now > item.captured + self.limit and self._pictures:
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

    def _leaves(self, picture: Picture, now: float) -> float:
        """When a frame leaves, as things stand."""
        due = self.due(picture)
        if self._closed or picture.state in ("new", "waiting", "working"):
            return due if not self._closed or picture.state == "working" else now
        return min(due, picture.captured + self._delays.value(now))

    def _leave(self, picture: Picture) -> None:
        if picture.state == "done":
            self.restored += 1
            self._delays.add(picture.ready - picture.captured + 0.002, self.clock())
        else:
            picture.state = "pass"  # its time is up: a result that comes now is not for it
            self.passed += 1

    def left_out(self, count: int) -> None:
        """Frames that were too old to be put."""
        with self.changed:
            self.offered += count
            self.dropped += count

    def encoded(self, seconds: float) -> None:
        """Tell how long a frame took from leaving the line to the sinks."""
        # Quickly up, slowly down: what matters is how long it may take.
        rate = 0.3 if seconds > self.reserve else 0.02
        self.reserve = min(self.limit / 2, self.reserve + rate * (seconds - self.reserve))

    def close(self) -> None:
        """No more frames: `next` gives what is there, without waiting, then None."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def forget(self) -> None:
        """Another connection: its delays are its own."""
        with self.changed:
            self._delays = _Usual(3.0)

    @property
    def depth(self) -> int:
        """Frames in the line now."""
        return self._pictures


class _Usual:
    """The value below which nine in ten of the last `window` seconds lie.

    Not the highest: one slow moment would hold back every frame of the seconds after it.
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


@dataclass
class _Cost:
    """What a call of the network takes, as it shows."""

    seconds: float = 0.0
    calls: int = 0

    def add(self, seconds: float) -> None:
        self.calls += 1
        if self.calls <= 2:  # the first calls prepare: they say little
            self.seconds = seconds
        else:
            self.seconds += (0.5 if seconds > self.seconds else 0.2) * (seconds - self.seconds)


@dataclass
class Scheduler:
    """Runs the restorer on the newest frames of the lines, in a thread of its own.

    together: frames of several cameras with the same layout go through the network in one batch.
    degrade: it may go on to the restorer's further levels when fewer than half of the frames get
    through, and comes back when there is room. on_event(name, **facts) tells of that.
    """

    restorer: Restorer
    lines: Sequence[Line]
    together: bool = False
    degrade: bool = False
    on_event: Callable[..., None] = lambda name, **facts: None
    clock: Callable[[], float] = time.monotonic
    changed: threading.Condition = field(default_factory=threading.Condition)
    window: float = 2.0  # seconds over which the share of restored frames is judged

    def __post_init__(self) -> None:
        for line in self.lines:
            line.changed = self.changed
        self.level, self.late, self.calls, self.replaced = 0, 0, 0, 0
        self.busy_seconds = 0.0
        self.error: BaseException | None = None
        self._costs: dict[tuple[int, Any, int], _Cost] = {}
        self._next_probe = 0.0
        self._turn = 0
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._judged = (self.clock(), 0, 0, 0.0)
        self._poor = 0
        self._up_after, self._up_wait = 0.0, 30.0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the call under way."""
        with self.changed:
            self._stop = True
            self.changed.notify_all()

    def join(self, patience: float) -> bool:
        """Wait for the thread; False if a call is still under way."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def seconds_a_call(self) -> float:
        """What the present level's calls take, as they show; 0 before the first."""
        costs = [c.seconds for (level, _, _), c in self._costs.items() if level == self.level]
        return max(costs, default=0.0)

    def _run(self) -> None:
        try:
            while True:
                with self.changed:
                    chosen = None
                    while not self._stop and (chosen := self._choose()) is None:
                        self.changed.wait(0.1)
                        self._judge()
                    if self._stop or chosen is None:
                        return
                    pictures, held = chosen
                self._restore(pictures, held)
                with self.changed:
                    self._judge()
        except BaseException as error:
            # Without a network the picture goes on, untouched; the session says why.
            self.error = error
            self._pass_all(True)
            self.on_event("network_failed", reason=str(error))

    def _choose(self) -> tuple[list[tuple[Line, Picture]], bool] | None:
        """Frames for the next call, and whether they are held for its result."""
        now = self.clock()
        order = [*self.lines[self._turn :], *self.lines[: self._turn]]
        found = [(line, p) for line in order if (p := line.candidate()) is not None]
        if not found:
            return None
        first = found[0][1]
        same = [(li, p) for li, p in found if p.frame.layout == first.frame.layout]
        pictures = same if self.together else same[:1]
        cost = self._cost(first, len(pictures))
        fits = [
            (line, p)
            for line, p in pictures
            if cost.calls and now + cost.seconds * 1.15 <= line.due(p)
        ]
        if fits:
            self._turn = (list(self.lines).index(fits[0][0]) + 1) % len(self.lines)
            for line, picture in fits:
                line.pass_older(picture)
                picture.state, picture.level = "working", self.level
            return fits, True
        # No frame would be back in time: they pass. Now and then one is tried, beside them.
        for line, picture in pictures:
            line.pass_older(picture)
            picture.state, picture.ready = "pass", now
        self.changed.notify_all()
        if now < self._next_probe:
            return None
        self._turn = (self._turn + 1) % len(self.lines)
        return pictures, False

    def _cost(self, picture: Picture, count: int) -> _Cost:
        return self._costs.setdefault((self.level, picture.frame.layout, count), _Cost())

    def _restore(self, pictures: list[tuple[Line, Picture]], held: bool) -> None:
        level = self.level
        cost = self._cost(pictures[0][1], len(pictures))
        if len(self._costs) > 64:  # a stream that changes its size all the time
            self._costs = {k: v for k, v in self._costs.items() if v is cost}
        began = self.clock()
        # Copies: the picture itself may leave untouched while the network is at work.
        frames = [
            replace(p.frame, planes=tuple(_copied(plane) for plane in p.frame.planes), carrier=None)
            for _, p in pictures
        ]
        for _, p in pictures:
            p.frame.around = None  # for the network's copy alone, not while it waits to be written
        self._pass_all(not held)
        kept = self.restorer.restore(frames, level)
        self._pass_all(False)
        with self.changed:
            now = self.clock()
            took = now - began
            cost.add(took)
            self.calls += 1
            self.busy_seconds += took
            self.replaced += sum(kept)
            if held:
                for (line, picture), frame in zip(pictures, frames, strict=True):
                    if picture.state == "working":
                        picture.restored, picture.state = frame.planes, "done"
                        picture.ready, picture.network = now, took
                    else:
                        line.late += 1
                        self.late += 1
            else:
                self._next_probe = now + (0.0 if cost.calls < 3 else max(1.0, 10 * took))
            self.changed.notify_all()

    def _pass_all(self, on: bool) -> None:
        with self.changed:
            for line in self.lines:
                line.pass_all = on

    def _judge(self) -> None:
        """Change the level, if that is allowed and called for. Hold `changed`."""
        now = self.clock()
        since, offered_then, restored_then, busy_then = self._judged
        if not self.degrade or now - since < self.window:
            return
        offered = sum(line.offered for line in self.lines)
        restored = sum(line.restored for line in self.lines)
        busy = (self.busy_seconds - busy_then) / (now - since)
        self._judged = (now, offered, restored, self.busy_seconds)
        if offered - offered_then < 5:
            return
        share = (restored - restored_then) / (offered - offered_then)
        self._poor = self._poor + 1 if share < 0.5 else 0
        if self._poor >= 2 and self.level + 1 < len(self.restorer.levels):
            self._go(self.level + 1, share)
            self._up_after = now + self._up_wait
            self._up_wait = min(600.0, 2 * self._up_wait)
        elif self.level and share > 0.95 and now > self._up_after and busy < 0.35:
            self._go(self.level - 1, share)
            self._up_after = now + self._up_wait

    def _go(self, level: int, share: float) -> None:
        self.level, self._poor, self._next_probe = level, 0, 0.0
        for key in [k for k in self._costs if k[0] == level]:
            del self._costs[key]  # what it took minutes ago is not what it takes now
        self.on_event("level", level=self.restorer.levels[level], share=round(share, 3))


def _copied(plane: Plane) -> Plane:
    return cast(Plane, np.array(plane, order="C", copy=True))


def write_back(picture: Picture) -> None:
    """Put the restored planes into the picture's own memory."""
    if picture.restored is not None:
        for to, of in zip(picture.frame.planes, picture.restored, strict=True):
            np.copyto(to, of, casting="unsafe")
        picture.restored = None
