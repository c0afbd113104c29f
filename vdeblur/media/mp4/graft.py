"""Copy tracks and maker boxes that libav's muxer drops from a source into a finished output.

libav's mov muxer refuses tracks without a codec (GoPro `fdsc`, Apple `mebx`, Sony `rtmd`, Android
`camm`) and drops the camera maker's boxes in `moov` and `moov/udta`. `graft` copies both, byte for
byte. Box and table names are those of ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import OutputError
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    LAST_STCO,
    Track,
    chunk_extents,
    chunk_offset_box,
    get_trak,
    movie_timescale,
    parse_maker_boxes,
    parse_movie_boxes,
    parse_tracks,
    shift_chunks,
    timescale_and_duration,
)

_UNKNOWN_64 = (1 << 64) - 1  # a 64-bit duration that is not known
# The last bytes of what cameras put behind the last box; places in it count from its end.
_TRAILERS = {b"8db42d694ccc418790edff439fe026bf": "Insta360's ", b"SEFT": "Samsung's "}


def graft(
    source: str | Path,
    output: str | Path,
    *,
    track_indices: Sequence[int],
    udta: bool = True,
    trailer: bool = True,
) -> list[str]:
    """Copy whole tracks and the maker's boxes of a source into a muxed output, in place.

    Sample data goes into a new `mdat`; each `trak` gets a new track_ID and new chunk offsets. A
    tref entry stays if the output has the track that it names (same handler, same rank). Boxes of a
    type that the output's udta or moov has already are left out. A maker's top-level boxes (uuid,
    and types that no muxer writes) are appended, and so is what lies behind the last box.

    Args:
        source: The file to copy from.
        output: A complete file, not yet under its final name: it is changed in place, and damaged
            if the disk fails.
        track_indices: `Track.index` of the source's tracks to copy.
        udta: Copy the maker's boxes, too.
        trailer: Copy what lies behind the last box, too.

    Returns:
        What was added, such as `["udta FIRM", "track fdsc"]`.

    Raises:
        InputError: The source is damaged or cannot be read; the output is untouched.
        OutputError: The output is fragmented or cannot be written.
    """
    with boxes.open_input(source) as src:
        source_moov = boxes.read_moov(src)[1]
        chunks = {index: chunk_extents(src, source_moov, index) for index in track_indices}
        copied = _Copied(src, source_moov, chunks, udta)
        # A dry run on the source itself: damage in it shows before the output is touched.
        copied.insert_tracks(source_moov, 0, wide=True)
        copied.insert_maker_boxes(source_moov)
        with boxes.output_errors(output):
            added = _copy_tracks(copied, Path(output))
            added += _append_boxes(src, Path(output), trailer=trailer)
    return added


def trailer_name(file: BinaryIO) -> str | None:
    """Name what lies behind the last box of a file for a report; None for nothing.

    Raises:
        ValueError: A box is damaged, and no complete `moov` precedes it.
    """
    at, size = boxes.trailer(file)
    if not size:
        return None
    tail = b"".join(boxes.read_blocks(file, at + max(0, size - 32), min(size, 32)))
    maker = next((name for end, name in _TRAILERS.items() if tail.endswith(end)), "")
    return f"{maker}trailer of {size} bytes behind the last box"


def _append_boxes(source: BinaryIO, output: Path, *, trailer: bool) -> list[str]:
    """Append the source's top-level boxes that no muxer writes, and what lies behind them.

    Those are uuid boxes (XMP, Exif …; 14496-12, 11.1) and types that a maker chose.
    """

    def head(file: BinaryIO, box: boxes.Extent) -> bytes:
        """Header and extended type."""
        file.seek(box.start)
        return file.read(24)

    with output.open("r+b") as out:
        known = {head(out, box) for box in boxes.top_level_boxes(out)}
        added: list[str] = []
        for box in boxes.top_level_boxes(source):
            if box.kind not in boxes.STRUCTURE and head(source, box) not in known:
                _append_bytes(source, out, box.start, box.end - box.start)
                added.append(boxes.type_name(box.kind))
        if trailer and (name := trailer_name(source)) is not None:
            at, size = boxes.trailer(source)
            _append_bytes(source, out, at, size)
            added.append(name)
    return added


def _append_bytes(source: BinaryIO, out: BinaryIO, offset: int, size: int) -> None:
    end = boxes.file_length(out)
    try:
        _copy(source, out, offset, size)
    except BaseException:
        out.truncate(end)
        raise


def _copy(source: BinaryIO, out: BinaryIO, offset: int, size: int) -> None:
    """Copy bytes; raise InputError if the source cannot be read."""
    blocks = boxes.read_blocks(source, offset, size)
    while True:
        with boxes.input_errors(getattr(source, "name", "the source")):
            block = next(blocks, None)
        if block is None:
            return
        out.write(block)


# --- where the new moov and the new samples go --------------------------------------------------


def _copy_tracks(copied: _Copied, output: Path) -> list[str]:
    """Copy tracks; return names of additions."""
    with output.open("r+b") as out:
        target = _Target(out, copied)
        if target.fragmented:
            raise OutputError(f"{output} is a fragmented file; boxes go into a plain one only")
        if not target.names:
            return []
        last = target.last
        if last.open_ended and last != target.box:  # 14496-12, 4.2: it reaches to the file's end
            if last.end - last.start > boxes.MAX_32:
                raise OutputError(f"{output} ends in a box without a size, nothing can follow it")
            boxes.write_at(out, last.start, struct.pack(">I", last.end - last.start))
        if target.moov_behind:
            _append(target)
        elif not _fill_free_box(target):
            _make_room(target)
    return target.names


class _Target:
    """The output, and its `moov` with the copied tracks and boxes."""

    def __init__(self, out: BinaryIO, copied: _Copied) -> None:
        self.out, self.copied = out, copied
        self.boxes = list(boxes.top_level_boxes(out))
        self.box, self._moov = boxes.read_moov(out)
        self.last = self.boxes[-1]
        self.fragmented = (
            any(b.kind == b"moof" for b in self.boxes) or boxes.get(self._moov, b"mvex") is not None
        )
        indexes = len(self._moov) + len(copied.moov)
        # 64-bit chunk offsets in every table that is written, where the file may pass 4 GiB.
        self._wide = boxes.file_length(out) + copied.size + 4 * indexes > LAST_STCO
        self.names = [] if self.fragmented else self._assemble(0, 0)[1]

    @property
    def moov_behind(self) -> bool:
        """Whether `moov` follows the samples."""
        return self.box.end == self.last.end or any(
            b.kind == b"mdat" for b in self.boxes if b.end <= self.box.start
        )

    def moov(self, mdat: int, shift: int = 0) -> bytes:
        """The new box; its size does not depend on `mdat`.

        mdat: where the box of the new samples will be. shift: by how many bytes the samples behind
        `moov` move.
        """
        return boxes.build(b"moov", self._assemble(mdat, shift)[0])

    def _assemble(self, mdat: int, shift: int) -> tuple[bytes, list[str]]:
        moov, samples = self._moov, mdat + len(self.copied.mdat_header)
        body = shift_chunks(moov, self.box.end, shift, wide=self._wide) if shift else moov
        body, tracks = self.copied.insert_tracks(body, samples, wide=self._wide)
        body, makers = self.copied.insert_maker_boxes(body)
        return body, makers + tracks


def _append(target: _Target) -> None:
    """Put the new samples in place of the last `moov` (or at the end), and `moov` behind them."""
    out, box, last = target.out, target.box, target.last
    at = box.start if box == last else last.end
    _write_samples(target, at)
    out.write(target.moov(at))
    out.truncate()
    if box != last:
        boxes.write_at(out, box.start + 4, b"free")


def _fill_free_box(target: _Target) -> bool:
    """Let `moov` grow into the free box behind it; return False if that is too small."""
    out, box, last = target.out, target.box, target.last
    room = box.end - box.start
    after = next(b for b in target.boxes if b.start == box.end)
    if after.kind in (b"free", b"skip"):
        room += after.end - after.start
    new = target.moov(last.end)
    spare = room - len(new)
    if spare < 0 or 0 < spare < 8:
        return False
    _write_samples(target, last.end)
    boxes.write_at(out, box.start, new)
    out.write(struct.pack(">I4s", spare, b"free") if spare else b"")
    return True


def _make_room(target: _Target) -> None:
    """Move everything behind `moov` by its growth."""
    out, box, last = target.out, target.box, target.last
    shift = len(target.moov(0, 1)) - (box.end - box.start)
    _write_samples(target, last.end + shift)
    boxes.shift_bytes(out, box.end, last.end - box.end, shift)
    boxes.write_at(out, box.start, target.moov(last.end + shift, shift))


def _write_samples(target: _Target, at: int) -> None:
    """Write the new samples; if the source cannot be read, the output is as it was."""
    out = target.out
    old = at if at < target.last.end else target.last.end
    out.seek(old)
    replaced = out.read()
    try:
        target.copied.write_samples(out, at)
    except BaseException:
        out.truncate(old)
        boxes.write_at(out, old, replaced)
        raise


# --- what is copied -----------------------------------------------------------------------------


class _Copied(NamedTuple):
    """The tracks and boxes of a source that go into an output.

    chunks: `Track.index` of each track to copy → (n, 2), see `tracks.chunk_extents`.
    """

    file: BinaryIO
    moov: bytes
    chunks: Mapping[int, NDArray[np.int64]]
    udta: bool

    @property
    def size(self) -> int:
        """Bytes of the samples."""
        return sum(int(chunks[:, 1].sum()) for chunks in self.chunks.values())

    @property
    def mdat_header(self) -> bytes:
        """The header of the box of the samples; empty without tracks."""
        return boxes.header(b"mdat", self.size) if self.chunks else b""

    def write_samples(self, out: BinaryIO, at: int) -> None:
        """Write a new `mdat` at a file position: its header, then the chunks of the tracks."""
        boxes.write_at(out, at, self.mdat_header)
        for chunks in self.chunks.values():
            for offset, size in chunks.tolist():
                _copy(self.file, out, offset, size)

    def insert_tracks(self, moov: bytes, position: int, *, wide: bool) -> tuple[bytes, list[str]]:
        """An output's `moov` with the copied traks among its own, as in the source; their names.

        position: where their samples begin in the output.
        """
        if not self.chunks:
            return moov, []
        source_tracks, output_tracks = parse_tracks(self.moov), parse_tracks(moov)
        rescale = _Rescale(movie_timescale(moov), movie_timescale(self.moov))
        first_id = 1 + max((track.track_id for track in output_tracks), default=0)
        left = [track for track in source_tracks if track.index not in self.chunks]
        ids = _same_tracks(left, output_tracks)
        ids |= {source_tracks[index].track_id: first_id + n for n, index in enumerate(self.chunks)}
        places = {ids[t.track_id]: t.index for t in source_tracks if t.track_id in ids}
        atoms: list[tuple[bytes, bytes | memoryview]] = [*boxes.children(memoryview(moov))]
        # (place in the source, trak); chapters that only the output has come last.
        own = [payload for kind, payload in atoms if kind == b"trak"]
        traks: list[tuple[int, bytes | memoryview]] = [
            (places.get(track.track_id, len(source_tracks)), trak)
            for track, trak in zip(output_tracks, own, strict=True)
        ]
        longest = 0
        for index, chunks in self.chunks.items():
            offsets = position + np.cumsum(chunks[:, 1]) - chunks[:, 1]
            position += int(chunks[:, 1].sum())
            trak = _renumber(get_trak(self.moov, index), ids[source_tracks[index].track_id], ids)
            trak = _relocate(trak, rescale, offsets, wide=wide)
            longest = max(longest, _tkhd_duration(boxes.get(trak, b"tkhd") or b""))
            traks.append((index, trak))
        ordered = [(b"trak", trak) for _, trak in sorted(traks, key=lambda each: each[0])]
        at = next((n for n, (kind, _) in enumerate(atoms) if kind == b"trak"), len(atoms))
        rest = [atom for atom in atoms if atom[0] != b"trak"]
        body = boxes.build_all([*rest[:at], *ordered, *rest[at:]])
        # GoPro's telemetry track claims a second more than its film has: the film's length stands.
        film = timescale_and_duration(boxes.get(self.moov, b"mvhd") or b"")[1]
        longest = min(longest, rescale(film))
        next_id = first_id + len(self.chunks)
        names = [f"track {source_tracks[index].fourcc.strip()}" for index in self.chunks]
        return boxes.edit(body, (b"mvhd",), lambda k, p: (k, _mvhd(p, longest, next_id))), names

    def insert_maker_boxes(self, moov: bytes) -> tuple[bytes, list[str]]:
        """An output's `moov` with the maker's boxes whose types it lacks, and their names."""
        if not self.udta:
            return moov, []
        # Views: what a maker puts there may be large, and is to be copied once.
        source, own = memoryview(self.moov), memoryview(moov)
        atoms = boxes.children(own)
        udta = boxes.children(boxes.get(own, b"udta") or own[:0])
        # 3GPP's location is the muxer's to write, except beside mdta keys, where it writes none.
        source_udta = boxes.children(boxes.get(source, b"udta") or source[:0])
        location = [box for box in source_udta if box[0] == b"loci"]
        have, have_beside = {kind for kind, _ in udta}, {kind for kind, _ in atoms}
        new = [box for box in parse_maker_boxes(source) + location if box[0] not in have]
        beside = [box for box in parse_movie_boxes(source) if box[0] not in have_beside]
        if not new and not beside:
            return moov, []
        parts = boxes.parts_of([atom for atom in atoms if atom[0] != b"udta"] + beside)
        inside = boxes.parts_of(udta + new)
        if inside:
            parts += [boxes.header(b"udta", sum(map(len, inside))), *inside]
        names = [f"udta {boxes.type_name(kind)}" for kind, _ in new]
        return b"".join(parts), names + [f"moov {boxes.type_name(kind)}" for kind, _ in beside]


def _same_tracks(source: Sequence[Track], output: Sequence[Track]) -> dict[int, int]:
    """Map track_IDs of the source to the output, by handler and rank, if both have as many."""
    ids: dict[int, int] = {}
    for handler in {track.handler for track in source}:
        left = [track.track_id for track in source if track.handler == handler]
        right = [track.track_id for track in output if track.handler == handler]
        if len(left) == len(right):
            ids.update(zip(left, right, strict=True))
    return ids


# --- headers of the copied tracks ---------------------------------------------------------------


class _Rescale(NamedTuple):
    """Converts between movie timescales (ticks per second, mvhd), to the nearest tick."""

    new: int
    old: int

    def __call__(self, ticks: int) -> int:
        return (2 * ticks * self.new + self.old) // (2 * self.old)


def _renumber(trak: bytes, track_id: int, ids: Mapping[int, int]) -> bytes:
    """Return a trak with its new track_ID and the new IDs of the tracks that it refers to."""
    trak = boxes.edit(trak, (b"tkhd",), lambda kind, p: (kind, _tkhd_with_id(p, track_id)))
    # 14496-12, 8.3.3: a tref child is a list of track_IDs, and may be of any type.
    atoms: list[boxes.Box] = []
    for kind, payload in boxes.children(trak):
        if kind == b"tref":
            refs = [
                (ref, [ids[i] for (i,) in struct.iter_unpack(">I", p[: len(p) & ~3]) if i in ids])
                for ref, p in boxes.children(payload)
            ]
            payload = boxes.build_all(
                [(ref, struct.pack(f">{len(to)}I", *to)) for ref, to in refs if to]
            )
            if not payload:
                continue
        atoms.append((kind, payload))
    return boxes.build_all(atoms)


def _relocate(trak: bytes, rescale: _Rescale, offsets: NDArray[np.int64], *, wide: bool) -> bytes:
    """Return a trak in the output's movie timescale, with new chunk offsets."""

    def stbl(kind: bytes, payload: bytes) -> boxes.Box:
        kept = [atom for atom in boxes.children(payload) if atom[0] not in (b"stco", b"co64")]
        return kind, boxes.build_all([*kept, chunk_offset_box(offsets, wide=wide)])

    trak = boxes.edit(trak, (b"tkhd",), lambda kind, p: (kind, _tkhd_in(p, rescale)))
    trak = boxes.edit(trak, (b"edts", b"elst"), lambda kind, p: (kind, _elst_in(p, rescale)))
    return boxes.edit(trak, (b"mdia", b"minf", b"stbl"), stbl)


