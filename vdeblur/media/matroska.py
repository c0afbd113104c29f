"""Matroska and WebM files as libav can read them: without what it would hold several times.

libav holds an attached file three times, and loses its place in a header with a text of more than
16 MiB: it finds streams twice then. `LeanFile` shows it void elements in their place. Names and
numbers of elements are those of RFC 9559. Knows bytes only.
"""

from __future__ import annotations

import io
import itertools
import os
import secrets
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_SEEK_HEAD, _SEEK, _SEEK_POSITION = 0x114D9B74, 0x4DBB, 0x53AC
_ATTACHMENTS, _ATTACHED_FILE, _FILE_DATA, _FILE_TYPE = 0x1941A469, 0x61A7, 0x465C, 0x4660
_CODEC_PRIVATE = 0x63A2
# Info, Tracks and their entries, Chapters with editions, atoms and displays, Tags.
_MASTERS = frozenset(
    (0x1549A966, 0x1654AE6B, 0xAE, 0x1043A770, 0x45B9, 0xB6, 0x80, 0x1254C367, 0x7373, 0x67C8)
)
_ATTACHING = frozenset((_ATTACHMENTS, _ATTACHED_FILE))
_LONGEST_TEXT = 1 << 24  # bytes that libav reads (FFmpeg's matroskadec.c)
_LARGE = 1 << 20  # bytes of an attached file from which on libav does not get it
_LONGEST_HEAD = 1 << 16  # bytes of a SeekHead and of a media type
_MOST_ELEMENTS = 1 << 16
_DEEPEST = 16  # as deep as libav reads (EBML_MAX_DEPTH)
_TOKEN = 16
_BLOCK = 1 << 20


class _Element(NamedTuple):
    kind: int
    at: int
    begin: int
    end: int


class Attached(NamedTuple):
    """Where the data of an attached file lie."""

    offset: int
    size: int


