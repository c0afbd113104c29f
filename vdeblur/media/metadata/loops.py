"""How often an animation plays: GIF's NETSCAPE2.0 block, APNG's acTL chunk. Knows bytes only."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_LOOPING = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


def plays_of(path: Path) -> int | None:
    """Return how often an animation plays, 0 for endlessly; None for other files.

    A GIF counts repetitions, so that one that states 2 plays three times, as browsers have it; one
    that states none plays once.
    """
    with path.open("rb") as file:
        head = file.read(8)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            return _plays_of_gif(file)
        if head == b"\x89PNG\r\n\x1a\n":
            return _plays_of_png(file)
    return None


def _plays_of_png(file: BinaryIO) -> int | None:
    """Read the chunks before the first picture."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            data = file.read(8)
            return int.from_bytes(data[4:], "big") if len(data) == 8 else None
        if kind == b"IDAT":
            break
        file.seek(length + 4, 1)
    return None


def _plays_of_gif(file: BinaryIO) -> int:
    """Read the blocks before the first picture (GIF89a, section 26)."""
    file.seek(10)
    flags = file.read(3)[:1] or b"\0"
    if flags[0] & 0x80:
        file.seek(3 * 2 ** (flags[0] % 8 + 1), 1)
    while file.read(1) == b"\x21":
        file.read(1)
        blocks = []
        while (size := file.read(1)) not in (b"", b"\0"):
            blocks.append(file.read(size[0]))
        if len(blocks) > 1 and blocks[0] in _LOOPING and len(blocks[1]) >= 3:
            repetitions = int.from_bytes(blocks[1][1:3], "little")
            return repetitions + 1 if repetitions else 0
    return 1
