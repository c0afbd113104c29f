"""PNG and JPEG files: the metadata that libav drops, copied from the source picture byte for byte.

EXIF (with its orientation), ICC profile, XMP, comments and resolution: JPEG APPn and COM segments
(ITU-T T.81, JFIF), PNG ancillary chunks (W3C PNG, section 11.3). Knows bytes only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from vdeblur.media.image_sequences import source_picture

_PNG = b"\x89PNG\r\n\x1a\n"
# Colour meaning is copied too: it describes the samples, which keep their code values.
_PNG_CHUNKS = {
    b"iCCP",
    b"sRGB",
    b"gAMA",
    b"cHRM",
    b"cICP",
    b"eXIf",
    b"pHYs",
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"tIME",
}


def copy_metadata(source: str, outputs: Iterable[Path]) -> None:
    """Copy the metadata of each output's source picture into it; formats that differ are left.

    Args:
        source: A picture, or the image2 pattern of the pictures.
        outputs: The written pictures; those of a pattern have the numbers of their sources.
    """
    for output in outputs:
        origin = source_picture(source, output)
        if origin is not None and origin.is_file():
            _copy_one(origin, output)


def _copy_one(source: Path, output: Path) -> None:
    old, new = source.read_bytes(), output.read_bytes()
    if old.startswith(_PNG) and new.startswith(_PNG):
        kept = [c for c in _png_chunks(old) if c[4:8] in _PNG_CHUNKS]
        ours = [c for c in _png_chunks(new) if c[4:8] not in _PNG_CHUNKS]
        # IHDR comes first, ancillary colour chunks before PLTE and IDAT.
        output.write_bytes(_PNG + ours[0] + b"".join(kept) + b"".join(ours[1:]))
    elif old.startswith(b"\xff\xd8") and new.startswith(b"\xff\xd8"):
        kept_segments = _jpeg_segments(old)
        ours_start = _jpeg_tables(new)
        output.write_bytes(b"\xff\xd8" + b"".join(kept_segments) + new[ours_start:])


def _png_chunks(data: bytes) -> list[bytes]:
    chunks, at = [], len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append(data[at : at + 12 + length])
        at += 12 + length
    return chunks


def _jpeg_segments(data: bytes) -> list[bytes]:
    """APPn and COM segments before the first table."""
    kept, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            break
        # Adobe's APP14 says how the components of the old picture were coded.
        if (0xE0 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return kept


def _jpeg_tables(data: bytes) -> int:
    """Offset of the first segment that is neither APPn nor COM."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            break
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return at