def _tkhd_with_id(payload: bytes, track_id: int) -> bytes:
    at = 20 if payload[0] else 12
    return payload[:at] + struct.pack(">I", track_id) + payload[at + 4 :]


def _tkhd_in(payload: bytes, rescale: _Rescale) -> bytes:
    layout, unknown = (">2Q2IQ", _UNKNOWN_64) if payload[0] else (">5I", boxes.MAX_32)
    end = 4 + struct.calcsize(layout)
    created, modified, track_id, reserved, ticks = struct.unpack(layout, payload[4:end])
    if ticks != unknown:
        ticks = rescale(ticks)
        # At lcm(90000, 48000) ticks a second 32 bits end after 1.6 hours.
        layout = ">2Q2IQ" if max(created, modified, ticks) >= boxes.MAX_32 else ">5I"
    version = b"\1" if "Q" in layout else b"\0"
    fields = struct.pack(layout, created, modified, track_id, reserved, ticks)
    return version + payload[1:4] + fields + payload[end:]


def _tkhd_duration(tkhd: bytes) -> int:
    ticks: int = struct.unpack_from(*((">Q", tkhd, 28) if tkhd[0] else (">I", tkhd, 20)))[0]
    return 0 if ticks in (boxes.MAX_32, _UNKNOWN_64) else ticks


