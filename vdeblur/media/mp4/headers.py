"""Restore a camera's own MP4 headers in a finished output, where a muxer writes its own.

Frames, packets and times stay as the muxer wrote them. The camera's statements about itself and its
tracks (brand, user data, handler names, descriptions of copied tracks, the time code's track) come
from the source, byte for byte where possible. Box names are those of ISO/IEC 14496-12.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    LAST_STCO,
    by_kind,
    chunk_extents,
    get_trak,
    movie_timescale,
    parse_tracks,
    shift_chunks,
    timescale_and_duration,
)

_MEDIA_HEADERS = (b"gmhd", b"smhd", b"nmhd", b"sthd")


def restore_headers(source: Path, output: Path) -> None:
    """Restore the headers of a source in an output, in place.

    Args:
        source: A camera's file, or a `Joined` path of several.
        output: A complete file of libav's mov muxer, not yet under its final name.

    Raises:
        InputError: The source cannot be read.
        OutputError: The output cannot be read or written.
    """
    with boxes.open_input(source) as file:
        source_moov = boxes.read_moov(file)[1]
        source_tracks = parse_tracks(source_moov)
        brand = _top_level_box(file, b"ftyp")
        timecodes = {
            t.index: _samples(file, source_moov, t.index)
            for t in source_tracks
            if t.fourcc == "tmcd"
        }
    with boxes.output_errors(output), output.open("r+b") as out:
        box, moov = boxes.read_moov(out)
        output_tracks = parse_tracks(moov)
        source_by_kind = by_kind(source_tracks)
        models = {
            track.index: source_by_kind[kind]
            for kind, track in by_kind(output_tracks).items()
            if kind in source_by_kind
        }
        ids = {models[t.index].track_id: t.track_id for t in output_tracks if t.index in models}
        traks = []
        for track in output_tracks:
            trak = get_trak(moov, track.index)
            if track.index in models:
                other = models[track.index].index
                # A time code in another form (30 against 29.97 dropped) would need its own numbers.
                same_samples = other not in timecodes or timecodes[other] == _samples(
                    out, moov, track.index
                )
                model = get_trak(source_moov, other)
                trak = _with_headers(trak, model, ids, same_samples=same_samples)
            traks.append(trak)
        movie = _with_source_order(moov, source_moov, traks)
        body = _in_timescale(movie, movie_timescale(source_moov))
        new = boxes.build(b"moov", body)
        if box.end == boxes.file_length(out):
            boxes.write_at(out, box.start, new)
            out.truncate()
        elif not _fit(out, box, new):
            _make_room(out, box, body)
        _write_brand(out, brand)


def _fit(out: BinaryIO, box: boxes.Extent, new: bytes) -> bool:
    """Write a new box over another, with free space behind it; return False without room."""
    spare = box.end - box.start - len(new)
    if spare < 0 or 0 < spare < 8:
        return False
    boxes.write_at(out, box.start, new + boxes.free_box(spare))
    return True


def _make_room(out: BinaryIO, box: boxes.Extent, body: bytes) -> None:
    """Write a longer moov before the file's samples, which move accordingly."""
    length = boxes.file_length(out)
    wide = length + len(body) > LAST_STCO
    body = shift_chunks(body, box.end, 0, wide=wide)
    shift = len(boxes.build(b"moov", body)) - (box.end - box.start)
    boxes.shift_bytes(out, box.end, length - box.end, shift)
    boxes.write_at(
        out, box.start, boxes.build(b"moov", shift_chunks(body, box.end, shift, wide=wide))
    )


def _with_headers(
    trak: bytes, model: bytes, ids: Mapping[int, int], *, same_samples: bool
) -> bytes:
    """Return an output's trak with the headers of the source's trak, the model.

    ids: track_ID in the source → in the output. same_samples: the samples are the source's, so that
    the source's description fits them.
    """

    def stsd(kind: bytes, payload: bytes) -> boxes.Box:
        source = boxes.get(model, b"mdia", b"minf", b"stbl", b"stsd") or b""
        if (boxes.get(trak, b"mdia", b"hdlr") or b"")[8:12] == b"vide":
            # VisualSampleEntry: the compressor's name lies at 50 of the entry, 32 bytes long.
            return kind, payload[:58] + source[58:90].ljust(32, b"\0") + payload[90:]
        return kind, source if same_samples else payload

    def minf(kind: bytes, payload: bytes) -> boxes.Box:
        header = next(
            (
                atom
                for atom in boxes.children(boxes.get(model, b"mdia", b"minf") or b"")
                if atom[0] in _MEDIA_HEADERS
            ),
            None,
        )
        atoms = boxes.children(payload)
        if header is not None and same_samples:
            atoms = [header if name in _MEDIA_HEADERS else (name, p) for name, p in atoms]
        return kind, boxes.edit(boxes.build_all(atoms), (b"stbl", b"stsd"), stsd)

    def mdia(kind: bytes, payload: bytes) -> boxes.Box:
        header, hdlr = (boxes.get(model, b"mdia", name) for name in (b"mdhd", b"hdlr"))
        if header:
            payload = boxes.edit(payload, (b"mdhd",), lambda k, p: (k, _mdhd(p, header)))
        if hdlr:
            payload = boxes.edit(payload, (b"hdlr",), lambda k, _: (k, hdlr))
        return kind, boxes.edit(payload, (b"minf",), minf)

    head = boxes.get(model, b"tkhd")
    if head:
        trak = boxes.edit(trak, (b"tkhd",), lambda k, p: (k, _tkhd(p, head)))
    trak = boxes.edit(trak, (b"mdia",), mdia)
    refs = [
        (kind, struct.pack(f">{len(to)}I", *to))
        for kind, payload in boxes.children(boxes.get(model, b"tref") or b"")
        if (to := [ids[i] for (i,) in struct.iter_unpack(">I", payload) if i in ids])
    ]
    atoms = [atom for atom in boxes.children(trak) if atom[0] not in (b"tref", b"udta")]
    if refs:
        atoms.insert(1, (b"tref", boxes.build_all(refs)))
    own = boxes.get(model, b"udta")
    return boxes.build_all(atoms + ([] if own is None else [(b"udta", own)]))


