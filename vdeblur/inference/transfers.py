"""Pinned buffers, streams and events around a batch callable: copies run beside computation.

On a CUDA device the planes of batch k + 1 are uploaded, and those of batch k − 1 downloaded, while
batch k is computed. On every other device the same call is a plain one. Knows no files and no
threads; what is computed is the deblurrer's business.

    copy-in stream   ── upload 0 ── upload 1 ──────── upload 2 ──
    compute stream              └── restore 0 ── restore 1 ── restore 2
    copy-out stream                          └── download 0 ── download 1
    host             fill 0, fill 1 │ wait for download 0, write back, fill 2 │ wait for download 1
    …
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.frames import Frame, FrameBatch, Plane, PlaneLayout
from vdeblur.motion.neighbours import Around, around_of

_cuda: Any = torch.cuda  # its streams and events have no types


class BatchDeblurrer(Protocol):
    """What `Overlap` needs of a `vdeblur.inference.deblurrer.Deblurrer`."""

    @property
    def device(self) -> torch.device:
        """Where `restore_planes` computes."""

    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Planes (N, rows, columns), motion (N, 4, h, w) or None, what is around each picture →
        restored planes on the device, and bool (N,): replaced.
        """


class Backend(Protocol):
    """The device operations that overlapping takes; streams and events are the backend's own."""

    copy_in: Any
    compute: Any
    copy_out: Any

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Issue what follows on this stream."""

    def event(self) -> Any:
        """A new event."""

    def record(self, event: Any, stream: Any) -> None:
        """Place the event behind all that the stream has been given so far."""

    def wait(self, stream: Any, event: Any) -> None:
        """What the stream is given from now on waits for the event; the host does not."""

    def synchronise(self, event: Any) -> None:
        """The host waits for the event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Device time between two events that have happened."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies from and to without stopping the host."""

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Device memory."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy between host and device on the current stream; the host does not wait."""

    def share(self, tensor: Tensor, stream: Any) -> None:
        """Keep the tensor's memory from being reused before the stream is done with it."""


class CudaBackend:
    """`Backend` by torch.cuda."""

    def __init__(self, device: torch.device, *, timing: bool = False) -> None:
        self.device, self.timing = device, timing
        self.copy_in = _cuda.Stream(device)
        self.copy_out = _cuda.Stream(device)
        # The caller's stream, on which the weights were prepared: nothing to hand over.
        self.compute = torch.cuda.current_stream(device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """See `Backend`."""
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        return context

    def event(self) -> Any:
        """See `Backend`."""
        return _cuda.Event(enable_timing=self.timing)

    def record(self, event: Any, stream: Any) -> None:
        """See `Backend`."""
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See `Backend`."""
        stream.wait_event(event)

    def synchronise(self, event: Any) -> None:
        """See `Backend`. The event alone, not its stream."""
        event.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        """See `Backend`."""
        return float(start.elapsed_time(end)) / 1000

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Backend`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `Backend`."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `Backend`."""
        target.copy_(source, non_blocking=True)

    def share(self, tensor: Tensor, stream: Any) -> None:
        """See `Backend`."""
        tensor.record_stream(stream)


@dataclass(frozen=True)
class BatchTimes:
    """When a batch's steps ran: (start, end) in seconds since the first step of the run.

    By the device's own clock where there is one; on a CPU, where nothing is copied, upload and
    download are of no length.
    """

    frames: int
    upload: tuple[float, float]
    compute: tuple[float, float]
    download: tuple[float, float]


@dataclass
class _Slot:
    """The buffers and events of one batch in flight; used again when that batch is done."""

    layout: PlaneLayout
    capacity: int
    staged: list[Tensor]  # pinned, host → device
    resident: list[Tensor]  # on the device
    results: list[Tensor]  # pinned, device → host
    replaced: Tensor  # pinned, bool
    upload: tuple[Any, Any]  # events: start, end
    compute: tuple[Any, Any]
    download: tuple[Any, Any]


@dataclass
class Overlap:
    """Batches of host frames through a deblurrer, with up to `depth` of them in flight.

    A result is given out once `depth` batches are in flight, or at the end: depth 1 gives each
    before it takes the next batch, for the least delay; 2 suffices to keep the device busy. On a
    CPU the depth is of no effect, and a batch of one frame is computed on the frame's own memory,
    without a copy. timeline: a list that gets the BatchTimes of each batch, if the caller wants
    one.
    """

    deblurrer: BatchDeblurrer
    depth: int = field(default=2, kw_only=True)
    timeline: list[BatchTimes] | None = field(default=None, kw_only=True)
    backend: Backend | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}: at least 1 batch is in flight")

    def run(self, batches: Iterable[FrameBatch]) -> Iterator[tuple[FrameBatch, list[bool]]]:
        """Restore the frames of each batch in place; give the batches back in their order.

        With each comes, per frame, whether the deblurrer kept the source instead of its result.
        Frames of a batch must not be touched between taking the batch and giving it out. An
        exception of the deblurrer is raised as it is; batches in flight are then lost. A batch of
        no frames passes through in its place.
        """
        backend = self.backend
        if backend is None and self.deblurrer.device.type == "cuda":
            timing = self.timeline is not None
            backend = CudaBackend(self.deblurrer.device, timing=timing)
        if backend is None:
            return self._run_plainly(batches)
        return _InFlight(self.deblurrer, backend, self.depth, self.timeline).run(batches)

    def _run_plainly(
        self, batches: Iterable[FrameBatch]
    ) -> Iterator[tuple[FrameBatch, list[bool]]]:
        origin: float | None = None
        for batch in batches:
            if not batch.frames:
                yield batch, []
                continue
            start = time.perf_counter()
            origin = start if origin is None else origin
            # One frame is computed on its own memory; several are stacked.
            planes = [
                torch.from_numpy(same[0][None] if len(same) == 1 else np.stack(same))
                for same in _by_plane(batch)
            ]
            restored, replaced = self.deblurrer.restore_planes(
                planes, batch.layout, motion_of(batch.frames), around_of(batch.frames)
            )
            _let_go(batch.frames)
            for before, after, same in zip(planes, restored, _by_plane(batch), strict=True):
                if after is not before:
                    _write_back(after.cpu().numpy(), same)
            flags = replaced.tolist()
            if self.timeline is not None:
                begin, end = start - origin, time.perf_counter() - origin
                times = BatchTimes(len(batch), (begin, begin), (begin, end), (end, end))
                self.timeline.append(times)
            yield batch, flags


