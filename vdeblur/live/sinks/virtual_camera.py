"""Pictures into a virtual camera that other programs open: pyvirtualcam, on Linux v4l2loopback.

Not a `Sink`: it takes pictures rather than packets, and only the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import av

from vdeblur.errors import OutputError
from vdeblur.live.protocols import EventHandler
from vdeblur.live.sources.timing import Backoff
from vdeblur.media.pixel_formats import CONVERTING
from vdeblur.system.masking import masked
from vdeblur.system.optional import optional


class VirtualCamera:
    """A virtual camera device.

    Args:
        address: `virtual` for the first free device, or `/dev/videoN`.

    Raises:
        UsageError: If pyvirtualcam is not installed.
    """

    def __init__(self, address: str) -> None:
        self._module = optional("pyvirtualcam", extra="virtualcam", purpose="a virtual camera")
        self._device = None if address == "virtual" else address
        self.name = address
        self._camera: Any = None
        self.written = 0

    def show(self, picture: av.VideoFrame, rate: float) -> None:
        """Show a picture; another size reopens the device.

        Args:
            picture: In any format.
            rate: Frames per second, as announced to programs that read the device.

        Raises:
            OutputError: If the device cannot be opened or written to.
        """
        size = (picture.width, picture.height)
        if self._camera is not None and (self._camera.width, self._camera.height) != size:
            self.close()
        try:
            if self._camera is None:
                self._camera = self._module.Camera(*size, rate, device=self._device)
            self._camera.send(picture.to_ndarray(format="rgb24", threads=CONVERTING))
        except (RuntimeError, OSError) as error:
            self.close()
            raise OutputError(
                f"there is no virtual camera ({error}): on Linux load v4l2loopback "
                "(modprobe v4l2loopback), elsewhere install OBS"
            ) from error
        self.written += 1

    def close(self) -> None:
        """Close the device."""
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()


@dataclass
class _Slot:
    """A virtual camera, and when to try it again."""

    camera: VirtualCamera
    backoff: Backoff = field(default_factory=Backoff)
    again_at: float = 0.0


class VirtualCameras:
    """The virtual cameras of one source. One that never worked is an error; a lost one is retried.

    Args:
        addresses: See `VirtualCamera`.
        on_event: Receives "sink_gone" and "sink_back".
    """

    def __init__(self, addresses: Sequence[str], *, on_event: EventHandler) -> None:
        self._slots = [_Slot(VirtualCamera(address)) for address in addresses]
        self._on_event = on_event

    def show(self, picture: av.VideoFrame, rate: float, now: float) -> None:
        """Show a picture on each; `rate` in frames per second, `now` in monotonic seconds."""
        for slot in self._slots:
            if now >= slot.again_at:
                self._show(slot, picture, rate, now)

    def _show(self, slot: _Slot, picture: av.VideoFrame, rate: float, now: float) -> None:
        name = masked(slot.camera.name)
        try:
            slot.camera.show(picture, rate)
        except OutputError as error:
            if not slot.camera.written:
                raise
            wait = slot.backoff.next()
            slot.again_at = now + wait
            self._on_event("sink_gone", sink=name, reason=str(error), seconds=round(wait, 2))
        else:
            if slot.backoff.tries:
                self._on_event("sink_back", sink=name)
            slot.backoff.reset()

    def close(self) -> None:
        """Close all devices."""
        for slot in self._slots:
            slot.camera.close()
