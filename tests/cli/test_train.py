"""`vdeblur train` as a researcher uses it, on a small data set in GoPro's layout made here."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from vdeblur.cli.main import main
from vdeblur.datasets.batches import LENGTHS
from vdeblur.networks import DEFAULT
from vdeblur.system.optional import installed
from vdeblur.training.run_log import read_metrics
from vdeblur.training.validation import (
    validation_of,
)
from vdeblur.weights import load
from vdeblur.weights.packaged import shipped_weights

QUICK = ["--batch", "2", "--crop", "32", "--workers", "0", "--device", "cpu"]
TINY = ["--model", "mimo-unet", "--config", "base=4", "--config", "blocks=1", *QUICK]


def picture(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size)


@pytest.fixture(scope="module")
def gopro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("GoPro")
    for number, split in enumerate(("train", "test")):
        for kind in ("blur", "sharp"):
            (root / split / "GOPR0001_00" / kind).mkdir(parents=True)
        for frame in range(4):
            sharp = picture(10 * number + frame)
            folder = root / split / "GOPR0001_00"
            sharp.save(folder / "sharp" / f"{frame:06d}.png")
            blurred = sharp.filter(ImageFilter.BoxBlur(2))
            blurred.save(folder / "blur" / f"{frame:06d}.png")
    return root


def run(*arguments: object) -> int:
    return main(["train", *map(str, arguments)])


def test_a_run_and_its_files(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", gopro, "--out", out, "--recipe", "mimo-unet-gopro", *TINY, "--val", gopro]
    assert run(*options, "--epochs", 2, "--set", "ema=0.9") == 0
    said = capsys.readouterr()
    assert said.out == f"{out / 'weights.safetensors'}\n"
    assert "4 pairs" in said.err
    assert "waiting" in said.err
    assert "images/s" in said.err
    assert sorted(p.name for p in out.iterdir()) == [
        "metrics.jsonl",
        "state.pt",
        "weights.json",
        "weights.safetensors",
    ]
    network = load(None, out / "weights.safetensors").network
    card = json.loads((out / "weights.json").read_text())
    assert card["config"] == network.config == {"base": 4, "blocks": 1, "unshuffle": 1}
    assert card["sha256"] == hashlib.sha256((out / card["file"]).read_bytes()).hexdigest()
    assert card["steps"] == 4  # 2 epochs of 4 pairs by 2
    assert card["recipe"]["loss"] == "l1 + 0.1*msfr"
    assert card["recipe"]["seed"] == 0
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["step"] == 4
    assert card["scores"]["validation_gain_db"] == round(rows[-1]["gain_db"], 3)
    assert card["curve"]["rows"][-1][1] == 4
    # The scores are those of the weights in the file, to what half precision rounds.
    kept, _ = validation_of(str(gopro)).score(network)  # type: ignore[arg-type]
    assert kept.gain == pytest.approx(rows[-1]["gain_db"], abs=0.05)
    # Again: it is finished, and says the same.
    assert run(*options, "--epochs", 2, "--set", "ema=0.9") == 0
    again = json.loads((out / "weights.json").read_text())
    assert again["scores"] == card["scores"]
    assert again["steps"] == 4
    assert run(*options, "--epochs", 4, "--set", "ema=0.9") == 0
    assert "goes on at step 4" in capsys.readouterr().err
    assert json.loads((out / "weights.json").read_text())["steps"] == 8


def test_ctrl_c_leaves_a_state_to_go_on_from(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, state = tmp_path / "run", tmp_path / "state"
    options = ["--data", gopro, "--out", out, "--state", state, *TINY, "--report", "0.05s"]

    def interrupt() -> None:
        for _ in range(600):
            if state.exists():
                break
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = run(*options, "--steps", 100_000)
    thread.join()
    assert code == 130
    assert "goes on from there" in capsys.readouterr().err
    step = torch.load(state, weights_only=True)["step"]
    assert step > 0
    assert load(None, out / "weights.safetensors").network  # usable as they are
    assert not json.loads((out / "weights.json").read_text())["finished"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(*options, "--steps", step + 2) == 0
    assert json.loads((out / "weights.json").read_text())["steps"] == step + 2


def test_a_budget_from_photographs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        picture(number, (160, 128)).save(photos / f"{number}.png")
    out = tmp_path / "run"
    options = ["--data", f"synth:{photos}", "--out", out, *TINY, "--val", tmp_path / "val"]
    for kind in ("blur", "sharp"):
        (tmp_path / "val" / kind).mkdir(parents=True)
        picture(9).save(tmp_path / "val" / kind / "a.png")
    assert run(*options, "--budget", "1s", "--blur", "max_length=8") == 0
    card = json.loads((out / "weights.json").read_text())
    assert card["finished"]
    assert card["wall_seconds"] >= 1
    assert card["recipe"]["blur"]["max_length"] == 8
    assert card["scores"]["validation_gain_db"] <= 0  # blurred and sharp are one picture


def test_a_guided_network_from_photographs(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        picture(number, (160, 128)).save(photos / f"{number}.png")
    out = tmp_path / "run"
    options = ["--data", f"synth:{photos}", "--out", out, "--recipe", "mimo-unet-guided", *QUICK]
    small = ["--config", "widths=[4,8,8]", "--config", "blocks=[1,1,1]", "--set", "pool.pairs=4"]
    assert run(*options, *small, "--set", "updates=0:1", "--steps", 2, "--seed", 1) == 0
    said = capsys.readouterr().err
    assert "of exact motion" in said
    card = json.loads((out / "weights.json").read_text())
    assert card["network"] == "mimo-unet-guided"
    assert card["recipe"]["pool"]["pairs"] == 4
    row = read_metrics(out / "metrics.jsonl")[-1]
    assert "frame by frame" in said
    assert {"film_db", "film_single_db"} <= set(row)
    kinds = [f"{kind}_{length}_db" for kind in ("exact", "measured", "none") for length in LENGTHS]
    for name in (*kinds, "sharp_false_db", "exact_db"):
        assert card["scores"][f"synthetic_{name}"] == row[name]
    assert row["gain_db"] == pytest.approx(row["measured_db"], abs=1e-3)
    # It goes on with pairs of unknown motion, from a loading process.
    again = ["--init", out / "weights.safetensors", "--data", gopro, "--out", tmp_path / "again"]
    recipe = ["--recipe", "mimo-unet-guided", *QUICK, "--workers", 1, "--set", "updates=0:1"]
    assert run(*again, *recipe, "--steps", 1) == 0
    assert load(None, tmp_path / "again" / "weights.safetensors").network.config == card["config"]


def test_lighter_networks_and_other_starts(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    data = ["--data", gopro]
    wide = ["--model", "mimo-unet", "--config", "base=16", "--config", "blocks=1", *QUICK]
    assert run(*data, "--out", first, *wide, "--steps", 1) == 0
    weights = first / "weights.safetensors"
    # Pruned: smaller, told from its tensors alone, and it goes on as what it is.
    pruned = tmp_path / "pruned"
    options = [*data, "--out", pruned, "--recipe", "prune", "--model", "mimo-unet", *QUICK]
    assert run(*options, "--init", weights, "--steps", 1) == 0
    card = json.loads((pruned / "weights.json").read_text())
    before = json.loads((first / "weights.json").read_text())
    assert card["parameters"] < before["parameters"]
    assert card["operations_per_pixel"] < 0.9 * before["operations_per_pixel"]
    assert "pruned to" in card["recipe"]["init"]
    smaller = load(None, pruned / "weights.safetensors").network
    assert sum(p.numel() for p in smaller.parameters()) == card["parameters"]
    assert run(*options, "--init", weights, "--steps", 2) == 0
    # Taught by the first.
    taught = tmp_path / "taught"
    assert run(*data, "--out", taught, *TINY, "--steps", 1, "--teacher", weights) == 0
    card = json.loads((taught / "weights.json").read_text())
    assert card["recipe"]["teacher_weight"] == 0.5
    # Fine-tuned from the weights that ship: a first step moves them a little.
    tuned = tmp_path / "tuned"
    assert run(*data, "--out", tuned, "--recipe", "fine-tune", "--steps", 1, *QUICK) == 0
    new = load(None, tuned / "weights.safetensors").network.state_dict()
    shipped = load(None, shipped_weights(DEFAULT)).network.state_dict()
    assert 0 < max(float((new[n] - tensor).abs().max()) for n, tensor in shipped.items()) < 0.01
    card = json.loads((tuned / "weights.json").read_text())
    assert card["recipe"]["init"].startswith("shipped")
    assert card["scores"]["dead_channels_share"] < 0.5
    capsys.readouterr()


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list-recipes") == 0
    text = capsys.readouterr().out
    assert "mprnet-gopro" in text
    assert "charbonnier + 0.05*edge" in text
    assert run("--list-recipes", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == DEFAULT


def test_without_a_recipe_the_network_decides(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(*words: object) -> dict[str, object]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        assert run("--data", gopro, "--out", out, *QUICK, "--steps", 1, *words) == 0
        recipe: dict[str, object] = json.loads((out / "weights.json").read_text())["recipe"]
        return recipe

    small = ["--config", "widths=[4,8,8]", "--config", "blocks=[1,1,1]", "--batch", 1]
    default = begun(*small)
    assert (default["name"], default["network"]) == (DEFAULT, DEFAULT)
    assert default["updates"] == [[0.0, 1], [0.6, 1]]  # no more than crops
    named = begun("--model", "mimo-unet", "--config", "base=4", "--config", "blocks=1")
    assert (named["name"], named["network"]) == ("mimo-unet-lite", "mimo-unet")
    assert named["start_well"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "give --data"),
        (["--data", "DATA", "--recipe", "x"], 2, "no recipe 'x'"),
        (["--data", "DATA", "--steps", 1, "--epochs", 1], 2, "one length"),
        (["--data", "DATA", "--set", "clip"], 2, "no KEY=VALUE"),
        (["--data", "DATA", "--loss", "l5"], 2, "is not a loss"),
        (["--data", "DATA", "--config", "depth=3"], 2, "no such value: choose of widths, blocks"),
        (["--data", "DATA", "--config", "widths=wide"], 2, "its own is widths=[16,40,80], blocks="),
        (["--data", "DATA", *TINY[:2], "--config", "base=0"], 2, "base=0: its own is base=32, b"),
        (["--data", "DATA", "--model", "mimo-unet-small"], 1, "mimo-unet-guided is the default"),
        (["--data", "DATA", "--model", "identity"], 2, "nothing to train"),
        (["--data", "DATA", *TINY, "--accumulate", "3"], 2, "has 2 crops a step: give 2 parts"),
        (["--data", "DATA", *TINY, "--seed", "-1"], 2, "--seed is -1"),
        (["--data", "DATA", *TINY, "--lr", "nan"], 2, "learning rate nan"),
        (["--data", "DATA", *TINY, "--blur", "noise=0"], 2, "--blur is for photographs"),
        (["--data", "synth:x", *TINY, "--layout", "gopro"], 2, "--layout is for a folder of pairs"),
        (["--data", "DATA", *TINY, "--json"], 2, "--json is for --list-recipes"),
        (["--data", "DATA", *TINY, "--state", "none/state.pt"], 1, "folder none does not exist"),
        (["--data", "DATA", "--model", "mprnet", "--prune", "0.5"], 2, "needs trained weights"),
        (["--data", "DATA", "--teacher", "none.pt", *TINY, "--steps", 1], 1, "none.pt"),
        (["--data", "DATA", "--device", "cuda:99"], 1, "no cuda:99"),
        (["--data", "none"], 1, "none"),
        (["--data", "DATA", *TINY, "--crop", "34", "--steps", 1], 2, "choose a multiple of 4"),
        (["--data", "DATA", *TINY, "--workers", "-1"], 2, "--workers is -1"),
        (["--data", "DATA", "--crop", "128", "--steps", 1], 1, "too small for crops of 128"),
        (["--data", "DATA", "--val", "none", *TINY], 1, "none"),
    ],
)
def test_what_cannot_be(
    options: list[object],
    code: int,
    said: str,
    gopro: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [gopro if word == "DATA" else word for word in options]
    if "--crop" not in words:
        words = [*QUICK, *words]
    assert run(*words, "--out", tmp_path / "run") == code
    text = capsys.readouterr().err.strip()
    assert said in text.splitlines()[-1]
    assert "Traceback" not in text
    assert "Errno" not in text
    assert list(tmp_path.iterdir()) == []  # no folder is left of a run that never began


def test_a_run_s_folder_that_cannot_be_is_one_sentence(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run("--data", gopro, *TINY, "--steps", 1, "--out", tmp_path / "file" / "run") == 1
    said = capsys.readouterr().err
    assert "cannot be a folder for this run (Not a directory): give another --out" in said
    assert "Errno" not in said


def test_a_run_that_runs_away_ends_with_what_it_had(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["--data", gopro, "--out", out, "--recipe", "mimo-unet-gopro", *TINY]
    # The rate rises through what can be learnt at to what cannot.
    rising = ["--set", "schedule.warmup=0.9", "--steps", 400, "--report", "0.02s"]
    assert run(*command, *rising, "--lr", 2) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vdeblur: training ran away: ")
    step = int(said.partition("what is kept is of step ")[2].partition(":")[0])
    assert "the same command with a lower --lr" in said
    assert torch.load(out / "state.pt", weights_only=True)["step"] == step
    card = json.loads((out / "weights.json").read_text())
    assert (card["steps"], card["finished"]) == (step, False)
    assert load(None, out / "weights.safetensors").network  # which refuses what is not finite
    # The loss is watched again from where it stands.
    assert run(*command, "--steps", step + 1, "--lr", "1e-5", *rising[:2]) == 0
    assert "the learning rate is 1e-05 from here on; it was 2" in capsys.readouterr().err


def test_a_damaged_picture_is_named_also_from_a_loading_process(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "train" / "GOPR0001_00"
    for kind in ("blur", "sharp"):
        (folder / kind).mkdir(parents=True)
        content = (gopro / "train" / "GOPR0001_00" / kind / "000000.png").read_bytes()
        (folder / kind / "000000.png").write_bytes(content if kind == "blur" else content[:200])
    code = run("--data", tmp_path, "--out", tmp_path / "run", *TINY, "--steps", 1, "--workers", 1)
    said = capsys.readouterr().err.strip()
    assert code == 1
    assert "Traceback" not in said
    assert "000000.png cannot be read" in said.splitlines()[-1]


def test_an_error_in_training_ends_the_program(gopro: Path, tmp_path: Path) -> None:
    code = """
import sys
from vdeblur.cli.main import main
from vdeblur.networks.mimo_unet import MIMOUNet
def fails(*_): raise RuntimeError("as a network may")
MIMOUNet.forward_scales = fails
sys.exit(main(sys.argv[1:]))
"""
    words = ["train", "--data", gopro, "--out", tmp_path / "run", *TINY, "--workers", 1]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=100,  # it would wait for its loading processes for ever
        check=False,
    )
    assert done.returncode == 1
    assert "as a network may" in done.stderr


@pytest.mark.skipif(installed("tensorboard"), reason="tensorboard is installed")
def test_tensorboard_is_asked_for(
    gopro: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", gopro, "--out", tmp_path / "run", *TINY, "--steps", 1]
    assert run(*options, "--log", "tensorboard") == 1
    assert "pip install 'vdeblur[train]'" in capsys.readouterr().err


@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_receives_curves_and_pictures(gopro: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--data", gopro, "--out", tmp_path / "run", *TINY, "--steps", 1]
    assert run(*options, "--log", "tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "gain_db"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"]