def _with_source_order(moov: bytes, source_moov: bytes, traks: list[bytes]) -> bytes:
    """Order moov as the source does: its user data and unknown boxes, the output's tracks."""
    own = dict(boxes.children(moov))
    atoms: list[boxes.Box] = []
    for kind, payload in boxes.children(source_moov):
        if kind == b"trak":
            atoms += [(kind, trak) for trak in traks]
            traks = []
        elif kind == b"mvhd":
            atoms.append((kind, _mvhd(own[kind], payload)))
        elif kind != b"mvex":
            atoms.append((kind, payload))
    have = {kind for kind, _ in atoms}
    return boxes.build_all(atoms + [a for a in own.items() if a[0] not in have and a[0] != b"udta"])


def _tkhd(payload: bytes, model: bytes) -> bytes:
    """Return the source's header with the output's track_ID and duration."""
    layout = ">2Q2IQ" if payload[0] else ">5I"
    _, _, track_id, _, ticks = struct.unpack_from(layout, payload, 4)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes.MAX_32
    fields = struct.pack(">2Q2IQ" if wide else ">5I", created, modified, track_id, 0, ticks)
    rest = model[36:] if model[0] else model[24:]
    return (b"\1" if wide else b"\0") + model[1:4] + fields + rest


def _mdhd(payload: bytes, model: bytes) -> bytes:
    """The source's times of creation and language, the output's timescale and duration."""
    scale, ticks = timescale_and_duration(payload)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes.MAX_32
    fields = struct.pack(">2QIQ" if wide else ">4I", created, modified, scale, ticks)
    return (b"\1" if wide else b"\0") + model[1:4] + fields + model[-4:]


def _mvhd(payload: bytes, model: bytes) -> bytes:
    """As `_mdhd`, with the output's next track_ID."""
    scale, ticks = timescale_and_duration(payload)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes.MAX_32
    fields = struct.pack(">2QIQ" if wide else ">4I", created, modified, scale, ticks)
    rest = model[32:-4] if model[0] else model[20:-4]
    return (b"\1" if wide else b"\0") + model[1:4] + fields + rest + payload[-4:]


def _in_timescale(moov: bytes, scale: int) -> bytes:
    """Change the movie timescale of moov if every duration and edit is an integer in it."""
    factor = Fraction(scale, movie_timescale(moov))
    inexact = False

    def tick(value: int) -> int:
        nonlocal inexact
        inexact |= (value * factor).denominator != 1
        return int(value * factor)

    def header(at: int) -> Callable[[bytes, bytes], boxes.Box]:
        def change(kind: bytes, payload: bytes) -> boxes.Box:
            place, form = (at + 8, ">Q") if payload[0] else (at, ">I")
            (ticks,) = struct.unpack_from(form, payload, place)
            new = struct.pack(form, tick(ticks))
            return kind, payload[:place] + new + payload[place + len(new) :]

        return change

    def elst(kind: bytes, payload: bytes) -> boxes.Box:
        layout = ">QqI" if payload[0] else ">IiI"
        count = struct.unpack_from(">I", payload, 4)[0]
        rows = struct.iter_unpack(layout, payload[8 : 8 + count * struct.calcsize(layout)])
        edits = [(tick(length), begin, rate) for length, begin, rate in rows]
        return kind, payload[:8] + b"".join(struct.pack(layout, *edit) for edit in edits)

    def timescale(kind: bytes, payload: bytes) -> boxes.Box:
        place = 20 if payload[0] else 12
        return kind, payload[:place] + struct.pack(">I", scale) + payload[place + 4 :]

    if factor >= 1:
        return moov  # nothing is gained, and a finer timescale might overflow the fields
    new = boxes.edit(moov, (b"trak", b"tkhd"), header(20))
    new = boxes.edit(new, (b"trak", b"edts", b"elst"), elst)
    new = boxes.edit(boxes.edit(new, (b"mvhd",), header(16)), (b"mvhd",), timescale)
    return moov if inexact else new


# --- bytes in files -----------------------------------------------------------------------------


def _samples(file: BinaryIO, moov: bytes, index: int) -> bytes:
    """Return the samples of a small track."""
    chunks: NDArray[np.int64] = chunk_extents(file, moov, index)
    return b"".join(
        block
        for at, size in chunks.tolist()
        for block in boxes.read_blocks(file, at, min(size, 64))
    )


def _top_level_box(file: BinaryIO, kind: bytes) -> bytes:
    """Return the first top-level box of a kind; b"" without one."""
    for box in boxes.top_level_boxes(file):
        if box.kind == kind:
            return b"".join(boxes.read_blocks(file, box.start, min(box.end - box.start, 4096)))
    return b""


def _write_brand(out: BinaryIO, brand: bytes) -> None:
    """Write the source's ftyp over the output's, if that and a free box behind it have room."""
    found = list(boxes.top_level_boxes(out))
    if not brand or not found or found[0].kind != b"ftyp":
        return
    room = found[0].end
    for box in found[1:]:
        if box.kind != b"free":
            break
        room = box.end
    spare = room - len(brand)
    if spare == 0 or spare >= 8:
        boxes.write_at(out, 0, brand + boxes.free_box(spare))
