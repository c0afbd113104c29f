"""What must survive: every kind of recording goes through, and `verify` finds no difference."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from torch import nn

from tests.helpers.clips import (
    HDR,
    INTERLACED,
    MKV,
    MP4,
    PLAIN,
    PTS,
    SCRIPT,
    Audio,
    Media,
    failed,
    make,
    picture,
    read_frames,
    same_frames,
    samples,
    scene,
    write_frames,
)
from vdeblur import EncodeOptions, OutputError, VideoReader, VideoWriter, deblur_video
from vdeblur.media.mp4.tracks import read_tracks
from vdeblur.media.pixel_formats import planes_of
from vdeblur.media.verify import Expectations, format_checks, verify

CFR = tuple(n * 3000 for n in range(24))
TWO = (Audio(title=""), Audio("fra", "", int(Disposition.comment), frequency=220))
WHOLE = replace(MP4, audio=TWO, subtitles=(), timecode=None)
ONE = TWO[:1]
LATE = tuple(p + 27_000 for p in PTS)
WRAP = 2**33 - 40_000  # the 90 kHz clock of MPEG-TS has 33 bits: it starts anew in mid-clip
BARE = replace(MKV, subtitles=(), chapters=(), cover=None, fonts=(), audio=())
TS = replace(PLAIN, suffix=".ts", rotation=None, metadata={}, audio=(Audio(disposition=0),))
B_FRAMES = {"preset": "veryfast", "bf": "3", "b-adapt": "0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none"}
HLG = replace(HDR, colour=(1, 9, 18, 9), options=X265)
MPEG2 = replace(
    PLAIN,
    suffix=".ts",
    rotation=None,
    codec="mpeg2video",
    options={"b": "2000000"},
    pts=CFR,
    last_duration=3000,
    metadata={},
    audio=(Audio(disposition=0, codec="mp2"),),
)


def kind(suffix: str, codec: str, sound: str) -> Media:
    """A plain recording of another container."""
    return replace(
        PLAIN,
        suffix=suffix,
        codec=codec,
        rotation=None,
        metadata={},
        aspect=Fraction(1),
        pts=CFR,
        last_duration=3000,
        options={},
        audio=(Audio(title="", disposition=0, codec=sound),),
    )


#: What the program gets wrong, until it does not: strict, so that the mark goes with the fault.
FAULTS = {
    "avi, h.264 with b-frames": "the encoder's delay is not that of the source",
    "mpg": "MPEG-PS needs decoding times that differ from the presentation times",
}

SURVIVES: dict[str, Media] = {
    "everything in mp4, variable rate": WHOLE,
    "everything in mkv": MKV,
    "constant rate": replace(PLAIN, pts=CFR, last_duration=3000, audio=ONE),
    "29.97": replace(PLAIN, pts=tuple(n * 3003 for n in range(24)), audio=ONE),
    "picture late": replace(WHOLE, pts=LATE),
    "picture late in mkv": replace(MKV, pts=tuple(p + 27_000 for p in MKV.pts)),
    "sound late": replace(WHOLE, audio=(replace(TWO[0], shift=0.3), replace(TWO[1], shift=0.1))),
    "sound late in mkv": replace(MKV, audio=(Audio(title="", shift=0.3),)),
    "all late": replace(WHOLE, pts=LATE, audio=(Audio(title="", shift=0.3),)),
    "negative times": replace(
        PLAIN, pts=tuple(p - 9000 for p in PTS), audio=(Audio(title="", shift=-0.1),)
    ),
    "edit list": replace(PLAIN, pts=tuple(p - 10_500 for p in PTS), audio=ONE),
    "b-frames": replace(WHOLE, options=B_FRAMES),
    "b-frames in mkv": replace(MKV, options=B_FRAMES),
    "one frame": replace(PLAIN, pts=(0,), audio=ONE),
    "mpeg-ts": TS,
    "mpeg-ts with b-frames": replace(TS, options=B_FRAMES, pts=LATE),
    "mpeg-ts across the wrap": replace(
        TS,
        pts=tuple(p + WRAP for p in CFR),
        audio=(Audio(disposition=0, shift=WRAP / 90_000),),
        muxing={"mpegts_copyts": "1"},
    ),
    "timecode and a cover": replace(WHOLE, timecode="01:02:03:04"),
    "titles of tracks": replace(PLAIN, audio=MP4.audio),
    "mov_text subtitles": replace(PLAIN, subtitles=("first", "second")),
    "ass subtitles": replace(MKV, subtitles=(), script=SCRIPT),
    "unicode": replace(
        WHOLE,
        metadata={"title": "Fahrt über 東京 🚲", "artist": "Ана", "comment": "a=b; c\\d\n2"},
        chapters=((0, 400, "Überholen"), (400, 800, "峠")),
    ),
    "custom tags": replace(
        WHOLE,
        cover=None,
        metadata={"title": "Ride", "com.maker.serial": "C0123", "com.maker.mode": "ü"},
        muxing={"movflags": "+faststart+use_metadata_tags"},
    ),
    "custom tags in mkv": replace(MKV, metadata={"title": "Ride", "SERIAL": "C0123", "MODE": "ü"}),
    "rotated": replace(PLAIN, rotation=-90),
    "upside down": replace(PLAIN, rotation=180),
    "wide pixels": replace(PLAIN, aspect=Fraction(64, 45)),
    "fields, top first": INTERLACED,
    "fields, bottom first": replace(INTERLACED, interlaced="bff"),
    "fields in mkv": replace(BARE, interlaced="tff", options={"preset": "ultrafast", "bf": "0"}),
    "mpeg-2 fields, top first": replace(MPEG2, interlaced="tff"),
    "mpeg-2 fields, bottom first": replace(MPEG2, interlaced="bff"),
    "full range": replace(PLAIN, colour=(2, 1, 1, 1)),
    "601": replace(PLAIN, colour=(1, 6, 6, 6)),
    "pal": replace(PLAIN, colour=(1, 5, 6, 5)),
    "hdr10": HDR,
    "hdr10 in mkv": replace(HDR, suffix=".mkv", rotation=None),
    "hlg": HLG,
    "hlg in mkv": replace(HLG, suffix=".mkv", rotation=None),
    "hevc 8 bits": replace(HLG, pix_fmt="yuv420p", colour=(1, 1, 1, 1)),
    "10 bits 4:2:2": replace(PLAIN, pix_fmt="yuv422p10le"),
    "4:4:4": replace(PLAIN, pix_fmt="yuv444p"),
    "gray": replace(PLAIN, pix_fmt="gray"),
    "odd size": replace(PLAIN, pix_fmt="yuv444p", size=(61, 47)),
    "odd size 4:2:0": replace(BARE, codec="ffv1", options={}, size=(61, 47)),
    "alpha": replace(BARE, codec="ffv1", options={}, pix_fmt="yuva420p"),
    "captions": replace(PLAIN, captions=True),
    "moov last": replace(WHOLE, faststart=False),
    "moov first": replace(PLAIN, faststart=True),
    "timecode in mov": replace(PLAIN, suffix=".mov", timecode="01:02:03:04"),
    "timecode, drop frame": replace(
        PLAIN, pts=tuple(n * 3003 for n in range(24)), timecode="01:02:03;04"
    ),
    "pcm in mov": replace(PLAIN, suffix=".mov", audio=(Audio(title="", codec="pcm_s16le"),)),
    "two pictures": replace(PLAIN, second_video=True, audio=ONE),
    "two pictures in mkv": replace(BARE, second_video=True, audio=ONE),
    "sound longer than picture": replace(PLAIN, pts=PTS[:5], audio=ONE),
    "no sound": PLAIN,
    "avi, mpeg-4, pcm": kind(".avi", "mpeg4", "pcm_s16le"),
    "avi, mpeg-4, mp3": kind(".avi", "mpeg4", "libmp3lame"),
    "avi, motion jpeg": replace(
        kind(".avi", "mjpeg", "pcm_s16le"), pix_fmt="yuvj420p", colour=(2, 2, 2, 2)
    ),
    "avi, h.264": replace(kind(".avi", "libx264", "libmp3lame"), options={"bf": "0"}),
    "avi, h.264 with b-frames": replace(kind(".avi", "libx264", "libmp3lame"), options={"bf": "2"}),
    "flv": kind(".flv", "libx264", "aac"),
    "webm, vp9": kind(".webm", "libvpx-vp9", "libopus"),
    "webm, vp8": kind(".webm", "libvpx", "libopus"),
    "mov, prores": replace(kind(".mov", "prores_ks", "pcm_s16le"), pix_fmt="yuv422p10le"),
    "mov, motion jpeg": replace(
        kind(".mov", "mjpeg", "pcm_s16le"), pix_fmt="yuvj422p", colour=(2, 2, 2, 2)
    ),
    "mov, dnxhr": replace(
        kind(".mov", "dnxhd", "pcm_s16le"),
        pts=CFR[:4],
        size=(256, 128),
        pix_fmt="yuv422p",
        options={"profile": "dnxhr_hq"},
    ),
    "mxf": kind(".mxf", "mpeg2video", "pcm_s16le"),
    "mpg": kind(".mpg", "mpeg2video", "mp2"),
    "m2ts": kind(".m2ts", "libx264", "ac3"),
    "3gp": kind(".3gp", "libx264", "aac"),
    "nut": kind(".nut", "libx264", "aac"),
    "mp4, mpeg-4": kind(".mp4", "mpeg4", "aac"),
}  # fmt: skip


def marked(names: Mapping[str, object], faults: Mapping[str, str]) -> list[Any]:
    """Parameters, those with a fault marked."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=faults[name]) if faults.get(name) else ())
        for name in names
    ]


