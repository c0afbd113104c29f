"""JPEG files as segments (ITU-T T.81, annex B): where the picture ends, and what stands before it.

Knows bytes only; a length that cannot be right ends the reading and raises nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

SIGNATURE = b"\xff\xd8"
#: Markers: application segments from 0 to 15, and comments.
APP0, COM = 0xE0, 0xFE
#: The most bytes that a segment holds.
LONGEST = 65533
#: The most segments before a picture that are read: 4 GiB of metadata, if they are full.
MOST_SEGMENTS = 1 << 16

_SOS, _EOI = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOFn
_FRAME_OF_LS = 0xF7
_NEXT = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # the end of entropy-coded data
_NEXT_OF_LS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # ITU-T T.87, C.2.1: it stuffs a bit


@dataclass(frozen=True)
class Segment:
    """A segment before the first scan.

    Attributes:
        marker: Its second byte.
        data: What follows the length.
        at: Where the data lies in the file.
    """

    marker: int
    data: bytes
    at: int

    @property
    def is_metadata(self) -> bool:
        """True for application segments and comments."""
        return self.marker == COM or APP0 <= self.marker < APP0 + 16


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file.

    Attributes:
        segments: Those before the first scan, in order.
        scan: Where the first scan's marker lies.
        end: Where the picture ends, after its EOI marker; None if the file is cut off.
        components: Colors of a pixel: 1, 3 or 4; 0 if not stated.
        left_out: Segments beyond `MOST_SEGMENTS`.
    """

    segments: tuple[Segment, ...]
    scan: int
    end: int | None
    components: int
    left_out: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Jpeg:
        """Read the segments of a file."""
        segments: list[Segment] = []
        at, scan, components, left_out = 2, 0, 0, 0
        following = _NEXT
        while at + 2 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker == 0xFF:  # a fill byte
                at += 1
                continue
            if marker == _EOI:
                return cls(tuple(segments), scan or at, at + 2, components, left_out)
            if marker == 1 or 0xD0 <= marker <= 0xD8:  # without a length
                at += 2
                continue
            if at + 4 > len(data):
                break
            (length,) = struct.unpack_from(">H", data, at + 2)
            if length < 2 or at + 2 + length > len(data):
                break
            if not scan and marker != _SOS:
                if APP0 <= marker < APP0 + 16 and len(segments) >= MOST_SEGMENTS:
                    left_out += 1  # the tables of the picture may still follow
                else:
                    segments.append(Segment(marker, data[at + 4 : at + 2 + length], at + 4))
                if marker == _FRAME_OF_LS:
                    following = _NEXT_OF_LS
                if (marker in _FRAMES or marker == _FRAME_OF_LS) and length > 7:
                    components = data[at + 9]
            at += 2 + length
            if marker == _SOS:
                scan = scan or at - 2 - length
                found = following.search(data, at)
                if found is None:
                    break
                at = found.start()
        return cls(tuple(segments), scan or min(at, len(data)), None, components, left_out)


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment as bytes; `data` is at most `LONGEST` bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def parts_of(segments: Iterable[Segment]) -> list[bytes]:
    """Return headers and data of segments, to be joined."""
    parts = []
    for one in segments:
        parts += [struct.pack(">BBH", 0xFF, one.marker, len(one.data) + 2), one.data]
    return parts


def icc_segments(profile: bytes) -> list[bytes]:
    """Return an ICC profile as data of APP2 segments (ICC.1, annex B.4); none if it is too long."""
    room = LONGEST - 14
    parts = [profile[at : at + room] for at in range(0, len(profile), room)]
    if len(parts) > 255:
        return []
    return [
        b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part
        for number, part in enumerate(parts, 1)
    ]
