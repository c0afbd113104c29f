"""The interface of the catalogue's networks, and what is assumed of any other module.

Knows tensors only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from torch import Tensor, nn

Shapes = Mapping[str, tuple[int, ...]]


class Network(nn.Module, ABC):
    """Maps (N, 3, H, W) RGB in [0, 1] to the restored picture of the same shape, not clamped.

    Attributes:
        config: the constructor's keyword arguments, which are the whole configuration; weights
            files keep it.
        guided: whether the input is a picture with its guidance (`vdeblur.networks.taps`), of
            3 + CHANNELS channels. Such a network takes 3 channels as a picture without motion.
        stages: the outputs that `stage` chooses between; the first is the default.
        supports_half: whether the network computes in float16.
        tile_margin: pixels at the edge of a tile that are computed and dropped, where
            `receptive_radius` asks for more. With trained weights, seams stay under half an 8-bit
            level at the 99.9th percentile.
    """

    config: dict[str, Any]
    guided: ClassVar[bool] = False
    stages: ClassVar[tuple[str, ...]] = ("full",)
    supports_half: ClassVar[bool] = True
    tile_margin: int = 32

    def __init__(self) -> None:
        super().__init__()
        self._stage = self.stages[0]

    @property
    def stage(self) -> str:
        """Which of `stages` `forward` returns; setting another raises ValueError."""
        return self._stage

    @stage.setter
    def stage(self, name: str) -> None:
        if name not in self.stages:
            raise ValueError(f"stage {name!r} is none of {', '.join(self.stages)}")
        self._stage = name

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Number of pixels that height and width must be multiples of."""

    @property
    @abstractmethod
    def receptive_radius(self) -> int | None:
        """Largest distance, in rows or columns, between an output pixel and input it depends on.

        None: `GlobalMean` layers depend on the whole picture. Tiles then share one mean (see
        `vdeblur.inference.tiling`), and `tile_margin` covers the rest.
        """

    @property
    @abstractmethod
    def activations_per_pixel(self) -> int:
        """Number of values alive at once in an inference pass, per input pixel, rounded up."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the restored picture, the same shape, not clamped."""

    def correction(self, x: Tensor) -> Tensor:
        """Return forward(x) − x, (N, 3, H, W), values about 0.

        Networks that add x at their end return what they add, so that half precision does not round
        the picture itself.
        """
        restored: Tensor = self(x)
        return restored - x

    def forward_scales(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return all restored pictures that training compares, coarse to fine or early to late.

        Each is (N, 3, h, w), with h and w those of x or halved; the last is full size.
        """
        return (self(x),)

    @abstractmethod
    def start_as_identity(self) -> None:
        """Zero the output heads, so that the untrained network returns its input."""

    @classmethod
    @abstractmethod
    def config_of(cls, shapes: Shapes) -> dict[str, Any] | None:
        """Return the configuration of a network whose parameters have these names and shapes.

        None when they are not of this family. For damaged ones, the likeliest configuration, so
        that an error can name what does not fit.
        """

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Return published tensors under the names and layouts of this class.

        None when none of them is of this family. By default names and layouts are the same.
        """
        return dict(tensors)


@dataclass(frozen=True)
class Traits:
    """The facts of a module that the rest of vdeblur uses, as of `Network`.

    The defaults are those of a module that is no `Network`, such as one of spandrel's.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    guided: bool = False
    stage: str = ""
    supports_half: bool = True
    size_multiple: int = 1
    receptive_radius: int | None = 32
    tile_margin: int = 32
    activations_per_pixel: int = 1024


def traits_of(network: nn.Module) -> Traits:
    """Return the facts of a network, with the defaults of `Traits` for those it does not state."""
    names = (item.name for item in fields(Traits))
    return Traits(**{name: getattr(network, name) for name in names if hasattr(network, name)})


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
