"""Convert color on CUDA devices in three Triton kernels: planes to the network's input, and back.

`vdeblur.color` does the same in torch, in many passes over memory: fine next to a network that
takes a second, but not next to a network that takes milliseconds. Here the planes are read once and
written as the padded picture in the network's precision and layout, the correction is judged in one
pass and added to the planes in another. Runs on CPU tensors too, under TRITON_INTERPRET=1, for
tests.

Knows no networks, no files, and no video but by its layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.color import add_correction, as_int16, correction_to_planes, matrices, planes_to_rgb
from vdeblur.frames import PlaneLayout
from vdeblur.inference.kernels.checks import Checks
from vdeblur.networks import taps

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

#: Prefix of the note that these kernels are not used.
FALLBACK = "color is converted by torch"
#: Of one program: pixels made, chroma samples changed.
_PIXELS, _SAMPLES = 512, 128
#: Kernels compiled for one size serve every other. The other two strides tell what lies together.
_SIZES = (
    "height", "width", "rows", "columns", "small_rows", "small_columns", "across",
    "step_n", "step_y",
)  # fmt: skip
#: Share of codes, besides one of any picture, that may differ from torch's by one, since sums are
#: in another order.
_AGREES = 0.002

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _codes(place, there, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
        """Load codes as fp32; 16-bit codes are stored as int16 of the same bits."""
        codes = tl.load(place, mask=there, other=0).to(tl.int32)
        if WIDE:
            codes = codes & 0xFFFF
        return codes.to(tl.float32)

    @triton.jit  # type: ignore[untyped-decorator]
    def _between(at, count, SHIFT: tl.constexpr, COSITED: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return the chroma samples before and after a pixel, and the weight of the second.

        See `vdeblur.color._enlarge`.
        """
        FACTOR: tl.constexpr = 1 << SHIFT
        place = (at % FACTOR).to(tl.float32) / FACTOR
        if not COSITED:
            place -= (FACTOR - 1) / (2 * FACTOR)
        first = at // FACTOR - tl.where(place < 0, 1, 0)
        share = tl.where(place < 0, place + 1, place)
        return tl.maximum(first, 0), tl.minimum(first + 1, count - 1), share

    @triton.jit  # type: ignore[untyped-decorator]
    def _enlarged(  # type: ignore[no-untyped-def]
        plane, above, below, down, left, right, across, columns, there, WIDE: tl.constexpr
    ):
        upper = _codes(plane + above * columns + left, there, WIDE)
        lower = _codes(plane + below * columns + left, there, WIDE)
        first = upper + (lower - upper) * down
        upper = _codes(plane + above * columns + right, there, WIDE)
        lower = _codes(plane + below * columns + right, there, WIDE)
        return first + (upper + (lower - upper) * down - first) * across

    @triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
    def _input_kernel(  # type: ignore[no-untyped-def]
        plane0, plane1, plane2, table, target, luma,
        height, width, rows, columns, small_rows, small_columns,
        step_n, step_c, step_y, step_x,
        CHROMA: tl.constexpr, SHIFT_X: tl.constexpr, SHIFT_Y: tl.constexpr,
        COSITED_X: tl.constexpr, COSITED_Y: tl.constexpr, WIDE: tl.constexpr,
        REFLECT: tl.constexpr, LUMA: tl.constexpr, PIXELS: tl.constexpr,
    ):  # fmt: skip
        picture = tl.program_id(1).to(tl.int64)
        i = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
        there = i < rows * columns
        row, column = i // columns, i % columns
        if REFLECT:
            y = tl.where(row < height, row, 2 * (height - 1) - row)
            x = tl.where(column < width, column, 2 * (width - 1) - column)
        else:
            y, x = tl.minimum(row, height - 1), tl.minimum(column, width - 1)
        first = _codes(plane0 + picture * height * width + y * width + x, there, WIDE)
        if CHROMA:
            small = picture * small_rows * small_columns
            if SHIFT_X + SHIFT_Y == 0:
                second = _codes(plane1 + small + y * width + x, there, WIDE)
                third = _codes(plane2 + small + y * width + x, there, WIDE)
            else:
                above, below, down = _between(y, small_rows, SHIFT_Y, COSITED_Y)
                left, right, across = _between(x, small_columns, SHIFT_X, COSITED_X)
                second = _enlarged(
                    plane1 + small, above, below, down, left, right, across, small_columns,
                    there, WIDE,
                )  # fmt: skip
                third = _enlarged(
                    plane2 + small, above, below, down, left, right, across, small_columns,
                    there, WIDE,
                )  # fmt: skip
        place = target + picture * step_n + row * step_y + column * step_x
        seen = tl.zeros((PIXELS,), dtype=tl.float32)
        for channel in tl.static_range(3):
            value = first * tl.load(table + 3 * channel)
            if CHROMA:
                value += second * tl.load(table + 3 * channel + 1)
                value += third * tl.load(table + 3 * channel + 2)
            value += tl.load(table + 9 + channel)
            tl.store(place + channel * step_c, value.to(target.dtype.element_ty), mask=there)
            if LUMA:
                seen += value * tl.load(table + 21 + channel)
        if LUMA:
            tl.store(luma + picture * rows * columns + i, seen, mask=there)

    @triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
    def _judge_kernel(  # type: ignore[no-untyped-def]
        delta, sums, height, width, across, step_n, step_c, step_y, step_x, limit,
        BLOCK: tl.constexpr,
    ):  # fmt: skip
        """Sum absolute values per block; infinite where a mean exceeds the limit."""
        picture = tl.program_id(1).to(tl.int64)
        block = tl.program_id(0)
        top, left = block // across * BLOCK, block % across * BLOCK
        y, x = top + tl.arange(0, BLOCK)[:, None], left + tl.arange(0, BLOCK)[None, :]
        there = (y < height) & (x < width)
        place = delta + picture * step_n + y * step_y + x * step_x
        total, beyond = 0.0, 0.0
        for channel in tl.static_range(3):
            values = tl.load(place + channel * step_c, mask=there, other=0.0).to(tl.float32)
            total += tl.sum(tl.sum(tl.abs(values), 1), 0)
            mean = tl.sum(tl.sum(values, 1), 0) / (BLOCK * BLOCK)
            # not (x <= limit), so that NaN is beyond.
            beyond += tl.where(tl.abs(mean) <= limit, 0.0, float("inf"))
        whole = (top + BLOCK <= height) & (left + BLOCK <= width)
        total += tl.where(whole, beyond, 0.0)
        tl.store(sums + picture * tl.num_programs(0) + block, total)

    @triton.jit  # type: ignore[untyped-decorator]
    def _changed(place, new_place, there, change, top, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
        """Store codes + change, clamped and rounded to the nearest even."""
        codes = tl.minimum(tl.maximum(_codes(place, there, WIDE) + change, 0.0), top)
        # Adding 1.5·2²³ leaves no bits for a fraction.
        codes = (codes + 12582912.0) - 12582912.0
        tl.store(new_place, codes.to(tl.int32).to(new_place.dtype.element_ty), mask=there)

    @triton.jit(do_not_specialize=_SIZES)  # type: ignore[untyped-decorator]
    def _planes_kernel(  # type: ignore[no-untyped-def]
        delta, replaced, plane0, plane1, plane2, new0, new1, new2, table, strength, top,
        height, width, small_rows, small_columns, step_n, step_c, step_y, step_x,
        CHROMA: tl.constexpr, SHIFT_X: tl.constexpr, SHIFT_Y: tl.constexpr,
        COSITED_X: tl.constexpr, COSITED_Y: tl.constexpr, WIDE: tl.constexpr,
        TOGETHER: tl.constexpr, SAMPLES: tl.constexpr,
    ):  # fmt: skip
        """Change each chroma sample and the pixels of its cell; see `vdeblur.color._reduce`."""
        picture = tl.program_id(1).to(tl.int64)
        keep = tl.load(replaced + picture // TOGETHER) != 0
        i = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
        there = i < small_rows * small_columns
        row, column = i // small_columns, i % small_columns
        FACTOR_Y: tl.constexpr = 1 << SHIFT_Y
        FACTOR_X: tl.constexpr = 1 << SHIFT_X
        # Samples that sit on a pixel reach back to pixels of the cell before.
        BACK_Y: tl.constexpr = FACTOR_Y - 1 if COSITED_Y else 0
        BACK_X: tl.constexpr = FACTOR_X - 1 if COSITED_X else 0
        full = picture * height * width
        delta += picture * step_n
        r = tl.zeros((SAMPLES,), dtype=tl.float32)
        g = tl.zeros((SAMPLES,), dtype=tl.float32)
        b = tl.zeros((SAMPLES,), dtype=tl.float32)
        for down in tl.static_range(BACK_Y + FACTOR_Y):
            for across in tl.static_range(BACK_X + FACTOR_X):
                y, x = row * FACTOR_Y + down - BACK_Y, column * FACTOR_X + across - BACK_X
                near_y = tl.minimum(tl.maximum(y, 0), height - 1)
                near_x = tl.minimum(tl.maximum(x, 0), width - 1)
                place = delta + near_y * step_y + near_x * step_x
                red = tl.load(place, mask=there, other=0.0).to(tl.float32) * strength
                green = tl.load(place + step_c, mask=there, other=0.0).to(tl.float32) * strength
                blue = tl.load(place + 2 * step_c, mask=there, other=0.0).to(tl.float32) * strength
                # Chosen, not multiplied: 0 times what is not finite is not 0.
                red, green = tl.where(keep, 0.0, red), tl.where(keep, 0.0, green)
                blue = tl.where(keep, 0.0, blue)
                if CHROMA:
                    # A box, or a triangle about the pixel that the sample sits on.
                    weight = 1 / (FACTOR_Y * FACTOR_X)
                    if COSITED_Y:
                        rises = down < FACTOR_Y
                        weight *= (down + 1 if rises else 2 * FACTOR_Y - 1 - down) / FACTOR_Y
                    if COSITED_X:
                        rises = across < FACTOR_X
                        weight *= (across + 1 if rises else 2 * FACTOR_X - 1 - across) / FACTOR_X
                    r += red * weight
                    g += green * weight
                    b += blue * weight
                if down >= BACK_Y and across >= BACK_X:
                    change = red * tl.load(table + 12) + green * tl.load(table + 13)
                    change += blue * tl.load(table + 14)
                    inside = there & (y < height) & (x < width)
                    at = full + y * width + x
                    _changed(plane0 + at, new0 + at, inside, change, top, WIDE)
        if CHROMA:
            at = picture * small_rows * small_columns + i
            change = r * tl.load(table + 15) + g * tl.load(table + 16) + b * tl.load(table + 17)
            _changed(plane1 + at, new1 + at, there, change, top, WIDE)
            change = r * tl.load(table + 18) + g * tl.load(table + 19) + b * tl.load(table + 20)
            _changed(plane2 + at, new2 + at, there, change, top, WIDE)


def available() -> bool:
    """Return whether Triton is installed."""
    return triton is not None


def planes_to_input(
    planes: Sequence[Tensor],
    layout: PlaneLayout,
    *,
    size: tuple[int, int],
    dtype: torch.dtype,
    target: Tensor | None = None,
    luma: Tensor | None = None,
) -> Tensor:
    """Compute `planes_to_rgb` and the padding of its result in one kernel.

    Args:
        planes: (N, rows, columns) each.
        layout: What they are.
        size: Height and width of the result, which is extended below and to the right: reflected
            where there is enough to reflect, else the edge is repeated.
        dtype: Floating; rounded to from fp32.
        target: (N, 3, *size) of that dtype and any strides, for the result; None: a new tensor,
            channels-last.
        luma: (N, 1, *size) float32, contiguous; gets the result's luma, as `taps.luma_of` would.

    Returns:
        RGB (N, 3, *size) in [0, 1].
    """
    count, (rows, columns) = len(planes[0]), size
    if target is None:
        target = torch.empty(
            (count, 3, rows, columns), dtype=dtype, device=planes[0].device,
            memory_format=torch.channels_last,
        )  # fmt: skip
    first, second, third = _three(planes)
    _input_kernel[triton.cdiv(rows * columns, _PIXELS), count](
        first, second, third, _table(layout, target.device), target,
        target if luma is None else luma,
        layout.height, layout.width, rows, columns, *layout.shapes[-1], *target.stride(),
        **_constants(layout), REFLECT=reflects(layout, size), LUMA=luma is not None,
        PIXELS=_PIXELS, num_warps=4,
    )  # fmt: skip
    return target


def judge(
    delta: Tensor, layout: PlaneLayout, *, block: int, block_mean: float, mean: float
) -> Tensor:
    """Find damaged corrections, as `vdeblur.inference.guard.damaged` does.

    Args:
        delta: (N, 3, H, W) of any strides; values beyond the layout's size are ignored.
        layout: Of the pictures, at least block×block pixels.
        block: Side of a block in pixels, a power of two.
        block_mean: Largest mean of a whole block of a channel, in either direction.
        mean: Largest mean absolute value of a correction.

    Returns:
        bool (N,), True for corrections beyond these limits or not finite.
    """
    across, down = -(-layout.width // block), -(-layout.height // block)
    sums = torch.empty((len(delta), across * down), dtype=torch.float32, device=delta.device)
    _judge_kernel[across * down, len(delta)](
        delta, sums, layout.height, layout.width, across, *delta.stride(), block_mean,
        BLOCK=block, num_warps=2,
    )  # fmt: skip
    # not (x <= limit), so that NaN counts as damage.
    return ~(sums.sum(1) <= mean * 3 * layout.height * layout.width)


def add_to_planes(
    planes: Sequence[Tensor],
    delta: Tensor,
    layout: PlaneLayout,
    *,
    strength: float = 1.0,
    replaced: Tensor | None = None,
) -> list[Tensor]:
    """Compute `add_correction(planes, correction_to_planes(strength · delta))` in one kernel.

    Args:
        planes: (N, rows, columns) each; they are kept.
        delta: (N, 3, H', W') of any strides and floating dtype, at least as large as the layout;
            the rest is ignored.
        layout: What the planes are.
        strength: Factor of the correction.
        replaced: bool (M,), each for N/M pictures: where True, nothing is added.

    Returns:
        New planes of the same dtype.
    """
    if replaced is None:
        replaced = torch.zeros(1, dtype=torch.bool, device=delta.device)
    new = [torch.empty_like(plane, memory_format=torch.contiguous_format) for plane in planes]
    rows, columns = layout.shapes[-1]
    _planes_kernel[triton.cdiv(rows * columns, _SAMPLES), len(delta)](
        delta, replaced.contiguous().view(torch.uint8), *_three(planes), *_three(new),
        _table(layout, delta.device), float(strength), float((1 << layout.depth) - 1),
        layout.height, layout.width, rows, columns,
        *delta.stride(), **_constants(layout), TOGETHER=max(len(delta) // len(replaced), 1),
        SAMPLES=_SAMPLES, num_warps=4,
    )  # fmt: skip
    return new


def reflects(layout: PlaneLayout, size: tuple[int, int]) -> bool:
    """Return whether the padding can reflect the picture; smaller ones repeat their edge."""
    return size[0] < 2 * layout.height and size[1] < 2 * layout.width


def in_torch(
    planes: Sequence[Tensor], layout: PlaneLayout, *, size: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Compute `planes_to_input` by torch's operations."""
    below, right = size[0] - layout.height, size[1] - layout.width
    rgb = planes_to_rgb(planes, layout)
    if below or right:
        mode = "reflect" if reflects(layout, size) else "replicate"
        rgb = F.pad(rgb, (0, right, 0, below), mode=mode)
    return rgb.to(dtype, memory_format=torch.channels_last)


class Kernels(Checks):
    """Checks on the first pictures of each layout whether the kernels can be used.

    Args:
        note: Called once if they cannot be used, or compute other codes than torch.
    """

    def __init__(self, note: Callable[[str], object]) -> None:
        super().__init__(note, FALLBACK)

    def usable(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        *,
        size: tuple[int, int],
        dtype: torch.dtype,
    ) -> bool:
        """Return whether they can be used for planes of this layout, to this size and dtype."""
        first = [plane[:1] for plane in planes]
        return self.passed((layout, size, dtype), lambda: _differs(first, layout, size, dtype))


def _differs(
    planes: Sequence[Tensor], layout: PlaneLayout, size: tuple[int, int], dtype: torch.dtype
) -> str | None:
    """Describe how the kernels differ from torch, as part of a sentence; None if they agree."""
    luma = torch.empty((1, 1, *size), device=planes[0].device)
    got = planes_to_input(planes, layout, size=size, dtype=dtype, luma=luma).float()
    wanted = in_torch(planes, layout, size=size, dtype=torch.float32)
    for one, right in ((got, wanted.to(dtype)), (luma, taps.luma_of(wanted))):
        error = float((one - right).abs().max())
        if not error <= 4 * max(torch.finfo(dtype).eps, 1e-6):
            return f"RGB differs by {error:.1e}"
    # A correction of both signs and about a deblurrer's size: the picture's own structure.
    delta = got.sub(got.mean()).mul(0.2).to(dtype)
    cropped = delta[..., : layout.height, : layout.width]
    expected = add_correction(planes, correction_to_planes(cropped, layout), layout)
    for plane, wanted in zip(add_to_planes(planes, delta, layout), expected, strict=True):
        off = as_int16(plane).to(torch.int32).sub(as_int16(wanted).to(torch.int32))
        off = off.to(torch.int16).to(torch.int32).abs()  # 32768 is less than 32767 as int16
        if int(off.max()) > 1 or int(off.sum()) > 1 + _AGREES * off.numel():
            return f"codes differ by up to {int(off.max())}"
    return None


def _three(planes: Sequence[Tensor]) -> list[Tensor]:
    """Return three planes for the kernels; for gray, the other two are not read."""
    bits = [as_int16(plane).contiguous() for plane in planes]
    return (3 * bits)[:3]


def _constants(layout: PlaneLayout) -> dict[str, int | bool]:
    horizontal, vertical = layout.chroma_shift if layout.kind == "yuv" else (0, 0)
    return {
        "CHROMA": layout.kind != "gray",
        "SHIFT_X": horizontal,
        "SHIFT_Y": vertical,
        "COSITED_X": layout.siting != "center",
        "COSITED_Y": layout.siting == "topleft",
        "WIDE": layout.depth > 8,
    }


@lru_cache(maxsize=16)
def _table(layout: PlaneLayout, device: torch.device) -> Tensor:
    """Return the layout's 21 coefficients, and those of the luma, as a single kernel argument."""
    to_rgb, offset, to_codes = matrices(layout)
    values = [*sum(to_rgb, ()), *offset, *sum(to_codes, ()), *taps.LUMA]
    return torch.tensor(values, dtype=torch.float32, device=device)
