"""Recordings as a GoPro makes them, with its tracks and boxes, in as many chapters as asked.

A whole recording is encoded once and cut, as the camera cuts it: what the chapters join to has to
be equal to `Footage.whole`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.packet import Packet
from numpy.typing import NDArray

from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.graft import graft
from vdeblur.media.mp4.tracks import chunk_extents, get_trak, read_tracks, sample_sizes

FPS = Fraction(30000, 1001)
TICKS = 90_000
FRAME = 3003  # ticks a frame
RATE = 48_000
MUXER = {"movie_timescale": "90000"}


@dataclass(frozen=True)
class Footage:
    """Chapter files, and the same recording uncut."""

    chapters: list[Path]
    whole: Path
    frames: int


def klv(key: str, kind: str, data: bytes, *, size: int = 0, count: int | None = None) -> bytes:
    """A GPMF item: key, type, size of a structure, their number, data padded to 32 bits."""
    size = size or len(data)
    count = len(data) // size if count is None else count
    head = struct.pack(">4sBBH", key.encode(), ord(kind) if kind else 0, size, count)
    return head + data + bytes(-len(data) % 4)


def nest(key: str, *items: bytes) -> bytes:
    data = b"".join(items)
    return klv(key, "", data, size=1, count=len(data))


def settings(*, zfov: float = 90.0, readout: float = 0.0, marks: Sequence[int] = ()) -> bytes:
    """moov/udta/GPMF: the camera, its field of view, and highlights at `marks` milliseconds."""
    highlights = [klv("DVID", "F", b"HLMT"), klv("DVNM", "c", b"Highlights", size=1)]
    if marks:
        records = b"".join(struct.pack(">2I2i4s", m, 0, 1, 2, b"MANL") for m in marks)
        highlights.append(
            nest("STRM", klv("TYPE", "c", b"LLllF", size=1), klv("HLMT", "?", records, size=20))
        )
    device = nest(
        "DEVC",
        klv("DVID", "L", struct.pack(">I", 1)),
        klv("DVNM", "c", b"Global Settings", size=1),
        klv("MINF", "c", b"HERO12 Black", size=1),
        klv("ZFOV", "f", struct.pack(">f", zfov)),
        *([klv("SROT", "f", struct.pack(">f", readout))] if readout else []),
    )
    return (device + nest("DEVC", *highlights)).ljust(2048, b"\0")


def payload(rates: NDArray[np.float64], exposures: Sequence[float]) -> bytes:
    """A sample of the gpmd track: gyroscope (n, 3) in rad/s, exposure times in seconds."""
    scaled = np.round(rates * 1000).astype(">i2")
    return nest(
        "DEVC",
        klv("DVID", "L", struct.pack(">I", 1)),
        klv("DVNM", "c", b"HERO12 Black", size=1),
        nest(
            "STRM",
            klv("STNM", "c", b"Gyroscope", size=1),
            klv("SIUN", "c", b"rad/s", size=5),
            klv("SCAL", "s", struct.pack(">h", 1000)),
            klv("GYRO", "s", scaled.tobytes(), size=6),
        ),
        nest(
            "STRM",
            klv("STNM", "c", b"Exposure time (shutter speed)", size=1),
            klv("SIUN", "c", b"s", size=1),
            klv("SHUT", "f", np.array(exposures, ">f4").tobytes(), size=4),
        ),
    )


def texture(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Noise that is the same for every frame but for a slow drift: sharp unless it is blurred."""
    width, height = size
    random = np.random.default_rng(5)
    noise = random.integers(40, 216, (height, width + 400)).astype(np.uint8)
    return noise[:, number : number + width]


