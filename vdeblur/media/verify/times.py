"""Checks of times: frames, start, duration, sound against picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import av

from vdeblur.media.verify.checks import Finding
from vdeblur.media.verify.matching import Match, begin_seconds, shown_times
from vdeblur.media.verify.probe import ProbedFile, ProbedStream
from vdeblur.media.verify.ticks import (
    duration_problem,
    first_time,
    increasing,
    time_problem,
    until_next,
)
from vdeblur.media.verify.wording import change, in_seconds

_OFFSET_TOLERANCE = Fraction(1, 10_000)  # seconds between two streams


def check_frames(match: Match) -> Iterator[Finding]:
    """Compare the number, the times and the durations of the frames."""
    counts, moved, lengths = [], [], []
    numbers = []
    for source, output in match.videos:
        a, a_lengths = match.source_frame_times(source)
        b, b_lengths = shown_times(output)
        if match.decoding_times_only and len(output.frame_pts) < 2:
            a, a_lengths, b = source.dts, None, output.dts
        numbers.append(str(len(b)))
        if len(a) != len(b):
            counts.append(f"{source.name}: {len(a)} -> {len(b)}")
        problem = time_problem(increasing(a), source.time_base, b, output.time_base, "frame")
        if problem:
            moved.append(f"{source.name} {problem}")
        if a_lengths is not None and b_lengths is not None and len(a) == len(b):
            # Only mp4 and mov store durations, and source are the pictures' own only where
            # nothing is reordered; all the others are inferred from the rate.
            reordered = source.reordered or output.reordered
            if match.source.iso and match.output.iso and not reordered:
                problem = duration_problem(
                    a_lengths, source.time_base, b_lengths, output.time_base, "frame"
                ) and duration_problem(
                    until_next(a, a_lengths), source.time_base, b_lengths, output.time_base, "frame"
                )
                if problem:
                    lengths.append(f"{source.name} {problem}")
    shown = [source for source, _ in match.videos]
    for source in match.kept:
        if source.kind == "video" and source not in shown and len(source.pts):
            counts.append(f"{source.name}: the output has no such video")
    yield Finding("frame count", counts, ", ".join(numbers))
    bases = {str(output.time_base) for _, output in match.videos}
    yield Finding("timestamps", moved, f"equal ({', '.join(sorted(bases))} s)")
    yield Finding("frame duration", lengths, "equal")


def check_start(match: Match) -> Iterator[Finding]:
    """Compare when the files start."""
    source, output = match.source, match.output
    a, b = _kept_start(match), output.start_seconds
    problems = []
    # A part has no start time that a file states: times of frames and packets are compared.
    if not source.partial and a is not None and b is not None:
        slack = Fraction(2, av.time_base)
        if {s.time_base for s in match.kept} != {s.time_base for s in output.streams}:
            slack += max((s.time_base for s in output.streams), default=Fraction(0)) / 2
        if abs(a - b) > slack:
            problems.append(change(a, b))
    yield Finding("start time", problems, in_seconds(b))


def _kept_start(match: Match) -> Fraction | None:
    """When a source starts, without the streams that were dropped."""
    stated = match.source.start_seconds
    begins = [begin_seconds(s) for s in match.kept if s.kind in ("video", "audio")]
    known = [begin for begin in begins if begin is not None]
    if stated is None or not match.dropped or not known:
        return stated
    return max(stated, min(known))


def check_duration(match: Match) -> Iterator[Finding]:
    """Compare how long the files last, as they state it and as their packets do."""
    source, output = match.source, match.output
    a, b = source.duration_seconds, output.duration_seconds
    alone = [len(s.pts) for s in match.kept if s.kind in ("video", "audio")] == [1]
    if source.partial or (alone and not source.iso):  # see check_start; one picture has no rate
        yield Finding("duration", [], in_seconds(b))
        return
    frame = max((new.frame_seconds for _, new in match.videos), default=Fraction(1, 25))
    played = [
        [s for s in match.kept if s.kind in ("video", "audio")],
        output.of("video", "audio"),
    ]
    begins = [_kept_start(match) or Fraction(0), output.start_seconds or Fraction(0)]
    before, after = (
        max((s.end_seconds for s in streams), default=Fraction(0)) - begin
        for streams, begin in zip(played, begins, strict=True)
    )
    a, b = _from_start(source, before), _from_start(output, after)
    # Another container need not state the priming of a sound's encoder nor where its last packet is
    # cut: what counts is then the whole of all packets.
    whole = before
    if not match.same_family:
        whole, after = map(_whole_seconds, played)
    close = b is None or (a is not None and abs(b - a) <= 2 * frame)
    problems = []
    # A cut-off source claims more than it has: what it has is then what counts.
    # An edit list may end in the middle of a frame, and libav then states one frame more.
    if b is not None and not close and not before - 2 * frame <= b <= whole + 2 * frame:
        problems.append(change(a if a is not None else before, b))
    elif abs(whole - after) > frame and not any(s.reordered for s in source.of("video")):
        problems.append(f"{change(whole, after)} of sound and picture")
    yield Finding("duration", problems, in_seconds(b if b is not None else after))


def _from_start(file: ProbedFile, span: Fraction) -> Fraction | None:
    """The duration that a file states; some containers count it from 0, and not from the start."""
    stated, start = file.duration_seconds, file.start_seconds
    if stated is None or not start or file.iso:
        return stated
    return min(stated, stated - start, key=lambda seconds: abs(seconds - span))


def _whole_seconds(streams: Sequence[ProbedStream]) -> Fraction:
    """From the first packet to the end of the last, each as long as packets of its stream are."""
    spans = [s.whole_span for s in streams if len(s.pts)]
    known = [span for span in spans if span is not None]
    if not known:
        return Fraction(0)
    return max(end for _, end in known) - min(begin for begin, _ in known)


def check_offsets(match: Match) -> Iterator[Finding]:
    """Compare when sound, subtitles and data begin, counted from the first frame."""
    problems, found = [], []
    if match.videos:
        first, other = match.videos[0]
        base = first_time(match.source_frame_times(first)[0], first.time_base)
        base_out = first_time(shown_times(other)[0], other.time_base)
        if match.decoding_times_only:
            base, base_out = (first_time(s.dts, s.time_base) for s in (first, other))
        for source, output in match.copies + match.data:
            a, b = begin_seconds(source), begin_seconds(output)
            if a is None or b is None or base is None or base_out is None:
                continue
            slack = _OFFSET_TOLERANCE
            if (source.time_base, first.time_base) != (output.time_base, other.time_base):
                slack += max(output.time_base, other.time_base)
            if match.output.family == "avi" != match.source.family:
                slack += first.frame_seconds  # AVI counts frames from 0, and states no other times
            if abs((a - base) - (b - base_out)) > slack:
                problems.append(f"{source.name}: {change(a - base, b - base_out)}")
            elif source.kind == "audio":
                found.append(f"{source.name} {in_seconds(b - base_out)}")
    yield Finding("A/V offset", problems, ", ".join(found) or "no sound")
