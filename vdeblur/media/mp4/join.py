"""Join the chapters of a recording: one index over all of them, their bytes untouched.

`join` reads the index of every chapter and builds the index that the camera would have written for
an uncut recording: the sample tables of each track one after another, with chunk offsets into the
chapters. The result is a path whose `open` reads like one MP4, so that reading, grafting and
verifying need not know about chapters. Knows bytes and boxes (ISO/IEC 14496-12); no libav.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import InputError
from vdeblur.media.joined_file import Contents, Joined, Piece
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    Track,
    check_counts,
    chunk_offset_box,
    movie_timescale,
    parse_chunk_offsets,
    parse_edits,
    parse_maker_boxes,
    parse_tracks,
    sample_sizes,
)

Table = NDArray[np.int64]

#: Merges user data: takes the payload of the first chapter's udta box, and (payload, start of the
#: chapter in milliseconds) of each later chapter; returns the payload for the joined file.
MergeUdta = Callable[[bytes, Sequence[tuple[bytes, int]]], bytes]

_SOUND = b"soun"
_VIDEO = b"vide"


# --- joining ------------------------------------------------------------------------------------


def join(chapters: Sequence[Path], *, merge_udta: MergeUdta | None = None) -> Path:
    """Make a path that opens as all chapters in their order; a plain path for one sound chapter.

    Chapters that cannot be read are left out, and so are samples behind the end of a chapter that
    is cut off: see `Joined.damage`.

    Args:
        chapters: The files, in the order of their content.
        merge_udta: Merges the user data of all chapters; None keeps those of the first.

    Raises:
        InputError: No chapter can be read, or they do not fit together (other coding or another
            size).
    """
    parts: list[_Chapter] = []
    contents = Contents()
    for path in chapters:
        try:
            parts.append(_Chapter(path))
        except InputError as error:
            contents.damage.append(f"{error}: left out")
    if not parts:
        raise InputError("; ".join(contents.damage) or "there are no chapters to join")
    contents.damage += [text for part in parts for text in part.damage]
    if len(parts) == 1 and not contents.damage:
        return parts[0].path
    contents.chapters = [part.path for part in parts]
    with boxes.input_errors(parts[0].path):
        _assemble(parts, contents, merge_udta)
    joined = Joined(parts[0].path)
    joined.contents = contents
    return joined


class _SampleTables:
    """The sample tables of a track of one chapter (14496-12, 8.6 and 8.7), cut where its file ends.

    An element per sample: sizes in bytes, durations and shifts (ctts) in ticks of the track's
    timescale, sync flags, kinds (sdtp). An element per chunk: its place in the file, its number of
    samples, its sample description.
    """

    def __init__(self, stbl: bytes, length: int) -> None:
        sizes, count = sample_sizes(stbl)
        if isinstance(sizes, int) and count * sizes > length:
            raise ValueError(f"a track has {count} samples, more than the file can hold")
        self.sizes: Table = np.broadcast_to(np.asarray(sizes, np.int64), (count,)).copy()
        self.durations = _runs(boxes.get(stbl, b"stts"), count)
        ctts = boxes.get(stbl, b"ctts")
        self.shifts = None if ctts is None else _runs(ctts, count, signed=True)
        stss = boxes.get(stbl, b"stss")
        self.sync: NDArray[np.bool_] | None = None
        if stss is not None:
            self.sync = np.zeros(count, bool)
            numbers = np.frombuffer(stss, ">u4", offset=8).astype(np.int64)
            self.sync[numbers[(numbers > 0) & (numbers <= count)] - 1] = True
        sdtp = boxes.get(stbl, b"sdtp")
        self.kinds = None if sdtp is None else np.frombuffer(sdtp, np.uint8, offset=4)[:count]
        kind = b"stco" if boxes.get(stbl, b"stco") is not None else b"co64"
        self.chunks = parse_chunk_offsets(kind, boxes.get(stbl, kind) or bytes(8))
        self.per_chunk, self.entries = self._per_chunk(boxes.get(stbl, b"stsc") or bytes(8), count)
        self.lacking = self._cut(length)

    def _per_chunk(self, stsc: bytes, count: int) -> tuple[Table, Table]:
        table = np.frombuffer(stsc, ">u4", offset=8).astype(np.int64)
        table = table[: len(table) // 3 * 3].reshape(-1, 3)
        lengths = np.diff(table[:, 0], append=len(self.chunks) + 1)
        if (lengths < 0).any() or lengths.sum() != len(self.chunks):
            raise ValueError("the sample tables contradict each other")
        per_chunk = np.repeat(table[:, 1], lengths)
        if len(per_chunk) and per_chunk[:-1].sum() < count:
            per_chunk[-1] = count - per_chunk[:-1].sum()
        if per_chunk.sum() != count:
            raise ValueError("the sample tables contradict each other")
        return per_chunk, np.repeat(table[:, 2], lengths)

    def _cut(self, length: int) -> int:
        """Drop samples behind the end of the file; return their number."""
        count = len(self.sizes)
        first = np.cumsum(self.per_chunk) - self.per_chunk  # the number of each chunk's first
        before = np.cumsum(self.sizes) - self.sizes
        places = np.repeat(
            self.chunks - before[np.minimum(first, max(count - 1, 0))], self.per_chunk
        )
        ends = places + before + self.sizes
        beyond = np.flatnonzero(ends > length)
        if not len(beyond):
            return 0
        keep = int(beyond[0])
        self.sizes, self.durations = self.sizes[:keep], self.durations[:keep]
        self.shifts = None if self.shifts is None else self.shifts[:keep]
        self.sync = None if self.sync is None else self.sync[:keep]
        self.kinds = None if self.kinds is None else self.kinds[:keep]
        self.per_chunk = np.clip(keep - first, 0, self.per_chunk)
        used = self.per_chunk > 0
        self.chunks, self.entries = self.chunks[used], self.entries[used]
        self.per_chunk = self.per_chunk[used]
        return count - keep


class _Chapter:
    """The index of one chapter. Raises InputError if that is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        with boxes.input_errors(path), path.open("rb") as file:
            self.length = boxes.file_length(file)
            self.moov = boxes.read_moov(file)[1]
            check_counts(file, self.moov)
            self.tracks = parse_tracks(self.moov)
            self.traks = [p for kind, p in boxes.children(self.moov) if kind == b"trak"]
            if boxes.get(self.moov, b"mvex") is not None:
                raise ValueError("its samples are in movie fragments, which cannot be joined")
            self.samples = [
                _SampleTables(boxes.get(trak, b"mdia", b"minf", b"stbl") or b"", self.length)
                for trak in self.traks
            ]
            self.ftyp = self.uuids = b""
            for box in boxes.top_level_boxes(file):
                if box.kind in (b"ftyp", b"uuid") and box.end - box.start < 1 << 24:
                    file.seek(box.start)
                    data = file.read(box.end - box.start)
                    self.ftyp = self.ftyp or (data if box.kind == b"ftyp" else b"")
                    self.uuids += data if box.kind == b"uuid" else b""
            self.moov_first = boxes.moov_first(path)
        videos = [i for i, t in enumerate(self.tracks) if t.handler == _VIDEO]
        if not videos or not len(self.samples[videos[0]].sizes):
            raise InputError(f"{path} holds no picture that can be read")
        self.video = videos[0]
        lacking = [s.lacking for s in self.samples]
        if any(lacking):
            self.damage.append(
                f"{path.name} is cut off: {lacking[self.video]} frames of "
                f"{self.tracks[self.video].sample_count} are not there"
            )

    @property
    def seconds(self) -> Fraction:
        """Duration of its picture."""
        ticks = int(self.samples[self.video].durations.sum())
        return Fraction(ticks, self.tracks[self.video].timescale or 1)

    def place(self, other: Track, rank: int) -> int | None:
        """Index of the track that continues another chapter's, by handler, fourcc and rank."""
        alike = [
            track.index
            for track in self.tracks
            if (track.handler, track.fourcc) == (other.handler, other.fourcc)
        ]
        return alike[rank] if rank < len(alike) else None


