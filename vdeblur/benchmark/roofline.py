"""What a network costs, and what a device could do: floating-point operations, bytes, ceilings.

After Williams, Waterman, Patterson, "Roofline", CACM 2009. Knows no video.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vdeblur.inference.runtimes import correction_of
from vdeblur.inference.settings import synchronise

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True)
class Work:
    """Of one frame. flop: of all layers; layers: (flop, bytes) of each convolution.

    Bytes are what a convolution reads and writes once when its bias, ReLU and addition cost none.
    """

    flop: float
    layers: tuple[tuple[float, float], ...]

    def ceiling(self, flops: float, bytes_per_second: float) -> float | None:
        """Frames/s when each convolution takes what its operations or its bytes take, the longer.

        A ceiling of layer-by-layer execution: kernels that hold several layers may pass it.
        """
        seconds = sum(max(flop / flops, size / bytes_per_second) for flop, size in self.layers)
        return 1 / seconds if seconds else None


def work_of(network: nn.Module, height: int, width: int, dtype: torch.dtype) -> Work | None:
    """The work of one frame of height × width, padded to a legal size; None if it cannot be told.

    Nothing is computed: shapes alone pass through a copy of the network (as loaded: a torch module,
    fp32). dtype: of activations and weights as it is to run.
    """
    multiple = int(getattr(network, "size_multiple", 1))
    height, width = (-(-n // multiple) * multiple for n in (height, width))
    layers: list[tuple[float, float]] = []

    def note(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        taps = math.prod(layer.kernel_size) * layer.in_channels // layer.groups
        points = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        if isinstance(layer, nn.ConvTranspose2d):
            taps = math.prod(layer.kernel_size) * layer.out_channels // layer.groups
        values = inputs[0].numel() + output.numel() + layer.weight.numel()
        layers.append((2.0 * taps * points.numel(), float(values * dtype.itemsize)))

    try:
        shape_only = copy.deepcopy(network).to("meta")
        hooks = [
            layer.register_forward_hook(note)
            for layer in shape_only.modules()
            if isinstance(layer, _CONVOLUTIONS)
        ]
        weights = next(shape_only.parameters(), torch.empty(0))
        x = torch.empty(1, 3, height, width, device="meta", dtype=weights.dtype)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            correction_of(shape_only)(x)
        for hook in hooks:
            hook.remove()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    return Work(float(counter.get_total_flops()), tuple(layers))


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """FLOP/s of the fastest of some large products in `dtype`, and bytes/s of a copy, both ways.

    Square matrices, and a 3×3 convolution: on a CPU it is blocked to stay in the caches, and may be
    a fifth faster than a large matrix product. A network's own shapes may be faster still.
    """
    gpu = device.type == "cuda"
    flops = []
    for side in (8192, 4096) if gpu else (1024, 512):
        a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
        times = 20 if gpu else 4
        flops.append(2 * side**3 * _per_second(partial(torch.mm, a, b), device, times))
    channels, height, width = (256, 360, 640) if gpu else (64, 90, 160)
    with suppress(RuntimeError), torch.no_grad():  # a precision that this CPU does not convolve in
        x = torch.ones(1, channels, height, width, device=device, dtype=dtype)
        kernel = torch.ones(channels, channels, 3, 3, device=device, dtype=dtype)
        x, kernel = (one.contiguous(memory_format=torch.channels_last) for one in (x, kernel))
        rate = _per_second(partial(F.conv2d, x, kernel, padding=1), device, 20 if gpu else 8)
        flops.append(2 * 9 * channels**2 * height * width * rate)
    source = torch.ones((1 << 30) if gpu else (1 << 26), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copied = _per_second(lambda: target.copy_(source), device, 20 if gpu else 4)
    return max(flops), 2 * source.numel() * copied


def _per_second(work: Callable[[], object], device: torch.device, times: int) -> float:
    work()
    synchronise(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return times / (time.perf_counter() - begin)
