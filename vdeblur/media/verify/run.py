"""Verify an output: read both files, compare them, excuse what was accepted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vdeblur.errors import InputError
from vdeblur.media.image_sequences import NumberedPictures, is_pattern
from vdeblur.media.names import check_source, is_address
from vdeblur.media.verify import container, pictures, stills, streams, times
from vdeblur.media.verify.checks import (
    BY_CONTAINER,
    CHECKS,
    ESSENTIAL,
    KNOWN_LOSS,
    NOT_IN_PART,
    OF_BOTH,
    OF_THE_WHOLE,
    Check,
    Finding,
    conclude,
)
from vdeblur.media.verify.excerpt import (
    keep_part,
    leave_out_empty_subtitles,
    leave_out_hidden,
)
from vdeblur.media.verify.matching import Expectations, Match, match
from vdeblur.media.verify.probe import CAPABLE, ProbedFile, probe

_CHECKERS: tuple[Callable[[Match], Iterator[Finding]], ...] = (
    container.check_container,
    streams.check_streams,
    streams.check_decoding,
    times.check_frames,
    times.check_start,
    times.check_duration,
    times.check_offsets,
    pictures.check_looks,
    pictures.check_geometry,
    stills.check_stills,
    streams.check_packets,
    streams.check_headers,
    container.check_chapters,
    container.check_tags,
    container.check_attachments,
    streams.check_telemetry,
    container.check_timecode,
    container.check_maker_boxes,
    container.check_data_tracks,
    container.check_faststart,
)


def verify(
    source: str | Path,
    output: str | Path,
    *,
    quick: bool = False,
    start: float | None = None,
    duration: float | None = None,
    conversion: bool = False,
    expected: Expectations | None = None,
) -> list[Check]:
    """Compare an output with its source.

    Times are compared exactly where the output's time base can hold the source's, else to half a
    tick of the coarser of the two.

    Args:
        source: The file that the output was made from, or the pattern of the pictures.
        output: The file, or pattern, to verify.
        quick: Decode only the first frame of each video stream; frame times are then those of the
            packets. Of a sequence, look at the first, the middle and the last picture.
        start: Seconds from the start of the source at which the output, a part of it, begins.
            Checks that only a whole video can pass then pass, with a detail that says so.
        duration: Seconds that such a part lasts.
        conversion: If the output's kind of container is another than the source's, let all checks
            pass that are not essential (frames, packets, sizes), with a detail that says so.
            Between ISO files and Matroska, duration, chapters, pixel format and color must be kept,
            too.
        expected: Losses that are accepted, and which streams and frames became which, where the
            program that wrote the output knows.

    Returns:
        A check for every name in `CHECKS`, in that order; "container" alone, failed, where the
        output is no media file.

    Raises:
        InputError: The source cannot be read, or the output is no file.
        ValueError: `known_losses` has a name of no check.
    """
    if is_pattern(source) and is_pattern(output):
        return _verify_sequence(str(source), str(output), quick, conversion, expected)
    expected = expected or Expectations()
    unknown = expected.failing - set(CHECKS)
    if unknown:
        raise ValueError(f"known_losses has {sorted(unknown)}, which are names of no check")
    # A name may be too long to be looked at.
    if is_address(output) or not os.path.isfile(output):  # noqa: PTH113
        check_source(output)
    old = probe(source, full=not quick)
    try:
        new = probe(output, full=not quick)
    except InputError as error:
        return [Check("container", False, str(error))]
    if old.still is not None and new.still is not None:
        for file in (old, new):
            file.leave_out_film()
            if _converts(old, new):
                file.leave_out_coding()
    excused = dict.fromkeys(expected.failing, KNOWN_LOSS)
    if start or duration is not None:
        keep_part(old, start or 0.0, duration)
        for file in (old, new):
            leave_out_empty_subtitles(file)
        excused = dict.fromkeys(OF_THE_WHOLE, NOT_IN_PART) | excused
    if conversion and _converts(old, new):
        kept = ESSENTIAL | (OF_BOTH if {old.family, new.family} <= CAPABLE else set())
        excused = dict.fromkeys(set(CHECKS) - kept, BY_CONTAINER) | excused
    matched = match(old, new, expected)
    for pair in matched.copies + matched.data:
        leave_out_hidden(*pair, part=old.partial, iso=new.iso)
    findings = (finding for check in _CHECKERS for finding in check(matched))
    return conclude(findings, excused)


def _verify_sequence(
    source: str, output: str, quick: bool, conversion: bool, expected: Expectations | None
) -> list[Check]:
    """Verify each picture of a sequence; quick: the first, the middle and the last."""
    old, new = (NumberedPictures.find(pattern) for pattern in (source, output))
    numbers = sorted(set(old.numbers) & set(new.numbers))
    if not numbers:
        raise InputError(f"{output} has no picture with a number of {source}: give its output")
    chosen = {numbers[0], numbers[len(numbers) // 2], numbers[-1]} if quick else numbers
    merged: dict[str, Check] = {}
    for number in sorted(chosen):
        pair = old.path(number), new.path(number)
        for check in verify(*pair, quick=quick, conversion=conversion, expected=expected):
            before = merged.get(check.name)
            if before is None or (before.passed and not check.passed):
                where = "" if check.passed else f"{pair[1].name}: "
                merged[check.name] = Check(check.name, check.passed, where + check.detail)
    missing = sorted(set(old.numbers) - set(new.numbers))
    if "frame count" in merged and not quick:
        names = ", ".join(old.path(number).name for number in missing[:3])
        detail = f"{len(old.numbers)} -> {len(new.numbers)} (no {names})" if missing else ""
        merged["frame count"] = Check("frame count", not missing, detail or str(len(numbers)))
    return list(merged.values())


def _converts(source: ProbedFile, output: ProbedFile) -> bool:
    if source.still is not None and output.still is not None:
        return source.still.form != output.still.form
    suffixes = {file.path.suffix.lower() for file in (source, output)}
    return source.family != output.family or len(suffixes) > 1
