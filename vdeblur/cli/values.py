"""Values of options: parsers for argparse, which reports their errors with the option's name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from fractions import Fraction

_LONGEST = 1e9  # seconds: 31 years
_HIGHEST_RATE = 100_000  # frames per second
_LARGEST_SIDE = 65_536  # pixels


def number_or(*words: str) -> Callable[[str], int | str]:
    """Return a parser for a whole number or one of `words`; a word stays as it is."""

    def parse(text: str) -> int | str:
        if text in words:
            return text
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a whole number nor {' nor '.join(words)}"
            ) from None

    return parse


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_UNIT = re.compile(rf"([0-9.]+)({'|'.join(_SECONDS)})")


def seconds(text: str) -> float:
    """Parse seconds, [HH:]MM:SS or a number with its unit, such as 1.5s; return seconds."""
    unit = _UNIT.fullmatch(text)
    try:
        parts = [float(part) for part in (unit[1] if unit else text).split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < float("inf") for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds or [HH:]MM:SS")
    if unit:
        parts = [parts[0] * _SECONDS[unit[2]]]
    total = 0.0
    for part in parts:
        total = total * 60 + part
    if total > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than any film: give seconds")
    return total


def duration(text: str) -> float:
    """Parse a positive number, with a unit such as s, m or h or without; return seconds."""
    unit = _UNIT.fullmatch(text)
    try:
        value = float(unit[1]) * _SECONDS[unit[2]] if unit else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give one such as 90s, 25m or 2h")
    return value


def live_duration(text: str) -> float:
    """Parse a time of the live commands, such as 300ms, 10s or 1h; return seconds."""
    from vdeblur.live.addresses import duration_seconds

    try:
        return duration_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def bitrate(text: str) -> int:
    """Parse bits per second, with k, M or G at the end or without."""
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = int(float(text[:-1] if text[-1:].lower() in factors else text) * factor)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bit rate: give one such as 12M")
    return value


def file_size(text: str) -> int:
    """Parse a size such as 500M or 2G; return bytes."""
    from vdeblur.live.addresses import size_bytes

    try:
        return size_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rate(text: str) -> Fraction:
    """Parse frames per second, such as 25 or 30000/1001."""
    try:
        # Long exponents would take all memory.
        rate = Fraction(text) if len(text) < 40 and "e" not in text.lower() else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if max(rate.numerator, rate.denominator) >= 1 << 31:  # libav's are of 32 bits
        rate = rate.limit_denominator(10_000)
    if not 0 < rate <= _HIGHEST_RATE:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: give one such as 30000/1001")
    return rate


def picture_size(text: str) -> tuple[int, int]:
    """Parse WIDTHxHEIGHT in pixels; return (width, height)."""
    width, _, height = text.lower().partition("x")
    digits = width.isdecimal() and height.isdecimal() and len(text) < 40
    if not (digits and 0 < int(width) <= _LARGEST_SIDE and 0 < int(height) <= _LARGEST_SIDE):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give one such as 1280x720")
    return int(width), int(height)


def pixels(text: str) -> float:
    """Parse a positive number of pixels, whole or not."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pixels: give one such as 1.5")
    return value


def count_range(text: str) -> tuple[int, int]:
    """Parse A..B, or one number for both ends."""
    first, dots, last = text.partition("..")
    try:
        return int(first), int(last if dots else first)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no range of frames: give one such as 7..13, or a number"
        ) from None
