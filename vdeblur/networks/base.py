"""What every network of the catalogue is and says of itself. Knows tensors only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


class Network(nn.Module, ABC):
    """Maps (N, 3, H, W) RGB in [0, 1] to the same shape, restored; not clamped.

    The constructor's keyword arguments are the whole configuration and are kept in `config`, which
    goes into weights files.
    """

    config: dict[str, Any]
    # Whether its input is a picture with its guidance (`vdeblur.networks.taps`), of 3 + CHANNELS
    # channels; one of 3 is then a picture without motion.
    guided: ClassVar[bool] = False
    # The predictions that `stage` can choose between; the first is the one taken without a choice.
    stages: ClassVar[tuple[str, ...]] = ("full",)
    # A tile's edge, in pixels, that is computed and dropped where `halo` asks for more: chosen so
    # that seams stay under half an 8-bit level at the 99.9th percentile with trained weights.
    context: int = 32

    def __init__(self) -> None:
        super().__init__()
        self._stage = self.stages[0]

    @property
    def stage(self) -> str:
        """Which of `stages` forward returns; ValueError for another."""
        return self._stage

    @stage.setter
    def stage(self, name: str) -> None:
        if name not in self.stages:
            raise ValueError(f"stage {name!r} is none of {', '.join(self.stages)}")
        self._stage = name

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""

    @property
    @abstractmethod
    def halo(self) -> int | None:
        """No output pixel depends on input more than this many pixels away, in rows or columns.

        None: `GlobalMean` layers see the whole picture. Tiles then share one mean (see
        `vdeblur.inference.deblurrer`), and `context` is what else counts.
        """

    @property
    @abstractmethod
    def activations_per_pixel(self) -> int:
        """Values alive at once in an inference pass, per input pixel, rounded up."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""

    def correction(self, x: Tensor) -> Tensor:
        """forward(x) − x, before x is added where the network adds it: half precision then rounds
        no picture. (N, 3, H, W) → the same shape; about 0.
        """
        restored: Tensor = self(x)
        return restored - x

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """All restored images that training compares, coarse to fine or early to late.

        Each is (N, 3, h, w) with h and w those of x or halved; the last is full size.
        """
        return (self(x),)

    @abstractmethod
    def start_as_identity(self) -> None:
        """Zero the output heads: an untrained network then returns its input."""

    @classmethod
    @abstractmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """The configuration that parameters of these names and shapes were made with.

        None when they are not this network's at all; of damaged ones, the likeliest configuration,
        so that what does not fit can be told.
        """

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Tensors under published names and layouts → under this class's own.

        None when there is nothing of this network among them. Without a translation they are the
        same.
        """
        return dict(tensors)


def zero_parameters(*layers: nn.Module) -> None:
    """Set all weights and biases of these layers to 0."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def correction_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function (N, C, H, W) → (N, 3, H, W): what a network adds to its input picture.

    That is `Network.correction`, or output minus input for any other module.
    """
    own: Callable[[Tensor], Tensor] | None = getattr(network, "correction", None)
    return own if own is not None else lambda x: network(x) - x[:, :3]
