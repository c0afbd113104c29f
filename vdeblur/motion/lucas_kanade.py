"""Dense optical flow between two pictures, for measuring: Lucas–Kanade over a pyramid, in torch.

B. Lucas and T. Kanade, "An Iterative Image Registration Technique", IJCAI 1981, at every pixel,
from coarse to fine as in J.-Y. Bouguet's "Pyramidal Implementation" (Intel, 2000). Good for small
and middling motion of textured pictures, which is what warped-frame errors need; no learned
network, so that a figure depends on nothing but its pictures. Knows tensors only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 13  # pixels: the neighbourhood that is taken to move as one
_STEPS, _FIRST_STEPS = 3, 6  # refinements a level, and at the coarsest
_COARSEST = 12  # pixels: the shorter side of the smallest level
_FLAT = 1e-4  # what a neighbourhood's squared gradients must exceed to move the flow much


@torch.no_grad()
def optical_flow(here: Tensor, there: Tensor) -> Tensor:
    """The displacement (N, 2, H, W), x then y in pixels, with here(p) ≈ there(p + flow(p)).

    here, there: (N, C, H, W) floats in [0, 1]; their luma (the mean of the channels) is matched.
    Where a neighbourhood has no texture the flow is that of its surroundings.
    """
    pyramid = [(here.mean(1, keepdim=True), there.mean(1, keepdim=True))]
    while min(pyramid[-1][0].shape[2:]) >= 2 * _COARSEST:
        a, b = (F.avg_pool2d(_smooth(x, 3), 2) for x in pyramid[-1])
        pyramid.append((a, b))
    flow = pyramid[-1][0].new_zeros(len(here), 2, *pyramid[-1][0].shape[2:])
    for a, b in reversed(pyramid):
        size = a.shape[2:]
        if flow.shape[2:] != size:
            growth = torch.tensor([size[1] / flow.shape[3], size[0] / flow.shape[2]]).to(flow)
            flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
            flow = flow * growth.view(1, 2, 1, 1)
        for _ in range(_FIRST_STEPS if a is pyramid[-1][0] else _STEPS):
            flow = _refine(a, b, flow)
    return flow


@torch.no_grad()
def warp(picture: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """picture (N, C, H, W) sampled at p + flow(p), `mode` as torch's grid_sample has it; beyond the
    edges, the edge.
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


@torch.no_grad()
def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a flow can be trusted, (N, 1, H, W) bool: inside the picture, and hidden in neither.

    forward and backward: (N, 2, H, W), from a picture to another and back. A pixel that the way
    back does not return to where it came from is hidden in one of the two; the tolerance is that of
    N. Sundaram et al., "Dense Point Trajectories by GPU-Accelerated Large Displacement Optical
    Flow", ECCV 2010, equation 5: |f + b|² < 0.01 (|f|² + |b|²) + 0.5.
    """
    height, width = forward.shape[2:]
    back = warp(backward, forward)
    apart = (forward + back).square().sum(1, keepdim=True)
    length = forward.square().sum(1, keepdim=True) + back.square().sum(1, keepdim=True)
    x = torch.arange(width, device=forward.device) + forward[:, :1]
    y = torch.arange(height, device=forward.device)[:, None] + forward[:, 1:]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return (apart < 0.01 * length + 0.5) & inside


def _refine(a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
    """One step of Gauss–Newton on Σ (there(p + flow) − here(p))² over each neighbourhood."""
    moved = warp(b, flow)
    difference = moved - a
    # The mean of both pictures' gradients converges faster than either's (Horn's symmetric form).
    dx, dy = _gradients((a + moved) / 2)
    sums = _smooth(
        torch.cat([dx * dx, dy * dy, dx * dy, dx * difference, dy * difference], 1), _WINDOW
    )
    xx, yy, xy, xt, yt = sums.unbind(1)
    xx, yy = xx + _FLAT, yy + _FLAT
    determinant = xx * yy - xy * xy
    step = torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant[:, None]
    # The linear model holds for about a pixel.
    return _smooth(flow + step.clamp(-1, 1), 5)


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    return dx, dy


def _smooth(x: Tensor, size: int) -> Tensor:
    """The mean over size × size, the edges repeated: two passes."""
    half = size // 2
    x = F.avg_pool2d(F.pad(x, (half, half, 0, 0), mode="replicate"), (1, size), stride=1)
    return F.avg_pool2d(F.pad(x, (0, 0, half, half), mode="replicate"), (size, 1), stride=1)
