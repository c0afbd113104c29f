"""Training with the frames around: what is seen of them, how it turns, that it is as in use."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vdeblur.datasets.batches import DataOptions
from vdeblur.datasets.blur_options import PURE, BlurOptions
from vdeblur.datasets.films import FilmOptions, filmed, with_some_left_out
from vdeblur.datasets.matching import Matched, in_processes, matched
from vdeblur.datasets.motion_errors import AS_SHOWN, BY_FLOW, EXACTLY, NO_ERRORS, with_errors
from vdeblur.datasets.pool import (
    Batch,
    Film,
    Places,
    Pool,
    PoolOptions,
    around_of,
    cut_out,
    turned_vectors,
)
from vdeblur.datasets.synthetic_blur import Around, BlurredPairs, make_pairs
from vdeblur.datasets.synthetic_pairs import SyntheticPairs
from vdeblur.datasets.training_data import open_data
from vdeblur.errors import UsageError
from vdeblur.networks import build, taps
from vdeblur.training.options import Callbacks, Outcome, RunOptions
from vdeblur.training.recipes import Recipe, from_texts, recipe_of, with_values
from vdeblur.training.state import StateFile
from vdeblur.training.trainer import train
from vdeblur.training.validation import ValidationByLength

#: All that a film shows is known.
FLOWN = FilmOptions(True, 0.0, 1.0, (2,), 0.0, 0.0, 0.0)
CHANNELS = taps.PICTURES + taps.DIRECTION_CHANNELS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes(count: int, size: int, seed: int = 5) -> Tensor:
    """Coarse and finer detail, (count, 3, size, size)."""
    out = torch.zeros(count, 3, size, size)
    for cells, weight in ((6, 0.4), (size // 12, 0.35), (size // 5, 0.25)):
        noise = torch.rand(count, 3, cells, cells, generator=seeded(seed + cells))
        out += weight * F.interpolate(noise, size=(size, size), mode="bicubic")
    return out.clamp(0, 1)


def films(
    count: int = 8, options: BlurOptions | None = None, seed: int = 0, size: int = 192
) -> BlurredPairs:
    options = options or replace(PURE, max_length=12, length_power=0.3, varying_share=0.5)
    return make_pairs(
        scenes(count, size), margin=32, options=options, generator=seeded(seed), neighbours=True
    )


def seen(pairs: BlurredPairs, options: FilmOptions = FLOWN, seed: int = 0) -> tuple[Tensor, Film]:
    return filmed(pairs, options, np.random.default_rng(seed), seeded(seed))


def around_it(pairs: BlurredPairs) -> Around:
    assert pairs.around is not None
    return pairs.around


# --- the frames themselves -----------------------------------------------------------------------


def test_frames_around_show_the_same_scene_on_its_way() -> None:
    pairs = films()
    around = around_it(pairs)
    luma = taps.luma_of(pairs.blurred)
    inner = (..., slice(24, -24), slice(24, -24))
    for side in (0, 1):
        there = taps.luma_of(around.blurred[side])
        nothing = torch.zeros(len(luma), len(taps.FILTERS), *luma.shape[2:])
        moved = taps.neighbour(luma, there, nothing, pairs.motion, around.ways[side])
        apart, aligned = (
            x[inner].square().mean(dim=(1, 2, 3)) for x in (there - luma, moved[:, :1])
        )
        assert bool((aligned < 0.5 * apart).all())
    # The shutter is open for a share of the time, and motion is steady but for unrest.
    chord = (around.ways[1] - around.ways[0]) / 2 * around.shares[:, None, None, None]
    assert bool((around.shares >= 0.25).all())
    error = (chord - pairs.motion[:, :2]).norm(dim=1) / pairs.motion[:, :2].norm(dim=1)
    assert float(error.median()) < 0.3


def test_a_layer_is_somewhere_else_than_what_is_behind_it() -> None:
    options = replace(
        PURE, max_length=10, length_power=0.0, layer_share=1.0, layers=1, at_rest_share=0.0
    )
    plain, layered = (films(4, replace(options, layer_share=share), 3) for share in (0.0, 1.0))
    varies = [around_it(pairs).ways.flatten(3).std(dim=3).mean() for pairs in (plain, layered)]
    assert varies[0] < 0.01
    assert varies[1] > 0.5


def test_pairs_alone_have_nothing_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(
        "vdeblur.datasets.synthetic_blur._NeighborFrames"
    )  # nothing is drawn for it
    pairs = make_pairs(scenes(2, 64), margin=8, options=PURE, generator=seeded())
    assert pairs.around is None


# --- what is seen of them ------------------------------------------------------------------------


def test_flow_tells_the_motion_and_brings_neighbours_to_their_places() -> None:
    pairs = films()
    motion, film = seen(pairs)
    assert film.known.tolist() == [BY_FLOW] * 8
    chord = pairs.motion[:, :2]
    error = (motion[:, :2] - chord).norm(dim=1).flatten(1).median(dim=1).values
    length = chord.norm(dim=1).flatten(1).median(dim=1).values
    assert float((error / length).median()) < 0.35
    assert not torch.allclose(motion, pairs.motion, atol=0.1)  # it was measured
    luma = taps.luma_of(pairs.blurred)
    inner = (..., slice(24, -24), slice(24, -24))
    for side in (0, 1):
        unaligned = taps.luma_of(around_it(pairs).blurred[side]) - luma
        first = film.pictures[:, side * taps.PICTURES : side * taps.PICTURES + 1].float()
        closer = first[inner].square().mean() / unaligned[inner].square().mean()
        assert float(closer) < 0.3
    # Filtered along their own motion, they are sharper than as they were taken.
    sharp = taps.luma_of(pairs.sharp)
    off = [
        float((luma + film.pictures[:, k : k + 1].float() - sharp)[inner].square().mean())
        for k in (0, 1)
    ]
    assert off[1] < off[0]
    # The directions are those of the neighbours' own motion, but for its errors.
    own = taps.direction(around_it(pairs).motion[1])
    told = film.directions[:, taps.DIRECTION_CHANNELS :]
    assert float((told - own).norm(dim=1).median()) < 0.35 * float(own.norm(dim=1).median())
    assert float((told - own).abs().max()) > 0.01


def test_scenes_that_do_not_match_have_no_neighbours() -> None:
    pairs = films(4)
    around = around_it(pairs)
    cut = around.blurred.clone()
    cut[0] = 0.5
    cut[1, 2:] = 0.5
    motion, film = seen(pairs._replace(around=around._replace(blurred=cut)))
    assert float(film.pictures[:, : taps.PICTURES].abs().max()) == 0
    assert float(film.directions[2:].abs().max()) == 0
    assert float(film.pictures[:2, taps.PICTURES :].abs().amin(dim=0).max()) > 0
    assert film.known.tolist() == [BY_FLOW, BY_FLOW, EXACTLY, EXACTLY]
    assert torch.equal(motion[2:], pairs.motion[2:])
    assert float(motion[:2, 2:].abs().max()) == 0  # of one neighbour alone no bend is known


def test_kinds_of_pairs() -> None:
    pairs = films(12, replace(PURE, max_length=12, length_power=0.1, sharp_share=0.4), seed=1)
    still = pairs.motion.abs().amax(dim=(1, 2, 3)) < 0.05
    assert 1 < int(still.sum()) < 11
    motion, film = seen(pairs, replace(FLOWN, flow_share=1.0))
    # What is still may be told a false motion, which is not for what flow has measured.
    assert (film.known == EXACTLY).tolist() == still.tolist()
    assert torch.equal(motion[still], pairs.motion[still])
    motion, film = seen(pairs, replace(FLOWN, shown_share=1.0))
    assert film.known.tolist() == [AS_SHOWN] * 12
    assert float(film.pictures.abs().max()) == float(film.directions.abs().max()) == 0
    told, true = motion[~still], pairs.motion[~still]
    along = (told[:, :2] * true[:, :2]).sum(1).abs().mean()  # its sign cannot be seen
    across = (told[:, 0] * true[:, 1] - told[:, 1] * true[:, 0]).abs().mean()
    assert float(along) > 2 * float(across) > 0
    several = [seen(films(8), FilmOptions(True), seed)[1].known for seed in range(4)]
    assert set(torch.cat(several).tolist()) == {EXACTLY, BY_FLOW, AS_SHOWN}


def test_measured_motion_is_wrong_by_the_exposure_alone() -> None:
    motion = torch.tensor([6.0, -8, 2, 1])[:, None, None].expand(3, 4, 8, 8)
    known = torch.tensor([EXACTLY, BY_FLOW, AS_SHOWN])
    errors = replace(NO_ERRORS, exposure=0.3, drift=0.5)
    found = with_errors(motion, errors, seeded(), known=known)
    assert float((found[0] - motion[0])[:2].std()) > 0.05
    ratio = found[1] / motion[1]
    assert torch.allclose(ratio[:2], ratio[:1, :1, :1].expand(2, 8, 8))
    assert torch.allclose(ratio[2:], ratio[:1, :1, :1].square().expand(2, 8, 8))
    assert abs(float(ratio[0, 0, 0].log())) < 0.3
    assert float(ratio[0, 0, 0]) != 1
    assert torch.equal(found[2], motion[2])


def test_some_frames_are_without_neighbours() -> None:
    around = torch.ones(2, 6000, CHANNELS, 1, 1)
    options = replace(FLOWN, none_share=0.1, before_share=0.2, after_share=0.3)
    before, after = with_some_left_out(around, options, seeded())[:, :, 0, 0, 0].bool()
    found = [(~before & ~after), (before & ~after), (~before & after), (before & after)]
    shares = [float(kind.float().mean()) for kind in found]
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.02)
    assert float(around.min()) == 1


class NoWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses copies from the CPU to another device that the host waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if "_to_copy" in str(func) and args[0].device.type == "cpu" and not out.is_cpu:
            assert kwargs.get("non_blocking"), traceback.format_stack()[-4:]
        return out


def test_nothing_but_pictures_to_match_is_waited_for_or_read_back_from_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On "meta", which has shapes and no values."""
    monkeypatch.setattr("vdeblur.datasets.camera_motion.Draw.on_device", lambda self: None)
    made_on_meta()  # what is kept there travels once
    with NoWaits():  # type: ignore[no-untyped-call]
        made_on_meta()


