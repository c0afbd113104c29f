"""Networks of the optional package spandrel: NAFNet, FFTformer, Uformer and others.

spandrel recognizes and builds them; it gets tensors only, never a file. The package
spandrel-extra-arches adds Restormer, MIRNetV2 and others.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.networks.global_mean import GlobalMean
from vdeblur.networks.limits import limited_building
from vdeblur.system.optional import installed

#: What networks may have beyond their weights: parameters, and numbers in them.
_FEW_PARAMETERS, _FEW_VALUES = 1000, 20_000_000


class ZooNetwork(nn.Module):
    """A network of spandrel's: (N, 3, H, W) RGB in [0, 1] → the same shape, not clamped.

    Its receptive radius is unknown. Layers that average over the whole picture are replaced by
    `GlobalMean`, so that tiles do not differ in tone.

    Attributes:
        architecture: spandrel's name, such as "NAFNet".
        tags: sizes and variants, such as "32w".
        supports_half: whether it computes in float16.
        size_multiple: number of pixels that height and width must be multiples of.
        tiles_well: whether it works on tiles; otherwise it depends on the whole picture.
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.architecture = str(descriptor.architecture.name)
        self.tags = tuple(str(tag) for tag in descriptor.tags)
        self.supports_half = bool(descriptor.supports_half)
        needs = descriptor.size_requirements
        self.size_multiple = int(needs.multiple_of)
        self._minimum, self._square = int(needs.minimum), bool(needs.square)
        # SUPPORTED, DISCOURAGED or INTERNAL: the last two look at the whole picture.
        self.tiles_well = getattr(getattr(descriptor, "tiling", None), "name", "") in (
            "",
            "SUPPORTED",
        )
        # This adapts values and outputs of each network. The descriptor's public call would also
        # clamp, and return inference tensors, which later steps may not write to.
        self._call = descriptor._call_fn  # noqa: SLF001
        self.inner: nn.Module = descriptor.model
        _share_global_means(self.inner)

    @property
    def description(self) -> str:
        """The architecture and its tags, as in "NAFNet 32w"."""
        return " ".join((self.architecture, *self.tags))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), both multiples of `size_multiple` → the same shape."""
        height, width = x.shape[2:]
        below, right = max(self._minimum - height, 0), max(self._minimum - width, 0)
        if self._square:
            side = max(height + below, width + right)
            below, right = side - height, side - width
        if below or right:
            x = F.pad(x, (0, right, 0, below), mode="replicate")
        restored: Tensor = self._call(self.inner, x)
        return restored[..., :height, :width]


def load_from_zoo(tensors: Mapping[str, Tensor]) -> ZooNetwork | None:
    """Return the network that spandrel builds from tensors.

    None if spandrel does not recognize them, or is not installed.

    Raises:
        ModelError: the network changes the size, or is not for RGB pictures.
    """
    spandrel = _spandrel()
    if spandrel is None:
        return None
    try:
        # Some tables, such as of positions, are parameters that files leave out.
        values = 4 * sum(tensor.numel() for tensor in tensors.values()) + _FEW_VALUES
        with limited_building(2 * len(tensors) + _FEW_PARAMETERS, values):
            descriptor = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    # spandrel raises its own error for unknown networks, and any other for unusual variants.
    except Exception:
        return None
    name = descriptor.architecture.name
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise ModelError(f"{name} is no network from picture to picture: use one that restores")
    if descriptor.scale != 1:
        raise ModelError(
            f"this {name} enlarges pictures {descriptor.scale} times: use one that keeps their size"
        )
    if (descriptor.input_channels, descriptor.output_channels) != (3, 3):
        raise ModelError(
            f"this {name} maps {descriptor.input_channels} channels to "
            f"{descriptor.output_channels}: use one for RGB pictures"
        )
    return ZooNetwork(descriptor)


def zoo_state() -> str:
    """Return what spandrel could add, for an error about unknown weights."""
    if not installed("spandrel"):
        return "pip install 'vdeblur[zoo]' brings more networks, which may know it"
    if _spandrel() is None:
        return "spandrel, which may know it, is installed but cannot be imported"
    if not installed("spandrel_extra_arches"):
        return "spandrel does not know it either; pip install spandrel-extra-arches brings more"
    return "spandrel does not know it either"


def _spandrel() -> Any:
    if not installed("spandrel"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about spandrel's code
        try:
            spandrel = importlib.import_module("spandrel")
            if installed("spandrel_extra_arches"):
                extra = importlib.import_module("spandrel_extra_arches")
                extra.install(ignore_duplicates=True)
        # spandrel needs torchvision, which fails in other ways beside another build of torch.
        except (ImportError, RuntimeError, OSError):
            return None
    return spandrel


def _share_global_means(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
