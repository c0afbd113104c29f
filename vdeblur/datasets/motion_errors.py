"""Errors of measured motion: make true fields as wrong as they will be at inference.

Optical flow and the estimate of the exposure yield the length of a motion to a fifth, its direction
to a few degrees, smoothed across the edges of what moves, and its bend badly or not at all. A
network trained with true motion only trusts it, and doubles edges where it is off. So training adds
such errors, small at first: with large ones from the start a network learns to ignore motion
altogether. Knows tensors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.camera_effects import to_device
from vdeblur.errors import UsageError


@dataclass(frozen=True)
class MotionErrors:
    """How wrong the motion is that a network receives. Pixels are the picture's; shares are 0 to 1.

    Args:
        length: Lengths are multiplied by up to e^±length.
        angle: Standard deviation of the direction, in radians.
        drift: Standard deviation, in pixels, of an error that changes slowly across the picture;
            each picture has a random share of it.
        relative_drift: The same, as a share of the length.
        smooth_share: Pictures whose motion is smoothed over 3 to 7 places.
        bend: Range of the factor that bends are multiplied by.
        straight_share: Pictures whose bend is unknown.
        widest: How many times larger length, angle and drift are at the end of a run than at its
            start.
        none_share: Pictures whose motion is unknown.
        false_share: Of the pictures in which nothing moves, those that receive a motion: they must
            come back untouched.
        false_length: Its length in pixels, at most.
        exposure: Measured motion is as long as the exposure is estimated to be: its lengths are
            multiplied by up to e^±exposure, and it gets no other error.

    Raises:
        UsageError: A value is out of its range.
    """

    length: float = 0.22
    angle: float = 0.06
    drift: float = 0.15
    relative_drift: float = 0.05
    smooth_share: float = 0.5
    bend: tuple[float, float] = (0.3, 1.2)
    straight_share: float = 0.25
    widest: float = 1.5
    none_share: float = 0.0  # without motion nothing changes, and nothing is learned
    false_share: float = 0.7
    false_length: float = 34.0
    exposure: float = 0.2

    def __post_init__(self) -> None:
        shares = (self.smooth_share, self.straight_share, self.none_share, self.false_share)
        if not all(0 <= share <= 1 for share in shares):
            raise UsageError("shares of erroneous motion are from 0 to 1")
        sizes = (self.length, self.angle, self.drift, self.relative_drift, self.exposure)
        if min(*sizes, self.widest) < 0:
            raise UsageError("errors of a motion are 0 or more")

    def widening(self, share: float) -> float:
        """Return how many times larger errors are when `share` of a run is done."""
        return 1 + (self.widest - 1) * min(max(share, 0.0), 1.0)


#: No errors, and no motion withheld.
NO_ERRORS = MotionErrors(0, 0, 0, 0, 0, (1, 1), 0, 1, 0, 0, exposure=0)

#: How a motion is known: exactly, by flow, or estimated from the picture itself.
EXACTLY, BY_FLOW, AS_SHOWN = range(3)

_STILL = 0.05  # pixels; where nothing moves farther, the picture is still
_DRIFT_PLACES = 3  # along a side


def is_still(motion: Tensor) -> Tensor:
    """Return in which pictures of a batch (N, 4, h, w) nothing moves: (N, 1, 1, 1) bool."""
    return motion.abs().amax(dim=(1, 2, 3), keepdim=True) < _STILL


def with_errors(
    motion: Tensor,
    errors: MotionErrors,
    generator: torch.Generator,
    *,
    share: float = 0.0,
    known: Tensor | None = None,
) -> Tensor:
    """Return a batch's motion as it would have been measured.

    Args:
        motion: (N, 4, h, w) float32, on any device.
        errors: Kinds and sizes of the errors.
        generator: A CPU generator, which alone decides the errors.
        share: How much of the run is done, 0 to 1.
        known: (N,) int64: how each motion is known, exactly by default. One that is estimated from
            its picture stays as it is.
    """
    n, device, given = len(motion), motion.device, motion
    wide = errors.widening(share)
    # All numbers are drawn here and brought to the device at once, without waiting for it.
    even = torch.rand(n, 9, generator=generator)
    normal = torch.randn(n, 1 + 2 * _DRIFT_PLACES**2, generator=generator)
    side = 3 + 2 * int(torch.randint(3, (), generator=generator))
    drawn = to_device(torch.cat([even, normal], dim=1), device)[..., None, None]
    u = [drawn[:, k : k + 1] for k in range(even.shape[1])]

    # Still pictures receive one motion, the same everywhere.
    far = errors.false_length * u[0].square()
    around = 2 * math.pi * u[1]
    false = torch.cat([far * around.cos(), far * around.sin(), 0 * far, 0 * far], dim=1)
    motion = torch.where(is_still(motion) & (u[2] < errors.false_share), false, motion)

    chord, bend = motion[:, :2], motion[:, 2:]
    scale = torch.exp(wide * errors.length * (2 * u[3] - 1))
    angle = wide * errors.angle * drawn[:, 9:10]
    x, y, cos, sin = chord[:, :1], chord[:, 1:], angle.cos(), angle.sin()
    chord = scale * torch.cat([x * cos - y * sin, x * sin + y * cos], dim=1)
    low, high = errors.bend
    bend = bend * scale.square() * (low + (high - low) * u[4]) * (u[5] >= errors.straight_share)
    levelled = F.avg_pool2d(F.pad(chord, (side // 2,) * 4, mode="replicate"), side, 1)
    chord = torch.where(u[6] < errors.smooth_share, levelled, chord)
    coarse = drawn[:, 10:].view(n, 2, _DRIFT_PLACES, _DRIFT_PLACES)
    slow = F.interpolate(coarse, size=motion.shape[2:], mode="bicubic", align_corners=True)
    size = errors.drift + errors.relative_drift * chord.square().sum(1, keepdim=True).sqrt()
    moved = torch.cat([chord + wide * u[7] * size * slow, bend], dim=1)
    if known is not None:
        of = known[:, None, None, None]
        scale = torch.exp(errors.exposure * (2 * u[3] - 1))
        by_flow = torch.cat([given[:, :2] * scale, given[:, 2:] * scale.square()], dim=1)
        moved = torch.where(of == BY_FLOW, by_flow, torch.where(of == AS_SHOWN, given, moved))
    return moved * (u[8] >= errors.none_share)
