"""A finished output in the camera's own clothes: the headers that a muxer writes in its own way.

Frames, packets and times are the muxer's and stay. What the camera says of itself and of its tracks
(brand, user data, handler names, descriptions of copied tracks, the time code's track) is put back
from the source, byte for byte where it can be. Box names are those of ISO/IEC 14496-12.
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

_MEDIA_HEADERS = (b"gmhd", b"smhd", b"nmhd", b"sthd")


def dress(source: Path, output: Path) -> None:
    """Puts the camera's headers of source into output, a complete file of libav's mov muxer.

    Raises InputError or OutputError when one of the files cannot be read or written; output must
    not yet be under its final name.
    """
    with boxes._reading(source), boxes._open(source) as file:
        old = boxes._moov(file)[1]
        theirs = boxes._tracks(old)
        brand = _top_box(file, b"ftyp")
        timecodes = {t.index: _samples(file, old, t.index) for t in theirs if t.fourcc == "tmcd"}
    with boxes._writing(output), output.open("r+b") as out:
        box, moov = boxes._moov(out)
        ours = boxes._tracks(moov)
        pairs = _pairs(theirs, ours)
        ids = {theirs[other].track_id: ours[own].track_id for own, other in pairs.items()}
        traks = []
        for track in ours:
            trak = boxes._trak(moov, track.index)
            other = pairs.get(track.index)
            if other is not None:
                # A time code in another form (30 against 29.97 dropped) would need its own numbers.
                described = other not in timecodes or timecodes[other] == _samples(
                    out, moov, track.index
                )
                trak = _trak(trak, boxes._trak(old, other), ids, described=described)
            traks.append(trak)
        body = _in_timescale(_movie(moov, old, traks), boxes._movie_scale(old))
        new, fits = boxes._box(b"moov", body), True
        if box.end == boxes._length(out):
            boxes._write_at(out, box.start, new)
            out.truncate()
        else:
            fits = _fit(out, box, new)
    if not fits:
        _rewrite(output, body)
    with boxes._writing(output), output.open("r+b") as out:
        _write_brand(out, brand)


def _fit(out: BinaryIO, box: boxes._Extent, new: bytes) -> bool:
    """Writes new in place of a box, with free space behind it; False where there is no room."""
    spare = box.end - box.start - len(new)
    if spare < 0 or 0 < spare < 8:
        return False
    boxes._write_at(out, box.start, new + _free(spare))
    return True


def _rewrite(output: Path, body: bytes) -> None:
    """The file anew, with a longer moov in front of its samples, which move by what it grows."""
    beside = Path(f"{output}.graft")
    try:
        with boxes._writing(output), output.open("rb") as out, beside.open("wb") as fresh:
            box, length = boxes._moov(out)[0], boxes._length(out)
            wide = length + len(body) > boxes._LAST_STCO
            body = boxes._shift_chunks(body, box.end, 0, wide)
            shift = len(boxes._box(b"moov", body)) - (box.end - box.start)
            boxes._copy(out, fresh, 0, box.start)
            fresh.write(boxes._box(b"moov", boxes._shift_chunks(body, box.end, shift, wide)))
            boxes._copy(out, fresh, box.end, length - box.end)
        beside.replace(output)
    finally:
        beside.unlink(missing_ok=True)


def _pairs(theirs: list[boxes.Track], ours: list[boxes.Track]) -> dict[int, int]:
    """Index of an output's track → that of the source's, by handler, fourcc (video apart), rank."""

    def kinds(tracks: list[boxes.Track]) -> dict[tuple[bytes, str, int], int]:
        found: dict[tuple[bytes, str, int], int] = {}
        for track in tracks:
            fourcc = "" if track.handler == b"vide" else track.fourcc
            rank = sum((handler, name) == (track.handler, fourcc) for handler, name, _ in found)
            found[track.handler, fourcc, rank] = track.index
        return found

    others = kinds(theirs)
    return {own: others[kind] for kind, own in kinds(ours).items() if kind in others}


def _trak(trak: bytes, model: bytes, ids: Mapping[int, int], *, described: bool) -> bytes:
    """An output's trak with the headers of the source's.

    described: whether its samples are the source's, so that the source's description fits them.
    """

    def stsd(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        source = boxes._get(model, b"mdia", b"minf", b"stbl", b"stsd") or b""
        if (boxes._get(trak, b"mdia", b"hdlr") or b"")[8:12] == b"vide":
            # VisualSampleEntry: the compressor's name lies at 50 of the entry, 32 bytes long.
            return kind, payload[:58] + source[58:90].ljust(32, b"\0") + payload[90:]
        return kind, source if described else payload

    def minf(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        header = next(
            (
                atom
                for atom in boxes._atoms(boxes._get(model, b"mdia", b"minf") or b"")
                if atom[0] in _MEDIA_HEADERS
            ),
            None,
        )
        atoms = boxes._atoms(payload)
        if header is not None and described:
            atoms = [header if name in _MEDIA_HEADERS else (name, p) for name, p in atoms]
        return kind, boxes._edit(boxes._join(atoms), (b"stbl", b"stsd"), stsd)

    def mdia(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        header, hdlr = (boxes._get(model, b"mdia", name) for name in (b"mdhd", b"hdlr"))
        if header:
            payload = boxes._edit(payload, (b"mdhd",), lambda k, p: (k, _mdhd(p, header)))
        if hdlr:
            payload = boxes._edit(payload, (b"hdlr",), lambda k, _: (k, hdlr))
        return kind, boxes._edit(payload, (b"minf",), minf)

    head = boxes._get(model, b"tkhd")
    if head:
        trak = boxes._edit(trak, (b"tkhd",), lambda k, p: (k, _tkhd(p, head)))
    trak = boxes._edit(trak, (b"mdia",), mdia)
    refs = [
        (kind, struct.pack(f">{len(to)}I", *to))
        for kind, payload in boxes._atoms(boxes._get(model, b"tref") or b"")
        if (to := [ids[i] for (i,) in struct.iter_unpack(">I", payload) if i in ids])
    ]
    atoms = [atom for atom in boxes._atoms(trak) if atom[0] not in (b"tref", b"udta")]
    if refs:
        atoms.insert(1, (b"tref", boxes._join(refs)))
    own = boxes._get(model, b"udta")
    return boxes._join(atoms + ([] if own is None else [(b"udta", own)]))


def _movie(moov: bytes, old: bytes, traks: list[bytes]) -> bytes:
    """moov in the source's order of boxes: its user data and unknown boxes, the output's tracks."""
    ours = dict(boxes._atoms(moov))
    atoms: list[tuple[bytes, bytes]] = []
    for kind, payload in boxes._atoms(old):
        if kind == b"trak":
            atoms += [(kind, trak) for trak in traks]
            traks = []
        elif kind == b"mvhd":
            atoms.append((kind, _mvhd(ours[kind], payload)))
        elif kind != b"mvex":
            atoms.append((kind, payload))
    have = {kind for kind, _ in atoms}
    return boxes._join(atoms + [a for a in ours.items() if a[0] not in have and a[0] != b"udta"])


def _tkhd(payload: bytes, model: bytes) -> bytes:
    """The source's header with the output's track_ID and duration."""
    layout = ">2Q2IQ" if payload[0] else ">5I"
    _, _, track_id, _, ticks = struct.unpack_from(layout, payload, 4)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes._MAX_32
    fields = struct.pack(">2Q2IQ" if wide else ">5I", created, modified, track_id, 0, ticks)
    rest = model[36:] if model[0] else model[24:]
    return (b"\1" if wide else b"\0") + model[1:4] + fields + rest


def _mdhd(payload: bytes, model: bytes) -> bytes:
    """The source's times of creation and language, the output's timescale and duration."""
    scale, ticks = boxes._times(payload)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes._MAX_32
    fields = struct.pack(">2QIQ" if wide else ">4I", created, modified, scale, ticks)
    return (b"\1" if wide else b"\0") + model[1:4] + fields + model[-4:]


def _mvhd(payload: bytes, model: bytes) -> bytes:
    """As `_mdhd`, with the output's next track_ID."""
    scale, ticks = boxes._times(payload)
    created, modified = struct.unpack_from(">2Q" if model[0] else ">2I", model, 4)
    wide = max(created, modified, ticks) >= boxes._MAX_32
    fields = struct.pack(">2QIQ" if wide else ">4I", created, modified, scale, ticks)
    rest = model[32:-4] if model[0] else model[20:-4]
    return (b"\1" if wide else b"\0") + model[1:4] + fields + rest + payload[-4:]


