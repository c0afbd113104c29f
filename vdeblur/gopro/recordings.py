"""Group files into recordings by the names that GoPro cameras give them.

Knows names only, not the contents of files. After GoPro's "Camera File Naming Convention":

    HERO6 on, MAX   GX010042.MP4, GX020042.MP4 …   H: AVC, X: HEVC, L: low resolution, S: 360°
    loops           GXAA0001.MP4, GXAA0002.MP4 …   the letters name the loop, the number the part
    HERO2 to 5      GOPR0042.MP4, GP010042.MP4 …
    loops of those  G0010042.MP4, G0010043.MP4 …   the first number names the loop
    Fusion          GPFR0042.MP4, GF010042.MP4 …   front; GPBK0042.MP4, GB010042.MP4 … back
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vdeblur.errors import InputError
from vdeblur.media.names import check_source

#: Ends the name of a restored copy; such files are not footage.
SUFFIX = "_deblurred"

_NEW = re.compile(r"G([HXLS])(\d\d)(\d{4})", re.IGNORECASE)
_LOOP = re.compile(r"G([HXLS])([A-Z]{2})(\d{4})", re.IGNORECASE)
_FIRST = re.compile(r"(GOPR|GPFR|GPBK)(\d{4})", re.IGNORECASE)
_LATER = re.compile(r"G([PFB])(\d\d)(\d{4})", re.IGNORECASE)
_OLD_LOOP = re.compile(r"G(\d{3})(\d{4})", re.IGNORECASE)
_FIRST_OF = {"P": "GOPR", "F": "GPFR", "B": "GPBK"}
_SUFFIXES = {".mp4", ".360"}


@dataclass(frozen=True)
class Name:
    """A parsed file name.

    Attributes:
        recording: Identifies the recording; equal for its chapters.
        part: Number of the chapter.
        loop: Whether the camera records in a loop: it numbers parts continuously through the card,
            and overwrites the oldest.
        first: Number of a recording's first chapter.
    """

    recording: tuple[str, ...]
    part: int
    loop: bool = False
    first: int = 1

    def file(self, part: int) -> str:
        """Return the name of another part, without its extension."""
        kind, *rest = self.recording
        if kind == "new":
            return f"G{rest[0]}{part:02}{rest[1]}"
        if kind == "loop":
            return f"G{rest[0]}{rest[1]}{part:04}"
        if kind == "old loop":
            return f"G{rest[0]}{part:04}"
        return f"G{rest[0]}{part:02}{rest[1]}" if part else f"{_FIRST_OF[rest[0]]}{rest[1]}"


@dataclass(frozen=True)
class Recording:
    """A recording.

    Attributes:
        chapters: Its files, in order.
        missing: Names of chapters that are absent, by the numbers of the others.
    """

    chapters: tuple[Path, ...]
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its first chapter, without its extension."""
        return self.chapters[0].stem


def read_name(path: Path) -> Name | None:
    """Parse a file name; None for a photo, a thumbnail, a proxy, or a name unknown to GoPros."""
    if path.suffix.lower() not in _SUFFIXES:
        return None  # .JPG and .GPR, .THM, .LRV, .WAV
    stem = path.stem
    if found := _NEW.fullmatch(stem):
        kind, part, number = found.groups()
        return Name(("new", kind.upper(), number), int(part))
    if found := _LOOP.fullmatch(stem):
        kind, loop, number = found.groups()
        return Name(("loop", kind.upper(), loop.upper()), int(number), loop=True)
    if found := _FIRST.fullmatch(stem):
        kind = {first: k for k, first in _FIRST_OF.items()}[found[1].upper()]
        return Name(("old", kind, found[2]), 0, first=0)
    if found := _LATER.fullmatch(stem):
        return Name(("old", found[1].upper(), found[3]), int(found[2]), first=0)
    if found := _OLD_LOOP.fullmatch(stem):
        return Name(("old loop", found[1]), int(found[2]), loop=True)
    return None


def recordings(files: Iterable[Path]) -> list[Recording]:
    """Group files into recordings, in the order of their names; other files are left out."""
    groups: dict[tuple[Path, tuple[str, ...]], list[tuple[int, Path, Name]]] = {}
    for file in sorted(files):
        name = read_name(file)
        if name is not None:
            groups.setdefault((file.parent, name.recording), []).append((name.part, file, name))
    found = []
    for members in groups.values():
        members.sort(key=lambda member: member[0])
        # Numbers of a loop are consecutive; a gap begins another loop.
        runs = [[members[0]]]
        for before, member in itertools.pairwise(members):
            if member[2].loop and member[0] != before[0] + 1:
                runs.append([])
            runs[-1].append(member)
        for run in runs:
            name, have = run[0][2], {part for part, _, _ in run}
            expected = range(run[0][0] if name.loop else name.first, max(have) + 1)
            suffix = run[0][1].suffix
            missing = tuple(name.file(part) + suffix for part in expected if part not in have)
            found.append(Recording(tuple(file for _, file, _ in run), missing))
    return sorted(found, key=lambda recording: recording.chapters[0])


def recording_of(file: Path) -> Recording:
    """Return the recording of a chapter, with the other chapters in its folder.

    A file without a GoPro name is a recording by itself.

    Raises:
        InputError: The file does not exist.
    """
    if not file.exists():
        raise InputError(f"{file} does not exist: check the path")
    if read_name(file) is None:
        return Recording((file,))
    beside = {other for other in file.parent.iterdir() if other.suffix == file.suffix}
    for recording in recordings(beside | {file}):
        if any(chapter.name == file.name for chapter in recording.chapters):
            return recording
    return Recording((file,))


def find_recordings(inputs: Iterable[str | Path]) -> list[Recording]:
    """Find the recordings of files and of folders, each of them once.

    Args:
        inputs: Chapters, and folders (such as a card), which are searched with their subfolders.

    Raises:
        InputError: A path does not exist or is no file, or a folder has no footage.
    """
    found: dict[Path, Recording] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            next(path.iterdir(), None)  # rglob passes over what may not be read
            files = [f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".")]
            card = recordings(files)
            if not card:
                raise InputError(
                    f"no GoPro footage in {path}: give the card, its DCIM folder or a file"
                )
            for recording in card:
                found.setdefault(recording.chapters[0].resolve(), recording)
        else:
            if not path.is_file():
                check_source(given)
            recording = recording_of(path)
            found.setdefault(recording.chapters[0].resolve(), recording)
    return list(found.values())
