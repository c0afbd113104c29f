"""Weights: files found, checked, read into networks, and written. Knows no pictures and no video.

    from vdeblur import weights

    loaded = weights.load("mimo-unet")                     # a `Loaded`: network, name, notes
    network = weights.load_network(weights="mine.pth")     # the network alone, recognised
    weights.save_weights(path, network.state_dict(), network="mimo-unet", config=network.config)

The modules:

    loading        a name or a file → a network with its weights
    recognition    the network that tensors are of, by their names and shapes
    tensor_files   checkpoints of every kind → named tensors; nothing in them runs
    saving         safetensors with the network's configuration, and model cards
    packaged       the weights that ship, each held to its model card
    store          the user's own weights, under names
    download       a file from an address, resumed and checked

Names are loaded on first use: the user's own weights can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.weights.loading import Loaded, load, load_network
    from vdeblur.weights.saving import save_weights, write_card

__all__ = ["Loaded", "load", "load_network", "save_weights", "write_card"]

_HOMES = {
    "loading": (
        "Loaded",
        "load",
        "load_network",
    ),
    "saving": (
        "save_weights",
        "write_card",
    ),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
