"""Compare times of two streams, in ticks of their time bases.

Exactly where the output's time base can hold the source's times, else to half a tick of the coarser
of the two. Knows numbers only: no files, no streams.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.media.verify.wording import in_seconds

#: A time that is not known: libav's AV_NOPTS_VALUE.
UNKNOWN = -(1 << 63)


def first_time(pts: Iterable[int], base: Fraction) -> Fraction | None:
    """Return the earliest known time in seconds, None without any."""
    first = min((p for p in pts if p != UNKNOWN), default=None)
    return None if first is None else first * base


def increasing(pts: array[int]) -> array[int]:
    """Return times as a muxer can write them: equal times of a damaged source a tick apart."""
    values = np.frombuffer(pts, np.int64)
    if not len(values) or (values == UNKNOWN).any() or (np.diff(values) > 0).all():
        return pts
    result = array("q", pts[:1])
    for value in pts[1:]:
        result.append(max(value, result[-1] + 1))
    return result


def time_problem(
    a: array[int],
    a_base: Fraction,
    b: array[int],
    b_base: Fraction,
    what: str,
    prefix: str = "",
    *,
    slack: Fraction = Fraction(0),
) -> str | None:
    """Describe the first time that differs: "frame 17: 5672 -> 5673 (1/90000)".

    Args:
        a: The source's times, in ticks.
        a_base: Seconds a tick of the source's.
        b: The output's times, in ticks.
        b_base: Seconds a tick of the output's.
        what: "frame" or "packet".
        prefix: Precedes the times, such as "dts ".
        slack: Seconds that times may be off where they are computed and not stated.

    Returns:
        None where all times are equal.
    """
    delta, unit, exact = _deltas(a, a_base, b, b_base)
    allowed = max(slack, Fraction(0) if exact else max(a_base, b_base) / 2) / unit
    wrong = np.flatnonzero(np.abs(delta) > float(allowed))
    if len(wrong):
        first = int(wrong[0])
        if len(wrong) == len(a) == len(b) > 1 and (delta == delta[0]).all():
            return f"{prefix}all {len(a)} {what}s shifted by {in_seconds(int(delta[0]) * unit)}"
        return f"{what} {first}: {prefix}{_tick_change(a[first], a_base, b[first], b_base)}"
    if len(a) != len(b):
        word = "missing" if len(a) > len(b) else "added"
        return f"{what} {min(len(a), len(b))}: {prefix}{word}"
    return None


def duration_problem(
    a: array[int],
    a_base: Fraction,
    b: array[int],
    b_base: Fraction,
    what: str,
) -> str | None:
    """Describe the first duration that differs by more than rounding; see `time_problem`."""
    delta, unit, exact = _deltas(a, a_base, b, b_base)
    # A picture's duration in mp4 is a difference of decoding times, which the encoder chooses: a
    # tick of a clock this fine is its rounding.
    rounding = what == "frame" and max(a_base, b_base) <= Fraction(1, 100_000)
    slack = 0 if exact and not rounding else max(a_base, b_base) / unit
    wrong = [i for i in np.flatnonzero(np.abs(delta) > float(slack)).tolist() if a[i] > 0]
    if not wrong:
        return None
    first = wrong[0]
    return f"{what} {first}: {_tick_change(a[first], a_base, b[first], b_base)}"


def until_next(pts: array[int], durations: array[int]) -> array[int]:
    """Return durations as an MP4's index has them, without gaps; fragments may have gaps."""
    if UNKNOWN in pts:
        return durations
    steps = [later - at for at, later in itertools.pairwise(pts)]
    return array("q", [*steps, *durations[len(steps) :]])


def _deltas(
    a: array[int], a_base: Fraction, b: array[int], b_base: Fraction
) -> tuple[NDArray[Any], Fraction, bool]:
    """(b - a, its unit in seconds, whether b_base can hold every time of a_base exactly)."""
    both = min(len(a), len(b))
    common = math.lcm(a_base.denominator, b_base.denominator)
    scaled = []
    unknown = np.zeros(both, bool)
    for values, base in ((a, a_base), (b, b_base)):
        ticks: NDArray[Any] = np.frombuffer(values, np.int64)[:both] if both else np.zeros(0, int)
        unknown |= ticks == UNKNOWN
        factor = base.numerator * (common // base.denominator)
        if both and factor * int(np.abs(ticks[ticks != UNKNOWN]).max(initial=0)) >= 1 << 61:
            ticks = ticks.astype(object)
        scaled.append(ticks * factor)
    delta = scaled[1] - scaled[0]
    delta[unknown] = 0  # without a time to compare, only the order counts
    return delta, Fraction(1, common), (a_base / b_base).denominator == 1


def _tick_change(a: int, a_base: Fraction, b: int, b_base: Fraction) -> str:
    if a_base == b_base:
        return f"{a} -> {b} ({a_base})"
    return f"{a} ({a_base}) -> {b} ({b_base})"
