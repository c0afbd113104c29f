"""The published networks: their names, shapes and outputs, held to the fixtures in `parity`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.networks.parity.fill import fill
from vdeblur.networks import FAMILIES, Network, build, spec

FOLDER = Path(__file__).parent / "parity"


@dataclass(frozen=True)
class Fixture:
    """A file in `parity`, and the names of its outputs as `forward_scales` orders them."""

    file: str
    outputs: tuple[str, ...] = ("quarter", "half", "full")
    tensorflow: bool = False

    def published(self) -> dict[str, Tensor]:
        """The filled parameters, under their published names and in their published layout."""
        shapes = json.loads((FOLDER / f"{self.file}.json").read_text("ascii"))["parameters"]
        layout: Literal["torch", "tf"] = "tf" if self.tensorflow else "torch"
        return {
            name: torch.from_numpy(fill(name, tuple(shape), layout=layout))
            for name, shape in shapes.items()
        }

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Input and outputs; those of grayscale channels (3, H, W, 1) as one (1, 3, H, W)."""
        with np.load(FOLDER / f"{self.file}.npz") as file:
            found = {name: file[name] for name in file.files}
        if self.tensorflow:
            found = {name: a.transpose(3, 0, 1, 2) for name, a in found.items()}
        return found


FIXTURES = {
    "mimo-unet": Fixture("mimo_unet"),
    "mimo-unet-plus": Fixture("mimo_unet_plus"),
    "mprnet": Fixture("mprnet_deblur", ("stage1", "stage2", "stage3")),
    "pss-nsc": Fixture("pss_nsc", tensorflow=True),
}


def filled(name: str) -> Network:
    """The network of the catalogue with the fixture's parameters."""
    network = build(name).eval().requires_grad_(False)
    tensors = type(network).from_published(FIXTURES[name].published())
    assert tensors is not None
    network.load_state_dict(tensors)
    return network


@pytest.mark.parametrize("name", FIXTURES)
def test_outputs_are_those_of_the_published_network(name: str) -> None:
    network, arrays = filled(name), FIXTURES[name].arrays()
    x = torch.from_numpy(arrays["input"])
    with torch.inference_mode():
        outputs = network.forward_scales(x)
    for output, key in zip(outputs, FIXTURES[name].outputs, strict=True):
        # The bar is 1e-4 of the range; what is left here is the order of additions.
        assert np.abs(output.numpy() - arrays[key]).max() < 1e-5 * np.ptp(arrays[key]), key


@pytest.mark.parametrize("name", FIXTURES)
def test_names_and_shapes_are_those_published(name: str) -> None:
    published = FIXTURES[name].published()
    translated = FAMILIES[spec(name).family].from_published(published)
    assert translated is not None
    network = build(name)
    assert {key: t.shape for key, t in translated.items()} == {
        key: t.shape for key, t in network.state_dict().items()
    }
    if not FIXTURES[name].tensorflow:
        assert list(translated) == list(published)
    # No other family takes them for its own, and this one sees how they were made.
    shapes = {key: tuple(t.shape) for key, t in translated.items()}
    for family, kind in FAMILIES.items():
        config = kind.config_of(shapes)
        if family == spec(name).family:
            assert config is not None
            assert FAMILIES[family](**config).config == network.config
        else:
            assert config is None, family
            if published.keys() != translated.keys():
                foreign = kind.from_published(published)
                assert foreign is None or kind.config_of(_shapes(foreign)) is None


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(t.shape) for key, t in tensors.items()}


def test_the_counts_are_those_published() -> None:
    counts = {
        name: sum(t.numel() for t in FIXTURES[name].published().values()) for name in FIXTURES
    }
    assert counts == {
        "mimo-unet": 6_807_171,
        "mimo-unet-plus": 16_107_651,
        "mprnet": 20_127_127,
        "pss-nsc": 3_871_715,
    }
    for name, count in counts.items():
        assert sum(t.numel() for t in build(name).state_dict().values()) == count
