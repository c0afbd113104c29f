"""Run a network on a CUDA device by recorded graphs, its layers Triton kernels or torch's.

A graph is a network's kernels, recorded once for one shape and launched together. That saves the
host's time to launch each, some 5 µs, which small pictures and small networks wait for. Knows no
video and no files.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import ModelError
from vdeblur.inference.export import legal_size, random_input
from vdeblur.inference.kernels import convolution as kernels
from vdeblur.inference.runtimes.runner import Runner
from vdeblur.networks.base import correction_of

Call = Callable[[Tensor], Tensor]
_cuda: Any = torch.cuda

#: Minimum PSNR of a restored picture to torch's, in dB: in half precision, and in fp32.
_HALF_DB, _FULL_DB = 50.0, 80.0
#: Calls before recording, in which libraries allocate workspaces and kernels are compiled.
_WARM_UP = 2
#: Most graphs that are kept: each holds the memory of a pass.
_SHAPES = 4


def create_runner(
    network: nn.Module,
    *,
    device: torch.device,
    fused: bool,
    note: Callable[[str], object],
    precision: str = "",
) -> Runner:
    """Return the runner of `network`.

    Args:
        network: On the device, in the precision it is to have.
        device: A CUDA device.
        fused: Whether its layers become Triton kernels.
        note: Called with what a user should know, such as that graphs cannot be used.
        precision: Not used: the network has it already.

    Raises:
        DeviceError: Triton is missing, and `fused` needs it.
        ModelError: The kernels compute another picture.
    """
    quick = kernels.fuse(network) if fused else network
    call = correction_of(quick)
    if fused and (wrong := differs(network, call, device)):
        raise ModelError(f"the fused kernels {wrong}: use `backend='torch'`")
    return Graphs(call, note=note)


def differs(network: nn.Module, call: Call, device: torch.device) -> str | None:
    """Compare a call's correction with the network's.

    Args:
        network: The reference, on the device.
        call: What computes its correction.
        device: Where.

    Returns:
        How they differ, as a part of a sentence; None if the restored pictures agree to 50 dB in
        half precision, and 80 in fp32, where torch and the kernels may use TF32 multiplications.
    """
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    x = random_input(network, *legal_size(network, 1, 64, 96)).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, got = correction_of(network)(x).float(), call(x).float()
    if expected.shape != got.shape:
        return f"give {tuple(got.shape)} instead of {tuple(expected.shape)}"
    error = float((expected - got).square().mean())
    decibels = -10 * math.log10(error) if error > 0 else math.inf if error == 0 else -math.inf
    wanted = _FULL_DB if dtype == torch.float32 else _HALF_DB
    if decibels >= wanted:
        return None
    return f"agree with torch to {decibels:.1f} dB only, less than {wanted:.0f} dB"


class Graphs:
    """A callable on CUDA tensors that is recorded for each shape that comes a second time.

    The first call of a shape is a plain one, since a video's last batch or a lone picture is not
    worth recording. If recording fails, calls stay plain. Not for several threads at once.

    Args:
        call: What is recorded.
        note: Called once if recording fails.
        record: Makes a replaying callable of a callable and an input; None is `record_graph`.
        shapes: Most graphs that are kept.
    """

    def __init__(
        self,
        call: Call,
        *,
        note: Callable[[str], object],
        record: Callable[[Call, Tensor], Call] | None = None,
        shapes: int = _SHAPES,
    ) -> None:
        self._call, self._note, self._shapes = call, note, shapes
        self._record = record_graph if record is None else record
        self._graphs: OrderedDict[tuple[Any, ...], Call] = OrderedDict()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._plain = False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the callable's result for (N, C, H, W), as a tensor of its own."""
        if self._plain:
            return self._call(x)
        key = (tuple(x.shape), x.stride(), x.dtype, x.device)
        replay = self._graphs.get(key)
        if replay is None:
            self._seen[key] += 1
            if self._seen[key] < 2:
                return self._call(x)
            while len(self._graphs) >= self._shapes:
                self._graphs.popitem(last=False)
            replay = self._recorded(x)
            if replay is None:
                return self._call(x)
            self._graphs[key] = replay
        self._graphs.move_to_end(key)
        return replay(x)

    def _recorded(self, x: Tensor) -> Call | None:
        try:
            return self._record(self._call, x)
        except RuntimeError as error:
            self._plain = True
            self._graphs.clear()
            if x.device.type == "cuda":
                torch.cuda.empty_cache()
            reason = str(error).strip().split("\n")[0]
            self._note(f"CUDA graphs cannot be used here ({reason}): going on without them")
            return None


def record_graph(call: Call, x: Tensor) -> Call:
    """Record call(x) as a CUDA graph; the result takes inputs of x's shape and strides."""
    current = torch.cuda.current_stream(x.device)
    side = _cuda.Stream(x.device)
    static = x.clone()  # keeps the strides: channels-last stays so
    side.wait_stream(current)
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call(static)
    side.synchronize()
    torch.cuda.empty_cache()  # a graph has memory of its own, and cannot use torch's idle blocks
    graph = _cuda.CUDAGraph()
    # Only this thread's calls are checked: others decode, encode and allocate pinned memory.
    with (
        torch.no_grad(),
        _cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        result = call(static)
    current.wait_stream(side)

    def replay(new: Tensor) -> Tensor:
        static.copy_(new)
        graph.replay()
        # The next replay writes over it.
        return result.clone()

    return replay
