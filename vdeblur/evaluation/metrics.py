"""Picture quality measures: PSNR, SSIM, and how steady a video is. Knows arrays and tensors only.

A picture is an array or a tensor of shape (H, W) or (H, W, channels), the channel last as files
hold it; `data_range` is the distance from black to white: 255 for 8 bits, 1 for floats in [0, 1].

How papers measure differs, and tenths of a dB and hundredths of SSIM hang on it: `ssim` says how.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any] | Tensor

#: Gaussian window of Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004, section III-B.
WINDOW, SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(restored: Array, sharp: Array, *, data_range: float = 255) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one shape; inf when equal.

    10 log₁₀(data_range² / mean squared error), the mean over all pixels and channels at once.
    ValueError when the shapes differ.
    """
    a, b = _pair(restored, sharp)
    error = float((a - b).square().mean())
    return math.inf if error == 0 else 10.0 * math.log10(data_range**2 / error)


def ssim(
    restored: Array,
    sharp: Array,
    *,
    data_range: float = 255,
    volume: bool = False,
) -> float:
    """Mean structural similarity of two pictures of one shape, 1 when equal.

    Gaussian window of 11 pixels and σ 1.5, K₁ 0.01, K₂ 0.03, weighted (biased) variances, the mean
    over the positions where the window lies inside the picture: as Wang et al. (2004), and as
    scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False). Channels are measured apart and averaged.

    volume: what MATLAB's ssim(A, ref) does with an RGB picture, and so the scripts many deblurring
    papers print their tables with: rows × columns × channels is one volume, the window 11×11×11,
    edges repeated, the mean over all positions. It gives higher values for the same pictures.

    ValueError when the shapes differ, or a side is shorter than the window.
    """
    a, b = _pair(restored, sharp)
    if a.ndim not in (2, 3) or (volume and a.ndim != 3):
        raise ValueError(f"pictures are {tuple(a.shape)}: pass (H, W) or (H, W, channels)")
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(f"pictures are {tuple(a.shape)}: SSIM's window needs {WINDOW} pixels")
    a, b = (x.unsqueeze(-1) if x.ndim == 2 else x for x in (a, b))
    # Variances do not depend on the offset, and lose fewer digits about the middle.
    middle = data_range / 2
    a, b = (x.permute(2, 0, 1) - middle for x in (a, b))  # (channels, H, W)
    maps = torch.stack([a, b, a * a, b * b, a * b])
    for axis in (1, 2, 3) if volume else (2, 3):
        maps = _weigh(maps, axis, repeat_edges=volume)
    mean_a, mean_b, aa, bb, ab = maps
    var_a, var_b, both = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    mean_a, mean_b = mean_a + middle, mean_b + middle
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    index = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    index /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float(index.mean())


def warp_error(
    before: Tensor, now: Tensor, flow: Tensor, visible: Tensor, *, data_range: float = 255
) -> float:
    """How far `now` is from the frame before it, brought along the motion: in 8-bit levels.

    E_warp of Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018, as the root of
    its mean square over the visible pixels. before, now: (1, C, H, W). flow (1, 2, H, W):
    pixels from a place in `now` to the same thing in `before`. visible (1, 1, H, W) bool: what is
    not hidden in either. nan when nothing is visible.
    """
    from vdeblur.motion.warping import warp

    error = (now - warp(before, flow)).square().mean(1, keepdim=True)[visible]
    return math.sqrt(float(error.mean())) * 255 / data_range if error.numel() else math.nan


def flicker(
    before: Tensor,
    now: Tensor,
    after: Tensor,
    to_before: Tensor,
    to_after: Tensor,
    visible: Tensor,
    *,
    data_range: float = 255,
) -> float:
    """How far `now` is from the mean of its neighbours, brought along the motion: 8-bit levels.

    Mean over the visible pixels of |½ (before + after) − now|, a second difference in time: what
    moves evenly and what brightens evenly gives 0, what comes and goes from frame to frame does
    not. Shapes as in `warp_error`. nan when nothing is visible.
    """
    from vdeblur.motion.warping import warp

    neighbours = (warp(before, to_before) + warp(after, to_after)) / 2
    error = (neighbours - now).abs().mean(1, keepdim=True)[visible]
    return float(error.mean()) * 255 / data_range if error.numel() else math.nan


def _pair(restored: Array, sharp: Array) -> tuple[Tensor, Tensor]:
    """Both in double precision, where the device has it."""
    a, b = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (restored, sharp))
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.float32 if a.device.type == "mps" else torch.float64
    return a.to(dtype), b.to(a.device, dtype)


def _weigh(maps: Tensor, axis: int, *, repeat_edges: bool) -> Tensor:
    """The Gaussian mean along an axis; it loses WINDOW − 1 positions unless edges are repeated."""
    radius = WINDOW // 2
    weights = [math.exp(-0.5 * (x / SIGMA) ** 2) for x in range(-radius, radius + 1)]
    size = maps.shape[axis]
    if repeat_edges:
        places = torch.arange(-radius, size + radius, device=maps.device).clamp_(0, size - 1)
        maps, size = maps.index_select(axis, places), size + WINDOW - 1
    kept = size - WINDOW + 1
    total = maps.narrow(axis, 0, kept) * (weights[0] / sum(weights))
    for shift, weight in enumerate(weights[1:], 1):
        total.add_(maps.narrow(axis, shift, kept), alpha=weight / sum(weights))
    return total
