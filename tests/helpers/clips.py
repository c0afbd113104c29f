"""Small media of known content, made by PyAV alone: no file is downloaded, no ffmpeg is run.

`make` writes a whole recording described by `Media`; `write_frames` a bare video of given frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.packet import Packet
from av.stream import Disposition
from numpy.typing import NDArray

from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.graft import graft
from vdeblur.media.verify import Check

TICKS = 90_000
# Variable frame rate, as a telephone records it.
PTS = tuple(int(n * 3003 + 700 * (n % 3 == 1) + 900 * (n > 12)) for n in range(24))
CAPTION = b"\0\0\0\1\x06\x04\x0e\xb5\x00\x31GA94\x03\x41\xff\xfc%c\x80\xff\x80"  # CEA-708 SEI
SCRIPT = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,16

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.00,0:00:00.20,Default,,0,0,0,,{\\i1}first{\\i0}
Dialogue: 0,0:00:00.30,0:00:00.60,Default,,0,0,0,,second
"""
MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


@dataclass(frozen=True)
class Audio:
    language: str = "eng"
    title: str = "Camera"
    disposition: int = int(Disposition.default)
    shift: float = 0.0  # seconds
    drop: int | None = None
    flip: int | None = None
    codec: str = "aac"
    frequency: int = 440


@dataclass(frozen=True)
class Media:
    """What a file shall hold; a damaged output is the same with one field changed."""

    suffix: str = ".mp4"
    crf: int = 20
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "ultrafast"})
    pts: tuple[int, ...] = PTS
    last_duration: int = 3003
    size: tuple[int, int] = (64, 48)
    pix_fmt: str = "yuv420p"
    aspect: Fraction = Fraction(4, 3)
    colour: tuple[int, int, int, int] = (1, 1, 1, 1)  # range, primaries, transfer, matrix
    rotation: int | None = 90
    interlaced: str | None = None
    captions: bool = False
    language: str = "deu"
    audio: tuple[Audio, ...] = (
        Audio(),
        Audio("fra", "Commentary", int(Disposition.comment), frequency=220),
    )
    subtitles: tuple[str, ...] = ("first", "second")
    chapters: tuple[tuple[int, int, str], ...] = ((0, 400, "Start"), (400, 800, "Ride"))
    metadata: dict[str, str] = field(default_factory=lambda: {"title": "Ride", "artist": "Ann"})
    timecode: str | None = "01:02:03:04"
    telemetry: tuple[bytes, ...] = (b"DEVC0001", b"DEVC0002")
    cover: bytes | None = b"cover"
    fonts: tuple[tuple[str, bytes], ...] = ()
    faststart: bool = True
    maker: tuple[tuple[bytes, bytes], ...] = ((b"FIRM", b"HD1.0"), (b"LENS", b"LAE61"))
    script: str = ""  # a whole .ass file
    second_video: bool = False
    muxing: dict[str, str] = field(default_factory=dict)


MP4 = Media()
MKV = replace(
    MP4,
    suffix=".mkv",
    telemetry=(),
    maker=(),
    timecode=None,
    rotation=None,
    pts=tuple(n * 3600 for n in range(24)),
    last_duration=3600,
    fonts=(("one.ttf", b"font one"), ("two.ttf", b"font two")),
)
PLAIN = replace(
    MP4, subtitles=(), chapters=(), telemetry=(), cover=None, timecode=None, audio=(), maker=()
)
HDR = replace(
    PLAIN,
    codec="libx265",
    pix_fmt="yuv420p10le",
    colour=(1, 9, 16, 9),
    options={
        "preset": "ultrafast",
        "x265-params": f"log-level=none:hdr10=1:repeat-headers=1:max-cll=1000,400:"
        f"master-display={MASTERING}",
    },
)
INTERLACED = replace(PLAIN, interlaced="tff", options={"preset": "ultrafast", "bf": "0"})


