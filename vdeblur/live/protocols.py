"""Interfaces between a session and its surroundings: network, motion, viewers, event handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import av

from vdeblur.frames import Frame
from vdeblur.live.frame_line import QueuedFrame

#: Called as `on_event(name, **details)` with a name such as "connected", "outage" or "segment";
#: `camera`, among the details, is the camera's number. Threads call it, so it must not block.
EventHandler = Callable[..., None]


def ignore_event(name: str, **details: Any) -> None:
    """Handle an event by ignoring it."""


class Restorer(Protocol):
    """A network, with cheaper ways to run it."""

    @property
    def levels(self) -> Sequence[str]:
        """Names of the levels: the requested one first, then those that `degrade` allows."""

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        """Restore frames in place.

        Args:
            frames: Frames of one layout.
            level: Index into `levels`.

        Returns:
            Per frame, whether the restoration was rejected and the source's picture kept.
        """


class Guide(Protocol):
    """Sets the motion of one camera's frames, each from earlier frames only."""

    #: Seconds that the shutter is open, as measured or as requested; None while unknown.
    exposure_seconds: float | None

    def see(self, frame: Frame) -> None:
        """Set `motion` and `around` of the next frame; frames may have been skipped since."""

    def forget(self) -> None:
        """Start over: the next frame shows another scene or has another clock."""

    def close(self) -> None:
        """Release resources; no more frames come."""


class Viewer(Protocol):
    """Receives every outgoing picture; must not block."""

    def picture(
        self, camera: int, before: av.VideoFrame | None, frame: QueuedFrame, latency: float
    ) -> None:
        """Receive a picture.

        Args:
            camera: The camera's number, from 1.
            before: A copy of the source's picture, if `wants_before` and it was restored.
            frame: The outgoing frame. Its picture is encoded and reused: copy what is kept.
            latency: Seconds from capture to the end of encoding.
        """

    def wants_before(self) -> bool:
        """Return whether a copy of the source's picture is needed."""

    def signal(self, camera: int, state: str) -> None:
        """Receive the camera's state: connecting, live, outage, ended or failed."""
