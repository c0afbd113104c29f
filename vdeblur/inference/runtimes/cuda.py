"""Run a network on a GPU by fused or compiled layers, and by recorded CUDA graphs.

Small pictures and small networks wait for the host to launch their kernels one by one
(`vdeblur.inference.graphs`). Knows no video and no files.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError
from vdeblur.inference.devices import empty_cache, is_out_of_memory, synchronize
from vdeblur.inference.graphs import Recorder
from vdeblur.inference.kernels.convolution import fuse
from vdeblur.inference.runtimes.runner import Runner
from vdeblur.networks.base import correction_of
from vdeblur.system.optional import installed, optional

Call = Callable[[Tensor], Tensor]
Record = Callable[[Call, Tensor], Call]

#: Words of torch.compile. Precisions are the network's own in TensorRT, too (torch-tensorrt 2.10).
_COMPILED: dict[str, dict[str, Any]] = {
    "compile": {},
    # It would go on with torch otherwise, unsaid.
    "tensorrt": {"backend": "tensorrt", "options": {"pass_through_build_failures": True}},
}
#: Minimum signal to noise of a correction to torch's, in dB: either may round to fp16 or TF32 at
#: each layer, or to bf16, of three bits fewer. The signal is 1, or the largest value if it is more.
_AGREEMENT, _BF16_AGREEMENT = 50.0, 32.0
#: Most shapes that are kept; and calls of one that had to go before it is prepared again, lest some
#: that take turns are prepared all the time.
_SHAPES, _PAUSE = 4, 50
#: Most pixels of a pass that is recorded, 1920×1088: beyond, kernels take longer than launching
#: them (docs/performance.md), and graphs hold the memory of a pass.
_RECORDED = 1920 * 1088


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
        runtime: "cudagraphs", "fused", "compile" or "tensorrt".
        device: A GPU. Only CUDA has graphs, ROCm's name in torch included.
        note: Called with what a user should know, such as that graphs cannot be used.
        precision: Not used: the network has it already.
    """
    plain = quick = correction_of(network)
    if runtime == "fused":
        quick = correction_of(fuse(network))
    elif runtime in _COMPILED:
        # For each shape; after the eighth, torch goes on without.
        quick = torch.compile(plain, dynamic=False, **_COMPILED[runtime])
    record = Recorder() if device.type == "cuda" else None
    return Graphs(plain, quick, name=runtime, note=note, record=record)


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


class Graphs:
    """A network's correction, quicker from the second call of a shape on.

    The first call of a shape is torch's, since a video's last batch or a lone picture is not worth
    compiling and recording. At the second, what is to take its place is compared with torch, on
    noise; what fails or differs is left, for good, and a note says so. Where memory runs out, all
    that is kept goes, and the call is made once more. Calls of several threads wait for each other.

    Args:
        plain: The correction as torch computes it.
        quick: A faster one, or the same.
        name: The runtime that `quick` is of, for notes.
        note: Called once for each of both steps that cannot be taken.
        record: Makes a replaying callable of a callable and an input; None where none can be made.
        shapes: Most shapes that are kept.
    """

    def __init__(
        self,
        plain: Call,
        quick: Call,
        *,
        name: str,
        note: Callable[[str], object],
        record: Record | None,
        shapes: int = _SHAPES,
    ) -> None:
        self._plain, self._quick, self._record = plain, quick, record
        self._name, self._note, self._shapes = name, note, shapes
        self._made: OrderedDict[tuple[Any, ...], Call] = OrderedDict()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._calling = threading.Lock()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the correction for (N, C, H, W), as a tensor of its own."""
        with self._calling:
            try:
                return self._call(x)
            except Exception as error:
                if not (self._made and is_out_of_memory(error)):
                    raise
            self._made.clear()
            self._seen.clear()
            empty_cache(x.device)
            return self._call(x)

    def _call(self, x: Tensor) -> Tensor:
        # In inference mode torch makes tensors that may not be written to outside of it.
        mode = torch.is_inference_mode_enabled()
        key = (tuple(x.shape), x.stride(), x.dtype, x.device, mode)
        if key not in self._made:
            self._seen[key] += 1
            if self._seen[key] < 2:
                return self._plain(x)
            synchronize(x.device)  # so that what is dropped is in nobody's use
            while len(self._made) >= self._shapes:
                self._seen[self._made.popitem(last=False)[0]] = -_PAUSE
            self._made[key] = self._best(x)
        self._made.move_to_end(key)
        return self._made[key](x)

    def _best(self, x: Tensor) -> Call:
        """The quickest way for inputs of this shape and layout that can be used."""
        records = self._record is not None and x[:, 0].numel() <= _RECORDED
        if self._quick is self._plain and not records:
            return self._plain
        noise = torch.Generator(x.device).manual_seed(0)
        example = torch.empty_like(x).uniform_(generator=noise)
        right = self._plain(example)
        if self._quick is not self._plain and (wrong := _wrong(self._quick, example, right)):
            self._note(f"backend {self._name} cannot be used here ({wrong}): going on with torch")
            self._quick = self._plain
        if records and self._record is not None:
            replay: list[Call] = []
            record = self._record

            def recorded(given: Tensor) -> Tensor:
                replay[:] = [record(self._quick, given)]
                return replay[0](given)

            wrong = _wrong(recorded, example, right)
            if not wrong:
                return replay[0]
            self._record = None
            self._note(f"CUDA graphs cannot be used here ({wrong}): going on without them")
        return self._quick


def _wrong(call: Call, x: Tensor, right: Tensor) -> str | None:
    """Why a call cannot be used, as a part of a sentence; None if it can."""
    try:
        return differs(right, call(x))
    except Exception as error:  # compilers raise all kinds
        if is_out_of_memory(error):
            raise
        return str(error).strip().split("\n")[0] or type(error).__name__