def made_on_meta() -> None:
    pairs = make_pairs(
        torch.empty(5, 3, 128, 128, device="meta"),
        margin=32,
        options=replace(BlurOptions(), layer_share=1.0),
        generator=seeded(),
        neighbours=True,
    )

    def match(frames: Tensor, reductions: list[int], grid: tuple[int, int]) -> Matched:
        assert (frames.dtype, frames.device.type) == (torch.uint8, "meta")
        return matched(torch.zeros(frames.shape, dtype=torch.uint8), reductions, grid)

    options = FilmOptions(True, shown_share=0.4)
    motion, film = filmed(pairs, options, np.random.default_rng(0), seeded(), match=match)
    assert motion.shape == (5, 4, 16, 16)
    around = with_some_left_out(around_of(film), FilmOptions(), seeded())
    assert around.shape == (2, 5, CHANNELS, 64, 64)
    assert around.device.type == film.known.device.type == "meta"


def test_processes_find_the_same_flow() -> None:
    pairs = films(6)
    luma = taps.luma_of(torch.cat([pairs.blurred[None], around_it(pairs).blurred]).flatten(0, 1))
    frames = luma.view(3, 6, *luma.shape[2:]).mul(255).byte()
    frames[1, 5] = 0  # which matches nothing
    reductions, grid = [2, 3, 4, 2, 2, 2], (32, 32)
    here = matched(frames, reductions, grid)
    with in_processes(2) as match:
        there = match(frames, reductions, grid)
        assert all(map(torch.equal, there, here))
        assert there.found.sum(1).tolist() == [5, 6]
        assert 1 <= len(multiprocessing.active_children()) <= 2
        with pytest.raises(ZeroDivisionError):  # as itself
            match(frames, [2, 2, 2, 2, 2, 0], grid)
    assert not multiprocessing.active_children()


