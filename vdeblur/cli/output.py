"""Messages for the user of the command, and checks of its output files."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from vdeblur.cli.flags import with_flags
from vdeblur.errors import VdeblurError
from vdeblur.system.files import check_target
from vdeblur.system.masking import masked_message
from vdeblur.system.printable import printable

if TYPE_CHECKING:
    from vdeblur.deblur import Report

_T = TypeVar("_T")
_MOST_NAMES = 40  # in one line


_flags: dict[str, str] = {}


def name_options(flags: Mapping[str, str]) -> None:
    """Set the options that messages name instead of parameters of the library."""
    _flags.clear()
    _flags.update(flags)


def in_options(value: _T) -> _T:
    """Return a text or report with options in place of the parameters that it names."""
    return with_flags(value, _flags)


def say(text: str, *, mask: bool = True) -> None:
    """Print one message, in one line, to standard error; parameters become options.

    Args:
        text: the message; control characters in it are shown.
        mask: whether to hide passwords and keys of addresses.
    """
    text = in_options(text)
    with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        print(printable(masked_message(text) if mask else text), file=sys.stderr, flush=True)


def told(value: _T) -> _T:
    """Return a text or report for the user: options for parameters, no secrets of addresses."""
    if isinstance(value, str):
        return masked_message(in_options(value))  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return [told(item) for item in value]  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: told(item) for key, item in value.items()}  # type: ignore[return-value]
    return value


def sentence_of(error: Exception) -> str:
    """Return an error of any kind as a sentence for the user."""
    if isinstance(error, VdeblurError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is too little memory: close other programs, or choose a smaller `tile`"
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename} may not be used: check its permissions, and those of its folders"
    if isinstance(error, OSError):
        # No command handles these: a folder without permission, a name that is too long.
        what = os.strerror(error.errno) if error.errno else str(error)
        return f"{error.filename or 'a file'} cannot be used ({what}): check it"
    text = (str(error).splitlines() or [""])[0]
    return (
        f"an unexpected {type(error).__name__} ({text}), which is a fault of vdeblur: report it "
        "with the file that --log-file writes"
    )


def print_json(report: dict[str, Any], file: TextIO | None = None) -> None:
    """Print a report as one line of JSON, to standard output by default."""
    print(json.dumps(told(report)), file=file)


def say_report(report: Report, *, quiet: bool) -> None:
    """Print the report of a restored file; if quiet, only what was lost, damaged or replaced."""
    if not quiet:
        kept = f"; kept {_listed(report.kept)}" if report.kept else ""
        where = "standard output" if report.output == "-" else report.output
        say(
            f"{where}: {report.frames} frame{'s' * (report.frames != 1)} in {report.seconds:.1f} s "
            f"({report.frames_per_second:.3g} frames/s){kept}"
        )
        for note in report.notes:
            say(f"  note: {note}")
    for line in report.lost:
        say(f"  not kept: {line}")
    if report.replaced:
        count = f"{report.replaced} frame{'s are' if report.replaced != 1 else ' is'}"
        say(f"  {count} left as in the source: the network's result was unsound")
    for line in report.damage:
        say(f"  damaged source: {line}")
    for line in report.differences:
        say(f"  differs from the source: {line}")


def _listed(names: Sequence[str]) -> str:
    """Return names with commas between them; of very many the first, each once."""
    if len(names) > _MOST_NAMES:
        counts = Counter(names).items()
        names = [name if count == 1 else f"{count} of {name}" for name, count in counts]
    more = [f"and {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
    return ", ".join([*names[:_MOST_NAMES], *more])


def check_new_file(path: Path, *, force: bool, sources: Sequence[Path] = ()) -> None:
    """Raise OutputError if `path` cannot be written, before hours of work and not after."""
    check_target(path, overwrite=force, sources=sources)


def on_disk_of(folder: Path, others: Iterable[Path]) -> bool:
    """Tell whether a folder, which may not exist yet, is on the same disk as one of others."""

    def device(path: Path) -> int | None:
        for place in (path.absolute(), *path.absolute().parents):
            with contextlib.suppress(OSError):
                return place.stat().st_dev
        return None

    return any(device(folder) == device(other) for other in others)
