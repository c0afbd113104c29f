"""Random motion of a synthetic camera, as paths of a scene's points and as fields of motion.

A camera path is drawn as a smooth random trajectory, seen nearer or farther across a ground plane,
with roll, zoom and tilt. Knows no pictures.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.blur_options import PURE, BlurOptions
from vdeblur.datasets.camera_effects import to_device

#: A motion field has one vector for this many pixels of a row and of a column.
MOTION_STEP = 4
_FIELD_POINTS = 9  # places along a side where paths are followed; between them, bilinear


class Draw:
    """Random numbers of a CPU generator, which alone decides the pairs of a batch."""

    def __init__(self, generator: torch.Generator, count: int, device: torch.device) -> None:
        self.generator, self.count, self.device = generator, count, device

    def uniform(self, low: float = 0.0, high: float = 1.0, *, of: int | None = None) -> Tensor:
        """Draw (count,) or (of,) numbers, on the CPU."""
        drawn = torch.rand(self.count if of is None else of, generator=self.generator)
        return low + (high - low) * drawn

    def each(self, low: float = 0.0, high: float = 1.0, *, of: int | None = None) -> Tensor:
        """Draw the same as (n, 1, 1, 1) on the device."""
        return to_device(self.uniform(low, high, of=of), self.device)[:, None, None, None]

    def chosen(self, share: float) -> list[int]:
        """Draw the pictures that something of this share happens to."""
        return (self.uniform() < share).nonzero()[:, 0].tolist()

    def on_device(self) -> torch.Generator:
        """Return a generator for large tensors on their device, seeded from this one."""
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(self.device).manual_seed(seed)


@dataclass(frozen=True)
class Motion:
    """Where a scene's points go during N exposures, in pixels from their place at mid-exposure.

    Args:
        path: (N, steps, 2), x then y, of the picture's middle.
        depth: (N, 2): by how much longer the path is half a picture to the right, and below. This
            and the rest are None where they do not apply.
        roll: (N, steps), radians.
        zoom: (N, steps), relative.
        tilt: (N, steps, 2), keystone: relative zoom half a picture away.
    """

    path: Tensor
    depth: Tensor | None = None
    roll: Tensor | None = None
    zoom: Tensor | None = None
    tilt: Tensor | None = None

    def at(self, x: float, y: float, size: tuple[int, int]) -> Tensor:
        """Return the path (N, steps, 2) at (x, y), −1 to 1 across a picture of `size` (h, w)."""
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
        """Scale the motion down where a point would travel farther than `reach` pixels."""
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
        """Return how far, in pixels, the paths of the corners differ from that of the middle."""
        if not self.varies:
            return [0.0] * len(self.path)
        corners = [self.at(x, y, size) - self.path for x in (-1, 1) for y in (-1, 1)]
        spread: list[float] = torch.stack(corners).abs().amax(dim=(0, 2, 3)).tolist()
        return spread

    def part(self, rows: list[int], device: torch.device) -> Motion:
        """Return the motion of some pictures, on a device."""

        def of(part: Tensor | None) -> Tensor | None:
            return None if part is None else to_device(part[rows], device)

        path = to_device(self.path[rows], device)
        return Motion(path, of(self.depth), of(self.roll), of(self.zoom), of(self.tilt))


def chord_and_bend(paths: Tensor) -> Tensor:
    """Fit parabolas to paths, by least squares.

    The path is at c + chord·s + bend·s² for s from −½ to ½ of the exposure; its points are evenly
    spaced in time.

    Args:
        paths: (..., steps, 2).

    Returns:
        (..., 4): chord x, y and bend x, y.
    """
    fitted: Tensor = (_parabola(paths.shape[-2]).to(paths) @ paths).flatten(-2)
    return fitted


@functools.cache
def _parabola(steps: int) -> Tensor:
    """(2, steps): the weight of each point in chord and bend."""
    s = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 0.5
    fit: Tensor = torch.linalg.pinv(torch.stack([torch.ones_like(s), s, s * s], dim=1))[1:]
    return fit


def motion_field(motion: Motion, size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return chord and bend across pictures of `size` (h, w), on a grid: (N, 4, *grid)."""
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


