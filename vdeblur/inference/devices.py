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

#: Kinds of GPU in torch's words, in the order in which "auto" looks for one. ROCm's are "cuda" too.
KINDS = ("cuda", "xpu", "mps")
_BUILDS = {
    "cuda": "NVIDIA's driver and a CUDA build of PyTorch",
    "rocm": "AMD's driver and a ROCm build of PyTorch",
    "xpu": "Intel's driver and an XPU build of PyTorch",
    "mps": "PyTorch for macOS on a Mac with Apple silicon",
}


def find_device(device: str | torch.device) -> torch.device:
    """Return the device that is meant, after checking that it is there.

    Args:
        device: "auto" for the first GPU of KINDS, else the CPU; or a name or device of torch. A
            GPU without an index is the first one. "rocm" is an AMD GPU, which torch calls "cuda".

    Raises:
        DeviceError: The device is not there.
        UsageError: There is no such kind of device.
    """
    asked = str(device)
    if asked == "auto":
        return next((_usual(kind) for kind in KINDS if _count(kind)), torch.device("cpu"))
    kind = asked.partition(":")[0]
    found = None
    with suppress(RuntimeError):
        found = torch.device(asked.replace("rocm", "cuda", 1) if kind == "rocm" else asked)
    if found is None or found.type not in ("cpu", *KINDS):
        raise UsageError(f"there is no device {asked!r}: choose auto, cpu, cuda, rocm, xpu or mps")
    if found.type == "cpu":
        return found
    count = 0 if kind == "rocm" and not torch.version.hip else _count(found.type)
    if (found.index or 0) >= count:
        seen = [torch.device(each, i) for each in KINDS for i in range(_count(each))]
        have = ", ".join(f"{each} ({device_name(each)})" for each in seen) or "no GPU"
        raise DeviceError(
            f"there is no {asked}: this PyTorch, built for {_build()}, sees {have}; use "
            f"`device='auto'`{'' if count else f', or install {_BUILDS[kind]}'}"
        )
    return torch.device(found.type, found.index or 0)


def accelerator(device: torch.device) -> Any | None:
    """Return torch's module for a kind of GPU, such as torch.cuda (ROCm's too); None for the CPU.

    torch.cuda and torch.xpu have the same functions; torch.mps has few of them.
    """
    return getattr(torch, device.type) if device.type in KINDS else None


def has_streams(device: torch.device) -> bool:
    """Return whether the device has streams, and copies beside them from and to pinned memory.

    On others nothing may be copied with `non_blocking=True`: MPS reads memory that is in use again.
    """
    return device.type in ("cuda", "xpu")


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 where there is none: Apple's GPUs, and some of Intel's."""
    xpu = torch.xpu.get_device_properties(device) if device.type == "xpu" else None
    has_none = device.type == "mps" or (xpu is not None and not xpu.has_fp64)
    return torch.float32 if has_none else torch.float64


def _count(kind: str) -> int:
    """How many devices of a kind torch sees."""
    module = getattr(torch, kind)
    # Drivers too old for torch are counted too, but not available.
    available = kind == "mps" or module.is_available()
    return int(module.device_count()) if available else 0


def _usual(kind: str) -> torch.device:
    """The device of a kind that torch uses by default."""
    module = getattr(torch, kind)
    return torch.device(kind, 0 if kind == "mps" else module.current_device())


def _build() -> str:
    """What torch was built for."""
    version: Any = torch.version
    for name, key in (("ROCm", "hip"), ("CUDA", "cuda"), ("XPU", "xpu")):
        if number := getattr(version, key, None):
            return f"{name} {number.partition('-')[0]}"
    return "MPS" if torch.backends.mps.is_built() else "the CPU"


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with the number of torch's threads."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_processor()}, {threads} thread{'s' * (threads > 1)}"
    if device.type == "mps":
        # Only in newer torch.
        return str(getattr(torch.backends.mps, "get_name", lambda: f"{platform.machine()} mps")())
    module = accelerator(device)
    return device.type if module is None else str(module.get_device_name(device))


def described(device: torch.device) -> str:
    """Return `device_name`, with the interface that torch uses a GPU by: "… H100 (CUDA 13.0)"."""
    return device_name(device) + (f" ({_build()})" if device.type in KINDS else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(s.partition(":")[2].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that a new computation can have on the device; None if unknown.

    Memory that torch has reserved and does not use is free to torch.
    """
    module = accelerator(device)
    if module is None:
        return available_bytes() if device.type == "cpu" else None
    if device.type == "mps":  # its memory is the main memory
        free = int(module.recommended_max_memory() - module.current_allocated_memory())
        return min(free, available_bytes() or free)
    used = module.memory_allocated(device)
    try:
        free, _ = module.mem_get_info(device)
        return int(free + module.memory_reserved(device) - used - _held_by_graphs(device))
    except (RuntimeError, AttributeError):  # of Intel's GPUs inside processors it is not known
        return int(module.get_device_properties(device).total_memory - used)


def _held_by_graphs(device: torch.device) -> int:
    """Bytes that torch has reserved for CUDA graphs; between their runs nothing of them is used."""
    if device.type != "cuda":
        return 0
    cuda: Any = torch.cuda  # has no types
    # The pool of everything else is (0, 0).
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in cuda.memory_snapshot()
        if segment["device"] == device.index and segment["segment_pool_id"] != (0, 0)
    )


def empty_cache(device: torch.device) -> None:
    """Give back the memory that torch has reserved on a GPU and does not use."""
    if (module := accelerator(device)) is not None:
        module.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory was not enough, of a GPU or of the computer."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # What MPS, torch's CPU allocator, oneDNN, cuDNN, torch without memory for any way of cuDNN's
    # (pytorch#108645) and Intel's Unified Runtime say.
    phrases = (
        "out of memory",
        "not enough memory",
        "can't allocate memory",
        "alloc_failed",
        "unable to find an engine",
        "ur_result_error_out_of",
    )
    return any(phrase in str(error).lower() for phrase in phrases)


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
    if (module := accelerator(device)) is not None:
        module.synchronize(*[device] * (device.type != "mps"))  # of which there is one


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Make the device torch's current one in a `with` block: Triton launches its kernels there."""
    context: AbstractContextManager[object] = getattr(accelerator(device), "device", nullcontext)(
        device
    )
    return context


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
