"""Pair the streams of a source with those of its output."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from vdeblur.media.verify.probe import ProbedFile, ProbedStream
from vdeblur.media.verify.ticks import UNKNOWN, first_time

#: A source's stream and the output's that it became.
Pair = tuple[ProbedStream, ProbedStream]


@dataclass(frozen=True)
class Match:
    """A source and its output, their streams in pairs; streams without a partner are left out.

    Attributes:
        source: The source, read.
        output: The output, read.
        kept: The source's streams without those that were dropped on purpose.
        dropped: Indices of the latter.
        videos: Pairs of pictures.
        copies: Pairs of sound and subtitles, whose packets must be the same.
        data: Pairs of data streams that libav can read.
        frame_times: Source stream index → pts of its frames in the stream's time base, in order,
            where the caller knows them.
    """

    source: ProbedFile
    output: ProbedFile
    kept: list[ProbedStream]
    dropped: frozenset[int]
    videos: list[Pair]
    copies: list[Pair]
    data: list[Pair]
    frame_times: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def same_family(self) -> bool:
        """Whether both are in the same kind of container."""
        return self.source.family == self.output.family

    @property
    def decoding_times_only(self) -> bool:
        """Whether both are AVI, which has no presentation times: libav guesses them."""
        return self.source.family == self.output.family == "avi"

    def source_frame_times(self, stream: ProbedStream) -> tuple[array[int], array[int] | None]:
        """(pts, durations) of a source's frames; see `shown_times`."""
        pts, durations = shown_times(stream)
        if stream.index not in self.frame_times:
            return pts, durations
        known = array("q", self.frame_times[stream.index])
        return known, durations if known == pts else None


def match(
    source: ProbedFile,
    output: ProbedFile,
    *,
    dropped: frozenset[int],
    stream_map: Mapping[int, int],
    frame_times: Mapping[int, Sequence[int]],
) -> Match:
    """Pair the streams of two files by stream_map, else by type, fourcc and order.

    Args:
        source: The source, read.
        output: The output, read.
        dropped: Indices of source streams that were left out on purpose.
        stream_map: Source stream index → output stream index, for some or all streams.
        frame_times: See `Match`.
    """
    kept = [stream for stream in source.streams if stream.index not in dropped]
    by_index = {stream.index: stream for stream in output.streams}

    def pairs_of(kind: str) -> list[Pair]:
        left = [stream for stream in kept if stream.kind == kind]
        pairs = [
            (stream, by_index[stream_map[stream.index]])
            for stream in left
            if stream_map.get(stream.index) in by_index
        ]
        taken = {partner.index for _, partner in pairs}
        free = [s for s in output.streams if s.kind == kind and s.index not in taken]
        for stream in left:
            if stream.index in stream_map:
                continue
            # Data tracks keep their codec or fourcc; a dropped track must not shift the others.
            found = next((s for s in free if kind != "data" or s.codec == stream.codec), None)
            if found is not None:
                free.remove(found)
                pairs.append((stream, found))
        return sorted(pairs, key=lambda pair: pair[0].index)

    return Match(
        source=source,
        output=output,
        kept=kept,
        dropped=dropped,
        videos=pairs_of("video"),
        copies=pairs_of("audio") + pairs_of("subtitle"),
        data=pairs_of("data"),
        frame_times=frame_times,
    )


def shown_times(stream: ProbedStream) -> tuple[array[int], array[int] | None]:
    """(pts, durations) of the frames of a video stream in presentation order.

    As decoded, else (quick) those of the packets that the edit list shows.
    """
    if len(stream.frame_pts) > 1 or len(stream.pts) == len(stream.frame_pts):
        return stream.frame_pts, stream.frame_durations
    shown = [
        (p, d)
        for p, d, hidden in zip(stream.pts, stream.durations, stream.hidden, strict=True)
        if not hidden
    ]
    if not any(p == UNKNOWN for p, _ in shown):  # AVI has no pts: its order has to do
        shown.sort()
    return array("q", [p for p, _ in shown]), array("q", [d for _, d in shown])


def begin_seconds(stream: ProbedStream) -> Fraction | None:
    """When the first packet is shown, None where no packet has a time."""
    return first_time(stream.pts, stream.time_base)
