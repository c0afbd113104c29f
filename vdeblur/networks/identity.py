"""A network that changes nothing: for tests around a network, and for measuring what is not one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vdeblur.networks.base import Network, Shapes


class Identity(Network):
    """Returns its input."""

    size_multiple = 1
    halo = 0
    activations_per_pixel = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → itself."""
        return x

    def start_as_identity(self) -> None:
        """It is."""

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """None: there are no weights."""
        return None
