"""Synthetic pairs with a fixed length of blur: a camera pans over photographs, with known motion.

Each photograph becomes a clip of three frames with uniform motion along a slight bend. The blurred
frame is the mean, in linear light, of the pictures during the exposure. Knows photographs and
motion; knows no networks and no metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.datasets.layouts import picture_files
from vdeblur.datasets.pairs import ImagePair, PairSet
from vdeblur.datasets.pictures import read_rgb
from vdeblur.errors import InputError
from vdeblur.frames import Frame, PlaneLayout

FRAMES = 3
SHUTTER = 0.5  # exposure as a share of the frame interval
_PHOTOGRAPHS = 4
_WINDOW = 288, 448  # rows and columns, at most
_LEAST = 96
_BEND = 0.1  # sideways acceleration per frame interval, as a share of the speed
_MOST_TILT = math.radians(20)  # limit to the long side, so that the picture is large enough

Vector = NDArray[np.float64]  # x, y
Photograph = tuple[str, Callable[[], Tensor]]  # name, and a function that reads (1, 3, H, W)


def photographs_in(folder: Path) -> list[Photograph]:
    """Choose a few evenly spaced pictures of a folder.

    Raises:
        InputError: The folder is missing, or has no pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with photographs")
    files = picture_files(folder)
    chosen = files[:: max(1, len(files) // _PHOTOGRAPHS)][:_PHOTOGRAPHS]
    return [(path.stem, partial(read_rgb, path)) for path in chosen]


def photographs_of(sets: Sequence[PairSet]) -> list[Photograph]:
    """Choose a few sharp pictures of sets of pairs, evenly spread over them and within each."""
    each = -(-_PHOTOGRAPHS // len(sets))
    found: list[Photograph] = []
    for pairs in sets:
        step = max(1, (pairs.expected or each) // each)
        for pair in islice(pairs, step // 2, step * each, step):
            name = "-".join(filter(None, [pairs.name, pair.sequence, pair.name]))
            found.append((name, partial(torch.clone, pair.sharp)))
    return found


def pans(photographs: Sequence[Photograph], length: int, *, motion: bool) -> PairSet:
    """Make a clip of every photograph.

    Args:
        photographs: The photographs. InputError is raised for one that is too small when it is
            read.
        length: Length of the blur in pixels.
        motion: Whether frames carry their true motion.
    """
    return PairSet(
        f"{length} px",
        True,
        FRAMES * len(photographs),
        partial(_films, photographs, length, motion),
    )


def _films(photographs: Sequence[Photograph], length: int, motion: bool) -> Iterator[ImagePair]:
    for number, (name, read) in enumerate(photographs):
        yield from _film(name, read(), length, number, motion)


def _film(
    name: str, photograph: Tensor, length: int, number: int, motion: bool
) -> Iterator[ImagePair]:
    height, width = photograph.shape[2:]
    generator = np.random.default_rng(number)
    tilt = generator.uniform(-_MOST_TILT, _MOST_TILT) + (math.pi / 2 if height > width else 0)
    speed = length / SHUTTER * np.array([math.cos(tilt), math.sin(tilt)])  # pixels a frame
    turn = _BEND * generator.choice([-1, 1]) * np.array([-speed[1], speed[0]])

    def path(frames: float) -> Vector:
        return np.asarray(speed * frames + 0.5 * turn * frames**2)

    # At mid-exposure, positions are whole pixels, so that sharp pictures are cut-outs.
    middles = [np.round(path(k + 0.5)) for k in range(FRAMES)]
    margin = length // 2 + 3
    low = np.min(middles, axis=0) - margin
    span = np.max(middles, axis=0) + margin - low
    columns, rows = (
        int(min(most, size - way) // 8 * 8)
        for most, size, way in zip(_WINDOW[::-1], (width, height), span, strict=True)
    )
    if min(columns, rows) < _LEAST:
        raise InputError(
            f"{name} is {width}×{height}: a pan with {length} pixels of blur needs "
            f"{math.ceil(span[0]) + _LEAST}×{math.ceil(span[1]) + _LEAST}; give larger photographs"
        )
    corner = np.floor((np.array([width - columns, height - rows]) - span) / 2) - low
    linear = _linear(photograph)
    steps = 2 * length + 1
    layout = PlaneLayout(columns, rows, kind="rgb", full_range=True)
    for k, middle in enumerate(middles):
        times = k + 0.5 + SHUTTER * ((np.arange(steps) + 0.5) / steps - 0.5)
        kernel = _kernel([path(time) - path(k + 0.5) for time in times], margin)
        x, y = (int(v) for v in corner + middle)
        around = linear[..., y - margin : y + rows + margin, x - margin : x + columns + margin]
        light = F.conv2d(around.transpose(0, 1), kernel).transpose(0, 1)
        sharp = photograph[..., y : y + rows, x : x + columns]
        chord = SHUTTER * (speed + turn * (k + 0.5))
        bend = 0.5 * turn * SHUTTER**2
        # The window follows the path; its content moves in the opposite direction.
        field = -np.concatenate([chord, bend]).astype(np.float32)[:, None, None]
        blurred = _frame(_coded(light), layout, number * FRAMES + k)
        blurred.motion = np.broadcast_to(field, (4, 2, 2)).copy() if motion else None
        kept = _frame(sharp, layout, number * FRAMES + k)
        if motion:
            kept.motion = np.zeros((4, 2, 2), np.float32)
        yield ImagePair(name, f"{k + 1}", _picture(blurred), _picture(kept), None, blurred, kept)


def _kernel(places: list[Vector], reach: int) -> Tensor:
    """Build the kernel (1, 1, 2·reach + 1, 2·reach + 1) that averages bicubic shifts to places."""
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1)
    for place in places:
        x, y = (math.floor(v) for v in place)
        across, down = _cubic(float(place[0] - x)), _cubic(float(place[1] - y))
        left, top = reach + x - 1, reach + y - 1
        kernel[top : top + 4, left : left + 4] += torch.outer(down, across) / len(places)
    return kernel[None, None]


def _cubic(share: float) -> Tensor:
    """Return the Catmull-Rom weights of four neighbors, for a position `share` past the second."""
    s = share
    weights = (
        -0.5 * s + s**2 - 0.5 * s**3,
        1 - 2.5 * s**2 + 1.5 * s**3,
        0.5 * s + 2 * s**2 - 1.5 * s**3,
        -0.5 * s**2 + 0.5 * s**3,
    )
    return torch.tensor(weights)


def _linear(coded: Tensor) -> Tensor:
    """Decode sRGB values into linear light."""
    return torch.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _coded(linear: Tensor) -> Tensor:
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(1e-9) ** (1 / 2.4) - 0.055)


def _frame(picture: Tensor, layout: PlaneLayout, number: int) -> Frame:
    """Round (1, 3, H, W) to a frame of 8-bit planes."""
    red, green, blue = picture[0].clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
    planes = tuple(np.ascontiguousarray(plane) for plane in (green, blue, red))
    return Frame(planes, layout, number, Fraction(1, 30), 1)


def _picture(frame: Frame) -> Tensor:
    green, blue, red = (torch.from_numpy(plane).float() / 255 for plane in frame.planes)
    return torch.stack([red, green, blue])[None]
