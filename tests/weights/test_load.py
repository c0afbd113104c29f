"""Checkpoints as people have them: recognised by names and shapes, or said why not; none runs."""

from __future__ import annotations

import argparse
import builtins
import collections
import hashlib
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.clips import scene, write_frames
from tests.networks.test_parity import FIXTURES
from vdeblur.cli import main as cli
from vdeblur.errors import ModelError, UsageError
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.export import random_pictures
from vdeblur.networks import DEFAULT, Identity, Network, build, names, spec
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.weights import load, load_network, packaged, save_weights
from vdeblur.weights.recognition import recognise, sharing_weights

TINY = {"base": 8, "blocks": 1}


def tiny(**config: int) -> MIMOUNet:
    torch.manual_seed(0)
    return MIMOUNet(**(TINY | config)).eval().requires_grad_(False)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_weights_of_this_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDEBLUR_DATA", str(tmp_path / "data"))


# --- official ones -------------------------------------------------------------------------------


def as_published(name: str, tensors: Mapping[str, Tensor], folder: Path) -> Path:
    """The fixture's tensors in a file such as the authors distribute."""
    if name == "pss-nsc":
        path = folder / "deblur.npz"
        arrays: dict[str, Any] = {f"{key}:0": t.numpy() for key, t in tensors.items()}
        slots = {f"{key}/Adam": a for key, a in arrays.items()}
        np.savez(path, **(arrays | slots | {"global_step": np.array(523000)}))
    elif name == "mprnet":
        path = folder / "model_deblurring.pth"
        state = {f"module.{key}": t for key, t in tensors.items()}
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 2e-4}]}
        torch.save({"epoch": 3000, "state_dict": state, "optimizer": optimizer}, path)
    else:
        path = folder / "MIMO-UNet.pkl"
        torch.save({"model": dict(tensors)}, path)
    return path


@pytest.mark.parametrize("name", FIXTURES)
def test_an_official_checkpoint_gives_the_published_outputs(name: str, tmp_path: Path) -> None:
    fixture = FIXTURES[name]
    path = as_published(name, fixture.published(), tmp_path)
    arrays = fixture.arrays()
    loaded = load(None, path)
    assert loaded.name == name
    assert loaded.notes == (f"weights {path.name}: {loaded.description}",)
    with torch.inference_mode():
        output = loaded.network(torch.from_numpy(arrays["input"][:1])).numpy()
    key = "stage3" if name == "mprnet" else "full"
    assert np.abs(output - arrays[key][:1]).max() < 1e-4 * np.ptp(arrays[key])


# --- ways of wrapping ----------------------------------------------------------------------------


def module(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "model": lambda s: {"model": s},
    "params": lambda s: {"params": s, "iter": 400000},
    "params_ema": lambda s: {"params": {k: v * 0 for k, v in s.items()}, "params_ema": s},
    "module twice": lambda s: {"state_dict": module(module(s))},
    "compiled": lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
    "inside": lambda s: {k.replace("Encoder.0.", "Encoder.0.module."): v for k, v in s.items()},
    "gan": lambda s: {"discriminator": {"a.weight": torch.ones(3, 3)}, "generator": s},
    "lightning": lambda s: {
        "state_dict": {f"model.{k}": v for k, v in s.items()} | {"loss.vgg.0.bias": torch.ones(4)}
    },
    "nested": lambda s: {"checkpoint": {"net": {"state_dict": module(s)}}},
    "profiled": lambda s: s | {"total_ops": torch.zeros(1), "Encoder.total_params": torch.zeros(1)},
    "half": lambda s: {k: v.half() for k, v in s.items()},
    "double": lambda s: {k: v.double() for k, v in s.items()},
    "options": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=1e-4, name="MIMO-UNet"),
        "best_psnr": np.float64(32.45),
        "epoch": np.int64(3),
    },
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_are_found_however_they_are_wrapped(wrapping: str, tmp_path: Path) -> None:
    network = tiny()
    path = tmp_path / "x.pth"
    torch.save(WRAPPINGS[wrapping](network.state_dict()), path)
    loaded = load(None, path)
    assert loaded.description == "mimo-unet (base 8, blocks 1, unshuffle 1)"
    x = torch.rand(1, 3, 16, 16)
    tolerance = 1e-3 if wrapping == "half" else 0
    assert (loaded.network(x) - network(x)).abs().max() <= tolerance
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())


