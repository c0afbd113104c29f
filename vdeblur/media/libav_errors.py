"""libav's errors in words, and as the errors of vdeblur."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import av.error

from vdeblur.errors import DiskError, OutputError
from vdeblur.system.files import DISK_ERRORS


def reason(error: BaseException) -> str:
    """Why a source cannot be read, for the middle of a sentence."""
    if getattr(error, "errno", None) == errno.ENOENT:
        return "not found"
    text = str(getattr(error, "strerror", None) or error)
    return text.rstrip(".").lower() if text.isascii() else text


def text_of(error: BaseException) -> str:
    """The text of an error, without its number and file."""
    return str(getattr(error, "strerror", None) or error).rstrip(".")


def output_error(error: BaseException, destination: str | Path) -> OutputError:
    """Turn an error of writing `destination` ("-" is standard output) into one with advice."""
    number = getattr(error, "errno", None)
    where = "standard output" if str(destination) == "-" else str(destination)
    if number in DISK_ERRORS:
        return DiskError.of(number, where)
    if number in (errno.EACCES, errno.EPERM):
        return OutputError(f"{where} may not be written: check the folder's permissions")
    if number == errno.EFBIG:
        return OutputError(
            f"{where} is larger than a file may be here: choose another disk, or write parts with "
            "`start` and `duration`"
        )
    if number == errno.EPIPE:
        return OutputError(f"the program reading {where} has gone")
    return OutputError(f"{where} cannot be written ({text_of(error)})")


@contextlib.contextmanager
def reported(destination: str | Path) -> Iterator[None]:
    """Raise errors of libav and of the system in the block as `OutputError`."""
    try:
        yield
    except OutputError as error:
        # Of a part that knows the temporary name only.
        if isinstance(error.__cause__, OSError) and not isinstance(error, DiskError):
            cause = error.__cause__
            if cause.errno in DISK_ERRORS:
                raise output_error(cause, destination) from cause
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise output_error(error, destination) from error
