"""`vdeblur eval` on small data sets and videos: its figures, its files, its refusals."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.helpers.clips import write_frames
from vdeblur import Deblurrer, InputError
from vdeblur.cli.main import main
from vdeblur.datasets.average import average_video
from vdeblur.datasets.layouts import find_pairs
from vdeblur.datasets.pairs import open_pairs
from vdeblur.datasets.pans import SHUTTER, pans
from vdeblur.datasets.pictures import (
    frame_to_rgb,
    read_rgb,
    to_picture,
    write_png,
)
from vdeblur.evaluation.lettering import label, lettering
from vdeblur.evaluation.metrics import psnr, ssim
from vdeblur.evaluation.panels import largest_change
from vdeblur.evaluation.report_page import Gallery
from vdeblur.evaluation.run import EvalOptions, evaluate
from vdeblur.evaluation.scores import PairScore
from vdeblur.evaluation.tables import as_markdown, score_table
from vdeblur.frames import PlaneLayout
from vdeblur.inference.network_pass import NetworkPass
from vdeblur.media.reader import VideoReader
from vdeblur.motion.warping import warp

HEIGHT, WIDTH = 36, 48
Array = NDArray[np.uint8]


def sharp_picture(number: int) -> Array:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    checks = ((x + 3 * number) // 6 + (y + number) // 5) % 2
    return np.stack([40 + 150 * checks, 60 + 2 * x, 50 + 3 * y], 2).astype(np.uint8)


def blurred_picture(number: int) -> Array:
    sharp = sharp_picture(number).astype(np.float64)
    mean: Array = np.mean([np.roll(sharp, k, axis=1) for k in range(-2, 3)], axis=0).astype(
        np.uint8
    )
    return mean


def gopro(root: Path, scenes: tuple[str, ...] = ("one", "two"), frames: int = 2) -> Path:
    """A data set in GoPro's layout; every picture is another."""
    for place, scene in enumerate(scenes):
        for number in range(frames):
            name = f"{number + 1:06d}.png"
            write_png(root / "test" / scene / "sharp" / name, sharp_picture(10 * place + number))
            write_png(root / "test" / scene / "blur" / name, blurred_picture(10 * place + number))
    return root