class _InFlight:
    """One run of `Overlap` on a device that works beside the host."""

    def __init__(
        self,
        deblurrer: BatchDeblurrer,
        backend: Backend,
        depth: int,
        timeline: list[BatchTimes] | None,
    ) -> None:
        self._deblurrer, self._backend, self._timeline = deblurrer, backend, timeline
        self._depth = depth
        self._free: deque[_Slot] = deque()
        self._pending: deque[tuple[FrameBatch, _Slot | None]] = deque()
        self._origin: Any = None

    def run(self, batches: Iterable[FrameBatch]) -> Iterator[tuple[FrameBatch, list[bool]]]:
        """See `Overlap.run`."""
        try:
            for batch in batches:
                self._submit(batch)
                if len(self._pending) >= self._depth:
                    yield self._finish()
            while self._pending:
                yield self._finish()
        finally:
            # Left early: buffers must outlive the copies that are still under way.
            for slot in (slot for _, slot in self._pending if slot is not None):
                self._backend.synchronise(slot.download[1])

    def _submit(self, batch: FrameBatch) -> None:
        """Fill a staging buffer; issue upload, computation and download; wait for none of them."""
        if not batch.frames:
            self._pending.append((batch, None))
            return
        backend, count = self._backend, len(batch)
        slot = self._slot(batch)
        # Of frames that a GPU decoded: they need no upload (see `vdeblur.inference.gpu_frames`).
        there = [frame.on_device for frame in batch.frames if isinstance(frame.on_device, tuple)]
        if len(there) < count:
            for staged, same in zip(slot.staged, _by_plane(batch), strict=True):
                host = staged.numpy()
                for i, plane in enumerate(same):
                    np.copyto(host[i], plane)
        with backend.on(backend.copy_in):
            if self._origin is None:
                self._origin = backend.event()
                backend.record(self._origin, backend.copy_in)
            backend.record(slot.upload[0], backend.copy_in)
            if len(there) < count:
                for resident, staged in zip(slot.resident, slot.staged, strict=True):
                    backend.copy(resident[:count], staged[:count])
            else:
                for resident, tensors in zip(slot.resident, zip(*there, strict=True), strict=True):
                    for i, tensor in enumerate(tensors):
                        backend.share(tensor, backend.copy_in)
                        backend.copy(resident[i], tensor)
                for frame in batch.frames:
                    frame.on_device = None  # the device's memory is for what is under way
            motion, around = motion_of(batch.frames), around_of(batch.frames)
            if motion is not None:
                motion = self._put(motion)
            if around is not None:
                around = [known and known.moved(self._put, self._share) for known in around]
            backend.record(slot.upload[1], backend.copy_in)
        with backend.on(backend.compute):
            backend.wait(backend.compute, slot.upload[1])
            backend.record(slot.compute[0], backend.compute)
            planes = [resident[:count] for resident in slot.resident]
            restored, replaced = self._deblurrer.restore_planes(
                planes, batch.layout, motion, around
            )
            _let_go(batch.frames)
            backend.record(slot.compute[1], backend.compute)
        with backend.on(backend.copy_out):
            backend.wait(backend.copy_out, slot.compute[1])
            backend.record(slot.download[0], backend.copy_out)
            results = [*slot.results, slot.replaced]
            for result, tensor in zip(results, [*restored, replaced], strict=True):
                # Allocated for the compute stream, and free to it once Python lets go of it here.
                backend.share(tensor, backend.copy_out)
                backend.copy(result[:count], tensor)
            backend.record(slot.download[1], backend.copy_out)
        self._pending.append((batch, slot))

    def _put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, for the compute stream; issued on the stream at hand."""
        backend = self._backend
        staged = backend.pinned(tuple(tensor.shape), tensor.dtype)
        staged.copy_(tensor)
        there = backend.resident(tuple(tensor.shape), tensor.dtype)
        self._share(there)
        backend.copy(there, staged)
        return there

    def _share(self, tensor: Tensor) -> None:
        self._backend.share(tensor, self._backend.compute)

    def _finish(self) -> tuple[FrameBatch, list[bool]]:
        """Wait for the oldest batch's own download, and write it into its frames."""
        batch, slot = self._pending.popleft()
        if slot is None:
            return batch, []
        self._backend.synchronise(slot.download[1])
        for result, same in zip(slot.results, _by_plane(batch), strict=True):
            _write_back(result[: len(batch)].numpy(), same)
        replaced: list[bool] = slot.replaced[: len(batch)].tolist()
        if self._timeline is not None:
            steps = (slot.upload, slot.compute, slot.download)
            self._timeline.append(BatchTimes(len(batch), *map(self._span, steps)))
        self._free.append(slot)
        return batch, replaced

    def _span(self, step: tuple[Any, Any]) -> tuple[float, float]:
        start, end = (self._backend.seconds(self._origin, event) for event in step)
        return start, end

    def _slot(self, batch: FrameBatch) -> _Slot:
        """Buffers for the batch: free ones if they fit, else new ones.

        A slot is free once its download has been waited for, and so its upload has happened too.
        """
        backend, layout, count = self._backend, batch.layout, len(batch)
        if self._free:
            slot = self._free.popleft()
            if slot.layout == layout and slot.capacity >= count:
                return slot
        dtype = torch.uint8 if layout.depth == 8 else torch.uint16
        shapes = [(count, *shape) for shape in layout.shapes]
        with backend.on(backend.copy_in):
            # Of the stream that writes it: memory which the compute stream has given back may still
            # be read by what that stream has yet to do.
            resident = [backend.resident(shape, dtype) for shape in shapes]
        return _Slot(
            layout,
            count,
            staged=[backend.pinned(shape, dtype) for shape in shapes],
            resident=resident,
            results=[backend.pinned(shape, dtype) for shape in shapes],
            replaced=backend.pinned((count,), torch.bool),
            upload=(backend.event(), backend.event()),
            compute=(backend.event(), backend.event()),
            download=(backend.event(), backend.event()),
        )


