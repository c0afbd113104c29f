"""Reduce a probed source to the part of it that an output holds."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from fractions import Fraction

from vdeblur.media.copied_streams import PRIMING
from vdeblur.media.verify.probe import ProbedFile, ProbedStream, Runs
from vdeblur.media.verify.ticks import UNKNOWN


def keep_part(file: ProbedFile, start: float, duration: float | None) -> None:
    """Keep what lies in a part, at the times that VideoReader(start=, duration=) gives it.

    Args:
        file: A probed source; changed in place.
        start: Seconds from the start of the file.
        duration: Seconds; None: to the end.
    """
    origin = float(file.start_seconds or 0)
    end = math.inf if duration is None else start + duration

    def inside(ticks: int, base: Fraction) -> bool:
        at = float(ticks * base) - origin
        return ticks == UNKNOWN or start - 1e-9 <= at < end - 1e-9

    for stream in file.streams:
        if stream.kind == "cover":
            continue
        base = stream.time_base
        times = [d if p == UNKNOWN else p for p, d in zip(stream.pts, stream.dts, strict=True)]
        _keep_packets(stream, [i for i, at in enumerate(times) if inside(at, base)])
        frames = [i for i, at in enumerate(stream.frame_pts) if inside(at, base)]
        if len(stream.frame_pts) > 1:  # else only the first was looked at, on behalf of all
            for name, look in stream.looks.items():
                stream.looks[name] = Runs()
                for number in frames:
                    stream.looks[name].add(look.at(number))
        stream.frame_durations = array("q", [stream.frame_durations[i] for i in frames])
        stream.frame_pts = array("q", [stream.frame_pts[i] for i in frames])
        shift = round((origin + start) / base)
        for ticks in (stream.pts, stream.dts, stream.frame_pts):
            ticks[:] = array("q", [t if t == UNKNOWN else t - shift for t in ticks])
    file.partial = True


def leave_out_empty_subtitles(file: ProbedFile) -> None:
    """Leave out the empty texts by which FFmpeg's mov muxer fills the time between others."""
    empty = hashlib.sha256(bytes(2)).digest()[:8]  # a text of length 0
    for stream in file.streams:
        if stream.codec == "mov_text":
            some = range(len(stream.pts))
            _keep_packets(stream, [i for i in some if stream.digests[8 * i : 8 * i + 8] != empty])


def leave_out_hidden(source: ProbedStream, output: ProbedStream, *, part: bool, iso: bool) -> None:
    """Leave out the packets that an edit list hides, where one of two streams does not have them.

    Args:
        source: A copied stream; changed in place, as is `output`.
        output: What it became.
        part: The output is a part of the source: no hidden packet is expected in it.
        iso: The output is an MP4, which has those before the first that is shown.
    """
    if len(source.pts) == len(output.pts) or not any(source.hidden):
        return
    for stream in (source, output):
        shown = [i for i, hidden in enumerate(stream.hidden) if not hidden]
        before = list(range(shown[0] if shown else 0))
        if before:
            span = (stream.pts[before[-1]] - stream.pts[0]) * stream.time_base
            before = before if iso or span <= PRIMING else []
        _keep_packets(stream, shown if part else before + shown)


def _keep_packets(stream: ProbedStream, kept: Sequence[int]) -> None:
    stream.digests = bytearray(b"".join(stream.digests[8 * i : 8 * i + 8] for i in kept))
    stream.hidden = bytearray(stream.hidden[i] for i in kept)
    for name in ("pts", "dts", "durations"):
        values = getattr(stream, name)
        setattr(stream, name, array("q", [values[i] for i in kept]))
