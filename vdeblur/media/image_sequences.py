"""Names of pictures and of numbered sequences of them, as FFmpeg's image2 format writes them."""

from __future__ import annotations

import glob
import re
from pathlib import Path

#: Suffixes, in lower case, of the still images that are read and written.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})

_NUMBER = re.compile(r"%0?\d*d")


def is_image(path: str | Path) -> bool:
    """Tell whether a name is that of a PNG or JPEG, or of a pattern of them."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def is_pattern(path: str | Path) -> bool:
    """Tell whether a name is an image2 pattern such as `frames/%05d.png`."""
    return is_image(path) and _NUMBER.search(str(path)) is not None


def first_number(pattern: str) -> int:
    """Find the lowest number of a pattern for which a file exists; 0 if there is none."""
    match = _NUMBER.search(pattern)
    if match is None:
        return 0
    before, after = pattern[: match.start()], pattern[match.end() :]
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
    match = _NUMBER.search(source)
    if match is None:
        return Path(source)
    digits = re.findall(r"\d+", output.stem)
    if not digits:
        return None
    return Path(source[: match.start()] + match.group() % int(digits[-1]) + source[match.end() :])
