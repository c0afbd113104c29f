"""Pairs of whole pictures, blurred and sharp, one by one: from folders, or from two videos.

Knows files and their names; knows no networks and no measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from vdeblur.datasets.layouts import find_pairs, picture_files, recognise
from vdeblur.datasets.pictures import frame_to_rgb, read_rgb
from vdeblur.errors import InputError, UsageError
from vdeblur.frames import Frame
from vdeblur.media.names import check_source
from vdeblur.media.reader import VideoReader


@dataclass(frozen=True)
class ImagePair:
    """A blurred and a sharp picture.

    Args:
        sequence: The video or folder that the pair is from, or "".
        name: The name of the picture; the number of the frame in videos.
        blurred: (1, 3, H, W) float32 RGB in [0, 1].
        sharp: As `blurred`.
        restored: As `blurred`: an existing output to score instead of a network's.
        frame: The blurred picture as decoded, if it is from a video.
        sharp_frame: The sharp picture as decoded, if it is from a video.
    """

    sequence: str
    name: str
    blurred: Tensor
    sharp: Tensor
    restored: Tensor | None = None
    frame: Frame | None = None
    sharp_frame: Frame | None = None


@dataclass(frozen=True)
class PairSet:
    """A set of pairs: iterate for them.

    Args:
        name: The name of the folder or video.
        video: Whether the pairs are frames of videos, in order.
        expected: How many pairs there are; None if unknown.
        open: Begins a new iteration.
    """

    name: str
    video: bool
    expected: int | None
    open: Callable[[], Iterator[ImagePair]] = field(repr=False)

    def __iter__(self) -> Iterator[ImagePair]:
        return self.open()


def open_pairs(
    paths: list[Path],
    *,
    restored: Path | None = None,
    layout: str = "auto",
    split: str = "auto",
) -> PairSet:
    """Open pairs to look at or to score on.

    Args:
        paths: One folder that holds both kinds; or blurred and sharp, two folders or two videos.
        restored: A folder or a video of existing outputs, to score instead of a network's.
        layout: Layout of a data set in one folder, see `vdeblur.datasets.layouts.find_pairs`.
        split: Split of a data set in one folder; "auto" is test, else val, else all.

    Raises:
        InputError: A file is missing, or pictures do not belong to each other.
        UsageError: There are more than two paths, or the layout or split does not apply.
    """
    if len(paths) not in (1, 2):
        raise UsageError(
            f"{len(paths)} paths for one set of pairs: give one folder, or blurred and sharp"
        )
    for path in (*paths, *([restored] if restored else [])):
        if not path.is_dir():
            check_source(path)
    folders = [path.is_dir() for path in paths]
    if len(paths) == 1 and not folders[0]:
        raise InputError(f"{paths[0]} is one file: give the sharp one too, or a folder of pairs")
    if len(set(folders)) > 1:
        raise InputError(f"{paths[0]} and {paths[1]}: give two folders, or two files")
    if len(paths) == 2 and (layout, split) != ("auto", "auto"):
        option = "split" if split != "auto" else "layout"
        raise UsageError(f"`{option}` is for one folder that holds both kinds: leave it out")
    if not folders[0]:
        return _video_pairs(paths[0], paths[1], restored)
    files = (
        _folder_pairs(paths[0], layout, split) if len(paths) == 1 else _matched(paths[0], paths[1])
    )
    outputs = _Outputs(restored) if restored else None

    def pairs() -> Iterator[ImagePair]:
        for sequence, name, blurred, sharp in files:
            done = read_rgb(outputs.find(sequence, blurred)) if outputs else None
            yield ImagePair(sequence, name, read_rgb(blurred), read_rgb(sharp), done)

    if outputs:  # raises for missing files before anything is computed
        for sequence, _, blurred, _ in files:
            outputs.find(sequence, blurred)
    return PairSet(paths[0].resolve().name, False, len(files), pairs)


_Files = list[tuple[str, str, Path, Path]]  # sequence, name, blurred, sharp


def _folder_pairs(folder: Path, layout: str, split: str) -> _Files:
    """The pairs of a data set: of its test split, unless another is requested or there is none."""
    known = recognise(folder, layout=layout)
    if split == "auto":
        split = next(name for name in ("test", "val", "all", "train") if name in known.splits)
    elif set(known.splits) == {"all"}:
        raise UsageError(f"{folder} ({known.name}) has no splits: leave `split` out")
    found = find_pairs(folder, layout=layout, split=split)
    return [(pair.sequence, pair.blurred.stem, pair.blurred, pair.sharp) for pair in found]


def _matched(blurred: Path, sharp: Path) -> _Files:
    """Pairs from two folders with files of the same names, extensions apart."""
    partners = {p.relative_to(sharp).with_suffix(""): p for p in picture_files(sharp)}
    files = []
    for path in picture_files(blurred):
        name = path.relative_to(blurred).with_suffix("")
        if name not in partners:
            raise InputError(
                f"{path} has no sharp partner: expected {sharp / name}{path.suffix}, "
                "of the same or another kind of picture"
            )
        sequence = "" if name.parent == Path() else name.parent.as_posix()
        files.append((sequence, name.name, path, partners[name]))
    return files


class _Outputs:
    """Restored pictures, under the names that common programs write them."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder: give one with the restored pictures")
        self.folder = folder
        self.byname: dict[str, list[Path]] = {}
        for path in picture_files(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            name = name.removesuffix("_deblurred")  # what `vdeblur video` adds
            self.byname.setdefault(name, []).append(path)

    def find(self, sequence: str, blurred: Path) -> Path:
        """Find SEQUENCE/NAME, SEQUENCE-NAME, SEQUENCE_NAME or NAME, whichever exists first."""
        name, flat = blurred.stem, sequence.replace("/", "-")
        tried = [f"{sequence}/{name}", f"{flat}-{name}", f"{flat}_{name}"] if sequence else []
        for candidate in (*tried, name):
            if candidate in self.byname:
                return self.byname[candidate][0]
        raise InputError(
            f"{self.folder} has no restored picture for {blurred}: expected "
            f"{(tried or [name])[0]}{blurred.suffix}"
        )


def _video_pairs(blurred: Path, sharp: Path, restored: Path | None) -> PairSet:
    paths = [blurred, sharp] + ([restored] if restored else [])
    expected = None
    stated: dict[Path, int] = {}
    for path in paths:
        with VideoReader(path) as reader:
            stream: Any = reader.container.streams[reader.video_streams[0]]
            expected = expected or reader.info.frame_count
            if stream.frames:
                stated[path] = stream.frames
    _same_count(stated)

    def pairs() -> Iterator[ImagePair]:
        readers = [VideoReader(path) for path in paths]
        try:
            streams = [iter(reader) for reader in readers]
            for number in count(1):
                frames = [next(stream, None) for stream in streams]
                if all(frame is None for frame in frames):
                    return
                if None in frames:
                    _same_count(
                        {
                            path: number - 1 if frame is None else number + sum(1 for _ in stream)
                            for path, frame, stream in zip(paths, frames, streams, strict=True)
                        }
                    )
                views = [frame_to_rgb(frame) for frame in frames if frame is not None]
                done = views[2] if restored else None
                yield ImagePair("", f"{number:05d}", views[0], views[1], done, frames[0], frames[1])
        finally:
            for reader in readers:
                reader.close()

    return PairSet(blurred.stem, True, expected, pairs)


def _same_count(counts: dict[Path, int]) -> None:
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{path} has {number} frames" for path, number in counts.items())
        raise InputError(f"{each}: give videos whose frames belong to each other, one to one")
