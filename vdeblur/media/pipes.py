"""Standard input and output as files that libav reads and writes without seeking.

PyAV seeks in every Python file object with a `seek` method, so these have none.
"""

from __future__ import annotations

import os
from typing import BinaryIO


class InputPipe:
    """Read a file descriptor of its own, with what was read last to be read again on request.

    Not through Python's buffered reader: a thread that waits in it holds a lock, and the
    interpreter aborts if it cannot take the lock at exit.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._head = descriptor, b""
        self._kept: bytearray | None = None  # everything read since `remember`

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end, and leave them to be read."""
        while len(self._head) < size:
            part = os.read(self._descriptor, size - len(self._head))
            if not part:
                break
            self._head += part
        return self._head

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none at the end."""
        if self._head:
            part, self._head = self._head[:size], self._head[size:]
        else:
            part = os.read(self._descriptor, size)
        if self._kept is not None:
            self._kept += part
        return part

    def remember(self) -> None:
        """Keep what is read from here on in memory, for `rewind`."""
        self._kept = bytearray()

    def rewind(self) -> None:
        """Go back to where `remember` was called."""
        if self._kept is not None:
            self._head, self._kept = bytes(self._kept) + self._head, bytearray()

    def forget(self) -> None:
        """Keep nothing more of what is read."""
        self._kept = None


class OutputPipe:
    """Write to a binary stream, and flush every part: the reader is live."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def write(self, data: bytes) -> int:
        """Write all of `data` and return its length."""
        self._raw.write(data)
        self._raw.flush()
        return len(data)
