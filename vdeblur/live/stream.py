"""Restore a live source from Python: `deblur_stream` returns a running session to iterate over."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Self, cast

import av
import numpy as np
from numpy.typing import NDArray
from torch import nn

from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.settings import PrecisionRequest
from vdeblur.live.counters import Snapshot
from vdeblur.live.encoding import copy_of
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.live.options import SessionOptions
from vdeblur.live.protocols import EventHandler, Guide, Restorer, ignore_event
from vdeblur.live.restorer import LiveDeblurrer
from vdeblur.live.session import Session
from vdeblur.media.pixel_formats import CONVERTING
from vdeblur.motion.exposure import AUTO, Exposure


@dataclass(frozen=True)
class LiveFrame:
    """An outgoing picture.

    Attributes:
        camera: The camera's number, from 1.
        time_seconds: On the session's line, with the source's own intervals.
        restored: Whether the network restored it; otherwise it passed untouched.
        latency_seconds: From capture to the end of encoding.
        picture: The picture, as PyAV holds it.
    """

    camera: int
    time_seconds: float
    restored: bool
    latency_seconds: float
    picture: av.VideoFrame

    def rgb(self) -> NDArray[np.uint8]:
        """Return the picture as an (H, W, 3) uint8 RGB array."""
        pixels = self.picture.to_ndarray(format="rgb24", threads=CONVERTING)
        return cast("NDArray[np.uint8]", pixels)


class Stream:
    """A session to iterate over: `for frame in stream`. Also a context manager.

    It starts when entered, or with the first frame. An iteration that is too slow misses frames,
    and delays nothing. Leaving the loop or the context, or `stop`, finishes all files. Once no
    camera is left running, the iteration raises the first camera's error.

    Args:
        sources: As for `vdeblur.live.session.Session`, as are all others.
        sinks: Addresses of sinks.
        restorer: The network.
        options: Everything else.
        guide: Makes the motion guide of each camera.
        on_event: Receives events.

    Attributes:
        missed: Frames that the iteration missed.
    """

    #: Frames that wait for the iteration at most.
    WAITING = 4

    def __init__(
        self,
        sources: Sequence[str],
        sinks: Sequence[str],
        restorer: Restorer,
        *,
        options: SessionOptions | None = None,
        guide: Callable[[], Guide | None] = lambda: None,
        on_event: EventHandler = ignore_event,
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
        """Finish everything. May be called from any thread, and more than once."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._begun:
            self._session.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the sources to end, without iterating; see `Session.wait`."""
        self.__enter__()
        return self._session.wait(timeout)

    def stats(self) -> list[Snapshot]:
        """Return the counts and times of every camera."""
        return self._session.snapshot()

    # -- vdeblur.live.protocols.Viewer --------------------------------------------------------

    def wants_before(self) -> bool:
        """See `Viewer.wants_before`."""
        return False

    def picture(
        self, camera: int, before: av.VideoFrame | None, frame: QueuedFrame, latency: float
    ) -> None:
        """See `Viewer.picture`."""
        if not self._iterated or self._stopped:
            return
        outgoing = LiveFrame(
            camera,
            frame.frame.time_seconds,
            frame.state == "done",
            latency,
            copy_of(frame.frame.source_frame),
        )
        with self._changed:
            if len(self._frames) >= self.WAITING:
                self._frames.popleft()
                self.missed += 1
            self._frames.append(outgoing)
            self._changed.notify_all()

    def signal(self, camera: int, state: str) -> None:
        """See `Viewer.signal`."""


def deblur_stream(
    source: str | Sequence[str],
    sink: str | Sequence[str] = (),
    *,
    model: str | nn.Module | Deblurrer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: PrecisionRequest = "auto",
    degrade: Sequence[str] = (),
    max_latency: float = 0.3,
    exposure: str | float | Fraction | Exposure = AUTO,
    options: SessionOptions | None = None,
    on_event: EventHandler = ignore_event,
) -> Stream:
    """Restore a live source into sinks within a time limit, until it is stopped.

    The keywords are those of `deblur_video` where both have them, hence their number.

    Args:
        source: One address or several, as `vdeblur camera` takes them.
        sink: One address or several; none to iterate only. With several sources, `{camera}` in an
            address stands for the number of the source.
        model: A name of the catalogue, a module or a `Deblurrer`, which then decides weights,
            device and precision. If None, the network that `weights` belong to; without weights,
            the default network.
        weights: As for `deblur_video`.
        device: As for `deblur_video`.
        precision: As for `deblur_video`.
        degrade: Steps that may be taken when time is short, such as `("half", "quarter")`.
        max_latency: Seconds from capture to the end of encoding.
        exposure: How long the shutter is open, for networks guided by motion: "auto" measures it;
            "1/60" is in seconds, 0.5 a share of the frame interval.
        options: Everything else about the session; `max_latency` and `degrade` override it.
        on_event: Called as `on_event(name, **details)`, from several threads, when a connection
            comes or goes, a segment begins or a step is taken. It must not block.

    Returns:
        The stream: iterate it (`for frame in stream: frame.rgb()`), `wait` for its end, or `stop`
        it. It starts with the first of these, or when entered as a context manager.

    Raises:
        UsageError: If an argument is invalid.
        InputError: If the source cannot be opened.
        OutputError: If a sink cannot be opened. Later failures are retried.
    """
    deblurrer = Deblurrer.of(model, weights=weights, device=device, precision=precision)
    settings = replace(options or SessionOptions(), max_latency=max_latency, degrade=bool(degrade))
    restorer = LiveDeblurrer(deblurrer, degrade, exposure=exposure)
    return Stream(
        *(_as_list(source), _as_list(sink), restorer),
        options=settings,
        guide=restorer.guide,
        on_event=on_event,
    )


def _as_list(addresses: str | Sequence[str]) -> list[str]:
    return [addresses] if isinstance(addresses, str) else [str(address) for address in addresses]
