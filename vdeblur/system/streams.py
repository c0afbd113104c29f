"""Pipes and devices as outputs: written into, and never replaced."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path
from typing import BinaryIO

# A stream that has a name: nothing is replaced by writing into it.
_DESCRIPTOR = re.compile(r"(?:/dev/|/proc/self/)(stdout|stderr|fd/\d+)")
_READER_SECONDS = 10.0  # that a named pipe waits for the program that reads it
_AGAIN_SECONDS = 0.05


def is_stream(path: Path) -> bool:
    """Tell whether a name is that of a pipe or a character device, which is written into."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)


def open_stream(path: Path) -> BinaryIO:
    """Open what `is_stream` is true of for writing.

    Raises:
        OSError: It cannot be opened, or nobody reads a named pipe after some seconds.
    """
    own = _DESCRIPTOR.fullmatch(str(path))
    if own is None:
        return os.fdopen(_open_named(path), "wb")
    # Not opened by its name: a file that standard output is appended to would be cut off.
    number = {"stdout": 1, "stderr": 2}.get(own[1]) or int(own[1].removeprefix("fd/"))
    return os.fdopen(os.dup(number), "wb")


def _open_named(path: Path) -> int:
    if not path.is_fifo():
        return os.open(path, os.O_WRONLY)
    end = time.monotonic() + _READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > end:
                what = "nobody reads this pipe: start the program that reads it first"
                raise OSError(errno.ENXIO, what, str(path)) from error
            time.sleep(_AGAIN_SECONDS)
        else:
            os.set_blocking(descriptor, True)
            return descriptor
