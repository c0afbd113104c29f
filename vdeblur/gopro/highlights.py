"""Merge the highlights (HiLight tags) of a recording's chapters, with their new times.

A GoPro stores them in moov/udta: in HMMT, a count followed by that many times in milliseconds (all
cameras), and from HERO6 on also in GPMF, in the device named "Highlights". Both count from the
start of their own chapter. Knows boxes and GPMF's key-length-value form
(github.com/gopro/gpmf-parser); no files.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vdeblur.media.mp4 import boxes


def merge_highlights(first: bytes, later: Sequence[tuple[bytes, int]]) -> bytes:
    """Merge the user data of chapters.

    Args:
        first: The payload of the first chapter's udta, whose boxes are kept.
        later: (payload, start of the chapter in milliseconds) of the others; their highlights are
            added.

    Returns:
        The payload of the recording's udta.
    """
    atoms = []
    for kind, payload in boxes.children(first):
        if kind == b"HMMT":
            times = read_highlights(payload)
            for udta, begin in later:
                times += [begin + time for time in read_highlights(boxes.get(udta, b"HMMT") or b"")]
            payload = _hmmt(times, len(payload))
        elif kind == b"GPMF":
            others = [(boxes.get(udta, b"GPMF") or b"", begin) for udta, begin in later]
            payload = _gpmf(payload, others)
        atoms.append((kind, payload))
    return boxes.build_all(atoms)


def read_highlights(hmmt: bytes) -> list[int]:
    """Parse the times of an HMMT payload, in milliseconds."""
    if len(hmmt) < 4:
        return []
    count = min(struct.unpack_from(">I", hmmt)[0], len(hmmt) // 4 - 1)
    return list(struct.unpack_from(f">{count}I", hmmt, 4))


def _hmmt(times: list[int], length: int) -> bytes:
    """Build an HMMT payload of `length`, the camera's own, or longer if the times need it."""
    return (struct.pack(f">{1 + len(times)}I", len(times), *times)).ljust(length, b"\0")


# --- GPMF ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Item:
    """A GPMF key with its value: structures of `size` bytes of a type; type 0 holds items."""

    key: bytes
    kind: int
    size: int
    data: bytes
    items: tuple[_Item, ...] = ()


def _parse(data: bytes) -> tuple[list[_Item], int]:
    """Parse items; return them and their length in bytes, after which there is only padding."""
    items, at = [], 0
    while at + 8 <= len(data) and data[at : at + 4].strip(b"\0"):
        key, kind, size, repeat = struct.unpack_from(">4sBBH", data, at)
        length = size * repeat
        value = data[at + 8 : at + 8 + length]
        if len(value) < length:
            break
        inside = tuple(_parse(value)[0]) if kind == 0 else ()
        items.append(_Item(key, kind, size, value, inside))
        at += 8 + (length + 3 & ~3)
    return items, min(at, len(data))


def _write(item: _Item) -> bytes:
    data = b"".join(map(_write, item.items)) if item.kind == 0 else item.data
    size = 1 if item.kind == 0 else item.size
    if item.kind == 0 and len(data) > 0xFFFF:
        size = 4  # counted in 32-bit words: four times the range
    head = struct.pack(">4sBBH", item.key, item.kind, size, len(data) // max(size, 1))
    return head + data + bytes(-len(data) % 4)


def _gpmf(first: bytes, later: Sequence[tuple[bytes, int]]) -> bytes:
    items, end = _parse(first)
    for gpmf, begin in later:
        for device in _parse(gpmf)[0]:
            shifted = _shift(device, begin)
            if not _is_highlights(device) or not _records(device):
                continue
            place = next((n for n, item in enumerate(items) if _is_highlights(item)), None)
            if place is None:
                items.append(shifted)
            elif not _records(items[place]):
                items[place] = shifted
            else:
                items[place] = _add(items[place], _records(shifted))
            end = -1
    if end >= 0:
        return first  # nothing added: unchanged to the byte
    return b"".join(map(_write, items)).ljust(len(first), b"\0")


def _is_highlights(item: _Item) -> bool:
    names = [i.data.rstrip(b"\0") for i in item.items if i.key == b"DVNM"]
    return item.key == b"DEVC" and b"Highlights" in names


def _records(item: _Item) -> list[tuple[bytes, int, bytes]]:
    """Return (key, size, data) of the structures (GPMF type "?") in an item and its children."""
    found = [(item.key, item.size, item.data)] if item.kind == ord("?") else []
    return found + [record for inside in item.items for record in _records(inside)]


def _shift(item: _Item, begin: int) -> _Item:
    """Delay the highlights of a device by `begin` milliseconds.

    TYPE describes a structure; its leading 32-bit numbers are the start and end of a highlight.
    """
    types = next((i.data.rstrip(b"\0") for i in item.items if i.key == b"TYPE"), b"L")
    times = min(2, max(1, len(types) - len(types.lstrip(b"L"))))
    items = []
    for inside in item.items:
        if inside.kind == ord("?") and inside.size >= 4 * times:
            data = bytearray(inside.data)
            for at in range(0, len(data) - inside.size + 1, inside.size):
                for field in range(at, at + 4 * times, 4):
                    (time,) = struct.unpack_from(">I", data, field)
                    if time or field == at:
                        struct.pack_into(">I", data, field, min(time + begin, 0xFFFFFFFF))
            inside = replace(inside, data=bytes(data))
        items.append(_shift(inside, begin) if inside.kind == 0 else inside)
    return replace(item, items=tuple(items))


def _add(item: _Item, records: list[tuple[bytes, int, bytes]]) -> _Item:
    """Append records to those of the same key and size in an item."""
    items = []
    for inside in item.items:
        if inside.kind == ord("?"):
            more = [data for key, size, data in records if (key, size) == (inside.key, inside.size)]
            inside = replace(inside, data=inside.data + b"".join(more))
        items.append(_add(inside, records) if inside.kind == 0 else inside)
    return replace(item, items=tuple(items))
