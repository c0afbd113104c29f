"""Windows of a film's pictures that tell how long its shutter was open: which, and what they show.

Of a picture by itself, stripes in its spectra (`reading`, `vdeblur.motion.stripes`); of one and the
one before it, how its blur changed (`comparison`, `vdeblur.motion.changes`). Knows nothing of what
was read before.
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

#: Share of a frame's time that is taken where nothing tells: film's usual half, which is also safe:
#: too short a motion restores too little, too long a one does damage.
USUAL_SHARE = 0.5
_AREA = 1280 * 720  # pixels that larger pictures are reduced to
#: Pixels to the next picture that a window can be asked about; and from which on it changes.
_SHORTEST, _LONGEST, _CHANGES = 4.0, 48.0, 0.5
#: A blur of more than so many pixels is read off a picture of half the size that is this many
#: windows high: its stripes are hardly apart any more. The lower it is, the fewer windows there are
#: to ask, and the longer the blur has to be.
_LONG_BLURS = ((4 * WINDOW, 8.0), (3 * WINDOW, 15.0))
_WINDOWS = 32  # that are read of a frame
_CLOSE = WINDOW // 4  # pixels from one window that may be read to the next
_WORTH = 0.15  # least worth of a window to be read
_FEW = 4  # good windows, below which others are read too
_BAR = 0.04  # of white, that a row or a column of a bar beside the picture differs by at most
#: Of the contrast in a window, what may be at clipped pixels, whose spectra are not the blur's.
_CLIPPED = 0.1
#: Beside what stands still, what moves seems sharp: of a window only what has its motion is looked
#: at, all that is off by less than this share of it, nothing that is off by twice that; of motions
#: below so many pixels, as if they were of that. `_CELL` pixels of a window have one motion; around
#: what moves so many of them are left out too, for the flow is not sure of its edge, which is
#: blurred into what is behind. And how much of a window has to be left, of a good one and of any.
_OFF, _SLOW, _CELL, _RIM, _LEFT, _LEFT_AT_LEAST = 0.2, 2.5, 4, 2, 0.5, 0.1
#: Share of combed windows from which on a picture is two fields that nobody told of. Of pictures
#: that are one, none is.
_COMBED = 0.1
#: Spectra are of a window's middle: contrast counts by a Gaussian of so many pixels.
_MIDDLE = 9.0


@dataclass(frozen=True)
class FrameSample:
    """What is kept of a frame, to compare the next one with: its luma in [0, 1], reduced by a whole
    number (`shrink`) if it is large; and its movement, of whose places `way` is the way to the next
    picture, (2, h, w), pixels of the whole luma plane.
    """

    luma: Floats
    shrink: int
    movement: Movement
    way: Floats

    @staticmethod
    def at(frame: Frame, movement: Movement) -> FrameSample:
        """What is seen of this one; its planes may be written after that."""
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
    """What one frame says of its exposure, in ways of `unit` seconds; None if nothing tells.

    turn: another number looks at other windows. share: what the exposure is thought to be, of a
    frame's time.
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
    """What changed in a frame since the one before it, in ways of `unit` seconds; None if nothing
    tells. turn: another number looks at other windows.
    """
    if movement.back is None or movement is before.movement:  # it is the same picture again
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
    # Where the windows' middles were in the picture before, to the pixel, and how they moved there.
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
    """The windows of a picture, (down, across, WINDOW, WINDOW), of a luma plane of `size` (width,
    height) that is reduced `shrink` times; the way of each place to the next picture, (2, h, w),
    pixels of that plane. Values a window: the mean of the way over what has contrast and moves
    most, x and y; the worth of the window, 0 of those that reach into bars; whether it is without
    clipped pixels.
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
        """Those of a frame; None if it is too small. luma: of it, reduced `scale` times already;
        moving: pixels of the whole plane that most of it moves by; share: of that, what it is
        thought to be blurred by.
        """
        shrink = max(scale, round(math.sqrt(luma.size * scale**2 / _AREA)))
        inside = [(start * scale, end * scale) for start, end in _inside_bars(luma)]
        # A long blur is read off a smaller picture, as long as that holds some windows.
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
        """The rows and columns of the windows' middles."""
        down, across = np.divmod(np.arange(len(self.worth)), self.windows.shape[1])
        return _CLOSE * down + WINDOW // 2, _CLOSE * across + WINDOW // 2

    def at(self, part: Floats, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Floats:
        """What a field (h, w) has at pixels of the plane, or at the nearest in it."""
        width, height = self.size
        x = (columns.clip(0, width - 1) + 0.5) * part.shape[1] / width - 0.5
        y = (rows.clip(0, height - 1) + 0.5) * part.shape[0] / height - 0.5
        to_x, to_y = (place.astype(np.float32)[None] for place in (x, y))
        edge = cv2.BORDER_REPLICATE
        values = cv2.remap(part, to_x, to_y, cv2.INTER_LINEAR, borderMode=edge)
        return np.asarray(values[0], np.float32)

    def chosen(self, told: NDArray[np.bool_], turn: int) -> NDArray[np.intp]:
        """Some windows of those that tell (N,), evenly spread; without clipped pixels, or, if
        there are few of those, with some.
        """
        worth = np.where(told, self.worth, 0)
        # Not those that tell most: the steepest slopes are where a blur is shorter than it seems.
        order = np.flatnonzero(worth * self.clear > _WORTH)
        if len(order) < _FEW:
            order = np.flatnonzero(worth > _WORTH)
        apart = max(1, round(len(order) / _WINDOWS))
        return order[turn % apart :: apart]

    def places(self, chosen: NDArray[np.intp]) -> tuple[Tensor, ...]:
        """Of windows that were chosen, where they are in `windows`."""
        return tuple(map(torch.from_numpy, np.divmod(chosen, self.windows.shape[1])))

    def of_one_motion(
        self, chosen: NDArray[np.intp], slow: float = 0.0
    ) -> tuple[NDArray[np.intp], Tensor, Tensor]:
        """Of windows that were chosen those with enough of one motion, (K,); their ways, (K, 2);
        and where they have it, (K, WINDOW, WINDOW) in [0, 1]. slow: see `_one_motion`.
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
    """(2, h, w), how far places go until the next picture, pixels of the whole luma plane."""
    return _of_plane(movement.field[:2], frame) * np.float32(movement.interval_seconds)


def _of_plane(vectors: Floats, frame: Frame) -> Floats:
    """Vectors (2, h, w) in pixels of a frame, in those of its luma plane: of interlaced ones, of a
    field's.
    """
    rows = 0.5 if frame.layout.interlaced else 1.0
    return vectors * np.array([1.0, rows], np.float32)[:, None, None]


def _reduced(luma: Floats, shrink: int) -> Floats:
    """A plane of 1/shrink of its sides."""
    size = luma.shape[1] // shrink, luma.shape[0] // shrink
    if shrink == 1 or not min(size):
        return luma
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.float32)


def _inside_bars(luma: Floats) -> list[tuple[int, int]]:
    """The first row of a picture and the one after its last, and the same of its columns, without
    the bars of one colour that a film of another shape has beside it: their edge is sharp whatever
    the shutter did.
    """
    found = []
    for axis in (1, 0):
        seen = np.flatnonzero(np.ptp(luma, axis=axis) > _BAR)
        found.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 0))
    return found


def _windows(plane: NDArray[Any], side: int) -> Tensor:
    """All windows of a plane, (down, across, side, side), a quarter of their side apart."""
    there = torch.from_numpy(np.ascontiguousarray(plane, np.float32))
    return there.unfold(0, side, side // 4).unfold(1, side, side // 4)


def _one_motion(ways: Tensor, chords: Tensor, slow: float) -> tuple[Tensor, Tensor, Tensor]:
    """Windows' motions, cell by cell (N, 2, cells, cells), and which each is asked about (N, 2) →
    that more exactly; (N, WINDOW, WINDOW) in [0, 1], where the window has it; and how much of the
    window's middle that leaves, (N,). Motions of less than `slow` pixels are as exact as of that.
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
    """Which windows (N, …) bend more from row to row than over every second: two fields in one,
    which lie the farther apart the faster it moves.
    """
    next_row, after_next = (
        (windows[:, : -2 * step] - 2 * windows[:, step:-step] + windows[:, 2 * step :])
        .square()
        .mean((1, 2))
        for step in (1, 2)
    )
    return next_row > after_next


def _masked(windows: Tensor, masks: Tensor) -> Tensor:
    """Windows without what is masked, which leaves no edges of its own: it fades to the mean."""
    mean = (windows * masks).sum((1, 2), keepdim=True) / masks.sum((1, 2), keepdim=True)
    return (windows - mean) * masks


def _told(
    frame: Frame, movement: Movement, way: Floats, size: tuple[int, int], counts: tuple[int, ...]
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """What windows of a picture of `size` (width, height), `counts` of them down and across, tell.

    way: (2, h, w), the field's pixels to the next picture. Returns, a value a window: the mean of
    it over what has contrast and moves most, x and y; the worth of the window; and whether it is
    without clipped pixels.
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
    # Places of the windows' middles among the field's.
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
