"""Synthetic motion blur: sharp pictures in, (blurred, sharp) pairs out, on any device.

A camera path is drawn as a smooth random trajectory, seen nearer or farther across a ground plane,
with roll, zoom and tilt; moving layers with soft edges travel on paths of their own. The transfer
function of a path is computed exactly, as the mean of the phases of its points, and applied by FFT;
where the path depends on the place, at anchors across the picture, blended between. Light adds up
linearly, so pictures are linearised before and brought back after. Sharp is the picture at
mid-exposure, as with frame averaging (Nah et al., CVPR 2017). What else a camera does to a picture
(`vdeblur.datasets.camera_effects`) follows. Knows nothing of files.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets import camera_effects
from vdeblur.datasets.camera_effects import Response, choose


@dataclass(frozen=True)
class BlurOptions:
    """What the synthetic camera does. Lengths in pixels of the training crop, shares in 0..1.

    Motion. max_length: longest camera path; length_power: path length is max_length·u^power, u
    uniform, so that larger means more light blur. calm_share: paths that turn and change their
    speed little, as most do in the time that a video's shutter is open; the others are wilder.
    light_share: pairs whose paths are no longer than light_length. sharp_share: pairs without blur,
    which are to come back as they are, noise and coding included: their sharp picture is their
    blurred one. frames_share: exposures made of 7 to 13 shorter ones with gaps, as averaged frames
    are. varying_share: pairs whose path depends on the place: by roll and tilt (degrees), zoom and
    depth (by how much a path is longer at the edge of the crop than at its middle), each at most.
    anchors: transfer functions along each side where that matters much, two where little.
    layer_share: pairs with one to `layers` moving layers; at_rest_share: of these, those whose
    camera, or whose layer, is at rest.

    Light. coded_share: pairs averaged in coded values, as GoPro's `blur` folders are; the others
    have a response curve of a gamma out of `gammas` with an offset up to max_offset (see
    `degrade.Response`; sRGB is gamma 2.4, offset 0.055), half of them under a tone curve out of
    `contrasts`. highlight_share: pairs whose whites are brighter than white by up to
    `highlight` times, and saturate after averaging; lights_share: pairs with points of light.

    Camera. noise_share: pairs with noise, of a standard deviation up to `noise` in coded values at
    mid grey, half of them as coarse as demosaicing leaves it. smear_share: pairs whose fine texture
    is levelled by up to `smear`. sharpen_share: pairs of a camera that sharpens by up to `sharpen`,
    before averaging or after; the sharp picture is sharpened alike. jpeg_share, h264_share: pairs
    that are compressed, at a quality out of jpeg_quality, at a rate factor out of h264_crf.
    """

    max_length: float = 40.0
    length_power: float = 1.3
    calm_share: float = 0.7
    light_share: float = 0.1
    light_length: float = 4.0
    sharp_share: float = 0.12
    frames_share: float = 0.3
    steps: int = 64
    varying_share: float = 0.5
    roll_degrees: float = 1.2
    tilt_degrees: float = 0.4
    zoom: float = 0.02
    depth: float = 0.5
    anchors: int = 3
    layer_share: float = 0.4
    layers: int = 2
    at_rest_share: float = 0.3
    coded_share: float = 0.4
    gammas: tuple[float, float] = (1.8, 2.6)
    max_offset: float = 0.1
    contrasts: tuple[float, float] = (-0.2, 0.6)
    highlight_share: float = 0.2
    highlight: float = 5.0
    lights_share: float = 0.06
    noise_share: float = 0.6
    noise: float = 0.015
    smear_share: float = 0.08
    smear: float = 0.02
    sharpen_share: float = 0.4
    sharpen: float = 0.9
    jpeg_share: float = 0.35
    jpeg_quality: tuple[int, int] = (60, 98)
    h264_share: float = 0.1
    h264_crf: tuple[float, float] = (16.0, 30.0)


#: Nothing but motion: no noise, no curve, no coding, and no sharp pairs.
PURE = BlurOptions(
    light_share=0,
    sharp_share=0,
    frames_share=0,
    varying_share=0,
    layer_share=0,
    coded_share=1,
    highlight_share=0,
    lights_share=0,
    noise_share=0,
    smear_share=0,
    sharpen_share=0,
    jpeg_share=0,
    h264_share=0,
)


def lightly(options: BlurOptions) -> BlurOptions:
    """The same motion before a better camera, in a better file: what a network learns first.

    Much noise and coding hide a blur of a few pixels, and make all pictures alike bad.
    """
    return replace(
        options,
        noise_share=min(options.noise_share, 0.5),
        noise=min(options.noise, 0.008),
        smear_share=0.0,
        sharpen_share=min(options.sharpen_share, 0.25),
        sharpen=min(options.sharpen, 0.6),
        jpeg_share=min(options.jpeg_share, 0.15),
        jpeg_quality=(max(options.jpeg_quality[0], 80), max(options.jpeg_quality[1], 80)),
        h264_share=0.0,
    )


@dataclass(frozen=True)
class Motion:
    """Where a scene's points go during N exposures, in pixels from where they are at its middle.

    path: (N, steps, 2), x then y, of the picture's middle. The rest is None, or: depth (N, 2): how
    much longer the path is half a picture to the right, and below. roll (radians) and zoom
    (relative), (N, steps); tilt: (N, steps, 2), keystone: relative zoom half a picture away.
    """

    path: Tensor
    depth: Tensor | None = None
    roll: Tensor | None = None
    zoom: Tensor | None = None
    tilt: Tensor | None = None

    def at(self, x: float, y: float, size: tuple[int, int]) -> Tensor:
        """(N, steps, 2): the path at (x, y), each −1 … 1 across a picture of `size` (h, w)."""
        here = self.path
        if self.depth is not None:
            near = self.depth[:, 0] * x + self.depth[:, 1] * y
            here = here * (1 + near)[:, None, None]
        right, down = x * size[1] / 2, y * size[0] / 2
        scale = torch.zeros((), device=here.device)
        if self.zoom is not None:
            scale = self.zoom
        if self.tilt is not None:
            scale = scale + self.tilt[..., 0] * x + self.tilt[..., 1] * y
        roll = torch.zeros((), device=here.device) if self.roll is None else self.roll
        if scale.ndim or roll.ndim:
            moved = [scale * right - roll * down, roll * right + scale * down]
            here = here + torch.stack(moved, dim=-1)
        return here

    @property
    def varies(self) -> bool:
        """Whether the path depends on the place."""
        return any(part is not None for part in (self.depth, self.roll, self.zoom, self.tilt))

    def within(self, reach: float, size: tuple[int, int]) -> Motion:
        """The same motion, made smaller where a point would travel farther than `reach` pixels."""
        corners = [self.at(x, y, size) for x in (-1, 1) for y in (-1, 1)]
        far = torch.stack([*corners, self.path]).abs().amax(dim=(0, 2, 3))  # (N,)
        factor = (reach / far.clamp_min(1e-6)).clamp_max(1.0)

        def scaled(part: Tensor | None) -> Tensor | None:
            return None if part is None else part * factor.view(-1, *[1] * (part.ndim - 1))

        return Motion(
            self.path * factor[:, None, None],
            self.depth,
            scaled(self.roll),
            scaled(self.zoom),
            scaled(self.tilt),
        )

    def spread(self, size: tuple[int, int]) -> list[float]:
        """How far, in pixels, the paths of the corners part from that of the middle."""
        if not self.varies:
            return [0.0] * len(self.path)
        corners = [self.at(x, y, size) - self.path for x in (-1, 1) for y in (-1, 1)]
        spread: list[float] = torch.stack(corners).abs().amax(dim=(0, 2, 3)).tolist()
        return spread

    def part(self, rows: list[int], device: torch.device) -> Motion:
        """The motion of some pictures, on a device."""

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else part[rows].to(device)

        path = self.path[rows].to(device)
        return Motion(path, of(self.depth), of(self.roll), of(self.zoom), of(self.tilt))


class BlurredPairs(NamedTuple):
    """What `make_pairs` gives: pictures in [0, 1] and how each place moved during the exposure.

    blurred, sharp: (N, 3, H, W). motion: (N, 4, H / 4, W / 4), the chord and the bend of each
    place's path, x then y, as `vdeblur.networks.taps` defines them; in pixels of the full size.
    around: None, or the blurred frames before and after, where those were asked for.
    """

    blurred: Tensor
    sharp: Tensor
    motion: Tensor
    around: Around | None = None


class Around(NamedTuple):
    """The film's frames before and after: what the same camera took of the same scene.

    blurred: (2, N, 3, H, W) in [0, 1]. motion: (2, N, 4, H / 4, W / 4), of each. shares: (N,), the
    share of the time from frame to frame that the shutter is open, on the CPU. ways: (2, N, 2,
    H / 4, W / 4), how far away, x and y in pixels, each place of the frame at hand is in them.
    """

    blurred: Tensor
    motion: Tensor
    shares: Tensor
    ways: Tensor


#: A motion field has a vector for so many pixels in a row and in a column.
MOTION_STEP = 4
_FIELD_POINTS = 9  # places along a side where paths are followed; between them, bilinear


def chord_and_bend(paths: Tensor) -> Tensor:
    """The parabola nearest to paths (..., steps, 2): (..., 4), chord x, y and bend x, y.

    The path is at c + chord·s + bend·s² at the share s − ½ … ½ of the exposure, its points being
    evenly spaced in time; least squares.
    """
    fitted: Tensor = (_parabola(paths.shape[-2]).to(paths) @ paths).flatten(-2)
    return fitted


@functools.cache
def _parabola(steps: int) -> Tensor:
    """(2, steps): what of each point goes into chord and bend."""
    s = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 0.5
    fit: Tensor = torch.linalg.pinv(torch.stack([torch.ones_like(s), s, s * s], dim=1))[1:]
    return fit


def _field(motion: Motion, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Chord and bend across a picture of `size` (h, w), on a grid of places: (N, 4, *grid)."""
    if not motion.varies:
        return chord_and_bend(motion.path)[:, :, None, None].expand(-1, -1, *grid)
    # From the middle of the first cell of the grid to that of the last.
    places = [2 * k / (_FIELD_POINTS - 1) - 1 for k in range(_FIELD_POINTS)]
    down, across = (1 - MOTION_STEP / side for side in size)
    fitted = [
        [chord_and_bend(motion.at(across * x, down * y, size)) for x in places] for y in places
    ]
    field = torch.stack([torch.stack(row, dim=-1) for row in fitted], dim=-2)
    return F.interpolate(field, size=grid, mode="bilinear", align_corners=True)


