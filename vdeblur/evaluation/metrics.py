"""Measures of picture quality: PSNR, SSIM, and how steady a video is. Knows only arrays, tensors.

Papers measure in different ways, which changes PSNR by tenths of a dB and SSIM by hundredths: see
`ssim` and `vdeblur.evaluation.protocols`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.inference.devices import exact_dtype
from vdeblur.motion.warping import warp

Array = NDArray[Any] | Tensor

#: Gaussian window of Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004, section III-B.
WINDOW, SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(restored: Array, sharp: Array, *, data_range: float = 255) -> float:
    """Compute the peak signal-to-noise ratio of two pictures.

    It is 10 log₁₀(data_range² / mean squared error), the mean over all pixels and channels at once.

    Args:
        restored: An array or tensor of any shape.
        sharp: The reference, of the same shape.
        data_range: The distance from black to white: 255 for 8 bits, 1 for floats in [0, 1].

    Returns:
        dB; inf when the pictures are equal.

    Raises:
        ValueError: The shapes differ.
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
    """Compute the mean structural similarity of two pictures.

    The window is Gaussian, of 11 pixels and σ 1.5; K₁ is 0.01, K₂ 0.03; variances are weighted
    (biased); the mean is over the positions where the window lies inside the picture. So do Wang et
    al. (2004) and scikit-image's structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False). Channels are measured apart and averaged.

    Args:
        restored: (H, W) or (H, W, channels), an array or a tensor.
        sharp: The reference, of the same shape.
        data_range: The distance from black to white: 255 for 8 bits, 1 for floats in [0, 1].
        volume: Measure as MATLAB's ssim(A, ref) measures an RGB picture, and as the scripts of many
            deblurring papers do: rows × columns × channels is one volume, the window 11×11×11,
            edges repeated, the mean over all positions. Values are higher for the same pictures.

    Returns:
        1 when the pictures are equal, less otherwise.

    Raises:
        ValueError: The shapes differ, or a side is shorter than the window.
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
    """Compute how far a frame is from the frame before it, warped along the motion.

    This is E_warp of Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018, as the
    root of its mean square over the visible pixels.

    Args:
        before: (1, C, H, W).
        now: (1, C, H, W).
        flow: (1, 2, H, W) pixels, from a place in `now` to the same thing in `before`.
        visible: (1, 1, H, W) bool, what is hidden in neither frame.
        data_range: The distance from black to white.

    Returns:
        8-bit levels; NaN when nothing is visible.
    """
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
    """Compute how far a frame is from the mean of its neighbors, warped along the motion.

    This is the mean over the visible pixels of |½ (before + after) − now|, a second difference in
    time: even motion and even brightening contribute nothing, unlike what comes and goes from frame
    to frame.

    Args:
        before: (1, C, H, W), as `now` and `after`.
        now: The frame in the middle.
        after: The frame that follows.
        to_before: (1, 2, H, W) pixels, from a place in `now` to the same thing in `before`.
        to_after: (1, 2, H, W) pixels, likewise to `after`.
        visible: (1, 1, H, W) bool, what is hidden in none of the frames.
        data_range: The distance from black to white.

    Returns:
        8-bit levels; NaN when nothing is visible.
    """
    neighbours = (warp(before, to_before) + warp(after, to_after)) / 2
    error = (neighbours - now).abs().mean(1, keepdim=True)[visible]
    return float(error.mean()) * 255 / data_range if error.numel() else math.nan


def _pair(restored: Array, sharp: Array) -> tuple[Tensor, Tensor]:
    """Convert both to double precision, or to single where the device lacks it."""
    a, b = (x if isinstance(x, Tensor) else torch.tensor(x) for x in (restored, sharp))
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = exact_dtype(a.device)
    return a.to(dtype), b.to(a.device, dtype)


def _weigh(maps: Tensor, axis: int, *, repeat_edges: bool) -> Tensor:
    """Take the Gaussian mean along an axis; WINDOW − 1 positions go unless edges are repeated."""
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
