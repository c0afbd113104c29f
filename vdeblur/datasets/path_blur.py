"""Blur pictures along paths, by the exact transfer function of each path.

The transfer function of a path is the mean of the phases of its points, applied by FFT. Where the
path depends on the place, it is computed at anchors across the picture, and blended between them.
Pictures are in linear light. Knows nothing of files and of cameras.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.camera_effects import choose
from vdeblur.datasets.camera_motion import Motion


def transfer(paths: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the transfer functions of paths: the mean over the points p of exp(−i ω·p).

    Exact for fractions of a pixel. Points drawn bilinearly into a kernel would blur across the
    motion too, to 0.4 at the highest frequency.

    Args:
        paths: (N, steps, 2), x then y in pixels.
        size: (height, width) of the pictures.

    Returns:
        (N, height, width // 2 + 1), for rfft2.
    """
    height, width = size
    device = paths.device
    along_x = _phases(paths[..., 0], torch.fft.rfftfreq(width, device=device), width)
    along_y = _phases(paths[..., 1], torch.fft.fftfreq(height, device=device), height)
    return torch.bmm(along_y.transpose(1, 2), along_x) / paths.shape[1]


def _phases(places: Tensor, frequencies: Tensor, side: int) -> Tensor:
    """The effect of shifts to places (N, steps) on waves of some cycles a pixel: (N, steps, F).

    exp(−i ω p) jumps at half a cycle a pixel, and edges would ring far. From 0.3 cycles on it
    becomes linear interpolation, which does not ring. Both leave a shift by 0 as it is.
    """
    result = _turn(places, frequencies)
    first = math.ceil(0.3 * side)
    high = slice(first, min(len(frequencies), side - first + 1))
    top = frequencies[high]
    whole = places.floor()
    part = (places - whole)[..., None]
    linear = _turn(whole, top) * torch.complex(
        1 - part + part * (2 * math.pi * top).cos(), -part * (2 * math.pi * top).sin()
    )
    share = ((top.abs() - 0.3) / 0.2).clamp(0, 1)
    share = share * share * (3 - 2 * share)
    result[..., high] += share * (linear - result[..., high])
    return result


def _turn(places: Tensor, frequencies: Tensor) -> Tensor:
    angle = places[..., None] * (-2 * math.pi * frequencies)
    return torch.complex(angle.cos(), angle.sin())


def convolve(images: Tensor, functions: Tensor) -> Tensor:
    """Convolve (N, C, H, W) circularly with a transfer function (N, H, W // 2 + 1) each."""
    spectrum = torch.fft.rfft2(images) * functions[:, None]
    result: Tensor = torch.fft.irfft2(spectrum, s=images.shape[-2:])
    return result


def camera_blur(images: Tensor, motion: Motion, *, anchors: int = 3) -> Tensor:
    """Blur pictures by a motion. The outer pixels wrap around: crop them.

    Args:
        images: (N, C, H, W) in linear light.
        motion: Of the N pictures, on the same device.
        anchors: A motion that depends on the place is computed at anchors × anchors places, and
            blended between them.
    """
    _, _, height, width = images.shape
    size = (height, width)
    if not motion.varies:
        return convolve(images, transfer(motion.path, size))
    spectrum = torch.fft.rfft2(images)
    out = torch.zeros_like(images)
    for row in range(anchors):
        for column in range(anchors):
            y, x = (2 * k / (anchors - 1) - 1 for k in (row, column))
            function = transfer(motion.at(x, y, size), size)[:, None]
            part = torch.fft.irfft2(spectrum * function, s=size)
            weight = _hat(height, y, anchors, images)[:, None] * _hat(width, x, anchors, images)
            out.addcmul_(part, weight)
    return out


def _hat(side: int, center: float, anchors: int, like: Tensor) -> Tensor:
    """The weight of the anchor at `center` along a side: 1 there, 0 at its neighbors."""
    place = torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype)
    return (1 - (place - center).abs() * (anchors - 1) / 2).clamp_min(0)


def blur_each(linear: Tensor, motion: Motion, *, anchors: int) -> Tensor:
    """Blur as `camera_blur` does, with as many anchors as the motion of each picture needs.

    Args:
        linear: (N, C, H, W) in linear light.
        motion: Of the N pictures, on the CPU.
        anchors: Anchors along each side where the path depends on the place by much.
    """
    spread = motion.spread((linear.shape[2], linear.shape[3]))
    enough = [1 if s < 0.25 else min(2 if s < 2.5 else 3, anchors) for s in spread]
    enough = [anchors if count == 3 else count for count in enough]
    blurred = torch.empty_like(linear)
    for count in sorted(set(enough)):
        rows = [i for i, k in enumerate(enough) if k == count]
        part = motion.part(rows, linear.device)
        index = choose(rows, linear.device)
        if count == 1:
            part = Motion(part.path)
        result = camera_blur(linear.index_select(0, index), part, anchors=count)
        blurred.index_copy_(0, index, result)
    return blurred


def carried(images: Tensor, way: Tensor) -> Tensor:
    """Move the places of pictures (N, C, H, W) by `way` (N, 2, H, W), x then y in pixels."""
    _, _, height, width = images.shape
    x = torch.arange(width, device=images.device) - way[:, 0]
    y = torch.arange(height, device=images.device)[:, None] - way[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(
        images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )
