"""How long a blur is, told by how it changes from one picture to the next.

What a place shows is the same in both pictures, but for its blur: where it moved faster in the
second, waves along its motion are weaker there. So the ratio of both spectra is that of two sincs,
and what the scene itself has of stripes, soft edges or directions cancels out of it; so does what a
lens or a coder softens alike. Where the ways to the next picture are known, the share of them that
the shutter was open for is the one unknown of all windows, as of `vdeblur.motion.stripes`. It takes
a motion that varies, as a hand's does, and shows blurs that are too short for stripes, and those
that a coder left little of. Knows tensors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vdeblur.motion.spectra import along, peak, power_left, power_of, signal_of, waves
from vdeblur.motion.stripes import DEPTH, FEW

#: Shares of the way that are tried, by the step of their logarithm; those beyond `_LONGEST` only to
#: compare.
_STEP = 0.15
SHARES = torch.exp(torch.arange(math.log(0.1), math.log(1.6), _STEP))
_LONGEST = 1.35
#: Which of them is asked how surely there is a blur, and what would be seen of it.
_USUAL = int((SHARES - 0.5).abs().argmin())
#: Power below which a wave may have gone for whatever reason, a coder's first of all; and how many
#: times the noise.
_LOST, _DROWNED = 1e-3, 4.0
#: Windows lie over each other: so many tell about what one does.
_OVERLAP = 3.0
#: A blur of fewer pixels only weakens waves, by the square of its length; one of more, those of its
#: own length.
_SHORT_PIXELS, _LONG_PIXELS = 2.5, 4.0
#: Squares of changes that a window may have of whatever comes, though none be seen.
_LEAST_POWER = 0.02
#: What explains so much of what the best share does explains it as well.
_ALIKE = 0.93


@dataclass(frozen=True)
class ChangeSums:
    """Sums over windows, of which more may be added (`+`).

    windows: how many; turning: how many of pictures that turn fast. ways: their squares, pixels²,
    the mean of both pictures'. power: squares of what their spectra changed by. Of each of the
    SHARES, (T,): product, of that with what blurs of this share change by; own, squares of the
    latter; and, windows squared first, both of them and their product.
    """

    windows: int
    turning: float
    ways: float
    power: Tensor
    product: Tensor
    own: Tensor
    product_squared: Tensor
    own_squared: Tensor
    both: Tensor

    def __add__(self, more: ChangeSums) -> ChangeSums:
        names = (field.name for field in fields(self))
        return ChangeSums(*(getattr(self, name) + getattr(more, name) for name in names))

    def found(self) -> ChangeFit:
        """The share that explains most, by least squares."""
        own, product = self.own.clamp_min(1e-12), self.product
        power = float(self.power) + _LEAST_POWER * self.windows + 1e-9
        explained = product * product.abs() / own / power
        strength = product / own
        scatter = self.product_squared - 2 * strength * self.both + strength**2 * self.own_squared
        error = (_OVERLAP * scatter.clamp_min(0)).sqrt() / own
        best = int(explained[SHARES <= _LONGEST].argmax())
        share = peak(SHARES, explained, best, _STEP)
        # Blurs of a pixel or two explain alike, whatever their length: then the one is meant that
        # is seen as it should be.
        alike = (SHARES <= _LONGEST) & (explained >= _ALIKE * explained[best]) & (strength > 0)
        if alike.any():
            seen = torch.where(alike, strength.clamp_min(1e-9).log().abs(), torch.inf)
            meant = int(seen.argmin())
            if abs(meant - best) > 1:
                best, share = meant, float(SHARES[meant])
        way = math.sqrt(self.ways / max(self.windows, 1))
        pixels = share * way
        short = (_LONG_PIXELS - pixels) / (_LONG_PIXELS - _SHORT_PIXELS)
        short = min(1.0, max(0.0, short))
        # A short blur is at least as long as this: too short a motion does no damage.
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
    """share: of the way; pixels: how long the blur is (root mean square); explained: share of what
    the spectra changed by; strength: how much of what such a blur changes is seen, of a true one 1,
    but that a coder takes some of it. short: how far it is so short that it only weakens waves,
    0 … 1; at_least: then, the least that a blur of half of the way is seen by, 1 of a true one.
    telling: what that would explain were half of it seen. turning: the share of windows that are of
    pictures which turn fast.
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
    """What windows (N, WINDOW, WINDOW) of luma in [0, 1] show that have the same places of two
    pictures in them; whose ways to the next picture are (N, 2), x and y in pixels. turning: how
    many of both turn too fast for their ways to be sure, 0 … 1.
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
        """What each wave changes by beyond the others of its length: focus has no direction."""
        means: Tensor = (values * counts) @ rings / ring_counts
        return values - means @ rings.T

    seen = level(torch.log((new + noise) / (old + noise)))
    # No blur makes a wave weaker than the noise.
    depth = (DEPTH + noise / signal).clamp_max(100)
    of_new, of_old = (power_left(along(ways), SHARES) + depth for ways in (ways_after, ways_before))
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
