"""PSNR by its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vdeblur.metrics import psnr


@pytest.mark.parametrize("difference", [1, 5, 100])
def test_psnr_of_a_constant_difference(difference: int) -> None:
    a = np.full((7, 9, 3), 120, np.uint8)
    expected = 20 * math.log10(255 / difference)
    assert psnr(a, a + np.uint8(difference)) == pytest.approx(expected, abs=1e-9)
    assert psnr(a + np.uint8(difference), a) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_noise() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    error = sum((int(x) - int(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / a.size
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)


def test_psnr_of_equals_and_of_unequal_shapes() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a.copy()) == math.inf
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(a, a[:2])
