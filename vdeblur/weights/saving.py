"""Write weights files and their model cards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from vdeblur.errors import OutputError
from vdeblur.system.files import replacing, sha256_of


def save_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    network: str,
    config: Mapping[str, Any],
    half: bool = True,
) -> None:
    """Write a network's tensors as a safetensors file that `load` recognises.

    Args:
        path: the file to write; it appears complete or not at all.
        tensors: parameters and buffers by name, as of `state_dict()`.
        network: the family's name in `vdeblur.networks.FAMILIES`, kept in the file's metadata.
        config: the keyword arguments that the network was built with, kept as JSON.
        half: write float16 instead of float32.

    Raises:
        OutputError: the file cannot be written.
    """
    # Copies, since safetensors refuses tensors that share memory, as one layer used twice does.
    kept = {
        name: t.detach().cpu().to(torch.float16 if half else torch.float32).clone().contiguous()
        for name, t in tensors.items()
    }
    metadata = {"network": network, "config": json.dumps(dict(config))}
    try:
        with replacing(path) as temporary:
            # Not by `save_file`, which makes a temporary file of its own.
            temporary.write_bytes(save(kept, metadata))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}): choose another place"
        ) from error


def write_card(weights: Path, facts: dict[str, Any]) -> Path:
    """Write the model card beside a weights file: `facts`, the file's name and its sha256, as JSON.

    Returns:
        The card: the same name with the suffix `.json`.
    """
    card = weights.with_suffix(".json")
    content = facts | {"file": weights.name, "sha256": sha256_of(weights)}
    with replacing(card) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return card
