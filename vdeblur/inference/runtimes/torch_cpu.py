"""Speed up torch on a CPU: additions and ReLU inside oneDNN's convolutions, in fp32 or bf16.

Knows no video and no files, and no network but by its layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.inference.runtimes.conversion import check_against
from vdeblur.inference.runtimes.mimo_unet_rewrite import AddingConv, rewrite
from vdeblur.networks.base import correction_of, traits_of
from vdeblur.networks.layers import BasicConv, FeatureAttention, ResBlock

# Called by torch.compile's CPU code; not a stable API, so looked up, and checked by result.
_mkldnn: Any = torch.ops.mkldnn
_OPERATORS = (
    "_convolution_pointwise",
    "_convolution_transpose_pointwise",
    "_reorder_convolution_weight",
    "_reorder_convolution_transpose_weight",
)
#: Types that hold several values at once, by their bytes. Powers of two only: PixelUnshuffle by 3
#: is left to torch.
_WHOLE = {4: torch.int32, 8: torch.int64, 16: torch.complex128}


def fuse(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy of `network` whose convolutions add and clip in one operation.

    Weights that may still be trained are left alone, since the copy lays them out once.

    Args:
        network: fp32, on the CPU, for inference.
        dtype: What the copy will be moved to.

    Returns:
        The network itself if there is nothing to fuse, torch cannot fuse in that precision on this
        CPU, or the copy computes something else.
    """
    known = any(type(layer) in (BasicConv, ResBlock) for layer in network.modules())
    if not known or any(parameter.requires_grad for parameter in network.parameters()):
        return network
    available: Any = torch.backends.mkldnn.is_available  # it has no types
    there = all(hasattr(_mkldnn, name) for name in _OPERATORS)
    if not (available() and there and computes(dtype)):
        return network
    try:
        # Parameters are shared with the network; only layers are copied.
        quick = rewrite(network)
        shared = {id(value): value for value in (*quick.parameters(), *quick.buffers())}
        fused = copy.deepcopy(quick, shared)
        if not _replace(fused) or check_against(network, _Call(fused), torch.device("cpu")):
            return network
    except (RuntimeError, TypeError, AttributeError):  # operators of another torch
        return network
    return fused


def computes(dtype: torch.dtype) -> bool:
    """Return whether oneDNN's convolutions accept it here.

    torch's own always do, but take ten times as long as oneDNN's in fp32.
    """
    able = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    if dtype == torch.float32:
        return True
    return bool(getattr(_mkldnn, able.get(dtype, ""), lambda: False)())


class _Call:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return correction_of(self.network)(x.contiguous(memory_format=layout_for(self.network)))


def layout_for(network: nn.Module) -> torch.memory_format:
    """Return the memory format in which a network computed by torch takes its input fastest."""
    # Guidance is made and rearranged plane by plane.
    planes = traits_of(network).guided or any(
        isinstance(layer, _Unshuffle) for layer in network.modules()
    )
    return torch.contiguous_format if planes else torch.channels_last


def _operator(name: str) -> Any:
    return getattr(_mkldnn, name)


class _Conv(nn.Module):
    """A convolution that may add another tensor to its result, then ReLU or not."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu
        self._packed: Tensor | None = None

    def _weight(self, x: Tensor) -> tuple[Tensor, list[int], list[int], list[int], int]:
        conv = self.conv
        padding, stride, dilation = (
            [int(n) for n in pair] for pair in (conv.padding, conv.stride, conv.dilation)
        )
        if self._packed is None or self._packed.dtype != conv.weight.dtype:
            # Laid out for oneDNN once, instead of in every call.
            self._packed = _operator("_reorder_convolution_weight")(
                conv.weight.detach().contiguous(memory_format=torch.channels_last),
                padding, stride, dilation, conv.groups, list(x.shape),
            )  # fmt: skip
        return self._packed, padding, stride, dilation, conv.groups

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → the convolution of it, + `plus`, after ReLU."""
        weight, *rest = self._weight(x)
        if plus is None:
            after = "relu" if self.relu else "none"
            out: Tensor = _operator("_convolution_pointwise")(
                x, weight, self.conv.bias, *rest, after, [], ""
            )
            return out
        out = _operator("_convolution_pointwise").binary(
            x, plus, weight, self.conv.bias, *rest,
            "add", 1.0, "relu" if self.relu else None, [], None,
        )  # fmt: skip
        return out


