"""Record calls as CUDA graphs: the kernels of a call, for one shape, launched together.

That saves the host's time to launch each, some 5 µs, and to ask for it from Python among other
threads. Knows tensors and callables only.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from vdeblur.color import as_int16
from vdeblur.inference.devices import empty_cache

#: Takes tensors, and returns one or a tuple of them.
Call = Callable[..., Any]
_cuda: Any = torch.cuda  # parts of it have no types
_recording = threading.Lock()  # torch records one graph at a time
#: Calls before recording, in which libraries allocate workspaces and kernels are compiled.
_WARM_UP = 2
#: Most shapes that `Recorded` keeps.
_SHAPES = 4


class Recorder:
    """Records calls as CUDA graphs for inputs of one shape and strides.

    All use the same memory, as their results are copied and none runs beside another.
    """

    def __init__(self) -> None:
        self._pool: Any = None
        self._side: Any = None
        self._last: Any = None

    def __call__(self, call: Call, *inputs: Tensor) -> Call:
        """Record call(*inputs); its results are tensors of their own, on the caller's stream."""
        device = inputs[0].device
        current = torch.cuda.current_stream(device)
        if self._pool is None:
            self._pool, self._side = _cuda.graph_pool_handle(), _cuda.Stream(device)
        # What is made in inference mode could not be written outside it, for a replay.
        with torch.inference_mode(False), torch.no_grad():
            static = [x.clone() for x in inputs]  # keeps the strides: channels-last stays so
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                for _ in range(_WARM_UP):
                    call(*static)
            graph = _cuda.CUDAGraph()
            # Only this thread is checked: others decode, encode and allocate pinned memory.
            mode = {"capture_error_mode": "thread_local"}
            with _recording, _cuda.graph(graph, pool=self._pool, stream=self._side, **mode):
                result = call(*static)
            current.wait_stream(self._side)

        def replay(*new: Tensor) -> Any:
            current = torch.cuda.current_stream(device)
            if self._last not in (None, current):
                current.wait_stream(self._last)
            self._last = current
            for ours, given in zip(static, new, strict=True):
                ours.copy_(given)
            graph.replay()
            # The next replay writes over it.
            if isinstance(result, Tensor):
                return result.clone()
            return tuple(part.clone() for part in result)

        return replay


class Recorded:
    """A function of codes of pictures, recorded for each of their shapes that comes again.

    Args:
        call: Takes a kind, which is no tensor, and tensors; returns a tuple of integer tensors.
        note: Called once if nothing can be recorded; the calls are then plain ones.
        record: Makes a replaying callable of a callable and inputs; None is a `Recorder`.
    """

    def __init__(
        self,
        call: Call,
        *,
        note: Callable[[str], object],
        record: Callable[..., Call] | None = None,
    ) -> None:
        self._call, self._note = call, note
        self._record: Callable[..., Call] | None = record or Recorder()
        self._seen: Counter[Hashable] = Counter()
        self._made: OrderedDict[Hashable, Call] = OrderedDict()

    def __call__(self, kind: Hashable, *inputs: Tensor) -> Any:
        """Return call(kind, *inputs)."""
        # In inference mode torch makes tensors that may not be written to outside of it.
        mode = torch.is_inference_mode_enabled()
        key = (kind, mode, *((tuple(x.shape), x.stride(), x.dtype) for x in inputs))
        if key in self._made:
            self._made.move_to_end(key)
            return self._made[key](*inputs)
        self._seen[key] += 1
        expected = self._call(kind, *inputs)
        if self._record is None or self._seen[key] < 2:
            return expected
        try:
            replay = self._record(lambda *given: self._call(kind, *given), *inputs)
            same = map(torch.equal, map(as_int16, expected), map(as_int16, replay(*inputs)))
            wrong = "" if all(same) else "they give other codes"
        except Exception as error:  # for want of memory too: the plain call takes less
            empty_cache(inputs[0].device)
            wrong = str(error).strip().split("\n")[0] or type(error).__name__
        if wrong:
            self._record = None
            self._note(f"CUDA graphs cannot be used here ({wrong}): going on without them")
            return expected
        while len(self._made) >= _SHAPES:
            self._made.popitem(last=False)
        self._made[key] = replay
        return expected
