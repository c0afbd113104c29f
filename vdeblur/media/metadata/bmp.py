"""BMP files: what their header says beside the coding. Knows bytes only.

libav writes the header of Windows 3, which has no alpha, no color space and no profile (Windows
GDI, BITMAPV5HEADER).
"""

from __future__ import annotations

import struct

_FILE = 14  # bytes of the header of the file; that of the picture follows
_SHORT, _V4, _V5 = 40, 108, 124
_PROFILES = (b"DEBM", b"KNIL")  # embedded, and the name of a file
_SRGB = b"BGRs"
_MASKS = (0xFF0000, 0xFF00, 0xFF)


def is_bmp(data: bytes) -> bool:
    """Tell whether a file begins as a BMP with a header of Windows 3 or later does."""
    return data[:2] == b"BM" and len(data) >= _FILE + _SHORT and _size(data) >= _SHORT


def _size(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, _FILE)[0])


def density_of(data: bytes) -> tuple[int, int] | None:
    """Return the pixels across and down a meter; None if they are not stated."""
    across, down = struct.unpack_from("<ii", data, _FILE + 24)
    return (across, down) if across > 0 and down > 0 else None


def profile_of(data: bytes) -> bytes:
    """Return the ICC profile; empty if there is none."""
    if _size(data) < _V5 or len(data) < _FILE + _V5 or _space(data) not in _PROFILES:
        return b""
    at, length = struct.unpack_from("<II", data, _FILE + 112)
    return data[_FILE + at : _FILE + at + length]


def _space(data: bytes) -> bytes:
    return data[_FILE + 56 : _FILE + 60]


def with_facts(
    output: bytes, *, density: tuple[int, int] | None, profile: bytes, source: bytes = b""
) -> bytes:
    """Return a BMP with a resolution, a profile, and the alpha and color space of another BMP.

    Args:
        output: As libav writes it.
        density: Pixels across and down a meter.
        profile: An ICC profile; may be empty.
        source: The other BMP, if there is one.
    """
    head = bytearray(output[_FILE : _FILE + _SHORT])
    if density is not None:
        struct.pack_into("<ii", head, 24, *(min(n, (1 << 31) - 1) for n in density))
    (begin,) = struct.unpack_from("<I", output, 10)
    depth, coding = struct.unpack_from("<HI", head, 14)
    long = len(source) >= _FILE + _V4 and _size(source) >= _V4
    if depth not in (24, 32) or coding or not (long or profile):
        return output[:_FILE] + bytes(head) + output[_FILE + _SHORT :]
    pixels = output[begin:]
    space, details = _SRGB, bytes(_V5 - 60)
    if long:
        space, details = _space(source), source[_FILE + 60 : _FILE + _V4].ljust(len(details), b"\0")
        if _size(source) >= _V5:
            details = source[_FILE + 60 : _FILE + 112].ljust(len(details), b"\0")
    if space in _PROFILES and not profile:
        space = _SRGB
    elif profile:
        space = space if space in _PROFILES else _PROFILES[0]
        details = details[:52] + struct.pack("<III", _V5 + len(pixels), len(profile), 0)
    struct.pack_into("<I", head, 0, _V5)
    masks = (0, 0, 0, 0)
    if depth == 32:
        struct.pack_into("<I", head, 16, 3)  # the masks say which bits are which color
        alpha = struct.unpack_from("<I", source, _FILE + 52)[0] if long else 0
        masks = (*_MASKS, 0xFF000000 if alpha else 0)
    header = bytes(head) + struct.pack("<4I", *masks) + space + details
    size = _FILE + _V5 + len(pixels) + len(profile)
    return struct.pack("<2sIII", b"BM", size, 0, _FILE + _V5) + header + pixels + profile
