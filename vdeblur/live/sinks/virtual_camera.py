"""Pictures into a virtual camera that other programs open: pyvirtualcam, on Linux v4l2loopback.

Not a sink of packets: it takes pictures as they leave, the newest only.
"""

from __future__ import annotations

from typing import Any

import av

from vdeblur.errors import OutputError
from vdeblur.system.optional import optional


class VirtualCamera:
    """`virtual` (the first free one) or `/dev/videoN`; MissingExtra without the package."""

    def __init__(self, address: str) -> None:
        self._module = optional("pyvirtualcam", extra="virtualcam", purpose="a virtual camera")
        self._device = None if address == "virtual" else address
        self.name = address
        self._camera: Any = None
        self.written = 0

    def show(self, picture: av.VideoFrame, rate: float) -> None:
        """One picture, now; another size opens the device again.

        rate: frames a second, as is told to who reads it. OutputError where there is no device.
        """
        size = (picture.width, picture.height)
        if self._camera is not None and (self._camera.width, self._camera.height) != size:
            self.close()
        try:
            if self._camera is None:
                self._camera = self._module.Camera(*size, rate, device=self._device)
            self._camera.send(picture.to_ndarray(format="rgb24"))
        except (RuntimeError, OSError) as error:
            self.close()
            raise OutputError(
                f"there is no virtual camera ({error}): on Linux load v4l2loopback "
                "(modprobe v4l2loopback), elsewhere install OBS"
            ) from error
        self.written += 1

    def close(self) -> None:
        """Let go of the device."""
        camera, self._camera = self._camera, None
        if camera is not None:
            camera.close()
