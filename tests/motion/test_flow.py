"""Motion of every frame: how right it is, where there is none, and that a stream stays as it is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur.frames import Frame, PlaneLayout
from vdeblur.motion.flow import same_picture
from vdeblur.motion.movement import LiveTracker, Movement, follow
from vdeblur.system.thread_shares import Helpers

WIDTH, HEIGHT = 320, 180
FPS = 30


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Detail of all sizes, as photographs have it: float32 codes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for size in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(max(2, height // size), max(2, width // size))).astype(np.float32)
        total += size**0.7 * np.asarray(cv2.resize(noise, (width, height), interpolation=2))
    return np.asarray(128 + 42 * (total - total.mean()) / total.std(), np.float32)


WORLD = texture(900, 2400)


def view(x: float, y: float, size: tuple[int, int] = (WIDTH, HEIGHT), world: Any = WORLD) -> Any:
    """What a camera that looks at (x, y) of the world sees, uint8."""
    middle = (x + world.shape[1] / 2, y + world.shape[0] / 2)
    return np.clip(cv2.getRectSubPix(world, size, middle), 0, 255).round().astype(np.uint8)


def frame(picture: Any, pts: int, *, stream: int = 0, **layout: Any) -> Frame:
    height, width = picture.shape
    shape = PlaneLayout(width, height, **({"kind": "gray", "chroma_shift": (0, 0)} | layout))
    return Frame((picture.copy(),), shape, pts, Fraction(1, FPS), stream=stream)


def film(path: Any, count: int, **options: Any) -> list[Frame]:
    return [frame(view(*path(k)), k, **options) for k in range(count)]


def pan(x: float, y: float = 0.0) -> Any:
    """The picture moves by (x, y) a frame: the camera the other way."""
    return lambda k: (-x * (k - 2), -y * (k - 2))


def movements(frames: list[Any], **options: Any) -> list[Movement | None]:
    return [movement for _, movement in follow(frames, **options)]


def inner(field: Any, edge: int = 5) -> Any:
    return field[:, edge:-edge, edge:-edge]


def velocity(movement: Movement | None) -> NDArray[np.float64]:
    """Median x and y in pixels a frame interval of FPS."""
    assert movement is not None
    middle: NDArray[np.float64] = np.median(inner(movement.field[:2]), axis=(1, 2)) / FPS
    return middle


@pytest.mark.parametrize(("x", "y"), [(0.6, 0), (5, -3), (-21, 8), (0, 17)])
def test_a_pan_is_known_to_a_fifth_of_a_pixel(x: float, y: float) -> None:
    for number, movement in enumerate(movements(film(pan(x, y), 4))):
        assert movement is not None
        off = inner(movement.field[:2] / FPS) - np.array([x, y])[:, None, None]
        if number in (1, 2):  # both neighbours
            assert np.abs(off).max() < 1
        assert np.median(np.abs(off)) < 0.2
        assert movement.interval_seconds == pytest.approx(1 / FPS)


def test_motion_during_the_exposure_is_in_pixels_of_the_plane_whatever_its_size() -> None:
    big = [frame(cv2.resize(view(*pan(4)(k)), None, fx=4, fy=4), k) for k in range(3)]
    movement = movements(big)[1]
    assert movement is not None
    motion = movement.during(0.5 / FPS)
    assert motion.dtype == np.float32
    assert motion.shape == (4, 90, 160)
    assert np.median(motion[0]) == pytest.approx(8, abs=0.2)


def test_a_path_that_bends_is_told_from_both_neighbours() -> None:
    """x = 6 k + 2 k²: at frame k it goes at 6 + 4 k, and bends by 2 a squared interval."""
    movement = movements(film(lambda k: (-6 * k - 2 * k * k, 0), 3))[1]
    assert movement is not None
    chord, _, bend, _ = (float(np.median(part)) for part in inner(movement.during(0.5 / FPS)))
    assert chord == pytest.approx(0.5 * 10, abs=0.2)
    assert bend == pytest.approx(0.25 * 2, abs=0.1)


def test_two_hundred_pixels_a_frame() -> None:
    frames = [frame(view(-200 * k + 300, 0, (640, 360)), k) for k in range(4)]
    for movement in movements(frames):
        assert velocity(movement)[0] == pytest.approx(200, abs=3)


def test_the_first_and_the_last_frame_know_one_neighbour() -> None:
    first, _, last = movements(film(pan(6), 3))
    for movement in (first, last):
        assert velocity(movement)[0] == pytest.approx(6, abs=0.2)
        assert movement is not None
        assert not movement.field[2:].any()


def test_a_single_picture_has_no_motion() -> None:
    assert movements(film(pan(6), 1)) == [None]


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_nothing_moves_across_a_cut(light: float) -> None:
    other = texture(900, 2400, seed=9) * light
    frames = film(pan(5), 3)
    frames += [frame(view(7.0 * k, 0, world=other), 3 + k) for k in range(3)]
    found = movements(frames)
    assert [m.shot for m in found if m is not None] == [0, 0, 0, 1, 1, 1]
    for number, speed in ((2, 5), (3, -7)):
        movement = found[number]
        assert movement is not None
        assert velocity(movement)[0] == pytest.approx(speed, abs=0.2)
        assert not movement.field[2:].any()


def test_a_picture_between_two_cuts_has_no_motion() -> None:
    worlds = [texture(400, 700, seed) for seed in (3, 4, 5)]
    frames = [frame(view(0, 0, world=world), k) for k, world in enumerate(worlds)]
    assert movements(frames) == [None, None, None]


@pytest.mark.parametrize("change", [0.6, 0.85, 1.15])
def test_fades_are_no_cuts(change: float) -> None:
    frames = [
        frame(np.clip(view(*pan(6)(k)) * 0.8 * change**k, 0, 255).astype(np.uint8), k)
        for k in range(3)
    ]
    for movement in movements(frames):
        assert velocity(movement)[0] == pytest.approx(6, abs=0.5)


def test_a_flash_is_no_cut() -> None:
    frames = film(pan(6), 3)
    lit = np.clip(frames[1].planes[0].astype(np.int32) + 70, 0, 255).astype(np.uint8)
    frames[1] = frame(lit, 1)
    for movement in movements(frames):
        assert movement is not None
        assert movement.shot == 0
        assert velocity(movement)[0] == pytest.approx(6, abs=0.7)


@pytest.mark.parametrize("code", [0, 16, 128, 255])
def test_flat_pictures_do_not_move(code: int) -> None:
    frames = [frame(np.full((HEIGHT, WIDTH), code, np.uint8), k) for k in range(3)]
    for movement in movements(frames):
        assert movement is None or np.abs(movement.field).max() < 1e-3


def test_scene_to_black_and_back() -> None:
    black = np.zeros((HEIGHT, WIDTH), np.uint8)
    frames = [*film(pan(4), 2), frame(black, 2), frame(black, 3), *film(pan(4), 2)]
    for number, item in enumerate(frames):
        item.pts = number
    found = movements(frames)
    assert velocity(found[1])[0] == pytest.approx(4, abs=0.2)
    assert velocity(found[4])[0] == pytest.approx(4, abs=0.2)


def test_pulldown_shows_the_same_picture_with_the_same_motion() -> None:
    """24 frames/s in 30: each fourth is shown twice; 8 pixels a picture."""
    order = [k * 4 // 5 for k in range(15)]
    rng = np.random.default_rng(1)
    frames = []
    for pts, number in enumerate(order):
        # Coded anew each time: equal but for a little.
        noise = rng.normal(0, 0.6, (HEIGHT, WIDTH)).round()
        picture = np.clip(view(*pan(8)(number)) + noise, 0, 255).astype(np.uint8)
        frames.append(frame(picture, pts))
    found = movements(frames)
    for before, after, here, there in zip(found, found[1:], order, order[1:], strict=False):
        assert (before is after) == (here == there)
    for movement in found[9:]:  # once the rate is known
        assert movement is not None
        assert movement.interval_seconds == pytest.approx(1 / 24, rel=0.07)
        moved = movement.during(0.5 * movement.interval_seconds)
        assert np.median(moved[0]) == pytest.approx(4, rel=0.07)


def test_a_still_film_is_still_and_flows() -> None:
    frames = film(lambda k: (0, 0), 40)
    held: list[int] = []

    def source() -> Iterator[Frame]:
        for number, item in enumerate(frames):
            held.append(number)
            yield item

    for number, (_, movement) in enumerate(follow(source())):
        assert movement is None or not np.abs(movement.field).max()
        assert len(held) - number <= 9


def test_a_frozen_film_goes_on_as_it_did() -> None:
    frames = film(pan(5), 3)
    frozen = frames[-1].planes[0]
    frames += [frame(frozen, 3 + k) for k in range(12)]
    found = movements(frames)
    assert all(movement is found[2] for movement in found[2:])
    assert velocity(found[2])[0] == pytest.approx(5, abs=0.2)


def test_a_variable_rate_gives_velocities() -> None:
    """Ten pixels in 1/30 s and twenty in 2/30 s are one speed: no bend."""
    times = [0, 1, 3, 4]
    frames = [frame(view(*pan(10)(t)), t) for t in times]
    for movement in movements(frames):
        assert velocity(movement)[0] == pytest.approx(10, abs=0.3)
        assert movement is not None
        assert np.median(np.abs(movement.during(1 / FPS)[2:])) < 0.2


def test_fields_are_followed_apart() -> None:
    """The lower field shows another moment, which may not be seen."""
    frames = []
    for k in range(3):
        woven = view(*pan(6, 4)(k))
        woven[1::2] = view(*pan(6, 4)(k + 0.5))[1::2]
        frames.append(frame(woven, k, interlaced=True))
    x, y = velocity(movements(frames)[1])
    assert x == pytest.approx(6, abs=0.3)
    assert y == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_deep_pictures(depth: int) -> None:
    frames = []
    for k in range(3):
        deep = view(*pan(5)(k)).astype(np.uint16) << (depth - 8)
        frames.append(frame(deep, k, depth=depth))
    assert velocity(movements(frames)[1])[0] == pytest.approx(5, abs=0.2)


def test_strided_planes() -> None:
    """As packed formats give them."""
    frames = film(pan(5), 3)
    for item in frames:
        packed = np.zeros((HEIGHT, WIDTH * 3), np.uint8)
        packed[:, 1::3] = item.planes[0]
        item.planes = (packed[:, 1::3],)
    assert velocity(movements(frames)[1])[0] == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (9, 9), (16, 16), (17, 400), (400, 17), (641, 363)]
)
def test_odd_and_tiny_pictures(size: tuple[int, int]) -> None:
    for movement in movements([frame(view(k, 0, size), k) for k in range(3)]):
        assert movement is None or np.isfinite(movement.field).all()


def test_a_change_of_size_is_a_cut() -> None:
    frames = [*film(pan(5), 2), frame(view(0, 0, (200, 180)), 2)]
    found = movements(frames)
    assert velocity(found[1])[0] == pytest.approx(5, abs=0.2)
    assert found[2] is None


def test_hidden_places_are_filled_from_what_is_sure() -> None:
    """A square passes before a still wall: nothing around it gets wild vectors."""
    wall, square = view(0, 0), texture(60, 60, 5)
    frames = []
    for k in range(3):
        picture = wall.copy()
        picture[60:120, 100 + 12 * k : 160 + 12 * k] = np.clip(square, 0, 255)
        frames.append(frame(picture, k))
    movement = movements(frames)[1]
    assert movement is not None
    x, y = movement.field[:2] / FPS
    assert np.median(x[18:27, 30:41]) == pytest.approx(12, abs=0.5)
    far = np.ones(x.shape, bool)
    far[11:34, 20:51] = False
    assert np.hypot(x, y)[far].max() < 0.5
    assert np.hypot(x, y).max() < 14


def test_order_times_and_packets_stay() -> None:
    items: list[Any] = []
    for k, item in enumerate(film(pan(5), 6)):
        items += [item, f"packet {k}a", f"packet {k}b"]
        items.append(frame(view(k, 0, (64, 48)), k, stream=1))
    times = [item.pts for item in items if isinstance(item, Frame)]
    out = list(follow(items))
    assert [item for item, _ in out] == items
    assert [item.pts for item, _ in out if isinstance(item, Frame)] == times
    assert all((m is None) == isinstance(item, str) for item, m in out)


def test_a_stream_that_ends_early_holds_up_nothing() -> None:
    """Its last frame waits for a next that never comes, among another stream's."""
    most = 0
    items: list[Any] = [frame(view(0, 0, (64, 48)), 0, stream=1)]
    items += [frame(view(k % 50, 0, (64, 48)), k) for k in range(60)]
    given = 0

    def source() -> Iterator[Any]:
        nonlocal most
        for number, item in enumerate(items):
            most = max(most, number - given)
            yield item

    for _ in follow(source()):
        given += 1
    assert given == len(items)
    assert most < 20


