"""A teacher's outputs as second targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.training import (
    TINY,
    batches,
    image,
    losses_of,
    same,
)
from vdeblur.errors import UsageError
from vdeblur.training.distillation import distance_to_teacher


def test_a_teacher_is_approached() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.2

    recipe = replace(TINY, steps=40, teacher_weight=1.0, loss="0*l1", ema=0, learning_rate=1e-2)
    losses, outcome = losses_of(recipe, same(40), teacher=Bright())
    assert losses[0] == pytest.approx(0.2, abs=1e-3)
    blurred = next(batches(0))[0].float().div(255)
    with torch.no_grad():
        assert float((outcome.network(blurred) - blurred).mean()) > 0.12
    with pytest.raises(UsageError, match="`teacher=FILE`"):
        losses_of(recipe)


def test_teacher_and_student_of_different_scales() -> None:
    full, half = image(1, 3, 8, 8), image(1, 3, 4, 4)
    student = [half + 0.1, full + 0.1]
    total = distance_to_teacher(student, [full * 0, half, full], [0.5, 1.0])
    assert float(total) == pytest.approx(0.15, abs=1e-5)
    # A teacher of one output teaches the last one.
    assert float(distance_to_teacher(student, [full], [0.5, 1.0])) == pytest.approx(0.1, abs=1e-5)
