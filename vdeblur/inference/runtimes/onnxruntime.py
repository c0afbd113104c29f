"""Run a network in ONNX Runtime, by its TensorRT or CUDA provider on a GPU, else on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError, UsageError
from vdeblur.inference.export import to_onnx
from vdeblur.inference.runtimes.conversion import (
    cache_key_parts,
    check_against,
    load_or_convert,
)
from vdeblur.inference.runtimes.runner import Correction, Runner
from vdeblur.system.optional import optional


def require() -> None:
    """Raise UsageError if a package is missing."""
    optional("onnxruntime", extra="onnx", purpose="`backend='onnxruntime'`")
    optional("onnx", extra="onnx", purpose="`backend='onnxruntime'`")


def create_runner(
    network: nn.Module,
    *,
    device: torch.device,
    precision: str = "fp32",
    note: Callable[[str], object] = lambda _: None,
) -> Runner:
    """Return the runner of `network`, from the cache if it is there; see `choice.with_runtime`."""
    runtime = optional("onnxruntime", extra="onnx", purpose="`backend='onnxruntime'`")
    onnx = optional("onnx", extra="onnx", purpose="`backend='onnxruntime'`")
    key_parts = cache_key_parts(network, backend="onnx", onnx=onnx.__version__)

    def convert(folder: Path) -> None:
        # Traced on the CPU, so that the graph that is kept belongs to no device.
        on_cpu = next(network.parameters(), torch.empty(0)).device.type == "cpu"
        module = network if on_cpu else network.cpu()
        try:
            to_onnx(Correction(module), folder / "network.onnx", output="correction")
        finally:
            network.to(device)

    def load(folder: Path) -> Runner:
        return _Session(runtime, folder / "network.onnx", device)

    def check(runner: Runner) -> str | None:
        return check_against(network, runner, device)

    return load_or_convert("onnx", key_parts, convert, load, check, note=note)


def providers_for(runtime: Any, device: torch.device) -> list[Any]:
    """Return the execution providers to try, best first; UsageError if none reaches the GPU."""
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    have = runtime.get_available_providers()
    options = {"device_id": device.index or 0}
    chosen: list[Any] = [
        (name, options)
        for name in ("TensorrtExecutionProvider", "CUDAExecutionProvider")
        if name in have
    ]
    if not chosen:
        raise UsageError(
            f"this ONNX Runtime has no provider for {device} (it has {', '.join(have)}): "
            "pip install onnxruntime-gpu, or use `backend='torch'`"
        )
    return chosen


class _Session:
    """An inference session of free batch, height and width; may be called by several threads."""

    def __init__(self, runtime: Any, file: Path, device: torch.device) -> None:
        options = runtime.SessionOptions()
        # As many as torch would use: what its caller or OMP_NUM_THREADS asked for.
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin between layers would take the cores from decoder and encoder.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        self.device = device
        providers = providers_for(runtime, device)
        try:
            self._session = runtime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # its exceptions share no class of their own
            raise ModelError(
                f"ONNX Runtime cannot run the network ({error}): use `backend='torch'`"
            ) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """The network's input, fp32 on the device → (N, 3, H, W), there too."""
        x = x.float().contiguous()
        if self.device.type == "cpu":
            return torch.from_numpy(self._session.run(None, {self._input: x.numpy()})[0])
        output = torch.empty(len(x), 3, *x.shape[2:], device=x.device)
        binding = self._session.io_binding()
        index = self.device.index or 0
        for bind, name, tensor in (
            (binding.bind_input, self._input, x),
            (binding.bind_output, "correction", output),
        ):
            shape = tuple(tensor.shape)
            bind(name, "cuda", index, "float32", shape, tensor.data_ptr())
        # The session has a stream of its own.
        torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return output