# --- turning -------------------------------------------------------------------------------------


def turn(x: Tensor, transposed: int, down: int, across: int) -> Tensor:
    x = x.transpose(-2, -1) if transposed else x
    x = x.flip(-2) if down else x
    return x.flip(-1) if across else x


@pytest.mark.parametrize("turns", list(itertools.product((0, 1), repeat=3)))
def test_what_is_seen_turns_with_the_frames(turns: tuple[int, int, int]) -> None:
    """As if it were computed of the turned frames."""
    luma, *others = taps.luma_of(scenes(3, 64))[:, None]
    size = (2, 4, 16, 16)
    coarse = (
        torch.randn(2, 4, 3, 3, generator=seeded(2)) * torch.tensor([7.0, 4, 1, 1])[:, None, None]
    )
    motion = F.interpolate(coarse, size=size[2:], mode="bicubic") + 3
    ways = F.interpolate(coarse.flip(0)[:, :2], size=size[2:], mode="bicubic")

    def view(here: Tensor, theirs: list[Tensor], motion: Tensor, ways: Tensor) -> list[Tensor]:
        parts = []
        for there, moved, way in zip(theirs, motion[:, None], ways[:, None], strict=True):
            added = taps.filtered(taps.guidance(there, moved))
            parts.append(taps.neighbour(here, there, added, moved, way))
        return parts

    straight = view(luma, others, motion, ways)
    film = Film(
        torch.tensor([BY_FLOW]),
        torch.cat([part[:, : taps.PICTURES] for part in straight], dim=1),
        torch.cat([taps.direction(moved) for moved in motion[:, None]], dim=1),
    )
    picture = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    one = [torch.tensor([value]) for value in (0, 0, 0, *turns)]
    pool = Pool(picture, picture, motion[:1], film)
    turned = cut_out(pool, Places(*one), 64).film
    assert turned is not None
    flags = [flag.expand(2) for flag in one[3:]]
    theirs = turned_vectors(turn(motion, *turns), *flags)
    padded = torch.cat([ways, torch.zeros_like(ways)], dim=1)
    led = turned_vectors(turn(padded, *turns), *flags)[:, :2]
    expected = torch.stack(view(turn(luma, *turns), [turn(x, *turns) for x in others], theirs, led))
    found = around_of(turned)
    assert found.shape == expected.shape == (2, 1, CHANNELS, 64, 64)
    assert torch.allclose(found, expected, atol=0.02)  # places are rounded to 1/32 of a pixel
    only_moved = turn(torch.stack(straight), *turns)
    same = torch.allclose(only_moved, expected, atol=0.02)
    assert same == (turns in ((0, 0, 0), (0, 1, 1)))


