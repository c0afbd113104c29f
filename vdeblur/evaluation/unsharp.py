"""The best unsharp mask of a grid: the baseline that a network must beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.evaluation.metrics import psnr
from vdeblur.evaluation.protocols import pixels_of
from vdeblur.evaluation.scores import PairScore

_SIGMAS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0)  # pixels
_AMOUNTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)


class UnsharpGrid:
    """Measures the PSNR gain of unsharp masking over a grid of strengths: the baseline to beat."""

    def __init__(self) -> None:
        self._strengths = [(sigma, amount) for sigma in _SIGMAS for amount in _AMOUNTS]
        self._gains: list[list[float]] = []

    def add(self, blurred: Tensor, sharp: Tensor, before: float) -> None:
        """Measure one pair, in 8 bits.

        Args:
            blurred: (1, 3, H, W) floats in [0, 1].
            sharp: Like `blurred`.
            before: The PSNR of the blurred picture in dB.
        """
        reference = pixels_of(sharp, "8bit")
        gains = []
        for sigma in _SIGMAS:
            detail = blurred - _gaussian(blurred, sigma)
            for amount in _AMOUNTS:
                masked = torch.add(blurred, detail, alpha=amount)
                after = psnr(pixels_of(masked, "8bit"), reference)
                gains.append(0.0 if before == after else after - before)
        self._gains.append(gains)

    def conclude(self, scores: list[PairScore]) -> tuple[float, float]:
        """Enter `unsharp_gain` of the strength with the highest mean into the scores.

        Args:
            scores: Those of the pairs that were added, in their order.

        Returns:
            The strength: sigma in pixels, and the amount.
        """
        means = [sum(column) / len(column) for column in zip(*self._gains, strict=True)]
        best = max(range(len(means)), key=means.__getitem__)
        for score, gains in zip(scores, self._gains, strict=True):
            score.values["unsharp_gain"] = gains[best]
        return self._strengths[best]


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, 3, H, W), sigma in pixels, edges repeated."""
    radius = max(1, round(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)