def _in_timescale(moov: bytes, scale: int) -> bytes:
    """moov with another movie timescale, where every duration and edit is a whole number in it."""
    factor = Fraction(scale, boxes._movie_scale(moov))
    inexact = False

    def tick(value: int) -> int:
        nonlocal inexact
        inexact |= (value * factor).denominator != 1
        return int(value * factor)

    def header(at: int) -> Callable[[bytes, bytes], tuple[bytes, bytes]]:
        def change(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
            place, form = (at + 8, ">Q") if payload[0] else (at, ">I")
            (ticks,) = struct.unpack_from(form, payload, place)
            new = struct.pack(form, tick(ticks))
            return kind, payload[:place] + new + payload[place + len(new) :]

        return change

    def elst(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        layout = ">QqI" if payload[0] else ">IiI"
        count = struct.unpack_from(">I", payload, 4)[0]
        rows = struct.iter_unpack(layout, payload[8 : 8 + count * struct.calcsize(layout)])
        edits = [(tick(length), begin, rate) for length, begin, rate in rows]
        return kind, payload[:8] + b"".join(struct.pack(layout, *edit) for edit in edits)

    def timescale(kind: bytes, payload: bytes) -> tuple[bytes, bytes]:
        place = 20 if payload[0] else 12
        return kind, payload[:place] + struct.pack(">I", scale) + payload[place + 4 :]

    if factor >= 1:
        return moov  # nothing to win, and a finer one might not fit its fields
    new = boxes._edit(moov, (b"trak", b"tkhd"), header(20))
    new = boxes._edit(new, (b"trak", b"edts", b"elst"), elst)
    new = boxes._edit(boxes._edit(new, (b"mvhd",), header(16)), (b"mvhd",), timescale)
    return moov if inexact else new


# --- bytes in files -----------------------------------------------------------------------------


def _samples(file: BinaryIO, moov: bytes, index: int) -> bytes:
    """The samples of a small track."""
    chunks: NDArray[np.int64] = boxes._chunks(file, moov, index)
    return b"".join(
        block for at, size in chunks.tolist() for block in boxes._blocks(file, at, min(size, 64))
    )


def _top_box(file: BinaryIO, kind: bytes) -> bytes:
    """The first top-level box of a kind, b"" without one."""
    for box in boxes._top_level(file):
        if box.kind == kind:
            return b"".join(boxes._blocks(file, box.start, min(box.end - box.start, 4096)))
    return b""


def _free(size: int) -> bytes:
    return struct.pack(">I4s", size, b"free").ljust(size, b"\0") if size else b""


def _write_brand(out: BinaryIO, brand: bytes) -> None:
    """The source's ftyp in place of the output's, where it and a free box behind it have room."""
    found = list(boxes._top_level(out))
    if not brand or not found or found[0].kind != b"ftyp":
        return
    room = found[0].end
    for box in found[1:]:
        if box.kind != b"free":
            break
        room = box.end
    spare = room - len(brand)
    if spare == 0 or spare >= 8:
        boxes._write_at(out, 0, brand + _free(spare))
