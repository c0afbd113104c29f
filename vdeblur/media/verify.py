"""Proof that an output kept everything of its source: `vdeblur verify IN OUT`.

Reads both files from scratch, with libav and with the box reader, and compares what a deblurred
copy must not change: every frame's time and form, every packet of the other streams, tags,
chapters, attachments, telemetry. Knows nothing of how the output was made, and never compares the
picture itself: that is meant to change.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.filter import Graph
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from numpy.typing import NDArray

from vdeblur.errors import InputError
from vdeblur.media.encoders import side_data_bytes
from vdeblur.media.joined_file import for_libav
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    Track,
    read_maker_boxes,
    read_tracks,
    sample_times,
    track_digest,
)

#: The names of all checks, in the order in which they are reported.
CHECKS = (
    "container",
    "streams",
    "decoding",
    "frame count",
    "timestamps",
    "frame duration",
    "start time",
    "duration",
    "A/V offset",
    "picture size",
    "sample aspect ratio",
    "pixel format",
    "colour range",
    "colour primaries",
    "transfer characteristics",
    "matrix coefficients",
    "chroma location",
    "display matrix",
    "field order",
    "mastering display",
    "content light level",
    "dynamic HDR",
    "closed captions",
    "codec parameters",
    "packet count",
    "packet data",
    "packet timestamps",
    "packet duration",
    "language",
    "stream metadata",
    "disposition",
    "chapters",
    "metadata",
    "attachments",
    "cover art",
    "telemetry",
    "timecode",
    "maker boxes",
    "data tracks",
    "faststart",
)

# What any container must keep; the rest of the checks depends on what a container can say.
_ESSENTIAL = frozenset(
    {
        "container",
        "decoding",
        "frame count",
        "packet count",
        "packet data",
        "A/V offset",
        "picture size",
    }
)
# What both ISO files (MP4, MOV) and Matroska can say.
_OF_BOTH = frozenset(
    {
        "duration",
        "chapters",
        "pixel format",
        "sample aspect ratio",
        "colour range",
        "colour primaries",
        "transfer characteristics",
        "matrix coefficients",
    }
)
# What belongs to a whole video, and is left out of a part of it.
_OF_THE_WHOLE = frozenset({"streams", "chapters", "telemetry", "timecode", "data tracks"})

_NONE = -(1 << 63)  # AV_NOPTS_VALUE
_OFFSET_TOLERANCE = Fraction(1, 10_000)  # seconds between two streams

# Written by muxers and demuxers about themselves; mkvmerge's statistics describe the old bitstream.
_MUXER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "software"} | {
    # MXF's identification of whoever wrote the file, and of this copy of it (SMPTE ST 377-1).
    "uid",
    "generation_uid",
    "company_name",
    "product_name",
    "product_uid",
    "product_version",
    "product_version_num",
    "toolkit_version_num",
    "application_platform",
    "modification_date",
    "material_package_umid",
    "file_package_umid",
}
_STREAM_TAGS = {"encoder", "vendor_id", "rotate", "language", "timecode", "duration", "bps"} | {
    "number_of_frames",
    "number_of_bytes",
    "source_id",
    "file_package_umid",
}

# FFmpeg's demuxers by the container they read; within one, packets come back as they went in.
_FAMILIES = {"mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "matroska"}
_CAPABLE = frozenset(_FAMILIES.values())


@dataclass(frozen=True)
class Check:
    """One thing that was compared: a name out of `CHECKS`, the outcome, what was found."""

    name: str
    passed: bool
    detail: str


def verify(
    source: str | Path,
    output: str | Path,
    *,
    quick: bool = False,
    start: float | None = None,
    duration: float | None = None,
    conversion: bool = False,
    known_losses: Collection[int | str] = (),
    stream_map: Mapping[int, int] | None = None,
    frame_times: Mapping[int, Sequence[int]] | None = None,
) -> list[Check]:
    """Compares an output with its source: one Check for every name in `CHECKS`, in that order.

    quick: decode only the first frame of each video stream; frame times are then those of the
    packets. start, duration: seconds, of an output that is to hold this part of the source; what
    only a whole video has then passes, with a detail that says so. conversion: so does, in another
    kind of container than the source's, whatever is not essential (frames, packets, sizes); between
    ISO files and Matroska, duration, chapters, pixel format and colour must be kept, too.
    known_losses: what the caller has accepted already: an int is the index of a source stream that
    was dropped, a str the name of a check that may fail (it then passes, and its detail starts with
    "known loss:"). stream_map: source stream index → output stream index; without it streams are
    paired by type, fourcc and order. frame_times: source stream index → the pts, in the stream's
    time base, of the frames that were decoded from it, in order; without it, in quick mode, packets
    that cannot be decoded count as lost frames.

    Times are compared exactly where the output's time base can hold the source's, and else to half
    a tick of the coarser of the two. Raises InputError when the source, or the output's file,
    cannot be read; an output that is no media file fails the check "container".
    """
    unknown = {name for name in known_losses if isinstance(name, str)} - set(CHECKS)
    if unknown:
        raise ValueError(f"known_losses has {sorted(unknown)}, which are names of no check")
    if not Path(output).is_file():
        raise InputError(f"{output} is not a file: give the output that is to be verified")
    theirs = _examine(source, full=not quick)
    excused = {name: _KNOWN for name in known_losses if isinstance(name, str)}
    try:
        ours = _examine(output, full=not quick)
    except InputError as error:
        return [Check("container", False, str(error))]
    if start or duration is not None:
        theirs = _part(theirs, start or 0.0, duration)
        for file in (theirs, ours):
            _leave_out_silence(file)
        excused = dict.fromkeys(_OF_THE_WHOLE, _PART) | excused
    if conversion and _converts(theirs, ours):
        kept = _ESSENTIAL | (_OF_BOTH if {theirs.family, ours.family} <= _CAPABLE else set())
        if theirs.start_seconds:  # Matroska counts its duration from 0, ISO files from the start
            kept -= {"duration"}
        excused = dict.fromkeys(set(CHECKS) - kept, BY_CONTAINER) | excused
    report = _Report(excused)
    dropped = {index for index in known_losses if isinstance(index, int)}
    _Comparison(theirs, ours, report, dropped, stream_map or {}, frame_times or {}).run()
    return [report.checks[name] for name in CHECKS]


def format_checks(checks: Sequence[Check]) -> str:
    """The checks as a table for the terminal, one line each, and a last line that sums them up."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lost = check.passed and check.detail.startswith(_EXCUSES)
        mark = "lost" if lost else "ok" if check.passed else "FAIL"
        lines.append(f"{mark:<5} {check.name:<{width}}  {check.detail}".rstrip())
    failed = sum(not check.passed for check in checks)
    losses = sum(line.startswith("lost ") for line in lines)
    total = f"{len(checks)} checks"
    reasons = f" ({losses} lost, for the reasons given)" if losses else ""
    lines.append(f"{failed} of {total} failed" if failed else f"all {total} passed{reasons}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """The checks as plain data: {"passed": bool, "checks": [{"name", "passed", "detail"}, …]}."""
    return {
        "passed": all(check.passed for check in checks),
        "checks": [
            {"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks
        ],
    }


# --- what is read from one file -----------------------------------------------------------------


class _Runs:
    """A value for each frame, kept as runs of equal values."""

    def __init__(self) -> None:
        self.count = 0
        self.starts: list[int] = []
        self.values: list[Any] = []

    def add(self, value: Any) -> None:
        if not self.values or self.values[-1] != value:
            self.starts.append(self.count)
            self.values.append(value)
        self.count += 1

    def at(self, number: int) -> Any:
        return self.values[bisect_right(self.starts, number) - 1]

    def first_difference(
        self, other: _Runs, same: Callable[[Any, Any], bool]
    ) -> tuple[int, Any, Any] | None:
        """(frame, value here, value there) of the first frame that both have and that differs."""
        both = min(self.count, other.count)
        for number in sorted({*self.starts, *other.starts}):
            if number < both and not same(self.at(number), other.at(number)):
                return number, self.at(number), other.at(number)
        return None


@dataclass
class _Stream:
    """A stream: its header, its packets' times and digests, its frames' times and forms."""

    index: int
    kind: str  # video, cover, audio, subtitle, data, bare, timecode, chapters, attachment
    codec: str
    time_base: Fraction
    track: Track | None
    parameters: tuple[Any, ...]
    extradata: bytes
    metadata: dict[str, str]
    disposition: int
    aspect: Fraction = Fraction(1)
    chroma_location: str | None = None
    frame_seconds: Fraction = Fraction(1, 25)
    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    durations: array[int] = field(default_factory=lambda: array("q"))
    hidden: bytearray = field(default_factory=bytearray)  # 1: outside the edit list
    digests: bytearray = field(default_factory=bytearray)  # 8 bytes of sha256 a packet
    whole: Any = field(default_factory=hashlib.sha256)
    frame_pts: array[int] = field(default_factory=lambda: array("q"))
    frame_durations: array[int] = field(default_factory=lambda: array("q"))
    looks: dict[str, _Runs] = field(default_factory=dict)
    errors: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} {self.index}"

    @property
    def reordered(self) -> bool:
        """True when packets come in another order than their presentation times."""
        known = [p for p in self.pts if p != _NONE]
        return any(b < a for a, b in itertools.pairwise(known))

    @property
    def end_seconds(self) -> Fraction:
        times = zip(self.pts, self.durations, strict=True)
        return max((p + max(d, 0) for p, d in times if p != _NONE), default=0) * self.time_base


@dataclass
class _File:
    path: Path
    family: str
    streams: list[_Stream]
    metadata: dict[str, str]
    chapters: list[tuple[int, Fraction, Fraction, Fraction, str]]
    attachments: list[tuple[str, str, str]]
    start_seconds: Fraction | None
    duration_seconds: Fraction | None
    errors: int
    iso: bool = False
    moov_first: bool = False
    maker: list[tuple[bytes, bytes]] = field(default_factory=list)
    partial: bool = False  # a part of it was left: `_Stream.whole` and `maker` are still the file's

    def of(self, *kinds: str) -> list[_Stream]:
        return [stream for stream in self.streams if stream.kind in kinds]


def _examine(path: str | Path, *, full: bool) -> _File:
    """Everything that is compared, from one pass over the packets."""
    path = path if isinstance(path, Path) else Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: give a video file")
    iso = boxes.is_iso(path)
    try:
        with av.open(for_libav(path), metadata_errors="surrogateescape") as container:
            tracks = {track.track_id: track for track in read_tracks(path)} if iso else {}
            streams = [_header(stream, tracks.get(stream.id)) for stream in container.streams]
            errors = _read_packets(container, streams, full=full)
            return _File(
                path=path,
                family=_FAMILIES.get(container.format.name, container.format.name),
                streams=streams,
                metadata=_tags(container.metadata, _MUXER_TAGS | {"timecode"}),
                chapters=[_chapter(chapter) for chapter in container.chapters()],
                attachments=[
                    (s.name or "", s.mimetype or "", hashlib.sha256(s.data).hexdigest())
                    for s in container.streams.attachments
                ],
                start_seconds=_av_seconds(container.start_time),
                duration_seconds=_av_seconds(container.duration),
                errors=errors,
                iso=iso,
                moov_first=iso and boxes.moov_first(path),
                maker=read_maker_boxes(path) if iso else [],
            )
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not a video that can be read ({reason}).") from error


def _header(stream: Any, track: Track | None) -> _Stream:
    context = stream.codec_context
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        kind = "cover"
    elif track is not None and track.is_chapter_track:
        kind = "chapters"
    elif track is not None and track.fourcc == "tmcd":
        kind = "timecode"
    elif track is not None and stream.type == "data" and stream.name is None:
        kind = "bare"  # libav discards these packets, some while probing: the box reader has them
    else:
        kind = stream.type
    codec = context.codec.canonical_name if context is not None else None
    # PyAV asks the context of a subtitle stream for its name, also where there is none.
    own_name = stream.name if context is not None or kind == "data" else None
    parameters: tuple[Any, ...] = ()
    if kind == "audio" and context is not None:
        parameters = (context.sample_rate, context.channels, context.layout.name)
        context_profile = context.profile
        parameters += (context_profile,) if context_profile else ()
    facts = _Stream(
        index=stream.index,
        kind=kind,
        codec=codec or (track.fourcc if track is not None else None) or own_name or "unknown",
        time_base=stream.time_base or Fraction(1, 1000),
        track=track,
        parameters=parameters,
        extradata=bytes(getattr(context, "extradata", None) or b""),
        metadata={key.lower(): value for key, value in stream.metadata.items()},
        disposition=int(stream.disposition),
    )
    if kind == "video" and context is not None:
        context.thread_type = "AUTO"
        context.flags |= int(CodecFlags.unaligned)  # crop as stated, not as SIMD likes it
        facts.frame_seconds = 1 / stream.average_rate if stream.average_rate else Fraction(1, 25)
    return facts


def _read_packets(container: Any, streams: Sequence[_Stream], *, full: bool) -> int:
    """Fills in packets and frames; returns how often reading itself failed."""
    field_order = _FieldOrder()
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError):
            return 1  # libav does not go on behind a read error
        if packet is None:
            break
        stream = streams[packet.stream.index]
        if packet.size:
            stream.pts.append(_NONE if packet.pts is None else packet.pts)
            stream.dts.append(_NONE if packet.dts is None else packet.dts)
            stream.durations.append(packet.duration or 0)
            stream.hidden.append(packet.is_discard)
            if stream.kind != "video":
                _digest(stream, packet)
        if stream.kind == "video" and packet.stream.codec_context is not None:
            if not full and stream.frame_pts:
                continue
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, OSError):
                stream.errors += 1
                continue
            for frame in frames if full else frames[:1]:
                _look(stream, frame, field_order)
    for stream in streams:
        if stream.kind == "video":
            opened = container.streams[stream.index]
            aspect = opened.sample_aspect_ratio if opened.codec_context is not None else None
            stream.aspect = aspect or Fraction(1)
            stream.chroma_location = _chroma_location(opened)
    return 0


def _digest(stream: _Stream, packet: Any) -> None:
    data = bytes(packet)
    if stream.codec == "aac" and len(data) > 7 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        # An ADTS header (ISO/IEC 13818-7, 6.2; 9 bytes with a CRC) is the container's, not the
        # sound's: MPEG-TS has it and mp4 has not. A raw AAC frame never starts with 12 ones.
        data = data[7 if data[1] & 1 else 9 :]
    stream.digests += hashlib.sha256(data).digest()[:8]
    stream.whole.update(data)


def _look(stream: _Stream, frame: Any, field_order: _FieldOrder) -> None:
    stream.frame_pts.append(_NONE if frame.pts is None else frame.pts)
    stream.frame_durations.append(frame.duration or 0)
    stream.errors += bool(frame.is_corrupt)
    side = side_data_bytes(frame, stream.codec)
    look = {
        "picture size": (frame.width, frame.height),
        "pixel format": frame.format.name,
        "colour range": int(frame.color_range),
        "colour primaries": int(frame.color_primaries),
        "transfer characteristics": int(frame.color_trc),
        "matrix coefficients": int(frame.colorspace),
        "display matrix": _matrix(side.get("DISPLAYMATRIX")),
        "field order": field_order(frame) if frame.interlaced_frame else "progressive",
        "mastering display": _mastering(side.get("MASTERING_DISPLAY_METADATA")),
        "content light level": _light(side.get("CONTENT_LIGHT_LEVEL")),
        "dynamic HDR": _fingerprint(
            side.get("DYNAMIC_HDR_PLUS"),
            side.get("DYNAMIC_HDR_VIVID"),
            side.get("DOVI_RPU_BUFFER"),
        ),
        "closed captions": _fingerprint(side.get("A53_CC")),
    }
    if look["colour range"] == ColorRange.UNSPECIFIED:
        # The meaning of "unspecified": full for RGB and FFmpeg's yuvj formats, else limited.
        name = frame.format.name
        wide = name.startswith("yuvj") or frame.format.is_rgb
        look["colour range"] = int(ColorRange.JPEG if wide else ColorRange.MPEG)
    for name, value in look.items():
        stream.looks.setdefault(name, _Runs()).add(value)


class _FieldOrder:
    """Which field of an interlaced frame comes first.

    PyAV shows `interlaced_frame` but not the flag beside it (AV_FRAME_FLAG_TOP_FIELD_FIRST);
    FFmpeg's select filter reads it: a frame comes out of the graph if its top field is first.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple[Any, ...], Graph] = {}

    def __call__(self, frame: Any) -> str:
        key = (frame.width, frame.height, frame.format.name)
        try:
            if key not in self._graphs:
                graph = Graph()
                source = graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=frame.time_base or Fraction(1, 1000),
                )
                select = graph.add("select", "eq(interlace_type,TOPFIRST)")
                sink = graph.add("buffersink")
                source.link_to(select)
                select.link_to(sink)
                graph.configure()
                self._graphs[key] = graph
            self._graphs[key].vpush(frame)
            self._graphs[key].vpull()
        except BlockingIOError:  # EAGAIN: the filter kept it
            return "bottom field first"
        except (av.error.FFmpegError, OSError):  # a format that no filter takes
            return "interlaced"
        return "top field first"


