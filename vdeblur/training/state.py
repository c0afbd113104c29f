"""The state file of a run, from which it resumes to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.networks.base import Network
from vdeblur.system.files import replacing
from vdeblur.training.recipes import Recipe, difference
from vdeblur.weights.torch_files import read_plain

_KINDS: dict[str, type] = {
    "model": dict,
    "averaged": dict,
    "optimiser": dict,
    "scaler": dict,
    "network": str,
    "config": dict,
    "recipe": dict,
    "random": Tensor,
    "seed": int,
    "used": float,
    "step": int,
    "updates": int,
    "images": int,
    "pixels": float,
}


@dataclass
class Totals:
    """Counts since the beginning of a run, over all its processes and resumptions.

    Args:
        used: Seconds of training.
        step: Batches seen.
        updates: Changes of the weights, those skipped included.
        images: Crops seen.
        pixels: Pixels seen.
    """

    used: float = 0.0
    step: int = 0
    updates: int = 0
    images: int = 0
    pixels: float = 0.0


@dataclass(frozen=True)
class StateFile:
    """Where a run keeps its state, and the seed that identifies the run.

    Args:
        path: Written at every report, under a temporary name first; resumed from if it exists.
        seed: Compared with the one in the file: another seed means other batches.
    """

    path: Path
    seed: int = 0

    def read(self, recipe: Recipe, network: Network) -> dict[str, Any] | None:
        """Return the content of the file, or None if there is no file.

        Raises:
            InputError: The file is damaged or holds something else.
            UsageError: The file belongs to another run: its recipe, network or seed differ. The
                run's length and the learning rate may.
        """
        if not self.path.exists():
            return None
        state = read_state(self.path)
        other = difference(state["recipe"], recipe.as_dict())
        if state["config"] != dict(network.config):
            other.append("config")
        if state["seed"] != self.seed:
            other.append("seed")
        if other:
            raise UsageError(
                f"{self.path} is the state of another run (its {', '.join(other)} differ): "
                "repeat that run's options to go on with it, or give another `out`"
            )
        return state

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace the file.

        Raises:
            OutputError: The file cannot be written; the old one stays.
        """
        try:
            with replacing(self.path) as temporary:
                torch.save(dict(content) | {"seed": self.seed}, temporary)
        except (OSError, RuntimeError) as error:  # torch raises the latter if the disk is full
            reason = getattr(error, "strerror", None) or "is the disk full?"
            raise OutputError(
                f"{self.path} cannot be written ({reason}): the run goes on from its last state "
                "when there is room"
            ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Return the content of a state file, its tensors on the CPU.

    Raises:
        InputError: The file is damaged or holds something else.
    """
    try:
        state: dict[str, Any] = read_plain(path)
        for name, kind in _KINDS.items():
            value = state[name]
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"{name} is something else")
        tensors = [*state["model"].values(), *state["averaged"].values()]
        if not all(isinstance(each, Tensor) for each in tensors):
            raise ValueError("a parameter is no tensor")
        torch.Generator().set_state(state["random"])
        return state
    # Damaged files raise errors of many types.
    except Exception as error:
        raise unusable(path) from error


def unusable(path: Path) -> InputError:
    """Return the error about a file that is no state."""
    return InputError(
        f"{path} is not a state of a training run that this version can go on with: "
        "move it away, or give another `out`"
    )
