"""Spectra of windows of a picture, and what a straight blur leaves of them. Knows tensors only."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

#: Pixels a side of a window.
WINDOW = 64
#: Waves that are looked at, in waves a pixel: longer ones are a window's own, shorter ones noise.
_WAVES = 2.5 / WINDOW, 0.42
#: Power below which a spectrum is noise; and of the noise that the shortest waves show, which may
#: be detail too, what is taken for noise.
FLOOR, _NOISE = 1e-4, 0.25


def power_of(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (N, WINDOW, WINDOW) of luma in [0, 1] → the power of the B waves that are looked at,
    (N, B), and that of their noise, (N, 1).
    """
    spectra = torch.fft.rfft2((windows - windows.mean((1, 2), keepdim=True)) * _hann())
    power = spectra.abs().square()
    noise = _NOISE * power[:, _corners()].mean(1, keepdim=True) + FLOOR
    return power[:, _chosen()], noise


def signal_of(power: Tensor, noise: Tensor) -> Tensor:
    """Of spectra (N, B) with so much noise, (N, 1), the mean power of waves as long as each."""
    _, _, rings = waves()
    sizes = rings.sum(0).clamp_min(1)
    signal: Tensor = (power @ rings / sizes - noise).clamp_min(1e-9) @ rings.T
    return signal


@functools.cache
def waves() -> tuple[Tensor, Tensor, Tensor]:
    """Of the B waves that are looked at: how many there are a pixel down and across, and which of R
    rings, by their length, each is in, (B, R).
    """
    chosen = _chosen()
    down = torch.fft.fftfreq(WINDOW)[:, None].expand(chosen.shape)[chosen]
    across = torch.fft.rfftfreq(WINDOW)[None].expand(chosen.shape)[chosen]
    ring = (torch.hypot(down, across) * WINDOW).round().long()
    return down, across, torch.eye(int(ring.max()) + 1)[ring]


def along(ways: Tensor) -> Tensor:
    """How many of each wave are in ways (N, 2), x and y in pixels: (N, B), not negative."""
    down, across, _ = waves()
    return (ways[:, :1] * across + ways[:, 1:] * down).abs()


def power_left(waves_along: Tensor, shares: Tensor) -> Tensor:
    """The power that blurs over shares (T,) of ways leave of waves (N, B) `along` them, (T, N, B):
    that of a sinc.
    """
    table: Tensor = _table()
    places = (waves_along * (shares * _STEPS)[:, None, None]).round_().clamp_max_(len(table) - 1)
    return table.index_select(0, places.int().flatten()).view(places.shape)


def peak(shares: Tensor, explained: Tensor, best: int, step: float) -> float:
    """The share at the top of the parabola through what the best and those beside it explain, which
    are `step` apart in their logarithm; the best itself if the top is not between them.
    """
    share = float(shares[best])
    if 0 < best < len(shares) - 1:
        low, mid, high = explained[best - 1 : best + 2].tolist()
        if low <= mid >= high and low + high < 2 * mid:
            share *= math.exp(step * 0.5 * (low - high) / (low - 2 * mid + high))
    return share


@functools.cache
def _lengths() -> Tensor:
    """Waves a pixel of each value of half a spectrum, (WINDOW, WINDOW / 2 + 1)."""
    return torch.hypot(torch.fft.fftfreq(WINDOW)[:, None], torch.fft.rfftfreq(WINDOW)[None])


def _chosen() -> Tensor:
    """Which values are looked at."""
    return (_lengths() > _WAVES[0]) & (_lengths() < _WAVES[1])


def _corners() -> Tensor:
    """Which values show the noise: beyond what any detail of a blurred picture reaches."""
    return _lengths() > 0.5


@functools.cache
def _hann() -> Tensor:
    hann = torch.hann_window(WINDOW)
    return hann[:, None] * hann


_STEPS = 512  # of the table, a wave


@functools.cache
def _table() -> Tensor:
    """The power that a blur leaves of 0, 1/_STEPS, 2/_STEPS … waves in its length."""
    return torch.sinc(torch.arange(128 * _STEPS) / _STEPS).square()
