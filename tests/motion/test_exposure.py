"""Exposure: what may be asked for, what is read off blurred films, and how it reaches frames."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.motion.test_flow import FPS, film, frame, pan, texture
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.guide import MOTION_GAIN, Guide, _Shot
from vdeblur.motion.meter import ExposureMeter, stripe_confidence
from vdeblur.motion.movement import LiveTracker, follow
from vdeblur.motion.single_picture import estimate_motion
from vdeblur.motion.stripes import StripeFit
from vdeblur.motion.windows import USUAL_SHARE, FrameSample, comparison, reading

SIZE = (448, 320)


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        ("auto", AUTO),
        (" Auto ", AUTO),
        ("1/60", Exposure(seconds=1 / 60)),
        ("1/60s", Exposure(seconds=1 / 60)),
        (Fraction(1, 60), Exposure(seconds=1 / 60)),
        (Fraction(1), Exposure(seconds=1)),
        ("0.004s", Exposure(seconds=0.004)),
        ("4 ms", Exposure(seconds=0.004)),
        ("0.5", Exposure(share=0.5)),
        (".5", Exposure(share=0.5)),
        (1, Exposure(share=1)),
        (0.25, Exposure(share=0.25)),
        (Exposure(share=0.3), Exposure(share=0.3)),
    ],
)
def test_seconds_and_shares_are_told_apart(value: Any, asked: Exposure) -> None:
    found = exposure_of(value)
    assert found.seconds == pytest.approx(asked.seconds)
    assert found.share == pytest.approx(asked.share)


@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "1/0", "nan", "inf", "3", "60/1", "half", "1/60/2", "5s", "0s", 0, -0.5],
)
def test_nonsense_is_refused_in_one_sentence(value: Any) -> None:
    with pytest.raises(UsageError, match=r"give auto, seconds such as 1/60") as caught:
        exposure_of(value)
    assert "\n" not in str(caught.value)


def test_an_angle_is_explained() -> None:
    with pytest.raises(UsageError, match=r"180 degrees is 0\.5"):
        exposure_of("180")


@cache
def detailed(seed: int) -> NDArray[np.float32]:
    """As sharp as pictures get: lettering and edges over texture."""
    world = np.clip(texture(700, 2600, seed) * 0.5 + 60, 0, 255).astype(np.uint8)
    rng = np.random.default_rng(seed)
    for _ in range(700):
        x, y = int(rng.integers(0, 2600)), int(rng.integers(0, 700))
        text = "".join(chr(c) for c in rng.integers(65, 91, 4))
        code = int(rng.integers(0, 256))
        cv2.putText(world, text, (x, y), 0, float(rng.uniform(0.4, 1.6)), code, 2, cv2.LINE_AA)
    return np.asarray(world, np.float32)


@cache
def soft(seed: int) -> NDArray[np.float32]:
    """The same enlarged three times: as unsharp as a film may be that no motion has blurred."""
    world = detailed(seed)[:234, :867]
    return np.asarray(cv2.resize(world, (2600, 700), interpolation=cv2.INTER_CUBIC), np.float32)


def blurred(
    share: float,
    speed: tuple[float, float],
    count: int,
    seed: int = 0,
    *,
    world_of: Callable[[int], NDArray[np.float32]] = detailed,
    moments: Sequence[int] = (),
) -> Iterator[Any]:
    """A pan with the shutter open for `share` of an interval, coded values averaged.

    moments: when the frames are, in intervals; by default one after the other.
    """
    world, (width, height) = world_of(seed), SIZE
    for k in moments or range(count):
        times = k + share * ((np.arange(25) + 0.5) / 25 - 0.5)
        total = np.zeros((height, width), np.float32)
        for t in times:
            x, y = 1300 - speed[0] * (t - count / 2), 350 - speed[1] * (t - count / 2)
            total += cv2.getRectSubPix(world, SIZE, (x, y))
        yield np.clip(total / len(times), 0, 255).round().astype(np.uint8)


def estimates(share: float, speed: tuple[float, float], seed: int = 0, **options: Any) -> float:
    pictures = blurred(share, speed, 7, seed, **options)
    frames = [frame(p, k, full_range=True) for k, p in enumerate(pictures)]
    guide = Guide()
    out = list(guide.run(frames))
    movements = [m for _, m in follow([frame(f.planes[0], f.pts) for f in frames])]
    movement = movements[3]
    assert movement is not None
    assert out[3].motion is not None
    whole = movement.during(movement.interval_seconds)
    return float(np.median(np.hypot(*out[3].motion[:2])) / np.median(np.hypot(*whole[:2])))


@pytest.mark.parametrize("speed", [(14, 5), (-3, 22), (0, 9)])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_exposure_is_read_off_the_picture(share: float, speed: tuple[float, float]) -> None:
    """Of these nine within 0.85 and 1.2 of the truth."""
    assert 0.75 * share < estimates(share, speed) < 1.25 * share


@pytest.mark.parametrize("world", [detailed, soft])
@pytest.mark.parametrize("speed", [(14, 5), (-3, 22)])
def test_sharp_and_soft_pictures_have_no_motion(
    world: Callable[[int], NDArray[np.float32]], speed: tuple[float, float]
) -> None:
    assert estimates(0.0, speed, world_of=world) < 0.12


def before_a_still_wall(
    share: float, speed: tuple[float, float], size: tuple[int, int]
) -> Iterator[Any]:
    """A board moves before a wall that stands still and is as sharp as pictures get."""
    wall, board = detailed(5)[:320, :448], detailed(6)[100 : 100 + size[1], 300 : 300 + size[0]]
    for k in range(5):
        total = np.zeros(SIZE[::-1], np.float32)
        for t in k - 2 + share * ((np.arange(25) + 0.5) / 25 - 0.5):
            x, y = 224 - size[0] / 2 + speed[0] * t, 160 - size[1] / 2 + speed[1] * t
            way = np.array([[1, 0, x], [0, 1, y]], np.float32)
            there = cv2.warpAffine(np.ones_like(board), way, SIZE)
            total += there * cv2.warpAffine(board, way, SIZE, borderMode=cv2.BORDER_REPLICATE)
            total += (1 - there) * wall
        yield np.clip(total / 25, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(("speed", "size"), [((18, 0), (150, 110)), ((8, 14), (190, 130))])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_what_moves_before_a_sharp_wall_tells_the_exposure(
    share: float, speed: tuple[float, float], size: tuple[int, int]
) -> None:
    """A fifth of the picture, whose windows nearly all show some of the wall."""
    read = share_read(list(before_a_still_wall(share, speed, size)))
    assert read == pytest.approx(share, rel=0.35, abs=0.01)


def test_lines_along_the_motion_are_no_blur() -> None:
    """They look alike blurred and sharp: what else there is has to tell."""

    def lined(seed: int) -> NDArray[np.float32]:
        rows = np.random.default_rng(seed).uniform(0, 120, (234, 1))
        lines = cv2.resize(np.repeat(rows, 2, axis=1), (2600, 700), interpolation=cv2.INTER_AREA)
        return np.asarray(detailed(seed) * 0.5 + lines, np.float32)

    for share in (0.0, 0.5):
        pictures = list(blurred(share, (18, 0), 5, world_of=lined))
        assert share_read(pictures) == pytest.approx(share, rel=0.25, abs=0.01)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize(
    ("speed", "bars"), [((12, 0), (56, 0)), ((16, 0), (40, 0)), ((0, 10), (0, 64))]
)
def test_bars_beside_the_picture_are_not_read(
    share: float, speed: tuple[float, float], bars: tuple[int, int]
) -> None:
    """Their edge is sharp, and along the motion."""
    for seed in (0, 1, 2):
        film = blurred(share, speed, 5, seed, world_of=lambda n: texture(700, 2600, n))
        pictures = [np.ascontiguousarray(picture[64:-64, 64:-64]) for picture in film]
        for picture in pictures:
            rows, columns = (size - bar for size, bar in zip(picture.shape, bars, strict=True))
            seen = picture[bars[0] : rows, bars[1] : columns].copy()
            picture[:] = 16
            picture[bars[0] : rows, bars[1] : columns] = seen
        assert share_read(pictures) == pytest.approx(share, rel=0.2, abs=0.01)


def test_what_is_soft_and_blurred_is_blurred() -> None:
    assert estimates(0.5, (14, 5), world_of=soft) == pytest.approx(0.5, rel=0.45)


def test_noise_is_not_taken_for_a_longer_blur() -> None:
    """In a dark picture."""
    rng = np.random.default_rng(1)
    noisy = [
        np.clip(20 + 0.3 * p + rng.normal(0, 4, p.shape), 0, 255).round().astype(np.uint8)
        for p in blurred(0.5, (14, 5), 6)
    ]
    assert share_read(noisy) == pytest.approx(0.5, rel=0.25)


def share_read(pictures: Sequence[NDArray[np.uint8]]) -> float:
    meter, interval = ExposureMeter(), 1 / FPS
    for item, movement in follow([frame(p, k, full_range=True) for k, p in enumerate(pictures)]):
        meter.see(item, movement)
    assert meter.measured
    return meter.seconds(interval) / interval


def coded(pictures: Sequence[NDArray[np.uint8]], crf: int) -> list[NDArray[np.uint8]]:
    """What x264 leaves of gray pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.height, stream.width = pictures[0].shape
        stream.pix_fmt = "gray"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        out.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as back:
        return [np.asarray(p.to_ndarray(format="gray"), np.uint8) for p in back.decode(video=0)]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_a_coder_leaves_of_the_stripes_is_read(share: float) -> None:
    world, pictures = detailed(1), []
    for k in range(6):
        times = k + share * ((np.arange(17) + 0.5) / 17 - 0.5)
        seen = [cv2.getRectSubPix(world, SIZE, (1300 - 12 * t, 350 - 4 * t)) for t in times]
        pictures.append(np.clip(np.mean(seen, axis=0), 0, 255).round().astype(np.uint8))
    assert share_read(coded(pictures, 26)) == pytest.approx(share, abs=0.06)


