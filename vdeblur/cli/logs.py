"""The log of the library, for the user of the command: --verbose and --log-file."""

from __future__ import annotations

import argparse
import contextlib
import logging
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vdeblur.errors import OutputError
from vdeblur.system.masking import masked, masked_message
from vdeblur.system.printable import printable
from vdeblur.version import __version__

_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# The first line of a log, and how much of a file is looked at.
_FIRST, _HEAD = re.compile(rb"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ vdeblur"), 4096
_log = logging.getLogger(__name__)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add --verbose and --log-file."""
    group = parser.add_argument_group("log")
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="log the choices of the program to standard error; -vv logs details",
    )
    group.add_argument(
        "--log-file", metavar="FILE", help="append a log with all details to FILE, for a bug report"
    )


class _Masked(logging.Formatter):
    """Formats records, tracebacks included, without passwords and control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record in one line."""
        return printable(masked_message(super().formatMessage(record)))

    def formatException(self, *arguments: Any) -> str:
        """Return a traceback in several lines."""
        return printable(masked_message(super().formatException(*arguments)), lines=True)

    def formatStack(self, stack_info: str) -> str:
        """Return a stack in several lines."""
        return printable(masked_message(super().formatStack(stack_info)), lines=True)


class _File(logging.FileHandler):
    """A log file; a full disk ends the log, not the command."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


@contextlib.contextmanager
def logging_to(verbose: int, file: str | None, words: Sequence[str]) -> Iterator[None]:
    """Show or record the log of the library while the context is open.

    Args:
        verbose: 0 shows nothing, 1 shows information on standard error, 2 shows all.
        file: receives all records, if given; a file that exists grows.
        words: the arguments of the command, for the first line.

    Raises:
        OutputError: the file cannot be written.
    """
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(_file_handler(file))
    if verbose:
        shown = logging.StreamHandler(sys.stderr)
        shown.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
        handlers.append(shown)
    logger = logging.getLogger("vdeblur")
    level = logger.level
    for handler in handlers:
        handler.setFormatter(_Masked(_LINE))
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(min(handler.level or logging.DEBUG for handler in handlers))
    _log.info("vdeblur %s, Python %s, %s", __version__, sys.version.split()[0], platform.platform())
    # Word by word: a password may hold spaces.
    _log.info("arguments: %s", " ".join(masked(word.replace(" ", "%20")) for word in words))
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
        logger.setLevel(level)


def _file_handler(file: str) -> logging.Handler:
    try:
        _check_log(Path(file))
        return _File(file, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"the log {file} cannot be written ({why})") from error


def _check_log(path: Path) -> None:
    """Check that what a log would be appended to is a log, and no film.

    Raises:
        OutputError: It is something else.
        OSError: It cannot be read.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file for the log")
    if path.is_fifo():
        raise OutputError(f"{path} is a pipe: name a file for the log")
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_HEAD)
    text = b"\0" not in head and path.suffix.lower() in (".log", ".txt")
    if head and not text and not _FIRST.match(head):
        raise OutputError(
            f"{path} exists and is no log: name a new file for the log, or one that ends in .log"
        )
