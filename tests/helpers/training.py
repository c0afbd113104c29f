"""Tiny recipes, networks and batches for tests of training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.networks import build
from vdeblur.networks.base import Network
from vdeblur.training.options import Callbacks, Outcome, RunOptions
from vdeblur.training.recipes import Recipe
from vdeblur.training.schedules import Schedule
from vdeblur.training.state import StateFile
from vdeblur.training.trainer import Batches, train

TINY = Recipe(
    "tiny",
    "for tests",
    "mimo-unet",
    config={"base": 4, "blocks": 1},
    loss="l1",
    steps=8,
    batch=2,
    crop=32,
    learning_rate=3e-3,
    schedule=Schedule("constant"),
)


EVERY_STEP = RunOptions(report_steps=1)


GUIDED = {"widths": [4, 8, 8], "blocks": [1, 1, 1]}


FAMILY_SAMPLES: dict[str, dict[str, Any]] = {
    "mimo-unet-guided": GUIDED,
    "mimo-unet": {"base": 4, "blocks": 1},
    "mimo-unet-lite": {"base": 8, "blocks": 1, "unshuffle": 1},
    "mimo-unet-cfa": {"base": 8, "blocks": 1, "scales": 3},
    "pss-nsc": {"sharing": "both", "base": 4, "units": 1, "scales": 3},
    "mprnet": {"n_feat": 8, "scale_unetfeats": 4, "scale_orsnetfeats": 4, "num_cab": 1},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed))


def network_of(recipe: Recipe = TINY) -> Network:
    torch.manual_seed(0)
    network = build(recipe.network, recipe.config)
    network.start_as_identity()
    return network


def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Checks that are blurred: a batch depends on its number alone."""
    for number in itertools.count(first):
        coarse = image(2, 3, 8, 8, seed=number)
        sharp = F.interpolate(coarse, scale_factor=4.0, mode="nearest")
        blurred = F.avg_pool2d(F.pad(sharp, (2, 2, 2, 2), mode="replicate"), 5, 1)
        yield blurred.mul(255).round().byte(), sharp.mul(255).round().byte()


def same(count: int) -> Batches:
    one = next(batches(0))
    return lambda first: [one] * (count - first)


def losses_of(
    recipe: Recipe, feed: Batches = batches, **options: Any
) -> tuple[list[float], Outcome]:
    """The loss of every step, and what came out."""
    losses: list[float] = []
    network = options.pop("network", None) or network_of(recipe)
    run = options.pop("run", EVERY_STEP)
    seed, state_file = options.pop("seed", 0), options.pop("state_file", None)
    known = {name: options.pop(name) for name in ("on_share", "stop") if name in options}
    outcome = train(
        network,
        feed,
        recipe,
        run=run,
        state=StateFile(state_file, seed) if state_file else None,
        callbacks=Callbacks(on_report=lambda p, _: losses.append(p.loss), **known),
        **options,
    )
    return losses, outcome


def weights_of(network: nn.Module) -> list[Tensor]:
    return list(network.state_dict().values())
