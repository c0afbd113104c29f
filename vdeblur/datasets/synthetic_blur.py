"""Synthetic motion blur: sharp pictures in, (blurred, sharp) pairs out, on any device.

The camera moves along a random path (`camera_motion`), and layers with soft edges move in front of
it on paths of their own. Light adds up linearly, so pictures are linearized before they are blurred
(`path_blur`) and coded again afterward. The sharp picture is the one at mid-exposure, as with
frame averaging (Nah et al., CVPR 2017). The camera's other effects (`camera_effects`) follow.
Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets import camera_effects
from vdeblur.datasets.blur_options import BlurOptions
from vdeblur.datasets.camera_effects import Response, choose, to_device
from vdeblur.datasets.camera_motion import (
    MOTION_STEP,
    Draw,
    Motion,
    NextExposure,
    camera_motion,
    chord_and_bend,
    motion_field,
    next_exposure,
    random_paths,
    random_times,
    sampled,
    scaled_motion,
    shift_field,
    total_motion,
)
from vdeblur.datasets.path_blur import blur_each, carried, convolve, transfer


class BlurredPairs(NamedTuple):
    """Pairs of pictures in [0, 1], and how each place moved during the exposure.

    Args:
        blurred: (N, 3, H, W).
        sharp: (N, 3, H, W).
        motion: (N, 4, H / 4, W / 4), chord and bend of each place's path, x then y, as
            `vdeblur.networks.taps` defines them; in pixels of the full size.
        around: The blurred frames before and after, where requested.
    """

    blurred: Tensor
    sharp: Tensor
    motion: Tensor
    around: Around | None = None


class Around(NamedTuple):
    """The film's frames before and after: the same scene, taken by the same camera.

    Args:
        blurred: (2, N, 3, H, W) in [0, 1].
        motion: (2, N, 4, H / 4, W / 4), the motion of each.
        shares: (N,) on the CPU: share of the time from frame to frame that the shutter is open.
        ways: (2, N, 2, H / 4, W / 4): displacement, x and y in pixels, of each place of the frame
            at hand in the neighbors.
    """

    blurred: Tensor
    motion: Tensor
    shares: Tensor
    ways: Tensor


def make_pairs(
    sharp: Tensor,
    *,
    margin: int,
    options: BlurOptions,
    generator: torch.Generator,
    neighbours: bool = False,
) -> BlurredPairs:
    """Make pairs from sharp pictures, with the motion that blurred them.

    Args:
        sharp: (N, 3, H, W) in [0, 1], on any device.
        margin: No point travels farther than this many pixels, and the pairs are smaller than
            `sharp` by as many on each side.
        options: The camera, its motion and the scene's.
        generator: A CPU generator, which alone decides the result. (On devices of other types,
            noise and coding differ.)
        neighbours: Whether to make the frames before and after too, as in a film.

    Returns:
        Pictures (N, 3, H − 2·margin, W − 2·margin) in [0, 1], and their motion.
    """
    draw = Draw(generator, len(sharp), sharp.device)
    scene = _to_light(sharp, draw, options)
    paths = _draw_paths(draw, options, margin, (sharp.shape[2], sharp.shape[3]))
    exposure = _Exposure(scene.linear, paths, draw, margin, options, neighbours=neighbours)
    exposure.add_layers(options)
    return _finish(exposure, scene, paths, draw, options)


_Some = tuple[list[int], tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Scene:
    """Sharp pictures in linear light, and what codes them again.

    Args:
        linear: (N, 3, H, W).
        curved: The pictures with a response curve; in the others light is the coded value.
        response: The curves of these.
        late: The pictures that are sharpened after the exposure, with radius and amount.
    """

    linear: Tensor
    curved: list[int]
    response: Response
    late: _Some

    def coded(self, light: Tensor) -> Tensor:
        """Code linear light, in place."""
        return _some(light, (self.curved, ()), lambda x, _: self.response.to_coded(x))

    def slope(self) -> Tensor:
        """d coded / d light at mid gray: (N, 1, 1, 1)."""
        slope = torch.ones(len(self.linear), 1, 1, 1, device=self.linear.device)
        return _some(slope, (self.curved, ()), lambda x, _: self.response.slope())


def _to_light(sharp: Tensor, draw: Draw, options: BlurOptions) -> _Scene:
    """Linearize pictures, with highlights and lights that film and files cannot hold."""
    size, device = (sharp.shape[2], sharp.shape[3]), sharp.device
    early, late = _sharpening(draw, options)
    sharp = _some(sharp.clone(), early, lambda x, p: camera_effects.sharpen(x, *p))

    # Highlights beyond white saturate after averaging and leave bright, hard-edged trails.
    bright = draw.chosen(options.highlight_share)
    over = draw.each(0, options.highlight - 1, of=len(bright))
    low = sharp.index_select(0, choose(bright, device)).amin(dim=1, keepdim=True)
    over = 1 + over * ((low - 0.86) / 0.1).clamp(0, 1)
    curved, response = _random_response(draw, options)
    linear = _some(sharp, (curved, ()), lambda x, _: response.to_light(x))
    linear = _some(linear, (bright, (over,)), lambda x, p: x * p[0])
    if lit := draw.chosen(options.lights_share):
        linear.index_add_(0, choose(lit, device), _lights(len(lit), size, draw.generator, device))
    return _Scene(linear, curved, response, late)


@dataclass(frozen=True)
class _Paths:
    """How N cameras and the layers before them move; on the CPU.

    Args:
        still: (N,) bool: nothing moves at all.
        times: (N, steps) in 0..1: when the shutter is open.
        layered: The pictures with moving layers.
        more: (N,) uniform: decides which of these have several.
        followed: (N,) 1.0 where the camera follows the nearest layer.
        motion: The camera's.
    """

    still: Tensor
    times: Tensor
    layered: list[int]
    more: Tensor
    followed: Tensor
    motion: Motion


def _draw_paths(draw: Draw, options: BlurOptions, margin: int, size: tuple[int, int]) -> _Paths:
    still = draw.uniform() < options.sharp_share
    times = random_times(draw.count, options.steps, options.frames_share, draw.generator)
    layered = [i for i in draw.chosen(options.layer_share) if not bool(still[i])]
    # With layers, the camera may be at rest, or may follow the nearest of them.
    rest, more = draw.uniform(), draw.uniform()
    moving = (~still).float()
    moving[layered] *= (rest[layered] >= options.at_rest_share / 2).float()
    followed = (rest > 1 - options.at_rest_share / 2).float()
    motion = camera_motion(draw, options, moving, times).within(margin, size)
    return _Paths(still, times, layered, more, followed, motion)


class _Exposure:
    """Pictures of a scene while the shutter is open, in linear light.

    Attributes:
        blurred, target: (N, 3, H, W), the blurred pictures and those at mid-exposure.
        field: (N, 4, *grid), the motion of each place.
        film: The frames before and after, or None.
    """

    def __init__(
        self,
        linear: Tensor,
        paths: _Paths,
        draw: Draw,
        margin: int,
        options: BlurOptions,
        *,
        neighbours: bool,
    ) -> None:
        self._linear, self._paths, self._draw, self.margin = linear, paths, draw, margin
        self.size = (linear.shape[2], linear.shape[3])
        self.grid = (self.size[0] // MOTION_STEP, self.size[1] // MOTION_STEP)
        self.blurred = blur_each(linear, paths.motion, anchors=options.anchors)
        self.field = to_device(motion_field(paths.motion, self.size, self.grid), linear.device)
        self.film = None
        if neighbours:
            self.film = _NeighborFrames(draw, paths, linear, margin, options)
        self.target = linear.clone() if paths.layered else linear

    def add_layers(self, options: BlurOptions) -> None:
        """Cover the scene by moving layers, the farthest first."""
        layered = self._paths.layered
        for number in range(options.layers if layered else 0):
            # The last layer is the nearest; all pictures with layers have it.
            nearest = number == options.layers - 1
            some = layered if nearest else [i for i in layered if self._paths.more[i] < 0.35]
            if some:
                self._add_layer(number, some, options, nearest=nearest)

    def _add_layer(
        self, number: int, some: list[int], options: BlurOptions, *, nearest: bool
    ) -> None:
        draw, paths, device = self._draw, self._paths, self._linear.device
        rows = choose(some, device)
        mask = random_masks(len(some), self.size, draw.generator, device)
        layer = self._linear.roll(number + 1, 0).index_select(0, rows).flip(-1)
        own = sampled(random_paths(len(some), options, draw.generator), paths.times[some])
        if nearest:
            own *= 1 - paths.followed[some, None, None]
        # A layer is nearer than the scene behind it, and moves by itself.
        near = draw.uniform(0.3, 1.6, of=len(some)) * (1 - paths.followed[some])
        own += paths.motion.path[some] * near[:, None, None]
        kept = Motion(own).within(self.margin, self.size).path
        path = to_device(kept, device)
        moved = convolve(torch.cat([layer * mask, mask], dim=1), transfer(path, self.size))
        behind = self.blurred.index_select(0, rows)
        self.blurred.index_copy_(0, rows, moved[:, :3] + (1 - moved[:, 3:]) * behind)
        covered = layer * mask + (1 - mask) * self.target.index_select(0, rows)
        self.target.index_copy_(0, rows, covered)
        here = F.interpolate(mask, size=self.grid, mode="area")
        own_field = to_device(chord_and_bend(kept), device)[:, :, None, None] * here
        under = self.field.index_select(0, rows)
        self.field = self.field.index_copy(0, rows, own_field + (1 - here) * under)
        if self.film is not None:
            self.film.cover(some, layer, mask, kept)


class _NeighborFrames:
    """The frames before and after, in linear light, built up as the frame at hand is.

    Attributes:
        blurred, fields, ways: Of both frames; see `Around`.
        shares: (N,), the share of a frame's time that the shutter is open: large enough that
            nothing moves farther than the margin from one frame to the next.
    """

    def __init__(
        self, draw: Draw, paths: _Paths, linear: Tensor, margin: int, options: BlurOptions
    ) -> None:
        self._draw, self._times, self._margin = draw, paths.times, margin
        self._size = (linear.shape[2], linear.shape[3])
        self._grid = (self._size[0] // MOTION_STEP, self._size[1] // MOTION_STEP)
        self._unrest = draw.uniform()
        sides, motion = (-1, 1), paths.motion
        nexts = [self._next(motion.path, self._times, range(draw.count), side) for side in sides]
        change = torch.stack([draw.uniform(0.6, 1.4), draw.uniform(0.6, 1.4)])
        swings = [
            total_motion(motion, exposure.gone, side * (1 + factor) / 2)
            for exposure, side, factor in zip(nexts, sides, change, strict=True)
        ]
        fields = [shift_field(swing, self._size) for swing in swings]
        far = torch.stack([field.abs().amax(dim=(1, 2, 3)) for field in fields]).amax(0)
        self.shares = draw.uniform(0.25, 1.0).maximum(far / (0.9 * margin))
        self.blurred, self.fields, self.ways = [], [], []
        for exposure, factor, field in zip(nexts, change, fields, strict=True):
            own = scaled_motion(motion, exposure.path, factor).within(margin, self._size)
            part = blur_each(linear, own, anchors=options.anchors)
            # Few numbers travel to the device; the whole field is made there.
            gone = to_device(field / self.shares[:, None, None, None], linear.device)
            gone = F.interpolate(gone, size=self._size, mode="bilinear", align_corners=True)
            self.blurred.append(carried(part, gone))
            self.ways.append(F.interpolate(gone, size=self._grid, mode="area"))
            own_field = motion_field(own, self._size, self._grid)
            self.fields.append(to_device(own_field, linear.device))

    def cover(self, some: list[int], layer: Tensor, mask: Tensor, path: Tensor) -> None:
        """Lay a layer over some pictures.

        Args:
            some: Which pictures.
            layer: (n, 3, H, W).
            mask: Its coverage at mid-exposure of the frame at hand, (n, 1, H, W).
            path: Its path in the frame at hand, (n, steps, 2), on the CPU.
        """
        rows = choose(some, layer.device)
        shown = F.interpolate(mask, size=self._grid, mode="area")
        for number, side in enumerate((-1, 1)):
            exposure = self._next(path, self._times[some], some, side)
            gone = exposure.gone / self.shares[some, None]
            gone = gone.clamp(-self._margin, self._margin)
            own, gone, moves = (
                to_device(part, layer.device)
                for part in (exposure.path, gone, chord_and_bend(exposure.path))
            )
            ways = self.ways[number].index_select(0, rows)
            ways = gone[:, :, None, None] * shown + (1 - shown) * ways
            self.ways[number].index_copy_(0, rows, ways)
            function = transfer(own + gone[:, None], self._size)
            moved = convolve(torch.cat([layer * mask, mask], dim=1), function)
            cover = moved[:, 3:].clamp(0, 1)
            behind = self.blurred[number].index_select(0, rows)
            self.blurred[number].index_copy_(0, rows, moved[:, :3] + (1 - cover) * behind)
            here = F.interpolate(cover, size=self._grid, mode="area")
            under = self.fields[number].index_select(0, rows)
            field = moves[:, :, None, None] * here + (1 - here) * under
            self.fields[number].index_copy_(0, rows, field)

    def _next(self, path: Tensor, times: Tensor, some: Any, side: int) -> NextExposure:
        unrest = self._unrest[list(some)]
        return next_exposure(path, times, self._draw.generator, unrest, side)


def _finish(
    exposure: _Exposure, scene: _Scene, paths: _Paths, draw: Draw, options: BlurOptions
) -> BlurredPairs:
    """What the camera makes of an exposure: noise, coding, sharpening; without the margins."""
    margin, film = exposure.margin, exposure.film
    height, width = exposure.size
    inner = (..., slice(margin, height - margin), slice(margin, width - margin))
    frames, target = [exposure.blurred[inner]], exposure.target[inner].clamp(0, 1)
    if film is not None:
        frames += [part[inner] for part in film.blurred]
    frames = [part.clamp(0, 1) for part in _noise(frames, draw, options, scene.slope())]
    *frames, target = (scene.coded(image) for image in (*frames, target))
    if smeared := draw.chosen(options.smear_share):
        strength = draw.each(0.2 * options.smear, options.smear, of=len(smeared))
        frames = [
            _some(part, (smeared, (strength,)), lambda x, p: camera_effects.smear(x, *p))
            for part in frames
        ]
    *frames, target = (
        _some(image, scene.late, lambda x, p: camera_effects.sharpen(x, *p))
        for image in (*frames, target)
    )
    frames = _compressed(frames, draw, options)
    # A sharp picture must come back as it is.
    still = to_device(paths.still, draw.device)[:, None, None, None]
    target = torch.where(still, frames[0], target)
    edge, grid = margin // MOTION_STEP, exposure.grid
    cut = (..., slice(edge, grid[0] - edge), slice(edge, grid[1] - edge))
    around = None
    if film is not None:
        fields, ways = (torch.stack(part)[cut].contiguous() for part in (film.fields, film.ways))
        around = Around(torch.stack(frames[1:]), fields, film.shares, ways)
    return BlurredPairs(frames[0], target, exposure.field[cut].contiguous(), around)


def random_masks(
    count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Draw shapes of moving layers: blobs, tilted boxes (from posts to walls) and ellipses.

    Softer edges would be a blur that the sharp picture has too: a network would learn to leave such
    edges alone.

    Returns:
        (count, 1, height, width) in 0..1, with edges 1 to 3 pixels wide.
    """
    height, width = size

    def uniform(low: float, high: float) -> Tensor:
        drawn = torch.rand(count, 1, 1, 1, generator=generator)
        return to_device(low + (high - low) * drawn, device)

    noise = to_device(torch.randn(count, 1, 5, 5, generator=generator), device)
    blobs = F.interpolate(noise, size=size, mode="bicubic", align_corners=False) - 0.6
    angle = uniform(-math.pi, math.pi)
    x = torch.arange(width, device=device) - uniform(0.2, 0.8) * width
    y = torch.arange(height, device=device)[:, None] - uniform(0.2, 0.8) * height
    along = (x * angle.cos() + y * angle.sin()).abs()
    across = (y * angle.cos() - x * angle.sin()).abs()
    long, wide = uniform(0.1, 0.5) * width, uniform(0.05, 1.0).square() * 0.3 * width + 1.5
    boxes = torch.minimum(long - along, wide - across)
    ellipses = (1 - ((along / long).square() + (across / wide).square()).sqrt()) * wide
    kind = to_device(torch.randint(3, (count, 1, 1, 1), generator=generator), device)
    shape = torch.where(kind == 0, blobs, torch.where(kind == 1, boxes, ellipses))
    down, right = torch.gradient(shape, dim=(2, 3))
    distance = shape / (down.square() + right.square()).sqrt().clamp_min(1e-3)  # to the edge
    return torch.sigmoid(4 * distance / uniform(1.0, 3.0))