def _assemble(parts: list[_Chapter], contents: Contents, merge_udta: MergeUdta | None) -> None:
    """Lay the pieces out as ftyp, (moov,) one mdat of all chapters, (moov,) uuid boxes."""
    first = parts[0]
    start = Fraction(0)
    for part in parts:
        contents.starts.append(start)
        start += part.seconds
    total = sum(part.length for part in parts)
    header = struct.pack(">I4sQ", 1, b"mdat", total + 16)

    def moov(samples: int) -> bytes:
        """The index for a samples' box at that position; its size does not depend on it."""
        places = [samples + len(header)]
        for part in parts[:-1]:
            places.append(places[-1] + part.length)
        return boxes.build(b"moov", _join_moovs(parts, contents, places, merge_udta))

    before = first.ftyp
    if first.moov_first:
        before += moov(len(before) + len(moov(0)))
    data: list[bytes | Path] = [before + header, *(part.path for part in parts)]
    after = (b"" if first.moov_first else moov(len(before))) + first.uuids
    data += [after] if after else []
    at = 0
    for number, piece in enumerate(data):
        length = len(piece) if isinstance(piece, bytes) else parts[number - 1].length
        contents.pieces.append(Piece(at, length, piece))
        at += length


def _join_moovs(
    parts: list[_Chapter],
    contents: Contents,
    places: list[int],
    merge_udta: MergeUdta | None,
) -> bytes:
    """Build the index of all chapters; places: where the bytes of each begin."""
    first = parts[0]
    scale = movie_timescale(first.moov)
    notes: list[str] = []
    traks: list[bytes] = []
    longest = 0
    ranks: dict[tuple[bytes, str], int] = {}
    for track in first.tracks:
        kind = (track.handler, track.fourcc)
        rank = ranks[kind] = ranks.get(kind, -1) + 1
        pieces: list[tuple[_Chapter, int]] = []
        for part in parts:
            index = part.place(track, rank)
            if index is None:
                notes.append(f"{part.path.name} has no {track.fourcc} track: there is a gap in it")
            else:
                _check_same_coding(first, part, track.index, index)
                pieces.append((part, index))
        trak, ticks = _join_traks(track, pieces, parts, contents.starts, places, scale)
        traks.append(trak)
        if track.handler in (_VIDEO, _SOUND):
            longest = max(longest, ticks)
    for part in parts[1:]:
        notes += _note_own_boxes(first, part) + _note_timecode_gap(parts, part, contents.starts)
        extra = len(part.tracks) - len(first.tracks)
        if extra > 0:
            notes.append(f"{part.path.name} has {extra} tracks more than the first chapter")
    contents.notes = list(dict.fromkeys(notes))
    atoms: list[boxes.Box] = []
    left = iter(traks)
    for name, payload in boxes.children(first.moov):
        if name == b"trak":
            payload = next(left)
        elif name == b"mvhd":
            payload = _with_duration(payload, longest)
        elif name == b"udta" and merge_udta is not None:
            others = [
                (boxes.get(part.moov, b"udta") or b"", round(1000 * begin))
                for part, begin in zip(parts[1:], contents.starts[1:], strict=True)
            ]
            payload = merge_udta(payload, others)
        atoms.append((name, payload))
    return boxes.build_all(atoms)


