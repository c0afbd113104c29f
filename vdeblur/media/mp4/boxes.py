"""ISO base media (mp4, mov) boxes: reading what libav hides, grafting what its muxer drops.

libav's mov muxer refuses tracks without a codec (GoPro `fdsc`, Apple `mebx`, Sony `rtmd`, Android
`camm`) and drops the camera maker's boxes in `moov/udta`; `graft` copies both, byte for byte, from
the source into a finished output. Box and table names are those of ISO/IEC 14496-12.

Knows bytes and offsets only: no codecs, no libav, no frames. It does not read fragmented tracks
(`moof`), whose samples are not listed in `moov`, and it never holds `mdat` in memory.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import InputError, OutputError

_CHUNK = 1 << 20
_MAX_MOOV = 1 << 29  # 512 MiB: some 25 million samples; more is damage, not a film
_MAX_32 = (1 << 32) - 1
_LAST_STCO = _MAX_32  # the last position that a 32-bit chunk offset can name
_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}

# Boxes of moov/udta that FFmpeg's mov/mp4 muxer (movenc.c, mov_write_udta_tag) makes again from
# tags and chapters. Other © atoms (©mak, ©xyz, DJI's ©csn …) are a camera's, and mp4 drops them.
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


@dataclass(frozen=True)
class Track:
    """One `trak` of a file.

    index counts the `trak` boxes in file order; track_id is libav's `Stream.id`. handler is the
    hdlr type (b"vide", b"soun", b"meta" …), fourcc that of the first sample entry ("avc1",
    "gpmd"). duration counts timescale ticks a second (mdhd). is_chapter_track: another track names
    it in tref/chap, so that players show it as chapters.
    """

    index: int
    track_id: int
    handler: bytes
    fourcc: str
    timescale: int
    duration: int
    sample_count: int
    is_chapter_track: bool


class _Extent(NamedTuple):
    """A top-level box: where it lies in its file. `open_ended` is a size of 0: to the end."""

    kind: bytes
    start: int
    header: int
    end: int
    open_ended: bool


# --- reading ------------------------------------------------------------------------------------


def is_iso(path: str | Path) -> bool:
    """Whether the file starts as ISO base media or QuickTime does; False for what is no file."""
    if not Path(path).is_file():
        return False
    with _reading(path), _open(path) as file:
        head = file.read(8)
    return len(head) == 8 and head[4:] in _FIRST_BOXES


def moov_first(path: str | Path) -> bool:
    """Whether `moov` precedes `mdat`, so that playing can start before the file is complete.

    Raises InputError when the boxes before it are damaged.
    """
    if not is_iso(path):
        return False
    with _reading(path), _open(path) as file:
        for box in _top_level(file):
            if box.kind in (b"moov", b"mdat", b"moof"):
                return box.kind == b"moov"
    return False


def tracks(path: str | Path) -> list[Track]:
    """The tracks of a file, in file order. Raises InputError when there is no sound `moov`."""
    with _reading(path), _open(path) as file:
        return _tracks(_moov(file)[1])


def maker_boxes(path: str | Path) -> list[tuple[bytes, bytes]]:
    """The boxes of moov/udta that no muxer makes from tags: (type, whole box), in file order.

    GoPro writes FIRM, LENS, CAME, SETT, MUID, HMMT, BCID, GUMI, GPMF … there. Raises InputError
    when there is no sound `moov`.
    """
    with _reading(path), _open(path) as file:
        return _maker_boxes(_moov(file)[1])


def missing_bytes(path: str | Path) -> int:
    """How many bytes the last top-level box claims behind the end of the file: it is cut off."""
    with _open(path) as file:
        return _last_box(file)[2]


def cut_torn_moof(path: str | Path) -> None:
    """Cut off the header of a last fragment that is not all there.

    libav opens no file that ends within a `moof`, as one may where the disk is full; of one that
    ends within an `mdat` it reads what there is.
    """
    with Path(path).open("r+b") as file:
        kind, start, missing = _last_box(file)
        if not kind or (kind == b"moof" and missing):
            file.truncate(start)


def sample_times(path: str | Path, index: int) -> list[tuple[int, int]]:
    """(count, duration) runs of the samples of a track, in its timescale (stts, runs merged)."""
    with _reading(path), _open(path) as file:
        stts = _get(_trak(_moov(file)[1], index), b"mdia", b"minf", b"stbl", b"stts") or bytes(8)
    table = np.frombuffer(stts, ">u4", offset=8)
    runs: list[tuple[int, int]] = []
    for count, duration in table[: len(table) // 2 * 2].reshape(-1, 2).tolist():
        if runs and runs[-1][1] == duration:
            runs[-1] = (runs[-1][0] + count, duration)
        elif count:
            runs.append((count, duration))
    return runs


def track_digest(path: str | Path, index: int) -> str:
    """The sha256 of a track's sample data in decoding order. Raises InputError when damaged."""
    digest = hashlib.sha256()
    with _reading(path), _open(path) as file:
        for offset, size in _chunks(file, _moov(file)[1], index).tolist():
            for block in _blocks(file, offset, size):
                digest.update(block)
    return digest.hexdigest()


