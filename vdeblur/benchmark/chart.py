"""A benchmark as a picture: a bar for each stage, and one for each trial of a sweep.

Knows neither videos nor networks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdeblur.benchmark.run import MORE, STAGES, BenchResult
from vdeblur.benchmark.sweep import AGREEMENT, Sweep
from vdeblur.datasets.pictures import RGBImage, lettering, write_png

_WIDTH, _LEFT, _RIGHT = 1000, 250, 130
_BAR, _STEP, _TEXT, _TITLE = 24, 38, 17, 20
_INK = (40, 44, 52)
_PALE, _BLUE, _ORANGE = (225, 228, 232), (66, 118, 184), (226, 128, 46)
Colour = tuple[int, int, int]


def draw(result: BenchResult | None, sweep: Sweep | None) -> RGBImage:
    """(H, W, 3) uint8 RGB."""
    parts: list[RGBImage] = []
    if result is not None:
        names = [name for name in (*STAGES, *MORE) if name in result.rates]
        bars = [
            (
                name,
                result.rate(name),
                result.rates[name].spread,
                _ORANGE if name in (result.slowest, "pipeline") else _BLUE,
            )
            for name in names
        ]
        title = f"{result.model}, {result.size}, {result.backend} {result.precision}, batch "
        parts.append(_bars(f"{title}{result.batch}: frames/s", result.device, bars))
    if sweep is not None:
        bars = []
        for trial in sweep.trials:
            if not trial.rounds:
                continue
            tile = "whole" if trial.tile is None else f"tile {trial.tile}"
            best = _ORANGE if trial is sweep.best else _BLUE
            bars.append(
                (
                    f"{trial.backend} {trial.precision}, {trial.batch}, {tile}",
                    statistics.median(trial.rounds),
                    (min(trial.rounds), max(trial.rounds)),
                    best if trial.decibels >= AGREEMENT else _PALE,
                )
            )
        parts.append(_bars(f"{sweep.model}, {sweep.size}, settings: frames/s", sweep.device, bars))
    return np.concatenate(parts)


def write(path: Path, result: BenchResult | None, sweep: Sweep | None) -> None:
    """Write the chart as a PNG; OutputError when it cannot be written."""
    write_png(path, draw(result, sweep))


def _bars(
    title: str, subtitle: str, bars: list[tuple[str, float, tuple[float, float], Colour]]
) -> RGBImage:
    top = 84
    height = top + _STEP * len(bars) + 50
    picture = np.full((height, _WIDTH, 3), 255, np.uint8)
    _write(picture, title, 16, 20, _TITLE, _INK)
    _write(picture, subtitle, 46, 20, _TEXT, (110, 116, 126))
    across, marks = _axis([end for _, _, spread, _ in bars for end in spread])
    end = top + _STEP * len(bars)
    for mark in marks:
        x = across(mark)
        picture[top - 4 : end, x : x + 1] = _PALE
        text = lettering(f"{mark:g}", _TEXT)
        _ink(picture, text, end + 6, x - text.shape[1] // 2, _INK)
    for number, (name, rate, (slow, fast), colour) in enumerate(bars):
        y = top + number * _STEP
        text = lettering(name, _TEXT)
        _ink(picture, text, y + 4, max(4, _LEFT - 10 - text.shape[1]), _INK)
        picture[y : y + _BAR, _LEFT : max(across(rate), _LEFT + 1)] = colour
        # From the slowest round to the fastest.
        middle = y + _BAR // 2
        picture[middle - 1 : middle + 1, across(slow) : across(fast) + 1] = _INK
        for x in (across(slow), across(fast)):
            picture[middle - 5 : middle + 5, x : x + 1] = _INK
        shown = f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"
        _write(picture, shown, y + 4, max(across(rate), across(fast)) + 8, _TEXT, _INK)
    return picture


def _axis(rates: list[float]) -> tuple[Callable[[float], int], list[float]]:
    """Frames/s → the column, and where to mark it: in decades where the rates are far apart."""
    room = _WIDTH - _LEFT - _RIGHT
    top = max(rates)
    if top < 20 * min(rates):
        step = 10.0 ** math.floor(math.log10(top))
        step *= 0.2 if top / step < 2 else 0.5 if top / step < 5 else 1
        count = math.ceil(top / step)
        marks = [step * n for n in range(count + 1)]
        return lambda rate: _LEFT + round(room * min(rate / marks[-1], 1.0)), marks
    low, high = math.floor(math.log10(min(rates)) - 0.15), math.ceil(math.log10(top))

    def across(rate: float) -> int:
        share = (math.log10(rate) - low) / (high - low)
        return _LEFT + round(room * min(max(share, 0.0), 1.0))

    return across, [10.0**decade for decade in range(low, high + 1)]


def _write(picture: RGBImage, text: str, top: int, left: int, size: int, colour: Colour) -> None:
    plain = text.encode("ascii", "replace").decode()
    _ink(picture, lettering(plain, size), top, left, colour)


def _ink(
    picture: RGBImage, letters: NDArray[np.float32], top: int, left: int, colour: Colour
) -> None:
    part = picture[top : top + letters.shape[0], left : left + letters.shape[1]]
    weights = letters[: part.shape[0], : part.shape[1], None]
    part[:] = np.round(part * (1 - weights) + np.array(colour) * weights)