def _elst_in(payload: bytes, rescale: _Rescale) -> bytes:
    layout = ">QqI" if payload[0] else ">IiI"
    count = struct.unpack(">I", payload[4:8])[0]
    rows = payload[8 : 8 + count * struct.calcsize(layout)]
    edits = [(rescale(d), start, rate) for d, start, rate in struct.iter_unpack(layout, rows)]
    wide = payload[0] or any(duration > boxes.MAX_32 for duration, _, _ in edits)
    layout = ">QqI" if wide else ">IiI"
    head = (b"\1" if wide else b"\0") + payload[1:8]
    return head + b"".join(struct.pack(layout, *edit) for edit in edits)


def _mvhd(payload: bytes, longest: int, next_id: int) -> bytes:
    """Return `mvhd` with the duration of the longest copied track, if that is longer."""
    layout, unknown = (">2QIQ", _UNKNOWN_64) if payload[0] else (">4I", boxes.MAX_32)
    end = 4 + struct.calcsize(layout)
    created, modified, scale, ticks = struct.unpack(layout, payload[4:end])
    if ticks != unknown and longest > ticks:
        ticks = longest
        layout = ">2QIQ" if max(created, modified, ticks) >= boxes.MAX_32 else ">4I"
    version = b"\1" if "Q" in layout else b"\0"
    fields = struct.pack(layout, created, modified, scale, ticks)
    return version + payload[1:4] + fields + payload[end:-4] + struct.pack(">I", next_id)
