"""Compute a picture in overlapping tiles and fade them into each other.

Knows tensors and the attributes of a network; no devices, no memory, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vdeblur.errors import UsageError
from vdeblur.networks.base import traits_of

#: Pixels at a tile's edge that are computed and dropped, for a network that does not say.
MARGIN = 32
#: Pixels over which neighboring tiles fade into each other.
FEATHER = 16
#: Smallest side of a tile in pixels; a smaller tile is mostly overlap.
MIN_TILE = 128


def margin_of(network: nn.Module, halo: int | Literal["auto", "full"]) -> int:
    """Return the pixels at a tile's edge that are computed and dropped.

    Args:
        network: Its `receptive_radius` is exact, None for the whole picture; its `tile_margin` is
            cheaper, and seams stay under half an 8-bit level.
        halo: A number of pixels, "auto" for the network's `tile_margin`, "full" for its
            `receptive_radius`.

    Raises:
        UsageError: halo is negative, or "full" for a network without a finite halo.
    """
    traits = traits_of(network)
    own = traits.receptive_radius
    if halo == "full":
        if own is None:
            raise UsageError(
                "halo is full, but this network weighs its channels by the whole picture: "
                "no halo makes tiles exact, use `tile=None`"
            )
        return own
    if halo != "auto":
        if halo < 0:
            raise UsageError(f"halo is {halo}: choose a number of pixels from 0, auto or full")
        return halo
    margin = traits.tile_margin
    return margin if own is None else min(own, margin)


def in_tiles(
    run: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    tile: int,
    margin: int,
    multiple: int = 1,
    feather: int = FEATHER,
) -> Tensor:
    """Compute run(images) in tiles of one shape that fade into each other.

    Args:
        run: Maps (N, C, h, w) to (N, 3, h, w).
        images: (N, C, H, W); H and W are multiples of `multiple`.
        tile: Side in pixels of the squares given to `run`, overlap included; rounded up to
            `multiple`. All tiles start at a multiple of it.
        margin: Pixels at a tile's edge that are not used, unless the picture ends there. With
            the network's full halo, the result equals that of the whole picture to rounding.
        multiple: The network's size multiple, in pixels.
        feather: Pixels of the linear fade, at least 1.

    Returns:
        (N, 3, H, W) float32.
    """
    height, width = images.shape[2:]
    overlap = 2 * margin + feather
    rows = tile_places(height, tile, overlap, multiple)
    columns = tile_places(width, tile, overlap, multiple)
    row_weights = _fades(rows, height, margin, feather, images.device)
    column_weights = _fades(columns, width, margin, feather, images.device)
    shape = (len(images), 3, height, width)
    result = torch.zeros(shape, dtype=torch.float32, device=images.device)
    for (top, bottom), down in zip(rows, row_weights, strict=True):
        for (left, right), across in zip(columns, column_weights, strict=True):
            part = run(images[..., top:bottom, left:right])
            weights = down[:, None] * across
            # A weight of 0 does not silence a NaN: `guard.damaged` has to see it.
            result[..., top:bottom, left:right].addcmul_(part.float(), weights)
    return result


def tile_places(size: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Return (start, end) of equal tiles that cover 0…size and overlap by `overlap` or more."""
    # Counted in multiples, so that rounding can neither misalign a tile nor eat the overlap.
    whole, side, over = (-(-n // multiple) for n in (size, tile, overlap))
    if side >= whole:
        return [(0, size)]
    side = min(max(side, over + 1), whole)
    last = whole - side
    count = 1 + -(-last // (side - over))
    starts = [multiple * (i * last // max(count - 1, 1)) for i in range(count)]
    return [(start, start + side * multiple) for start in starts]


def _fades(
    places: list[tuple[int, int]], size: int, margin: int, feather: int, device: torch.device
) -> list[Tensor]:
    """Weights along each tile: 0 in the margin, then a ramp; together 1 at every pixel."""
    total = torch.zeros(size, device=device)
    fades = []
    for start, end in places:
        inside = torch.arange(end - start, device=device)
        fade = torch.ones(end - start, device=device)
        if start > 0:
            fade = ((inside - margin + 0.5) / feather).clamp(0, 1)
        if end < size:
            from_end = inside.flip(0)
            fade = fade.minimum(((from_end - margin + 0.5) / feather).clamp(0, 1))
        total[start:end] += fade
        fades.append(fade)
    return [fade / total[start:end] for fade, (start, end) in zip(fades, places, strict=True)]


def sample_crops(picture: Tensor, *, area: int, multiple: int) -> Tensor:
    """Cut four square crops, spread evenly over a (1, C, H, W) picture.

    The crops are as large as the picture allows, since small crops would be mostly border.

    Args:
        picture: (1, C, H, W).
        area: Most pixels of all crops together.
        multiple: Sides and positions of the crops are multiples of this many pixels.

    Returns:
        (4, C, side, side).
    """
    height, width = picture.shape[2:]
    side = min(math.isqrt(area) // 2, height, width) // multiple * multiple
    side = max(side, multiple)

    def starts(size: int) -> list[int]:
        # The middles of the halves.
        middles = (size // 4, size - size // 4)
        return [
            min(max(middle - side // 2, 0), size - side) // multiple * multiple
            for middle in middles
        ]

    return torch.cat(
        [
            picture[..., top : top + side, left : left + side]
            for top in starts(height)
            for left in starts(width)
        ]
    )
