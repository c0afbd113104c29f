"""From what is asked for to runtime, precision and dtype; the fastest settings, as measured.

`vdeblur bench --tune` measures them and keeps them in the user's cache, under all that they depend
on: device, threads, network, weights, picture size, versions. Knows no video and no files but the
cache's.
"""

from __future__ import annotations

import json
import logging
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from vdeblur.errors import UsageError
from vdeblur.inference import runtimes
from vdeblur.inference.devices import device_name, has_streams
from vdeblur.inference.runtimes import Runtime, RuntimeRequest
from vdeblur.inference.tiling import MIN_TILE
from vdeblur.networks.base import traits_of
from vdeblur.system import cache
from vdeblur.system.folders import cache_folder

_log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: A precision, or "auto" for the fastest that keeps the picture.
PrecisionRequest = Literal["auto", "fp32", "fp16", "bf16", "int8"]
#: Of torch's tensors: 8 bits are inside OpenVINO.
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
}
Size = tuple[int, int]  # height, width
_KIND = "tuned"
_LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Setting:
    """How pictures of one size are restored fastest; tile None: whole."""

    backend: str
    precision: str
    batch: int
    tile: int | None
    frames_per_second: float

    def __str__(self) -> str:
        tile = "whole" if self.tile is None else f"tiles of {self.tile}"
        return f"{self.backend} {self.precision}, batch {self.batch}, {tile}"


@dataclass(frozen=True)
class InferenceSettings:
    """How a network is computed on a device.

    Attributes:
        runtime: The runtime.
        precision: The precision.
        dtype: Of the network's input in torch: fp32 for runtimes that round inside.
        tuned: Measured settings that agree with both, by height and width.
        precision_asked: Whether the caller or the environment named the precision.
        precision_measured: Whether a measurement named it.
        replaceable: Whether torch may take the runtime's place if that cannot compute the network.
    """

    runtime: Runtime
    precision: Precision
    dtype: torch.dtype
    tuned: dict[Size, Setting] = field(default_factory=dict)
    precision_asked: bool = True
    precision_measured: bool = False
    replaceable: bool = False

    def in_torch(self, device: torch.device) -> InferenceSettings:
        """The same without another runtime; on a CPU, a precision chosen for that is fp32 again."""
        chosen = not (self.precision_asked or self.precision_measured)
        precision = "fp32" if chosen and device.type == "cpu" else self.precision
        return replace(
            self, runtime="torch", precision=precision, dtype=DTYPES[precision], tuned={}
        )


def resolve(
    network: nn.Module,
    device: torch.device,
    *,
    precision: PrecisionRequest = "auto",
    runtime: RuntimeRequest = "auto",
) -> InferenceSettings:
    """Decide how a network is computed on a device. Reads the environment and the cache only.

    "auto" is what `vdeblur bench --tune` measured as fastest for this network here, else:
    precision fp16 on CUDA and XPU where the network supports it, bf16 on a CPU where
    `prefers_bf16` says so, else fp32, or what the environment's VDEBLUR_PRECISION says; the runtime
    that `choose_runtime` names.

    Args:
        network: As loaded: fp32, not moved.
        device: Where it is to be computed.
        precision: What is asked for.
        runtime: What is asked for.

    Raises:
        UsageError: What is asked for does not fit the device, or the environment names something
            unknown.
        DeviceError: It needs a GPU, and there is none.
    """
    wanted = precision
    if precision == "auto":
        wanted = cast("PrecisionRequest", os.environ.get(runtimes.PRECISION_VARIABLE, "auto"))
        if wanted != "auto" and wanted not in DTYPES:
            raise UsageError(
                f"{runtimes.PRECISION_VARIABLE} is {wanted!r}: set it to one of auto, "
                f"{', '.join(DTYPES)}"
            )
    asked, tuned = wanted != "auto", dict[Size, Setting]()
    wanted_runtime = runtime
    if "auto" in (wanted, runtime):
        fitting = fitting_settings(recall(network, device), precision=wanted, backend=runtime)
        wanted = cast("PrecisionRequest", fitting[0])
        wanted_runtime = cast("RuntimeRequest", fitting[1])
        tuned = fitting[2]
    chosen: Precision
    if measured_or_asked := wanted != "auto":
        chosen = wanted
    else:
        chosen = usual_precision(network, device, wanted_runtime)
    found = runtimes.choose_runtime(wanted_runtime, network, device, chosen)
    _log.debug(
        "requested %s in %s on %s, measured %s: runtime %s in %s",
        *(runtime, precision, device, [str(each) for each in tuned.values()], found, chosen),
    )
    return InferenceSettings(
        runtime=found,
        precision=chosen,
        # Other runtimes take fp32, and round inside.
        dtype=DTYPES[chosen] if found in runtimes.TENSOR_RUNTIMES else torch.float32,
        tuned=tuned,
        precision_asked=asked,
        precision_measured=measured_or_asked and not asked,
        replaceable=runtime == "auto" and chosen != "int8",
    )