def test_files_of_every_kind_and_of_wrong_names_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    network = tiny(blocks=2)
    state = network.state_dict()
    save_file(state, tmp_path / "bare.safetensors")
    save_file(state, tmp_path / "named.pth")
    torch.save(state, tmp_path / "zip.safetensors")
    torch.save(state, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    np.savez(tmp_path / "arrays.npz", **{k: v.numpy() for k, v in state.items()})
    for path in sorted(tmp_path.glob("*.*")):
        read = load_network(None, path)
        assert isinstance(read, MIMOUNet)
        assert read.config == network.config, path
        assert all(torch.equal(read.state_dict()[k], v) for k, v in state.items()), path


def test_our_files_carry_their_configuration(tmp_path: Path) -> None:
    network = tiny(base=28, unshuffle=4)
    path = tmp_path / "mine.safetensors"
    save_weights(path, network.state_dict(), network="mimo-unet", config=network.config, half=False)
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_network(None, path)(x), network(x))
    assert list(tmp_path.glob(".*")) == []
    # What a file says of itself counts only if its tensors agree; else they speak.
    save_weights(path, network.state_dict(), network="mprnet", config={"n_feat": 96}, half=False)
    assert torch.equal(load_network(None, path)(x), network(x))


def test_layers_in_use_twice_can_be_saved(tmp_path: Path) -> None:
    shared = torch.ones(3)
    path = tmp_path / "a.safetensors"
    save_weights(path, {"a": shared, "b": shared}, network="x", config={}, half=False)
    from safetensors.torch import load_file

    assert set(load_file(path)) == {"a", "b"}


