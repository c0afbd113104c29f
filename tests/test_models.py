"""Networks: the published ones' outputs, sizes, halos; the catalogue; weights files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vdeblur import checkpoints
from vdeblur.checkpoints import load_network, load_weights, save_weights
from vdeblur.errors import ModelError
from vdeblur.models import Identity, build, names, spec
from vdeblur.models.mimo_unet import MIMOUNet

PARITY = Path(__file__).parents[1].parent / "shared" / "parity"
TINY = {"base": 8, "blocks": 1}


def fill_module() -> ModuleType:
    found = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.skipif(not PARITY.is_dir(), reason="the parity fixtures are not beside the repository")
@pytest.mark.parametrize("name", ["mimo-unet", "mimo-unet-plus"])
def test_outputs_are_those_of_the_published_network(name: str) -> None:
    fixture = PARITY / name.replace("-", "_")
    published = json.loads(fixture.with_suffix(".json").read_text())["parameters"]
    network = build(name).eval()
    assert isinstance(network, MIMOUNet)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert shapes == published
    fill = fill_module().fill
    filled = {key: torch.from_numpy(fill(key, shape)) for key, shape in published.items()}
    network.load_state_dict(filled)
    arrays = np.load(fixture.with_suffix(".npz"))
    x = torch.from_numpy(arrays["input"])
    with torch.inference_mode():
        outputs = network.forward_scales(x)
        assert torch.equal(network(x), outputs[-1])
        correction = network.correction(x)
    for output, key in zip(outputs, ("quarter", "half", "full"), strict=True):
        assert np.abs(output.numpy() - arrays[key]).max() < 5e-6, key
    assert torch.allclose(correction, outputs[-1] - x, atol=1e-6)


def random_network(**config: int) -> MIMOUNet:
    torch.manual_seed(0)
    network = MIMOUNet(**config).eval().requires_grad_(False)
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
        build("mimo-unet-small", {"base": 8, "blocks": 1, "unshuffle": 4})
    with pytest.raises(ModelError, match="cannot have the config"):
        build("mimo-unet", {"depth": 3})


@pytest.mark.parametrize(("blocks", "unshuffle"), [(1, 1), (2, 1), (1, 2)])
def test_the_halo_is_exactly_how_far_the_network_sees(blocks: int, unshuffle: int) -> None:
    network = MIMOUNet(base=4 if unshuffle == 1 else 8, blocks=blocks, unshuffle=unshuffle)
    network.double()
    for parameter in network.parameters():
        # All positive: nothing cancels, no ReLU hides a path.
        nn.init.uniform_(parameter, 0.01, 0.05)
    m, halo = network.size_multiple, network.halo
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
    assert float(difference[: 80 - network.halo].max()) == 0
    assert float(difference[80 + network.halo + 1 :].max()) == 0


def test_the_published_halos() -> None:
    halos = {8: 241, 20: 577, 2: 73, 4: 129, 1: 45}
    for blocks, halo in halos.items():
        assert MIMOUNet(base=8, blocks=blocks).halo == halo


def test_the_catalogue() -> None:
    assert names() == ("mimo-unet-small", "mimo-unet", "mimo-unet-plus", "identity")
    parameters = {"mimo-unet": 6_807_171, "mimo-unet-plus": 16_107_651, "identity": 0}
    for name, count in parameters.items():
        assert spec(name).name == name
        assert sum(p.numel() for p in build(name).parameters()) == count
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(build("identity")(x), x)
    with pytest.raises(ModelError, match=r"no network 'nafnet': choose one of mimo-unet-small, "):
        spec("nafnet")


def test_weights_travel_through_a_file(tmp_path: Path) -> None:
    network = random_network(**TINY)
    path = tmp_path / "mine.safetensors"
    save_weights(path, network.state_dict(), network="mimo-unet", config=network.config, half=False)
    family, config, tensors = load_weights(path)
    assert (family, config) == ("mimo-unet", network.config)
    assert set(tensors) == set(network.state_dict())
    # The file's own config decides, not the catalogue's.
    loaded = load_network("mimo-unet-small", path)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_published_checkpoints_are_read(tmp_path: Path, key: str | None) -> None:
    network = build("mimo-unet")
    prefix = "module." if key == "state_dict" else ""
    state: dict[str, Tensor] = {prefix + k: v for k, v in network.state_dict().items()}
    path = tmp_path / "MIMO-UNet.pkl"
    torch.save({key: state} if key else state, path)
    loaded = load_network("mimo-unet", path)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(ModelError, match=r"do not fit 'mimo-unet-plus' \(.* parameters differ"):
        load_network("mimo-unet-plus", path)


def test_what_is_wrong_with_weights_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights ship for 'mimo-unet': pass --weights FILE"):
        load_network("mimo-unet")
    for missing in ("none.safetensors", "none.pkl"):
        with pytest.raises(ModelError, match="does not exist"):
            load_network("mimo-unet", tmp_path / missing)
    for damaged in ("bad.safetensors", "bad.pkl"):
        (tmp_path / damaged).write_bytes(b"not weights at all")
        with pytest.raises(ModelError, match="is not a"):
            load_network("mimo-unet", tmp_path / damaged)
    other = tmp_path / "other.safetensors"
    save_weights(other, {"a": torch.zeros(1)}, network="mprnet", config={})
    with pytest.raises(ModelError, match="holds weights of 'mprnet': 'mimo-unet' needs"):
        load_network("mimo-unet", other)
    with pytest.raises(ModelError, match="'identity' has no weights"):
        load_network("identity", other)
    assert isinstance(load_network("identity"), Identity)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a checkpoint ran",)


def test_a_pickle_cannot_run_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": Malicious()}, path)
    with pytest.raises(ModelError, match="plain tensors"):
        load_network("mimo-unet", path)
    assert capsys.readouterr().out == ""


def test_shipped_weights_are_held_to_their_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path)
    with pytest.raises(ModelError, match="no weights ship for 'mimo-unet-small'"):
        load_network("mimo-unet-small")
    path, card = tmp_path / "mimo-unet-small.safetensors", tmp_path / "mimo-unet-small.json"
    network = random_network(**TINY)
    save_weights(path, network.state_dict(), network="mimo-unet", config=network.config)
    with pytest.raises(ModelError, match="no readable model card"):
        load_network("mimo-unet-small")
    card.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="not the file that its model card describes"):
        load_network("mimo-unet-small")
    card.write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    loaded = load_network("mimo-unet-small")
    assert isinstance(loaded, MIMOUNet)
    assert loaded.config == network.config


def test_the_weights_in_the_package_load_and_fit_their_entry() -> None:
    for name in names():
        if (checkpoints.SHIPPED / f"{name}.safetensors").exists():
            assert spec(name).ships
            network = load_network(name)
            assert isinstance(network, nn.Module)
            x = torch.rand(1, 3, 64, 64)
            assert torch.isfinite(network(x)).all()