@pytest.mark.parametrize("name", marked(SURVIVES, FAULTS))
def test_survives(tmp_path: Path, name: str) -> None:
    media = SURVIVES[name]
    source = make(tmp_path / f"source{media.suffix}", media)
    output = tmp_path / f"output{media.suffix}"
    fast = "ultrafast" if media.codec in ("libx264", "libx265") else None
    report = deblur_video(source, output, model="identity", encode=EncodeOptions(preset=fast))
    checks = verify(source, output)
    assert not failed(checks), format_checks(checks)
    # Those before an edit list begins are hidden from every reader.
    shown = sum(pts >= 0 for pts in media.pts)
    assert report.frames == shown * (1 + media.second_video)
    assert report.lost == []
    assert report.damage == []
    assert report.differences == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        output.name,
        source.name,
    ]


def test_what_prores_is_decoded_as(tmp_path: Path) -> None:
    # libav decodes 4444 to 12 bits and encodes from 10: said, and the alpha kept.
    media = replace(PLAIN, suffix=".mov", codec="prores_ks", pix_fmt="yuva444p10le", options={})
    source = make(tmp_path / "source.mov", media)
    report = deblur_video(source, tmp_path / "output.mov", model="identity")
    assert report.lost == ["prores_ks has no yuva444p12le: written as yuva444p10le"]
    assert not failed(
        verify(
            source, tmp_path / "output.mov", expected=Expectations(known_losses=["pixel format"])
        )
    )


