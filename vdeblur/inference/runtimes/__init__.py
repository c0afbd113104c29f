"""Other runtimes behind the call that `Deblurrer` makes of a network: OpenVINO, ONNX Runtime.

Converted networks are kept in the user's cache, under keys of all that they depend on, and are held
to torch each time they are loaded. Knows no video, and no files but the cache's.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, ModelError, UsageError, VdeblurError
from vdeblur.inference.export import compare, legal_size, parameters_sha256, random_input
from vdeblur.networks import GlobalMean, Identity, Network
from vdeblur.system import cache
from vdeblur.system.folders import cache_folder
from vdeblur.system.optional import installed
from vdeblur.version import __version__

Backend = Literal["auto", "torch", "openvino", "onnxruntime", "cudagraphs", "triton"]
BACKENDS = ("auto", "torch", "openvino", "onnxruntime", "cudagraphs", "triton")
#: Those that compute torch tensors, channels-last and in half precision too.
HALF = ("torch", "cudagraphs", "triton")
#: Precisions that are asked for, never chosen: ranges are measured on pictures, results differ.
EIGHT_BITS = ("int8", "fp8")
#: The environment variable that says what "auto" is to be.
VARIABLE = "VDEBLUR_BACKEND"
#: And the one that says what "auto" precision is to be: machines with and without bf16 then agree.
PRECISION_VARIABLE = "VDEBLUR_PRECISION"
#: A restored picture's signal-to-noise ratio to that of fp32 torch, in dB: less is never chosen
#: unasked.
AGREEMENT = 50.0
#: How the note begins that is said where the cache takes nothing.
NOT_KEPT = "the converted network cannot be kept"
T = TypeVar("T")
# Pictures, height, width that a loaded network is held to torch on.
_CHECKED = (1, 64, 96)


class Runner(Protocol):
    """A network in another runtime."""

    def __call__(self, x: Tensor) -> Tensor:
        """The network's input, fp32 on the device → its correction (N, 3, H, W), there too."""


class Elsewhere(nn.Module):
    """A network that another runtime computes; all that it says of itself is the network's own.

    start: makes the runner from the first pictures that come, (N, 3, H, W) RGB in 0..1.
    May be called by several threads.
    """

    def __init__(self, network: nn.Module, start: Callable[[Tensor], Runner]) -> None:
        super().__init__()
        self.network = network
        self._start = start
        self._starting = threading.Lock()
        self._runner: Runner | None = None
        self._means = [layer for layer in network.modules() if isinstance(layer, GlobalMean)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    @property
    def ready(self) -> bool:
        """Whether it was begun: until then, the first pictures that come are measured."""
        return self._runner is not None

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] → the same shape, restored; not clamped."""
        return x[:, :3] + self.correction(x)

    def correction(self, x: Tensor) -> Tensor:
        """forward(x) − x, the picture of it: (N, 3 or more, H, W) → (N, 3, H, W)."""
        if any(mean.shared for mean in self._means):
            # Tiles that share their means (`share_means`): a converted graph cannot be told any.
            return correction_of(self.network)(x)
        if self._runner is None:
            with self._starting:
                self._runner = self._runner or self._start(x)
        return self._runner(x)


def choose(
    backend: Backend, network: nn.Module, device: torch.device, precision: str
) -> Literal["torch", "openvino", "onnxruntime", "cudagraphs", "triton"]:
    """What "auto" means for this network here; UsageError for what cannot be, DeviceError for what
    needs a GPU that is not here.

    OpenVINO where it is installed, for the catalogue's networks on a CPU in fp32 or bf16 (and
    int8); else torch. VDEBLUR_BACKEND in the environment says otherwise.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend is {backend!r}: choose {', '.join(BACKENDS)}")
    wanted = os.environ.get(VARIABLE, "auto") if backend == "auto" else backend
    if wanted not in BACKENDS:
        raise UsageError(f"{VARIABLE} is {wanted!r}: set it to one of {', '.join(BACKENDS)}")
    if precision in EIGHT_BITS:
        if precision == "int8" and device.type == "cpu" and backend in ("auto", "openvino"):
            return "openvino"
        if device.type == "cuda" and backend in ("auto", "triton"):
            return "triton"
        can = "OpenVINO on a CPU or Triton on CUDA" if precision == "int8" else "Triton on CUDA"
        if backend == "auto":
            other = "cpu" if precision == "int8" else "cuda"
            _without_cuda(f"precision {precision} is for {can}", "--precision auto", device)
            raise UsageError(
                f"precision {precision} is for {can}, not for {device}: "
                f"use --device {other}, or --precision auto"
            )
        if backend == "triton":
            _without_cuda("backend triton is for CUDA", "--backend auto", device)
        raise UsageError(
            f"precision {precision} is for {can}, not for backend {backend} on {device}: "
            "use --backend auto, or --precision auto"
        )
    if wanted == "auto":
        # Weights that may still be trained would be converted once and stay.
        fits = (
            device.type == "cpu"
            and (precision == "fp32" or (precision == "bf16" and multiplies_bf16()))
            and isinstance(network, Network)
            and not any(parameter.requires_grad for parameter in network.parameters())
        )
        return "openvino" if fits and installed("openvino") else "torch"
    if wanted == "openvino":
        if device.type != "cpu" or precision not in ("fp32", "bf16"):
            if backend == "auto":
                return "torch"
            raise UsageError(
                f"backend openvino runs on a CPU in fp32, bf16 or int8, not on {device} in "
                f"{precision}: use --device cpu --precision fp32, or --backend torch"
            )
        return "openvino"
    if wanted == "onnxruntime":
        if device.type not in ("cpu", "cuda") or precision != "fp32":
            if backend == "auto":
                return "torch"
            raise UsageError(
                f"backend onnxruntime runs on a CPU or CUDA in fp32, not on {device} in "
                f"{precision}: use --precision fp32, or --backend torch"
            )
        return "onnxruntime"
    if wanted in ("cudagraphs", "triton"):
        if device.type != "cuda":
            what = f"{VARIABLE}={wanted}" if backend == "auto" else f"backend {wanted}"
            instead = f"unset {VARIABLE}" if backend == "auto" else "--backend auto"
            _without_cuda(f"{what} runs on a CUDA device", instead, device)
            raise UsageError(
                f"{what} runs on a CUDA device, not on {device}: use --device cuda, or {instead}"
            )
        return "triton" if wanted == "triton" else "cudagraphs"
    return "torch"


