"""Tracks of MP4 and MOV files: what a file holds, and where its samples lie.

Knows the tables of `moov` (ISO/IEC 14496-12), not libav and no frames. Does not read fragmented
tracks (`moof`), whose samples are not listed in `moov`.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import InputError
from vdeblur.media.mp4 import boxes

#: The last position that a 32-bit chunk offset (`stco`) can name.
LAST_STCO = boxes.MAX_32

# Boxes of moov/udta that FFmpeg's mov/mp4 muxer (movenc.c, mov_write_udta_tag) makes again from
# tags and chapters. Other © boxes (©mak, ©xyz, DJI's ©csn …) are a camera's, and mp4 drops them.
_FROM_TAGS = (
    {b"meta", b"chpl", b"loci", b"free", b"skip", b"hnti", b"\0\0\0\0"}
    | {
        b"\xa9" + name
        for name in (
            b"nam ART aut alb day too cmt gen grp lyr wrt com cpy des key inf dir swr".split()
        )
    }
    | set(b"titl auth gnre dscp albm cprt yrrc perf XMP_".split())
)
# Boxes of moov that a muxer writes anew, or that are of the old coding.
_OF_MUXERS = frozenset(b"mvhd trak mvex udta meta iods cmov free skip wide \0\0\0\0".split(b" "))
_FEW_SAMPLES = 1 << 22  # of any file
_PRIMING = 0.1  # seconds: sound that an edit list skips for its encoder's sake is shorter


@dataclass(frozen=True)
class Track:
    """A `trak` of a file.

    Attributes:
        index: Counts the `trak` boxes in file order.
        track_id: libav's `Stream.id`.
        handler: The type in `hdlr`: b"vide", b"soun", b"meta" …
        fourcc: The type of the first sample entry, such as "avc1" or "gpmd".
        timescale: Ticks a second (`mdhd`).
        duration: In ticks of the timescale.
        sample_count: Number of samples in the tables.
        is_chapter_track: Whether another track names it in tref/chap, so that players show it as
            chapters.
        is_cut: Whether its edit list plays several stretches of the samples, as after a cut without
            encoding, or waits and then skips some: libav's muxer writes no such list.
        speed: At which the edit list plays the samples; 0 for several speeds.
    """

    index: int
    track_id: int
    handler: bytes
    fourcc: str
    timescale: int
    duration: int
    sample_count: int
    is_chapter_track: bool
    is_cut: bool = False
    speed: float = 1.0


# --- of a file ----------------------------------------------------------------------------------


def read_tracks(path: str | Path) -> list[Track]:
    """Read the tracks of a file, in file order.

    Raises:
        InputError: The file has no sound `moov`.
    """
    with boxes.open_input(path) as file:
        return parse_tracks(boxes.read_moov(file)[1])


def read_maker_boxes(path: str | Path) -> list[tuple[bytes, bytes]]:
    """Read the boxes of moov and moov/udta that no muxer makes.

    GoPro writes FIRM, LENS, CAME, SETT, MUID, HMMT, BCID, GUMI, GPMF … into udta.

    Returns:
        (type, box with its header) of each, in file order.

    Raises:
        InputError: The file has no sound `moov`.
    """
    with boxes.open_input(path) as file:
        moov = memoryview(boxes.read_moov(file)[1])
        found = parse_maker_boxes(moov) + parse_movie_boxes(moov)
        return [(kind, boxes.build(kind, payload)) for kind, payload in found]


def sample_times(path: str | Path, index: int) -> list[tuple[int, int]]:
    """Read how long the samples of a track last (`stts`).

    Args:
        path: The file.
        index: `Track.index`.

    Returns:
        Runs of (count, duration in ticks of the track's timescale); neighbors differ in duration.

    Raises:
        InputError: The file has no such track, or is damaged.
    """
    with boxes.open_input(path) as file:
        trak = get_trak(boxes.read_moov(file)[1], index)
        stts = boxes.get(trak, b"mdia", b"minf", b"stbl", b"stts") or bytes(8)
    table = np.frombuffer(stts, ">u4", offset=8)
    runs: list[tuple[int, int]] = []
    for count, duration in table[: len(table) // 2 * 2].reshape(-1, 2).tolist():
        if runs and runs[-1][1] == duration:
            runs[-1] = (runs[-1][0] + count, duration)
        elif count:
            runs.append((count, duration))
    return runs


def track_digest(path: str | Path, index: int) -> str:
    """Return the SHA-256 of a track's sample data in decoding order, as hexadecimal digits.

    Args:
        path: The file.
        index: `Track.index`.

    Raises:
        InputError: The file has no such track, or is damaged.
    """
    digest = hashlib.sha256()
    with boxes.open_input(path) as file:
        for offset, size in chunk_extents(file, boxes.read_moov(file)[1], index).tolist():
            for block in boxes.read_blocks(file, offset, size):
                digest.update(block)
    return digest.hexdigest()


def check_index(path: str | Path) -> None:
    """Refuse an MP4 or MOV whose index would fill the memory; see `check_counts`.

    Files that are none, and other damage, pass.

    Raises:
        InputError: It claims more samples than a file of its size can hold.
    """
    try:
        if not boxes.is_iso(path):
            return
        with boxes.open_input(path) as file:
            moov = boxes.read_moov(file)[1]
    except InputError:
        return  # libav may forgive it
    with boxes.open_input(path) as file:
        check_counts(file, moov)


def check_counts(file: BinaryIO, moov: bytes) -> None:
    """Check that samples of one size, which need no entry each, are not too many.

    A few bytes claim any number of them, and a sparse file has the length for it.

    Raises:
        ValueError: A track has more samples than the file has bytes on disk.
    """
    most = max(_FEW_SAMPLES, 4 * _bytes_on_disk(file))
    for trak in boxes.of_kind(moov, b"trak"):
        size = count = 0
        with suppress(ValueError, struct.error):
            stsz = boxes.get(trak, b"mdia", b"minf", b"stbl", b"stsz") or bytes(12)
            size, count = struct.unpack_from(">2I", stsz, 4)
        if size and count > most:
            raise ValueError(f"a track claims {count} samples, more than the file can hold")


def _bytes_on_disk(file: BinaryIO) -> int:
    """The bytes of a file without its holes, as far as the system tells."""
    length = boxes.file_length(file)
    try:
        blocks = getattr(os.fstat(file.fileno()), "st_blocks", None)
    except OSError:  # a `Joined` file, whose chapters were checked
        return length
    return length if blocks is None else min(length, 512 * blocks)


# --- of a moov ----------------------------------------------------------------------------------


def get_trak(moov: bytes, index: int) -> bytes:
    """Return the payload of the `trak` with a `Track.index`; ValueError without one."""
    traks = boxes.of_kind(moov, b"trak")
    if not 0 <= index < len(traks):
        raise ValueError(f"there is no track {index} among {len(traks)}")
    return traks[index]


def parse_tracks(moov: bytes) -> list[Track]:
    """Parse the tracks of a `moov` payload, in file order."""
    traks = boxes.of_kind(moov, b"trak")
    chapters = {
        track_id
        for trak in traks
        for (track_id,) in struct.iter_unpack(">I", boxes.get(trak, b"tref", b"chap") or b"")
    }
    result = []
    for index, trak in enumerate(traks):
        tkhd = boxes.get(trak, b"tkhd") or b""
        mdia = boxes.get(trak, b"mdia") or b""
        track_id = struct.unpack_from(">I", tkhd, 20 if tkhd[0] else 12)[0]
        scale, duration = timescale_and_duration(boxes.get(mdia, b"mdhd") or b"")
        stbl = boxes.get(mdia, b"minf", b"stbl") or b""
        edits = parse_edits(trak)
        played = [edit for edit in edits if edit[1] >= 0]
        late = len(edits) > len(played) and max(e[1] for e in edits) > scale * _PRIMING
        speeds = {rate / 65536 for _, _, rate in played}
        result.append(
            Track(
                index=index,
                track_id=track_id,
                handler=(boxes.get(mdia, b"hdlr") or bytes(12))[8:12],
                fourcc=boxes.type_name((boxes.get(stbl, b"stsd") or bytes(16))[12:16]),
                timescale=scale,
                duration=duration,
                sample_count=sample_sizes(stbl)[1],
                is_chapter_track=track_id in chapters,
                is_cut=len(played) > 1 or late,
                speed=(speeds.pop() if len(speeds) == 1 else 0.0) if speeds else 1.0,
            )
        )
    return result


def parse_edits(trak: bytes) -> list[tuple[int, int, int]]:
    """Parse the edit list of a `trak` payload.

    Returns:
        (duration in the movie's timescale, first tick of the media, rate in 16.16) of each edit; a
        pause begins at tick -1.
    """
    elst = boxes.get(trak, b"edts", b"elst")
    if elst is None or len(elst) < 8:
        return []
    layout = ">QqI" if elst[0] else ">IiI"
    size = struct.calcsize(layout)
    count = min(struct.unpack_from(">I", elst, 4)[0], (len(elst) - 8) // size)
    rows = struct.iter_unpack(layout, elst[8 : 8 + count * size])
    return [(length, begin, rate) for length, begin, rate in rows]


def by_kind(tracks: Iterable[Track]) -> dict[tuple[bytes, str, int], Track]:
    """Key tracks by what stays when pictures are coded anew, to pair those of two files.

    The key: handler, fourcc (empty for video) and rank among the tracks of that handler and fourcc.
    """
    found: dict[tuple[bytes, str, int], Track] = {}
    for track in tracks:
        fourcc = "" if track.handler == b"vide" else track.fourcc
        rank = sum((handler, name) == (track.handler, fourcc) for handler, name, _ in found)
        found[track.handler, fourcc, rank] = track
    return found


def parse_maker_boxes(moov: boxes.Data) -> list[tuple[bytes, boxes.Data]]:
    """Parse the maker's boxes of moov/udta; see `read_maker_boxes`.

    Returns:
        (type, payload) of each: views of a view.
    """
    found = boxes.get(moov, b"udta")
    return [box for box in boxes.children(found or moov[:0]) if box[0] not in _FROM_TAGS]


def parse_movie_boxes(moov: boxes.Data) -> list[tuple[bytes, boxes.Data]]:
    """Parse the maker's boxes beside the tracks; see `parse_maker_boxes`."""
    return [box for box in boxes.children(moov) if box[0] not in _OF_MUXERS]


def timescale_and_duration(payload: bytes) -> tuple[int, int]:
    """Return (ticks a second, duration in ticks) of an `mvhd` or `mdhd`."""
    scale, ticks = struct.unpack_from(
        *((">IQ", payload, 20) if payload[0] else (">II", payload, 12))
    )
    return scale, ticks


def movie_timescale(moov: bytes) -> int:
    """Return the ticks a second of `mvhd`, in which tracks and edits state durations."""
    scale = timescale_and_duration(boxes.get(moov, b"mvhd") or b"")[0]
    if not scale:
        raise ValueError("mvhd has a timescale of 0")
    return scale


# --- sample tables ------------------------------------------------------------------------------


def sample_sizes(stbl: bytes) -> tuple[int | NDArray[np.int64], int]:
    """Return (the size of every sample, or an array of sizes, in bytes; the number of samples).

    Raises:
        ValueError: The box is shorter than it says.
    """
    if (stsz := boxes.get(stbl, b"stsz")) is not None:
        size, count = struct.unpack_from(">2I", stsz, 4)
        if size:
            return size, count
        table = np.frombuffer(stsz, ">u4", offset=12, count=count)
    elif (stz2 := boxes.get(stbl, b"stz2")) is not None:
        bits, count = struct.unpack_from(">2I", stz2, 4)
        if bits == 16:
            table = np.frombuffer(stz2, ">u2", offset=12, count=count)
        elif bits in (4, 8):
            table = np.frombuffer(stz2, np.uint8, offset=12, count=-(-count * bits // 8))
            if bits == 4:
                table = np.stack([table >> 4, table & 15], axis=1).reshape(-1)[:count]
        else:
            raise ValueError(f"stz2 has sizes of {bits} bits")
    else:
        return 0, 0
    return table.astype(np.int64), count


def parse_chunk_offsets(kind: bytes, payload: bytes) -> NDArray[np.int64]:
    """Parse the file positions in an `stco` or `co64` box."""
    count = struct.unpack_from(">I", payload, 4)[0]
    dtype = ">u8" if kind == b"co64" else ">u4"
    return np.frombuffer(payload, dtype, offset=8, count=count).astype(np.int64)


def chunk_offset_box(offsets: NDArray[np.int64], *, wide: bool) -> boxes.Box:
    """Build the type and payload of a table of file positions: `co64` if wide, else `stco`."""
    kind, dtype = (b"co64", ">u8") if wide else (b"stco", ">u4")
    return kind, struct.pack(">2I", 0, len(offsets)) + offsets.astype(dtype).tobytes()


def shift_chunks(moov: bytes, behind: int, shift: int, *, wide: bool) -> bytes:
    """Move every chunk offset at or behind a file position.

    Args:
        moov: A `moov` payload.
        behind: The file position, in bytes.
        shift: By how many bytes to move.
        wide: Write 64-bit tables (`co64`) for all tracks.

    Returns:
        The new payload.
    """

    def move(kind: bytes, payload: bytes) -> boxes.Box:
        offsets = parse_chunk_offsets(kind, payload)
        moved = np.where(offsets >= behind, offsets + shift, offsets)
        return chunk_offset_box(moved, wide=wide or kind == b"co64")

    for kind in (b"co64", b"stco"):  # stco may become co64, and must not move twice
        moov = boxes.edit(moov, (b"trak", b"mdia", b"minf", b"stbl", kind), move)
    return moov


def chunk_extents(file: BinaryIO, moov: bytes, index: int) -> NDArray[np.int64]:
    """Locate the chunks of a track.

    Args:
        file: The file, to check that the chunks lie within it.
        moov: Its `moov` payload.
        index: `Track.index`.

    Returns:
        (n, 2): position and size of every chunk, in bytes.

    Raises:
        ValueError: The tables contradict each other or the file, or the samples are not listed.
    """
    trak = get_trak(moov, index)
    for _, entry in boxes.children(
        (boxes.get(trak, b"mdia", b"minf", b"dinf", b"dref") or b"")[8:]
    ):
        if not entry[3] & 1:  # 14496-12, 8.7.2: flag 1 says "in this file"
            raise ValueError(f"track {index} keeps its samples in another file")
    stbl = boxes.get(trak, b"mdia", b"minf", b"stbl") or b""
    sizes, count = sample_sizes(stbl)
    if not count and boxes.get(moov, b"mvex") is not None:
        raise ValueError(f"the samples of track {index} are in movie fragments")
    kind = b"stco" if boxes.get(stbl, b"stco") is not None else b"co64"
    offsets = parse_chunk_offsets(kind, boxes.get(stbl, kind) or bytes(8))
    runs = np.frombuffer(boxes.get(stbl, b"stsc") or bytes(8), ">u4", offset=8).astype(np.int64)
    runs = runs[: len(runs) // 3 * 3].reshape(-1, 3)
    length = boxes.file_length(file)
    total = count * sizes if isinstance(sizes, int) else int(sizes.sum())
    lengths = np.diff(runs[:, 0], append=len(offsets) + 1)
    if total > length or (lengths < 0).any() or lengths.sum() != len(offsets):
        raise ValueError(f"the sample tables of track {index} contradict each other")
    ends = np.minimum(np.cumsum(np.repeat(runs[:, 1], lengths)), count)
    edges = np.concatenate([[0], ends])
    if isinstance(sizes, int):
        edges = edges * sizes
    else:
        edges = np.concatenate([[0], np.cumsum(sizes)])[edges]
    extents = np.stack([offsets, np.diff(edges)], axis=1)
    if (offsets < 0).any() or (extents.sum(axis=1) > length).any():
        raise ValueError(f"track {index} has samples behind the end of the file")
    return extents
