"""Crops on which the ranges of a network in int8 are measured. Knows tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Most crops that ranges are measured on, and their largest side in pixels.
_SAMPLES, _SAMPLE_SIDE = 24, 512


def to_tensor(picture: NDArray[np.uint8]) -> Tensor:
    """Convert an RGB picture (H, W, 3) to (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float().div(255)


def samples_of(pictures: Sequence[Tensor], multiple: int) -> list[Tensor]:
    """Choose pictures evenly and crop their middles, for measuring ranges.

    Args:
        pictures: (N, 3 or more, H, W) each.
        multiple: Sides of the crops are multiples of this many pixels; edges are repeated where a
            picture is too small.

    Returns:
        Up to 24 crops (1, C, h, w) float32 on the CPU, of up to 512 pixels a side.
    """
    singles = [
        single for batch in pictures for single in torch.split(batch.detach().cpu().float(), 1)
    ]
    step = max(1, len(singles) / _SAMPLES)
    chosen = [singles[int(i * step)] for i in range(min(len(singles), _SAMPLES))]
    samples = []
    for picture in chosen:
        height, width = picture.shape[2:]
        top, left = (max(0, (size - _SAMPLE_SIDE) // 2) for size in (height, width))
        crop = picture[..., top : top + _SAMPLE_SIDE, left : left + _SAMPLE_SIDE]
        below, right = (-size % multiple for size in crop.shape[2:])
        samples.append(F.pad(crop, (0, right, 0, below), mode="replicate").contiguous())
    return samples
