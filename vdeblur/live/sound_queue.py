"""Encoded sound that waits for the picture of its time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator

from vdeblur.live.encoding import Chunk


class SoundQueue:
    """A bounded queue of sound packets, released by their time or by their age.

    Args:
        capacity: Packets held at most; 1024 are ten seconds and more. Beyond, the oldest goes.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.capacity, self.dropped = capacity, 0
        self._waiting: deque[tuple[Chunk, float]] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, chunks: Iterable[Chunk], captured: float) -> None:
        """Append packets that were captured at monotonic time `captured`."""
        with self._lock:
            for chunk in chunks:
                self._waiting.append((chunk, captured))
            while len(self._waiting) > self.capacity:
                self._waiting.popleft()
                self.dropped += 1

    def until(self, pts: float) -> Iterator[Chunk]:
        """Take the packets up to a time of the session's line, in ticks."""
        while (chunk := self._take(until=pts)) is not None:
            yield chunk

    def older_than(self, captured: float) -> Iterator[Chunk]:
        """Take the packets that were captured before a monotonic time."""
        while (chunk := self._take(before=captured)) is not None:
            yield chunk

    def _take(self, *, until: float | None = None, before: float = 0.0) -> Chunk | None:
        with self._lock:
            if not self._waiting:
                return None
            chunk, captured = self._waiting[0]
            if not (chunk.pts <= until if until is not None else captured < before):
                return None
            self._waiting.popleft()
            return chunk
