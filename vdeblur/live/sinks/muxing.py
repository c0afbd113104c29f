"""Containers that chunks are written into, and pipes that never make their writer wait for ever.

Knows libav; knows no threads, no retries and no names of files.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any, cast

import av
from av.bitstream import BitStreamFilterContext

from vdeblur.live.encoding import Chunk, Template

_AT_ONCE: int = getattr(select, "PIPE_BUF", 4096)  # Windows has none


class Muxer:
    """A container of libav with the streams of a template.

    target: a path, or an object with `write`. form: libav's name of the container. metadata: tags
    of the file. hold: seconds that a picture may wait for sound of its time, so that they lie in
    order (libav would wait ten); 0 for what is watched live. The header is written here: whatever
    that raises is the caller's.
    """

    def __init__(
        self,
        target: Any,
        form: str,
        template: Template,
        options: dict[str, str],
        metadata: dict[str, str] | None = None,
        hold: float = 0.5,
    ) -> None:
        options = options | {"max_interleave_delta": str(max(1, int(hold * 1e6)))}
        self._output = cast(Any, av.open(target, "w", format=form, container_options=options))
        self._streams = {
            "video": self._output.add_stream_from_template(template.video, opaque=True)
        }
        if template.sound is not None:
            self._streams["audio"] = self._output.add_stream_from_template(template.sound)
        # Whoever tunes in later needs the parameter sets before each keyframe.
        self._repeats = (
            BitStreamFilterContext("dump_extra=freq=keyframe", template.video)
            if form in ("mpegts", "hls")
            else None
        )
        self._output.metadata.update({"encoder": "vdeblur", **(metadata or {})})
        self._output.start_encoding()

    def write(self, chunk: Chunk, base: int) -> None:
        """Mux a chunk, `base` ticks earlier; sound that the template has not is left out."""
        if chunk.kind not in self._streams:
            return
        packet = chunk.packet(self._streams[chunk.kind], base)
        if self._repeats is None or chunk.kind != "video":
            self._output.mux(packet)
            return
        ticks = packet.time_base  # the filter takes the packet's contents away
        for ready in self._repeats.filter(packet):
            ready.time_base = ticks
            ready.stream = self._streams["video"]
            self._output.mux(ready)

    def close(self) -> None:
        """Write the trailer."""
        self._output.close()


class Descriptor:
    """A pipe's writing end for libav; TimeoutError when nobody takes anything for `timeout` s."""

    def __init__(self, descriptor: int, timeout: float) -> None:
        self._descriptor, self._timeout = descriptor, timeout

    def write(self, data: Any) -> int:
        """All of it, as libav wants it."""
        rest = memoryview(bytes(data))
        give_up = time.monotonic() + self._timeout
        while rest:
            if sys.platform != "win32":  # where only sockets can be selected
                left = give_up - time.monotonic()
                if left <= 0 or not select.select([], [self._descriptor], [], left)[1]:
                    raise TimeoutError(f"nothing was taken for {self._timeout:g} s")
            # A pipe that is ready takes this much without waiting.
            rest = rest[os.write(self._descriptor, rest[:_AT_ONCE]) :]
        return len(data)
