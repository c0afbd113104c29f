"""PNG files as chunks (W3C PNG, third edition). Knows bytes only, and raises nothing for them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes that compressed text and profiles of a file may grow to.
LONGEST_TEXT = 1 << 26
_TEXTS = frozenset([b"tEXt", b"zTXt", b"iTXt"])


@dataclass(frozen=True)
class Chunk:
    """A chunk.

    Attributes:
        kind: Its four letters.
        data: Its data, without length and checksum.
    """

    kind: bytes
    data: bytes

    def __bytes__(self) -> bytes:
        head = struct.pack(">I", len(self.data)) + self.kind
        return head + self.data + struct.pack(">I", zlib.crc32(self.kind + self.data))


def parse(data: bytes) -> tuple[list[Chunk], int | None]:
    """Read the chunks of a file.

    Returns:
        The chunks, and where the picture ends; None if the file is cut off.
    """
    chunks, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append(Chunk(kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
        if kind == b"IEND":
            return chunks, at
    return chunks, None


def join(chunks: list[Chunk]) -> bytes:
    """Return a file of chunks."""
    return SIGNATURE + b"".join(bytes(chunk) for chunk in chunks)


def inflate(data: bytes, most: int = LONGEST_TEXT) -> bytes | None:
    """Inflate the compressed part of a chunk; None if it is damaged or longer than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, max(most, 1))
    except zlib.error:
        return None
    return out if stream.eof else None


def keyword_of(chunk: Chunk) -> str | None:
    """Return the keyword of a text chunk; None of another."""
    return chunk.data.partition(b"\0")[0].decode("latin-1") if chunk.kind in _TEXTS else None


def text_of(chunk: Chunk, most: int) -> bytes | None:
    """Return the text of a text chunk: UTF-8, or Latin-1 as it is.

    None if it is damaged, or compressed and longer than `most` bytes.
    """
    _, _, rest = chunk.data.partition(b"\0")
    if chunk.kind == b"tEXt":
        return rest
    if chunk.kind == b"zTXt":
        return inflate(rest[1:], most)
    body = rest[2:].split(b"\0", 2)
    if len(body) < 3:
        return None
    return inflate(body[2], most) if rest[0] else body[2]


def text_chunk(keyword: str, text: bytes) -> Chunk:
    """Return an iTXt chunk, uncompressed, of UTF-8 text."""
    return Chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text)