def vibrating(share: float, count: int) -> Iterator[Any]:
    """A camera that shakes to and fro once in 2.3 frames, by up to 12 pixels."""
    world = detailed(2)
    for k in range(count):
        total = np.zeros(SIZE[::-1], np.float32)
        for t in k + share * ((np.arange(25) + 0.5) / 25 - 0.5):
            x, y = 12 * np.sin(2 * np.pi * t / 2.3), 4 * np.sin(2 * np.pi * t / 2.3)
            total += cv2.getRectSubPix(world, SIZE, (1300 + x, 350 + y))
        yield np.clip(total / 25, 0, 255).round().astype(np.uint8)


def test_of_a_vibration_the_pictures_tell() -> None:
    frames = [frame(p, k, full_range=True) for k, p in enumerate(vibrating(0.5, 8))]
    lengths, true = [], []
    for k, item in enumerate(Guide().run(frames)):
        lengths.append(float(np.median(np.hypot(*item.motion[:2]))))
        ends = [np.sin(2 * np.pi * (k + s) / 2.3) for s in (-0.25, 0.25)]
        true.append(np.hypot(12, 4) * abs(ends[1] - ends[0]))
    long = np.array(true) > 8
    assert long.any()
    assert not long.all()
    assert np.array(lengths)[long] == pytest.approx(np.array(true)[long], rel=0.4)
    assert max(np.array(lengths)[~long]) < 8
    sharp = [frame(p, k, full_range=True) for k, p in enumerate(vibrating(0.0, 8))]
    assert not any(item.motion.any() for item in Guide().run(sharp))