def usual_precision(network: nn.Module, device: torch.device, runtime: RuntimeRequest) -> Precision:
    """Return the precision where nobody asked for one and none was measured."""
    if device.type == "cpu" and runtimes.prefers_bf16(network, runtime):
        return "bf16"
    # Not on MPS, where a half tensor of another kind than expected ends the process.
    half = has_streams(device) and traits_of(network).supports_half
    return "fp16" if half and runtime in ("auto", *runtimes.TENSOR_RUNTIMES) else "fp32"


def recall(network: nn.Module, device: torch.device) -> dict[Size, Setting]:
    """Return the settings that were measured for a network on a device, the newest last.

    Args:
        network: As loaded: fp32, not moved.
        device: Where it is to be computed.
    """
    if not (cache_folder() / _KIND).is_dir():  # to tell networks apart takes a while
        return {}
    key_parts = _key_parts(network, device)
    folder = None if key_parts is None else cache.find_entry(_KIND, key_parts)
    return {} if folder is None else _read(folder)


def store_setting(network: nn.Module, device: torch.device, size: Size, setting: Setting) -> bool:
    """Keep a setting in the user's cache.

    Args:
        network: As loaded: fp32, not moved.
        device: Where it was measured.
        size: Height and width of the pictures, in pixels.
        setting: The fastest one.

    Returns:
        Whether it could be kept.
    """
    key_parts = _key_parts(network, device)
    if key_parts is None:
        return False
    found = cache.find_entry(_KIND, key_parts)
    settings = {} if found is None else _read(found)
    settings.pop(size, None)
    settings[size] = setting
    lines = {f"{w}x{h}": asdict(each) for (h, w), each in settings.items()}

    def make(folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(lines, indent=2), encoding="utf-8")

    return cache.store_entry(_KIND, key_parts, make) is not None


def fitting_settings(
    settings: dict[Size, Setting], *, precision: str, backend: str
) -> tuple[str, str, dict[Size, Setting]]:
    """Match measured settings with a request, in which "auto" is open.

    The newest match wins; without one, the request is returned unchanged. An environment variable
    that names a backend takes precedence over measurements.

    Returns:
        (precision, backend, the settings measured with both).
    """
    if backend == "auto" and os.environ.get(runtimes.RUNTIME_VARIABLE, "auto") != "auto":
        return precision, backend, {}
    usable = [
        each
        for each in settings.values()
        if precision in ("auto", each.precision) and backend in ("auto", each.backend)
    ]
    if not usable:
        return precision, backend, {}
    chosen = usable[-1].precision, usable[-1].backend
    same = {
        size: each for size, each in settings.items() if (each.precision, each.backend) == chosen
    }
    return *chosen, same


def _key_parts(network: nn.Module, device: torch.device) -> dict[str, str] | None:
    return runtimes.cache_key_parts(network, device=device_name(device))


def _read(folder: Path) -> dict[Size, Setting]:
    """The settings in a folder, without damaged ones."""
    settings: dict[Size, Setting] = {}
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        lines = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        for name, values in lines.items():
            with suppress(ValueError, TypeError):
                width, height = map(int, name.split("x"))
                setting = Setting(**values)
                if min(width, height) > 0 and _sound(setting):
                    settings[height, width] = setting
    return settings


def _sound(setting: Setting) -> bool:
    """Whether `store_setting` may have written it: files get edited, and cut off."""
    tile, rate = setting.tile, setting.frames_per_second
    return (
        setting.backend in runtimes.RUNTIMES
        and setting.precision in ("fp32", "fp16", "bf16")
        and type(setting.batch) is int
        and 1 <= setting.batch <= _LARGEST_BATCH
        and (tile is None or (type(tile) is int and tile >= MIN_TILE))
        and type(rate) in (int, float)
        and math.isfinite(rate)
    )
