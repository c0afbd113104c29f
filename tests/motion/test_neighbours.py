"""Neighbouring frames: which they are, how long they are kept, and what a network sees of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.motion.test_flow import film, frame, pan, texture, view
from vdeblur.color import planes_to_rgb
from vdeblur.deblur import deblur_frames
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.batching import restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.guidance import Inputs
from vdeblur.inference.transfers import Overlap
from vdeblur.live.restorer import LiveGuide, _reduced
from vdeblur.motion import neighbours as views
from vdeblur.motion.exposure import Exposure
from vdeblur.motion.guide import MOTION_GAIN, Guide
from vdeblur.motion.movement import Movement
from vdeblur.motion.neighbours import Around, View, with_neighbours
from vdeblur.networks import taps
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided

HALF = Exposure(share=0.5)
OTHER = texture(900, 2400, seed=9)


def at(path: Any, k: int, **options: Any) -> Any:
    """The picture of a pan at frame k."""
    x, y = path(k)
    return view(x, y, **options)


def guided(frames: Sequence[Any]) -> list[Any]:
    return list(Guide(HALF).run(iter(frames)))


def network() -> MIMOUNetGuided:
    """Untrained, but it changes pictures, by their neighbours too."""
    torch.manual_seed(5)
    made = MIMOUNetGuided(widths=[8, 8, 8], blocks=[1, 1, 1]).eval().requires_grad_(False)
    for head in made.heads:
        head.get_parameter("weight").mul_(0.02)
    return made


def estimate_of_frame(view: View) -> Any:
    return view.planes[0].numpy()


def sides(frames: Sequence[Any]) -> list[tuple[bool, bool]]:
    """Whether each frame has one before, and one after."""
    arounds = [f.around for f in frames]
    return [(False, False) if a is None else (a.before is not None, a.after is not None)
            for a in arounds]  # fmt: skip


def restored(
    frames: Sequence[Frame], *, batch: int = 1, neighbours: bool = True, **options: Any
) -> list[Any]:
    deblurrer = Deblurrer(network(), device="cpu", backend="torch", precision="fp32", **options)

    def given() -> Iterator[Frame]:
        for one in Guide(HALF).run(iter(frames)):
            one.around = one.around if neighbours else None
            yield one

    return [f.planes[0].copy() for f, _ in restore(given(), Overlap(deblurrer), batch)]


# -- which ---------------------------------------------------------------------------------------


def test_each_frame_knows_the_one_before_and_the_one_after() -> None:
    frames = film(pan(6, -4), 5)
    sources = [f.planes[0].copy() for f in frames]
    out = guided(frames)
    assert [f.pts for f in out] == list(range(5))
    assert sides(out) == [(False, True), *[(True, True)] * 3, (True, False)]
    for number, one in enumerate(out):
        assert np.array_equal(estimate_of_frame(one.around.here), sources[number])
        assert torch.equal(one.around.here.motion, torch.from_numpy(one.motion))
        for link, other, sign in zip(one.around.links, (-1, 1), (-1, 1), strict=True):
            if link is None:
                continue
            assert np.array_equal(estimate_of_frame(link[0]), sources[number + other])
            # Places went by (6, -4) to the next frame.
            assert link[1][:, 5:-5, 5:-5].median(2).values.median(1).values.tolist() == (
                pytest.approx([6 * sign, -4 * sign], abs=0.2)
            )


def test_the_way_is_in_pixels_of_the_plane() -> None:
    big = [frame(cv2.resize(view(*pan(4)(k)), None, fx=4, fy=4), k) for k in range(3)]
    link = guided(big)[1].around.after
    assert tuple(link[1].shape) == (2, 90, 160)
    assert float(link[1][0].median()) == pytest.approx(16, abs=0.3)


def test_views_are_copies() -> None:
    for number, one in enumerate(Guide(HALF).run(film(pan(6), 4))):
        was = estimate_of_frame(one.around.here).copy()
        one.planes[0][:] = 0  # restored in place, before the next is given out
        assert np.array_equal(estimate_of_frame(one.around.here), was)
        if number:
            assert estimate_of_frame(one.around.before[0]).any()


def test_there_is_no_neighbour_across_a_cut() -> None:
    shots = [view(*pan(6)(k)) for k in range(3)] + [at(pan(-5), k, world=OTHER) for k in range(3)]
    out = guided([frame(picture, k) for k, picture in enumerate(shots)])
    assert sides(out) == [(False, True), (True, True), (True, False)] * 2


def test_a_frame_between_cuts_and_a_change_of_size_have_none() -> None:
    alone = frame(view(0, 0, world=texture(900, 2400, seed=3)), 2)
    larger = [frame(at(pan(6), k, size=(400, 240)), k + 3) for k in range(2)]
    out = guided([*film(pan(6), 2), alone, *larger])
    assert sides(out) == [(False, True), (True, False), (False, False), (False, True),
                          (True, False)]  # fmt: skip
    assert out[2].around is None


def test_copies_of_a_picture_have_the_same_neighbours() -> None:
    """Three pictures of a pan, shown twice, thrice and twice, coded anew."""
    rng = np.random.default_rng(0)
    frames: list[Frame] = []
    shown: list[int] = []
    for k, times in enumerate((2, 3, 2)):
        for _ in range(times):
            noise = rng.integers(-1, 2, (180, 320)).astype(np.int16)
            picture = np.clip(view(*pan(7)(k)).astype(np.int16) + noise, 0, 255).astype(np.uint8)
            frames.append(frame(picture, len(frames)))
            shown.append(k)
    sources = [f.planes[0].copy() for f in frames]
    out = guided(frames)
    assert sides(out) == [*[(False, True)] * 2, *[(True, True)] * 3, *[(True, False)] * 2]
    for number, one in enumerate(out):
        assert np.array_equal(estimate_of_frame(one.around.here), sources[number])
        for link, other in zip(one.around.links, (-1, 1), strict=True):
            if link is not None:
                matches = [np.array_equal(estimate_of_frame(link[0]), source) for source in sources]
                assert shown[matches.index(True)] == shown[number] + other


def test_streams_keep_apart_and_other_items_keep_their_places() -> None:
    first = film(pan(6), 4)
    second = [frame(at(pan(-9), k, world=OTHER), k, stream=1) for k in range(4)]
    items: list[Any] = []
    for k in range(4):
        items += [first[k], f"packet {k}", second[k]]
    sources = {id(item): item.planes[0].copy() for item in items if isinstance(item, Frame)}
    out = guided(items)
    assert [id(item) for item in out] == [id(item) for item in items]
    for stream in (first, second):
        assert sides(stream) == [(False, True), (True, True), (True, True), (True, False)]
        for one, following in pairwise(stream):
            assert np.array_equal(estimate_of_frame(one.around.after[0]), sources[id(following)])


def test_interlaced_frames_have_none() -> None:
    frames = film(lambda k: (-6 * k, 0), 3, interlaced=True)
    out = guided(frames)
    assert all(f.motion is not None for f in out)
    assert sides(out) == [(False, False)] * 3


def moving(one: Frame, *, ahead: bool) -> tuple[Frame, Movement]:
    field = np.full((4, 5, 8), 3, np.float32)
    one.motion = field
    return one, Movement(field, field[0], 1.0, ahead=field[:2] if ahead else None)


def test_a_neighbour_that_does_not_come_is_not_waited_for_without_end() -> None:
    taken = 0

    def items() -> Iterator[tuple[Any, Movement | None]]:
        nonlocal taken
        for item in [moving(film(pan(6), 1)[0], ahead=True), *[("packet", None)] * 1000]:
            taken += 1
            yield item

    out = with_neighbours(items())
    first = next(out)
    assert isinstance(first, Frame)
    assert first.around is None
    assert 200 < taken < 400
    assert len(list(out)) == 1000


# -- how long ------------------------------------------------------------------------------------


def test_views_go_as_their_frames_do(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[View] = weakref.WeakSet()
    most = given = 0

    class Counted(View):
        def __init__(self, frame: Frame) -> None:
            super().__init__(frame)
            alive.add(self)

    monkeypatch.setattr(views, "View", Counted)

    def pictures() -> Iterator[Frame]:
        for k in range(24):
            yield frame(view(*pan(3)(k)), k)

    deblurrer = Deblurrer(network(), device="cpu", backend="torch", precision="fp32")
    kept = []
    gc.disable()  # nothing may need it
    try:
        for one, _ in restore(Guide(HALF).run(pictures()), Overlap(deblurrer), 1):
            kept.append(one)  # as those that wait to be written
            most = max(most, len(alive))
            given = max(given, sum(v.given is not None for v in alive))
        assert len(kept) == 24
        assert all(one.around is None for one in kept)
        assert not alive
    finally:
        gc.enable()
    assert most <= 6  # the one before, at hand, after, and those that wait to be given out
    assert given == 1  # the input of the one after alone


# -- what is seen --------------------------------------------------------------------------------


def inputs_of(one: Frame) -> Tensor:
    size = (one.layout.height, one.layout.width)
    motion = torch.from_numpy(one.motion)[None]

    def rgb() -> Tensor:
        raise AssertionError("pictures of a film have views")

    return Inputs(torch.device("cpu"), torch.float32).of(rgb, motion, [one.around], size)


def test_neighbours_are_brought_to_the_places_of_the_frame() -> None:
    out = guided(film(pan(9, -5), 3))
    one = out[1]
    luma, before, after = (
        taps.luma_of(planes_to_rgb([p[None] for p in shown.planes], shown.layout))
        for shown in (one.around.here, one.around.before[0], one.around.after[0])
    )
    around = inputs_of(one)[:, 3 + taps.OWN_CHANNELS :]
    inner = (..., slice(20, -20), slice(30, -30))
    for number, there in ((0, before), (taps.PICTURES, after)):
        apart = around[:, number : number + 1][inner].abs().mean()
        assert apart < 0.15 * (there - luma)[inner].abs().mean()
        # What filters add there differs from picture to picture, but is there.
        assert around[:, number + 1][inner].abs().mean() > 1.5 * apart
    lengths = around[0, 2 * taps.PICTURES :: taps.DIRECTION_CHANNELS, 90, 160] * taps.UNIT
    assert lengths.tolist() == pytest.approx([MOTION_GAIN * np.hypot(4.5, 2.5)] * 2, abs=0.3)


def test_the_own_channels_are_what_they_are_without_neighbours() -> None:
    """To the last bit, also of pictures of no legal size, with colour: nothing rests on views."""
    rng = np.random.default_rng(0)
    layout = PlaneLayout(101, 75, depth=10)
    planes = tuple(rng.integers(64, 900, shape).astype(np.uint16) for shape in layout.shapes)
    motion = rng.normal(size=(4, 9, 12)).astype(np.float32) * 6
    one = Frame(planes, layout, 0, Fraction(1), motion=motion)
    deblurrer = Deblurrer(network(), device="cpu", backend="torch", precision="fp32")
    tensors = [torch.from_numpy(plane)[None] for plane in planes]
    told = torch.from_numpy(motion)[None]
    plain, _ = deblurrer.restore_planes(tensors, layout, told)
    viewed, _ = deblurrer.restore_planes(tensors, layout, told, [Around(View(one), None)])
    assert not np.array_equal(plain[0].numpy(), planes[0])
    for before, after in zip(plain, viewed, strict=True):
        assert np.array_equal(before.numpy(), after.numpy())


@pytest.fixture(params=[1, 2])
def torch_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """With more than one, pictures of a batch are restored side by side."""
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(usual)


@pytest.mark.usefixtures("torch_threads")
def test_the_batch_does_not_matter_and_neighbours_do() -> None:
    path = pan(6, 3)

    def frames() -> list[Frame]:
        shots = [view(*path(k)) for k in range(4)]
        shots += [at(path, k, world=OTHER) for k in range(3)]
        shots.insert(4, view(0, 0, world=texture(900, 2400, seed=3)))  # between two cuts
        return [frame(picture, k) for k, picture in enumerate(shots)]

    alone = restored(frames())
    for batch in (2, 3, 8):
        for one, other in zip(alone, restored(frames(), batch=batch), strict=True):
            assert np.array_equal(one, other)
    without = restored(frames(), neighbours=False)
    differ = [not np.array_equal(a, b) for a, b in zip(alone, without, strict=True)]
    assert differ == [True] * 4 + [False] + [True] * 3


def test_frames_in_memory_see_their_neighbours_too() -> None:
    pictures = [np.dstack([view(*pan(6)(k))] * 3) for k in range(4)]
    planes = restored(
        [
            Frame(
                tuple(p.transpose(2, 0, 1).copy()),
                PlaneLayout(320, 180, kind="rgb"),
                k,
                Fraction(1),
            )
            for k, p in enumerate(pictures)
        ]
    )
    deblurrer = Deblurrer(network(), device="cpu", backend="torch", precision="fp32")
    for batch in (1, 3):
        out = list(deblur_frames(pictures, model=deblurrer, exposure=0.5, batch=batch))
        for picture, plane in zip(out, planes, strict=True):
            assert np.abs(picture[..., 1].astype(int) - plane).max() <= 1


def film_in_hand(turn: Any, *, turns: int = 0, mirror: bool = False) -> tuple[Any, ...]:
    """A picture, its motion, and its neighbours, all turned."""
    dice = torch.Generator().manual_seed(1)
    small = torch.rand(3, 3, 24, 32, generator=dice)
    pictures = torch.nn.functional.interpolate(small, (96, 128), mode="bicubic").clamp(0, 1)
    pictures = turn((pictures * 255).round())
    fields = torch.randn(5, 4, 96, 128, generator=dice)
    fields = torch.nn.functional.avg_pool2d(fields, 31, 1, 15) * 100
    fields[3:, 2:] = 0
    fields = taps.turned(fields, turns, mirror)
    height, width = pictures.shape[2:]
    layout = PlaneLayout(width, height, kind="rgb")
    found = []
    for rgb, motion in zip(pictures.byte().numpy(), fields.numpy(), strict=False):
        found.append(View(Frame((rgb[1], rgb[2], rgb[0]), layout, 0, Fraction(1), motion=motion)))
    around = Around(found[0], (found[1], fields[3, :2]), (found[2], fields[4, :2]))
    return pictures[:1] / 255, fields[:1], around


@pytest.mark.parametrize(("turns", "mirror"), [(1, False), (2, False), (3, True), (0, True)])
def test_what_neighbours_show_turns_with_the_picture(turns: int, mirror: bool) -> None:
    def turn(x: Tensor) -> Tensor:
        return torch.rot90(x.flip(3) if mirror else x, turns, (2, 3))

    def seen(rgb: Tensor, motion: Tensor, around: Around) -> Tensor:
        size = (rgb.shape[2], rgb.shape[3])
        inputs = Inputs(torch.device("cpu"), torch.float32)
        made = inputs.of(lambda: rgb, motion, [around], size)
        return made[:, 3 + taps.OWN_CHANNELS :]

    straight = seen(*film_in_hand(lambda x: x))
    there = seen(*film_in_hand(turn, turns=turns, mirror=mirror))
    assert straight.abs().mean() > 0.02
    # Places are rounded to 1/32 of a pixel, and directions that pass through 0 are rough.
    near = (taps.turned_around(straight, turns, mirror) - there).abs() < 5e-3
    assert near.float().mean(dim=(0, 2, 3)).min() > 0.97

    both = [
        rgb
        + Deblurrer(
            network(), device="cpu", ensemble=True, backend="torch", precision="fp32"
        ).correction(rgb, motion, [around])
        for rgb, motion, around in (
            film_in_hand(lambda x: x),
            film_in_hand(turn, turns=turns, mirror=mirror),
        )
    ]
    picture, _, _ = film_in_hand(lambda x: x)
    changed = (both[0] - picture).abs().mean()
    assert (turn(both[0]) - both[1]).abs().mean() < 0.03 * changed


def test_one_deblurrer_serves_films_and_cameras_in_turn() -> None:
    """Inputs are used again, but torch keeps those of its inference mode apart."""
    deblurrer = Deblurrer(network(), device="cpu", backend="torch", precision="fp32")
    images, told = torch.rand(1, 3, 64, 96), torch.full((1, 4, 2, 2), 5.0)
    with torch.inference_mode():
        first = deblurrer(images, told).numpy()
    for _ in range(2):
        assert np.array_equal(deblurrer(images, told).numpy(), first)
    with torch.inference_mode():
        assert np.array_equal(deblurrer(images, told).numpy(), first)


# -- live ----------------------------------------------------------------------------------------


def live(frames: Sequence[Frame], through: Sequence[bool]) -> tuple[list[Any], list[Any]]:
    """What is around live frames, and what some of them become that go through a network."""
    overlap = Overlap(
        Deblurrer(network(), device="cpu", backend="torch", precision="fp32"), depth=1
    )
    arounds, pictures = [], []
    with ThreadPoolExecutor(1) as meters:
        guide = LiveGuide(HALF, meters)
        for one, goes in zip(frames, through, strict=True):
            guide.see(one)
            arounds.append(one.around)
            if goes:
                list(restore([one], overlap, 1))
            pictures.append(one.planes[0].copy())
    return arounds, pictures


def test_live_frames_know_the_one_before_alone() -> None:
    arounds, _ = live(film(pan(6), 4), [True] * 4)
    assert arounds[0] is None  # nothing is known to move
    assert arounds[1].before is None  # whose motion nobody knows
    for around, last in ((arounds[2], arounds[1]), (arounds[3], arounds[2])):
        assert around.before[0] is last.here
        assert float(around.before[1][0].median()) == pytest.approx(-6, abs=0.3)
        assert around.after is None


def test_live_neighbours_are_used_where_they_went_through_the_network() -> None:
    _, all_ = live(film(pan(6), 4), [True] * 4)
    arounds, some = live(film(pan(6), 4), [False, True, False, True])
    _, alone = live(film(pan(6), 4), [False, False, False, True])
    assert not np.array_equal(all_[3], alone[3])
    assert np.array_equal(some[3], alone[3])
    assert arounds[2].here.given is None  # nobody took the time


def test_a_live_frame_at_a_smaller_size_is_a_single_one() -> None:
    one, other = film(pan(6), 2)
    with ThreadPoolExecutor(1) as meters:
        guide = LiveGuide(HALF, meters)
        guide.see(one)
        guide.see(other)
    assert other.around is not None
    assert _reduced(other, 2).around is None
    assert replace(other).around is other.around