def footage(
    folder: Path,
    names: Sequence[str] = ("GX010042.MP4", "GX020042.MP4", "GX030042.MP4"),
    *,
    frames: int = 12,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuvj420p",
    timecode: str = "10:00:00;00",
    marks: Sequence[Sequence[int]] = (),
    blur: Callable[[int], int] = lambda number: 1,
    rate: Callable[[float], float] = lambda seconds: 0.1,
    exposure: float = 0.004,
    readout: float = 0.0,
    telemetry: bool = True,
    overlong: bool = False,
    reordered: int = 0,
) -> Footage:
    """A recording in as many chapters as names, `frames` frames each.

    overlong: every sample of telemetry claims a second, also where the chapter ends before, as the
    HERO5's do. reordered: B frames between two others.

    marks: highlights of each chapter in milliseconds. blur: the length in pixels of each frame's
    horizontal blur; rate: the camera's turn about its up axis, rad/s, at a time in seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = frames * len(names)
    coded = _encode(
        folder / "coded.mp4", total, size, codec, pix_fmt, timecode, blur, frames, reordered
    )
    whole = folder / "whole" / "whole.mp4"
    whole.parent.mkdir(exist_ok=True)
    _mux(coded, whole, 0, total, _payloads(0, total, rate, exposure, overlong) if telemetry else [])
    chapters = []
    for number, name in enumerate(names):
        first = number * frames
        data = _payloads(first, frames, rate, exposure, overlong) if telemetry else []
        path = folder / name
        _mux(coded, path, first, frames, data, begin=number == 0)
        _dress(path, settings(readout=readout, marks=marks[number] if marks else ()),
               list(marks[number]) if marks else [], muid=bytes([number]) * 8,
               start=_frame_number(timecode) + first, frames=frames)  # fmt: skip
        chapters.append(path)
    coded.unlink()
    return Footage(chapters, whole, total)


def _encode(
    path: Path,
    total: int,
    size: tuple[int, int],
    codec: str,
    pix_fmt: str,
    timecode: str,
    blur: Callable[[int], int],
    keyframes: int,
    reordered: int,
) -> Path:
    """Picture and sound of the whole recording, a closed group of pictures at least a chapter."""
    with av.open(str(path), "w", container_options=MUXER) as container:
        options = {"preset": "ultrafast", "crf": "16", "g": str(keyframes), "bf": str(reordered)}
        if codec == "libx265":
            options = {"preset": "ultrafast", "crf": "16"} | {
                "x265-params": f"log-level=none:keyint={keyframes}:bframes=0:scenecut=0"
            }
        video: Any = container.add_stream(codec, rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.time_base = Fraction(1, TICKS)
        context = video.codec_context
        context.time_base, context.thread_count = Fraction(1, TICKS), 1
        context.flags |= Flags.global_header | Flags.frame_duration | Flags.closed_gop
        context.color_range, context.color_primaries = 2, 1
        context.color_trc = context.colorspace = 1
        if codec == "libx265":
            context.codec_tag = "hvc1"
        video.metadata["timecode"] = timecode
        sound: Any = container.add_stream("aac", rate=RATE, layout="stereo")
        packets: list[Any] = []
        for number in range(total):
            gray = texture(number, size).astype(np.float64)
            length = blur(number)
            gray = np.mean([np.roll(gray, -n, axis=1) for n in range(length)], axis=0)
            frame = av.VideoFrame.from_ndarray(gray.astype(np.uint8), "gray")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base, frame.duration = number * FRAME, Fraction(1, TICKS), FRAME
            frame.color_range = 2
            packets += video.encode(frame)
        packets += video.encode(None)
        wave = np.random.default_rng(7).normal(0, 0.2, (2, total * FRAME * RATE // TICKS + 2048))
        for number in range(wave.shape[1] // 1024):
            part = np.ascontiguousarray(wave[:, number * 1024 : (number + 1) * 1024], np.float32)
            heard = av.AudioFrame.from_ndarray(part, "fltp", "stereo")
            heard.sample_rate, heard.pts = RATE, number * 1024
            packets += sound.encode(heard)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _payloads(
    first: int, count: int, rate: Callable[[float], float], exposure: float, overlong: bool
) -> list[tuple[int, int, bytes]]:
    """(milliseconds, duration, GPMF) of the telemetry of a chapter: a second each."""
    result = []
    for begin in range(0, count, 30):
        number = min(30, count - begin)
        start, length = float((first + begin) / FPS), float(number / FPS)
        times = start + np.arange(max(1, round(200 * length))) / 200
        rates = np.zeros((len(times), 3))
        rates[:, 1] = [rate(t) for t in times]
        data = payload(rates, [exposure] * number)
        length_ms = 1001 if overlong else round(number * 1001 / 30)
        result.append((begin * 1001 // 30, length_ms, data))
    return result


def _mux(
    coded: Path,
    path: Path,
    first: int,
    count: int,
    telemetry: list[tuple[int, int, bytes]],
    *,
    begin: bool = True,
) -> None:
    """The frames from `first` on, the sound beside them, telemetry and fdsc: a chapter."""
    start, end = first * FRAME, (first + count) * FRAME
    with av.open(str(coded)) as source:
        streams = [source.streams.video[0], source.streams.audio[0]]
        packets = [p for p in source.demux(*streams) if p.size]
        with av.open(str(path), "w", container_options=MUXER) as target:
            copies = [target.add_stream_from_template(s) for s in streams]
            data: list[Any] = []
            for _ in range(2 if telemetry else 1):
                data.append(target.add_data_stream("bin_data"))
                data[-1].time_base = Fraction(1, 1000)
            items: list[tuple[float, Any]] = []
            shift: int | None = None
            for packet in packets:
                assert packet.pts is not None
                assert packet.dts is not None
                at = packet.pts * packet.time_base
                sound = packet.stream.type == "audio"
                # Sound is cut at the packet that begins next, as the camera does.
                inside = Fraction(start, TICKS) <= at < Fraction(end, TICKS)
                if not inside and not (begin and sound and at < 0):
                    continue
                if sound and shift is None:
                    shift = 0 if begin else packet.pts
                less = (shift or 0) if sound else start
                packet.pts, packet.dts = packet.pts - less, packet.dts - less
                packet.stream = copies[sound]
                items.append((float(packet.dts * packet.time_base), packet))
            for begins, duration, content in telemetry:
                items.append((begins / 1000, _data(data[0], content, begins, duration)))
            for number in range(4):
                content = f"fdsc{first:04}{number}".encode()
                items.append((number / 20, _data(data[-1], content, number * 50, 50)))
            for _, packet in sorted(items, key=lambda item: item[0]):
                target.mux(packet)
    # A copied stream has no rate to count a time code by: its track comes over as it is.
    codes = [track.index for track in read_tracks(coded) if track.fourcc == "tmcd"]
    graft(coded, path, track_indices=codes, udta=False)


def _data(stream: Any, content: bytes, at: int, duration: int) -> Any:
    packet = Packet(content)
    packet.stream, packet.time_base = stream, Fraction(1, 1000)
    packet.pts = packet.dts = at
    packet.duration = duration
    return packet


def _frame_number(timecode: str) -> int:
    """Frames since midnight at 29.97, drop-frame (SMPTE ST 12-1)."""
    hours, minutes, seconds, frames = (int(timecode[n : n + 2]) for n in (0, 3, 6, 9))
    minutes += 60 * hours
    dropped = 2 * (minutes - minutes // 10) if ";" in timecode else 0
    return (minutes * 60 + seconds) * 30 + frames - dropped


def read_moov(path: Path) -> bytes:
    with path.open("rb") as file:
        return boxes.read_moov(file)[1]


def _put(payload: bytes) -> Callable[[bytes, bytes], tuple[bytes, bytes]]:
    return lambda kind, _: (kind, payload)


def _dress(
    path: Path, gpmf: bytes, marks: list[int], *, muid: bytes, start: int, frames: int
) -> None:
    """GoPro's names, an fdsc track that libav has no codec for, the boxes in moov/udta."""
    moov = read_moov(path)
    udta = boxes.build_all(
        [
            (b"free", bytes(22)),
            (b"FIRM", b"H23.01.01.00.00"),
            (b"LENS", b"LAE61011".ljust(48, b"\0")),
            (b"CAME", bytes(range(16))),
            (b"SETT", bytes(12)),
            (b"MUID", muid.ljust(32, b"\0")),
            (b"HMMT", struct.pack(f">{1 + len(marks)}I", len(marks), *marks).ljust(404, b"\0")),
            (b"XYZ0", b"unknown to all"),
            (b"GPMF", gpmf),
        ]
    )
    names = {b"vide": b"GoPro AVC  ", b"soun": b"GoPro AAC  ", b"tmcd": b"GoPro TCD  "}
    meta = [b"GoPro SOS  ", b"GoPro MET  "]
    atoms: list[tuple[bytes, bytes]] = []
    own = sum(t.fourcc == "gpmd" for t in read_tracks(path))
    code = next(t for t in read_tracks(path) if t.fourcc == "tmcd")
    for kind, data in boxes.children(moov):
        if kind == b"trak":
            handler = (boxes.get(data, b"mdia", b"hdlr") or b"")[8:12]
            name = names.get(handler) or meta[own > 1]
            if handler == b"meta":
                if own == 1:
                    data = data.replace(b"gpmd", b"fdsc")
                own -= 1
            hdlr = bytes(4) + b"mhlr" + handler + bytes(12) + bytes([len(name)]) + name
            data = boxes.edit(data, (b"mdia", b"hdlr"), _put(hdlr))
            if handler in (b"vide", b"soun"):
                data += boxes.build(b"tref", boxes.build(b"tmcd", struct.pack(">I", code.track_id)))
            elif handler == b"tmcd":
                stts = struct.pack(">4I", 0, 1, 1, frames * FRAME)
                data = boxes.edit(data, (b"mdia", b"minf", b"stbl", b"stts"), _put(stts))
        if kind != b"udta":
            atoms.append((kind, data))
    atoms.insert(1, (b"udta", udta))
    atoms.insert(2, (b"iods", bytes(16)))
    with path.open("r+b") as file:
        box, _ = boxes.read_moov(file)
        # libav's ftyp is longer than the camera's 20 bytes.
        spare = next(boxes.top_level_boxes(file)).end - 20
        file.seek(0)
        file.write(boxes.build(b"ftyp", b"mp41" + bytes.fromhex("20131018") + b"mp41"))
        file.write(boxes.build(b"free", bytes(spare - 8)))
        for track in read_tracks(path):
            if track.fourcc == "tmcd":
                file.seek(int(chunk_extents(file, moov, track.index)[0, 0]))
                file.write(struct.pack(">I", start))
        file.seek(box.start)
        file.write(boxes.build(b"moov", boxes.build_all(atoms)))
        file.truncate()


