"""Dense optical flow for measurements, and where it can be trusted.

The flow is OpenCV's DIS: T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast Optical Flow Using
Dense Inverse Search", ECCV 2016. It involves no learned network, so a figure depends on nothing but
its pictures.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.motion.warping import warp

_LEAST_SIDE = 16  # pixels: DIS needs this many


@torch.no_grad()
def optical_flow(here: Tensor, there: Tensor) -> Tensor:
    """Find the displacement with here(p) ≈ there(p + flow(p)).

    The preset is DISOPTICAL_FLOW_PRESET_MEDIUM, refined to the full size: the preset's own finest
    scale, half the size, misses shifts of parts of a pixel by a tenth.

    Args:
        here: (N, C, H, W) floats in [0, 1]; the mean of the channels is matched, in 8 bits.
        there: Like `here`.

    Returns:
        (N, 2, H, W) float32 on the device of `here`, x then y, in pixels.
    """
    library: Any = cv2  # its type stubs lack DIS
    dis = library.DISOpticalFlow_create(library.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    height, width = here.shape[2:]
    missing = (0, max(0, _LEAST_SIDE - width), 0, max(0, _LEAST_SIDE - height))

    def codes(pictures: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        luma = F.pad(pictures.float().mean(1, keepdim=True), missing, mode="replicate")[:, 0]
        return np.asarray(luma.clamp(0, 1).mul(255).round().byte().cpu().numpy(), np.uint8)

    flows = [dis.calc(a, b, None) for a, b in zip(codes(here), codes(there), strict=True)]
    found = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2)
    return found[:, :, :height, :width].to(here.device)


@torch.no_grad()
def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Find where a flow can be trusted: inside the picture, and hidden in neither picture.

    A pixel that the way back does not return to its origin is hidden in one of the two pictures.
    The tolerance is that of N. Sundaram, T. Brox, K. Keutzer, "Dense Point Trajectories by
    GPU-Accelerated Large Displacement Optical Flow", ECCV 2010, equation 5:
    |f + b|² < 0.01 (|f|² + |b|²) + 0.5.

    Args:
        forward: (N, 2, H, W) pixels, from a picture to another.
        backward: (N, 2, H, W) pixels, from the other picture back.

    Returns:
        (N, 1, H, W) bool.
    """
    height, width = forward.shape[2:]
    back = warp(backward, forward)
    apart = (forward + back).square().sum(1, keepdim=True)
    length = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    x = torch.arange(width, device=forward.device) + forward[:, :1]
    y = torch.arange(height, device=forward.device)[:, None] + forward[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return (apart < 0.01 * length + 0.5) & inside
