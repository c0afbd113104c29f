"""A pool of pairs that are each used several times, and batches of crops out of it.

Blurring a picture costs about as much as a step of a small network. So pairs are larger than the
crops of a batch, and each is used several times: another part of it, turned another way, with other
errors of its motion. The channels of neighboring frames are computed once for a whole pair. Knows
tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.camera_effects import to_device
from vdeblur.datasets.camera_motion import MOTION_STEP
from vdeblur.errors import UsageError


class Batch(NamedTuple):
    """Pictures to train on, and how each place of them moved during the exposure.

    Args:
        blurred: (N, 3, H, W), uint8 or floating point in 0..1.
        sharp: As `blurred`.
        motion: (N, 4, h, w) float32 of any size, in pixels of the pictures, as
            `vdeblur.networks.taps` defines it; None if unknown.
        around: (2, N, PICTURES + DIRECTION_CHANNELS, H, W), the channels that `taps.neighbour`
            computes of the frames before and after, 0 where there are none; or None.
    """

    blurred: Tensor
    sharp: Tensor
    motion: Tensor | None = None
    around: Tensor | None = None


@dataclass(frozen=True)
class PoolOptions:
    """How synthetic pairs are made for a run.

    Args:
        reuse: How often each pair is used. The next two apply if it is more than 1.
        pairs: How many pairs are made at a time.
        room: By how much pairs are larger than a crop, as a share of its side.
        clean_first: The share of pairs with little noise and coding (see `blur_options.lightly`) at
            the start of a run. It changes evenly to `clean_last`.
        clean_last: This share at the end of a run.

    Raises:
        UsageError: A value is out of its range.
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
        """Return the share of clean pairs when `share` of the run is done."""
        return self.clean_first + (self.clean_last - self.clean_first) * min(max(share, 0.0), 1.0)

    def side(self, crop: int) -> int:
        """Return the side of pairs that crops of `crop` pixels are cut from."""
        room = 0 if self.reuse == 1 else int(crop * self.room)
        return crop + room // MOTION_STEP * MOTION_STEP


class Film(NamedTuple):
    """The knowledge about P pairs that are frames of films.

    Args:
        known: (P,) int64: how the motion of each is known, see `motion_errors`.
        pictures: (P, 2 · PICTURES, S, S) float16: the channels that a guided network sees of the
            frame before, then of the one after.
        directions: (P, 2 · DIRECTION_CHANNELS, S / 4, S / 4), likewise.
    """

    known: Tensor
    pictures: Tensor
    directions: Tensor


class Pool(NamedTuple):
    """Finished pairs on one device: uint8 (P, 3, S, S), and motion (P, 4, S / 4, S / 4) float32."""

    blurred: Tensor
    sharp: Tensor
    motion: Tensor
    film: Film | None = None


class Places(NamedTuple):
    """Where the crops of a batch come from, int64 (N,) each.

    Args:
        rows: Which pairs.
        top: Row of the corner, in steps of the motion's grid.
        left: Column of the corner, likewise.
        transposed: 1 to transpose the crop, else 0. The last three apply in this order.
        down: 1 to turn it upside down.
        across: 1 to mirror it.
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
    """Draw places of crops.

    Args:
        rows: (N,): which pairs.
        rng: Decides the places.
        room: How far a crop's corner may be from the pair's, in steps of the motion's grid.
        flips: Whether crops are mirrored.
        rotations: Whether crops are turned by quarters.
    """
    n = len(rows)
    table = np.empty((6, n), np.int64)
    table[0] = rows
    table[1:3] = rng.integers(room + 1, size=(2, n))
    table[3:] = rng.integers(2, size=(3, n)) * np.array(
        [[rotations], [rotations or flips], [flips]]
    )
    return Places(*torch.from_numpy(table))


def joined(pools: Sequence[Pool]) -> Pool:
    """Join several pools into one."""
    films = [pool.film for pool in pools if pool.film is not None]
    return Pool(
        torch.cat([pool.blurred for pool in pools]),
        torch.cat([pool.sharp for pool in pools]),
        torch.cat([pool.motion for pool in pools]),
        Film(*(torch.cat(part) for part in zip(*films, strict=True))) if films else None,
    )


def cut_out(pool: Pool, places: Places, crop: int) -> Pool:
    """Cut crops out of a pool, all at once and on its device.

    Args:
        pool: The pairs.
        places: Where the crops come from.
        crop: Their side in pixels, a multiple of MOTION_STEP.
    """
    at = Places(*to_device(torch.stack(places), pool.blurred.device))
    step, turns = MOTION_STEP, (at.transposed, at.down, at.across)
    pictures = _index(at, step, crop, pool.blurred.shape[-1])
    fields = _index(at, 1, crop // step, pool.motion.shape[-1])
    blurred, sharp = (_gather(part, at.rows, pictures) for part in pool[:2])
    motion = turned_vectors(_gather(pool.motion, at.rows, fields), *turns)
    film = None
    if pool.film is not None:
        film = Film(
            pool.film.known.index_select(0, at.rows),
            _gather(pool.film.pictures, at.rows, pictures),
            turned_directions(_gather(pool.film.directions, at.rows, fields), *turns),
        )
    return Pool(blurred, sharp, motion, film)


def around_of(film: Film) -> Tensor:
    """Return the channels of the frames before and after, as in `Batch.around`."""
    size = film.pictures.shape[2:]
    wide = F.interpolate(film.directions, size=size, mode="bilinear", align_corners=False)
    parts = film.pictures.to(wide).chunk(2, dim=1), wide.chunk(2, dim=1)
    return torch.stack([torch.cat(part, dim=1) for part in zip(*parts, strict=True)])


def turned_vectors(field: Tensor, transposed: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Turn the vectors of a field (N, 4, h, w) whose places have been turned; flags (N,)."""
    x, y = field[:, ::2], field[:, 1::2]
    swapped = torch.stack([y, x], dim=2).flatten(1, 2)
    swapped = torch.where(transposed.view(-1, 1, 1, 1) > 0, swapped, field)
    signs = torch.stack([1 - 2 * across, 1 - 2 * down] * 2, dim=1)
    return swapped * signs[:, :, None, None].to(field)


def turned_directions(field: Tensor, transposed: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Turn directions (N, 2 · DIRECTION_CHANNELS, h, w) whose places have been turned; flags (N,).

    Of twice a direction, transposing negates the cosine, and a single mirror negates the sine.
    """
    cosine, sine = 1 - 2 * transposed, 1 - 2 * (down ^ across)
    signs = torch.stack([torch.ones_like(cosine), cosine, sine] * 2, dim=1)
    return field * signs[:, :, None, None].to(field)


def _index(at: Places, step: int, side: int, whole: int) -> Tensor:
    """Index of each pixel of N crops in a flattened picture of side `whole`: (N, side, side)."""
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
