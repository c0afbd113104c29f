"""AVI headers: a field that libav's muxer does not expose, and texts that its demuxer must not see.

Knows bytes only. Names follow Microsoft's AVISTREAMHEADER.
"""

from __future__ import annotations

import struct
from pathlib import Path

from vdeblur.media.mp4 import boxes

_HEADERS = 1 << 20  # hdrl is at the front and far smaller
_MOST_CHUNKS = 1 << 16  # before the pictures
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


def check_texts(path: Path) -> None:
    """Refuse an AVI of which a text claims more bytes than the file has: libav would take them all.

    Raises:
        InputError: It is damaged in this way, or cannot be read.
    """
    with boxes.open_input(path) as file:
        length = boxes.file_length(file)
        file.seek(0)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            return
        at = texts_end = 12
        for _ in range(_MOST_CHUNKS):
            file.seek(at)
            head = file.read(12)
            if len(head) < 8 or head[8:] == b"movi":
                return
            kind, size = struct.unpack_from("<4sI", head)
            end = at + 8 + size
            if length < end <= texts_end:
                raise ValueError(f"a text of {size} bytes is longer than the file")
            if kind == b"LIST" and head[8:] == b"INFO":
                texts_end = end
            at = at + 12 if kind == b"LIST" else end + size % 2
