"""Makes the sample clips: streets that this file paints, filmed by hand with a slow shutter.

    python samples/make_samples.py OUTDIR [street] [walk]

writes street_blurred.mp4, street_sharp.mp4, walk_blurred.mp4 and walk_sharp.mp4. Each scene is a
handful of flat layers standing at their distances from a camera. The street's pans, shakes, rolls
and zooms, and a van, a ball and a hanging sign move on their own; the walk's sways and bobs as a
telephone in a walking hand does, past a cyclist, somebody walking and a sign. A blurred frame is
the mean of the pictures during its exposure, taken in linear light; the sharp frame is the picture
at mid-exposure. Every run gives the same pictures.

Knows nothing of vdeblur, so that the clips can judge it. Needs numpy, torch, Pillow and PyAV.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Array = NDArray[Any]  # float32 throughout, but NumPy's types do not follow it so far
Colour = tuple[int, int, int]

WIDTH, HEIGHT, FPS, FRAMES = 640, 360, 30, 60
SUBFRAMES = 25  # odd, so that one of them is mid-exposure
SHUTTER = 0.7  # open for this share of a frame's time: a 252° shutter
FOCAL = 640.0  # pixels
FACADE, PAVEMENT, EYE = 9.0, 7.1, 1.65  # distances and the height of the camera, in metres
AUDIO_RATE = 48000


# --------------------------------------------------------------------------- painting


def noise(
    rng: np.random.Generator, height: int, width: int, slope: float, stretch: float = 1
) -> Array:
    """Noise of mean 0 and deviation 1; a larger `slope` is cloudier, `stretch` > 1 taller."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    fy = np.fft.fftfreq(height)[:, None] * stretch
    fx = np.fft.rfftfreq(width)[None]
    radius = np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    field = np.fft.irfft2(spectrum * radius**-slope, (height, width))
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


def tinted(shade: Array, colour: Colour) -> Array:
    """`colour` times a picture of shades around 1, as coded values 0..255."""
    return np.asarray(np.clip(shade[..., None] * np.array(colour), 0, 255), np.float32)


def bricks(
    rng: np.random.Generator, height: int, width: int, scale: float, colour: Colour
) -> Array:
    """A brick wall; `scale` in pixels a metre."""
    y = np.arange(height)[:, None] / (0.078 * scale)
    row = np.floor(y).astype(int)
    x = np.arange(width)[None] / (0.232 * scale) + 0.5 * (row % 2)
    column = np.floor(x).astype(int)
    tones = rng.normal(1, 0.13, (row.max() + 1, column.max() + 1)).astype(np.float32)
    warmth = rng.normal(0, 0.05, tones.shape).astype(np.float32)
    edge = np.minimum(np.minimum(y % 1, 1 - y % 1) * 0.078, np.minimum(x % 1, 1 - x % 1) * 0.232)
    mortar = np.clip(1.6 - edge / 0.0055, 0, 1).astype(np.float32)[..., None]
    shade = tones[row, column] * (1 + 0.07 * noise(rng, height, width, 0.5))
    wall = tinted(shade, colour) * (1 + warmth[row, column][..., None] * np.array([1, 0, -1]))
    joint = tinted(1 + 0.05 * noise(rng, height, width, 0.3), (172, 163, 150))
    stain = 1 + 0.06 * noise(rng, height, width, 1.4)[..., None]
    picture = (wall * (1 - mortar) + joint * mortar) * stain
    return np.asarray(np.clip(picture, 0, 255), np.float32)


def planks(
    rng: np.random.Generator, height: int, width: int, scale: float, colour: Colour
) -> Array:
    """Upright boards with grain."""
    board = np.arange(width) / (0.135 * scale)
    tone = rng.normal(1, 0.09, int(board.max()) + 1)[board.astype(int)]
    gap = np.clip(np.minimum(board % 1, 1 - board % 1) * 0.135 * scale / 1.2, 0.25, 1)
    grain = noise(rng, height, width, 1.0, stretch=14)
    fine = noise(rng, height, width, 0.4, stretch=8)
    return tinted((1 + 0.13 * grain + 0.05 * fine) * (tone * gap)[None].astype(np.float32), colour)


def plaster(rng: np.random.Generator, height: int, width: int, colour: Colour) -> Array:
    """A rendered wall, with rain streaks."""
    shade = 1 + 0.045 * noise(rng, height, width, 0.3) + 0.05 * noise(rng, height, width, 1.3)
    return tinted(shade + 0.035 * noise(rng, height, width, 1.2, stretch=12), colour)


def leaves(
    rng: np.random.Generator, height: int, width: int, count: int, size: float, flowers: float = 0.0
) -> Image.Image:
    """A crown or a bush on a transparent ground: leaves from the dark inside to the lit outside."""
    zoom = 3  # Pillow's polygons have hard edges: paint large, reduce
    picture = Image.new("RGBA", (width * zoom, height * zoom))
    draw = ImageDraw.Draw(picture)
    blobs = rng.uniform([0.2, 0.22], [0.8, 0.75], (9, 2))
    for i in range(count):
        depth = i / count
        centre = blobs[rng.integers(len(blobs))]
        angle, radius = rng.uniform(0, math.tau), math.sqrt(rng.uniform()) * 0.2
        x = (centre[0] + radius * math.cos(angle)) * width * zoom
        y = (centre[1] + radius * math.sin(angle)) * height * zoom
        turn, length = rng.uniform(0, math.tau), size * zoom * rng.uniform(0.6, 1.3)
        light = (0.35 + 0.75 * depth) * (1.12 - 0.45 * y / (height * zoom)) * rng.uniform(0.75, 1.2)
        green = np.array([98, 128, 52]) if rng.uniform() > 0.3 else np.array([124, 140, 62])
        if rng.uniform() < flowers * depth:
            green = np.array([[214, 92, 96], [232, 196, 92], [236, 226, 222]][rng.integers(3)])
            length *= 0.7
        outline = [
            (x + length * (a * math.cos(turn) - b * math.sin(turn)),
             y + length * (a * math.sin(turn) + b * math.cos(turn)))
            for a, b in ((-1, 0), (-0.3, 0.42), (0.4, 0.34), (1, 0), (0.4, -0.34), (-0.3, -0.42))
        ]  # fmt: skip
        draw.polygon(outline, fill=(*np.clip(green * light, 0, 255).astype(int).tolist(), 255))
    return picture.resize((width, height), Image.Resampling.BOX)


class Canvas:
    """A picture in metres: x to the right, y up, (left, top) its corner."""

    def __init__(self, left: float, top: float, right: float, bottom: float, scale: float) -> None:
        self.left, self.top, self.right, self.bottom, self.scale = left, top, right, bottom, scale
        size = round((right - left) * scale), round((top - bottom) * scale)
        self.picture = Image.new("RGBA", size)

    def pixels(self, x: float, y: float) -> tuple[int, int]:
        """Where a point lies."""
        return round((x - self.left) * self.scale), round((self.top - y) * self.scale)

    def box(self, x: float, y: float, width: float, height: float) -> tuple[int, int, int, int]:
        """The pixels of a rectangle whose lower left corner is (x, y)."""
        return (*self.pixels(x, y + height), *self.pixels(x + width, y))

    def fill(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        what: Colour | Callable[[int, int], Array],
    ) -> None:
        """Paint a rectangle with a colour or with a texture made to its (rows, columns)."""
        x0, y0, x1, y1 = self.box(x, y, width, height)
        if isinstance(what, tuple):
            self.picture.paste((*what, 255), (x0, y0, x1, y1))
        else:
            pixels = what(y1 - y0, x1 - x0).astype(np.uint8)
            self.picture.paste(Image.fromarray(pixels).convert("RGBA"), (x0, y0))

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Paint a polygon with smooth edges."""
        zoom = 4
        corners = [((x - self.left) * self.scale, (self.top - y) * self.scale) for x, y in points]
        left, top = (math.floor(min(c[i] for c in corners)) - 1 for i in (0, 1))
        right, bottom = (math.ceil(max(c[i] for c in corners)) + 1 for i in (0, 1))
        mask = Image.new("L", ((right - left) * zoom, (bottom - top) * zoom))
        enlarged = [((x - left) * zoom, (y - top) * zoom) for x, y in corners]
        ImageDraw.Draw(mask).polygon(enlarged, fill=255)
        mask = mask.resize((right - left, bottom - top), Image.Resampling.BOX)
        self.picture.paste((*colour, 255), (left, top), mask)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """Paint a disc with a smooth edge."""
        turn = [math.tau * i / 90 for i in range(90)]
        points = [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turn]
        self.polygon(points, colour)

    def text(
        self, words: str, x: float, y: float, height: float, colour: Colour,
        bold: float = 0.0, centre: bool = True,
    ) -> None:  # fmt: skip
        """Letters `height` metres tall (capitals about 0.72 of it), their middle at (x, y)."""
        zoom = 4
        font = ImageFont.load_default(size=height * self.scale * zoom)
        stroke = round(bold * height * self.scale * zoom)
        left, top, right, bottom = font.getbbox(words, anchor="mm", stroke_width=stroke)
        size = [math.ceil(v / zoom) * zoom + 4 * zoom for v in (right - left, bottom - top)]
        mask = Image.new("L", (size[0], size[1]))
        ImageDraw.Draw(mask).text(
            (size[0] / 2, size[1] / 2), words, 255, font, anchor="mm", stroke_width=stroke
        )
        mask = mask.resize((size[0] // zoom, size[1] // zoom), Image.Resampling.BOX)
        px, py = self.pixels(x, y)
        px -= mask.width // 2 if centre else 0
        self.picture.paste((*colour, 255), (px, py - mask.height // 2), mask)

    def shadow(self, x: float, y: float, width: float, height: float, depth: float = 0.55) -> None:
        """Darken a rectangle softly, as something standing out of the wall does."""
        x0, y0, x1, y1 = self.box(x, y, width, height)
        soft = 0.02 * self.scale
        edge = math.ceil(4 * soft)
        mask = Image.new("L", (x1 - x0 + 2 * edge, y1 - y0 + 2 * edge))
        mask.paste(round(255 * depth), (edge, edge, edge + x1 - x0, edge + y1 - y0))
        mask = mask.filter(ImageFilter.GaussianBlur(soft))
        self.picture.paste((22, 20, 26, 255), (x0 - edge, y0 - edge), mask)

    def window(
        self, x: float, y: float, width: float, height: float, panes: tuple[int, int]
    ) -> None:
        """A window with bars, glass that mirrors the sky, a sill and its shadow."""
        self.fill(x - 0.07, y - 0.07, width + 0.14, height + 0.14, (214, 208, 194))
        self.fill(x, y, width, height, glass)
        self.shadow(x, y + height - 0.1, width, 0.1, 0.6)
        for i in range(1, panes[0]):
            self.fill(x + width * i / panes[0] - 0.025, y, 0.05, height, (206, 200, 187))
        for i in range(1, panes[1]):
            self.fill(x, y + height * i / panes[1] - 0.025, width, 0.05, (206, 200, 187))
        self.fill(x - 0.12, y - 0.15, width + 0.24, 0.09, (196, 189, 176))
        self.shadow(x - 0.1, y - 0.25, width + 0.2, 0.09, 0.4)


def glass(height: int, width: int) -> Array:
    """Dark glass with a slanting reflection."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    slant = np.sin((x + 0.6 * y) / max(width, height) * 9) * 0.5 + 0.5
    light = 44 + 52 * slant**3 + 34 * (1 - y / height)
    return np.stack([light * 0.84, light * 0.95, light * 1.05], -1)


