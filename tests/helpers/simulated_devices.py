"""GPUs of a kind that need not be there: tensors of the CPU that say they are on one.

What torch would refuse on such a GPU is refused: mixing its tensors with those of the CPU, reading
them as arrays; on MPS also float64, `non_blocking` copies (which read memory in use again),
channels-last weights, and the operations that torch 2.6 lacks there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GB = 10**9
_CUDA, _MPS = torch.cuda, torch.mps


class Stream:
    """A stream that does at once what it is given."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device

    def wait_event(self, event: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


class Event:
    """An event; each is a millisecond after any other."""

    def __init__(self, enable_timing: bool = False) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Event) -> float:
        return 1.0


class Kind:
    """What torch.cuda and torch.xpu have in common, for `count` devices of 16 GB."""

    def __init__(self, name: str, count: int = 1, current: int = 0) -> None:
        self.Stream, self.Event = Stream, Event
        self.name, self.count, self.current = name, count, current
        self.calls: list[Any] = []
        self.fp64 = True
        self.streams = [Stream()]

    def __getattr__(self, name: str) -> Any:
        return getattr(_CUDA, name)  # which answers without a GPU

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: torch.device) -> None:
        self.current = device.index

    def device(self, device: torch.device) -> AbstractContextManager[Any]:
        self.calls.append(("device", device))
        return contextlib.nullcontext()

    def get_device_name(self, device: torch.device) -> str:
        return f"{self.name} {device.index}"

    def get_device_properties(self, device: torch.device) -> Any:
        return SimpleNamespace(total_memory=16 * GB, has_fp64=self.fp64)

    def is_bf16_supported(self) -> bool:
        return True

    def memory_allocated(self, device: torch.device) -> int:
        return 1 * GB

    def max_memory_allocated(self, device: torch.device) -> int:
        return 2 * GB

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.calls.append("reset_peak_memory_stats")

    def memory_reserved(self, device: torch.device) -> int:
        return 3 * GB

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 12 * GB, 16 * GB

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")

    def synchronize(self, device: torch.device | None = None) -> None:
        self.calls.append(("synchronize", device))

    def current_stream(self, device: torch.device) -> Stream:
        return self.streams[-1]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.calls.append("stream")
        self.streams.append(stream)
        yield
        self.streams.pop()