def _chroma_location(stream: Any) -> str | None:
    """Where the chroma samples of a 4:2:0 stream lie: left, center, topleft …, None if not said.

    PyAV has no attribute for it. FFmpeg's matroska muxer writes what libav knows into the header
    (ChromaSitingHorz 0x55B7, ChromaSitingVert 0x55B8; RFC 9559), so one is made here.
    """
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
            data = header.getvalue()
    except (av.error.FFmpegError, OSError, ValueError):
        return None
    across, down = data.find(b"\x55\xb7\x81"), data.find(b"\x55\xb8\x81")
    if across < 0 or down < 0:
        return None
    where = (data[across + 3], data[down + 3])
    names = {(1, 1): "topleft", (1, 2): "left", (2, 1): "top", (2, 2): "center"}
    return names.get(where)


def _matrix(data: Any) -> tuple[int, ...]:
    """The turning part of a display matrix (16.16 fixed point), the identity without one."""
    if data is None:
        return (1 << 16, 0, 0, 1 << 16)
    m = struct.unpack("<9i", bytes(data)[:36])
    return (m[0], m[1], m[3], m[4])


def _mastering(data: Any) -> tuple[Fraction, ...] | None:
    """AVMasteringDisplayMetadata: 10 rationals and two flags that say which were given."""
    if data is None:
        return None
    values = struct.unpack("<22i", bytes(data)[:88])
    pairs = zip(values[:20:2], values[1:20:2], strict=True)
    ratios = [Fraction(n, d) if d else Fraction(0) for n, d in pairs]
    return (*ratios, Fraction(values[20]), Fraction(values[21]))


