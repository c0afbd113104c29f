"""Run a network in OpenVINO on a CPU: fp32, bf16, or int8 by NNCF's post-training quantization."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, ModelError
from vdeblur.inference.calibration import samples_of
from vdeblur.inference.export import legal_size, random_input, to_openvino
from vdeblur.inference.runtimes.conversion import (
    cache_key_parts,
    check_against,
    load_or_convert,
)
from vdeblur.inference.runtimes.mimo_unet_rewrite import rewrite
from vdeblur.inference.runtimes.runner import Correction, Runner
from vdeblur.networks.base import traits_of
from vdeblur.networks.mimo_unet_guided import MIMOUNetGuided
from vdeblur.system.optional import optional, the_core


def require(precision: str) -> None:
    """Check that OpenVINO can compute in this precision here.

    Raises:
        UsageError: A package is missing.
        DeviceError: The CPU has no instructions for bf16.
    """
    openvino = optional("openvino", extra="openvino", purpose="`backend='openvino'`")
    if precision == "int8":
        optional("nncf", extra="openvino", purpose="`precision='int8'`")
    if precision == "bf16":
        able = the_core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able:
            raise DeviceError(
                "precision bf16 needs a CPU with instructions for it (AVX-512 BF16 or AMX), which "
                "OpenVINO does not find here: use `precision='fp32'`, or `backend='torch'`"
            )


def create_runner(
    network: nn.Module,
    *,
    device: torch.device,
    precision: str,
    calibration: Sequence[Tensor] = (),
    note: Callable[[str], object] = lambda _: None,
) -> Runner:
    """Return the runner of `network`, from the cache if it is there; see `choice.with_runtime`."""
    openvino = optional("openvino", extra="openvino", purpose="`backend='openvino'`")
    # bf16 uses the file of fp32: it is a precision of computing, requested when compiling.
    stored = "int8" if precision == "int8" else "fp32"
    more = {"runtime": openvino.__version__, "backend": "openvino", "precision": stored}
    # Of a guided network only the convolutions: the rest is mostly rearranging, which takes
    # OpenVINO longer than torch.
    guided = network if isinstance(network, MIMOUNetGuided) else None
    if guided is not None:
        more["part"] = "trunk"
    samples: list[Tensor] = []
    if precision == "int8":
        nncf = optional("nncf", extra="openvino", purpose="`precision='int8'`")
        samples = samples_of(calibration, traits_of(network).size_multiple)
        if guided is not None:
            samples = [_prepared(guided, sample)[0] for sample in samples]
        digest = hashlib.sha256()
        for sample in samples:
            digest.update(str(tuple(sample.shape)).encode() + sample.numpy().tobytes())
        more |= {"nncf": nncf.__version__, "calibration": digest.hexdigest()}

    def convert(folder: Path) -> None:
        if guided is not None:
            pictures = random_input(guided, *legal_size(guided, 1, 48, 64))
            model = to_openvino(
                _Trunk(guided), output="head", example=_prepared(guided, pictures)[0]
            )
        else:
            model = to_openvino(Correction(rewrite(network)), output="correction")
        if precision == "int8":
            model = _quantized(model, samples)
        openvino.save_model(model, folder / "network.xml", compress_to_fp16=False)

    def check(runner: Runner) -> str | None:
        # int8 changes the network on purpose.
        return None if precision == "int8" else check_against(network, runner, device, precision)

    def load(folder: Path) -> Runner:
        compiled = _Compiled(openvino, folder / "network.xml", precision)
        return compiled if guided is None else _Guided(guided, compiled)

    return load_or_convert(
        "openvino", cache_key_parts(network, **more), convert, load, check, note=note
    )


class _Trunk(nn.Module):
    """The trunk of a guided network as a module's forward, which is what gets converted."""

    def __init__(self, network: MIMOUNetGuided) -> None:
        super().__init__()
        self.network = network

    def forward(self, packed: Tensor) -> Tensor:
        """See `MIMOUNetGuided.trunk`."""
        return self.network.trunk(packed)