class Mps:
    """What torch.mps has: one device, and functions that take none."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_MPS, name)

    def device_count(self) -> int:
        return 1

    def recommended_max_memory(self) -> int:
        return 12 * GB

    def current_allocated_memory(self) -> int:
        return 2 * GB

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")


class SimulatedGpu(TorchFunctionMode):
    """Puts tensors on `device` while it is active, in its thread."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.seen = device, set[str]()
        gpu = self

        class OnGpu(Tensor):
            @classmethod
            def __torch_function__(
                cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                return gpu.run(func, args, dict(kwargs or {}))

        self.kind = OnGpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, dict(kwargs or {}))

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute what torch would on the device."""
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = f".{func.__self__.__name__}"
        tensors = list(_tensors((args, kwargs)))
        inside = any(isinstance(each, self.kind) for each in tensors)
        with torch._C.DisableTorchFunction():
            if name == ".device":
                return self._device_of(args[0])
            if name in (".is_cpu", ".is_cuda", ".is_xpu", ".is_mps"):
                return self._device_of(args[0]).type == name[4:]
            if name == "to":
                return self._to(*args, **kwargs)
            if name == "_parse_to" or not (inside or kwargs.get("device")):
                if name == "pin_memory":
                    assert self.device.type != "mps", "torch 2.6 pins no memory for MPS"
                    return args[0]
                return func(*args, **kwargs)
            if name == "cpu":
                return args[0].as_subclass(Tensor).clone()
            if name == "__deepcopy__":
                return self._copied(*args)
            if name in ("numpy", "__array__", "__dlpack__"):
                raise TypeError(f"can't convert {self.device} device type tensor to numpy")
            goal = torch.device(kwargs.pop("device", None) or self.device)
            self._check(name, args, kwargs, tensors)
            result = func(*args, **kwargs)
            return self._wrapped(result, args) if goal == self.device else result

    def _check(self, name: str, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
        self.seen.add(name)
        free = name in ("copy_", "__getitem__", "__setitem__", "__set__")
        if not free and any(not isinstance(t, self.kind) and t.ndim for t in tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device ({name})")
        if self.device.type != "mps":
            return
        if name == "grid_sample" and kwargs.get("padding_mode") == "border":
            raise RuntimeError("MPS: Unsupported Border padding mode")
        if name == "interpolate" and kwargs.get("mode") == "area":
            sizes = zip(args[0].shape[2:], kwargs["size"], strict=True)
            if any(old % new for old, new in sizes):
                raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output")
        if name == "conv2d":
            for each in args[:2]:
                last = each.is_contiguous(memory_format=torch.channels_last)
                assert each.is_contiguous() or not last, "channels-last tensors are read wrongly"

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        goal, types = self._device_of(tensor), []
        for value in (*args, *(kwargs.pop(key, None) for key in ("device", "dtype", "other"))):
            if isinstance(value, torch.device | str):
                goal = torch.device(value)
            elif isinstance(value, Tensor):
                goal = self._device_of(value)
                types.append(value.dtype)
            elif isinstance(value, bool):
                kwargs.setdefault("non_blocking", value)
            elif value is not None:
                types.append(value)
        moves = goal != self._device_of(tensor)
        hidden = kwargs.pop("non_blocking", False) and moves
        assert not (hidden and self.device.type == "mps"), "a copy that MPS does not wait for"
        plain = tensor.as_subclass(Tensor)
        result = plain.to(types[0] if types else plain.dtype, **kwargs)
        if not moves and result is plain:
            return tensor
        result = result.clone() if moves and result.data_ptr() == tensor.data_ptr() else result
        return self._wrapped(result, ()) if goal == self.device else result

    def _copied(self, tensor: Any, memo: dict[int, Any]) -> Any:
        copy: Any = tensor.detach().clone().as_subclass(self.kind)
        copy.requires_grad_(tensor.requires_grad)
        copy._is_param = getattr(tensor, "_is_param", False)
        return memo.setdefault(id(tensor), copy)

    def _device_of(self, tensor: Tensor) -> torch.device:
        return self.device if isinstance(tensor, self.kind) else torch.device("cpu")

    def _wrapped(self, value: Any, args: Any) -> Any:
        if isinstance(value, Tensor):
            if isinstance(value, self.kind) or any(value is each for each in args):
                return value
            if self.device.type == "mps" and value.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            return value.as_subclass(self.kind)
        if isinstance(value, tuple | list):
            parts = [self._wrapped(each, args) for each in value]
            return type(value)(parts)
        return value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


#: torch's kind, a name, and attribute and value of torch.version in builds for it.
_GPUS = {
    "cuda": ("cuda", "NVIDIA H100", "cuda", "13.0"),
    "rocm": ("cuda", "AMD Instinct MI300X", "hip", "6.4.43482-0f2d60242"),
    "xpu": ("xpu", "Intel Arc B580", "xpu", "20250302"),
    "mps": ("mps", "Apple M4", "", ""),
}


@contextlib.contextmanager
def simulated_gpu(asked: str) -> Iterator[tuple[SimulatedGpu, Any]]:
    """Simulate a GPU of a kind, the only one here; yields it and torch's module of the kind."""
    kind, name, build, number = _GPUS[asked]
    module = Mps() if kind == "mps" else Kind(name)
    allocate = torch.empty

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        """By any thread, also those in which no mode is active."""
        assert not (pin_memory and kind == "mps"), "torch 2.6 pins no memory for MPS"
        return allocate(*size, **options)

    def record_stream(tensor: Tensor, stream: Stream) -> None:
        assert tensor.device.type == kind
        assert isinstance(stream, Stream)

    with pytest.MonkeyPatch.context() as patch:
        for each in ("cuda", "xpu", "mps"):
            there = module if each == kind else Mps() if each == "mps" else Kind(each, 0)
            patch.setattr(torch, each, there)
        if kind != "mps":
            patch.setattr(torch.mps, "device_count", lambda: 0)
        for each in ("cuda", "hip", "xpu"):
            patch.setattr(torch.version, each, number if each == build else None, raising=False)
        patch.setattr(torch.backends.mps, "get_name", lambda: name, raising=False)
        patch.setattr(torch.backends.mps, "is_built", lambda: kind == "mps")
        patch.setattr(torch, "empty", empty)
        patch.setattr(Tensor, "record_stream", record_stream)
        patch.setattr(torch, "_has_compatible_shallow_copy_type", lambda a, b: False)
        forget()
        try:
            with SimulatedGpu(torch.device(kind, 0)) as gpu:
                yield gpu, module
        finally:
            forget()


def forget() -> None:
    """Empty the program's caches: streams and tensors in them belong to a device of this name."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vdeblur."):
            for value in list(vars(module).values()):
                getattr(value, "cache_clear", lambda: None)()