def _join_traks(
    track: Track,
    pieces: list[tuple[_Chapter, int]],
    parts: list[_Chapter],
    starts: list[Fraction],
    places: list[int],
    movie_scale: int,
) -> tuple[bytes, int]:
    """Return a track of all chapters, and its duration in the movie's timescale."""
    samples = [part.samples[index] for part, index in pieces]
    offsets = [s.chunks + places[parts.index(p)] for (p, _), s in zip(pieces, samples, strict=True)]
    whole = starts[-1] + parts[-1].seconds
    if track.fourcc == "tmcd":
        # One time code counts on from the first picture to the last.
        samples, offsets = samples[:1], offsets[:1]
        durations = np.zeros(len(samples[0].sizes), np.int64)
        durations[-1:] = round(whole * track.timescale)
    else:
        durations = np.concatenate([s.durations for s in samples])
    if track.handler not in (_VIDEO, b"tmcd"):
        hidden = _ticks_cut_off(parts[0].traks[track.index], track.timescale, movie_scale)
        begins = [starts[parts.index(part)] * track.timescale + hidden for part, _ in pieces]
        durations = _aligned(
            [s.durations for s in samples],
            list(map(round, begins)),
            follows=track.handler == _SOUND,
        )
    ticks = int(durations.sum())
    if track.fourcc != "tmcd":
        # GoPro's fdsc says how long it lasts, and a duration of 0 for each of its samples.
        last, index = pieces[-1]
        end = starts[parts.index(last)] * track.timescale + last.tracks[index].duration
        ticks = max(ticks, round(end) if not last.damage else 0)
    movie_ticks = round(Fraction(ticks, track.timescale or 1) * movie_scale)

    def stbl(kind: bytes, payload: bytes) -> boxes.Box:
        return kind, _join_tables(payload, samples, durations, offsets)

    def elst(kind: bytes, payload: bytes) -> boxes.Box:
        return kind, _join_edits(payload, parts[0].traks[track.index], movie_ticks, pieces)

    payload = parts[0].traks[track.index]
    payload = boxes.edit(
        payload, (b"tkhd",), lambda kind, p: (kind, _with_duration(p, movie_ticks, at=20))
    )
    payload = boxes.edit(payload, (b"edts", b"elst"), elst)
    payload = boxes.edit(
        payload, (b"mdia", b"mdhd"), lambda kind, p: (kind, _with_duration(p, ticks))
    )
    return boxes.edit(payload, (b"mdia", b"minf", b"stbl"), stbl), movie_ticks


