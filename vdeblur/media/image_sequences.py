"""Names of pictures and of numbered sequences of them, as FFmpeg's image2 format writes them."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from vdeblur.errors import InputError
from vdeblur.media.picture_formats import PICTURE_SUFFIXES, WRITTEN_SUFFIXES

#: Suffixes, in lower case, of the still images that are read and written.
IMAGE_SUFFIXES = WRITTEN_SUFFIXES

# `%%` stands for a percent sign. A letter after `%d` makes it a part of a word: 50%discount.png.
_NUMBER = re.compile(r"(?<!%)(?:%%)*(%(?:(?:0?(\d+))d|d(?![a-zA-Z])))")
# More numbers missing at once than this, and than there are pictures: another file's number.
_LONGEST_GAP = 1000
_FEWEST_OF_STEPS = 3  # pictures whose numbers show that they go in steps
_NAMED = 4  # gaps that a message names


def is_image(path: str | Path) -> bool:
    """Tell whether a name is that of a picture, or of a pattern of them."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


def is_pattern(path: str | Path) -> bool:
    """Tell whether a name is an image2 pattern such as `frames/%05d.png`, and no file.

    Only the last part of a path can have a number: a percent sign in a folder's name is none.
    """
    return _reads_as_pattern(path) and not Path(path).is_file()


def writes_sequence(destination: str | Path, source: str | Path) -> bool:
    """Tell whether an output is a sequence of pictures.

    A source that is a file in spite of a percent sign in its name has an output like it.
    """
    literal = _reads_as_pattern(source) and not is_pattern(source)
    return is_pattern(destination) and not literal


def number_of(pattern: str | Path) -> str | None:
    """Return the number of a pattern as it is written there, such as `%05d`; None for a file."""
    found = _NUMBER.search(Path(pattern).name) if is_pattern(pattern) else None
    return None if found is None else found[1]


def numbered(pattern: str, number: int) -> str:
    """Return the name that a pattern has for a number: `%05d` pads with zeros, `%%` is a percent.

    Args:
        pattern: An image2 pattern.
        number: Not negative.
    """
    before, width, after = _split(pattern)
    return f"{before}{number:0{width}d}{after}"


def number_in(pattern: str, name: str) -> int | None:
    """Return the number of a file's name, if it is one of a pattern's (both without folders)."""
    if _NUMBER.search(pattern) is None:
        return None
    before, width, after = _split(pattern)
    digits = name[len(before) : len(name) - len(after)]
    if not digits.isdecimal() or name != f"{before}{int(digits):0{width}d}{after}":
        return None
    return int(digits)


def pictures_of(source: str) -> list[Path]:
    """List the files that exist of a pattern, or of a plain name."""
    path = Path(source)
    if not is_pattern(source):
        return [path] if path.is_file() else []
    if not path.parent.is_dir():
        return []
    return sorted(f for f in path.parent.iterdir() if number_in(path.name, f.name) is not None)


def _reads_as_pattern(path: str | Path) -> bool:
    return is_image(path) and _NUMBER.search(Path(path).name) is not None


def _split(pattern: str) -> tuple[str, int, str]:
    """Return what stands before the number of a pattern, its least digits, what stands after."""
    name = Path(pattern).name
    match = _NUMBER.search(name)
    assert match is not None  # is_pattern
    folder = pattern[: len(pattern) - len(name)]
    before, after = name[: match.start(1)], name[match.end(1) :]
    return folder + _single(before), int(match[2] or 1), _single(after)


def _single(text: str) -> str:
    return text.replace("%%", "%")


