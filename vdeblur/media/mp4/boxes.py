"""Boxes of ISO base media files (MP4, MOV): parse, build and edit them, and find them in files.

Box names are those of ISO/IEC 14496-12. Knows bytes and sizes only: nothing of the meaning of
tables (`tracks`), no codecs, no libav. Never holds `mdat` in memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from vdeblur.errors import InputError, OutputError

#: A box in memory: its type, such as `b"trak"`, and its payload.
Box = tuple[bytes, bytes]
#: Bytes, or a view of them, whose parts are no copies.
Data = TypeVar("Data", bytes, memoryview)

#: The largest value of a 32-bit field; as a duration it means "unknown".
MAX_32 = (1 << 32) - 1
#: 512 MiB hold the index of some 25 million samples; a larger `moov` is damage, not a film.
MAX_MOOV = 1 << 29

_CHUNK = 1 << 20
# More are damage: of a file, and of a box, which are held in memory.
_MAX_BOXES, _MAX_CHILDREN = 1 << 20, 1 << 16
# Major brands of HEIF and AVIF pictures (ISO/IEC 23008-12), which have `meta` in place of `moov`.
_PICTURE_BRANDS = {b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"}
_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"}
#: Boxes at the top level that a muxer writes anew, or that refer to samples by their places.
STRUCTURE = frozenset(
    b"ftyp styp moov mdat moof mfra sidx ssix prft emsg pdin meta free skip wide pnot".split()
)
_PADDING = (b"free", b"skip", b"wide")


class Extent(NamedTuple):
    """The place of a top-level box in its file, in bytes.

    Attributes:
        kind: The box type.
        start: Position of the header.
        header: Length of the header.
        end: Position behind the payload, not behind the end of the file.
        open_ended: Whether the size field is 0: the box reaches to the end of the file.
    """

    kind: bytes
    start: int
    header: int
    end: int
    open_ended: bool


# --- boxes in memory ----------------------------------------------------------------------------


def children(data: Data) -> list[tuple[bytes, Data]]:
    """Parse the boxes in a payload; QuickTime may end it with 32 zero bits.

    Payloads are of the type of `data`: those of a view of large boxes take no memory.

    Raises:
        ValueError: A box does not fit in the payload.
    """
    return [(kind, data[start:end]) for kind, start, end in _places(data)]


def of_kind(data: Data, kind: bytes) -> list[Data]:
    """Return the payloads of the boxes of a type; see `children`."""
    return [data[start:end] for name, start, end in _places(data) if name == kind]


def _places(data: bytes | memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box in a payload, and where its own payload begins and ends."""
    at = count = 0
    while at + 8 <= len(data):
        if count == _MAX_CHILDREN:
            raise ValueError(f"there are more than {_MAX_CHILDREN} boxes in one")
        size, kind = struct.unpack_from(">I4s", data, at)
        start = 8
        if size == 1 and at + 16 <= len(data):
            size, start = struct.unpack_from(">Q", data, at + 8)[0], 16
        size = size or len(data) - at
        if size < start or at + size > len(data):
            raise ValueError(f"box {type_name(kind)} of {size} bytes does not fit in its parent")
        yield kind, at + start, at + size
        at += size
        count += 1


def get(data: Data, *path: bytes) -> Data | None:
    """Return the payload of the first box at a path of types, or None.

    Raises:
        ValueError: A box along the path is damaged.
    """
    for name in path:
        # All are looked at, as damage behind the box counts; one is copied.
        found = [(start, end) for kind, start, end in _places(data) if kind == name]
        if not found:
            return None
        data = data[slice(*found[0])]
    return data


def edit(data: bytes, path: Sequence[bytes], change: Callable[[bytes, bytes], Box]) -> bytes:
    """Replace every box at a path of types.

    Args:
        data: The payload of the box that the path starts in.
        path: Types from the outermost box to the one to replace.
        change: Takes type and payload of a box; returns those of its replacement.

    Returns:
        The new payload.
    """
    view = memoryview(data)  # what stays is not copied one more time
    parts: list[bytes | memoryview] = []
    for kind, start, end in _places(data):
        payload: bytes | memoryview = view[start:end]
        if kind == path[0] and len(path) == 1:
            kind, payload = change(kind, data[start:end])
        elif kind == path[0]:
            payload = edit(data[start:end], path[1:], change)
        parts += (header(kind, len(payload)), payload)
    return b"".join(parts)


