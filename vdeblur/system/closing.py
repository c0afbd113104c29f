"""Closing of what another thread may still be using."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from vdeblur.errors import Cancelled


class ClosingGuard:
    """Keeps an object of a C library open while a thread is in a call on it.

    A signal may end the owner between the start of a thread and the moment from which the owner
    would join it. Closing then frees memory under the thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the object open for the block.

        Raises:
            Cancelled: It is closed, or about to be.
        """
        with self._lock:
            if self._closed:
                raise Cancelled("the file was closed")
            yield

    def close(self, close: Callable[[], None], patience_seconds: float) -> None:
        """Call `close` once no thread uses the object, and let none use it again.

        A thread that is stuck in a call for longer than `patience_seconds` keeps the object, until
        the process ends.
        """
        self._closed = True
        if self._lock.acquire(timeout=patience_seconds):
            try:
                close()
            finally:
                self._lock.release()
