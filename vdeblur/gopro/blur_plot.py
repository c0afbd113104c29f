"""A recording's blur over time as a picture: what the sensors say, and what the pictures say.

Knows arrays in, pixels out; no telemetry, no video.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.pictures import RGBImage, lettering

Floats = NDArray[np.float64]

_WIDTH, _TITLE, _PANEL, _GAP, _LEFT, _RIGHT, _BOTTOM = 1280, 64, 230, 44, 84, 28, 40
_INK, _GRID, _PALE = (40, 40, 40), (222, 222, 222), (253, 235, 208)
_BLUE, _ORANGE, _GREEN = (31, 96, 168), (209, 84, 0), (30, 126, 70)
_TEXT = 20  # pixels


def plot(
    times: Floats,
    blur: Floats,
    *,
    threshold: float,
    sharp_times: Floats,
    sharp: Floats,
    title: str,
    subtitle: str,
) -> RGBImage:
    """Two panels over time: blur lengths in pixels with the threshold, and sharpness.

    times, blur: seconds and pixels of each frame (NaN where unknown); sharp_times, sharp: of the
    pictures that were looked at. Times above the threshold have a coloured ground in both.
    """
    height = _TITLE + 2 * _PANEL + 2 * _GAP + _BOTTOM
    picture = np.full((height, _WIDTH, 3), 255, np.uint8)
    _write(picture, title, 10, _LEFT, size=26)
    _write(picture, subtitle, 40, _LEFT)
    seen = np.isfinite(sharp)
    sharp_times, sharp = sharp_times[seen], sharp[seen]
    end = float(
        max(times[-1] if len(times) else 0, sharp_times[-1] if len(sharp_times) else 0, 1e-3)
    )
    known = blur[np.isfinite(blur)]
    top = max(1.25 * threshold, float(known.max()) * 1.05 if len(known) else 0.0)
    low, high = (float(sharp.min()), float(sharp.max())) if len(sharp) else (0.0, 1.0)
    room = max(0.05, high - low) * 0.1
    above = times[np.nan_to_num(blur) >= threshold]
    first = _Panel(picture, _TITLE + _GAP - 16, (0.0, end), (0.0, top))
    second = _Panel(picture, _TITLE + _GAP * 2 + _PANEL, (0.0, end), (low - room, high + room))
    frame = float(np.median(np.diff(times))) if len(times) > 1 else end
    for panel in (first, second):
        panel.ground(above, frame)
        panel.grid()
    first.level(threshold, _ORANGE, f"threshold {threshold:g} px")
    first.curve(times, blur, _BLUE)
    second.dots(sharp_times, sharp, _GREEN)
    first.name("blur in pixels: rate of turn x exposure x focal length")
    second.name("sharpness of the picture itself (lower: more blurred)")
    second.clock()
    return picture


class _Panel:
    """A field with axes; x and y in their own units."""

    def __init__(
        self, picture: RGBImage, top: int, x: tuple[float, float], y: tuple[float, float]
    ) -> None:
        self.picture, self.top, self.x, self.y = picture, top, x, y
        self.field = picture[top : top + _PANEL, _LEFT : _WIDTH - _RIGHT]

    def column(self, x: Floats) -> NDArray[np.int64]:
        share = (x - self.x[0]) / (self.x[1] - self.x[0])
        columns = np.round(share * (self.field.shape[1] - 1)).astype(np.int64)
        result: NDArray[np.int64] = np.clip(columns, 0, self.field.shape[1] - 1)
        return result

    def row(self, y: Floats) -> NDArray[np.int64]:
        share = (y - self.y[0]) / (self.y[1] - self.y[0])
        return np.clip(np.round((1 - share) * (_PANEL - 1)), 0, _PANEL - 1).astype(np.int64)

    def ground(self, times: Floats, length: float) -> None:
        ends = self.column(times + length)
        for start, end in zip(self.column(times).tolist(), ends.tolist(), strict=True):
            self.field[:, start : max(end, start + 1)] = _PALE

    def grid(self) -> None:
        for value in _ticks(*self.y, 4):
            row = int(self.row(np.array([value]))[0])
            self.field[row] = np.minimum(self.field[row], _GRID)
            text = lettering(f"{value:g}", _TEXT)
            _ink(self.picture, text, self.top + row - _TEXT // 2, _LEFT - 8 - text.shape[1])
        self.field[-1], self.field[:, 0] = _INK, _INK

    def level(self, value: float, colour: tuple[int, int, int], text: str) -> None:
        row = int(self.row(np.array([value]))[0])
        self.field[row : row + 2] = colour
        letters = lettering(text, _TEXT)
        _ink(self.picture, letters, self.top + row - _TEXT - 2, _LEFT + 8, colour)

    def curve(self, x: Floats, y: Floats, colour: tuple[int, int, int]) -> None:
        """Joins the points; where several fall into a column, from the lowest to the highest."""
        known = np.isfinite(y)
        if not known.any():
            return
        across = np.arange(self.field.shape[1])
        columns, rows = self.column(x[known]), self.row(y[known])
        middle = np.interp(across, columns, rows)
        high, low = middle.copy(), middle.copy()
        np.minimum.at(high, columns, rows)
        np.maximum.at(low, columns, rows)
        # Each column reaches halfway to its neighbours, so that steep lines have no holes.
        between = (middle[1:] + middle[:-1]) / 2
        high[1:], high[:-1] = np.minimum(high[1:], between), np.minimum(high[:-1], between)
        low[1:], low[:-1] = np.maximum(low[1:], between), np.maximum(low[:-1], between)
        for column in range(columns.min(), columns.max() + 1):
            self.field[math.floor(high[column]) : math.ceil(low[column]) + 2, column] = colour

    def dots(self, x: Floats, y: Floats, colour: tuple[int, int, int]) -> None:
        for column, row in zip(self.column(x).tolist(), self.row(y).tolist(), strict=True):
            self.field[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = colour

    def name(self, text: str) -> None:
        _write(self.picture, text, self.top - _TEXT - 4, _LEFT)

    def clock(self) -> None:
        for value in _ticks(*self.x, 10):
            column = int(self.column(np.array([value]))[0])
            place = self.top + _PANEL
            self.picture[place : place + 5, _LEFT + column] = _INK
            text = lettering(_time(value), _TEXT)
            left = min(_LEFT + column - text.shape[1] // 2, _WIDTH - text.shape[1])
            _ink(self.picture, text, place + 9, left)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between two, about `count` of them."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9) / count))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= count + 1:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 6) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )


def _write(picture: RGBImage, text: str, top: int, left: int, *, size: int = _TEXT) -> None:
    plain = text.replace("×", "x").replace("°", " deg").replace("–", "-")
    _ink(picture, lettering(plain, size), top, left)


def _ink(
    picture: RGBImage,
    cover: NDArray[np.float32],
    top: int,
    left: int,
    colour: tuple[int, int, int] = _INK,
) -> None:
    top, left = max(0, top), max(0, left)
    place = picture[top : top + cover.shape[0], left : left + cover.shape[1]]
    share = cover[: place.shape[0], : place.shape[1], None]
    place[:] = np.round(place * (1 - share) + np.array(colour) * share).astype(np.uint8)
