"""A network on a CUDA device by recorded graphs, its layers Triton kernels or torch's.

A graph is a network's kernels recorded once for one shape and launched together: what is saved is
the host's time to launch each, some 5 µs, which small pictures and small networks wait for.
Knows no video and no files.
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

# Half precision, and other kernels, may change a restored picture so little; and fp32 this little.
_HALF_DB, _FULL_DB = 50.0, 80.0
# 8 bits are another network by intention; less than this is a fault, not a rounding.
_EIGHT_BITS_DB = 40.0
# Compute capabilities whose tensor cores multiply such codes, and that Triton compiles for.
_CAPABILITIES = {"int8": (8, 0), "fp8": (8, 9)}
_WARM_UP = 2  # calls before recording: libraries allocate workspaces, kernels are compiled
_SHAPES = 4  # graphs that are kept: each holds the memory of a pass


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
        raise ModelError(f"the fused kernels {wrong}: use --backend torch")
    return Graphs(call, note=note)


def require(network: nn.Module, precision: str, device: torch.device) -> None:
    """DeviceError or ModelError where the network cannot be run in 8 bits on a CUDA device."""
    if not kernels.available():
        raise DeviceError(
            f"precision {precision} on {device} needs Triton, which comes with CUDA builds of "
            "PyTorch: install one, or use --precision auto"
        )
    have, needed = torch.cuda.get_device_capability(device), _CAPABILITIES[precision]
    if have < needed:
        raise DeviceError(
            f"precision {precision} needs a GPU of compute capability {needed[0]}.{needed[1]} or "
            f"more, and {device} has {have[0]}.{have[1]}: use --precision fp16"
        )
    if not quantised.blocks_of(network) or not traits_of(network).supports_half:
        raise ModelError(
            f"precision {precision} on {device} is for networks with residual blocks of 32, 64, … "
            f"channels, such as mimo-unet, which {type(network).__name__} is not: "
            "use --precision auto"
        )


def create_8_bit_runner(
    network: nn.Module,
    *,
    device: torch.device,
    precision: str,
    calibration: Sequence[Tensor],
    note: Callable[[str], object],
) -> Runner:
    """The runner of `network` (on the device, in half precision), its residual blocks in 8 bits.

    calibration: pictures (N, 3, H, W) in [0, 1], whose values' ranges the codes are made for. See
    `start` for the rest.
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
        raise ModelError(f"the network's {precision} kernels {wrong}: use --precision fp16")
    return Graphs(call, note=note)


def differs(
    network: nn.Module,
    call: Call,
    device: torch.device,
    *,
    x: Tensor | None = None,
    wanted: float | None = None,
) -> str | None:
    """How far call's correction is from the network's, as a sentence's part; None if near enough.

    Peak signal-to-noise ratio of the restored pictures: 50 dB in half precision, 80 dB in fp32,
    where TF32 multiplications are allowed to torch and to the kernels; or as `wanted`. x: pictures
    as the network takes them, instead of some of no video.
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
    """A callable on CUDA tensors, recorded for each shape that comes a second time.

    record: makes a replaying callable of a callable and an input. The first call of a shape is a
    plain one, since a video's last batch or a lone picture is not worth recording. Where recording
    fails, calls stay plain, and `note` is told so, once. Not for several threads at once.
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
        """(N, 3, H, W) → the callable's result, a tensor of its own."""
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
    """call(x) as a CUDA graph: the result takes inputs of x's shape and strides."""
    current = torch.cuda.current_stream(x.device)
    side = _cuda.Stream(x.device)
    static = x.clone()  # keeps the strides: channels-last stays so
    side.wait_stream(current)
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            call(static)
    side.synchronize()
    torch.cuda.empty_cache()  # a graph has memory of its own, and cannot have what lies idle
    graph = _cuda.CUDAGraph()
    # Only this thread's calls count: others decode, encode and allocate pinned memory meanwhile.
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
