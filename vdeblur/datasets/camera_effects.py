"""Effects of a camera besides blur: response curve, noise, sharpening, coding.

Tensors are (N, 3, H, W) R'G'B' in [0, 1] on any device, unless stated otherwise; parameters with
one value per picture are (N, 1, 1, 1). Knows nothing of files and nothing of motion.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """Response curves, one per picture: linear light in [0, 1] ↔ coded values in [0, 1].

    Light = ((c + offset) / (1 + offset))^gamma, shifted and scaled so that 0 and 1 stay.

    Args:
        gamma: (N, 1, 1, 1).
        offset: (N, 1, 1, 1). It gives black a finite slope, as in sRGB (gamma 2.4, offset 0.055)
            and BT.709 (1/0.45, 0.099).
        contrast: (N, 1, 1, 1): k > −1 of the tone curve over it, an S for positive k (the gain
            function of Schlick, "Fast Alternatives to Perlin's Bias and Gain Functions", 1994); 0
            for none.
    """

    gamma: Tensor
    offset: Tensor
    contrast: Tensor

    def to_light(self, coded: Tensor) -> Tensor:
        """Convert coded values to linear light."""
        y = _gain(coded, -self.contrast / (1 + self.contrast))
        y = y.add_(self.offset).div_(1 + self.offset)
        black = self._black()
        light = y.clamp_min_(1e-4).log_().mul_(self.gamma).exp_()
        return light.sub_(black).div_(1 - black).clamp_min_(0)

    def to_coded(self, light: Tensor) -> Tensor:
        """Convert linear light to coded values."""
        black = self._black()
        y = (light * (1 - black)).add_(black).clamp_min_(1e-9).log_().div_(self.gamma).exp_()
        return _gain(y.mul_(1 + self.offset).sub_(self.offset).clamp_(0, 1), self.contrast)

    def slope(self, light: float = 0.18) -> Tensor:
        """Return d coded / d light at mid gray."""
        level = torch.full_like(self.gamma, light)
        return (self.to_coded(level + 0.01) - self.to_coded(level - 0.01)) / 0.02

    def _black(self) -> Tensor:
        return (self.offset / (1 + self.offset)).clamp_min(1e-4).pow(self.gamma)


def _gain(x: Tensor, k: Tensor) -> Tensor:
    """An S over [0, 1], with slope 1 / (1 + k) at its ends; −k / (1 + k) undoes it."""
    end = torch.minimum(x, 1 - x)
    moved = end / (k * (1 - 2 * end) + 1)
    return torch.where(x < 0.5, moved, 1 - moved)


def _shifted(x: Tensor, dim: int, reach: int) -> list[Tensor]:
    """x shifted by −reach to reach along a dimension, with its edge repeated."""
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    padded = torch.cat([first] * reach + [x] + [last] * reach, dim)
    return [padded.narrow(dim, k, x.shape[dim]) for k in range(2 * reach + 1)]


def box(x: Tensor, reach: int) -> Tensor:
    """Average over squares of 2·reach + 1 pixels."""
    # Sums of shifted views: PyTorch's pooling takes thirty times as long on a CPU.
    for dim in (2, 3):
        parts = _shifted(x, dim, reach)
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        x = total.div_(2 * reach + 1)
    return x


def gaussian(x: Tensor, sigma: Tensor, reach: int = 3) -> Tensor:
    """Blur by a Gaussian; sigma (N, 1, 1, 1) in pixels, up to about reach / 2."""
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma.view(-1, 1).clamp_min(1e-3)) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    for dim in (2, 3):
        total = torch.zeros_like(x)
        for k, part in enumerate(_shifted(x, dim, reach)):
            total.addcmul_(part, weights[:, k].view(-1, 1, 1, 1))
        x = total
    return x


def sharpen(x: Tensor, sigma: Tensor, amount: Tensor) -> Tensor:
    """Sharpen as cameras do, by unsharp masking: x + amount · (x − Gaussian of x)."""
    return (x + amount * (x - gaussian(x, sigma))).clamp(0, 1)


def sensor_noise(
    light: Tensor, level: Tensor, shot: Tensor, spread: Tensor, generator: torch.Generator
) -> Tensor:
    """Add sensor noise, whose variance has a constant part and one that grows with the light.

    Args:
        light: (N, 3, H, W) in linear light.
        level: Standard deviation at light 0.18, in units of light.
        shot: Share of the variance there that is shot noise, which grows with the light; the rest
            is read noise (Foi et al., IEEE TIP 2008).
        spread: 0 for noise of single pixels, 1 for noise as coarse as demosaicing leaves it, with
            the same deviation.
        generator: A generator on the device of `light`.
    """
    # (No test of `spread`: a GPU would have to finish all earlier work first.)
    noise = torch.randn(light.shape, generator=generator, device=light.device)
    coarse = box(noise, 1) * 3.0  # a mean of nine has a third of the deviation
    noise = noise * (1 - spread).sqrt() + coarse * spread.sqrt()
    # The two are correlated by 1/3.
    noise = noise / (1 + 2 / 3 * ((1 - spread) * spread).sqrt()).sqrt()
    deviation = level * ((1 - shot) + shot * light.clamp_min(0) / 0.18).sqrt()
    return light + deviation * noise


def smear(x: Tensor, strength: Tensor) -> Tensor:
    """Level texture of low contrast, as noise reduction in cameras does (local Wiener filter).

    Args:
        x: The pictures.
        strength: The standard deviation taken for noise, 0 to about 0.05.
    """
    mean = box(x, 2)
    variance = (box(x * x, 2) - mean * mean).clamp_min(0)
    keep = variance / (variance + strength * strength + 1e-8)
    return mean + keep * (x - mean)


# --- coding --------------------------------------------------------------------------------------

# ITU-T T.81, annex K: the tables that libjpeg scales by its quality.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


@lru_cache(maxsize=8)
def _basis(device: torch.device) -> Tensor:
    """The 64 two-dimensional DCT functions of 8 × 8 blocks, orthonormal: (64, 64)."""
    n = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * (2 * n[None] + 1) * n[:, None] / 16) * 0.5
    one[0] *= math.sqrt(0.5)
    two = torch.einsum("ux,vy->uvxy", one, one).reshape(64, 64)
    return two.to(device, torch.float32)


@lru_cache(maxsize=8)
def _steps(device: torch.device) -> Tensor:
    """The tables of luma and chroma: (2, 1, 64)."""
    return torch.tensor([_LUMA_TABLE, _CHROMA_TABLE], device=device).view(2, 1, 64)


def _quantize(plane: Tensor, table: Tensor) -> Tensor:
    """Pass codes (N, 1, H, W), H and W multiples of 8, through quantized 8 × 8 DCT blocks.

    `table` holds the steps, (N, 64).
    """
    basis = _basis(plane.device)
    blocks = F.pixel_unshuffle(plane - 128, 8)
    n, _, h, w = blocks.shape
    steps = table[:, :, None]
    coefficients = basis @ blocks.reshape(n, 64, h * w)
    coefficients = (coefficients / steps).round_() * steps
    back = (basis.T @ coefficients).view(n, 64, h, w)
    return F.pixel_shuffle(back, 8).add_(128).round_().clamp_(0, 255)


def _to_ycc(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R'G'B' → Y', Cb, Cr codes of JFIF (full range, BT.601), not rounded."""
    r, g, b = (x * 255).round().unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return y[:, None], ((b - y) / 1.772 + 128)[:, None], ((r - y) / 1.402 + 128)[:, None]


