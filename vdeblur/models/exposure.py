"""How long was the shutter open? Read off the picture, given how things move between frames.

A blur along a known direction leaves slopes in pairs, one blur length apart. A small network is
shown the slopes of the picture along a candidate motion, at fractions of it, and says for each
place how many times too long the candidate is, with its uncertainty. It is trained on candidates of
0.3 to 4.5 times the true motion, and on sharp pictures. Knows tensors only.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.models import taps
from vdeblur.models.mimo_unet_guided import GuidedBlock

#: Places along the candidate, on both sides, where the slope along it is taken.
OFFSETS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0, 1.25)
#: What the network says of a picture without blur: its candidate is this many times too long.
SHARP = 8.0
CHANNELS = 2 * len(OFFSETS) + 4


def exposure_guidance(luma: Tensor, motion: Tensor) -> Tensor:
    """What the network sees: (N, CHANNELS, H, W) float32.

    luma: (N, 1, H, W) float32 in [0, 1]. motion: (N, 2 or more, h, w), the candidate in pixels of
    luma, of which the first two channels (x, y) count; enlarged bilinearly.
    """
    motion = motion[:, :2]
    if motion.shape[2:] != luma.shape[2:]:
        motion = F.interpolate(motion, size=luma.shape[2:], mode="bilinear", align_corners=False)
    x, y = motion[:, :1], motion[:, 1:]
    length = (x * x + y * y).sqrt().clamp_min(1e-3)
    u, v = x / length, y / length
    slopes = [
        taps.samples(luma, side * o * x + u, side * o * y + v)
        - taps.samples(luma, side * o * x - u, side * o * y - v)
        for o in OFFSETS
        for side in (-1.0, 1.0)
    ]
    slopes.append(taps.samples(luma, u, v) - taps.samples(luma, -u, -v))  # here, along the motion
    slopes.append(taps.samples(luma, -v, u) - taps.samples(luma, v, -u))  # here, across it
    return torch.cat([torch.cat(slopes, 1) * 4, luma - 0.45, length / taps.UNIT], 1)


class ExposureNetwork(nn.Module):
    """(N, CHANNELS, H, W) of `exposure_guidance` → log of how many times too long, and its spread.

    Both (N, 1, H / 8, W / 8); the spread is the scale of a Laplace distribution. H and W are
    multiples of 8. exp(−log) is the share of the candidate that the blur is long.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.first = nn.Conv2d((CHANNELS - 1) * 4 + 1, 2 * w, 3, padding=1)
        self.fine = GuidedBlock(2 * w)
        self.down = nn.ModuleList(
            [nn.Conv2d(2 * w, 2 * w, 2, stride=2), nn.Conv2d(2 * w, 3 * w, 2, stride=2)]
        )
        self.middle = GuidedBlock(2 * w)
        self.coarse = nn.Sequential(GuidedBlock(3 * w), GuidedBlock(3 * w))
        self.head = nn.Conv2d(3 * w, 2, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        z = torch.cat([F.pixel_unshuffle(x[:, :-1], 2), F.avg_pool2d(x[:, -1:], 2)], 1)
        z = self.fine(F.leaky_relu(self.first(z), 0.1))
        z = self.coarse(self.down[1](self.middle(self.down[0](z))))
        z = self.head(z)
        return z[:, :1], F.softplus(z[:, 1:]) + 0.05


LARGEST = math.log(SHARP)