# --- grafting -----------------------------------------------------------------------------------


def graft(
    source: str | Path,
    output: str | Path,
    *,
    track_indices: Sequence[int],
    udta: bool = True,
) -> list[str]:
    """Copies whole tracks and the maker's udta boxes of source into a muxed output, in place.

    track_indices are `Track.index` of source. Sample data goes into a new `mdat`, each `trak` gets
    a new track_ID and chunk offsets; tref entries stay where the track they name is in the output
    (the track of the same handler and rank). Boxes whose type output's udta already has are left.
    output must be complete and not yet under its final name: when `moov` has to grow in front of
    `mdat` and no `free` box beside it gives the room, the file is rewritten beside itself.

    Returns what was added, e.g. ["udta FIRM", "track fdsc"]. Raises InputError for a damaged
    source, OutputError for an output that is fragmented or cannot be written; output is untouched
    when source is to blame.
    """
    with _reading(source), _open(source) as src:
        old = _moov(src)[1]
        picked = {index: _chunks(src, old, index) for index in track_indices}
        # A dry run on the source itself: what is damaged in it shows before output is touched.
        _add_udta(_add_traks(old, old, picked, 0, wide=True)[0], old)
        with _writing(output):
            beside = Path(f"{output}.graft")
            try:
                added, rewritten = _graft(src, old, picked, Path(output), beside, udta)
                if rewritten:
                    beside.replace(output)
                added += _append_uuids(src, Path(output))
            finally:
                beside.unlink(missing_ok=True)
    return added


def _append_uuids(source: BinaryIO, output: Path) -> list[str]:
    """Top-level uuid boxes (XMP, Exif …; 14496-12, 11.1) of source, appended to output."""
    with output.open("r+b") as out:
        known = {_head(out, box) for box in _top_level(out) if box.kind == b"uuid"}
        added: list[str] = []
        for box in _top_level(source):
            size = box.end - box.start
            if box.kind == b"uuid" and size <= _MAX_MOOV and _head(source, box) not in known:
                out.seek(0, os.SEEK_END)
                _copy(source, out, box.start, size)
                added.append("uuid")
    return added


def _head(file: BinaryIO, box: _Extent) -> bytes:
    """The header and extended type of a uuid box."""
    file.seek(box.start)
    return file.read(24)


