"""torch on a CPU at its best: ReLU and residual additions inside oneDNN's convolutions.

Knows no video and no files, and no network but by its layers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.backends import check_against, correction_of
from vdeblur.models.layers import BasicConv, ResBlock

# What torch.compile's CPU code calls; not promised to stay, so looked for, and checked by result.
_mkldnn: Any = torch.ops.mkldnn


def fuse(network: nn.Module) -> nn.Module:
    """A copy of `network` (fp32, on the CPU, for inference) whose convolutions add and clip.

    The network itself where there is nothing to fuse, torch cannot, or the copy differs. Weights
    that may still be trained are left alone: the copy's are laid out once.
    """
    if not any(type(layer) in (BasicConv, ResBlock) for layer in network.modules()) or any(
        parameter.requires_grad for parameter in network.parameters()
    ):
        return network
    names = ("_convolution_pointwise", "_reorder_convolution_weight")
    available: Any = torch.backends.mkldnn.is_available  # it has no types
    if not available() or not all(hasattr(_mkldnn, name) for name in names):
        return network
    try:
        # Parameters are shared with the network; only layers are the copy's own.
        shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
        fused = copy.deepcopy(network, shared)
        if not _replace(fused) or check_against(network, _Call(fused), torch.device("cpu")):
            return network
    except (RuntimeError, TypeError, AttributeError):  # another torch's operators
        return network
    return fused


class _Call:
    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return correction_of(self.network)(x.contiguous(memory_format=torch.channels_last))


class _Conv(nn.Module):
    """A convolution, with ReLU or without, that may add another tensor to its result."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self.conv, self.after = conv, "relu" if relu else "none"
        self._packed: Tensor | None = None

    def _weight(self, x: Tensor) -> tuple[Tensor, list[int], list[int], list[int], int]:
        conv = self.conv
        padding, stride, dilation = (
            [int(n) for n in pair] for pair in (conv.padding, conv.stride, conv.dilation)
        )
        if self._packed is None:
            # Laid out as oneDNN wants it, once instead of in every call.
            self._packed = _mkldnn._reorder_convolution_weight(
                conv.weight.detach().contiguous(memory_format=torch.channels_last),
                padding, stride, dilation, conv.groups, list(x.shape),
            )  # fmt: skip
        return self._packed, padding, stride, dilation, conv.groups

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """(N, C, H, W) → the convolution of it, after ReLU or + `plus`."""
        weight, *rest = self._weight(x)
        if plus is None:
            out: Tensor = _mkldnn._convolution_pointwise(
                x, weight, self.conv.bias, *rest, self.after, [], ""
            )
            return out
        out = _mkldnn._convolution_pointwise.binary(
            x, plus, weight, self.conv.bias, *rest, "add", 1.0, None, [], None
        )
        return out


class _Block(nn.Module):
    """A residual block in two kernels."""

    def __init__(self, first: _Conv, second: _Conv) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H, W)."""
        out: Tensor = self.second(self.first(x), x)
        return out


def _fused(layer: nn.Module) -> nn.Module | None:
    if type(layer) is BasicConv and isinstance(layer.main[0], nn.Conv2d):
        conv = layer.main[0]
        plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return _Conv(conv, relu=len(layer.main) > 1) if plain else None
    if type(layer) is ResBlock:
        first, second = (_fused(part) for part in layer.main)
        if isinstance(first, _Conv) and isinstance(second, _Conv) and second.after == "none":
            return _Block(first, second)
    return None


def _replace(network: nn.Module) -> int:
    """Put fused layers in place of those that can be; how many."""
    count = 0
    for name, child in list(network.named_children()):
        fused = _fused(child)
        if fused is not None:
            setattr(network, name, fused)
        count += 1 if fused is not None else _replace(child)
    return count
