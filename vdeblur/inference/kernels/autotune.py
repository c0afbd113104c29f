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
#: Side in pixels of the part of an input on which ways are held to another arithmetic, since that
#: takes memory.
_COMPARED = 256
_cuda: Any = torch.cuda  # its events have no types


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: pixels multiplied at once, warps, loads in flight.

    programs: of the block kernel, each with a scratch of its own.
    """

    rows: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 264


#: The name of the fastest way for a kind of layer and a shape, "torch" where no kernel wins.
chosen: dict[tuple[Any, ...], str] = {}


def choose_kernel(
    kind: tuple[Any, ...],
    ways: dict[str, Way],
    plain: Way,
    *,
    expected: Way | None = None,
    timed: Callable[[Way, Tensor], float] | None = None,
) -> Callable[[Tensor], Way]:
    """Which of `ways` to take for an input: the fastest that agrees with `plain`, or `plain`.

    expected: what they are to agree with, where it is another; asked of a part of the input.
    Measured once per kind of layer, shape and device, on the first input of it. A way that does not
    compile, or has not enough shared memory there, is passed over. Off CUDA devices the first way.
    """

    def decide(x: Tensor) -> Way:
        if timed is None and not x.is_cuda:
            return next(iter(ways.values()))
        key = (*kind, tuple(x.shape), x.dtype, x.device)
        name = chosen.get(key)
        if name is None:
            name = _fastest(ways, plain, expected, x, timed or milliseconds)
            chosen[key] = name
        return plain if name == "torch" else ways[name]

    return decide


def _fastest(
    ways: dict[str, Way],
    plain: Way,
    expected: Way | None,
    x: Tensor,
    timed: Callable[[Way, Tensor], float],
) -> str:
    part = x if expected is None else x[:1, :, :_COMPARED, :_COMPARED]
    right = (expected or plain)(part).float()
    # Of the largest value: roundings of nine taps in the precision at hand, or of the result only.
    share = 1e-3 if x.dtype == torch.float32 else 2e-2
    if expected is not None:
        share = 4 * torch.finfo(x.dtype).eps
    tolerance = share * float(right.abs().max())
    times = {"torch": timed(plain, x)}
    for name, way in ways.items():
        # Triton's compiler has many errors, and a device too little of many things.
        with suppress(Exception):
            if float((way(part).float() - right).abs().max()) <= tolerance:
                times[name] = timed(way, x)
    return min(times, key=lambda name: times[name])


def milliseconds(way: Way, x: Tensor) -> float:
    """The shortest of several runs: what others do on the device only adds to it."""
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
