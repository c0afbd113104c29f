"""Present pieces of several files as a single file, without a copy.

`Joined` works wherever the package takes a path (reading, grafting, verifying); other programs and
libraries see the first of its files. Knows nothing of the meaning of the bytes.
"""

from __future__ import annotations

import io
import os
import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from vdeblur.media.matroska import lean_file
from vdeblur.media.names import libav_name

if sys.platform == "win32":
    from pathlib import WindowsPath as _PlainPath
else:
    from pathlib import PosixPath as _PlainPath

_BLOCK = 1 << 18  # bytes read at once


@dataclass(frozen=True)
class Piece:
    """A run of bytes of the joined file: bytes in memory, or a chapter's whole file."""

    start: int
    length: int
    data: bytes | Path


@dataclass
class Contents:
    """The parts of a `Joined`.

    Attributes:
        pieces: Runs of bytes, without gaps.
        damage: Parts that cannot be read.
        notes: Further remarks for the user.
        starts: Times in seconds at which the chapters begin.
        chapters: The chapters' files.
    """

    pieces: list[Piece] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    starts: list[Fraction] = field(default_factory=list)
    chapters: list[Path] = field(default_factory=list)


class Joined(_PlainPath):
    """The path of the first of several files, which opens as all of them.

    As a path it names that first file: its folder, suffix, times on disk. Derived paths are plain
    paths. `vdeblur.media.mp4.join` creates it and sets `contents`.
    """

    contents: Contents

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Return a plain path; Python 3.12 and later derive paths by this method."""
        return Path(*segments)

    @property
    def chapters(self) -> list[Path]:
        """The chapters' files."""
        return self.contents.chapters

    @property
    def starts(self) -> list[Fraction]:
        """Times in seconds at which the chapters begin."""
        return self.contents.starts

    @property
    def damage(self) -> list[str]:
        """Parts of the chapters that cannot be read, as far as known."""
        return self.contents.damage

    @property
    def notes(self) -> list[str]:
        """Further remarks for the user."""
        return self.contents.notes

    def open(self, *arguments: Any, **options: Any) -> Any:
        """Open all chapters as a read-only binary file."""
        contents = getattr(self, "contents", None)
        if contents is None:  # a path derived from this one, before Python 3.12
            return super().open(*arguments, **options)
        return io.BufferedReader(_Reader(contents), _BLOCK)


class _Reader(io.RawIOBase):
    """The joined file; unreadable bytes (a bad sector) read as zeros, and are noted."""

    def __init__(self, contents: Contents) -> None:
        super().__init__()
        self._contents = contents
        self._starts = [piece.start for piece in contents.pieces]
        self._files: dict[Path, BinaryIO] = {}
        self._at = 0

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        last = self._contents.pieces[-1]
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: last.start + last.length}
        self._at = max(0, base[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase. Stops at the end of a piece."""
        view = memoryview(buffer).cast("B")
        piece = self._contents.pieces[bisect_right(self._starts, self._at) - 1]
        inside = self._at - piece.start
        count = min(len(view), piece.length - inside)
        if count <= 0:
            return 0
        if isinstance(piece.data, bytes):
            view[:count] = piece.data[inside : inside + count]
        else:
            self._read(piece.data, inside, view[:count])
        self._at += count
        return count

    def _read(self, path: Path, offset: int, view: memoryview) -> None:
        done = 0
        try:
            if path not in self._files:
                self._files[path] = path.open("rb", buffering=0)
            file = self._files[path]
            file.seek(offset)
            while done < len(view):
                count: int = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise OSError("it is shorter than it was")
                done += count
        except OSError as error:
            view[done:] = bytes(len(view) - done)
            text = f"{path.name} cannot be read everywhere ({error.strerror or error})"
            if text not in self._contents.damage:
                self._contents.damage.append(text)

    def close(self) -> None:
        """Close the chapters."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        super().close()


def for_libav(path: Path) -> Any:
    """Return an argument of av.open: the path's name, or an open file for the caller to close.

    That is a `LeanFile` for a Matroska with more than libav should get.
    """
    if isinstance(path, Joined):
        return path.open("rb")
    return lean_file(path) or libav_name(path)
