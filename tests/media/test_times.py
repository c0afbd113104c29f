"""Times that are one line: priming, edits, and parts whose clock begins again."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import MP4, PLAIN, Audio, Media, failed, make
from vdeblur.deblur import deblur_video
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import movie_timescale, parse_edits
from vdeblur.media.timeline import Timeline
from vdeblur.media.verify import verify

EVEN = replace(PLAIN, rotation=None, pts=tuple(n * 3000 for n in range(30)), last_duration=3000)
SOUND = replace(EVEN, audio=MP4.audio[:1])


@pytest.mark.parametrize("start", [None, 0.4], ids=["whole", "a part"])
@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".ts"])
def test_priming_is_no_difference(tmp_path: Path, suffix: str, start: float | None) -> None:
    source = make(tmp_path / "source.mp4", SOUND)
    first = deblur_video(source, tmp_path / f"first{suffix}", model="identity", start=start)
    assert not first.differences
    if start is None:
        back = deblur_video(tmp_path / f"first{suffix}", tmp_path / "back.mp4", model="identity")
        assert not back.differences


def test_priming_at_high_frame_rates(tmp_path: Path) -> None:
    # The priming of 21 ms is more than two frames here.
    fast = tuple(n * 750 for n in range(120))
    source = make(tmp_path / "source.mp4", replace(SOUND, pts=fast, last_duration=750))
    assert not deblur_video(source, tmp_path / "output.mkv", model="identity").differences


def test_less_sound_is_a_difference(tmp_path: Path) -> None:
    longer = replace(SOUND, pts=EVEN.pts[:20])
    source = make(tmp_path / "source.mp4", longer)
    output = make(tmp_path / "output.mkv", replace(longer, audio=()))
    assert "duration" in failed(verify(source, output, conversion=True))


# --- parts on clocks of their own, joined byte by byte --------------------------------------------


TS = replace(SOUND, suffix=".ts", audio=(Audio(disposition=0),))


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def part(path: Path, media: Media = TS, *, later: float = 0.0) -> Path:
    """A file of one second, whose clock begins at some seconds."""
    shifted = replace(
        media,
        pts=tuple(p + round(later * 90_000) for p in media.pts),
        audio=tuple(replace(a, shift=a.shift + later) for a in media.audio),
        options={"preset": "ultrafast", "g": "15"} if media.codec == "libx264" else {},
        muxing={"mpegts_copyts": "1"} if path.suffix == ".ts" else {},
    )
    return make(path, shifted)


def times(path: Path, kind: str) -> list[float]:
    """Times of pictures or of packets of sound in seconds, in order."""
    found = []
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.stream.type != kind:
                continue
            items: list[Any] = [packet] * bool(packet.size)
            if kind == "video":
                items = list(packet.decode())
            found += [float(item.pts * item.time_base) for item in items]
    return found


#: Seconds at which the clocks of the parts begin; a part of None has no sound.
JOINS: dict[str, tuple[float | None, ...]] = {
    "the same clock again": (1.4, 1.4),
    "three parts": (1.4, 1.4, 1.4),
    "an earlier clock": (100.0, 1.4),
    "a later clock": (1.4, 100.0),
    "a clock of hours later": (1.4, 90_000.0),
    "around the wrap of 33 bits": (95_443.2, 95_443.2),
    "behind the wrap of 33 bits": (95_443.2, 1.4, 1.4),
    "a silent part between": (1.4, None, 1.4),
}


@pytest.mark.parametrize("name", JOINS)
def test_a_joined_part_follows_the_one_before(tmp_path: Path, name: str) -> None:
    silent = replace(TS, audio=())
    files = [
        part(tmp_path / f"{n}.ts", silent if at is None else TS, later=at or 1.4)
        for n, at in enumerate(JOINS[name])
    ]
    source, output = joined(tmp_path / "joined.ts", *files), tmp_path / "output.ts"
    report = deblur_video(source, output, model="identity")
    assert not report.differences
    pictures, sound = times(output, "video"), times(output, "audio")
    assert len(pictures) == 30 * len(files)
    steps = np.diff(pictures)
    limit = 1.1 if name == "behind the wrap of 33 bits" else 0.12
    assert steps.min() > 0.03
    assert steps.max() < limit
    # Sound stays with its picture: all parts are shifted as one.
    own = [times(file, "audio")[0] - times(file, "video")[0] for file in (files[0], files[-1])]
    assert abs((sound[0] - pictures[0]) - own[0]) < 1e-3
    count = len(sound) // sum(at is not None for at in JOINS[name])
    assert abs((sound[-count] - pictures[-30]) - own[-1]) < 1e-3
    assert not failed(verify(source, output))
    # That the check can fail: parts that lie over each other.
    if len(set(JOINS[name])) == 1:
        worse = part(tmp_path / "worse.ts", replace(TS, pts=tuple(range(0, 180_000, 3000))))
        assert "timestamps" in failed(verify(source, worse))


@pytest.mark.parametrize("suffix", [".mpg", ".mkv"])
def test_joined_files_of_other_kinds(tmp_path: Path, suffix: str) -> None:
    own = replace(TS, suffix=suffix, audio=(Audio(codec="mp2", disposition=0),))
    if suffix == ".mpg":  # smaller pictures share packets, and a time
        own = replace(own, codec="mpeg2video", options={"qmin": "1", "qmax": "1"}, size=(352, 288))
    file = part(tmp_path / f"part{suffix}", own)
    source, output = joined(tmp_path / f"joined{suffix}", file, file), tmp_path / f"o{suffix}"
    assert not deblur_video(source, output, model="identity").differences
    steps = np.diff(times(output, "video"))
    assert len(steps) == 59
    assert 0.03 < steps.min() <= steps.max() < 0.12


@pytest.mark.parametrize("read", [(0.5, 1.0), (1.2, None)])
def test_a_part_over_a_join(tmp_path: Path, read: tuple[float, float | None]) -> None:
    files = [part(tmp_path / f"{n}.ts", later=at) for n, at in enumerate((50.0, 1.4))]
    source, output = joined(tmp_path / "joined.ts", *files), tmp_path / "output.ts"
    start, duration = read
    report = deblur_video(source, output, model="identity", start=start, duration=duration)
    assert not report.differences
    assert report.frames == pytest.approx((duration or 0.8) * 30, abs=2)
    assert not failed(verify(source, output, start=start, duration=duration))


def test_gaps_that_are_no_joins_stay(tmp_path: Path) -> None:
    # Stills beside sound that goes on; five seconds without anything; sound with a stray time.
    stills = part(tmp_path / "stills.ts", replace(TS, pts=(0, 9000, 12_000, 1_800_000)))
    quiet = [part(tmp_path / f"{n}.ts", later=at) for n, at in enumerate((1.4, 7.0))]
    lines = {"stills": stills, "quiet": joined(tmp_path / "quiet.ts", *quiet)}
    for name, source in lines.items():
        with av.open(str(source)) as container:
            raw = [(p.stream.index, p.pts) for p in container.demux() if p.size]
        with av.open(str(source)) as container:
            line = [
                (p.stream.index, p.pts) for p in Timeline(container, container.demux()) if p.size
            ]
        assert line == raw, name


def test_another_flv_behind_the_first_is_said(tmp_path: Path) -> None:
    file = part(tmp_path / "part.flv", replace(TS, suffix=".flv", audio=(Audio(),)))
    report = deblur_video(
        joined(tmp_path / "joined.flv", file, file), tmp_path / "o.mkv", model="identity"
    )
    assert any("another FLV file begins" in line for line in report.damage)
    assert not deblur_video(file, tmp_path / "one.mkv", model="identity").damage


# --- edit lists ---------------------------------------------------------------------------------

#: (seconds, first second of the media or None for a pause) of each edit
EDITS: dict[str, list[tuple[float, float | None]]] = {
    "two stretches": [(0.3, 0.0), (0.4, 0.5)],
    "a pause between": [(0.3, 0.0), (0.2, None), (0.3, 0.6)],
    "one stretch twice": [(0.3, 0.4), (0.3, 0.0), (0.3, 0.4)],
    "a pause and a late beginning": [(0.3, None), (0.4, 0.4)],
    "a late beginning": [(0.4, 0.4)],
}


def edited(path: Path, edits: list[tuple[float, float | None]]) -> Path:
    """A film and its sound, of which an edit list plays some stretches."""

    def trak(kind: bytes, payload: bytes) -> boxes.Box:
        mdhd = boxes.get(payload, b"mdia", b"mdhd") or b""
        ticks = struct.unpack_from(">I", mdhd, 12)[0]
        scale = movie_timescale(boxes.read_moov(io.BytesIO(data))[1])
        begin = parse_edits(payload)[-1][1]
        rows = b"".join(
            struct.pack(
                ">IiI", round(d * scale), -1 if s is None else begin + round(s * ticks), 65536
            )
            for d, s in edits
        )
        elst = struct.pack(">2I", 0, len(edits)) + rows
        return kind, boxes.edit(payload, (b"edts", b"elst"), lambda k, _: (k, elst))

    media = replace(SOUND, faststart=False, options={"preset": "ultrafast", "g": "15", "bf": "0"})
    data = make(path, media).read_bytes()
    place, moov = boxes.read_moov(io.BytesIO(data))
    moov = boxes.edit(moov, (b"trak",), trak)
    path.write_bytes(data[: place.start] + boxes.build(b"moov", moov))
    return path


def played(path: Path) -> int:
    """Samples of sound that come out of a decoder."""
    with av.open(str(path)) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


@pytest.mark.parametrize("name", EDITS)
def test_what_an_edit_list_hides_stays_hidden(tmp_path: Path, name: str) -> None:
    source = edited(tmp_path / "source.mp4", EDITS[name])
    sound, pictures = played(source), times(source, "video")
    for suffix in (".mp4", ".mkv"):
        output = tmp_path / f"output{suffix}"
        report = deblur_video(source, output, model="identity")
        assert not report.differences
        # The priming of 1024 samples is played where the container cannot hide it.
        assert sound <= played(output) <= sound + (1024 if suffix == ".mkv" else 0)
        shown = np.array(times(output, "video"))
        assert np.allclose(np.diff(shown), np.diff(pictures), atol=1.1e-3)
    report = deblur_video(source, tmp_path / "part.mp4", model="identity", start=0.1, duration=0.5)
    assert not report.differences
    kept = [t for t in pictures if 0.1 <= t - pictures[0] < 0.6]
    assert abs(report.frames - len(kept)) <= 1


def test_sound_lost_from_a_cut_film_is_a_difference(tmp_path: Path) -> None:
    source = edited(tmp_path / "source.mp4", EDITS["two stretches"])
    output = edited(tmp_path / "output.mp4", [(0.3, 0.0), (0.2, 0.5)])
    assert failed(verify(source, output)) & {"packet count", "duration", "frame count"}
