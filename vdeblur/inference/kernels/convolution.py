"""Convolutions of residual networks with bias, ReLU and addition in one kernel each, on GPUs.

torch gives each of these a pass through memory of its own, and memory bounds the speed of
convolutions of few channels. cuDNN's fused call does bias and ReLU in the convolution, a Triton
kernel in NHWC the addition too; on an H100 the kernel is the fastest for 32 and 64 channels, cuDNN
for 128 (docs/performance.md). `fuse` puts them into a network. The kernel runs on CPU tensors too,
under TRITON_INTERPRET=1, for tests.

Knows no video, no files, and no network but by its layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.inference.kernels.autotune import Way, fastest
from vdeblur.networks.layers import BasicConv, ResBlock

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

_cudnn_relu: Any = getattr(torch, "cudnn_convolution_relu", None)  # has no types


@dataclass(frozen=True)
class Launch:
    """How the kernel is launched: pixels multiplied at once, warps, and loads in flight."""

    rows: int = 64
    warps: int = 4
    stages: int = 3


# What is tried on a device; the best depends on its registers, caches and shared memory. The loop
# over the nine taps is one that the compiler keeps: unrolled, it put the nine loads of several
# rounds into shared memory at once (440 KB for 64 channels, twice what an H200's processor has),
# and took several times as long to compile. With more than one stage, loads run ahead of
# multiplications, but past the first-level cache (cp.async.cg), where each tap's neighbours are.
LAUNCHES = (Launch(), Launch(128, 4, 1), Launch(128, 8, 1), Launch(128, 8, 3))


if triton is not None:
    # Unspecialized: a kernel is compiled once for its channels, not again for other picture sizes.
    @triton.jit(do_not_specialize=["pixels", "height", "width"])  # type: ignore[untyped-decorator]
    def _conv3x3_kernel(  # type: ignore[no-untyped-def]
        source, weights, bias, added, target, pixels, height, width,
        CHANNELS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, OUTS: tl.constexpr,
        ROWS: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr,
    ):  # fmt: skip
        index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        outs = tl.program_id(1) * OUTS + tl.arange(0, OUTS)
        inside = index < pixels
        base = index // (height * width) * (height * width)
        y = (index - base) // width
        x = (index - base) % width
        acc = tl.zeros((ROWS, OUTS), dtype=tl.float32)
        for tap in range(9):
            ty, tx = y + tap // 3 - 1, x + tap % 3 - 1
            there = inside & (ty >= 0) & (ty < height) & (tx >= 0) & (tx < width)
            pixel = (base + ty * width + tx) * CHANNELS
            for start in tl.static_range(0, CHANNELS, BLOCK):
                ins = start + tl.arange(0, BLOCK)
                values = tl.load(
                    source + pixel[:, None] + ins[None, :], mask=there[:, None], other=0.0
                )
                weight = tl.load(weights + (tap * CHANNELS + ins[:, None]) * OUT + outs[None, :])
                acc = tl.dot(values, weight, acc)
        acc += tl.load(bias + outs)[None, :].to(tl.float32)
        place = index[:, None] * OUT + outs[None, :]
        if ADD:
            acc += tl.load(added + place, mask=inside[:, None], other=0.0).to(tl.float32)
        if RELU:
            acc = tl.maximum(acc, 0.0)
        tl.store(target + place, acc.to(target.dtype.element_ty), mask=inside[:, None])


def pack(weight: Tensor) -> Tensor:
    """Rearrange a convolution's weight (out, in, 3, 3) to (9, in, out), as the kernel reads it."""
    return weight.permute(2, 3, 1, 0).reshape(9, weight.shape[1], weight.shape[0]).contiguous()


def conv3x3(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    *,
    relu: bool = False,
    added: Tensor | None = None,
    launch: Launch = LAUNCHES[0],
) -> Tensor:
    """Compute a 3×3 convolution with stride 1 and zero padding in one Triton kernel.

    Args:
        x: (N, C, H, W) channels-last; C is a multiple of 16.
        packed: (9, C, out) by `pack`; out is a multiple of 16.
        bias: (out,).
        relu: Whether ReLU follows.
        added: Added to the result before ReLU, of its shape.
        launch: How the kernel is launched.

    Returns:
        (N, out, H, W) channels-last of x's dtype; products are summed in fp32.
    """
    n, channels, height, width = x.shape
    out = packed.shape[2]
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.empty(
        (n, out, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    pixels = n * height * width
    outs = _power_of_two_divisor(out, 64)
    _conv3x3_kernel[triton.cdiv(pixels, launch.rows), out // outs](
        x, packed, bias, added if added is not None else x, target, pixels, height, width,
        CHANNELS=channels, OUT=out, BLOCK=_power_of_two_divisor(channels, 64), OUTS=outs,
        ROWS=launch.rows, RELU=relu, ADD=added is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return target


class FusedConv(nn.Module):
    """A `BasicConv` of a convolution, and an addition after it, by the fastest way for a shape."""

    def __init__(self, basic: BasicConv) -> None:
        super().__init__()
        conv: Any = basic.main[0]
        self.plain, self.relu = basic, len(basic.main) == 2
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.register_buffer("bias", bias.clone())
        self.register_buffer("packed", pack(conv.weight.detach()) if _fits(conv) else None)

    def ways(self, x: Tensor, added: Tensor | None = None) -> dict[str, Way]:
        """Return the ways to compute the layer for these inputs, by name; torch's first."""
        conv: Any = self.plain.main[0]
        found: dict[str, Way] = {
            "torch": lambda: self.plain(x) if added is None else self.plain(x) + added
        }
        if self.relu and added is None and _cudnn_relu is not None:
            sizes = conv.stride, conv.padding, conv.dilation, conv.groups
            found["cudnn"] = partial(_cudnn_relu, x, conv.weight, self.bias, *sizes)
        if isinstance(packed := self.packed, Tensor) and triton is not None:
            bias = self.get_buffer("bias")
            for launch in LAUNCHES:
                way = partial(conv3x3, x, packed, bias, relu=self.relu, added=added, launch=launch)
                found[f"triton {launch}"] = way
        return found

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → (N, out, H', W'), plus what is added of that shape."""
        conv: Any = self.plain.main[0]
        kind = (*conv.weight.shape, conv.stride, self.relu, added is None)
        return fastest(kind, self.ways(x, added), x)


class FusedBlock(nn.Module):
    """A `ResBlock` of two `FusedConv`."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.first, self.second = (FusedConv(part) for part in block.main)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        out: Tensor = self.second(self.first(x), x)
        return out


def fuse(network: nn.Module) -> nn.Module:
    """Return a copy of `network` whose `ResBlock` and `BasicConv` are computed in fewer passes.

    For each shape of each layer the fastest way is measured (`autotune.fastest`). The results agree
    to the rounding of the network's precision.

    Args:
        network: For inference, on a GPU.
    """
    fused = copy.deepcopy(network)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, ResBlock):
                parent.add_module(name, FusedBlock(child))
            elif isinstance(child, BasicConv) and isinstance(child.main[0], nn.Conv2d):
                parent.add_module(name, FusedConv(child))
            else:
                replace(child)

    replace(fused)
    return fused


def _fits(conv: nn.Conv2d) -> bool:
    """Whether the Triton kernel computes such a convolution."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.groups == 1
        and conv.in_channels % 16 == 0
        and conv.out_channels % 16 == 0
    )


def _power_of_two_divisor(number: int, limit: int) -> int:
    """The largest power of two that divides `number`, up to `limit`."""
    return min(number & -number, limit)
