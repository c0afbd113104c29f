"""Convert Y'CbCr planes to RGB tensors, and RGB corrections back to planes.

Covers matrices, ranges, depths, chroma grids and sitings, and fields. A correction travels back,
not a picture: a change of RGB becomes a change of the planes, so a zero change leaves every code
as it was, in every format. On CUDA, the same arithmetic runs in the Triton kernels of
`vdeblur/inference/kernels/color.py`; change both. Knows tensors on any device; no files, no
networks, no numpy.

Sources: ITU-R BT.601-7, BT.709-6 and BT.2020-2; ITU-T H.273 (07/2024) sections 8.3 and 8.7 for the
other matrices, the code ranges and the chroma sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from vdeblur.frames import PlaneLayout

# (Kr, Kb) of H.273 table 4; Kg = 1 − Kr − Kb. YCgCo has no such weights: its rows are below.
_LUMA_WEIGHTS: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}
# FFmpeg keeps Cg in the second plane and Co in the third.
_YCGCO = ((0.25, 0.5, 0.25), (-0.25, 0.5, -0.25), (0.5, 0.0, -0.5))

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class _Coefficients:
    """rgb = to_rgb · codes + offset; Δcodes = to_codes · Δrgb."""

    to_rgb: Rows
    offset: tuple[float, ...]
    to_codes: Rows


def _matrix(layout: PlaneLayout) -> Rows:
    """Return rows Y', Cb, Cr by columns R, G, B: RGB in [0, 1] → Y' in [0, 1], chroma in ±½."""
    if layout.matrix == "ycgco":
        return _YCGCO
    kr, kb = _LUMA_WEIGHTS[layout.matrix]
    kg = 1.0 - kr - kb
    cb, cr = 0.5 / (1.0 - kb), 0.5 / (1.0 - kr)
    return (
        (kr, kg, kb),
        (-kr * cb, -kg * cb, 0.5),
        (0.5, -kg * cr, -kb * cr),
    )


@lru_cache(maxsize=64)
def _coefficients(layout: PlaneLayout) -> _Coefficients:
    top, unit = float((1 << layout.depth) - 1), float(1 << (layout.depth - 8))
    luma_scale, chroma_scale = (top, top) if layout.full_range else (219 * unit, 224 * unit)
    zero = torch.tensor([0.0 if layout.full_range else 16 * unit, 128 * unit, 128 * unit])
    scale = torch.tensor([luma_scale, chroma_scale, chroma_scale], dtype=torch.float64)
    to_codes = torch.tensor(_matrix(layout), dtype=torch.float64) * scale[:, None]
    to_rgb = torch.linalg.inv(to_codes)
    offset = -to_rgb @ zero.double()
    return _Coefficients(
        tuple(tuple(row) for row in to_rgb.tolist()),
        tuple(offset.tolist()),
        tuple(tuple(row) for row in to_codes.tolist()),
    )


def matrices(layout: PlaneLayout) -> tuple[Rows, tuple[float, ...], Rows]:
    """Return the matrices between codes and RGB.

    Returns:
        (to_rgb, offset, to_codes) with rgb = to_rgb · codes + offset, Δcodes = to_codes · Δrgb.
        Codes are in the order of the planes, at a single site; gray has only the first.
    """
    if layout.kind == "rgb":
        top = float((1 << layout.depth) - 1)
        one = 1 / top
        to_rgb = ((0.0, 0.0, one), (one, 0.0, 0.0), (0.0, one, 0.0))
        return to_rgb, (0.0, 0.0, 0.0), ((0.0, top, 0.0), (0.0, 0.0, top), (top, 0.0, 0.0))
    found = _coefficients(layout)
    if layout.kind == "gray":
        # Without chroma each row of the matrix gives the same gray: (Y' − black) / (white − black).
        scale = sum(found.to_codes[0])
        black = 0.0 if layout.full_range else float(16 << (layout.depth - 8))
        return ((1 / scale, 0.0, 0.0),) * 3, (-black / scale,) * 3, found.to_codes
    return found.to_rgb, found.offset, found.to_codes


@torch.no_grad()
def planes_to_rgb(
    planes: Sequence[Tensor], layout: PlaneLayout, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Convert planes to R'G'B'.

    Nothing is clamped: super-white and out-of-gamut codes become values outside [0, 1]. Chroma is
    interpolated linearly from its own sites. An interlaced layout is read as a single picture:
    split it with `split_fields` first.

    Args:
        planes: (N, rows, columns) of `layout.shapes`; uint8, uint16, or int16 with the bits of
            uint16 (for devices without uint16 arithmetic).
        layout: Interpretation of the planes.
        dtype: Of the result.

    Returns:
        (N, 3, H, W), nominally in [0, 1]; three equal channels for gray.

    Raises:
        ValueError: The planes do not match the layout.
    """
    _check(planes, layout)
    if layout.kind == "rgb":
        g, b, r = (to_float(plane, layout.depth) for plane in planes)
        rgb = torch.stack([r, g, b], dim=1).div_((1 << layout.depth) - 1)
        return rgb.to(dtype)
    coefficients = _coefficients(layout)
    luma = to_float(planes[0], layout.depth)
    if layout.kind == "gray":
        # Without chroma each row of the matrix gives the same gray: (Y' − black) / (white − black).
        scale = sum(coefficients.to_codes[0])
        black = 0.0 if layout.full_range else float(16 << (layout.depth - 8))
        return luma.sub_(black).div_(scale)[:, None].to(dtype).repeat(1, 3, 1, 1)
    cb, cr = (to_float(plane, layout.depth) for plane in planes[1:])
    # The contribution of chroma to R, G and B is computed on the small grid, then enlarged.
    rgb = cb.new_empty(cb.shape[0], 3, *cb.shape[1:])
    for channel, (row, offset) in enumerate(
        zip(coefficients.to_rgb, coefficients.offset, strict=True)
    ):
        torch.add(torch.mul(cb, row[1]), cr, alpha=row[2], out=rgb[:, channel]).add_(offset)
    horizontal, vertical = layout.chroma_shift
    rgb = _enlarge(rgb, 2, vertical, layout.height, layout.siting == "topleft")
    rgb = _enlarge(rgb, 3, horizontal, layout.width, layout.siting != "center")
    # Gray is R = G = B in every matrix, so luma has the same weight in all three rows.
    rgb.add_(luma[:, None], alpha=coefficients.to_rgb[0][0])
    return rgb.to(dtype)


@torch.no_grad()
def correction_to_planes(delta: Tensor, layout: PlaneLayout) -> list[Tensor]:
    """Convert a change of R'G'B' to the change of each plane.

    This is the linear part of RGB → planes: matrix and range scale. Chroma changes are averaged
    down to their grid, by a box filter if chroma is sited between pixels, by a triangle if it is
    co-sited. Gray changes by luma, with the weights of the layout's matrix.

    Args:
        delta: (N, 3, H, W), in units of [0, 1].
        layout: Interpretation of the planes.

    Returns:
        (N, rows, columns) float32 for each plane, in code units.
    """
    delta = delta.float()
    if layout.kind == "rgb":
        scaled = delta * ((1 << layout.depth) - 1)
        return [scaled[:, 1], scaled[:, 2], scaled[:, 0]]
    rows = _coefficients(layout).to_codes
    luma = _mix(delta, rows[0])
    if layout.kind == "gray":
        return [luma]
    horizontal, vertical = layout.chroma_shift
    small = _reduce(delta, 2, vertical, layout.siting == "topleft")
    small = _reduce(small, 3, horizontal, layout.siting != "center")
    return [luma, _mix(small, rows[1]), _mix(small, rows[2])]


@torch.no_grad()
def add_correction(
    planes: Sequence[Tensor], corrections: Sequence[Tensor], layout: PlaneLayout
) -> list[Tensor]:
    """Add corrections to planes, rounded to the nearest code and clamped to [0, 2^depth − 1].

    A zero correction keeps every code, also those outside the nominal range.

    Returns:
        New tensors of the planes' dtype.
    """
    top = (1 << layout.depth) - 1
    return [
        to_codes(to_float(plane, layout.depth).add_(change).round_().clamp_(0, top), plane.dtype)
        for plane, change in zip(planes, corrections, strict=True)
    ]