class LeanFile(io.RawIOBase):
    """A file with void elements in the place of large attached files and of endless texts.

    Args:
        path: A Matroska or WebM file.

    Attributes:
        attached: Where the data of attached files lie, by what libav gets in their place.
        left_out: Texts that are too long for libav, in words.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attached: dict[bytes, Attached] = {}
        self.left_out: list[str] = []
        self._path, self._at, self._elements = path, 0, 0
        self._patches: list[tuple[int, bytes]] = []
        self._file: BinaryIO = path.open("rb")
        self._length = self._file.seek(0, os.SEEK_END)
        try:
            self._look()
        except BaseException:
            self._file.close()
            raise
        self._patches.sort()
        self._starts = [start for start, _ in self._patches]

    @property
    def is_needed(self) -> bool:
        """Whether it differs from the file on disk."""
        return bool(self._patches)

    def blocks(self, data: bytes) -> Iterator[bytes] | None:
        """Return an attached file in blocks; None for what is not in its place.

        Args:
            data: What libav got.
        """
        place = self.attached.get(data)
        return None if place is None else self._read_blocks(place)

    def _read_blocks(self, place: Attached) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            file.seek(place.offset)
            left = place.size
            while left and (block := file.read(min(left, _BLOCK))):
                left -= len(block)
                yield block

    # -- a file for libav ------------------------------------------------------------------------

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}
        self._at = max(0, base[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        view = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        count: int = self._file.readinto(view)  # type: ignore[attr-defined]
        begin, end = self._at, self._at + count
        for start, data in self._patches[max(0, bisect_right(self._starts, begin) - 1) :]:
            if start >= end:
                break
            first, last = max(start, begin), min(start + len(data), end)
            if first < last:
                view[first - begin : last - begin] = data[first - start : last - start]
        self._at = end
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    # -- what it holds ---------------------------------------------------------------------------

    def _look(self) -> None:
        """Find what libav is not to get, in what stands before the first cluster or is linked."""
        if self._file.seek(0) or self._file.read(4) != _MAGIC:
            return
        for top in self._children(0, self._length):
            if top.kind != _SEGMENT:
                continue
            linked: set[int] = set()
            seen: set[int] = set()
            for element in self._children(top.begin, top.end):
                if element.kind == _CLUSTER:
                    break
                seen.add(element.at)
                if element.kind == _SEEK_HEAD:
                    linked |= {top.begin + place for place in self._links(element)}
                self._lighten(element)
            for place in sorted(linked - seen):
                for element in itertools.islice(self._children(place, top.end), 1):
                    self._lighten(element)
            return

    def _links(self, head: _Element) -> Iterator[int]:
        """Yield the places that a SeekHead names, from the segment's begin."""
        if head.end - head.begin > _LONGEST_HEAD:
            return
        for entry in self._children(head.begin, head.end):
            if entry.kind == _SEEK:
                for part in self._children(entry.begin, entry.end):
                    if part.kind == _SEEK_POSITION and part.end - part.begin <= 8:
                        yield int.from_bytes(self._bytes(part), "big")

    def _lighten(self, element: _Element, depth: int = 0) -> None:
        """Replace what is too large within an element of the header."""
        least = _LARGE if element.kind in _ATTACHING else _LONGEST_TEXT
        masters = _MASTERS | _ATTACHING
        size = element.end - element.begin
        if element.kind not in masters or size <= least or depth > _DEEPEST:
            return
        kind = b""
        for child in self._children(element.begin, element.end):
            size = child.end - child.begin
            if child.kind == _FILE_TYPE and size <= _LONGEST_HEAD:
                kind = self._bytes(child)
            if child.kind in masters:
                self._lighten(child, depth + 1)
            elif child.kind == _FILE_DATA:
                continue
            elif size > _LONGEST_TEXT:
                self._patches.append((child.at, _void(child.end - child.at)))
                what = "codec header" if child.kind == _CODEC_PRIVATE else "text"
                self.left_out.append(f"a {what} of {size} bytes: longer than can be read")
        # A cover is a stream of one packet, which libav holds once.
        if element.kind == _ATTACHED_FILE and not kind.startswith(b"image/"):
            for child in self._children(element.begin, element.end):
                if child.kind == _FILE_DATA and child.end - child.begin > _LARGE:
                    self._hide(child)

    def _hide(self, data: _Element) -> None:
        token = secrets.token_bytes(_TOKEN)
        self.attached[token] = Attached(data.begin, data.end - data.begin)
        short = _FILE_DATA.to_bytes(2, "big") + bytes([0x80 | _TOKEN]) + token
        self._patches.append((data.at, short + _void(data.end - data.at - len(short))))

    def _children(self, at: int, end: int) -> Iterator[_Element]:
        """Yield the elements from a place on; one that does not fit ends them."""
        while at < end and self._elements < _MOST_ELEMENTS:
            self._elements += 1
            self._file.seek(at)
            head = self._file.read(12)
            kind, begin = _number(head, 0, marked=True)
            size, begin = _number(head, begin, marked=False)
            if kind is None or size is None:
                return
            begin += at
            if size < 0:  # unknown: as far as its parent, which only a segment or a cluster may be
                size = end - begin
                if kind not in (_SEGMENT, _CLUSTER):
                    return
            if begin + size > end and kind not in (_SEGMENT, _CLUSTER):
                return
            yield _Element(kind, at, begin, min(begin + size, end))
            at = begin + size

    def _bytes(self, element: _Element) -> bytes:
        self._file.seek(element.begin)
        return self._file.read(min(element.end - element.begin, _LONGEST_HEAD))


def lean_file(path: Path) -> LeanFile | None:
    """Return a file as libav can read it; None where the one on disk will do."""
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                return None
        lean = LeanFile(path)
    except OSError:
        return None  # its opening tells why
    if lean.is_needed:
        return lean
    lean.close()
    return None


def _number(data: bytes, at: int, *, marked: bool) -> tuple[int | None, int]:
    """Read a number of EBML (RFC 8794): an ID with its mark, or a size; -1 for an unknown size.

    Returns:
        It, or None for none, and the place behind it.
    """
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > (4 if marked else 8) or at + length > len(data):
        return None, at
    value = int.from_bytes(data[at : at + length], "big")
    if not marked:
        value ^= 1 << 7 * length
        if value == (1 << 7 * length) - 1:
            value = -1
    return value, at + length


def _void(size: int) -> bytes:
    """The header of a Void element of `size` bytes, 9 or more."""
    return b"\xec" + ((1 << 56) | (size - 9)).to_bytes(8, "big")
