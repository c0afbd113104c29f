"""A network that returns its input, for tests, and to measure all other work."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vdeblur.networks.base import Network, Shapes


class Identity(Network):
    """Returns its input."""

    size_multiple = 1
    receptive_radius = 0
    activations_per_pixel = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def start_as_identity(self) -> None:
        """Do nothing: it is the identity."""

    @classmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return None, as there are no weights."""
        return None
