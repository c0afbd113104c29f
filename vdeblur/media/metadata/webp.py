"""WebP files as chunks (RFC 9649). Knows bytes only, and raises nothing for them."""

from __future__ import annotations

import struct

_FLAGS = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}
_ALPHA = 0x10


def is_webp(data: bytes) -> bool:
    """Tell whether a file begins as a WebP does."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def parse(data: bytes) -> tuple[list[tuple[bytes, bytes]], int | None]:
    """Read the chunks of a file.

    Returns:
        (four letters, data) of each, and where the picture ends; None if the file is cut off.
    """
    chunks: list[tuple[bytes, bytes]] = []
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    at = 12
    while at + 8 <= min(end, len(data)):
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            return chunks, None
        chunks.append((kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return chunks, end + end % 2 if end <= len(data) else None


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a file of chunks, in the order that WebP asks for, with the flags that they need.

    Args:
        chunks: Those of a file that libwebp wrote, and others for its metadata.
    """
    parts = dict(chunks)
    wanted = [kind for kind in _FLAGS if kind in parts]
    if wanted and b"VP8X" not in parts:
        header = _extended(parts)
        if header is None:
            wanted = []
            chunks = [(kind, data) for kind, data in chunks if kind not in _FLAGS]
        else:
            chunks = [(b"VP8X", header), *chunks]
    body = bytearray(b"WEBP")
    order = {b"VP8X": 0, b"ICCP": 1, b"EXIF": 3, b"XMP ": 4}
    for kind, data in sorted(chunks, key=lambda chunk: order.get(chunk[0], 2)):
        if kind == b"VP8X" and data:
            flags = data[0] & ~sum(_FLAGS.values()) | sum(_FLAGS[name] for name in wanted)
            data = bytes([flags]) + data[1:]
        body += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"".join([b"RIFF", struct.pack("<I", len(body)), body])


def _extended(parts: dict[bytes, bytes]) -> bytes | None:
    """Return a VP8X chunk for a file that has none; None if its picture is not understood."""
    if b"VP8L" in parts and len(parts[b"VP8L"]) >= 5:
        bits = int.from_bytes(parts[b"VP8L"][1:5], "little")
        width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
        flags = _ALPHA if bits >> 28 & 1 else 0
    elif b"VP8 " in parts and len(parts[b"VP8 "]) >= 10:
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", parts[b"VP8 "], 6))
        width, height, flags = width - 1, height - 1, _ALPHA if b"ALPH" in parts else 0
    else:
        return None
    return bytes([flags, 0, 0, 0]) + width.to_bytes(3, "little") + height.to_bytes(3, "little")
