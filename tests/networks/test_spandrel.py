"""Networks of spandrel's, with a stand-in for that package: what of it is used, and how."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.networks import GlobalMean
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.weights import load


class Attention(nn.Module):
    """Adds a share of each channel's mean over the picture, as channel attention would."""

    def __init__(self) -> None:
        super().__init__()
        self.intro = nn.Conv2d(3, 3, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 3, 1))
        self.pool = nn.AdaptiveAvgPool2d(2)  # not of the whole picture

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        assert x.shape[2] % 8 == 0, "the size was asked for"
        assert min(x.shape[2:]) >= 16
        return x + 0.1 * self.intro(x) * self.sca(x), "aside"


class UnsupportedModelError(Exception):
    """As spandrel's."""


class ImageModelDescriptor:
    """The part of spandrel's that is relied on."""

    def __init__(self, model: nn.Module, **facts: Any) -> None:
        self.model = model
        self._call_fn: Callable[[Any, Tensor], Tensor] = lambda model, x: model(x)[0]
        self.architecture = SimpleNamespace(name="NAFNet")
        self.tags = ["32w"]
        self.scale, self.input_channels, self.output_channels = 1, 3, 3
        self.supports_half = False
        self.size_requirements = SimpleNamespace(minimum=16, multiple_of=8, square=False)
        self.tiling = SimpleNamespace(name="SUPPORTED")
        vars(self).update(facts)


@pytest.fixture
def facts() -> dict[str, Any]:
    """What the next descriptor says; a test changes it."""
    return {}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any]) -> ModuleType:
    class ModelLoader:
        def __init__(self, device: str) -> None:
            assert device == "cpu"

        def load_from_state_dict(self, tensors: dict[str, Any]) -> Any:
            assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
            if "intro.weight" not in tensors:
                raise UnsupportedModelError
            model = Attention()
            model.load_state_dict(tensors)
            return facts.get("instead") or ImageModelDescriptor(model, **facts)

    module = ModuleType("spandrel")
    module.__spec__ = importlib.machinery.ModuleSpec("spandrel", None)
    vars(module).update(ModelLoader=ModelLoader, ImageModelDescriptor=ImageModelDescriptor)
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    return module


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "nafnet.pth"
    state = {f"module.{name}": tensor for name, tensor in Attention().state_dict().items()}
    torch.save({"params": state}, path)
    return path


def test_a_network_of_the_zoo_works_like_one_of_ours(fake: ModuleType, weights: Path) -> None:
    deblurrer = Deblurrer(weights=weights, device="cpu")
    assert deblurrer.name == "NAFNet"
    assert deblurrer.about == ("weights nafnet.pth: NAFNet 32w, by spandrel",)
    assert deblurrer.multiple == 8
    own = Attention().requires_grad_(False)
    state = torch.load(weights, weights_only=True)["params"]
    own.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    x = torch.rand(2, 3, 24, 40)
    assert torch.allclose(deblurrer(x), own(x)[0].clamp(0, 1), atol=1e-6)
    assert deblurrer(torch.rand(1, 3, 5, 9)).shape == (1, 3, 5, 9)
    assert not any(p.requires_grad for p in deblurrer.network.parameters())
    assert getattr(deblurrer.network, "supports_half", True) is False


def test_means_over_the_picture_are_shared_by_its_tiles(fake: ModuleType, weights: Path) -> None:
    network = load(None, weights).network
    assert sum(isinstance(layer, GlobalMean) for layer in network.modules()) == 1
    assert sum(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in network.modules()) == 1
    # Dark on the left, bright on the right: a tile's own mean would be another.
    x = torch.rand(1, 3, 256, 256) * 0.2 + torch.linspace(0, 0.8, 256)
    tiled = Deblurrer(network, device="cpu", tile=128)(x)
    whole = Deblurrer(network, device="cpu", tile=None)(x)
    seam = (tiled - whole)[..., 128] - (tiled - whole)[..., 127]
    assert seam.abs().max() < 1e-3
    assert (whole - x).abs().max() > 0.01


def test_a_size_that_must_be_square_or_large_is_given(
    fake: ModuleType, weights: Path, facts: dict[str, Any]
) -> None:
    seen = []

    def call(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return x

    needs = SimpleNamespace(minimum=32, multiple_of=8, square=True)
    facts |= {"size_requirements": needs, "_call_fn": call}
    network = load(None, weights).network
    for size in ((8, 8), (40, 64)):
        assert network(torch.rand(1, 3, *size)).shape[2:] == size
    assert seen == [(32, 32), (64, 64)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale": 4}, "enlarges pictures 4 times"),
        ({"input_channels": 1, "output_channels": 1}, "maps 1 channels to 1"),
        ({"instead": SimpleNamespace(architecture=SimpleNamespace(name="LaMa"))}, "LaMa is no"),
    ],
)
def test_networks_that_cannot_deblur_are_refused(
    changed: dict[str, Any], said: str, fake: ModuleType, weights: Path, facts: dict[str, Any]
) -> None:
    facts |= changed
    with pytest.raises(ModelError, match=said) as caught:
        load(None, weights)
    assert str(weights) in str(caught.value)


def test_a_network_that_looks_at_whole_pictures_is_noted(
    fake: ModuleType, weights: Path, facts: dict[str, Any]
) -> None:
    facts["tiling"] = SimpleNamespace(name="DISCOURAGED")
    assert load(None, weights).notes[1] == (
        "NAFNet looks at whole pictures: tiles may differ in tone"
    )


def test_another_network_than_asked_for_is_refused(fake: ModuleType, weights: Path) -> None:
    with pytest.raises(ModelError, match=r"holds weights of NAFNet 32w, not of 'mimo-unet': leave"):
        load("mimo-unet", weights)


def test_our_own_networks_go_first(
    fake: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(fake, "ModelLoader")
    path = tmp_path / "x.pth"
    torch.save(MIMOUNet(base=8, blocks=1).state_dict(), path)
    assert load(None, path).name == "mimo-unet"


def test_what_is_tried_and_what_could_help_is_said(
    fake: ModuleType, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "odd.pth")
    with pytest.raises(ModelError, match="spandrel does not know it either; pip install span"):
        load(None, tmp_path / "odd.pth")
    # It cannot be imported, as beside a torch that its torchvision does not fit.
    monkeypatch.setattr("vdeblur.networks.spandrel.importlib.import_module", _fails)
    with pytest.raises(ModelError, match="is installed but cannot be imported"):
        load(None, weights)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match=r"pip install 'vdeblur\[zoo\]' brings more networks"):
        load(None, weights)


def _fails(name: str) -> Any:
    raise RuntimeError("operator torchvision::nms does not exist")


def test_more_networks_come_with_the_extra_package(
    fake: ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    extra = ModuleType("spandrel_extra_arches")
    extra.__spec__ = importlib.machinery.ModuleSpec("spandrel_extra_arches", None)
    vars(extra)["install"] = lambda *, ignore_duplicates: asked.append(ignore_duplicates)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", extra)
    assert load(None, weights).name == "NAFNet"
    assert asked
    assert all(asked)