@torch.no_grad()
def _prepared(network: MIMOUNetGuided, x: Tensor) -> tuple[Tensor, Tensor]:
    return network.prepare(x)


class _Guided:
    """A guided network: its trunk in OpenVINO, the steps before and after in torch."""

    def __init__(self, network: MIMOUNetGuided, trunk: Runner) -> None:
        self._network, self._trunk = network, trunk

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """The network's input, fp32 on the CPU → (N, 3, H, W)."""
        packed, moved = self._network.prepare(x.float())
        return self._network.finish(self._trunk(packed), packed, moved)


class _Compiled:
    """A compiled model of free batch, height and width; may be called by several threads.

    A call is computed by as many threads as torch has in the calling thread: callers that share
    torch's threads (`vdeblur.system.thread_shares`) have a stream each.
    """

    def __init__(self, openvino: Any, file: Path, precision: str) -> None:
        # Where the CPU has bf16 units, OpenVINO would use them unasked.
        self._hint = "bf16" if precision == "bf16" else "f32"
        # As many as torch would use: what its caller or OMP_NUM_THREADS asked for.
        self._threads = torch.get_num_threads()
        try:
            self._core = the_core(openvino)
            # Read into memory, not mapped: the file may be replaced or deleted.
            self._core.set_property({"ENABLE_MMAP": False})
            self._network = self._core.read_model(file)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read the network ({error})") from error
        self._compiling = threading.Lock()
        self._models: dict[int, Any] = {}
        self._idle: dict[int, list[Any]] = {}
        self._prepare(1)

    def _prepare(self, streams: int) -> None:
        """Compile for this many callers at once."""
        settings = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self._threads,
            # Pinned threads would wait for others on their core: decoder, encoder, programs.
            "ENABLE_CPU_PINNING": False,
        }
        with self._compiling:
            if streams in self._models:
                return
            try:
                compiled = self._core.compile_model(self._network, "CPU", settings)
            except RuntimeError as error:
                raise ModelError(
                    f"OpenVINO cannot run the network ({error}): use `backend='torch'`"
                ) from error
            self._idle[streams] = []
            self._models[streams] = compiled

    def __call__(self, x: Tensor) -> Tensor:
        """Return the model's output for (N, C, H, W), fp32 on the CPU."""
        streams = max(1, self._threads // torch.get_num_threads())
        if streams not in self._models:
            self._prepare(streams)
        try:
            # Atomic: no two threads get the same request.
            request = self._idle[streams].pop()
        except IndexError:
            request = self._models[streams].create_infer_request()
        results: list[Tensor] = []
        try:
            for single in torch.split(x.float().contiguous(), 1):
                request.infer([single.numpy()], share_inputs=True)
                results.append(torch.from_numpy(request.get_output_tensor().data.copy()))
        except RuntimeError as error:
            if "alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise
        self._idle[streams].append(request)
        return torch.cat(results) if len(results) > 1 else results[0]


def _quantized(model: Any, samples: Sequence[Tensor]) -> Any:
    """The model in int8, with ranges of activations measured on the samples."""
    nncf = optional("nncf", extra="openvino", purpose="`precision='int8'`")
    if not samples:
        raise ModelError("precision int8 needs pictures to measure ranges on: none were given")
    data = nncf.Dataset([sample.numpy() for sample in samples])
    # It draws progress bars on standard output, where a video may be going.
    nncf.set_log_level(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        return nncf.quantize(
            model, data, subset_size=len(samples), advanced_parameters=_advanced(nncf)
        )


def _advanced(nncf: Any) -> Any:
    # The widest range of all pictures, not the mean of their ranges, which would clip the values of
    # the most blurred parts, and those are what a deblurrer is for (0.03 instead of 0.07 dB lost on
    # real pairs, calibrated on another camera's video).
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
