"""Guidance channels of a guided network: samples of a picture along its motion.

A straight blur of length L turns a sharp picture f into g(x) = 1/L ∫ f along the motion. Sampled at
fractions of L along that line, all directions and lengths become the same problem: a single set of
weights, the inverse of a box of length 1, undoes the blur. `OFFSETS` were chosen greedily to
minimize the error of a Wiener filter for such boxes (0.85 to 1.18 lengths, pictures of power 1/f²,
noise of a thousandth). Ten on each side perform as well as sixteen at every eighth of a length.

The adjacent frames of a video show the same scene with different blur. Each is filtered along its
own motion (`filtered`) and aligned with the current frame (`neighbour`). Where it is sharper, or
blurred in another direction, it holds detail that the current frame has lost.

A motion field describes the path of each pixel during the exposure as a parabola: c + chord·s +
bend·s² pixels at the share s = −½ … ½ of the exposure. Its four channels are chord x and y, then
bend x and y. The sign of a chord does not matter, since a blur has none. Knows tensors only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

#: Positions of samples along the chord, on both sides, in lengths of the blur.
OFFSETS = (0.3125, 0.375, 0.5, 0.5625, 0.625, 0.6875, 0.75, 1.0625, 1.4375, 1.8125)
#: Positions along the chord where the slope of the picture is measured. A blur as long as the
#: motion leaves no slope steeper than the contrast over that length, so that a steeper slope
#: indicates a sharp picture.
SLOPES = (-0.5, 0.0, 0.5)
MOTION_CHANNELS = 4
#: Length, cosine and sine of twice the direction, bend x and y.
SHAPE_CHANNELS = 5
#: Channels of the frame itself: the motion's shape, the slopes, the samples (− before +).
OWN_CHANNELS = SHAPE_CHANNELS + len(SLOPES) + 2 * len(OFFSETS)
#: Noise shares of the Wiener filters that are applied to a neighboring frame.
FILTERS = (1e-3, 1e-2)
#: Pictures of each neighbor: itself and its filtered versions, minus the current frame.
PICTURES = 1 + len(FILTERS)
#: Channels of each neighbor's motion: length, cosine and sine of twice its direction.
DIRECTION_CHANNELS = 3
#: All channels: the frame's own, then pictures of the frames before and after, then directions.
CHANNELS = OWN_CHANNELS + 2 * (PICTURES + DIRECTION_CHANNELS)
#: Unit of the shape channels in pixels, so that their values are about 1.
UNIT = 16.0
# Slopes are multiplied by the length, at most SLOPE_LONGEST pixels, in units of SLOPE_UNIT.
SLOPE_UNIT, SLOPE_LONGEST = 4.0, 24.0
#: Weights of coded R'G'B' (BT.601) in the luma, which is only used to follow detail.
LUMA = (0.299, 0.587, 0.114)


def luma_of(rgb: Tensor) -> Tensor:
    """Return the luma (N, 1, H, W) of RGB (N, 3, H, W), of the same dtype and range."""
    # By numbers: a tensor of weights would be copied to a GPU, which waits for it.
    red, green, blue = rgb.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def guidance(luma: Tensor, motion: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute the guidance of a frame from itself and its motion.

    Args:
        luma: (N, 1, H, W) float32 in [0, 1].
        motion: (N, 4, h, w) in pixels of `luma`, whatever its own size; enlarged bilinearly.
        out: Tensor for the result; None: a new one.

    Returns:
        (N, OWN_CHANNELS, H, W) float32. All channels are 0 where nothing moves.
    """
    if out is None:
        out = luma.new_empty(len(luma), OWN_CHANNELS, *luma.shape[2:])
    _guide(luma, motion, out)
    return out