@pytest.mark.parametrize("exposure", ["auto", "0.5"])
def test_with_several_threads_all_is_the_same(exposure: str) -> None:
    """Of a pan, a vibration, whose pictures are asked each, and single pictures between cuts."""
    pictures = [
        *blurred(0.5, (14, 5), 6),
        *vibrating(0.5, 6),
        *(next(blurred(0.6, (9, 9), 1, seed=seed)) for seed in (3, 4)),
        *blurred(0.3, (-14, 5), 6, seed=5),
    ]
    items: list[Any] = []
    for k, picture in enumerate(pictures):
        items += [frame(picture, k, full_range=True), f"packet {k}"]

    def motions(threads: int) -> tuple[list[Any], list[str]]:
        guide, found = Guide(exposure), []
        for given, item in zip(guide.run(items, threads=threads), items, strict=True):
            assert given is item
            if isinstance(item, Frame):
                found.append((item.motion, item.around is None))
        return found, guide.notes()

    (alone, said), (beside, also) = motions(1), motions(4)
    assert said == also
    for (one, single), (other, lone) in zip(alone, beside, strict=True):
        assert np.array_equal(one, other)
        assert single == lone


def test_threads_end_when_no_more_is_taken() -> None:
    before = set(threading.enumerate())
    frames = Guide().run(iter(film(pan(5), 30)), threads=2)
    next(frames)
    assert set(threading.enumerate()) - before
    frames.close()  # type: ignore[attr-defined]
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize("told", [(0.0, 0.0), (9.0, 0.0), (2.0, 5.0)])
def test_a_shake_is_told_by_the_whole_picture(told: tuple[float, float]) -> None:
    """What the flow says is off by a shift, and nothing else."""
    luma = next(blurred(0.5, (14, 5), 1)).astype(np.float32) / 255
    flow = np.zeros((2, 10, 14), np.float32) + np.array(told, np.float32)[:, None, None]
    shown = estimate_motion(luma, flow)
    assert shown is not None
    x, y = shown.motion[:2]
    sign = 1 if told[0] else np.sign(x.mean())  # a blur has none
    assert np.hypot(sign * x - 7, sign * y - 2.5).max() < 1.5
    # A flow that is wrong everywhere, each place in its own way, is not taken up.
    wrong = np.random.default_rng(1).normal(0, 15, (2, 10, 14)).astype(np.float32)
    alone, other = estimate_motion(luma), estimate_motion(luma, wrong)
    assert alone is not None
    assert other is not None
    assert np.array_equal(alone.motion, other.motion)


