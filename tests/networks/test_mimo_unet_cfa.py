"""mimo-unet-cfa: sizes, both stages, training outputs, recognition by shapes, tiles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.networks import build, share_means
from vdeblur.networks.mimo_unet_cfa import ChannelNorm, MIMOUNetCFA

CONFIGS: list[dict[str, int]] = [
    {"base": 4, "blocks": 1, "scales": 3},
    {"base": 8, "blocks": 2, "scales": 2},
    {"base": 4, "blocks": 3, "scales": 4},
]
SMALLEST = CONFIGS[0]


def network_of(config: dict[str, int]) -> MIMOUNetCFA:
    torch.manual_seed(0)
    return MIMOUNetCFA(**config).eval()


@pytest.mark.parametrize("config", CONFIGS)
def test_every_legal_size_is_kept(config: dict[str, int]) -> None:
    network, scales = network_of(config), config["scales"]
    m = network.size_multiple
    assert m == 2 ** (scales - 1)
    for height, width in ((2 * m, 2 * m), (2 * m, 6 * m), (5 * m, 3 * m)):
        x = torch.rand(2, 3, height, width)
        outputs = network.forward_scales(x)
        expected = [(height >> s, width >> s) for s in reversed(range(scales))]
        assert [tuple(y.shape[2:]) for y in outputs] == [*expected, (height, width)]
        network.stage = "full"
        assert torch.equal(network(x), outputs[-2])
        assert torch.allclose(network.correction(x), outputs[-2] - x, atol=1e-6)
        network.stage = "fused"
        assert torch.equal(network(x), outputs[-1])
        assert torch.allclose(network.correction(x), outputs[-1] - x, atol=1e-6)
        assert not torch.allclose(outputs[-1], outputs[-2], atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_untrained_network_can_start_as_the_identity(config: dict[str, int]) -> None:
    network = network_of(config)
    x = torch.rand(1, 3, 32, 48)
    assert not torch.equal(network(x), x)
    network.start_as_identity()
    for stage in network.stages:
        network.stage = stage
        assert torch.equal(network(x), x)
    half = network.forward_scales(x)[-3]
    bicubic = F.interpolate(x, scale_factor=0.5, mode="bicubic", align_corners=False)
    assert torch.equal(half, bicubic)


def test_the_full_output_is_the_default_and_other_stages_are_refused() -> None:
    network = network_of(SMALLEST)
    assert network.stage == "full"
    with pytest.raises(ValueError, match="stage 'half' is none of full, fused"):
        network.stage = "half"


def test_the_fusion_lies_between_the_corrections_of_all_scales() -> None:
    network = network_of(SMALLEST).requires_grad_(False)
    x = torch.rand(1, 3, 32, 32)
    *coarse, full, fused = network.forward_scales(x)
    images = network._pyramid(x)[:0:-1]
    deltas = [full - x] + [
        F.interpolate(y - image, size=(32, 32), mode="bicubic", align_corners=False)
        for y, image in zip(coarse, images, strict=True)
    ]
    stacked = torch.stack(deltas)
    assert bool(((fused - x) > stacked.amin(0) - 1e-5).all())
    assert bool(((fused - x) < stacked.amax(0) + 1e-5).all())
    # A weight that is all on one scale chooses that scale.
    nn.init.zeros_(network.weigh.weight)
    for scale, delta in enumerate([deltas[0], *deltas[:0:-1]]):
        nn.init.zeros_(network.weigh.bias)  # type: ignore[arg-type]
        network.weigh.bias[scale] = 50  # type: ignore[index]
        assert torch.allclose(network.forward_scales(x)[-1] - x, delta, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"base": 0}, {"blocks": 0}, {"scales": 1}, {"unshuffle": 2}])
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ModelError, match="a mimo-unet-cfa network cannot have the config"):
        build("mimo-unet-cfa", wrong)


def test_normalisation_looks_at_one_pixel() -> None:
    norm = ChannelNorm(16)
    x = torch.randn(2, 16, 8, 8)
    y = norm(x)
    assert torch.allclose(y.mean(1), torch.zeros(2, 8, 8), atol=1e-5)
    assert torch.allclose(y.var(1, unbiased=False), torch.ones(2, 8, 8), atol=1e-3)
    assert torch.allclose(norm(x[:1, :, 2:5, 3:4]), y[:1, :, 2:5, 3:4], atol=1e-6)


def slanted(height: int, width: int) -> Tensor:
    """A picture dark and calm at the left, bright and rough at the right: tiles differ in means."""
    torch.manual_seed(3)
    slope = torch.linspace(0, 1, width).expand(1, 3, height, width)
    return 0.4 * slope + 0.6 * slope * torch.rand(1, 3, height, width)


def attentive(network: nn.Module) -> None:
    """Weights under which recalibration matters: its excitation far from one half."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("recalibrate."):
                parameter.mul_(6)


@pytest.mark.parametrize("stage", ["full", "fused"])
def test_recalibration_sees_the_whole_picture_and_nothing_else_does(stage: str) -> None:
    network = network_of(SMALLEST).requires_grad_(False)
    assert network.receptive_radius is None
    attentive(network)
    network.stage = stage
    x = slanted(64, 512)
    changed = x.clone()
    changed[..., 448:] = 1 - changed[..., 448:]
    far = (network(changed) - network(x))[..., :128].abs().max()
    assert float(far) > 1e-6
    with share_means(network, x):
        held = (network(changed) - network(x))[..., :128].abs().max()
    assert float(held) == 0


def test_tiles_that_share_means_are_nearer_to_the_whole_picture() -> None:
    network = network_of(SMALLEST).requires_grad_(False)
    attentive(network)
    x = slanted(128, 320)
    whole = network(x)
    halves = [x[..., :160], x[..., 160:]]
    apart = torch.cat([network(half) for half in halves], dim=3)
    with share_means(network, torch.cat(halves)):
        shared = torch.cat([network(half) for half in halves], dim=3)
    # Away from the cut, where tiles lack their neighbours.
    inner = [*range(96), *range(224, 320)]
    error_apart, error_shared = (
        float(torch.sub(y, whole)[..., inner].abs().mean()) for y in (apart, shared)
    )
    assert error_shared < 0.2 * error_apart
