"""Networks pruned to smaller ones that load by themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.training import (
    FAMILY_SAMPLES,
    TINY,
    batches,
    image,
    losses_of,
)
from vdeblur.errors import ModelError
from vdeblur.networks import build
from vdeblur.networks.cost import operations
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.training.pruning import prune
from vdeblur.weights import load, save_weights


def trained_pieces() -> tuple[MIMOUNet, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(1)
    network = MIMOUNet(base=8, blocks=2)
    return network, [next(batches(0)), next(batches(1))]


def test_pruning_takes_channels_that_do_nothing_and_changes_nothing() -> None:
    network, sample = trained_pieces()
    for name, parameter in network.named_parameters():
        if ".layers." in name and name.endswith("main.0.main.0.weight"):
            parameter.data[::2] = 0  # every other filter is dead
        if ".layers." in name and name.endswith("main.0.main.0.bias"):
            parameter.data[::2] = 0
    smaller = prune(network, 0.5, sample, multiple=2)
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(smaller(x), network(x), atol=1e-6)
    assert operations(smaller) < 0.65 * operations(network)
    assert all(p.grad is None for p in network.parameters())


def test_a_pruned_network_is_smaller_and_loads_by_itself(tmp_path: Path) -> None:
    network, sample = trained_pieces()
    smaller = prune(network, 0.4, sample, multiple=4)
    assert sum(smaller.config["hidden"]) < 224
    assert min(smaller.config["hidden"]) >= 4
    assert all(width % 4 == 0 for width in smaller.config["hidden"])
    saved = tmp_path / "a.safetensors"
    save_weights(saved, smaller.state_dict(), network="mimo-unet", config=smaller.config)
    assert load(None, saved).network.config == smaller.config
    # Also where only names and shapes say what it is.
    torch.save(smaller.state_dict(), tmp_path / "a.pth")
    again = load("mimo-unet", tmp_path / "a.pth").network
    assert again.config == smaller.config
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), smaller(x))
    losses, _ = losses_of(replace(TINY, steps=2), network=smaller)
    assert len(losses) == 2
    with pytest.raises(ModelError, match="only networks of the family mimo-unet"):
        prune(build("mimo-unet-lite", FAMILY_SAMPLES["mimo-unet-lite"]), 0.5, sample)


def test_operations_are_counted_as_they_are() -> None:
    """3×3 convolutions of a known network: the published figure is 63.7 G at 256×256."""
    assert operations(build("mimo-unet"), size=256) == pytest.approx(63.7e9, rel=0.06)


def test_widths_of_a_pruned_network_are_checked() -> None:
    with pytest.raises(ModelError, match="hidden must be 6 widths"):
        build("mimo-unet", {"base": 8, "blocks": 1, "hidden": [8, 8]})
    full = build("mimo-unet", {"base": 8, "blocks": 1, "hidden": [8, 16, 32, 32, 16, 8]})
    assert "hidden" not in full.config
