"""Standard output and standard error, on which nothing is printed that a terminal would act on."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO, cast

from vdeblur.cli.stopping import let_go
from vdeblur.system.masking import masked_message
from vdeblur.system.printable import printable

# tqdm moves between its bars with these.
_MOVES = re.compile(r"\n*(?:\x1b\[A)*")


class _Printable:
    """A text stream that shows control characters instead of sending them.

    A carriage return at the beginning of what is written passes: progress bars begin with it.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        if text.startswith("\r"):
            text = "\r" + printable(text[1:])
        elif not _MOVES.fullmatch(text):
            text = printable(text, lines=True)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        with _named(self._name):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Send what was written."""
        with _named(self._name):
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Name a stream in an error that says nothing of where it came from."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads any more, which is no error to tell
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


@contextlib.contextmanager
def printable_streams() -> Iterator[None]:
    """Have all that is printed while the context is open pass through `printable`."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Printable(before[0], "standard output"))
    sys.stderr = cast(TextIO, _Printable(before[1], "standard error"))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def mask_tracebacks() -> None:
    """Have errors that nothing foresaw be printed without passwords and control characters."""

    def report(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if let_go(error):
            return
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(printable(masked_message(text), lines=True))

    sys.excepthook = report
    threading.excepthook = lambda args: report(args.exc_type, args.exc_value, args.exc_traceback)
