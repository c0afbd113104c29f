"""Dead channels are counted, avoided and revived."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.training import (
    TINY,
    image,
    losses_of,
)
from vdeblur.networks import build
from vdeblur.networks.layers import BasicConv
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.training.dead_channels import dead_share, revive, start_well


def test_dead_channels_are_counted_and_revived_without_a_change() -> None:
    torch.manual_seed(0)
    network = MIMOUNet(base=8, blocks=1)
    x = image(2, 3, 32, 32)
    alive = dead_share(network, x)
    first = network.Encoder[1].layers[0].main[0].main[0]  # type: ignore[index, union-attr]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight[:6] = 0
        first.bias[:6] = -1  # type: ignore[index]
        before = network(x)
    relus = sum(channels_of(layer) for layer in network.modules())
    # One more layer's six channels; a layer behind may lose or win some by it.
    assert dead_share(network, x) == pytest.approx(alive + 6 / relus, abs=3 / relus)
    assert revive(network, x) >= 6
    with torch.no_grad():
        assert torch.equal(network(x), before)
    assert dead_share(network, x) <= alive
    # They take part in learning again.
    kept = first.weight.detach().clone()
    losses_of(replace(TINY, steps=3, config={"base": 8, "blocks": 1}), network=network)
    moved = (first.weight.detach() - kept).abs().amax(dim=(1, 2, 3))
    assert bool((moved[:6] > 0).all())


def channels_of(layer: nn.Module) -> int:
    """How many channels a ReLU of this layer has."""
    if not isinstance(layer, BasicConv) or len(layer.main) < 2:
        return 0
    convolution = layer.main[0]
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    return convolution.out_channels


def test_a_good_start_has_no_dead_channels_and_does_not_lean_on_brightness() -> None:
    torch.manual_seed(0)
    network = build("mimo-unet", {"base": 32, "blocks": 2, "unshuffle": 4})
    coarse = image(2, 3, 8, 8)
    x = F.interpolate(coarse, size=(128, 128), mode="bilinear") * 0.5 + 0.2
    default = dead_share(network, x)
    start_well(network)
    assert dead_share(network, x) < min(0.05, default)
    assert isinstance(network, MIMOUNet)
    with torch.no_grad():
        grey = network.feat_extract[0].main[0](torch.full((1, 48, 8, 8), 0.45))  # type: ignore[index, operator]
    assert float(grey[..., 1:-1, 1:-1].abs().max()) < 1e-4
