"""The files of trained weights: the weights themselves, and the card that says how they came."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vdeblur.networks import spec
from vdeblur.networks.base import Network
from vdeblur.networks.cost import operations
from vdeblur.training.options import Outcome
from vdeblur.training.recipes import Recipe
from vdeblur.training.run_log import read_metrics
from vdeblur.training.validation import ValidationScores
from vdeblur.weights import save_weights, write_card

#: Name of the trained weights in a run's folder.
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Provenance:
    """What a card says of a run besides its recipe and its outcome.

    Args:
        training: Description of the training data.
        validation: Description of the pictures that the scores are of.
        settings: More entries for the card's recipe: starting weights, teacher, seed, options of
            the blur.
        device: Description of device and precision.
    """

    training: str
    validation: str
    settings: Mapping[str, Any]
    device: str


def write_weights(out: Path, recipe: Recipe, network: Network) -> Path:
    """Write weights.safetensors into a run's folder; returns its path."""
    weights = out / WEIGHTS
    family = spec(recipe.network).family
    save_weights(weights, network.state_dict(), network=family, config=network.config)
    return weights


def write_card_of_run(
    weights: Path,
    recipe: Recipe,
    outcome: Outcome,
    provenance: Provenance,
    scores: ValidationScores | None,
    metrics: Path,
) -> None:
    """Write the card of `weights` beside them.

    Args:
        weights: The weights file.
        recipe: The recipe of the run.
        outcome: The result of the run.
        provenance: Data, settings and device.
        scores: The last scores; None if nothing was held out.
        metrics: The run's metrics.jsonl, from which the card's curve comes.
    """
    network, progress = outcome.network, outcome.progress
    rows = [row for row in read_metrics(metrics) if "gain_db" in row]
    card: dict[str, Any] = {
        "network": recipe.network,
        "config": dict(network.config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "operations_per_pixel": round(operations(network) / 256**2),
        "date": datetime.date.today().isoformat(),
        "data": {"training": provenance.training, "validation": provenance.validation},
        "recipe": recipe.as_dict() | dict(provenance.settings),
        "steps": progress.step,
        "megapixels": round(progress.megapixels, 1),
        "wall_seconds": round(progress.elapsed, 1),
        "finished": outcome.finished,
        "device": provenance.device,
        "torch": torch.__version__,
        "curve": {
            "columns": ["seconds", "step", "gain dB", "sharp kept dB"],
            "rows": [
                [r["seconds"], r["step"], round(r["gain_db"], 3), round(r["sharp_kept_db"], 1)]
                for r in rows
            ],
        },
    }
    if scores is not None:
        card["scores"] = {
            "validation_gain_db": round(scores.gain, 3),
            "validation_sharp_kept_db": round(scores.sharp_kept, 1),
            "dead_channels_share": round(scores.dead_share, 3),
        } | {f"synthetic_{name}": round(value, 3) for name, value in scores.more.items()}
    write_card(weights, card)
