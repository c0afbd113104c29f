"""Deterministic parameters for the fixtures beside this file."""

from __future__ import annotations

import zlib
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray


def fill(
    name: str, shape: tuple[int, ...], *, layout: Literal["torch", "tf"] = "torch"
) -> NDArray[np.float32]:
    """Values for the parameter `name` of `shape`, as the fixtures' originals were filled.

    layout: "torch" for (out, in, kh, kw) weights, "tf" for (kh, kw, in, out). Parameters of one
    element (PReLU slopes, biases of one channel) are 0.25; vectors are uniform within ±0.05;
    weights are uniform with variance 1 / (4 fan_in), fan_in being the product of all dimensions but
    the first (torch) or the last (tf), transposed convolutions included.
    """
    if prod(shape) == 1:
        return np.full(shape, 0.25, np.float32)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = generator.uniform(-1.0, 1.0, size=shape)
    if len(shape) == 1:
        bound = 0.05
    else:
        fan_in = prod(shape[1:] if layout == "torch" else shape[:-1])
        bound = float(np.sqrt(0.75 / fan_in))
    return (bound * values).astype(np.float32)
