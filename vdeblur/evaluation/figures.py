"""Figures of matplotlib as pictures, drawn by Agg without pyplot and its global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vdeblur.datasets.pictures import RGBImage
from vdeblur.system.optional import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 100


def new_figure(width: int, height: int, *, purpose: str) -> Figure:
    """Create an empty white figure.

    Args:
        width: In pixels.
        height: In pixels.
        purpose: What it is for, as the subject of the error's sentence.

    Raises:
        UsageError: matplotlib is missing.
    """
    figures = optional("matplotlib.figure", extra="plots", purpose=purpose)
    figure: Figure = figures.Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    return figure


def drawn(figure: Figure) -> RGBImage:
    """Draw a figure: (rows, columns, 3) uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)  # whose methods lack types
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3].copy()