def test_few_frames_are_held_and_given_ones_may_be_overwritten() -> None:
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    most = 0

    class Counted(Frame):
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    def source() -> Iterator[Frame]:
        nonlocal most
        for k in range(30):
            plain = frame(view(*pan(5)(k)), k)
            item = Counted(plain.planes, plain.layout, k, Fraction(1, FPS))
            alive.add(item)
            del plain
            yield item
            del item
            gc.collect()
            most = max(most, len(alive))

    for item, movement in follow(source()):
        item.planes[0][...] = 77  # as the network does, downstream
        assert velocity(movement)[0] == pytest.approx(5, abs=0.3)
    assert most <= 3


def test_matched_side_by_side_all_is_the_same() -> None:
    """Also cuts, repeated and frozen pictures, another size, another stream and packets."""
    shown = [0, 1, 2, 2, 3, 4, *[5] * 9, 6, 7]
    first = [frame(view(*pan(5, 2)(n)), k) for k, n in enumerate(shown)]
    cut = [frame(view(900 - 4 * k, 200), len(shown) + k) for k in range(4)]
    small = [frame(view(-3 * k, 0, (160, 96)), 30 + k) for k in range(4)]
    items: list[Any] = []
    for k, item in enumerate([*first, *cut, *small]):
        items += [item, f"packet {k}"]
        if k % 2:
            items.append(frame(view(k, 0, (64, 48)), k, stream=1))
    alone = list(follow(items))
    asked = most = 0

    def source() -> Iterator[Any]:
        nonlocal asked
        for item in items:
            asked += isinstance(item, Frame)
            yield item

    with Helpers(3) as helpers:
        given = 0
        for (item, movement), (same, known) in zip(
            follow(source(), helpers=helpers), alone, strict=True
        ):
            assert item is same
            given += isinstance(item, Frame)
            most = max(most, asked - given)
            assert (movement is None) == (known is None)
            if movement is None or known is None:
                continue
            assert (movement.interval_seconds, movement.shot) == (
                known.interval_seconds,
                known.shot,
            )
            for name in ("field", "trust", "ahead", "back"):
                assert np.array_equal(getattr(movement, name), getattr(known, name))
    assert 3 < most <= 16 + helpers.ahead + 1


