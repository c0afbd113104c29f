"""The newest pictures before and after restoration, side by side, for viewers at their own pace.

Written by the session's threads, and read by the event loop of the preview's server. Only the
newest pair of each camera is kept. Knows libav; knows no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np

from vdeblur.media.pixel_formats import CONVERTING

#: Pixels of each half's width at most: a preview, not the picture itself.
_MAX_WIDTH = 960


class NewestPair:
    """The newest pair of one camera. Thread-safe.

    Attributes:
        number: Counts the pairs; each viewer waits for the one after its own.
        pair: The pair, see `side_by_side`; None while there is no picture.
    """

    def __init__(self) -> None:
        self.number = 0
        self.pair: av.VideoFrame | None = None
        self._lock, self._encoding = threading.Lock(), threading.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        self._jpeg: tuple[int, bytes] = (0, b"")

    def put(self, pair: av.VideoFrame | None) -> None:
        """Replace the pair, and wake those who wait."""
        with self._lock:
            self.number += 1
            self.pair = pair
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                future.get_loop().call_soon_threadsafe(_wake, future)

    async def after(self, number: int) -> tuple[int, av.VideoFrame | None]:
        """Wait for a pair whose number is greater; return it with its number."""
        while True:
            with self._lock:
                if self.number > number:
                    return self.number, self.pair
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
            try:
                await future
            finally:
                with self._lock:
                    self._waiting.discard(future)

    def jpeg(self, number: int, pair: av.VideoFrame) -> bytes:
        """Return the pair as JPEG, encoded once for all viewers; blocks for some milliseconds."""
        with self._encoding:
            if self._jpeg[0] != number:
                self._jpeg = (number, _jpeg(pair))
            return self._jpeg[1]


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class NewestPairs:
    """The newest pair of every camera, taken only while somebody looks. Thread-safe."""

    def __init__(self) -> None:
        self._cameras: dict[int, NewestPair] = {}
        self._lock = threading.Lock()
        self._viewers = 0

    def of(self, camera: int) -> NewestPair:
        """Return the slot of a camera."""
        with self._lock:
            return self._cameras.setdefault(camera, NewestPair())

    def clear(self) -> None:
        """Drop all pairs, and wake those who wait."""
        with self._lock:
            cameras = list(self._cameras.values())
        for newest in cameras:
            newest.put(None)

    @property
    def watched(self) -> bool:
        """Whether anybody looks."""
        return self._viewers > 0

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Count a viewer for as long as the context lasts."""
        with self._lock:
            self._viewers += 1
        try:
            yield
        finally:
            with self._lock:
                self._viewers -= 1


def side_by_side(before: Any, after: Any) -> av.VideoFrame:
    """Return both pictures in one, in limited-range yuv420p, each at most 960 pixels wide."""
    width = min(_MAX_WIDTH, after.width)
    width -= width % 2
    height = max(2, round(after.height * width / after.width) & ~1)
    both = av.VideoFrame(2 * width, height, "yuv420p")
    for side, picture in enumerate((before, after)):
        small = picture.reformat(width, height, "yuv420p", dst_color_range=1, threads=CONVERTING)
        for target, source in zip(both.planes, small.planes, strict=True):
            a = np.frombuffer(cast(Any, target), np.uint8).reshape(-1, target.line_size)
            b = np.frombuffer(cast(Any, source), np.uint8).reshape(-1, source.line_size)
            columns = slice(side * source.width, (side + 1) * source.width)
            a[: source.height, columns] = b[: source.height, : source.width]
    both.color_range = 1
    return both


def _jpeg(pair: av.VideoFrame) -> bytes:
    encoder = cast(Any, av.CodecContext.create("mjpeg", "w"))
    picture = pair.reformat(
        format="yuvj420p", src_color_range=1, dst_color_range=2, threads=CONVERTING
    )
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.color_range = 2
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "3", "qmax": "3"}
    picture.pts = 0
    data = io.BytesIO()
    for packet in [*encoder.encode(picture), *encoder.encode(None)]:
        data.write(bytes(packet))
    return data.getvalue()