def test_seconds_stay_where_the_rate_varies() -> None:
    """Frames one and two intervals apart: the exposure is half of one."""
    moments = [0, 1, 3, 4, 6, 7, 9]
    frames = [
        frame(p, k, full_range=True)
        for k, p in zip(moments, blurred(0.5, (14, 5), 0, moments=moments), strict=True)
    ]
    for item in Guide().run(frames):
        assert np.median(np.hypot(*item.motion[:2])) == pytest.approx(
            0.5 * np.hypot(14, 5), rel=0.25
        )


def by_hand(
    share: float,
    speed: float,
    count: int,
    *,
    world_of: Callable[[int], NDArray[np.float32]] = detailed,
    rate: float = 0.45,
) -> list[Frame]:
    """A camera that a hand turns, by up to `speed` pixels a frame, another way at each.

    rate: radians a frame of its sway.
    """
    frames = []
    for k in range(count):
        times = k + share * ((np.arange(15) + 0.5) / 15 - 0.5)
        total = np.zeros(SIZE[::-1], np.float32)
        for t in times:
            x = 1300 + speed / rate * np.sin(rate * t)
            y = 350 + 0.7 * speed / rate * np.cos(1.3 * rate * t)
            # Sharp wherever it looks: linear interpolation would blur between pixels.
            place = np.array([[1, 0, x - SIZE[0] / 2], [0, 1, y - SIZE[1] / 2]], np.float32)
            way = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
            total += cv2.warpAffine(world_of(0), place, SIZE, flags=way)
        picture = np.clip(total / len(times), 0, 255).round().astype(np.uint8)
        frames.append(frame(picture, k, full_range=True))
    return frames


def share_of(frames: list[Frame], guide: Guide) -> float:
    """Of the way of the middle frame, what it was given as its motion."""
    middle = len(frames) // 2
    ways = [m for _, m in follow([frame(f.planes[0], f.pts, full_range=True) for f in frames])]
    movement = ways[middle]
    assert movement is not None
    given = list(guide.run(frames))[middle].motion
    whole = movement.during(MOTION_GAIN * movement.interval_seconds)
    return float(np.median(np.hypot(*given[:2])) / np.median(np.hypot(*whole[:2])))


