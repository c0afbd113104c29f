"""Guidance channels (`vdeblur.networks.taps`) in two Triton kernels: a frame's, and a neighbor's.

In torch, the samples along the motion take some two hundred kernels a frame, each a pass over
memory and a call from Python: on an H100 as long as the network at 3840×2160, and longer than it
for single small frames. Here the motion is enlarged, the picture sampled and every channel written
in one pass. Runs on CPU tensors too, under TRITON_INTERPRET=1, for tests.

Knows tensors of one picture; no networks, no files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from vdeblur.inference.kernels.checks import Checks
from vdeblur.networks import taps

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

#: Prefix of the note that these kernels are not used.
FALLBACK = "guidance is made by torch"
#: Pixels of one program.
_PIXELS = 256
#: What the kernels are compiled with.
_OWN_CONSTANTS = {
    "SAMPLES": 2 * len(taps.OFFSETS),
    "SLOPES": len(taps.SLOPES),
    "SLOPE_UNIT": taps.SLOPE_UNIT,
    "SLOPE_LONGEST": taps.SLOPE_LONGEST,
    "UNIT": taps.UNIT,
    "PIXELS": _PIXELS,
}
_NEIGHBOUR_CONSTANTS = {"FILTERS": len(taps.FILTERS), "UNIT": taps.UNIT, "PIXELS": _PIXELS}
#: Kernels compiled for one size serve every other.
_SIZES = (
    "height", "width", "rows", "columns", "way_rows", "way_columns", "shown_rows", "shown_columns",
    "step_y",
)  # fmt: skip

if triton is not None:

    @triton.jit
    def _corner(at, shown, count, scale):  # type: ignore[no-untyped-def]
        """Return the two places of a field next to a pixel, and the weight of the second.

        Bilinear as by `torch.nn.functional.interpolate`; beyond `shown` the last pixel is repeated.
        """
        place = tl.maximum((tl.minimum(at, shown - 1).to(tl.float32) + 0.5) * scale - 0.5, 0.0)
        first = place.to(tl.int32)
        return first, tl.minimum(first + 1, count - 1), place - first.to(tl.float32)

    @triton.jit
    def _mixed(one, two, three, four, across, down):  # type: ignore[no-untyped-def]
        upper, lower = one + (two - one) * across, three + (four - three) * across
        return upper + (lower - upper) * down

    @triton.jit
    def _enlarged(  # type: ignore[no-untyped-def]
        field, above, below, left, right, columns, across, down, there
    ):
        """Return a field (rows, columns) between four of its places."""
        one = tl.load(field + above * columns + left, mask=there, other=0.0)
        two = tl.load(field + above * columns + right, mask=there, other=0.0)
        three = tl.load(field + below * columns + left, mask=there, other=0.0)
        four = tl.load(field + below * columns + right, mask=there, other=0.0)
        return _mixed(one, two, three, four, across, down)

    @triton.jit
    def _sampled(picture, x, y, height, width, there):  # type: ignore[no-untyped-def]
        """Sample fp32 (height, width) bilinearly at (x, y); edges are repeated."""
        x = tl.minimum(tl.maximum(x, 0.0), (width - 1).to(tl.float32))
        y = tl.minimum(tl.maximum(y, 0.0), (height - 1).to(tl.float32))
        left, top = x.to(tl.int32), y.to(tl.int32)
        right, below = tl.minimum(left + 1, width - 1), tl.minimum(top + 1, height - 1)
        across, down = x - left.to(tl.float32), y - top.to(tl.float32)
        return _enlarged(picture, top, below, left, right, width, across, down, there)

    @triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
    def _own_kernel(  # type: ignore[no-untyped-def]
        luma, motion, table, out, added, height, width, rows, columns,
        shown_rows, shown_columns, scale_y, scale_x, step_c, step_y, step_x,
        SAMPLES: tl.constexpr, SLOPES: tl.constexpr, UNIT: tl.constexpr,
        SLOPE_UNIT: tl.constexpr, SLOPE_LONGEST: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        """See `vdeblur.networks.taps.guidance` and `filtered`, whose two filters share a loop."""
        i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = i < height * width
        row, column = i // width, i % width
        above, below, down = _corner(row, shown_rows, rows, scale_y)
        left, right, across = _corner(column, shown_columns, columns, scale_x)
        place = out + row.to(tl.int64) * step_y + column.to(tl.int64) * step_x
        dtype = out.dtype.element_ty
        x = tl.zeros((PIXELS,), dtype=tl.float32)
        y = tl.zeros((PIXELS,), dtype=tl.float32)
        for part in tl.static_range(4):
            field = motion + part * rows * columns
            value = _enlarged(field, above, below, left, right, columns, across, down, there)
            if part == 0:
                x = value
            elif part == 1:
                y = value
            else:  # the bend
                tl.store(place + (part + 1) * step_c, (value / UNIT).to(dtype), mask=there)
        length = tl.sqrt(x * x + y * y)
        inverse = 1 / tl.maximum(length, 1e-3)
        tl.store(place, (length / UNIT).to(dtype), mask=there)
        cosine, sine = (x * x - y * y) * inverse, 2 * x * y * inverse
        tl.store(place + step_c, (cosine / UNIT).to(dtype), mask=there)
        tl.store(place + 2 * step_c, (sine / UNIT).to(dtype), mask=there)
        # Motions to the left are reversed, so that a line is always sampled in the same order.
        turn = tl.where(x < 0, -1.0, 1.0)
        x, y = x * turn, y * turn
        u, v = x * inverse, y * inverse
        to_x, to_y = column.to(tl.float32), row.to(tl.float32)
        steep = tl.minimum(length, SLOPE_LONGEST) / (2 * SLOPE_UNIT)
        for number in tl.static_range(SLOPES):
            share = tl.load(table + number)
            at_x, at_y = to_x + x * share, to_y + y * share
            rise = _sampled(luma, at_x + u, at_y + v, height, width, there)
            rise -= _sampled(luma, at_x - u, at_y - v, height, width, there)
            tl.store(place + (5 + number) * step_c, (rise * steep).to(dtype), mask=there)
        here = tl.load(luma + i, mask=there, other=0.0)
        on = length / (length + 0.5)
        first = tl.zeros((PIXELS,), dtype=tl.float32)
        second = tl.zeros((PIXELS,), dtype=tl.float32)
        weights = table + SLOPES + SAMPLES
        for number in range(SAMPLES):
            share = tl.load(table + SLOPES + number)
            value = _sampled(luma, to_x + x * share, to_y + y * share, height, width, there)
            value = (value - here) * on
            tl.store(place + (5 + SLOPES + number) * step_c, value.to(dtype), mask=there)
            first += value * tl.load(weights + number)
            second += value * tl.load(weights + SAMPLES + number)
        tl.store(added + i, first, mask=there)
        tl.store(added + height * width + i, second, mask=there)

    @triton.jit
    def _direction(field, place, other, there):  # type: ignore[no-untyped-def]
        x = tl.load(field + place, mask=there, other=0.0)
        y = tl.load(field + other + place, mask=there, other=0.0)
        length = tl.sqrt(x * x + y * y)
        inverse = 1 / tl.maximum(length, 1e-3)
        return length, (x * x - y * y) * inverse, 2 * x * y * inverse

    @triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
    def _neighbour_kernel(  # type: ignore[no-untyped-def]
        luma, other, added, motion, way, pictures, directions, height, width, rows, columns,
        way_rows, way_columns, shown_rows, shown_columns,
        scale_y, scale_x, way_scale_y, way_scale_x, step_c, step_y, step_x,
        FILTERS: tl.constexpr, UNIT: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        """See `vdeblur.networks.taps.neighbour`."""
        i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = i < height * width
        row, column = i // width, i % width
        dtype = pictures.dtype.element_ty
        place = row.to(tl.int64) * step_y + column.to(tl.int64) * step_x
        above, below, down = _corner(row, shown_rows, way_rows, way_scale_y)
        left, right, across = _corner(column, shown_columns, way_columns, way_scale_x)
        to_x, to_y = column.to(tl.float32), row.to(tl.float32)
        for part in tl.static_range(2):
            field = way + part * way_rows * way_columns
            value = _enlarged(field, above, below, left, right, way_columns, across, down, there)
            if part == 0:
                to_x += value
            else:
                to_y += value
        here = tl.load(luma + i, mask=there, other=0.0)
        seen = _sampled(other, to_x, to_y, height, width, there)
        tl.store(pictures + place, (seen - here).to(dtype), mask=there)
        for number in tl.static_range(FILTERS):
            more = _sampled(added + number * height * width, to_x, to_y, height, width, there)
            target = pictures + place + (number + 1) * step_c
            tl.store(target, (seen + more - here).to(dtype), mask=there)
        # Of the field's places, then enlarged: an angle between two places is none of theirs.
        above, below, down = _corner(row, shown_rows, rows, scale_y)
        left, right, across = _corner(column, shown_columns, columns, scale_x)
        plane = rows * columns
        a0, a1, a2 = _direction(motion, above * columns + left, plane, there)
        b0, b1, b2 = _direction(motion, above * columns + right, plane, there)
        c0, c1, c2 = _direction(motion, below * columns + left, plane, there)
        d0, d1, d2 = _direction(motion, below * columns + right, plane, there)
        target = directions + place
        value = _mixed(a0, b0, c0, d0, across, down) / UNIT
        tl.store(target, value.to(dtype), mask=there)
        value = _mixed(a1, b1, c1, d1, across, down) / UNIT
        tl.store(target + step_c, value.to(dtype), mask=there)
        value = _mixed(a2, b2, c2, d2, across, down) / UNIT
        tl.store(target + 2 * step_c, value.to(dtype), mask=there)


def available() -> bool:
    """Return whether Triton is installed."""
    return triton is not None


def guidance(luma: Tensor, motion: Tensor, shown: tuple[int, int], out: Tensor) -> Tensor:
    """Compute `taps.guidance` and `taps.filtered` of a picture in one kernel.

    Args:
        luma: (1, 1, H, W) float32 in [0, 1], contiguous.
        motion: (4, h, w) float32 in pixels, of the picture's `shown` part.
        shown: Height and width of the picture without its padding below and to the right.
        out: (1, OWN_CHANNELS, H, W), for the guidance; of any strides and floating dtype.

    Returns:
        (1, len(FILTERS), H, W) float32, the corrections of the luma by each filter.
    """
    height, width = luma.shape[2:]
    motion = motion.contiguous()
    added = luma.new_empty(1, len(taps.FILTERS), height, width)
    _own_kernel[(triton.cdiv(height * width, _PIXELS),)](
        luma, motion, _table(luma.device), out, added, height, width, *motion.shape[1:], *shown,
        *_scales(motion, shown), *out.stride()[1:],
        **_OWN_CONSTANTS, num_warps=4,
    )  # fmt: skip
    return added


def neighbour(
    luma: Tensor,
    there: Tensor,
    added: Tensor,
    motion: Tensor,
    way: Tensor,
    shown: tuple[int, int],
    out: tuple[Tensor, Tensor],
) -> None:
    """Compute `taps.neighbour` of a picture in one kernel.

    Args:
        luma: The current frame, (1, 1, H, W) float32 in [0, 1], contiguous.
        there: The neighboring frame, likewise.
        added: The result of `guidance` for the neighboring frame.
        motion: The motion of the neighboring frame, (4, h, w) float32.
        way: Displacement to the neighboring frame, (2, h, w) float32, x and y in pixels.
        shown: Height and width of the picture without its padding below and to the right.
        out: For the pictures, (1, PICTURES, H, W), and the directions, (1, DIRECTION_CHANNELS, H,
            W): parts of one tensor, of any strides and floating dtype.
    """
    height, width = luma.shape[2:]
    motion, way = motion.contiguous(), way.contiguous()
    _neighbour_kernel[(triton.cdiv(height * width, _PIXELS),)](
        luma, there, added, motion, way, *out, height, width, *motion.shape[1:], *way.shape[1:],
        *shown, *_scales(motion, shown), *_scales(way, shown), *out[0].stride()[1:],
        **_NEIGHBOUR_CONSTANTS, num_warps=4,
    )  # fmt: skip


class Kernels(Checks):
    """Checks on made-up pictures whether the kernels can be used on a device.

    Args:
        note: Called once if they cannot be used, or compute other channels than torch.
    """

    def __init__(self, note: Callable[[str], object]) -> None:
        super().__init__(note, FALLBACK)

    def usable(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether they can be used there for a network's input of this dtype."""
        return self.passed((device, dtype), lambda: _differs(device, dtype))


