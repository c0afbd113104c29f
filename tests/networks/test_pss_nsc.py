"""PSS-NSC: sizes, colours, sharing of parameters, published names, halo and tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.inference.tiling import in_tiles
from vdeblur.networks import build
from vdeblur.networks.pss_nsc import PSSNSC, _double

SHARINGS = ("both", "scale", "stage", "independent")


def tiny(*, sharing: str = "both", base: int = 4, units: int = 1, scales: int = 3) -> PSSNSC:
    torch.manual_seed(0)
    network = PSSNSC(sharing=sharing, base=base, units=units, scales=scales)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_every_legal_size_is_kept(scales: int) -> None:
    network = tiny(scales=scales)
    m = network.size_multiple
    assert m == {1: 4, 2: 8, 3: 16}[scales]
    for height, width in ((m, m), (m, 3 * m), (5 * m, 2 * m)):
        x = torch.rand(2, 3, height, width)
        outputs = network.forward_scales(x)
        assert [tuple(y.shape) for y in outputs] == [
            (2, 3, height >> i, width >> i) for i in reversed(range(scales))
        ]
        assert torch.equal(network(x), outputs[-1])
        assert torch.equal(x + network.correction(x), outputs[-1])


def test_each_colour_of_each_picture_is_an_image_of_its_own() -> None:
    network, x = tiny(), torch.rand(2, 3, 16, 32)
    whole = network(x)
    changed = x.clone()
    changed[1, 1] = torch.rand(16, 32)
    others = torch.ones(2, 3, dtype=torch.bool)
    others[1, 1] = False
    assert torch.equal(network(changed)[others], whole[others])
    gray = x[:1, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(network(gray), whole[:1, :1].expand(-1, 3, -1, -1), atol=1e-6)


def test_an_untrained_network_can_start_as_the_identity() -> None:
    network, x = tiny(), torch.rand(1, 3, 16, 16)
    assert network.correction(x).any()
    network.start_as_identity()
    assert torch.equal(network(x), x)
    assert not network.correction(x).any()


def test_half_precision_does_not_round_the_picture() -> None:
    network, x = tiny(), torch.rand(1, 3, 16, 16)
    for name, parameter in network.named_parameters():
        if ".image." in name:
            parameter.mul_(1e-3)  # corrections below bfloat16's steps at 1
    exact = network.correction(x)
    network.to(torch.bfloat16)
    half = x.to(torch.bfloat16)
    error = (network.correction(half).float() - exact).abs().mean() / exact.abs().mean()
    rounded = (network(half).float() - half.float() - exact).abs().mean() / exact.abs().mean()
    assert error < 0.1 < rounded


def test_the_sharing_variants_have_as_many_parameters_as_they_say() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    published = build("pss-nsc")
    assert count(published) == 3_871_715
    own = count(published.scales)  # type: ignore[arg-type]
    nested = count(published.nested)  # type: ignore[arg-type]
    assert own + nested == 3_871_715
    copies = {"both": 1, "scale": 2, "stage": 3, "independent": 6}
    for sharing, times in copies.items():
        with torch.device("meta"):
            network = PSSNSC(sharing=sharing)
        assert count(network) == own + times * nested
        assert len(network.state_dict()) == len(list(network.parameters()))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_parameter_of_a_variant_is_used(sharing: str) -> None:
    network = tiny(sharing=sharing).requires_grad_(True)
    x = torch.rand(1, 3, 16, 16)
    torch.stack([y.mean() for y in network.forward_scales(x)]).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_variants_that_hold_the_same_values_are_the_same_network() -> None:
    x = torch.rand(1, 3, 16, 16)
    shared = tiny(sharing="both")
    for sharing in SHARINGS[1:]:
        network = tiny(sharing=sharing)
        assert not torch.allclose(network(x), shared(x), atol=1e-3)
        copied = {}
        for name in network.state_dict():
            parts = name.split(".")
            if parts[0] == "nested":
                parts[1] = parts[2] = "0"
            copied[name] = shared.state_dict()[".".join(parts)]
        network.load_state_dict(copied)
        assert torch.equal(network(x), shared(x))


def test_training_does_not_reach_back_into_the_coarser_scale() -> None:
    network = tiny(sharing="independent").requires_grad_(True)
    network.forward_scales(torch.rand(1, 3, 16, 16))[-1].mean().backward()  # type: ignore[no-untyped-call]
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {"2"}


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize(("base", "units", "scales"), [(4, 1, 3), (32, 4, 3), (8, 2, 2)])
def test_the_configuration_is_seen_in_names_and_shapes(
    sharing: str, base: int, units: int, scales: int
) -> None:
    with torch.device("meta"):
        network = PSSNSC(sharing=sharing, base=base, units=units, scales=scales)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert PSSNSC.config_of(shapes) == network.config
    del shapes["scales.0.image.bias"], shapes["nested.0.0.dec1.units.0.conv2.weight"]
    assert PSSNSC.config_of(shapes) == network.config
    del shapes["scales.0.enc1.weight"]
    assert PSSNSC.config_of(shapes) is None


@pytest.mark.parametrize("wrong", [{"sharing": "none"}, {"base": 0}, {"units": 0}, {"scales": 0}])
def test_impossible_configurations_are_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(ModelError, match="a pss-nsc network cannot have the config"):
        build("pss-nsc", wrong)


def published(network: PSSNSC) -> dict[str, Tensor]:
    """Its parameters under TensorFlow's names and in TensorFlow's layouts."""
    entries = {"enc1": "enc1_1", "enc2": "enc2_1", "enc3": "enc3_1"}
    entries |= {"dec2": "dec2_3", "dec1": "dec1_3", "image": "dec1_0"}
    found = {}
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "scales":
            place = f"{entries[parts[2]]}_{parts[1]}"
        else:
            place = f"{parts[3]}_2/d{int(parts[5]) + 1}/{parts[6]}"
        kind = {"weight": "weights", "bias": "biases"}[parts[-1]]
        found[f"g_net/{place}/{kind}"] = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    return found


def test_tensorflow_names_become_its_own() -> None:
    network = tiny(units=2)
    tensors = published(network)
    assert tensors["g_net/enc1_2/d2/conv1/weights"].shape == (3, 3, 4, 4)
    assert tensors["g_net/dec2_3_1/weights"].shape == (4, 4, 8, 16)
    beside = {"g_net/enc1_1_0/weights/Adam": torch.zeros(3, 3, 2, 4), "beta1_power": torch.ones(1)}
    for given in (
        tensors,
        {f"{name}:0": t for name, t in tensors.items()},
        tensors | beside | {"global_step": torch.zeros(())},
        network.state_dict(),
    ):
        own = PSSNSC.from_published(given)
        assert own is not None
        assert own.keys() == network.state_dict().keys()
        assert all(torch.equal(own[name], t) for name, t in network.state_dict().items())
    assert PSSNSC.from_published({"conv.weight": torch.zeros(1)}) is None
    strange = PSSNSC.from_published(tensors | {"g_net/lstm/weights": torch.zeros(2)})
    assert strange is not None
    assert set(strange) - set(network.state_dict()) == {"g_net/lstm/weights"}


def test_what_halves_leans_to_the_right_and_below() -> None:
    # An image copied, halved, enlarged and copied: which pixels meet is known by hand.
    network = tiny(base=1, scales=1)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    state = network.state_dict()
    state["scales.0.enc1.weight"][0, 0, 1, 1] = 1
    state["scales.0.enc2.weight"][0, 0, 2, 2] = 1  # sees two to the right and two below
    state["scales.0.dec1.weight"][0, 0, 1, 1] = 1  # goes to even rows and columns
    state["scales.0.image.weight"][0, 0, 1, 1] = 1
    x = torch.rand(1, 3, 8, 8)
    expected = x.clone()  # over the skip
    expected[..., 0:6:2, 0:6:2] += x[..., 2:8:2, 2:8:2]
    assert torch.equal(network.correction(x), expected)


def test_an_estimate_is_enlarged_with_samples_in_the_corners() -> None:
    small = torch.tensor([[[[0.0, 2.0, 6.0], [4.0, 6.0, 10.0]]]])
    row = torch.tensor([0.0, 1.0, 2.0, 4.0, 6.0, 6.0])
    expected = torch.stack([row, row + 2, row + 4, row + 4])
    assert torch.equal(_double(small)[0, 0], expected)


@pytest.mark.parametrize(("units", "scales"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)])
def test_the_halo_is_exactly_how_far_the_network_sees(units: int, scales: int) -> None:
    network = tiny(base=1, units=units, scales=scales).double()
    for name, parameter in network.named_parameters():
        # All positive, and no biases: what comes out is what went in, and no ReLU hides a path.
        # Not by gradients, which stop between the scales.
        value = 0.0 if name.endswith("bias") else 1 / math.sqrt(parameter[0].numel())
        nn.init.constant_(parameter, value)
    m, halo = network.size_multiple, network.receptive_radius
    width = -(-(2 * halo + 4 * m) // m) * m
    middle = width // 2 // m * m
    x = torch.zeros(m, 3, m, width, dtype=torch.float64)
    for i in range(m):
        x[i, :, :, middle + i] = 1.0
    reach = 0
    for i, y in enumerate(network(x)):
        seen = y.sum((0, 1)).nonzero().flatten()
        assert int(seen[0]) > 0
        assert int(seen[-1]) < width - 1
        reach = max(reach, middle + i - int(seen[0]), int(seen[-1]) - middle - i)
    assert reach == halo


def test_the_published_halo() -> None:
    assert build("pss-nsc").receptive_radius == 1648


@pytest.mark.parametrize("scales", [1, 3])
def test_tiles_with_the_full_halo_are_exact(scales: int) -> None:
    network = tiny(scales=scales)
    m, halo = network.size_multiple, network.receptive_radius
    tile = 2 * halo + 16 + 4 * m
    x = torch.rand(1, 3, m, (2 * tile) // m * m)
    whole = network(x)
    for context, exact in ((halo, True), (0, False)):
        calls: list[int] = []

        def run(part: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(part.shape[-1])
            restored: Tensor = network(part)
            return restored

        tiled = in_tiles(run, x, tile=tile, margin=context, multiple=m)
        assert len(calls) > 2
        assert (float((tiled - whole).abs().max()) < 1e-5) == exact