def test_maker_boxes_and_telemetry_are_those_of_the_source(tmp_path: Path) -> None:
    source = make(tmp_path / "source.mp4", WHOLE)
    report = deblur_video(source, tmp_path / "output.mp4", model="identity")
    data = (tmp_path / "output.mp4").read_bytes()
    assert all(payload in data for payload in WHOLE.telemetry)
    assert all(kind + payload in data for kind, payload in WHOLE.maker)
    (track,) = [t for t in read_tracks(tmp_path / "output.mp4") if t.fourcc == "gpmd"]
    assert track.sample_count == 2
    assert any("gpmd" in line for line in report.kept)


# What comes in, where it goes, what is said to be lost, what differs, what is wrong with that.
OTHER: dict[str, tuple[Media, str, list[str], set[str], str]] = {
    "mkv to mp4": (replace(MKV, fonts=()), ".mp4", ["subtitle srt"], set(), ""),
    "mov to mp4": (replace(PLAIN, suffix=".mov", audio=TWO), ".mp4", [], set(), ""),
    "mp4 to mov": (WHOLE, ".mov", [], {"language", "disposition", "cover art"}, ""),
    "mp4 to ts": (replace(PLAIN, audio=TWO), ".ts", [], {"timestamps", "display matrix"}, ""),
    "late mp4 to mkv": (
        replace(PLAIN, pts=LATE, audio=(replace(TWO[0], shift=0.1),)),
        ".mkv",
        [],
        set(),
        "",
    ),
    "fonts to mp4": (
        MKV,
        ".mp4",
        ["subtitle srt", "one.ttf"],
        set(),
        "",
    ),
    "telemetry to mkv": (WHOLE, ".mkv", ["gpmd"], set(), ""),
    "mp4 to mkv": (
        replace(PLAIN, audio=TWO),
        ".mkv",
        [],
        set(),
        "",
    ),
}