def _graft(
    src: BinaryIO,
    old: bytes,
    picked: Mapping[int, NDArray[np.int64]],
    output: Path,
    beside: Path,
    udta: bool,
) -> tuple[list[str], bool]:
    """(what was added, whether the result lies beside output instead of in it)."""
    with output.open("r+b") as out:
        boxes = list(_top_level(out))
        box, moov = _moov(out)
        if any(b.kind == b"moof" for b in boxes) or _get(moov, b"mvex") is not None:
            raise OutputError(f"{output} is a fragmented file; boxes go into a plain one only.")
        last = boxes[-1]
        total = sum(int(chunks[:, 1].sum()) for chunks in picked.values())
        header = _header(b"mdat", total) if picked else b""
        # 64-bit chunk offsets in every table that is written, where the file may pass 4 GiB.
        wide = _length(out) + total + 4 * (len(moov) + len(old)) > _LAST_STCO

        def assemble(mdat: int, shift: int) -> tuple[bytes, list[str]]:
            """The new moov, its size independent of mdat, where the new samples' box will be."""
            body = _shift_chunks(moov, box.end, shift, wide) if shift else moov
            body, names = _add_traks(body, old, picked, mdat + len(header), wide)
            if udta:
                body, more = _add_udta(body, old)
                names = more + names
            return _box(b"moov", body), names

        names = assemble(0, 0)[1]
        if not names:
            return [], False
        if last.open_ended and last != box:  # 14496-12, 4.2: a size of 0 reaches to the end
            if last.end - last.start > _MAX_32:
                raise OutputError(f"{output} ends in a box without a size, nothing can follow it.")
            _write_at(out, last.start, struct.pack(">I", last.end - last.start))

        if box.end == last.end or any(b.kind == b"mdat" for b in boxes if b.end <= box.start):
            # moov behind the samples: the new mdat takes its place (or the end), moov follows.
            at = box.start if box == last else last.end
            if box != last:
                _write_at(out, box.start + 4, b"free")
            _append(out, src, at, header, picked)
            out.write(assemble(at, 0)[0])
            out.truncate()
            return names, False

        # moov in front: into the free box behind it, if that has the room.
        room = box.end - box.start
        after = next(b for b in boxes if b.start == box.end)
        if after.kind in (b"free", b"skip"):
            room += after.end - after.start
        new = assemble(last.end, 0)[0]
        spare = room - len(new)
        if spare == 0 or spare >= 8:
            _append(out, src, last.end, header, picked)
            _write_at(out, box.start, new + (struct.pack(">I4s", spare, b"free") if spare else b""))
            return names, False

        # Or by rewriting the file: everything behind moov moves by what moov grows.
        shift = len(assemble(0, 1)[0]) - (box.end - box.start)
        with beside.open("wb") as fresh:
            _copy(out, fresh, 0, box.start)
            fresh.write(assemble(last.end + shift, shift)[0])
            _copy(out, fresh, box.end, last.end - box.end)
            _append(fresh, src, last.end + shift, header, picked)
        return names, True


def _add_traks(
    moov: bytes,
    old: bytes,
    picked: Mapping[int, NDArray[np.int64]],
    position: int,
    wide: bool,
) -> tuple[bytes, list[str]]:
    """moov with the picked traks of old behind its own; their samples lie from position on."""
    if not picked:
        return moov, []
    theirs, ours = _tracks(old), _tracks(moov)
    rescale = _Rescale(_movie_scale(moov), _movie_scale(old))
    first_id = 1 + max((track.track_id for track in ours), default=0)
    ids = _same_tracks([track for track in theirs if track.index not in picked], ours)
    ids |= {theirs[index].track_id: first_id + n for n, index in enumerate(picked)}
    traks: list[tuple[bytes, bytes]] = []
    for index, chunks in picked.items():
        offsets = position + np.cumsum(chunks[:, 1]) - chunks[:, 1]
        position += int(chunks[:, 1].sum())
        new_id = ids[theirs[index].track_id]
        traks.append((b"trak", _new_trak(_trak(old, index), new_id, ids, rescale, offsets, wide)))
    atoms = _atoms(moov)
    at = max((n + 1 for n, (kind, _) in enumerate(atoms) if kind == b"trak"), default=len(atoms))
    body = _join(atoms[:at] + traks + atoms[at:])
    longest = max(_tkhd_duration(_get(trak, b"tkhd") or b"") for _, trak in traks)
    # GoPro's telemetry track claims a second more than its film has: the film's length stands.
    longest = min(longest, rescale(_times(_get(old, b"mvhd") or b"")[1]))
    next_id = first_id + len(picked)
    names = [f"track {theirs[index].fourcc.strip()}" for index in picked]
    return _edit(body, (b"mvhd",), lambda kind, p: (kind, _mvhd(p, longest, next_id))), names