def make(path: Path, media: Media) -> Path:
    """Writes the file."""
    options = {"movie_timescale": "720000"}
    if media.faststart:
        options["movflags"] = "+faststart"
    mp4 = path.suffix == ".mp4"
    options = (options if mp4 else {}) | media.muxing
    with av.open(str(path), "w", container_options=options) as container:
        container.metadata.update(media.metadata)
        container.set_chapters(
            [
                {
                    "id": n + 1,
                    "start": start,
                    "end": end,
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": title},
                }
                for n, (start, end, title) in enumerate(media.chapters)
            ]
        )
        streams: list[Any] = [_video(container, media)]
        packets = _video_packets(streams[0], media)
        if media.second_video:
            other = replace(media, size=(32, 32), language="jpn", timecode=None)
            streams.append(_video(container, other))
            packets += _video_packets(streams[-1], other)
        for audio in media.audio:
            streams.append(container.add_stream(audio.codec, rate=48_000, layout="mono"))
            streams[-1].metadata["language"] = audio.language
            if audio.title:
                streams[-1].metadata["title"] = audio.title
            streams[-1].disposition = audio.disposition
            packets += _audio_packets(streams[-1], audio)
        if media.subtitles:
            stream: Any = container.add_mux_stream("mov_text" if mp4 else "subrip")
            stream.time_base = Fraction(1, 1000)
            stream.metadata["language"] = "spa"
            for n, text in enumerate(media.subtitles):
                head = len(text).to_bytes(2, "big") if mp4 else b""
                packets.append(_packet(stream, head + text.encode(), n * 300, 300, 1000))
        if media.script:
            script = path.with_suffix(".ass")
            script.write_text(media.script)
            with av.open(str(script)) as lines:
                stream = container.add_stream_from_template(lines.streams[0])
                for packet in lines.demux(0):
                    if packet.size:
                        packet.stream = stream
                        packets.append(packet)
            script.unlink()
        if media.telemetry:
            stream = container.add_data_stream("bin_data")
            stream.time_base = Fraction(1, 1000)
            for n, data in enumerate(media.telemetry):
                packets.append(_packet(stream, data, n * 400, 400, 1000))
        if media.cover is not None:
            cover = png(np.full((16, 16, 3), len(media.cover), np.uint8))
            if mp4:
                stream = container.add_stream("png", rate=1)
                stream.width = stream.height = 16
                stream.pix_fmt = "rgb24"
                stream.disposition = Disposition.attached_pic
                packets.append(_packet(stream, cover, 0, 0, 1))
            else:
                container.add_attachment("cover.png", "image/png", cover)
        for name, data in media.fonts:
            container.add_attachment(name, "font/ttf", data)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    if media.maker:
        maker = path.with_name("maker.mp4")
        payload = boxes.build(b"udta", boxes.build_all(media.maker))
        movie = boxes.build(b"mvhd", bytes(12) + (1000).to_bytes(4, "big") + bytes(84))
        maker.write_bytes(boxes.build(b"moov", movie + payload))
        graft(maker, path, track_indices=[])
        maker.unlink()
    return path


def png(array: NDArray[Any], pix_fmt: str = "rgb24") -> bytes:
    """A PNG file."""
    context: Any = av.CodecContext.create("png", "w")
    frame = av.VideoFrame.from_ndarray(array, pix_fmt)
    context.width, context.height, context.pix_fmt = frame.width, frame.height, pix_fmt
    context.time_base = Fraction(1)
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def _packet(stream: Any, data: bytes, pts: int, duration: int, rate: int) -> Any:
    packet = Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, rate)
    packet.pts = packet.dts = pts
    packet.duration = duration
    return packet


def _video(container: Any, media: Media) -> Any:
    options = media.options | (
        {"crf": str(media.crf)} if media.codec in ("libx264", "libx265") else {}
    )
    stream: Any = container.add_stream(media.codec, rate=30, options=options)
    context = stream.codec_context
    stream.width, stream.height = media.size
    stream.pix_fmt = media.pix_fmt
    stream.time_base = Fraction(1, TICKS)
    # These count frames; they know no other times.
    counting = media.suffix == ".avi" or media.codec in ("mpeg2video", "mpeg4")
    context.time_base = Fraction(1, 30) if counting else Fraction(1, TICKS)
    context.sample_aspect_ratio = media.aspect
    context.color_range, context.color_primaries = media.colour[:2]
    context.color_trc, context.colorspace = media.colour[2:]
    context.flags |= Flags.global_header | Flags.frame_duration
    context.thread_count = 1
    if media.codec == "libx265":
        context.codec_tag = "hvc1"
    if media.interlaced:
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
    if media.rotation is not None:
        stream.set_display_rotation(media.rotation)
    stream.metadata["language"] = media.language
    if media.timecode:
        stream.metadata["timecode"] = media.timecode
    return stream


def _video_packets(stream: Any, media: Media) -> list[Any]:
    width, height = media.size
    graph = None
    if media.interlaced:  # PyAV cannot set the flags of a frame, the setfield filter can
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width,
            height=height,
            format=av.VideoFormat(media.pix_fmt),
            time_base=Fraction(1, TICKS),
        )
        setfield, sink = graph.add("setfield", media.interlaced), graph.add("buffersink")
        source.link_to(setfield)
        setfield.link_to(sink)
        graph.configure()
    packets: list[Any] = []
    nexts = [*media.pts[1:], media.pts[-1] + media.last_duration]
    for number, pts in enumerate(media.pts):
        across = np.arange(width)[None, :, None] * 3 + np.arange(height)[:, None, None]
        picture = np.repeat(across + 8 * number, 3, axis=2).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=media.pix_fmt)
        frame.pts, frame.time_base = pts, Fraction(1, TICKS)
        frame.duration = nexts[number] - pts
        if graph is not None:
            graph.vpush(frame)
            frame = graph.vpull()
        frame.color_range = media.colour[0]
        packets += stream.encode(frame)
    packets += stream.encode(None)
    if not media.captions:
        return packets
    with_captions: list[Any] = []
    for packet in packets:
        copy = _packet(stream, CAPTION % (len(with_captions) % 90 + 33) + bytes(packet), 0, 0, 1)
        copy.time_base, copy.pts, copy.dts = packet.time_base, packet.pts, packet.dts
        copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
        with_captions.append(copy)
    return with_captions


