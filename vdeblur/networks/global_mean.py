"""Means of channels over the whole picture, which the tiles of a picture can share."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class GlobalMean(nn.Module):
    """The mean of each channel over the picture: (N, C, H, W) → (N, C, 1, 1).

    Channel attention is computed from it. The mean of a tile differs from that of its picture, so
    that tiles would differ in tone; `share_means` therefore measures the means of sample crops
    first and gives them to every tile.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Tensor] | None = None
        self._measuring = False
        self._next = 0

    @property
    def shared(self) -> bool:
        """Whether this is within `share_means`, so that the network's inputs are tiles."""
        return self._held is not None

    def measure(self) -> None:
        """From now on, take the mean over the whole batch at each use, and hold it."""
        self._held, self._measuring, self._next = [], True, 0

    def hold(self) -> None:
        """From now on, return the means that were measured; without any, measure each picture."""
        self._measuring = False
        if not self._held:  # the chosen output of the network does not use this layer
            self._held = None

    def release(self) -> None:
        """From now on, measure each picture."""
        self._held, self._measuring, self._next = None, False, 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, 1, 1)."""
        if self._held is not None and not self._measuring:
            # A layer that is used several times in one pass has a mean for each use, in order.
            mean = self._held[self._next % len(self._held)]
            self._next += 1
            return mean.expand(len(x), -1, -1, -1)
        mean = x.mean(dim=(2, 3), keepdim=True)
        if self._measuring and self._held is not None:
            mean = mean.mean(dim=0, keepdim=True)
            self._held.append(mean)
            return mean.expand(len(x), -1, -1, -1)
        return mean


class share_means:
    """Context manager in which every `GlobalMean` of a network returns the means of some crops.

    Args:
        network: any module; its layers measure each picture again afterwards.
        crops: (K, 3, h, w), crops of one picture. They pass through the network once, and each
            layer's mean is taken over all of them.
    """

    def __init__(self, network: nn.Module, crops: Tensor) -> None:
        self._means = [m for m in network.modules() if isinstance(m, GlobalMean)]
        self._network, self._crops = network, crops

    def __enter__(self) -> Self:
        for mean in self._means:
            mean.measure()
        try:
            with torch.no_grad():
                self._network(self._crops)
        except BaseException:
            self.__exit__()
            raise
        for mean in self._means:
            mean.hold()
        return self

    def __exit__(self, *_: object) -> None:
        for mean in self._means:
            mean.release()
