"""A running session: receivers → lines → one network → encoders → sinks, for one or more cameras.

    receive ──► line ──► (newest) ──► network          one thread a camera; one network for all
                  │ ◄────────────────────┘
                  └──► encode ──► sink, sink, …        one thread a camera, one a sink
                          └────► viewers               preview, Python, virtual camera: the newest

Knows no torch and no network: it is given a `protocols.Restorer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from vdeblur.errors import UsageError
from vdeblur.live.addresses import Scene, numbered, resolve, sink_kind, source_kind
from vdeblur.live.camera import Camera
from vdeblur.live.counters import Snapshot
from vdeblur.live.encoding import PictureEncoder
from vdeblur.live.options import SessionOptions
from vdeblur.live.protocols import EventHandler, Guide, Restorer, Viewer, ignore_event
from vdeblur.live.scheduler import Scheduler
from vdeblur.live.snapshot import snapshot_of


class Session:
    """All cameras of a process, as a context manager that finishes its files on exit.

    Args:
        sources: Addresses, one per camera.
        sinks: Addresses of sinks; `{camera}` in them stands for the camera's number.
        restorer: The network, shared by all cameras.
        options: Everything else.
        guide: Makes the motion guide of each camera; returns None for unguided networks.
        viewers: Receive every outgoing picture.
        on_event: Receives events, from several threads; it must not block.

    Raises:
        UsageError: If an address or an option is invalid.
        OutputError: If a sink cannot be opened.
        EncoderError: If the encoder cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[str],
        sinks: Sequence[str],
        restorer: Restorer,
        *,
        options: SessionOptions | None = None,
        guide: Callable[[], Guide | None] = lambda: None,
        viewers: Sequence[Viewer] = (),
        on_event: EventHandler = ignore_event,
    ) -> None:
        self.options = options or SessionOptions()
        if not sources:
            raise UsageError("there is no source: name a camera, such as rtsp://… or test")
        resolved = [resolve(source) for source in sources]
        for source in resolved:
            if source_kind(source) == "test":
                Scene.of(source)
        if any(sink_kind(resolve(sink)) != "virtual" for sink in sinks):
            # Try the encoder now: the camera's first picture may come at night.
            PictureEncoder(self.options.encoding, width=640, height=360, rate=Fraction(25))
        self.cameras: list[Camera] = []
        for number, source in enumerate(resolved, 1):
            chosen = [numbered(resolve(sink), number, len(resolved)) for sink in sinks]
            if len(set(chosen)) < len(chosen):
                raise UsageError("the same sink is named twice: name each once")
            self.cameras.append(
                Camera(number, source, chosen, self.options, viewers, self._event, guide())
            )
        self._on_event = on_event
        self.scheduler = Scheduler(
            restorer,
            [camera.line for camera in self.cameras],
            together=self.options.together,
            degrade=self.options.degrade,
            on_event=on_event,
        )
        #: Whether `stop` has finished everything; False until then.
        self.complete = False

    def _event(self, name: str, **details: Any) -> None:
        """Pass a camera's event on; add what the network has to do with it."""
        if name in ("few_restored", "restored_again"):
            scheduler = self.scheduler
            details["network_ms"] = round(scheduler.seconds_a_call() * 1000, 1)
            details["level_name"] = scheduler.restorer.levels[scheduler.level]
        self._on_event(name, **details)

    def __enter__(self) -> Session:
        self.scheduler.start()
        for camera in self.cameras:
            camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until every source has ended or failed.

        Args:
            timeout: Seconds to wait at most; None waits without limit.

        Returns:
            False if the timeout passed first.

        Raises:
            VdeblurError: The first camera's error, once no camera is left running.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while not all(camera.finished.is_set() for camera in self.cameras):
            if give_up is not None and time.monotonic() >= give_up:
                return False
            left = 0.2 if give_up is None else min(0.2, max(0.0, give_up - time.monotonic()))
            next(c for c in self.cameras if not c.finished.is_set()).finished.wait(left)
        for camera in self.cameras:
            error = camera.error or camera.receiver.error
            if error is not None:
                raise error
        return True

    def snapshot(self) -> list[Snapshot]:
        """Return the counts and times of every camera."""
        return [snapshot_of(camera, self.scheduler) for camera in self.cameras]

    def stop(self, patience: float = 10.0) -> bool:
        """Finish everything; return False if a sink was stuck and had to be left.

        Args:
            patience: Seconds to wait at most, per camera.
        """
        for camera in self.cameras:
            camera.stop()
        done = True
        for camera in self.cameras:
            done = camera.join(patience) and done
        self.scheduler.stop()
        self.complete = self.scheduler.join(patience) and done
        return self.complete
