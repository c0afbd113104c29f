"""Measure the length of a blur by the dark stripes in the spectra of many windows together.

A straight blur of constant speed multiplies the spectrum of a picture by a sinc of the frequency
along the motion, in lengths of the blur. Where the motion to the next picture is known, and only
the share of it that the shutter was open for is not, this share is the one unknown of all windows:
once frequencies are measured in motions, their stripes coincide. Stripes that are hardly visible in
one window are clear in the sum of a hundred, of any direction and length. Knows tensors only.

Dark stripes in the spectrum of a blurred picture: M. Cannon, "Blind deconvolution of spatially
invariant image blurs with phase", IEEE Trans. ASSP 1976.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdeblur.motion.spectra import (
    FLOOR,
    WINDOW,
    peak,
    periods_along,
    power_left,
    power_of,
    signal_of,
    waves,
)

#: Shares of the motion that are tried, in steps of their logarithm; those beyond `_LONGEST` only
#: for comparison.
_STEP = 0.075
SHARES = torch.exp(torch.arange(math.log(0.1), math.log(2.2), _STEP))
_LONGEST = 1.35
#: Lowest frequency along the motion, in waves per pixel, that a window distinguishes from 0.
_ALONG = 2 / WINDOW
#: Depth of the stripes, which a window's edges fill in; and the number of a window's waves below
#: which it counts less.
DEPTH, FEW = 0.02, 100
#: Noise of a compressed film, whose quantization removes what a picture has little of, which the
#: shortest waves do not show. A fit with this noise counts where the one without explains less than
#: `_LITTLE`, and if the logarithms of both shares differ by less than `_ALIKE`: defocus is no blur
#: of one share.
_CODED, _LITTLE, _ALIKE = 0.01, 0.05, 0.15
#: A stripe is distinct if blurs this many times as long, and as short, explain less.
_BESIDE = 1.6


@dataclass(frozen=True)
class StripeSums:
    """Sums over windows for a least-squares fit; sums of more windows can be added with `+`.

    They are products of the windows' spectra, of K terms that are no stripes ("other"), and of the
    stripes of each of the T SHARES ("own").

    Attributes:
        windows: number of windows.
        lengths: sum of the lengths of their motions, in pixels.
        coded: the same windows with the noise of a compressed film.
    """

    windows: int
    lengths: float
    power: Tensor  # ()
    other: Tensor  # (K, K)
    other_power: Tensor  # (K,)
    own: Tensor  # (T,)
    own_other: Tensor  # (T, K)
    own_power: Tensor  # (T,)
    coded: StripeSums | None = None

    def __add__(self, more: StripeSums) -> StripeSums:
        return StripeSums(
            self.windows + more.windows,
            self.lengths + more.lengths,
            self.power + more.power,
            self.other + more.other,
            self.other_power + more.other_power,
            self.own + more.own,
            self.own_other + more.own_other,
            self.own_power + more.own_power,
            self.coded + more.coded if self.coded and more.coded else None,
        )

    def fit(self) -> StripeFit:
        """Return the share that explains most; if that is little, with the noise of compression."""
        found = self._fit()
        if self.coded is None or found.explained > _LITTLE:
            return found
        coded = self.coded._fit()  # noqa: SLF001 -- an object of this class
        alike = abs(math.log(coded.share / found.share)) < _ALIKE
        if not alike or coded.explained <= found.explained:
            return found
        # Noise fills the stripes and makes them narrower, so that the share is the plain fit's.
        return replace(found, explained=coded.explained, distinct=coded.distinct, coded=True)

    def _fit(self) -> StripeFit:
        ground = 1e-6 * float(self.power) + 1e-9
        other = self.other + ground * torch.eye(len(self.other))
        inverse = torch.linalg.inv(other)
        left = self.power - self.other_power @ inverse @ self.other_power
        product = self.own_power - self.own_other @ inverse @ self.other_power
        own = self.own - ((self.own_other @ inverse) * self.own_other).sum(1)
        explained = product * product.abs() / own.clamp_min(1e-9) / left.clamp_min(1e-9)
        most = int(explained[SHARES <= _LONGEST].argmax())
        beside = round(math.log(_BESIDE) / _STEP)
        ends = max(most - beside, 0), min(most + beside, len(SHARES) - 1)
        highest = float(explained[most])
        around = max(0.0, *(float(explained[end]) for end in ends))
        share = peak(SHARES, explained, most, _STEP)
        pixels = share * self.lengths / max(self.windows, 1)
        distinct = (highest - around) / max(highest, 1e-6)
        return StripeFit(share, pixels, highest, distinct, self.windows)


@dataclass(frozen=True)
class StripeFit:
    """The length of a blur by its stripes.

    Attributes:
        share: length as a share of the motion to the next picture.
        pixels: mean length in pixels.
        explained: share of the variance of the spectra between directions, beyond the other terms,
            that the stripes explain.
        distinct: share of `explained` that no other length explains, at most 1.
        windows: number of windows.
        coded: whether the fit assumes the noise of a compressed film.
    """

    share: float
    pixels: float
    explained: float
    distinct: float
    windows: int
    coded: bool = False


def measure_stripes(windows: Tensor, ways: Tensor) -> StripeSums:
    """Return the sums for some windows.

    Args:
        windows: (N, WINDOW, WINDOW), luma in [0, 1].
        ways: (N, 2), their motion to the next picture, x and y in pixels.
    """
    power, noise = power_of(windows)
    passed = periods_along(ways)
    left = power_left(passed, SHARES)
    plain, coded = (_seen(power, n, ways, passed, left) for n in (noise, noise + _CODED))
    return replace(plain, coded=coded)


def _seen(power: Tensor, noise: Tensor, ways: Tensor, passed: Tensor, left: Tensor) -> StripeSums:
    """Return the sums for spectra (N, B) with noise (N, 1).

    passed: (N, B), periods in the motion. left: (T, N, B), power that blurs of the SHARES leave.
    """
    down, across, rings = waves()
    signal = signal_of(power, noise)
    length = torch.hypot(across, down)
    length_of_ways = ways.norm(dim=1, keepdim=True)
    # No blur changes waves across the motion.
    seen = (passed > _ALONG * length_of_ways).float()
    counts = seen * signal / (signal + noise)
    counts = counts / counts.sum(1, keepdim=True).clamp_min(FEW)  # all windows count the same
    ring_counts = (seen @ rings).clamp_min(1)

    def level(values: Tensor) -> Tensor:
        """Subtract the mean of the waves of the same length, in place."""
        means: Tensor = (values * seen) @ rings / ring_counts
        return values.sub_(means @ rings.T)

    spectrum = level(torch.log(power + FLOOR))
    # Pictures have more edges in some directions than in others, which varies smoothly.
    turned = (passed / length_of_ways / length).square()
    other = torch.stack([turned, turned.square(), turned * length * 4])
    other = level(other).flatten(1)
    # A stripe is not darker than the noise.
    depth = (DEPTH + noise / signal).clamp_max(100)
    own = level((left + depth).log_()).flatten(1)
    counts, spectrum = counts.flatten(), spectrum.flatten()
    other_counts, spectrum_counts = (other * counts).T, spectrum * counts
    return StripeSums(
        len(power),
        float(length_of_ways.sum()),
        (spectrum * spectrum_counts).sum(),
        other @ other_counts,
        other @ spectrum_counts,
        own.square() @ counts,
        own @ other_counts,
        own @ spectrum_counts,
    )
