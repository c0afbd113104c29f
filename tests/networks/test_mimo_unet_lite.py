"""mimo-unet-lite: sizes, training outputs, cost, recognition by shapes, attention across tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdeblur.errors import ModelError
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.networks import build, share_means, spec
from vdeblur.networks.mimo_unet_lite import MIMOUNetLite

CONFIGS: list[dict[str, int]] = [
    {"base": 4, "blocks": 1, "unshuffle": 1},
    {"base": 8, "blocks": 3, "unshuffle": 2},
    {"base": 12, "blocks": 2, "unshuffle": 4},
]


def network_of(config: dict[str, int]) -> MIMOUNetLite:
    torch.manual_seed(0)
    return MIMOUNetLite(**config).eval()


def gmac(network: nn.Module) -> float:
    """Billions of multiplications of one 720p pass; on meta tensors nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(1, 3, 720, 1280, device="meta"))
    return float(counter.get_total_flops()) / 2e9


@pytest.mark.parametrize("config", CONFIGS)
def test_every_legal_size_is_kept(config: dict[str, int]) -> None:
    network = network_of(config)
    m = network.size_multiple
    assert m == 4 * config["unshuffle"]
    for height, width in ((m, m), (m, 3 * m), (5 * m, 2 * m)):
        x = torch.rand(2, 3, height, width)
        outputs = network.forward_scales(x)
        assert [tuple(y.shape) for y in outputs] == [
            (2, 3, height // 4, width // 4),
            (2, 3, height // 2, width // 2),
            (2, 3, height, width),
        ]
        assert torch.equal(network(x), outputs[-1])
        assert torch.allclose(network.correction(x), network(x) - x, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_untrained_network_can_start_as_the_identity(config: dict[str, int]) -> None:
    network = network_of(config)
    x = torch.rand(1, 3, 32, 48)
    assert not torch.equal(network(x), x)
    network.start_as_identity()
    assert torch.equal(network(x), x)
    quarter, half, _ = network.forward_scales(x)
    assert torch.allclose(half, F.interpolate(x, scale_factor=0.5, mode="area"), atol=1e-6)
    assert torch.allclose(quarter, F.interpolate(x, scale_factor=0.25, mode="area"), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"base": 0}, {"blocks": 0}, {"unshuffle": 0}, {"scales": 3}])
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="a mimo-unet-lite network cannot have the config"):
        build("mimo-unet-lite", wrong)


def test_it_costs_a_fraction_of_a_mimo_unet_of_its_size() -> None:
    lite = gmac(build("mimo-unet-lite"))
    plain = gmac(build("mimo-unet", spec("mimo-unet-lite").config))
    assert 4.4 < lite < 4.8
    assert lite < plain / 6


def smooth(height: int, width: int) -> Tensor:
    """A picture with dark and bright parts, whose tiles differ in their means."""
    torch.manual_seed(3)
    coarse = torch.rand(1, 3, height // 32, width // 32)
    slope = torch.linspace(0, 1, width).expand(1, 3, height, width)
    return 0.5 * slope + 0.5 * F.interpolate(coarse, size=(height, width), mode="bilinear")


def far_seeing(network: nn.Module) -> None:
    """Weights under which channel attention matters: its excitation far from one half."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".weigh." in name:
                parameter.mul_(6)


def test_channel_attention_sees_the_whole_picture() -> None:
    network = network_of(CONFIGS[0]).requires_grad_(False)
    assert network.receptive_radius is None
    far_seeing(network)
    x = smooth(64, 512)
    changed = x.clone()
    changed[..., 448:] = 1 - changed[..., 448:]
    # 300 pixels and more away: out of reach of the convolutions.
    far = (network(changed) - network(x))[..., :128].abs().max()
    assert float(far) > 1e-5
    with share_means(network, x):
        held = (network(changed) - network(x))[..., :128].abs().max()
    assert float(held) == 0


def test_tiles_that_share_means_are_nearer_to_the_whole_picture() -> None:
    network = network_of(CONFIGS[0]).requires_grad_(False)
    far_seeing(network)
    x = smooth(128, 256)
    whole = network(x)
    halves: list[Tensor] = [x[..., :128], x[..., 128:]]
    apart = torch.cat([network(half) for half in halves], dim=3)
    with share_means(network, torch.cat(halves)):
        shared = torch.cat([network(half) for half in halves], dim=3)
    # Away from the cut, where tiles lack their neighbours.
    inner = [*range(64), *range(192, 256)]
    error_apart, error_shared = (
        float(torch.sub(y, whole)[..., inner].abs().mean()) for y in (apart, shared)
    )
    assert error_shared < 0.2 * error_apart


def test_it_runs_in_tiles_and_on_odd_sizes() -> None:
    network = network_of(CONFIGS[0])
    with torch.no_grad():
        for head in network.heads:
            for parameter in head.parameters():
                parameter.mul_(0.2)  # an untrained correction that passes for one
    x = smooth(160, 288)[..., :157, :283]
    options: Any = {"device": "cpu", "precision": "fp32"}
    whole = Deblurrer(network, tile=None, **options)(x)
    tiled = Deblurrer(network, tile=160, **options)(x)
    assert whole.shape == tiled.shape == x.shape
    assert not torch.equal(whole, x)
    assert float((tiled - whole).abs().max()) < 0.5 / 255
