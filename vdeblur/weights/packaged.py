"""The weights that ship with the package, each with a model card that states its sha256."""

from __future__ import annotations

import json
from pathlib import Path

from vdeblur.errors import ModelError
from vdeblur.networks import names, spec
from vdeblur.system.files import sha256_of

SHIPPED = Path(__file__).parent / "shipped"


def shipped_weights(name: str) -> Path:
    """Return the weights file that ships for a network, checked against its model card.

    Raises:
        ModelError: none ship for this network, or the file is not the one that its card describes.
    """
    path = SHIPPED / f"{name}.safetensors"
    if not path.exists():
        ships = [other for other in names() if spec(other).ships]
        raise ModelError(
            f"no weights ship for {name!r}: pass `weights=FILE`, or choose {' or '.join(ships)}"
        )
    return checked_weights(path)


def checked_weights(path: Path) -> Path:
    """Return `path` after checking its sha256 against the model card beside it.

    Raises:
        ModelError: the card or the file cannot be read, or they do not belong together.
    """
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{path} has no readable model card beside it: reinstall vdeblur"
        ) from error
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): reinstall vdeblur") from error
    if digest != expected:
        raise ModelError(f"{path} is not the file that its model card describes: reinstall vdeblur")
    return path
