"""Scores of a network on pairs, and the line to be above: unsharp masking at its best strength."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.metrics import psnr

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class PairScore:
    """PSNR in dB of one pair: the blurred input and the restored output, against the sharp one."""

    name: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Decibels won (or lost, when negative)."""
        return self.after - self.before


def to_tensor(picture: Picture) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) float in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float().div(255)


def to_picture(image: Tensor) -> Picture:
    """(1, 3, H, W) float → (H, W, 3) uint8, clamped and rounded."""
    array: Picture = image[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return array


def score_pairs(
    restore: Callable[[Tensor], Tensor], pairs: Sequence[tuple[str, Picture, Picture]]
) -> list[PairScore]:
    """Restore each (name, blurred, sharp) of 8-bit RGB and compare as 8-bit, whole image."""
    scores = []
    for name, blurred, sharp in pairs:
        with torch.inference_mode():
            restored = to_picture(restore(to_tensor(blurred)))
        scores.append(PairScore(name, psnr(blurred, sharp), psnr(restored, sharp)))
    return scores


def unsharp_mask(image: Tensor, *, sigma: float, amount: float) -> Tensor:
    """image + amount · (image − Gaussian blur of it); (N, 3, H, W) in [0, 1], sigma in pixels."""
    radius = max(1, round(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(image, (radius, radius, radius, radius), mode="reflect")
    soft = F.conv2d(padded, kernel, groups=3)
    soft = F.conv2d(soft, kernel.transpose(2, 3), groups=3)
    return (image + amount * (image - soft)).clamp(0, 1)


def best_unsharp_mask(
    pairs: Sequence[tuple[str, Picture, Picture]],
) -> tuple[float, float, list[PairScore]]:
    """The (sigma, amount) of the highest mean gain over a grid, and its scores."""
    best: tuple[float, float, list[PairScore]] | None = None
    for sigma in (1.0, 2.0, 3.0, 5.0, 8.0, 12.0):
        for amount in (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5):
            restore = functools.partial(unsharp_mask, sigma=sigma, amount=amount)
            scores = score_pairs(restore, pairs)
            if best is None or _mean_gain(scores) > _mean_gain(best[2]):
                best = (sigma, amount, scores)
    assert best is not None
    return best


def _mean_gain(scores: Sequence[PairScore]) -> float:
    return sum(s.gain for s in scores) / len(scores)