def _without_cuda(sentence: str, instead: str, device: torch.device) -> None:
    """DeviceError where there is no CUDA here to go to; what is impossible anywhere is another."""
    if device.type == "cpu" and not torch.cuda.is_available():
        verb = "" if instead.startswith("unset") else "use "
        raise DeviceError(f"{sentence}, and PyTorch sees no CUDA GPU here: {verb}{instead}")


@lru_cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16: AVX-512 BF16, or AMX.

    Without, bf16 is slower than fp32 (0.7 times, on a Xeon that has AVX-512 alone).
    """
    with suppress(OSError, UnicodeDecodeError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)  # of newer torch
    return any(capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def prefers_bf16(network: nn.Module, backend: Backend) -> bool:
    """Whether "auto" precision is bf16 for a network of the catalogue on this CPU.

    Where the CPU has units for it, torch or OpenVINO computes, and a picture stays the same to
    AGREEMENT dB: a small one of hard edges, in torch without fused layers, which rounds most often.
    """
    here = torch.device("cpu")
    wanted = os.environ.get(VARIABLE, "auto") if backend == "auto" else backend
    if (
        wanted not in ("auto", "torch", "openvino")
        or not (isinstance(network, Network) and multiplies_bf16())
        or isinstance(network, Identity)
        or any(parameter.requires_grad for parameter in network.parameters())
    ):
        return False
    plain = copy.deepcopy(network).eval().to(here, torch.float32)
    x = random_input(network, *legal_size(network, *_CHECKED))
    with torch.no_grad():
        expected = plain.correction(x)
        error = plain.to(torch.bfloat16).correction(x.to(torch.bfloat16)).float() - expected
    # Asked this way round, NaN is a loss.
    return bool(error.square().mean() <= 10 ** (-AGREEMENT / 10))


def attach(
    network: nn.Module,
    *,
    backend: Literal["openvino", "onnxruntime", "cudagraphs", "triton"],
    device: torch.device,
    precision: str = "fp32",
    calibration: Sequence[Tensor] = (),
    note: Callable[[str], object] = lambda _: None,
) -> nn.Module:
    """`network` (for inference, on `device`, fp32 but for HALF) run by another runtime.

    calibration: pictures (N, 3, H, W) of the kind to come, for 8 bits; without any, the first ones
    that are restored. note: is told what a user should know. UsageError for a missing package;
    ModelError for a network that cannot be converted, or is another one then; DeviceError for a
    device that cannot.
    """
    runner: Callable[..., Runner]
    if backend == "openvino":
        from vdeblur.inference.runtimes import openvino

        openvino.require(precision)
        runner = partial(openvino.start, note=note)
    elif precision in EIGHT_BITS:
        from vdeblur.inference.runtimes import cuda

        cuda.require(network, precision, device)
        runner = partial(cuda.start_in_8_bits, note=note)
    elif backend in ("cudagraphs", "triton"):
        from vdeblur.inference.runtimes import cuda

        ready = cuda.start(network, device=device, fused=backend == "triton", note=note)
        return Elsewhere(network, lambda _: ready)
    else:
        from vdeblur.inference.runtimes import onnxruntime

        onnxruntime.require()
        runner = partial(onnxruntime.start, note=note)

    def start(first: Tensor) -> Runner:
        pictures = calibration or (first,) if precision in EIGHT_BITS else ()
        return runner(network, device=device, precision=precision, calibration=pictures)

    stand_in = Elsewhere(network, start)
    if precision not in EIGHT_BITS or calibration:
        stand_in._runner = start(torch.empty(0))
    return stand_in


class Correction(nn.Module):
    """A network's correction as a module's forward: what is converted.

    A picture's own values are then not rounded with it, as half precision and int8 would.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.size_multiple = int(getattr(network, "size_multiple", 1))
        self.guided = bool(getattr(network, "guided", False))

    def forward(self, x: Tensor) -> Tensor:
        """The network's input → its correction (N, 3, H, W)."""
        return correction_of(self.network)(x)


