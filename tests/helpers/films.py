"""Small films whose truth is known: sharp frames, and how every pixel moved while exposed.

    python -m tests.helpers.films OUTDIR

writes each as NAME_blurred.mp4 and NAME_sharp.mp4, for `vdeblur eval`. They are made by the
renderer of the sample clips, from scenes of their own.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from samples import make_samples as make
from samples.make_samples import Canvas, Film, Layer, Pose, Turned, layer
from tests.helpers.clips import write_frames

WIDTH, HEIGHT, FPS, FRAMES = 320, 192, 30, 10
FOCAL, WALL = 320.0, 9.0
SUBFRAMES = 15  # odd; blur of 25 pixels is sampled every 1.7


@dataclass(frozen=True)
class Shots:
    """What a film is made of: shots (a `Film` and its number of frames), and what the sensor adds.

    noise: deviation of the read noise and of a white pixel's shot noise, in linear light.
    """

    shots: tuple[tuple[Film, int], ...]
    noise: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Rendered:
    """A film and its truth.

    blurred, sharp: (N, H, W, 3) uint8 RGB, sharp at mid-exposure. motion: (N, 4, H, W) float32 as
    `Frame.motion` has it, of whatever each pixel of the sharp picture shows, with objects. camera:
    (N, 2) float32, how the wall, 9 m away, moves in the middle of the picture during the exposure,
    in pixels. shutter: share of a frame's time. cuts: numbers of the frames that begin a new shot.
    """

    name: str
    fps: int
    shutter: float
    blurred: NDArray[np.uint8]
    sharp: NDArray[np.uint8]
    motion: NDArray[np.float32]
    camera: NDArray[np.float32]
    cuts: tuple[int, ...]


# -- scenes --------------------------------------------------------------------------------------


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def at(x: float, y: float = 0.0) -> Callable[[float], Turned]:
    return lambda _: (x, y, 0.0)


def wall(seed: int, colour: make.Colour, words: tuple[str, ...], *, dim: float = 1.0) -> Layer:
    """A brick wall with posters, lettered large and small, and windows."""
    r = rng(seed)
    c = Canvas(-14, 6, 14, 0, 56)
    c.fill(-14, 0, 28, 6, lambda h, w: make.bricks(r, h, w, c.scale * 1.6, colour))
    for i in range(9):
        x = -13.3 + 3.1 * i
        c.fill(x, 0.6, 1.5, 2.2, lambda h, w: np.clip(
            np.array(r.uniform(60, 230, 3)) * (1 + 0.2 * make.noise(r, h, w, 1.1)[..., None]),
            0, 255))  # fmt: skip
        c.fill(x + 0.1, 1.3, 1.3, 0.9, (240, 236, 224))
        c.text(words[i % len(words)], x + 0.75, 1.98, 0.3, (30, 32, 40), 0.025)
        c.text(words[(i + 1) % len(words)], x + 0.75, 1.64, 0.2, (150, 40, 34), 0.025)
        c.text("daily from nine", x + 0.75, 1.42, 0.13, (40, 40, 44))
        c.window(x + 1.8, 1.0, 0.9, 1.5, (2, 3))
        c.window(x + 0.3, 3.6, 0.9, 1.4, (2, 2))
    light = np.full((c.picture.height, c.picture.width), dim, np.float32)
    return layer(c, WALL, light=light * (1 + 0.06 * make.noise(r, *light.shape, 1.4)))


def floor(seed: int, near: float = 3.0, far: float = WALL + 0.2, *, dim: float = 1.0) -> Layer:
    """Rough ground with slabs and a white line."""
    r = rng(seed)
    c = Canvas(-16, far, 16, near, 40)
    c.fill(-16, near, 32, far - near, lambda h, w: make.bricks(
        r, h, w, c.scale * 3, (118, 114, 108)))  # fmt: skip
    c.fill(-16, near + 1.2, 32, 0.15, (210, 208, 200))
    light = np.full((c.picture.height, c.picture.width), dim, np.float32)
    return layer(c, None, light=light)


def sky(seed: int) -> Layer:
    """Clouds and a wood, far away."""
    r = rng(seed)
    c = Canvas(-90, 50, 90, -6, 4)
    rows, columns = c.picture.height, c.picture.width
    cloud = np.clip(0.5 + 0.4 * make.noise(r, rows, columns, 1.6), 0, 1)[..., None]
    view = cloud * np.array([236, 238, 240]) + (1 - cloud) * np.array([128, 166, 208])
    height = 50 - np.arange(rows)[:, None] / 4
    wood = make.tinted(1 + 0.35 * make.noise(r, rows, columns, 0.6), (84, 104, 70))
    edge = 7 + 2 * make.noise(r, rows, columns, 0.9)
    view = np.where((height < edge)[..., None], wood, view)
    c.fill(-90, -6, 180, 56, lambda _h, _w: view.astype(np.float32))
    return layer(c, 50)


def plain(_t: float, x: torch.Tensor, _z: torch.Tensor) -> torch.Tensor:
    """The same light on all of the ground."""
    return torch.ones_like(x)


@cache
def square() -> list[Layer]:
    """A wall with posters, and somebody walking by."""
    hip = make.limb(0.42, 0.17, 0.12, (70, 74, 92)), make.limb(0.41, 0.12, 0.08, (70, 74, 92), 0.17)

    def leg(side: float, which: int) -> Callable[[float], Turned]:
        return lambda t: make.walking_leg(t, side)[which]

    legs = [[layer(hip[k], 6.5, leg(side, k)) for k in (0, 1)] for side in (0.5, 0.0)]
    person = layer(make.walker(rng(3)), 6.5, lambda t: (*make.walker_at(t), 0.0))
    words = ("RIVER", "MARKET", "BREAD", "TAILOR")
    return [sky(1), floor(2), wall(4, (150, 96, 78), words), *legs[0], person, *legs[1]]


@cache
def yard() -> list[Layer]:
    """Another wall, without anybody."""
    return [sky(11), floor(12), wall(13, (186, 170, 140), ("HOTEL", "GARAGE", "PAINT"))]


@cache
def lane() -> list[Layer]:
    """A road that leads away between boards and trees, for who rides along it."""
    layers = [sky(21), floor(22, 1.0, 60.0)]
    words = ("MILL", "FARM", "BRIDGE", "EGGS", "INN", "PORT")
    tree = Canvas(-2.2, 5, 2.2, 0, 44)
    tree.polygon([(-0.15, 0), (0.15, 0), (0.09, 3.4), (-0.09, 3.4)], (92, 78, 64))
    tree.picture.alpha_composite(make.leaves(rng(29), 150, tree.picture.width, 900, 6))
    for i, depth in enumerate((44, 36, 29, 23, 18, 14, 11)):
        r = rng(30 + i)
        side = -1 if i % 2 else 1
        board = Canvas(-1.6, 3.0, 1.6, 0, 60)
        board.fill(-1.6, 0.5, 3.2, 2.4, partial(make.bricks, r, scale=90, colour=(160, 120, 96)))
        board.fill(-1.3, 1.4, 2.6, 1.2, (236, 232, 218))
        board.text(words[i % 6], 0, 2.15, 0.7, (30, 40, 70), 0.03)
        board.text("half a mile", 0, 1.62, 0.34, (150, 40, 34), 0.02)
        layers += [layer(tree, depth + 1, at(-side * (3.0 + 0.03 * depth)))]
        layers += [layer(board, depth, at(side * (2.8 + 0.04 * depth)))]
    return layers


def car_at(t: float) -> float:
    return -1.9 + 13.0 * t


@cache
def race() -> list[Layer]:
    """A van that passes between a wall and a fence."""
    fence = Canvas(-9, 1.05, 9, 0, 90)
    for i in range(60):
        fence.fill(-9 + 0.3 * i, 0, 0.09, 1.0, partial(
            make.planks, rng(40 + i), scale=fence.scale, colour=(196, 176, 140)))  # fmt: skip
    for y in (0.25, 0.75):
        fence.fill(-9, y, 18, 0.08, (150, 130, 100))
    wheel = make.wheel()

    def wheel_at(offset: float) -> Callable[[float], Turned]:
        return lambda t: (car_at(t) + offset, 0.36, -car_at(t) / 0.36)

    return [
        sky(41),
        floor(42),
        wall(43, (120, 112, 108), ("LAPS", "TYRES", "START", "OIL")),
        layer(make.van(rng(44)), 6.4, lambda t: (car_at(t), 0.0, 0.0)),
        layer(wheel, 6.4, wheel_at(-1.22)),
        layer(wheel, 6.4, wheel_at(1.25)),
        layer(fence, 4.2),
    ]


@cache
def night() -> list[Layer]:
    """The wall by night: lamps many times as bright as white, and a lit van that goes by."""
    lamps = Canvas(-9, 5.5, 9, 0, 60)
    r = rng(51)
    for _ in range(26):
        x, y, size = r.uniform(-8.5, 8.5), r.uniform(0.8, 5.2), r.uniform(0.02, 0.06)
        lamps.disc(x, y, size, ((255, 236, 190), (255, 170, 90), (190, 220, 255))[r.integers(3)])
    lights = Canvas(-2.2, 1.2, 2.2, 0, 90)
    lights.disc(1.9, 0.8, 0.09, (255, 250, 226))
    lights.disc(-1.92, 0.85, 0.07, (230, 30, 20))

    def bright(canvas: Canvas, factor: float) -> NDArray[np.float32]:
        return np.full((canvas.picture.height, canvas.picture.width), factor, np.float32)

    def going(t: float) -> Turned:
        return -2.0 + 6.0 * t, 0.0, 0.0

    body = make.van(rng(52))
    return [
        floor(53, dim=0.05),
        wall(54, (150, 110, 80), ("OPEN", "TAXI", "ROOMS"), dim=0.09),
        layer(lamps, 8.4, light=bright(lamps, 22)),
        layer(body, 6.4, going, light=bright(body, 0.08)),
        layer(lights, 6.4, going, light=bright(lights, 14)),
    ]


# -- cameras -------------------------------------------------------------------------------------


def walking(t: float) -> Pose:
    """A telephone in a walking hand."""
    stride = math.tau * 0.95 * (t + 0.2)
    return Pose(
        x=0.2 - 1.3 * t,
        yaw=0.1 - 0.42 * t + 0.03 * math.sin(stride) + 0.004 * math.sin(math.tau * 3.7 * t),
        pitch=-0.02 + 0.026 * math.sin(2 * stride),
        roll=0.02 * math.sin(stride + 0.9),
        focal=FOCAL,
        y=make.EYE + 0.025 * math.sin(2 * stride),
    )


def riding(t: float) -> Pose:
    """A camera on handlebars: ahead at 6 m/s, with the road's vibration."""
    return Pose(
        x=0.1 * math.sin(math.tau * 1.1 * t),
        yaw=0.05 * math.sin(math.tau * 1.1 * t) + 0.006 * math.sin(math.tau * 9.3 * t),
        pitch=-0.03 + 0.012 * math.sin(math.tau * 11.7 * t) + 0.01 * math.sin(math.tau * 2.3 * t),
        roll=0.03 * math.sin(math.tau * 1.1 * t + 1) + 0.01 * math.sin(math.tau * 8.1 * t),
        focal=FOCAL * 0.8,
        y=1.3 + 0.01 * math.sin(math.tau * 11.7 * t + 0.5),
        z=6.0 * t,
    )