class _Transposed(nn.Module):
    """A transposed convolution, with ReLU or without."""

    def __init__(self, conv: nn.ConvTranspose2d, *, relu: bool) -> None:
        super().__init__()
        self.conv, self.relu = conv, relu
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the transposed convolution of it, after ReLU."""
        conv = self.conv
        # In the operators' order.
        rest = [
            [int(n) for n in pair]
            for pair in (conv.padding, conv.output_padding, conv.stride, conv.dilation)
        ]
        if self._packed is None or self._packed.dtype != conv.weight.dtype:
            self._packed = _operator("_reorder_convolution_transpose_weight")(
                conv.weight.detach(), *rest, conv.groups, list(x.shape)
            )
        out: Tensor = _operator("_convolution_transpose_pointwise")(
            x, self._packed, conv.bias, *rest, conv.groups,
            "relu" if self.relu else "none", [], "",
        )  # fmt: skip
        return out


class _Unshuffle(nn.Module):
    """`nn.PixelUnshuffle` of planes, for convolutions that are channels-last.

    Values next to each other in a row stay so, and each group is moved at once: six times as fast
    as torch's own operation and a change of layout.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C·factor², H/factor, W/factor), channels-last."""
        count, channels, height, width = x.shape
        rows, columns = height // self.factor, width // self.factor
        whole = x.contiguous().view(_WHOLE[self.factor * x.element_size()])
        whole = whole.view(count, channels, rows, self.factor, columns)
        moved = whole.permute(0, 2, 4, 1, 3).contiguous().view(x.dtype)
        return moved.view(count, rows, columns, -1).permute(0, 3, 1, 2)


class _Shuffle(nn.Module):
    """`nn.PixelShuffle` of a channels-last tensor to planes; see `_Unshuffle`."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C·factor², H, W) → (N, C, H·factor, W·factor), contiguous."""
        count, channels, height, width = x.shape
        channels, factor = channels // self.factor**2, self.factor
        values = x.permute(0, 2, 3, 1).contiguous()
        whole = values.view(_WHOLE[factor * x.element_size()])
        whole = whole.view(count, height, width, channels, factor).permute(0, 3, 1, 4, 2)
        moved = whole.contiguous().view(x.dtype)
        return moved.view(count, channels, height * factor, width * factor)


class _Block(nn.Module):
    """A residual block in two kernels."""

    def __init__(self, first: _Conv, second: _Conv) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.second(self.first(x), x)
        return out


class _Attention(nn.Module):
    """`FeatureAttention`, its addition inside the convolution."""

    def __init__(self, merge: _Conv) -> None:
        super().__init__()
        self.merge = merge

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """Two (N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.merge(deep * shallow, deep)
        return out


def _fused(layer: nn.Module) -> nn.Module | None:
    if type(layer) is AddingConv:
        return _Conv(layer.conv, relu=layer.relu)
    if type(layer) is BasicConv and isinstance(layer.main[0], nn.Conv2d):
        conv = layer.main[0]
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return _Conv(conv, relu=len(layer.main) > 1) if plain else None
    if type(layer) is BasicConv and isinstance(layer.main[0], nn.ConvTranspose2d):
        return _Transposed(layer.main[0], relu=len(layer.main) > 1)
    if isinstance(layer, nn.PixelUnshuffle) and layer.downscale_factor in (2, 4):
        return _Unshuffle(layer.downscale_factor)
    if isinstance(layer, nn.PixelShuffle) and layer.upscale_factor in (2, 4):
        return _Shuffle(layer.upscale_factor)
    if type(layer) is ResBlock:
        first, second = (_fused(part) for part in layer.main)
        if isinstance(first, _Conv) and isinstance(second, _Conv) and not second.relu:
            return _Block(first, second)
    if type(layer) is FeatureAttention:
        merge = _fused(layer.merge)
        if isinstance(merge, _Conv) and not merge.relu:
            return _Attention(merge)
    return None


def _replace(network: nn.Module) -> int:
    """Replace layers that can be fused; return how many."""
    count = 0
    for name, child in list(network.named_children()):
        fused = _fused(child)
        if fused is not None:
            setattr(network, name, fused)
        count += 1 if fused is not None else _replace(child)
    return count
