"""Chapters that join without a seam, whole or damaged, with all that the camera recorded."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.gopro_clips import Footage, footage, packets, read_moov, samples, udta
from vdeblur import gopro
from vdeblur.errors import InputError
from vdeblur.gopro.highlights import read_highlights
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    get_trak,
    read_tracks,
    shift_chunks,
)
from vdeblur.media.reader import VideoReader

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / ".." / "shared" / "media"

Run = Callable[..., tuple[int, str, str]]


def sound(path: Path) -> Any:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)


def test_chapters_join_without_a_seam(three: Footage, joined: Path) -> None:
    source = gopro.join(three.chapters)
    # Picture: every frame of the uncut recording, once, at its time.
    with VideoReader(source) as reader, VideoReader(three.whole) as whole:
        pairs = list(zip(reader, whole, strict=True))
        assert len(pairs) == 108
        for ours, theirs in pairs:
            assert ours.time_seconds == theirs.time_seconds
            assert all(map(np.array_equal, ours.planes, theirs.planes))
    shown = sorted(at for at, _, _ in packets(joined, "video"))
    assert shown == [n * Fraction(1001, 30000) for n in range(108)]
    # Sound: the very packets, and after decoding the very samples, of the uncut recording.
    assert packets(joined, "audio") == packets(three.whole, "audio")
    assert np.array_equal(sound(joined), sound(three.whole))
    # Telemetry: each chapter's begins with its picture.
    times = [float(t) for t, _, _ in packets(joined, "bin_data")]
    starts = [36 * n * 1001 / 30000 for n in range(3)]
    expected = [start + offset for start in starts for offset in (0, 1.001)]
    assert times == pytest.approx(expected, abs=0.0006)  # a tick of that track is 1 ms
    for fourcc in ("gpmd", "fdsc"):
        assert samples(joined, fourcc) == [
            data for chapter in three.chapters for data in samples(chapter, fourcc)
        ]
    assert [t.fourcc for t in read_tracks(joined)] == ["avc1", "mp4a", "tmcd", "gpmd", "fdsc"]
    with av.open(str(joined)) as container:
        assert container.streams.video[0].metadata["timecode"] == "10:00:00;00"
    parser = pytest.importorskip("telemetry_parser")
    said = [parser.Parser(str(path)).telemetry() for path in (joined, *three.chapters)]
    # The first packet of each file is its moov/udta/GPMF.
    assert said[0][1:] == [packet for chapter in said[1:] for packet in chapter[1:]]


def test_the_camera_s_boxes_stay(three: Footage, joined: Path) -> None:
    first, after = udta(three.chapters[0]), udta(joined)
    assert list(first) == list(after)
    changed = {kind for kind in first if first[kind] != after[kind]}
    assert changed == {b"HMMT", b"GPMF"}
    chapter = 36 * 1001 / 30
    shifted = [100, 900, round(chapter + 50)]
    assert read_highlights(after[b"HMMT"]) == shifted
    assert len(after[b"HMMT"]) == len(first[b"HMMT"])
    # GPMF's own: the time lies 16 bytes before the kind, as readers of HiLight tags expect it.
    found, gpmf = [], after[b"GPMF"]
    at = gpmf.find(b"MANL")
    while at >= 0:
        found.append(struct.unpack_from(">I", gpmf, at - 16)[0])
        at = gpmf.find(b"MANL", at + 4)
    assert found == shifted
    assert joined.name == "GX010042_deblurred.MP4"
    assert joined.stat().st_mtime_ns == three.chapters[0].stat().st_mtime_ns
    brand = three.chapters[0].read_bytes()[:20]
    assert joined.read_bytes()[:20] == brand
    moov = read_moov(joined)
    names = [
        (boxes.get(get_trak(moov, n), b"mdia", b"hdlr") or b"")[25:34].decode() for n in range(5)
    ]
    assert names == ["GoPro AVC", "GoPro AAC", "GoPro TCD", "GoPro MET", "GoPro SOS"]
    assert boxes.get(moov, b"iods") == bytes(16)


def test_a_joined_file_reads_like_one(three: Footage) -> None:
    source = gopro.join(three.chapters)
    assert isinstance(source, Joined)
    assert source == three.chapters[0]
    assert type(source.parent) is not Joined or not hasattr(source.parent, "contents")
    with source.open("rb") as file:
        whole = file.read()
        assert whole[:4] == three.chapters[0].read_bytes()[:4]
        assert file.seek(0, os.SEEK_END) == len(whole)
        for at, count in ((10, 30), (len(whole) - 5, 50), (len(whole) // 2, 70_000)):
            file.seek(at)
            assert file.read(count) == whole[at : at + count]
    assert gopro.join(three.chapters[:1]) is three.chapters[0]


def test_reordered_frames_join(tmp_path: Path) -> None:
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=12, reordered=2)
    source = gopro.join(made.chapters)
    with VideoReader(source) as reader, VideoReader(made.whole) as whole:
        for ours, theirs in zip(reader, whole, strict=True):
            assert ours.time_seconds == theirs.time_seconds
            assert all(map(np.array_equal, ours.planes, theirs.planes))
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])])
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.differences) == (24, [])
    assert packets(job.output, "audio") == packets(made.whole, "audio")


def test_chapters_that_do_not_fit(tmp_path: Path) -> None:
    footage(tmp_path, ("GX010001.MP4",), frames=4)
    footage(tmp_path / "b", ("GX020001.MP4",), frames=4, size=(64, 64))
    (tmp_path / "b" / "GX020001.MP4").rename(tmp_path / "GX020001.MP4")
    with pytest.raises(InputError, match=r"GX020001.MP4 is coded otherwise.*`keep_chapters=True`"):
        gopro.join(sorted(tmp_path.glob("GX*.MP4")))


def test_sound_that_is_not_as_long_as_its_picture(tmp_path: Path) -> None:
    # Less than a packet off: the sound goes on without a gap. More: it begins with the picture.
    lengths = [np.full(4, 1024), np.full(4, 1024), np.full(4, 1024)]
    from vdeblur.media.mp4.join import _aligned

    assert _aligned(lengths, [0, 4000, 8200], follows=True).tolist() == [1024] * 12
    late = _aligned(lengths, [0, 6000, 10_096], follows=True)
    assert late.tolist() == [1024] * 3 + [2928] + [1024] * 8
    early = _aligned(lengths, [0, 2000, 6000], follows=False)
    assert early.tolist() == [1024, 976, 0, 0, 1024, 1024, 1024, 928, *[1024] * 4]


def test_a_cut_off_chapter_keeps_what_it_has(tmp_path: Path) -> None:
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=30)
    path = made.chapters[0]
    data, moov = path.read_bytes(), read_moov(path)
    at = data.rindex(b"moov") - 4
    data = (
        data[:20]
        + boxes.build(b"moov", shift_chunks(moov, 0, len(moov) + 8, wide=False))
        + data[20:at]
    )
    path.write_bytes(data[: len(data) * 2 // 3])
    source = gopro.join(made.chapters)
    assert isinstance(source, Joined)
    assert len(source.damage) == 1
    assert "frames of 30 are not there" in source.damage[0]
    with VideoReader(source) as reader:
        times = [frame.time_seconds for frame in reader]
        assert not reader.damage.notes
    assert 31 < len(times) < 60
    assert np.allclose(np.diff(times), 1001 / 30000)


def test_a_bad_sector_costs_what_lies_in_it(
    three: Footage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gopro.join(three.chapters)
    assert isinstance(source, Joined)
    opened = Path.open

    class Bad:
        def __init__(self, file: Any) -> None:
            self.file = file

        def seek(self, at: int) -> int:
            self.at = at
            return int(self.file.seek(at))

        def readinto(self, view: memoryview) -> int:
            if self.at < 2_000 < self.at + len(view):
                raise OSError(5, "Input/output error")
            return int(self.file.readinto(view))

        def close(self) -> None:
            self.file.close()

    def bad(path: Path, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        return Bad(file) if path.name == "GX020042.MP4" else file

    monkeypatch.setattr(Path, "open", bad)
    with VideoReader(source) as reader:
        count = sum(1 for _ in reader)
    assert 0 < count <= 108
    assert source.damage == ["GX020042.MP4 cannot be read everywhere (Input/output error)"]


def test_bit_rates_are_no_other_coding(tmp_path: Path) -> None:
    # Encoders write the bit rate that they had into esds, and each chapter has had its own.
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=4)
    path = made.chapters[1]
    data = bytearray(path.read_bytes())
    at = data.index(b"esds")
    config = data.index(b"\x04\x80\x80\x80", at) + 5  # behind the descriptor's tag and length
    data[config + 5 : config + 13] = struct.pack(">2I", 250_000, 190_000)
    path.write_bytes(data)
    assert isinstance(gopro.join(made.chapters), Joined)
    data[config] ^= 1  # the kind of coding
    path.write_bytes(data)
    with pytest.raises(InputError, match="coded otherwise"):
        gopro.join(made.chapters)


def test_a_dressed_file_has_nothing_behind_its_index(joined: Path) -> None:
    with joined.open("rb") as file:
        found = list(boxes.top_level_boxes(file))
    assert [box.kind for box in found][-1] == b"moov"
    assert found[-1].end == joined.stat().st_size


def test_random_damage_ends_in_one_sentence(tmp_path: Path) -> None:
    # Every byte of an index may be wrong: no other error, no endless loop, no huge allocation.
    random = np.random.default_rng(3)
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=3)
    path = made.chapters[1]
    good = path.read_bytes()
    begin, joins = good.rindex(b"moov"), 0
    for _ in range(250):
        data = np.frombuffer(good, np.uint8).copy()
        places = random.integers(begin, len(data), random.integers(1, 5))
        data[places] = random.choice([0, 1, 2, 127, 128, 255], len(places))
        path.write_bytes(data.tobytes())
        try:
            source = gopro.join(made.chapters)
        except InputError:
            continue
        assert isinstance(source, Joined)
        joins += 1
        assert read_tracks(source)[0].sample_count in range(3, 7)
    assert joins > 50
