"""Power spectra of windows of a picture, and their attenuation by a straight blur.

Knows tensors only. A wave is a Fourier component; B of them are used.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

#: Side of a window in pixels.
WINDOW = 64
#: Frequencies that are used, in waves per pixel: lower ones are the window's own, higher ones
#: noise.
_WAVES = 2.5 / WINDOW, 0.42
#: Power below which a spectrum is noise; and the share of the shortest waves' power, which may be
#: detail as well, that is taken for noise.
FLOOR, _NOISE = 1e-4, 0.25


def power_of(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the power of the waves of windows, and that of their noise.

    Args:
        windows: (N, WINDOW, WINDOW), luma in [0, 1].

    Returns:
        (N, B) and (N, 1).
    """
    spectra = torch.fft.rfft2((windows - windows.mean((1, 2), keepdim=True)) * _hann())
    power = spectra.abs().square()
    noise = _NOISE * power[:, _corners()].mean(1, keepdim=True) + FLOOR
    return power[:, _chosen()], noise


def signal_of(power: Tensor, noise: Tensor) -> Tensor:
    """Return the mean power of all waves as long as each, less the noise: (N, B)."""
    _, _, rings = waves()
    sizes = rings.sum(0).clamp_min(1)
    signal: Tensor = (power @ rings / sizes - noise).clamp_min(1e-9) @ rings.T
    return signal


@functools.cache
def waves() -> tuple[Tensor, Tensor, Tensor]:
    """Return the frequencies of the waves, down and across in waves per pixel, (B,) each.

    Third, (B, R): 1 for the ring of wavelengths that each is in, of R.
    """
    chosen = _chosen()
    down = torch.fft.fftfreq(WINDOW)[:, None].expand(chosen.shape)[chosen]
    across = torch.fft.rfftfreq(WINDOW)[None].expand(chosen.shape)[chosen]
    ring = (torch.hypot(down, across) * WINDOW).round().long()
    return down, across, torch.eye(int(ring.max()) + 1)[ring]


def periods_along(ways: Tensor) -> Tensor:
    """Return the periods of each wave in motions (N, 2), x and y in pixels: (N, B), ≥ 0."""
    down, across, _ = waves()
    return (ways[:, :1] * across + ways[:, 1:] * down).abs()


def power_left(waves_along: Tensor, shares: Tensor) -> Tensor:
    """Return the share of power that a straight blur leaves of waves: sinc².

    Args:
        waves_along: (N, B), periods of the waves in the motion, as of `periods_along`.
        shares: (T,), lengths of the blur as shares of the motion.

    Returns:
        (T, N, B), from a table.
    """
    table: Tensor = _table()
    places = (waves_along * (shares * _STEPS)[:, None, None]).round_().clamp_max_(len(table) - 1)
    return table.index_select(0, places.int().flatten()).view(places.shape)


def peak(shares: Tensor, explained: Tensor, best: int, step: float) -> float:
    """Return the share at the peak of a parabola through the best value and those beside it.

    Args:
        shares: (T,), whose logarithms are `step` apart.
        explained: (T,), what each explains.
        best: index of the best share, which is returned if the peak is not near it.
        step: see `shares`.
    """
    share = float(shares[best])
    if 0 < best < len(shares) - 1:
        low, mid, high = explained[best - 1 : best + 2].tolist()
        if low <= mid >= high and low + high < 2 * mid:
            share *= math.exp(step * 0.5 * (low - high) / (low - 2 * mid + high))
    return share


@functools.cache
def _lengths() -> Tensor:
    """Return the frequency of each value of half a spectrum, (WINDOW, WINDOW / 2 + 1)."""
    return torch.hypot(torch.fft.fftfreq(WINDOW)[:, None], torch.fft.rfftfreq(WINDOW)[None])


def _chosen() -> Tensor:
    """Return the mask of the waves that are used."""
    return (_lengths() > _WAVES[0]) & (_lengths() < _WAVES[1])


def _corners() -> Tensor:
    """Return the mask of values that show the noise: beyond the detail of a blurred picture."""
    return _lengths() > 0.5


@functools.cache
def _hann() -> Tensor:
    hann = torch.hann_window(WINDOW)
    return hann[:, None] * hann


_STEPS = 512  # of the table, per period


@functools.cache
def _table() -> Tensor:
    """Return the share of power that a blur leaves of 0, 1/_STEPS, 2/_STEPS … periods."""
    return torch.sinc(torch.arange(128 * _STEPS) / _STEPS).square()
