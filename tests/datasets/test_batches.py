"""Folders of pairs in their layouts, batches by seed and number alone, and `vdeblur data`."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.helpers.clips import write_frames
from vdeblur.cli.main import main
from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.average import (
    AverageOptions,
    average,
    average_video,
    blur_measure,
    response_table,
)
from vdeblur.datasets.batches import LENGTHS, Course, DataOptions
from vdeblur.datasets.blur_options import PURE, BlurOptions
from vdeblur.datasets.camera_motion import Motion
from vdeblur.datasets.folder_pairs import FolderPairs
from vdeblur.datasets.layouts import LAYOUTS, PairFiles, find_pairs, picture_files, recognise
from vdeblur.datasets.motion_errors import MotionErrors
from vdeblur.datasets.path_blur import camera_blur
from vdeblur.datasets.pictures import load_picture
from vdeblur.datasets.pool import Batch, Pool, PoolOptions
from vdeblur.datasets.synthetic_pairs import VALIDATION, SyntheticPairs
from vdeblur.datasets.training_data import open_data
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.evaluation.check_pairs import check_folder, grey, light_gamma, shift_between
from vdeblur.networks import build as build_network
from vdeblur.training.options import Callbacks
from vdeblur.training.recipes import recipe_of
from vdeblur.training.trainer import train

Picture = NDArray[np.uint8]


def scenery(width: int = 120, height: int = 90, seed: int = 0, *, hard: bool = False) -> Picture:
    """Coarse cells of colour, enlarged: with soft edges, or hard ones."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 6, width // 6, 3), np.uint8)
    way = Image.Resampling.NEAREST if hard else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(cells).resize((width, height), way))


def put(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scenery(*size, seed=seed)).save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        size = (40, 30) if number == 2 else (120, 90)  # one is smaller than the crop
        put(folder / f"{number}.png", size, number)
    return folder


# --- layouts -------------------------------------------------------------------------------------


def build(root: Path, layout: str) -> None:
    """A data set of two training pairs, and one or two to test on, in a layout."""
    if layout in ("gopro", "gopro-gamma"):
        for where in ("train/GOPR0372_07_00", "train/GOPR0372_07_01", "test/GOPR0384_11_00"):
            for kind in ("blur", "blur_gamma", "sharp"):
                put(root / where / kind / "000047.png")
    elif layout == "reds":
        for split, name in (("train", "000"), ("train", "001"), ("val", "000")):
            for kind in ("blur", "sharp"):
                put(root / split / f"{split}_{kind}" / name / "00000000.png")
    elif layout == "hide":
        for name in ("train/1.png", "train/2.png", "test/test-close-ups/3.png"):
            put(root / name)
            put(root / "GT" / Path(name).name)
        put(root / "test" / "test-long-shot" / "4.png")
        put(root / "GT" / "4.png")
    elif layout == "realblur":
        base = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
        for split, scenes in (("train", (1, 2)), ("test", (3,))):
            lines = []
            for scene in scenes:
                names = [f"{base}/scene{scene:03}/{k}/{k}_1.png" for k in ("gt", "blur")]
                for name in names:
                    put(root / name)
                lines.append(" ".join(names))
            (root / f"RealBlur_J_{split}_list.txt").write_text("\n".join(lines) + "\n")
            # The other camera's lists come along, without its pictures.
            (root / f"RealBlur_R_{split}_list.txt").write_text(
                "RealBlur-R/gt/1.png RealBlur-R/b.png"
            )
    elif layout == "dvd":
        for name in ("IMG_0001", "IMG_0055", "IMG_0030"):
            for kind in ("input", "GT"):
                put(root / "quantitative_datasets" / name / kind / "00000.jpg")
    elif layout == "bsd":
        for where in ("train/000", "train/001", "valid/002", "test/003"):
            for kind in ("Blur", "Sharp"):
                put(root / where / kind / "RGB" / "00000000.png")
    else:
        for where in ("train", "test"):
            for kind in ("blur", "sharp"):
                put(root / where / kind / "a.png")
        for kind in ("blur", "sharp"):
            put(root / "train" / kind / "b.png")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    build(tmp_path, layout)
    found = recognise(tmp_path)
    assert found.name == ("gopro" if layout == "gopro-gamma" else layout)
    pairs = find_pairs(tmp_path, layout=layout)
    assert len(pairs) == 2
    for pair in pairs:
        assert pair.blurred != pair.sharp
        assert {pair.blurred.is_file(), pair.sharp.is_file()} == {True}
        words = {part.lower() for part in pair.sharp.parts}
        assert words & {"sharp", "gt", "train_sharp"}
        assert not words & {"blur", "train_blur", "input"}
    if layout == "gopro-gamma":
        assert {p.blurred.parent.name for p in pairs} == {"blur_gamma"}
    if layout not in ("hide", "plain"):
        assert len({pair.sequence for pair in pairs}) == 2
    assert find_pairs(tmp_path, layout=layout, split=found.validation() or "")
    with pytest.raises(InputError, match="no pairs of a split 'none'"):
        find_pairs(tmp_path, layout=layout, split="none")


