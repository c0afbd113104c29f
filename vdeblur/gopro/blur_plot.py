"""A recording's blur over time as a picture: by the sensors, and by the pictures.

Knows arrays in, pixels out; no telemetry, no video.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.pictures import RGBImage
from vdeblur.evaluation.figures import drawn, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

_WIDTH, _HEIGHT = 1280, 652  # pixels
#: Fractions of the picture: the panels' left edge and width, their lower edges and height.
_LEFT, _ROOM, _BOTTOMS, _TALL = 0.066, 0.912, (0.488, 0.07), 0.35
_INK, _GRID, _GROUND = "#282828", "#dedede", "#fdebd0"
_BLUE, _ORANGE, _GREEN = "#1f60a8", "#d15400", "#1e7e46"
_TEXT = 11  # points
#: Seconds between the marks on the axis of time, round for people.
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)


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
    """Draw blur lengths with the threshold, and below them the sharpness, over time.

    Times above the threshold have a coloured ground in both panels.

    Args:
        times: (N,) seconds of each frame.
        blur: (N,) pixels; NaN where unknown.
        threshold: Pixels of blur from which on a frame is restored.
        sharp_times: (M,) seconds of the pictures whose sharpness was measured.
        sharp: (M,) sharpness; NaN where unknown.
        title: Shown above.
        subtitle: Shown below the title.

    Returns:
        (652, 1280, 3) uint8 RGB.

    Raises:
        UsageError: matplotlib is missing.
    """
    figure = new_figure(_WIDTH, _HEIGHT, purpose="a plot of the blur")
    figure.text(_LEFT, 0.975, title, size=15, color=_INK, va="top")
    figure.text(_LEFT, 0.93, subtitle, size=_TEXT, color=_INK, va="top")
    seen = np.isfinite(sharp)
    sharp_times, sharp = sharp_times[seen], sharp[seen]
    end = float(
        max(times[-1] if len(times) else 0, sharp_times[-1] if len(sharp_times) else 0, 1e-3)
    )
    known = blur[np.isfinite(blur)]
    frame = float(np.median(np.diff(times))) if len(times) > 1 else end
    above = np.nan_to_num(blur) >= threshold
    first, second = (figure.add_axes((_LEFT, low, _ROOM, _TALL)) for low in _BOTTOMS)
    for axes in (first, second):
        _prepare(axes, end, times[above], frame)
    first.tick_params(labelbottom=False)
    first.set_title(
        "blur in pixels: rate of turn × exposure × focal length", size=_TEXT, loc="left"
    )
    first.set_ylim(0, max(1.25 * threshold, float(known.max()) * 1.05 if len(known) else 0.0))
    first.plot(times, blur, color=_BLUE, linewidth=1.5)
    first.axhline(threshold, color=_ORANGE, linewidth=1.5, snap=True)
    first.annotate(
        f"threshold {threshold:g} px", (0, threshold), (6, 4), size=_TEXT, color=_ORANGE,
        textcoords="offset points",
    )  # fmt: skip
    second.set_title(
        "sharpness of the picture itself (lower: more blurred)", size=_TEXT, loc="left"
    )
    low, high = (float(sharp.min()), float(sharp.max())) if len(sharp) else (0.0, 1.0)
    room = max(0.05, high - low) * 0.1
    second.set_ylim(low - room, high + room)
    second.plot(sharp_times, sharp, "s", color=_GREEN, markersize=2.5)
    return drawn(figure)


def _prepare(axes: Axes, end: float, above: Floats, frame: float) -> None:
    """Set up the axis of time, the grid, and the ground of frames above the threshold."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

    axes.set_xlim(0, end)
    fitting = [step for step in _STEPS if end / 12 <= step <= end]
    axes.xaxis.set_major_locator(MultipleLocator(fitting[0]) if fitting else MaxNLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=_TEXT, labelcolor=_INK)
    if len(above):
        # Frames that follow each other share one patch.
        breaks = np.flatnonzero(np.diff(above) > 1.5 * frame) + 1
        runs = np.split(above, breaks)
        axes.broken_barh(
            [(float(run[0]), float(run[-1] - run[0]) + frame) for run in runs], (0, 1),
            transform=axes.get_xaxis_transform(), color=_GROUND, zorder=0,
        )  # fmt: skip


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )
