"""Overlap copies with computation: pinned buffers, streams and events around a deblurrer.

On a CUDA device the planes of batch k + 1 are uploaded, and those of batch k − 1 downloaded, while
batch k is computed. On every other device the same call runs synchronously. Knows no files, no
threads and nothing of the network.

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
    """The part of a `vdeblur.inference.deblurrer.Deblurrer` that `Overlap` calls."""

    @property
    def device(self) -> torch.device:
        """Device on which `restore_planes` computes."""

    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Restore planes (N, rows, columns) each.

        Args:
            planes: On the device.
            layout: Interpretation of the planes.
            motion: (N, 4, h, w) in pixels of the luma plane, if known.
            around: The neighbors of each picture in a film, if known.

        Returns:
            Restored planes on the device, and bool (N,): whether a picture was replaced by its
            source.
        """


class DeviceOps(Protocol):
    """The device operations that `Overlap` needs; streams and events are opaque to it.

    Attributes:
        copy_in: The stream of uploads.
        compute: The stream of computation.
        copy_out: The stream of downloads.
    """

    copy_in: Any
    compute: Any
    copy_out: Any

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Issue the calls in a `with` block on this stream."""

    def event(self) -> Any:
        """Return a new event."""

    def record(self, event: Any, stream: Any) -> None:
        """Place the event behind all work issued on the stream so far."""

    def wait(self, stream: Any, event: Any) -> None:
        """Let work issued on the stream from now on wait for the event; the host does not."""

    def synchronize(self, event: Any) -> None:
        """Let the host wait for the event."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the device time in seconds between two events that have happened."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate host memory that the device copies from and to without stopping the host."""

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate device memory."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy between host and device on the current stream; the host does not wait."""

    def share(self, tensor: Tensor, stream: Any) -> None:
        """Keep the tensor's memory from being reused before the stream is done with it."""