def random_paths(count: int, options: BlurOptions, generator: torch.Generator) -> Tensor:
    """Draw smooth camera paths: a straight drift, a slow curve and hand tremor, mixed at random.

    Args:
        count: Number of paths.
        options: From which the arc lengths are drawn.
        generator: A CPU generator.

    Returns:
        (count, steps, 2): displacements in pixels, x then y, zero at mid-exposure.
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
    centered: Tensor = path - path[:, steps // 2 : steps // 2 + 1]
    return centered


def random_times(count: int, steps: int, frames_share: float, generator: torch.Generator) -> Tensor:
    """Draw when shutters are open, (count, steps) in 0..1: all the time, or in 7 to 13 frames."""
    time = torch.linspace(0, 1, steps).expand(count, steps)
    frames = torch.randint(7, 14, (count, 1), generator=generator).float()
    duty = 0.3 + 0.7 * torch.rand(count, 1, generator=generator)
    number = (time * frames).floor().minimum(frames - 1)
    gapped = (number + (1 - duty) / 2 + duty * (time * frames - number)) / frames
    split = torch.rand(count, 1, generator=generator) < frames_share
    return torch.where(split, gapped, time)


def sampled(paths: Tensor, times: Tensor) -> Tensor:
    """Sample paths (N, steps, 2) at (N, M) times in 0..1, linearly: (N, M, 2)."""
    place = times * (paths.shape[1] - 1)
    low = place.floor().clamp(0, paths.shape[1] - 2)
    fraction = (place - low)[..., None]
    index = low.long()[..., None].expand(-1, -1, 2)
    return paths.gather(1, index) * (1 - fraction) + paths.gather(1, index + 1) * fraction


_UNIT = replace(PURE, max_length=1.0, length_power=0.0)


def camera_motion(draw: Draw, options: BlurOptions, moving: Tensor, times: Tensor) -> Motion:
    """Draw one camera motion per picture, of all kinds at once, on the CPU.

    Args:
        draw: The source of random numbers, for N pictures.
        options: Kinds and sizes of the motion.
        moving: (N,): 0 where nothing moves, else 1.
        times: (N, M) in 0..1: when the shutter is open.
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


@dataclass(frozen=True)
class NextExposure:
    """How parts of a scene move on to another frame.

    Args:
        path: (N, steps, 2): their path during that frame's exposure, in pixels.
        gone: (N, 2): how far they have moved by then, in pixels.
    """

    path: Tensor
    gone: Tensor


def next_exposure(
    path: Tensor, times: Tensor, draw: torch.Generator, unrest: Tensor, side: int
) -> NextExposure:
    """Draw the exposure before or after another one.

    Args:
        path: (N, steps, 2): the path during the exposure.
        times: (N, steps) in 0..1: when the shutter is open.
        draw: A CPU generator.
        unrest: (N,): by how much the speed changes.
        side: 1 for the frame after, −1 for the one before.

    Returns:
        The exposure; `gone` is that of a shutter that is open all the time.
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
    return NextExposure(own, side * (chord + turned) / 2)


def scaled_motion(motion: Motion, path: Tensor, factor: Tensor) -> Motion:
    """Return a motion along another path, with roll, zoom and tilt `factor` (N,) times as fast."""

    def times(part: Tensor | None) -> Tensor | None:
        return None if part is None else part * factor.view(-1, *[1] * (part.ndim - 1))

    return Motion(path, motion.depth, times(motion.roll), times(motion.zoom), times(motion.tilt))


def total_motion(motion: Motion, gone: Tensor, factor: Tensor) -> Motion:
    """Return how far each place moves in total, as a motion of one step.

    Args:
        motion: The motion of the exposure.
        gone: (N, 2): how far the picture's middle moves.
        factor: (N,): roll, zoom and tilt are this many times those of the whole exposure.
    """

    def whole(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        total = part[:, -1:] - part[:, :1]
        return total * factor.view(-1, *[1] * (part.ndim - 1))

    return Motion(
        gone[:, None], motion.depth, whole(motion.roll), whole(motion.zoom), whole(motion.tilt)
    )


def shift_field(motion: Motion, size: tuple[int, int]) -> Tensor:
    """Return where places move by a motion of one step, on a coarse grid from edge to edge.

    Returns:
        (N, 2, _FIELD_POINTS, _FIELD_POINTS), x then y in pixels.
    """
    places = torch.linspace(-1, 1, _FIELD_POINTS).tolist()
    rows = [torch.stack([motion.at(x, y, size)[:, 0] for x in places], dim=-1) for y in places]
    return torch.stack(rows, dim=-2)
