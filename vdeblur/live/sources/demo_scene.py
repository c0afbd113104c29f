"""A generated moving picture that contains its number and the time as blocks.

They survive coding, changes of timestamps and any server in between. Read back at the far end, they
say which picture arrived, and how long it took. Knows numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vdeblur.live.addresses import Scene

BLOCK = 8  # pixels: a whole transform block, so that coding cannot wash it out
_COLUMNS, _ROWS = 20, 3
Luma = NDArray[np.uint8]


def write_code(luma: Luma, number: int, milliseconds: int) -> None:
    """Write a picture's number and a time as black and white blocks into its upper left corner.

    Args:
        luma: (rows, columns) uint8 in limited range, at least 24 × 160.
        number: Its low 16 bits are written.
        milliseconds: Its low 32 bits are written.
    """
    number, milliseconds = number & 0xFFFF, milliseconds & 0xFFFFFFFF
    bits = _bits(number, 16) + _bits(milliseconds, 32)
    bits += _bits(_check(number, milliseconds), 12)
    cells = np.where(np.array(bits, dtype=bool), 235, 16).astype(np.uint8)
    blocks = cells.reshape(_ROWS, _COLUMNS)
    luma[: _ROWS * BLOCK, : _COLUMNS * BLOCK] = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)


def read_code(luma: Luma) -> tuple[int, int] | None:
    """Return (number, milliseconds) as `write_code` wrote them; None if absent or damaged."""
    if luma.shape[0] < _ROWS * BLOCK or luma.shape[1] < _COLUMNS * BLOCK:
        return None
    area = luma[: _ROWS * BLOCK, : _COLUMNS * BLOCK].astype(np.float32)
    # The middle of each block: its edges ring.
    blocks = area.reshape(_ROWS, BLOCK, _COLUMNS, BLOCK)[:, 2:-2, :, 2:-2].mean((1, 3))
    bits = (blocks.reshape(-1) > 125).tolist()
    number, milliseconds, check = _number(bits[:16]), _number(bits[16:48]), _number(bits[48:])
    return (number, milliseconds) if check == _check(number, milliseconds) else None


def now_milliseconds() -> int:
    """Return the time that scenes contain: the monotonic clock, common to all processes."""
    return int(time.monotonic() * 1000) & 0xFFFFFFFF


def draw(scene: Scene, number: int) -> tuple[Luma, Luma, Luma]:
    """Return Y', Cb and Cr of picture `number` (uint8, 4:2:0, limited range): bars and a disc."""
    height, width = scene.height, scene.width
    seconds = number / scene.rate
    x = np.arange(width, dtype=np.float32)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    bars = 100 + 60 * np.sign(np.sin((x + 40 * seconds) * 2 * np.pi / 48)) * (y > height / 2)
    centre_x = width * (0.5 + 0.35 * np.cos(1.3 * seconds))
    centre_y = height * (0.6 + 0.25 * np.sin(1.7 * seconds))
    disc = (x - centre_x) ** 2 + (y - centre_y) ** 2 < (height / 7) ** 2
    luma = np.where(disc, 210, bars).astype(np.uint8)
    half = disc[::2, ::2]
    blue = np.where(half, 90, 128).astype(np.uint8)
    red = np.where(half, 190, 118).astype(np.uint8)
    write_code(luma, number, now_milliseconds())
    return luma, blue, red


def tone(rate: int, start: int, count: int) -> NDArray[np.float32]:
    """Return (1, count) samples in -1 to 1 from number `start`: 1 kHz for 50 ms each second."""
    at = np.arange(start, start + count, dtype=np.int64)
    beep = (at % rate) < rate // 20
    return (0.3 * beep * np.sin(2 * np.pi * 1000 * (at % rate) / rate)).astype(np.float32)[None]


def flash(number: int, rate: int) -> bool:
    """Return whether picture `number` begins a second, as the tone does."""
    return number % rate == 0


def pace(rate: int) -> Iterator[tuple[int, float]]:
    """Yield (number, monotonic time at which it is due) at an even rate; late ones are skipped."""
    begin, number = time.monotonic(), 0
    while True:
        yield number, begin + number / rate
        number = max(number + 1, int((time.monotonic() - begin) * rate))


def _bits(value: int, count: int) -> list[int]:
    return [value >> i & 1 for i in reversed(range(count))]


def _number(bits: list[bool]) -> int:
    value = 0
    for bit in bits:
        value = value << 1 | bit
    return value


def _check(number: int, milliseconds: int) -> int:
    return (number * 31 + milliseconds * 7 + (milliseconds >> 16) * 13 + 0x5A5) & 0xFFF