def _light(data: Any) -> tuple[int, ...] | None:
    """AVContentLightMetadata: MaxCLL, MaxFALL in cd/m²."""
    return None if data is None else struct.unpack("<2I", bytes(data)[:8])


def _fingerprint(*parts: Any) -> str | None:
    found = [bytes(part) for part in parts if part is not None]
    return hashlib.sha256(b"".join(found)).hexdigest()[:16] if found else None


def _tags(metadata: Mapping[str, str], ignored: Collection[str]) -> dict[str, str]:
    lower = {key.lower(): value for key, value in metadata.items()}
    return {
        key: value
        for key, value in lower.items()
        if key not in ignored and not key.startswith("_statistics_")
    }


def _chapter(chapter: Any) -> tuple[int, Fraction, Fraction, Fraction, str]:
    base = chapter["time_base"] or Fraction(1)
    title = chapter["metadata"].get("title", "")
    return chapter["id"], base, chapter["start"] * base, chapter["end"] * base, title


def _av_seconds(value: int | None) -> Fraction | None:
    return None if value is None else Fraction(value, av.time_base)


def _part(file: _File, start: float, duration: float | None) -> _File:
    """What of a file lies in a part, at the times that VideoReader(start=, duration=) gives it."""
    origin = float(file.start_seconds or 0)
    end = math.inf if duration is None else start + duration

    def inside(ticks: int, base: Fraction) -> bool:
        at = float(ticks * base) - origin
        return ticks == _NONE or start - 1e-9 <= at < end - 1e-9

    for stream in file.streams:
        if stream.kind == "cover":
            continue
        base = stream.time_base
        times = [d if p == _NONE else p for p, d in zip(stream.pts, stream.dts, strict=True)]
        _keep_packets(stream, [i for i, at in enumerate(times) if inside(at, base)])
        frames = [i for i, at in enumerate(stream.frame_pts) if inside(at, base)]
        if len(stream.frame_pts) > 1:  # else looked at was the first, for all of them
            for name, look in stream.looks.items():
                stream.looks[name] = _Runs()
                for number in frames:
                    stream.looks[name].add(look.at(number))
        stream.frame_durations = array("q", [stream.frame_durations[i] for i in frames])
        stream.frame_pts = array("q", [stream.frame_pts[i] for i in frames])
        shift = round((origin + start) / base)
        for ticks in (stream.pts, stream.dts, stream.frame_pts):
            ticks[:] = array("q", [t if t == _NONE else t - shift for t in ticks])
    file.partial = True
    return file


