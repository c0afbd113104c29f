"""Choose the windows of a picture that show its exposure, and read them.

A picture by itself shows stripes in its spectra (`reading`, `vdeblur.motion.stripes`); a picture
and the one before it show how the blur changed (`comparison`, `vdeblur.motion.changes`). Knows
nothing of earlier readings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.frames import Frame
from vdeblur.motion.changes import ChangeSums, measure_changes
from vdeblur.motion.flow import Floats, reduced
from vdeblur.motion.movement import Movement
from vdeblur.motion.single_picture import luma_plane
from vdeblur.motion.spectra import WINDOW
from vdeblur.motion.stripes import StripeSums, measure_stripes

#: Share of a frame's time that is assumed where nothing shows the exposure. Half is usual for
#: films, and safe: too short a motion restores too little, too long a motion does damage.
USUAL_SHARE = 0.5
_AREA = 1280 * 720  # pixels that larger pictures are reduced to
#: Range of a window's motion to the next picture for `reading`, in pixels; least for `comparison`.
_SHORTEST, _LONGEST, _CHANGES = 4.0, 48.0, 0.5
#: (height, pixels): a longer blur is read off a picture of half the size, if that is at least this
#: high, since its stripes are too close together. A lower picture has fewer windows, so that the
#: blur must be longer.
_LONG_BLURS = ((4 * WINDOW, 8.0), (3 * WINDOW, 15.0))
_WINDOWS = 32  # read in each frame
_CLOSE = WINDOW // 4  # pixels from window to window
_WORTH = 0.15  # least worth of a window to be read
_FEW = 4  # good windows, below which worse ones are read as well
_BAR = 0.04  # of white: the range within a row or column of a bar beside the picture
#: Share of a window's contrast that may be at clipped pixels, which distort its spectrum.
_CLIPPED = 0.1
#: Masks, since edges of still parts make a moving window seem sharp. Cells of a window count fully
#: if their motion differs from the window's by less than `_OFF` of it, and not at all beyond twice
#: that; motions below `_SLOW` pixels are treated as that long. A cell is `_CELL` pixels wide, and
#: `_RIM` cells around the rest are excluded as well, where the flow is unsure and edges are blurred
#: into the background. The last two are the least share of a window that must remain, of a good
#: window and of any.
_OFF, _SLOW, _CELL, _RIM, _LEFT, _LEFT_AT_LEAST = 0.2, 2.5, 4, 2, 0.5, 0.1
#: Share of combed windows above which a picture is interlaced without saying so. Progressive ones
#: have none.
_COMBED = 0.1
#: Sigma, in pixels, of the Gaussian that contrast counts by: spectra are of a window's middle.
_MIDDLE = 9.0


@dataclass(frozen=True)
class FrameSample:
    """A copy of a frame, to compare the next one with.

    Attributes:
        luma: (rows, columns) in [0, 1], reduced by `shrink`.
        shrink: luma plane's pixels per pixel of `luma`, a whole number.
        movement: the frame's movement.
        way: (2, h, w), motion to the next picture in pixels of the whole luma plane.
    """

    luma: Floats
    shrink: int
    movement: Movement
    way: Floats

    @staticmethod
    def at(frame: Frame, movement: Movement) -> FrameSample:
        """Return a sample of a frame, whose planes may be written after that."""
        luma = luma_plane(frame)
        shrink = max(1, round(math.sqrt(luma.size / _AREA)))
        return FrameSample(_reduced(luma, shrink), shrink, movement, _way(frame, movement))


def reading(
    frame: Frame,
    movement: Movement,
    unit: float,
    *,
    turn: int = 0,
    share: float = USUAL_SHARE,
) -> StripeSums | None:
    """Read the exposure of one frame off the stripes in its spectra.

    Args:
        frame: any frame.
        movement: its movement.
        unit: seconds that the shares of the result refer to.
        turn: another number reads other windows.
        share: expected exposure as a share of a frame's time.

    Returns:
        Sums for a fit; None if nothing in the frame shows the exposure.
    """
    luma, way = luma_plane(frame), _way(frame, movement)
    moving = np.hypot(*way)
    moving = moving[moving > _SHORTEST]
    if not moving.size:
        return None
    grid = _Grid.of(frame, movement, luma, 1, float(np.median(moving)), share)
    if grid is None:
        return None
    length = np.hypot(*grid.chords)
    chosen = grid.chosen((length > _SHORTEST) & (length < _LONGEST), turn)
    if not len(chosen):
        return None
    with torch.inference_mode():
        kept, chords, masks = grid.of_one_motion(chosen)
        if not len(kept):
            return None
        windows = _masked(grid.windows[grid.places(kept)], masks)
        return measure_stripes(windows, chords * (unit / movement.interval_seconds))


def comparison(
    before: FrameSample, frame: Frame, movement: Movement, unit: float, *, turn: int = 0
) -> ChangeSums | None:
    """Compare the spectra of a frame with those of the frame before it.

    Args:
        before: sample of the frame before.
        frame: any frame.
        movement: its movement.
        unit: seconds that the shares of the result refer to.
        turn: another number compares other windows.

    Returns:
        Sums for a fit; None if nothing shows the exposure.
    """
    if movement.back is None or movement is before.movement:  # a repeated picture
        return None
    here = FrameSample.at(frame, movement)
    if here.luma.shape != before.luma.shape:
        return None
    moving = np.maximum(np.hypot(*here.way), np.hypot(*before.way))
    moving = moving[moving > _CHANGES]
    if not moving.size:
        return None
    way_there = float(np.median(moving))
    grid = _Grid.of(frame, movement, here.luma, here.shrink, way_there, USUAL_SHARE)
    if grid is None:
        return None
    # Middles of the windows in the picture before, to the pixel, and their motions there.
    rows, columns = grid.middles
    back = _of_plane(movement.back, frame) / np.float32(grid.shrink)
    rows, columns = (
        (middle + grid.at(part, rows, columns)).round().astype(int)
        for middle, part in ((rows, back[1]), (columns, back[0]))
    )
    way = before.way / np.float32(grid.shrink)
    moved = np.stack([grid.at(part, rows, columns) for part in way], axis=1)
    fastest = np.maximum(np.hypot(*grid.chords), np.hypot(*moved.T))
    half = WINDOW // 2
    told = (fastest > _CHANGES) & (fastest < _LONGEST)
    for middle, side in ((rows, grid.size[1]), (columns, grid.size[0])):
        told &= (middle >= half) & (middle <= side - half)
    chosen = grid.chosen(told, turn)
    if not len(chosen):
        return None
    with torch.inference_mode():
        kept, chords, masks = grid.of_one_motion(chosen, _SLOW)
        if not len(kept):
            return None
        luma = torch.from_numpy(_reduced(before.luma, grid.shrink // before.shrink))
        old = torch.stack([
            luma[rows[k] - half : rows[k] + half, columns[k] - half : columns[k] + half]
            for k in kept
        ])  # fmt: skip
        new = grid.windows[grid.places(kept)]
        if float((_combed(old) | _combed(new)).float().mean()) > _COMBED:
            return None
        ways = torch.from_numpy(moved[kept].astype(np.float32))
        return measure_changes(
            _masked(old, masks),
            _masked(new, masks),
            ways * (unit / before.movement.interval_seconds),
            chords * (unit / movement.interval_seconds),
            turning=(movement.doubtful + before.movement.doubtful) / 2,
        )


@dataclass(frozen=True)
class _Grid:
    """The windows of a picture, and how much each can show.

    windows: (down, across, WINDOW, WINDOW) of luma, reduced by `shrink` to `size` (width, height).
    way: (2, h, w), motion to the next picture in pixels of that plane. One value per window:
    chords, mean motion x and y over what has contrast and moves most; worth, 0 for windows that
    reach into bars; clear, whether it has no clipped pixels.
    """

    windows: Tensor
    size: tuple[int, int]
    shrink: int
    way: Floats
    chords: tuple[Floats, Floats]
    worth: Floats
    clear: NDArray[np.bool_]

    @staticmethod
    def of(
        frame: Frame, movement: Movement, luma: Floats, scale: int, moving: float, share: float
    ) -> _Grid | None:
        """Return the windows of a frame; None if it is too small.

        luma: of the frame, reduced by `scale` already. moving: median motion in pixels of the whole
        plane. share: expected blur as a share of that.
        """
        shrink = max(scale, round(math.sqrt(luma.size * scale**2 / _AREA)))
        inside = [(start * scale, end * scale) for start, end in _inside_bars(luma)]
        # Long blurs are read off a smaller picture, as long as that holds some windows.
        moving /= shrink
        while moving > _LONGEST or any(
            share * moving > blur and min(end - start for start, end in inside) >= height * shrink
            for height, blur in _LONG_BLURS
        ):
            shrink, moving = 2 * shrink, moving / 2
        luma = _reduced(luma, shrink // scale)
        size = luma.shape[1], luma.shape[0]
        if min(size) < WINDOW:
            return None
        windows = _windows(luma, WINDOW)
        way = _way(frame, movement) / np.float32(shrink)
        x, y, worth, clear = _told(frame, movement, way, size, windows.shape[:2])
        down, across = (
            (first * shrink >= start) & ((first + WINDOW) * shrink <= end)
            for (start, end), first in zip(
                inside, (_CLOSE * np.arange(count) for count in windows.shape[:2]), strict=True
            )
        )
        worth = np.where(np.outer(down, across).ravel(), worth, 0)
        return _Grid(windows, size, shrink, way, (x, y), worth, clear)

    @property
    def middles(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the windows' middles."""
        down, across = np.divmod(np.arange(len(self.worth)), self.windows.shape[1])
        return _CLOSE * down + WINDOW // 2, _CLOSE * across + WINDOW // 2

    def at(self, part: Floats, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
        """Sample a field (h, w) at pixels of the plane, or at the nearest ones in it."""
        width, height = self.size
        x = (columns.clip(0, width - 1) + 0.5) * part.shape[1] / width - 0.5
        y = (rows.clip(0, height - 1) + 0.5) * part.shape[0] / height - 0.5
        to_x, to_y = (place.astype(np.float32)[None] for place in (x, y))
        edge = cv2.BORDER_REPLICATE
        values = cv2.remap(part, to_x, to_y, cv2.INTER_LINEAR, borderMode=edge)
        return np.asarray(values[0], np.float32)

    def chosen(self, told: NDArray[np.bool_], turn: int) -> NDArray[np.intp]:
        """Choose evenly spread windows of those in `told` (N,).

        Windows without clipped pixels come first; if they are few, others are taken.
        """
        worth = np.where(told, self.worth, 0)
        # Not by worth: the steepest slopes are where a blur is shorter than average.
        order = np.flatnonzero(worth * self.clear > _WORTH)
        if len(order) < _FEW:
            order = np.flatnonzero(worth > _WORTH)
        apart = max(1, round(len(order) / _WINDOWS))
        return order[turn % apart :: apart]

    def places(self, chosen: NDArray[np.intp]) -> tuple[Tensor, ...]:
        """Return the indices of chosen windows in `windows`."""
        return tuple(map(torch.from_numpy, np.divmod(chosen, self.windows.shape[1])))

    def of_one_motion(
        self, chosen: NDArray[np.intp], slow: float = 0.0
    ) -> tuple[NDArray[np.intp], Tensor, Tensor]:
        """Return the K chosen windows with enough of one motion.

        Their numbers (K,), motions (K, 2), and masks of where they have it, (K, WINDOW, WINDOW) in
        [0, 1]. slow: see `_one_motion`.
        """
        cells = -(-self.size[0] // _CELL), -(-self.size[1] // _CELL)
        places, side = self.places(chosen), WINDOW // _CELL
        ways = torch.stack(
            [_windows(cv2.resize(part, cells), side)[places] for part in self.way], 1
        )
        chords = torch.from_numpy(np.stack([x[chosen] for x in self.chords], axis=1))
        chords, masks, left = _one_motion(ways, chords.float(), slow)
        kept = left > _LEFT
        if int(kept.sum()) < _FEW:
            kept = left > _LEFT_AT_LEAST
        return chosen[kept.numpy()], chords[kept], masks[kept]


def _way(frame: Frame, movement: Movement) -> Floats:
    """Return motions to the next picture, (2, h, w) in pixels of the whole luma plane."""
    return _of_plane(movement.field[:2], frame) * np.float32(movement.interval_seconds)


def _of_plane(vectors: Floats, frame: Frame) -> Floats:
    """Convert vectors (2, h, w) from pixels of a frame to those of its luma plane or field."""
    rows = 0.5 if frame.layout.interlaced else 1.0
    return vectors * np.array([1.0, rows], np.float32)[:, None, None]


def _reduced(luma: Floats, shrink: int) -> Floats:
    """Return a plane reduced to 1/shrink of its sides."""
    size = luma.shape[1] // shrink, luma.shape[0] // shrink
    if shrink == 1 or not min(size):
        return luma
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.float32)


def _inside_bars(luma: Floats) -> list[tuple[int, int]]:
    """Return the (start, end) of a picture's rows and columns inside bars of one color.

    The edges of such bars are sharp whatever the exposure.
    """
    found = []
    for axis in (1, 0):
        seen = np.flatnonzero(np.ptp(luma, axis=axis) > _BAR)
        found.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0))
    return found