def packets(path: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    """(time, duration, data) of the packets of the picture, sound or telemetry ("bin_data")."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if kind in (s.type, s.name) and s.name)
        base = Fraction(stream.time_base or 1)
        return [
            (p.pts * base, (p.duration or 0) * base, bytes(p))
            for p in container.demux(stream)
            if p.size and p.pts is not None
        ]


def samples(path: Path, fourcc: str) -> list[bytes]:
    """The samples of a track, straight from the file's own tables."""
    track = next(t for t in read_tracks(path) if t.fourcc == fourcc)
    with path.open("rb") as file:
        moov = boxes.read_moov(file)[1]
        stbl = boxes.get(get_trak(moov, track.index), b"mdia", b"minf", b"stbl") or b""
        sizes, count = sample_sizes(stbl)
        each = [int(s) for s in np.broadcast_to(np.asarray(sizes), (count,))]
        data = b""
        for at, length in chunk_extents(file, moov, track.index).tolist():
            file.seek(at)
            data += file.read(length)
    ends = np.cumsum(each).tolist()
    return [data[end - size : end] for end, size in zip(ends, each, strict=True)]


def udta(path: Path) -> dict[bytes, bytes]:
    """The payloads of the boxes in moov/udta, by type."""
    return dict(boxes.children(boxes.get(read_moov(path), b"udta") or b""))
