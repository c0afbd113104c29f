"""Tiles, halos, channel attention, self-ensemble, stages: what a network's facts are used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vdeblur.errors import UsageError
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import free_memory
from vdeblur.inference.tiling import FEATHER, sample_crops
from vdeblur.media.reader import VideoReader
from vdeblur.networks import FAMILIES, GlobalMean, Network, build, names, share_means, spec
from vdeblur.networks.mimo_unet import MIMOUNet

SAMPLE = Path(__file__).parents[2] / "samples" / "street_blurred.mp4"


class Attends(nn.Module):
    """Darkens a picture by a share of its mean: channel attention at its plainest."""

    size_multiple = 8
    receptive_radius = None
    tile_margin = 8

    def __init__(self) -> None:
        super().__init__()
        self.mean = GlobalMean()

    def forward(self, x: Tensor) -> Tensor:
        # Twice, as a layer shared by two places of a network is.
        darker: Tensor = x - 0.1 * self.mean(x) - 0.1 * self.mean(x * x)
        return darker


class Stages(Network):
    """Two predictions."""

    stages = ("late", "early")
    size_multiple = 1
    receptive_radius = 0
    activations_per_pixel = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = {}

    def forward(self, x: Tensor) -> Tensor:
        return x + {"late": 0.1, "early": 0.05}[self.stage]

    def start_as_identity(self) -> None:
        raise AssertionError

    @classmethod
    def config_of(cls, shapes: Any) -> dict[str, Any] | None:
        return None


def slanted(height: int, width: int) -> Tensor:
    """Dark at the left, bright at the right, brighter below: every tile has a mean of its own."""
    x = torch.linspace(0.2, 0.7, width).expand(height, width)
    y = torch.linspace(0, 0.2, height)[:, None]
    return (x + y).expand(1, 3, height, width).clone()


def test_tiles_of_channel_attention_share_one_tone() -> None:
    network = Attends()
    x = torch.cat([slanted(320, 480), slanted(320, 480).flip(3) * 0.5])
    whole = Deblurrer(network, device="cpu", tile=None)(x)
    tiled = Deblurrer(network, device="cpu", tile=160)(x)
    # Four crops have about, not exactly, the picture's mean; the difference is one tone, no seam.
    difference = (tiled - whole).amax(dim=(2, 3)) - (tiled - whole).amin(dim=(2, 3))
    assert float(difference.max()) < 1e-6
    assert float((tiled - whole).abs().max()) < 2 / 255
    assert network.mean._held is None
    alone = Attends()
    alone.mean = nn.AdaptiveAvgPool2d(1)  # type: ignore[assignment]
    apart = Deblurrer(alone, device="cpu", tile=160)(x)
    assert float((apart - whole).abs().max()) > 8 / 255


def test_shared_means_are_given_back_in_the_order_of_their_use() -> None:
    network = Attends()
    picture = torch.rand(1, 3, 64, 64)
    crops = torch.cat([picture[..., :32], picture[..., 32:]])
    with share_means(network, crops):
        left = network(picture[..., :32])
        right = network(picture[..., 32:])
    joined = torch.cat([left, right], dim=3)
    assert torch.allclose(joined, network(picture), atol=1e-6)
    with pytest.raises(IndexError), share_means(network, torch.rand(1)):
        pass
    assert torch.allclose(network(picture), joined, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (40, 400), (720, 1280), (16, 24)])
def test_sample_crops_lie_in_the_picture_at_legal_places(size: tuple[int, int]) -> None:
    height, width = size
    picture = torch.arange(height * width).float().view(1, 1, height, width)
    crops = sample_crops(picture, area=256 * 256, multiple=8)
    assert len(crops) == 4
    assert crops[:, 0].numel() <= 256 * 256
    assert crops.shape[2] % 8 == 0
    first = crops[:, 0, 0, 0].long()
    assert not (first // width % 8).any()
    assert not (first % width % 8).any()


def test_the_full_halo_makes_tiles_exact_through_the_deblurrer() -> None:
    torch.manual_seed(2)
    network = MIMOUNet(base=8, blocks=1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Made to look far, with a correction that still passes for one.
            parameter.mul_(0.05 if name.startswith("feat_extract.5") else 1.5)
    x = torch.rand(1, 3, 200, 420)
    whole = Deblurrer(network, device="cpu", tile=None)(x)
    assert float((whole - x).abs().max()) > 0.01

    def error(**options: Any) -> float:
        tiled = Deblurrer(network, device="cpu", tile=160, **options)(x)
        return float((tiled - whole).abs().max())

    assert error(halo="full") < 1e-5
    assert error(halo=network.receptive_radius) < 1e-5
    assert error(halo=4) > 1e-5
    impossible: Any
    for impossible in (-1, "full"):
        with pytest.raises(UsageError, match=f"halo is {impossible}"):
            Deblurrer(Attends(), device="cpu", halo=impossible)


@pytest.mark.parametrize("name", [name for name in names() if spec(name).ships])
def test_seams_of_the_shipped_weights_stay_under_half_a_level(name: str) -> None:
    with VideoReader(SAMPLE) as reader:
        frame = next(iter(reader))
    luma = torch.from_numpy(np.ascontiguousarray(frame.planes[0])).float().div(255)
    # The smallest tiles that have a whole edge: of more than four edges.
    tile = 4 * build(name).tile_margin + FEATHER
    x, motion = luma[:, : tile + 48].expand(1, 3, -1, -1), torch.tensor([25.0, 3, 0, 0])
    whole, tiled = (
        Deblurrer(name, device="cpu", tile=side)(x, motion.view(1, 4, 1, 1))
        for side in (None, tile)
    )
    difference = (tiled - whole).abs().mul(255).flatten()
    assert float((whole - x).abs().max()) > 8 / 255
    assert float(difference.quantile(0.999)) < 0.5


def test_the_self_ensemble_is_the_mean_over_eight_views() -> None:
    torch.manual_seed(3)
    network = MIMOUNet(base=8, blocks=1)
    with torch.no_grad():
        for parameter in network.feat_extract[5].parameters():
            parameter.mul_(0.1)
    x = torch.rand(1, 3, 24, 36)
    views = []
    for mirror in (False, True):
        for turns in range(4):
            seen = torch.rot90(x.flip(3) if mirror else x, turns, (2, 3))
            back = torch.rot90(Deblurrer(network, device="cpu")(seen), -turns, (2, 3))
            views.append(back.flip(3) if mirror else back)
    expected = torch.stack(views).mean(0)
    together = Deblurrer(network, device="cpu", ensemble=True)(x)
    # Clamped before and after the mean.
    inside = (expected > 0.01) & (expected < 0.99)
    assert torch.allclose(together[inside], expected[inside], atol=1e-5)
    assert not torch.allclose(together, views[0], atol=1e-4)
    # Turning the input turns the output: what an ensemble is for.
    turned = Deblurrer(network, device="cpu", ensemble=True)(torch.rot90(x, 1, (2, 3)))
    assert torch.allclose(torch.rot90(turned, -1, (2, 3)), together, atol=1e-5)
    tiled = Deblurrer(network, device="cpu", ensemble=True, tile=128, halo="full")
    wide = torch.rand(1, 3, 40, 300)
    whole = Deblurrer(network, device="cpu", ensemble=True)(wide)
    assert torch.allclose(tiled(wide), whole, atol=1e-5)


def test_a_stage_is_chosen_by_its_name() -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    assert torch.allclose(Deblurrer(Stages(), device="cpu")(x), x + 0.1)
    assert torch.allclose(Deblurrer(Stages(), device="cpu", stage="early")(x), x + 0.05)
    with pytest.raises(UsageError, match="stage is '4': this network has late, early"):
        Deblurrer(Stages(), device="cpu", stage="4")
    with pytest.raises(UsageError, match="one prediction only"):
        Deblurrer(Attends(), device="cpu", stage="1")
    with pytest.raises(UsageError, match="this network has full"):
        Deblurrer("identity", device="cpu", stage="1")


@pytest.mark.parametrize("name", names())
def test_every_network_of_the_catalogue_keeps_its_promises(name: str) -> None:
    """What `Network` asks for, of all that are in the catalogue, in the configuration it names."""
    with torch.device("meta"):
        network = build(name)
    entry = spec(name)
    assert isinstance(network, FAMILIES[entry.family])
    assert network.size_multiple >= 1
    assert network.tile_margin >= 0
    assert network.activations_per_pixel >= 0
    assert network.receptive_radius is None or network.receptive_radius >= 0
    glances = any(isinstance(layer, GlobalMean) for layer in network.modules())
    assert (network.receptive_radius is None) == glances
    m = network.size_multiple
    x = torch.empty(1, 3, 5 * m, 3 * m, device="meta")
    for stage in network.stages:
        network.stage = stage
        assert network(x).shape == x.shape
        assert network.correction(x).shape == x.shape
    network.stage = network.stages[0]
    scales = network.forward_scales(x)
    assert scales[-1].shape == x.shape
    assert all(5 * m % len(y[0, 0]) == 0 for y in scales)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if entry.trained:
        assert type(network).config_of(shapes) == network.config
    with torch.device("meta"):
        again = FAMILIES[entry.family](**network.config)
    assert {k: tuple(v.shape) for k, v in again.state_dict().items()} == shapes


def test_tiles_that_are_mostly_overlap_are_told() -> None:
    def notes(**options: Any) -> list[str]:
        network = MIMOUNet(base=32, blocks=2, unshuffle=4)
        deblurrer = Deblurrer(network, device="cpu", **options)
        deblurrer.memory.plan_for(360, 640, free=free_memory(deblurrer.device))
        return deblurrer.notes

    (note,) = notes(tile=128)
    assert note.startswith("tiles of 128x128 compute 5.0 times the picture, for they overlap by 80")
    assert notes(tile=384) == notes(tile=None) == notes() == []
