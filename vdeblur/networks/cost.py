"""The cost of a network's pass: operations, bytes moved, memory. Nothing is computed for it.

Shapes alone pass through a copy of the network on torch's meta device.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdeblur.networks.base import Network, correction_of, traits_of

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Work:
    """The work for one frame.

    Attributes:
        flop: floating-point operations of all layers; a multiply-accumulate is two.
        layers: (flop, bytes) of each convolution layer in the order of execution. Bytes are what
            it reads and writes once, when its bias, ReLU and addition cost nothing.
    """

    flop: float
    layers: tuple[tuple[float, float], ...]

    @property
    def macs(self) -> float:
        """Multiply-accumulates of all layers."""
        return self.flop / 2

    @property
    def convolution_macs(self) -> int:
        """Multiply-accumulates of the convolution layers, which are all that has parameters."""
        return round(sum(flop for flop, _ in self.layers) / 2)

    def ceiling(self, flops: float, bytes_per_second: float) -> float | None:
        """Return the frame rate when each convolution is limited by operations or by bytes.

        This bounds execution layer by layer; kernels that hold several layers may exceed it. See
        Williams, Waterman, Patterson, "Roofline", CACM 2009.

        Args:
            flops: operations per second of the device.
            bytes_per_second: memory bandwidth of the device.
        """
        seconds = sum(max(flop / flops, size / bytes_per_second) for flop, size in self.layers)
        return 1 / seconds if seconds else None


def count_work(
    network: nn.Module, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Work:
    """Count the work of one frame of height × width, padded to a size that the network takes.

    Args:
        network: a torch module as loaded, in fp32; it is copied and stays as it is.
        height: rows of the frame.
        width: columns of the frame.
        dtype: type of the activations and weights in the pass that is planned.

    Raises:
        RuntimeError, NotImplementedError, TypeError, ValueError: the network does not run on shapes
            alone.
    """
    multiple = traits_of(network).size_multiple
    height, width = (-(-n // multiple) * multiple for n in (height, width))
    layers: list[tuple[float, float]] = []

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        channels = layer.out_channels if transposed else layer.in_channels
        taps = math.prod(layer.kernel_size) * channels // layer.groups
        points = inputs[0] if transposed else output
        values = inputs[0].numel() + output.numel() + layer.weight.numel()
        layers.append((2.0 * taps * points.numel(), float(values * dtype.itemsize)))

    shape_only = copy.deepcopy(network).to("meta")
    for layer in shape_only.modules():
        if isinstance(layer, _CONVOLUTIONS):
            layer.register_forward_hook(count)
    weights = next(shape_only.parameters(), torch.empty(0))
    x = torch.empty(1, 3, height, width, device="meta", dtype=weights.dtype)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        correction_of(shape_only)(x)
    return Work(float(counter.get_total_flops()), tuple(layers))


def work_of(network: nn.Module, height: int, width: int, dtype: torch.dtype) -> Work | None:
    """Return `count_work` of any module, or None when it does not run on shapes alone."""
    try:
        return count_work(network, height, width, dtype)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def operations(network: nn.Module, *, size: int = 256) -> int:
    """Return the multiplications in all convolutions for a picture of `size`² pixels.

    `size` is rounded up to one that the network takes.
    """
    return count_work(network, size, size).convolution_macs


def memory_bytes(network: Network, height: int, width: int, dtype: torch.dtype) -> int:
    """Return the memory of the activations and parameters for one picture of height × width."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return (height * width * network.activations_per_pixel + parameters) * dtype.itemsize
