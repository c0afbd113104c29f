"""Choose the runtime that computes a network, and hand the network to it.

The only module that knows all runtimes; each is imported when it is needed.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, UsageError, VdeblurError
from vdeblur.inference import devices
from vdeblur.inference.export import legal_size, random_input
from vdeblur.inference.runtimes.conversion import CHECKED_SIZE
from vdeblur.inference.runtimes.runner import ExternalNetwork, Runner
from vdeblur.networks import Identity, Network
from vdeblur.system.optional import installed

Runtime = Literal["torch", "openvino", "onnxruntime", "cudagraphs", "compile", "tensorrt"]
#: A runtime, or "auto" for the fastest that fits.
RuntimeRequest = Literal[
    "auto", "torch", "openvino", "onnxruntime", "cudagraphs", "compile", "tensorrt"
]


@dataclass(frozen=True)
class Abilities:
    """What a runtime can compute.

    Attributes:
        devices: Types of torch devices; empty for all.
        precisions: Precisions that it computes.
        described: Where it runs, as a part of an error's sentence.
        advice: Options that make it fit, for the same sentence.
        package: The optional package that it needs.
    """

    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    described: str = ""
    advice: str = ""
    package: str | None = None

    def covers(self, device: torch.device, precision: str) -> bool:
        """Whether it computes in this precision on this device."""
        return precision in self.precisions and (not self.devices or device.type in self.devices)

    @property
    def needs_gpu(self) -> bool:
        """Whether it computes on GPUs only."""
        return bool(self.devices) and "cpu" not in self.devices

    @property
    def installed(self) -> bool:
        """Whether its package can be found."""
        return self.package is None or installed(self.package)


_FLOATS = ("fp32", "fp16", "bf16")
#: The runtimes. int8 is used only on request: calibration on pictures changes the result.
ABILITIES: dict[Runtime, Abilities] = {
    "torch": Abilities((), _FLOATS),
    "openvino": Abilities(
        ("cpu",),
        ("fp32", "bf16", "int8"),
        "runs on a CPU in fp32, bf16 or int8",
        "`device='cpu'` and `precision='fp32'`",
        "openvino",
    ),
    "onnxruntime": Abilities(
        ("cpu", "cuda"),
        ("fp32",),
        "runs on a CPU or CUDA in fp32",
        "`precision='fp32'`",
        "onnxruntime",
    ),
    "cudagraphs": Abilities(("cuda",), _FLOATS, "runs on a CUDA device", "`device='cuda'`"),
    "compile": Abilities(
        ("cuda", "xpu"), _FLOATS, "runs on a CUDA or XPU device", "`device='auto'`", "triton"
    ),
    "tensorrt": Abilities(
        ("cuda",), _FLOATS, "runs on a CUDA device", "`device='cuda'`", "torch_tensorrt"
    ),
}
RUNTIMES = tuple(ABILITIES)
REQUESTS = ("auto", *RUNTIMES)
#: Runtimes that compute torch tensors, channels-last and in half precision too.
TENSOR_RUNTIMES = ("torch", "cudagraphs", "compile", "tensorrt")
#: Environment variable that replaces the runtime "auto".
RUNTIME_VARIABLE = "VDEBLUR_BACKEND"
#: Environment variable that replaces the precision "auto", so that machines with and without
#: instructions for bf16 agree.
PRECISION_VARIABLE = "VDEBLUR_PRECISION"
#: Minimum PSNR to fp32 torch of a restored picture, in dB; nothing below is chosen automatically.
AGREEMENT = 50.0


def choose_runtime(
    asked: RuntimeRequest, network: nn.Module, device: torch.device, precision: str
) -> Runtime:
    """Return the runtime that computes this network here.

    "auto" is, for networks of the catalogue, OpenVINO where it is installed on a CPU in fp32 or
    bf16 (and int8), and cudagraphs on CUDA; else torch. The environment's VDEBLUR_BACKEND replaces
    it.

    Raises:
        UsageError: The runtime does not compute in this precision on this device.
        DeviceError: It needs a GPU, and there is none.
    """
    if asked not in REQUESTS:
        raise UsageError(f"backend is {asked!r}: choose {', '.join(REQUESTS)}")
    wanted = os.environ.get(RUNTIME_VARIABLE, "auto") if asked == "auto" else asked
    if wanted not in REQUESTS:
        raise UsageError(
            f"{RUNTIME_VARIABLE} is {wanted!r}: set it to one of {', '.join(REQUESTS)}"
        )
    for runtime in _candidates(asked, wanted, network, device, precision):
        if ABILITIES[runtime].covers(device, precision):
            return runtime
    raise _refusal(asked, wanted, device, precision)


def _candidates(
    asked: str, wanted: str, network: nn.Module, device: torch.device, precision: str
) -> list[Runtime]:
    """The runtimes to consider, best first."""
    named: list[Runtime] = [runtime for runtime in RUNTIMES if runtime == wanted]
    if precision == "int8" and asked == "auto":
        # The environment names a runtime for what is automatic, which int8 never is.
        return ["openvino"]
    if wanted == "auto":
        if not _is_finished(network):
            return ["torch"]
        first: list[Runtime] = ["openvino"] if _suits_openvino(device, precision) else []
        return [*first, "cudagraphs", "torch"]
    if asked == "auto" and not ABILITIES[named[0]].needs_gpu:
        # Named by the environment: a preference, unless it asks for a GPU.
        return [*named, "torch"]
    return named


def _is_finished(network: nn.Module) -> bool:
    """Whether it is one of the catalogue, whose weights are not trained any more.

    They would be converted once and stay; and other modules may do what no graph holds.
    """
    trained = any(parameter.requires_grad for parameter in network.parameters())
    return isinstance(network, Network) and not trained


def _suits_openvino(device: torch.device, precision: str) -> bool:
    """Whether OpenVINO is the faster one, and there."""
    return (
        device.type == "cpu"
        and (precision == "fp32" or (precision == "bf16" and devices.multiplies_bf16()))
        and ABILITIES["openvino"].installed
    )


def _refusal(asked: str, wanted: str, device: torch.device, precision: str) -> VdeblurError:
    """The error for a request that no runtime fulfils here.

    A request that would fit a GPU is a DeviceError if there is no GPU, since it is not wrong.
    """
    if precision == "int8":
        place = f"{device}" if asked == "auto" else f"backend {asked} on {device}"
        return UsageError(
            f"precision int8 is for OpenVINO on a CPU, not for {place}: use `device='cpu'` with "
            "`backend='openvino'`, or `precision='auto'`"
        )
    abilities = next(each for name, each in ABILITIES.items() if name == wanted)
    subject = f"{RUNTIME_VARIABLE}={wanted}" if asked == "auto" else f"backend {wanted}"
    claim = f"{subject} {abilities.described}"
    other = f"unset {RUNTIME_VARIABLE}" if asked == "auto" else "`backend='auto'`"
    seen = devices.find_device("auto").type
    if abilities.needs_gpu and device.type == "cpu" and seen not in abilities.devices:
        instead = other if asked == "auto" else f"use {other}"
        return DeviceError(f"{claim}, and PyTorch sees none here: {instead}")
    misfit = f"not on {device}" + ("" if abilities.needs_gpu else f" in {precision}")
    torch_instead = "`backend='torch'`"
    advice = f"use {abilities.advice}, or {other if abilities.needs_gpu else torch_instead}"
    return UsageError(f"{claim}, {misfit}: {advice}")


def prefers_bf16(network: nn.Module, asked: RuntimeRequest) -> bool:
    """Return whether precision "auto" is bf16 for this network on this CPU.

    It is where the CPU has instructions for it, torch or OpenVINO computes, and a network of the
    catalogue restores the same picture to AGREEMENT dB. The picture is a small one of hard edges,
    restored by torch without fused layers, which rounds most often.
    """
    here = torch.device("cpu")
    wanted = os.environ.get(RUNTIME_VARIABLE, "auto") if asked == "auto" else asked
    if (
        wanted not in ("auto", "torch", "openvino")
        or not (isinstance(network, Network) and _is_finished(network))
        or not devices.multiplies_bf16()
        or isinstance(network, Identity)
    ):
        return False
    plain = copy.deepcopy(network).eval().to(here, torch.float32)
    x = random_input(network, *legal_size(network, *CHECKED_SIZE))
    with torch.no_grad():
        expected = plain.correction(x)
        error = plain.to(torch.bfloat16).correction(x.to(torch.bfloat16)).float() - expected
    # x <= limit, so that NaN counts as a loss.
    return bool(error.square().mean() <= 10 ** (-AGREEMENT / 10))


def with_runtime(
    network: nn.Module,
    *,
    runtime: Runtime,
    device: torch.device,
    precision: str = "fp32",
    calibration: Sequence[Tensor] = (),
    note: Callable[[str], object] = lambda _: None,
) -> ExternalNetwork:
    """Return `network` computed by another runtime.

    Args:
        network: For inference, on `device`; fp32, or the precision itself for TENSOR_RUNTIMES.
        runtime: Which runtime, but torch.
        device: Where it computes.
        precision: A precision that `choose_runtime` allows.
        calibration: Inputs (N, 3 or more, H, W) of the kind to come, on which the ranges of int8
            are measured; without any, the first inputs that are restored.
        note: Called with what a user should know.

    Raises:
        UsageError: A package is missing.
        ModelError: The network cannot be converted, or the conversion computes another picture.
        DeviceError: The device does not have the abilities.
    """
    create: Callable[..., Runner]
    if runtime == "openvino":
        from vdeblur.inference.runtimes import openvino

        openvino.require(precision)
        create = openvino.create_runner
    elif runtime == "onnxruntime":
        from vdeblur.inference.runtimes import onnxruntime

        onnxruntime.require()
        create = onnxruntime.create_runner
    else:
        from vdeblur.inference.runtimes import cuda

        cuda.require(runtime)
        create = partial(cuda.create_runner, runtime=runtime)
    measures = precision == "int8"

    def create_runner(first: Tensor) -> Runner:
        more: dict[str, Any] = {"calibration": calibration or (first,)} if measures else {}
        return create(network, device=device, precision=precision, note=note, **more)

    external = ExternalNetwork(network, create_runner)
    if not measures or calibration:
        external.start(torch.empty(0))
    return external
