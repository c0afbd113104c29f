"""Overlap copies with computation: pinned memory, streams and events around a deblurrer.

On a device with streams the planes of batch k + 1 are uploaded, and those of batch k − 1
downloaded, while batch k is computed. On every other device the same call runs synchronously. The
copies between a frame's memory and pinned memory may be made by other threads: `Overlap.staged`
before, and `settle` after. Knows no files, no threads and nothing of the network.

    copy-in stream   ── upload 0 ── upload 1 ──────── upload 2 ──
    compute stream              └── restore 0 ── restore 1 ── restore 2
    copy-out stream                          └── download 0 ── download 1
    host             issue 0, issue 1 │ wait for download 0, issue 2 │ wait for download 1 …

Each frame crosses the bus once, as planes: what its neighbors see of it is made on the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.frames import Frame, FrameBatch, Plane, PlaneLayout
from vdeblur.inference.devices import accelerator, has_streams
from vdeblur.motion.neighbours import Around, around_of


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
        """Allocate host memory that the device copies from and to without stopping the host.

        Once let go, it is used again as soon as the copies that were issued are over.
        """

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Allocate device memory, owned by the current stream."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy between host and device on the current stream; the host does not wait."""

    def share(self, tensor: Tensor, stream: Any) -> None:
        """Keep the tensor's memory from being reused before the stream is done with it."""


@cache
def _streams(device: torch.device) -> tuple[Any, Any, Any]:
    """Return the device's streams for uploads, computation and downloads.

    Always the same ones: what one run leaves in the views of a film's frames, a live camera's next
    run finds. None is the default stream, for which FFmpeg's copies of decoded frames wait.
    """
    module = accelerator(device)
    assert module is not None
    return module.Stream(device), module.Stream(device), module.Stream(device)


class StreamOps:
    """`DeviceOps` by torch.cuda, or another module of the same functions."""

    def __init__(self, device: torch.device, *, timing: bool = False) -> None:
        self.device, self.timing = device, timing
        module: Any = accelerator(device)
        self._module = module
        self.copy_in, self.compute, self.copy_out = _streams(device)
        # The caller's stream is the one on which the weights were prepared.
        self.compute.wait_stream(module.current_stream(device))

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """See `DeviceOps`."""
        context: AbstractContextManager[Any] = self._module.stream(stream)
        return context

    def event(self) -> Any:
        """See `DeviceOps`."""
        return self._module.Event(enable_timing=self.timing)

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
        """See `DeviceOps`. torch keeps such memory, for allocating it takes milliseconds."""
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
class _Flight:
    """A batch under way: where its results arrive, and when."""

    batch: FrameBatch
    results: list[Tensor]  # pinned, as the planes
    replaced: Tensor  # pinned, bool
    upload: tuple[Any, Any]  # events: start, end
    compute: tuple[Any, Any]
    download: tuple[Any, Any]