@dataclass(frozen=True)
class NumberedPictures:
    """The pictures of a pattern that exist.

    The time of a picture is its number's, so that a missing one leaves a gap in time and no
    picture takes another's place. Numbers that all go in steps, such as 10, 20, 30, count one a
    step.

    Attributes:
        pattern: An image2 pattern.
        numbers: Of the pictures, ascending.
        step: From one number to the next where none is missing.
        first: The number at time 0.
    """

    pattern: str
    numbers: Sequence[int]
    step: int
    first: int

    @classmethod
    def find(cls, pattern: str, start_number: int | None = None) -> Self:
        """Look for the pictures of a pattern.

        Args:
            pattern: An image2 pattern.
            start_number: Lower numbers are left out; None leaves out none.

        Raises:
            InputError: There is none, or their numbers jump too far to be those of one sequence.
        """
        found, others = _numbers_of(pattern)
        numbers = sorted(n for n in found if start_number is None or n >= start_number)
        if not numbers:
            raise InputError(_not_found(pattern, found, others, start_number))
        steps = [after - before for before, after in pairwise(numbers)]
        step = math.gcd(*steps) if len(numbers) >= _FEWEST_OF_STEPS else 1
        pictures = cls(pattern, numbers, step, numbers[0] if start_number is None else start_number)
        for before, after in pairwise(numbers):
            if (after - before) // step > max(_LONGEST_GAP, len(numbers)):
                raise InputError(
                    f"the numbers of {pattern} jump from {before} to {after}: move pictures that "
                    "do not belong to the sequence to another folder"
                )
        return pictures

    def path(self, number: int) -> Path:
        """Return the file of a number."""
        return Path(numbered(self.pattern, number))

    def ticks(self, number: int) -> int:
        """Return the time of a number, in frames from the first."""
        return (number - self.first) // self.step

    def number(self, ticks: int) -> int:
        """Return the number of a time, in frames from the first."""
        return self.first + ticks * self.step

    @property
    def length(self) -> int:
        """Frames from the first number to the last, with those that are missing."""
        return self.ticks(self.numbers[-1]) + 1

    def notes(self) -> list[str]:
        """Return what a user should know of names and numbers."""
        notes = []
        if self.step > 1:
            few = ", ".join(str(n) for n in self.numbers[:3])
            notes.append(f"the pictures are numbered in steps of {self.step} ({few} …)")
        others = [name for number, name in _numbers_of(self.pattern)[1] if number >= self.first]
        if others:
            notes.append(
                f"not part of {self.pattern}, whose numbers have other digits: {_some(others)}"
            )
        return notes

    def gaps(self) -> str | None:
        """Return in words which numbers are missing; None if none is."""
        runs = [
            (before + self.step, after - self.step)
            for before, after in pairwise([self.first - self.step, *self.numbers])
            if after - before > self.step
        ]
        if not runs:
            return None
        count = sum((last - first) // self.step + 1 for first, last in runs)
        names = [str(a) if a == b else f"{a} to {b}" for a, b in runs]
        noun = "picture" if count == 1 else "pictures"
        return (
            f"{self.pattern} has no {noun} {_some(names)}: "
            "those after a gap keep their numbers and times"
        )


def _some(names: Sequence[str]) -> str:
    """Join a few names, and count the others."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _numbers_of(pattern: str) -> tuple[list[int], list[tuple[int, str]]]:
    """Find the numbers for which a file exists, and files whose number has other digits.

    A number has one name in a pattern: 7 is `007.png` in `%03d.png`, and `7.png` is no part of it.
    """
    before, width, after = _split(pattern)
    numbers, others = [], []
    for name in glob.glob(glob.escape(before) + "*" + glob.escape(after)):  # noqa: PTH207
        digits = name[len(before) : len(name) - len(after)]
        if re.fullmatch("[0-9]+", digits):
            number = int(digits)
            if digits == f"{number:0{width}d}":
                numbers.append(number)
            else:
                others.append((number, Path(name).name))
    return numbers, sorted(others)


def _not_found(
    pattern: str, found: Sequence[int], others: Sequence[tuple[int, str]], start_number: int | None
) -> str:
    if found:
        return (
            f"{pattern} was not found: its numbers end at {max(found)}, and `start_number` is "
            f"{start_number}"
        )
    if others:
        return (
            f"{pattern} was not found: there is {others[0][1]}, whose number has other digits: "
            "check the pattern"
        )
    return f"{pattern} was not found: check the path"