def star(size: int) -> Array:
    """A Siemens star, black on white: finer towards its middle."""
    y, x = np.mgrid[0 : 4 * size, 0 : 4 * size].astype(np.float32) - 2 * size + 0.5
    spokes = np.sign(np.sin(np.arctan2(y, x) * 16))
    inside = np.hypot(x, y) < 2 * size * 0.96
    light = np.where(inside, 132 + 104 * spokes, 236).astype(np.uint8)
    small = Image.fromarray(light).resize((size, size), Image.Resampling.BOX)
    return np.repeat(np.asarray(small, np.float32)[..., None], 3, -1)


def bars(height: int, width: int) -> Array:
    """Upright black bars that grow finer to the right."""
    x = np.linspace(0, 1, 8 * width, dtype=np.float32)
    light = 132 + 104 * np.sign(np.sin(math.tau * (6 * x + 8 * x * x)))
    line = light.reshape(width, 8).mean(1)
    return np.broadcast_to(line[None, :, None], (height, width, 3)).astype(np.float32)


# --------------------------------------------------------------------------- the street


@dataclass
class Layer:
    """A flat picture that stands at distance `depth` (metres), or lies on the ground (None).

    texture: (1, 4, rows, columns) float32, linear light times coverage, then coverage. place: where
    its anchor, canvas point (0, 0), stands at a time in seconds, and its turn in radians.
    """

    texture: torch.Tensor
    bounds: tuple[float, float, float, float]  # left, top, right, bottom
    depth: float | None
    place: Callable[[float], tuple[float, float, float]] = lambda _: (0.0, 0.0, 0.0)


def layer(
    canvas: Canvas,
    depth: float | None,
    place: Callable[[float], tuple[float, float, float]] = lambda _: (0.0, 0.0, 0.0),
    light: Array | None = None,
) -> Layer:
    """Make a canvas ready to be filmed; `light` multiplies it, in linear light."""
    pixels = np.asarray(canvas.picture, np.float32) / 255
    colour = decode(pixels[..., :3])
    if light is not None:
        colour = colour * light[..., None]
    cover = pixels[..., 3:]
    texture = torch.from_numpy(np.concatenate([colour * cover, cover], -1)).permute(2, 0, 1)[None]
    bounds = (canvas.left, canvas.top, canvas.right, canvas.bottom)
    return Layer(texture.float().contiguous(), bounds, depth, place)


def decode(coded: Array) -> Array:
    """SRGB values 0..1 to linear light."""
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)


def encode(linear: torch.Tensor) -> torch.Tensor:
    """Linear light to sRGB values 0..1."""
    x = linear.clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def backdrop(rng: np.random.Generator) -> Layer:
    """Sky, a wooded hill and far houses."""
    c = Canvas(-80, 34, 80, -4, 16)
    rows, columns = c.picture.height, c.picture.width
    fall = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    sky = (1 - fall) * np.array([112, 152, 200]) + fall * np.array([206, 220, 232])
    cloud = np.clip(noise(rng, rows, columns, 1.7, 1.8) * 0.5 + 0.25, 0, 1)[..., None]
    wood_edge = 9 + 2.2 * noise(rng, 1, columns, 1.2)[0]
    height = c.top - np.arange(rows, dtype=np.float32)[:, None] / c.scale
    crown = height + 0.5 * noise(rng, rows, columns, 0.7) < wood_edge[None]
    wood = tinted(1 + 0.3 * noise(rng, rows, columns, 0.7), (92, 110, 84))
    view = np.where(crown[..., None], wood, sky * (1 - cloud) + cloud * np.array([238, 238, 236]))
    c.fill(-80, -4, 160, 38, lambda _h, _w: np.clip(view, 0, 255).astype(np.float32))
    for i in range(26):
        x, tall, wide = -78 + 6.1 * i, rng.uniform(5, 9.5), rng.uniform(4.6, 6)
        tone = int(rng.uniform(150, 205))
        c.fill(x, -4, wide, 4 + tall, (tone, tone - 8, tone - 20))
        roof = [(x - 0.4, tall), (x + wide / 2, tall + 2.4), (x + wide + 0.4, tall)]
        c.polygon(roof, (134, 84, 68))
        for floor in range(3):
            for k in range(3):
                c.fill(x + 0.6 + k * wide / 3.2, 1.2 + 2.4 * floor, 0.8, 1.2, (66, 74, 84))
    return layer(c, 60)


def optician(c: Canvas, rng: np.random.Generator) -> None:
    """A brick house with a shop: charts for the eye, lettering of many sizes."""
    c.fill(-8.2, 0, 6.9, 6.3, lambda h, w: bricks(rng, h, w, c.scale, (148, 90, 74)))
    c.fill(-8.2, 0, 6.9, 0.42, lambda h, w: plaster(rng, h, w, (116, 112, 108)))
    for x in (-7.6, -5.5, -3.1):
        c.window(x, 3.85, 1.1, 1.5, (2, 3))
    c.shadow(-7.95, 2.6, 6.5, 0.25, 0.5)
    c.fill(-7.95, 2.75, 6.4, 0.72, (28, 58, 64))
    c.fill(-7.91, 2.79, 6.32, 0.025, (196, 174, 112))
    c.fill(-7.91, 3.4, 6.32, 0.025, (196, 174, 112))
    c.text("HARPER & SONS  OPTICIANS", -4.75, 3.115, 0.47, (236, 226, 196), 0.022)
    c.fill(-7.8, 0.5, 3.9, 2.15, (40, 62, 66))
    c.fill(-7.7, 0.6, 3.7, 1.95, glass)
    c.shadow(-7.7, 2.4, 3.7, 0.15)
    c.fill(-7.5, 0.75, 1.05, 1.65, (240, 238, 230))
    for row, (word, tall) in enumerate(
        (("E", 0.46), ("F P", 0.33), ("T O Z", 0.26), ("L P E D", 0.2), ("P E C F D", 0.155),
         ("E D F C Z P", 0.12), ("F E L O P Z D", 0.09))
    ):  # fmt: skip
        y = (2.19, 1.84, 1.57, 1.34, 1.155, 1.01, 0.88)[row]
        c.text(word, -6.975, y, tall, (24, 24, 26), 0.03)
    c.fill(-6.25, 1.35, 1.05, 1.05, lambda h, w: star(max(h, w))[:h, :w])
    c.fill(-6.25, 0.75, 1.05, 0.24, bars)
    c.fill(-6.25, 1.03, 1.05, 0.24, lambda h, w: bars(h, w)[:, ::-1])
    c.text("EYE TESTS", -4.62, 2.15, 0.2, (238, 236, 228), 0.03)
    c.text("GLASSES", -4.62, 1.9, 0.2, (238, 236, 228), 0.03)
    c.text("REPAIRS", -4.62, 1.65, 0.2, (238, 236, 228), 0.03)
    c.fill(-5.0, 0.75, 0.78, 0.7, (228, 196, 92))
    c.text("SECOND", -4.61, 1.29, 0.16, (34, 30, 28), 0.02)
    c.text("PAIR", -4.61, 1.11, 0.16, (34, 30, 28), 0.02)
    c.text("half price", -4.61, 0.9, 0.13, (34, 30, 28))
    door(c, rng, -3.4, "12", (112, 72, 44))


def door(c: Canvas, rng: np.random.Generator, x: float, number: str, colour: Colour) -> None:
    """A wooden door with its number."""
    c.fill(x - 0.12, 0, 1.34, 2.42, (208, 200, 186))
    c.fill(x, 0.06, 1.1, 2.26, lambda h, w: planks(rng, h, w, c.scale, colour))
    c.shadow(x, 2.2, 1.1, 0.12)
    c.fill(x + 0.2, 1.45, 0.7, 0.62, glass)
    c.fill(x + 0.53, 1.45, 0.04, 0.62, colour)
    c.fill(x + 0.4, 1.12, 0.3, 0.2, (226, 220, 204))
    c.text(number, x + 0.55, 1.22, 0.19, (30, 34, 40), 0.03)
    c.disc(x + 0.98, 1.1, 0.04, (206, 178, 98))


