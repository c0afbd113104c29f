"""Outputs that kept everything, and outputs each damaged in one way that a check must name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags
from av.packet import Packet
from av.stream import Disposition

from vdeblur import boxes
from vdeblur.errors import InputError
from vdeblur.verify import CHECKS, Check, as_json, format_checks, verify

TICKS = 90_000
# Variable frame rate, as a telephone records it.
PTS = tuple(int(n * 3003 + 700 * (n % 3 == 1) + 900 * (n > 12)) for n in range(24))
CAPTION = b"\0\0\0\1\x06\x04\x0e\xb5\x00\x31GA94\x03\x41\xff\xfc%c\x80\xff\x80"  # CEA-708 SEI
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
    with av.open(str(path), "w", container_options=options if mp4 else {}) as container:
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
        for audio in media.audio:
            streams.append(container.add_stream(audio.codec, rate=48_000, layout="mono"))
            streams[-1].metadata.update({"language": audio.language, "title": audio.title})
            streams[-1].disposition = audio.disposition
            packets += _audio_packets(streams[-1], audio)
        if media.subtitles:
            stream: Any = container.add_mux_stream("mov_text" if mp4 else "subrip")
            stream.time_base = Fraction(1, 1000)
            stream.metadata["language"] = "spa"
            for n, text in enumerate(media.subtitles):
                head = len(text).to_bytes(2, "big") if mp4 else b""
                packets.append(_packet(stream, head + text.encode(), n * 300, 300, 1000))
        if media.telemetry:
            stream = container.add_data_stream("bin_data")
            stream.time_base = Fraction(1, 1000)
            for n, data in enumerate(media.telemetry):
                packets.append(_packet(stream, data, n * 400, 400, 1000))
        if media.cover is not None:
            stream = container.add_stream("png", rate=1) if mp4 else None
            if stream is None:
                container.add_attachment("cover.png", "image/png", b"\x89PNG\r\n" + media.cover)
            else:
                stream.width = stream.height = 16
                stream.pix_fmt = "rgb24"
                stream.disposition = Disposition.attached_pic
                picture = np.full((16, 16, 3), len(media.cover), np.uint8)
                packet = stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24"))[0]
                packets.append(_packet(stream, bytes(packet), 0, 0, 1))
        for name, data in media.fonts:
            container.add_attachment(name, "font/ttf", data)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    if media.maker:
        other = path.with_name("maker.mp4")
        payload = boxes._box(b"udta", boxes._join(media.maker))
        movie = boxes._box(b"mvhd", bytes(12) + (1000).to_bytes(4, "big") + bytes(84))
        other.write_bytes(boxes._box(b"moov", movie + payload))
        boxes.graft(other, path, track_indices=[])
    return path


def _packet(stream: Any, data: bytes, pts: int, duration: int, rate: int) -> Any:
    packet = Packet(data)
    packet.stream, packet.time_base = stream, Fraction(1, rate)
    packet.pts = packet.dts = pts
    packet.duration = duration
    return packet


def _video(container: Any, media: Media) -> Any:
    options = media.options | ({} if media.codec in ("ffv1", "mpeg4") else {"crf": str(media.crf)})
    stream: Any = container.add_stream(media.codec, rate=30, options=options)
    context = stream.codec_context
    stream.width, stream.height = media.size
    stream.pix_fmt = media.pix_fmt
    stream.time_base = context.time_base = Fraction(1, TICKS)
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
        samples = wave[None] if form == "fltp" else (wave[None] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, form, "mono")
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


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Media], Path]:
    """Each source is made once."""
    folder = tmp_path_factory.mktemp("sources")
    made: list[tuple[Media, Path]] = []

    def source(media: Media) -> Path:
        for other, path in made:
            if other == media:
                return path
        made.append((media, make(folder / f"source{len(made)}{media.suffix}", media)))
        return made[-1][1]

    return source


KEPT = {
    "mp4": MP4,
    "mkv": MKV,
    "hdr": HDR,
    "interlaced": INTERLACED,
    "captions": replace(PLAIN, captions=True),
    "pcm in mov": replace(PLAIN, suffix=".mov", audio=(Audio(codec="pcm_s16le"),)),
    "mpeg-ts": replace(PLAIN, suffix=".ts", rotation=None, audio=(Audio(disposition=0),)),
    "late sound": replace(MP4, audio=(Audio(shift=0.3),), pts=tuple(p + 9000 for p in PTS)),
    "no sound": PLAIN,
}


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", KEPT)
def test_everything_kept(
    tmp_path: Path, sources: Callable[[Media], Path], name: str, quick: bool
) -> None:
    media = KEPT[name]
    output = make(tmp_path / f"output{media.suffix}", replace(media, crf=35))
    checks = verify(sources(media), output, quick=quick)
    assert not failed(checks), format_checks(checks)
    assert tuple(check.name for check in checks) == CHECKS


def audio(number: int = 0, **change: Any) -> dict[str, Any]:
    tracks = list(MP4.audio)
    tracks[number] = replace(tracks[number], **change)
    return {"audio": tuple(tracks)}


DAMAGE: dict[str, tuple[Media, dict[str, Any], str]] = {
    "frame dropped at the end": (MP4, {"pts": PTS[:-1]}, "frame count"),
    "frame dropped in the middle": (MP4, {"pts": PTS[:9] + PTS[10:]}, "timestamps"),
    "frame dropped, counted": (MP4, {"pts": PTS[:9] + PTS[10:]}, "frame count"),
    "frame doubled": (MP4, {"pts": (*PTS[:9], PTS[9] - 1500, *PTS[9:])}, "frame count"),
    "one timestamp one tick on": (MP4, {"pts": (*PTS[:9], PTS[9] + 1, *PTS[10:])}, "timestamps"),
    "all frames later": (MP4, {"pts": tuple(p + 900 for p in PTS)}, "timestamps"),
    "picture late against sound": (MP4, {"pts": tuple(p + 900 for p in PTS)}, "A/V offset"),
    "variable rate made constant": (
        MP4,
        {"pts": tuple(n * 3161 for n in range(24))},
        "timestamps",
    ),
    "last frame longer": (MP4, {"last_duration": 3004}, "frame duration"),
    "last frame much longer": (PLAIN, {"last_duration": 90_000}, "duration"),
    "half the video": (MP4, {"pts": PTS[:12]}, "duration"),
    "sound 20 ms late": (MP4, audio(shift=0.02), "A/V offset"),
    "second sound 20 ms late": (MP4, audio(1, shift=0.02), "A/V offset"),
    "everything later": (
        replace(PLAIN, audio=(Audio(),)),
        {"pts": tuple(p + 9000 for p in PTS), "audio": (Audio(shift=0.1),)},
        "start time",
    ),
    "sound packet dropped": (MP4, audio(drop=7), "packet count"),
    "sound bit flipped": (MP4, audio(flip=7), "packet data"),
    "second sound dropped": (MP4, {"audio": MP4.audio[:1]}, "streams"),
    "sound encoded anew": (
        replace(PLAIN, suffix=".mov", audio=MP4.audio),
        {"audio": (Audio(codec="pcm_s16le"), MP4.audio[1])},
        "codec parameters",
    ),
    "tracks swapped": (MP4, {"audio": MP4.audio[::-1]}, "language"),
    "language changed": (MP4, audio(language="ita"), "language"),
    "video language lost": (MP4, {"language": "und"}, "language"),
    "track title lost": (MKV, audio(title="Other"), "stream metadata"),
    "disposition changed": (MP4, audio(1, disposition=0), "disposition"),
    "subtitles dropped": (MP4, {"subtitles": ()}, "streams"),
    "subtitle dropped": (MP4, {"subtitles": ("first",)}, "packet count"),
    "subtitle text changed": (MP4, {"subtitles": ("first", "sekond")}, "packet data"),
    "srt text changed": (MKV, {"subtitles": ("first", "sekond")}, "packet data"),
    "chapter title changed": (
        MP4,
        {"chapters": ((0, 400, "Start"), (400, 800, "Jump"))},
        "chapters",
    ),
    "chapter moved": (MP4, {"chapters": ((0, 399, "Start"), (399, 800, "Ride"))}, "chapters"),
    "chapter missing": (MP4, {"chapters": ((0, 400, "Start"),)}, "chapters"),
    "tag lost": (MP4, {"metadata": {"title": "Ride"}}, "metadata"),
    "rotation lost": (MP4, {"rotation": None}, "display matrix"),
    "rotated the other way": (MP4, {"rotation": -90}, "display matrix"),
    "pixels made square": (MP4, {"aspect": Fraction(1)}, "sample aspect ratio"),
    "matrix changed": (MP4, {"colour": (1, 1, 1, 6)}, "matrix coefficients"),
    "range flipped": (MP4, {"colour": (2, 1, 1, 1)}, "colour range"),
    "primaries lost": (MP4, {"colour": (1, 2, 1, 1)}, "colour primaries"),
    "transfer lost": (MP4, {"colour": (1, 1, 2, 1)}, "transfer characteristics"),
    "chroma moved": (
        PLAIN,
        {"options": {"preset": "ultrafast", "chroma_sample_location": "topleft"}},
        "chroma location",
    ),
    "depth reduced": (HDR, {"pix_fmt": "yuv420p"}, "pixel format"),
    "chroma subsampled": (
        replace(PLAIN, pix_fmt="yuv444p"),
        {"pix_fmt": "yuv420p"},
        "pixel format",
    ),
    "alpha lost": (
        replace(PLAIN, suffix=".mkv", rotation=None, codec="ffv1", pix_fmt="yuva420p", options={}),
        {"pix_fmt": "yuv420p"},
        "pixel format",
    ),
    "size changed": (MP4, {"size": (80, 48)}, "picture size"),
    "interlacing lost": (INTERLACED, {"interlaced": None}, "field order"),
    "fields swapped": (INTERLACED, {"interlaced": "bff"}, "field order"),
    "mastering display lost": (HDR, {"options": PLAIN.options}, "mastering display"),
    "light level lost": (HDR, {"options": PLAIN.options}, "content light level"),
    "captions lost": (replace(PLAIN, captions=True), {"captions": False}, "closed captions"),
    "cover lost": (MP4, {"cover": None}, "cover art"),
    "cover replaced": (MP4, {"cover": b"another"}, "cover art"),
    "font lost": (MKV, {"fonts": MKV.fonts[:1]}, "attachments"),
    "font changed": (MKV, {"fonts": (("one.ttf", b"?"), MKV.fonts[1])}, "attachments"),
    "telemetry changed": (MP4, {"telemetry": (b"DEVC0001", b"DEVC0003")}, "telemetry"),
    "telemetry lost": (MP4, {"telemetry": ()}, "telemetry"),
    "maker box lost": (MP4, {"maker": MP4.maker[:1]}, "maker boxes"),
    "maker box changed": (MP4, {"maker": ((b"FIRM", b"HD2.0"), MP4.maker[1])}, "maker boxes"),
    "timecode lost": (MP4, {"timecode": None}, "timecode"),
    "timecode changed": (MP4, {"timecode": "01:02:03:05"}, "timecode"),
    "faststart lost": (MP4, {"faststart": False}, "faststart"),
}


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(
    tmp_path: Path, sources: Callable[[Media], Path], name: str, quick: bool
) -> None:
    media, change, check = DAMAGE[name]
    output = make(tmp_path / f"output{media.suffix}", replace(media, **change))
    checks = verify(sources(media), output, quick=quick)
    assert check in failed(checks), format_checks(checks)
    accepted = verify(sources(media), output, quick=quick, known_losses=failed(checks))
    assert not failed(accepted)
    assert "known loss" in next(found.detail for found in accepted if found.name == check)


def test_truncated_output(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    for media, name in ((MP4, "frame count"), (replace(MP4, faststart=False), "container")):
        output = make(tmp_path / "output.mp4", media)
        data = output.read_bytes()
        output.write_bytes(data[: len(data) * 3 // 5])
        for quick in (False, True):
            assert name in failed(verify(sources(media), output, quick=quick))


def test_damaged_picture_data(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    output = make(tmp_path / "output.mp4", MP4)
    data = bytearray(output.read_bytes())
    with av.open(str(output)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size and p.pos]
    for place in places[5:9]:
        data[place + 4 : place + 40] = b"\xff" * 36
    output.write_bytes(data)
    assert "decoding" in failed(verify(sources(MP4), output))


def test_codecless_track(tmp_path: Path) -> None:
    # fdsc, mebx …: libav shows no packets of them, the box reader compares the samples.
    source = make(tmp_path / "source.mp4", MP4)
    source.write_bytes(source.read_bytes().replace(b"gpmd", b"fdsc"))
    output = make(tmp_path / "output.mp4", replace(MP4, telemetry=()))
    assert {"data tracks", "streams"} <= failed(verify(source, output))
    index = next(track.index for track in boxes.tracks(source) if track.fourcc == "fdsc")
    boxes.graft(source, output, track_indices=[index])
    assert not failed(verify(source, output))
    output.write_bytes(output.read_bytes().replace(b"DEVC0002", b"DEVC0009"))
    assert failed(verify(source, output)) == {"data tracks"}


def test_dropped_streams_can_be_accepted(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    output = make(tmp_path / "output.mp4", replace(MP4, audio=MP4.audio[1:]))
    source = sources(MP4)
    assert {"streams", "language"} <= failed(verify(source, output))
    assert not failed(verify(source, output, known_losses=[1]))
    # Told which stream went where, the languages are compared rightly.
    told = failed(verify(source, output, stream_map={0: 0, 2: 1}))
    assert "streams" in told
    assert "language" not in told


def test_frame_times_that_were_seen(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    # Three packets of the source could not be decoded: its writer knows, the packets do not.
    seen = PTS[:9] + PTS[12:]
    output = make(tmp_path / "output.mp4", replace(MP4, pts=seen))
    source = sources(MP4)
    assert "frame count" in failed(verify(source, output, quick=True))
    assert not failed(verify(source, output, quick=True, frame_times={0: seen}))
    moved = verify(source, output, quick=True, frame_times={0: [p + (p > 9000) for p in seen]})
    assert "timestamps" in failed(moved)
    detail = next(check.detail for check in moved if check.name == "timestamps")
    assert detail == f"video 0 frame 3: {PTS[3] + 1} -> {PTS[3]} (1/90000)"


def test_other_container(tmp_path: Path) -> None:
    # Matroska counts milliseconds: half of one is the rounding that is allowed, no more.
    source = make(tmp_path / "source.mp4", replace(PLAIN, audio=MP4.audio, rotation=None))
    media = replace(PLAIN, audio=MP4.audio, rotation=None)
    output = make(tmp_path / "output.mkv", media)
    lost = failed(verify(source, output))
    assert not lost & {"timestamps", "frame count", "packet data", "packet timestamps"}
    assert not lost & {"A/V offset", "frame duration", "packet duration", "duration"}
    make(output, replace(media, pts=(*PTS[:9], PTS[9] + 120, *PTS[10:])))
    assert "timestamps" in failed(verify(source, output))


def test_how_it_is_shown(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    output = make(tmp_path / "output.mp4", replace(MP4, pts=(*PTS[:9], PTS[9] + 1, *PTS[10:])))
    checks = verify(sources(MP4), output, known_losses=["frame duration"])
    lines = format_checks(checks).splitlines()
    assert len(lines) == len(CHECKS) + 1
    assert lines[3].split() == ["ok", "frame", "count", "24"]
    assert lines[4].split(maxsplit=2) == [
        "FAIL",
        "timestamps",
        f"video 0 frame 9: {PTS[9]} -> {PTS[9] + 1} (1/90000)",
    ]
    assert lines[5].startswith("lost  frame duration")
    assert lines[-1] == f"1 of {len(CHECKS)} checks failed"
    plain = json.loads(json.dumps(as_json(checks)))
    assert plain["passed"] is False
    assert [check["name"] for check in plain["checks"]] == list(CHECKS)
    assert format_checks([Check("streams", True, "")]).endswith("all 1 checks passed")


def test_what_cannot_be_read(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"no video")
    source = sources(MP4)
    for first, second in ((noise, source), (tmp_path, source), (source, tmp_path / "missing")):
        with pytest.raises(InputError):
            verify(first, second)
    assert failed(verify(source, noise)) == {"container"}
    with pytest.raises(ValueError, match="no check"):
        verify(source, source, known_losses=["colour"])


@pytest.mark.parametrize("name", ["karma.mp4", "max-heromode.mp4"])
def test_gopro_files(name: str) -> None:
    path = Path(__file__).resolve().parents[1] / ".." / "shared" / "media" / name
    if not path.exists():
        pytest.skip("the GoPro samples are not here")
    checks = verify(path, path, quick=True)
    assert not failed(checks), format_checks(checks)
