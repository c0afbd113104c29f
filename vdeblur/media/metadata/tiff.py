"""TIFF files and EXIF data, which is one: their tags (TIFF 6.0, Exif 3.0).

Knows bytes only. A file that is damaged has no tags here.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Union

import numpy as np

ICC, XMP, IPTC, PHOTOSHOP = 34675, 700, 33723, 34377
_EXTRA_SAMPLES, _SAMPLES, _BITS, _TRANSFER = 338, 277, 258, 301
_RESOLUTION = (282, 283, 296)
# Tags whose value is the place of another directory: EXIF, GPS, interoperability.
_DIRECTORIES = (34665, 34853, 40965)
# Bytes of a value, and of the parts of it that have a byte order, by type.
_TYPES = {
    1: (1, 1), 2: (1, 1), 3: (2, 2), 4: (4, 4), 5: (8, 4), 6: (1, 1),
    7: (1, 1), 8: (2, 2), 9: (4, 4), 10: (8, 4), 11: (4, 4), 12: (8, 8),
    129: (1, 1),  # UTF-8, Exif 3.0
}  # fmt: skip
# Tags that say how the samples are coded, which the coder of the output says of its own.
# fmt: off
_CODING = frozenset({
    254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284, 288,
    289, 290, 291, 292, 293, 297, 317, 320, 321, 322, 323, 324, 325, 326, 327, 328, 330, 332,
    333, 334, 336, 337, 338, 339, 340, 341, 342, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521,
    529, 530, 531, 532, 37724, 50215, 50216, 50255,
})
# fmt: on


class Value(NamedTuple):
    """The value of a tag.

    Attributes:
        kind: Number of its type.
        data: Its bytes, in the byte order "big".
    """

    kind: int
    data: bytes


Directory = dict[int, Union[Value, "Directory"]]


def is_tiff(data: bytes) -> bool:
    """Tell whether a file begins as a TIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*")


def parse(data: bytes) -> Directory:
    """Return the tags of the first directory of a TIFF file; none of a damaged one."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return {}
    (at,) = struct.unpack_from(order + "I", data, 4)
    return _Parser(data, order).directory(at)


class _Parser:
    """Reads directories, each once: entries may point anywhere, and many at the same place."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data = data
        self._order = order
        self._seen: set[int] = set()
        # Values may share bytes, as both resolutions do; not all of them everything.
        self._room = 2 * len(data)

    def directory(self, at: int) -> Directory:
        """Return the tags of the directory at an offset, with those that it points at."""
        data, found = self._data, Directory()
        if at + 2 > len(data) or at in self._seen or len(self._seen) > len(_DIRECTORIES):
            return found
        self._seen.add(at)
        (count,) = struct.unpack_from(self._order + "H", data, at)
        for entry in range(at + 2, min(at + 2 + 12 * count, len(data) - 11), 12):
            tag, kind, number, place = struct.unpack_from(self._order + "HHII", data, entry)
            if tag in _DIRECTORIES:
                if tag not in found:
                    found[tag] = self.directory(place)
            elif kind in _TYPES:
                size, part = _TYPES[kind]
                length = size * number
                begin = entry + 8 if length <= 4 else place
                if 0 < length <= min(len(data) - begin, self._room):
                    self._room -= length
                    value = data[begin : begin + length]
                    found[tag] = Value(kind, _swapped(value, part) if self._order == "<" else value)
        return found


def _swapped(data: bytes, part: int) -> bytes:
    numbers = np.frombuffer(data, f"u{part}")
    return numbers.byteswap().tobytes()


def build(tags: Directory, order: str = ">", at: int = 0) -> bytes:
    """Return a directory as it stands at an offset of a file.

    Args:
        tags: Of the directory.
        order: "<" or ">" of `struct`.
        at: The offset, which is even.
    """
    head, behind = struct.pack(order + "H", len(tags)), b""
    start = at + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        if isinstance(value, dict):
            head += struct.pack(order + "HHII", tag, 4, 1, start + len(behind))
            behind += build(value, order, start + len(behind))
        else:
            size, part = _TYPES[value.kind]
            data = _swapped(value.data, part) if order == "<" else value.data
            place = data.ljust(4, b"\0")
            if len(data) > 4:
                place = struct.pack(order + "I", start + len(behind))
                behind += data
            head += struct.pack(order + "HHI", tag, value.kind, len(data) // size) + place
        behind += b"\0" * (len(behind) % 2)
    return head + bytes(4) + behind


def exif_of(tags: Directory) -> bytes:
    """Return EXIF data, a TIFF file of its own, of the tags that are not of the coding."""
    apart = _CODING | {ICC, XMP, IPTC, PHOTOSHOP, _TRANSFER}
    kept = {tag: value for tag, value in tags.items() if tag not in apart}
    telling = [tag for tag in kept if tag not in _RESOLUTION]
    return struct.pack(">2sHI", b"MM", 42, 8) + build(kept, ">", 8) if telling else b""


def bytes_of(tags: Directory, tag: int) -> bytes:
    """Return the bytes of a tag; none if there is no such tag."""
    value = tags.get(tag)
    return value.data if isinstance(value, Value) else b""


def with_tags(output: bytes, tags: Directory) -> bytes:
    """Return a TIFF file with more tags, which replace its own except those of its coding.

    The alpha of a source with as many samples stays what it was: multiplied into the colors or not.

    Args:
        output: The file.
        tags: Those of another file.
    """
    own = parse(output)
    if not own:
        return output
    own.pop(ICC, None)  # libav's coder writes the source's, too
    if own.get(_SAMPLES) != tags.get(_SAMPLES):
        tags = {tag: value for tag, value in tags.items() if tag != _EXTRA_SAMPLES}
    if own.get(_BITS) != tags.get(_BITS):  # the curve has an entry for each value of a sample
        tags = {tag: value for tag, value in tags.items() if tag != _TRANSFER}
    kept = {
        tag: value for tag, value in tags.items() if tag not in _CODING or tag == _EXTRA_SAMPLES
    }
    order = "<" if output[:2] == b"II" else ">"
    output += b"\0" * (len(output) % 2)
    head = output[:4] + struct.pack(order + "I", len(output))
    return head + output[8:] + build(own | kept, order, len(output))


def components(output: bytes) -> int:
    """Return the colors of a pixel of a TIFF file, without alpha: 1 or 3."""
    value = parse(output).get(_SAMPLES)
    return 3 if isinstance(value, Value) and int.from_bytes(value.data, "big") > 2 else 1


def density_of(tags: Directory) -> tuple[int, int] | None:
    """Return the pixels across and down a meter; None if the tags do not say."""
    unit = {b"\0\2": 1 / 0.0254, b"\0\3": 100.0}.get(bytes_of(tags, 296))
    values = [bytes_of(tags, tag) for tag in _RESOLUTION[:2]]
    if unit is None or any(len(value) != 8 for value in values):
        return None
    (a, b), (c, d) = (struct.unpack(">II", value) for value in values)
    if not (b and d):
        return None
    density = round(a / b * unit), round(c / d * unit)
    return density if max(density) < 1 << 31 else None  # a PNG's largest number


def density_tags(density: tuple[int, int]) -> Directory:
    """Return the tags of a resolution.

    Args:
        density: Pixels across and down a meter.
    """
    across, down = (Value(5, struct.pack(">II", n, 100)) for n in density)
    return {282: across, 283: down, 296: Value(3, b"\0\3")}  # a centimeter
