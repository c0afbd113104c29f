"""A benchmark as a picture: a bar for each step, and one for each trial of a sweep.

Knows neither videos nor networks.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vdeblur.benchmark.result import MORE, STEPS, BenchResult
from vdeblur.benchmark.sweep import AGREEMENT, Sweep
from vdeblur.datasets.pictures import RGBImage, write_png
from vdeblur.evaluation.figures import drawn, new_figure

#: Pixels: of the whole picture and its margins, and from one bar to the next.
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _STEP = 1000, 250, 130, 84, 50, 38
_BAR = 24 / _STEP  # of the distance to the next
_INK, _GREY, _PALE, _BLUE, _ORANGE = "#282c34", "#6e747e", "#e1e4e8", "#4276b8", "#e2802e"
_FAR_APART = 20  # fastest over slowest, from which on the axis is logarithmic


@dataclass(frozen=True)
class _Bar:
    """Frames/s: the median, and the slowest and fastest round."""

    name: str
    rate: float
    spread: tuple[float, float]
    colour: str


def draw(result: BenchResult | None, sweep: Sweep | None) -> RGBImage:
    """Draw a result, a sweep, or one above the other.

    Bars are medians, whiskers reach from the slowest round to the fastest. The slowest step, the
    pipeline and the sweep's choice stand out; trials that differ too much from fp32 are pale.

    Returns:
        (H, 1000, 3) uint8 RGB.

    Raises:
        UsageError: matplotlib is missing.
    """
    parts: list[RGBImage] = []
    if result is not None:
        names = [name for name in (*STEPS, *MORE) if name in result.rates]
        bars = [
            _Bar(
                name,
                result.rate(name),
                result.rates[name].spread,
                _ORANGE if name in (result.slowest, "pipeline") else _BLUE,
            )
            for name in names
        ]
        title = f"{result.model}, {result.size}, {result.backend} {result.precision}, batch "
        parts.append(_chart(f"{title}{result.batch}: frames/s", result.device, bars))
    if sweep is not None:
        bars = []
        for trial in sweep.trials:
            if not trial.rounds:
                continue
            tile = "whole" if trial.tile is None else f"tile {trial.tile}"
            colour = _ORANGE if trial is sweep.best else _BLUE
            bars.append(
                _Bar(
                    f"{trial.backend} {trial.precision}, {trial.batch}, {tile}",
                    statistics.median(trial.rounds),
                    (min(trial.rounds), max(trial.rounds)),
                    colour if trial.decibels >= AGREEMENT else _PALE,
                )
            )
        title = f"{sweep.model}, {sweep.size}, settings: frames/s"
        parts.append(_chart(title, sweep.device, bars))
    return np.concatenate(parts)


def write(
    path: Path, result: BenchResult | None, sweep: Sweep | None, *, overwrite: bool = False
) -> None:
    """Write the chart as a PNG; OutputError when it cannot be written."""
    write_png(path, draw(result, sweep), only_new=not overwrite)


def _chart(title: str, subtitle: str, bars: list[_Bar]) -> RGBImage:
    height = _TOP + _STEP * len(bars) + _BOTTOM
    figure = new_figure(_WIDTH, height, purpose="a chart")
    figure.text(20 / _WIDTH, 1 - 20 / height, title, size=14, color=_INK, va="top")
    figure.text(20 / _WIDTH, 1 - 48 / height, subtitle, size=11, color=_GREY, va="top")
    room = (_WIDTH - _LEFT - _RIGHT) / _WIDTH
    axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / height, room, _STEP * len(bars) / height))
    places, rates = range(len(bars)), [bar.rate for bar in bars]
    slow, fast = ([bar.spread[end] for bar in bars] for end in (0, 1))
    axes.barh(places, rates, height=_BAR, color=[bar.colour for bar in bars])
    axes.hlines(places, slow, fast, color=_INK, linewidth=1.5)
    for ends in (slow, fast):
        axes.plot(ends, places, "|", color=_INK, markersize=8)
    for place, bar in zip(places, bars, strict=True):
        axes.annotate(
            _rounded(bar.rate), (max(bar.rate, bar.spread[1]), place), (8, 0),
            textcoords="offset points", va="center", size=11, color=_INK, annotation_clip=False,
        )  # fmt: skip
    if max(fast) < _FAR_APART * min(slow):
        axes.set_xlim(0, max(fast) * 1.02)
    else:
        low, high = math.floor(math.log10(min(slow)) - 0.15), math.ceil(math.log10(max(fast)))
        axes.set_xscale("log")
        axes.set_xlim(10.0**low, 10.0**high)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.grid(axis="x", color=_PALE)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=11, labelcolor=_INK)
    return drawn(figure)


def _rounded(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2f}"
