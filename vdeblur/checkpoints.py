"""Weights on disk: name or path → checked file → (config, tensors) → network. Knows no video.

Reads the project's own safetensors (network and config in their metadata) and the published PyTorch
checkpoints of the networks in the catalogue. Pickles are read weights-only.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.models import NetworkSpec, build, names, spec

SHIPPED = Path(__file__).parent / "weights"


def save_weights(
    path: Path,
    tensors: dict[str, Tensor],
    *,
    network: str,
    config: dict[str, Any],
    half: bool = True,
) -> None:
    """Write tensors as safetensors (fp16 unless `half` is False) with the network's name and
    config."""
    kept = {
        name: t.detach().cpu().to(torch.float16 if half else torch.float32).contiguous()
        for name, t in tensors.items()
    }
    save_file(kept, path, metadata={"network": network, "config": json.dumps(config)})
    path.chmod(0o644)  # safetensors makes it readable by its owner only


def write_card(weights: Path, facts: dict[str, Any]) -> Path:
    """Write the model card beside a weights file: `facts` and the file's sha256, as JSON."""
    card = weights.with_suffix(".json")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    text = json.dumps(facts | {"file": weights.name, "sha256": digest}, indent=2)
    card.write_text(text + "\n", encoding="utf-8")
    return card


def load_weights(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(network family, config, fp32 tensors) of a safetensors file written by `save_weights`.

    ModelError when the file is missing, damaged or says nothing of its network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"weights file {path} does not exist: check the path") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error})") from error
    try:
        return metadata["network"], dict(json.loads(metadata["config"])), tensors
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} does not say which network it is for: use a file written by vdeblur"
        ) from error


def load_published(path: Path) -> dict[str, Tensor]:
    """The fp32 tensors of a PyTorch checkpoint as authors publish them (.pkl, .pth, .pt).

    They may lie under "model" or "state_dict", and their names may begin with "module.".
    ModelError when the file is missing, damaged or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("model", content.get("state_dict", content))
        return {name.removeprefix("module."): t.float() for name, t in content.items()}
    except FileNotFoundError as error:
        raise ModelError(f"weights file {path} does not exist: check the path") from error
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        AttributeError,
        LookupError,  # torch's unpickler looks an unknown opcode up
        ValueError,
        TypeError,
    ) as error:
        raise ModelError(
            f"{path} is not a PyTorch checkpoint of plain tensors: "
            "use the published file as it was downloaded"
        ) from error


def shipped_weights(name: str) -> Path:
    """The weights that come with the package, their sha256 held to that of their model card.

    ModelError when there are none for this network, or the file is not the one the card describes.
    """
    path, card = SHIPPED / f"{name}.safetensors", SHIPPED / f"{name}.json"
    if not path.exists():
        ships = [other for other in names() if spec(other).ships]
        raise ModelError(
            f"no weights ship for {name!r}: pass --weights FILE, or choose {' or '.join(ships)}"
        )
    try:
        expected = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} has no readable model card beside it: reinstall vdeblur"
        ) from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise ModelError(f"{path} is not the file that its model card describes: reinstall vdeblur")
    return path


def load_network(name: str, weights: Path | str | None = None) -> nn.Module:
    """The network of the catalogue with its weights, on the CPU in fp32, for inference only.

    weights: a safetensors file of vdeblur or a published checkpoint; None for those that ship.
    ModelError when the name is unknown, or the weights are missing, damaged or another network's.
    """
    entry = spec(name)
    if not entry.trained:
        if weights is not None:
            raise ModelError(f"{name!r} has no weights to load: leave --weights {weights} out")
        return build(name).eval()
    path = shipped_weights(name) if weights is None else Path(weights)
    if path.suffix == ".safetensors":
        family, config, tensors = load_weights(path)
        if family != entry.family:
            raise ModelError(f"{path} holds weights of {family!r}: {name!r} needs {entry.family!r}")
        network = build(name, config)
    else:
        network, tensors = build(name), load_published(path)
    _fill(network, tensors, entry, path)
    return network.eval().requires_grad_(False)


def _fill(network: nn.Module, tensors: dict[str, Tensor], entry: NetworkSpec, path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    received = {name: tuple(t.shape) for name, t in tensors.items()}
    if odd := sorted(set(expected.items()) ^ set(received.items())):
        raise ModelError(
            f"the weights in {path} do not fit {entry.name!r} ({len(odd)} parameters differ, "
            f"{odd[0][0]} first): name the network they were made for"
        )
    network.load_state_dict(tensors)
