"""Steps of making a `Deblurrer`: check, load, choose an output, move, hand to a runtime.

Knows networks and devices; no pictures, no files but weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.inference.devices import current_device
from vdeblur.inference.export import random_guided
from vdeblur.inference.guidance import KEPT_VALUES
from vdeblur.inference.memory_plan import COLOR_BYTES, NetworkCost
from vdeblur.inference.runtimes import TENSOR_RUNTIMES, torch_cpu, with_runtime
from vdeblur.inference.settings import DTYPES, InferenceSettings
from vdeblur.inference.tiling import MARGIN, MIN_TILE, margin_of
from vdeblur.networks import Network
from vdeblur.networks.base import traits_of
from vdeblur.system.thread_shares import SideBySide
from vdeblur.weights import Loaded, load

#: With more threads than this, several work on each picture, since memory is shared with others.
_MOST_AT_ONCE = 8

#: Multiples of the correction beyond which nothing of a picture would be left.
STRONGEST = 10


def check_options(precision: str, tile: int | Literal["auto"] | None, strength: float) -> None:
    """Raise UsageError for values that no network takes."""
    if not 0 <= strength <= STRONGEST:
        raise UsageError(
            f"strength is {strength:g}: choose a number from 0 (no change) over 1 (all of the "
            f"correction) to {STRONGEST}"
        )
    if isinstance(tile, int) and tile < MIN_TILE:
        raise UsageError(f"tile is {tile}: choose at least {MIN_TILE} pixels, auto or none")
    if precision != "auto" and precision not in DTYPES:
        raise UsageError(f"precision is {precision!r}: choose auto, {', '.join(DTYPES)}")


def loaded(network: nn.Module | str | None, weights: Path | str | None) -> Loaded:
    """Return the network and what is known of it; a module is taken as it is."""
    if isinstance(network, nn.Module):
        return Loaded(network, type(network).__name__, "")
    return load(network, weights)


def cost_of(
    network: nn.Module, device: torch.device, precision: str, halo: int | Literal["auto", "full"]
) -> NetworkCost:
    """Return what restoring takes, one picture at a time."""
    margin = margin_of(network, halo)
    traits = traits_of(network)
    return NetworkCost(
        bytes_per_pixel=traits.activations_per_pixel * DTYPES[precision].itemsize + COLOR_BYTES,
        kept_bytes_per_pixel=4 * KEPT_VALUES if traits.guided else 0,
        multiple=traits.size_multiple,
        margin=margin,
        least_margin=min(margin, MARGIN) if halo == "auto" else margin,
        device=str(device),
        on_cpu=device.type == "cpu",
    )


def threads_for(network: nn.Module, device: torch.device, runtime: str) -> SideBySide | None:
    """Return the threads for pictures side by side on a CPU; None if all are computed at once.

    Guidance is made picture by picture, and OpenVINO is fastest at that. In torch, the result of a
    picture would depend on the others: small ones together take other code paths.
    """
    apart = runtime == "openvino" or (runtime == "torch" and traits_of(network).guided)
    if device.type != "cpu" or not apart:
        return None
    return SideBySide(min(torch.get_num_threads(), _MOST_AT_ONCE))


def moved(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a network to a device for inference, its convolutions channels-last; not a copy.

    On a CPU it stays in fp32, since `torch_cpu.fuse` computes with the weights. On MPS nothing is
    channels-last: before torch 2.12 it reads parts of such tensors wrongly (pytorch#180984).
    """
    dtype = torch.float32 if device.type == "cpu" else dtype
    prepared: nn.Module = network.eval().to(device=device, dtype=dtype)
    for parameter in prepared.parameters() if device.type != "mps" else ():
        if parameter.ndim == 4:  # Module.to would ask it of five dimensions too, and fail
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return prepared


def layout_for(network: nn.Module, device: torch.device, runtime: str) -> torch.memory_format:
    """Return the memory format in which a network on a device takes its input fastest."""
    # Other runtimes take planes.
    own = runtime in TENSOR_RUNTIMES and device.type != "mps"
    return torch_cpu.layout_for(network) if own else torch.contiguous_format


def choose_output(network: nn.Module, name: str) -> None:
    """Let a network return one of its `stages`; UsageError if it has no such one."""
    if not isinstance(network, Network):
        raise UsageError(f"stage {name}: this network has one prediction only, leave it out")
    try:
        network.stage = name
    except ValueError as error:
        raise UsageError(
            f"stage is {name!r}: this network has {', '.join(network.stages)}"
        ) from error


def in_runtime(
    network: nn.Module,
    settings: InferenceSettings,
    device: torch.device,
    *,
    calibration: Sequence[Tensor],
    notes: list[str],
) -> tuple[nn.Module, InferenceSettings]:
    """Hand a network to its runtime; to torch if a runtime that nobody asked for cannot have it.

    Args:
        network: On the device.
        settings: How it is to be computed.
        device: Where.
        calibration: Pictures (N, 3, H, W) that ranges of int8 are measured on.
        notes: Gets a line if torch has to take the runtime's place.

    Returns:
        The network, and the settings that then hold.

    Raises:
        ModelError: The runtime cannot compute the network, and was asked for.
        DeviceError: The device cannot, and the runtime was asked for.
    """
    if settings.runtime == "torch":
        return network, settings
    if traits_of(network).guided:
        # Without motion, its channels would be 0 and their ranges nothing.
        calibration = [random_guided(pictures.float()) for pictures in calibration]
    try:
        with current_device(device):
            external = with_runtime(
                network,
                runtime=settings.runtime,
                device=device,
                precision=settings.precision,
                calibration=calibration,
                note=notes.append,
            )
    except (ModelError, DeviceError) as error:
        if not settings.replaceable:
            raise
        notes.append(f"going on with torch: {error}")
        return network, settings.in_torch(device)
    return external, settings
