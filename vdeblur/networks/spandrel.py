"""Networks that the optional package spandrel knows (NAFNet, FFTformer, Uformer …), as one of ours.

spandrel recognises them and builds them; it is given tensors only, never a file. With
spandrel-extra-arches beside it, Restormer, MIRNetV2 and others come in.
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
from vdeblur.system.optional import installed


class ZooNetwork(nn.Module):
    """A network of spandrel's: (N, 3, H, W) RGB in [0, 1] → the same shape; not clamped.

    How far it sees is not known: there is no `halo`. Layers that average over the whole picture are
    replaced by `GlobalMean`, so that tiles do not differ in tone.
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
        # Some networks want other values, or give more than the picture; this knows. Its public
        # call would also clamp, and give tensors that later steps may not write to.
        self._call = descriptor._call_fn
        self.inner: nn.Module = descriptor.model
        _share_global_means(self.inner)

    @property
    def description(self) -> str:
        """Such as "NAFNet 32w"."""
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
    """The network that spandrel makes of these tensors; None if it knows none, or is not here.

    ModelError for a network that cannot deblur: of another scale, or not of RGB pictures.
    """
    spandrel = _spandrel()
    if spandrel is None:
        return None
    try:
        descriptor = spandrel.ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    # It raises its own error for the unknown, and anything at all for the almost known.
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
    """What to say to someone whose weights nothing here knows: what the zoo could add."""
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
        warnings.simplefilter("ignore")  # what torch says of spandrel's own code is not for users
        try:
            spandrel = importlib.import_module("spandrel")
            if installed("spandrel_extra_arches"):
                extra = importlib.import_module("spandrel_extra_arches")
                extra.install(ignore_duplicates=True)
        # torchvision, which it needs, fails in ways of its own beside another build of torch.
        except (ImportError, RuntimeError, OSError):
            return None
    return spandrel


def _share_global_means(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
