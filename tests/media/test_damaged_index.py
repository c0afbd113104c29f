"""Indexes that are damaged or hostile: a sentence, in bounded time and memory."""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import time
from pathlib import Path

import av
import pytest

from tests.helpers.clips import MP4, make
from vdeblur.errors import InputError, VdeblurError
from vdeblur.media.mp4 import boxes, headers, join
from vdeblur.media.mp4.graft import graft, trailer_name
from vdeblur.media.mp4.tracks import check_index, read_tracks, sample_times, track_digest
from vdeblur.media.reader import VideoReader

_MUTATIONS = 60
_WORDS = (0, 1, 7, 8, 1 << 16, 1 << 28, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def full(kind: bytes, *words: int) -> bytes:
    return boxes.build(kind, bytes(4) + struct.pack(f">{len(words)}I", *words))


def huge(path: Path) -> Path:
    """A sparse file of a few hundred bytes on disk, whose index names 2^28 samples."""
    n = 1 << 28
    entry = boxes.build(b"avc1", bytes(78))
    stbl = boxes.build(b"stsd", bytes(4) + struct.pack(">I", 1) + entry)
    stbl += full(b"stts", 1, n, 1) + full(b"stsz", 1, n) + full(b"stsc", 1, 1, n, 1)
    stbl += full(b"stco", 1, 24)
    hdlr = boxes.build(b"hdlr", bytes(8) + b"vide" + bytes(13))
    minf = boxes.build(b"minf", boxes.build(b"stbl", stbl))
    mdia = boxes.build(b"mdia", full(b"mdhd", 0, 0, 1000, 100, 0) + hdlr + minf)
    tkhd = boxes.build(b"tkhd", bytes(4) + struct.pack(">5I", 0, 0, 1, 0, 100) + bytes(60))
    mvhd = boxes.build(b"mvhd", bytes(4) + struct.pack(">4I", 0, 0, 1000, 100) + bytes(80))
    moov = boxes.build(b"moov", mvhd + boxes.build(b"trak", tkhd + mdia))
    with path.open("wb") as file:
        file.write(boxes.build(b"ftyp", b"isom" + bytes(4)) + moov)
        file.write(struct.pack(">I4s", 8 + n, b"mdat"))
        file.truncate(file.tell() + n)
    return path


def test_more_samples_than_bytes_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = huge(tmp_path / "GX010001.MP4")
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    for read in (check_index, VideoReader, lambda p: join.join([p])):
        begun = time.monotonic()
        with pytest.raises(InputError, match="268435456 samples, more than the file can hold"):
            read(path)
        assert time.monotonic() - begun < 2


def test_one_damaged_recording_does_not_stop_the_others(tmp_path: Path) -> None:
    good = make(tmp_path / "good.mp4", MP4)
    joined = join.join([huge(tmp_path / "GX010001.MP4"), good])
    with joined.open("rb") as file:
        assert len(file.read()) > good.stat().st_size


def test_texts_of_more_bytes_than_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    data = path.read_bytes()
    at = 20 + struct.unpack_from("<I", data, 16)[0]
    VideoReader(path).close()
    text = b"LIST" + struct.pack("<I", 0xFFFFFF00) + b"INFOICMT" + struct.pack("<I", 0x7FFFFFF0)
    path.write_bytes(data[:at] + text + data[at:])
    begun = time.monotonic()
    with pytest.raises(InputError, match="a text of 2147483632 bytes is longer than the file"):
        VideoReader(path)
    assert time.monotonic() - begun < 2
    path.write_bytes(data[: at + 20])  # cut off within its pictures: no text is too long
    with contextlib.suppress(InputError):
        VideoReader(path).close()


def test_mutated_indexes_are_read_or_refused(tmp_path: Path) -> None:
    source = make(tmp_path / "source.mp4", MP4)
    data, path, output = source.read_bytes(), tmp_path / "mutated.mp4", tmp_path / "output.mp4"
    with source.open("rb") as file:
        place = boxes.read_moov(file)[0]
    chance = random.Random(14)
    for number in range(_MUTATIONS):
        mutated = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(place.start, place.end - 4)
            if chance.random() < 0.8:
                mutated[at : at + 4] = struct.pack(">I", chance.choice(_WORDS))
            else:
                del mutated[at : at + chance.randrange(1, 40)]
        path.write_bytes(mutated)
        begun = time.monotonic()
        with contextlib.suppress(VdeblurError):
            for track in read_tracks(path):
                sample_times(path, track.index)
                track_digest(path, track.index)
        with contextlib.suppress(VdeblurError):
            boxes.missing_bytes(path)
            with boxes.open_input(path) as file:
                trailer_name(file)
        for change in (lambda: graft(path, output, track_indices=[1, 2]),
                       lambda: headers.restore_headers(path, output),
                       lambda: join.join([path, source])):  # fmt: skip
            shutil.copy(source, output)
            with contextlib.suppress(VdeblurError):
                change()
        assert time.monotonic() - begun < 2, f"mutation {number}"