def test_splits_of_known_data_sets(tmp_path: Path) -> None:
    build(tmp_path / "dvd", "dvd")
    (pair,) = find_pairs(tmp_path / "dvd", split="test")
    assert pair.sequence.endswith("IMG_0030")
    build(tmp_path / "bsd", "bsd")
    assert list(recognise(tmp_path / "bsd").splits) == ["train", "val", "test"]
    build(tmp_path / "hide", "hide")
    assert [p.sequence for p in find_pairs(tmp_path / "hide", split="test")] == [
        "test-close-ups",
        "test-long-shot",
    ]
    (tmp_path / "hide" / "test-far.txt").write_text("test/test-long-shot/4.png 1 2 3 4\n")
    assert [p.blurred.name for p in find_pairs(tmp_path / "hide", split="test")] == ["4.png"]


def test_other_ways_to_lay_pairs_out(tmp_path: Path) -> None:
    # A split's own folder; a nested archive; the folder names of image restoration in general.
    build(tmp_path / "gopro", "gopro")
    assert len(find_pairs(tmp_path / "gopro" / "train", split="test")) == 2
    for kind in ("blur", "sharp"):
        put(
            tmp_path / "reds" / f"train_{kind}" / "train" / f"train_{kind}" / "007" / "00000001.png"
        )
    (pair,) = find_pairs(tmp_path / "reds")
    assert (recognise(tmp_path / "reds").name, pair.sequence) == ("reds", "007")
    for number, (b, s) in enumerate((("input", "target"), ("lq", "gt"), ("blurry", "sharp"))):
        put(tmp_path / str(number) / b / "x" / "1_blur.png")
        put(tmp_path / str(number) / s / "x" / "1_sharp.jpg")
        (pair,) = find_pairs(tmp_path / str(number))
        assert (pair.sharp.name, pair.sequence) == ("1_sharp.jpg", "x")
    (again,) = find_pairs(tmp_path / "2", layout="plain")
    assert (again.blurred, again.sharp) == (pair.blurred, pair.sharp)


def test_folders_that_are_none(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        find_pairs(tmp_path / "none")
    with pytest.raises(InputError, match=r"no pairs found .* expected blur/ and sharp/"):
        find_pairs(photos)
    with pytest.raises(InputError, match="no the layout reds found"):
        find_pairs(photos, layout="reds")
    with pytest.raises(UsageError, match="none of auto, gopro"):
        find_pairs(photos, layout="gopros")
    put(tmp_path / "blur" / "a.png")
    (tmp_path / "sharp").mkdir()
    with pytest.raises(InputError, match=r"a\.png has no sharp partner: expected .*sharp/a\.png"):
        find_pairs(tmp_path)
    build(tmp_path / "rb", "realblur")
    next((tmp_path / "rb").rglob("scene001/blur/*.png")).unlink()
    with pytest.raises(InputError, match="has no blurred partner"):
        find_pairs(tmp_path / "rb")


# --- batches -------------------------------------------------------------------------------------


def take(batches: object, count: int) -> list[Batch]:
    assert isinstance(batches, Iterator) or hasattr(batches, "__iter__")
    return list(itertools.islice(iter(batches), count))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        x is y is None or (x is not None and y is not None and torch.equal(x, y))
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p, q, strict=True)
    )


