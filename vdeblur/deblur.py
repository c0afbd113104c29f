"""Compose reader → motion → batches → network → writer, with bounded queues between threads.

Read this file first. Each part is a module of its own; this one only connects them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vdeblur.errors import InputError, UsageError, VdeblurError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.batching import batch_size, restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.gpu_frames import adopt, current_context
from vdeblur.inference.settings import PrecisionRequest
from vdeblur.inference.transfers import Overlap, motion_of, settle
from vdeblur.media.default_names import default_output as default_output
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.image_sequences import writes_sequence
from vdeblur.media.libav_errors import reported
from vdeblur.media.read_options import ReadOptions
from vdeblur.media.reader import VideoReader
from vdeblur.media.verify import BY_CONTAINER, Expectations, verify
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.guide import Guide
from vdeblur.motion.neighbours import around_of
from vdeblur.system.thread_shares import with_one_torch_thread
from vdeblur.system.workers import Drain, WorkerTimes, background

#: Capacity of each queue, in batches: enough to hide a slow moment, few enough for memory.
_QUEUE_BATCHES = 2
#: The same in frames beside a GPU, at least: there the batches are small, and the threads quick.
_QUEUE_FRAMES = 8
_RECOVERED = "an earlier run was killed while it named these pictures, which is now done"
#: More threads would outrun every encoder, and hold more frames in memory.
_MOST_MOTION_THREADS = 12


@dataclass
class Report:
    """The result of restoring one source.

    Attributes:
        source: The source, as passed.
        output: The destination.
        frames: Number of frames written.
        seconds: Wall time.
        replaced: Number of frames whose restoration was rejected; the source's picture stands.
        unchosen: Number of frames that `choose` kept from the network.
        kept: Streams and properties carried over.
        lost: Streams and properties that could not be carried over, with the reason.
        damage: Parts of the source that could not be decoded.
        notes: Further remarks for the user.
        differences: Failed checks of the finished output against its source.
        stages: Times of each thread.
    """

    source: str
    output: str
    frames: int = 0
    seconds: float = 0.0
    replaced: int = 0
    unchosen: int = 0
    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    stages: list[WorkerTimes] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        """Frames written per second of wall time."""
        return self.frames / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dictionary for JSON."""
        return asdict(self) | {"frames_per_second": round(self.frames_per_second, 3)}


class Guiding(Protocol):
    """Sets the motion of frames; `vdeblur.motion.guide.Guide` finds it in their pictures."""

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """Yield the items in order, with `motion` and `around` of the frames set.

        Args:
            items: Frames, and other items, which pass through.
            threads: Threads that may analyze frames at once, ahead of the frame yielded.
        """

    def notes(self) -> list[str]:
        """Return remarks for the report."""