class _Draw:
    """Random numbers of a CPU generator, of which a batch's pairs are a function alone."""

    def __init__(self, generator: torch.Generator, count: int, device: torch.device) -> None:
        self.generator, self.count, self.device = generator, count, device

    def uniform(self, low: float = 0.0, high: float = 1.0, *, of: int | None = None) -> Tensor:
        """(count,) or (of,) numbers, on the CPU."""
        drawn = torch.rand(self.count if of is None else of, generator=self.generator)
        return low + (high - low) * drawn

    def each(self, low: float = 0.0, high: float = 1.0, *, of: int | None = None) -> Tensor:
        """The same as (n, 1, 1, 1) on the device."""
        return self.uniform(low, high, of=of).to(self.device)[:, None, None, None]

    def chosen(self, share: float) -> list[int]:
        """The pictures that something of this share happens to."""
        return (self.uniform() < share).nonzero()[:, 0].tolist()

    def on_device(self) -> torch.Generator:
        """A generator for large tensors where they are wanted, seeded from this one."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(self.device).manual_seed(seed)


def random_paths(count: int, options: BlurOptions, generator: torch.Generator) -> Tensor:
    """`count` smooth camera paths: (count, steps, 2) displacements in pixels, x then y.

    Each is zero at mid-exposure. A straight drift, a slow curve and hand tremor are mixed at
    random, and the arc length is drawn from `options`.
    """
    steps = options.steps

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    time = torch.linspace(0, 1, steps)
    angle = uniform(count, 1) * 2 * math.pi
    velocity = torch.stack([angle.cos(), angle.sin()], dim=-1).expand(count, steps, 2).clone()
    velocity *= 0.2 + uniform(count, 1, 1)
    unrest = 1.2 * uniform(count, 1, 1)
    # Within a thirtieth of a second a hand or a head hardly turns: most paths are near parabolas.
    calm = (uniform(count) < options.calm_share)[:, None, None]
    turn = torch.randn(count, 1, 2, generator=generator) * uniform(count, 1, 1).pow(1.5)
    velocity += torch.where(calm, 1.2 * turn * (time[None, :, None] - 0.5), 0.0)
    unrest = torch.where(calm, 0.12 * unrest, unrest)
    for cycles, weight in ((0.5, 1.2), (1.0, 1.0), (2.0, 0.8), (3.5, 0.6)):
        phase = uniform(count, 1, 2) * 2 * math.pi
        amplitude = uniform(count, 1, 2).pow(2) * weight * unrest * uniform(count, 1, 1)
        velocity += amplitude * torch.sin(2 * math.pi * cycles * time[None, :, None] + phase)
    path = velocity.cumsum(dim=1)
    arc = (path[:, 1:] - path[:, :-1]).norm(dim=-1).sum(dim=1).clamp_min(1e-6)
    length = options.max_length * uniform(count).pow(options.length_power)
    light = options.light_length * uniform(count)
    length = torch.where(uniform(count) < options.light_share, length.minimum(light), length)
    path = path * (length / arc)[:, None, None]
    centred: Tensor = path - path[:, steps // 2 : steps // 2 + 1]
    return centred


def random_times(count: int, steps: int, frames_share: float, generator: torch.Generator) -> Tensor:
    """When the shutter is open, (count, steps) in 0..1: all the time, or in 7 to 13 frames."""
    time = torch.linspace(0, 1, steps).expand(count, steps)
    frames = torch.randint(7, 14, (count, 1), generator=generator).float()
    duty = 0.3 + 0.7 * torch.rand(count, 1, generator=generator)
    number = (time * frames).floor().minimum(frames - 1)
    gapped = (number + (1 - duty) / 2 + duty * (time * frames - number)) / frames
    split = torch.rand(count, 1, generator=generator) < frames_share
    return torch.where(split, gapped, time)


def sampled(paths: Tensor, times: Tensor) -> Tensor:
    """Paths (N, steps, 2) at (N, M) times in 0..1: (N, M, 2), linear between their points."""
    place = times * (paths.shape[1] - 1)
    low = place.floor().clamp(0, paths.shape[1] - 2)
    fraction = (place - low)[..., None]
    index = low.long()[..., None].expand(-1, -1, 2)
    return paths.gather(1, index) * (1 - fraction) + paths.gather(1, index + 1) * fraction


def transfer(paths: Tensor, size: tuple[int, int]) -> Tensor:
    """Transfer functions of paths (N, steps, 2): (N, height, width // 2 + 1), for rfft2.

    The mean over the path's points p of exp(−i ω·p): exact for fractions of a pixel. Points drawn
    bilinearly into a kernel would blur across the motion too, to 0.4 at the highest frequency.
    """
    height, width = size
    device = paths.device
    along_x = _phases(paths[..., 0], torch.fft.rfftfreq(width, device=device), width)
    along_y = _phases(paths[..., 1], torch.fft.fftfreq(height, device=device), height)
    return torch.bmm(along_y.transpose(1, 2), along_x) / paths.shape[1]


def _phases(places: Tensor, frequencies: Tensor, side: int) -> Tensor:
    """What a shift to each place (N, steps) does to waves of so many cycles a pixel: (N, steps, F).

    exp(−i ω p) jumps at half a cycle a pixel, and edges would ring far: from 0.3 cycles on it
    becomes linear interpolation, which does not. Both leave a shift by 0 as it is.
    """
    result = _turn(places, frequencies)
    first = math.ceil(0.3 * side)
    high = slice(first, min(len(frequencies), side - first + 1))
    top = frequencies[high]
    whole = places.floor()
    part = (places - whole)[..., None]
    linear = _turn(whole, top) * torch.complex(
        1 - part + part * (2 * math.pi * top).cos(), -part * (2 * math.pi * top).sin()
    )
    share = ((top.abs() - 0.3) / 0.2).clamp(0, 1)
    share = share * share * (3 - 2 * share)
    result[..., high] += share * (linear - result[..., high])
    return result


def _turn(places: Tensor, frequencies: Tensor) -> Tensor:
    angle = places[..., None] * (-2 * math.pi * frequencies)
    return torch.complex(angle.cos(), angle.sin())


def convolve(images: Tensor, functions: Tensor) -> Tensor:
    """Circular convolution of (N, C, H, W) with one transfer function (N, H, W // 2 + 1) each."""
    spectrum = torch.fft.rfft2(images) * functions[:, None]
    result: Tensor = torch.fft.irfft2(spectrum, s=images.shape[-2:])
    return result


def camera_blur(images: Tensor, motion: Motion, *, anchors: int = 3) -> Tensor:
    """Blur linear-light (N, C, H, W) by a motion. The outer pixels wrap around: crop them.

    A motion that depends on the place is computed at anchors × anchors places and blended.
    """
    _, _, height, width = images.shape
    size = (height, width)
    if not motion.varies:
        return convolve(images, transfer(motion.path, size))
    spectrum = torch.fft.rfft2(images)
    out = torch.zeros_like(images)
    for row in range(anchors):
        for column in range(anchors):
            y, x = (2 * k / (anchors - 1) - 1 for k in (row, column))
            function = transfer(motion.at(x, y, size), size)[:, None]
            part = torch.fft.irfft2(spectrum * function, s=size)
            weight = _hat(height, y, anchors, images)[:, None] * _hat(width, x, anchors, images)
            out.addcmul_(part, weight)
    return out


def _hat(side: int, centre: float, anchors: int, like: Tensor) -> Tensor:
    """The weight of the anchor at `centre` along a side: 1 there, 0 at its neighbours."""
    place = torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype)
    return (1 - (place - centre).abs() * (anchors - 1) / 2).clamp_min(0)


def random_masks(
    count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Shapes of moving layers: (count, 1, height, width) in 0..1, their edges 1 to 3 pixels wide.

    Blobs, tilted boxes (from posts to walls) and ellipses, alike often. Softer edges would be a
    blur that the sharp picture has too: a network would learn to leave such edges as they are.
    """
    height, width = size

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(count, 1, 1, 1, generator=generator)
        return (low + (high - low) * drawn).to(device)

    noise = torch.randn(count, 1, 5, 5, generator=generator).to(device)
    blobs = F.interpolate(noise, size=size, mode="bicubic", align_corners=False) - 0.6
    angle = uniform(-math.pi, math.pi)
    x = torch.arange(width, device=device) - uniform(0.2, 0.8) * width
    y = torch.arange(height, device=device)[:, None] - uniform(0.2, 0.8) * height
    along = (x * angle.cos() + y * angle.sin()).abs()
    across = (y * angle.cos() - x * angle.sin()).abs()
    long, wide = uniform(0.1, 0.5) * width, uniform(0.05, 1.0).square() * 0.3 * width + 1.5
    boxes = torch.minimum(long - along, wide - across)
    ellipses = (1 - ((along / long).square() + (across / wide).square()).sqrt()) * wide
    kind = torch.randint(3, (count, 1, 1, 1), generator=generator).to(device)
    shape = torch.where(kind == 0, blobs, torch.where(kind == 1, boxes, ellipses))
    down, right = torch.gradient(shape, dim=(2, 3))
    distance = shape / (down.square() + right.square()).sqrt().clamp_min(1e-3)  # to the edge
    return torch.sigmoid(4 * distance / uniform(1.0, 3.0))


def _lights(
    count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Points of light, coloured, many times brighter than white: (count, 3, height, width)."""
    height, width = size
    out = torch.zeros(count, 3, height, width, device=device)
    for _ in range(int(torch.randint(1, 7, (), generator=generator))):
        drawn = torch.rand(count, 7, 1, 1, generator=generator).to(device)
        x = torch.arange(width, device=device) - drawn[:, :1] * width
        y = torch.arange(height, device=device)[:, None] - drawn[:, 1:2] * height
        radius = 0.6 + 3 * drawn[:, 2:3].square()
        # Soft by more than a pixel, so that the FFT leaves no rings.
        disc = torch.sigmoid((radius - (x * x + y * y).sqrt()) * 2.5)
        out += disc * (0.5 + 0.5 * drawn[:, 3:6]) * (1 + 20 * drawn[:, 6:].square())
    return out


def _camera_motion(draw: _Draw, options: BlurOptions, moving: Tensor, times: Tensor) -> Motion:
    """One camera motion a picture, of all kinds at once, on the CPU.

    moving (N,): 0 where there is none. times: when the shutter is open.
    """
    n = draw.count
    path = sampled(random_paths(n, options, draw.generator), times) * moving[:, None, None]
    wanted = (draw.uniform() < options.varying_share).float() * moving
    swing = sampled(random_paths(n, replace(_UNIT, steps=options.steps), draw.generator), times)
    swing = swing * wanted[:, None, None]  # mostly about ±½

    def amount(most: float) -> Tensor:
        return draw.uniform(-most, most)[:, None]

    depth = torch.stack([draw.uniform(-1, 1), draw.uniform(-1, 1)], dim=1) * options.depth / 2
    return Motion(
        path,
        depth * wanted[:, None],
        roll=swing[..., 0] * amount(2 * math.radians(options.roll_degrees)),
        zoom=swing[..., 1] * amount(2 * options.zoom),
        tilt=swing * amount(2 * math.radians(options.tilt_degrees))[..., None],
    )


_UNIT = replace(PURE, max_length=1.0, length_power=0.0)


@dataclass(frozen=True)
class _Next:
    """How a scene's part goes on to another frame: the path of its exposure there, and how far it
    has gone by then (N, 2), in pixels.
    """

    path: Tensor
    gone: Tensor


def _next(path: Tensor, times: Tensor, draw: torch.Generator, unrest: Tensor, side: int) -> _Next:
    """A neighbour of an exposure along `path` (N, steps, 2): its speed is alike, by `unrest` (N,).

    `gone` is of a shutter that is open all the time. side: 1 for the frame after, −1 for the one
    before.
    """
    count = len(path)
    first = chord_and_bend(path)
    chord, bend = first[:, :2], first[:, 2:]
    speed = torch.exp(0.4 * unrest * torch.randn(count, generator=draw))
    # Now and then a hand has come to rest, or jerks.
    kind = torch.rand(count, generator=draw)
    change = torch.rand(count, generator=draw)
    speed = torch.where(kind < 0.15, 0.6 * change, torch.where(kind > 0.93, 1 + change, speed))
    angle = 0.6 * unrest * torch.randn(count, generator=draw)
    cos, sin = angle.cos(), angle.sin()
    x, y = chord.unbind(-1)
    turned = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) * speed[:, None]
    # A steady turn goes on turning.
    turned = turned + side * 2 * bend * torch.rand(count, 1, generator=draw)
    own_bend = bend * torch.randn(count, 1, generator=draw)
    s = times[..., None] - 0.5
    own = turned[:, None] * s + own_bend[:, None] * s * s
    own = own - own[:, own.shape[1] // 2 : own.shape[1] // 2 + 1]
    return _Next(own, side * (chord + turned) / 2)


def _scaled(motion: Motion, path: Tensor, factor: Tensor) -> Motion:
    """Another path, and roll, zoom and tilt `factor` (N,) times as fast."""

    def times(part: Tensor | None) -> Tensor | None:
        return None if part is None else part * factor.view(-1, *[1] * (part.ndim - 1))

    return Motion(path, motion.depth, times(motion.roll), times(motion.zoom), times(motion.tilt))


def _gone(motion: Motion, gone: Tensor, factor: Tensor) -> Motion:
    """How far each place goes on the whole, as a motion of one step: `factor` (N,) times a
    picture's roll, zoom and tilt from the start of its exposure to the end.
    """

    def whole(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        total = part[:, -1:] - part[:, :1]
        return total * factor.view(-1, *[1] * (part.ndim - 1))

    return Motion(
        gone[:, None], motion.depth, whole(motion.roll), whole(motion.zoom), whole(motion.tilt)
    )


def _ways(motion: Motion, size: tuple[int, int]) -> Tensor:
    """Where places go by a motion of one step: (N, 2, _FIELD_POINTS, _FIELD_POINTS), from the
    picture's first edges to its last.
    """
    places = torch.linspace(-1, 1, _FIELD_POINTS).tolist()
    rows = [torch.stack([motion.at(x, y, size)[:, 0] for x in places], dim=-1) for y in places]
    return torch.stack(rows, dim=-2)


def _carried(images: Tensor, way: Tensor) -> Tensor:
    """Pictures (N, C, H, W) whose places have gone by `way` (N, 2, H, W) pixels."""
    _, _, height, width = images.shape
    x = torch.arange(width, device=images.device) - way[:, 0]
    y = torch.arange(height, device=images.device)[:, None] - way[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(
        images, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )


def make_pairs(
    sharp: Tensor,
    *,
    margin: int,
    options: BlurOptions,
    generator: torch.Generator,
    neighbours: bool = False,
) -> BlurredPairs:
    """Pairs from sharp pictures, and the motion that made them.

    neighbours: with the frames before and after, as a film has them.

    sharp: (N, 3, H, W) in [0, 1], any device; generator: a CPU generator, which alone decides the
    result (on another kind of device, noise and coding differ). Pictures come back as
    (N, 3, H − 2·margin, W − 2·margin) in [0, 1]. No point travels farther than `margin`.
    """
    n, _, height, width = sharp.shape
    size, device = (height, width), sharp.device
    draw = _Draw(generator, n, device)
    early, late = _sharpening(draw, options)
    sharp = _some(sharp.clone(), early, lambda x, p: camera_effects.sharpen(x, *p))

    # Highlights beyond white: they saturate after averaging and leave bright, hard-edged trails.
    bright = draw.chosen(options.highlight_share)
    over = draw.each(0, options.highlight - 1, of=len(bright))
    low = sharp.index_select(0, choose(bright, device)).amin(dim=1, keepdim=True)
    over = 1 + over * ((low - 0.86) / 0.1).clamp(0, 1)
    curved, response = _random_response(draw, options)
    linear = _some(sharp, (curved, ()), lambda x, _: response.to_light(x))
    linear = _some(linear, (bright, (over,)), lambda x, p: x * p[0])
    if lit := draw.chosen(options.lights_share):
        linear.index_add_(0, choose(lit, device), _lights(len(lit), size, generator, device))

    still = draw.uniform() < options.sharp_share
    times = random_times(n, options.steps, options.frames_share, generator)
    layered = [i for i in draw.chosen(options.layer_share) if not bool(still[i])]
    # With layers, the camera may be at rest, or may follow the nearest of them.
    rest, more = draw.uniform(), draw.uniform()
    moving = (~still).float()
    moving[layered] *= (rest[layered] >= options.at_rest_share / 2).float()
    followed = (rest > 1 - options.at_rest_share / 2).float()
    motion = _camera_motion(draw, options, moving, times).within(margin, size)
    blurred = _blur_each(linear, motion, options)
    grid = (height // MOTION_STEP, width // MOTION_STEP)
    field = _field(motion, size, grid).to(device)
    film = _Film(draw, times, motion, linear, margin, options) if neighbours else None

    target = linear.clone() if layered else linear
    for number in range(options.layers if layered else 0):
        # The last one is the nearest, and there for all of them.
        some = layered if number == options.layers - 1 else [i for i in layered if more[i] < 0.35]
        if not some:
            continue
        rows = choose(some, device)
        mask = random_masks(len(some), size, generator, device)
        layer = linear.roll(number + 1, 0).index_select(0, rows).flip(-1)
        own = sampled(random_paths(len(some), options, generator), times[some])
        if number == options.layers - 1:
            own *= 1 - followed[some, None, None]
        # Nearer than what is behind it, and moving by itself.
        near = draw.uniform(0.3, 1.6, of=len(some)) * (1 - followed[some])
        own += motion.path[some] * near[:, None, None]
        kept = Motion(own).within(margin, size).path
        path = kept.to(device)
        moved = convolve(torch.cat([layer * mask, mask], dim=1), transfer(path, size))
        behind = blurred.index_select(0, rows)
        blurred.index_copy_(0, rows, moved[:, :3] + (1 - moved[:, 3:]) * behind)
        covered = layer * mask + (1 - mask) * target.index_select(0, rows)
        target.index_copy_(0, rows, covered)
        here = F.interpolate(mask, size=grid, mode="area")
        own_field = chord_and_bend(path)[:, :, None, None] * here
        field = field.index_copy(0, rows, own_field + (1 - here) * field.index_select(0, rows))
        if film is not None:
            film.cover(some, layer, mask, kept)

    inner = (..., slice(margin, height - margin), slice(margin, width - margin))
    frames, target = [blurred[inner]], target[inner].clamp(0, 1)
    if film is not None:
        frames += [part[inner] for part in film.blurred]
    slope = torch.ones(n, 1, 1, 1, device=device)
    slope = _some(slope, (curved, ()), lambda x, _: response.slope())
    frames = [part.clamp(0, 1) for part in _noise(frames, draw, options, slope)]
    *frames, target = (
        _some(image, (curved, ()), lambda x, _: response.to_coded(x)) for image in (*frames, target)
    )
    if smeared := draw.chosen(options.smear_share):
        strength = draw.each(0.2 * options.smear, options.smear, of=len(smeared))
        frames = [
            _some(part, (smeared, (strength,)), lambda x, p: camera_effects.smear(x, *p))
            for part in frames
        ]
    *frames, target = (
        _some(image, late, lambda x, p: camera_effects.sharpen(x, *p))
        for image in (*frames, target)
    )
    frames = _coded(frames, draw, options)
    # A sharp picture is to come back as it is.
    target = torch.where(still.to(device)[:, None, None, None], frames[0], target)
    edge = margin // MOTION_STEP
    cut = (..., slice(edge, grid[0] - edge), slice(edge, grid[1] - edge))
    around = None
    if film is not None:
        fields, ways = (torch.stack(part)[cut].contiguous() for part in (film.fields, film.ways))
        around = Around(torch.stack(frames[1:]), fields, film.shares, ways)
    return BlurredPairs(frames[0], target, field[cut].contiguous(), around)


class _Film:
    """The frames before and after, in linear light, built up as the one at hand is.

    blurred, fields, ways: of both. shares: how much of a frame's time the shutter is open, (N,): so
    much at least that nothing goes farther than the margin from one frame to the next.
    """

    def __init__(
        self,
        draw: _Draw,
        times: Tensor,
        motion: Motion,
        linear: Tensor,
        margin: int,
        options: BlurOptions,
    ) -> None:
        self._draw, self._times, self._margin = draw, times, margin
        self._size = (linear.shape[2], linear.shape[3])
        self._grid = (self._size[0] // MOTION_STEP, self._size[1] // MOTION_STEP)
        self._unrest = draw.uniform()
        sides = (-1, 1)
        ways = [self._on(motion.path, times, range(draw.count), side) for side in sides]
        change = torch.stack([draw.uniform(0.6, 1.4), draw.uniform(0.6, 1.4)])
        swings = [
            _gone(motion, way.gone, side * (1 + factor) / 2)
            for way, side, factor in zip(ways, sides, change, strict=True)
        ]
        fields = [_ways(swing, self._size) for swing in swings]
        far = torch.stack([field.abs().amax(dim=(1, 2, 3)) for field in fields]).amax(0)
        self.shares = draw.uniform(0.25, 1.0).maximum(far / (0.9 * margin))
        self.blurred, self.fields, self.ways = [], [], []
        for way, factor, field in zip(ways, change, fields, strict=True):
            own = _scaled(motion, way.path, factor).within(margin, self._size)
            part = _blur_each(linear, own, options)
            # Few numbers travel: the whole field is made where it is wanted.
            gone = (field / self.shares[:, None, None, None]).to(linear.device)
            gone = F.interpolate(gone, size=self._size, mode="bilinear", align_corners=True)
            self.blurred.append(_carried(part, gone))
            self.ways.append(F.interpolate(gone, size=self._grid, mode="area"))
            self.fields.append(_field(own, self._size, self._grid).to(linear.device))

    def cover(self, some: list[int], layer: Tensor, mask: Tensor, path: Tensor) -> None:
        """A layer with its mask, which goes along `path` (on the CPU) in the frame at hand, over
        some.
        """
        rows = choose(some, layer.device)
        shown = F.interpolate(mask, size=self._grid, mode="area")
        for number, side in enumerate((-1, 1)):
            way = self._on(path, self._times[some], some, side)
            gone = (way.gone / self.shares[some, None]).clamp(-self._margin, self._margin)
            own, gone = way.path.to(layer.device), gone.to(layer.device)
            ways = self.ways[number].index_select(0, rows)
            ways = gone[:, :, None, None] * shown + (1 - shown) * ways
            self.ways[number].index_copy_(0, rows, ways)
            there = transfer(own + gone[:, None], self._size)
            moved = convolve(torch.cat([layer * mask, mask], dim=1), there)
            cover = moved[:, 3:].clamp(0, 1)
            behind = self.blurred[number].index_select(0, rows)
            self.blurred[number].index_copy_(0, rows, moved[:, :3] + (1 - cover) * behind)
            here = F.interpolate(cover, size=self._grid, mode="area")
            under = self.fields[number].index_select(0, rows)
            field = chord_and_bend(own)[:, :, None, None] * here + (1 - here) * under
            self.fields[number].index_copy_(0, rows, field)

    def _on(self, path: Tensor, times: Tensor, some: Any, side: int) -> _Next:
        unrest = self._unrest[list(some)]
        return _next(path, times, self._draw.generator, unrest, side)


_Some = tuple[list[int], tuple[Tensor, ...]]


def _some(x: Tensor, some: _Some, change: Any) -> Tensor:
    """`change` on some pictures of a batch, in place, with parameters for each of them."""
    rows, parameters = some
    if not rows:
        return x
    index = choose(rows, x.device)
    return x.index_copy_(0, index, change(x.index_select(0, index), parameters))


def _blur_each(linear: Tensor, motion: Motion, options: BlurOptions) -> Tensor:
    """The camera's blur, with as many anchors as a picture's motion needs; motion on the CPU."""
    spread = motion.spread((linear.shape[2], linear.shape[3]))
    enough = [1 if s < 0.25 else min(2 if s < 2.5 else 3, options.anchors) for s in spread]
    enough = [options.anchors if k == 3 else k for k in enough]
    blurred = torch.empty_like(linear)
    for anchors in sorted(set(enough)):
        rows = [i for i, k in enumerate(enough) if k == anchors]
        part = motion.part(rows, linear.device)
        index = choose(rows, linear.device)
        if anchors == 1:
            part = Motion(part.path)
        result = camera_blur(linear.index_select(0, index), part, anchors=anchors)
        blurred.index_copy_(0, index, result)
    return blurred


def _random_response(draw: _Draw, options: BlurOptions) -> tuple[list[int], Response]:
    """Whose coded values are not light, and their curves."""
    curved = draw.chosen(1 - options.coded_share)
    count = len(curved)
    gamma, offset = draw.each(*options.gammas, of=count), draw.each(0, options.max_offset, of=count)
    toned = (draw.each(of=count) < 0.5).float()
    return curved, Response(gamma, offset, draw.each(*options.contrasts, of=count) * toned)


def _sharpening(draw: _Draw, options: BlurOptions) -> tuple[_Some, _Some]:
    """Who is sharpened before the averaging, and who after, with radius and amount."""
    chosen = draw.chosen(options.sharpen_share)
    before = draw.uniform() < 0.5
    groups: list[_Some] = []
    for rows in ([i for i in chosen if before[i]], [i for i in chosen if not before[i]]):
        sigma = draw.each(0.6, 1.5, of=len(rows))
        groups.append((rows, (sigma, draw.each(0.1, 1, of=len(rows)) * options.sharpen)))
    return groups[0], groups[1]


def _noise(light: list[Tensor], draw: _Draw, options: BlurOptions, slope: Tensor) -> list[Tensor]:
    """Frames of the same cameras, each with noise of its own."""
    rows = draw.chosen(options.noise_share) if options.noise else []
    count = len(rows)
    coded = options.noise * draw.each(of=count).square()
    level = coded / slope.index_select(0, choose(rows, draw.device)).clamp_min(0.2)
    parameters = (level, draw.each(0.3, 1.0, of=count), draw.each(-1, 1, of=count).clamp_min(0))
    large = draw.on_device()

    def add(pictures: Tensor, values: tuple[Tensor, ...]) -> Tensor:
        level, shot, spread = values
        return camera_effects.sensor_noise(pictures, level, shot, spread, large)

    return [_some(part, (rows, parameters), add) for part in light]


def _coded(frames: list[Tensor], draw: _Draw, options: BlurOptions) -> list[Tensor]:
    """Compress some pictures; the others are rounded by whoever stores them."""
    way = draw.uniform().tolist()
    last = options.jpeg_share + options.h264_share
    by_jpeg = [i for i, u in enumerate(way) if u < options.jpeg_share]
    by_h264 = [i for i, u in enumerate(way) if options.jpeg_share <= u < last]
    place = torch.randint(16, (2,), generator=draw.generator).tolist()
    quality = draw.uniform(*options.jpeg_quality, of=len(by_jpeg)).round()
    crf = draw.uniform(*options.h264_crf, of=len(by_h264))
    offset = (place[0], place[1])

    def jpeg(pictures: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        return camera_effects.jpeg(pictures, parameters[0], offset=offset)

    def h264(pictures: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
        return camera_effects.h264(pictures, parameters[0], offset=offset)

    device = draw.device
    frames = [_some(x, (by_jpeg, (quality.to(device),)), jpeg) for x in frames]
    return [_some(x, (by_h264, (crf.to(device),)), h264) for x in frames]
