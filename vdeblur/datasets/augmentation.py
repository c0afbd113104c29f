"""Random turns and colors of training pictures, the same for the pictures of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """How pictures are varied, blurred and sharp alike.

    Args:
        flips: Mirror left and right, top and bottom.
        rotations: Turn by quarters.
        brightness: Factors from 1 − brightness to 1 + brightness, for half of the pictures; 0 for
            none. So with `contrast` and `saturation`.
        contrast: See `brightness`.
        saturation: See `brightness`.
        channels: Share of the pictures whose color channels change places.
    """

    flips: bool = True
    rotations: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    channels: float = 0.0

    @property
    def colors(self) -> bool:
        """Whether colors change at all."""
        return bool(self.brightness or self.contrast or self.saturation or self.channels)

    def turn(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """Turn and flip pictures (…, S, S) at random, all of them alike."""
        quarters, across, down = int(rng.integers(4)), rng.random() < 0.5, rng.random() < 0.5
        if self.rotations:
            picture = torch.rot90(picture, quarters, (-2, -1))
        elif self.flips and down and picture.shape[-1] == picture.shape[-2]:
            picture = picture.flip(-2)
        return picture.flip(-1) if self.flips and across else picture

    def color(self, pictures: Tensor, rng: np.random.Generator) -> Tensor:
        """Change the colors of a scene's pictures at random, all of them alike.

        Args:
            pictures: (K, 3, H, W) in 0..1, the sharp one last.
            rng: Decides the change.
        """
        if rng.random() < self.channels:
            pictures = torch.stack([pictures[:, k] for k in rng.permutation(3)], dim=1)
        factors = 1 + rng.uniform(-1, 1, 3) * (self.brightness, self.contrast, self.saturation)
        if np.all(factors == 1) or rng.random() < 0.5:
            return pictures
        brightness, contrast, saturation = (float(f) for f in factors)
        # The mean of the sharp picture serves all of them.
        gray = pictures[-1].mean()
        pictures = ((pictures - gray) * contrast + gray) * brightness
        luma = pictures.mean(dim=1, keepdim=True)
        return (luma + (pictures - luma) * saturation).clamp(0, 1)


#: For photographs, whose colors are varied before they are blurred.
PHOTO_COLORS = Augment(brightness=0.3, contrast=0.25, saturation=0.4, channels=0.1)