def motion_threads(device: torch.device) -> int:
    """Return the number of threads that find motion beside a network on `device`.

    On a CPU it is 1: the network uses all cores, and takes longer. Beside a GPU it is half of the
    cores; the encoder uses the others.
    """
    if device.type == "cpu":
        return 1
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(max(1, cores // 2), _MOST_MOTION_THREADS)


def deblur_video(
    source: str | Path,
    output: str | Path | None = None,
    *,
    model: str | nn.Module | Deblurrer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: PrecisionRequest = "auto",
    batch: int | Literal["auto"] = "auto",
    tile: int | Literal["auto"] | None = "auto",
    strength: float = 1.0,
    exposure: str | float | Fraction | Exposure = AUTO,
    encode: EncodeOptions | None = None,
    read: ReadOptions | None = None,
    start: float | None = None,
    duration: float | None = None,
    framerate: Fraction | None = None,
    start_number: int | None = None,
    hwaccel: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    check: bool = True,
    choose: Callable[[Frame], bool] | None = None,
    guide: Guiding | None = None,
    complete: Callable[[VideoReader, VideoWriter], None] | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
    cancel: threading.Event | None = None,
) -> Report:
    """Restore every frame of `source` into `output`, and keep everything else unchanged.

    Nothing appears under the final name unless the function returns.

    Args:
        source: A video file, a PNG or JPEG, an image pattern (`frames/%05d.png`, with `framerate`
            and `start_number`), or `-` for standard input.
        output: The destination; None for `default_output(source)`, which names a part by its
            times.
        model: A name of the catalog, a module, or a `Deblurrer`, which then sets weights, device,
            precision, tile and strength. None for the network that the weights belong to, or
            mimo-unet-guided without weights.
        weights: See `Deblurrer`, as for device, precision, tile and strength.
        device: Where the network runs.
        precision: Number format that the network computes in.
        batch: Frames restored at once; see `batch_size`.
        tile: Side of tiles in pixels.
        strength: Share of the correction that is applied.
        exposure: Time that the shutter was open, for a network guided by motion: "auto" measures
            it, "1/60" is in seconds, 0.5 is a share of the frame interval.
        encode: Settings of the encoder.
        read: Settings of the reader. The next five keywords are shortcuts for its fields, and
            override them.
        start: Seconds at which to begin.
        duration: Seconds to restore.
        framerate: Frames per second of an image pattern.
        start_number: Number of a pattern's first image.
        hwaccel: Hardware decoder.
        format: Container of the output, by FFmpeg's name; None follows the file name.
        overwrite: Replace an existing output.
        check: Compare the output with the source (a quick check) before the final rename.
        choose: Returns False for frames that go to the encoder as decoded.
        guide: A source of motion and exposure that knows more than the pictures show.
        complete: Called with the finished output under its temporary name, before the check.
        on_progress: Called on this thread with (frames so far, frames expected or None).
        cancel: Once set, Cancelled is raised and nothing is left behind.

    Raises:
        VdeblurError: One of the errors of `vdeblur.errors`.
    """
    # Long: half of it is the signature and its documentation.
    began = time.monotonic()
    # Most calls need only these keywords, so they stay beside the object that holds them.
    read = ReadOptions.of(
        read,
        start=start,
        duration=duration,
        framerate=framerate,
        start_number=start_number,
        hwaccel=hwaccel,
    )
    if output is None:
        output = default_output(source, start=read.start, duration=read.duration)
    deblurrer = Deblurrer.of(
        model, weights=weights, device=device, precision=precision, tile=tile, strength=strength
    )
    batch_size(batch, deblurrer)  # raises for an impossible batch before anything is opened
    asked = exposure_of(exposure)  # likewise for the exposure
    guide = guide or Guide(asked)
    guided = getattr(deblurrer, "guided", False) and not deblurrer.changes_nothing
    report = Report(str(source), str(output))
    notes_of_run = deblurrer.notes.begin_run()
    chosen = _Chosen(choose)
    with (
        current_context(deblurrer.device) as gpu,
        VideoReader(source, read, gpu=gpu) as reader,
        VideoWriter(output, reader, encode=encode, overwrite=overwrite, format=format) as writer,
    ):
        if writer.recovered is not None:
            report.frames = writer.recovered
            report.notes = [f"{_RECOVERED}: `overwrite=True` restores them anew"]
            report.seconds = time.monotonic() - began
            return report
        size = batch_size(batch, deblurrer, size=(reader.info.height, reader.info.width))
        with ExitStack() as running:
            overlap = Overlap(deblurrer, deferred=True)
            items, encoded, workers = start_threads(
                running,
                reader.items(),
                reader,
                writer,
                overlap,
                guide if guided else None,
                size,
                cancel,
            )
            for item, replaced in restore(items, overlap, size, choose=chosen):
                encoded.put(item)
                report.replaced += replaced
                if isinstance(item, Frame):
                    report.frames += 1
                    if on_progress is not None:
                        on_progress(report.frames, reader.info.frame_count)
            encoded.close()
            report.stages = [worker.times for worker in workers]
        report.unchosen = chosen.refused
        _conclude(reader, writer, report, complete=complete, check=check)
        report.notes = [*reader.notes, *deblurrer.about, *guide.notes(), *notes_of_run()]
    report.seconds = time.monotonic() - began
    return report


def start_threads(
    running: ExitStack,
    source_items: Iterable[Any],
    reader: VideoReader,
    writer: VideoWriter,
    overlap: Overlap,
    guide: Guiding | None,
    size: int,
    cancel: threading.Event | None = None,
) -> tuple[Iterable[Any], Drain[Any], list[Any]]:
    """Start the threads on both sides of the network; they end with `running`.

    Args:
        running: Holds the threads.
        source_items: What the reader decodes.
        reader: Of the source.
        writer: Encodes the output.
        overlap: Runs the network, on its device.
        guide: Finds the motion of frames; None for a network that takes none.
        size: Frames of a batch.
        cancel: Stops the threads when set.

    Returns:
        Items for the network, the queue for restored items, and all threads in order.
    """
    depth, device = size * _QUEUE_BATCHES, overlap.deblurrer.device
    if device.type != "cpu":
        depth = max(depth, _QUEUE_FRAMES)
    if device.type == "cuda":
        source_items = adopt(source_items, device, note=reader.notes.append)
    source_items = overlap.staged(source_items)
    decoded = running.enter_context(
        background(source_items, depth=depth, name="decode", cancel=cancel, patience_seconds=1.0)
    )
    workers: list[Any] = [decoded]
    if guide is not None:
        guided = guide.run(decoded, threads=motion_threads(device))
        workers.append(
            running.enter_context(
                background(
                    with_one_torch_thread(guided),
                    depth=depth,
                    name="motion",
                    cancel=cancel,
                    patience_seconds=1.0,
                )
            )
        )
    items = workers[-1]

    def write(item: Any) -> None:
        if isinstance(item, Frame):
            settle(item)
        writer.write(item)

    encoded = running.enter_context(Drain(write, depth=depth, name="encode"))
    return items, encoded, [*workers, encoded]


def _conclude(
    reader: VideoReader,
    writer: VideoWriter,
    report: Report,
    *,
    complete: Callable[[VideoReader, VideoWriter], None] | None,
    check: bool,
) -> None:
    """Complete and check the output, and give it its final name."""
    writer.close()
    report.frames = writer.frames_written
    if complete is not None:
        with reported(writer.destination):
            complete(reader, writer)
    if check and writer.temporary is not None and (reader.path or reader.pictures) is not None:
        # The check opens the source again: large headers and attachments are held once, not twice.
        reader.close()
        report.differences, report.lost = _check(reader, writer)
    writer.finish()
    report.kept, report.lost = writer.kept, writer.lost + report.lost
    report.damage = reader.damage.notes


class _Chosen:
    """Calls `choose` of deblur_video once a frame, and counts the frames it refuses."""

    def __init__(self, choose: Callable[[Frame], bool] | None) -> None:
        self._choose, self.refused = choose, 0

    def __call__(self, frame: Frame) -> bool:
        if self._choose is None or self._choose(frame):
            return True
        self.refused += 1
        return False


def deblur_frames(
    frames: Iterable[NDArray[np.uint8]],
    *,
    model: str | nn.Module | Deblurrer | None = None,
    weights: str | Path | None = None,
    device: str = "auto",
    precision: PrecisionRequest = "auto",
    batch: int | Literal["auto"] = "auto",
    strength: float = 1.0,
    exposure: str | float | Exposure = AUTO,
) -> Iterator[NDArray[np.uint8]]:
    """Restore the frames of a film that are arrays, in order.

    A generator that holds at most a batch of frames, and a few more for a network guided by motion.
    Sizes may change from frame to frame. Frames that show different scenes, and a single frame,
    have no motion.

    Args:
        frames: (H, W, 3) uint8 RGB.
        model: See `deblur_video`, as for the parameters below.
        weights: Weights of the network.
        device: Where the network runs.
        precision: Number format that the network computes in.
        batch: Frames restored at once.
        strength: Share of the correction that is applied.
        exposure: "auto", or a share of the frame interval; arrays have no times, so no seconds.

    Yields:
        The restored frames, (H, W, 3) uint8 RGB.

    Raises:
        InputError: An array has another shape or dtype.
        UsageError: The exposure is in seconds.
    """
    asked = exposure_of(exposure)
    if asked.seconds is not None:
        raise UsageError(
            f"exposure is {exposure!r}, and frames without times have no seconds: give the share "
            "of a frame's time, such as 0.5"
        )
    deblurrer = Deblurrer.of(
        model, weights=weights, device=device, precision=precision, strength=strength
    )
    size = batch_size(batch, deblurrer)
    guided = getattr(deblurrer, "guided", False)
    pending: list[Frame] = []

    def checked() -> Iterator[Frame]:
        for number, frame in enumerate(frames):
            array = np.asarray(frame)
            if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
                raise InputError(
                    f"a frame has shape {array.shape} and dtype {array.dtype}: "
                    "pass (height, width, 3) uint8 RGB"
                )
            planes = tuple(array[..., channel] for channel in (1, 2, 0))
            layout = PlaneLayout(array.shape[1], array.shape[0], 8, "rgb", (0, 0), True)
            yield Frame(planes, layout, number, Fraction(1))

    def flush() -> Iterator[NDArray[np.uint8]]:
        if pending:
            same = zip(*(frame.planes for frame in pending), strict=True)
            planes = [torch.from_numpy(np.stack(plane)) for plane in same]
            restored, _ = deblurrer.restore_planes(
                planes, pending[0].layout, motion_of(pending), around_of(pending)
            )
            green, blue, red = restored
            yield from torch.stack([red, green, blue], dim=-1).cpu().numpy()
            pending.clear()

    threads = motion_threads(deblurrer.device)
    for frame in Guide(asked).run(checked(), threads=threads) if guided else checked():
        if pending and frame.layout != pending[0].layout:
            yield from flush()
        pending.append(frame)
        if len(pending) == size:
            yield from flush()
    yield from flush()


def _check(reader: VideoReader, writer: VideoWriter) -> tuple[list[str], list[str]]:
    """Run the quick checks of `vdeblur verify` on the output under its temporary name.

    Returns:
        Differences from the source, and properties that the requested container cannot keep.
    """
    sequence = writes_sequence(writer.destination, reader.source)
    pictures = sequence and reader.pictures is not None
    compared = pictures or (reader.path is not None and not sequence)
    if not reader.options.whole or not writer.verifiable or not compared:
        return [], []
    assert writer.temporary_name is not None
    output = writer.temporary_name  # some formats are told by their suffix
    if pictures:
        output /= Path(writer.destination).name
    try:
        checks = verify(
            reader.source if pictures else cast(Path, reader.path),
            output,
            quick=True,
            expected=Expectations(
                known_losses=writer.known_losses,
                stream_map=writer.stream_map,
                frame_times={} if pictures else reader.frame_times,
            ),
            conversion=writer.converts,
        )
    except VdeblurError as error:
        # The source has gone, say: what was restored is not thrown away for it.
        text = str(error).replace(str(output), str(writer.destination))
        return [f"not compared with the source: {text}"], []
    return (
        [f"{c.name}: {c.detail}" for c in checks if not c.passed],
        [
            f"{c.name}, in this container: {c.detail.removeprefix(BY_CONTAINER)}"
            for c in checks
            if c.detail.startswith(BY_CONTAINER)
        ],
    )
