"""What the networks made here have in common: they learn, are recognised, travel through files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.networks.test_mimo_unet_cfa import CONFIGS as CFA
from tests.networks.test_mimo_unet_lite import CONFIGS as LITE
from vdeblur.networks import FAMILIES, build
from vdeblur.networks.base import Network
from vdeblur.weights import load_network, save_weights

NAMES = {"mimo-unet-cfa": CFA, "mimo-unet-lite": LITE}
CASES = [(name, config) for name, configs in NAMES.items() for config in configs]


def network_of(name: str, config: dict[str, int]) -> Network:
    torch.manual_seed(0)
    return build(name, config).eval()


def without_gradient(network: nn.Module) -> list[str]:
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def descend(network: nn.Module, rate: float) -> None:
    """One step by the gradient's sign: near Adam, without the seconds its import takes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(rate * parameter.grad.sign())


@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_parameter_and_lowers_the_loss(name: str) -> None:
    network = network_of(name, NAMES[name][1]).train()
    # Squares of one colour: sharp edges, which can be learned in a few steps; noise cannot.
    sharp = F.interpolate(torch.rand(2, 3, 8, 8), scale_factor=4.0)
    blurred = F.avg_pool2d(sharp, 5, stride=1, padding=2, count_include_pad=False)
    losses: list[list[float]] = []
    for _ in range(20):
        outputs = network.forward_scales(blurred)
        targets = [F.interpolate(sharp, size=y.shape[2:], mode="area") for y in outputs]
        terms = [F.l1_loss(y, target) for y, target in zip(outputs, targets, strict=True)]
        network.zero_grad()
        torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
        if not losses:
            assert not without_gradient(network)
        descend(network, 2e-3)
        losses.append([float(term.detach()) for term in terms])
    # Every picture of full size is trained, each for itself: of some networks there are two.
    full = [n for n, y in enumerate(outputs) if y.shape == sharp.shape]
    assert full
    for n in full:
        assert losses[-1][n] < 0.97 * losses[0][n]
    assert sum(losses[-1]) < 0.9 * sum(losses[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_heads_can_leave_the_identity(name: str) -> None:
    network = network_of(name, NAMES[name][1])
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


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_configuration_is_read_from_names_and_shapes(name: str, config: dict[str, int]) -> None:
    network = network_of(name, config)
    shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
    assert type(network).config_of(shapes) == config
    others: list[type[Network]] = [f for f in FAMILIES.values() if f is not type(network)]
    assert len(others) >= 2
    assert [f.__name__ for f in others if f.config_of(shapes) is not None] == []
    with torch.device("meta"):
        foreign = {n: tuple(t.shape) for n, t in build("mimo-unet").state_dict().items()}
    assert type(network).config_of(foreign) is None
    assert type(network).config_of({}) is None


@pytest.mark.parametrize("name", NAMES)
def test_weights_travel_through_a_file(name: str, tmp_path: Path) -> None:
    network = network_of(name, NAMES[name][2])
    path = tmp_path / "weights.safetensors"
    save_weights(path, network.state_dict(), network=name, config=network.config, half=False)
    loaded = load_network(name, path)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(x), network(x))
