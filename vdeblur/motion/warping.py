"""Sample pictures along a displacement field."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def warp(picture: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample a picture at p + flow(p); places beyond an edge repeat the edge.

    Args:
        picture: (N, C, H, W), floating point.
        flow: (N, 2, H, W), x then y, in pixels.
        mode: Interpolation of `torch.nn.functional.grid_sample`: "bilinear", "bicubic", "nearest".

    Returns:
        (N, C, H, W), of the picture's dtype.
    """
    height, width = picture.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device),
        indexing="ij",
    )  # fmt: skip
    grid = torch.stack(
        [
            (x + flow[:, 0]) * (2 / max(width - 1, 1)) - 1,
            (y + flow[:, 1]) * (2 / max(height - 1, 1)) - 1,
        ],
        dim=3,
    )
    return F.grid_sample(
        picture, grid.to(picture), mode=mode, padding_mode="border", align_corners=True
    )