def _differs(device: torch.device, dtype: torch.dtype) -> str | None:
    """Describe how the kernels differ from torch, as part of a sentence; None if they agree."""
    # A padded picture, hard edges, motions of all directions and none, to beyond the edges.
    shown, size = (29, 43), (32, 48)
    generator = torch.Generator().manual_seed(1)
    luma, other = torch.rand(2, 1, 1, *size, generator=generator).round().to(device)
    motion = torch.randn(4, 7, 12, generator=generator).mul_(9).to(device)
    motion[:, :2] = 0
    way = torch.randn(2, 5, 9, generator=generator).mul_(9).to(device)
    given = torch.empty((1, 3 + taps.CHANNELS, *size), dtype=dtype, device=device)
    given = given.contiguous(memory_format=torch.channels_last)
    own = given[:, 3 : 3 + taps.OWN_CHANNELS]
    pictures, directions = taps.parts_of(given[:, 3 + taps.OWN_CHANNELS :], 1)
    added = guidance(luma, motion, shown, own)
    neighbour(luma, other, added, motion, way, shown, (pictures, directions))
    wide_motion, wide_way = (taps.fitted(field[None], shown, size) for field in (motion, way))
    right = torch.empty_like(own, dtype=torch.float32)
    taps.guide_by_torch(luma, wide_motion, right)
    # A convolution would round to TF32.
    weights = taps.wiener_bank((1.0,) * len(taps.FILTERS), taps.FILTERS)
    samples = right[:, -2 * len(taps.OFFSETS) :, None]
    more = (samples * weights.T[None, :, :, None, None].to(device)).sum(1)
    aside = taps.neighbour_by_torch(luma, other, more, motion[None], wide_way)
    # Directions are computed first, then enlarged.
    aside[:, taps.PICTURES :] = taps.fitted(taps.direction(motion[None]), shown, size)
    for got, wanted in ((own, right), (added, more), (pictures, aside[:, : taps.PICTURES]),
                        (directions, aside[:, taps.PICTURES :])):  # fmt: skip
        error = float((got.float() - wanted).abs().max() / wanted.abs().max())
        if not error <= max(2 * torch.finfo(dtype).eps, 1e-4):
            return f"guidance differs by {error:.1e}"
    return None


def _scales(field: Tensor, shown: tuple[int, int]) -> tuple[float, float]:
    return field.shape[1] / shown[0], field.shape[2] / shown[1]


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """Return the places of slopes and samples, and the filters' weights, as one argument."""
    places = [side * offset for offset in taps.OFFSETS for side in (-1.0, 1.0)]
    weights = taps.wiener_bank((1.0,) * len(taps.FILTERS), taps.FILTERS)
    return torch.tensor([*taps.SLOPES, *places, *weights.flatten().tolist()]).to(device)
