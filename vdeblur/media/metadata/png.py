"""PNG files as chunks (W3C PNG, third edition). Knows bytes only, and raises nothing for them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes that compressed text and profiles of a file may grow to.
LONGEST_TEXT = 1 << 26
_MOST_CHUNKS = 1 << 18  # of a file: more are damage
_LONGEST_KEYWORD = 80  # with the zero behind it
_TEXTS = frozenset([b"tEXt", b"zTXt", b"iTXt"])


@dataclass(frozen=True)
class Chunk:
    """A chunk.

    Attributes:
        kind: Its four letters.
        data: Its data, without length and checksum; a view of the file where it comes from one.
    """

    kind: bytes
    data: bytes | memoryview

    def parts(self) -> tuple[bytes, bytes | memoryview, bytes]:
        """Return what stands in the file: length and kind, data, checksum."""
        head = struct.pack(">I", len(self.data)) + self.kind
        return head, self.data, struct.pack(">I", zlib.crc32(self.data, zlib.crc32(self.kind)))


def parse(data: bytes) -> tuple[list[Chunk], int | None]:
    """Read the chunks of a file.

    Returns:
        The chunks, and where the picture ends; None if the file is cut off.
    """
    chunks: list[Chunk] = []
    at, view = len(SIGNATURE), memoryview(data)
    while at + 12 <= len(data) and len(chunks) < _MOST_CHUNKS:
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            break
        chunks.append(Chunk(kind, view[at + 8 : at + 8 + length]))
        at += 12 + length
        if kind == b"IEND":
            return chunks, at
    return chunks, None


def join(chunks: Iterable[Chunk], behind: bytes | memoryview = b"") -> bytes:
    """Return a file of chunks, and what stands behind them."""
    parts = [part for chunk in chunks for part in chunk.parts()]
    return b"".join([SIGNATURE, *parts, behind])


def named(chunk: Chunk) -> tuple[bytes, memoryview]:
    """Return the keyword that a chunk begins with, and what follows it."""
    view = memoryview(chunk.data)
    keyword, _, _ = bytes(view[:_LONGEST_KEYWORD]).partition(b"\0")
    return keyword, view[len(keyword) + 1 :]


def inflate(data: bytes | memoryview, most: int = LONGEST_TEXT) -> bytes | None:
    """Inflate the compressed part of a chunk; None if it is damaged or longer than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, max(most, 1))
    except zlib.error:
        return None
    return out if stream.eof else None


def keyword_of(chunk: Chunk) -> str | None:
    """Return the keyword of a text chunk; None of another."""
    return named(chunk)[0].decode("latin-1") if chunk.kind in _TEXTS else None


def text_of(chunk: Chunk, most: int) -> bytes | None:
    """Return the text of a text chunk: UTF-8, or Latin-1 as it is.

    None if it is damaged, or compressed and longer than `most` bytes.
    """
    _, rest = named(chunk)
    if chunk.kind == b"tEXt":
        return bytes(rest)
    if chunk.kind == b"zTXt":
        return inflate(rest[1:], most)
    body = bytes(rest[2:]).split(b"\0", 2)
    if len(body) < 3:
        return None
    return inflate(body[2], most) if rest[0] else body[2]


def text_chunk(keyword: str, text: bytes) -> Chunk:
    """Return an iTXt chunk, uncompressed, of UTF-8 text."""
    return Chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text)
