"""Batches depend on the seed and their number alone."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.pictures import Picture, build, put, scenery
from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.batches import LENGTHS, Course, DataOptions
from vdeblur.datasets.blur_options import PURE
from vdeblur.datasets.folder_pairs import FolderPairs
from vdeblur.datasets.layouts import PairFiles, find_pairs, picture_files
from vdeblur.datasets.motion_errors import MotionErrors
from vdeblur.datasets.pictures import load_picture
from vdeblur.datasets.pool import Batch, Pool, PoolOptions
from vdeblur.datasets.synthetic_pairs import VALIDATION, SyntheticPairs
from vdeblur.datasets.training_data import open_data
from vdeblur.errors import InputError, UsageError
from vdeblur.networks import build as build_network
from vdeblur.training.options import Callbacks
from vdeblur.training.recipes import recipe_of
from vdeblur.training.trainer import train


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