def still(_t: float) -> Pose:
    return Pose(x=0.0, yaw=0.0, pitch=-0.05, roll=0.0, focal=FOCAL)


def following(t: float) -> Pose:
    """Turns with the van, and lags a little."""
    return replace(still(t), yaw=math.atan2(car_at(t) * 0.95, 6.4))


def panning(t: float) -> Pose:
    """1.9 rad/s: 20 pixels a frame."""
    return replace(still(t), yaw=1.9 * t - 0.32, roll=0.01)


def panning_back(t: float) -> Pose:
    return replace(still(t), yaw=0.5 - 1.2 * t, pitch=0.04 * math.sin(7 * t))


def _film(layers: Callable[[], list[Layer]], pose: Callable[[float], Pose], shutter: float) -> Film:
    return Film("", ("", ""), layers, pose, plain, shutter, WIDTH, HEIGHT, FPS)


def _one(layers: Callable[[], list[Layer]], pose: Callable[[float], Pose], shutter: float) -> Shots:
    return Shots(((_film(layers, pose, shutter), FRAMES),))


FILMS: dict[str, Shots] = {
    "walk": _one(square, walking, 0.5),
    "bicycle": _one(lane, riding, 0.5),
    "fence": _one(race, still, 0.6),
    "follow": _one(race, following, 0.6),
    "pan": _one(yard, panning, 0.5),
    "sun": _one(square, walking, 0.03),
    "cut": Shots(
        (
            (_film(yard, panning_back, 0.7), FRAMES // 2),
            (_film(square, walking, 0.7), FRAMES - FRAMES // 2),
        )
    ),
    "night": Shots(((_film(night, walking, 0.9), FRAMES),), noise=(0.002, 0.02)),
}


# -- rendering -----------------------------------------------------------------------------------


@cache
def render(name: str, frames: int | None = None, subframes: int = SUBFRAMES) -> Rendered:
    """The film of that name, or its first `frames`; a second or so a frame, once a process."""
    film = FILMS[name]
    seed = rng(7)
    blurred: list[NDArray[np.uint8]] = []
    sharp, motion, camera, cuts = [], [], [], []
    total = sum(count for _, count in film.shots)
    for shot, count in film.shots:
        if blurred and len(blurred) < (frames or total):
            cuts.append(len(blurred))
        for index in range(count):
            if len(blurred) == (frames or total):
                break
            pair = make.frame(index, subframes, shot)
            blurred.append(_bytes(_with_noise(pair[0], film.noise, seed)))
            sharp.append(_bytes(pair[1]))
            motion.append(make.motion(index, shot))
            camera.append(_of_the_wall(index, shot))
    return Rendered(
        name,
        FPS,
        film.shots[0][0].shutter,
        np.stack(blurred),
        np.stack(sharp),
        np.stack(motion),
        np.array(camera, np.float32),
        tuple(cuts),
    )


def _of_the_wall(index: int, film: Film) -> NDArray[np.float32]:
    """(2,) how a wall 9 m away moves in the middle of the picture during the exposure."""
    alone = Layer(torch.ones(1, 4, 2, 2), (-1e3, 1e3, 1e3, -1e3), WALL)
    field = make.motion(index, replace(film, layers=lambda: [alone]))
    chord: NDArray[np.float32] = field[:2, film.height // 2, film.width // 2]
    return chord


def _with_noise(
    picture: torch.Tensor, noise: tuple[float, float], seed: np.random.Generator
) -> torch.Tensor:
    if not any(noise):
        return picture
    linear = make.decode(picture.numpy())
    deviation = np.sqrt(noise[0] ** 2 + noise[1] ** 2 * linear)
    noisy = linear + deviation * seed.standard_normal(linear.shape).astype(np.float32)
    return make.encode(torch.from_numpy(noisy.astype(np.float32)))


def _bytes(picture: torch.Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = (
        picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    )
    return array


def write(film: Rendered, folder: Path) -> tuple[Path, Path]:
    """The film as NAME_blurred.mp4 and NAME_sharp.mp4: H.264, 4:2:0, BT.709, nearly lossless."""

    def frames(pictures: NDArray[np.uint8]) -> Iterator[Any]:
        for picture in pictures:
            planes = make.to_planes(torch.from_numpy(picture).permute(2, 0, 1) / 255)
            yield av.VideoFrame.from_ndarray(planes, format="yuv420p")

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, pictures in (("blurred", film.blurred), ("sharp", film.sharp)):
        path = folder / f"{film.name}_{kind}.mp4"
        options = {"crf": "10", "preset": "medium"}
        write_frames(
            path, frames(pictures), "libx264", rate=film.fps, colour=(1, 1, 1, 1), options=options
        )
        paths.append(path)
    return paths[0], paths[1]


def main() -> None:
    """Render all films, or those named, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("films", nargs="*", metavar="FILM", help=f"of {', '.join(FILMS)}: all")
    args = parser.parse_args()
    for name in args.films or FILMS:
        film = render(name)
        paths = write(film, args.outdir)
        length = np.hypot(film.motion[:, 0], film.motion[:, 1]).mean()
        print(f"{name}: {length:.1f} pixels of blur on average; {paths[0]}, {paths[1]}")


if __name__ == "__main__":
    main()
