"""Reject corrections that no deblurrer makes. Knows tensors only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

#: Side in pixels of the blocks whose means are judged.
BLOCK = 16
#: Largest mean of a block, in either direction; RGB is 0..1.
BLOCK_MEAN = 0.35
#: Largest mean absolute value of a whole correction.
MEAN = 0.15


def damaged(delta: Tensor) -> Tensor:
    """Find the corrections that no deblurrer would make.

    A deblurrer moves detail and leaves the mean of a neighborhood as it is. A correction is
    damaged if it is not finite, if its mean over a whole 16×16 block of a channel is beyond ±0.35
    (a blot, a shift of color), or if its mean absolute value is above 0.15 (a pattern all over).
    Sharpening black text that was blurred to gray moves single pixels by 0.5, and the means of
    blocks hardly at all.

    Args:
        delta: Corrections (N, 3, H, W) of RGB in 0..1.

    Returns:
        bool (N,), True for the damaged ones.
    """
    block = (min(BLOCK, delta.shape[2]), min(BLOCK, delta.shape[3]))
    worst = F.avg_pool2d(delta, block).abs_().amax(dim=(1, 2, 3))
    mean = delta.abs().mean(dim=(1, 2, 3))
    # not (x <= limit), so that NaN counts as damage.
    return ~((worst <= BLOCK_MEAN) & (mean <= MEAN))
