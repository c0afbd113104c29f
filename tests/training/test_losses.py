"""Losses by their definitions, sums over scales, and losses as text."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.training import (
    image,
)
from vdeblur.errors import UsageError
from vdeblur.training.losses import (
    LOSSES,
    charbonnier,
    edge,
    l1,
    msfr,
    multi_scale,
    parse_loss,
    scale_weights,
    ssim,
    targets_for,
)


def test_targets_are_means_of_what_a_pixel_covers() -> None:
    sharp = image(2, 3, 16, 16)
    outputs = [torch.zeros(2, 3, s, s) for s in (4, 8, 16, 16)]
    quarter, half, full, again = targets_for(outputs, sharp)
    assert full is sharp
    assert again is sharp
    assert torch.allclose(half, F.avg_pool2d(sharp, 2))
    assert torch.allclose(quarter, F.avg_pool2d(sharp, 4), atol=1e-6)


def test_each_loss_is_least_where_nothing_differs() -> None:
    sharp = image(1, 3, 24, 24)
    worse = sharp + 0.1 * image(1, 3, 24, 24, seed=1)
    for name, loss in LOSSES.items():
        assert float(loss(sharp, sharp)) == pytest.approx(0, abs=1.1e-3), name  # Charbonnier's ε
        assert float(loss(worse, sharp)) > float(loss(sharp, sharp)) + 1e-4, name


def test_losses_by_hand() -> None:
    sharp = image(1, 3, 16, 16)
    assert float(l1(sharp + 0.1, sharp)) == pytest.approx(0.1, abs=1e-5)
    assert float(charbonnier(sharp + 0.003, sharp)) == pytest.approx(math.hypot(0.003, 1e-3), 1e-3)
    assert float(LOSSES["huber"](sharp + 0.003, sharp)) == pytest.approx(0.003**2 / 0.06, rel=0.02)
    assert float(LOSSES["huber"](sharp + 0.9, sharp)) == pytest.approx(0.87, rel=0.01)
    both = [torch.fft.rfft2(picture) for picture in (sharp * 0.5, sharp)]
    apart = (both[0].real - both[1].real).abs() + (both[0].imag - both[1].imag).abs()
    assert float(msfr(sharp * 0.5, sharp)) == pytest.approx(float(apart.mean()) / 2, rel=1e-4)
    # A picture a tenth as wrong counts for as much less as one that is ten times as good.
    off = torch.tensor([0.3, 0.03]).view(2, 1, 1, 1)
    pair = [torch.zeros(2, 3, 4, 4) + off, torch.zeros(2, 3, 4, 4)]
    expected = (math.log(91) + math.log(1.9)) / 2  # the floor is 10⁻³
    assert float(LOSSES["log_mse"](*pair)) == pytest.approx(expected, rel=1e-4)
    # An edge loss sees no change of level, and sees a checkerboard more than L1 does.
    assert float(edge(sharp + 0.2, sharp)) == pytest.approx(1e-3, abs=1e-5)
    ones = torch.ones(16, 16)
    board = 0.1 * ((ones.cumsum(0) + ones.cumsum(1)) % 2 * 2 - 1)
    assert float(edge(sharp + board, sharp)) > 0.08
    # SSIM of two flat pictures is its luminance term alone.
    a, b, c1 = 0.25, 0.75, 0.01**2
    flat = [torch.full((1, 3, 16, 16), value) for value in (a, b)]
    expected = 1 - (2 * a * b + c1) / (a * a + b * b + c1)
    assert float(ssim(flat[0], flat[1])) == pytest.approx(expected, rel=1e-3)
    assert float(ssim(flat[0][..., :5, :5], flat[1][..., :5, :5])) == pytest.approx(expected, 1e-3)


def test_sums_over_scales() -> None:
    sharp = image(1, 3, 16, 16)
    outputs = [t + 0.1 for t in targets_for([torch.zeros(1, 3, s, s) for s in (4, 8, 16)], sharp)]
    assert float(multi_scale(outputs, sharp, {"l1": 1})) == pytest.approx(0.3, abs=1e-5)
    weights = scale_weights(outputs, "halving")
    assert weights == [0.25, 0.5, 1]
    total = multi_scale(outputs, sharp, {"l1": 2}, weights)
    assert float(total) == pytest.approx(2 * 0.175, abs=1e-5)
    assert scale_weights([*outputs, sharp], "tenth") == [0.1, 0.1, 1, 1]
    # Coarse scales first: one after another.
    shares = [scale_weights(outputs, share=s, coarse_first=0.3) for s in (0, 0.11, 0.21)]
    assert shares == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    with pytest.raises(UsageError, match="none of equal, halving, tenth"):
        scale_weights(outputs, "cubic")


def test_a_loss_is_read_from_text() -> None:
    assert parse_loss("l1") == {"l1": 1}
    assert parse_loss("charbonnier + 0.05*edge") == {"charbonnier": 1, "edge": 0.05}
    assert parse_loss("log_mse") == {"log_mse": 1}
    assert parse_loss("1e-1*msfr+l1") == {"msfr": 0.1, "l1": 1}
    for wrong in ("", "l3", "l1 + l1", "-1*l1", "l1 +", "1..2*l1"):
        with pytest.raises(UsageError, match="is not a loss"):
            parse_loss(wrong)
