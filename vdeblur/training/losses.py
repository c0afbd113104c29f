"""Losses over the images of all scales, coarse to fine, named as in their papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def target_pyramid(sharp: Tensor, scales: int) -> list[Tensor]:
    """The sharp image at 1/2^(scales−1) … 1/2, 1: bilinear halving, as MIMO-UNet trains."""
    images = [sharp]
    for _ in range(scales - 1):
        images.append(
            F.interpolate(images[-1], scale_factor=0.5, mode="bilinear", align_corners=False)
        )
    return images[::-1]


def multi_scale_l1(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Sum over scales of the mean absolute difference (MIMO-UNet, equation 4)."""
    return torch.stack([F.l1_loss(o, t) for o, t in zip(outputs, targets, strict=True)]).sum()


def multi_scale_frequency(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """MSFR: L1 between the Fourier transforms of output and target (MIMO-UNet, equation 5)."""
    terms = []
    for out, target in zip(outputs, targets, strict=True):
        # The transform is linear: one transform of the difference serves.
        terms.append(torch.view_as_real(torch.fft.rfft2(out - target)).abs().mean())
    return torch.stack(terms).sum()