def correction_of(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """What `Deblurrer` asks a network for."""
    own: Callable[[Tensor], Tensor] | None = getattr(network, "correction", None)
    return own if own is not None else lambda x: network(x) - x[:, :3]


def facts_of(network: nn.Module, **more: str) -> dict[str, str] | None:
    """All that a converted network depends on; None when that cannot be told.

    The code of the network, of its conversion and of torch are among it, for they change while
    weights stay.
    """
    try:
        own = inspect.getsource(inspect.getmodule(type(network)) or type(network))
    except (OSError, TypeError):
        return None
    return {
        "vdeblur": __version__,
        "torch": torch.__version__,
        "sources": _sources(),
        "class": type(network).__qualname__,
        "module": hashlib.sha256(own.encode()).hexdigest(),
        "config": json.dumps(getattr(network, "config", {}), sort_keys=True, default=str),
        "stage": str(getattr(network, "stage", "")),
        "parameters": parameters_sha256(network),
        **more,
    }


@lru_cache
def _sources() -> str:
    package = Path(__file__).parents[2]
    folders = ("networks", "inference/runtimes", "inference/kernels")
    files = [f for name in folders for f in package.glob(f"{name}/*.py")]
    files.append(package / "inference" / "export.py")
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def load_or_make(
    kind: str,
    facts: dict[str, str] | None,
    make: Callable[[Path], None],
    load: Callable[[Path], T],
    check: Callable[[T], str | None],
    *,
    note: Callable[[str], object] = lambda _: None,
) -> T:
    """What `load` makes of the folder kept for `facts`, or of a new one that `make` fills.

    check: what is wrong with it, as a sentence's part; a kept one is then made again, a new one is
    a ModelError. facts None: nothing is kept. note: is told when the cache takes nothing.
    """
    found = cache.find_entry(kind, facts) if facts is not None else None
    if found is not None:
        try:
            loaded = load(found)
            if check(loaded) is None:
                return loaded
        except (VdeblurError, RuntimeError, OSError):
            pass  # damaged: made again
    with tempfile.TemporaryDirectory(prefix="vdeblur-") as temporary:
        folder = Path(temporary)
        try:
            make(folder)
        except (OSError, RuntimeError) as error:  # runtimes say so of a disk that is full
            raise ModelError(
                f"the network could not be converted in {temporary} ({error}): free space there, "
                "or use --backend torch"
            ) from error
        loaded = load(folder)
        if wrong := check(loaded):
            raise ModelError(f"the converted network {wrong}: use --backend torch")

        def copy_into(part: Path) -> None:
            shutil.copytree(folder, part, dirs_exist_ok=True)

        # Made elsewhere and copied: whatever a runtime says of a full disk, a copy says OSError.
        if facts is not None and cache.store_entry(kind, facts, copy_into) is None:
            note(
                f"{NOT_KEPT} in {cache_folder()}, so every run converts it anew: make that "
                "writable with some space, or name another folder in VDEBLUR_CACHE"
            )
    return loaded


def check_against(
    network: nn.Module, runner: Runner, device: torch.device, precision: str = "fp32"
) -> str | None:
    """How the runner's correction differs from torch's, as a sentence's part; None if it does not.

    On a picture small enough to cost nothing; the tolerance is that of an export, and in bf16 a
    tenth of the correction itself: who asks for it decides what it is worth.
    """
    correction = correction_of(network)

    def here(x: Tensor) -> Tensor:
        return correction(x.to(device)).cpu()

    x = random_input(network, *legal_size(network, *_CHECKED))
    if precision == "bf16":
        with torch.no_grad():
            expected = here(x)
            error = runner(x.to(device)).cpu().float() - expected
        share = float(error.square().mean().sqrt() / expected.square().mean().sqrt().clamp(1e-6))
        return None if share <= 0.1 else f"differs from torch by {share:.0%} of the correction"
    difference, tolerance = compare(here, lambda x: runner(x.to(device)).cpu(), x)
    if difference <= tolerance:
        return None
    return f"differs from torch by {difference:.1e}, more than {tolerance:.0e}"