@dataclass
class Overlap:
    """Restores batches of frames in host memory, with up to `depth` of them in flight.

    Planes that a GPU decoded already (`Frame.on_device`) are not uploaded.

    A result is returned once `depth` batches are in flight, or at the end: depth 1 returns each
    before it takes the next batch, for the least delay; depth 2 suffices to keep the device busy.
    On a CPU the depth has no effect, and a batch of one frame is computed on the frame's own
    memory, without a copy.

    Attributes:
        deblurrer: Restores the planes.
        depth: Batches in flight, at least 1.
        deferred: Leave it to `settle` to copy results from pinned memory into the frames' planes.
        timeline: Gets the `BatchTimes` of each batch; None measures nothing.
        ops: The device operations; None takes those of the deblurrer's device.
    """

    deblurrer: BatchDeblurrer
    depth: int = field(default=2, kw_only=True)
    deferred: bool = field(default=False, kw_only=True)
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
        ops = self._device_ops()
        return self._run_plainly(batches) if ops is None else _InFlight(self, ops).run(batches)

    def staged(self, items: Iterable[Any]) -> Iterator[Any]:
        """Copy the planes of frames into pinned memory, on the thread that takes the items.

        Args:
            items: Frames and other objects.

        Yields:
            The items; frames have `staged`, unless they are on the device already, or it has no
            streams.
        """
        ops = self._device_ops()
        for item in items:
            if ops is not None and isinstance(item, Frame) and _decoded(item) is None:
                item.staged = _copied(item, ops.pinned)
            yield item

    def _device_ops(self) -> DeviceOps | None:
        """The device's operations; None without streams."""
        if self.ops is None and has_streams(self.deblurrer.device):
            return StreamOps(self.deblurrer.device, timing=self.timeline is not None)
        return self.ops

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
            _release(batch.frames)
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
    """One run of an `Overlap` on a device that works in parallel with the host."""

    def __init__(self, overlap: Overlap, ops: DeviceOps) -> None:
        self._overlap, self._ops = overlap, ops
        self._pending: deque[_Flight | FrameBatch] = deque()
        self._origin: Any = None

    def run(self, batches: Iterable[FrameBatch]) -> Iterator[tuple[FrameBatch, list[bool]]]:
        """See `Overlap.run`."""
        try:
            for batch in batches:
                self._pending.append(self._submit(batch) if batch.frames else batch)
                if len(self._pending) >= self._overlap.depth:
                    yield self._finish()
            while self._pending:
                yield self._finish()
        finally:
            # Left early: memory must outlive the copies still in flight.
            for flight in self._pending:
                if isinstance(flight, _Flight):
                    self._ops.synchronize(flight.download[1])

    def _submit(self, batch: FrameBatch) -> _Flight:
        """Issue upload, computation and download of a batch; wait for none of them."""
        ops, layout, count = self._ops, batch.layout, len(batch)
        upload, compute, download = ((ops.event(), ops.event()) for _ in range(3))
        with ops.on(ops.copy_in):
            if self._origin is None:
                self._origin = ops.event()
                ops.record(self._origin, ops.copy_in)
            ops.record(upload[0], ops.copy_in)
            motion, around = motion_of(batch.frames), around_of(batch.frames)
            if motion is not None:
                motion = self._upload(motion)
            if around is not None:
                around = [known and known.moved(self._upload, self._share) for known in around]
            planes = self._planes(batch, around)
            ops.record(upload[1], ops.copy_in)
        with ops.on(ops.compute):
            ops.wait(ops.compute, upload[1])
            ops.record(compute[0], ops.compute)
            restored, replaced = self._overlap.deblurrer.restore_planes(
                planes, layout, motion, around
            )
            _release(batch.frames)
            ops.record(compute[1], ops.compute)
        results = [ops.pinned((count, *shape), _dtype(layout)) for shape in layout.shapes]
        flags = ops.pinned((count,), torch.bool)
        with ops.on(ops.copy_out):
            ops.wait(ops.copy_out, compute[1])
            ops.record(download[0], ops.copy_out)
            for result, tensor in zip([*results, flags], [*restored, replaced], strict=True):
                # Allocated on the compute stream, which may reuse it once Python releases it here.
                ops.share(tensor, ops.copy_out)
                ops.copy(result, tensor)
            ops.record(download[1], ops.copy_out)
        return _Flight(batch, results, flags, upload, compute, download)

    def _planes(self, batch: FrameBatch, around: Sequence[Around | None] | None) -> list[Tensor]:
        """Return the planes (N, rows, columns) of a batch on the device, for the compute stream.

        What a GPU decoded, or what is there for a frame's neighbors, is not uploaded again.
        """
        ops, layout, frames = self._ops, batch.layout, batch.frames
        known = around or [None] * len(frames)
        there = [
            one.here.planes if one is not None else _decoded(frame)
            for frame, one in zip(frames, known, strict=True)
        ]
        if len(frames) == 1 and there[0] is not None:
            for plane in there[0]:
                self._share(plane)
            return [plane[None] for plane in there[0]]
        stacked = [ops.resident((len(frames), *shape), _dtype(layout)) for shape in layout.shapes]
        for number, (frame, planes) in enumerate(zip(frames, there, strict=True)):
            if planes is None:
                planes = frame.staged or _copied(frame, ops.pinned)
            else:
                for plane in planes:
                    ops.share(plane, ops.copy_in)
            for target, plane in zip(stacked, planes, strict=True):
                ops.copy(target[number], plane)
        for tensor in stacked:
            self._share(tensor)
        return stacked

    def _upload(self, tensor: Tensor) -> Tensor:
        """Copy a tensor to the device for the compute stream; issued on the current stream."""
        ops = self._ops
        staged = tensor
        if not tensor.is_pinned():
            staged = ops.pinned(tuple(tensor.shape), tensor.dtype)
            staged.copy_(tensor)
        resident = ops.resident(tuple(tensor.shape), tensor.dtype)
        self._share(resident)
        ops.copy(resident, staged)
        return resident

    def _share(self, tensor: Tensor) -> None:
        self._ops.share(tensor, self._ops.compute)

    def _finish(self) -> tuple[FrameBatch, list[bool]]:
        """Wait for the download of the oldest batch, and give it to its frames."""
        flight = self._pending.popleft()
        if isinstance(flight, FrameBatch):
            return flight, []
        self._ops.synchronize(flight.download[1])
        for number, frame in enumerate(flight.batch.frames):
            frame.restored = tuple(result[number] for result in flight.results)
            if not self._overlap.deferred:
                settle(frame)
        if (timeline := self._overlap.timeline) is not None:
            steps = (flight.upload, flight.compute, flight.download)
            timeline.append(BatchTimes(len(flight.batch), *map(self._span, steps)))
        return flight.batch, flight.replaced.tolist()

    def _span(self, step: tuple[Any, Any]) -> tuple[float, float]:
        start, end = (self._ops.seconds(self._origin, event) for event in step)
        return start, end


def settle(frame: Frame) -> None:
    """Copy a frame's restored planes into its own, if a deferred `Overlap` left them elsewhere."""
    if frame.restored is not None:
        for plane, values in zip(frame.planes, frame.restored, strict=True):
            np.copyto(plane, values.numpy())
        frame.restored = None


def _decoded(frame: Frame) -> tuple[Tensor, ...] | None:
    """The planes that a GPU decoded (`vdeblur.inference.gpu_frames`)."""
    return frame.on_device if isinstance(frame.on_device, tuple) else None


def _copied(frame: Frame, pinned: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    copies = tuple(pinned(shape, _dtype(frame.layout)) for shape in frame.layout.shapes)
    for copy, plane in zip(copies, frame.planes, strict=True):
        np.copyto(copy.numpy(), plane)
    return copies


def _dtype(layout: PlaneLayout) -> torch.dtype:
    return torch.uint8 if layout.depth == 8 else torch.uint16


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


def _release(frames: Sequence[Frame]) -> None:
    """Release what frames carry for work in flight: views, and the device's memory."""
    for frame in frames:
        frame.around = frame.on_device = frame.staged = None


def _by_plane(batch: FrameBatch) -> list[tuple[Plane, ...]]:
    """Return, for each plane of the layout, that plane of each frame."""
    return list(zip(*(frame.planes for frame in batch.frames), strict=True))


def _write_back(stacked: NDArray[Any], planes: Sequence[Plane]) -> None:
    for values, plane in zip(stacked, planes, strict=True):
        np.copyto(plane, values)
