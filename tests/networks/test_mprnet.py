"""MPRNet: sizes, stages and what they cost, corrections, configurations, tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vdeblur.errors import ModelError
from vdeblur.inference.tiling import in_tiles
from vdeblur.networks import GlobalMean, build, share_means
from vdeblur.networks.mprnet import MPRNet

TINY = {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 3, "num_cab": 2}


def tiny(**config: int) -> MPRNet:
    torch.manual_seed(0)
    return MPRNet(**(TINY | config)).eval().requires_grad_(False)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 40), (24, 16)])
def test_every_legal_size_is_kept(height: int, width: int) -> None:
    network = tiny()
    assert network.size_multiple == 8
    x = torch.rand(2, 3, height, width)
    predictions = network.forward_scales(x)
    assert [p.shape for p in predictions] == [x.shape] * 3
    # Pictures of a batch know nothing of each other.
    assert torch.allclose(network(x[1:]), predictions[-1][1:], atol=1e-6)


def test_a_stage_is_chosen_by_name() -> None:
    network, x = tiny(), torch.rand(1, 3, 16, 24)
    assert network.stages == ("3", "2", "1")
    assert network.stage == "3"
    predictions = dict(zip("123", network.forward_scales(x), strict=True))
    assert not torch.equal(predictions["1"], predictions["2"])
    for stage, prediction in predictions.items():
        network.stage = stage
        assert torch.equal(network(x), prediction)
        assert torch.equal(x + network.correction(x), prediction)
        assert torch.equal(network.forward_scales(x)[-1], prediction)
    with pytest.raises(ValueError, match="stage '4' is none of 3, 2, 1"):
        network.stage = "4"


def test_early_stages_are_cheaper() -> None:
    network, x = tiny(num_cab=8), torch.rand(1, 3, 16, 16)
    costs = []
    for stage in ("1", "2", "3"):
        network.stage = stage
        with FlopCounterMode(display=False) as counter:
            network(x)
        costs.append(counter.get_total_flops())
    for early, late in pairwise(costs):
        assert early < 0.6 * late


def test_an_untrained_network_can_start_as_the_identity() -> None:
    network, x = tiny(), torch.rand(1, 3, 16, 16)
    assert network.correction(x).any()
    network.start_as_identity()
    for prediction in network.forward_scales(x):
        assert torch.equal(prediction, x)
    assert not network.correction(x).any()


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_half_precision_does_not_round_the_picture(stage: str) -> None:
    network, x = tiny(), torch.rand(1, 3, 16, 16)
    for head in (network.sam12.conv2, network.sam23.conv2, network.tail):
        head.weight.mul_(1e-3)  # corrections below bfloat16's steps at 1
    network.stage = stage
    exact = network.correction(x)
    network.to(torch.bfloat16)
    half = x.to(torch.bfloat16)
    error = (network.correction(half).float() - exact).abs().mean() / exact.abs().mean()
    rounded = (network(half).float() - half.float() - exact).abs().mean() / exact.abs().mean()
    assert error < 0.1 < rounded


def test_the_slope_is_one_parameter_under_many_names() -> None:
    network = tiny()
    slopes = [name for name in network.state_dict() if name.endswith("body.1.weight")]
    assert len(slopes) > 30
    assert len({id(network.get_parameter(name)) for name in slopes}) == 1
    count = sum(p.numel() for p in network.parameters())
    assert sum(t.numel() for t in network.state_dict().values()) == count + len(slopes) - 1


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        {"n_feat": 40, "scale_unetfeats": 20, "scale_orsnetfeats": 16},
        {"num_cab": 3},
        TINY | {"reduction": 2},
        TINY | {"scale_unetfeats": 0, "scale_orsnetfeats": 0},
    ],
)
def test_the_configuration_is_seen_in_names_and_shapes(config: dict[str, int]) -> None:
    with torch.device("meta"):
        network = MPRNet(**config)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert MPRNet.config_of(shapes) == network.config
    # Of a damaged one, still the likeliest.
    del shapes["concat12.weight"], shapes["stage3_orsnet.orb1.body.0.body.2.weight"]
    assert MPRNet.config_of(shapes) == network.config
    del shapes["tail.weight"]
    assert MPRNet.config_of(shapes) is None


@pytest.mark.parametrize("wrong", [{"n_feat": 2}, {"reduction": 0}, {"depth": 3}, {"num_cab": 0}])
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="a mprnet network cannot have the config"):
        build("mprnet", TINY | wrong)


def test_training_reaches_every_parameter_and_lowers_the_loss() -> None:
    network = tiny().train().requires_grad_(True)
    sharp = torch.rand(2, 3, 16, 16).round()
    blurred = nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        predictions = network.forward_scales(blurred)
        loss = torch.stack([(p - sharp).abs().mean() for p in predictions]).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None for p in network.parameters())
    assert losses[-1] < 0.95 * losses[0]


def test_nothing_but_the_means_is_global() -> None:
    network = tiny().double()
    assert network.receptive_radius is None
    means = [m for m in network.modules() if isinstance(m, GlobalMean)]
    blocks = [name for name in network.state_dict() if name.endswith("conv_du.0.weight")]
    assert len(means) == len(blocks)
    x = torch.rand(1, 3, 8, 1200, dtype=torch.float64)
    changed = x.clone()
    changed[..., :8] += 0.5

    def far() -> float:
        return float((network(changed) - network(x))[..., 1000:].abs().max())

    assert far() > 1e-9
    with share_means(network, x):
        assert far() == 0


def test_tiles_that_share_means_have_no_seams() -> None:
    network = tiny()
    for name, layer in network.named_parameters():
        if "conv_du" in name:
            layer.mul_(8)  # attention that acts, as trained attention does
    # Dark at both ends, bright between: each tile alone has another mean.
    x = torch.rand(1, 3, 16, 512) * torch.linspace(0, torch.pi, 512).sin()

    def error() -> float:
        tiled = in_tiles(network.correction, x, tile=192, margin=network.tile_margin, multiple=8)
        return float((tiled - network.correction(x)).abs().max())

    assert error() > 1e-2
    with share_means(network, x):
        # The middle of a tile, where it would be parted into patches, included.
        assert error() < 1e-5


def test_tiles_differ_from_the_whole_picture_in_its_middle() -> None:
    network, x = tiny(), torch.rand(1, 3, 256, 256)
    whole = network.correction(x)
    with share_means(network, x):
        difference = (network.correction(x) - whole).abs()
    middle = difference[..., 120:136, :].mean()
    assert middle > 0.02 * whole.abs().mean()
    for corner in (difference[..., :96, :96], difference[..., 160:, 160:]):
        assert corner.mean() < 0.01 * middle
