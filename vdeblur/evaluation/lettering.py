"""Labels on pictures, lettered by Pillow; without Pillow, pictures stay without."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.pictures import RGBImage
from vdeblur.system.optional import installed, optional

#: Note for results that were drawn without labels.
NO_LABELS = "labels are left out: they need Pillow, pip install 'vdeblur[plots]'"


def can_letter() -> bool:
    """Whether Pillow is installed."""
    return installed("PIL")


@lru_cache(maxsize=256)
def lettering(text: str, height: int) -> NDArray[np.float32]:
    """Letter one line of text in Pillow's built-in font.

    That is a part of Aileron with little more than ASCII: other characters become "?".

    Returns:
        (height, width): how much of each pixel the letters cover, in [0, 1]; read-only.

    Raises:
        UsageError: Pillow is missing.
    """
    draw, image = (
        optional(f"PIL.{name}", extra="plots", purpose="lettering")
        for name in ("ImageDraw", "Image")
    )
    text = text.encode("ascii", "replace").decode()
    font = _font(height)
    canvas = image.new("L", (max(1, round(font.getlength(text or " "))), height))
    draw.Draw(canvas).text((0, 0), text, fill=255, font=font, anchor="la")
    cover = np.asarray(canvas, np.float32) / np.float32(255)
    cover.flags.writeable = False
    return cover


@lru_cache(maxsize=32)
def _font(height: int) -> Any:
    """The largest font whose lines, from ascent to descent, fit `height` pixels."""
    fonts = optional("PIL.ImageFont", extra="plots", purpose="lettering")
    size = height
    while size > 1 and sum(fonts.load_default(size).getmetrics()) > height:
        size -= 1
    return fonts.load_default(size)


def label(text: str, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make a label: white letters on a box that lets a third of the picture through.

    Args:
        text: One line; it is cut where the label is full.
        height: Pixels.
        width: The most pixels.

    Returns:
        How much the label covers, and how white it is, premultiplied: (height, w) each, in [0, 1].

    Raises:
        UsageError: Pillow is missing.
    """
    margin = max(2, height // 4)
    letters = lettering(text, max(6, height - 2 * (margin // 2)))[:, : max(1, width - 2 * margin)]
    space = ((height - len(letters)) // 2, -(-(height - len(letters)) // 2))
    white = np.pad(letters, (space, (margin, margin)))
    return np.maximum(white, np.float32(0.65)), white


def put_label(picture: RGBImage, text: str, *, height: int, top: int = 0, left: int = 0) -> None:
    """Draw a label into a picture, in place; it is cut where the picture ends.

    Raises:
        UsageError: Pillow is missing.
    """
    cover, white = label(text, height, picture.shape[1] - left)
    place = picture[top : top + height, left : left + cover.shape[1]]
    cover, white = (x[: place.shape[0], : place.shape[1], None] for x in (cover, white))
    value = np.where(cover > 0, white / np.maximum(cover, 1e-6), 0)
    place[:] = np.round(place * (1 - cover) + 255 * value * cover).astype(np.uint8)
