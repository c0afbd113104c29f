"""Names of outputs that nobody gave: those of their sources, with what was done to them."""

from __future__ import annotations

import re
from pathlib import Path

from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.media.containers import format_name
from vdeblur.media.image_sequences import is_image, number_of
from vdeblur.media.names import about_address, is_address, is_descriptor, is_read_once


def default_output(
    source: str | Path, *, start: float | None = None, duration: float | None = None
) -> str:
    """Return the default output of a source: `ride_deblurred.mp4` for `ride.mp4`.

    A part has its times in its name: `ride_5s-7.5s_deblurred.mp4`, and `ride_5s-end_deblurred.mp4`
    to the end. A pattern keeps its number, `-` stays a pipe, a container that cannot be written
    becomes Matroska, and a picture stays one of its format.

    Args:
        source: A path, an image pattern or "-".
        start: Seconds at which a part of the source begins.
        duration: Seconds of the part.

    Raises:
        InputError: The source is an address.
        UsageError: The source is a descriptor such as `/dev/stdin`, which has no name.
    """
    if str(source) == "-":
        return "-"
    if is_address(source):
        raise InputError(about_address(str(source)))
    if is_descriptor(source):
        raise UsageError(f"{source} has no name to call the output by: give one with `output`")
    path = Path(source)
    stem, part = path.stem, part_label(start, duration)
    number = number_of(source)
    if part and number is not None:  # the last number of a picture's name is its own
        at = stem.index(number)
        stem = f"{stem[:at]}{part}_{stem[at:]}"
    elif part:
        stem = f"{stem}_{part}"
    output = path.with_name(f"{stem}_deblurred{path.suffix}")
    try:
        format_name(output, "", source=None if is_read_once(path) else path)
    except OutputError:
        if not is_image(output):
            output = output.with_suffix(".mkv")
    return str(output)


def part_label(start: float | None, duration: float | None) -> str:
    """Return the times of a part of a source for a file's name, "" for the whole."""
    if not start and duration is None:
        return ""
    begin = start or 0.0
    end = "end" if duration is None else f"{_seconds(begin + duration)}s"
    return f"{_seconds(begin)}s-{end}"


def part_of_name(output: str | Path) -> tuple[float, float | None] | None:
    """Return start and duration of the part that a default name tells, None for another name."""
    found = re.search(r"_([\d.]+)s-(?:([\d.]+)s|end)(?:_.*)?_deblurred$", Path(output).stem)
    try:
        if found is not None:
            start = float(found[1])
            return start, None if found[2] is None else round(float(found[2]) - start, 6)
    except ValueError:
        pass
    return None


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