def header(kind: bytes, length: int) -> bytes:
    """Build the header of a box with `length` bytes of payload; its size has 64 bits if needed."""
    if length + 8 > MAX_32:
        return struct.pack(">I4sQ", 1, kind, length + 16)
    return struct.pack(">I4s", length + 8, kind)


def build(kind: bytes, payload: bytes | memoryview) -> bytes:
    """Build a box: header and payload."""
    return header(kind, len(payload)) + payload


def build_all(boxes: Sequence[tuple[bytes, bytes | memoryview]]) -> bytes:
    """Build boxes one after another, as the payload of their parent."""
    return b"".join(parts_of(boxes))


def parts_of(boxes: Sequence[tuple[bytes, bytes | memoryview]]) -> list[bytes | memoryview]:
    """Return boxes as headers and payloads, to be joined with others or written."""
    return [part for kind, payload in boxes for part in (header(kind, len(payload)), payload)]


def type_name(kind: bytes) -> str:
    """Return a box type as text; "©" starts those of QuickTime's user data."""
    return kind.decode("latin-1")


# --- boxes in files -----------------------------------------------------------------------------


def is_iso(path: str | Path) -> bool:
    """Return whether a file starts as ISO base media or QuickTime does; False without a file.

    A HEIF or AVIF picture does not count: it has no moov box and no tracks.

    Raises:
        InputError: The file cannot be read.
    """
    if not Path(path).is_file():
        return False
    with open_input(path) as file:
        head = file.read(12)
    return len(head) >= 8 and head[4:8] in _FIRST_BOXES and head[8:] not in _PICTURE_BRANDS


def moov_first(path: str | Path) -> bool:
    """Return whether `moov` precedes `mdat`: playing can start before the file is complete.

    Raises:
        InputError: The boxes before it are damaged.
    """
    if not is_iso(path):
        return False
    with open_input(path) as file:
        for box in top_level_boxes(file):
            if box.kind in (b"moov", b"mdat", b"moof"):
                return box.kind == b"moov"
    return False


def brand(path: str | Path) -> bytes:
    """Return the major brand of a file: b"qt  " for QuickTime, also without an `ftyp` box.

    Raises:
        InputError: The file cannot be read.
    """
    with open_input(path) as file:
        head = file.read(12)
    return head[8:12] if head[4:8] == b"ftyp" else b"qt  "


def missing_bytes(path: str | Path) -> int:
    """Return how many bytes the last top-level box claims behind the end of a cut-off file.

    Bytes that are no box are none that is cut off, and padding is no loss.

    Raises:
        OSError: The file cannot be read.
    """
    with _open(path) as file:
        length, missing = file_length(file), 0
        with suppress(ValueError):
            for box, claimed in _extents(file):
                missing = 0 if box.kind in _PADDING else max(0, claimed - length)
    return missing


def trailer(file: BinaryIO) -> tuple[int, int]:
    """Return the place and the number of the bytes behind the last box of a file; (…, 0) for none.

    Insta360 keeps its gyroscope there, Samsung the data of its gallery.

    Raises:
        ValueError: A box is damaged, and no complete `moov` precedes it.
    """
    end, seen_moov = 0, False
    for box in top_level_boxes(file):
        end, seen_moov = box.end, seen_moov or box.kind == b"moov"
    return (end, file_length(file) - end) if seen_moov else (end, 0)


def cut_torn_moof(path: str | Path) -> None:
    """Cut off the header of a last fragment that is not complete.

    libav does not open a file that ends within a `moof`, as happens on a full disk; it reads a file
    that ends within an `mdat` up to its end.
    """
    with Path(path).open("r+b") as file:
        kind, start, missing = _last_box(file)
        if not kind or (kind == b"moof" and missing):
            file.truncate(start)


def top_level_boxes(file: BinaryIO) -> Iterator[Extent]:
    """Yield the top-level boxes of a file, in file order.

    Raises:
        ValueError: A box is damaged, and no complete `moov` precedes it.
    """
    for box, _ in _extents(file):
        yield box


