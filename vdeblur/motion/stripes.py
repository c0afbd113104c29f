"""How long a blur is, told by the dark stripes in the spectra of many windows together.

A straight blur of constant speed multiplies the spectrum of a picture with a sinc of the frequency
along the motion, in lengths of the blur. Where the way to the next picture is known, and only the
share of it that the shutter was open for is not, all windows have that one unknown: their stripes
lie at the same places once frequencies are measured in ways. What one window shows hardly is plain
in the sum of a hundred, whatever their directions and lengths. Knows tensors only.

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
    along,
    peak,
    power_left,
    power_of,
    signal_of,
    waves,
)

#: Shares of the way that are tried, by the step of their logarithm; those beyond `_LONGEST` only to
#: compare.
_STEP = 0.075
SHARES = torch.exp(torch.arange(math.log(0.1), math.log(2.2), _STEP))
_LONGEST = 1.35
#: Waves a pixel along the motion, from which on a window tells them from none.
_ALONG = 2 / WINDOW
#: Depth of the stripes, which a window's edges fill; and waves of a window below which it counts
#: less.
DEPTH, FEW = 0.02, 100
#: Noise of a film that was coded: quantised, it is none where a picture has little, and much
#: beside, which the shortest waves do not show. What is explained so counts where little is
#: without, and if both shares differ by no more than this in their logarithm: what is out of focus
#: is no blur of one share.
_CODED, _LITTLE, _ALIKE = 0.01, 0.05, 0.15
#: How far a stripe is looked for beside its place: it is distinct if blurs so many times as long
#: and as short explain less.
_BESIDE = 1.6


@dataclass(frozen=True)
class StripeSums:
    """Sums over windows, of which more may be added (`+`): products of their spectra, of what is
    no stripe (K of them), and of the stripes of each of the SHARES (T). ways: pixels, all windows'.
    """

    windows: int
    ways: float
    power: Tensor  # ()
    other: Tensor  # (K, K)
    other_power: Tensor  # (K,)
    own: Tensor  # (T,)
    own_other: Tensor  # (T, K)
    own_power: Tensor  # (T,)
    coded: StripeSums | None = None  # the same windows, as those of a film that was coded

    def __add__(self, more: StripeSums) -> StripeSums:
        return StripeSums(
            self.windows + more.windows,
            self.ways + more.ways,
            self.power + more.power,
            self.other + more.other,
            self.other_power + more.other_power,
            self.own + more.own,
            self.own_other + more.own_other,
            self.own_power + more.own_power,
            self.coded + more.coded if self.coded and more.coded else None,
        )

    def found(self) -> StripeFit:
        """The share that explains most, by least squares; if it explains little, as of a film that
        was coded.
        """
        found = self._found()
        if self.coded is None or found.explained > _LITTLE:
            return found
        coded = self.coded._found()
        alike = abs(math.log(coded.share / found.share)) < _ALIKE
        if not alike or coded.explained <= found.explained:
            return found
        # What noise levels out of the stripes makes them narrower: the share is the other's.
        return replace(found, explained=coded.explained, distinct=coded.distinct, coded=True)

    def _found(self) -> StripeFit:
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
        pixels = share * self.ways / max(self.windows, 1)
        distinct = (highest - around) / max(highest, 1e-6)
        return StripeFit(share, pixels, highest, distinct, self.windows)


@dataclass(frozen=True)
class StripeFit:
    """share: of the way; pixels: how long the blur is on the mean; explained: share of what the
    spectra differ by from direction to direction, beyond what is no stripe; distinct: share of that
    which no other length explains, 1 at most; windows: how many told; coded: explained as of a film
    that was coded.
    """

    share: float
    pixels: float
    explained: float
    distinct: float
    windows: int
    coded: bool = False


def measure_stripes(windows: Tensor, ways: Tensor) -> StripeSums:
    """What windows (N, WINDOW, WINDOW) of luma in [0, 1] show whose way to the next picture is
    `ways` (N, 2), x and y in pixels.
    """
    power, noise = power_of(windows)
    passed = along(ways)
    left = power_left(passed, SHARES)
    plain, coded = (_seen(power, n, ways, passed, left) for n in (noise, noise + _CODED))
    return replace(plain, coded=coded)


def _seen(power: Tensor, noise: Tensor, ways: Tensor, passed: Tensor, left: Tensor) -> StripeSums:
    """What spectra (N, B) of such noise (N, 1) show.

    passed: (N, B), waves in the way; left: (T, N, B), what blurs of the SHARES leave of their
    power.
    """
    down, across, rings = waves()
    signal = signal_of(power, noise)
    length = torch.hypot(across, down)
    length_of_ways = ways.norm(dim=1, keepdim=True)
    # Lines along the motion are in the others, and no blur changes them.
    seen = (passed > _ALONG * length_of_ways).float()
    counts = seen * signal / (signal + noise)
    counts = counts / counts.sum(1, keepdim=True).clamp_min(FEW)  # all windows count the same
    ring_counts = (seen @ rings).clamp_min(1)

    def level(values: Tensor) -> Tensor:
        """What each wave differs by from the others of its length; in place."""
        means: Tensor = (values * seen) @ rings / ring_counts
        return values.sub_(means @ rings.T)

    spectrum = level(torch.log(power + FLOOR))
    # Pictures have edges of some directions more than of others: that is smooth.
    turned = (passed / length_of_ways / length).square()
    other = torch.stack([turned, turned.square(), turned * length * 4])
    other = level(other).flatten(1)
    # A stripe is no darker than the noise.
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