def _ticks_cut_off(trak: bytes, timescale: int, movie_scale: int) -> Fraction:
    """Return the ticks that a track's edit list cuts off, such as an encoder's priming.

    Negative where an empty edit delays the track.
    """
    later = Fraction(0)
    for duration, begin, _ in parse_edits(trak):
        if begin >= 0:
            return later + begin
        later -= Fraction(duration * timescale, movie_scale)
    return later


def _aligned(tables: list[Table], begins: list[int], *, follows: bool) -> Table:
    """Return durations of a track's samples that start each chapter's with its picture.

    The last sample of a chapter lasts until the next chapter begins: GoPro's telemetry, for
    example, claims a second more than it has. follows: the track is sound, which goes on without a
    gap where it is less than a packet off, as the camera cut it.
    """
    done: list[Table] = []
    at = 0
    for table, begin in zip(tables, begins, strict=True):
        off = at - begin
        if done and off and not (follows and abs(off) < max(1, int(done[-1][-1:].sum()))):
            for earlier in reversed(done):
                for i in range(len(earlier) - 1, -1, -1):
                    left = max(0, int(earlier[i]) - off)
                    off -= int(earlier[i]) - left
                    earlier[i] = left
                    if not off:
                        break
                if not off:
                    break
            at = begin + off
        done.append(table.copy())
        at += int(table.sum())
    result: Table = np.concatenate(done)
    return result


def _join_tables(
    stbl: bytes, samples: list[_SampleTables], durations: Table, offsets: list[Table]
) -> bytes:
    """Put the tables of all chapters into the first stbl; drop others that refer to samples."""
    sizes = np.concatenate([s.sizes for s in samples])
    per_chunk = np.concatenate([s.per_chunk for s in samples])
    entries = np.concatenate([s.entries for s in samples])
    chunks = np.concatenate(offsets)
    tables = [
        (b"stts", _packed_runs(durations)),
        (b"stsz", struct.pack(">3I", 0, 0, len(sizes)) + sizes.astype(">u4").tobytes()),
        (b"stsc", _chunk_runs(per_chunk, entries)),
        chunk_offset_box(chunks, wide=True),
    ]
    if any(s.shifts is not None for s in samples):
        zero = [np.zeros(len(s.sizes), np.int64) if s.shifts is None else s.shifts for s in samples]
        tables.append((b"ctts", _packed_runs(np.concatenate(zero), signed=True)))
    if any(s.sync is not None for s in samples):
        every = [np.ones(len(s.sizes), bool) if s.sync is None else s.sync for s in samples]
        numbers = np.flatnonzero(np.concatenate(every)) + 1
        tables.append(
            (b"stss", struct.pack(">2I", 0, len(numbers)) + numbers.astype(">u4").tobytes())
        )
    kinds = [s.kinds for s in samples if s.kinds is not None]
    if len(kinds) == len(samples):
        tables.append((b"sdtp", bytes(4) + np.concatenate(kinds).tobytes()))
    kept = [atom for atom in boxes.children(stbl) if atom[0] in (b"stsd", b"sgpd")]
    return boxes.build_all(kept + tables)


