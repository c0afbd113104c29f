"""Y'CbCr planes ↔ RGB tensors: matrix, range, depth, chroma grids and sitings, fields.

What travels back is a correction, not a picture: a change of RGB becomes a change of the planes, so
that no change leaves every code as it was, whatever the format. Knows tensors on any device; no
files, no networks, no numpy.

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

# (Kr, Kb) of H.273 table 4; Kg is what is left of 1. YCgCo is no such matrix: it has its own rows.
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
    """Rows Y', Cb, Cr over columns R, G, B: RGB in 0…1 → Y' in 0…1, Cb and Cr in −½…½."""
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
    """(to_rgb, offset, to_codes): rgb = to_rgb · codes + offset, Δcodes = to_codes · Δrgb.

    Codes are those of the planes in their order, at one site; gray has but the first.
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
    """Planes (N, rows, columns) of `layout.shapes` → (N, 3, H, W) R'G'B', nominally in [0, 1].

    The planes are uint8, uint16, or int16 that hold the bits of uint16 (what devices without uint16
    arithmetic can carry). Nothing is clamped: super-white and out-of-gamut codes give values
    outside [0, 1]. Gray gives three equal channels. Chroma is interpolated linearly from its own
    sites. An interlaced layout is read as one picture: split it with `split_fields` first.
    ValueError when the planes are not those of the layout.
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
    # The chroma's share of R, G and B is made on the small grid and only then enlarged.
    rgb = cb.new_empty(cb.shape[0], 3, *cb.shape[1:])
    for channel, (row, offset) in enumerate(
        zip(coefficients.to_rgb, coefficients.offset, strict=True)
    ):
        torch.add(torch.mul(cb, row[1]), cr, alpha=row[2], out=rgb[:, channel]).add_(offset)
    horizontal, vertical = layout.chroma_shift
    rgb = _enlarge(rgb, 2, vertical, layout.height, layout.siting == "topleft")
    rgb = _enlarge(rgb, 3, horizontal, layout.width, layout.siting != "center")
    # Gray is R = G = B in every matrix, so the three rows weigh luma alike.
    rgb.add_(luma[:, None], alpha=coefficients.to_rgb[0][0])
    return rgb.to(dtype)


@torch.no_grad()
def correction_to_planes(delta: Tensor, layout: PlaneLayout) -> list[Tensor]:
    """A change of R'G'B' (N, 3, H, W) → the change of each plane, float32 in code units.

    The linear part of RGB → planes: matrix and range scale. Chroma changes are averaged down to
    their grid, by a box where they sit between the pixels and a triangle where they sit on one. For
    gray the change is that of luma, with the weights of the layout's matrix.
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
    """planes + corrections, rounded to the nearest code and clamped to 0 … 2^depth − 1.

    Returns new tensors of the planes' dtype. A zero correction returns the same codes, those
    outside the nominal range included.
    """
    top = (1 << layout.depth) - 1
    return [
        to_codes(to_float(plane, layout.depth).add_(change).round_().clamp_(0, top), plane.dtype)
        for plane, change in zip(planes, corrections, strict=True)
    ]


def split_fields(planes: Sequence[Tensor], layout: PlaneLayout) -> tuple[list[Tensor], PlaneLayout]:
    """Interlaced planes of N frames → progressive planes of 2N fields, and the layout of a field.

    Order: top and bottom field of the first frame (rows 0, 2, … and 1, 3, …), then of the next.
    Where the bottom field has fewer rows than the top (odd heights; 4:2:0 of 6 rows has 2 + 1 rows
    of chroma), its last row is repeated. A field's chroma sits a quarter row off the progressive
    site, up in one field and down in the other; that is let be, since only corrections of chroma
    depend on it.
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
    """What `split_fields` took apart: (2N, rows/2, …) fields → (N, rows, …) planes of `layout`."""
    planes = []
    for field, (height, _) in zip(fields, layout.shapes, strict=True):
        bits = as_int16(field)
        pairs = bits.view(-1, 2, *bits.shape[1:])
        # (N, 2, rows, columns) → (N, rows, 2, columns): the rows alternate; a repeated one falls
        # off.
        woven = pairs.transpose(1, 2).flatten(1, 2)[:, :height].contiguous()
        planes.append(woven.view(field.dtype))
    return planes


def as_int16(plane: Tensor) -> Tensor:
    """uint16 as int16 of the same bits: torch moves uint16 about, but hardly calculates with it."""
    return plane.view(torch.int16) if plane.dtype == torch.uint16 else plane


def _check(planes: Sequence[Tensor], layout: PlaneLayout) -> None:
    shapes = tuple(tuple(plane.shape[1:]) for plane in planes)
    if shapes != layout.shapes:
        raise ValueError(f"planes of {shapes} (rows, columns) are not those of {layout.shapes}")


def to_float(plane: Tensor, depth: int) -> Tensor:
    """Codes as float32, a new tensor; 16 bits fit its 24-bit mantissa."""
    plane = as_int16(plane)
    if depth == 16:
        plane = plane.to(torch.int32).bitwise_and_(0xFFFF)
    return plane.to(torch.float32)


def to_codes(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers in float32 → codes; 32768 and up wrap to int16's negative half on purpose."""
    if dtype == torch.uint8:
        return values.to(torch.uint8)
    return values.to(torch.int32).to(torch.int16).view(dtype)


def _mix(channels: Tensor, weights: Sequence[float]) -> Tensor:
    """(N, 3, H, W) → (N, H, W), weighed. Three passes beat a 1×1 convolution twentyfold on CPUs."""
    mixed = torch.mul(channels[:, 0], weights[0])
    return mixed.add_(channels[:, 1], alpha=weights[1]).add_(channels[:, 2], alpha=weights[2])


def _enlarge(x: Tensor, dim: int, shift: int, size: int, cosited: bool) -> Tensor:
    """2^shift times as many samples along dim, cut to `size`; linear, the edges repeated.

    cosited: sample i sits on pixel i·2^shift; otherwise in the middle of its 2^shift pixels.
    Each of the 2^shift phases is one lerp: half the time of torch's interpolate, which has no
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
    """1/2^shift of the samples along dim, rounded up; the edges repeated.

    Each is the mean of its 2^shift pixels; cosited, the triangle-weighted mean of the
    2·2^shift − 1 pixels about its own.
    """
    if shift == 0:
        return x
    factor, size = 1 << shift, x.shape[dim]
    if missing := -size % factor:
        last = x.narrow(dim, size - 1, 1)
        x = torch.cat([x, *[last] * missing], dim)
    n = x.shape[dim] // factor
    # A view also of a tensor that has been cropped, and so is not contiguous.
    phases = x.unflatten(dim, (n, factor))  # type: ignore[no-untyped-call]
    out: Tensor = phases.select(dim + 1, 0) / factor
    for phase in range(1, factor):
        pixels = phases.select(dim + 1, phase)
        if not cosited:
            out.add_(pixels, alpha=1 / factor)
            continue
        out.add_(pixels, alpha=(factor - phase) / factor**2)
        # These pixels lie before the next sample too.
        following = out.narrow(dim, 1, n - 1)
        following.add_(pixels.narrow(dim, 0, n - 1), alpha=phase / factor**2)
    if cosited:
        out.select(dim, 0).add_(x.select(dim, 0), alpha=(factor - 1) / (2 * factor))
    return out