def with_guidance(
    rgb: Tensor,
    motion: Tensor | None,
    around: tuple[Tensor, Tensor] | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Build the input of a guided network.

    Args:
        rgb: (N, 3, H, W) float32 RGB in [0, 1].
        motion: (N, 4, h, w) in pixels; None: nothing is known to move.
        around: Results of `neighbour` for the frames before and after, (N, PICTURES +
            DIRECTION_CHANNELS, H, W) each; None: there are none.
        out: Tensor for the result; None: a new one.

    Returns:
        (N, 3 + CHANNELS, H, W).
    """
    if out is None:
        out = rgb.new_empty(len(rgb), 3 + CHANNELS, *rgb.shape[2:])
    out[:, :3] = rgb
    own = out[:, 3 : 3 + OWN_CHANNELS]
    if motion is None:
        own.zero_()
    else:
        _guide(luma_of(rgb), motion, own)
    place(around, out[:, 3 + OWN_CHANNELS :])
    return out


def place(around: tuple[Tensor, Tensor] | None, out: Tensor) -> None:
    """Write the results of `neighbour` for the frames before and after into `out`; 0 for None."""
    if around is None:
        out.zero_()
        return
    for number, shown in enumerate(around):
        place_one(shown, parts_of(out, number))


def place_one(shown: Tensor, parts: tuple[Tensor, Tensor]) -> None:
    """Write a result of `neighbour` into a neighbor's `parts_of` the channels of both."""
    parts[0][:] = shown[:, :PICTURES]
    parts[1][:] = shown[:, PICTURES:]


def parts_of(around: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Return a neighbor's part of the channels of both.

    Args:
        around: The last channels of `with_guidance`, (N, 2 · (PICTURES + DIRECTION_CHANNELS), H,
            W).
        number: 0 for the frame before, 1 for the frame after.

    Returns:
        Views of its pictures and its directions.
    """
    start = 2 * PICTURES + number * DIRECTION_CHANNELS
    return (
        around[:, number * PICTURES : (number + 1) * PICTURES],
        around[:, start : start + DIRECTION_CHANNELS],
    )


def filtered(own: Tensor) -> Tensor:
    """Apply the Wiener filters along the motion.

    Args:
        own: (N, OWN_CHANNELS, H, W), by `guidance`.

    Returns:
        (N, len(FILTERS), H, W), the corrections of the luma by each filter.
    """
    weights = _wiener(own.device)
    return F.conv2d(own[:, SHAPE_CHANNELS + len(SLOPES) :], weights[:, :, None, None])


def neighbour(luma: Tensor, there: Tensor, added: Tensor, motion: Tensor, way: Tensor) -> Tensor:
    """Align a neighboring frame with the current frame.

    Args:
        luma: The current frame, (N, 1, H, W) float32 in [0, 1].
        there: The neighboring frame, likewise.
        added: The result of `filtered` for the neighboring frame.
        motion: The motion of the neighboring frame, (N, 4, h, w).
        way: Displacement of each pixel from the current frame to the neighboring one, (N, 2, h, w),
            x and y in pixels.

    Returns:
        (N, PICTURES + DIRECTION_CHANNELS, H, W). The current frame is subtracted from the pictures.
        Directions are not aligned, since they vary slowly.
    """
    if luma.device.type == "cpu":
        out = luma.new_empty(len(luma), PICTURES + DIRECTION_CHANNELS, *luma.shape[2:])
        parts = (part.numpy() for part in (luma[:, 0], there[:, 0], added, motion, way, out))
        for one in zip(*parts, strict=True):
            _neighbour_by_opencv(*one)
        return out
    return neighbour_by_torch(luma, there, added, motion, way)


def neighbour_by_torch(
    luma: Tensor, there: Tensor, added: Tensor, motion: Tensor, way: Tensor
) -> Tensor:
    """Compute `neighbour` on any device, without rounding positions."""
    size = luma.shape[2:]
    out = luma.new_empty(len(luma), PICTURES + DIRECTION_CHANNELS, *size)
    way = F.interpolate(way, size=size, mode="bilinear", align_corners=False)
    pictures = torch.cat([there, there + added], dim=1)
    out[:, :PICTURES] = _sampled(pictures, way[:, :1], way[:, 1:], (1.0,)) - luma
    shape = direction(motion)
    for number in range(DIRECTION_CHANNELS):  # one at a time: all three take torch twice the time
        part = shape[:, number : number + 1]
        out[:, PICTURES + number : PICTURES + number + 1] = F.interpolate(
            part, size=size, mode="bilinear", align_corners=False
        )
    return out


def _neighbour_by_opencv(
    luma: Floats, there: Floats, added: Floats, motion: Floats, way: Floats, out: Floats
) -> None:
    """`neighbour` of one picture."""
    right, below = (_enlarged(part, luma.shape) for part in way)
    right += np.arange(luma.shape[1], dtype=np.float32)
    below += np.arange(luma.shape[0], dtype=np.float32)[:, None]
    options = {"borderMode": cv2.BORDER_REPLICATE}
    for number, plane in enumerate(out[:PICTURES]):
        picture = there if number == 0 else there + added[number - 1]
        cv2.remap(picture, right, below, cv2.INTER_LINEAR, dst=plane, **options)
        plane -= luma
    x, y = motion[:2]
    length = np.hypot(x, y)
    safe = np.maximum(length, np.float32(1e-3))
    shape = (length, (x * x - y * y) / safe, 2 * x * y / safe)
    for part, plane in zip(shape, out[PICTURES:], strict=True):
        plane[:] = _enlarged(np.asarray(part / UNIT, np.float32), luma.shape)


def _direction(x: Tensor, y: Tensor) -> list[Tensor]:
    """Return the length, and cosine and sine of twice the direction times the length."""
    length = (x * x + y * y).sqrt()
    safe = length.clamp_min(1e-3)
    return [length, (x * x - y * y) / safe, 2 * x * y / safe]


def direction(motion: Tensor) -> Tensor:
    """Return the direction channels, (N, DIRECTION_CHANNELS, h, w), of a motion (N, 4, h, w)."""
    return torch.cat(_direction(motion[:, :1], motion[:, 1:2]), dim=1) / UNIT


@functools.cache
@torch.inference_mode(False)
def _wiener(device: torch.device) -> Tensor:
    return wiener_bank((1.0,) * len(FILTERS), FILTERS).to(device)


@functools.cache
@torch.inference_mode(False)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 values on a device; made once, since copies to a GPU wait for its work."""
    return torch.tensor(values, device=device)


def fitted(field: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """Resize and pad a field of pictures to the size of the padded pictures.

    Args:
        field: (N, C, h, w), at any size.
        size: Height and width of the pictures.
        padded: Height and width of the pictures padded below and to the right.

    Returns:
        (N, C, *padded); the field itself if nothing was padded.
    """
    if padded == size:
        return field
    field = F.interpolate(field, size=size, mode="bilinear", align_corners=False)
    more = (0, padded[1] - size[1], 0, padded[0] - size[0])
    return F.pad(field, more, mode="replicate")


def _guide(luma: Tensor, motion: Tensor, out: Tensor) -> None:
    """Write `guidance` into `out`, which is as large as ten pictures."""
    if luma.device.type == "cpu" and not motion.requires_grad:
        for parts in zip(luma[:, 0].numpy(), motion.numpy(), out.numpy(), strict=True):
            _guide_by_opencv(*parts)
        return
    guide_by_torch(luma, motion, out)


def guide_by_torch(luma: Tensor, motion: Tensor, out: Tensor) -> None:
    """Write `guidance` into `out` on any device, without rounding positions."""
    size = luma.shape[2:]
    if motion.shape[2:] != size:
        motion = F.interpolate(motion, size=size, mode="bilinear", align_corners=False)
    x, y, bend = motion[:, :1], motion[:, 1:2], motion[:, 2:]
    shape = [*_direction(x, y), bend]
    length = shape[0]
    safe = length.clamp_min(1e-3)
    out[:, :SHAPE_CHANNELS] = torch.cat(shape, 1) / UNIT
    # Motions to the left are reversed, so that a line is always sampled in the same order.
    sign = torch.where(x < 0, -1.0, 1.0)
    x, y = x * sign, y * sign
    u, v = x / safe, y / safe
    slopes = out[:, SHAPE_CHANNELS : SHAPE_CHANNELS + len(SLOPES)]
    for number, place in enumerate(SLOPES):
        ends = [_sampled(luma, x * place + s * u, y * place + s * v, (1.0,)) for s in (1.0, -1.0)]
        slopes[:, number : number + 1] = ends[0] - ends[1]
    slopes *= length.clamp_max(SLOPE_LONGEST) / (2 * SLOPE_UNIT)
    found = out[:, SHAPE_CHANNELS + len(SLOPES) :]
    found[:] = _sampled(luma, x, y, [side * o for o in OFFSETS for side in (-1.0, 1.0)])
    found -= luma
    found *= length / (length + 0.5)


def _guide_by_opencv(luma: Floats, motion: Floats, out: Floats) -> None:
    """Compute `_guide` for one picture (H, W) and its motion (4, h, w): (OWN_CHANNELS, H, W).

    OpenCV's remap is five times as fast as torch's grid_sample on a CPU; it rounds positions to
    1/32 of a pixel. Each plane is completed while it is in the cache.
    """
    luma = np.ascontiguousarray(luma)
    x, y, *bend = (_enlarged(part, luma.shape) for part in motion)
    xx, yy = x * x, y * y
    length = np.sqrt(xx + yy)
    inverse = 1 / np.maximum(length, np.float32(1e-3))
    across, down = np.empty_like(luma), np.empty_like(luma)
    across[:] = np.arange(luma.shape[1], dtype=np.float32)
    down[:] = np.arange(luma.shape[0], dtype=np.float32)[:, None]
    here, there, right, below, end = (np.empty_like(luma) for _ in range(5))
    # OpenCV's arithmetic takes two thirds of the time of NumPy's.
    np.multiply(length, 1 / UNIT, out=out[0])
    cv2.multiply(cv2.subtract(xx, yy, dst=here), inverse, dst=out[1], scale=1 / UNIT)
    cv2.multiply(cv2.multiply(x, y, dst=here), inverse, dst=out[2], scale=2 / UNIT)
    for part, plane in zip(bend, out[3:SHAPE_CHANNELS], strict=True):
        np.multiply(part, 1 / UNIT, out=plane)
    turn = np.where(x < 0, np.float32(-1), np.float32(1))
    for part in (x, y):
        cv2.multiply(part, turn, dst=part)
    u, v = cv2.multiply(x, inverse), cv2.multiply(y, inverse)

    def sample(place: Floats) -> None:
        options = {"borderMode": cv2.BORDER_REPLICATE}
        cv2.remap(luma, right, below, cv2.INTER_LINEAR, dst=place, **options)

    steep = np.minimum(length, np.float32(SLOPE_LONGEST)) * np.float32(0.5 / SLOPE_UNIT)
    for place, plane in zip(SLOPES, out[SHAPE_CHANNELS:], strict=False):
        cv2.scaleAdd(x, place, across, dst=here)
        cv2.scaleAdd(y, place, down, dst=there)
        cv2.add(here, u, dst=right)
        cv2.add(there, v, dst=below)
        sample(plane)
        cv2.subtract(here, u, dst=right)
        cv2.subtract(there, v, dst=below)
        sample(end)
        cv2.multiply(cv2.subtract(plane, end, dst=plane), steep, dst=plane)
    on = length / (length + np.float32(0.5))
    places = [side * offset for offset in OFFSETS for side in (-1, 1)]
    for place, plane in zip(places, out[SHAPE_CHANNELS + len(SLOPES) :], strict=True):
        cv2.scaleAdd(x, place, across, dst=right)
        cv2.scaleAdd(y, place, down, dst=below)
        sample(plane)
        cv2.multiply(cv2.subtract(plane, luma, dst=plane), on, dst=plane)


def _enlarged(part: Floats, shape: tuple[int, ...]) -> Floats:
    """Return a copy of (h, w), enlarged bilinearly to (H, W)."""
    if part.shape == shape:
        return part.copy()
    size = shape[1], shape[0]
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _sampled(luma: Tensor, x: Tensor, y: Tensor, places: Sequence[float]) -> Tensor:
    """Sample `luma`, (N, C, H, W), bilinearly at displacements; edges are repeated.

    The displacements in pixels are x and y, (N, 1, H, W), times each of the K `places`. Returns
    (N, K·C, H, W).
    """
    n, channels, height, width = luma.shape
    across = torch.arange(width, device=luma.device, dtype=luma.dtype)
    down = torch.arange(height, device=luma.device, dtype=luma.dtype)[:, None]
    times = constant(tuple(places), luma.device)[:, None, None]
    grid = torch.stack(
        [
            (across + x * times + 0.5) * (2 / width) - 1,
            (down + y * times + 0.5) * (2 / height) - 1,
        ],
        dim=-1,
    )
    edge = "border"
    if luma.device.type == "mps":  # has no "border" before torch 2.13
        last = grid.new_tensor([1 - 1 / width, 1 - 1 / height])
        grid, edge = grid.clamp(-last, last), "zeros"
    found = F.grid_sample(
        luma,
        grid.view(n, len(places) * height, width, 2),
        mode="bilinear",
        padding_mode=edge,
        align_corners=False,
    )
    found = found.view(n, channels, len(places), height, width).transpose(1, 2)
    return found.reshape(n, len(places) * channels, height, width)


def turned(motion: Tensor, turns: int, mirror: bool) -> Tensor:
    """Transform a motion field along with its picture.

    Args:
        motion: (N, 4, h, w).
        turns: Number of counterclockwise quarter turns, as of torch.rot90, after mirroring.
        mirror: Whether the picture is mirrored left to right.

    Returns:
        The motion of the transformed picture, (N, 4, h, w) or (N, 4, w, h).
    """
    if mirror:
        motion = motion.flip(3) * motion.new_tensor([-1.0, 1.0, -1.0, 1.0])[:, None, None]
    for _ in range(turns % 4):
        # Motion to the right becomes motion upward, and downward becomes rightward.
        motion = torch.rot90(motion, 1, (2, 3))[:, [1, 0, 3, 2]]
        motion = motion * motion.new_tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
    return motion


def turned_around(known: Tensor, turns: int, mirror: bool) -> Tensor:
    """Transform the channels of neighboring frames along with their picture, as `turned` does.

    Args:
        known: The last channels of `with_guidance`, (N, 2 · (PICTURES + DIRECTION_CHANNELS), H, W).
        turns: See `turned`.
        mirror: See `turned`.

    Returns:
        The channels of the transformed picture.
    """
    known = torch.rot90(known.flip(3) if mirror else known, turns, (2, 3))
    # For twice the direction, mirroring negates the sine, and a quarter turn negates both.
    cosine, sine = (-1.0) ** turns, (-1.0) ** (turns + mirror)
    signs = [1.0] * (2 * PICTURES) + [1.0, cosine, sine] * 2
    return known * known.new_tensor(signs)[:, None, None]


def wiener_bank(lengths: tuple[float, ...], noises: tuple[float, ...]) -> Tensor:
    """Return Wiener filters over the samples of `guidance`.

    Each filter assumes pictures of power 1/f². Its weights multiply the samples minus the center;
    their sum is the correction of the picture.

    Args:
        lengths: Length of each filter's box blur, in lengths of the motion.
        noises: Variance of each filter's white noise as a share of the picture's variance.

    Returns:
        (len(lengths), 2·len(OFFSETS)) float32.
    """
    points, span = 1 << 14, 64.0  # of a periodic line, `span` lengths long
    wave = 2 * np.pi * np.fft.fftfreq(points, span / points)
    power = 1 / (wave**2 + (2 * np.pi / 16) ** 2)
    pixel = np.sinc(wave / 10 / (2 * np.pi))
    places = np.array([0.0, *(side * o for o in OFFSETS for side in (-1.0, 1.0))])
    apart = np.round(np.abs(places[:, None] - places) * points / span).astype(int)
    filters = []
    for length, noise in zip(lengths, noises, strict=True):
        box = np.sinc(wave * length / (2 * np.pi)) * pixel**2
        seen = np.fft.ifft(power * box**2).real
        with_sharp = np.fft.ifft(power * box * pixel).real
        ground = noise * np.fft.ifft(power).real[0] * np.eye(len(places))
        weights = np.linalg.solve(seen[apart] + ground, with_sharp[apart[0]])
        filters.append(weights[1:] / weights.sum())
    return torch.tensor(np.array(filters), dtype=torch.float32)
