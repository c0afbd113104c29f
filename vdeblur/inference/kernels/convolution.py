"""Triton kernels for the convolutions of residual networks, in NHWC: for CUDA devices.

A full-resolution residual block moves six feature maps through memory if each of its layers is a
kernel (two convolutions, ReLU, biases, the addition), and computes little on each value, so memory
bounds its speed. `conv3x3` folds bias, ReLU and addition into the convolution; `fuse` puts it into
a network. Runs on CPU tensors too, under TRITON_INTERPRET=1, for tests.

Knows no video, no files, and no network but by its layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError
from vdeblur.inference.kernels.autotune import Launch, Way, choose_kernel
from vdeblur.networks.layers import BasicConv, ResBlock

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None


# What is tried on a device; the best depends on its registers, caches and shared memory. The loop
# over the nine taps is one that the compiler keeps: unrolled, it put the nine loads of several
# rounds into shared memory at once (440 KB for 64 channels, twice what an H200's processor has),
# and took several times as long to compile. With more than one stage, loads run ahead of
# multiplications, but past the first-level cache (cp.async.cg), where each tap's neighbours are.
_LAUNCHES = (Launch(), Launch(128, 4, 1), Launch(128, 8, 1), Launch(128, 8, 3))


def available() -> bool:
    """Return whether Triton is installed."""
    return triton is not None


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _taps(  # type: ignore[no-untyped-def]
        source, weights, acc, y, x, base, inside, height, width,
        CHANNELS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, OUTS: tl.constexpr,
        first_out,
    ):  # fmt: skip
        """Add the nine taps of a 3×3 convolution at pixels (y, x) of an NHWC picture to `acc`."""
        outs = first_out + tl.arange(0, OUTS)
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
        return acc

    @triton.jit  # type: ignore[untyped-decorator]
    def _conv3x3_kernel(  # type: ignore[no-untyped-def]
        source, weights, bias, added, target, pixels, height, width,
        CHANNELS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, OUTS: tl.constexpr,
        ROWS: tl.constexpr, RELU: tl.constexpr, ADD: tl.constexpr,
    ):  # fmt: skip
        index = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        first_out = tl.program_id(1) * OUTS
        outs = first_out + tl.arange(0, OUTS)
        inside = index < pixels
        base = index // (height * width) * (height * width)
        y = (index - base) // width
        x = (index - base) % width
        acc = tl.zeros((ROWS, OUTS), dtype=tl.float32)
        acc = _taps(
            source, weights, acc, y, x, base, inside, height, width,
            CHANNELS, OUT, BLOCK, OUTS, first_out,
        )  # fmt: skip
        acc += tl.load(bias + outs)[None, :].to(tl.float32)
        place = index[:, None] * OUT + outs[None, :]
        if ADD:
            acc += tl.load(added + place, mask=inside[:, None], other=0.0).to(tl.float32)
        if RELU:
            acc = tl.maximum(acc, 0.0)
        tl.store(target + place, acc.to(target.dtype.element_ty), mask=inside[:, None])


def pack(weight: Tensor) -> Tensor:
    """Rearrange a convolution's weight (out, in, 3, 3) to (9, in, out), as the kernels read it."""
    return weight.permute(2, 3, 1, 0).reshape(9, weight.shape[1], weight.shape[0]).contiguous()


