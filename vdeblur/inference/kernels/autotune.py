"""Choose the fastest of several ways to compute a layer, by measuring them on the device.

Knows tensors and callables only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

Way = Callable[[], Tensor]
_cuda: Any = torch.cuda  # its events have no types

#: The name of the fastest way, by the kind of layer, shape, type and device.
chosen: dict[tuple[Any, ...], str] = {}


def fastest(kind: tuple[Any, ...], ways: dict[str, Way], x: Tensor) -> Tensor:
    """Compute a layer by its fastest way that agrees with the first.

    Measured once per kind of layer, shape, type and device. A way that fails is passed over: it may
    be of another maker's GPU, or not compile, or need more shared memory than there is.

    Args:
        kind: Of the layer, for the keys of `chosen`.
        ways: By name; the first is torch's own.
        x: The layer's input, whose shape, type and device count.
    """
    if len(ways) == 1:
        return next(iter(ways.values()))()
    key = (*kind, tuple(x.shape), x.dtype, x.device)
    if key not in chosen:
        chosen[key] = _measured(ways)
    return ways[chosen[key]]()


def _measured(ways: dict[str, Way]) -> str:
    first, *others = ways
    right = ways[first]()
    # Share of the largest value: roundings of nine taps in this precision, or of TF32.
    tolerance = (1e-3 if right.dtype == torch.float32 else 2e-2) * float(right.abs().max())
    times = {first: milliseconds(ways[first])}
    for name in others:
        # Triton's compiler raises many errors, and so does a device that is short of something.
        with suppress(Exception):
            if float((ways[name]().float() - right.float()).abs().max()) <= tolerance:
                times[name] = milliseconds(ways[name])
    return min(times, key=lambda name: times[name])


def milliseconds(way: Callable[[], object]) -> float:
    """Return the shortest time of several runs on CUDA: other work there only adds to it."""
    times = []
    for _ in range(8):
        start, end = (_cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)))
    return min(times[2:])
