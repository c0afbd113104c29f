"""Pairs that are used several times: a pool of them, and batches of crops out of it.

To blur a picture costs about as much as a step of a small network. So pairs are made larger than
the crops that are trained on, and each is used several times: another part of it, turned another
way, and with other errors of its motion. Knows tensors only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdeblur.errors import UsageError
from vdeblur.training.blur import MOTION_STEP


class Batch(NamedTuple):
    """Pictures to train on, and how each place of them moved during the exposure.

    blurred, sharp: (N, 3, H, W), uint8 or floating point in 0..1. motion: (N, 4, h, w) float32 at
    any size, as `vdeblur.models.taps` defines it, in pixels of the pictures; None where it is not
    known.
    """

    blurred: Tensor
    sharp: Tensor
    motion: Tensor | None = None


@dataclass(frozen=True)
class PoolOptions:
    """How synthetic pairs are made for a run.

    reuse: how often each pair is used. With more than 1, `pairs` of them are made at a time, and
    are larger than a crop by `room` of its side. clean_first, clean_last: the share of pairs with
    little noise and coding (see `blur.lightly`) at the start of a run and at its end; between
    them it changes evenly.
    """

    reuse: int = 1
    pairs: int = 128
    room: float = 0.5
    clean_first: float = 0.0
    clean_last: float = 0.0

    def __post_init__(self) -> None:
        if self.reuse < 1 or self.pairs < 1 or self.room < 0:
            raise UsageError("a pool has 1 pair or more, each used once or more, and room of 0 up")
        if not all(0 <= share <= 1 for share in (self.clean_first, self.clean_last)):
            raise UsageError("shares of clean pairs are from 0 to 1")

    def clean(self, share: float) -> float:
        """The share of clean pairs when `share` of the run is done."""
        return self.clean_first + (self.clean_last - self.clean_first) * min(max(share, 0.0), 1.0)

    def side(self, crop: int) -> int:
        """The side of a pair that crops of `crop` pixels are cut from."""
        room = 0 if self.reuse == 1 else int(crop * self.room)
        return crop + room // MOTION_STEP * MOTION_STEP


class Pool(NamedTuple):
    """Finished pairs on one device: uint8 (P, 3, S, S), and motion (P, 4, S / 4, S / 4) float32."""

    blurred: Tensor
    sharp: Tensor
    motion: Tensor


class Places(NamedTuple):
    """Where the crops of a batch come from, int64 (N,) each.

    rows: which pairs. top, left: the corner, in steps of the motion's grid. Then, one after the
    other and each 0 or 1, the crop is transposed, turned upside down, and mirrored.
    """

    rows: Tensor
    top: Tensor
    left: Tensor
    transposed: Tensor
    down: Tensor
    across: Tensor


def draw_places(
    rows: np.ndarray, rng: np.random.Generator, *, room: int, flips: bool, rotations: bool
) -> Places:
    """Random places in the pairs `rows` (N,); room: how far a corner may be from the pair's own."""
    n = len(rows)
    table = np.empty((6, n), np.int64)
    table[0] = rows
    table[1:3] = rng.integers(room + 1, size=(2, n))
    table[3:] = rng.integers(2, size=(3, n)) * np.array(
        [[rotations], [rotations or flips], [flips]]
    )
    return Places(*torch.from_numpy(table))


def cut_out(pool: Pool, places: Places, crop: int) -> Batch:
    """Crops of `crop` pixels, a multiple of MOTION_STEP, all at once and on the pool's device."""
    device = pool.blurred.device
    table = torch.stack(places)
    if device.type == "cuda":
        table = table.pin_memory()
    at = Places(*table.to(device, non_blocking=True))
    step = MOTION_STEP
    pictures = _index(at, step, crop, pool.blurred.shape[-1])
    blurred, sharp = (_gather(part, at.rows, pictures) for part in pool[:2])
    field = _gather(pool.motion, at.rows, _index(at, 1, crop // step, pool.motion.shape[-1]))
    return Batch(blurred, sharp, turned_vectors(field, at.transposed, at.down, at.across))


def turned_vectors(field: Tensor, transposed: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """The vectors of a field (N, 4, h, w) whose places have been turned; flags (N,), 0 or 1."""
    x, y = field[:, ::2], field[:, 1::2]
    swapped = torch.stack([y, x], dim=2).flatten(1, 2)
    swapped = torch.where(transposed.view(-1, 1, 1, 1) > 0, swapped, field)
    signs = torch.stack([1 - 2 * across, 1 - 2 * down] * 2, dim=1)
    return swapped * signs[:, :, None, None].to(field)


def _index(at: Places, step: int, side: int, whole: int) -> Tensor:
    """Where each pixel of N crops lies in a flattened picture of side `whole`: (N, side, side)."""
    here = torch.arange(side, device=at.rows.device)
    mirrored = side - 1 - here
    row = torch.where(at.down[:, None] > 0, mirrored, here)[:, :, None]
    column = torch.where(at.across[:, None] > 0, mirrored, here)[:, None, :]
    across = at.transposed[:, None, None] > 0
    y, x = torch.where(across, column, row), torch.where(across, row, column)
    return (y + step * at.top[:, None, None]) * whole + x + step * at.left[:, None, None]


def _gather(part: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Crops of (P, C, S, S) from pairs `rows`, at `index` (N, side, side): (N, C, side, side)."""
    n, side = index.shape[:2]
    some = part.index_select(0, rows).flatten(2)
    flat = index.view(n, 1, -1).expand(-1, some.shape[1], -1)
    return some.gather(2, flat).view(n, -1, side, side)
