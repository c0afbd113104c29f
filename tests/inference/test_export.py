"""`vdeblur export`: the same picture elsewhere, at any size; nothing unchecked is written."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vdeblur.cli import main as cli
from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.inference import export as module
from vdeblur.inference.export import OPSET, Format, export, parameters_sha256, random_input
from vdeblur.networks import DEFAULT, FAMILIES, Network
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided
from vdeblur.system.optional import installed, the_core
from vdeblur.weights import load_network
from vdeblur.weights.packaged import shipped_weights

# Smallest configurations of every family of the catalogue, and one on a rearranged image.
TINY: list[tuple[str, dict[str, Any]]] = [
    ("mimo-unet", {"base": 8, "blocks": 1}),
    ("mimo-unet", {"base": 26, "blocks": 1, "unshuffle": 4}),
    ("mimo-unet-cfa", {"base": 4, "blocks": 1, "scales": 2}),
    ("mimo-unet-guided", {"widths": [8, 8, 8], "blocks": [1, 1, 1]}),
    ("mimo-unet-lite", {"base": 26, "blocks": 1, "unshuffle": 4}),
    ("pss-nsc", {"sharing": "both", "base": 4, "units": 1, "scales": 2}),
    ("mprnet", {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1}),
    ("identity", {}),
]
Run = Callable[[Path, Tensor], Tensor]


def with_onnx(file: Path, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.from_numpy(session.run(["restored"], {name: x.numpy()})[0])


def with_openvino(file: Path, x: Tensor) -> Tensor:
    import openvino

    compiled = the_core(openvino).compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled(x.numpy())[0].copy())


def with_torchscript(file: Path, x: Tensor) -> Tensor:
    load: Any = torch.jit.load
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        restored: Tensor = load(str(file))(x)
    return restored


RUNS: dict[Format, tuple[str, Run]] = {
    "onnx": ("net.onnx", with_onnx),
    "openvino": ("net.xml", with_openvino),
    "torchscript": ("net.pt", with_torchscript),
}
NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "torchscript": ()}


def need(format: str) -> None:
    for package in NEEDS[format]:
        # Imported by vdeblur itself, which keeps OpenVINO from reporting home.
        if not installed(package):
            pytest.skip(f"{package} is not installed")


def untrained(family: str = "mimo-unet", config: Mapping[str, Any] = TINY[0][1]) -> Network:
    torch.manual_seed(3)
    return FAMILIES[family](**config).eval().requires_grad_(False)


def test_all_families_are_tried() -> None:
    assert {family for family, _ in TINY} == set(FAMILIES)


@pytest.mark.parametrize("format", RUNS)
@pytest.mark.parametrize(("family", "config"), TINY, ids=lambda value: str(value)[:40])
def test_every_network_gives_the_same_picture_at_any_size(
    format: Format, family: str, config: dict[str, Any], tmp_path: Path
) -> None:
    need(format)
    network = untrained(family, config)
    name, run = RUNS[format]
    # The last stage of several is the one that ran least of the others' code.
    network.stage = network.stages[-1]
    done = export(network, tmp_path / name, format=format)
    assert set(done.files) == set(tmp_path.iterdir())
    multiple = network.size_multiple
    least = -(-32 // multiple)
    x = random_input(network, 1, (least + 2) * multiple, (least + 1) * multiple)
    with torch.no_grad():
        expected = network(x)
    assert run(done.files[0], x).sub(expected).abs().max() <= 1e-5 * max(1, expected.max())


@pytest.mark.parametrize("format", RUNS)
def test_the_file_says_what_it_holds(format: Format, tmp_path: Path) -> None:
    need(format)
    network = untrained()
    name, _ = RUNS[format]
    done = export(network, tmp_path / name, format=format, metadata={"model": "mine"})
    keys = list(done.metadata)
    if format == "onnx":
        import onnx

        model = onnx.load(done.files[0])
        found = {entry.key.removeprefix("vdeblur."): entry.value for entry in model.metadata_props}
        assert [entry.version for entry in model.opset_import] == [OPSET] == [done.opset]
    elif format == "openvino":
        import openvino

        model = the_core(openvino).read_model(done.files[0])
        found = {key: model.get_rt_info(["vdeblur", key]).astype(str) for key in keys}
    else:
        extra = {f"vdeblur.{key}": "" for key in keys}
        load: Any = torch.jit.load
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            load(str(done.files[0]), _extra_files=extra)
        found = {k.removeprefix("vdeblur."): bytes(v).decode() for k, v in extra.items()}  # type: ignore[arg-type]
    assert found == done.metadata
    assert found["model"] == "mine"
    assert found["network"] == "MIMOUNet"
    assert json.loads(found["config"]) == network.config
    assert int(found["size_multiple"]) == network.size_multiple
    assert found["parameters_sha256"] == parameters_sha256(network)


def test_other_parameters_have_another_digest() -> None:
    network = untrained()
    before = parameters_sha256(network)
    assert parameters_sha256(untrained()) == before
    next(network.parameters()).view(-1)[0] += 1e-6
    assert parameters_sha256(network) != before


class Fixed(nn.Module):
    """Bakes the traced size in: what the check must find."""

    size_multiple = 4

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, int(x.shape[3]))[0] + 1e-3 * (int(x.shape[3]) - 100)


@pytest.mark.parametrize("format", RUNS)
def test_a_wrong_export_is_told_and_not_left_behind(format: Format, tmp_path: Path) -> None:
    need(format)
    name, _ = RUNS[format]
    before = tmp_path / name
    before.write_bytes(b"what was there")
    with pytest.raises(ModelError, match=r"differs from torch by .* nothing was written"):
        export(Fixed(), before, format=format, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert before.read_bytes() == b"what was there"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    file.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already: use `overwrite=True`"):
        export(untrained(), file, format="torchscript")
    assert file.read_bytes() == b"mine"
    export(untrained(), file, format="torchscript", overwrite=True)
    assert file.read_bytes() != b"mine"
    assert list(tmp_path.iterdir()) == [file]


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        export(untrained(), tmp_path / "no" / "net.pt", format="torchscript")
    with pytest.raises(OutputError, match="is a folder"):
        export(untrained(), tmp_path, format="torchscript")
    with pytest.raises(UsageError, match=r"ending in \.xml"):
        export(untrained(), tmp_path / "net.bin", format="openvino")


@pytest.mark.parametrize("opset", [7, 99])
def test_an_impossible_opset_is_told(opset: int, tmp_path: Path) -> None:
    need("onnx")
    with pytest.raises(UsageError, match=rf"opset is {opset}: choose one of 11 to 20"):
        export(untrained(), tmp_path / "net.onnx", format="onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_another_opset_is_written(tmp_path: Path) -> None:
    need("onnx")
    import onnx

    done = export(untrained(), tmp_path / "net.onnx", format="onnx", opset=13)
    assert onnx.load(done.files[0]).opset_import[0].version == done.opset == 13


@pytest.mark.parametrize(
    ("package", "format", "extra"),
    [
        ("onnx", "onnx", "onnx"),
        ("onnxruntime", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    package: str,
    format: Format,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    if package == "onnxruntime" and not installed("onnx"):
        pytest.skip("onnx, which is asked for first, is not installed")
    assert cli.main(["export", "--format", format]) == 1
    said = capfd.readouterr().err
    assert f"needs the package {package}" in said
    assert f"pip install 'vdeblur[{extra}]'" in said
    assert not list(tmp_path.iterdir())


def test_openvino_sends_nothing_home(tmp_path: Path) -> None:
    need("openvino")
    export(untrained("identity", {}), tmp_path / "net.xml", format="openvino")
    assert "openvino.tools.ovc.telemetry_stub" in sys.modules
    assert "openvino_telemetry" not in sys.modules


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "--format", "torchscript"]) == 0
    said = capfd.readouterr().err
    assert re.search(
        rf"^{DEFAULT}\.pt: {DEFAULT} as torchscript, .* multiples of 8$", said, re.MULTILINE
    )
    assert re.search(r"differs from torch by \S+ at most \(tolerance \S+; 3 random frames", said)
    extra = {"vdeblur.weights_sha256": "", "vdeblur.model": ""}
    load: Any = torch.jit.load
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        load(f"{DEFAULT}.pt", _extra_files=extra)
    shipped = shipped_weights(DEFAULT).read_bytes()
    sha256, name = (bytes(value).decode() for value in extra.values())  # type: ignore[arg-type]
    assert (sha256, name) == (hashlib.sha256(shipped).hexdigest(), DEFAULT)

    assert cli.main(["export", "-o", f"{DEFAULT}.pt"]) == 1
    assert "exists already: use --force" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "what to write is missing"),
        (["-o", "net.pkl"], "the ending of net.pkl says no format"),
        (["--format", "torchscript", "--opset", "17"], "--opset is ONNX's alone"),
        (["--format", "torchscript", "--stage", "4"], "--stage is '4': mimo-unet-guided has full"),
        (["--format", "openvino", "-o", "net.bin"], "give a name ending in .xml"),
        (
            ["--format", "torchscript", "-o", "net.onnx"],
            "net.onnx ends as onnx does, and --format is torchscript",
        ),
    ],
)
def test_bad_usage(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", *arguments]) == 2
    assert sentence in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_states_the_opset(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    assert f"(default {module.OPSET})" in " ".join(capfd.readouterr().out.split())


def test_a_loaded_network_is_checked_on_pictures_it_changes() -> None:
    """On plain noise the shipped network's correction is a hundredth of that on these."""
    network = load_network()
    assert isinstance(network, MIMOUNetGuided)
    with torch.no_grad():
        assert network.correction(random_input(network, 1, 96, 128)).abs().max() > 0.01