class Add(nn.Module):
    """Adds a constant; one of small pictures' share of the range, so that nothing is refused."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["eval", *map(str, arguments), "--quiet"]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["eval", *map(str, arguments), "--quiet"]) in (1, 2)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("vdeblur: ")
    return said.err


def test_figures_of_a_data_set(tmp_path: Path) -> None:
    pairs = open_pairs([gopro(tmp_path)])
    scores = evaluate(pairs, Deblurrer(Add(4 / 255), device="cpu"), options=EvalOptions(sharp=True))
    assert [(s.sequence, s.name) for s in scores.pictures] == [
        (scene, name) for scene in ("one", "two") for name in ("000001", "000002")
    ]
    for score, number in zip(scores.pictures, (0, 1, 10, 11), strict=True):
        blurred, sharp = blurred_picture(number), sharp_picture(number)
        brighter = blurred + np.uint8(4)
        assert score.values["psnr_blurred"] == pytest.approx(psnr(blurred, sharp))
        assert score.values["psnr_restored"] == pytest.approx(psnr(brighter, sharp))
        assert score.values["ssim_restored"] == pytest.approx(ssim(brighter, sharp))
        assert score.values["sharp_kept"] == pytest.approx(20 * math.log10(255 / 4))
        gain = psnr(brighter, sharp) - psnr(blurred, sharp)
        assert score.values["psnr_gain"] == pytest.approx(gain)
    means = [np.mean([s.values["psnr_gain"] for s in scores.pictures[i : i + 2]]) for i in (0, 2)]
    assert [row.values["psnr_gain"] for row in scores.sequences] == pytest.approx(means)
    assert scores.total.values["psnr_gain"] == pytest.approx(np.mean(means))
    table = score_table([scores], label="add|4")
    assert [line[0] for line in table] == ["", "one", "two", f"{tmp_path.name}, mean"]
    assert as_markdown(table).splitlines()[0].count("add\\|4") == 2


def test_protocols_differ_as_they_say(tmp_path: Path) -> None:
    pairs = open_pairs([gopro(tmp_path, ("one",), 1)])
    network = Deblurrer(Add(0.4 / 255), device="cpu")  # lost when rounded to 8 bits
    by = {
        name: evaluate(pairs, network, options=EvalOptions(protocol=name)).total.values
        for name in ("8bit", "float", "matlab")
    }
    blurred, sharp = blurred_picture(0), sharp_picture(0)
    assert by["8bit"]["psnr_gain"] == 0 != by["float"]["psnr_gain"]
    exact = psnr(np.minimum(blurred + 0.4, 255), sharp.astype(np.float64))
    assert by["float"]["psnr_restored"] == pytest.approx(exact, abs=1e-4)
    assert by["matlab"]["psnr_restored"] == by["8bit"]["psnr_restored"]
    assert by["matlab"]["ssim_blurred"] == pytest.approx(ssim(blurred, sharp, volume=True))
    assert by["8bit"]["ssim_blurred"] == pytest.approx(ssim(blurred, sharp))


def test_the_command_prints_and_writes_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gopro(tmp_path / "gopro")
    shown = run(
        capsys, "--pairs", data, "--model", "identity", "--unsharp", "--sharp", "--markdown",
        "--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json", "--panels", tmp_path / "look",
        "--panel-count", 2,
    )  # fmt: skip
    heading, rule, first, *_ = shown.splitlines()
    cells = [cell.strip() for cell in heading.split("|")]
    assert cells[1:7] == ["", "pictures", "PSNR blurred", "identity", "gain", "unsharp mask"]
    assert set(rule) == set("|-:")
    cells = [cell.strip() for cell in first.split("|")]
    assert cells[1:3] == ["one", "2"]
    assert "+0.00" in cells
    assert cells[-2] == "inf"
    assert "unsharp mask: PSNR gain of the best of a grid" in shown
    assert "Wang et al. (2004)" in shown
    lines = list(csv.DictReader((tmp_path / "s.csv").read_text("utf-8").splitlines()))
    assert [(line["set"], line["sequence"], line["name"]) for line in lines][2] == (
        "gopro", "two", "000001",
    )  # fmt: skip
    expected = psnr(blurred_picture(10), sharp_picture(10))
    assert float(lines[2]["psnr_blurred"]) == pytest.approx(expected, rel=1e-5)
    assert lines[2]["sharp_kept"] == "inf"
    told = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert told["protocol"] == "8bit"
    (one,) = told["sets"]
    assert one["total"]["pictures"] == 4
    assert one["total"]["unsharp_gain"] > 0.1  # blur is what it is for
    assert [s["name"] for s in one["sequences"]] == ["one", "two"]
    panels = sorted(p.name for p in (tmp_path / "look").iterdir())
    assert panels == ["gopro-one-000001.png", "gopro-two-000001.png"]
    assert to_picture(read_rgb(tmp_path / "look" / panels[0])).shape == (72, 3 * 48 + 12, 3)
    rows = run(capsys, "--pairs", data, "--baseline", "--rows", "picture", "--limit", 3)
    assert [line.split()[0] for line in rows.splitlines()[1:5]] == [
        "one/000001", "one/000002", "two/000001", "gopro,",
    ]  # fmt: skip
    assert "gain" not in rows.splitlines()[0]
    run(capsys, "--pairs", data, "--baseline", "--limit", 1, "--panels", tmp_path / "two")
    two = to_picture(read_rgb(tmp_path / "two" / "gopro-one-000001.png"))
    assert two.shape == (72, 2 * 48 + 6, 3)
    yellow = (two == (255, 220, 0)).all(axis=2)  # the place that is enlarged below
    assert yellow[:36, :48].any()
    assert not yellow[36:].any()
    straight = json.loads(run(capsys, "--pairs", data, "--baseline", "--json", "-", "--every", 3))
    assert [s["name"] for s in straight["sets"][0]["scores"]] == ["000001", "000002"]


@pytest.mark.parametrize("form", ["one/{}", "one-{}", "one_{}", "{}_deblurred"])
def test_outputs_that_exist_are_found_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    data = gopro(tmp_path / "data", ("one",))
    for number in range(2):
        name = form.format(f"{number + 1:06d}")
        write_png(tmp_path / "done" / f"{name}.png", sharp_picture(number))
    shown = run(capsys, "--pairs", data, "--restored", tmp_path / "done", "--rows", "total")
    assert shown.splitlines()[1].split()[3:5] == ["inf", "+inf"]
    missing = f"{form.format('000002')}.png"
    (tmp_path / "done" / missing).unlink()
    said = refused(capsys, "--pairs", data, "--restored", tmp_path / "done")
    assert "no restored picture for" in said
    assert "000002.png" in said


def test_two_folders_are_paired_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        write_png(tmp_path / "a" / f"{number}.png", blurred_picture(number))
        write_png(tmp_path / "b" / f"{number}.png", sharp_picture(number))
    told = json.loads(
        run(capsys, "--pairs", tmp_path / "a", tmp_path / "b", "--baseline", "--json", "-")
    )
    expected = np.mean([psnr(blurred_picture(n), sharp_picture(n)) for n in range(3)])
    assert told["sets"][0]["total"]["psnr_blurred"] == pytest.approx(expected, abs=1e-5)
    (tmp_path / "b" / "1.png").unlink()
    said = refused(capsys, "--pairs", tmp_path / "a", tmp_path / "b", "--baseline")
    assert "1.png has no sharp partner" in said


def film(path: Path, pictures: list[Array], matrix: int = 1, pix_fmt: str = "yuv444p") -> Path:
    """A lossless video; matrix is 1 for BT.709 and 5 for BT.601."""
    space = {1: "ITU709", 5: "ITU601"}[matrix]
    frames = [
        av.VideoFrame.from_ndarray(p, "rgb24").reformat(format=pix_fmt, dst_colorspace=space)
        for p in pictures
    ]
    return write_frames(path, frames, colour=(1, matrix, matrix, matrix))


def test_videos_are_scored_in_their_own_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sharp = [sharp_picture(n) for n in range(4)]
    film(tmp_path / "blurred.mkv", [blurred_picture(n) for n in range(4)], 5)
    film(tmp_path / "sharp.mkv", sharp, 1)
    film(tmp_path / "restored.mkv", sharp, 5)
    pairs = "--pairs", tmp_path / "blurred.mkv", tmp_path / "sharp.mkv"
    done = "--restored", tmp_path / "restored.mkv"
    told = json.loads(run(capsys, *pairs, *done, "--json", "-"))
    total = told["sets"][0]["total"]
    expected = np.mean([psnr(blurred_picture(n), sharp[n]) for n in range(4)])
    assert total["pictures"] == 4
    assert total["psnr_blurred"] == pytest.approx(expected, abs=0.1)
    assert total["psnr_restored"] > 45  # the same colours, in another matrix
    steady = told["sets"][0]["temporal"]["blurred"]
    assert steady["warp_restored"] == pytest.approx(steady["warp_sharp"], rel=0.05)
    assert "warp_blurred" not in json.dumps(
        json.loads(run(capsys, *pairs, *done, "--no-temporal", "--json", "-"))
    )
    film(tmp_path / "short.mkv", sharp[:3])
    said = refused(
        capsys, "--pairs", tmp_path / "blurred.mkv", tmp_path / "short.mkv", "--baseline"
    )
    assert "blurred.mkv has 4 frames" in said
    assert "short.mkv has 3 frames" in said


def test_a_video_is_restored_in_its_planes(tmp_path: Path) -> None:
    blurred = film(tmp_path / "b.mkv", [blurred_picture(n) for n in range(3)], pix_fmt="yuv420p")
    pairs = open_pairs([blurred, film(tmp_path / "s.mkv", [sharp_picture(n) for n in range(3)])])
    seen = evaluate(pairs, Deblurrer(Add(0.04), device="cpu"), batch=2)
    source = [pair.blurred for pair in pairs]
    sharp = [pair.sharp for pair in pairs]
    for score, a, b in zip(seen.pictures, source, sharp, strict=True):
        # 0.04 of gray is 8.76 codes of limited-range luma: 9 are added, which is 10.5 levels.
        restored = to_picture(a + 9 / 219)
        assert score.values["psnr_restored"] == pytest.approx(
            psnr(restored, to_picture(b)), abs=0.02
        )


def test_fields_of_interlaced_video_are_read_apart(tmp_path: Path) -> None:
    rows = np.arange(HEIGHT)[:, None, None] % 2
    combed = (rows * sharp_picture(0) + (1 - rows) * sharp_picture(8)).astype(np.uint8)
    plain, woven = film(tmp_path / "p.mkv", [combed]), film(tmp_path / "w.mkv", [combed])
    with VideoReader(plain) as a, VideoReader(woven) as b:
        frame, other = next(iter(a)), next(iter(b))
    other.layout = replace(other.layout, interlaced=True)
    difference = (frame_to_rgb(frame) - frame_to_rgb(other)).abs()
    assert float(difference.max()) < 1e-5  # 4:4:4: each row keeps its own colours either way
    assert frame_to_rgb(other).shape == (1, 3, HEIGHT, WIDTH)


def test_flicker_of_a_restoration_is_seen(tmp_path: Path) -> None:
    still = [sharp_picture(0)] * 6
    film(tmp_path / "source.mkv", [blurred_picture(0)] * 6)
    film(tmp_path / "sharp.mkv", still)
    film(tmp_path / "blinking.mkv", [p // 2 + np.uint8(20 * (n % 2)) for n, p in enumerate(still)])
    pairs = open_pairs(
        [tmp_path / "source.mkv", tmp_path / "sharp.mkv"], restored=tmp_path / "blinking.mkv"
    )
    (steady,) = evaluate(pairs).temporal.values()
    assert steady["flicker_blurred"] == pytest.approx(0, abs=0.01)
    assert steady["flicker_sharp"] == pytest.approx(0, abs=0.01)
    assert steady["flicker_restored"] == pytest.approx(20, abs=1.5)
    assert steady["unrest_restored"] == pytest.approx(20, abs=1.5)
    assert steady["warp_restored"] == pytest.approx(20, abs=1.5)


def test_detail_that_is_back_is_no_flicker_of_the_error(tmp_path: Path) -> None:
    """A grainy film, restored to the truth: as it is sharp, it flickers more than its source."""
    grain = np.random.default_rng(2).integers(-20, 21, (6, HEIGHT, WIDTH, 3))
    sharp = [(sharp_picture(0) + grain[n]).clip(0, 255).astype(np.uint8) for n in range(6)]
    means = [np.mean([np.roll(p, k, axis=1) for k in range(-2, 3)], axis=0) for p in sharp]
    film(tmp_path / "source.mkv", [mean.astype(np.uint8) for mean in means])
    film(tmp_path / "sharp.mkv", sharp)
    pairs = open_pairs([tmp_path / "source.mkv", tmp_path / "sharp.mkv"],
                       restored=tmp_path / "sharp.mkv")  # fmt: skip
    (found,) = evaluate(pairs).temporal.values()
    assert found["flicker_ratio"] > 1
    assert found["unrest_blurred"] > 0
    assert found["unrest_restored"] == 0
    assert "unrest_sharp" not in found


def test_what_cannot_be_scored_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = gopro(tmp_path / "data", ("one",))
    assert "does not exist" in refused(capsys, "--pairs", tmp_path / "nothing")
    picture = data / "test" / "one" / "blur" / "000001.png"
    assert "is one file: give the sharp one too" in refused(capsys, "--pairs", picture)
    assert "two folders, or two files" in refused(capsys, "--pairs", picture, data)
    assert "3 paths for one set" in refused(capsys, "--pairs", data, data, data)
    assert "give one for each" in refused(
        capsys, "--pairs", data, "--pairs", data, "--restored", data
    )
    assert "leave --every out" in refused(
        capsys, "--pairs", data, "--baseline", "--temporal", "--every", 2
    )
    assert "every is 0" in refused(capsys, "--pairs", data, "--baseline", "--every", 0)
    assert "give one with --model" in refused(capsys, "--pairs", data, "--baseline", "--sharp")
    write_png(picture, blurred_picture(0)[:30])
    said = refused(capsys, "--pairs", data, "--baseline")
    assert "one/000001: the blurred picture is 48×30, the sharp picture is 48×36" in said
    picture.write_bytes(b"no picture")
    assert "could be decoded: the file is damaged" in refused(capsys, "--pairs", data, "--baseline")


def test_lpips_is_asked_of_its_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gopro(tmp_path / "data", ("one",), 1)
    arguments = ("--pairs", data, "--baseline", "--lpips")
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert "pip install 'vdeblur[eval]'" in refused(capsys, *arguments)

    class Distance(nn.Module):
        """In place of the learned one: the mean difference of values in −1…1."""

        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == "alex"

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean()

    package: Any = types.ModuleType("lpips")
    package.LPIPS = Distance
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "AlexNet's weights" in refused(capsys, *arguments)
    weights = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    told = json.loads(run(capsys, *arguments, "--json", "-"))
    difference = np.abs(blurred_picture(0).astype(float) - sharp_picture(0)).mean() / 127.5
    assert told["sets"][0]["total"]["lpips_blurred"] == pytest.approx(difference, abs=1e-5)


def test_a_torchvision_of_another_torch_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "lpips.py"
    package.parent.mkdir()
    package.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)
    data = gopro(tmp_path / "data", ("one",), 1)
    said = refused(capsys, "--pairs", data, "--baseline", "--lpips")
    assert f"a torchvision that was built for torch {torch.__version__}" in said
    assert said.count("\n") == 1


def test_results_are_not_written_over_nor_into_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--pairs", gopro(tmp_path / "data", ("one",), 1), "--baseline"]
    for option in ("--csv", "--json"):
        taken = tmp_path / "mine"
        taken.write_text("mine")
        assert "use --force to replace it" in refused(capsys, *base, option, taken)
        assert taken.read_text() == "mine"
        nowhere = tmp_path / "none" / "deep" / "s"
        assert "none/deep does not exist: create it" in refused(capsys, *base, option, nowhere)
        assert "is a folder" in refused(capsys, *base, option, tmp_path)
        run(capsys, *base, option, taken, "--force")
        assert "000001" in taken.read_text()
    assert not (tmp_path / "none").exists()
    assert "both go to x" in refused(capsys, *base, "--csv", "x", "--json", "x")
    assert run(capsys, *base, "--csv", "-").splitlines()[0] == (
        "set,sequence,name,psnr_blurred,ssim_blurred"
    )
    look = tmp_path / "look"
    run(capsys, *base, "--panels", look)
    assert "has pictures in it already" in refused(capsys, *base, "--panels", look)
    run(capsys, *base, "--panels", look, "--force")
    assert "is a file" in refused(capsys, *base, "--panels", taken)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--restored", "DATA", "--model", "identity"], "leave --model out"),
        (["--restored", "DATA", "--tile", "256"], "leave --tile out"),
        (["--baseline", "--weights", "x.pkl"], "leave --weights out"),
        (["--baseline", "--panel-count", "3"], "--panel-count is for --panels"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gopro(tmp_path / "data", ("one",), 1)
    words = [str(data) if word == "DATA" else word for word in options]
    assert main(["eval", "--pairs", str(data), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_split_is_for_what_has_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = gopro(tmp_path / "data", ("one",), 1)
    plain = data / "test" / "one"
    assert "has no splits" in refused(capsys, "--pairs", plain, "--baseline", "--split", "test")
    two = "--pairs", plain / "blur", plain / "sharp", "--baseline"
    assert "leave it out" in refused(capsys, *two, "--split", "test")
    assert "leave it out" in refused(capsys, *two, "--layout", "gopro")
    assert "000001" in run(capsys, "--pairs", data, "--baseline", "--split", "test")


@pytest.mark.parametrize("kind", ["pictures", "video"])
def test_unsound_results_are_said_and_not_called_done(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "video":
        pair = [tmp_path / "b.mkv", tmp_path / "s.mkv"]
        film(pair[0], [blurred_picture(n) for n in range(2)])
        film(pair[1], [sharp_picture(n) for n in range(2)])
    else:
        pair = [gopro(tmp_path / "data", ("one",))]
    monkeypatch.setattr(NetworkPass, "_tiled", lambda self, rgb, tile: rgb[:, :3] * math.nan)
    words = ["--pairs", *map(str, pair), "--device", "cpu", "--backend", "torch"]
    assert main(["eval", *words, "--json", str(tmp_path / "s.json"), "--quiet"]) == 3
    assert "2 pictures were scored as they came" in capsys.readouterr().err
    (told,) = json.loads((tmp_path / "s.json").read_text())["sets"]
    assert told["unsound"] == 2
    assert told["total"]["psnr_gain"] == 0


def test_a_picture_that_the_network_leaves_alone_is_not_unsound(tmp_path: Path) -> None:
    pairs = open_pairs([gopro(tmp_path, ("one",))])
    scores = evaluate(pairs, Deblurrer(Add(0.0), device="cpu"), options=EvalOptions(sharp=True))
    assert scores.unsound == 0
    assert scores.total.values["sharp_kept"] == math.inf


def test_lettering_and_the_largest_change() -> None:
    line = lettering("Wi.", 20)
    assert line.shape[0] == 20
    assert line.max() > 0.9
    wide, narrow = (lettering(letter, 20).shape[1] for letter in "Wi")
    assert wide > 2 * narrow
    assert np.array_equal(lettering("é", 20), lettering("?", 20))
    assert lettering("", 20).shape[0] == 20
    assert not lettering("", 20).any()
    cover, white = label("a long name that does not fit", 20, 60)
    assert cover.shape == white.shape == (20, 60)
    a = torch.zeros(1, 3, 20, 30)
    b = a.clone()
    b[..., 11:14, 21:25] = 1
    top, left = largest_change(a, b, (5, 6))
    assert top <= 11 <= 14 <= top + 5
    assert left <= 21 <= 25 <= left + 6


def test_panels_without_pillow_have_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["--pairs", gopro(tmp_path / "data", ("one",), 1), "--baseline", "--panels"]
    run(capsys, *base, tmp_path / "with")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["eval", *map(str, base), str(tmp_path / "without"), "--quiet"]) == 0
    assert "data: panels: labels are left out" in capsys.readouterr().err
    labelled, plain = (
        to_picture(read_rgb(tmp_path / name / "data-one-000001.png"))
        for name in ("with", "without")
    )
    changed = (labelled != plain).any(axis=2)
    assert changed[:12, :48].any()
    assert not changed[12:].any()


def test_a_picture_comes_back_from_its_png(tmp_path: Path) -> None:
    picture = sharp_picture(3)
    write_png(tmp_path / "new" / "a.png", picture)
    assert np.array_equal(to_picture(read_rgb(tmp_path / "new" / "a.png")), picture)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    with pytest.raises(InputError, match="does not exist"):
        read_rgb(tmp_path / "b.png")


# -- motion, the page, and lengths of blur ---------------------------------------------------------


class Told:
    """A guided network that leaves pictures as they are, and keeps what it was told."""

    guided = True
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.motions: list[NDArray[np.float32] | None] = []

    def restore_planes(
        self,
        planes: list[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Any = None,
    ) -> tuple[list[Tensor], Tensor]:
        count = len(planes[0])
        self.motions += [None] * count if motion is None else list(motion.numpy())
        return planes, torch.zeros(count, dtype=torch.bool)

    def __call__(self, images: Tensor, motion: Tensor | None = None) -> Tensor:
        self.motions += [None] * len(images)
        return images


def panned(folder: Path, count: int = 6, step: int = 4) -> list[Path]:
    """A blurred and a sharp video of texture that moves left by `step` pixels a frame."""
    rng = np.random.default_rng(5)
    texture = rng.normal(0, 1, (128, 256 + step * count))
    for axis in (0, 1):
        for _ in range(3):
            texture = (texture + np.roll(texture, 1, axis)) / 2
    texture = np.clip(128 + 220 * texture, 0, 255)
    wide = np.repeat(texture[..., None], 3, 2)

    def view(offset: int) -> Array:
        cut: Array = wide[:, offset : offset + 192].astype(np.uint8)
        return cut

    sharp = [view(step * n + 2) for n in range(count)]
    means = [np.mean([view(step * n + k) for k in (1, 2, 3)], axis=0) for n in range(count)]
    blurred = [mean.astype(np.uint8) for mean in means]
    return [film(folder / "blurred.mkv", blurred), film(folder / "sharp.mkv", sharp)]


def test_videos_are_restored_along_their_motion(tmp_path: Path) -> None:
    pairs = open_pairs(panned(tmp_path))
    network: Any = Told()
    scores = evaluate(pairs, network, options=EvalOptions(exposure="0.5", temporal=False), batch=4)
    assert [score.values["psnr_gain"] for score in scores.pictures] == [0] * 6
    assert len(network.motions) == 6
    for motion in network.motions:
        assert motion is not None
        assert np.median(motion[0]) == pytest.approx(-2, abs=0.3)  # half of the way to the next
        assert abs(np.median(motion[1])) < 0.3
    every = Told()
    told: Any = every
    evaluate(pairs, told, options=EvalOptions(exposure="0.25", every=3, sharp=True))
    assert len(every.motions) == 4  # frames 1 and 4, blurred and sharp
    for moved in every.motions:
        assert moved is not None
        # Of neighbours, not of the frames that are scored.
        assert np.median(moved[0]) == pytest.approx(-1, abs=0.2)
    blind: Any = Told()
    evaluate(pairs, blind, options=EvalOptions(estimate=False, temporal=False))
    assert blind.motions == [None] * 6
    stills: Any = Told()
    evaluate(open_pairs([gopro(tmp_path / "stills", ("one",))]), stills)
    assert set(stills.motions) == {None}
    unguided: Any = Told()
    unguided.guided = False
    evaluate(pairs, unguided, options=EvalOptions(temporal=False))
    assert unguided.motions == [None] * 6


def test_an_exposure_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gopro(tmp_path / "data", ("one",), 1)
    said = refused(capsys, "--pairs", data, "--model", "identity", "--exposure", "long")
    assert "exposure is 'long'" in said
    said = refused(capsys, "--pairs", data, "--baseline", "--exposure", "0.5")
    assert "--exposure is for a network" in said
    assert "--lengths is for a network" in refused(
        capsys, "--pairs", data, "--baseline", "--lengths"
    )


def test_a_pan_is_blurred_along_the_motion_it_tells() -> None:
    rng = np.random.default_rng(3)
    picture = torch.from_numpy(rng.uniform(0, 1, (1, 3, 80, 120)).astype(np.float32))
    photograph = F.interpolate(picture, (480, 720), mode="bicubic").clamp(0, 1)
    found = list(pans([("one", lambda: photograph)], 8, motion=True))
    assert [(pair.sequence, pair.name) for pair in found] == [("one", str(n)) for n in (1, 2, 3)]
    for pair in found:
        assert pair.frame is not None
        assert pair.frame.motion is not None
        motion = torch.from_numpy(pair.frame.motion[:, 0, 0])
        assert float(motion[:2].norm()) == pytest.approx(8, rel=0.05)
        light = pair.sharp**2.2
        total = torch.zeros_like(light)
        for s in np.linspace(-0.5, 0.5, 33)[1::2]:
            way = -(motion[:2] * s + motion[2:] * s * s).view(1, 2, 1, 1)
            total += warp(light, way.expand(1, 2, *light.shape[2:])) / 16
        made = to_picture(total ** (1 / 2.2))[16:-16, 16:-16]
        blurred = to_picture(pair.blurred)[16:-16, 16:-16]
        assert psnr(made, blurred) > psnr(to_picture(pair.sharp)[16:-16, 16:-16], blurred) + 12
    unknown = list(pans([("one", lambda: photograph)], 8, motion=False))
    assert all(pair.frame is not None and pair.frame.motion is None for pair in unknown)
    assert torch.equal(unknown[1].blurred, found[1].blurred)
    # The motion points to the next frame.
    (first, second), way = found[:2], found[0].frame.motion  # type: ignore[union-attr]
    assert way is not None
    right, down = (int(np.round(v / SHUTTER)) for v in way[:2, 0, 0])
    here, there = first.sharp[0, :, 60:-60, 60:-60], second.sharp[0]
    rows, columns = here.shape[1:]
    assert (
        psnr(
            to_picture(here[None]),
            to_picture(there[None, :, 60 + down :, 60 + right :][..., :rows, :columns]),
        )
        > 20
    )
    with pytest.raises(InputError, match="is 120×80: a pan with 32 pixels of blur needs"):
        list(pans([("small", lambda: picture)], 32, motion=False))


def test_gain_by_length_of_blur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = gopro(tmp_path / "data", ("one",), 1)
    base = ["--pairs", data, "--model", "identity", "--lengths"]
    assert "give larger photographs" in refused(capsys, *base)  # the pairs' own are 48×36
    assert "is not a folder" in refused(capsys, *base, tmp_path / "none")
    photos = tmp_path / "photos"
    wide = np.tile(sharp_picture(0), (7, 7, 1))
    write_png(photos / "a.png", wide)
    shown = run(capsys, *base, photos, "--json", tmp_path / "s.json")
    lines = [line.split() for line in shown.splitlines() if " px " in line]
    assert [line[0] for line in lines] == ["2", "4", "8", "16", "32"]
    assert all(line[-1] == "+0.00" for line in lines)
    assert float(lines[0][2]) > float(lines[4][2]) + 3
    told = json.loads((tmp_path / "s.json").read_text())["by_length"]
    assert told["8"]["gain"]["total"]["pictures"] == 3


class Page(HTMLParser):
    """Of a page: its pictures, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.sources.append(values["src"] or "")
        self.links += [v or "" for k, v in attrs if k in ("href", "src") and tag != "img"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_one_page_with_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gopro(tmp_path / "a & b", ("one",), 3)
    rough = data / "test" / "one" / "blur" / "000002.png"
    write_png(rough, 255 - blurred_picture(1))  # the worst by far
    report = tmp_path / "page.html"
    base = ["--pairs", data, "--model", "identity", "--sharp"]
    run(capsys, *base, "--report", report)
    page = Page(report.read_text(encoding="utf-8"))
    assert page.links == []  # it needs nothing else
    assert "a & b" in page.text
    assert "worst: one/000002, gain +0.00 dB" not in page.text  # identity: all gain nothing
    assert len(page.sources) == 6
    crops = []
    for number, source in enumerate(page.sources):
        kind, _, code = source.partition(",")
        assert kind == "data:image/png;base64"
        path = tmp_path / f"{number}.png"
        path.write_bytes(base64.b64decode(code))
        crops.append(to_picture(read_rgb(path)))
    # Pictures that are smaller than the place are shown whole, as they are.
    assert np.array_equal(crops[2], sharp_picture(0))
    assert np.array_equal(crops[0], crops[1])
    assert "use --force to replace it" in refused(capsys, *base, "--report", report)
    assert "both go to" in refused(capsys, *base, "--report", report, "--json", report)
    run(capsys, "--pairs", data, "--baseline", "--report", report, "--force")
    page = Page(report.read_text(encoding="utf-8"))
    assert len(page.sources) == 4  # blurred and sharp
    worst = psnr(255 - blurred_picture(1), sharp_picture(1))
    assert f"worst: one/000002blurred, {worst:.2f} dB" in page.text.replace("\n", "")


def test_a_gallery_keeps_the_worst_and_the_middle() -> None:
    gallery = Gallery()
    scores = []
    gains = [math.sin(n * 1.7) * n for n in range(200)] + [-math.inf]
    for number, gain in enumerate(gains):
        shade = torch.full((1, 3, 12, 16), number / 255)
        score = PairScore("", str(number), {"psnr_blurred": 20.0, "psnr_gain": gain})
        scores.append(score)
        gallery.look(score, shade, shade, torch.zeros(1, 3, 12, 16))
    assert gallery.worst is not None
    assert gallery.worst.score.name == "200"
    assert gallery.worst.crops["restored"][0, 0, 0] == 200
    middle = gallery.median(scores)
    assert middle is not None
    below = sum(gain < middle.score.values["psnr_gain"] for gain in gains)
    assert 85 < below < 115
    assert len(gallery._some) <= 33


def test_pairs_that_are_no_files_are_refused_without_waiting(tmp_path: Path) -> None:
    address = Path("rtsp://user:secret@host/a.mp4")
    film = tmp_path / "a.mp4"
    film.write_bytes(b"film")
    for refused_call in (
        lambda: open_pairs([address, film]),
        lambda: average_video(address, tmp_path / "out"),
        lambda: find_pairs(address),
    ):
        with pytest.raises(InputError, match="is an address") as caught:
            refused_call()
        assert "secret" not in str(caught.value)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(InputError, match="is a pipe"):
            open_pairs([tmp_path / "pipe.mp4", film])