@pytest.mark.parametrize("speed", [2.5, 9.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_what_a_hand_blurs_is_read_off_how_it_changes(share: float, speed: float) -> None:
    """Slow enough for no stripes, too: what is sharp stays to the last bit."""
    guide = Guide()
    assert share_of(by_hand(share, speed, 8), guide) == pytest.approx(share, rel=0.25, abs=1e-9)
    (note,) = guide.notes()
    assert ("too shortly to blur" if share == 0 else "was open for about") in note


def scanned(_seed: int) -> NDArray[np.float32]:
    """Soft across, as no motion makes it."""
    return np.asarray(cv2.blur(detailed(0), (7, 1)), np.float32)


def test_a_sharp_film_that_turns_fast_is_left_alone_whatever_it_looks_like() -> None:
    frames = by_hand(0.0, 7.0, 8, world_of=scanned, rate=1.1)
    assert any(m is not None and m.doubtful for _, m in follow(by_hand(0, 7, 8, rate=1.1)))
    looks = estimate_motion(np.asarray(frames[4].planes[0], np.float32) / np.float32(255))
    assert looks is not None
    assert looks.blurred > 0.5
    assert not any(item.motion.any() for item in Guide().run(frames))


def test_a_frame_is_compared_with_the_one_before_it_when_it_is_time() -> None:
    meter, before, compared = ExposureMeter(), None, []
    for k, (item, movement) in enumerate(follow(by_hand(0.5, 5.0, 19))):
        assert movement is not None
        meter.see(item, movement, before)
        before = FrameSample.at(item, movement) if meter.wants_before else None
        if before is not None:
            compared.append(k + 1)
    assert compared == [1, 2, 3, 16]
    # A copy of a picture has changed by nothing, and one of another size is another film's.
    frames = by_hand(0.5, 5.0, 3)
    (_, first), (item, movement), _ = follow(frames)
    assert first is not None
    assert movement is not None
    look = FrameSample.at(frames[0], first)
    unit = movement.interval_seconds
    assert comparison(look, item, movement, unit) is not None
    assert comparison(look, item, first, unit) is None
    smaller = FrameSample(look.luma[:-2], 1, first, look.way)
    assert comparison(smaller, item, movement, unit) is None


def test_frames_that_turn_in_a_shot_that_does_not_move_as_the_others_do() -> None:
    """The flow is as good as beside them, and the exposure is known."""
    movements = [m for _, m in follow(by_hand(0.5, 7.0, 10, rate=0.6))]
    turning = [k for k, m in enumerate(movements) if m is not None and m.doubtful]
    assert 2 <= len(turning) <= 5
    guide = Guide()
    for k, item in enumerate(guide.run(by_hand(0.5, 7.0, 10, rate=0.6))):
        movement = movements[k]
        assert movement is not None
        given, right = (m[:2] for m in (item.motion, movement.during(0.5 * MOTION_GAIN / FPS)))
        if k in turning:
            assert np.median(np.hypot(*(given - right))) < 0.2 * np.median(np.hypot(*right)) + 0.1
    assert "was open for about 0.5" in guide.notes()[0]


def test_a_cut_that_looks_like_none_is_no_movement() -> None:
    """What is matched with another scene goes farther than the shot does."""
    shot = _Shot(0)
    movements = [m for _, m in follow(by_hand(0.5, 7.0, 10, rate=0.6))]
    turns = next(m for m in movements if m is not None and m.doubtful)
    assert not shot.knows(turns)
    for movement in movements:
        assert movement is not None
        shot.see(movement)
    assert shot.knows(turns)
    assert not shot.knows(replace(turns, field=4 * turns.field))


def test_two_fields_in_one_picture_are_no_blur() -> None:
    """Interlaced, and nobody said so: rows lie apart by how fast it moves, which is a change."""
    frames = []
    for k in range(8):
        at = 2 * k + 0.8 * k * k
        one, other = (detailed(0)[100:420, round(x) : round(x) + 448] for x in (at, at + at / 12))
        picture = one.copy()
        picture[1::2] = other[1::2]
        frames.append(frame(picture.round().clip(0, 255).astype(np.uint8), k, full_range=True))
    meter, before = ExposureMeter(), None
    for item, movement in follow(frames):
        meter.see(item, movement, before)
        before = None if movement is None else FrameSample.at(item, movement)
    assert meter.seconds(1 / FPS) == 0


def test_a_pan_that_never_changes_tells_nothing() -> None:
    """Pictures without noise, each a whole number of pixels on, are the same to the last bit."""
    meter, before = ExposureMeter(), None
    for item, movement in follow(list(film(pan(3), 6))):
        meter.see(item, movement, before)
        before = None if movement is None else FrameSample.at(item, movement)
    assert not meter.sharp
    assert not meter.measured
    assert 0 < meter.seconds(1 / FPS) * FPS < USUAL_SHARE


def test_ways_are_of_the_same_seconds_where_the_rate_varies() -> None:
    """Three pixels in each 1/30 s, whatever the pictures' intervals: nothing changes."""
    frames = [frame(p, k, full_range=True) for k, p in enumerate(blurred(0.5, (3, 0), 9))]
    followed = list(follow([frames[k] for k in (0, 1, 4, 5, 8)]))
    intervals = {round(m.interval_seconds * FPS) for _, m in followed if m is not None}
    assert intervals == {1, 2}
    for (item, movement), (after, moved) in pairwise(followed):
        assert movement is not None
        assert moved is not None
        seen = comparison(FrameSample.at(item, movement), after, moved, 2 / FPS)
        assert seen is not None
        assert seen.fit().telling < 0.1
        assert seen.squared_motion / seen.windows == pytest.approx(6**2, rel=0.1)


def test_where_hardly_anything_moves_less_than_the_usual_share_is_taken() -> None:
    guide = Guide()
    frames = list(guide.run(film(pan(0.7), 5)))  # too slow to be read, and always the same way
    assert frames[2].motion is not None
    assert np.median(frames[2].motion[0]) == pytest.approx(0.7 * USUAL_SHARE / 2, abs=0.05)
    assert guide.notes() == [
        "the pictures do not tell how long the shutter was open: taken as 0.25 of a frame's time"
    ]


def test_seconds_and_shares_scale_chord_and_bend() -> None:
    def bent() -> list[Frame]:
        return film(lambda k: (-6 * k - 2 * k * k, 0), 3)

    whole = next(m for n, (_, m) in enumerate(follow(bent())) if n == 1)
    assert whole is not None
    for asked, seconds in (("0.5", 0.5 / FPS), ("1/120", 1 / 120)):
        guide = Guide(asked)
        middle = list(guide.run(bent()))[1]
        assert np.allclose(middle.motion, whole.during(MOTION_GAIN * seconds), atol=1e-4)
        assert guide.notes() == []


def test_it_is_told_in_the_report() -> None:
    guide = Guide()
    frames = [frame(p, k, full_range=True) for k, p in enumerate(blurred(0.5, (14, 5), 7))]
    list(guide.run(frames))
    (note,) = guide.notes()
    assert note.startswith("the shutter was open for about 0.")
    assert "of a frame's time (1/" in note


def test_who_knows_better_than_the_pictures_is_told_what_to_do() -> None:
    guide = Guide()
    frames = [frame(p, k, full_range=True) for k, p in enumerate(blurred(0.0, (14, 5), 5))]
    list(guide.run(frames))
    (note,) = guide.notes()
    assert "too shortly to blur" in note
    assert "exposure such as 0.5" in note


def test_order_and_packets_stay_and_the_first_frames_know_already() -> None:
    items: list[Any] = []
    for k, picture in enumerate(blurred(0.5, (14, 5), 12)):
        items += [frame(picture, k, full_range=True), f"packet {k}"]
    asked = 0

    def source() -> Iterator[Any]:
        nonlocal asked
        for item in items:
            asked += 1
            yield item

    out = []
    for item in Guide().run(source()):
        out.append(item)
        assert asked - len(out) <= 2 * 9  # frames and packets that wait
    assert out == items
    first, last = items[0], items[-2]
    assert np.median(first.motion[0]) == pytest.approx(np.median(last.motion[0]), rel=0.1)


def test_it_is_learned_again_after_a_cut() -> None:
    pictures = [*blurred(0.9, (14, 5), 6), *blurred(0.3, (-14, 5), 6, seed=4)]
    guide = Guide()
    frames = list(guide.run(frame(p, k, full_range=True) for k, p in enumerate(pictures)))
    lengths = [float(np.median(np.hypot(*f.motion[:2]))) for f in frames]
    assert min(lengths[:6]) > 1.8 * max(lengths[6:])


def test_live_frames_do_not_wait() -> None:
    watch, meter = LiveTracker(), ExposureMeter()
    movement = None
    for k, picture in enumerate(blurred(0.8, (14, 5), 6)):
        item = frame(picture, k, full_range=True)
        movement = watch.see(item)
        meter.see(item, movement)
    assert movement is not None
    motion = movement.during(meter.seconds(movement.interval_seconds))
    assert np.median(motion[0]) == pytest.approx(0.8 * 14, rel=0.2)


def test_measuring_is_rare_once_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(*args: Any, **options: Any) -> Said:
        calls.append(options)
        return Said(0.5)

    monkeypatch.setattr("vdeblur.motion.meter.reading", count)
    list(Guide().run(film(pan(5), 36)))
    assert [options["turn"] for options in calls] == [0, 1, 2, 3, 16, 32]
    assert [options["share"] for options in calls] == pytest.approx([0.5] * 6)


@dataclass
class Said:
    """What windows could say."""

    share: float
    windows: int = 100
    explained: float = 0.2
    distinct: float = 0.9

    def __add__(self, more: Said) -> Said:
        return self

    def fit(self) -> StripeFit:
        return StripeFit(self.share, 10.0, self.explained, self.distinct, self.windows)


def test_little_evidence_shortens_but_does_not_lengthen(monkeypatch: pytest.MonkeyPatch) -> None:
    movement = next(m for n, (_, m) in enumerate(follow(film(pan(5), 3))) if n == 1)
    for found, given in (
        (Said(0.9, windows=4), 0.6),
        (Said(0.9), 0.9),
        (Said(0.2, windows=4), 0.2),
        (Said(0.9, explained=0.01), 0.0),
        (Said(0.9, distinct=0.1), 0.0),
        (Said(1.2), 1.05),
    ):
        monkeypatch.setattr("vdeblur.motion.meter.reading", lambda *a, f=found, **o: f)
        meter = ExposureMeter()
        assert not meter.measured
        assert meter.seconds(1 / FPS) == USUAL_SHARE / FPS
        meter.see(film(pan(5), 1)[0], movement)
        assert meter.measured
        assert meter.seconds(1 / FPS) * FPS == pytest.approx(given, abs=0.02)


@pytest.mark.parametrize(
    "layout",
    [
        {"interlaced": True},
        {"depth": 10},
        {"full_range": True},
    ],
)
def test_layouts_are_measured_alike(layout: dict[str, Any]) -> None:
    frames = []
    for k, picture in enumerate(blurred(0.6, (14, 0), 3)):
        limited = picture if layout.get("full_range") else 16 + picture * (219 / 255)
        codes = np.asarray(limited * (4 if "depth" in layout else 1))
        kind = np.uint16 if "depth" in layout else np.uint8
        frames.append(frame(codes.round().astype(kind), k, **layout))
    item, movement = list(follow(frames))[1]
    assert movement is not None
    seen = reading(item, movement, movement.interval_seconds)
    assert seen is not None
    assert seen.fit().share == pytest.approx(0.6, rel=0.1)
    assert stripe_confidence(seen.fit()) == 1


@pytest.mark.parametrize("size", [(20, 20), (64, 40), (40, 300)])
def test_small_pictures(size: tuple[int, int]) -> None:
    frames = [frame(cv2.getRectSubPix(detailed(1), size, (900 - 4 * k, 300)).astype(np.uint8), k)
              for k in range(4)]  # fmt: skip
    for item in Guide().run(frames):
        assert item.motion is None or np.isfinite(item.motion).all()


def test_long_motions_are_read_off_a_smaller_picture() -> None:
    assert estimates(0.5, (70, 0), seed=2) == pytest.approx(0.5, rel=0.25)
    # 21 pixels of blur, which nothing but a smaller picture shows to be more than 17; and where the
    # usual share of the motion would be short enough for the whole one.
    assert estimates(0.7, (30, 4), seed=1) == pytest.approx(0.7, rel=0.15)
    assert estimates(0.9, (22, 4), seed=1) == pytest.approx(0.9, rel=0.15)
