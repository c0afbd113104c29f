"""Residual blocks in int8 or fp8 on CUDA's tensor cores, as Triton kernels and in torch.

A network's blocks, which do most of its work, multiply 8-bit codes; the rest, its first and last
layers included, stays in the network's precision. Weights have a scale for each output channel,
activations one range for each tensor, measured on pictures (Jacob et al., "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018). Between
the two convolutions of a block only codes are kept; the sum that runs through the blocks is never
rounded to codes. Runs on CPU tensors too, under TRITON_INTERPRET=1, for tests.

Knows no video, no files, and no network but by its layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.inference.kernels.autotune import Launch, Way, choose_kernel
from vdeblur.inference.kernels.convolution import (
    TILE_COLUMNS,
    TILE_ROWS,
    bias_of,
    conv_of,
    power_of_two_divisor,
)
from vdeblur.networks.layers import ResBlock

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

# A tensor core's instruction multiplies 32 codes a row (PTX ISA, wgmma and mma shapes): fewer
# channels would be mostly padding.
_STEP = 32
_LAUNCHES = (Launch(), Launch(128, 8, 1), Launch(128, 8, 3))
_BLOCK_LAUNCHES = (Launch(64, 4, 1, 528), Launch(128, 8, 1), Launch(64, 4, 3), Launch(128, 8, 2))


@dataclass(frozen=True)
class Kind:
    """A type of codes: its name as a precision, and its smallest and largest code."""

    name: str
    dtype: torch.dtype
    low: float
    high: float

    @property
    def integer(self) -> bool:
        """Whether codes are whole numbers, with a zero of their own."""
        return not self.dtype.is_floating_point


KINDS = {
    "int8": Kind("int8", torch.int8, -128.0, 127.0),
    # One sign, four bits of exponent, three of mantissa (Micikevicius et al., "FP8 Formats for Deep
    # Learning", 2022); 448 is the greatest.
    "fp8": Kind("fp8", torch.float8_e4m3fn, -448.0, 448.0),
}
Range = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """code = round(value · inverse + zero), clamped; value = (code − zero) / inverse."""

    inverse: float
    zero: float

    @classmethod
    def of(cls, measured: Range, kind: Kind) -> Scale:
        """Return the scale for values of this range, extended to 0, which pads the edges."""
        low, high = min(measured[0], 0.0), max(measured[1], 0.0)
        if not kind.integer:
            # Floating codes: 0 is 0, and half a range left unused costs no precision.
            return cls(kind.high / (max(high, -low) or 1.0), 0.0)
        inverse = (kind.high - kind.low) / ((high - low) or 1.0)
        return cls(inverse, float(round(kind.low - low * inverse)))


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _to_codes(values, inverse, zero, INTEGER: tl.constexpr):  # type: ignore[no-untyped-def]
        codes = values * inverse + zero
        if INTEGER:
            codes = tl.minimum(tl.maximum(codes, -128.0), 127.0)
            # Adding 1.5·2²³ leaves no bits for a fraction: rounded to the nearest even.
            return ((codes + 12582912.0) - 12582912.0).to(tl.int8)
        else:
            return tl.minimum(tl.maximum(codes, -448.0), 448.0).to(tl.float8e4nv)

    @triton.jit  # type: ignore[untyped-decorator]
    def _codes_kernel(  # type: ignore[no-untyped-def]
        source, target, count, inverse, zero, INTEGER: tl.constexpr, BLOCK: tl.constexpr
    ):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        values = tl.load(source + i, mask=i < count, other=0.0).to(tl.float32)
        tl.store(target + i, _to_codes(values, inverse, zero, INTEGER), mask=i < count)

    @triton.jit  # type: ignore[untyped-decorator]
    def _conv_kernel(  # type: ignore[no-untyped-def]
        source, weights, factors, bias, added, target, pixels, height, width,
        zero, inverse_out, zero_out,
        CHANNELS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, OUTS: tl.constexpr,
        ROWS: tl.constexpr, LAST: tl.constexpr, INTEGER: tl.constexpr,
    ):  # fmt: skip
        """Convolve codes 3×3. LAST: add `added` and store values; else apply ReLU, store codes."""
        index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
        inside = index < pixels
        base = index // (height * width) * (height * width)
        y = (index - base) // width
        x = (index - base) % width
        acc = tl.zeros((ROWS, OUTS), dtype=tl.int32 if INTEGER else tl.float32)
        for tap in range(9):
            ty, tx = y + tap // 3 - 1, x + tap % 3 - 1
            there = inside & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
            pixel = (base + ty * width + tx) * CHANNELS
            for start in tl.static_range(0, CHANNELS, BLOCK):
                ins = start + tl.arange(0, BLOCK)
                codes = tl.load(
                    source + pixel[:, None] + ins[None, :], mask=there[:, None], other=0.0
                )
                if INTEGER:
                    codes = tl.where(there[:, None], codes, tl.full((1, 1), zero, tl.int8))
                # Rows of inputs, as tensor cores want both their factors of 8 bits.
                weight = tl.load(weights + (tap * OUT + outs[None, :]) * CHANNELS + ins[:, None])
                acc = tl.dot(codes, weight, acc, out_dtype=acc.dtype)
        values = acc.to(tl.float32) * tl.load(factors + outs)[None, :]
        values += tl.load(bias + outs)[None, :]
        place = index[:, None] * OUT + outs[None, :]
        if LAST:
            values += tl.load(added + place, mask=inside[:, None], other=0.0).to(tl.float32)
            tl.store(target + place, values.to(target.dtype.element_ty), mask=inside[:, None])
        else:
            codes = _to_codes(tl.maximum(values, 0.0), inverse_out, zero_out, INTEGER)
            tl.store(target + place, codes, mask=inside[:, None])

    @triton.jit  # type: ignore[untyped-decorator]
    def _block_kernel(  # type: ignore[no-untyped-def]
        source, weights1, factors1, bias1, weights2, factors2, bias2, scratch, target,
        tiles, height, width, inverse1, zero1, inverse2, zero2,
        CHANNELS: tl.constexpr, HIDDEN: tl.constexpr, TILE_ROWS: tl.constexpr,
        TILE_COLUMNS: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
        INTEGER: tl.constexpr,
    ):  # fmt: skip
        """Compute a block on codes; the codes of a tile and a ring of 2 are made first."""
        SEEN_WIDE: tl.constexpr = TILE_COLUMNS + 4
        SEEN: tl.constexpr = (TILE_ROWS + 4) * SEEN_WIDE
        WIDE: tl.constexpr = TILE_COLUMNS + 2
        MIDDLE: tl.constexpr = (TILE_ROWS + 2) * WIDE
        channels, hidden = tl.arange(0, CHANNELS), tl.arange(0, HIDDEN)
        own: tl.constexpr = SEEN * CHANNELS + MIDDLE * HIDDEN
        seen = scratch + tl.program_id(0).to(tl.int64) * own
        middle = seen + SEEN * CHANNELS
        across = tl.cdiv(width, TILE_COLUMNS)
        down = tl.cdiv(height, TILE_ROWS)
        for tile in range(tl.program_id(0), tiles, PROGRAMS):
            base = (tile // (across * down)).to(tl.int64) * height * width
            top = tile % (across * down) // across * TILE_ROWS
            left = tile % across * TILE_COLUMNS
            for start in range(0, SEEN, ROWS):
                i = start + tl.arange(0, ROWS)
                y, x = top + i // SEEN_WIDE - 2, left + i % SEEN_WIDE - 2
                inside = (i < SEEN) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                place = (base + y * width + x)[:, None] * CHANNELS + channels[None, :]
                # Outside the picture are zeros, whose code is not 0.
                values = tl.load(source + place, mask=inside[:, None], other=0.0).to(tl.float32)
                tl.store(
                    seen + i[:, None] * CHANNELS + channels[None, :],
                    _to_codes(values, inverse1, zero1, INTEGER),
                    mask=(i < SEEN)[:, None],
                )
            tl.debug_barrier()  # the scratch is written by other threads of this program
            for start in range(0, MIDDLE, ROWS):
                i = start + tl.arange(0, ROWS)
                row, column = i // WIDE, i % WIDE
                y, x = top + row - 1, left + column - 1
                inside = (i < MIDDLE) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                acc = tl.zeros((ROWS, HIDDEN), dtype=tl.int32 if INTEGER else tl.float32)
                for tap in range(9):
                    near = (row + tap // 3) * SEEN_WIDE + column + tap % 3
                    codes = tl.load(
                        seen + near[:, None] * CHANNELS + channels[None, :],
                        mask=(i < MIDDLE)[:, None], other=0.0,
                    )  # fmt: skip
                    weight = tl.load(
                        weights1 + (tap * HIDDEN + hidden[None, :]) * CHANNELS + channels[:, None]
                    )
                    acc = tl.dot(codes, weight, acc, out_dtype=acc.dtype)
                values = acc.to(tl.float32) * tl.load(factors1 + hidden)[None, :]
                values = tl.maximum(values + tl.load(bias1 + hidden)[None, :], 0.0)
                # Outside the picture the second convolution sees zeros, not biases.
                values = tl.where(inside[:, None], values, 0.0)
                tl.store(
                    middle + i[:, None] * HIDDEN + hidden[None, :],
                    _to_codes(values, inverse2, zero2, INTEGER),
                    mask=(i < MIDDLE)[:, None],
                )
            tl.debug_barrier()
            for start in range(0, TILE_ROWS * TILE_COLUMNS, ROWS):
                i = start + tl.arange(0, ROWS)
                row, column = i // TILE_COLUMNS, i % TILE_COLUMNS
                inside = (top + row < height) & (left + column < width)
                acc = tl.zeros((ROWS, CHANNELS), dtype=tl.int32 if INTEGER else tl.float32)
                for tap in range(9):
                    near = (row + tap // 3) * WIDE + column + tap % 3
                    codes = tl.load(middle + near[:, None] * HIDDEN + hidden[None, :])
                    weight = tl.load(
                        weights2 + (tap * CHANNELS + channels[None, :]) * HIDDEN + hidden[:, None]
                    )
                    acc = tl.dot(codes, weight, acc, out_dtype=acc.dtype)
                values = acc.to(tl.float32) * tl.load(factors2 + channels)[None, :]
                values += tl.load(bias2 + channels)[None, :]
                pixel = base + (top + row) * width + left + column
                place = pixel[:, None] * CHANNELS + channels[None, :]
                values += tl.load(source + place, mask=inside[:, None], other=0.0).to(tl.float32)
                tl.store(target + place, values.to(target.dtype.element_ty), mask=inside[:, None])
            tl.debug_barrier()  # all threads must read these codes before the next are written


class QuantisedConv(nn.Module):
    """A 3×3 convolution's weights as codes, and the factors that turn products into values.

    Args:
        conv: The convolution.
        measured: The range of its input.
        kind: The type of codes.
        outputs: Output channels to extend to, by zeros.
        inputs: Input channels to extend to, by zeros.
    """

    def __init__(
        self, conv: nn.Conv2d, measured: Range, kind: Kind, *, outputs: int, inputs: int
    ) -> None:
        super().__init__()
        self.kind, self.scale = kind, Scale.of(measured, kind)
        weight = conv.weight.detach().float()
        more = (outputs - conv.out_channels, inputs - conv.in_channels)
        weight = F.pad(weight, (0, 0, 0, 0, 0, more[1], 0, more[0]))
        step = weight.abs().amax(dim=(1, 2, 3)) / kind.high
        step = torch.where(step > 0, step, torch.ones_like(step))
        codes = weight / step[:, None, None, None]
        codes = codes.round() if kind.integer else codes
        # Rounded as they are used: the bias below is that of the codes.
        self.register_buffer(
            "codes",
            codes.permute(2, 3, 0, 1).reshape(9, outputs, inputs).contiguous().to(kind.dtype),
        )
        factors = step / self.scale.inverse
        self.register_buffer("factors", factors)
        bias = F.pad(bias_of(conv).float(), (0, more[0]))
        # Inputs are codes − zero, at the edges too, which are padded with that zero.
        off = self.get_buffer("codes").float().sum(dim=(0, 2)) * self.scale.zero
        self.register_buffer("bias", bias - off * factors)

    def quantise(self, x: Tensor) -> Tensor:
        """Convert values to the codes of this convolution's input, as fp32."""
        codes = (x.float() * self.scale.inverse + self.scale.zero).clamp(
            self.kind.low, self.kind.high
        )
        return codes.round() if self.kind.integer else codes.to(self.kind.dtype).float()

    def forward(self, codes: Tensor) -> Tensor:
        """Compute (N, out, H, W) fp32 from codes (N, C, H, W) as fp32, like the kernels do."""
        packed = self.get_buffer("codes").float()
        weight = packed.view(3, 3, *packed.shape[1:]).permute(2, 3, 0, 1).contiguous()
        sums = F.conv2d(F.pad(codes, (1, 1, 1, 1), value=self.scale.zero), weight)
        factors, bias = self.get_buffer("factors"), self.get_buffer("bias")
        return sums * factors[:, None, None] + bias[:, None, None]


