"""Values in words, for the details of checks."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from av.stream import Disposition

_MOST_ITEMS, _MOST_LETTERS = 40, 200


def listed(items: Iterable[str]) -> str:
    """Return items with commas between them, or "none"; of very many the first."""
    found = list(items)
    more = [f"and {len(found) - _MOST_ITEMS} more"] if len(found) > _MOST_ITEMS else []
    return ", ".join(found[:_MOST_ITEMS] + more) or "none"


def quoted(text: str) -> str:
    """Return a text of a file in quotes; of a very long one its beginning and its length."""
    if len(text) <= _MOST_LETTERS:
        return repr(text)
    return f"{text[:_MOST_LETTERS]!r}… ({len(text)} characters)"


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