def test_crops_of_what_is_seen_are_where_the_picture_s_are() -> None:
    place = torch.arange(32.0).expand(1, 2 * taps.PICTURES, 32, 32).contiguous()
    cells = torch.arange(8.0).expand(1, 2 * taps.DIRECTION_CHANNELS, 8, 8).contiguous()
    film = Film(torch.tensor([AS_SHOWN]), place.half(), cells)
    picture = place[:, :3].byte()
    pool = Pool(picture, picture, cells[:, :4], film)
    zero = torch.tensor([0])
    some = cut_out(pool, Places(zero, torch.tensor([1]), torch.tensor([3]), zero, zero, zero), 16)
    assert some.film is not None
    assert some.film.known.tolist() == [AS_SHOWN]
    assert torch.equal(some.film.pictures[0, 5].byte(), some.blurred[0, 0])
    assert some.film.directions[0, 5, 0].tolist() == [3, 4, 5, 6]


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, picture in enumerate(scenes(4, 160)):
        pixels = picture.mul(255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def opened(photos: Path, films: FilmOptions, reuse: int = 2) -> SyntheticPairs:
    pool = PoolOptions(reuse=reuse, pairs=3)
    data = open_data(
        f"synth:{photos}", DataOptions(batch=2, crop=64, seed=3, pool=pool, films=films)
    )
    assert isinstance(data, SyntheticPairs)
    return data


def take(batches: Iterable[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(iter(batches), count))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return all(
        x is not None and y is not None and torch.equal(x, y)
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("reuse", [1, 2])
def test_batches_bring_what_is_around_them(photos: Path, reuse: int) -> None:
    data = opened(photos, FilmOptions(True), reuse)
    assert data.margin == 48
    whole = take(data.feed()(0), 5)
    for batch in whole:
        assert batch.around is not None
        assert batch.around.shape == (2, 2, CHANNELS, 64, 64)
    assert max(float(b.around.abs().max()) for b in whole if b.around is not None) > 0.05
    again = opened(photos, FilmOptions(True), reuse)
    assert equal(take(again.feed()(2), 3), whole[2:])  # a resumed run
    assert equal(take(again.feed(workers=1)(1), 3), whole[1:4])  # a loading process
    again.in_thread = True  # with a process to match, as for a GPU
    assert equal(take(again.feed(workers=1)(1), 3), whole[1:4])
    alone = opened(photos, FilmOptions(), reuse)
    assert alone.margin == 32
    assert take(alone.feed()(0), 1)[0].around is None
    assert alone.held_out_films() is None


def test_a_resumed_run_with_films_is_the_unbroken_one_to_the_bit(
    photos: Path, tmp_path: Path
) -> None:
    config = {"widths": [4, 8, 8], "blocks": [1, 1, 1]}
    recipe = replace(
        recipe_of("mimo-unet-guided"), config=config, seconds=0.0, steps=4, batch=2, updates=()
    )
    weights = []
    losses: list[list[float]] = []

    def run(
        recipe: Recipe,
        state: StateFile | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        torch.manual_seed(0)
        losses.append([])
        return train(
            build(recipe.network, config),
            opened(photos, recipe.films).feed(),
            recipe,
            run=RunOptions(report_steps=1),
            state=state,
            callbacks=Callbacks(
                on_report=lambda progress, _: losses[-1].append(progress.loss), stop=stop
            ),
        )

    count = itertools.count(1)
    state = StateFile(tmp_path / "state.pt")
    weights.append(run(recipe).last.state_dict())
    assert not run(recipe, state, lambda: next(count) == 2).finished
    weights.append(run(recipe, state).last.state_dict())
    assert losses[0] == losses[1] + losses[2]
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))
    # The neighbours were seen: without them it is another run.
    alone = replace(
        recipe, films=replace(recipe.films, none_share=1, before_share=0, after_share=0)
    )
    run(alone)
    assert losses[3] != losses[0]


no_cuda = not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA")


@pytest.mark.skipif(no_cuda, reason="no CUDA GPU here (VDEBLUR_REQUIRE_CUDA makes this a failure)")
def test_a_gpu_makes_pairs_beside_training(photos: Path, tmp_path: Path) -> None:
    def opened() -> SyntheticPairs:
        data = open_data(
            f"synth:{photos}",
            DataOptions(
                batch=8,
                crop=64,
                seed=3,
                pool=PoolOptions(reuse=2, pairs=16),
                films=FilmOptions(True),
            ),
            device="cuda",
        )
        assert isinstance(data, SyntheticPairs)
        assert data.in_thread
        return data

    # As made in turn, while another stream has work; memory of pools that are done with is reused.
    busy = torch.rand(2048, 2048, device="cuda")
    in_turn = opened()
    for index, batch in zip(range(2, 14), opened().feed(workers=2)(2), strict=False):
        for _ in range(20):
            busy = (busy @ busy).clamp(0, 1)
        for made, other in zip(batch, in_turn.batch_at(index), strict=True):
            assert made is not None
            assert other is not None
            assert made.is_cuda
            assert float((made.float() - other.float()).abs().mean()) < 1e-3

    config = {"widths": [8, 8, 8], "blocks": [1, 1, 1]}
    recipe = replace(
        recipe_of("mimo-unet-guided-gpu"), config=config, seconds=0.0, steps=6, batch=8
    )
    losses: list[float] = []
    count = itertools.count(1)
    for stop in (lambda: next(count) == 4, lambda: False):  # and gone on with
        train(
            build(recipe.network, config),
            opened().feed(workers=2),
            recipe,
            run=RunOptions(device=torch.device("cuda"), precision="bf16", report_steps=1),
            state=StateFile(tmp_path / "state.pt"),
            callbacks=Callbacks(
                on_report=lambda progress, _: losses.append(progress.loss), stop=stop
            ),
        )
    assert len(losses) == 6
    assert all(map(math.isfinite, losses))


def test_films_to_score_on(photos: Path) -> None:
    held_out = opened(photos, FilmOptions(True)).held_out_films(side=64)
    assert held_out is not None
    again = opened(photos, FilmOptions(True), 1).held_out_films(side=64)
    assert again is not None
    assert equal([held_out], [again])
    assert held_out.blurred.shape == (24, 3, 64, 64)
    assert held_out.around is not None
    there = held_out.around[:, :, 0].abs().amax(dim=(2, 3)) > 0
    assert float(there.float().mean()) > 0.5

    class Before(torch.nn.Module):
        """A network that gives what the frame before shows."""

        size_multiple, guided = 8, True

        def __init__(self) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            there = x[:, 3 + taps.OWN_CHANNELS :][:, :1] if x.shape[1] > 3 else 0.0
            return x[:, :3] + self.by * there

        def forward_scales(self, x: Tensor) -> tuple[Tensor]:
            return (self(x),)

    sharp = torch.full((5, 3, 64, 64), 100, dtype=torch.uint8)
    motion = torch.zeros(5, 4, 16, 16)
    around = torch.zeros(2, 5, CHANNELS, 64, 64)
    around[0, :, 0] = 10 / 255
    films = Batch(sharp - 10, sharp, motion, around)
    scores, _ = ValidationByLength(Batch(sharp - 10, sharp, motion), films).score(Before())  # type: ignore[arg-type]
    assert scores.more["film_db"] == pytest.approx(99 - 20 * np.log10(25.5))
    assert scores.more["film_single_db"] == 0
    assert scores.more["exact_db"] == 0


def test_options_of_films() -> None:
    options = from_texts(FilmOptions(), {"neighbours": "true", "reductions": "2,4"})
    assert options == FilmOptions(True, reductions=(2, 4))
    guided = recipe_of("mimo-unet-guided")
    assert guided.films.neighbours
    assert recipe_of("mimo-unet-guided-gpu").films == guided.films
    assert not recipe_of("mimo-unet-lite").films.neighbours
    assert not with_values(guided, {"films.neighbours": "false"}).films.neighbours
    with pytest.raises(UsageError, match="sharp_share"):
        replace(guided, keep_sharp=0.1)
    for wrong in (
        {"shown_share": 1.2},
        {"none_share": 0.6, "after_share": 0.5},
        {"reductions": ()},
    ):
        with pytest.raises(UsageError):
            FilmOptions(True, **wrong)
