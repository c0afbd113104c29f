"""Choose the fastest of several kernels for a layer and a shape, by measuring them on the device.

Knows tensors and callables only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Way = Callable[[Tensor], Tensor]
_cuda: Any = torch.cuda  # its events have no types


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        rows: Pixels multiplied at once.
        warps: Warps of a program.
        stages: Loads in flight.
    """

    rows: int = 64
    warps: int = 4
    stages: int = 3


#: The name of the fastest way for a kind of layer and a shape, "torch" where no kernel wins.
chosen: dict[tuple[Any, ...], str] = {}


def choose_kernel(
    kind: tuple[Any, ...],
    ways: dict[str, Way],
    plain: Way,
    *,
    timed: Callable[[Way, Tensor], float] | None = None,
) -> Callable[[Tensor], Way]:
    """Choose for an input the fastest of `ways` that agrees with `plain`, or `plain` itself.

    Measured once per kind of layer, shape and device, on the first input of that kind. A way that
    does not compile, or needs more shared memory than the device has, is passed over. Off CUDA
    devices nothing is measured, and the first way is taken.

    Args:
        kind: Of the layer, for keys of `chosen`.
        ways: The kernels, by name.
        plain: The layer in torch.
        timed: Measures a way on an input; None is `milliseconds`.

    Returns:
        A function from an input to the way to compute it.
    """

    def decide(x: Tensor) -> Way:
        if timed is None and not x.is_cuda:
            return next(iter(ways.values()))
        key = (*kind, tuple(x.shape), x.dtype, x.device)
        name = chosen.get(key)
        if name is None:
            name = _fastest(ways, plain, x, timed or milliseconds)
            chosen[key] = name
        return plain if name == "torch" else ways[name]

    return decide


def _fastest(
    ways: dict[str, Way], plain: Way, x: Tensor, timed: Callable[[Way, Tensor], float]
) -> str:
    right = plain(x).float()
    # Share of the largest value: roundings of nine taps in this precision, or of the result only.
    share = 1e-3 if x.dtype == torch.float32 else 2e-2
    tolerance = share * float(right.abs().max())
    times = {"torch": timed(plain, x)}
    for name, way in ways.items():
        # Triton's compiler raises many errors, and so does a device that is short of something.
        with suppress(Exception):
            if float((way(x).float() - right).abs().max()) <= tolerance:
                times[name] = timed(way, x)
    return min(times, key=lambda name: times[name])


def milliseconds(way: Way, x: Tensor) -> float:
    """Return the shortest time of several runs: other work on the device only adds to it."""
    best = math.inf
    for number in range(8):
        start, end = (_cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way(x)
        end.record()
        end.synchronize()
        if number > 1:
            best = min(best, float(start.elapsed_time(end)))
    return best
