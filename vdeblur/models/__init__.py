"""The catalogue of networks: a name → what it is and how it is built.

Every network maps (N, 3, H, W) RGB in [0, 1] to the same shape, and may say of itself:
`size_multiple` (H and W must be multiples of it), `halo` (no output pixel depends on input further
away, in pixels), `activations_per_pixel` (values alive at once in a forward pass, per input pixel)
and `correction(x)` (forward(x) − x before it is rounded). Knows no files: weights are read by
`vdeblur.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.models.mimo_unet import MIMOUNet

__all__ = ["Identity", "NetworkSpec", "build", "names", "spec"]


class Identity(nn.Module):
    """Returns its input: for testing everything around a network, and for measuring it."""

    size_multiple = 1
    halo = 0
    activations_per_pixel = 0

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) → itself."""
        return x


@dataclass(frozen=True)
class NetworkSpec:
    """An entry of the catalogue.

    family: the architecture, as weights files name it. config: keyword arguments of its
    constructor; a weights file's own config goes before it. ships: its weights come with the
    package. trained: it has weights at all.
    """

    name: str
    family: str
    summary: str
    config: Mapping[str, Any] = field(default_factory=dict)
    ships: bool = False
    trained: bool = True


_FAMILIES: dict[str, Callable[..., nn.Module]] = {"mimo-unet": MIMOUNet, "identity": Identity}

_CATALOGUE = {
    entry.name: entry
    for entry in (
        NetworkSpec(
            "mimo-unet-small",
            "mimo-unet",
            "a narrow MIMO-UNet on a pixel-unshuffled image; near real time without a GPU",
            {"base": 32, "blocks": 2, "unshuffle": 4},
            ships=True,
        ),
        NetworkSpec(
            "mimo-unet",
            "mimo-unet",
            "MIMO-UNet as published (Cho et al., ICCV 2021), 6.8 million parameters",
            {"base": 32, "blocks": 8},
        ),
        NetworkSpec(
            "mimo-unet-plus",
            "mimo-unet",
            "MIMO-UNet+ as published (Cho et al., ICCV 2021), 16.1 million parameters",
            {"base": 32, "blocks": 20},
        ),
        NetworkSpec("identity", "identity", "changes nothing; for tests", trained=False),
    )
}


def names() -> tuple[str, ...]:
    """The names that `spec` and `build` know, the default first."""
    return tuple(_CATALOGUE)


def spec(name: str) -> NetworkSpec:
    """The catalogue's entry; ModelError for a name that is not in it."""
    try:
        return _CATALOGUE[name]
    except KeyError:
        raise ModelError(
            f"there is no network {name!r}: choose one of {', '.join(names())}"
        ) from None


def build(name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """An untrained network, in the catalogue's configuration or in `config` instead.

    ModelError for an unknown name or a configuration that its family cannot have.
    """
    entry = spec(name)
    chosen = dict(entry.config if config is None else config)
    try:
        return _FAMILIES[entry.family](**chosen)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"a {entry.family} network cannot have the config {chosen}: {error}"
        ) from error