def _extents(file: BinaryIO) -> Iterator[tuple[Extent, int]]:
    """Yield the top-level boxes and where each claims to end; see `top_level_boxes`."""
    at, length, seen_moov = 0, file_length(file), False
    for _ in range(_MAX_BOXES):
        if at + 8 > length:
            return
        file.seek(at)
        head = file.read(16)
        size, kind = struct.unpack_from(">I4s", head)
        start = 8
        if size == 1 and len(head) == 16:
            size, start = struct.unpack_from(">Q", head, 8)[0], 16
        end = at + size if size else length
        known = kind in STRUCTURE or kind == b"uuid"
        if seen_moov and not known and (end > length or not _is_type(kind)):
            return  # what lies behind a complete file need not be boxes
        if end < at + start or (kind == b"moov" and end > length):
            if seen_moov:
                return
            raise ValueError(f"box {type_name(kind)!r} at byte {at} has a size of {size}")
        seen_moov |= kind == b"moov"
        yield Extent(kind, at, start, min(end, length), size == 0), end
        at = end
    raise ValueError(f"there are more than {_MAX_BOXES} boxes")


def _is_type(kind: bytes) -> bool:
    """Whether four bytes look like a type: printable, perhaps behind QuickTime's ©."""
    return all(32 <= byte < 127 for byte in kind.removeprefix(b"\xa9"))


def read_moov(file: BinaryIO) -> tuple[Extent, bytes]:
    """Read the `moov` of a file: its place and its payload.

    Raises:
        ValueError: There is none, or one of more than `MAX_MOOV` bytes.
    """
    for box in top_level_boxes(file):
        if box.kind == b"moov":
            size = box.end - box.start - box.header
            if size > MAX_MOOV:
                raise ValueError(f"moov has {size} bytes, more than any film needs")
            file.seek(box.start + box.header)
            return box, file.read(size)
    raise ValueError("there is no moov box")


def file_length(file: BinaryIO) -> int:
    """Return the length of an open file in bytes; moves its position to the end."""
    return file.seek(0, os.SEEK_END)


def read_blocks(file: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes from a position on, in blocks of at most 1 MiB.

    Raises:
        ValueError: The file ends before.
    """
    file.seek(offset)
    while size:
        block = file.read(min(size, _CHUNK))
        if not block:
            raise ValueError("the file ends before its samples")
        yield block
        size -= len(block)


def copy_bytes(source: BinaryIO, target: BinaryIO, offset: int, size: int) -> None:
    """Write `size` bytes of a source, from a position on, at the target's current position."""
    for block in read_blocks(source, offset, size):
        target.write(block)


def shift_bytes(file: BinaryIO, offset: int, size: int, by: int) -> None:
    """Move `size` bytes of a file, from a position on, towards its end by `by` bytes."""
    while size:
        length = min(size, _CHUNK)
        size -= length
        file.seek(offset + size)
        write_at(file, offset + size + by, file.read(length))


def write_at(file: BinaryIO, offset: int, data: bytes) -> None:
    """Write bytes at a position of a file."""
    file.seek(offset)
    file.write(data)


def free_box(size: int) -> bytes:
    """Build a `free` box of `size` bytes with its header: 0, or 8 and more."""
    return struct.pack(">I4s", size, b"free").ljust(size, b"\0") if size else b""


def _last_box(file: BinaryIO) -> tuple[bytes, int, int]:
    """(kind, start, bytes missing) of the last top-level box; its kind is b"" for less than a
    header's eight bytes. Bytes that are no box count as the end."""
    length, at, found = file_length(file), 0, (b"", 0, 0)
    while at + 8 <= length:
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        if size < 8 or not kind.isascii():
            return kind, at, 0  # to the end of the file, or not a box
        found = kind, at, max(0, at + size - length)
        at += size
    return (b"", at, 0) if at < length else found


# --- errors -------------------------------------------------------------------------------------


@contextmanager
def open_input(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, with the errors of `input_errors`.

    A `Joined` path (`vdeblur.media.joined_file`) opens as all of its chapters.
    """
    with input_errors(path), _open(path) as file:
        yield file


@contextmanager
def input_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of reading and of parsing a file into InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise InputError(f"{path} is damaged: {error}") from error


@contextmanager
def output_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of writing and of parsing a file into OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    except (ValueError, IndexError, struct.error) as error:
        raise OutputError(f"{path} is no sound mp4 or mov file: {error}") from error


def _open(path: str | Path) -> BinaryIO:
    return (path if isinstance(path, Path) else Path(path)).open("rb")
