"""A session as an iterable: the pictures as they leave, the newest of them, until it is stopped.

Knows no torch and no network.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, cast

import av
import numpy as np
from numpy.typing import NDArray

from vdeblur.live.counters import Snapshot
from vdeblur.live.encoding import copy_of
from vdeblur.live.scheduler import Guide, Picture, Restorer
from vdeblur.live.session import Session, SessionOptions


@dataclass(frozen=True)
class LiveFrame:
    """A picture that has left. time_seconds: on the session's line, the source's own intervals.

    restored: False where it passed untouched. latency_seconds: from capture to its leaving.
    """

    camera: int
    time_seconds: float
    restored: bool
    latency_seconds: float
    picture: av.VideoFrame

    def rgb(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8."""
        return cast("NDArray[np.uint8]", self.picture.to_ndarray(format="rgb24"))


class Stream:
    """`for frame in stream`; a context manager that begins on entering (or with the first frame).

    Whoever iterates too slowly misses frames (`missed`), and holds nobody up. Leaving the loop or
    the context, or `stop`, finishes all files. The errors of a session are raised by the iteration
    once there is nothing left to go on with.
    """

    #: Frames that wait for who iterates.
    WAITING = 4

    def __init__(
        self,
        sources: Sequence[str],
        sinks: Sequence[str],
        restorer: Restorer,
        *,
        options: SessionOptions | None = None,
        guide: Callable[[], Guide | None] = lambda: None,
        on_event: Callable[..., None] = lambda name, **facts: None,
    ) -> None:
        self.missed = 0
        self._frames: deque[LiveFrame] = deque()
        self._changed = threading.Condition()
        self._begun = self._stopped = self._iterated = False
        self._session = Session(
            sources,
            sinks,
            restorer,
            options=options,
            guide=guide,
            viewers=[self],
            on_event=on_event,
        )

    def __enter__(self) -> Self:
        if not self._begun:
            self._begun = True
            self._session.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[LiveFrame]:
        with self:
            self._iterated = True
            while True:
                with self._changed:
                    if not self._frames and not self._stopped:
                        self._changed.wait(0.1)
                    frame = self._frames.popleft() if self._frames else None
                if frame is not None:
                    yield frame
                elif (self._stopped or self._session.wait(0)) and not self._frames:
                    return

    def stop(self) -> None:
        """Finish everything; from any thread, and as often as one likes."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._begun:
            self._session.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the sources end, without iterating; see `Session.wait`."""
        self.__enter__()
        return self._session.wait(timeout)

    def stats(self) -> list[Snapshot]:
        """Counts and times of every camera, now."""
        return self._session.snapshot()

    # -- vdeblur.live.session.Viewer -----------------------------------------------------------

    def wants_before(self) -> bool:
        """See `Viewer`."""
        return False

    def picture(
        self, camera: int, before: av.VideoFrame | None, picture: Picture, latency: float
    ) -> None:
        """See `Viewer`."""
        if not self._iterated or self._stopped:
            return
        frame = LiveFrame(
            camera,
            picture.frame.time_seconds,
            picture.state == "done",
            latency,
            copy_of(picture.frame.carrier),
        )
        with self._changed:
            if len(self._frames) >= self.WAITING:
                self._frames.popleft()
                self.missed += 1
            self._frames.append(frame)
            self._changed.notify_all()

    def signal(self, camera: int, state: str) -> None:
        """See `Viewer`."""


def many(what: str | Sequence[str]) -> list[str]:
    """One address, or several, as a list."""
    return [what] if isinstance(what, str) else [str(one) for one in what]
