"""Picture quality measures. Knows arrays only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def psnr(restored: NDArray[np.uint8], sharp: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit arrays of one shape; inf when equal."""
    if restored.shape != sharp.shape:
        raise ValueError(f"shapes differ: {restored.shape} and {sharp.shape}")
    difference = restored.astype(np.float64) - sharp.astype(np.float64)
    error = float(np.mean(difference * difference))
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)
