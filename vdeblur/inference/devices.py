"""Devices: which is meant, its name, its free memory, its abilities. Knows no networks."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vdeblur.errors import DeviceError, UsageError
from vdeblur.system.memory import available_bytes


def find_device(device: str | torch.device) -> torch.device:
    """Return the device that is meant, after checking that it is there.

    Args:
        device: "auto" for CUDA, else Apple's MPS, else the CPU; or a name or device of torch. A
            CUDA device without an index is the first one.

    Raises:
        DeviceError: The device is not there.
        UsageError: There is no such kind of device.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"there is no device {device!r}: choose auto, cpu, cuda or mps") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            have = f"PyTorch sees {count} of them" if count else "PyTorch sees no CUDA GPU here"
            raise DeviceError(
                f"there is no {found}: {have}; use `device='cpu'`, or install a driver and "
                "a CUDA build of PyTorch"
            )
        return torch.device("cuda", found.index or 0)
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("there is no Apple GPU that PyTorch can use here: use `device='cpu'`")
    return found


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with the number of torch's threads."""
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


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a new computation can have on the device; None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch has reserved and does not use is free to torch.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return available_bytes()
    return None


@lru_cache
def multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for products of bf16: AVX-512 BF16, or AMX.

    Without them bf16 is slower than fp32 (0.7 times as fast on a Xeon with AVX-512 alone).
    """
    with suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # only in newer torch
    return any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all the work it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make the device CUDA's current one in a `with` block: Triton launches its kernels there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def fastest_convolutions(device: torch.device) -> AbstractContextManager[None]:
    """Let cuDNN measure its algorithms in a `with` block and keep the fastest for each shape."""
    if device.type != "cuda":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=True,
        allow_tf32=torch.backends.cudnn.allow_tf32,
    )
    return flags
