"""EXIF data: the orientation of a picture, and what it is for players of films.

Knows bytes only (Exif 3.0, TIFF 6.0), and raises nothing for them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

_ORIENTATION = 0x0112
_SHORT = 3
_ONE = 1 << 16  # 16.16 fixed point
# How the stored rows and columns show: columns (a, b) and rows (c, d) of FFmpeg's display matrix.
_TURNS = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def orientation_of(exif: bytes | None) -> int:
    """Return the orientation, 1 (upright) to 8, that EXIF data (a TIFF file) states; else 1."""
    order = {b"II": "<", b"MM": ">"}.get((exif or b"")[:2])
    if exif is None or order is None or len(exif) < 8:
        return 1
    (at,) = struct.unpack_from(order + "I", exif, 4)
    if at + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == _ORIENTATION and kind == _SHORT:
            (value,) = struct.unpack_from(order + "H", exif, entry + 8)
            return int(value) if value in _TURNS else 1
    return 1


def exif_of(orientation: int) -> bytes:
    """Return EXIF data that states an orientation, and nothing else."""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, _ORIENTATION, _SHORT, 1, orientation, 0, 0)


def display_matrix(orientation: int) -> tuple[int, ...] | None:
    """Return the nine numbers of FFmpeg's AV_PKT_DATA_DISPLAYMATRIX; None for upright pictures."""
    if orientation == 1:
        return None
    a, b, c, d = _TURNS[orientation]
    return (a * _ONE, b * _ONE, 0, c * _ONE, d * _ONE, 0, 0, 0, 1 << 30)


def orientation_of_matrix(matrix: Sequence[int]) -> int | None:
    """Return the orientation that a display matrix is; None for turns that EXIF has no number for.

    Args:
        matrix: Nine numbers of FFmpeg's AV_PKT_DATA_DISPLAYMATRIX.
    """
    turn = tuple((n > 0) - (n < 0) for n in (*matrix[:2], *matrix[3:5]))
    exact = all(n in (0, max(map(abs, matrix[:5])), -max(map(abs, matrix[:5]))) for n in matrix[:5])
    return next((n for n, known in _TURNS.items() if known == turn and exact), None)
