"""Checks of a file beside its streams: chapters, tags, attachments, time code, MP4's own boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

from vdeblur.errors import InputError
from vdeblur.media.mp4.tracks import Track, read_tracks, sample_times, track_digest
from vdeblur.media.verify.checks import Finding
from vdeblur.media.verify.matching import Match
from vdeblur.media.verify.probe import ProbedFile
from vdeblur.media.verify.streams import tag_problems
from vdeblur.media.verify.wording import change, listed, quoted


def check_container(match: Match) -> Iterator[Finding]:
    """Name the kinds of containers; an output that cannot be read does not come this far."""
    yield Finding("container", [], f"{match.source.family} -> {match.output.family}")


def check_chapters(match: Match) -> Iterator[Finding]:
    """Compare chapters: number, times, titles."""
    source, output = match.source.chapters, match.output.chapters
    problems = [f"{len(source)} -> {len(output)}"] if len(source) != len(output) else []
    for number, (a, b) in enumerate(zip(source, output, strict=False)):
        slack = Fraction(0) if a.time_base == b.time_base else max(a.time_base, b.time_base) / 2
        if match.same_family and a.id != b.id:
            problems.append(f"chapter {number}: id {a.id} -> {b.id}")
        for word, x, y in (("start", a.start, b.start), ("end", a.end, b.end)):
            if abs(x - y) > slack:
                problems.append(f"chapter {number} {word}: {change(x, y)}")
        if a.title != b.title:
            problems.append(f"chapter {number}: {quoted(a.title)} -> {quoted(b.title)}")
    yield Finding("chapters", problems, str(len(output)) if output else "none")


def check_tags(match: Match) -> Iterator[Finding]:
    """Compare the tags of the file."""
    changes = tag_problems(match.source.metadata, match.output.metadata)
    problems = [f"{key}: {difference}" for key, difference in changes]
    yield Finding("metadata", problems, f"{len(match.source.metadata)} tags")


def check_attachments(match: Match) -> Iterator[Finding]:
    """Compare attached files and cover art."""
    a, b = match.source.attachments, match.output.attachments
    problems = [f"{name} is missing or differs" for name, *rest in a if (name, *rest) not in b]
    yield Finding("attachments", problems, listed(name for name, *_ in b))
    covers = [bytes(s.digests) for s in match.output.of("cover")]
    problems = [
        f"{source.name} ({source.codec}) is missing or differs"
        for source in match.kept
        if source.kind == "cover" and bytes(source.digests) not in covers
    ]
    yield Finding("cover art", problems, str(len(covers)) if covers else "none")


def check_timecode(match: Match) -> Iterator[Finding]:
    """Compare the time code, and whether MP4 has a track for it."""
    before, after = _timecode(match.source), _timecode(match.output)
    problems = []
    if before is not None and before != after:
        problems.append(f"{before} -> {after or 'none'}")
    tracked = match.source.of("timecode"), match.output.of("timecode")
    if tracked[0] and match.output.iso and not tracked[1]:
        problems.append("the tmcd track is missing")
    yield Finding("timecode", problems, after or "none")


def check_maker_boxes(match: Match) -> Iterator[Finding]:
    """Compare the boxes of a camera's maker in moov and moov/udta."""
    have: dict[bytes, set[str]] = {}
    for kind, digest in match.output.maker:
        have.setdefault(kind, set()).add(digest)
    problems, names = [], []
    for kind, digest in match.source.maker:
        name = kind.decode("latin-1")
        names.append(name)
        if kind not in have:
            problems.append(f"{name} is missing")
        elif digest not in have[kind]:
            problems.append(f"{name} differs")
    size, digest = match.source.trailer
    if size and not match.source.partial:
        names.append(f"{size} bytes behind the last box")
        if match.output.trailer[0] != size:
            problems.append(f"the {size} bytes behind the last box are missing")
        elif match.output.trailer[1] != digest:
            problems.append("the bytes behind the last box differ")
    yield Finding("maker boxes", problems, listed(dict.fromkeys(names)))


def check_data_tracks(match: Match) -> Iterator[Finding]:
    """Compare MP4's tracks of data, also those that libav does not read."""
    gone = {s.track.track_id for s in match.source.streams if s.track and s.index in match.dropped}
    tracks = [track for track in _data_tracks(match.source) if track.track_id not in gone]
    free = _data_tracks(match.output)
    problems, names = [], []
    for track in tracks:
        found = next((other for other in free if other.fourcc == track.fourcc), None)
        if found is None:
            problems.append(f"{track.fourcc} is missing")
            continue
        free.remove(found)
        names.append(f"{track.fourcc} {found.sample_count} samples")
        if not match.source.partial:
            problems += _track_problems(match, track, found)
    yield Finding("data tracks", problems, listed(names))


def check_faststart(match: Match) -> Iterator[Finding]:
    """Check that an output of a source with `moov` in front has it there, too."""
    late = match.source.moov_first and match.output.iso and not match.output.moov_first
    now = "moov first" if match.output.moov_first else "moov last"
    yield Finding(
        "faststart",
        ["moov first -> moov last"] if late else [],
        now if match.output.iso else "not mp4",
    )


def _track_problems(match: Match, source: Track, output: Track) -> Iterator[str]:
    source_path, output_path = match.source.path, match.output.path
    try:
        digest = track_digest(source_path, source.index)
        times = sample_times(source_path, source.index)
    except InputError:
        return  # damaged in the source
    try:
        if track_digest(output_path, output.index) != digest:
            yield f"{source.fourcc}: the samples differ"
        new_times = sample_times(output_path, output.index)
    except InputError:
        yield f"{source.fourcc} cannot be read"
        return
    scale = Fraction(source.timescale or 1, output.timescale or 1)
    a, b = _without_last(times, Fraction(1)), _without_last(new_times, scale)
    if a != b:
        yield f"{source.fourcc}: the sample times differ"


def _timecode(file: ProbedFile) -> str | None:
    for stream in file.of("video", "timecode"):
        if "timecode" in stream.metadata:
            return stream.metadata["timecode"]
    return None


def _data_tracks(file: ProbedFile) -> list[Track]:
    """Tracks of an mp4 or mov that are neither picture, sound, text nor made by the muxer."""
    if not file.iso:
        return []
    media = (b"vide", b"soun", b"text", b"sbtl", b"subt", b"subp", b"clcp", b"tmcd", b"hint")
    return [
        track
        for track in read_tracks(file.path)
        if track.handler not in media and not track.is_chapter_track
    ]


def _without_last(runs: Sequence[tuple[int, int]], scale: Fraction) -> list[tuple[int, Fraction]]:
    """Scaled runs of durations without the last sample, which may be cut where the picture ends."""
    scaled = [(count, duration * scale) for count, duration in runs]
    if scaled:
        count, duration = scaled.pop()
        scaled += [(count - 1, duration)] if count > 1 else []
    return scaled