def _windows(plane: NDArray[Any], side: int) -> Tensor:
    """Return the windows of a plane, (down, across, side, side), a quarter of `side` apart."""
    there = torch.from_numpy(np.ascontiguousarray(plane, np.float32))
    return there.unfold(0, side, side // 4).unfold(1, side, side // 4)


def _one_motion(ways: Tensor, chords: Tensor, slow: float) -> tuple[Tensor, Tensor, Tensor]:
    """Refine the motions of windows, and mask what moves otherwise.

    Args:
        ways: (N, 2, cells, cells), motion of each cell.
        chords: (N, 2), first estimate of each window's motion.
        slow: shorter motions, in pixels, get the tolerance of this length.

    Returns:
        Motions (N, 2), masks (N, WINDOW, WINDOW) in [0, 1], and shares of the windows' middles that
        the masks leave, (N,).
    """
    hann = torch.hann_window(ways.shape[2])
    hann = hann[:, None] * hann / hann.sum() ** 2
    for _ in range(2):
        length = torch.hypot(chords[:, 0], chords[:, 1])[:, None, None].clamp_min(slow)
        off = torch.hypot(ways[:, 0] - chords[:, :1, None], ways[:, 1] - chords[:, 1:, None])
        masks = (2 - off / (_OFF * length)).clamp(0, 1)
        counts = (masks * hann + 1e-9)[:, None]
        chords = (ways * counts).sum((2, 3)) / counts.sum((2, 3))
    near = F.pad(masks[:, None], (_RIM,) * 4, mode="replicate")
    masks = (2 * F.avg_pool2d(near, 2 * _RIM + 1, 1) - 1).clamp(0, 1)
    left = (masks[:, 0] * hann).sum((1, 2))
    return chords, F.interpolate(masks, scale_factor=_CELL, mode="bilinear")[:, 0], left


def _combed(windows: Tensor) -> Tensor:
    """Return which windows are combed: two fields in one picture, which differ where it moves.

    Such windows vary more from row to row than over every second row.
    """
    next_row, after_next = (
        (windows[:, : -2 * step] - 2 * windows[:, step:-step] + windows[:, 2 * step :])
        .square()
        .mean((1, 2))
        for step in (1, 2)
    )
    return next_row > after_next


def _masked(windows: Tensor, masks: Tensor) -> Tensor:
    """Fade windows to their mean where they are masked, so that masks add no edges."""
    mean = (windows * masks).sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)
    return (windows - mean) * masks


