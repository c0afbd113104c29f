"""The fastest settings, measured by `vdeblur bench --tune`, in the user's cache.

Kept under all that they depend on: device, threads, network, weights, picture size, versions.
Knows no video and no files but the cache's.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vdeblur.inference import runtimes
from vdeblur.system import cache
from vdeblur.system.folders import cache_folder

_KIND, _BATCH_KIND = "tuned", "batch"
#: A larger batch has to be this much faster a frame to be worth its memory and its delay.
GAIN = 1.03
_PROBE_SECONDS = 15.0  # spent once, for it is kept
_LARGEST_BATCH = 32
MIN_TILE = 128  # pixels; below, a tile is mostly overlap

Size = tuple[int, int]  # height, width


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


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' * (threads > 1)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(s.partition(":")[2].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()


Facts = dict[str, str]


def facts_of(network: nn.Module, device: torch.device) -> Facts | None:
    """What settings depend on: of a network as loaded (fp32, not moved), and a device.

    None where that cannot be told, and on a CPU as long as nothing is kept: then it costs nothing.
    """
    if device.type != "cuda" and not (cache_folder() / _KIND).is_dir():
        return None
    return _facts(network, device)


def recall(facts: Facts | None) -> dict[Size, Setting]:
    """The settings kept for these facts, the newest last."""
    folder = cache.find_entry(_KIND, facts) if facts is not None else None
    return {} if folder is None else _read(folder)


def keep(network: nn.Module, device: torch.device, size: Size, setting: Setting) -> bool:
    """Keep a setting for pictures of `size`; False when that cannot be.

    The network is as loaded: fp32, not moved.
    """
    facts = _facts(network, device)
    if facts is None:
        return False
    found = cache.find_entry(_KIND, facts)
    settings = {} if found is None else _read(found)
    settings.pop(size, None)
    settings[size] = setting
    lines = {f"{w}x{h}": asdict(one) for (h, w), one in settings.items()}

    def make(folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(lines, indent=2), encoding="utf-8")

    return cache.store_entry(_KIND, facts, make) is not None


def fitting(
    settings: dict[Size, Setting], *, precision: str, backend: str
) -> tuple[str, str, dict[Size, Setting]]:
    """(precision, backend, settings measured with both) for what was asked; "auto" is open.

    Of several, the newest decides. Without any, what was asked comes back. An environment variable
    that names a backend goes before what was measured.
    """
    if backend == "auto" and os.environ.get(runtimes.VARIABLE, "auto") != "auto":
        return precision, backend, {}
    usable = [
        one
        for one in settings.values()
        if precision in ("auto", one.precision) and backend in ("auto", one.backend)
    ]
    if not usable:
        return precision, backend, {}
    chosen = usable[-1].precision, usable[-1].backend
    same = {size: one for size, one in settings.items() if (one.precision, one.backend) == chosen}
    return *chosen, same


class _Restores(Protocol):
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor: ...

    def fitting_batch(self, height: int, width: int) -> int: ...


def fastest_batch(
    deblurrer: _Restores,
    height: int,
    width: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The batch of pictures with the most frames per second, of those predicted to fit the memory.

    Tried on the device in doublings from 1, no further than they gain, and for some seconds at
    most: each is a new shape, for which libraries look for algorithms.
    """
    largest = min(_LARGEST_BATCH, deblurrer.fitting_batch(height, width))
    best, best_rate = 1, 0.0
    began = clock()
    size = 1
    while size <= largest:
        images = torch.rand(size, 3, height, width, device=deblurrer.device)
        deblurrer(images)  # a new shape: algorithms are picked, kernels compiled
        synchronise(deblurrer.device)
        start = clock()
        deblurrer(images)
        synchronise(deblurrer.device)
        rate = size / max(clock() - start, 1e-9)
        if rate < best_rate * GAIN:
            break
        best, best_rate = size, rate
        if clock() - began > _PROBE_SECONDS:
            break
        size *= 2
    return best


def batch_for(
    deblurrer: _Restores,
    facts: Facts | None,
    height: int,
    width: int,
    *,
    backend: str,
    precision: str,
) -> int:
    """`fastest_batch`, kept in the user's cache for these facts, backend and precision."""
    if facts is not None:
        facts = facts | {"backend": backend, "precision": precision, "size": f"{width}x{height}"}
        if (folder := cache.find_entry(_BATCH_KIND, facts)) is not None:
            with suppress(OSError, ValueError):
                kept = int((folder / "batch").read_text(encoding="ascii"))
                return max(1, min(kept, deblurrer.fitting_batch(height, width)))
    best = fastest_batch(deblurrer, height, width)
    if facts is not None:

        def make(folder: Path) -> None:
            (folder / "batch").write_text(str(best), encoding="ascii")

        cache.store_entry(_BATCH_KIND, facts, make)
    return best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _facts(network: nn.Module, device: torch.device) -> Facts | None:
    return runtimes.facts_of(network, device=device_name(device))


def _read(folder: Path) -> dict[Size, Setting]:
    """What a folder holds, but for what is damaged."""
    settings: dict[Size, Setting] = {}
    with suppress(OSError, ValueError, AttributeError):
        lines = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        for name, values in lines.items():
            with suppress(ValueError, TypeError):
                width, height = map(int, name.split("x"))
                setting = Setting(**values)
                if min(width, height) > 0 and _sound(setting):
                    settings[height, width] = setting
    return settings


def _sound(setting: Setting) -> bool:
    """Whether it says what `keep` may have written: files are edited, and cut off."""
    tile, rate = setting.tile, setting.frames_per_second
    return (
        setting.backend in runtimes.BACKENDS[1:]
        and setting.precision in ("fp32", "fp16", "bf16")
        and type(setting.batch) is int
        and setting.batch >= 1
        and (tile is None or (type(tile) is int and tile >= MIN_TILE))
        and type(rate) in (int, float)
        and math.isfinite(rate)
    )
