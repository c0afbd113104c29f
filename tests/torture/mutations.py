"""Random damage to the bytes of a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

_LARGE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 24)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _randomize(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((4, 16, 64, 512)))
    data[at:end] = rng.randbytes(end - at)


def _number(data: bytearray, rng: random.Random) -> None:
    """Put telling 32-bit numbers where sizes and counts may be, most of them in the header."""
    for _ in range(rng.randint(1, 4)):
        span = len(data) if rng.random() < 0.3 else min(len(data), 4096)
        at = rng.randrange(max(1, span - 4)) // 2 * 2
        order = rng.choice("<>")
        data[at : at + 4] = struct.pack(f"{order}I", rng.choice(_LARGE))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 3, 100, 2000))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 5, 100, 2000)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    part = data[at : at + rng.choice((8, 188, 1000, 5000))]
    data[at:at] = part * rng.choice((1, 2, 10))


def _zero(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice((16, 512, 4096)))
    data[at:end] = bytes(end - at)


def _swap(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((16, 188, 1024))
    one, two = rng.randrange(len(data)), rng.randrange(len(data))
    first, second = data[one : one + size], data[two : two + size]
    size = min(len(first), len(second))
    data[one : one + size], data[two : two + size] = second[:size], first[:size]


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _randomize,
    _number,
    _cut,
    _remove,
    _insert,
    _repeat,
    _zero,
    _swap,
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes of a file, damaged in one to three random ways."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if changed:
            rng.choice(_WAYS)(changed, rng)
    return bytes(changed)
