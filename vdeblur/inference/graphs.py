"""Record calls as CUDA graphs: the kernels of a call, for one shape, launched together.

That saves the host's time to launch each, some 5 µs, and to ask for it from Python among other
threads. Knows tensors and callables only.
"""

from __future__ import annotations

import importlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vdeblur.inference.devices import empty_cache, is_out_of_memory, synchronize

#: Takes tensors and others, and returns one tensor or a tuple of them.
Call = Callable[..., Any]
_cuda: Any = torch.cuda  # parts of it have no types
_torch: Any = importlib.import_module("torch._C")
_recording = threading.Lock()  # torch records one graph at a time
#: Most pixels of a network's pass that is worth recording, 1920×1088: beyond, kernels take longer
#: than launching them (docs/performance.md), and a graph holds the memory of a pass.
MOST_PIXELS = 1920 * 1088
#: Calls before recording, in which libraries allocate workspaces and kernels are compiled.
_WARM_UP = 2
#: Most shapes that are kept; and calls of one that had to go before it is prepared again, lest some
#: that take turns are prepared all the time.
_SHAPES, _PAUSE = 4, 50


class Recorder:
    """Records calls as CUDA graphs for inputs of one shape and strides.

    All use the same memory, as their results are copied and none runs beside another.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._side: Any = None
        self._last: Any = None

    def __call__(self, call: Call, *inputs: Any) -> Call:
        """Record call(*inputs); its results are tensors of their own, on the caller's stream."""
        device = _device_of(inputs)
        current = torch.cuda.current_stream(device)
        if self._pool is None:
            self._pool, self._side = _cuda.graph_pool_handle(), _cuda.Stream(device)
        # A clone keeps the strides: channels-last stays so.
        static = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            for _ in range(_WARM_UP):
                call(*static)
        graph = _cuda.CUDAGraph()
        # Only this thread is checked: others decode, encode and allocate pinned memory.
        mode = {"capture_error_mode": "thread_local"}
        recording = _cuda.graph(graph, pool=self._pool, stream=self._side, **mode)
        try:
            # Where it fails, torch leaves this thread on the graph's stream.
            with _recording, torch.cuda.stream(current), recording:
                result = call(*static)
        except Exception:
            _end_allocating(device, self._pool)
            raise
        current.wait_stream(self._side)

        def replay(*new: Any) -> Any:
            current = torch.cuda.current_stream(device)
            if self._last not in (None, current):
                current.wait_stream(self._last)
            self._last = current
            for ours, given in zip(static, new, strict=True):
                if isinstance(ours, Tensor):
                    ours.copy_(given)
            graph.replay()
            # The next replay writes over it.
            if isinstance(result, Tensor):
                return result.clone()
            return tuple(part.clone() for part in result)

        return replay


class Recorded:
    """A function of tensors that is quicker for each of their shapes from its second call on.

    The first call of a shape is plain, since a video's last batch or a lone picture is not worth
    compiling and recording. At the second, what is to take its place is compared with it; what
    fails or differs is given up, for later shapes too, and a note says so. Where memory runs out,
    all that is kept goes, and the call is made once more; a graph that does not fit even so is not
    made. Calls of several threads wait for each other.

    Args:
        plain: The function. It may take what is no tensor, too, if that has a hash.
        note: Called once for each of both steps that cannot be taken.
        differs: Says how results differ from expected ones, as a part of a sentence; None if they
            agree.
        quick: A faster function; None is `plain`.
        name: The runtime that `quick` is of, for notes.
        example: Makes of inputs those that results are compared on; None takes them themselves.
        worth: Whether calls are recorded, by their inputs; None is always.
        record: Makes a replaying callable of a callable and inputs; None where none can be made.
    """

    def __init__(
        self,
        plain: Call,
        *,
        note: Callable[[str], object],
        differs: Callable[[Any, Any], str | None],
        quick: Call | None = None,
        name: str = "",
        example: Callable[..., Sequence[Any]] | None = None,
        worth: Callable[..., bool] | None = None,
        record: Callable[..., Call] | None,
    ) -> None:
        self._plain, self._quick, self._record = plain, quick or plain, record
        self._name, self._note, self._differs = name, note, differs
        self._example, self._worth = example, worth
        self._made: OrderedDict[Hashable, Call] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()
        self._calling = threading.Lock()

    def __call__(self, *inputs: Any) -> Any:
        """Return plain(*inputs), in tensors of their own."""
        with self._calling:
            try:
                return self._call(inputs)
            except Exception as error:
                if not (self._made and is_out_of_memory(error)):
                    raise
            self._made.clear()
            self._seen.clear()
            empty_cache(_device_of(inputs))
            return self._call(inputs)

    def _call(self, inputs: Sequence[Any]) -> Any:
        key = tuple(map(_kind_of, inputs))
        if key not in self._made:
            self._seen[key] += 1
            if self._seen[key] < 2:
                return self._plain(*inputs)
            synchronize(_device_of(inputs))  # so that what is dropped is in nobody's use
            while len(self._made) >= _SHAPES:
                self._seen[self._made.popitem(last=False)[0]] = -_PAUSE
            # What is made in inference mode may not be written to outside of it; before 2.11, torch
            # could then record nothing more there (pytorch#166792).
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = self._best(inputs)
        self._made.move_to_end(key)
        return self._made[key](*inputs)

    def _best(self, inputs: Sequence[Any]) -> Call:
        """The quickest way for inputs of these shapes and layouts that can be used."""
        record = self._record if self._worth is None or self._worth(*inputs) else None
        if self._quick is self._plain and record is None:
            return self._plain
        given = inputs if self._example is None else self._example(*inputs)
        right = self._plain(*given)
        if self._quick is not self._plain and (wrong := self._wrong(self._quick, given, right)):
            self._note(f"backend {self._name} cannot be used here ({wrong}): going on with torch")
            self._quick = self._plain
        if record is None:
            return self._quick
        replay: list[Call] = []

        def recorded(*given: Any) -> Any:
            replay[:] = [record(self._quick, *given)]
            return replay[0](*given)

        try:
            wrong = self._wrong(recorded, given, right)
        except Exception:  # for want of memory: what is kept goes first, then this graph
            if self._made:
                raise
            return self._quick
        if not wrong:
            return replay[0]
        self._record = None
        self._note(f"CUDA graphs cannot be used here ({wrong}): going on without them")
        return self._quick

    def _wrong(self, call: Call, inputs: Sequence[Any], right: Any) -> str | None:
        """Why a call cannot be used, as a part of a sentence; None if it can."""
        try:
            return self._differs(right, call(*inputs))
        except Exception as error:  # compilers raise all kinds
            if is_out_of_memory(error):
                raise
            return str(error).strip().split("\n")[0] or type(error).__name__


def _end_allocating(device: torch.device, pool: Any) -> None:
    """End what a recording that failed may leave begun, as `torch.cuda.use_mem_pool` ends it.

    torch's allocator would wait for the end, and never again use memory that streams had shared.
    """
    names = "_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool", "_cuda_releasePool"
    with suppress(RuntimeError):  # it has ended
        for name in names:  # of the first two, torch has the second before 2.8
            getattr(_torch, name, lambda *_: None)(device.index, pool)


def _device_of(inputs: Sequence[Any]) -> torch.device:
    return next(x.device for x in inputs if isinstance(x, Tensor))


def _kind_of(x: Any) -> Hashable:
    return (tuple(x.shape), x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x
