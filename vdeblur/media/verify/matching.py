"""Pair the streams of a source with those of its output."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from vdeblur.media.verify.probe import ProbedFile, ProbedStream
from vdeblur.media.verify.ticks import UNKNOWN, first_time

#: A source's stream and the output's that it became.
Pair = tuple[ProbedStream, ProbedStream]


@dataclass(frozen=True)
class Expectations:
    """What the program that wrote an output knows of it.

    Attributes:
        known_losses: Losses that are accepted: an int is the index of a source stream that was
            dropped, a str the name of a check that may fail (it then passes, and its detail starts
            with "known loss:").
        stream_map: Source stream index → output stream index; streams without an entry are paired
            by type, fourcc and order.
        frame_times: Source stream index → pts, in the stream's time base, of the frames that were
            decoded from it, in order; without them, in quick mode, packets that cannot be decoded
            count as lost frames.
    """

    known_losses: Collection[int | str] = ()
    stream_map: Mapping[int, int] = field(default_factory=dict)
    frame_times: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def dropped(self) -> frozenset[int]:
        """Indices of the source streams that were dropped."""
        return frozenset(index for index in self.known_losses if isinstance(index, int))

    @property
    def failing(self) -> frozenset[str]:
        """Names of the checks that may fail."""
        return frozenset(name for name in self.known_losses if isinstance(name, str))


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
        frame_times: See `Expectations`.
    """

    source: ProbedFile
    output: ProbedFile
    kept: list[ProbedStream]
    dropped: frozenset[int]
    videos: list[Pair]
    copies: list[Pair]
    data: list[Pair]
    frame_times: Mapping[int, Sequence[int]]

    @property
    def same_family(self) -> bool:
        """Whether both are in the same kind of container."""
        return self.source.family == self.output.family

    @property
    def decoding_times_only(self) -> bool:
        """Whether both are AVI, which has no presentation times: libav guesses them."""
        return self.source.family == self.output.family == "avi"

    def source_frame_times(self, stream: ProbedStream) -> tuple[array[int], array[int] | None]:
        """Return (pts, durations) of a source's frames; see `shown_times`."""
        pts, durations = shown_times(stream)
        if stream.index not in self.frame_times:
            return pts, durations
        known = array("q", self.frame_times[stream.index])
        return known, durations if known == pts else None


def match(source: ProbedFile, output: ProbedFile, expected: Expectations) -> Match:
    """Pair the streams of two files by `stream_map`, else by type, fourcc and order."""
    dropped, stream_map = expected.dropped, expected.stream_map
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
            like = [s for s in free if kind != "data" or s.codec == stream.codec]
            found = next((s for s in like if s.is_empty == stream.is_empty), None)
            if found is None and like and not stream.is_empty:
                found = like[0]
            if found is not None:
                free.remove(found)
                pairs.append((stream, found))
        return sorted(pairs, key=lambda pair: pair[0].index)

    videos, data = pairs_of("video"), pairs_of("data")
    copies = pairs_of("audio") + pairs_of("subtitle")
    paired = {stream.index for stream, _ in videos + copies + data}
    return Match(
        source=source,
        output=output,
        # Of a stream that is declared and never written to, nothing is there to be kept.
        kept=[s for s in kept if s.index in paired or not s.is_empty],
        dropped=dropped,
        videos=videos,
        copies=copies,
        data=data,
        frame_times=expected.frame_times,
    )


def shown_times(stream: ProbedStream) -> tuple[array[int], array[int] | None]:
    """Return (pts, durations) of the frames of a video stream in presentation order.

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
    """Return when the first packet is shown; None where no packet has a time."""
    return first_time(stream.pts, stream.time_base)
