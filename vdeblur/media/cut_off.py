"""What is missing at the end of a file that was cut off, by the sizes that its container states.

libav reads such a file up to its end, without an error. Knows bytes; knows no streams.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from vdeblur.media.mp4 import boxes

# Demuxers of containers that state their duration, and end without an error where they are cut off.
_STATE_DURATION = {"matroska", "webm", "avi", "flv"}
_TRUNCATED_SECONDS = 0.25  # less than stated: a frame or a packet of sound may be
_FLV_TAIL = 1 << 16  # bytes from the last packet of an FLV, in which another file would begin
_TS_SYNC = 0x47
_TS_SIZES = (188, 192, 204)  # ISO/IEC 13818-1; with a time (BDAV); with parity (DVB)
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675  # RFC 8794, RFC 9559


def end_notes(path: Path, demuxer: str, place: int, reached: float, stated: float) -> list[str]:
    """Return what is wrong with the end of a file that was read, a line each.

    Args:
        path: The file.
        demuxer: libav's name of its format.
        place: Of the last packet, in bytes; negative if unknown.
        reached: The last time that was read, in seconds.
        stated: The duration that the file states, in seconds; 0 if unknown, or not all was read.
    """
    notes = []
    missing = missing_end(path, demuxer)
    if missing:
        notes.append(f"the source is cut off: {missing}")
    elif _STATE_DURATION & set(demuxer.split(",")) and reached < stated - _TRUNCATED_SECONDS:
        notes.append(
            f"the source is cut off: it ends at {reached:.2f} s though it states {stated:.2f} s"
        )
    if demuxer == "flv" and has_another_flv(path, place):
        notes.append(
            f"another FLV file begins behind {reached:.2f} s, which libav does not read: "
            "restore the parts one by one"
        )
    return notes


def missing_end(path: Path, demuxer: str) -> str | None:
    """Return what is missing at the end of a file, in words; None if nothing is, or none can tell.

    Args:
        path: The file.
        demuxer: libav's name of its format.
    """
    names = set(demuxer.split(","))
    try:
        if "mov" in names:
            missing = boxes.missing_bytes(path)
            return f"{missing} bytes that its index names are not there" if missing else None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if "matroska" in names:
                missing = _matroska(file, size)
            elif "avi" in names:
                missing = _riff(file, size)
            elif "mpegts" in names:
                return _transport(file, size)
            elif "flv" in names:
                return _flash(file, size)
            else:
                return None
    except (OSError, ValueError):
        return None
    return f"{missing} bytes that its headers state are not there" if missing > 0 else None


def _matroska(file: BinaryIO, size: int) -> int:
    """Bytes that an element claims behind the end of the file."""
    header = _element(file)
    if header is None or header[0] != _EBML or header[1] is None:
        return 0
    file.seek(header[1], os.SEEK_CUR)
    segment = _element(file)
    if segment is None or segment[0] != _SEGMENT:
        return 0
    if segment[1] is not None:
        return file.tell() + segment[1] - size
    # Written by a live program: its elements one by one, those of a cluster of no size as well.
    while (element := _element(file)) is not None:
        kind, length = element
        if length is None:
            if kind != _CLUSTER:
                return 0
            continue
        if file.tell() + length > size:
            return file.tell() + length - size
        file.seek(length, os.SEEK_CUR)
    return 0


def _element(file: BinaryIO) -> tuple[int, int | None] | None:
    """Read the id and the size (None: unknown) of an element; None at the end of the file."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    kind = first + file.read(8 - first[0].bit_length())
    lead = file.read(1)
    if not lead or not lead[0]:
        return None
    bits = 7 * (9 - lead[0].bit_length())
    value = int.from_bytes(lead + file.read(8 - lead[0].bit_length()), "big") & ((1 << bits) - 1)
    return int.from_bytes(kind, "big"), None if value == (1 << bits) - 1 else value


def _riff(file: BinaryIO, size: int) -> int:
    """Bytes that the first chunk claims behind the end of the file."""
    head = file.read(8)
    stated = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or stated in (0, 0xFFFFFFFF):
        return 0
    return 8 + stated - size


def _transport(file: BinaryIO, size: int) -> str | None:
    """Tell whether the last packet is incomplete."""
    head = file.read(8 * max(_TS_SIZES))
    for length in _TS_SIZES:
        for begin in range(min(length, len(head))):
            if all(byte == _TS_SYNC for byte in head[begin::length]):
                # Those of 192 bytes have four before the sync byte.
                rest = (size - begin + (4 if length == 192 else 0)) % length
                return f"its last packet has {rest} of {length} bytes" if rest else None
    return None


def _flash(file: BinaryIO, size: int) -> str | None:
    """Tell whether the last tag is incomplete: its size stands behind it, too."""
    file.seek(max(0, size - 4))
    length = int.from_bytes(file.read(4), "big")
    if length >= 11 and size - 4 - length >= 9:
        file.seek(size - 4 - length + 1)
        if int.from_bytes(file.read(3), "big") + 11 == length:
            return None
    return "its last tag is incomplete"


def has_another_flv(path: Path, place: int) -> bool:
    """Tell whether another FLV file begins behind the last packet that was read of one.

    Args:
        path: The file.
        place: Of the last packet, in bytes; negative if unknown.
    """
    if place < 0:
        return False
    with path.open("rb") as file:
        file.seek(place)
        return b"FLV\x01" in file.read(_FLV_TAIL)
