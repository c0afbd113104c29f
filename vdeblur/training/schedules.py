"""Learning rates as functions of the share of a run that is done: 0 at its start, 1 at its end.

A schedule does not know whether a run's length is counted in seconds, steps or epochs. So a budget
of wall time can end with a rate of zero, and a paper's recipe can run shorter. Knows numbers only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vdeblur.errors import UsageError

SHAPES = ("cosine", "step", "exponential", "power", "constant")


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls.

    Args:
        shape: "cosine", to the last rate; "step", multiplied by `factor` after every share `every`;
            "exponential", by the same factor at every moment, to the last rate; "power", last +
            (first − last)·(1 − share)^power, which SRN and PSS-NSC call exponential decay; or
            "constant".
        last: The rate at the end, as a share of the first.
        every: Share of the run between steps.
        factor: Factor of a step.
        power: Exponent of the power.
        warmup: Share of the run in which the rate first rises linearly.

    Raises:
        UsageError: The shape is unknown, or a share is out of its range.
    """

    shape: str = "cosine"
    last: float = 0.0
    every: float = 1 / 6
    factor: float = 0.5
    power: float = 0.3
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise UsageError(f"schedule {self.shape!r} is none of {', '.join(SHAPES)}")
        if self.shape == "exponential" and self.last <= 0:
            raise UsageError("an exponential schedule never reaches 0: give `last` above 0")
        if not 0 <= self.warmup < 1 or not 0 < self.every <= 1:
            raise UsageError("a schedule's warm-up and step are shares of the run, from 0 to 1")

    def rate(self, first: float, share: float) -> float:
        """Return the rate when `share` of the run is done; `first` is the one after the warm-up."""
        if share < self.warmup:
            return first * max(share / self.warmup, 0.02)  # the first step moves, too
        rest = min(max((share - self.warmup) / (1 - self.warmup), 0.0), 1.0)
        if self.shape == "cosine":
            level = self.last + (1 - self.last) * 0.5 * (1 + math.cos(math.pi * rest))
        elif self.shape == "step":
            # 1/6 is not exact: without the small addition, step 500 of 3000 belongs to either.
            level = self.factor ** math.floor(rest / self.every + 1e-9)
        elif self.shape == "exponential":
            level = self.last**rest
        elif self.shape == "power":
            level = self.last + (1 - self.last) * (1 - rest) ** self.power
        else:
            level = 1.0
        return first * level