@pytest.mark.parametrize("name", marked(OTHER, {name: case[4] for name, case in OTHER.items()}))
def test_from_one_container_to_another(tmp_path: Path, name: str) -> None:
    media, suffix, words, differences, _ = OTHER[name]
    source = make(tmp_path / f"source{media.suffix}", media)
    output = tmp_path / f"output{suffix}"
    report = deblur_video(source, output, model="identity")
    assert {line.split(":")[0] for line in report.differences} <= differences
    assert report.frames == len(media.pts)
    theirs, ours = read_frames(source), read_frames(output)
    for (a, _), (b, _) in zip(theirs, ours, strict=True):
        assert abs((a - theirs[0][0]) - (b - ours[0][0])) <= Fraction(1, 1000)
    with av.open(str(source)) as x, av.open(str(output)) as y:
        assert len(y.streams.audio) == len(x.streams.audio)
        assert len(y.chapters()) == len(x.chapters())
        assert y.metadata.get("title") == (None if suffix == ".ts" else "Ride")
    lost = " ".join(report.lost)
    for word in words:
        assert word in lost


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_mov_has_no_codec_tag_of_another_format(tmp_path: Path, suffix: str) -> None:
    media = replace(PLAIN, rotation=None, suffix=suffix, audio=())
    source, output = make(tmp_path / f"source{suffix}", media), tmp_path / "output.mov"
    assert not deblur_video(source, output, model="identity").differences
    with av.open(str(output)) as container:
        assert container.streams.video[0].codec_context.codec_tag == "avc1"
        assert len(list(container.decode(video=0))) == len(media.pts)


def test_frames_must_be_of_the_reader(tmp_path: Path) -> None:
    # The pieces, spelled out: what stands under which name at which moment.
    source = make(tmp_path / "source.mp4", PLAIN)
    output = tmp_path / "output.mp4"
    with VideoReader(source) as reader, VideoWriter(output, reader) as writer:
        temporary = writer.temporary
        assert temporary is not None
        assert temporary.exists()
        for item in reader.items():
            writer.write(item)
        writer.close()
        assert not output.exists()
        writer.finish()
        assert output.exists()
        assert not temporary.exists()
        assert writer.frames_written == len(PLAIN.pts)
        assert writer.encoder == "libx264"
    with VideoReader(source) as reader, VideoWriter(tmp_path / "b.mp4", reader) as writer:
        for item in reader.items():
            writer.write(item)
            break
    assert {p.name for p in tmp_path.iterdir()} == {"source.mp4", "output.mp4"}


