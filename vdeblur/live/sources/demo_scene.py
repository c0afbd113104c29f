"""A moving picture of the program's own making, with its number and the time written into it.

What is written into the picture survives coding, scaling of time and any server between: read back
at the far end, it tells which picture arrived and how long it took. Knows numpy only.
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
    """Write a picture's number (16 bits) and a time (32 bits) as blocks into its upper left.

    luma: (rows, columns) uint8, at least 24 × 160; black and white of the limited range.
    """
    number, milliseconds = number & 0xFFFF, milliseconds & 0xFFFFFFFF
    bits = _bits(number, 16) + _bits(milliseconds, 32)
    bits += _bits(_check(number, milliseconds), 12)
    cells = np.where(np.array(bits, dtype=bool), 235, 16).astype(np.uint8)
    blocks = cells.reshape(_ROWS, _COLUMNS)
    luma[: _ROWS * BLOCK, : _COLUMNS * BLOCK] = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)


def read_code(luma: Luma) -> tuple[int, int] | None:
    """(number, milliseconds) that `write_code` wrote; None: there is none, or damaged."""
    if luma.shape[0] < _ROWS * BLOCK or luma.shape[1] < _COLUMNS * BLOCK:
        return None
    area = luma[: _ROWS * BLOCK, : _COLUMNS * BLOCK].astype(np.float32)
    # The middle of each block: its edges ring.
    blocks = area.reshape(_ROWS, BLOCK, _COLUMNS, BLOCK)[:, 2:-2, :, 2:-2].mean((1, 3))
    bits = (blocks.reshape(-1) > 125).tolist()
    number, milliseconds, check = _number(bits[:16]), _number(bits[16:48]), _number(bits[48:])
    return (number, milliseconds) if check == _check(number, milliseconds) else None


def now_milliseconds() -> int:
    """The time that the test scene writes: the monotonic clock, common to all processes."""
    return int(time.monotonic() * 1000) & 0xFFFFFFFF


def draw(scene: Scene, number: int) -> tuple[Luma, Luma, Luma]:
    """Y', Cb and Cr (4:2:0, limited range) of picture `number`: moving bars and a disc."""
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
    """(1, count) samples from number `start`: 1 kHz for 50 ms at the beginning of each second."""
    at = np.arange(start, start + count, dtype=np.int64)
    beep = (at % rate) < rate // 20
    return (0.3 * beep * np.sin(2 * np.pi * 1000 * (at % rate) / rate)).astype(np.float32)[None]


def flash(number: int, rate: int) -> bool:
    """Whether picture `number` begins a second, as the tone does."""
    return number % rate == 0


def pace(rate: int) -> Iterator[tuple[int, float]]:
    """(number, monotonic time at which it is due), at an even rate; late ones are skipped."""
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