def bookshop(c: Canvas, rng: np.random.Generator) -> None:
    """A plastered house: awning, book spines, posters."""
    c.fill(-1.3, 0, 6.5, 6.3, lambda h, w: plaster(rng, h, w, (208, 196, 168)))
    c.fill(-1.3, 0, 6.5, 0.5, lambda h, w: plaster(rng, h, w, (134, 126, 116)))
    c.fill(-1.3, 3.62, 6.5, 0.12, (186, 174, 150))
    for x in (-0.8, 1.3, 3.5):
        c.window(x, 4.05, 1.05, 1.4, (2, 2))
    c.fill(-0.9, 2.82, 3.9, 0.62, (236, 230, 214))
    c.text("Old Bridge Books", 1.05, 3.12, 0.5, (84, 32, 30), 0.012)
    c.fill(-0.8, 0.6, 3.7, 1.95, (92, 40, 36))
    c.fill(-0.7, 0.7, 3.5, 1.75, glass)
    for shelf in range(3):
        y, x = 0.72 + 0.55 * shelf, -0.66
        while x < 2.68:
            wide, tall = rng.uniform(0.045, 0.1), rng.uniform(0.3, 0.44)
            cloth = rng.uniform(0.55, 1.1) * np.array(
                [[150, 62, 52], [52, 84, 112], [196, 176, 132], [70, 98, 74], [208, 200, 186],
                 [122, 96, 66]][rng.integers(6)])  # fmt: skip
            spine = np.clip(cloth, 0, 255).astype(int)
            c.fill(x, y, wide - 0.008, tall, (int(spine[0]), int(spine[1]), int(spine[2])))
            c.fill(x, y + tall * 0.7, wide - 0.008, 0.03, (214, 196, 150))
            x += wide
        c.fill(-0.7, y - 0.05, 3.5, 0.05, (104, 76, 52))
    c.shadow(-0.9, 2.0, 3.9, 0.35, 0.5)
    for i in range(20):
        tone = (222, 214, 198) if i % 2 else (138, 52, 46)
        x0, x1 = -1 + 0.205 * i, -1 + 0.205 * (i + 1)
        c.polygon([(x0 + 0.04, 2.8), (x1 + 0.04, 2.8), (x1, 2.32), (x0, 2.32)], tone)
        c.disc((x0 + x1) / 2, 2.32, 0.1, tone)
    # The wall to the right of the shop window bears posters.
    c.shadow(3.33, 0.86, 1.3, 1.78, 0.4)
    c.fill(3.3, 0.9, 1.3, 1.78, (36, 54, 88))
    c.fill(3.3, 1.95, 1.3, 0.73, lambda h, w: np.clip(
        np.linspace(1.1, 0.6, h)[:, None, None] * np.array([206, 150, 88], np.float32)
        * (1 + 0.1 * noise(rng, h, w, 1.3)[..., None]), 0, 255))  # fmt: skip
    c.disc(3.95, 2.3, 0.22, (240, 222, 178))
    c.text("RIVER", 3.95, 1.78, 0.29, (240, 234, 216), 0.025)
    c.text("CONCERTS", 3.95, 1.53, 0.2, (240, 234, 216), 0.025)
    c.text("every Friday in May", 3.95, 1.3, 0.115, (226, 218, 198))
    c.text("at the old mill, 8 pm", 3.95, 1.15, 0.115, (226, 218, 198))
    c.text("free entry, bring a chair", 3.95, 1.0, 0.09, (226, 218, 198))


def garage(c: Canvas, rng: np.random.Generator) -> None:
    """A low yellowish brick building with wooden gates."""
    c.fill(5.2, 0, 8.0, 3.9, lambda h, w: bricks(rng, h, w, c.scale, (186, 154, 110)))
    c.fill(5.1, 3.8, 8.2, 0.16, (122, 116, 108))
    c.shadow(5.2, 3.64, 8.0, 0.16, 0.5)
    c.fill(5.75, 2.78, 3.6, 0.74, (232, 228, 216))
    c.text("MOTOR GARAGE", 7.55, 3.22, 0.4, (28, 42, 84), 0.028)
    c.text("tyres, brakes, lamps: mended while you wait", 7.55, 2.92, 0.145, (46, 44, 44))
    for x in (5.95, 7.75):
        c.fill(x - 0.1, 0, 1.7, 2.6, (96, 92, 88))
        c.fill(x, 0, 1.5, 2.5, lambda h, w: planks(rng, h, w, c.scale, (72, 102, 92)))
        for y in (0.4, 1.9):
            c.fill(x + 0.05, y, 1.4, 0.07, (48, 50, 50))
    c.fill(6.25, 1.15, 0.9, 0.52, (226, 222, 210))
    c.text("KEEP", 6.7, 1.53, 0.18, (158, 40, 34), 0.035)
    c.text("CLEAR", 6.7, 1.31, 0.18, (158, 40, 34), 0.035)
    c.window(10.1, 1.3, 1.9, 1.2, (4, 2))


def facade(rng: np.random.Generator) -> Layer:
    """The row of houses, under sun that falls through a tree."""
    c = Canvas(-13.2, 6.3, 13.2, 0, 108)
    c.fill(-13.2, 0, 5, 1.9, lambda h, w: planks(rng, h, w, c.scale, (150, 122, 90)))
    c.fill(-13.2, 1.9, 5, 0.07, (112, 92, 70))
    optician(c, rng)
    bookshop(c, rng)
    garage(c, rng)
    rows, columns = c.picture.height, c.picture.width
    dapple = np.clip(0.5 + 1.8 * noise(rng, rows, columns, 1.25), 0, 1)
    x = np.linspace(c.left, c.right, columns, dtype=np.float32)[None]
    y = np.linspace(c.top, c.bottom, rows, dtype=np.float32)[:, None]
    under = np.exp(-(((x + 5.4) / 2.6) ** 2 + ((y - 3.6) / 2.2) ** 2)) + np.exp(
        -(((x - 9.6) / 2.4) ** 2 + ((y - 2.2) / 1.7) ** 2)
    )
    light = 1 - 0.66 * np.clip(under, 0, 1) * (1 - dapple)
    light *= 0.8 + 0.2 * np.clip(y / 0.8, 0, 1)  # less sky reaches the foot of a wall
    # The brick house stands forward a little and throws a slanting shadow on its neighbour.
    edge = 0.035 + 0.02 * y
    across = (x + 1.3 - 0.16 * (6.3 - y)) / edge
    light *= 1 - 0.5 * (x > -1.3) / (1 + np.exp(np.clip(across, -30, 30)))
    light *= 1 + 0.05 * noise(rng, rows, columns, 1.6) + 0.035 * noise(rng, rows, columns, 0.4)
    return layer(c, FACADE, light=light.astype(np.float32))


def ground(rng: np.random.Generator) -> Layer:
    """Checkered paving, kerb and road; y is the distance from the camera."""
    c = Canvas(-15, FACADE + 0.2, 15, 4.2, 90)
    rows, columns = c.picture.height, c.picture.width
    speckle = noise(rng, rows, columns, 0.25)
    c.fill(-15, 4.2, 30, 5, lambda _h, _w: tinted(
        1 + 0.12 * speckle + 0.06 * noise(rng, rows, columns, 1.4), (104, 102, 102)))  # fmt: skip
    c.fill(-15, 5.0, 30, 0.12, (206, 202, 190))
    c.fill(-15, PAVEMENT - 0.05, 30, 0.25, lambda h, w: plaster(rng, h, w, (168, 164, 156)))
    c.fill(-15, PAVEMENT - 0.05, 30, 0.05, (92, 90, 88))
    top = FACADE + 0.2 - PAVEMENT - 0.2

    def tiles(height: int, width: int) -> Array:
        y, x = (np.mgrid[0:height, 0:width] / (0.4 * c.scale)).astype(np.float32)
        check = (np.floor(x) + np.floor(y)) % 2
        seam = np.clip(np.minimum.reduce([x % 1, 1 - x % 1, y % 1, 1 - y % 1]) * 14, 0.55, 1)
        tone = rng.normal(1, 0.06, (int(y.max()) + 1, int(x.max()) + 1)).astype(np.float32)
        dirt = 0.05 * noise(rng, height, width, 0.4) + 0.05 * noise(rng, height, width, 1.3)
        shade = tone[y.astype(int), x.astype(int)] * seam * (1 + dirt)
        light, dark = tinted(shade, (190, 182, 166)), tinted(shade, (112, 108, 106))
        return np.where(check[..., None] > 0, light, dark)

    c.fill(-15, PAVEMENT + 0.2, 30, top, tiles)
    return layer(c, None)


def tree(rng: np.random.Generator, wide: float, tall: float, scale: float) -> Canvas:
    """A trunk and a crown; the anchor is the foot."""
    c = Canvas(-wide / 2, tall, wide / 2, 0, scale)
    c.polygon([(-0.15, 0), (0.15, 0), (0.09, tall * 0.7), (-0.09, tall * 0.7)], (92, 78, 64))
    bark = tinted(1 + 0.3 * noise(rng, c.picture.height, c.picture.width, 0.9, 9), (104, 90, 72))
    painted = Image.fromarray(bark.astype(np.uint8)).convert("RGBA")
    c.picture = Image.composite(painted, c.picture, c.picture.getchannel("A"))
    crown = leaves(rng, round(tall * 0.62 * scale), c.picture.width, 5200, 0.085 * scale)
    c.picture.alpha_composite(crown)
    return c


def planter(rng: np.random.Generator) -> Canvas:
    """A flowering bush in a wooden box."""
    c = Canvas(-0.9, 1.5, 0.9, 0, 110)
    bush = leaves(rng, round(1.45 * c.scale), c.picture.width, 2600, 0.05 * c.scale, 0.22)
    c.picture.alpha_composite(bush)
    c.fill(-0.7, 0, 1.4, 0.5, lambda h, w: planks(rng, h, w, c.scale, (134, 98, 66)))
    c.fill(-0.74, 0.44, 1.48, 0.07, (104, 76, 52))
    return c


def lamp() -> Canvas:
    """A lamp post with the street's name."""
    c = Canvas(-0.9, 5, 0.9, 0, 130)
    c.fill(-0.05, 0, 0.1, 5, (52, 60, 58))
    c.fill(-0.015, 0, 0.03, 5, (96, 106, 102))
    c.fill(-0.09, 0, 0.18, 0.7, (46, 52, 50))
    c.fill(-0.85, 1.97, 1.7, 0.42, (36, 44, 42))
    c.fill(-0.82, 2.0, 1.64, 0.36, (234, 232, 224))
    c.text("MILL LANE", 0, 2.18, 0.29, (22, 24, 28), 0.03)
    return c


