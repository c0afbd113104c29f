"""Read everything that is compared of a file, in a single pass over its packets."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import statistics
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
from av.codec.context import Flags as CodecFlags
from av.filter import Graph
from av.stream import Disposition
from av.video.reformatter import ColorRange, ColorTrc

from vdeblur.errors import InputError
from vdeblur.media.avi import check_texts
from vdeblur.media.encoders import PICTURE_DATA, picture_data, side_data_bytes
from vdeblur.media.image_sequences import is_image
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.matroska import LeanFile
from vdeblur.media.metadata import carry, exif
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import Track, check_index, read_maker_boxes, read_tracks
from vdeblur.media.names import check_source
from vdeblur.media.stale_tags import is_of_file
from vdeblur.media.stream_facts import codec_of, rate_of, sound_of
from vdeblur.media.timeline import Timeline
from vdeblur.media.verify.stills import StillFacts, mean_colors, still_facts
from vdeblur.media.verify.ticks import UNKNOWN

# Names of FFmpeg's demuxers → the container that they read; within a family, packets come back as
# they went in.
_FAMILIES = {"mov,mp4,m4a,3gp,3g2,mj2": "mp4", "matroska,webm": "matroska", "image2": "picture"}
#: Families that can express `checks.OF_BOTH`.
CAPABLE = frozenset({"mp4", "matroska"})

# Tags that muxers and demuxers write about themselves.
_MUXER_TAGS = {
    "software",
    # MXF's identification of the writing program and of this copy of the file (SMPTE ST 377-1).
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


# Code points (ITU-T H.273) that are sRGB's, or written by coders of sRGB pictures for it.
_SRGB = {"colour primaries": {0, 1}, "transfer characteristics": {0, 1, 4, 6, 8, 13}}


class Runs:
    """A value for each frame, stored as runs of equal values."""

    def __init__(self) -> None:
        self.count = 0
        self.starts: list[int] = []
        self.values: list[Any] = []

    def add(self, value: Any) -> None:
        """Append the value of the next frame."""
        if not self.values or self.values[-1] != value:
            self.starts.append(self.count)
            self.values.append(value)
        self.count += 1

    def at(self, number: int) -> Any:
        """Return the value of a frame, counted from 0."""
        return self.values[bisect_right(self.starts, number) - 1]

    def first_difference(
        self, other: Runs, same: Callable[[Any, Any], bool]
    ) -> tuple[int, Any, Any] | None:
        """Return (frame, value here, value there) of the first difference, or None."""
        both = min(self.count, other.count)
        for number in sorted({*self.starts, *other.starts}):
            if number < both and not same(self.at(number), other.at(number)):
                return number, self.at(number), other.at(number)
        return None


class ProbedChapter(NamedTuple):
    """A chapter; start and end in seconds."""

    id: int
    time_base: Fraction
    start: Fraction
    end: Fraction
    title: str


@dataclass
class ProbedStream:
    """A stream: its header, its packets' times and digests, its frames' times and forms.

    Attributes:
        index: libav's index of the stream.
        kind: video, cover, audio, subtitle, data, bare (data without a codec), timecode, chapters
            or attachment.
        codec: libav's name of the codec, or the fourcc.
        time_base: Seconds a tick.
        track: The track of an MP4 or MOV.
        parameters: Of sound: rate, channels, layout and profile.
        extradata: The codec's header.
        metadata: Tags, their keys in lower case.
        disposition: libav's flags.
        aspect: Sample aspect ratio.
        chroma_location: Of 4:2:0 pictures, such as "left"; None if not stated.
        frame_seconds: How long a frame lasts by the average rate.
        pts: Presentation times of the packets, in ticks.
        dts: Decoding times of the packets, in ticks.
        durations: Durations of the packets, in ticks; 0 if unknown.
        hidden: A byte per packet: 1 outside the edit list.
        digests: 8 bytes of SHA-256 per packet; empty for video.
        whole: SHA-256 of the data of all packets.
        frame_pts: Times of the decoded frames, in ticks.
        frame_durations: Durations of the decoded frames, in ticks.
        looks: Name of a check → what each decoded frame says for it.
        colors: Mean colors of parts of the first frame of a picture file.
        errors: Packets and frames that are damaged.
    """

    index: int
    kind: str
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
    hidden: bytearray = field(default_factory=bytearray)
    digests: bytearray = field(default_factory=bytearray)
    whole: Any = field(default_factory=hashlib.sha256)
    frame_pts: array[int] = field(default_factory=lambda: array("q"))
    frame_durations: array[int] = field(default_factory=lambda: array("q"))
    looks: dict[str, Runs] = field(default_factory=dict)
    colors: tuple[int, ...] | None = None
    errors: int = 0

    @property
    def name(self) -> str:
        """Kind and index, as messages name it."""
        return f"{self.kind} {self.index}"

    @property
    def is_empty(self) -> bool:
        """Whether sound, subtitles or data are declared that hold no packets."""
        return self.kind in ("audio", "subtitle", "data") and not self.pts

    @property
    def reordered(self) -> bool:
        """Whether packets come in another order than their presentation times."""
        known = [p for p in self.pts if p != UNKNOWN]
        return any(b < a for a, b in itertools.pairwise(known))

    @property
    def end_seconds(self) -> Fraction:
        """When the last packet ends that is shown."""
        times = zip(self.pts, self.durations, self.hidden, strict=True)
        ends = (p + max(d, 0) for p, d, hidden in times if p != UNKNOWN and not hidden)
        return max(ends, default=0) * self.time_base

    @property
    def whole_span(self) -> tuple[Fraction, Fraction] | None:
        """Begin of the first packet and end of the last in seconds; None without times.

        Every packet of sound counts in full: the last one may be stated shorter, where an edit list
        or a discard padding cuts it.
        """
        sound = self.kind == "audio"
        times = zip(self.pts, self.durations, self.hidden, strict=True)
        known = [(p, d) for p, d, hidden in times if p != UNKNOWN and (sound or not hidden)]
        if not known:
            return None
        usual = statistics.mode(d for _, d in known) if sound else 0
        end = max(p + max(d, usual) for p, d in known)
        return min(known)[0] * self.time_base, end * self.time_base


@dataclass
class ProbedFile:
    """A file: its streams, and what it states beside them.

    Attributes:
        path: The file.
        family: Kind of container: "mp4", "matroska", or FFmpeg's name of the demuxer.
        streams: In libav's order.
        metadata: Tags but those of muxers, their keys in lower case.
        chapters: In file order.
        attachments: (name, MIME type, SHA-256) of each.
        start_seconds: When it starts; None if not stated.
        duration_seconds: How long it lasts; None if not stated.
        errors: How often reading itself failed: 0 or 1.
        iso: Whether it is an MP4 or MOV.
        moov_first: Whether its `moov` precedes the samples.
        maker: (type, SHA-256) of the maker's boxes in moov and moov/udta.
        trailer: (bytes, SHA-256) of what lies behind the last box of an MP4; (0, "") for nothing.
        partial: Only a part of the streams was kept (`excerpt`): `ProbedStream.whole` and `maker`
            are still those of the file.
        still: Facts of a picture file; None for a film.
    """

    path: Path
    family: str
    streams: list[ProbedStream]
    metadata: dict[str, str]
    chapters: list[ProbedChapter]
    attachments: list[tuple[str, str, str]]
    start_seconds: Fraction | None
    duration_seconds: Fraction | None
    errors: int
    iso: bool = False
    moov_first: bool = False
    maker: list[tuple[bytes, str]] = field(default_factory=list)
    trailer: tuple[int, str] = (0, "")
    partial: bool = False
    still: StillFacts | None = None

    def leave_out_film(self) -> None:
        """Leave out what files of films state and pictures do not: an AVIF is an MP4 to libav."""
        self.duration_seconds = None
        for stream in self.streams:
            stream.metadata, stream.disposition = {}, 0
            stream.durations = array("q", bytes(8 * len(stream.durations)))

    def leave_out_coding(self) -> None:
        """Leave out how a picture's format codes colors, which mean the same in another format.

        The primaries and the transfer of sRGB are those of pictures that state none.
        """
        self.duration_seconds = None
        for stream in self.streams:
            stream.chroma_location = None
            for name in ("colour range", "matrix coefficients"):
                stream.looks.pop(name, None)
            for name in ("colour primaries", "transfer characteristics"):
                runs = stream.looks.get(name, Runs())
                runs.values = [2 if value in _SRGB[name] else value for value in runs.values]

    def of(self, *kinds: str) -> list[ProbedStream]:
        """Return the streams of some kinds, in file order."""
        return [stream for stream in self.streams if stream.kind in kinds]


def probe(path: str | Path, *, full: bool) -> ProbedFile:
    """Read a file.

    Args:
        path: The file, or a `Joined` path.
        full: Decode all video; else only the first frame of each video stream.

    Raises:
        InputError: The file cannot be read, or holds no media.
    """
    check_source(path, unfinished=True)
    path = path if isinstance(path, Path) else Path(path)
    iso = boxes.is_iso(path)
    try:
        check_index(path)
        check_texts(path)
        still = still_facts(path)
        orientation = carry.inspect(path.read_bytes())[0] if is_image(path) else 1
        file = for_libav(path)
        lean = file if isinstance(file, LeanFile) else None
        with lean or contextlib.nullcontext(), open_container(file) as container:
            tracks = {track.track_id: track for track in read_tracks(path)} if iso else {}
            streams = [_probe_stream(stream, tracks.get(stream.id)) for stream in container.streams]
            errors = _read_packets(container, streams, full=full, still=still is not None)
            if is_image(path):
                _turn(streams, orientation)
            return ProbedFile(
                path=path,
                family=_family(container.format.name),
                streams=streams,
                metadata=kept_tags(container.metadata, _MUXER_TAGS | {"timecode"}, is_of_file),
                chapters=[_chapter(chapter) for chapter in container.chapters()],
                attachments=[
                    (s.name or "", s.mimetype or "", _attached_digest(s.data, lean))
                    for s in container.streams.attachments
                ],
                start_seconds=_av_seconds(container.start_time),
                duration_seconds=_av_seconds(container.duration),
                errors=errors,
                iso=iso,
                moov_first=iso and boxes.moov_first(path),
                maker=_maker_boxes(path) if iso else [],
                still=still,
                trailer=_trailer(path) if iso else (0, ""),
            )
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is not a video that can be read ({reason})") from error


def _attached_digest(data: bytes, lean: LeanFile | None) -> str:
    digest = hashlib.sha256()
    for block in (lean.blocks(data) if lean is not None else None) or [data]:
        digest.update(block)
    return digest.hexdigest()


def _maker_boxes(path: Path) -> list[tuple[bytes, str]]:
    found = []
    for kind, box in read_maker_boxes(path):
        # Of a © box the text alone: muxers write another language code.
        text = memoryview(box)[12 if kind[:1] == b"\xa9" else 0 :]
        found.append((kind, hashlib.sha256(text).hexdigest()))
    return found


def _trailer(path: Path) -> tuple[int, str]:
    with boxes.open_input(path) as file:
        at, size = boxes.trailer(file)
        if not size:
            return 0, ""
        digest = hashlib.sha256()
        for block in boxes.read_blocks(file, at, size):
            digest.update(block)
    return size, digest.hexdigest()


def _family(demuxer: str) -> str:
    return "picture" if demuxer.endswith("_pipe") else _FAMILIES.get(demuxer, demuxer)


def _probe_stream(stream: Any, track: Track | None) -> ProbedStream:
    context = stream.codec_context
    if stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
        kind = "cover"
    elif track is not None and track.is_chapter_track:
        kind = "chapters"
    elif track is not None and track.fourcc == "tmcd":
        kind = "timecode"
    elif track is not None and stream.type == "data" and codec_of(stream) is None:
        kind = "bare"  # libav discards these packets, some while probing: the box reader has them
    else:
        kind = stream.type
    parameters: tuple[Any, ...] = ()
    if kind == "audio" and context is not None:
        rate, channels, layout = sound_of(stream)
        parameters = (rate, channels, "" if layout == f"{channels} channels" else layout)
        parameters += (context.profile,) if context.profile else ()
    probed = ProbedStream(
        index=stream.index,
        kind=kind,
        codec=codec_of(stream) or (track.fourcc if track is not None else "unknown"),
        time_base=stream.time_base or Fraction(1, 1000),
        track=track,
        parameters=parameters,
        extradata=bytes(getattr(context, "extradata", None) or b""),
        metadata={key.lower(): value for key, value in stream.metadata.items()},
        disposition=int(stream.disposition),
    )
    if kind == "video" and context is not None:
        context.thread_type = "AUTO"
        context.flags |= int(CodecFlags.unaligned)  # crop exactly, not to suit SIMD
        probed.frame_seconds = 1 / (rate_of(stream) or Fraction(25))
    return probed


def _read_packets(
    container: Any, streams: Sequence[ProbedStream], *, full: bool, still: bool
) -> int:
    """Fill in packets and frames; return how often reading itself failed."""
    field_order = _FieldOrder()
    packets = Timeline(container, container.demux())
    while True:
        try:
            packet = next(packets, None)
        except IndexError:
            break  # at the end PyAV looks for streams that appeared meanwhile
        except (av.error.FFmpegError, OSError):
            return 1  # libav does not go on behind a read error
        if packet is None:
            break
        stream = streams[packet.stream.index]
        if packet.size:
            stream.pts.append(UNKNOWN if packet.pts is None else packet.pts)
            stream.dts.append(UNKNOWN if packet.dts is None else packet.dts)
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
                if still and stream.colors is None:
                    stream.colors = mean_colors(frame, stream.codec)
                _look(stream, frame, field_order)
    for stream in streams:
        if stream.kind == "video":
            opened = container.streams[stream.index]
            aspect = opened.sample_aspect_ratio if opened.codec_context is not None else None
            stream.aspect = aspect or Fraction(1)
            stream.chroma_location = _chroma_location(opened)
    return 0


def _digest(stream: ProbedStream, packet: Any) -> None:
    data = bytes(packet)
    if stream.codec == "aac" and len(data) > 7 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        # An ADTS header (ISO/IEC 13818-7, 6.2; 9 bytes with a CRC) is the container's, not the
        # sound's: MPEG-TS has it and mp4 has not. A raw AAC frame never starts with 12 ones.
        data = data[7 if data[1] & 1 else 9 :]
    stream.digests += hashlib.sha256(data).digest()[:8]
    stream.whole.update(data)


def _transfer(frame: Any, codec: str) -> int:
    """Return what is stated: libav supposes a curve for TIFFs of gray where zero is black."""
    return int(ColorTrc.UNSPECIFIED if codec == "tiff" else frame.color_trc)


def _look(stream: ProbedStream, frame: Any, field_order: _FieldOrder) -> None:
    stream.frame_pts.append(UNKNOWN if frame.pts is None else frame.pts)
    stream.frame_durations.append(frame.duration or 0)
    stream.errors += bool(frame.is_corrupt)
    side = side_data_bytes(frame, stream.codec)
    data = picture_data(frame, stream.codec)
    kinds = [kind for kind, (_, check) in PICTURE_DATA.items() if check == "user data"]
    user = sorted({payload for kind in kinds for payload in data.get(kind, ())})
    look = {
        "picture size": (frame.width, frame.height),
        "pixel format": frame.format.name,
        "colour range": int(frame.color_range),
        "colour primaries": int(frame.color_primaries),
        "transfer characteristics": _transfer(frame, stream.codec),
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
        "user data": _fingerprint(*user),
    }
    if look["colour range"] == ColorRange.UNSPECIFIED:
        # The meaning of "unspecified": full for RGB and FFmpeg's yuvj formats, else limited.
        name = frame.format.name
        wide = name.startswith("yuvj") or frame.format.is_rgb or frame.format.has_palette
        look["colour range"] = int(ColorRange.JPEG if wide else ColorRange.MPEG)
    for name, value in look.items():
        stream.looks.setdefault(name, Runs()).add(value)


def _turn(streams: Sequence[ProbedStream], orientation: int) -> None:
    """Set how the frames of a picture file are turned: EXIF data tell, and no side data."""
    for stream in streams:
        matrix = exif.display_matrix(orientation)
        turned = Runs()
        turned.add(_matrix(None if matrix is None else struct.pack("<9i", *matrix)))
        stream.looks["display matrix"] = turned


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
    """Where the chroma samples of a 4:2:0 stream lie: left, center, topleft …, None if not stated.

    PyAV has no attribute for it. FFmpeg's matroska muxer writes it into the header
    (ChromaSitingHorz 0x55B7, ChromaSitingVert 0x55B8; RFC 9559), so a header is made here.
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
    """The rotation part of a display matrix (16.16 fixed point); the identity without a matrix."""
    if data is None:
        return (1 << 16, 0, 0, 1 << 16)
    m = struct.unpack("<9i", bytes(data)[:36])
    return (m[0], m[1], m[3], m[4])


def _mastering(data: Any) -> tuple[Fraction, ...] | None:
    """AVMasteringDisplayMetadata: 10 rationals and two flags for which of them are set."""
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


def kept_tags(
    metadata: Mapping[str, str], ignored: Collection[str], is_stale: Callable[[str], bool]
) -> dict[str, str]:
    """Return tags with keys in lower case, without ignored ones and those of the old coding."""
    lower = {key.lower(): value for key, value in metadata.items()}
    return {k: v for k, v in lower.items() if k not in ignored and not is_stale(k)}


def _chapter(chapter: Any) -> ProbedChapter:
    base = chapter["time_base"] or Fraction(1)
    title = chapter["metadata"].get("title", "")
    start, end = chapter["start"] * base, chapter["end"] * base
    return ProbedChapter(chapter["id"], base, start, end, title)


def _av_seconds(value: int | None) -> Fraction | None:
    return None if value is None else Fraction(value, av.time_base)
