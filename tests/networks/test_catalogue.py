"""Networks: sizes, halos; the catalogue. Published outputs: `test_parity.py`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vdeblur.errors import ModelError
from vdeblur.networks import DEFAULT, FAMILIES, build, names, spec
from vdeblur.networks.mimo_unet import MIMOUNet


def random_network(*, base: int, blocks: int, unshuffle: int = 1) -> MIMOUNet:
    torch.manual_seed(0)
    network = MIMOUNet(base=base, blocks=blocks, unshuffle=unshuffle)
    network.eval().requires_grad_(False)
    return network


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_every_legal_size_is_kept(unshuffle: int) -> None:
    network = random_network(base=28 if unshuffle == 4 else 8, blocks=1, unshuffle=unshuffle)
    m = network.size_multiple
    assert m == 4 * unshuffle
    for height, width in ((m, m), (m, 3 * m), (5 * m, 2 * m)):
        x = torch.rand(2, 3, height, width)
        assert network(x).shape == x.shape
        assert [tuple(y.shape[2:]) for y in network.forward_scales(x)] == [
            (height // 4, width // 4),
            (height // 2, width // 2),
            (height, width),
        ]


def test_an_untrained_network_can_start_as_the_identity() -> None:
    network = random_network(base=28, blocks=1, unshuffle=4)
    x = torch.rand(1, 3, 32, 48)
    assert not torch.equal(network(x), x)
    network.start_as_identity()
    assert torch.equal(network(x), x)
    assert not network.correction(x).any()


def test_a_network_too_narrow_for_its_image_is_refused() -> None:
    with pytest.raises(ModelError, match="base 8 is too narrow for 48"):
        build("mimo-unet", {"base": 8, "blocks": 1, "unshuffle": 4})
    with pytest.raises(ModelError, match="cannot have the config"):
        build("mimo-unet", {"depth": 3})
    with pytest.raises(ModelError, match="1 or more"):
        build("mimo-unet", {"unshuffle": 0})


@pytest.mark.parametrize(("blocks", "unshuffle"), [(1, 1), (2, 1), (1, 2)])
def test_the_halo_is_exactly_how_far_the_network_sees(blocks: int, unshuffle: int) -> None:
    network = MIMOUNet(base=4 if unshuffle == 1 else 8, blocks=blocks, unshuffle=unshuffle)
    network.double()
    for parameter in network.parameters():
        # All positive: nothing cancels, no ReLU hides a path.
        nn.init.uniform_(parameter, 0.01, 0.05)
    m, halo = network.size_multiple, network.receptive_radius
    if unshuffle == 1:
        assert halo == {1: 45, 2: 73}[blocks]
    width = -(-(2 * halo + 3 * m) // m) * m
    x = torch.rand(1, 3, 2 * m, width, dtype=torch.float64, requires_grad=True)
    y = network(x)
    middle = width // 2 // m * m
    reach = 0
    for column in range(middle, middle + m):
        (gradient,) = torch.autograd.grad(y[..., column].sum(), x, retain_graph=True)
        seen = gradient.abs().sum((0, 1, 2)).nonzero().flatten()
        reach = max(reach, column - int(seen[0]), int(seen[-1]) - column)
    assert reach == halo


def test_a_far_pixel_changes_nothing() -> None:
    network = random_network(base=8, blocks=1)
    x = torch.rand(1, 3, 160, 8)
    changed = x.clone()
    changed[:, :, 80] += 1.0
    difference = (network(changed) - network(x)).abs().amax((0, 1, 3))
    assert difference[80] > 0
    assert float(difference[: 80 - network.receptive_radius].max()) == 0
    assert float(difference[80 + network.receptive_radius + 1 :].max()) == 0


def test_the_published_halos() -> None:
    halos = {8: 241, 20: 577, 2: 73, 4: 129, 1: 45}
    for blocks, halo in halos.items():
        assert MIMOUNet(base=8, blocks=blocks).receptive_radius == halo


def test_the_catalogue() -> None:
    assert names()[0] == DEFAULT == "mimo-unet-guided"
    assert spec(DEFAULT).ships
    parameters = {
        "mimo-unet": 6_807_171,
        "mimo-unet-plus": 16_107_651,
        "mimo-unet-plusplus": 16_107_651,
        "pss-nsc": 3_871_715,
        "mprnet": 20_127_073,  # 20,127,127 in its state dict: one slope has 55 names
        "identity": 0,
    }
    assert parameters.keys() <= set(names())
    for name in names():
        entry = spec(name)
        assert entry.name == name
        with torch.device("meta"):
            network = build(name)
        assert isinstance(network, FAMILIES[entry.family])
        if name in parameters:
            assert sum(p.numel() for p in network.parameters()) == parameters[name]
        if entry.scores:
            assert entry.paper
            assert entry.licence
            assert entry.page.startswith("https://")
    assert [name for name in names() if spec(name).ensemble] == ["mimo-unet-plusplus"]
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(build("identity")(x), x)
    with pytest.raises(ModelError, match=r"no network 'nafnet': choose one of mimo-unet-guided, "):
        spec("nafnet")
