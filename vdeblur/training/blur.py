"""Synthetic motion blur: sharp pictures in, (blurred, sharp) pairs out, on any device.

A camera path is drawn as a smooth random trajectory with a little roll and zoom; its point-spread
functions at four anchors are rasterised and convolved by FFT, and blended across the picture. A
moving layer may travel on a path of its own. Light adds up linearly, so pictures are linearised
before and brought back after. Sharp is the picture at mid-exposure, as with frame averaging (Nah et
al., CVPR 2017). Knows nothing of files.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class BlurOptions:
    """What the synthetic camera does. Lengths in pixels of the training crop, shares in 0..1.

    max_length: longest camera path. length_power: path length is max_length·u^power, u uniform;
    larger means more light blur. sharp_share: pairs without any blur. layer_share: pairs with a
    moving layer. gammas: response curves, one per pair; 1 averages the coded values, as GoPro's
    `blur` folders do. noise: largest standard deviation, in 0..1 units. jpeg_share: pairs that are
    compressed, at a quality drawn from jpeg_quality.
    """

    max_length: float = 40.0
    length_power: float = 1.3
    steps: int = 48
    roll_degrees: float = 1.0
    zoom: float = 0.015
    varying_share: float = 0.5
    sharp_share: float = 0.12
    layer_share: float = 0.3
    gammas: tuple[float, ...] = (1.0, 1.0, 1.8, 2.2, 2.4)
    highlight_share: float = 0.15
    noise: float = 0.012
    jpeg_share: float = 0.5
    jpeg_quality: tuple[int, int] = (60, 98)


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
    for cycles, weight in ((0.5, 1.2), (1.0, 1.0), (2.0, 0.8), (3.5, 0.6)):
        phase = uniform(count, 1, 2) * 2 * math.pi
        amplitude = uniform(count, 1, 2).pow(2) * weight * uniform(count, 1, 1)
        velocity += amplitude * torch.sin(2 * math.pi * cycles * time[None, :, None] + phase)
    path = velocity.cumsum(dim=1)
    arc = (path[:, 1:] - path[:, :-1]).norm(dim=-1).sum(dim=1).clamp_min(1e-6)
    length = options.max_length * uniform(count).pow(options.length_power)
    path = path * (length / arc)[:, None, None]
    centred: Tensor = path - path[:, steps // 2 : steps // 2 + 1]
    return centred


def rasterise(paths: Tensor, size: tuple[int, int]) -> Tensor:
    """Point-spread functions of paths (N, steps, 2): (N, height, width), sum 1, origin at [0, 0].

    Points are splatted bilinearly; negative displacements wrap, as a circular FFT wants them.
    """
    height, width = size
    count, steps, _ = paths.shape
    # Segments are subdivided so that a fast path leaves no holes.
    fine = F.interpolate(
        paths.transpose(1, 2), size=steps * 3, mode="linear", align_corners=True
    ).transpose(1, 2)
    floor = fine.floor()
    fraction = fine - floor
    kernel = torch.zeros(count, height * width, device=paths.device)
    for dy in (0, 1):
        for dx in (0, 1):
            wx = fraction[..., 0] if dx else 1 - fraction[..., 0]
            wy = fraction[..., 1] if dy else 1 - fraction[..., 1]
            x = (floor[..., 0].long() + dx) % width
            y = (floor[..., 1].long() + dy) % height
            kernel.scatter_add_(1, y * width + x, wx * wy / fine.shape[1])
    return kernel.view(count, height, width)


def convolve(images: Tensor, kernels: Tensor) -> Tensor:
    """Circular convolution of (N, C, H, W) with one (N, H, W) kernel each."""
    spectrum = torch.fft.rfft2(images) * torch.fft.rfft2(kernels)[:, None]
    result: Tensor = torch.fft.irfft2(spectrum, s=images.shape[-2:])
    return result


def camera_blur(
    images: Tensor, paths: Tensor, roll: Tensor | None = None, zoom: Tensor | None = None
) -> Tensor:
    """Blur linear-light (N, C, H, W) along paths (N, steps, 2); roll in radians, zoom relative.

    roll and zoom are (N, steps), zero at mid-exposure: with them the four corners get kernels of
    their own, blended bilinearly. The outer pixels wrap around: crop them.
    """
    _, _, height, width = images.shape
    if roll is None or zoom is None:
        return convolve(images, rasterise(paths, (height, width)))
    spectrum = torch.fft.rfft2(images)
    ramp_x = torch.linspace(0, 1, width, device=images.device)
    ramp_y = torch.linspace(0, 1, height, device=images.device)[:, None]
    out = torch.zeros_like(images)
    for corner_y in (0, 1):
        for corner_x in (0, 1):
            x, y = (corner_x - 0.5) * width, (corner_y - 0.5) * height
            local = paths.clone()
            local[..., 0] += zoom * x - roll * y
            local[..., 1] += roll * x + zoom * y
            kernel = torch.fft.rfft2(rasterise(local, (height, width)))[:, None]
            weight = (ramp_x if corner_x else 1 - ramp_x) * (ramp_y if corner_y else 1 - ramp_y)
            out += weight * torch.fft.irfft2(spectrum * kernel, s=(height, width))
    return out


def random_masks(
    count: int, size: tuple[int, int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Soft-edged random blobs, (count, 1, height, width) in 0..1: the shape of a moving layer."""
    noise = torch.randn(count, 1, 5, 5, generator=generator).to(device)
    field = F.interpolate(noise, size=size, mode="bicubic", align_corners=False)
    edge = 6.0 + 34.0 * torch.rand(count, 1, 1, 1, generator=generator).to(device)
    return torch.sigmoid((field - 0.6) * edge)