def _check_same_coding(first: _Chapter, part: _Chapter, index: int, other: int) -> None:
    a, b = (
        _description(boxes.get(chapter.traks[i], b"mdia", b"minf", b"stbl", b"stsd") or b"")
        for chapter, i in ((first, index), (part, other))
    )
    track = first.tracks[index]
    if a != b or track.timescale != part.tracks[other].timescale:
        raise InputError(
            f"{part.path.name} is coded otherwise than {first.path.name} ({track.fourcc}), so that "
            "they make no one file: use `keep_chapters=True`"
        )


def _description(stsd: bytes) -> bytes:
    """Return stsd without the bit rates, which differ from chapter to chapter."""
    result = bytearray(stsd)
    for name in (b"btrt", b"esds"):
        at = result.find(name)
        while at >= 0:
            if name == b"btrt":
                result[at + 4 : at + 16] = bytes(12)
            else:
                # ISO/IEC 14496-1, 7.2.6.6: DecoderConfigDescriptor, tag 4, behind its length the
                # object type, stream type, buffer size (3), highest and mean bit rate (4 each).
                tag = result.find(b"\x04", at + 8 + 5)
                if 0 < tag < at + 24:
                    tag += 1
                    while tag < len(result) and result[tag] & 0x80:
                        tag += 1
                    result[tag + 3 : tag + 14] = bytes(11)
            at = result.find(name, at + 4)
    return bytes(result)


def _join_edits(elst: bytes, trak: bytes, ticks: int, pieces: list[tuple[_Chapter, int]]) -> bytes:
    """Return the first chapter's edit list, its last edit extended over all chapters.

    ticks: the length of the whole track, for chapters without an edit list.
    """
    edits = parse_edits(trak)
    if not edits:
        return elst
    duration = edits[-1][0]
    for part, index in pieces[1:]:
        if boxes.get(part.traks[index], b"edts", b"elst") is None:
            duration = ticks
            break
        duration += sum(n for n, begin, _ in parse_edits(part.traks[index]) if begin >= 0)
    edits[-1] = (duration, *edits[-1][1:])
    wide = any(length >= 1 << 32 or abs(begin) >= 1 << 31 for length, begin, _ in edits)
    head = (b"\1" if wide else b"\0") + elst[1:4] + struct.pack(">I", len(edits))
    return head + b"".join(struct.pack(">QqI" if wide else ">IiI", *edit) for edit in edits)


def _note_own_boxes(first: _Chapter, part: _Chapter) -> list[str]:
    """Note a later chapter's own boxes that have no place in the joined file."""
    of_first = dict(parse_maker_boxes(first.moov))
    of_part = dict(parse_maker_boxes(part.moov))
    merged = {b"HMMT", b"free"}
    names = [
        kind.decode("latin-1")
        for kind, box in of_part.items()
        if kind not in merged and of_first.get(kind) != box
    ]
    if not names:
        return []
    return [
        f"{' '.join(names)} of {part.path.name}: the joined file has those of {first.path.name}"
    ]