def _add_udta(moov: bytes, old: bytes) -> tuple[bytes, list[str]]:
    """moov with the maker's boxes of old in its udta, where it has none of that type."""
    udta = _atoms(_get(moov, b"udta") or b"")
    have = {kind for kind, _ in udta}
    # 3GPP's location is the muxer's to write, except beside mdta keys, where it writes none.
    location = [(kind, _box(kind, p)) for kind, p in _udta(old) if kind == b"loci"]
    new = [(kind, box) for kind, box in _maker_boxes(old) + location if kind not in have]
    if not new:
        return moov, []
    payload = _join(udta) + b"".join(box for _, box in new)
    others = [atom for atom in _atoms(moov) if atom[0] != b"udta"]
    return _join([*others, (b"udta", payload)]), [f"udta {_text(kind)}" for kind, _ in new]


class _Rescale(NamedTuple):
    """From one movie timescale (ticks a second, mvhd) to another, to the nearest tick."""

    new: int
    old: int

    def __call__(self, ticks: int) -> int:
        return (2 * ticks * self.new + self.old) // (2 * self.old)


def _same_tracks(theirs: Sequence[Track], ours: Sequence[Track]) -> dict[int, int]:
    """track_ID → track_ID, by handler and rank, where both files have as many of a handler."""
    ids: dict[int, int] = {}
    for handler in {track.handler for track in theirs}:
        left = [track.track_id for track in theirs if track.handler == handler]
        right = [track.track_id for track in ours if track.handler == handler]
        if len(left) == len(right):
            ids.update(zip(left, right, strict=True))
    return ids


