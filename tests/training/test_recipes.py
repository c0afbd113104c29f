"""Schedules, and recipes as published and as set from text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.helpers.training import (
    TINY,
)
from vdeblur.errors import UsageError
from vdeblur.networks import spec
from vdeblur.training.losses import (
    parse_loss,
)
from vdeblur.training.recipes import RECIPES, Recipe, recipe_of, with_values
from vdeblur.training.schedules import Schedule


def test_schedules() -> None:
    step = Schedule("step", every=1 / 6, factor=0.5)
    assert [step.rate(1, n / 3000) for n in (0, 499, 500, 999, 1000, 2999)] == [
        1,
        1,
        0.5,
        0.5,
        0.25,
        1 / 32,
    ]
    cosine = Schedule(last=0.1, warmup=0.5)
    assert [cosine.rate(2, s) for s in (0, 0.25, 0.5, 1)] == pytest.approx([0.04, 1, 2, 0.2])
    assert cosine.rate(2, 0.75) == pytest.approx(1.1)
    assert Schedule("exponential", last=0.01).rate(1, 0.5) == pytest.approx(0.1)
    assert Schedule("power", power=0.3).rate(1, 0.5) == pytest.approx(0.5**0.3)
    assert Schedule().rate(1, 7) == Schedule("power").rate(1, 7) == 0  # beyond the end
    for wrong in (
        {"shape": "sine"},
        {"shape": "exponential"},
        {"warmup": 1.0},
        {"every": 0.0},
    ):
        with pytest.raises(UsageError):
            Schedule(**wrong)


def test_recipes_of_papers() -> None:
    gopro = recipe_of("mimo-unet-gopro")
    assert parse_loss(gopro.loss) == {"l1": 1, "msfr": 0.1}
    assert (gopro.batch, gopro.crop, gopro.optimiser) == (4, 256, "adam")
    steps = gopro.total_steps(2103)  # GoPro's training pairs
    assert steps == 3000 * 2103 // 4
    assert gopro.schedule.rate(1e-4, 500 / 3000) == pytest.approx(5e-5)
    mprnet = recipe_of("mprnet-gopro")
    assert mprnet.total_steps(2103) == pytest.approx(4e5, rel=0.02)
    assert mprnet.schedule.rate(mprnet.learning_rate, 1) == pytest.approx(1e-6)
    assert parse_loss(mprnet.loss) == {"charbonnier": 1, "edge": 0.05}
    assert recipe_of("pss-nsc-gopro").loss == "mse"
    with pytest.raises(UsageError, match="choose one of mimo-unet-guided"):
        recipe_of("nothing")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_a_network_and_goes_into_a_card(name: str) -> None:
    recipe = RECIPES[name]
    assert spec(recipe.network).trained
    assert json.loads(json.dumps(recipe.as_dict()))["loss"] == recipe.loss
    assert recipe.summary
    assert recipe.source


def test_values_of_a_recipe_from_text() -> None:
    changed = with_values(
        TINY,
        {
            "clip": "0",
            "betas": "0.8,0.99",
            "schedule.shape": "cosine",
            "schedule.warmup": "0.1",
            "patches": "0:16,0.5:32",
            "identity_start": "false",
            "updates": "0:2,0.5:1",
            "pool.reuse": "4",
            "pool.clean_first": "0.5",
            "errors.length": "0.3",
            "errors.bend": "0,1",
        },
    )
    assert changed.updates == ((0.0, 2), (0.5, 1))
    assert (changed.pool.reuse, changed.pool.clean_first) == (4, 0.5)
    assert (changed.errors.length, changed.errors.bend) == (0.3, (0, 1))
    assert changed.clip == 0
    assert changed.betas == (0.8, 0.99)
    assert (changed.schedule.shape, changed.schedule.warmup) == ("cosine", 0.1)
    assert changed.patches == ((0.0, 16), (0.5, 32))
    assert changed.identity_start is False
    assert with_values(TINY, {}) == TINY
    for key, text in (
        ("clip", "much"),
        ("config", "x"),
        ("schedule.form", "x"),
        ("betas", "1"),
        ("identity_start", "maybe"),
        ("patches", "0:64"),  # larger than the crop
        ("ema", "1"),
        ("updates", "0:3"),  # more than crops
        ("pool.reuse", "0"),
        ("errors.none_share", "1.5"),
        ("errors.size", "1"),
    ):
        with pytest.raises(UsageError):
            with_values(TINY, {key: text})


def test_the_length_of_a_run() -> None:
    assert TINY.total_steps(None) == 8
    assert replace(TINY, seconds=5).total_steps(None) is None
    assert replace(TINY, steps=0, epochs=3).total_steps(10) == 15
    with pytest.raises(UsageError, match="no end"):
        replace(TINY, steps=0, epochs=3).total_steps(None)
    with pytest.raises(UsageError, match="needs a length"):
        replace(TINY, steps=0).total_steps(10)


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.batch = 4  # type: ignore[misc]
    check: Callable[[], Recipe] = lambda: replace(TINY, batch=0)  # noqa: E731
    with pytest.raises(UsageError, match="batch 0"):
        check()
