"""Outputs that kept everything, and outputs each damaged in one way that a check must name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.helpers.clips import HDR, INTERLACED, MKV, MP4, PLAIN, PTS, Audio, Media, failed, make
from vdeblur.cli.main import main
from vdeblur.errors import InputError
from vdeblur.media.mp4.graft import graft
from vdeblur.media.mp4.tracks import read_tracks
from vdeblur.media.verify import CHECKS, Check, Expectations, as_json, format_checks, verify


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
    accepted = verify(
        sources(media), output, quick=quick, expected=Expectations(known_losses=failed(checks))
    )
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
    index = next(track.index for track in read_tracks(source) if track.fourcc == "fdsc")
    graft(source, output, track_indices=[index])
    assert not failed(verify(source, output))
    output.write_bytes(output.read_bytes().replace(b"DEVC0002", b"DEVC0009"))
    assert failed(verify(source, output)) == {"data tracks"}


def test_dropped_streams_can_be_accepted(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    output = make(tmp_path / "output.mp4", replace(MP4, audio=MP4.audio[1:]))
    source = sources(MP4)
    assert {"streams", "language"} <= failed(verify(source, output))
    assert not failed(verify(source, output, expected=Expectations(known_losses=[1])))
    # Told which stream went where, the languages are compared rightly.
    told = failed(verify(source, output, expected=Expectations(stream_map={0: 0, 2: 1})))
    assert "streams" in told
    assert "language" not in told


def test_frame_times_that_were_seen(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    # Three packets of the source could not be decoded: its writer knows, the packets do not.
    seen = PTS[:9] + PTS[12:]
    output = make(tmp_path / "output.mp4", replace(MP4, pts=seen))
    source = sources(MP4)
    assert "frame count" in failed(verify(source, output, quick=True))
    assert not failed(
        verify(source, output, quick=True, expected=Expectations(frame_times={0: seen}))
    )
    moved = verify(
        source,
        output,
        quick=True,
        expected=Expectations(frame_times={0: [p + (p > 9000) for p in seen]}),
    )
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
    # Of a conversion, what both kinds of container can say is no inherent loss.
    chapters = ((0, 400, "Start"), (400, 800, "Ride"))
    make(source, replace(media, chapters=chapters))
    make(output, replace(media, chapters=chapters))
    assert not failed(verify(source, output, conversion=True))
    make(output, replace(media, colour=(1, 2, 1, 1)))
    assert failed(verify(source, output, conversion=True)) == {"colour primaries", "chapters"}
    make(output, replace(media, pts=tuple(2 * p for p in PTS)))
    assert "duration" in failed(verify(source, output, conversion=True))


def test_how_it_is_shown(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    output = make(tmp_path / "output.mp4", replace(MP4, pts=(*PTS[:9], PTS[9] + 1, *PTS[10:])))
    checks = verify(sources(MP4), output, expected=Expectations(known_losses=["frame duration"]))
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


def test_a_part_by_its_name_is_told_how_to_verify(
    tmp_path: Path, sources: Callable[[Media], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, hint in (
        ("a_0.5s-2s_deblurred.mp4", "with --start 0.5 --duration 1.5\n"),
        ("a_1s-end_deblurred.mp4", "with --start 1\n"),
        ("a_deblurred.mp4", ""),
    ):
        output = make(tmp_path / name, replace(MP4, pts=PTS[:12]))
        assert main(["verify", str(sources(MP4)), str(output)]) == 1
        told = capsys.readouterr().err
        assert told.endswith(hint)
        assert ("is a part of its source" in told) == bool(hint)


def test_what_cannot_be_read(tmp_path: Path, sources: Callable[[Media], Path]) -> None:
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(b"no video")
    source = sources(MP4)
    for first, second in ((noise, source), (tmp_path, source), (source, tmp_path / "missing")):
        with pytest.raises(InputError):
            verify(first, second)
    assert failed(verify(source, noise)) == {"container"}
    with pytest.raises(ValueError, match="no check"):
        verify(source, source, expected=Expectations(known_losses=["colour"]))


@pytest.mark.parametrize("name", ["karma.mp4", "max-heromode.mp4"])
def test_gopro_files(name: str) -> None:
    path = Path(__file__).resolve().parents[2] / ".." / "shared" / "media" / name
    if not path.exists():
        pytest.skip("the GoPro samples are not here")
    checks = verify(path, path, quick=True)
    assert not failed(checks), format_checks(checks)
