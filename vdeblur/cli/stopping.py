"""Signals that ask the command to stop, raised as exceptions that nothing can lose."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

_TOGETHER_SECONDS = 1.0  # signals that come so soon after each other are one
_AGAIN_SECONDS = 0.01
_current: Stops | None = None


class _Dropped(BaseException):
    """A part of an exception that has itself raised again where something dropped it.

    An import or a C extension may pass over any exception, or put an error of its own in its place.
    """

    def __init__(self, number: int, stops: Stops) -> None:
        super().__init__(number)
        self._number, self._stops = number, stops

    def __del__(self) -> None:
        self._stops.again(self._number)


class Stopped(_Dropped):
    """SIGTERM, or SIGHUP of a closed terminal: unwinds like Ctrl-C and leaves nothing behind."""


class Interrupted(_Dropped, KeyboardInterrupt):
    """Ctrl-C."""


class Stops:
    """Handles the signals that ask to stop, in a `with` block.

    Args:
        keep: Whether the handlers stay after the block, until the process ends.

    Attributes:
        number: The first signal that came; None if none did.
    """

    def __init__(self, *, keep: bool) -> None:
        self.number: int | None = None
        self._keep = keep
        self._last = 0.0
        self._again = False
        self._code: int | None = None  # of a command that has ended
        self._handlers: dict[int, Any] = {}
        self._hook, self._printing = sys.unraisablehook, sys.excepthook

    def __enter__(self) -> Self:
        global _current
        _current = self
        stops = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])
        # Under nohup, the command continues to ignore SIGHUP.
        stops = [stop for stop in stops if signal.getsignal(stop) is not signal.SIG_IGN]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            stops.append(signal.SIGINT)
        self._handlers = {stop: signal.signal(stop, self._come) for stop in stops}
        sys.unraisablehook, sys.excepthook = self._unraisable, self._print
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended(1)
        sys.unraisablehook, sys.excepthook = self._hook, self._printing
        for stop, handler in {} if self._keep else self._handlers.items():
            signal.signal(stop, handler)

    def ended(self, code: int) -> None:
        """Raise no more signals: the command has ended, with this exit code."""
        self._code = code if self._code is None else self._code

    def again(self, number: int) -> None:
        """Raise a signal again whose exception was dropped before the command ended."""
        # Not in this thread: what is raised in a destructor is dropped as well.
        if self._code is None:
            threading.Thread(target=self._send, args=(number,), daemon=True).start()

    def _send(self, number: int) -> None:
        time.sleep(_AGAIN_SECONDS)
        if self._code is not None:
            return
        self._again = True
        if hasattr(signal, "pthread_kill"):  # interrupts what the main thread waits for
            signal.pthread_kill(threading.main_thread().ident or 0, number)
        else:
            signal.raise_signal(number)

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._code is not None:  # nothing is left to be cleaned up
            os._exit(self._code)
        now = time.monotonic()
        if self.number is not None and now - self._last < _TOGETHER_SECONDS and not self._again:
            return
        self.number = self.number or number
        self._last, self._again = now, False
        raise (Interrupted if number == signal.SIGINT else Stopped)(number, self)

    def _unraisable(self, unraisable: Any) -> None:
        # Raised in a destructor or a callback: what drops it here raises it again.
        if not isinstance(unraisable.exc_value, _Dropped):
            self._hook(unraisable)

    def _print(self, kind: Any, error: BaseException, trace: TracebackType | None) -> None:
        if not let_go(error):
            self._printing(kind, error, trace)


def let_go(error: BaseException | None) -> bool:
    """Tell whether an error that is about to be printed is a signal, which is raised again.

    Cython's callbacks, such as PyAV's of files, print what they drop (PyErr_PrintEx).
    """
    if not isinstance(error, _Dropped):
        return False
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        sys.__dict__.pop(name, None)  # which would keep it for good
    return True


def stop_of(error: BaseException) -> BaseException | None:
    """Return the signal that an error comes of, such as an import that failed by it; else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Dropped):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def answered(code: int) -> int:
    """Note that a command has ended because of a signal, and return its exit code."""
    if _current is not None:
        _current.ended(code)
    return code
