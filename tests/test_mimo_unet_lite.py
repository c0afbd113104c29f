"""mimo-unet-lite: sizes, training outputs, cost, recognition by shapes, attention across tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdeblur.checkpoints import load_network, save_weights
from vdeblur.deblurrer import Deblurrer
from vdeblur.errors import ModelError
from vdeblur.models import FAMILIES, build, share_means
from vdeblur.models.mimo_unet_lite import MIMOUNetLite
from vdeblur.models.network import Network

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


def without_gradient(network: nn.Module) -> list[str]:
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def descend(network: nn.Module, rate: float) -> None:
    """One step by the gradient's sign: near Adam, without the seconds its import takes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign())


def test_training_reaches_every_parameter_and_lowers_the_loss() -> None:
    network = network_of(CONFIGS[1]).train()
    # Squares of one colour: sharp edges, which can be learned in a few steps; noise cannot.
    sharp = F.interpolate(torch.rand(2, 3, 8, 8), scale_factor=4.0)
    blurred = F.avg_pool2d(sharp, 5, stride=1, padding=2, count_include_pad=False)
    losses: list[float] = []
    for _ in range(20):
        outputs = network.forward_scales(blurred)
        targets = [F.interpolate(sharp, size=y.shape[2:], mode="area") for y in outputs]
        loss = torch.stack(
            [F.l1_loss(y, target) for y, target in zip(outputs, targets, strict=True)]
        ).sum()
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if not losses:
            assert not without_gradient(network)
        descend(network, 2e-3)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_the_heads_can_leave_the_identity() -> None:
    network = network_of(CONFIGS[1])
    network.start_as_identity()
    x = torch.rand(1, 3, 32, 32)
    for step in range(2):
        network.zero_grad()
        loss = torch.stack([(y - 0.3).abs().mean() for y in network.forward_scales(x)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if step == 0:  # zeroed layers must have a gradient themselves, or all stays as it is
            last = [p for n, p in network.named_parameters() if n.startswith("heads.")]
            assert all(p.grad is not None and p.grad.any() for p in last if not p.any())
        descend(network, 1e-3)
    assert not without_gradient(network)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_configuration_is_read_from_names_and_shapes(config: dict[str, int]) -> None:
    shapes = {n: tuple(t.shape) for n, t in network_of(config).state_dict().items()}
    assert MIMOUNetLite.config_of(shapes) == config
    others: list[type[Network]] = [f for f in FAMILIES.values() if f is not MIMOUNetLite]
    assert len(others) >= 2
    assert [f.__name__ for f in others if f.config_of(shapes) is not None] == []
    foreign = {n: tuple(t.shape) for n, t in build("mimo-unet-small").state_dict().items()}
    assert MIMOUNetLite.config_of(foreign) is None
    assert MIMOUNetLite.config_of({}) is None


def test_weights_travel_through_a_file(tmp_path: Path) -> None:
    network = network_of(CONFIGS[2])
    path = tmp_path / "lite.safetensors"
    save_weights(
        path, network.state_dict(), network="mimo-unet-lite", config=network.config, half=False
    )
    loaded = load_network("mimo-unet-lite", path)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("wrong", [{"base": 0}, {"blocks": 0}, {"unshuffle": 0}, {"scales": 3}])
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="a mimo-unet-lite network cannot have the config"):
        build("mimo-unet-lite", wrong)


def test_it_costs_a_fraction_of_the_small_network() -> None:
    lite, small = gmac(build("mimo-unet-lite")), gmac(build("mimo-unet-small"))
    assert 4.4 < lite < 4.8
    assert lite < small / 4


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
    assert network.halo is None
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