def _lights(
    count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Colored points of light, many times brighter than white: (count, 3, height, width)."""
    height, width = size
    out = torch.zeros(count, 3, height, width, device=device)
    for _ in range(int(torch.randint(1, 7, (), generator=generator))):
        drawn = to_device(torch.rand(count, 7, 1, 1, generator=generator), device)
        x = torch.arange(width, device=device) - drawn[:, :1] * width
        y = torch.arange(height, device=device)[:, None] - drawn[:, 1:2] * height
        radius = 0.6 + 3 * drawn[:, 2:3].square()
        # Soft by more than a pixel, so that the FFT leaves no rings.
        disc = torch.sigmoid((radius - (x * x + y * y).sqrt()) * 2.5)
        out += disc * (0.5 + 0.5 * drawn[:, 3:6]) * (1 + 20 * drawn[:, 6:].square())
    return out


def _some(x: Tensor, some: _Some, change: Callable[[Tensor, tuple[Tensor, ...]], Tensor]) -> Tensor:
    """Change some pictures of a batch in place, with parameters for each of them."""
    rows, parameters = some
    if not rows:
        return x
    index = choose(rows, x.device)
    return x.index_copy_(0, index, change(x.index_select(0, index), parameters))


def _random_response(draw: Draw, options: BlurOptions) -> tuple[list[int], Response]:
    """The pictures whose coded values are not light, and their response curves."""
    curved = draw.chosen(1 - options.coded_share)
    count = len(curved)
    gamma, offset = draw.each(*options.gammas, of=count), draw.each(0, options.max_offset, of=count)
    toned = (draw.each(of=count) < 0.5).float()
    return curved, Response(gamma, offset, draw.each(*options.contrasts, of=count) * toned)


def _sharpening(draw: Draw, options: BlurOptions) -> tuple[_Some, _Some]:
    """The pictures sharpened before the exposure, and those after; with radius and amount."""
    chosen = draw.chosen(options.sharpen_share)
    before = draw.uniform() < 0.5
    groups: list[_Some] = []
    for rows in ([i for i in chosen if before[i]], [i for i in chosen if not before[i]]):
        sigma = draw.each(0.6, 1.5, of=len(rows))
        groups.append((rows, (sigma, draw.each(0.1, 1, of=len(rows)) * options.sharpen)))
    return groups[0], groups[1]


def _noise(light: list[Tensor], draw: Draw, options: BlurOptions, slope: Tensor) -> list[Tensor]:
    """Add noise: frames share the camera, and each has noise of its own."""
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


def _compressed(frames: list[Tensor], draw: Draw, options: BlurOptions) -> list[Tensor]:
    """Compress some pictures; the caller rounds the others when it stores them."""
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

    quality, crf = (to_device(part, draw.device) for part in (quality, crf))
    frames = [_some(x, (by_jpeg, (quality,)), jpeg) for x in frames]
    return [_some(x, (by_h264, (crf,)), h264) for x in frames]