class CudaOps:
    """`DeviceOps` by torch.cuda."""

    def __init__(self, device: torch.device, *, timing: bool = False) -> None:
        self.device, self.timing = device, timing
        self.copy_in = _cuda.Stream(device)
        self.copy_out = _cuda.Stream(device)
        # The caller's stream, on which the weights were prepared: nothing to hand over.
        self.compute = torch.cuda.current_stream(device)

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """See `DeviceOps`."""
        context: AbstractContextManager[Any] = torch.cuda.stream(stream)
        return context

    def event(self) -> Any:
        """See `DeviceOps`."""
        return _cuda.Event(enable_timing=self.timing)

    def record(self, event: Any, stream: Any) -> None:
        """See `DeviceOps`."""
        event.record(stream)

    def wait(self, stream: Any, event: Any) -> None:
        """See `DeviceOps`."""
        stream.wait_event(event)

    def synchronize(self, event: Any) -> None:
        """See `DeviceOps`. The event alone, not its stream."""
        event.synchronize()

    def seconds(self, start: Any, end: Any) -> float:
        """See `DeviceOps`."""
        return float(start.elapsed_time(end)) / 1000

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `DeviceOps`."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """See `DeviceOps`."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        """See `DeviceOps`."""
        target.copy_(source, non_blocking=True)

    def share(self, tensor: Tensor, stream: Any) -> None:
        """See `DeviceOps`."""
        tensor.record_stream(stream)


@dataclass(frozen=True)
class BatchTimes:
    """When a batch's steps ran: (start, end) in seconds since the first step of the run.

    Measured by the device's clock where it has one; on a CPU, where nothing is copied, upload and
    download have no length.
    """

    frames: int
    upload: tuple[float, float]
    compute: tuple[float, float]
    download: tuple[float, float]


@dataclass
class _Slot:
    """The buffers and events of one batch in flight; reused when that batch is done."""

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
    """Restores batches of host frames, with up to `depth` of them in flight.

    A result is returned once `depth` batches are in flight, or at the end: depth 1 returns each
    before it takes the next batch, for the least delay; depth 2 suffices to keep the device busy.
    On a CPU the depth has no effect, and a batch of one frame is computed on the frame's own
    memory, without a copy.

    Attributes:
        deblurrer: Restores the planes.
        depth: Batches in flight, at least 1.
        timeline: Gets the `BatchTimes` of each batch; None measures nothing.
        ops: The device operations; None takes those of the deblurrer's device.
    """

    deblurrer: BatchDeblurrer
    depth: int = field(default=2, kw_only=True)
    timeline: list[BatchTimes] | None = field(default=None, kw_only=True)
    ops: DeviceOps | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ValueError(f"depth is {self.depth}: at least 1 batch is in flight")

    def run(self, batches: Iterable[FrameBatch]) -> Iterator[tuple[FrameBatch, list[bool]]]:
        """Restore the frames of each batch in place; yield the batches in their order.

        Frames of a batch must not be touched between taking the batch and yielding it. An exception
        of the deblurrer is raised as it is; batches in flight are then lost. A batch of no frames
        passes through in its place.

        Yields:
            (batch, for each frame whether the source was kept instead of the result).
        """
        ops = self.ops
        if ops is None and self.deblurrer.device.type == "cuda":
            ops = CudaOps(self.deblurrer.device, timing=self.timeline is not None)
        if ops is None:
            return self._run_plainly(batches)
        return _InFlight(self.deblurrer, ops, self.depth, self.timeline).run(batches)

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
            _release_views(batch.frames)
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
    """One run of `Overlap` on a device that works in parallel with the host."""

    def __init__(
        self,
        deblurrer: BatchDeblurrer,
        ops: DeviceOps,
        depth: int,
        timeline: list[BatchTimes] | None,
    ) -> None:
        self._deblurrer, self._ops, self._timeline = deblurrer, ops, timeline
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
            # Left early: buffers must outlive the copies still in flight.
            for slot in (slot for _, slot in self._pending if slot is not None):
                self._ops.synchronize(slot.download[1])

    def _submit(self, batch: FrameBatch) -> None:
        """Fill a staging buffer; issue upload, computation and download; wait for none of them."""
        if not batch.frames:
            self._pending.append((batch, None))
            return
        ops, count = self._ops, len(batch)
        slot = self._slot(batch)
        # Frames that a GPU decoded need no upload (see `vdeblur.inference.gpu_frames`).
        decoded = [frame.on_device for frame in batch.frames if isinstance(frame.on_device, tuple)]
        if len(decoded) < count:
            for staged, same in zip(slot.staged, _by_plane(batch), strict=True):
                host = staged.numpy()
                for i, plane in enumerate(same):
                    np.copyto(host[i], plane)
        with ops.on(ops.copy_in):
            if self._origin is None:
                self._origin = ops.event()
                ops.record(self._origin, ops.copy_in)
            ops.record(slot.upload[0], ops.copy_in)
            if len(decoded) < count:
                for resident, staged in zip(slot.resident, slot.staged, strict=True):
                    ops.copy(resident[:count], staged[:count])
            else:
                for resident, tensors in zip(
                    slot.resident, zip(*decoded, strict=True), strict=True
                ):
                    for i, tensor in enumerate(tensors):
                        ops.share(tensor, ops.copy_in)
                        ops.copy(resident[i], tensor)
                for frame in batch.frames:
                    frame.on_device = None  # the device's memory is for work in flight
            motion, around = motion_of(batch.frames), around_of(batch.frames)
            if motion is not None:
                motion = self._upload(motion)
            if around is not None:
                around = [known and known.moved(self._upload, self._share) for known in around]
            ops.record(slot.upload[1], ops.copy_in)
        with ops.on(ops.compute):
            ops.wait(ops.compute, slot.upload[1])
            ops.record(slot.compute[0], ops.compute)
            planes = [resident[:count] for resident in slot.resident]
            restored, replaced = self._deblurrer.restore_planes(
                planes, batch.layout, motion, around
            )
            _release_views(batch.frames)
            ops.record(slot.compute[1], ops.compute)
        with ops.on(ops.copy_out):
            ops.wait(ops.copy_out, slot.compute[1])
            ops.record(slot.download[0], ops.copy_out)
            results = [*slot.results, slot.replaced]
            for result, tensor in zip(results, [*restored, replaced], strict=True):
                # Allocated on the compute stream, which may reuse it once Python releases it here.
                ops.share(tensor, ops.copy_out)
                ops.copy(result[:count], tensor)
            ops.record(slot.download[1], ops.copy_out)
        self._pending.append((batch, slot))

    def _upload(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device for the compute stream; issued on the current stream."""
        ops = self._ops
        staged = ops.pinned(tuple(tensor.shape), tensor.dtype)
        staged.copy_(tensor)
        resident = ops.resident(tuple(tensor.shape), tensor.dtype)
        self._share(resident)
        ops.copy(resident, staged)
        return resident

    def _share(self, tensor: Tensor) -> None:
        self._ops.share(tensor, self._ops.compute)

    def _finish(self) -> tuple[FrameBatch, list[bool]]:
        """Wait for the download of the oldest batch, and write it into its frames."""
        batch, slot = self._pending.popleft()
        if slot is None:
            return batch, []
        self._ops.synchronize(slot.download[1])
        for result, same in zip(slot.results, _by_plane(batch), strict=True):
            _write_back(result[: len(batch)].numpy(), same)
        replaced: list[bool] = slot.replaced[: len(batch)].tolist()
        if self._timeline is not None:
            steps = (slot.upload, slot.compute, slot.download)
            self._timeline.append(BatchTimes(len(batch), *map(self._span, steps)))
        self._free.append(slot)
        return batch, replaced

    def _span(self, step: tuple[Any, Any]) -> tuple[float, float]:
        start, end = (self._ops.seconds(self._origin, event) for event in step)
        return start, end

    def _slot(self, batch: FrameBatch) -> _Slot:
        """Return buffers for the batch: free ones if they fit, else new ones.

        A slot is free once its download has been waited for; its upload has then happened too.
        """
        ops, layout, count = self._ops, batch.layout, len(batch)
        if self._free:
            slot = self._free.popleft()
            if slot.layout == layout and slot.capacity >= count:
                return slot
        dtype = torch.uint8 if layout.depth == 8 else torch.uint16
        shapes = [(count, *shape) for shape in layout.shapes]
        with ops.on(ops.copy_in):
            # Allocated on the stream that writes it: memory that the compute stream has released
            # may still be read by work queued there.
            resident = [ops.resident(shape, dtype) for shape in shapes]
        return _Slot(
            layout,
            count,
            staged=[ops.pinned(shape, dtype) for shape in shapes],
            resident=resident,
            results=[ops.pinned(shape, dtype) for shape in shapes],
            replaced=ops.pinned((count,), torch.bool),
            upload=(ops.event(), ops.event()),
            compute=(ops.event(), ops.event()),
            download=(ops.event(), ops.event()),
        )


def motion_of(frames: Sequence[Frame]) -> Tensor | None:
    """Stack the motion of frames of one size; None if that of all is unknown.

    Returns:
        (N, 4, h, w) float32 in pixels, 0 for frames whose motion is unknown; motion fields of
        other sizes are resized to that of the first known one.
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


def _release_views(frames: Sequence[Frame]) -> None:
    """Release the views of frames, which are for work in flight, not for frames to be written."""
    for frame in frames:
        frame.around = None


def _by_plane(batch: FrameBatch) -> list[tuple[Plane, ...]]:
    """Return, for each plane of the layout, that plane of each frame."""
    return list(zip(*(frame.planes for frame in batch.frames), strict=True))


def _write_back(stacked: NDArray[Any], planes: Sequence[Plane]) -> None:
    for values, plane in zip(stacked, planes, strict=True):
        np.copyto(plane, values)
