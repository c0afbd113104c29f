"""All viewers of a camera's outgoing pictures, as one."""

from __future__ import annotations

from collections.abc import Sequence

import av

from vdeblur.live.encoding import copy_of
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.live.protocols import Viewer
from vdeblur.media.pixel_formats import CONVERTING


class Viewers:
    """Passes one camera's pictures and states on to every viewer."""

    def __init__(self, camera: int, viewers: Sequence[Viewer]) -> None:
        self._camera, self._viewers = camera, viewers

    def before(self, source_frame: av.VideoFrame) -> av.VideoFrame | None:
        """Copy the source's picture before it is overwritten, in yuv420p; None if unneeded."""
        if not any(viewer.wants_before() for viewer in self._viewers):
            return None
        before = source_frame.reformat(
            format="yuv420p", width=source_frame.width & ~1, threads=CONVERTING
        )
        return copy_of(source_frame) if before is source_frame else before

    def picture(self, before: av.VideoFrame | None, frame: QueuedFrame, latency: float) -> None:
        """See `Viewer.picture`."""
        for viewer in self._viewers:
            viewer.picture(self._camera, before, frame, latency)

    def signal(self, state: str) -> None:
        """See `Viewer.signal`."""
        for viewer in self._viewers:
            viewer.signal(self._camera, state)