def make_pairs(
    sharp: Tensor, *, margin: int, options: BlurOptions, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pairs from sharp pictures.

    sharp: (N, 3, H, W) in [0, 1], any device; generator: a CPU generator, which alone decides the
    result. Returns (blurred, sharp), each (N, 3, H − 2·margin, W − 2·margin) in [0, 1].
    """
    n, _, height, width = sharp.shape
    device = sharp.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    def chosen(share: float) -> Tensor:
        return (uniform(n, 1, 1, 1) < share).float()

    gamma = torch.tensor(options.gammas)[
        torch.randint(len(options.gammas), (n,), generator=generator)
    ].to(device)[:, None, None, None]
    linear = sharp.clamp_min(1e-4) ** gamma
    # Highlights beyond white: they saturate after averaging and leave bright, hard-edged trails.
    bright = chosen(options.highlight_share) * (sharp.amin(dim=1, keepdim=True) > 0.92)
    linear = linear * (1 + bright * 4 * uniform(n, 1, 1, 1))

    still = chosen(options.sharp_share)[:, 0]
    paths = random_paths(n, options, generator).to(device) * (1 - still)
    roll = zoom = None
    if float(torch.rand((), generator=generator)) < options.varying_share:
        time = torch.linspace(-0.5, 0.5, options.steps, device=device)
        strength = 1 - still[:, 0]
        roll = (uniform(n, 1) * 2 - 1) * math.radians(options.roll_degrees) * time * 2 * strength
        zoom = (uniform(n, 1) * 2 - 1) * options.zoom * time * 2 * strength
    blurred = camera_blur(linear, paths, roll, zoom)
    target = linear

    if float(torch.rand((), generator=generator)) < min(1.0, options.layer_share * 2):
        moving = chosen(0.5)
        mask = random_masks(n, (height, width), generator, device) * moving
        layer = linear.roll(1, 0).flip(-1)
        own = paths * 0.3 + random_paths(n, options, generator).to(device) * (1 - still)
        shape_blurred = convolve(
            torch.cat([layer * mask, mask], dim=1), rasterise(own, (height, width))
        )
        blurred = shape_blurred[:, :3] + (1 - shape_blurred[:, 3:]) * blurred
        target = layer * mask + (1 - mask) * linear

    inner = (..., slice(margin, height - margin), slice(margin, width - margin))
    blurred, target = blurred[inner].clamp(0, 1), target[inner].clamp(0, 1)
    blurred, target = blurred ** (1 / gamma), target ** (1 / gamma)
    read = options.noise * uniform(n, 1, 1, 1).pow(2)
    noise = torch.randn(blurred.shape, generator=generator).to(device)
    blurred = blurred + noise * read * (0.5 + blurred.clamp_min(0).sqrt())
    return blurred.clamp(0, 1), target


def compress(images: NDArray[np.uint8], options: BlurOptions, rng: np.random.Generator) -> None:
    """JPEG-compress a share of (N, H, W, 3) uint8 pictures in place."""
    from PIL import Image

    for picture in images:
        if rng.random() < options.jpeg_share:
            buffer = io.BytesIO()
            quality = int(rng.integers(*options.jpeg_quality))
            Image.fromarray(picture).save(
                buffer, "JPEG", quality=quality, subsampling=int(rng.choice([0, 2]))
            )
            picture[:] = np.asarray(Image.open(buffer))