def _note_timecode_gap(parts: list[_Chapter], part: _Chapter, starts: list[Fraction]) -> list[str]:
    """Note a chapter whose time code does not continue that of the previous chapter."""
    codes = [_timecode(chapter) for chapter in (parts[0], part)]
    if None in codes:
        return []
    (begin, rate), (own, _) = ((c[0], c[1]) for c in codes if c is not None)
    frames = sum(len(p.samples[p.video].sizes) for p in parts[: parts.index(part)])
    day = round(24 * 3600 * rate)
    off = (own - begin - frames) % max(day, 1)
    off = off - day if off > day // 2 else off
    if not off:
        return []
    way = "ahead of" if off > 0 else "behind"
    return [
        f"the time code of {part.path.name} is {abs(off)} frames {way} the recording's: it counts "
        "on from the first chapter"
    ]


def _timecode(part: _Chapter) -> tuple[int, float] | None:
    """Read (frame number, frames per second) of a chapter's first picture from its tmcd track."""
    for track, trak, samples in zip(part.tracks, part.traks, part.samples, strict=True):
        if track.fourcc != "tmcd" or not len(samples.sizes) or samples.sizes[0] != 4:
            continue
        # QuickTime file format, timecode sample description: flags, timescale, frame duration.
        stsd = boxes.get(trak, b"mdia", b"minf", b"stbl", b"stsd") or b""
        if len(stsd) < 8 + 16 + 17:
            return None
        scale, length = struct.unpack_from(">2I", stsd, 8 + 16 + 8)
        with part.path.open("rb") as file:
            file.seek(int(samples.chunks[0]))
            return struct.unpack(">I", file.read(4))[0], scale / max(length, 1)
    return None


# --- tables -------------------------------------------------------------------------------------


def _runs(box: bytes | None, count: int, *, signed: bool = False) -> Table:
    """Expand an stts or ctts to a value per sample; samples beyond it repeat the last value."""
    table = np.frombuffer(box or bytes(8), ">u4", offset=8)
    table = table[: len(table) // 2 * 2].reshape(-1, 2)
    numbers = table[:, 0].astype(np.int64)
    if numbers.sum() > count:
        numbers = np.minimum(numbers, np.maximum(count - (np.cumsum(numbers) - numbers), 0))
    kind = ">i4" if signed else ">u4"
    values = np.ascontiguousarray(table[:, 1]).view(kind).astype(np.int64)
    full = np.repeat(values, numbers)
    return np.pad(full, (0, count - len(full)), mode="edge" if len(full) else "constant")


def _packed_runs(values: Table, *, signed: bool = False) -> bytes:
    edges = np.flatnonzero(np.diff(values, prepend=values[:1] - 1)) if len(values) else values
    numbers = np.diff(edges, append=len(values))
    version = 1 if signed and len(values) and values.min() < 0 else 0
    kind = ">i4" if version else ">u4"
    table = np.stack(
        [numbers.astype(">u4").view(np.uint32), values[edges].astype(kind).view(np.uint32)], axis=1
    )
    return struct.pack(">2I", version << 24, len(edges)) + table.tobytes()


def _chunk_runs(per_chunk: Table, entries: Table) -> bytes:
    change = np.ones(len(per_chunk), bool)
    change[1:] = (np.diff(per_chunk) != 0) | (np.diff(entries) != 0)
    first = np.flatnonzero(change)
    table = np.stack([first + 1, per_chunk[first], entries[first]], axis=1)
    return struct.pack(">2I", 0, len(first)) + table.astype(">u4").tobytes()


def _with_duration(payload: bytes, ticks: int, *, at: int = 16) -> bytes:
    """Set the duration of an mvhd, mdhd or tkhd; at: its position in version 0.

    Before the duration stand creation and modification time and one or two 32-bit fields.
    """
    old = struct.unpack_from(">2Q" if payload[0] else ">2I", payload, 4)
    middle_at, middle = (20 if payload[0] else 12), at - 12
    end = middle_at + middle + (8 if payload[0] else 4)
    wide = max(*old, ticks) >= boxes.MAX_32
    head = (b"\1" if wide else b"\0") + payload[1:4]
    times = struct.pack(">2Q" if wide else ">2I", *old)
    duration = struct.pack(">Q" if wide else ">I", ticks)
    return head + times + payload[middle_at : middle_at + middle] + duration + payload[end:]
