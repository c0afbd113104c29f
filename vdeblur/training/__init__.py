"""Training of networks: a recipe and pairs of pictures in, weights with a model card out.

    from vdeblur.training import RunSettings, recipe_of, run_recipe

    outcome = run_recipe(recipe_of("mimo-unet-guided"), RunSettings("synth:photos", Path("run")))

`run_recipe` opens the data, builds the network, trains, scores and writes into a folder; `train`
is the loop alone, for a network and batches of your own.

The modules:

    run             a whole run: data, network, training, scores, weights with their card
    trainer         the training loop
    options         what a caller passes to a run, and what it returns
    recipes         how networks are trained, as data
    losses          losses over the outputs of a network
    schedules       learning rates over a run
    distillation    outputs of a large network as second targets
    pruning         cuts channels inside residual blocks
    dead_channels   counts, avoids and revives dead channels
    divergence      detects training that runs away
    validation      held-out pairs, scored during training
    state           the state file from which a run resumes
    processes       the processes of a run under torchrun
    model_card      weights files and their cards
    run_log         `metrics.jsonl` and TensorBoard

Knows no command line and no video. Names are loaded on first use. Needs the `train` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.training.dead_channels import start_well
    from vdeblur.training.divergence import Diverged
    from vdeblur.training.options import Callbacks, Outcome, Progress, RunOptions
    from vdeblur.training.pruning import prune
    from vdeblur.training.recipes import RECIPES, Recipe, recipe_of, with_values
    from vdeblur.training.run import RunSettings, run_recipe
    from vdeblur.training.schedules import Schedule
    from vdeblur.training.state import StateFile
    from vdeblur.training.trainer import train
    from vdeblur.training.validation import Validation, ValidationScores, validation_of

_HOMES = {
    "dead_channels": ("start_well",),
    "divergence": ("Diverged",),
    "options": ("Callbacks", "Outcome", "Progress", "RunOptions"),
    "pruning": ("prune",),
    "recipes": ("RECIPES", "Recipe", "recipe_of", "with_values"),
    "run": ("RunSettings", "run_recipe"),
    "schedules": ("Schedule",),
    "state": ("StateFile",),
    "trainer": ("train",),
    "validation": ("Validation", "ValidationScores", "validation_of"),
}

__all__ = [
    "RECIPES",
    "Callbacks",
    "Diverged",
    "Outcome",
    "Progress",
    "Recipe",
    "RunOptions",
    "RunSettings",
    "Schedule",
    "StateFile",
    "Validation",
    "ValidationScores",
    "prune",
    "recipe_of",
    "run_recipe",
    "start_well",
    "train",
    "validation_of",
    "with_values",
]

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