def _audio_packets(stream: Any, audio: Audio) -> list[Any]:
    packets: list[Any] = []
    for number in range(36):
        time = (np.arange(1024) + 1024 * number) / 48_000
        wave = (np.sin(time * audio.frequency * 6.283) * 0.3).astype(np.float32)
        form = stream.codec_context.format.name
        if form.startswith("s"):
            kind = np.int16 if "16" in form else np.int32
            wave = (wave * np.iinfo(kind).max).astype(kind)
        frame = av.AudioFrame.from_ndarray(wave[None], form, "mono")
        frame.sample_rate, frame.pts = 48_000, number * 1024 + round(audio.shift * 48_000)
        frame.time_base = Fraction(1, 48_000)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    if audio.drop is not None:
        del packets[audio.drop]
    if audio.flip is not None:
        old = packets[audio.flip]
        data = bytearray(bytes(old))
        data[len(data) // 2] ^= 1
        packets[audio.flip] = _packet(stream, bytes(data), old.pts, old.duration, 48_000)
    return packets


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


# --- bare videos of given frames -----------------------------------------------------------------


def samples(frame: Any) -> list[NDArray[Any]]:
    """Writable views of a frame's planes without their padding, one row of samples a line."""
    pixel = frame.format
    views = []
    for number, plane in enumerate(frame.planes):
        own = [c for c in pixel.components if c.plane == number]
        depth = max(c.bits for c in own)
        dtype = np.dtype(np.uint8 if depth <= 8 else ">u2" if pixel.is_big_endian else "<u2")
        rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
        packed = pixel.name.endswith("0") or pixel.name in ("bgr0", "rgb0")
        width = own[0].width * (4 if packed else len(own))
        views.append(rows[: own[0].height, :width])
    return views


def picture(number: int, pix_fmt: str = "yuv420p", size: tuple[int, int] = (64, 48)) -> Any:
    """A frame of noise over all codes of its format, out-of-gamut ones included; seeded."""
    frame = av.VideoFrame(*size, pix_fmt)
    random = np.random.default_rng([number, *pix_fmt.encode(), *size])
    bits = frame.format.components[0].bits
    for view in samples(frame):
        view[...] = random.integers(0, 1 << bits, view.shape)
    return frame


def scene(number: int, pix_fmt: str = "yuv420p", size: tuple[int, int] = (64, 48)) -> Any:
    """A frame that compresses well: a soft pattern, its mean brightness told by its number."""
    width, height = size
    wave = (
        np.sin(np.arange(width) / 5)[None] + np.sin((np.arange(height) + 2 * number) / 7)[:, None]
    )
    gray = 60 + 4 * (number % 25) + 14 * wave
    tint = np.stack([gray, gray + 8, gray - 8], axis=2).clip(0, 255).astype(np.uint8)
    return av.VideoFrame.from_ndarray(tint, "rgb24").reformat(format=pix_fmt)


def write_frames(
    path: Path,
    frames: Iterable[Any],
    codec: str = "ffv1",
    *,
    rate: int = 25,
    colour: tuple[int, int, int, int] = (0, 2, 2, 2),
    options: dict[str, str] | None = None,
    sound: str = "",
    form: str | None = None,
    first: int = 0,
) -> Path:
    """Encode frames at a constant rate, the first one being number `first`.

    colour is range, primaries, transfer, matrix.
    """
    # YUV4MPEG beyond 8 bits is an extension that it wants to be asked for.
    strict = {"strict": "-1"} if path.suffix == ".y4m" else {}
    with av.open(str(path), "w", format=form, container_options=strict) as container:
        stream: Any = None
        track: Any = container.add_stream(sound, rate=48_000, layout="mono") if sound else None
        packets: list[Any] = _audio_packets(track, Audio()) if sound else []
        for number, frame in enumerate(frames, first):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=options or {})
                stream.width, stream.height = frame.width, frame.height
                stream.pix_fmt = frame.format.name
                context = stream.codec_context
                context.color_range, context.color_primaries = colour[:2]
                context.color_trc, context.colorspace = colour[2:]
                context.thread_count = 1
            frame.color_range, frame.color_primaries, frame.color_trc, frame.colorspace = colour
            frame.pts, frame.time_base = number, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def read_frames(path: Path, stream: int = 0, **options: Any) -> list[tuple[Fraction, list[Any]]]:
    """(time in seconds, planes) of every frame."""
    with av.open(str(path), **options) as container:
        return [
            (frame.pts * frame.time_base, [view.copy() for view in samples(frame)])
            for frame in container.decode(video=stream)
        ]


def same_frames(ours: Path, theirs: Path) -> bool:
    """True when both videos have the same times and samples."""
    a, b = read_frames(ours), read_frames(theirs)
    return len(a) == len(b) > 0 and all(
        ta == tb and len(pa) == len(pb) and all(map(np.array_equal, pa, pb))
        for (ta, pa), (tb, pb) in zip(a, b, strict=True)
    )