def van(rng: np.random.Generator) -> Canvas:
    """A delivery van that drives to the right; the anchor is the road under its middle."""
    c = Canvas(-2.1, 2.0, 2.1, 0, 130)
    body = [(-1.95, 0.32), (1.95, 0.32), (1.98, 0.8), (1.86, 1.02), (1.32, 1.12), (1.0, 1.74),
            (0.86, 1.84), (-1.8, 1.86), (-1.95, 1.72)]  # fmt: skip
    c.polygon(body, (60, 98, 120))
    rows, columns = c.picture.height, c.picture.width
    heights, tones = [0.3, 0.78, 0.8, 1.1, 1.85], [0.5, 0.86, 1, 0.92, 1.2]
    fall = np.interp(np.linspace(2.0, 0, rows), heights, tones)
    sheen = fall[:, None] * (1 + 0.05 * noise(rng, rows, columns, 1.4))
    sheen *= 1 + 0.02 * noise(rng, rows, columns, 0.3)
    painted = tinted(sheen.astype(np.float32), (66, 106, 128)).astype(np.uint8)
    shaded = Image.fromarray(painted).convert("RGBA")
    shaded.putalpha(c.picture.getchannel("A"))
    c.picture = shaded
    c.polygon([(0.38, 1.12), (1.22, 1.12), (0.94, 1.66), (0.38, 1.68)], (46, 56, 62))
    c.polygon([(0.62, 1.12), (0.86, 1.12), (0.66, 1.68), (0.46, 1.68)], (116, 132, 142))
    c.polygon([(-1.96, 0.46), (1.98, 0.46), (1.98, 0.52), (-1.96, 0.52)], (212, 206, 192))
    c.fill(0.28, 0.5, 0.014, 1.26, (34, 50, 60))
    c.fill(0.4, 0.95, 0.16, 0.035, (188, 192, 190))
    c.polygon([(1.8, 0.72), (1.97, 0.7), (1.94, 0.88), (1.8, 0.9)], (240, 234, 204))
    c.fill(-1.95, 0.75, 0.07, 0.26, (150, 40, 34))
    c.text("Fresh Bread", -0.82, 1.45, 0.42, (240, 232, 210), 0.015)
    c.text("W. MILLER, BAKER", -0.82, 1.1, 0.19, (240, 232, 210), 0.015)
    c.text("telephone 555 0142", -0.82, 0.86, 0.15, (226, 218, 196))
    c.fill(-1.5, 0.24, 3.0, 0.12, (26, 26, 28))
    for x in (-1.22, 1.25):
        c.disc(x, 0.37, 0.42, (30, 32, 34))
    return c


def wheel() -> Canvas:
    """A wheel around its hub, with spokes that show its turning."""
    c = Canvas(-0.38, 0.38, 0.38, -0.38, 150)
    c.disc(0, 0, 0.35, (36, 36, 38))
    c.disc(0, 0, 0.23, (176, 178, 178))
    c.disc(0, 0, 0.19, (112, 114, 116))
    for i in range(5):
        a = math.tau * i / 5
        along, across = (math.cos(a), math.sin(a)), (-math.sin(a), math.cos(a))
        corners = ((0.03, 0.045), (0.2, 0.03), (0.2, -0.03), (0.03, -0.045))
        c.polygon(
            [(u * along[0] + v * across[0], u * along[1] + v * across[1]) for u, v in corners],
            (200, 202, 202),
        )
    c.disc(0, 0, 0.07, (212, 212, 210))
    return c


def ball(rng: np.random.Generator) -> Canvas:
    """A ball of eight panels around its middle."""
    c = Canvas(-0.3, 0.3, 0.3, -0.3, 150)
    for i in range(8):
        rim = [math.tau * (i + k / 12) / 8 for k in range(13)]
        outline = [(0.0, 0.0), *((0.27 * math.cos(a), 0.27 * math.sin(a)) for a in rim)]
        c.polygon(outline, ((196, 62, 48), (232, 222, 200), (44, 84, 128), (232, 222, 200))[i % 4])
    c.disc(0, 0, 0.05, (230, 222, 204))
    y, x = np.mgrid[0.3 : -0.3 : c.picture.height * 1j, -0.3 : 0.3 : c.picture.width * 1j]
    shade = 1 - 0.45 * np.clip((x * x + y * y) / 0.073, 0, 1) ** 1.5
    shade = shade * (1 + 0.04 * noise(rng, c.picture.height, c.picture.width, 0.6))
    pixels = np.asarray(c.picture, np.float32).copy()
    pixels[..., :3] *= shade[..., None]
    c.picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
    return c


def hanging_sign() -> Canvas:
    """A board that swings below its hinge, the anchor."""
    c = Canvas(-0.62, 0.06, 0.62, -1.1, 130)
    c.fill(-0.4, -0.22, 0.02, 0.26, (40, 40, 42))
    c.fill(0.38, -0.22, 0.02, 0.26, (40, 40, 42))
    c.fill(-0.58, -1.06, 1.16, 0.84, (40, 44, 46))
    c.fill(-0.54, -1.02, 1.08, 0.76, (226, 206, 150))
    c.text("CAFE", 0, -0.52, 0.36, (62, 34, 28), 0.03)
    c.text("tea & cakes", 0, -0.83, 0.18, (62, 34, 28))
    return c


def van_at(t: float) -> float:
    """The van's place along the street, in metres."""
    return -12.6 + 8.65 * t


def ball_at(t: float) -> tuple[float, float, float]:
    """The ball bounces to the left, rolling as it goes."""
    x = 6.4 - 2.5 * t
    phase = (t * 1.45 + 0.25) % 1
    return x, 0.27 + 0.95 * 4 * phase * (1 - phase), -(x / 0.27) * 0.55