def test_what_fails_in_a_thread_is_raised_where_movements_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(here: Any, there: Any) -> None:
        raise cv2.error("no memory")

    monkeypatch.setattr("vdeblur.motion.movement.match_pictures", fail)
    with Helpers(2) as helpers, pytest.raises(cv2.error, match="no memory"):
        list(follow(film(pan(5), 6), helpers=helpers))
    gc.collect()


def test_live_pictures_are_compared_with_the_one_before_and_do_not_wait() -> None:
    frames = film(pan(5, 2), 5)
    given: list[Movement | None] = []

    def source() -> Iterator[Frame]:
        for number, item in enumerate(frames):
            assert len(given) == number  # each came out before the next was asked for
            yield item

    watch = LiveTracker()
    for item, movement in follow(source(), look_ahead=False):
        given.append(movement)
        seen = watch.see(replace(item))
        assert (seen is None) == (movement is None)
        if seen is not None and movement is not None:
            assert np.array_equal(seen.field, movement.field)
    assert given[0] is None
    for movement in given[1:]:
        assert velocity(movement) == pytest.approx([5, 2], abs=0.3)


def test_live_times_of_arrival_may_jitter() -> None:
    watch = LiveTracker()
    found = []
    for k, pts in enumerate([0, 100, 200, 330, 400, 500, 570, 700]):
        item = frame(view(*pan(5)(k)), pts)
        item.time_base = Fraction(1, 100 * FPS)
        found.append(watch.see(item))
    for movement in found[3:]:
        assert velocity(movement)[0] == pytest.approx(5, rel=0.1)


def test_slow_motion_is_not_repetition() -> None:
    assert same_picture(view(0, 0), view(0, 0))
    assert not same_picture(view(0, 0), view(0.3, 0))
    here, there = view(0, 0), view(0, 0)
    there[60:90, 60:90] = view(1.5, 0)[60:90, 60:90]
    assert not same_picture(here, there)