# --- pictures ------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + crc


EXIF = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # turned by 90
CHUNKS = {
    b"tEXt": b"Author\0Ann",
    b"iTXt": b"Title\0\0\0\0\0" + "Überfahrt".encode(),
    b"pHYs": (2835).to_bytes(4, "big") * 2 + b"\1",
    b"tIME": bytes([7, 230, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize("echo", [False, True], ids=["identity", "echo"])
@pytest.mark.parametrize(
    "pix_fmt", ["rgb24", "rgba", "gray", "ya8", "rgb48be", "rgba64be", "gray16be", "pal8", "monob"]
)
def test_png(tmp_path: Path, pix_fmt: str, echo: bool) -> None:
    source, output = tmp_path / "source.png", tmp_path / "output.png"
    size = (36, 23) if pix_fmt != "monob" else (32, 23)
    frame = picture(1, "rgba" if pix_fmt == "pal8" else pix_fmt, size)
    if pix_fmt == "pal8":
        two = np.zeros((23, 36), np.uint8)
        two[5:9, 3:30] = 1
        palette = np.zeros((256, 4), np.uint8)
        palette[:2] = [[255, 200, 100, 50], [255, 10, 20, 30]]
        frame = av.VideoFrame.from_ndarray(cast(Any, (two, palette)), "pal8")
    write_frames(source, [frame], "png", form="image2")
    data = source.read_bytes()
    head = data.index(b"IHDR") + 21
    extra = b"".join(chunk(kind, payload) for kind, payload in CHUNKS.items())
    source.write_bytes(data[:head] + extra + data[head:])
    report = deblur_video(source, output, model=nn.Identity() if echo else "identity")
    assert report.frames == 1
    with av.open(str(source)) as a, av.open(str(output)) as b:
        (x, y) = (next(c.decode(video=0)) for c in (a, b))
    if pix_fmt in ("pal8", "monob"):  # worked on, and written, as full colour
        x = x.reformat(format=y.format.name)
    assert all(map(np.array_equal, samples(x), samples(y)))
    data = output.read_bytes()
    for kind, payload in CHUNKS.items():
        assert data.count(chunk(kind, payload)) == 1, kind
    with Image.open(output) as image:
        image.load()
        assert image.size == size


@pytest.mark.parametrize("kind", [b"eXIf", b"iCCP"], ids=["exif", "profile"])
def test_png_with_exif_or_profile(tmp_path: Path, kind: bytes) -> None:
    source, output = tmp_path / "source.png", tmp_path / "output.png"
    write_frames(source, [picture(1, "rgb24", (36, 23))], "png", form="image2")
    data = source.read_bytes()
    extra = chunk(kind, EXIF if kind == b"eXIf" else b"name\0\0" + zlib.compress(b"profile" * 9))
    source.write_bytes(data[:33] + extra + data[33:])
    assert deblur_video(source, output, model="identity").frames == 1
    gc.collect()
    assert output.read_bytes().count(extra) == 1
    with Image.open(output) as image:
        assert image.size == (36, 23)
        assert kind != b"eXIf" or image.getexif()[0x0112] == 6


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg(tmp_path: Path, mode: str, suffix: str) -> None:
    source, output = tmp_path / f"source{suffix}", tmp_path / f"output{suffix}"
    pixels = samples(scene(3, "rgb24", (61, 43)))[0].reshape(43, 61, 3)
    Image.fromarray(pixels).convert(mode).save(source, "JPEG", quality=97)
    data = source.read_bytes()
    extra = [
        segment(0xE1, b"Exif\0\0" + EXIF),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + b"profile" * 20),
        segment(0xFE, b"a comment"),
    ]
    source.write_bytes(data[:2] + b"".join(extra) + data[2:])
    deblur_video(source, output, model=nn.Identity())
    data = output.read_bytes()
    for part in extra:
        assert data.count(part) == 1
    with Image.open(source) as a, Image.open(output) as b:
        assert b.size == (61, 43)
        assert b.getexif()[0x0112] == 6
        difference = np.asarray(a).astype(int) - np.asarray(b.convert(mode))
    assert np.abs(difference).mean() < 1
    assert np.abs(difference).max() < 8


def sequence(folder: Path, first: int = 7, count: int = 6, digits: int = 5) -> Path:
    folder.mkdir()
    for n in range(count):
        frame = picture(n, "rgb24", (33, 21))
        name = f"{first + n:0{digits}d}.png"
        write_frames(folder / name, [frame], "png", form="image2")
        data = (folder / name).read_bytes()
        text = chunk(b"tEXt", b"Number\0%d" % n)
        (folder / name).write_bytes(data[:33] + text + data[33:])
    return folder / f"%0{digits}d.png"


@pytest.mark.parametrize("number", [None, 7, 9])
def test_image_sequence(tmp_path: Path, number: int | None) -> None:
    source = sequence(tmp_path / "in")
    (tmp_path / "out").mkdir()
    report = deblur_video(
        source,
        tmp_path / "out" / "%05d.png",
        model=nn.Identity(),
        framerate=Fraction(24000, 1001),
        start_number=number,
    )
    names = [f"{n:05d}.png" for n in range(number or 7, 13)]
    assert report.frames == len(names)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    for name in names:
        ours, theirs = tmp_path / "out" / name, tmp_path / "in" / name
        assert same_frames(ours, theirs)
        text = chunk(b"tEXt", b"Number\0%d" % (int(name[:5]) - 7))
        assert text in ours.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        deblur_video(source, tmp_path / "out" / "%05d.png", model="identity")
    assert len(list((tmp_path / "out").iterdir())) == len(names)


def test_image_sequence_to_video_and_back(tmp_path: Path) -> None:
    source = sequence(tmp_path / "in", digits=3)
    video = tmp_path / "video.mkv"
    encode = EncodeOptions(encoder="ffv1")
    rate = Fraction(30000, 1001)
    deblur_video(source, video, model="identity", framerate=rate, encode=encode)
    frames = read_frames(video)
    assert [round(float(t), 3) for t, _ in frames] == [round(n * 1.001 / 30, 3) for n in range(6)]
    with av.open(str(video)) as container:
        assert container.streams.video[0].average_rate == rate
    (tmp_path / "out").mkdir()
    deblur_video(video, tmp_path / "out" / "%03d.png", model="identity", start_number=7)
    for n in range(7, 13):
        assert (tmp_path / "out" / f"{n:03d}.png").exists()
        ours, theirs = (tmp_path / folder / f"{n:03d}.png" for folder in ("out", "in"))
        with Image.open(ours) as a, Image.open(theirs) as b:
            assert np.array_equal(np.asarray(a.convert("RGB")), np.asarray(b))


def test_a_conversion_is_the_same_each_time(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    frames = []
    for _ in range(6):
        deep = av.VideoFrame(322, 182, "yuv444p10le")
        for plane in deep.planes:
            values: Any = np.frombuffer(cast(Any, plane), "<u2")
            values[:] = dice.integers(0, 1024, values.shape)
        frames.append(deep)
    source = write_frames(tmp_path / "a.mkv", frames)
    encode = EncodeOptions(encoder="ffv1", pix_fmt="yuv420p10le")
    deblur_video(source, tmp_path / "b.mkv", model="identity", device="cpu", encode=encode)
    with VideoReader(tmp_path / "b.mkv") as reader:
        for before, after in zip(frames, reader, strict=True):
            expected = planes_of(before.reformat(format="yuv420p10le", threads=1))
            assert all(map(np.array_equal, after.planes, expected))