def _new_trak(
    trak: bytes,
    track_id: int,
    ids: Mapping[int, int],
    rescale: _Rescale,
    offsets: NDArray[np.int64],
    wide: bool,
) -> bytes:
    def stbl(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        kept = [atom for atom in _atoms(payload) if atom[0] not in (b"stco", b"co64")]
        return kind, _join([*kept, _offset_table(offsets, wide)])

    trak = _edit(trak, (b"tkhd",), lambda kind, p: (kind, _tkhd(p, track_id, rescale)))
    trak = _edit(trak, (b"edts", b"elst"), lambda kind, p: (kind, _elst(p, rescale)))
    trak = _edit(trak, (b"mdia", b"minf", b"stbl"), stbl)
    # 14496-12, 8.3.3: a tref child is a list of track_IDs, and may be of any type.
    atoms: list[tuple[bytes, bytes]] = []
    for kind, payload in _atoms(trak):
        if kind == b"tref":
            refs = [
                (ref, [ids[i] for (i,) in struct.iter_unpack(">I", p[: len(p) & ~3]) if i in ids])
                for ref, p in _atoms(payload)
            ]
            payload = _join([(ref, struct.pack(f">{len(to)}I", *to)) for ref, to in refs if to])
            if not payload:
                continue
        atoms.append((kind, payload))
    return _join(atoms)


def _tkhd(payload: bytes, track_id: int, rescale: _Rescale) -> bytes:
    layout, unknown = (">2Q2IQ", (1 << 64) - 1) if payload[0] else (">5I", _MAX_32)
    end = 4 + struct.calcsize(layout)
    created, modified, _, reserved, ticks = struct.unpack(layout, payload[4:end])
    if ticks != unknown:
        ticks = rescale(ticks)
        # At lcm(90000, 48000) ticks a second 32 bits end after 1.6 hours.
        layout = ">2Q2IQ" if max(created, modified, ticks) >= _MAX_32 else ">5I"
    version = b"\1" if "Q" in layout else b"\0"
    fields = struct.pack(layout, created, modified, track_id, reserved, ticks)
    return version + payload[1:4] + fields + payload[end:]


def _elst(payload: bytes, rescale: _Rescale) -> bytes:
    layout = ">QqI" if payload[0] else ">IiI"
    count = struct.unpack(">I", payload[4:8])[0]
    rows = payload[8 : 8 + count * struct.calcsize(layout)]
    edits = [(rescale(d), start, rate) for d, start, rate in struct.iter_unpack(layout, rows)]
    wide = payload[0] or any(duration > _MAX_32 for duration, _, _ in edits)
    layout = ">QqI" if wide else ">IiI"
    head = (b"\1" if wide else b"\0") + payload[1:8]
    return head + b"".join(struct.pack(layout, *edit) for edit in edits)


def _mvhd(payload: bytes, longest: int, next_id: int) -> bytes:
    layout, unknown = (">2QIQ", (1 << 64) - 1) if payload[0] else (">4I", _MAX_32)
    end = 4 + struct.calcsize(layout)
    created, modified, scale, ticks = struct.unpack(layout, payload[4:end])
    if ticks != unknown and longest > ticks:
        ticks = longest
        layout = ">2QIQ" if max(created, modified, ticks) >= _MAX_32 else ">4I"
    version = b"\1" if "Q" in layout else b"\0"
    fields = struct.pack(layout, created, modified, scale, ticks)
    return version + payload[1:4] + fields + payload[end:-4] + struct.pack(">I", next_id)


def _tkhd_duration(tkhd: bytes) -> int:
    ticks: int = struct.unpack_from(*((">Q", tkhd, 28) if tkhd[0] else (">I", tkhd, 20)))[0]
    return 0 if ticks in (_MAX_32, (1 << 64) - 1) else ticks


def _offset_table(offsets: NDArray[np.int64], wide: bool) -> tuple[bytes, bytes]:
    kind, dtype = (b"co64", ">u8") if wide else (b"stco", ">u4")
    return kind, struct.pack(">2I", 0, len(offsets)) + offsets.astype(dtype).tobytes()


def _shift_chunks(moov: bytes, behind: int, shift: int, wide: bool) -> bytes:
    """moov with every chunk offset at or behind a file position moved by shift bytes."""

    def move(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        offsets = _offsets(kind, payload)
        moved = np.where(offsets >= behind, offsets + shift, offsets)
        return _offset_table(moved, wide or kind == b"co64")

    for kind in (b"co64", b"stco"):  # stco may become co64, and must not move twice
        moov = _edit(moov, (b"trak", b"mdia", b"minf", b"stbl", kind), move)
    return moov


# --- boxes in memory ----------------------------------------------------------------------------


def _atoms(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, payload) of the boxes in a payload; QuickTime may end one with 32 zero bits."""
    atoms, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        header = 8
        if size == 1:
            size, header = struct.unpack_from(">Q", data, at + 8)[0], 16
        size = size or len(data) - at
        if size < header or at + size > len(data):
            raise ValueError(f"box {_text(kind)} of {size} bytes does not fit in its parent")
        atoms.append((kind, data[at + header : at + size]))
        at += size
    return atoms


def _header(kind: bytes, length: int) -> bytes:
    """The header of a box with length bytes of payload, with a 64-bit size where it needs one."""
    if length + 8 > _MAX_32:
        return struct.pack(">I4sQ", 1, kind, length + 16)
    return struct.pack(">I4s", length + 8, kind)


def _box(kind: bytes, payload: bytes) -> bytes:
    return _header(kind, len(payload)) + payload


def _join(atoms: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(_box(*atom) for atom in atoms)


def _get(data: bytes, *path: bytes) -> bytes | None:
    """The payload of the first box at a path of types, None without one."""
    for kind in path:
        found = next((payload for name, payload in _atoms(data) if name == kind), None)
        if found is None:
            return None
        data = found
    return data


def _edit(
    data: bytes, path: Sequence[bytes], change: Callable[[bytes, bytes], tuple[bytes, bytes]]
) -> bytes:
    """data with change(type, payload) in place of every box at a path of types."""
    return _join(
        [
            (kind, payload)
            if kind != path[0]
            else change(kind, payload)
            if len(path) == 1
            else (kind, _edit(payload, path[1:], change))
            for kind, payload in _atoms(data)
        ]
    )


def _text(kind: bytes) -> str:
    return kind.decode("latin-1")


def _times(payload: bytes) -> tuple[int, int]:
    """(timescale, duration) of an mvhd or mdhd."""
    scale, ticks = struct.unpack_from(
        *((">IQ", payload, 20) if payload[0] else (">II", payload, 12))
    )
    return scale, ticks


def _movie_scale(moov: bytes) -> int:
    scale = _times(_get(moov, b"mvhd") or b"")[0]
    if not scale:
        raise ValueError("mvhd has a timescale of 0")
    return scale


def _trak(moov: bytes, index: int) -> bytes:
    traks = [payload for kind, payload in _atoms(moov) if kind == b"trak"]
    if not 0 <= index < len(traks):
        raise ValueError(f"there is no track {index} among {len(traks)}")
    return traks[index]


def _tracks(moov: bytes) -> list[Track]:
    traks = [payload for kind, payload in _atoms(moov) if kind == b"trak"]
    chapters = {
        track_id
        for trak in traks
        for (track_id,) in struct.iter_unpack(">I", _get(trak, b"tref", b"chap") or b"")
    }
    result = []
    for index, trak in enumerate(traks):
        tkhd = _get(trak, b"tkhd") or b""
        mdia = _get(trak, b"mdia") or b""
        track_id = struct.unpack_from(">I", tkhd, 20 if tkhd[0] else 12)[0]
        scale, duration = _times(_get(mdia, b"mdhd") or b"")
        stbl = _get(mdia, b"minf", b"stbl") or b""
        result.append(
            Track(
                index=index,
                track_id=track_id,
                handler=(_get(mdia, b"hdlr") or bytes(12))[8:12],
                fourcc=_text((_get(stbl, b"stsd") or bytes(16))[12:16]),
                timescale=scale,
                duration=duration,
                sample_count=_sample_sizes(stbl)[1],
                is_chapter_track=track_id in chapters,
            )
        )
    return result


def _maker_boxes(moov: bytes) -> list[tuple[bytes, bytes]]:
    return [(kind, _box(kind, data)) for kind, data in _udta(moov) if kind not in _FROM_TAGS]


def _udta(moov: bytes) -> list[tuple[bytes, bytes]]:
    return _atoms(_get(moov, b"udta") or b"")


def _sample_sizes(stbl: bytes) -> tuple[int | NDArray[np.int64], int]:
    """(the size of every sample, or an array of sizes, in bytes; number of samples)."""
    if (stsz := _get(stbl, b"stsz")) is not None:
        size, count = struct.unpack_from(">2I", stsz, 4)
        if size:
            return size, count
        table = np.frombuffer(stsz, ">u4", offset=12, count=count)
    elif (stz2 := _get(stbl, b"stz2")) is not None:
        bits, count = struct.unpack_from(">2I", stz2, 4)
        if bits == 16:
            table = np.frombuffer(stz2, ">u2", offset=12, count=count)
        else:
            table = np.frombuffer(stz2, np.uint8, offset=12, count=-(-count * bits // 8))
            if bits == 4:
                table = np.stack([table >> 4, table & 15], axis=1).reshape(-1)[:count]
    else:
        return 0, 0
    return table.astype(np.int64), count


def _offsets(kind: bytes, payload: bytes) -> NDArray[np.int64]:
    count = struct.unpack_from(">I", payload, 4)[0]
    dtype = ">u8" if kind == b"co64" else ">u4"
    return np.frombuffer(payload, dtype, offset=8, count=count).astype(np.int64)


def _chunks(file: BinaryIO, moov: bytes, index: int) -> NDArray[np.int64]:
    """(offset, size) in bytes of every chunk of a track, checked to lie within the file."""
    trak = _trak(moov, index)
    for _, entry in _atoms((_get(trak, b"mdia", b"minf", b"dinf", b"dref") or b"")[8:]):
        if not entry[3] & 1:  # 14496-12, 8.7.2: flag 1 says "in this file"
            raise ValueError(f"track {index} keeps its samples in another file")
    stbl = _get(trak, b"mdia", b"minf", b"stbl") or b""
    sizes, count = _sample_sizes(stbl)
    if not count and _get(moov, b"mvex") is not None:
        raise ValueError(f"the samples of track {index} are in movie fragments")
    kind = b"stco" if _get(stbl, b"stco") is not None else b"co64"
    offsets = _offsets(kind, _get(stbl, kind) or bytes(8))
    runs = np.frombuffer(_get(stbl, b"stsc") or bytes(8), ">u4", offset=8).astype(np.int64)
    runs = runs[: len(runs) // 3 * 3].reshape(-1, 3)
    length = _length(file)
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
    chunks = np.stack([offsets, np.diff(edges)], axis=1)
    if (offsets < 0).any() or (chunks.sum(axis=1) > length).any():
        raise ValueError(f"track {index} has samples behind the end of the file")
    return chunks


# --- boxes in files -----------------------------------------------------------------------------


def _open(path: str | Path) -> BinaryIO:
    """Open for reading; a `Joined` path (`vdeblur.media.joined_file`) opens in its own way."""
    return (path if isinstance(path, Path) else Path(path)).open("rb")


def _top_level(file: BinaryIO) -> Iterator[_Extent]:
    at, length, seen_moov = 0, _length(file), False
    while at + 8 <= length:
        file.seek(at)
        head = file.read(16)
        size, kind = struct.unpack_from(">I4s", head)
        header = 8
        if size == 1 and len(head) == 16:
            size, header = struct.unpack_from(">Q", head, 8)[0], 16
        end = at + size if size else length
        if end < at + header or (kind == b"moov" and end > length):
            if seen_moov:  # junk behind a complete file is no reason to refuse it
                return
            raise ValueError(f"box {_text(kind)!r} at byte {at} has a size of {size}")
        seen_moov |= kind == b"moov"
        yield _Extent(kind, at, header, min(end, length), size == 0)
        at = end


def _last_box(file: BinaryIO) -> tuple[bytes, int, int]:
    """(kind, start, bytes missing) of the last top-level box; its kind is b"" for less than a
    header's eight bytes. What is no box any more counts as the end."""
    length, at, found = _length(file), 0, (b"", 0, 0)
    while at + 8 <= length:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        if size < 8 or not kind.isascii():
            return kind, at, 0  # to the end of the file, or not a box
        found = kind, at, max(0, at + size - length)
        at += size
    return (b"", at, 0) if at < length else found


def _moov(file: BinaryIO) -> tuple[_Extent, bytes]:
    for box in _top_level(file):
        if box.kind == b"moov":
            size = box.end - box.start - box.header
            if size > _MAX_MOOV:
                raise ValueError(f"moov has {size} bytes, more than any film needs")
            file.seek(box.start + box.header)
            return box, file.read(size)
    raise ValueError("there is no moov box")


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _blocks(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    file.seek(offset)
    while size:
        block = file.read(min(size, _CHUNK))
        if not block:
            raise ValueError("the file ends before its samples")
        yield block
        size -= len(block)


def _copy(source: BinaryIO, target: BinaryIO, offset: int, size: int) -> None:
    for block in _blocks(source, offset, size):
        target.write(block)


def _write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


def _append(
    out: BinaryIO, src: BinaryIO, at: int, header: bytes, picked: Mapping[int, NDArray[np.int64]]
) -> None:
    """A new mdat at file position at: its header, then the chunks of the picked tracks."""
    _write_at(out, at, header)
    for chunks in picked.values():
        for offset, size in chunks.tolist():
            _copy(src, out, offset, size)


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{path} is damaged: {error}.") from error


@contextmanager
def _writing(path: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error
    except (ValueError, IndexError, struct.error) as error:
        raise OutputError(f"{path} is no sound mp4 or mov file: {error}.") from error
