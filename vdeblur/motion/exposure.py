"""The exposure that a caller asks for: a time, a share of a frame's time, or neither."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from vdeblur.errors import UsageError


@dataclass(frozen=True)
class Exposure:
    """An exposure that a caller asks for; with both None it is read off the pictures.

    Attributes:
        seconds: time that the shutter is open.
        share: the same as a share of the time from frame to frame.
    """

    seconds: float | None = None
    share: float | None = None


AUTO = Exposure()


def exposure_of(value: str | float | Fraction | Exposure) -> Exposure:
    """Parse an exposure.

    Args:
        value: "auto"; seconds such as "1/60", "0.004s" or "4ms"; a share of a frame's time such as
            "0.5". A number is a share, a Fraction seconds.

    Raises:
        UsageError: for anything else, or more than 2 seconds or frames.
    """
    if isinstance(value, Exposure):
        return value
    text = str(value).strip().lower()
    if text == "auto":
        return AUTO
    if isinstance(value, Fraction):
        text += "s"
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:/(\d+\.?\d*))? ?(m?s)?", text)
    number, below, unit = found.groups() if found else ("0", None, None)
    size = float(number) / (float(below or 1) or math.inf) * (1e-3 if unit == "ms" else 1)
    if (below or unit) and 0 < size <= 2:
        return Exposure(seconds=size)
    if not below and not unit and 0 < size <= 2:
        return Exposure(share=size)
    hint = f"; a shutter angle of {size:g} degrees is {size / 360:g}" if 2 < size <= 360 else ""
    raise UsageError(
        f"exposure is {str(value)!r}: give auto, seconds such as 1/60 or 0.004s, or the share of a "
        f"frame's time such as 0.5{hint}"
    )
