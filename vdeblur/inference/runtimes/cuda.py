"""Run a network on a GPU by recorded CUDA graphs, compiled or as it is.

Small pictures and small networks wait for the host to launch their kernels one by one
(`vdeblur.inference.graphs`). Knows no video and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError
from vdeblur.inference.graphs import MOST_PIXELS, Recorded, Recorder
from vdeblur.inference.runtimes.runner import Runner
from vdeblur.networks.base import correction_of
from vdeblur.system.optional import installed, optional

#: Words of torch.compile. Precisions are the network's own in TensorRT, too (torch-tensorrt 2.10).
_COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    # It would go on with torch otherwise, unsaid.
    "tensorrt": {"backend": "tensorrt", "options": {"pass_through_build_failures": True}},
}
#: Minimum signal to noise of a correction to torch's, in dB: either may round to fp16 or TF32 at
#: each layer, or to bf16, of three bits fewer. The signal is 1, or the largest value if it is more.
_AGREEMENT, _BF16_AGREEMENT = 50.0, 32.0


def require(runtime: str) -> None:
    """Check that a runtime's compiler is there.

    Raises:
        MissingPackageError: torch-tensorrt is missing.
        DeviceError: Triton is missing.
    """
    if runtime == "tensorrt":
        optional("torch_tensorrt", extra="tensorrt", purpose="`backend='tensorrt'`")
    elif runtime == "compile" and not installed("triton"):
        raise DeviceError(
            "backend compile needs Triton, which comes with PyTorch's builds for GPUs on Linux: "
            "install one, or use `backend='auto'`"
        )


def create_runner(
    network: nn.Module,
    *,
    runtime: str,
    device: torch.device,
    note: Callable[[str], object],
    precision: str = "",
) -> Runner:
    """Return the runner of `network`.

    Args:
        network: On the device, in the precision it is to have.
        runtime: "cudagraphs", "compile" or "tensorrt".
        device: A GPU. Only CUDA has graphs, ROCm's name in torch included.
        note: Called with what a user should know, such as that graphs cannot be used.
        precision: Not used: the network has it already.
    """
    plain = quick = correction_of(network)
    if runtime in _COMPILED:
        # For each shape; after the eighth, torch goes on without.
        quick = torch.compile(plain, dynamic=False, **_COMPILED[runtime])
    recorded = Recorded(
        plain,
        note=note,
        differs=differs,
        quick=quick,
        name=runtime,
        example=_noise,
        worth=lambda x: x[:, 0].numel() <= MOST_PIXELS,
        record=Recorder() if device.type == "cuda" else None,
    )
    return lambda x: recorded(x)


def _noise(x: Tensor) -> list[Tensor]:
    """An input on which networks change something: the first pictures of a film may be black."""
    seed = torch.Generator(x.device).manual_seed(0)
    return [torch.empty_like(x).uniform_(generator=seed)]


def differs(expected: Tensor, got: Tensor) -> str | None:
    """Return how a correction differs from torch's, as a part of a sentence; None if it agrees."""
    if expected.shape != got.shape:
        return f"gives {tuple(got.shape)} instead of {tuple(expected.shape)}"
    # What is not finite in both agrees.
    one, other = (torch.nan_to_num(x.float(), 1e4, 1e4, -1e4) for x in (expected, got))
    signal = max(1.0, float(one.abs().max()))
    error = float((one - other).div(signal).square().mean())
    decibels = -10 * math.log10(error) if error > 0 else math.inf
    wanted = _BF16_AGREEMENT if expected.dtype == torch.bfloat16 else _AGREEMENT
    if decibels >= wanted:
        return None
    return f"agrees with torch to {decibels:.0f} dB only, less than {wanted:.0f} dB"
