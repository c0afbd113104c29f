"""Checks of streams: which there are, their packets and their headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from av.stream import Disposition

from vdeblur.media.stale_tags import is_of_coding
from vdeblur.media.verify.checks import Finding
from vdeblur.media.verify.matching import Match, begin_seconds
from vdeblur.media.verify.probe import ProbedStream, kept_tags
from vdeblur.media.verify.ticks import duration_problem, time_problem, until_next
from vdeblur.media.verify.wording import change, disposition, listed, quoted

# Tags that name a stream of the file that was, or that other checks compare.
_STREAM_TAGS = {"language", "timecode", "source_id", "file_package_umid"}

_ROUNDED = Fraction(1, 5000)  # seconds that sums of rounded durations may be off


def check_streams(match: Match) -> Iterator[Finding]:
    """Compare how many streams of each type there are."""
    problems, found = [], []
    for kind in ("video", "audio", "subtitle", "data"):
        kinds = (kind, "bare") if kind == "data" else (kind,)
        source = [stream.codec for stream in match.kept if stream.kind in kinds]
        output = [stream.codec for stream in match.output.of(*kinds)]
        if len(source) != len(output):
            codecs = "" if kind == "video" else f" ({listed(source)} -> {listed(output)})"
            problems.append(f"{kind}: {len(source)} -> {len(output)}{codecs}")
        elif source:
            found.append(f"{len(output)} {kind}")
    yield Finding("streams", problems, ", ".join(found))


def check_decoding(match: Match) -> Iterator[Finding]:
    """Check that the output can be decoded from end to end."""
    problems = []
    for stream in match.output.of("video"):
        if stream.errors:
            problems.append(f"{stream.name}: {stream.errors} packets or frames are damaged")
        elif not stream.frame_pts:
            problems.append(f"{stream.name}: nothing can be decoded")
    if match.output.errors:
        problems.append("reading breaks off with an error")
    old = match.source.errors + sum(s.errors for s in match.source.of("video"))
    note = f"; the source has {old} damaged places" if old else ""
    yield Finding("decoding", problems, f"no errors{note}")


def check_packets(match: Match) -> Iterator[Finding]:
    """Compare the packets of sound and subtitles."""
    problems: dict[str, list[str]] = {}
    for source, output in match.copies:
        for name, problem in _packet_problems(match, source, output):
            problems.setdefault(name, []).append(f"{source.name} {problem}")
    total = sum(len(output.pts) for _, output in match.copies)
    for name, detail in (
        ("packet count", f"{total} in {len(match.copies)} copied streams"),
        ("packet data", "equal"),
        ("packet timestamps", "equal"),
        ("packet duration", "equal"),
    ):
        yield Finding(name, problems.get(name, []), detail if match.copies else "none")


def check_telemetry(match: Match) -> Iterator[Finding]:
    """Compare the packets of data streams that libav can read."""
    lost = [s for s in match.kept if s.kind == "data" and s not in [a for a, _ in match.data]]
    problems = [f"{stream.name} ({stream.codec}) is missing" for stream in lost]
    for source, output in match.data:
        found = _packet_problems(match, source, output)
        problems += [f"{source.name} {text}" for _, text in found]
    tracks = [f"{s.codec} {len(s.pts)} packets" for _, s in match.data]
    yield Finding("telemetry", problems, ", ".join(tracks) or "none")


def _packet_problems(
    match: Match, source: ProbedStream, output: ProbedStream
) -> Iterator[tuple[str, str]]:
    """(name of a check, problem in words) of a copied stream."""
    count = len(source.pts), len(output.pts)
    if source.codec.startswith("pcm_") and source.digests != output.digests:
        if count[0] != count[1] and match.source.partial:
            return  # its packets are cut anew, with other edges
        if source.whole.digest() == output.whole.digest():
            # PCM has no frames: a demuxer cuts packets as the muxer happened to lay them.
            begins = [begin_seconds(s) or Fraction(0) for s in (source, output)]
            ends = [source.end_seconds, output.end_seconds]
            if begins[0] != begins[1] or ends[0] != ends[1]:
                yield "packet timestamps", f"ends: {change(*ends)}"
            return
    if count[0] != count[1]:
        yield "packet count", f"{count[0]} -> {count[1]}"
    both = min(count)
    if source.digests[: both * 8] != output.digests[: both * 8]:
        pairs = np.stack([np.frombuffer(s.digests, np.uint64, both) for s in (source, output)])
        number = int(np.flatnonzero(pairs[0] != pairs[1])[0])
        yield "packet data", f"packet {number}: the bytes differ"
    bases, slack = (source.time_base, output.time_base), _computed(match, source)
    problem = time_problem(source.pts, bases[0], output.pts, bases[1], "packet", slack=slack)
    if not problem and match.same_family:
        problem = time_problem(
            source.dts, bases[0], output.dts, bases[1], "packet", "dts ", slack=slack
        )
    if problem:
        yield "packet timestamps", problem
    a, b = source.durations, output.durations
    if source.kind == "data" and len(a) == len(b) and len(a) and b[-1] < a[-1]:
        # The last packet of telemetry is cut where the picture ends, or the file would grow.
        a, b = a[:-1], b[:-1]
    if source.kind == "audio" and match.source.family == "matroska":
        return  # Matroska stores no durations of audio: the demuxer infers them
    problem = duration_problem(a, source.time_base, b, output.time_base, "packet")
    if problem and match.output.iso:
        a = until_next(source.pts, a)
        problem = duration_problem(a, source.time_base, b, output.time_base, "packet")
    if problem:
        yield "packet duration", problem


def _computed(match: Match, source: ProbedStream) -> Fraction:
    """Seconds that a stream's times may be off.

    An MPEG program stream states the times of some packets only: libav adds up rounded durations
    for the others, and may take one packet for the next where it is cut in two.
    """
    if match.source.family != "mpeg":
        return Fraction(0)
    packet = max(source.durations, default=0) * source.time_base if match.same_family else 0
    return _ROUNDED + packet


def check_headers(match: Match) -> Iterator[Finding]:
    """Compare codec parameters, languages, tags and dispositions of the streams."""
    codecs = [
        f"{source.name}: {difference}"
        for source, output in match.copies
        if (difference := _codec_difference(match, source, output))
    ]
    languages, tags, flags = [], [], []
    for source, output in match.videos + match.copies + match.data:
        spoken = [_language(s) for s in (source, output)]
        if spoken[0] != spoken[1]:
            languages.append(f"{source.name}: {spoken[0]} -> {spoken[1]}")
        for key, difference in tag_problems(
            kept_tags(source.metadata, _STREAM_TAGS, is_of_coding),
            kept_tags(output.metadata, _STREAM_TAGS, is_of_coding),
        ):
            tags.append(f"{source.name} {key}: {difference}")
        added = source.disposition ^ output.disposition
        # FFmpeg's mov muxer enables the first track of a kind where no track is (tkhd flags).
        given = added == Disposition.default and not any(
            s.disposition & Disposition.default for s in match.kept if s.kind == source.kind
        )
        if added and not (given and match.output.iso):
            names = [disposition(s.disposition) for s in (source, output)]
            flags.append(f"{source.name}: {names[0]} -> {names[1]}")
    yield Finding("codec parameters", codecs, listed(output.codec for _, output in match.copies))
    spoken = [_language(output) for _, output in match.videos + match.copies]
    yield Finding("language", languages, listed(spoken) if spoken else "")
    yield Finding("stream metadata", tags, "equal")
    yield Finding("disposition", flags, "equal")


def _codec_difference(match: Match, source: ProbedStream, output: ProbedStream) -> str | None:
    if source.codec != output.codec:
        return f"{source.codec} -> {output.codec}"
    known = zip(source.parameters, output.parameters, strict=False)
    # What libav does not find at the opening of a file is 0 or "".
    if any(a != b for a, b in known if a and b):
        return f"{source.parameters} -> {output.parameters}"
    bit_rate_only = match.source.partial and source.codec == "mov_text"
    if match.same_family and source.extradata != output.extradata and not bit_rate_only:
        return "the extradata differ"
    return None


def _language(stream: ProbedStream) -> str:
    return stream.metadata.get("language", "und")


def tag_problems(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem in words) of the tags of a that b lacks or has otherwise."""
    for key, value in a.items():
        if key not in b:
            yield key, f"{quoted(value)} is missing"
        elif b[key] != value:
            yield key, f"{quoted(value)} -> {quoted(b[key])}"
