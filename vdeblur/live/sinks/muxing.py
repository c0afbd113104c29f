"""Containers that packets are written into, and pipes whose writes have a time limit.

Knows libav; knows no threads, no retries and no file names.
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

_PIPE_BYTES: int = getattr(select, "PIPE_BUF", 4096)  # Windows has none


class Muxer:
    """A container of libav with the streams of a template.

    The constructor writes the header, and raises what libav raises.

    Args:
        target: A path, or an object with `write`.
        form: libav's name of the container.
        template: The streams.
        options: libav's options for the container.
        metadata: Tags of the file.
        hold: Seconds that a picture may wait for sound of its time, so that packets are stored in
            order (libav would wait ten); 0 for what is watched live.
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
        # Players that tune in later need the parameter sets before each keyframe.
        self._repeats = (
            BitStreamFilterContext("dump_extra=freq=keyframe", template.video)
            if form in ("mpegts", "hls")
            else None
        )
        self._output.metadata.update({"encoder": "vdeblur", **(metadata or {})})
        self._output.start_encoding()

    def write(self, chunk: Chunk, base: int) -> None:
        """Write a packet, `base` ticks earlier; sound is skipped if the template has none."""
        if chunk.kind not in self._streams:
            return
        packet = chunk.packet(self._streams[chunk.kind], base)
        if self._repeats is None or chunk.kind != "video":
            self._output.mux(packet)
            return
        ticks = packet.time_base  # the filter empties the packet
        for ready in self._repeats.filter(packet):
            ready.time_base = ticks
            ready.stream = self._streams["video"]
            self._output.mux(ready)

    def close(self) -> None:
        """Write the trailer, and close."""
        self._output.close()


class Descriptor:
    """The writing end of a pipe, for libav; TimeoutError if none is read for `timeout` seconds."""

    def __init__(self, descriptor: int, timeout: float) -> None:
        self._descriptor, self._timeout = descriptor, timeout

    def write(self, data: Any) -> int:
        """Write all of the data."""
        rest = memoryview(bytes(data))
        give_up = time.monotonic() + self._timeout
        while rest:
            if sys.platform != "win32":  # where only sockets can be selected
                left = give_up - time.monotonic()
                if left <= 0 or not select.select([], [self._descriptor], [], left)[1]:
                    raise TimeoutError(f"nothing was taken for {self._timeout:g} s")
            # A pipe that is ready takes this much without blocking.
            rest = rest[os.write(self._descriptor, rest[:_PIPE_BYTES]) :]
        return len(data)
