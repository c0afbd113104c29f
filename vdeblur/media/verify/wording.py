"""Values in words, for the details of checks."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from av.stream import Disposition


def listed(items: Iterable[str]) -> str:
    """Return items with commas between them, or "none"."""
    return ", ".join(items) or "none"


def in_seconds(value: Fraction | None) -> str:
    """Format a time to the microsecond, or "unknown"."""
    return "unknown" if value is None else f"{float(value):.6f} s"


def change(before: Fraction, after: Fraction) -> str:
    """Format a change of a time in seconds."""
    return f"{float(before):.6f} -> {float(after):.6f} s"


def ratio(value: Fraction) -> str:
    """Format an aspect ratio, such as 4:3."""
    return f"{value.numerator}:{value.denominator}"


def disposition(value: int) -> str:
    """Name the flags of a stream's disposition."""
    flags = Disposition(value)
    names = [flag.name or "" for flag in Disposition if flag in flags]
    return "+".join(names) or "none"
