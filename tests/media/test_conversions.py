"""Films that go into another kind of container: seen and heard there, at their times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import picture, write_frames
from vdeblur import deblur_video
from vdeblur.media.verify import verify


def write(
    path: Path,
    codec: str = "libx264",
    sound: str | None = None,
    *,
    rate: int = 25,
    frames: int = 25,
    begin: float = 0,
    sound_begins: float | None = None,
    channels: int = 1,
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
) -> Path:
    """A film, with sound that lasts as long; begin: in seconds, of both."""
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height = size
        video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = Fraction(1, rate)
        packets = []
        for number in range(frames):
            frame = picture(number, video.pix_fmt, size)
            frame.pts, frame.time_base = round(begin * rate) + number, Fraction(1, rate)
            packets += video.encode(frame)
        packets += video.encode(None)
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}.get(channels, f"{channels}C")
            audio: Any = output.add_stream(sound, rate=48_000, layout=layout)
            form = audio.codec_context.format.name
            at = round((begin if sound_begins is None else sound_begins) * 48_000)
            for number in range(48 * frames // rate):
                dtype = {"fltp": np.float32, "s16p": np.int16, "s16": np.int16, "s32p": np.int32}
                planar = form.endswith("p")
                shape = (channels, 1000) if planar else (1, 1000 * channels)
                samples = av.AudioFrame.from_ndarray(np.zeros(shape, dtype[form]), form, layout)
                samples.sample_rate, samples.pts = 48_000, at + 1000 * number
                samples.time_base = Fraction(1, 48_000)
                packets += audio.encode(samples)
            packets += audio.encode(None)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            output.mux(packet)
    return path


def kinds(path: Path) -> list[str]:
    """The kinds of streams, a codec that libav knows in each."""
    with av.open(str(path)) as container:
        return [str(s.type) for s in container.streams if s.codec_context is not None]


def frames_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def mentions(lines: Sequence[str], text: str) -> bool:
    return any(text in line for line in lines)


# -- found by players ----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".flv"])
@pytest.mark.parametrize("codec", ["mjpeg", "ffv1", "libvpx-vp9", "libsvtav1", "mpeg4"])
def test_pictures_are_coded_as_players_of_a_broadcast_find_them(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    source = write(tmp_path / "source.mkv", codec, frames=8, size=(128, 96))
    output = tmp_path / f"output{suffix}"
    report = deblur_video(source, output, model="identity")
    assert kinds(output) == ["video"]
    assert frames_of(output) == 8
    assert not report.differences


@pytest.mark.parametrize("sound", ["pcm_s16le", "flac"])
def test_sound_that_a_broadcast_has_no_label_for_is_not_called_kept(
    tmp_path: Path, sound: str
) -> None:
    source, output = write(tmp_path / "source.mkv", sound=sound), tmp_path / "output.ts"
    report = deblur_video(source, output, model="identity")
    assert not report.kept
    assert [line for line in report.lost if line.startswith("audio")]
    assert not mentions(report.lost, "streams, in this container")
    assert not report.differences


def test_a_video_that_is_missing_fails_in_any_container(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mkv", sound="aac")
    output = write(tmp_path / "output.ts", sound="aac")
    with av.open(str(output)) as film, av.open(str(tmp_path / "sound.ts"), "w") as bare:
        audio = bare.add_stream_from_template(film.streams.audio[0])
        for packet in film.demux(film.streams.audio[0]):
            if packet.size:
                packet.stream = audio
                bare.mux(packet)
    checks = verify(source, tmp_path / "sound.ts", conversion=True)
    assert "frame count" in {check.name for check in checks if not check.passed}


# -- uncompressed sound --------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "kept"), [(1, True), (2, True), (24, False)])
def test_uncompressed_sound_whose_channels_have_no_places(
    tmp_path: Path, channels: int, kept: bool
) -> None:
    # AVI and Matroska number channels; MP4's box for PCM wants them named, and fails at the end.
    suffix = ".avi" if kept else ".mkv"
    source = write(tmp_path / f"source{suffix}", "mpeg4", "pcm_s16le", channels=channels)
    output = tmp_path / "output.mp4"
    report = deblur_video(source, output, model="identity")
    assert kinds(output) == (["video", "audio"] if kept else ["video"])
    assert frames_of(output) == 25
    assert mentions(report.lost, "audio pcm_s16le") != kept
    assert not report.differences


def test_uncompressed_sound_may_be_cut_into_other_packets(tmp_path: Path) -> None:
    source, cut = write(tmp_path / "source.mkv", sound="pcm_s16le"), tmp_path / "cut.mkv"
    moved = b""  # from the first packet of sound to the second
    with av.open(str(source)) as film, av.open(str(cut), "w") as output:
        streams = [output.add_stream_from_template(stream) for stream in film.streams]
        for packet in film.demux():
            if not packet.size:
                continue
            part = packet
            if packet.stream.type == "audio" and (moved or not packet.pts):
                data = moved + bytes(packet)
                moved = b"" if moved else data[-200:]
                part = av.Packet(data[: -200 if moved else None])
                part.time_base = packet.time_base
                part.pts = part.dts = packet.pts
            part.stream = streams[packet.stream.index]
            output.mux(part)
    failed = {check.name for check in verify(source, cut) if not check.passed}
    assert "packet data" not in failed


# -- times ---------------------------------------------------------------------------------------


def test_sound_of_an_unknown_codec_that_begins_first_is_no_difference(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mkv", sound="aac", begin=0.6, sound_begins=0)
    source.write_bytes(source.read_bytes().replace(b"A_AAC", b"A_QQQ"))
    for suffix in (".mkv", ".mp4"):
        report = deblur_video(source, tmp_path / f"output{suffix}", model="identity")
        assert len(report.lost) == 1
        assert not report.differences


@pytest.mark.parametrize("suffix", [".mkv", ".nut"])
def test_a_duration_counted_from_zero_is_no_loss(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "source.ts", sound="aac", begin=5)
    report = deblur_video(source, tmp_path / f"output{suffix}", model="identity")
    assert not mentions(report.lost, "duration,")
    assert not report.differences


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_avi_keeps_sound_with_pictures_that_begin_late(tmp_path: Path, codec: str) -> None:
    source = write(tmp_path / "source.mkv", codec, "mp2", begin=5, options={"bf": "2"})
    output = tmp_path / "output.avi"
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    assert frames_of(output) == 25
    with av.open(str(output)) as film:
        assert (film.duration or 0) < 1.5 * av.time_base


@pytest.mark.parametrize("rate", [30, 1000])
def test_avi_holds_every_picture_of_a_fine_clock(tmp_path: Path, rate: int) -> None:
    source, output = write(tmp_path / "source.mp4", rate=rate, frames=100), tmp_path / "output.avi"
    assert not deblur_video(source, output, model="identity").damage
    with av.open(str(output)) as film:
        times = [(p.dts or 0) * p.time_base for p in film.demux(video=0) if p.size]
    assert len(times) == 100
    assert times[-1] - times[0] == Fraction(99, rate)


def test_flv_holds_the_first_pictures_of_a_slow_film(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mkv", sound="aac", rate=5, frames=50, begin=3)
    output = tmp_path / "output.flv"
    assert not deblur_video(source, output, model="identity").damage
    assert frames_of(output) == 50


def test_a_program_stream_states_some_times_and_the_rest_are_computed(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mpg", "mpeg2video", "ac3", frames=100)
    assert not deblur_video(source, tmp_path / "output.mpg", model="identity").differences


def test_raw_dv_has_its_own_rate(tmp_path: Path) -> None:
    pictures = (picture(number, "yuv420p", (720, 576)) for number in range(3))
    source = write_frames(tmp_path / "source.dv", pictures, "dvvideo")
    deblur_video(source, tmp_path / "output.mov", model="identity")
    with av.open(str(tmp_path / "output.mov")) as film:
        assert film.streams.video[0].average_rate == 25


def telecined(path: Path) -> Path:
    """MPEG-2 at 24000/1001 pictures a second for screens of 30000/1001: every other repeats one."""
    with av.open(str(path), "w") as output:
        video: Any = output.add_stream("mpeg2video", rate=Fraction(30000, 1001))
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1001, 30000)
        fields, packets = 0, []
        for number in range(24):
            frame = picture(number)
            frame.pts = number
            packets += video.encode(frame)
        for number, packet in enumerate([*packets, *video.encode(None)]):
            data = bytearray(bytes(packet))
            head = data.index(b"\0\0\1\xb5\x8f")  # picture coding extension
            data[head + 7] |= 2 * (number % 2)
            data[head + 8] |= 0x80
            marked = av.Packet(bytes(data))
            marked.pts = marked.dts = fields
            marked.time_base = Fraction(1001, 60000)
            marked.is_keyframe, marked.stream = packet.is_keyframe, video
            output.mux(marked)
            fields += 2 + number % 2
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("kind", [".ts", ".mpg", ".mkv"])
def test_soft_telecine_keeps_its_speed(tmp_path: Path, kind: str, suffix: str) -> None:
    source, output = telecined(tmp_path / f"source{kind}"), tmp_path / f"output{suffix}"
    report = deblur_video(source, output, model="identity")
    assert sum("repeated fields" in line for line in report.lost) == 1
    assert not report.differences
    spans = []
    for path in (source, output):
        with av.open(str(path)) as film:
            assert film.streams.video[0].codec_context.name == "mpeg2video"
            times = [float((p.dts or 0) * p.time_base) for p in film.demux(video=0) if p.size]
            assert len(times) == 24
            spans.append(times[-1] - times[0])
    assert spans[0] == pytest.approx(spans[1], abs=0.04)


# -- odd films -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".mp4"])
def test_motion_jpeg_of_fields(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "source.mov", "mjpeg", options={"field_order": "tt"})
    output = tmp_path / f"output{suffix}"
    assert deblur_video(source, output, model="identity").frames == 25
    assert frames_of(output) == 25


def test_one_picture_in_a_transport_stream_has_no_duration(tmp_path: Path) -> None:
    source = write(tmp_path / "source.ts", frames=1, begin=1)
    assert not deblur_video(source, tmp_path / "output.ts", model="identity").differences


def test_colors_of_a_film_in_rgb_have_another_range_in_another_coding(tmp_path: Path) -> None:
    pictures = (picture(number, "rgb24") for number in range(5))
    source = write_frames(tmp_path / "source.mov", pictures, "qtrle")
    assert not deblur_video(source, tmp_path / "output.mp4", model="identity").differences


def test_a_stream_of_jpegs_stays_one(tmp_path: Path) -> None:
    source, output = write(tmp_path / "source.mjpeg", "mjpeg"), tmp_path / "output.mjpeg"
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # by which libav takes it for a picture
    source.write_bytes(source.read_bytes().replace(b"\xff\xd8", b"\xff\xd8" + jfif))
    assert deblur_video(source, output, model="identity").frames == 25
    assert frames_of(output) == 25


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_chapters_with_gaps_are_said_to_lose_them(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "source.mkv"
    with av.open(str(write(tmp_path / "plain.mkv"))) as film, av.open(str(source), "w") as output:
        output.set_chapters(
            [
                {
                    "id": n,
                    "start": start,
                    "end": end,
                    "time_base": Fraction(1, 1000),
                    "metadata": {},
                }
                for n, (start, end) in enumerate([(100, 300), (200, 600), (800, 900)], start=1)
            ]
        )
        video = output.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(video=0):
            if packet.size:
                packet.stream = video
                output.mux(packet)
    report = deblur_video(source, tmp_path / f"output{suffix}", model="identity")
    assert not report.differences
    assert mentions(report.lost, "gaps and overlaps of chapters") == (suffix != ".mkv")


def test_a_gap_between_fragments_is_no_difference(tmp_path: Path) -> None:
    source = tmp_path / "source.mp4"
    plain = write(tmp_path / "plain.mkv", sound="aac", options={"bf": "0"})
    flags = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    with av.open(str(plain)) as film, av.open(str(source), "w", container_options=flags) as output:
        streams = [output.add_stream_from_template(stream) for stream in film.streams]
        for packet in film.demux():
            if packet.size:
                late = packet.stream.type == "audio" and (packet.pts or 0) > 500
                packet.pts, packet.dts = (
                    (packet.pts or 0) + 40 * late,
                    (packet.dts or 0) + 40 * late,
                )
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    assert not deblur_video(source, tmp_path / "output.mp4", model="identity").differences
