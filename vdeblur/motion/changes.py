"""Measure the length of a blur by how spectra change from one picture to the next.

A place looks the same in both pictures except for its blur: where it moves faster in the second,
waves along its motion are weaker there. The ratio of both spectra is that of two sincs: stripes,
soft edges and directions of the scene itself cancel out, and so does what a lens or a coder softens
alike. Where the motions to the next picture are known, the share of them that the shutter was open
for is the one unknown of all windows, as in `vdeblur.motion.stripes`. The method needs a motion
that varies, as that of a hand does. It shows blurs that are too short for stripes, and blurs that
compression left little of. Knows tensors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vdeblur.motion.spectra import peak, periods_along, power_left, power_of, signal_of, waves
from vdeblur.motion.stripes import DEPTH, FEW

#: Shares of the motion that are tried, in steps of their logarithm; those beyond `_LONGEST` only
#: for comparison.
_STEP = 0.15
SHARES = torch.exp(torch.arange(math.log(0.1), math.log(1.6), _STEP))
_LONGEST = 1.35
#: Index of the share that shows how surely there is a blur, and how visible it would be.
_USUAL = int((SHARES - 0.5).abs().argmin())
#: Power below which a wave may be lost for any reason, mostly compression; and the same as a
#: multiple of the noise.
_LOST, _DROWNED = 1e-3, 4.0
#: Windows overlap: this many are worth one independent window.
_OVERLAP = 3.0
#: A blur shorter than the first only weakens waves, by the square of its length; one longer than
#: the second removes waves of its own length.
_SHORT_PIXELS, _LONG_PIXELS = 2.5, 4.0
#: Power of changes that a window is assumed to have by chance, even if none is seen.
_LEAST_POWER = 0.02
#: A share that explains this much of what the best one does fits as well.
_ALIKE = 0.93


@dataclass(frozen=True)
class ChangeSums:
    """Sums over windows for a least-squares fit; sums of more windows can be added with `+`.

    Attributes:
        windows: number of windows.
        turning: number of windows from pictures that turn fast.
        squared_motion: sum of squared motions in pixels², mean of both pictures.
        power: sum of squared changes of the spectra.
        product: (T,), products of these changes with those by a blur of each of the SHARES.
        own: (T,), squares of the latter.
        product_squared: (T,), squares of each window's `product`.
        own_squared: (T,), squares of each window's `own`.
        both: (T,), each window's `product` times its `own`.
    """

    windows: int
    turning: float
    squared_motion: float
    power: Tensor
    product: Tensor
    own: Tensor
    product_squared: Tensor
    own_squared: Tensor
    both: Tensor

    def __add__(self, more: ChangeSums) -> ChangeSums:
        names = (field.name for field in fields(self))
        return ChangeSums(*(getattr(self, name) + getattr(more, name) for name in names))

    def fit(self) -> ChangeFit:
        """Return the share that explains most."""
        own, product = self.own.clamp_min(1e-12), self.product
        power = float(self.power) + _LEAST_POWER * self.windows + 1e-9
        explained = product * product.abs() / own / power
        strength = product / own
        scatter = self.product_squared - 2 * strength * self.both + strength**2 * self.own_squared
        error = (_OVERLAP * scatter.clamp_min(0)).sqrt() / own
        best = int(explained[SHARES <= _LONGEST].argmax())
        share = peak(SHARES, explained, best, _STEP)
        # Blurs of a pixel or two explain the same whatever their length; of these, the one whose
        # strength is nearest to 1 is right.
        alike = (SHARES <= _LONGEST) & (explained >= _ALIKE * explained[best]) & (strength > 0)
        if alike.any():
            seen = torch.where(alike, strength.clamp_min(1e-9).log().abs(), torch.inf)
            meant = int(seen.argmin())
            if abs(meant - best) > 1:
                best, share = meant, float(SHARES[meant])
        way = math.sqrt(self.squared_motion / max(self.windows, 1))
        pixels = share * way
        short = (_LONG_PIXELS - pixels) / (_LONG_PIXELS - _SHORT_PIXELS)
        short = min(1.0, max(0.0, short))
        # A lower bound for short blurs, since too short a motion does no damage.
        least = min(1.5, max(0.0, float(strength[best] - error[best])))
        share *= short * math.sqrt(least) + 1 - short
        return ChangeFit(
            share,
            share * way,
            float(explained[best]),
            float(strength[best]),
            short,
            float(strength[_USUAL] - 2 * error[_USUAL]),
            float(0.25 * own[_USUAL] / power),
            self.turning / max(self.windows, 1),
        )


@dataclass(frozen=True)
class ChangeFit:
    """The length of a blur by how it changes.

    Attributes:
        share: length as a share of the motion to the next picture.
        pixels: length in pixels, root mean square.
        explained: share of the changes of the spectra that the blur explains.
        strength: measured change over that of such a blur: 1 for a true one, less after
            compression.
        short: 0 to 1, how far the blur only weakens waves, as short ones do.
        at_least: lower bound of the strength of a blur of half the motion.
        telling: what a blur of half the motion would explain at half its strength.
        turning: share of the windows that are from pictures which turn fast.
    """

    share: float
    pixels: float
    explained: float
    strength: float
    short: float
    at_least: float
    telling: float
    turning: float


def measure_changes(
    before: Tensor,
    after: Tensor,
    ways_before: Tensor,
    ways_after: Tensor,
    *,
    turning: float = 0.0,
) -> ChangeSums:
    """Return the sums for pairs of windows with the same places of two pictures.

    Args:
        before: (N, WINDOW, WINDOW), luma in [0, 1], of the first picture.
        after: the same of the second.
        ways_before: (N, 2), motions of the first from picture to picture, x and y in pixels.
        ways_after: the same of the second.
        turning: 0 to 1, share of both pictures that turn too fast for reliable motions.
    """
    _, _, rings = waves()
    (old, old_noise), (new, new_noise) = power_of(before), power_of(after)
    noise = torch.maximum(old_noise, new_noise)
    signal = torch.minimum(signal_of(old, old_noise), signal_of(new, new_noise))
    weaker = torch.minimum(old, new)
    counts = signal / (signal + noise) * weaker / (weaker + _DROWNED * noise + _LOST)
    counts = counts / counts.sum(1, keepdim=True).clamp_min(FEW)  # all windows count the same
    ring_counts = (counts @ rings).clamp_min(1e-9)

    def level(values: Tensor) -> Tensor:
        """Subtract the mean of the waves of the same length, since focus has no direction."""
        means: Tensor = (values * counts) @ rings / ring_counts
        return values - means @ rings.T

    seen = level(torch.log((new + noise) / (old + noise)))
    # A blur does not make a wave weaker than the noise.
    depth = (DEPTH + noise / signal).clamp_max(100)
    of_new, of_old = (
        power_left(periods_along(ways), SHARES) + depth for ways in (ways_after, ways_before)
    )
    own = level(torch.log(of_new / of_old))
    own_counts = own * counts
    product, squares = (own_counts * seen).sum(2), (own_counts * own).sum(2)
    return ChangeSums(
        len(before),
        len(before) * turning,
        float(ways_before.square().sum() + ways_after.square().sum()) / 2,
        (counts * seen.square()).sum(),
        product.sum(1),
        squares.sum(1),
        product.square().sum(1),
        squares.square().sum(1),
        (product * squares).sum(1),
    )
