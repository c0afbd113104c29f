"""The operations and bytes that a device can do in a second, for `vdeblur.networks.cost.Work`.

After Williams, Waterman, Patterson, "Roofline", CACM 2009. Knows no video.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F

from vdeblur.inference.devices import has_streams, synchronize


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Measure what a device reaches at most.

    The products are of square matrices, and a 3×3 convolution: on a CPU that is blocked to stay in
    the caches, and may be a fifth faster than a large matrix product. A network's own shapes may be
    faster still.

    Args:
        device: Where to compute.
        dtype: Of the products.

    Returns:
        FLOP/s of the fastest product, and bytes/s of a copy, reads and writes counted.
    """
    gpu = has_streams(device)
    flops = []
    for side in (8192, 4096) if gpu else (1024, 512):
        # Not of ones: constant data run up to 13 % faster, since fewer bits change.
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        times = 20 if gpu else 4
        flops.append(2 * side**3 * _per_second(partial(torch.mm, a, b), device, times))
    channels, height, width = (256, 360, 640) if gpu else (64, 90, 160)
    with suppress(RuntimeError), torch.no_grad():  # a precision that this CPU does not convolve in
        x = torch.randn(1, channels, height, width, device=device, dtype=dtype)
        kernel = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        if device.type != "mps":  # which reads such tensors wrongly
            x, kernel = (one.contiguous(memory_format=torch.channels_last) for one in (x, kernel))
        rate = _per_second(partial(F.conv2d, x, kernel, padding=1), device, 20 if gpu else 8)
        flops.append(2 * 9 * channels**2 * height * width * rate)
    values = (1 << 28) if gpu else (1 << 24)
    source = torch.randn(values, device=device)
    target = torch.empty_like(source)
    copied = _per_second(lambda: target.copy_(source), device, 20 if gpu else 4)
    return max(flops), 2 * source.nbytes * copied


def _per_second(work: Callable[[], object], device: torch.device, times: int) -> float:
    work()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return times / (time.perf_counter() - begin)