def _keep_packets(stream: _Stream, kept: Sequence[int]) -> None:
    stream.digests = bytearray(b"".join(stream.digests[8 * i : 8 * i + 8] for i in kept))
    stream.hidden = bytearray(stream.hidden[i] for i in kept)
    for name in ("pts", "dts", "durations"):
        values = getattr(stream, name)
        setattr(stream, name, array("q", [values[i] for i in kept]))


def _leave_out_silence(file: _File) -> None:
    """Leave out the empty subtitles by which FFmpeg's mov muxer fills the time between others."""
    empty = hashlib.sha256(bytes(2)).digest()[:8]  # a text of length 0
    for stream in file.streams:
        if stream.codec == "mov_text":
            some = range(len(stream.pts))
            _keep_packets(stream, [i for i in some if stream.digests[8 * i : 8 * i + 8] != empty])


def _converts(source: _File, output: _File) -> bool:
    suffixes = {file.path.suffix.lower() for file in (source, output)}
    return source.family != output.family or len(suffixes) > 1


# --- comparing ----------------------------------------------------------------------------------

_KNOWN = "known loss: "
_PART = "not kept by a part: "
#: How the detail of a check begins that another kind of container need not pass.
BY_CONTAINER = "not kept by this container: "
_EXCUSES = (_KNOWN, _PART, BY_CONTAINER)


class _Report:
    """Collects one Check for each name.

    excused: names whose failure passes, and what its detail then begins with.
    """

    def __init__(self, excused: Mapping[str, str]) -> None:
        self._excused = excused
        self.checks: dict[str, Check] = {}

    def add(self, name: str, problems: Sequence[str], detail: str = "") -> None:
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            detail = "; ".join(problems[:3]) + more
            detail = self._excused.get(name, "") + detail
        self.checks[name] = Check(name, not problems or name in self._excused, detail)


