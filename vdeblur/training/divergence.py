"""Detect training that runs away, and say what is left of it."""

from __future__ import annotations

import math

from vdeblur.errors import VdeblurError
from vdeblur.training.options import Outcome

#: Consecutive wild updates that end a run. By then fp16's loss scale has fallen by 2³⁰.
HOPELESS = 30
#: Consecutive wild updates after which the end of a run no longer saves its weights.
SUSPECT = 10
_WILD = 10.0  # times the lowest mean loss; a hundred times that, relative to the first update's
_MEAN_UPDATES = 32
_LEAST_LOSS = 1e-4  # below it, a loss ten times as high is still harmless


class Diverged(VdeblurError):
    """Training ran away.

    Attributes:
        outcome: The network at its last sound report; None if there never was one.
    """

    def __init__(self, message: str, outcome: Outcome | None) -> None:
        super().__init__(message)
        self.outcome = outcome


class Divergence:
    """Count consecutive wild updates: no finite gradient, or a loss far above its usual level.

    A single wild update is an unlucky picture; many in a row mean that the network is lost.

    Attributes:
        in_a_row: Wild updates since the last sound one.
        limit: The loss above which an update counts as wild.
    """

    def __init__(self) -> None:
        self.in_a_row, self.limit = 0, math.inf
        self._mean, self._updates = 0.0, 0

    def see(self, loss: float, *, finite: bool) -> None:
        """Take note of one update: its loss, and whether loss and gradient are finite."""
        if not finite or loss > self.limit:
            self.in_a_row += 1
            return
        self.in_a_row = 0
        self._updates += 1
        self._mean += (loss - self._mean) / min(self._updates, _MEAN_UPDATES)
        if self._updates == 1:
            self.limit = 100 * _WILD * max(loss, 10 * _LEAST_LOSS)
        if self._updates >= _MEAN_UPDATES:
            self.limit = min(self.limit, _WILD * max(self._mean, _LEAST_LOSS))

    def error(self, wild: int, step: int, outcome: Outcome | None, *, resumable: bool) -> Diverged:
        """Build the error that ends the run.

        Args:
            wild: Consecutive wild updates, the most of any process.
            step: The step at which the run ends.
            outcome: What the last report kept; None if nothing was sound.
            resumable: Whether a state file allows the run to continue.
        """
        above = f" or the loss above {self.limit:.3g}" if math.isfinite(self.limit) else ""
        what = (
            f"training ran away: the gradient is not finite{above} for {wild} steps, at step {step}"
        )
        if outcome is None:
            return Diverged(
                f"{what}; nothing was kept: start again with a lower `learning_rate`, "
                "or with `precision='fp32'`",
                None,
            )
        again = "the same command with " if resumable else ""
        return Diverged(
            f"{what}; what is kept is of step {outcome.progress.step}: go on from there with "
            f"{again}a lower `learning_rate`, or with `precision='fp32'`",
            outcome,
        )