def test_photographs(photos: Path, tmp_path: Path) -> None:
    files = picture_files(photos)
    assert [file.name for file in files] == ["0.png", "1.png", "2.png", "3.png"]
    assert load_picture(files[0]).shape == (90, 120, 3)
    runs = [
        take(SyntheticPairs(files, DataOptions(batch=2, crop=32, margin=8, seed=seed)), 3)
        for seed in (0, 0, 1)
    ]
    for blurred, target, motion, _ in runs[0]:
        assert blurred.shape == target.shape == (2, 3, 32, 32)
        assert blurred.dtype == target.dtype == torch.uint8
        assert motion is not None
        assert motion.shape == (2, 4, 8, 8)
    assert equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert not torch.equal(runs[0][0][0], runs[0][1][0])
    with pytest.raises(InputError, match="no pictures"):
        picture_files(tmp_path)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"a\.png cannot be read as a picture"):
        load_picture(tmp_path / "a.png")


@pytest.fixture(params=["photographs", "pool", "pairs"])
def opened(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Callable[[], object]:
    if request.param == "photographs":
        return lambda: open_data(f"synth:{photos}", DataOptions(batch=2, crop=24, seed=3))
    if request.param == "pool":  # of three batches each
        pool = PoolOptions(reuse=2, pairs=3)
        return lambda: open_data(
            f"synth:{photos}", DataOptions(batch=2, crop=24, seed=3, pool=pool)
        )
    for number in range(5):
        put(tmp_path / "blur" / f"{number}.png", seed=number)
        put(tmp_path / "sharp" / f"{number}.png", seed=number + 10)
    return lambda: open_data(tmp_path, DataOptions(batch=2, crop=24, seed=3))


def test_a_batch_depends_on_seed_and_number_alone(opened: Callable[[], object]) -> None:
    data = opened()
    assert isinstance(data, SyntheticPairs | FolderPairs)
    whole = take(data.feed()(0), 5)
    again = opened()
    assert isinstance(again, SyntheticPairs | FolderPairs)
    assert equal(take(again.feed()(3), 2), whole[3:])  # a resumed run
    assert equal(take(again.feed(workers=2)(1), 3), whole[1:4])  # two loading processes
    halves = [take(again.feed(shard=(part, 2))(0), 2) for part in (0, 1)]
    assert halves[0][0][0].shape == (1, 3, 24, 24)
    assert not torch.equal(halves[0][0][0], halves[1][0][0])
    if isinstance(data, FolderPairs):
        joined = [
            Batch(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
            for a, b in zip(*halves, strict=True)
        ]
        assert equal(joined, whole[:2])
    with pytest.raises(UsageError, match="shared by 3"):
        data.feed(shard=(0, 3))


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_thread_beside_training_makes_the_same_batches(photos: Path, reuse: int) -> None:
    """As for a GPU, where no process can make them."""

    def opened(in_thread: bool) -> SyntheticPairs:
        pool = PoolOptions(reuse=reuse, pairs=3)
        data = open_data(f"synth:{photos}", DataOptions(batch=2, crop=24, seed=3, pool=pool))
        assert isinstance(data, SyntheticPairs)
        assert not data.in_thread
        data.in_thread = in_thread
        return data

    whole = take(opened(False).feed()(0), 7)
    before = threading.active_count()
    batches = iter(opened(True).feed()(0))
    assert isinstance(batches, Generator)
    assert equal(take(batches, 7), whole)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
    assert equal(take(opened(True).feed()(4), 3), whole[4:])  # a resumed run


def test_the_thread_that_makes_pairs_ends_with_the_run(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(
        f"synth:{photos}", DataOptions(batch=2, crop=32, pool=PoolOptions(reuse=2, pairs=3))
    )
    assert isinstance(data, SyntheticPairs)
    data.in_thread = True
    config = {"base": 4, "blocks": 1}
    recipe = replace(recipe_of("mimo-unet-lite"), seconds=0.0, steps=9, batch=2, config=config)

    def run(**options: Any) -> None:
        network = build_network(recipe.network, config)
        train(network, data.feed(), recipe, callbacks=Callbacks(**options))

    before = threading.active_count()
    run(stop=lambda: True)
    assert threading.active_count() == before

    def interrupted() -> bool:
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop=interrupted)
    assert threading.active_count() == before

    def failing(number: int, *_: object, **__: object) -> Pool:
        if number == 1:
            raise InputError("a photograph of the second pool")
        return pool_at(number)

    pool_at = data.pool_at
    monkeypatch.setattr(data, "pool_at", failing)
    steps: list[float] = []
    with pytest.raises(InputError, match="a photograph of the second pool"):
        run(on_share=steps.append)
    assert len(steps) == 1 + 3  # those of the first pool are seen
    assert threading.active_count() == before


def test_what_changes_in_the_course_of_a_run(photos: Path) -> None:
    """Clean pairs first, and errors of the motion that grow; by steps, or as the loop says."""
    dirty = replace(PURE, max_length=0.0, noise_share=1.0, noise=0.3)
    data = open_data(
        f"synth:{photos}",
        DataOptions(
            batch=4,
            crop=24,
            blur=dirty,
            pool=PoolOptions(clean_first=1.0, clean_last=0.0),
            errors=MotionErrors(none_share=0, false_share=1, length=1, widest=2),
        ),
    )
    by_time = Course()

    def at_the_end(course: Course) -> tuple[float, float]:
        """How noisy the ninth batch is, and how far its motion."""
        batch = take(data.feed(course=course)(8), 1)[0]
        assert batch.motion is not None
        noise = (batch.blurred.float() - batch.sharp.float()).abs().mean()
        return float(noise), float(batch.motion.abs().max())

    first, late = at_the_end(Course(10**6)), at_the_end(Course(9))
    assert late[0] > 3 * first[0]
    assert late[1] != first[1]
    assert at_the_end(by_time) == pytest.approx(first, rel=1e-4)
    by_time.note(8 / 9)
    assert at_the_end(by_time) == pytest.approx(late, rel=1e-4)
    assert Course(4).at(9) == 1


def test_flat_parts_of_photographs_are_seldom_taken(tmp_path: Path) -> None:
    picture = np.full((200, 400, 3), 90, np.uint8)
    picture[:, 200:] = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    data = SyntheticPairs(
        [tmp_path / "a.png"], DataOptions(batch=64, crop=24, margin=8, reduce=(1.0, 1.0))
    )
    sharp = data.batch_at(0).sharp.float()
    flat = (sharp.amax(dim=(1, 2, 3)) - sharp.amin(dim=(1, 2, 3)) < 60).float().mean()
    assert float(flat) < 0.15  # about 0.45 of all parts are


def test_every_pair_once_an_epoch(tmp_path: Path) -> None:
    pairs = []
    for number in range(4):
        shade = np.full((32, 40, 3), 50 * number, np.uint8)
        paths = [tmp_path / f"{kind}{number}.png" for kind in "bs"]
        for path, extra in zip(paths, (0, 7), strict=True):
            Image.fromarray(shade + np.uint8(extra)).save(path)
        pairs.append(PairFiles(paths[0], paths[1]))
    data = FolderPairs(pairs, DataOptions(batch=3, crop=16))
    assert data.pairs == 4
    batches = take(data.feed()(0), 8)
    values = [int(v) for batch in batches for v in batch.blurred[:, 0, 0, 0]]
    epochs = [values[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 50, 100, 150] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1  # each in an order of its own
    assert all(bool((b.sharp == b.blurred + 7).all()) for b in batches)
    assert all(b.motion is None for b in batches)


def test_pictures_are_decoded_once_for_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("blur", "sharp"):
        for number in range(2):
            put(tmp_path / kind / f"{number}.png", seed=number)
    decoded: list[Path] = []

    def counting(path: Path) -> Picture:
        decoded.append(path)
        return load_picture(path)

    monkeypatch.setattr("vdeblur.datasets.folder_pairs.load_picture", counting)
    pairs = find_pairs(tmp_path)
    first = take(FolderPairs(pairs, DataOptions(batch=2, crop=16)).feed()(0), 6)
    assert len(decoded) == 4
    decoded.clear()
    # What does not fit is decoded again, and is the same.
    small = take(FolderPairs(pairs, DataOptions(batch=2, crop=16), cache=64 * 48 * 3).feed()(0), 6)
    assert len(decoded) > 12
    assert equal(first, small)


def test_turns_and_colours_are_those_of_both(tmp_path: Path) -> None:
    picture = torch.tensor(scenery(32, 32)).permute(2, 0, 1)
    both = torch.stack([picture, picture])
    seen = set()
    for seed in range(100):
        turned = Augment().turn(both, np.random.default_rng(seed))
        assert torch.equal(turned[0], turned[1])
        seen.add(turned.numpy().tobytes())
    assert len(seen) == 8
    plain = Augment(flips=False, rotations=False)
    assert torch.equal(plain.turn(both, np.random.default_rng(0)), both)
    strong = Augment(brightness=0.5, contrast=0.5, saturation=0.5, channels=0.5)
    values = both.float().div(255)
    changes = []
    for seed in range(12):
        coloured = strong.color(values, np.random.default_rng(seed))
        assert torch.equal(coloured[0], coloured[1])
        assert 0 <= float(coloured.min()) <= float(coloured.max()) <= 1
        changes.append(float((coloured - values).abs().mean()))
    assert min(changes) == 0
    assert max(changes) > 0.05
    assert torch.equal(plain.color(values, np.random.default_rng(0)), values)


def test_pairs_that_cannot_be_trained_on(tmp_path: Path) -> None:
    put(tmp_path / "blur" / "a.png", (64, 48))
    put(tmp_path / "sharp" / "a.png", (64, 42))
    with pytest.raises(InputError, match=r"64x48 .* 64x42: a pair must be of one size"):
        open_data(tmp_path, DataOptions(crop=16))
    put(tmp_path / "sharp" / "a.png", (64, 48))
    with pytest.raises(InputError, match="too small for crops of 64"):
        open_data(tmp_path, DataOptions(crop=64))
    for bad in ("synth:", f"synth:{tmp_path / 'none'}"):
        with pytest.raises((UsageError, InputError)):
            open_data(bad)
    put(tmp_path / "lonely" / "a.png")
    with pytest.raises(InputError, match="at least two"):
        open_data(f"synth:{tmp_path / 'lonely'}")


def test_validation_is_held_out_and_always_the_same(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png", (400, 380), number)
    data = open_data(f"synth:{tmp_path}", DataOptions(batch=1, crop=16, seed=9))
    assert isinstance(data, SyntheticPairs)
    assert len(data.pictures) == 2
    other = open_data(f"synth:{tmp_path}", DataOptions(batch=2, crop=32))
    pairs, again = data.held_out(side=64), other.held_out(side=64)
    assert pairs is not None
    assert again is not None
    assert equal([pairs], [again])
    count = 2 * len(VALIDATION)
    assert pairs[0].shape == pairs[1].shape == (count * len(LENGTHS), 3, 64, 64)
    # Every one is blurred, by about the length that is said: paths turn, and depend on the place.
    assert float((pairs[0].float() - pairs[1].float()).abs().mean(dim=(1, 2, 3)).min()) > 0.1
    assert pairs.motion is not None
    far = pairs.motion[:, :2].norm(dim=1).flatten(1).amax(dim=1).view(len(LENGTHS), count)
    for length, chords in zip(LENGTHS, far, strict=True):
        assert 0.5 * length < float(chords.median()) < 1.7 * length + 2
    build(tmp_path / "gopro", "gopro")
    aside = open_data(tmp_path / "gopro", DataOptions(crop=16)).held_out()
    assert aside is not None
    assert aside[0].shape == (1, 3, 48, 48)


# --- vdeblur data check --------------------------------------------------------------------------


def shifted(x: float, y: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    wide = torch.tensor(scenery(288, 240)).permute(2, 0, 1)[None].float()
    moved = camera_blur(wide, Motion(torch.tensor([x, y]).expand(1, 4, 2)))
    a, b = (p[0, :, 24:-24, 24:-24].mean(dim=0).numpy() for p in (wide, moved))
    return a, b


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, -1.6), (-7.25, 4.5)])
def test_shift_between_pictures(shift: tuple[float, float]) -> None:
    assert shift_between(*shifted(*shift)) == pytest.approx(shift, abs=0.1)


def test_gamma_of_the_light_that_was_averaged() -> None:
    bars = np.zeros((256, 256, 3), np.uint8) + np.uint8(40)
    bars[:, np.arange(256) // 8 % 2 == 1] = 200
    frames = np.stack([np.roll(bars, k, axis=1) for k in range(9)])
    for response, gamma in (("linear", 1.0), ("gamma:2.2", 2.2)):
        blurred = average(frames, response_table(response))
        assert light_gamma(blurred, frames[4]) == pytest.approx(gamma, abs=0.15)
    assert light_gamma(frames[4], frames[4]) is None


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(tmp_path / "gopro", "gopro")
    assert main(["data", "check", str(tmp_path / "gopro")]) == 0
    said = capsys.readouterr().out
    assert "layout gopro" in said
    assert "train: 2 pairs in 2 sequences; 2 of 64x48" in said
    assert "identical" in said
    assert "median 0.00 pixels" in said
    put(tmp_path / "gopro" / "test" / "GOPR0384_11_00" / "blur" / "000048.png")
    put(tmp_path / "gopro" / "train" / "GOPR0372_07_00" / "sharp" / "000047.png", (60, 48))
    (tmp_path / "gopro" / "train" / "GOPR0372_07_01" / "blur" / "000047.png").write_bytes(
        b"\x89PNG"
    )
    assert main(["data", "check", str(tmp_path / "gopro"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["sound"]
    train, test = report["splits"]["train"], report["splits"]["test"]
    assert "64x48" in train["mismatched"][0]
    assert "60x48" in train["mismatched"][0]
    assert "cannot be read" in train["unreadable"][0]
    assert "000048.png is missing" in test["missing"][0]
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 1
    assert "no pairs found" in capsys.readouterr().err


def test_check_measures_misalignment(tmp_path: Path) -> None:
    first, second = shifted(3.0, -1.0)
    for number in range(3):
        for kind, picture in (("sharp", first), ("blur", first if number else second)):
            path = tmp_path / kind / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    facts = check_folder(tmp_path).splits["all"]
    assert facts.shift == 0
    assert facts.measured[0].shift == pytest.approx((3.0, -1.0), abs=0.1)
    assert len(facts.identical) == 2
    assert grey(load_picture(tmp_path / "blur" / "0.png")).shape == (192, 240)


# --- vdeblur data average ------------------------------------------------------------------------


def pan(
    path: Path,
    *,
    frames: int = 30,
    step: int = 2,
    cut: int | None = None,
    still: int = 0,
    rate: int = 240,
) -> Path:
    """A video that pans over a picture; from `cut` on another one; first `still` frames alike."""
    scenes = [scenery(240, 96, seed, hard=True) for seed in (1, 2)]

    def pictures() -> Iterator[av.VideoFrame]:
        for number in range(frames):
            scene = scenes[cut is not None and number >= cut]
            x = step * max(0, number - still)
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, x : x + 96]), "rgb24")

    return write_frames(path, (f.reformat(format="bgr0") for f in pictures()), "ffv1", rate=rate)


def test_average_by_hand() -> None:
    frames = np.zeros((2, 1, 1, 3), np.uint8)
    frames[1] = 255
    assert average(frames, response_table("linear"))[0, 0, 0] == 128
    assert average(frames, response_table("gamma:2.2"))[0, 0, 0] == round(255 * 0.5 ** (1 / 2.2))
    assert average(frames, response_table("srgb"))[0, 0, 0] == 188
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)[..., None]
    assert np.array_equal(average(codes, response_table("srgb")), codes[0])  # nothing moved


def test_response_curves_of_files(tmp_path: Path) -> None:
    file = tmp_path / "curve.txt"
    file.write_text("\n".join(str(3 * (n / 255) ** 2 + 5) for n in range(256)))
    assert np.allclose(response_table(str(file)), response_table("gamma:2"))
    file.write_text("1 2 3")
    with pytest.raises(InputError, match="holds 3 numbers: a response curve is 256 rising"):
        response_table(str(file))
    file.write_text(" ".join(["1"] * 256))
    with pytest.raises(InputError, match="do not rise"):
        response_table(str(file))
    for bad in ("gamma:x", "gamma:0", "none.txt"):
        with pytest.raises(UsageError):
            response_table(bad)


def test_average_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pan(tmp_path / "ride.mkv")
    command = ["data", "average", str(source), "-o", str(tmp_path / "out"), "--frames", "7"]
    assert main(command) == 0
    assert "4 pairs, read by pyav" in capsys.readouterr().err
    folder = tmp_path / "out" / "ride"
    names = ["000003.png", "000010.png", "000017.png", "000024.png"]
    for kind in ("blur", "blur_gamma", "sharp"):
        assert [f.name for f in sorted((folder / kind).iterdir())] == names
    # The sharp picture is the middle frame, and the blurred one the mean of the seven about it.
    scene = scenery(240, 96, 1, hard=True)
    assert np.array_equal(load_picture(folder / "sharp" / names[0]), scene[:, 6:102])
    window = np.stack([scene[:, x : x + 96] for x in range(0, 14, 2)])
    expected = window.astype(float).mean(axis=0).round()
    assert np.abs(load_picture(folder / "blur" / names[0]) - expected).max() <= 1
    by_light = load_picture(folder / "blur_gamma" / names[0]).astype(float)
    assert by_light.mean() > expected.mean() + 1
    assert recognise(tmp_path / "out").name == "gopro"
    made = json.loads((folder / "made.json").read_text())
    assert made["response"] == "gamma:2.2"
    assert made["pairs"][1] == {"name": "000010", "first_frame": 7, "frames": 7}
    # Nothing is replaced without --force, and nothing unfinished is left.
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--force", "--response", "linear"]) == 0
    assert not (folder / "blur_gamma").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ride"]


def test_slow_video_is_averaged_with_a_word_of_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "average", "-o", str(tmp_path / "out"), "--frames", "7"]
    assert main([*words, str(pan(tmp_path / "slow.mkv", rate=30))]) == 0
    said = capsys.readouterr().err
    assert "slow.mkv has 30 frames a second: a mean of 7 of them spans 0.23 s" in said
    assert main([*words, str(pan(tmp_path / "fast.mkv", rate=120)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert main([*words, "x.mkv", "--seed", "-1"]) == 2


def test_windows_that_are_left_out(tmp_path: Path) -> None:
    options = AverageOptions(frames=(7, 7))
    cut = average_video(
        pan(tmp_path / "cut.mkv", cut=10, step=1), tmp_path / "out", options=options
    )
    assert (cut.pairs, dict(cut.skipped)) == (3, {"across a cut": 1})
    still = average_video(pan(tmp_path / "still.mkv", still=5), tmp_path / "out", options=options)
    assert (still.pairs, dict(still.skipped)) == (3, {"with repeated frames": 1})
    strict = AverageOptions(frames=(7, 7), max_blur=0.05)
    with pytest.raises(InputError, match=r"all windows were left out \(4 already blurred\)"):
        average_video(pan(tmp_path / "soft.mkv"), tmp_path / "out", options=strict)
    with pytest.raises(InputError, match="fewer than 7 frames"):
        average_video(pan(tmp_path / "short.mkv", frames=5), tmp_path / "out", options=options)
    assert not (tmp_path / "out" / "soft").exists()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    (tmp_path / "text.mkv").write_text("not a video")
    for name, why in (("none", "there is no video"), ("text", "not a video that can be read")):
        with pytest.raises(InputError, match=why):
            average_video(tmp_path / f"{name}.mkv", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for bad in ((8, 8), (1, 5), (9, 7)):
        with pytest.raises(UsageError):
            AverageOptions(frames=bad)
    with pytest.raises(OutputError, match="exists already"):
        average_video(tmp_path / "cut.mkv", tmp_path / "out", options=options)


def test_strides_and_random_counts(tmp_path: Path) -> None:
    source = pan(tmp_path / "ride.mkv", frames=60)
    overlapping = AverageOptions(frames=(7, 7), stride=3, response="linear")
    report = average_video(source, tmp_path / "a", options=overlapping)
    assert report.pairs == 18  # from 0, 3 … 51
    drawn = AverageOptions(frames=(7, 13), response="linear", seed=4)
    average_video(source, tmp_path / "b", options=drawn)
    counts = [p["frames"] for p in json.loads((tmp_path / "b/ride/made.json").read_text())["pairs"]]
    assert set(counts) <= {7, 9, 11, 13}
    assert len(set(counts)) > 1


def test_decord_reads_the_same_windows(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheels for this platform")
    # Grey: readers may enlarge chroma differently.
    scene = scenery(240, 96, 1, hard=True)[..., :1].repeat(3, axis=2)
    frames = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, 2 * n : 2 * n + 96]), "rgb24")
        for n in range(60)
    )
    source = write_frames(
        tmp_path / "ride.mp4",
        (f.reformat(format="yuv420p") for f in frames),
        "libx264",
        options={"crf": "4", "g": "12"},
        colour=(1, 6, 6, 6),
    )
    reports = {}
    for reader in ("decord", "pyav"):
        options = AverageOptions(frames=(7, 7), stride=22, response="linear", reader=reader)
        reports[reader] = average_video(source, tmp_path / reader, options=options)
    assert reports["decord"].reader == "decord"
    assert reports["decord"].pairs == reports["pyav"].pairs == 3
    for name in ("000003.png", "000025.png", "000047.png"):
        a, b = (load_picture(tmp_path / r / "ride" / "sharp" / name).astype(int) for r in reports)
        assert np.abs(a - b).mean() < 2.5
    options = AverageOptions(frames=(7, 7), stride=22, response="linear")
    assert average_video(source, tmp_path / "auto", options=options).reader == "decord"


def test_blur_measure_tells_blurred_from_sharp() -> None:
    picture = torch.tensor(scenery(192, 192)).permute(2, 0, 1)[None].float()
    path = torch.stack([torch.linspace(-6, 6, 64), torch.zeros(64)], dim=1)[None]
    blurred = camera_blur(picture, Motion(path)).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    assert blur_measure(blurred) > blur_measure(scenery(192, 192)) + 0.15
    assert blur_measure(np.zeros((16, 16, 3), np.uint8)) == 0


# --- vdeblur data synth --------------------------------------------------------------------------


def test_synth(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "synth", str(photos), "--crop", "32", "--count", "3", "-o"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*command, str(tmp_path / name), "--seed", seed]) == 0
    assert "3 pairs of 32 pixels" in capsys.readouterr().err
    pairs = {name: find_pairs(tmp_path / name) for name in "abc"}
    assert [len(found) for found in pairs.values()] == [3, 3, 3]
    bytes_of = {name: [p.blurred.read_bytes() for p in found] for name, found in pairs.items()}
    assert bytes_of["a"] == bytes_of["b"]
    assert bytes_of["a"] != bytes_of["c"]
    made = json.loads((tmp_path / "a" / "made.json").read_text())
    assert made["seed"] == 1
    assert made["options"]["max_length"] == BlurOptions().max_length
    assert main([*command, str(tmp_path / "a")]) == 1
    assert "is not empty" in capsys.readouterr().err
    off = [
        f"--set={key}=0"
        for key in ("noise", "jpeg_share", "h264_share", "max_length", "smear_share")
    ]
    off += [
        "--set=layer_share=0",
        "--set=varying_share=0",
        "--set=highlight_share=0",
        "--set=lights_share=0",
    ]
    assert main([*command, str(tmp_path / "a"), "--force", *off]) == 0
    for pair in find_pairs(tmp_path / "a"):
        difference = load_picture(pair.blurred).astype(int) - load_picture(pair.sharp)
        assert np.abs(difference).max() <= 1
    for bad in (["--set", "blurriness=2"], ["--set", "noise"], ["--count", "0"]):
        assert main([*command, str(tmp_path / "d"), *bad]) == 2
    assert main(["data", "synth", str(photos)]) == 2
    assert not (tmp_path / "d").exists()


def test_sheet(photos: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    words = ["data", "synth", str(photos), "--sheet", str(sheet), "--crop", "32"]
    assert main(words) == 0
    assert main(words) == 1  # it is there already
    picture = load_picture(sheet)
    assert picture.shape == (4 * (2 * 32 + 22) - 4, 6 * 36 - 4, 3)
    sharp, blurred = picture[18:50, :32].astype(int), picture[50:82, :32].astype(int)
    assert sharp.std() > 10
    assert np.abs(sharp - blurred).mean() > 1  # the first is nothing but a path
    assert (picture[:16, :80].min(axis=2) < 100).any()  # its name
    assert main(["data", "synth", str(photos), "--sheet", str(tmp_path / "a.none")]) == 1
    assert not (tmp_path / "a.none").exists()