def split_fields(planes: Sequence[Tensor], layout: PlaneLayout) -> tuple[list[Tensor], PlaneLayout]:
    """Split interlaced planes of N frames into progressive planes of 2N fields.

    Fields are ordered top and bottom of the first frame (rows 0, 2, … and 1, 3, …), then of the
    next. If the bottom field has fewer rows than the top (odd heights; 4:2:0 of 6 rows has 2 + 1
    rows of chroma), its last row is repeated. A field's chroma lies a quarter row off the
    progressive site, up in one field and down in the other; this is ignored, since only
    corrections of chroma depend on it.

    Returns:
        The planes, and the layout of a field.
    """
    fields = []
    for plane in planes:
        top, bottom = as_int16(plane)[:, 0::2], as_int16(plane)[:, 1::2]
        if bottom.shape[1] < top.shape[1]:
            last = (bottom if bottom.shape[1] else top)[:, -1:]
            bottom = torch.cat([bottom, last], 1)
        fields.append(torch.stack([top, bottom], 1).flatten(0, 1))
    restored = [field.view(plane.dtype) for field, plane in zip(fields, planes, strict=True)]
    return restored, replace(layout, height=(layout.height + 1) // 2, interlaced=False)


def merge_fields(fields: Sequence[Tensor], layout: PlaneLayout) -> list[Tensor]:
    """Undo `split_fields`: fields (2N, rows/2, …) → planes (N, rows, …) of `layout`."""
    planes = []
    for field, (height, _) in zip(fields, layout.shapes, strict=True):
        bits = as_int16(field)
        pairs = bits.view(-1, 2, *bits.shape[1:])
        # (N, 2, rows, columns) → (N, rows, 2, columns): rows alternate; a repeated row is cut
        # off.
        woven = pairs.transpose(1, 2).flatten(1, 2)[:, :height].contiguous()
        planes.append(woven.view(field.dtype))
    return planes


def as_int16(plane: Tensor) -> Tensor:
    """View uint16 as int16 of the same bits, since torch has little arithmetic for uint16."""
    return plane.view(torch.int16) if plane.dtype == torch.uint16 else plane


def _check(planes: Sequence[Tensor], layout: PlaneLayout) -> None:
    shapes = tuple(tuple(plane.shape[1:]) for plane in planes)
    if shapes != layout.shapes:
        raise ValueError(f"planes of {shapes} (rows, columns) are not those of {layout.shapes}")


def to_float(plane: Tensor, depth: int) -> Tensor:
    """Convert codes to float32, in a new tensor; 16 bits fit its 24-bit mantissa."""
    plane = as_int16(plane)
    if depth == 16:
        plane = plane.to(torch.int32).bitwise_and_(0xFFFF)
    return plane.to(torch.float32)


def to_codes(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert integers in float32 to codes; from 32768 they wrap to negative int16 on purpose."""
    if dtype == torch.uint8:
        return values.to(torch.uint8)
    return values.to(torch.int32).to(torch.int16).view(dtype)


def _mix(channels: Tensor, weights: Sequence[float]) -> Tensor:
    """Weighted sum (N, H, W) of (N, 3, H, W); on CPUs 20 times faster than a 1×1 convolution."""
    mixed = torch.mul(channels[:, 0], weights[0])
    return mixed.add_(channels[:, 1], alpha=weights[1]).add_(channels[:, 2], alpha=weights[2])


def _enlarge(x: Tensor, dim: int, shift: int, size: int, cosited: bool) -> Tensor:
    """Upsample linearly by 2^shift along dim, edges repeated, and crop to `size`.

    cosited: sample i lies on pixel i·2^shift; otherwise in the middle of its 2^shift pixels.
    Each of the 2^shift phases is a single lerp: half the time of torch's interpolate, which has no
    co-sited mode either.
    """
    if shift == 0:
        return x
    factor, n = 1 << shift, x.shape[dim]
    out = x.new_empty(*x.shape[: dim + 1], factor, *x.shape[dim + 1 :])
    before, after = x.narrow(dim, 0, n - 1), x.narrow(dim, 1, n - 1)
    for phase in range(factor):
        place = phase / factor if cosited else (phase - (factor - 1) / 2) / factor
        target = out.select(dim + 1, phase)
        if place == 0:
            target.copy_(x)
        elif place > 0:
            torch.lerp(before, after, place, out=target.narrow(dim, 0, n - 1))
            target.select(dim, n - 1).copy_(x.select(dim, n - 1))
        else:
            torch.lerp(before, after, 1 + place, out=target.narrow(dim, 1, n - 1))
            target.select(dim, 0).copy_(x.select(dim, 0))
    return out.flatten(dim, dim + 1).narrow(dim, 0, size)


def _reduce(x: Tensor, dim: int, shift: int, cosited: bool) -> Tensor:
    """Downsample by 2^shift along dim, the size rounded up, edges repeated.

    Each sample is the mean of its 2^shift pixels; if cosited, the triangle-weighted mean of the
    2·2^shift − 1 pixels around its own.
    """
    if shift == 0:
        return x
    factor, size = 1 << shift, x.shape[dim]
    if missing := -size % factor:
        last = x.narrow(dim, size - 1, 1)
        x = torch.cat([x, *[last] * missing], dim)
    n = x.shape[dim] // factor
    # unflatten also views a cropped tensor, which is not contiguous.
    phases = x.unflatten(dim, (n, factor))  # type: ignore[no-untyped-call]
    out: Tensor = phases.select(dim + 1, 0) / factor
    for phase in range(1, factor):
        pixels = phases.select(dim + 1, phase)
        if not cosited:
            out.add_(pixels, alpha=1 / factor)
            continue
        out.add_(pixels, alpha=(factor - phase) / factor**2)
        # These pixels also precede the next sample.
        following = out.narrow(dim, 1, n - 1)
        following.add_(pixels.narrow(dim, 0, n - 1), alpha=phase / factor**2)
    if cosited:
        out.select(dim, 0).add_(x.select(dim, 0), alpha=(factor - 1) / (2 * factor))
    return out
