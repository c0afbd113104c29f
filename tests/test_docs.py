"""Pages that describe code: the network of one page works; another names each module."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.networks import Network, NetworkSpec, catalogue
from vdeblur.weights import load_network, save_weights

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-a-network.md"


def test_the_network_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not PAGE.exists():
        pytest.skip("not in this distribution")
    file, families, entry = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    monkeypatch.setattr(catalogue, "FAMILIES", dict(catalogue.FAMILIES))
    monkeypatch.setattr(catalogue, "_CATALOGUE", dict(catalogue._CATALOGUE))
    space: dict[str, Any] = {"__name__": "plain"}
    exec(compile(file, "plain.py", "exec"), space)
    exec(families, space | {"FAMILIES": catalogue.FAMILIES})
    spec = eval(entry, {"NetworkSpec": NetworkSpec})
    catalogue._CATALOGUE[spec.name] = spec

    torch.manual_seed(4)
    network = catalogue.build("plain")
    assert isinstance(network, Network)
    with torch.no_grad():
        network.get_parameter("head.weight").mul_(0.2)
    x = torch.rand(1, 3, 150, 333)
    whole = Deblurrer(network, device="cpu", tile=None)(x)
    tiled = Deblurrer(network, device="cpu", tile=128, halo="full")(x)
    assert float((whole - x).abs().max()) > 1e-3
    assert torch.allclose(tiled, whole, atol=1e-5)

    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert type(network).config_of(shapes) == network.config == dict(spec.config)
    weights = tmp_path / "plain.safetensors"
    save_weights(weights, network.state_dict(), network="plain", config=network.config, half=False)
    assert torch.allclose(load_network("plain", weights)(x), network(x), atol=1e-6)
    network.start_as_identity()
    assert torch.equal(network(x), x)


def test_architecture_names_each_module_in_the_section_of_its_folder() -> None:
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("not in this distribution")
    _, text = page.read_text("utf-8").split("\n## Files\n")
    named: list[str] = []
    for section in text.split("\n## ")[0].split("\n### ")[1:]:
        folder = section.split("`")[1].removeprefix("vdeblur/")
        named += [folder + name for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)]
    package = ROOT / "vdeblur"
    modules = [
        file.relative_to(package).with_suffix("").as_posix()
        for file in package.rglob("*.py")
        if file.name not in ("__init__.py", "__main__.py")
    ]
    assert sorted(named) == sorted(modules)


def test_the_layers_of_the_page_are_those_of_the_contract() -> None:
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("not in this distribution")
    (block,) = re.findall(r"```text\n(cli\n.*?)```", page.read_text("utf-8"), re.DOTALL)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert ["__main__", *block.split("\n")[:-1]] == layers
