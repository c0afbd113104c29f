"""Names of pictures and of numbered sequences of them, as FFmpeg's image2 format writes them."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from vdeblur.media.picture_formats import PICTURE_SUFFIXES, WRITTEN_SUFFIXES

#: Suffixes, in lower case, of the still images that are read and written.
IMAGE_SUFFIXES = WRITTEN_SUFFIXES

# `%%` stands for a percent sign. A letter after `%d` makes it a part of a word: 50%discount.png.
_NUMBER = re.compile(r"(?<!%)(?:%%)*(%(?:(?:0?(\d+))d|d(?![a-zA-Z])))")


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


def libav_pattern(pattern: str | Path) -> str:
    """Return the pattern by which libav finds the pictures, whatever characters are in it."""
    path = Path(pattern).absolute()
    found = _NUMBER.search(path.name)
    assert found is not None  # is_pattern
    folder = str(path.parent / "_")[:-1].replace("%", "%%")
    before, after = (_single(t) for t in (path.name[: found.start(1)], path.name[found.end(1) :]))
    return f"file:{folder}{before.replace('%', '%%')}{found[1]}{after.replace('%', '%%')}"


def first_number(pattern: str) -> int:
    """Find the lowest number of a pattern for which a file exists; 0 if there is none."""
    if not is_pattern(pattern):
        return 0
    before, _, after = _split(pattern)
    numbers = []
    for name in glob.glob(glob.escape(before) + "*" + glob.escape(after)):  # noqa: PTH207
        digits = name[len(before) : len(name) - len(after)]
        if digits.isdigit():
            numbers.append(int(digits))
    return min(numbers, default=0)


def source_picture(source: str, output: Path) -> Path | None:
    """Find the picture from which `output` was made: `source`, or that of its number in a pattern.

    None where `source` is a pattern and the name of `output` has no number.
    """
    if not is_pattern(source):
        return Path(source)
    digits = re.findall(r"\d+", output.stem)
    if not digits:
        return None
    before, width, after = _split(source)
    return Path(f"{before}{int(digits[-1]):0{width}d}{after}")


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