def _told(
    frame: Frame, movement: Movement, way: Floats, size: tuple[int, int], counts: tuple[int, ...]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Rate the windows of a picture of `size` (width, height), `counts` of them down and across.

    way: (2, h, w), motion to the next picture. Returns one value per window: mean motion x and y
    over what has contrast and moves most, worth, and whether it has no clipped pixels.
    """
    small, _ = reduced(frame)
    cells = way.shape[2], way.shape[1]
    slopes = [cv2.Sobel(small, cv2.CV_32F, dx, dy, scale=1 / 8) for dx, dy in ((1, 0), (0, 1))]
    contrast = np.asarray(slopes[0] ** 2 + slopes[1] ** 2, np.float32)
    layout = frame.layout
    white = 250 if layout.kind == "rgb" or layout.full_range else 230
    clipped = cv2.dilate((small >= white).astype(np.float32), np.ones((3, 3)))
    weight, lost = (
        cv2.resize(part, cells, interpolation=cv2.INTER_AREA)
        for part in (contrast, contrast * clipped)
    )
    weight = np.asarray(weight + 1e-3, np.float32)
    # Middles of the windows in the field.
    scale = cells[0] / size[0], cells[1] / size[1]
    across, down = (
        (WINDOW / 2 + _CLOSE * np.arange(count)) * per - 0.5
        for count, per in zip(counts[::-1], scale, strict=True)
    )
    to_x, to_y = (part.astype(np.float32) for part in np.meshgrid(across, down))

    def around(part: NDArray[Any]) -> Floats:
        wide = cv2.GaussianBlur(part, (0, 0), _MIDDLE * scale[0], sigmaY=_MIDDLE * scale[1])
        return np.asarray(cv2.remap(wide, to_x, to_y, cv2.INTER_LINEAR), np.float32).ravel()

    speed = (way**2).sum(axis=0) + np.float32(1e-3)
    moving = around(weight * speed)
    x, y, trust, off = (
        around(part * speed) / moving
        for part in (weight * way[0], weight * way[1], weight * movement.trust, lost)
    )
    slope = np.sqrt(around(weight))
    worth = np.asarray(trust * slope / (slope + 3), np.float32)
    return x, y, worth, off < _CLIPPED