class QuantisedBlock(nn.Module):
    """A `ResBlock` on codes; on a CUDA device by kernels for the shapes where they are faster.

    Args:
        block: The layer.
        ranges: Of its input, and of the values between its convolutions.
        kind: The type of codes.
        kernels: False computes the same in torch on any device, to measure what codes cost in
            quality.
    """

    def __init__(
        self, block: ResBlock, ranges: tuple[Range, Range], kind: Kind, *, kernels: bool = True
    ) -> None:
        super().__init__()
        self.plain, self.kind, self.kernels = block, kind, kernels
        first, second = (conv_of(part) for part in block.main)
        # A middle that pruning left narrower is extended by channels that are 0.
        hidden = -(-first.out_channels // _STEP) * _STEP
        channels = first.in_channels
        self.first = QuantisedConv(first, ranges[0], kind, outputs=hidden, inputs=channels)
        self.second = QuantisedConv(second, ranges[1], kind, outputs=channels, inputs=hidden)

    def reference(self, x: Tensor) -> Tensor:
        """Compute the block in torch, with the kernels' arithmetic: (N, C, H, W) → the same."""
        middle = self.first(self.first.quantise(x)).relu()
        out: Tensor = self.second(self.second.quantise(middle)) + x.float()
        return out.to(x.dtype)

    def ways(self) -> dict[str, Way]:
        """Return the ways to compute the block in kernels, by name."""
        _, hidden, channels = self.first.get_buffer("codes").shape
        whole = hidden & (hidden - 1) == 0 and channels & (channels - 1) == 0

        def one(launch: Launch) -> Way:
            return lambda x: quantised_block(x, self.first, self.second, launch=launch)

        def two(launch: Launch) -> Way:
            return lambda x: quantised_convolutions(x, self.first, self.second, launch=launch)

        name = self.kind.name
        ways = {f"{name}, one kernel {n}": one(n) for n in _BLOCK_LAUNCHES} if whole else {}
        return ways | {f"{name}, two kernels {n}": two(n) for n in _LAUNCHES}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        if not self.kernels:
            return self.reference(x)
        kind = (self.kind.name, *self.first.get_buffer("codes").shape)
        return choose_kernel(kind, self.ways(), self.plain, expected=self.reference)(x)(x)


def quantised_convolutions(
    x: Tensor, first: QuantisedConv, second: QuantisedConv, *, launch: Launch = _LAUNCHES[0]
) -> Tensor:
    """Compute x + conv(ReLU(conv(x))) on codes in three kernels.

    Args:
        x: (N, C, H, W) channels-last.
        first: The first convolution.
        second: The second convolution.
        launch: How the kernels are launched.

    Returns:
        The same shape, layout and dtype.
    """
    n, _, height, width = x.shape
    hidden, integer = first.get_buffer("codes").shape[1], first.kind.integer
    x = x.contiguous(memory_format=torch.channels_last)
    layout: dict[str, Any] = {"device": x.device, "memory_format": torch.channels_last}
    seen = torch.empty(x.shape, dtype=first.kind.dtype, **layout)
    _codes_kernel[triton.cdiv(x.numel(), 1024),](
        x, seen, x.numel(), first.scale.inverse, first.scale.zero, INTEGER=integer, BLOCK=1024
    )
    middle = torch.empty((n, hidden, height, width), dtype=first.kind.dtype, **layout)
    target = torch.empty(x.shape, dtype=x.dtype, **layout)
    pixels = n * height * width
    for conv, source, result in ((first, seen, middle), (second, middle, target)):
        _, out, inputs = conv.get_buffer("codes").shape
        outs = power_of_two_divisor(out, 64)
        _conv_kernel[triton.cdiv(pixels, launch.rows), out // outs](
            source, conv.get_buffer("codes"), conv.get_buffer("factors"), conv.get_buffer("bias"),
            x, result, pixels, height, width,
            conv.scale.zero, second.scale.inverse, second.scale.zero,
            CHANNELS=inputs, OUT=out, BLOCK=power_of_two_divisor(inputs, 128), OUTS=outs,
            ROWS=launch.rows, LAST=conv is second, INTEGER=integer,
            num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    return target


def quantised_block(
    x: Tensor, first: QuantisedConv, second: QuantisedConv, *, launch: Launch = _BLOCK_LAUNCHES[0]
) -> Tensor:
    """Compute `quantised_convolutions` in one kernel, for channels that are powers of two."""
    n, channels, height, width = x.shape
    hidden = first.get_buffer("codes").shape[1]
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.empty_like(x, memory_format=torch.channels_last)
    tiles = n * triton.cdiv(height, TILE_ROWS) * triton.cdiv(width, TILE_COLUMNS)
    programs = min(tiles, launch.programs)
    seen = (TILE_ROWS + 4) * (TILE_COLUMNS + 4) * channels
    middle = (TILE_ROWS + 2) * (TILE_COLUMNS + 2) * hidden
    scratch = torch.empty(programs * (seen + middle), dtype=first.kind.dtype, device=x.device)
    _block_kernel[programs,](
        x, *(conv.get_buffer(name) for conv in (first, second) for name in _BUFFERS),
        scratch, target, tiles, height, width,
        first.scale.inverse, first.scale.zero, second.scale.inverse, second.scale.zero,
        CHANNELS=channels, HIDDEN=hidden, TILE_ROWS=TILE_ROWS, TILE_COLUMNS=TILE_COLUMNS,
        ROWS=launch.rows, PROGRAMS=programs, INTEGER=first.kind.integer,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return target


_BUFFERS = ("codes", "factors", "bias")


def blocks_of(network: nn.Module) -> dict[str, ResBlock]:
    """Return the residual blocks that can be quantized, by name: of a multiple of 32 channels."""
    return {
        name: layer
        for name, layer in network.named_modules()
        if type(layer) is ResBlock and conv_of(layer.main[0]).in_channels % _STEP == 0
    }


def measure_ranges(
    network: nn.Module, call: Callable[[Tensor], object], pictures: Iterable[Tensor]
) -> dict[str, tuple[Range, Range]]:
    """Measure the ranges that `QuantisedBlock` needs, of all blocks.

    The widest of all pictures' ranges, since others would clip the values of the most blurred
    parts.

    Args:
        network: Whose blocks are measured.
        call: Computes the network.
        pictures: Inputs of `call`.

    Returns:
        For each block, by name: (least, greatest) of its input and of the values between its
        convolutions.
    """
    ranges: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    hooks = []

    def watch(key: tuple[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = torch.aminmax(inputs[0].detach().float())
            if key in ranges:
                low, high = ranges[key][0].minimum(low), ranges[key][1].maximum(high)
            ranges[key] = low, high

        return look

    blocks = blocks_of(network)
    try:
        for name, block in blocks.items():
            for number, part in enumerate(block.main):
                hooks.append(part.register_forward_pre_hook(watch((name, number))))
        with torch.no_grad():
            for picture in pictures:
                call(picture)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[tuple[str, int], Range] = {
        key: (float(low), float(high)) for key, (low, high) in ranges.items()
    }
    return {name: (found[name, 0], found[name, 1]) for name in blocks if (name, 0) in found}


def quantise(
    network: nn.Module,
    ranges: dict[str, tuple[Range, Range]],
    kind: Kind,
    *,
    kernels: bool = True,
) -> nn.Module:
    """Return a copy of `network` whose blocks multiply codes.

    Args:
        network: For inference.
        ranges: Of the blocks to quantize, see `measure_ranges`.
        kind: The type of codes.
        kernels: See `QuantisedBlock`.

    Raises:
        ModelError: A range is not finite: the network fails on the pictures it was measured on.
    """
    quantised = copy.deepcopy(network)
    for name, both in ranges.items():
        if not all(abs(edge) < float("inf") for one in both for edge in one):
            raise ModelError(
                f"precision {kind.name}: the network's values are not finite on the pictures that "
                "its ranges are measured on: use other pictures, or `precision='auto'`"
            )
        parent, _, last = name.rpartition(".")
        block = quantised.get_submodule(name)
        assert isinstance(block, ResBlock)
        made = QuantisedBlock(block, both, kind, kernels=kernels)
        quantised.get_submodule(parent).add_module(last, made)
    return quantised
