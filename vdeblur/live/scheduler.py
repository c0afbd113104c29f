"""Run one network for one or several cameras: choose frames to restore, and let the others pass.

When the network is free, it takes the newest frame of each `FrameLine`; older frames that wait pass
untouched. Knows frames and threads; knows no libav and no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from vdeblur.frames import Plane
from vdeblur.live.frame_line import FrameLine, QueuedFrame
from vdeblur.live.protocols import EventHandler, Restorer, ignore_event

#: Calls that tell little: algorithms are picked, then kernels are compiled and graphs recorded.
_WARM_UP = 4


@dataclass
class _Cost:
    """Running estimate of how long a network call takes."""

    seconds: float = 0.0
    calls: int = 0

    def add(self, seconds: float) -> None:
        self.calls += 1
        if self.calls <= _WARM_UP:
            self.seconds = seconds
        else:
            self.seconds += (0.5 if seconds > self.seconds else 0.2) * (seconds - self.seconds)


@dataclass
class Scheduler:
    """Runs the restorer on the newest frames of the lines, in a thread of its own.

    Attributes:
        restorer: The network.
        lines: One line per camera.
        together: Whether frames of several cameras that share a layout form one batch.
        degrade: Whether to go on to the restorer's cheaper levels when fewer than half of the
            frames are restored, and back when there is room.
        on_event: Called with "level" on such a change, and with "network_failed".
        clock: The monotonic clock.
        changed: Shared by all lines.
        window: Seconds over which the share of restored frames is judged.
        level: The present level of the restorer.
        late: Results that came too late.
        error: Why the network failed, if it did.
    """

    restorer: Restorer
    lines: Sequence[FrameLine]
    together: bool = False
    degrade: bool = False
    on_event: EventHandler = ignore_event
    clock: Callable[[], float] = time.monotonic
    changed: threading.Condition = field(default_factory=threading.Condition)
    window: float = 2.0

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
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current call."""
        with self.changed:
            self._stop = True
            self.changed.notify_all()

    def join(self, patience: float) -> bool:
        """Wait for the thread up to `patience` seconds; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def seconds_a_call(self) -> float:
        """Return the estimated seconds per call at the present level; 0 before the first."""
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
                    frames, held = chosen
                self._restore(frames, held)
                with self.changed:
                    self._judge()
        except BaseException as error:
            # Without a network the picture goes on untouched; the event says why.
            self.error = error
            self._pass_all(True)
            self.on_event("network_failed", reason=str(error))

    def _choose(self) -> tuple[list[tuple[FrameLine, QueuedFrame]], bool] | None:
        """Choose frames for the next call; the flag says whether they wait for its result."""
        now = self.clock()
        order = [*self.lines[self._turn :], *self.lines[: self._turn]]
        found = [(line, p) for line in order if (p := line.candidate()) is not None]
        if not found:
            return None
        first = found[0][1]
        same = [(li, p) for li, p in found if p.frame.layout == first.frame.layout]
        chosen = same if self.together else same[:1]
        cost = self._cost(first, len(chosen))
        fits = [
            (line, p)
            for line, p in chosen
            if cost.calls and now + cost.seconds * 1.15 <= line.due(p)
        ]
        if fits:
            self._turn = (list(self.lines).index(fits[0][0]) + 1) % len(self.lines)
            for line, queued in fits:
                line.pass_older(queued)
                queued.state, queued.level = "working", self.level
            return fits, True
        # No frame would be back in time: all pass, and one is tried now and then beside them.
        for line, queued in chosen:
            line.pass_older(queued)
            queued.state, queued.ready = "pass", now
        self.changed.notify_all()
        if now < self._next_probe:
            return None
        self._turn = (self._turn + 1) % len(self.lines)
        return chosen, False

    def _cost(self, queued: QueuedFrame, count: int) -> _Cost:
        return self._costs.setdefault((self.level, queued.frame.layout, count), _Cost())

    def _restore(self, chosen: list[tuple[FrameLine, QueuedFrame]], held: bool) -> None:
        level = self.level
        cost = self._cost(chosen[0][1], len(chosen))
        if len(self._costs) > 64:  # a stream that keeps changing its size
            self._costs = {k: v for k, v in self._costs.items() if v is cost}
        began = self.clock()
        # Copies: the frame itself may leave untouched while the network is at work.
        frames = [
            replace(
                p.frame, planes=tuple(_copied(plane) for plane in p.frame.planes), source_frame=None
            )
            for _, p in chosen
        ]
        for _, p in chosen:
            p.frame.around = None  # the network's copy has it; do not hold it until encoding
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
                for (line, queued), frame in zip(chosen, frames, strict=True):
                    if queued.state == "working":
                        queued.restored, queued.state = frame.planes, "done"
                        queued.ready, queued.network = now, took
                    else:
                        line.late += 1
                        self.late += 1
            else:
                self._next_probe = now + (0.0 if cost.calls < _WARM_UP else max(1.0, 10 * took))
            self.changed.notify_all()

    def _pass_all(self, on: bool) -> None:
        with self.changed:
            for line in self.lines:
                line.pass_all = on

    def _judge(self) -> None:
        """Change the level if that is allowed and needed. Hold `changed`."""
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
            self._switch(self.level + 1, share)
            self._up_after = now + self._up_wait
            self._up_wait = min(600.0, 2 * self._up_wait)
        elif self.level and share > 0.95 and now > self._up_after and busy < 0.35:
            self._switch(self.level - 1, share)
            self._up_after = now + self._up_wait

    def _switch(self, level: int, share: float) -> None:
        self.level, self._poor, self._next_probe = level, 0, 0.0
        for key in [k for k in self._costs if k[0] == level]:
            del self._costs[key]  # minutes old
        self.on_event("level", level=self.restorer.levels[level], share=round(share, 3))


def _copied(plane: Plane) -> Plane:
    return cast(Plane, np.array(plane, order="C", copy=True))
