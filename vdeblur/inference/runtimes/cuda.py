"""Run a network on a CUDA device by recorded graphs, its layers Triton kernels or torch's.

A graph is a network's kernels, recorded once for one shape and launched together. That saves the
host's time to launch each, some 5 µs, which small pictures and small networks wait for. Knows no
video and no files.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vdeblur.errors import DeviceError, ModelError
from vdeblur.inference.calibration import samples_of
from vdeblur.inference.export import legal_size, random_input
from vdeblur.inference.kernels import convolution as kernels
from vdeblur.inference.kernels import quantised
from vdeblur.inference.runtimes.runner import Runner
from vdeblur.networks.base import correction_of, traits_of

Call = Callable[[Tensor], Tensor]
_cuda: Any = torch.cuda

#: Minimum PSNR of a restored picture to torch's, in dB: in half precision, and in fp32.
_HALF_DB, _FULL_DB = 50.0, 80.0
#: The same for 8 bits, which change the network on purpose; less is a fault, not rounding.
_EIGHT_BITS_DB = 40.0
#: Least compute capabilities whose tensor cores multiply such codes, and Triton compiles for.
_CAPABILITIES = {"int8": (8, 0), "fp8": (8, 9)}
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
    calibration: Sequence[Tensor] = (),
) -> Runner:
    """Return the runner of `network` in floating point.

    Args:
        network: On the device, in the precision it is to have.
        device: A CUDA device.
        fused: Whether its layers become Triton kernels.
        note: Called with what a user should know, such as that graphs cannot be used.
        precision: Not used: the network has it already.
        calibration: Not used: floating point needs no ranges.

    Raises:
        DeviceError: Triton is missing, and `fused` needs it.
        ModelError: The kernels compute another picture.
    """
    quick = kernels.fuse(network) if fused else network
    call = correction_of(quick)
    if fused and (wrong := differs(network, call, device)):
        raise ModelError(f"the fused kernels {wrong}: use `backend='torch'`")
    return Graphs(call, note=note)


def require(network: nn.Module, precision: str, device: torch.device) -> None:
    """Check that the network can be run in 8 bits on a CUDA device.

    Raises:
        DeviceError: Triton is missing, or the GPU has no tensor cores for the precision.
        ModelError: The network has no residual blocks that the kernels can compute.
    """
    if not kernels.available():
        raise DeviceError(
            f"precision {precision} on {device} needs Triton, which comes with CUDA builds of "
            "PyTorch: install one, or use `precision='auto'`"
        )
    have, needed = torch.cuda.get_device_capability(device), _CAPABILITIES[precision]
    if have < needed:
        raise DeviceError(
            f"precision {precision} needs a GPU of compute capability {needed[0]}.{needed[1]} or "
            f"more, and {device} has {have[0]}.{have[1]}: use `precision='fp16'`"
        )
    if not quantised.blocks_of(network) or not traits_of(network).supports_half:
        raise ModelError(
            f"precision {precision} on {device} is for networks with residual blocks of 32, 64, … "
            f"channels, such as mimo-unet, which {type(network).__name__} is not: "
            "use `precision='auto'`"
        )


def create_8_bit_runner(
    network: nn.Module,
    *,
    device: torch.device,
    precision: str,
    calibration: Sequence[Tensor],
    note: Callable[[str], object],
) -> Runner:
    """Return the runner of `network` with its residual blocks in 8 bits.

    Args:
        network: On the device, in half precision.
        device: A CUDA device.
        precision: "int8" or "fp8".
        calibration: Inputs (N, 3 or more, H, W) on which the ranges of the codes are measured.
        note: Called with what a user should know, such as that graphs cannot be used.

    Raises:
        ModelError: There are no inputs, or the kernels compute another picture.
    """
    samples = samples_of(calibration, traits_of(network).size_multiple)
    if not samples:
        raise ModelError(
            f"precision {precision} needs pictures to measure ranges on: none were given"
        )
    dtype = next(p.dtype for p in network.parameters())
    pictures = [one.to(device, dtype, memory_format=torch.channels_last) for one in samples]
    ranges = quantised.measure_ranges(network, correction_of(network), pictures)
    quick = kernels.fuse(quantised.quantise(network, ranges, quantised.KINDS[precision]))
    call = correction_of(quick)
    if wrong := differs(network, call, device, x=pictures[0], wanted=_EIGHT_BITS_DB):
        raise ModelError(f"the network's {precision} kernels {wrong}: use `precision='fp16'`")
    return Graphs(call, note=note)


def differs(
    network: nn.Module,
    call: Call,
    device: torch.device,
    *,
    x: Tensor | None = None,
    wanted: float | None = None,
) -> str | None:
    """Compare a call's correction with the network's.

    Args:
        network: The reference, on the device.
        call: What computes its correction.
        device: Where.
        x: An input of the network; None takes `random_input`.
        wanted: Minimum PSNR of the restored pictures in dB; None is 50 in half precision and 80 in
            fp32, where torch and the kernels may use TF32 multiplications.

    Returns:
        How they differ, as a part of a sentence; None if they agree.
    """
    dtype = next((p.dtype for p in network.parameters()), torch.float32)
    if x is None:
        x = random_input(network, *legal_size(network, 1, 64, 96)).to(device, dtype)
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected, got = correction_of(network)(x).float(), call(x).float()
    if expected.shape != got.shape:
        return f"give {tuple(got.shape)} instead of {tuple(expected.shape)}"
    error = float((expected - got).square().mean())
    decibels = -10 * math.log10(error) if error > 0 else math.inf if error == 0 else -math.inf
    if wanted is None:
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