class _Comparison:
    def __init__(
        self,
        source: _File,
        output: _File,
        report: _Report,
        dropped: set[int],
        stream_map: Mapping[int, int],
        frame_times: Mapping[int, Sequence[int]],
    ) -> None:
        self.source, self.output, self.report = source, output, report
        self.dropped, self.stream_map, self.frame_times = dropped, stream_map, frame_times
        self.same_family = source.family == output.family
        self.kept = [stream for stream in source.streams if stream.index not in dropped]
        self.videos = self._pairs("video")
        self.copies = self._pairs("audio") + self._pairs("subtitle")
        self.data = self._pairs("data")

    def run(self) -> None:
        """Adds every check to the report."""
        self.report.add("container", [], f"{self.source.family} -> {self.output.family}")
        self._streams()
        self._decoding()
        self._frames()
        self._start_and_duration()
        self._offsets()
        self._looks()
        self._packets()
        self._headers()
        self._chapters()
        self._file_tags()
        self._attached()
        self._telemetry()
        self._timecode()
        self._boxes()

    def _pairs(self, kind: str) -> list[tuple[_Stream, _Stream]]:
        """Source and output streams that belong together; those without a partner are left out."""
        by_index = {stream.index: stream for stream in self.output.streams}
        left = [stream for stream in self.kept if stream.kind == kind]
        pairs = [
            (stream, by_index[self.stream_map[stream.index]])
            for stream in left
            if self.stream_map.get(stream.index) in by_index
        ]
        taken = {ours.index for _, ours in pairs}
        free = [s for s in self.output.streams if s.kind == kind and s.index not in taken]
        for stream in left:
            if stream.index in self.stream_map:
                continue
            # Data tracks keep their codec or fourcc; a dropped one must not shift the others.
            match = next((s for s in free if kind != "data" or s.codec == stream.codec), None)
            if match is not None:
                free.remove(match)
                pairs.append((stream, match))
        return sorted(pairs, key=lambda pair: pair[0].index)

    def _streams(self) -> None:
        problems, found = [], []
        for kind in ("video", "audio", "subtitle", "data"):
            kinds = (kind, "bare") if kind == "data" else (kind,)
            theirs = [stream.codec for stream in self.kept if stream.kind in kinds]
            ours = [stream.codec for stream in self.output.of(*kinds)]
            if len(theirs) != len(ours):
                codecs = "" if kind == "video" else f" ({_list(theirs)} -> {_list(ours)})"
                problems.append(f"{kind}: {len(theirs)} -> {len(ours)}{codecs}")
            elif theirs:
                found.append(f"{len(ours)} {kind}")
        self.report.add("streams", problems, ", ".join(found))

    def _decoding(self) -> None:
        problems = []
        for stream in self.output.of("video"):
            if stream.errors:
                problems.append(f"{stream.name}: {stream.errors} packets or frames are damaged")
            elif not stream.frame_pts:
                problems.append(f"{stream.name}: nothing can be decoded")
        if self.output.errors:
            problems.append("reading breaks off with an error")
        old = self.source.errors + sum(s.errors for s in self.source.of("video"))
        note = f"; the source has {old} damaged places" if old else ""
        self.report.add("decoding", problems, f"no errors{note}")

    # -- times -------------------------------------------------------------------------------

    def _frames(self) -> None:
        counts, moved, lengths = [], [], []
        numbers = []
        for theirs, ours in self.videos:
            a, a_lengths = _frame_times(theirs, self.frame_times.get(theirs.index))
            b, b_lengths = _frame_times(ours, None)
            if self.source.family == self.output.family == "avi" and len(ours.frame_pts) < 2:
                a, a_lengths, b = theirs.dts, None, ours.dts  # AVI has decoding times only
            numbers.append(str(len(b)))
            if len(a) != len(b):
                counts.append(f"{theirs.name}: {len(a)} -> {len(b)}")
            problem = _time_problem(_increasing(a), theirs.time_base, b, ours.time_base, "frame")
            if problem:
                moved.append(f"{theirs.name} {problem}")
            if a_lengths is not None and b_lengths is not None and len(a) == len(b):
                # Only mp4 and mov store durations, and theirs are the pictures' own only where
                # nothing is reordered; all the others are inferred from the rate.
                reordered = theirs.reordered or ours.reordered
                if self.source.iso and self.output.iso and not reordered:
                    problem = _duration_problem(
                        a_lengths, theirs.time_base, b_lengths, ours.time_base, "frame", stored=True
                    )
                    if problem:
                        lengths.append(f"{theirs.name} {problem}")
        self.report.add("frame count", counts, ", ".join(numbers))
        bases = {str(ours.time_base) for _, ours in self.videos}
        self.report.add("timestamps", moved, f"equal ({', '.join(sorted(bases))} s)")
        self.report.add("frame duration", lengths, "equal")

    def _start_and_duration(self) -> None:
        a, b = self.source.start_seconds, self.output.start_seconds
        if self.source.partial:  # no file states them of a part: times of frames and packets do
            self.report.add("start time", [], _seconds(b))
            self.report.add("duration", [], _seconds(self.output.duration_seconds))
            return
        problems = []
        slack = Fraction(2, av.time_base)
        if {s.time_base for s in self.kept} != {s.time_base for s in self.output.streams}:
            slack += max((s.time_base for s in self.output.streams), default=Fraction(0)) / 2
        if a is not None and b is not None and abs(a - b) > slack:
            problems.append(_change(a, b))
        self.report.add("start time", problems, _seconds(b))

        frame = max((ours.frame_seconds for _, ours in self.videos), default=Fraction(1, 25))
        a, b = self.source.duration_seconds, self.output.duration_seconds
        ends = [
            max((s.end_seconds for s in file), default=Fraction(0))
            for file in (
                [s for s in self.kept if s.kind in ("video", "audio")],
                self.output.of("video", "audio"),
            )
        ]
        begins = [
            self.source.start_seconds or Fraction(0),
            self.output.start_seconds or Fraction(0),
        ]
        lengths = [end - begin for end, begin in zip(ends, begins, strict=True)]
        problems = []
        # A cut-off source claims more than it has: what it has is then what counts.
        # An edit list may end in the middle of a frame, and libav then states one frame more.
        if b is not None and all(abs(b - x) > 2 * frame for x in (a, lengths[0]) if x is not None):
            problems.append(_change(a if a is not None else lengths[0], b))
        elif abs(lengths[0] - lengths[1]) > frame and not any(
            s.reordered for s in self.source.of("video")
        ):
            problems.append(f"{_change(*lengths)} of sound and picture")
        self.report.add("duration", problems, _seconds(b if b is not None else lengths[1]))

    def _offsets(self) -> None:
        problems, found = [], []
        if self.videos:
            first, other = self.videos[0]
            times = _frame_times(first, self.frame_times.get(first.index))[0]
            base = _first(times, first.time_base)
            base_out = _first(_frame_times(other, None)[0], other.time_base)
            if self.source.family == self.output.family == "avi":
                # AVI has decoding times only: libav guesses when pictures are shown.
                base, base_out = (_first(s.dts, s.time_base) for s in (first, other))
            for theirs, ours in self.copies + self.data:
                a, b = _first(theirs.pts, theirs.time_base), _first(ours.pts, ours.time_base)
                if a is None or b is None or base is None or base_out is None:
                    continue
                slack = _OFFSET_TOLERANCE
                if (theirs.time_base, first.time_base) != (ours.time_base, other.time_base):
                    slack += max(ours.time_base, other.time_base)
                if abs((a - base) - (b - base_out)) > slack:
                    problems.append(f"{theirs.name}: {_change(a - base, b - base_out)}")
                elif theirs.kind == "audio":
                    found.append(f"{theirs.name} {_seconds(b - base_out)}")
        self.report.add("A/V offset", problems, ", ".join(found) or "no sound")

    # -- pictures ----------------------------------------------------------------------------

    def _looks(self) -> None:
        for name, (same, show) in _LOOKS.items():
            problems, found = [], set()
            for theirs, ours in self.videos:
                a, b = theirs.looks.get(name), ours.looks.get(name)
                if a is None or b is None:
                    continue
                difference = a.first_difference(b, same)
                if difference:
                    number, before, after = difference
                    problems.append(
                        f"{theirs.name} frame {number}: {show(before)} -> {show(after)}"
                    )
                found |= {show(value) for value in b.values}
            few = sorted(found)[:3]
            if show is _show_digest:
                few = ["equal" if found - {"none"} else "none"]
            self.report.add(name, problems, ", ".join(few))

        problems, places = [], []
        for theirs, ours in self.videos:
            if theirs.aspect != ours.aspect:
                problems.append(f"{theirs.name}: {_ratio(theirs.aspect)} -> {_ratio(ours.aspect)}")
        self.report.add(
            "sample aspect ratio", problems, ", ".join(_ratio(s.aspect) for _, s in self.videos)
        )
        problems = []
        for theirs, ours in self.videos:
            # Left is what MPEG-2, H.264 and HEVC mean when they say nothing.
            before, after = theirs.chroma_location or "left", ours.chroma_location or "left"
            places.append(ours.chroma_location or "unspecified")
            if before != after:
                problems.append(f"{theirs.name}: {before} -> {after}")
        self.report.add("chroma location", problems, ", ".join(places))

    # -- copied streams ----------------------------------------------------------------------

    def _packets(self) -> None:
        problems: dict[str, list[str]] = {}
        for theirs, ours in self.copies:
            for name, problem in self._packet_problems(theirs, ours):
                problems.setdefault(name, []).append(f"{theirs.name} {problem}")
        total = sum(len(ours.pts) for _, ours in self.copies)
        for name, detail in (
            ("packet count", f"{total} in {len(self.copies)} copied streams"),
            ("packet data", "equal"),
            ("packet timestamps", "equal"),
            ("packet duration", "equal"),
        ):
            self.report.add(name, problems.get(name, []), detail if self.copies else "none")

    def _packet_problems(self, theirs: _Stream, ours: _Stream) -> Iterator[tuple[str, str]]:
        count = len(theirs.pts), len(ours.pts)
        if count[0] != count[1]:
            if theirs.codec.startswith("pcm_") and self.source.partial:
                return  # its packets are cut anew, so that their edges are others
            if theirs.codec.startswith("pcm_") and theirs.whole.digest() == ours.whole.digest():
                # PCM has no frames: a demuxer cuts packets as the muxer happened to lay them.
                begins = [_first(s.pts, s.time_base) or Fraction(0) for s in (theirs, ours)]
                ends = [theirs.end_seconds, ours.end_seconds]
                if begins[0] != begins[1] or ends[0] != ends[1]:
                    yield "packet timestamps", f"ends: {_change(*ends)}"
                return
            yield "packet count", f"{count[0]} -> {count[1]}"
        both = min(count)
        if theirs.digests[: both * 8] != ours.digests[: both * 8]:
            pairs = np.stack([np.frombuffer(s.digests, np.uint64, both) for s in (theirs, ours)])
            number = int(np.flatnonzero(pairs[0] != pairs[1])[0])
            yield "packet data", f"packet {number}: the bytes differ"
        problem = _time_problem(theirs.pts, theirs.time_base, ours.pts, ours.time_base, "packet")
        if not problem and self.same_family:
            problem = _time_problem(
                theirs.dts, theirs.time_base, ours.dts, ours.time_base, "packet", "dts "
            )
        if problem:
            yield "packet timestamps", problem
        a, b = theirs.durations, ours.durations
        if theirs.kind == "data" and len(a) == len(b) and len(a) and b[-1] < a[-1]:
            # The last packet of telemetry is cut where the picture ends, or the file would grow.
            a, b = a[:-1], b[:-1]
        if theirs.kind == "audio" and self.source.family == "matroska":
            return  # Matroska stores no durations of audio: the demuxer infers them
        problem = _duration_problem(a, theirs.time_base, b, ours.time_base, "packet", stored=True)
        if problem:
            yield "packet duration", problem

    def _telemetry(self) -> None:
        lost = [s for s in self.kept if s.kind == "data" and s not in [a for a, _ in self.data]]
        problems = [f"{stream.name} ({stream.codec}) is missing" for stream in lost]
        for theirs, ours in self.data:
            problems += [f"{theirs.name} {text}" for _, text in self._packet_problems(theirs, ours)]
        found = [f"{s.codec} {len(s.pts)} packets" for _, s in self.data]
        self.report.add("telemetry", problems, ", ".join(found) or "none")

    def _headers(self) -> None:
        codecs, languages, tags, flags = [], [], [], []
        for theirs, ours in self.copies:
            if theirs.codec != ours.codec:
                codecs.append(f"{theirs.name}: {theirs.codec} -> {ours.codec}")
            elif theirs.parameters != ours.parameters:
                codecs.append(f"{theirs.name}: {theirs.parameters} -> {ours.parameters}")
            elif (
                self.same_family
                and theirs.extradata != ours.extradata
                and not (self.source.partial and theirs.codec == "mov_text")  # its bit rate
            ):
                codecs.append(f"{theirs.name}: the extradata differ")
        for theirs, ours in self.videos + self.copies + self.data:
            spoken = [s.metadata.get("language", "und") for s in (theirs, ours)]
            if spoken[0] != spoken[1]:
                languages.append(f"{theirs.name}: {spoken[0]} -> {spoken[1]}")
            for key, change in _tag_problems(
                _tags(theirs.metadata, _STREAM_TAGS), _tags(ours.metadata, _STREAM_TAGS)
            ):
                tags.append(f"{theirs.name} {key}: {change}")
            added = theirs.disposition ^ ours.disposition
            # FFmpeg's mov muxer enables the first track of a kind where no track is (tkhd flags).
            given = added == Disposition.default and not any(
                s.disposition & Disposition.default for s in self.kept if s.kind == theirs.kind
            )
            if added and not (given and self.output.iso):
                names = [_disposition(s.disposition) for s in (theirs, ours)]
                flags.append(f"{theirs.name}: {names[0]} -> {names[1]}")
        self.report.add("codec parameters", codecs, _list(ours.codec for _, ours in self.copies))
        spoken = [s.metadata.get("language", "und") for _, s in self.videos + self.copies]
        self.report.add("language", languages, ", ".join(spoken))
        self.report.add("stream metadata", tags, "equal")
        self.report.add("disposition", flags, "equal")

    # -- the file ----------------------------------------------------------------------------

    def _chapters(self) -> None:
        a, b = self.source.chapters, self.output.chapters
        problems = [f"{len(a)} -> {len(b)}"] if len(a) != len(b) else []
        for number, (before, after) in enumerate(zip(a, b, strict=False)):
            slack = Fraction(0) if before[1] == after[1] else max(before[1], after[1]) / 2
            if self.same_family and before[0] != after[0]:
                problems.append(f"chapter {number}: id {before[0]} -> {after[0]}")
            for word, x, y in (
                ("start", before[2], after[2]),
                ("end", before[3], after[3]),
            ):
                if abs(x - y) > slack:
                    problems.append(f"chapter {number} {word}: {_change(x, y)}")
            if before[4] != after[4]:
                problems.append(f"chapter {number}: {before[4]!r} -> {after[4]!r}")
        self.report.add("chapters", problems, str(len(b)) if b else "none")

    def _file_tags(self) -> None:
        changes = _tag_problems(self.source.metadata, self.output.metadata)
        problems = [f"{key}: {change}" for key, change in changes]
        self.report.add("metadata", problems, f"{len(self.source.metadata)} tags")

    def _attached(self) -> None:
        a, b = self.source.attachments, self.output.attachments
        problems = [f"{name} is missing or differs" for name, *rest in a if (name, *rest) not in b]
        self.report.add("attachments", problems, _list(name for name, *_ in b))
        covers = [bytes(s.digests) for s in self.output.of("cover")]
        problems = [
            f"{theirs.name} ({theirs.codec}) is missing or differs"
            for theirs in self.kept
            if theirs.kind == "cover" and bytes(theirs.digests) not in covers
        ]
        self.report.add("cover art", problems, str(len(covers)) if covers else "none")

    def _timecode(self) -> None:
        before, after = _timecode(self.source), _timecode(self.output)
        problems = []
        if before is not None and before != after:
            problems.append(f"{before} -> {after or 'none'}")
        tracked = self.source.of("timecode"), self.output.of("timecode")
        if tracked[0] and self.output.iso and not tracked[1]:
            problems.append("the tmcd track is missing")
        self.report.add("timecode", problems, after or "none")

    def _boxes(self) -> None:
        have: dict[bytes, list[bytes]] = {}
        for kind, box in self.output.maker:
            have.setdefault(kind, []).append(_box_text(kind, box))
        problems, names = [], []
        for kind, box in self.source.maker:
            name = kind.decode("latin-1")
            names.append(name)
            if kind not in have:
                problems.append(f"{name} is missing")
            elif _box_text(kind, box) not in have[kind]:
                problems.append(f"{name} differs")
        self.report.add("maker boxes", problems, _list(names))

        gone = {
            s.track.track_id for s in self.source.streams if s.track and s.index in self.dropped
        }
        theirs = [track for track in _data_tracks(self.source) if track.track_id not in gone]
        free = _data_tracks(self.output)
        problems, names = [], []
        for track in theirs:
            match = next((other for other in free if other.fourcc == track.fourcc), None)
            if match is None:
                problems.append(f"{track.fourcc} is missing")
                continue
            free.remove(match)
            names.append(f"{track.fourcc} {match.sample_count} samples")
            if not self.source.partial:
                problems += self._track_problems(track, match)
        self.report.add("data tracks", problems, _list(names))

        late = self.source.moov_first and self.output.iso and not self.output.moov_first
        now = "moov first" if self.output.moov_first else "moov last"
        self.report.add(
            "faststart",
            ["moov first -> moov last"] if late else [],
            now if self.output.iso else "not mp4",
        )

    def _track_problems(self, theirs: Track, ours: Track) -> Iterator[str]:
        try:
            digest = track_digest(self.source.path, theirs.index)
            times = sample_times(self.source.path, theirs.index)
        except InputError:
            return  # damaged in the source
        try:
            if track_digest(self.output.path, ours.index) != digest:
                yield f"{theirs.fourcc}: the samples differ"
            new_times = sample_times(self.output.path, ours.index)
        except InputError:
            yield f"{theirs.fourcc} cannot be read"
            return
        scale = Fraction(theirs.timescale or 1, ours.timescale or 1)
        a, b = _without_last(times, Fraction(1)), _without_last(new_times, scale)
        if a != b:
            yield f"{theirs.fourcc}: the sample times differ"