def _from_ycc(y: Tensor, cb: Tensor, cr: Tensor) -> Tensor:
    cb, cr = cb - 128, cr - 128
    rgb = torch.cat([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], dim=1)
    return rgb.round_().clamp_(0, 255).div_(255)


def _padded(x: Tensor, offset: tuple[int, int]) -> Tensor:
    """Pad by `offset` before, and to multiples of 16 after, by repeating the edge."""
    top, left = offset
    height, width = x.shape[-2:]
    return F.pad(x, (left, -(left + width) % 16, top, -(top + height) % 16), mode="replicate")


def _jpeg_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """The quantization tables of libjpeg (N, 64) for qualities (N,)."""
    q = quality.float()
    scale = torch.where(q < 50, (5000 / q).floor(), 200 - 2 * q)[:, None]
    tables = []
    for steps in _steps(q.device):
        tables.append(((steps * scale + 50) / 100).floor().clamp(1, 255))
    return tables[0], tables[1]


def jpeg_blocks(x: Tensor, quality: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Apply JPEG at 4:2:0 by its arithmetic (color, DCT, quantization), without its bit stream.

    Runs on the device of x, where files would starve it; agrees with libjpeg to its rounding.

    Args:
        x: The pictures.
        quality: (N,), 1 to 100 on libjpeg's scale.
        offset: Row and column at which the grid of blocks begins.
    """
    luma, chroma = _jpeg_tables(quality)
    height, width = x.shape[-2:]
    y, cb, cr = _to_ycc(_padded(x, offset))
    small = [_quantize(F.avg_pool2d(c, 2).round_(), chroma) for c in (cb, cr)]
    size = y.shape[-2:]
    cb, cr = (F.interpolate(c, size=size, mode="bilinear", align_corners=False) for c in small)
    out = _from_ycc(_quantize(y.round_(), luma), cb, cr)
    return out[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]


def jpeg_files(x: Tensor, quality: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Apply JPEG at 4:2:0 by libjpeg (Pillow); as `jpeg_blocks`, for tensors on the CPU."""
    import numpy as np
    from PIL import Image

    top, left = offset
    height, width = x.shape[-2:]
    codes = _padded(x, offset).mul(255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
    out = []
    for picture, q in zip(codes, quality.tolist(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=int(q), subsampling=2)
        with Image.open(buffer) as image:
            out.append(torch.from_numpy(np.array(image)))
    decoded = torch.stack(out)[:, top : top + height, left : left + width]
    return decoded.permute(0, 3, 1, 2).float().div_(255)


def jpeg(x: Tensor, quality: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Apply JPEG at 4:2:0: by libjpeg on the CPU, where it is faster, else by its arithmetic."""
    if x.device.type == "cpu":
        return jpeg_files(x, quality, offset=offset)
    return jpeg_blocks(x, quality, offset=offset)


def h264_blocks(x: Tensor, crf: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Imitate H.264 on devices without an encoder: flat steps, smoothed block edges.

    Steps of 0.625 · 2^(QP / 6) codes as in ITU-T H.264 (8 × 8 transform, chroma at 4:2:0 with finer
    steps), without prediction: detail is lost as in the codec, block edges are softer than JPEG's.

    Args:
        x: The pictures.
        crf: (N,), on x264's scale.
        offset: Row and column at which the grid of blocks begins.
    """
    # x264 rounds toward zero (dead zone), as steps a third larger do; tuned by PSNR.
    step = 0.625 * torch.exp2(crf.float() / 6) * 1.3
    flat = torch.ones(1, 64, device=x.device)
    height, width = x.shape[-2:]
    y, cb, cr = _to_ycc(_padded(x, offset))
    y = _smooth_edges(_quantize(y.round_(), flat * step[:, None]), step)
    finer = flat * step[:, None] * 0.8
    small = [_quantize(F.avg_pool2d(c, 2).round_(), finer) for c in (cb, cr)]
    size = y.shape[-2:]
    cb, cr = (F.interpolate(c, size=size, mode="bilinear", align_corners=False) for c in small)
    out = _from_ycc(y, cb, cr)
    return out[..., offset[0] : offset[0] + height, offset[1] : offset[1] + width]


def _smooth_edges(plane: Tensor, step: Tensor) -> Tensor:
    """Ramp steps across edges of 8 × 8 blocks that are no larger than the quantizer's."""
    limit = step.view(-1, 1, 1, 1)
    for dim in (2, 3):
        side = plane.shape[dim]
        edges = torch.arange(8, side, 8, device=plane.device)
        p, q = plane.index_select(dim, edges - 1), plane.index_select(dim, edges)
        move = (q - p) / 4 * ((q - p).abs() <= limit)
        plane = plane.index_copy(dim, edges - 1, p + move).index_copy(dim, edges, q - move)
    return plane


def h264_stream(x: Tensor, crf: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Apply H.264 at 4:2:0 by x264 (PyAV); as `h264_blocks`, for tensors on the CPU.

    Each picture is the second of two frames, the first being the same moved by a pixel: it is a
    predicted picture, as nearly all of a video's are.
    """
    import av

    from vdeblur.media.pixel_formats import CONVERTING

    top, left = offset
    height, width = x.shape[-2:]
    codes = _padded(x, offset).mul(255).round_().byte().permute(0, 2, 3, 1).contiguous().numpy()
    out = []
    for picture, value in zip(codes, crf.tolist(), strict=True):
        encoder: Any = av.CodecContext.create("libx264", "w")
        encoder.height, encoder.width = picture.shape[:2]
        encoder.pix_fmt, encoder.time_base = "yuv420p", Fraction(1, 25)
        encoder.options = {"crf": f"{value:.1f}", "preset": "superfast", "tune": "zerolatency"}
        decoder: Any = av.CodecContext.create("h264", "r")
        encoder.thread_count = decoder.thread_count = 1
        frames: list[Any] = []
        before = picture.copy()
        before[1:, 1:] = picture[:-1, :-1]
        for number, pixels in enumerate((before, picture)):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame = frame.reformat(format="yuv420p", threads=CONVERTING)
            frame.pts = number
            for packet in encoder.encode(frame):
                frames += decoder.decode(packet)
        for packet in encoder.encode(None):
            frames += decoder.decode(packet)
        frames += decoder.decode(None)
        out.append(torch.from_numpy(frames[-1].to_ndarray(format="rgb24", threads=CONVERTING)))
    decoded = torch.stack(out)[:, top : top + height, left : left + width]
    return decoded.permute(0, 3, 1, 2).float().div_(255)


def h264(x: Tensor, crf: Tensor, *, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Apply H.264: by x264 on the CPU, by quantized blocks that imitate it elsewhere.

    Without PyAV, or without its x264, by blocks everywhere.
    """
    if x.device.type == "cpu" and _has_x264():
        return h264_stream(x, crf, offset=offset)
    return h264_blocks(x, crf, offset=offset)


@lru_cache(maxsize=1)
def _has_x264() -> bool:
    try:
        import av

        return "libx264" in av.codecs_available
    except ImportError:
        return False


def choose(indices: Sequence[int], device: torch.device) -> Tensor:
    """Make a tensor of indices for `index_select` and `index_copy`."""
    return to_device(torch.tensor(indices, dtype=torch.long), device)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Move numbers drawn on the CPU to a device, without waiting for a GPU."""
    if device.type == "cuda":  # where alone pairs are made
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=device.type != "mps")  # which reads too late