def conv3x3(
    x: Tensor,
    packed: Tensor,
    bias: Tensor,
    *,
    relu: bool = False,
    added: Tensor | None = None,
    launch: Launch = _LAUNCHES[0],
) -> Tensor:
    """Compute a 3×3 convolution with stride 1 and zero padding in one kernel.

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
    outs = power_of_two_divisor(out, 64)
    _conv3x3_kernel[triton.cdiv(pixels, launch.rows), out // outs](
        x, packed, bias, added if added is not None else x, target, pixels, height, width,
        CHANNELS=channels, OUT=out, BLOCK=power_of_two_divisor(channels, 64), OUTS=outs,
        ROWS=launch.rows, RELU=relu, ADD=added is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return target


class FusedConv(nn.Module):
    """A 3×3 `BasicConv` as a single kernel, where that is faster."""

    def __init__(self, basic: BasicConv) -> None:
        super().__init__()
        conv = conv_of(basic)
        self.plain = basic
        self.register_buffer("packed", pack(conv.weight.detach()))
        self.register_buffer("bias", bias_of(conv))
        self.relu = len(basic.main) == 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, out, H, W)."""
        packed, bias = self.get_buffer("packed"), self.get_buffer("bias")

        def way(launch: Launch) -> Way:
            return lambda x: conv3x3(x, packed, bias, relu=self.relu, launch=launch)

        ways = {f"kernel {launch}": way(launch) for launch in _LAUNCHES}
        return choose_kernel(("conv", *packed.shape, self.relu), ways, self.plain)(x)(x)


class FusedBlock(nn.Module):
    """A `ResBlock` as two kernels, or as it is, whichever is fastest for a shape."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.plain = block
        for number, part in enumerate(block.main, 1):
            assert isinstance(part, BasicConv)
            conv = conv_of(part)
            self.register_buffer(f"packed{number}", pack(conv.weight.detach()))
            self.register_buffer(f"bias{number}", bias_of(conv))

    def ways(self) -> dict[str, Way]:
        """Return the ways to compute the block in kernels, by name."""
        packed1, bias1 = self.get_buffer("packed1"), self.get_buffer("bias1")
        packed2, bias2 = self.get_buffer("packed2"), self.get_buffer("bias2")

        def way(launch: Launch) -> Way:
            def run(x: Tensor) -> Tensor:
                middle = conv3x3(x, packed1, bias1, relu=True, launch=launch)
                return conv3x3(middle, packed2, bias2, added=x, launch=launch)

            return run

        return {f"two kernels {launch}": way(launch) for launch in _LAUNCHES}

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        kind = ("block", *self.get_buffer("packed1").shape)
        return choose_kernel(kind, self.ways(), self.plain)(x)(x)


def fuse(network: nn.Module) -> nn.Module:
    """Return a copy of `network` whose residual blocks and 3×3 convolutions are Triton kernels.

    On a CUDA device a kernel is used for the shapes where it is fastest (`choose_kernel`). Layers
    that the kernels cannot compute (other sizes, strides, channels that are no multiple of 16)
    stay. The results agree to the rounding of the network's precision.

    Args:
        network: For inference.

    Raises:
        DeviceError: Triton is not installed.
    """
    if triton is None:
        raise DeviceError(
            "fused kernels need Triton, which comes with CUDA builds of PyTorch: "
            "install one, or leave them out"
        )
    fused = copy.deepcopy(network)

    def replace(parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, ResBlock) and all(_fits(part) for part in child.main):
                parent.add_module(name, FusedBlock(child))
            elif isinstance(child, BasicConv) and _fits(child):
                parent.add_module(name, FusedConv(child))
            else:
                replace(child)

    replace(fused)
    return fused


def conv_of(basic: Any) -> nn.Conv2d:
    """Return the convolution of a `BasicConv`."""
    conv = basic.main[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return a copy of a convolution's bias, zeros without one."""
    if conv.bias is None:
        return torch.zeros(conv.out_channels, dtype=conv.weight.dtype, device=conv.weight.device)
    return conv.bias.detach().clone()


def _fits(part: nn.Module) -> bool:
    if not isinstance(part, BasicConv) or not isinstance(part.main[0], nn.Conv2d):
        return False
    conv = part.main[0]
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == (1, 1)
        and conv.groups == 1
        and conv.in_channels % 16 == 0
        and conv.out_channels % 16 == 0
    )


def power_of_two_divisor(number: int, limit: int) -> int:
    """Return the largest power of two that divides `number`, up to `limit`."""
    return min(number & -number, limit)