# --- small comparisons --------------------------------------------------------------------------


def _frame_times(
    stream: _Stream, told: Sequence[int] | None
) -> tuple[array[int], array[int] | None]:
    """(pts, durations) of the frames of a video stream in presentation order.

    As told by the caller, else as decoded, else (quick) those of the packets that the edit list
    shows. Durations are None where they are not known to belong to these pts.
    """
    if len(stream.frame_pts) > 1 or len(stream.pts) == len(stream.frame_pts):
        pts, durations = stream.frame_pts, stream.frame_durations
    else:
        shown = [
            (p, d)
            for p, d, hidden in zip(stream.pts, stream.durations, stream.hidden, strict=True)
            if not hidden
        ]
        if not any(p == _NONE for p, _ in shown):  # AVI has no pts: its order has to do
            shown.sort()
        pts = array("q", [p for p, _ in shown])
        durations = array("q", [d for _, d in shown])
    if told is not None:
        told = array("q", told)
        return told, durations if told == pts else None
    return pts, durations


def _increasing(pts: array[int]) -> array[int]:
    """pts as a muxer can write them: equal times of a damaged source, one tick apart."""
    values = np.frombuffer(pts, np.int64)
    if not len(values) or (values == _NONE).any() or (np.diff(values) > 0).all():
        return pts
    result = array("q", pts[:1])
    for value in pts[1:]:
        result.append(max(value, result[-1] + 1))
    return result


