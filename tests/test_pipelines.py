"""The programs under pipelines/ run by their path; the public names are what they say."""

from __future__ import annotations

import ast
import importlib
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vdeblur
from tests.helpers.clips import same_frames, scene, write_frames
from tests.helpers.simulated_devices import simulated_gpu
from vdeblur.motion.single_picture import blur_field_network
from vdeblur.networks.blur_field import BlurFieldNetwork
from vdeblur.weights import load_network

ROOT = Path(__file__).parents[1]


def program(name: str, *arguments: object) -> str:
    words = [sys.executable, str(ROOT / "pipelines" / name), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names() -> None:
    assert sorted(vdeblur.__all__) == vdeblur.__all__
    for name in vdeblur.__all__:
        value = getattr(vdeblur, name)
        assert value.__name__ == name
        assert value.__module__.startswith("vdeblur.")
        assert name in dir(vdeblur)
    assert {n for names in vdeblur._HOMES.values() for n in names} == set(vdeblur.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = vdeblur.deblur_everything
    errors = importlib.import_module("vdeblur.errors")
    for name in ("InputError", "OutputError", "Cancelled"):
        assert issubclass(getattr(errors, name), vdeblur.VdeblurError)


FACES = sorted(
    f"vdeblur.{path.parent.name}"
    for path in (ROOT / "vdeblur").glob("*/__init__.py")
    if "lazy.loader" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", FACES)
def test_names_of_folders(name: str) -> None:
    face = importlib.import_module(name)
    assert sorted(n for names in face._HOMES.values() for n in names) == sorted(face.__all__)
    modules = {path.stem for path in (ROOT / name.replace(".", "/")).iterdir()}
    assert not modules & set(face.__all__), "a module hides the name when it is imported"
    for public in face.__all__:
        assert getattr(face, public) is not None
        assert public in dir(face)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = face.nothing_of_the_kind


# Programs for developers, which time or train parts of the package by themselves.
OF_THE_INSIDE = {"gpu_check.py", "train_blur_field.py"}
PROGRAMS = {path.name for path in (ROOT / "pipelines").glob("[a-z]*.py")} - OF_THE_INSIDE


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_pipelines_import_public_names(program: str) -> None:
    source = (ROOT / "pipelines" / program).read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vdeblur":
            face = importlib.import_module(node.module or "")
            names = {alias.name for alias in node.names}
            modules = {"gopro"} if node.module == "vdeblur" else {"taps"}
            assert names <= {*face.__all__, *modules}, f"{node.module}: {names}"


def test_deblur_file(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(4)))
    said = program("deblur_file.py", source, tmp_path / "b.mkv", "--model", "identity")
    assert "4 frames, 0 left as they were" in said
    assert same_frames(tmp_path / "b.mkv", source)


def test_benchmark_fps(tmp_path: Path) -> None:
    source = write_frames(tmp_path / "a.mkv", (scene(n) for n in range(4)))
    said = program("benchmark_fps.py", source, "--model", "identity", "--frames", 3)
    assert "3 frames, 3 rounds" in said
    assert "slowest stage" in said


def test_compare_backends() -> None:
    words = ("--size", "64x48", "--rounds", "2", "--passes", "1")
    text = program("compare_backends.py", "torch:fp32", "torch:bf16:2", *words)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines] == ["authors", "torch:fp32", "torch:bf16:2"]
    assert lines[0][5] == lines[0][-1] == "1.00"
    assert all(float(line[1]) > 0 and float(line[5]) > 0 for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deblur_file.py", "none.mp4", "out.mp4"], "none.mp4 does not exist"),
        (["deblur_file.py", "a.mkv", "no/out.mkv", "--model", "identity"], "folder no does not"),
        (["restore_gopro.py", "none", "out"], "none"),
        (["benchmark_fps.py", "none.mp4"], "none.mp4 does not exist"),
        (["train_gopro.py", "none", "--out", "w.safetensors"], "there is no folder none"),
        (["train_gopro.py", "none", "--out", "no/w.safetensors"], "folder no does not exist"),
        (["train_gopro.py", "none", "--out", "w", "--device", "abacus"], "abacus"),
        (["train_blur_field.py", "none", "--out", "w.safetensors"], "no pictures under none"),
        (["train_blur_field.py", "none", "--out", "no/w.safetensors"], "folder no does not exist"),
        (["train_blur_field.py", ".", "--out", "w", "--init", "a.mkv"], "a.mkv"),
        (["gpu_train.py", "none", "--out", "a", "--device", "abacus"], "abacus"),
        (["gpu_check.py", "--out", "a", "--device", "abacus"], "abacus"),
        (["pack_photos.py", "none", "--out", "a"], "no photographs under none"),
        (["compare_backends.py", "abacus:fp32", "--size", "32x32"], "abacus:fp32 cannot be run"),
        (["compare_recipes.py", "none", "plain", "--out", "runs"], "there is no folder none"),
        (["compare_recipes.py", "none", "a: wider", "--out", "runs"], "'a: wider' is no variant"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_frames(tmp_path / "a.mkv", [scene(0)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        here(*words)
    assert isinstance(ended.value.code, str)  # Python prints it and ends with 1
    assert said in ended.value.code
    assert "\n" not in ended.value.code
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


Here = Callable[..., str]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a program by its path in this process, which has torch loaded already."""

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / "pipelines" / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def pairs(folder: Path) -> Path:
    """Four pairs in GoPro's flattened layout."""
    random = np.random.default_rng(0)
    for kind in ("blur", "sharp"):
        (folder / kind).mkdir(parents=True)
    for number in range(4):
        pixels = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        sharp = Image.fromarray(pixels).resize((64, 48))
        sharp.save(folder / "sharp" / f"{number}.png")
        sharp.resize((32, 24)).resize((64, 48)).save(folder / "blur" / f"{number}.png")
    return folder


def test_train_gopro(tmp_path: Path, here: Here) -> None:
    weights, state = tmp_path / "weights.safetensors", tmp_path / "run.pt"
    options = ["--out", weights, "--state", state, "--device", "cpu", "--workers", 0]
    options += ["--model", "mimo-unet-lite", "--batch", 2, "--crop", 32]
    data = pairs(tmp_path / "data")
    assert "1 steps" in here("train_gopro.py", data, *options, "--steps", 1)
    network = load_network(None, weights)
    assert sum(p.numel() for p in network.parameters()) > 1000
    said = here("train_gopro.py", data, *options, "--steps", 3)
    assert "step 3" in said
    assert "step 1 " not in said  # it went on, and did not begin anew


def test_compare_recipes(tmp_path: Path, here: Here) -> None:
    data = pairs(tmp_path / "data")
    options = ["--score", f"these={data}", "--steps", 2, "--out", tmp_path / "runs"]
    options += ["--device", "cpu"]
    small = "batch=2; crop=32; config.widths=[4,8,8]; config.blocks=[1,1,1]"
    variants = [f"plain: {small}", f"other: {small}; ema=0"]
    said = here("compare_recipes.py", data, *variants, *options)
    head, _, *rows = said.strip().splitlines()
    assert "these gain, last weights" in head
    assert [row.split("|")[1].strip() for row in rows] == ["plain", "other"]
    table = json.loads((tmp_path / "runs" / "table.json").read_text())
    assert table[1]["these gain"] == table[1]["these gain, last weights"]  # nothing is averaged
    assert table[0]["parameters"] == table[1]["parameters"]


def photographs(folder: Path, count: int = 4) -> Path:
    """Sharp pictures with detail of several sizes."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (50, 60, 3), dtype=np.uint8))
        fine = random.integers(-40, 40, (400, 480, 3))
        picture = np.clip(np.asarray(coarse.resize((480, 400), 0), np.int64) + fine, 0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def test_train_blur_field(tmp_path: Path, here: Here) -> None:
    photos, weights = photographs(tmp_path / "photos"), tmp_path / "blur.safetensors"
    options = ["--out", weights, "--every", 0]
    said = here("train_blur_field.py", photos, *options, "--budget", 1)
    assert "3 photographs" in said
    assert "at the start: angle " in said
    assert "s  step 1  loss " in said
    saved = load_file(weights)
    assert {tensor.dtype for name, tensor in saved.items() if name != "prior"} == {torch.float16}
    assert saved["prior"].dtype == torch.float32
    loaded = blur_field_network(weights).state_dict()
    assert not torch.equal(loaded["prior"], BlurFieldNetwork().state_dict()["prior"])  # what it met
    begun = here("train_blur_field.py", photos, *options, "--budget", 0, "--init", weights)
    # From where the other ended, and nothing is written where nothing was learned.
    last = said.strip().splitlines()[-1].partition("; ")[2]
    assert begun.strip().partition("at the start: ")[2] == last


def test_pack_photos(tmp_path: Path, here: Here) -> None:
    photos, out = photographs(tmp_path / "photos"), tmp_path / "packed"
    said = here("pack_photos.py", photos, "--out", out, "--limit-mib", 0.3)
    packed = sorted(out.iterdir())
    assert [file.name for file in packed] == [f"{n:05d}-{n}.webp" for n in range(4)]
    assert 0.15 * 2**20 < sum(file.stat().st_size for file in packed) <= 0.3 * 2**20
    assert "4 photographs at quality" in said
    with Image.open(packed[0]) as picture:
        assert picture.size == (480, 400)
    with pytest.raises(SystemExit, match="do not fit"):
        here("pack_photos.py", photos, "--out", out, "--limit-mib", 0.01)


def test_gpu_train(tmp_path: Path) -> None:
    """On the CPU, without PyAV, and with a network that there is not, whose share others get."""
    photos, out = photographs(tmp_path / "photos"), tmp_path / "out"
    path = ROOT / "pipelines" / "gpu_train.py"
    words = [path, photos, "--out", out, "--seconds", 20, "--device", "cpu", "--quick"]
    words += ["--workers", 0, "--networks", "nothing", "mimo-unet-guided"]
    script = "import runpy, sys; sys.modules['av'] = None; "
    script += f"sys.argv = {[str(word) for word in words]}; "
    script += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 1, done.stderr
    assert "mimo-unet-guided: at the start:  gain " in done.stdout
    name = "mimo-unet-guided"
    kept = [f"{name}-averaged32.safetensors", f"{name}-last32.safetensors"]
    best = {f"{name}.safetensors"}  # if it became better
    assert {file.name for file in out.iterdir()} - best == {*kept, "metrics.jsonl", "train.json"}
    for file in kept:
        weights = load_network(None, out / file).state_dict()
        assert all(value.isfinite().all() for value in weights.values())
    parts = json.loads((out / "train.json").read_text())["networks"]
    assert "nothing" in parts["nothing"]["failed"]
    assert parts[name]["steps"] >= 1
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0
    assert rows[-1]["step"] == parts[name]["steps"]
    assert parts[name]["gain_at_start_db"] == rows[0]["film_db"]
    assert parts[name]["best_gain_db"] == max(row.get("film_db", -9) for row in rows)


def test_gpu_check_is_rehearsed_on_a_cpu(tmp_path: Path, here: Here) -> None:
    with pytest.raises(SystemExit) as ended:
        here("gpu_check.py", "--out", tmp_path, "--device", "cpu", "--quick")
    found = json.loads((tmp_path / "check.json").read_text())
    assert ended.value.code == 0, found
    assert found["correctness"]["10 bit 4:2:0, chroma at the top left, torch"]["worst_code"] <= 1
    (stage,) = (row for name, row in found["stages"].items() if name != "notes")
    assert set(stage) > {"upload", "color", "guidance", "network", "steadying", "download"}
    (film,) = found["overlap"].values()
    assert film["worst_code_to_in_turn"] == 0
    assert found["published"]["best"]["frames_per_s"] > 0
    assert found["files"]["decoded on the CPU"]["differences"] == []
    assert found["films"]["street"]["gain_db on the CPU in fp32"] > 1
    for part in ("memory", "tests"):
        assert found[part] == {"skipped": "needs a CUDA device"}
    assert [bar["reached"] for bar in found["bars"]] == [True]


def test_gpu_check_on_a_simulated_gpu(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which refuses to mix its tensors with the CPU's, as a real one does."""
    monkeypatch.delenv("VDEBLUR_PRECISION", raising=False)
    words = ["--out", tmp_path, "--device", "xpu", "--quick", "--parts", "correctness", "overlap"]
    with pytest.raises(SystemExit) as ended, simulated_gpu("xpu"):
        here("gpu_check.py", *words, "stages")
    found = json.loads((tmp_path / "check.json").read_text())
    assert ended.value.code == 0, found
    assert found["machine"].startswith("Intel Arc B580")
    rows = [row for name, row in found["correctness"].items() if name != "notes"]
    assert len(rows) == 6
    assert all(50 < row["db"] < 99 for row in rows)  # fp16 there, fp32 here
    assert "failed" not in found["stages"]
    (film,) = found["overlap"].values()
    assert film["worst_code_to_in_turn"] == 0


def test_gpu_check_goes_on_after_a_part_that_fails(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.benchmark.roofline.peaks", lambda device, dtype: 1 / 0)
    monkeypatch.setitem(sys.modules, "av", None)
    words = ["--out", tmp_path, "--device", "cpu", "--quick", "--parts", "ceilings", "films"]
    with pytest.raises(SystemExit) as ended:
        here("gpu_check.py", *words)
    assert ended.value.code == 1
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["ceilings"]["failed"].startswith("ZeroDivisionError")
    assert found["films"]["skipped"].startswith("needs PyAV")