@cache
def street() -> list[Layer]:
    """All layers, the farthest first. Painting takes seconds: once a process."""

    def at(x: float, y: float = 0.0) -> Callable[[float], tuple[float, float, float]]:
        return lambda _: (x, y, 0.0)

    def wheel_at(offset: float) -> Callable[[float], tuple[float, float, float]]:
        return lambda t: (van_at(t) + offset, 0.36, -van_at(t) / 0.36)

    def sway(t: float) -> tuple[float, float, float]:
        return 4.95, 3.62, 0.34 * math.sin(math.tau * 0.85 * t + 0.5)

    def rng(seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    hub, box = wheel(), planter(rng(6))
    return [
        backdrop(rng(1)),
        layer(tree(rng(2), 7, 7.5, 70), 15, at(12.5)),
        layer(tree(rng(3), 6, 7.0, 70), 13, at(-13.5)),
        ground(rng(4)),
        facade(rng(5)),
        layer(hanging_sign(), 8.6, sway),
        layer(box, 8.5, at(-2.0)),
        layer(box, 8.5, at(5.2)),
        layer(planter(rng(7)), 8.5, at(9.7)),
        layer(ball(rng(8)), 7.9, ball_at),
        layer(tree(rng(9), 4.4, 5.6, 110), 7.5, at(-9.0)),
        layer(lamp(), 7.3, at(-0.9)),
        layer(van(rng(10)), 6.1, lambda t: (van_at(t), 0.0, 0.0)),
        layer(hub, 6.1, wheel_at(-1.22)),
        layer(hub, 6.1, wheel_at(1.25)),
    ]


# --------------------------------------------------------------------------- the camera


@dataclass(frozen=True)
class Pose:
    """Where the camera stands (metres), how it is turned (radians), its focal length (pixels)."""

    x: float
    yaw: float
    pitch: float
    roll: float
    focal: float
    y: float = EYE
    z: float = 0.0


@dataclass(frozen=True)
class Film:
    """A scene and the camera that films it.

    title, chapters: what the clip says of itself. layers: all of the scene, the farthest first.
    pose: of the camera at a time in seconds. shade: the share of light that reaches the ground at
    (time, x, z). shutter: open for this share of a frame's time.
    """

    title: str
    chapters: tuple[str, str]
    layers: Callable[[], list[Layer]]
    pose: Callable[[float], Pose]
    shade: Callable[[float, torch.Tensor, torch.Tensor], torch.Tensor]
    shutter: float
    width: int = WIDTH
    height: int = HEIGHT
    fps: int = FPS


def pose(t: float) -> Pose:
    """A walk and a pan to the right, now slow, now fast, with a hand's shake, at `t` seconds."""

    def wave(amplitude: float, hertz: float, phase: float) -> float:
        return amplitude * math.sin(math.tau * hertz * t + phase)

    # The pan's speed is 1 + 0.45 sin: this is its integral, from -1 to 1 over the clip.
    pan = t - 1 - 0.45 / (math.tau * 0.8) * (math.cos(math.tau * 0.8 * t + 0.4) - 0.2)
    return Pose(
        x=2.0 * pan,
        yaw=0.37 * pan + wave(0.006, 3.1, 0.3) + wave(0.003, 7.3, 1.0),
        pitch=0.045 + wave(0.013, 2.3, 0.0) + wave(0.005, 6.1, 2.0),
        roll=wave(0.014, 1.7, 0.8) + wave(0.006, 4.4, 0.0),
        focal=FOCAL * (1 + 0.02 * t + wave(0.012, 1.2, 0.5)),
    )


def rotation(p: Pose) -> NDArray[np.float64]:
    """Camera directions (right, up, ahead) to those of the street."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (p.yaw, p.pitch, p.roll) for f in (math.cos, math.sin))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(yaw @ pitch @ roll)


def rays(film: Film, t: float, detail: int) -> tuple[Pose, NDArray[np.float64], list[torch.Tensor]]:
    """The camera at `t`, its rotation, and x, y, z of the direction in which each sample looks."""
    camera = film.pose(t)
    turn = rotation(camera)
    rows, columns, focal = film.height * detail, film.width * detail, camera.focal * detail
    u = (torch.arange(columns, dtype=torch.float32) + 0.5 - columns / 2) / focal
    v = (rows / 2 - torch.arange(rows, dtype=torch.float32) - 0.5)[:, None] / focal
    return camera, turn, [float(r[0]) * u + float(r[1]) * v + float(r[2]) for r in turn]


def meet(
    part: Layer, t: float, camera: Pose, ray: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The point of a layer's canvas that each ray meets."""
    if part.depth is None:
        # Pixels above the horizon see no ground.
        reach = torch.where(ray[1] < -0.02, -camera.y / ray[1].clamp(max=-0.02), 1e4)
        return camera.x + reach * ray[0], camera.z + reach * ray[2]
    x0, y0, angle = part.place(t)
    a, b, d = ray
    reach = (part.depth - camera.z) / d
    x, y = camera.x + reach * a - x0, camera.y + reach * b - y0
    if angle:
        c, s = math.cos(angle), math.sin(angle)
        x, y = c * x + s * y, c * y - s * x
    return x, y


def texture_at(part: Layer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(4, rows, columns) of a layer's texture at points of its canvas; zeros outside."""
    left, top, right, bottom = part.bounds
    grid = torch.stack(
        [2 * (x - left) / (right - left) - 1, 2 * (top - y) / (top - bottom) - 1], -1
    )
    return F.grid_sample(part.texture, grid[None], align_corners=False)[0]


def render(t: float, film: Film | None = None, detail: int = 2) -> torch.Tensor:
    """A film's scene at an instant: (3, height, width) linear light, `detail`² samples a pixel."""
    film = film or STREET
    camera, turn, ray = rays(film, t, detail)
    rows, columns, focal = film.height * detail, film.width * detail, camera.focal * detail
    picture = torch.zeros(3, rows, columns)
    for part in film.layers():
        rectangle = slice(0, rows), slice(0, columns)
        if part.depth is not None:
            rectangle = seen(part, t, camera, turn, focal, rows, columns)
            if rectangle[0].start >= rectangle[0].stop or rectangle[1].start >= rectangle[1].stop:
                continue
        x, y = meet(part, t, camera, [r[rectangle] for r in ray])
        sample = texture_at(part, x, y)
        colour, cover = sample[:3], sample[3:]
        if part.depth is None:
            colour = colour * film.shade(t, x, y)
        area = picture[:, rectangle[0], rectangle[1]]
        area.mul_(1 - cover).add_(colour)
    return F.avg_pool2d(picture[None], detail)[0]


def project(
    part: Layer, t: float, film: Film, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where points of a layer's canvas stand in the picture at `t`, in pixels."""
    camera = film.pose(t)
    turn = rotation(camera)
    if part.depth is None:
        place = [x - camera.x, torch.full_like(x, -camera.y), y - camera.z]
    else:
        x0, y0, angle = part.place(t)
        c, s = math.cos(angle), math.sin(angle)
        place = [
            c * x - s * y + (x0 - camera.x),
            s * x + c * y + (y0 - camera.y),
            torch.full_like(x, part.depth - camera.z),
        ]
    right, up, ahead = (sum(float(turn[i, k]) * place[i] for i in range(3)) for k in range(3))
    ahead = torch.as_tensor(ahead).clamp(min=0.05)
    return (
        right / ahead * camera.focal + film.width / 2,
        film.height / 2 - up / ahead * camera.focal,
    )


def motion(index: int, film: Film | None = None) -> Array:
    """How what each pixel shows moves while the shutter is open: (4, rows, columns) float32.

    chord x, chord y, bend x, bend y in pixels (y down): seen s of the exposure (−½ to ½) after its
    middle, it stands at chord·s + bend·s² from where it is in the sharp picture.
    """
    film = film or STREET
    middle, half = (index + 0.5) / film.fps, film.shutter / 2 / film.fps
    camera, _, ray = rays(film, middle, 1)
    field = torch.zeros(4, film.height, film.width)
    for part in film.layers():
        x, y = meet(part, middle, camera, ray)
        x, y = (v.broadcast_to(film.height, film.width).clamp(-1e4, 1e4) for v in (x, y))
        shown = texture_at(part, x, y)[3] > 0.5
        before, now, after = (
            torch.stack(project(part, t, film, x[shown], y[shown]))
            for t in (middle - half, middle, middle + half)
        )
        field[:, shown] = torch.cat([after - before, 2 * (after + before - 2 * now)])
    return field.numpy()


def seen(
    part: Layer, t: float, camera: Pose, turn: NDArray[np.float64], focal: float,
    rows: int, columns: int,
) -> tuple[slice, slice]:  # fmt: skip
    """The rows and columns of the picture in which a standing layer may show."""
    assert part.depth is not None
    x0, y0, _ = part.place(t)
    left, top, right, bottom = part.bounds
    reach = max(math.hypot(a, b) for a in (left, right) for b in (top, bottom))
    if any(part.place(0.1 * k)[2] for k in range(3)):  # a turning layer stays in its circle
        left, right, bottom, top = -reach, reach, -reach, reach
    ends = [(a, b) for a in (left, right) for b in (top, bottom)]
    away = part.depth - camera.z
    corners = np.array([(x0 + a - camera.x, y0 + b - camera.y, away) for a, b in ends])
    ahead = corners @ turn
    if (ahead[:, 2] < 0.1).any():  # reaches behind the camera
        return slice(0, rows), slice(0, columns)
    px = ahead[:, 0] / ahead[:, 2] * focal + columns / 2
    py = rows / 2 - ahead[:, 1] / ahead[:, 2] * focal

    def span(values: NDArray[np.float64], size: int) -> slice:
        low, high = math.floor(values.min()) - 1, math.ceil(values.max()) + 2
        return slice(min(max(low, 0), size), max(min(high, size), 0))

    return span(py, rows), span(px, columns)


def ground_shade(t: float, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """How much light reaches the ground: less at the walls' foot, under the van and the ball."""
    light = 1 - 0.5 * torch.exp((z - FACADE).clamp(max=0) / 0.25)
    cover = torch.sigmoid((2.0 - (x - van_at(t)).abs()) / 0.12)
    light = light * (1 - 0.75 * cover * torch.exp(-(((z - 6.3) / 0.5) ** 2)))
    bx, by, _ = ball_at(t)
    size = 0.22 + 0.12 * by
    blot = torch.exp(-(((x - bx) / size) ** 2) - ((z - 7.9) / size) ** 2)
    return light * (1 - 0.6 * blot)


def frame(
    index: int, subframes: int = SUBFRAMES, film: Film | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(blurred, sharp) pictures of a frame: sRGB values 0..1, each (3, height, width)."""
    film = film or STREET
    middle = subframes // 2
    total = torch.zeros(3, film.height, film.width)
    sharp = torch.zeros_like(total)
    for k in range(subframes):
        t = (index + 0.5 + film.shutter * (k - middle) / subframes) / film.fps
        picture = render(t, film)
        total += picture
        if k == middle:
            sharp = picture
    return encode(total / subframes), encode(sharp)


STREET = Film(
    "Mill Lane, filmed by hand", ("The optician", "The garage"), street, pose, ground_shade, SHUTTER
)


# --------------------------------------------------------------------------- the walk


def corner_house(c: Canvas, rng: np.random.Generator) -> None:
    """A dark brick house with the street's name, a door and a window with a notice."""
    c.fill(-15.2, 0, 7.6, 6.3, lambda h, w: bricks(rng, h, w, c.scale, (126, 92, 80)))
    c.fill(-15.2, 0, 7.6, 0.5, lambda h, w: plaster(rng, h, w, (120, 118, 116)))
    for x in (-14.2, -12.4, -10.4, -8.9):
        c.window(x, 3.9, 0.95, 1.5, (2, 3))
    c.window(-14.6, 1.2, 1.5, 1.5, (3, 2))
    c.window(-12.3, 1.2, 1.5, 1.5, (3, 2))
    door(c, rng, -10.3, "7", (44, 76, 68))
    c.fill(-8.95, 2.42, 1.2, 0.5, (30, 34, 40))
    c.fill(-8.92, 2.45, 1.14, 0.44, (240, 238, 230))
    c.text("STATION RD", -8.35, 2.71, 0.19, (22, 26, 34), 0.025)
    c.text("leading to Harbour", -8.35, 2.53, 0.115, (150, 40, 34))
    c.fill(-8.75, 1.1, 0.8, 1.05, (238, 232, 214))
    c.text("ROOM", -8.35, 1.99, 0.19, (150, 36, 34), 0.03)
    c.text("TO LET", -8.35, 1.8, 0.19, (150, 36, 34), 0.03)
    for row, words in enumerate(
        ("two windows, quiet,", "share of the garden;", "ask for Mrs Lund")
    ):
        c.text(words, -8.35, 1.56 - 0.13 * row, 0.082, (40, 38, 40))


def pharmacy(c: Canvas, rng: np.random.Generator) -> None:
    """A white shop with shelves of bottles and boxes behind glass."""
    c.fill(-7.6, 0, 6.0, 6.3, lambda h, w: plaster(rng, h, w, (214, 212, 204)))
    c.fill(-7.6, 3.66, 6.0, 0.14, (184, 182, 174))
    for x in (-7.0, -5.1, -3.2):
        c.window(x, 4.05, 1.1, 1.45, (2, 3))
    c.fill(-7.4, 2.78, 5.6, 0.68, (34, 92, 70))
    c.text("GREENWOOD PHARMACY", -4.35, 3.14, 0.4, (240, 240, 232), 0.025)
    for wide, tall in ((0.42, 0.14), (0.14, 0.42)):
        c.fill(-7.1 - wide / 2, 3.12 - tall / 2, wide, tall, (150, 226, 160))
    c.fill(-7.35, 0.45, 3.9, 2.15, (70, 78, 76))
    c.fill(-7.25, 0.55, 3.7, 1.95, glass)
    for shelf in range(3):
        y, x = 0.62 + 0.36 * shelf, -7.2
        c.fill(-7.25, y - 0.04, 3.7, 0.04, (196, 198, 194))
        while x < -3.75:
            wide, tall = rng.uniform(0.07, 0.18), rng.uniform(0.16, 0.29)
            tints = ((232, 230, 222), (70, 126, 160), (188, 84, 62), (120, 156, 92), (216, 184, 92),
                     (96, 62, 44))  # fmt: skip
            c.fill(x, y, wide - 0.015, tall, tints[rng.integers(6)])
            c.fill(x + 0.012, y + tall * 0.3, wide - 0.039, tall * 0.34, (244, 242, 236))
            c.fill(x + 0.012, y + tall * 0.42, wide - 0.05, 0.016, (60, 64, 70))
            x += wide
    c.fill(-7.15, 1.72, 1.5, 0.7, (246, 244, 236))
    c.text("PRESCRIPTIONS", -6.4, 2.26, 0.165, (30, 84, 64), 0.025)
    c.text("while you wait", -6.4, 2.06, 0.14, (50, 52, 54))
    c.text("vaccines  tests  advice", -6.4, 1.86, 0.115, (50, 52, 54))
    c.fill(-5.45, 1.72, 0.82, 0.7, (196, 62, 52))
    c.text("SUN CARE", -5.04, 2.25, 0.145, (248, 240, 224), 0.025)
    c.text("3 for 2", -5.04, 1.98, 0.24, (248, 226, 150), 0.02)
    c.text("until Sunday", -5.04, 1.8, 0.105, (248, 240, 224))
    c.fill(-4.45, 1.72, 0.78, 0.7, lambda h, w: bars(w, h).transpose(1, 0, 2))
    c.fill(-3.25, 0, 1.3, 2.5, (226, 224, 216))
    c.fill(-3.15, 0.05, 1.1, 2.35, glass)
    c.fill(-3.15, 0.05, 1.1, 0.3, (60, 92, 80))
    c.fill(-2.25, 1.0, 0.05, 0.7, (206, 204, 196))
    c.fill(-3.02, 1.35, 0.7, 0.78, (244, 242, 234))
    c.text("OPEN", -2.67, 2.0, 0.17, (176, 44, 38), 0.03)
    for row, words in enumerate(("Mon  8 to 6", "Tue  8 to 6", "Wed  8 to 1", "Sat  9 to 4")):
        c.text(words, -2.67, 1.82 - 0.12 * row, 0.105, (36, 38, 42))


def cinema(c: Canvas, rng: np.random.Generator) -> None:
    """A red picture house: a board with the films of the week, framed posters, double doors."""
    c.fill(-1.6, 0, 6.4, 6.3, lambda h, w: plaster(rng, h, w, (158, 74, 62)))
    for x in (-1.6, 0.35, 2.55, 4.5):
        c.fill(x, 0, 0.3, 6.3, lambda h, w: plaster(rng, h, w, (204, 178, 148)))
    c.fill(-1.2, 4.75, 5.6, 1.1, (44, 36, 44))
    c.text("REGAL", 1.6, 5.28, 1.0, (246, 214, 130), 0.03)
    for i in range(28):
        for y in (4.83, 5.77):
            c.disc(-1.1 + 0.2 * i, y, 0.045, (250, 228, 160))
    c.shadow(-1.4, 2.5, 6.0, 0.35, 0.5)
    c.fill(-1.5, 2.85, 6.2, 1.4, (196, 166, 96))
    c.fill(-1.42, 2.93, 6.04, 1.24, (244, 240, 226))
    for row, words in enumerate(
        ("THE LAST FERRY   5.15  7.30  9.45", "A WINTER IN LISBON   6.00  8.20",
         "MATINEE SUN 2.00  KITES AND BRASS")
    ):  # fmt: skip
        c.text(words, 1.6, 3.92 - 0.37 * row, 0.29, (30, 28, 32), 0.02)
        c.fill(-1.42, 3.72 - 0.37 * row, 6.04, 0.02, (206, 200, 184))
    bill(c, rng, -1.15, ("THE LAST", "FERRY"), "a film by Ana Reis", (40, 92, 124))
    bill(c, rng, 2.98, ("KITES", "& BRASS"), "from Friday 14 June", (212, 128, 60))
    for x in (0.78, 1.68):
        c.fill(x - 0.06, 0, 0.96, 2.42, (92, 62, 40))
        c.fill(x, 0.08, 0.84, 2.26, lambda h, w: planks(rng, h, w, c.scale, (124, 66, 44)))
        c.fill(x + 0.14, 1.1, 0.56, 1.05, glass)
        c.fill(x + 0.14, 0.9, 0.56, 0.05, (214, 184, 106))
    c.fill(0.98, 1.5, 0.46, 0.3, (240, 236, 222))
    c.text("PULL", 1.21, 1.65, 0.15, (30, 32, 36), 0.03)


def bill(
    c: Canvas, rng: np.random.Generator, x: float, title: tuple[str, str], note: str, tint: Colour
) -> None:
    """A film's poster in a frame: a sky and a sun over hills, the title, small print."""
    c.shadow(x + 0.02, 0.55, 1.34, 1.84, 0.4)
    c.fill(x, 0.6, 1.34, 1.84, (52, 44, 40))
    c.fill(x + 0.07, 0.67, 1.2, 1.7, lambda h, w: np.clip(
        np.linspace(1.5, 0.55, h)[:, None, None] * np.array(tint, np.float32)
        * (1 + 0.16 * noise(rng, h, w, 1.2)[..., None]), 0, 255))  # fmt: skip
    c.disc(x + 0.9, 1.98, 0.17, (250, 232, 190))
    hills = [(x + 0.07, 1.3), (x + 0.35, 1.62), (x + 0.6, 1.44), (x + 0.86, 1.7), (x + 1.27, 1.34),
             (x + 1.27, 0.67), (x + 0.07, 0.67)]  # fmt: skip
    c.polygon(hills, (34, 38, 52))
    for row, words in enumerate(title):
        c.text(words, x + 0.67, 1.27 - 0.2 * row, 0.23, (248, 240, 220), 0.025)
    c.text(note, x + 0.67, 0.87, 0.12, (240, 232, 214))
    c.text("sound and picture restored", x + 0.67, 0.75, 0.085, (220, 214, 200))


def grocer(c: Canvas, rng: np.random.Generator) -> None:
    """A yellow-brick greengrocer's: an awning, slates with prices, crates of fruit."""
    c.fill(4.8, 0, 5.2, 6.3, lambda h, w: bricks(rng, h, w, c.scale, (178, 150, 112)))
    for x in (5.3, 7.0, 8.7):
        c.window(x, 4.1, 0.95, 1.4, (2, 2))
    c.fill(5.0, 3.02, 4.8, 0.6, (52, 74, 46))
    c.text("Finch's Fruit & Veg", 7.4, 3.31, 0.46, (244, 236, 206), 0.015)
    c.fill(5.1, 0.4, 4.6, 2.3, (60, 66, 54))
    c.fill(5.2, 0.5, 4.4, 2.1, glass)
    slates = (("PEARS", "1.80"), ("PLUMS", "2.40"), ("LEEKS", "0.95"), ("EGGS", "12 for 3"),
              ("HONEY", "5.50"))  # fmt: skip
    for i, (what, price) in enumerate(slates):
        c.fill(5.3 + 0.86 * i, 1.62, 0.74, 0.56, (40, 44, 44))
        c.text(what, 5.67 + 0.86 * i, 2.03, 0.17, (240, 238, 228), 0.02)
        c.text(price, 5.67 + 0.86 * i, 1.79, 0.19, (250, 224, 130), 0.02)
    fruit = ((176, 44, 40), (222, 140, 48), (120, 150, 56), (232, 200, 84), (98, 52, 84),
             (204, 92, 60))  # fmt: skip
    for shelf in range(2):
        for crate in range(6):
            x, y = 5.16 + 0.75 * crate, 0.36 + 0.56 * shelf
            c.fill(x, y, 0.71, 0.46, (70, 52, 36))
            skin = np.array(fruit[(crate + 2 * shelf) % 6])
            for _ in range(60):
                r = rng.uniform(0.034, 0.048)
                px, py = x + rng.uniform(0.05, 0.66), y + rng.uniform(0.2, 0.46)
                lit = np.clip(skin * rng.uniform(0.7, 1.15), 0, 255).astype(int).tolist()
                c.disc(px, py, r, (lit[0], lit[1], lit[2]))
                shine = [min(255, v + 50) for v in lit]
                c.disc(px - r * 0.3, py + r * 0.3, r * 0.3, (shine[0], shine[1], shine[2]))
            c.fill(x, y, 0.71, 0.2, lambda h, w: planks(rng, w, h, c.scale, (172, 136, 92))
                   .transpose(1, 0, 2))  # fmt: skip
    c.shadow(5.0, 2.1, 4.8, 0.35, 0.45)
    for i in range(24):
        tone = (226, 222, 206) if i % 2 else (70, 110, 66)
        x0, x1 = 4.95 + 0.204 * i, 4.95 + 0.204 * (i + 1)
        c.polygon([(x0 + 0.03, 3.0), (x1 + 0.03, 3.0), (x1, 2.42), (x0, 2.42)], tone)
        c.disc((x0 + x1) / 2, 2.42, 0.1, tone)
    c.fill(10.0, 0, 5.2, 2.1, lambda h, w: planks(rng, h, w, c.scale, (104, 112, 108)))
    c.fill(10.3, 0.8, 0.9, 1.1, (242, 238, 226))
    c.text("LOST CAT", 10.75, 1.74, 0.17, (30, 30, 34), 0.03)
    c.fill(10.42, 1.06, 0.66, 0.56, (176, 196, 206))
    for dx in (-0.09, 0.09):
        ear = [(10.75 + dx - 0.06, 1.4), (10.75 + dx + 0.06, 1.4), (10.75 + 1.5 * dx, 1.54)]
        c.polygon(ear, (96, 94, 98))
    c.disc(10.75, 1.15, 0.17, (112, 110, 114))
    c.disc(10.75, 1.35, 0.14, (96, 94, 98))
    for dx in (-0.06, 0.06):
        c.disc(10.75 + dx, 1.38, 0.025, (224, 204, 84))
    c.text("answers to Biscuit", 10.75, 0.95, 0.09, (30, 30, 34))


def parade(rng: np.random.Generator) -> Layer:
    """The row of shops that the walk passes, in soft light from the left."""
    c = Canvas(-15.2, 6.3, 15.2, 0, 108)
    corner_house(c, rng)
    pharmacy(c, rng)
    cinema(c, rng)
    grocer(c, rng)
    rows, columns = c.picture.height, c.picture.width
    y = np.linspace(c.top, c.bottom, rows, dtype=np.float32)[:, None]
    light = 0.74 + 0.26 * np.clip(y / 0.9, 0, 1)
    light = light * (1 + 0.05 * noise(rng, rows, columns, 1.6))
    light = light * (1 + 0.03 * noise(rng, rows, columns, 0.4))
    return layer(c, FACADE, light=light.astype(np.float32))


def pavement(rng: np.random.Generator) -> Layer:
    """A brick pavement, a kerb of granite and a road with a white line; y is the distance."""
    c = Canvas(-16.5, FACADE + 0.2, 15, 3.2, 80)
    c.fill(-16.5, 3.2, 33, 4, lambda h, w: tinted(
        1 + 0.16 * noise(rng, h, w, 0.25) + 0.07 * noise(rng, h, w, 1.4),
        (92, 94, 98)))  # fmt: skip
    for i in range(11):
        c.fill(-16.5 + 3.1 * i, 5.0, 1.7, 0.12, lambda h, w: plaster(rng, h, w, (204, 202, 194)))
    c.fill(
        -16.5, PAVEMENT, 33, 2.1, lambda h, w: bricks(rng, h, w, c.scale * 0.85, (150, 118, 104))
    )
    for i in range(33):
        c.fill(-16.5 + i, PAVEMENT - 0.05, 0.985, 0.24, lambda h, w: tinted(
            1 + 0.12 * noise(rng, h, w, 0.3), (170, 168, 164)))  # fmt: skip
    return layer(c, None)


def limb(length: float, thick: float, thin: float, colour: Colour, end: float = 0.0) -> Canvas:
    """An arm or a part of a leg that hangs from its anchor; `end` is the length of a shoe."""
    c = Canvas(-0.16, 0.1, 0.3, -length - 0.12, 150)
    c.disc(0, 0, thick / 2, colour)
    c.polygon([(-thick / 2, 0), (thick / 2, 0), (thin / 2, -length), (-thin / 2, -length)], colour)
    c.disc(0, -length, thin / 2, colour)
    if end:
        foot = [(-0.06, 0.02), (0.05, 0.03), (end, -0.05), (end, -0.09), (-0.07, -0.09)]
        c.polygon([(x, y - length) for x, y in foot], (34, 30, 32))
    return c


def walker(rng: np.random.Generator) -> Canvas:
    """A person in a striped jumper with a bag, from the hips up; the anchor is the hip."""
    c = Canvas(-0.5, 1.0, 0.5, -0.3, 150)
    c.polygon([(-0.16, -0.08), (0.15, -0.08), (0.19, 0.45), (0.1, 0.56), (-0.1, 0.57),
               (-0.2, 0.45)], (206, 198, 180))  # fmt: skip
    for i in range(7):
        c.polygon([(-0.17, 0.0 + 0.07 * i), (0.16, 0.0 + 0.07 * i), (0.165, 0.03 + 0.07 * i),
                   (-0.175, 0.03 + 0.07 * i)], (52, 66, 108))  # fmt: skip
    c.polygon([(-0.04, 0.52), (0.06, 0.52), (0.06, 0.66), (-0.03, 0.66)], (196, 146, 116))
    c.disc(0.02, 0.75, 0.125, (202, 152, 122))
    c.polygon([(-0.12, 0.66), (-0.13, 0.82), (-0.02, 0.9), (0.11, 0.88), (0.13, 0.8), (0.0, 0.8),
               (-0.05, 0.66)], (66, 44, 34))  # fmt: skip
    c.fill(-0.46, -0.22, 0.4, 0.42, (192, 70, 58))
    c.text("BOOKS", -0.26, 0.02, 0.13, (244, 236, 214), 0.03)
    c.polygon([(-0.42, 0.18), (-0.38, 0.18), (0.1, 0.5), (0.06, 0.52)], (150, 52, 44))
    return c


def bicycle() -> Canvas:
    """Frame and rider's body; the anchor is the road under the bottom bracket."""
    c = Canvas(-1.0, 1.85, 1.0, 0, 130)
    steel = (48, 92, 140)

    def tube(x0: float, y0: float, x1: float, y1: float, wide: float, colour: Colour) -> None:
        length = math.hypot(x1 - x0, y1 - y0)
        a, b = -(y1 - y0) / length * wide / 2, (x1 - x0) / length * wide / 2
        c.polygon([(x0 + a, y0 + b), (x1 + a, y1 + b), (x1 - a, y1 - b), (x0 - a, y0 - b)], colour)

    for x0, y0, x1, y1 in ((0, 0.3, -0.17, 0.82), (0, 0.3, 0.42, 0.78), (-0.15, 0.76, 0.4, 0.84),
                           (0, 0.3, -0.45, 0.35), (-0.45, 0.35, -0.15, 0.76)):  # fmt: skip
        tube(x0, y0, x1, y1, 0.045, steel)
    tube(0.39, 0.92, 0.56, 0.35, 0.04, (190, 194, 198))
    tube(0.38, 0.92, 0.46, 1.02, 0.035, (40, 40, 42))
    tube(-0.28, 0.88, -0.04, 0.88, 0.07, (44, 36, 32))
    c.polygon([(-0.27, 0.9), (-0.05, 0.86), (0.24, 1.3), (0.16, 1.44), (0.02, 1.46)],
              (226, 176, 46))  # fmt: skip
    tube(0.14, 1.36, 0.44, 1.03, 0.085, (226, 176, 46))
    c.disc(0.45, 1.03, 0.05, (206, 156, 126))
    c.disc(0.22, 1.58, 0.12, (206, 156, 126))
    c.polygon([(0.08, 1.6), (0.1, 1.7), (0.2, 1.75), (0.32, 1.7), (0.36, 1.62)], (210, 60, 50))
    c.text("14", -0.02, 1.24, 0.24, (40, 38, 44), 0.03)
    return c


def bicycle_wheel() -> Canvas:
    """Tyre, rim and spokes around a hub."""
    c = Canvas(-0.37, 0.37, 0.37, -0.37, 150)
    rim = [math.tau * i / 90 for i in range(91)]
    for outer, inner, tone in ((0.35, 0.315, (34, 34, 36)), (0.315, 0.295, (186, 188, 190))):
        ring = [(outer * math.cos(a), outer * math.sin(a)) for a in rim]
        c.polygon(ring + [(inner * math.cos(a), inner * math.sin(a)) for a in reversed(rim)], tone)
    for i in range(14):
        a = math.tau * i / 14
        s, k = 0.007 * math.sin(a), 0.007 * math.cos(a)
        x, y = 0.3 * math.cos(a), 0.3 * math.sin(a)
        c.polygon([(-s, k), (x - s, y + k), (x + s, y - k), (s, -k)], (150, 154, 156))
    c.disc(0, 0, 0.04, (90, 92, 94))
    return c


def parked_car(rng: np.random.Generator) -> Canvas:
    """A small car from behind, with its number plate; the anchor is the ground below it."""
    c = Canvas(-1.0, 1.6, 1.0, 0, 140)
    body = [(-0.84, 0.26), (0.84, 0.26), (0.86, 0.8), (0.8, 0.92), (0.62, 1.42), (0.48, 1.5),
            (-0.48, 1.5), (-0.62, 1.42), (-0.8, 0.92), (-0.86, 0.8)]  # fmt: skip
    c.fill(-0.82, 0.0, 0.2, 0.4, (28, 28, 30))
    c.fill(0.62, 0.0, 0.2, 0.4, (28, 28, 30))
    under = c.picture.copy()
    c.picture = Image.new("RGBA", c.picture.size)
    c.polygon(body, (170, 60, 52))
    rows, columns = c.picture.height, c.picture.width
    fall = np.interp(
        np.linspace(1.6, 0, rows), [0.2, 0.6, 0.8, 0.9, 1.5], [0.5, 0.8, 1.1, 0.9, 1.3]
    )
    sheen = fall[:, None] * (1 + 0.05 * noise(rng, rows, columns, 1.4))
    painted = Image.fromarray(tinted(sheen.astype(np.float32), (164, 58, 50)).astype(np.uint8))
    shaded = painted.convert("RGBA")
    shaded.putalpha(c.picture.getchannel("A"))
    under.alpha_composite(shaded)
    c.picture = under
    c.polygon([(-0.64, 0.96), (0.64, 0.96), (0.5, 1.38), (-0.5, 1.38)], (44, 52, 58))
    c.polygon([(-0.3, 0.96), (0.0, 0.96), (0.16, 1.38), (-0.08, 1.38)], (96, 110, 118))
    for x in (-0.82, 0.6):
        c.fill(x, 0.68, 0.22, 0.2, (120, 20, 22))
        c.fill(x + 0.04, 0.72, 0.14, 0.06, (240, 150, 90))
    c.fill(-0.86, 0.3, 1.72, 0.2, (52, 50, 52))
    c.fill(-0.33, 0.58, 0.66, 0.19, (30, 32, 34))
    c.fill(-0.32, 0.59, 0.64, 0.17, (244, 214, 84))
    c.text("LK24 VRX", 0, 0.67, 0.13, (22, 22, 26), 0.03)
    return c


def bus_stop() -> Canvas:
    """A pole with a flag, a number and a timetable."""
    c = Canvas(-0.6, 2.9, 0.6, 0, 130)
    c.fill(-0.035, 0, 0.07, 2.9, (70, 74, 78))
    c.fill(0.03, 2.1, 0.52, 0.74, (196, 44, 40))
    c.text("BUS", 0.29, 2.66, 0.2, (248, 244, 236), 0.03)
    c.text("STOP", 0.29, 2.47, 0.17, (248, 244, 236), 0.03)
    c.text("24  N7", 0.29, 2.25, 0.16, (250, 220, 120), 0.02)
    c.fill(-0.26, 1.05, 0.52, 0.72, (54, 58, 62))
    c.fill(-0.24, 1.07, 0.48, 0.68, (244, 242, 234))
    c.text("24 Harbour", 0, 1.67, 0.085, (30, 30, 36), 0.02)
    for row in range(6):
        c.text(f"{7 + row}.05 .25 .45", 0, 1.56 - 0.08 * row, 0.07, (40, 40, 46))
    return c


def cyclist_at(t: float) -> float:
    """The cyclist's place along the street, in metres."""
    return -4.6 + 3.9 * t


def walker_at(t: float) -> tuple[float, float]:
    """The walker's hip: going right, and rising twice a stride."""
    return 0.3 + 1.25 * t, 0.9 + 0.02 * math.cos(math.tau * 1.9 * t)


Turned = tuple[float, float, float]  # where something hangs, x and y, and its turn


def leg(
    hip: tuple[float, float], foot: tuple[float, float], thigh: float, shin: float
) -> tuple[Turned, Turned]:
    """Thigh and shin of a leg that bends forward, to the right; lengths in metres."""
    dx, dy = foot[0] - hip[0], foot[1] - hip[1]
    reach = min(math.hypot(dx, dy), 0.999 * (thigh + shin))
    lean = math.acos((thigh**2 + reach**2 - shin**2) / (2 * thigh * reach))
    upper = math.atan2(dx, -dy) + lean  # from straight down, towards the right
    knee = hip[0] + thigh * math.sin(upper), hip[1] - thigh * math.cos(upper)
    lower = math.atan2(foot[0] - knee[0], knee[1] - foot[1])
    return (*hip, upper), (*knee, lower)


def walking_leg(t: float, side: float) -> tuple[Turned, Turned]:
    """The walker's leg: a foot that stands for one half of the stride and swings for the other."""
    x, y = walker_at(t)
    phase = (0.95 * t + side) % 1
    swing = math.cos(math.tau * phase)
    foot = x + 0.32 * swing, 0.1 + 0.1 * max(0.0, -math.sin(math.tau * phase))
    return leg((x, y - 0.02), foot, 0.42, 0.41)


def riding_leg(t: float, side: float) -> tuple[Turned, Turned]:
    """The cyclist's leg, its foot on a pedal that goes round."""
    x, turn = cyclist_at(t), -math.tau * (1.3 * t + side)
    pedal = x + 0.17 * math.cos(turn), 0.36 + 0.17 * math.sin(turn)
    return leg((x - 0.16, 0.93), pedal, 0.42, 0.42)


def swinging_sign() -> Canvas:
    """A board that swings below its hinge, the anchor."""
    c = Canvas(-0.62, 0.06, 0.62, -1.1, 130)
    c.fill(-0.4, -0.22, 0.02, 0.26, (40, 40, 42))
    c.fill(0.38, -0.22, 0.02, 0.26, (40, 40, 42))
    c.fill(-0.58, -1.06, 1.16, 0.84, (226, 214, 184))
    c.fill(-0.54, -1.02, 1.08, 0.76, (34, 52, 84))
    c.text("SHOES", 0, -0.5, 0.3, (246, 226, 160), 0.03)
    c.text("soled & heeled", 0, -0.76, 0.155, (240, 232, 210))
    return c


@cache
def shops() -> list[Layer]:
    """All layers of the walk, the farthest first."""

    def at(x: float, y: float = 0.0) -> Callable[[float], Turned]:
        return lambda _: (x, y, 0.0)

    def rng(seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    def legs(
        legs_at: Callable[[float, float], tuple[Turned, Turned]], depth: float, colour: Colour
    ) -> list[list[Layer]]:
        """The far leg and the near one: thigh and shin of each."""

        def part(side: float, which: int) -> Callable[[float], Turned]:
            return lambda t: legs_at(t, side)[which]

        limbs = limb(0.42, 0.17, 0.12, colour), limb(0.41, 0.12, 0.08, colour, end=0.17)
        return [[layer(limbs[k], depth, part(side, k)) for k in (0, 1)] for side in (0.5, 0.0)]

    def sway(t: float) -> Turned:
        return 4.75, 4.45, 0.26 * math.sin(math.tau * 0.9 * t + 1.2)

    def wheel_at(offset: float) -> Callable[[float], Turned]:
        return lambda t: (cyclist_at(t) + offset, 0.35, -cyclist_at(t) / 0.35)

    walking = legs(walking_leg, 7.8, (70, 74, 92))
    riding = legs(riding_leg, 5.9, (52, 56, 62))
    tyre = bicycle_wheel()
    return [
        replace(backdrop(rng(21)), depth=45),
        layer(tree(rng(22), 7, 7.5, 70), 15, at(14)),
        pavement(rng(23)),
        parade(rng(24)),
        layer(swinging_sign(), 8.6, sway),
        layer(planter(rng(25)), 8.5, at(-6.9)),
        layer(planter(rng(26)), 8.5, at(12.6)),
        *walking[0],
        layer(walker(rng(27)), 7.8, lambda t: (*walker_at(t), 0.0)),
        *walking[1],
        layer(bus_stop(), 7.4, at(-3.3)),
        layer(parked_car(rng(28)), 7.0, at(5.3)),
        *riding[0],
        *(layer(tyre, 5.9, wheel_at(x)) for x in (-0.45, 0.56)),
        layer(bicycle(), 5.9, lambda t: (cyclist_at(t), 0.0, 0.0)),
        *riding[1],
    ]


def walk_shade(t: float, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Light on the ground: less at the walls' foot and under what stands or goes on it."""
    light = 1 - 0.45 * torch.exp((z - FACADE).clamp(max=0) / 0.25)
    for middle, wide, away, depth in (
        (5.3, 0.85, 7.2, 0.65), (walker_at(t)[0], 0.22, 7.8, 0.4), (cyclist_at(t), 0.6, 5.9, 0.4)
    ):  # fmt: skip
        cover = torch.sigmoid((wide - (x - middle).abs()) / 0.08)
        light = light * (1 - depth * cover * torch.exp(-(((z - away) / 0.25) ** 2)))
    return light


def walk_pose(t: float) -> Pose:
    """A walk to the left, looking along the shops: the body sways once and bobs twice a stride."""
    stride = math.tau * 0.95 * t

    def wave(amplitude: float, hertz: float, phase: float) -> float:
        return amplitude * math.sin(math.tau * hertz * t + phase)

    return Pose(
        x=1.47 - 1.4 * t + 0.02 * math.sin(stride),
        yaw=0.5 - 0.5 * t + 0.02 * math.sin(stride) + wave(0.004, 3.7, 1.0),
        pitch=0.03 + 0.026 * math.sin(2 * stride) + wave(0.0025, 5.3, 2.0),
        roll=0.016 * math.sin(stride + 0.9) + wave(0.003, 4.1, 0.0),
        focal=FOCAL,
        y=EYE + 0.025 * math.sin(2 * stride),
        z=0.12 * t,
    )


WALK = Film(
    "Station Road, a walk", ("The grocer", "The pharmacy"), shops, walk_pose, walk_shade, 0.5
)
FILMS = {"street": STREET, "walk": WALK}


# --------------------------------------------------------------------------- the files


def to_planes(picture: torch.Tensor) -> NDArray[np.uint8]:
    """RGB 0..1 to BT.709 4:2:0, limited range: the planes one below the other, as yuv420p."""
    red, green, blue = picture.double()
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    chroma = torch.stack([(blue - luma) / 1.8556, (red - luma) / 1.5748])[:, None]
    # Chroma sits on the left luma column of each pair, half-way between two rows.
    weights = torch.tensor([[1, 2, 1], [1, 2, 1]], dtype=torch.float64) / 8
    padded = F.pad(chroma, (1, 0, 0, 0), mode="replicate")
    small = F.conv2d(padded, weights[None, None], stride=2)
    parts = [(16 + 219 * luma).reshape(-1), (128 + 224 * small).reshape(-1)]
    codes = torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
    return codes.reshape(luma.shape[0] * 3 // 2, luma.shape[1]).numpy()


def tune() -> Array:
    """Two seconds of plucked notes over a bass: (2, samples) in -1..1."""
    seconds = FRAMES / FPS
    time = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    sound = np.zeros((2, len(time)))

    def pluck(start: float, semitones: int, strength: float, fade: float, pan: float) -> None:
        pitch = 440 * 2 ** (semitones / 12)
        t = np.clip(time - start, 0, None)
        shape = np.exp(-t / fade) * np.clip(t / 0.006, 0, 1)
        tone = sum(np.sin(math.tau * pitch * n * t) / n**1.8 for n in range(1, 6))
        sound[0] += strength * (1 - pan) * shape * tone
        sound[1] += strength * pan * shape * tone

    for i, note in enumerate((0, 4, 7, 12, 11, 7, 9, 5, 4, 7, 5, 2, 4, -1, 0, 0)):
        pluck(i / 8, note, 0.24, 0.22, 0.35 + 0.3 * (i % 2))
    for i, note in enumerate((-24, -19, -17, -24)):
        pluck(i / 2, note, 0.3, 0.5, 0.5)
    sound *= np.clip((seconds - time) / 0.12, 0, 1)
    return np.asarray(0.7 * sound / np.abs(sound).max(), np.float32)


def write(
    path: Path, pictures: Iterable[NDArray[np.uint8]], title: str, chapters: tuple[str, str]
) -> None:
    """One clip: H.264 and AAC in MP4, with a title and two chapters."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as output:
        output.metadata["title"] = title
        output.metadata["comment"] = "Made by samples/make_samples.py; CC0 1.0"
        half = 500 * FRAMES // FPS  # milliseconds
        output.set_chapters(
            [
                {
                    "id": i,
                    "start": half * i,
                    "end": half * (i + 1),
                    "time_base": Fraction(1, 1000),
                    "metadata": {"title": name},
                }
                for i, name in enumerate(chapters)
            ]
        )
        video = output.add_stream("libx264", rate=FPS, options={"crf": "14", "preset": "veryslow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1  # the same bytes on any number of cores
        video.codec_context.color_range = 1  # limited; then BT.709 throughout
        video.codec_context.color_primaries = 1
        video.codec_context.color_trc = 1
        video.codec_context.colorspace = 1
        audio = output.add_stream("aac", rate=AUDIO_RATE, layout="stereo")
        audio.codec_context.bit_rate = 112_000
        for number, planes in enumerate(pictures):
            picture = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(tune(), format="fltp", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = AUDIO_RATE, 0, Fraction(1, AUDIO_RATE)
        output.mux(audio.encode(sound))
        output.mux(audio.encode(None))


def main() -> None:
    """Render all frames, then write the clips."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("outdir", type=Path, metavar="OUTDIR")
    parser.add_argument("films", nargs="*", metavar="FILM", help=f"of {', '.join(FILMS)}: all")
    args = parser.parse_args()
    unknown = [name for name in args.films if name not in FILMS]
    if unknown:
        parser.error(f"there is no film {unknown[0]}: choose {', '.join(FILMS)}")
    args.outdir.mkdir(parents=True, exist_ok=True)
    for name in args.films or FILMS:
        film = FILMS[name]
        blurred, sharp = [], []
        for index in range(FRAMES):
            pair = frame(index, film=film)
            blurred.append(to_planes(pair[0]))
            sharp.append(to_planes(pair[1]))
            print(f"{name}: frame {index + 1} of {FRAMES}")
        for kind, pictures in (("blurred", blurred), ("sharp", sharp)):
            path = args.outdir / f"{name}_{kind}.mp4"
            write(path, pictures, f"{film.title} ({kind})", film.chapters)


if __name__ == "__main__":
    main()
