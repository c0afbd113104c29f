"""A network that another runtime computes, behind the call that `Deblurrer` makes of a network.

Below all runtimes: knows tensors and modules only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from vdeblur.networks import GlobalMean
from vdeblur.networks.base import correction_of, traits_of


class Runner(Protocol):
    """A network in another runtime."""

    def __call__(self, x: Tensor) -> Tensor:
        """Compute (N, 3 or more, H, W) on the device → the correction (N, 3, H, W), there too.

        The input is fp32, or in the network's precision for TENSOR_RUNTIMES. On a GPU, work is
        issued on torch's current stream.
        """


class ExternalNetwork(nn.Module):
    """A network that another runtime computes; its attributes are those of the network itself.

    May be called by several threads.

    Args:
        network: The network in torch; it answers for attributes, and computes tiles that share
            their means.
        create_runner: Makes the runner from the first pictures to come, (N, 3 or more, H, W).
    """

    def __init__(self, network: nn.Module, create_runner: Callable[[Tensor], Runner]) -> None:
        super().__init__()
        self.network = network
        self._create_runner = create_runner
        self._starting = threading.Lock()
        self._runner: Runner | None = None
        self._means = [layer for layer in network.modules() if isinstance(layer, GlobalMean)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property
    def ready(self) -> bool:
        """Whether the runner exists: before, the next pictures are those ranges are measured on."""
        return self._runner is not None

    def start(self, first: Tensor) -> Runner:
        """Return the runner; the first call creates it from `first`."""
        if self._runner is None:
            with self._starting:
                self._runner = self._runner or self._create_runner(first)
        return self._runner

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""
        return x[:, :3] + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x of the picture: (N, 3 or more, H, W) → (N, 3, H, W)."""
        if any(mean.shared for mean in self._means):
            # Tiles that share their means (`share_means`): a converted graph cannot take them.
            return correction_of(self.network)(x)
        return self.start(x)(x)


class Correction(nn.Module):
    """A network's correction as a module's forward, which is what gets converted.

    Half precision and int8 then do not round the picture itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.size_multiple = traits_of(network).size_multiple
        self.guided = traits_of(network).guided

    def forward(self, x: Tensor) -> Tensor:
        """The network's input → its correction (N, 3, H, W)."""
        return correction_of(self.network)(x)
