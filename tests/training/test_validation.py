"""Scores of held-out pairs, by hand and by length."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdeblur.datasets.batches import LENGTHS
from vdeblur.datasets.pool import Batch
from vdeblur.training.validation import (
    Validation,
    ValidationByLength,
    WatchedValidation,
)


def test_validation_by_length_tells_what_it_was_told() -> None:
    """A network that adds a level for each pixel of motion that it is given."""

    class Adder(torch.nn.Module):
        size_multiple, guided = 8, True

        def __init__(self) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(1 / 255))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            length = x[:, 3:4] * 16 if x.shape[1] > 3 else torch.zeros_like(x[:, :1])
            return x[:, :3] + self.by * length

        def forward_scales(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self(x),)

    sharp = torch.full((10, 3, 16, 16), 100, dtype=torch.uint8)
    off = torch.tensor(LENGTHS).repeat_interleave(2)  # what a motion of that length makes good
    blurred = (sharp - off[:, None, None, None]).byte()
    motion = torch.zeros(10, 4, 4, 4)
    motion[:, 0] = off[:, None, None].float()
    known = ValidationByLength(Batch(blurred, sharp, motion))
    scores, shown = known.score(Adder())  # type: ignore[arg-type]
    for length in LENGTHS:
        before = 20 * np.log10(255 / length)
        assert scores.more[f"exact_{length}_db"] == pytest.approx(99 - before)
        assert scores.more[f"none_{length}_db"] == 0
        assert 0 < scores.more[f"measured_{length}_db"] <= 99 - before
    assert scores.more["measured_db"] == scores.gain < scores.more["exact_db"]
    assert scores.sharp_kept == 99
    assert scores.more["sharp_false_db"] == pytest.approx(
        10 * np.log10(255**2) - (20 * np.log10([8, 32])).mean()
    )
    assert shown.shape == (3, 16, 48)
    # Beside other pairs, whose gain counts.
    both, _ = WatchedValidation(Validation(blurred[:1], sharp[:1]), known).score(Adder())  # type: ignore[arg-type]
    assert both.gain == 0
    assert both.more == scores.more


def test_validation_by_hand() -> None:
    class Brighter(torch.nn.Module):
        size_multiple = 8

        def __init__(self) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(9 / 255))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] % 8 == 0
            return x + self.by

        def forward_scales(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self(x),)

    blurred, sharp = (torch.full((3, 10, 12), value, dtype=torch.uint8) for value in (100, 110))
    scores, shown = Validation([blurred], [sharp]).score(Brighter())  # type: ignore[arg-type]
    assert scores.gain == pytest.approx(20)
    assert scores.dead_share == 0
    assert scores.sharp_kept == pytest.approx(20 * np.log10(255 / 9))
    assert shown.shape == (3, 10, 36)