@pytest.mark.parametrize("name", [name for name in names() if spec(name).trained])
def test_every_network_of_the_catalogue_is_recognised_by_its_tensors(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
    found = recognise(network.state_dict())
    assert found is not None
    assert found.exact
    assert (found.family, found.config) == (spec(name).family, network.config)
    assert found.entry is not None
    assert name in sharing_weights(found.entry)


# --- which network is meant ----------------------------------------------------------------------


def test_the_name_given_and_the_weights_must_agree(tmp_path: Path) -> None:
    network = tiny(blocks=2)
    path = tmp_path / "x.pth"
    torch.save(network.state_dict(), path)
    loaded = load("mimo-unet", path)
    assert loaded.name == "mimo-unet"
    assert loaded.notes == (
        "weights x.pth: mimo-unet (base 8, blocks 2, unshuffle 1)",
        "not weights of mimo-unet; using the network they belong to",
    )
    assert isinstance(loaded.network, MIMOUNet)
    assert loaded.network.config["blocks"] == 2
    with pytest.raises(
        ModelError, match=r"holds weights of mimo-unet \(.*, not of 'mprnet': leave"
    ):
        load("mprnet", path)
    with pytest.raises(UsageError, match="'identity' has no weights to load"):
        load("identity", path)
    with pytest.raises(UsageError, match="no network 'nafnet'"):
        load("nafnet", path)
    # Weights of another name's network are that one's, not a variant of the one asked for.
    torch.save(build("mimo-unet-plus").state_dict(), tmp_path / "plus.pth")
    with pytest.raises(
        ModelError,
        match=r"weights of mimo-unet-plus \(.*, not of 'mimo-unet': .* `model='mimo-unet-plus'`$",
    ):
        load("mimo-unet", tmp_path / "plus.pth")
    assert isinstance(load_network("identity"), Identity)


def test_weights_of_a_network_that_left_the_catalogue_are_what_they_are(tmp_path: Path) -> None:
    """`mimo-unet-small` was a MIMO-UNet of this configuration."""
    own = tiny(base=32, blocks=2, unshuffle=4)
    path, x = tmp_path / "mine.safetensors", random_pictures(1, 32, 48)
    save_weights(path, own.state_dict(), network="mimo-unet", config=own.config, half=False)
    torch.save({"model": own.state_dict()}, tmp_path / "untold.pth")
    for name, file in ((None, path), ("mimo-unet", path), (None, tmp_path / "untold.pth")):
        loaded = load(name, file)
        assert loaded.name == "mimo-unet"
        assert loaded.description == "mimo-unet (base 32, blocks 2, unshuffle 4)"
        assert torch.equal(loaded.network(x), own(x))
    for weights in (None, path):
        with pytest.raises(UsageError) as refused:
            load("mimo-unet-small", weights)
        assert str(refused.value) == (
            f"the network 'mimo-unet-small' has left vdeblur, and {DEFAULT} is the default: leave "
            "`model` out; weights of your own for it load by `weights=FILE` alone"
        )
    # Kept under that name, which is free now, they are weights like others.
    assert cli.main(["models", "add", str(path), "--name", "mimo-unet-small"]) == 0
    assert torch.equal(load(None, "mimo-unet-small").network(x), own(x))
    with pytest.raises(UsageError, match="give `weights='mimo-unet-small'`"):
        load("mimo-unet-small")


def test_without_either_the_shipped_network_is_taken() -> None:
    loaded = load()
    assert (loaded.name, loaded.notes) == (DEFAULT, ())
    with pytest.raises(
        ModelError,
        match=r"no weights of 'mprnet' are here: pass .*https://.*add FILE --name mprnet",
    ):
        load("mprnet")


def test_a_deblurrer_says_what_it_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(tiny().state_dict(), path)
    deblurrer = Deblurrer(weights=path, device="cpu")
    assert deblurrer.about == ("weights x.pth: mimo-unet (base 8, blocks 1, unshuffle 1)",)
    assert Deblurrer(device="cpu").name == DEFAULT
    with pytest.raises(UsageError, match="weights go with a network's name"):
        Deblurrer(tiny(), weights=path, device="cpu")


class Deep(nn.Module):
    """A parameter of five dimensions, as FFTformer has."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3, 1, 1, 1, 1), 0.9))
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain[:, 0, 0]


def test_a_deblurrer_takes_parameters_of_any_rank() -> None:
    x = torch.rand(1, 3, 16, 16)
    assert torch.allclose(Deblurrer(Deep(), device="cpu")(x), x * 0.9, atol=1e-6)


# --- what does not fit ---------------------------------------------------------------------------


def test_what_does_not_fit_is_counted_and_named(tmp_path: Path) -> None:
    state = tiny().state_dict()
    for name in ("AFFs.0.conv.0.main.0.weight", "AFFs.0.conv.0.main.0.bias"):
        del state[name]
    state["SCM1.conv.main.0.weight"] = torch.zeros(32, 31, 1, 1)
    for number in range(5):
        state[f"attention.{number}.weight"] = torch.zeros(2)
    path = tmp_path / "x.pth"
    torch.save({"model": state}, path)
    for asked in (None, "mimo-unet"):
        with pytest.raises(ModelError) as caught:
            load(asked, path)
        said = str(caught.value)
        assert "does not fit mimo-unet (base 8, blocks 1, unshuffle 1)" in said
        assert "2 missing (AFFs.0.conv.0.main.0.weight, AFFs.0.conv.0.main.0.bias)" in said
        assert "5 too many (attention.0.weight, attention.1.weight, attention.2.weight, …)" in said
        assert "1 of another shape (SCM1.conv.main.0.weight: 32×31×1×1 instead of 32×32×1×1" in said
        assert "\n" not in said


def test_weights_of_nothing_known_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"params": {"intro.weight": torch.zeros(8, 3, 3, 3)}}, path)
    with pytest.raises(ModelError, match=r"no network known here \(tried mimo-unet, .*mprnet.*\)"):
        load(None, path)
    with pytest.raises(ModelError, match="holds nothing of 'mprnet'"):
        load("mprnet", path)
    torch.save({"epoch": 3, "note": "nothing"}, path)
    with pytest.raises(ModelError, match="holds no tensors"):
        load(None, path)


def test_weights_of_a_failed_training_are_refused(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["Convs.0.main.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"not finite in 1 of \d+ tensors \(Convs.0.main.0.bias"):
        load(None, tmp_path / "x.pth")


# --- what is not a checkpoint --------------------------------------------------------------------


class Command:
    """Unpickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def malicious(kind: str, mark: Path) -> bytes:
    """A file that would make the file `mark` if any of it ran."""
    system = Command(os.system, f"touch {mark}")
    evil = Command(builtins.eval, f"__import__('pathlib').Path({str(mark)!r}).touch()")
    out = io.BytesIO()
    if kind == "plain pickle":
        return pickle.dumps({"model": system})
    if kind == "plain pickle, protocol 0":
        return pickle.dumps(evil, protocol=0)
    if kind in ("zip", "legacy"):
        state = {"model": {"a": torch.ones(1)}, "extra": [system, evil]}
        torch.save(state, out, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "eval":
        torch.save({"model": {"a.weight": evil}}, out)
    elif kind == "tar":  # what torch.save wrote before 0.1.10
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("sys_info", "storages", "tensors", "pickle"):
                data = pickle.dumps(system, protocol=2)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    elif kind == "npz":
        np.savez(out, allow_pickle=True, a=np.array([system], dtype=object))
    elif kind == "zip in its own hand":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(system, protocol=2))
            archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "plain pickle", "plain pickle, protocol 0", "zip", "legacy", "eval", "tar", "npz",
        "zip in its own hand",
    ],
)  # fmt: skip
def test_nothing_in_a_file_is_run(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    path.write_bytes(malicious(kind, mark))
    if kind in ("zip", "legacy"):  # the test is not of duds
        torch.load(path, weights_only=False)
        assert mark.exists()
        mark.unlink()
    with pytest.raises(ModelError) as caught:
        load(None, path)
    assert not mark.exists()
    assert "\n" not in str(caught.value)
    if kind not in ("tar", "npz"):
        wanted = "eval" if kind in ("eval", "plain pickle, protocol 0") else "system"
        assert re.search(rf"asks to run (\w+\.)?{wanted} .* nothing of it ran", str(caught.value))


def not_checkpoints() -> dict[str, bytes]:
    out, old = io.BytesIO(), io.BytesIO()
    torch.save(tiny().state_dict(), out)
    torch.save(tiny().state_dict(), old, _use_new_zipfile_serialization=False)
    whole, legacy = out.getvalue(), old.getvalue()
    noise = np.random.default_rng(0).bytes(4000)
    script = io.BytesIO()
    with zipfile.ZipFile(script, "w") as archive:
        for name in ("m/constants.pkl", "m/code/__torch__.py", "m/data.pkl"):
            archive.writestr(name, b"x")
    return {
        "empty": b"",
        "text": b"hello\nthis is text\n",
        "noise": noise,
        "short": b"\x80\x02",
        "web page": b"\n<!DOCTYPE html><html><head><title>Google Drive</title></head></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "cut": whole[:3000],
        "cut old": legacy[:3000],
        "cut at its end": whole[:-30],
        "flipped": whole[:2000] + noise[:1500] + whole[3500:],
        "flipped old": legacy[:200] + noise[:300] + legacy[500:],
        "torchscript": script.getvalue(),
        "empty zip": b"PK\x05\x06" + bytes(18),
        "safetensors without end": (1 << 40).to_bytes(8, "little") + b'{"a": 1}',
        "safetensors of nothing": (2).to_bytes(8, "little") + b"{}",
    }


SAID = {
    "empty": "is empty: download it again",
    "web page": "is a web page",
    "lfs": "git lfs pull",
    "torchscript": "TorchScript",
    "safetensors of nothing": "holds no tensors",
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("clip") / "clip.mkv", [scene(0, size=(32, 32))])


@pytest.mark.parametrize("model", [None, "mimo-unet"])
def test_what_is_not_a_checkpoint_is_said_in_a_sentence(
    model: str | None, tmp_path: Path, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, (kind, content) in enumerate(not_checkpoints().items()):
        weights = tmp_path / f"x{number}.pkl"
        weights.write_bytes(content)
        words = ["video", str(clip), "-o", str(tmp_path / "o.mkv"), "--weights", str(weights)]
        assert cli.main(words + (["--model", model] if model else [])) == 1, kind
        said = capfd.readouterr().err
        assert said.count("\n") == 1, said
        assert said.startswith("vdeblur: ")
        assert str(weights) in said
        assert SAID.get(kind, "") in said, (kind, said)
    assert not (tmp_path / "o.mkv").exists()


def test_paths_that_hold_no_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights file .*none\.pkl does not exist"):
        load("mimo-unet", tmp_path / "none.pkl")
    with pytest.raises(ModelError, match="is a folder"):
        load(None, tmp_path)


def test_the_report_names_the_network_of_the_weights(
    tmp_path: Path, clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    torch.save(tiny(base=9).state_dict(), path)
    words = ["video", str(clip), "-o", str(tmp_path / "o.mkv"), "--weights", str(path), "--json"]
    assert cli.main(words) in (0, 3)
    notes = json.loads(capfd.readouterr().out)["notes"]
    assert "weights x.pth: mimo-unet (base 9, blocks 1, unshuffle 1)" in notes


# --- those that ship -----------------------------------------------------------------------------


def test_shipped_weights_are_held_to_their_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "SHIPPED", tmp_path)
    with pytest.raises(ModelError, match=f"no weights ship for '{DEFAULT}'"):
        load_network(DEFAULT)
    path, card = tmp_path / f"{DEFAULT}.safetensors", tmp_path / f"{DEFAULT}.json"
    network = build(DEFAULT, {"widths": [4, 8, 8], "blocks": [1, 1, 1]})
    save_weights(path, network.state_dict(), network=DEFAULT, config=network.config)
    with pytest.raises(ModelError, match="no readable model card"):
        load_network(DEFAULT)
    card.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="not the file that its model card describes"):
        load_network(DEFAULT)
    card.write_text(json.dumps({"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    loaded = load_network(DEFAULT)
    assert isinstance(loaded, type(network))
    assert loaded.config == network.config


def test_the_weights_in_the_package_load_and_fit_their_entry() -> None:
    for name in names():
        assert (packaged.SHIPPED / f"{name}.safetensors").exists() == spec(name).ships
        if spec(name).ships:
            loaded = load(name)
            assert isinstance(loaded.network, Network)
            assert (loaded.name, loaded.notes) == (name, ())
            x = torch.rand(1, 3, 64, 64)
            assert torch.isfinite(loaded.network(x)).all()
