"""Set the field of AVI stream headers that libav's muxer does not expose to Python.

Knows bytes only. Names follow Microsoft's AVISTREAMHEADER.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADERS = 1 << 20  # hdrl is at the front and far smaller
_BY_FRAMES = {0x0055, 0x00FF, 0x2000}  # MP3, AAC and AC-3


def time_sound_by_frames(path: Path, packets: list[int]) -> None:
    """Declare that the MP3, AAC and AC-3 streams of an AVI are timed by frames.

    The muxer takes the block size of a copied stream for a constant number of bytes per sample, and
    every packet then reads back with time 0. FFmpeg's own program clears the block size of such
    streams before it muxes (ffmpeg_mux_init.c, streamcopy_init).

    Args:
        path: The file, changed in place.
        packets: Number of packets of each of these streams, in order.
    """
    with path.open("r+b") as file:
        head = file.read(_HEADERS)
        left, at = list(packets), head.find(b"strh")
        while at >= 0 and left:
            form = head.find(b"strf", at)
            (tag,) = struct.unpack_from("<H", head, form + 8)
            if head[at + 8 : at + 12] == b"auds" and tag in _BY_FRAMES:
                file.seek(at + 8 + 32)
                file.write(struct.pack("<I", left.pop(0)))  # dwLength
                file.seek(at + 8 + 44)
                file.write(struct.pack("<I", 0))  # dwSampleSize
            at = head.find(b"strh", form)
