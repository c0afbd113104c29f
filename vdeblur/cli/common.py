"""What the commands share: saying things, options of the network, values of options."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def say(text: str) -> None:
    """One message to standard error."""
    # File names may hold bytes that are not UTF-8.
    print(text.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


def keep_pages() -> None:
    """Have glibc keep freed memory: a network's tensors would fault every page in again.

    Half of the time of a frame's colour conversion on a CPU is page faults without this; see
    mallopt(3). 32 MB is the highest M_MMAP_THRESHOLD that glibc takes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD


def network_options(parser: argparse.ArgumentParser) -> None:
    """The options that choose a network and how it is run; `deblurrer_of` reads them."""
    parser.add_argument(
        "--model", default="mimo-unet-small", help="network (default mimo-unet-small)"
    )
    parser.add_argument("--weights", metavar="FILE", help="weights other than those that ship")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps …")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "fp16", "bf16"))
    parser.add_argument("--batch", type=number_or("auto"), default="auto", help="frames at once")
    parser.add_argument(
        "--tile",
        type=number_or("auto", "none"),
        default="auto",
        help="side of the square the network sees, in pixels; auto; none for the whole picture",
    )


def number_or(*words: str) -> Any:
    """A parser of a whole number, or one of `words`, which stays as it is."""

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


def seconds(text: str) -> float:
    """Seconds, or [HH:]MM:SS, as seconds."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or any(part < 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds or [HH:]MM:SS")
    total = 0.0
    for part in parts:
        total = total * 60 + part
    return total


def bitrate(text: str) -> int:
    """Bits a second, with k, M or G at the end."""
    factors = {"k": 1e3, "m": 1e6, "g": 1e9}
    factor = factors.get(text[-1:].lower(), 1.0)
    try:
        value = int(float(text[:-1] if text[-1:].lower() in factors else text) * factor)
    except ValueError:
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a bit rate: give one such as 12M")
    return value


def rate(text: str) -> Fraction:
    """Frames a second, such as 25 or 30000/1001."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: give one such as 30000/1001")
    return rate