def _deltas(
    a: array[int], a_base: Fraction, b: array[int], b_base: Fraction
) -> tuple[NDArray[Any], Fraction, bool]:
    """(b - a, its unit in seconds, whether b_base can hold every time of a_base exactly)."""
    both = min(len(a), len(b))
    common = math.lcm(a_base.denominator, b_base.denominator)
    scaled = []
    unknown = np.zeros(both, bool)
    for values, base in ((a, a_base), (b, b_base)):
        ticks: NDArray[Any] = np.frombuffer(values, np.int64)[:both] if both else np.zeros(0, int)
        unknown |= ticks == _NONE
        factor = base.numerator * (common // base.denominator)
        if both and factor * int(np.abs(ticks[ticks != _NONE]).max(initial=0)) >= 1 << 61:
            ticks = ticks.astype(object)
        scaled.append(ticks * factor)
    delta = scaled[1] - scaled[0]
    delta[unknown] = 0  # no time to compare: the order has to do
    return delta, Fraction(1, common), (a_base / b_base).denominator == 1


def _time_problem(
    a: array[int],
    a_base: Fraction,
    b: array[int],
    b_base: Fraction,
    what: str,
    prefix: str = "",
) -> str | None:
    """The first time of a that is not in b, in words: "frame 17: 5672 -> 5673 (1/90000)"."""
    delta, unit, exact = _deltas(a, a_base, b, b_base)
    slack = 0 if exact else max(a_base, b_base) / 2 / unit
    wrong = np.flatnonzero(np.abs(delta) > float(slack))
    if len(wrong):
        first = int(wrong[0])
        if len(wrong) == len(a) == len(b) > 1 and (delta == delta[0]).all():
            return f"{prefix}all {len(a)} {what}s shifted by {_seconds(int(delta[0]) * unit)}"
        return f"{what} {first}: {prefix}{_tick_change(a[first], a_base, b[first], b_base)}"
    if len(a) != len(b):
        word = "missing" if len(a) > len(b) else "added"
        return f"{what} {min(len(a), len(b))}: {prefix}{word}"
    return None


def _duration_problem(
    a: array[int],
    a_base: Fraction,
    b: array[int],
    b_base: Fraction,
    what: str,
    *,
    stored: bool,
) -> str | None:
    """The first duration that differs; one tick of rounding where time bases differ."""
    delta, unit, exact = _deltas(a, a_base, b, b_base)
    # A picture's duration in mp4 is a difference of decoding times, which the encoder chooses: a
    # tick of a clock this fine is its rounding.
    rounding = what == "frame" and max(a_base, b_base) <= Fraction(1, 100_000)
    slack = 0 if exact and stored and not rounding else max(a_base, b_base) / unit
    wrong = [i for i in np.flatnonzero(np.abs(delta) > float(slack)).tolist() if a[i] > 0]
    wrong = [i for i in wrong if b[i] > 0 or stored]
    if not wrong:
        return None
    first = wrong[0]
    return f"{what} {first}: {_tick_change(a[first], a_base, b[first], b_base)}"


def _tick_change(a: int, a_base: Fraction, b: int, b_base: Fraction) -> str:
    if a_base == b_base:
        return f"{a} -> {b} ({a_base})"
    return f"{a} ({a_base}) -> {b} ({b_base})"


def _first(pts: Iterable[int], base: Fraction) -> Fraction | None:
    first = min((p for p in pts if p != _NONE), default=None)
    return None if first is None else first * base


def _tag_problems(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, value in a.items():
        if key not in b:
            yield key, f"{value!r} is missing"
        elif b[key] != value:
            yield key, f"{value!r} -> {b[key]!r}"


def _timecode(file: _File) -> str | None:
    for stream in file.of("video", "timecode"):
        if "timecode" in stream.metadata:
            return stream.metadata["timecode"]
    return None


def _data_tracks(file: _File) -> list[Track]:
    """Tracks of an mp4 or mov that are neither picture, sound, text nor made by the muxer."""
    if not file.iso:
        return []
    media = (b"vide", b"soun", b"text", b"sbtl", b"subt", b"subp", b"clcp", b"tmcd", b"hint")
    return [
        track
        for track in read_tracks(file.path)
        if track.handler not in media and not track.is_chapter_track
    ]


def _box_text(kind: bytes, box: bytes) -> bytes:
    """A box for comparison; of a © atom the text alone, for muxers write another language code."""
    return box[12:] if kind[:1] == b"\xa9" else box


def _without_last(runs: Sequence[tuple[int, int]], scale: Fraction) -> list[tuple[int, Fraction]]:
    """Scaled runs of durations without the last sample, which may be cut where the picture ends."""
    scaled = [(count, duration * scale) for count, duration in runs]
    if scaled:
        count, duration = scaled.pop()
        scaled += [(count - 1, duration)] if count > 1 else []
    return scaled


def _same_format(before: str, after: str) -> bool:
    """Whether pixel format `after` holds all that `before` does: depth, chroma, alpha, model."""
    if before.replace("yuvj", "yuv") == after.replace("yuvj", "yuv"):
        return True
    a, b = _pixel(before), _pixel(after)
    return a[0] <= b[0] and a[1] >= b[1] and a[2] >= b[2] and a[3] <= b[3] and a[4:] == b[4:]


def _pixel(name: str) -> tuple[int, int, int, bool, bool, bool]:
    """(bits, columns and rows a chroma sample covers, alpha, RGB, has chroma)."""
    pixel = VideoFormat(name)
    bits = max(component.bits for component in pixel.components)
    chroma = any(component.is_chroma for component in pixel.components)
    across, down = 64 // pixel.chroma_width(64), 64 // pixel.chroma_height(64)
    alpha = any(component.is_alpha for component in pixel.components)
    return bits, across, down, alpha, pixel.is_rgb or pixel.has_palette, chroma


def _enum_name(kind: Any) -> Callable[[int], str]:
    def name(value: int) -> str:
        try:
            return str(kind(value).name).lower()
        except ValueError:
            return str(value)

    return name


def _show_matrix(value: tuple[int, ...]) -> str:
    a, b, c, d = value
    angle = round(math.degrees(math.atan2(b, a))) % 360
    flipped = " mirrored" if a * d - b * c < 0 else ""
    return f"{angle}°{flipped}"


def _show_mastering(value: tuple[Fraction, ...] | None) -> str:
    if value is None:
        return "none"
    return f"{float(value[8]):g} to {float(value[9]):g} cd/m²"


def _show_digest(value: str | None) -> str:
    return value or "none"


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


# Name → (whether an output's value keeps the source's, how a value is shown).
_LOOKS: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any], str]]] = {
    "picture size": (_equal, lambda size: f"{size[0]}x{size[1]}"),
    "pixel format": (_same_format, str),
    "colour range": (_equal, lambda value: {1: "limited", 2: "full"}.get(value, str(value))),
    "colour primaries": (_equal, _enum_name(ColorPrimaries)),
    "transfer characteristics": (_equal, _enum_name(ColorTrc)),
    "matrix coefficients": (_equal, _enum_name(Colorspace)),
    "display matrix": (_equal, _show_matrix),
    "field order": (_equal, str),
    "mastering display": (_equal, _show_mastering),
    "content light level": (
        _equal,
        lambda value: "none" if value is None else f"MaxCLL {value[0]}, MaxFALL {value[1]} cd/m²",
    ),
    "dynamic HDR": (_equal, _show_digest),
    "closed captions": (_equal, _show_digest),
}


def _disposition(value: int) -> str:
    flags = Disposition(value)
    names = [flag.name or "" for flag in Disposition if flag in flags]
    return "+".join(names) or "none"


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "none"


def _ratio(value: Fraction) -> str:
    return f"{value.numerator}:{value.denominator}"


def _seconds(value: Fraction | None) -> str:
    return "unknown" if value is None else f"{float(value):.6f} s"


def _change(a: Fraction, b: Fraction) -> str:
    return f"{float(a):.6f} -> {float(b):.6f} s"
