"""Join the chapters of a recording into one file, with the highlights of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdeblur.gopro.highlights import merge_highlights
from vdeblur.media.mp4 import join as mp4


def join(chapters: Sequence[Path]) -> Path:
    """Make a path that opens as all chapters of a recording; see `vdeblur.media.mp4.join.join`.

    Raises:
        InputError: No chapter can be read, or they do not fit together.
    """
    return mp4.join(chapters, merge_udta=merge_highlights)