def motion_of(frames: Sequence[Frame]) -> Tensor | None:
    """The motion of frames of one size, (N, 4, h, w) float32: 0 where unknown; None if all is.

    Fields of other sizes than the first known one's are brought to that.
    """
    known = next((frame.motion for frame in frames if frame.motion is not None), None)
    if known is None:
        return None
    size = known.shape[2], known.shape[1]
    motion = np.zeros((len(frames), *known.shape), np.float32)
    for own, frame in zip(motion, frames, strict=True):
        if frame.motion is not None and frame.motion.shape == known.shape:
            own[:] = frame.motion
        elif frame.motion is not None:
            own[:] = [cv2.resize(part, size) for part in frame.motion]
    return torch.from_numpy(motion)


def _let_go(frames: Sequence[Frame]) -> None:
    """Views are for what is under way, not for frames that wait to be written."""
    for frame in frames:
        frame.around = None


def _by_plane(batch: FrameBatch) -> list[tuple[Plane, ...]]:
    """For each plane of the layout, that plane of each frame."""
    return list(zip(*(frame.planes for frame in batch.frames), strict=True))


def _write_back(stacked: NDArray[Any], planes: Sequence[Plane]) -> None:
    for values, plane in zip(stacked, planes, strict=True):
        np.copyto(plane, values)
