"""The composition: reader → batches → network → writer, with a thread and a bounded queue between.

The file to open first. Each part is in a module of its own; this one only connects them.
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
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.batching import batch_size, restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.gpu_frames import adopt
from vdeblur.inference.settings import PrecisionRequest
from vdeblur.inference.transfers import Overlap, motion_of
from vdeblur.media.containers import format_name
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.image_sequences import is_pattern
from vdeblur.media.read_options import ReadOptions
from vdeblur.media.reader import VideoReader
from vdeblur.media.verify import BY_CONTAINER, Expectations, verify
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.guide import Guide
from vdeblur.motion.neighbours import around_of
from vdeblur.system.thread_shares import with_one_torch_thread
from vdeblur.system.workers import Drain, WorkerTimes, background

#: Items that wait in each queue, in batches: enough to hide a slow moment, few enough for memory.
_QUEUE_BATCHES = 2
#: More threads would find motion faster than any encoder takes frames, for as many more in memory.
_MOST_MOTION_THREADS = 12


@dataclass
class Report:
    """What was done to one source.

    frames: written. seconds: wall time. replaced: frames whose restoration was rejected, so that
    the source's picture stands. unchosen: frames that `choose` kept from the network. kept, lost:
    streams and properties carried over, and those that could not be, with the reason. damage: what
    of the source could not be decoded. notes: what else a user should know. differences: failed
    checks of the finished output against its source.
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
        """For JSON."""
        return asdict(self) | {"frames_per_second": round(self.frames_per_second, 3)}


class Guiding(Protocol):
    """Gives frames their motion: `vdeblur.motion.guide.Guide` by their pictures."""

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """The items in their order, frames with their `motion` and what is `around` them.

        threads: how many may look at frames at once, ahead of those that are given out.
        """

    def notes(self) -> list[str]:
        """What a report should say of it."""


def motion_threads(device: torch.device) -> int:
    """How many threads look for motion beside a network on such a device.

    On a CPU one: a network has all cores there, and takes longer. Beside a GPU half of the cores:
    the others are the encoder's.
    """
    if device.type == "cpu":
        return 1
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return min(max(1, cores // 2), _MOST_MOTION_THREADS)


def default_output(source: str | Path) -> str:
    """`ride.mp4` → `ride_deblurred.mp4`; a pattern keeps its number; `-` stays a pipe.

    A container that cannot be written becomes Matroska.
    """
    if str(source) == "-":
        return "-"
    path = Path(source)
    output = path.with_name(f"{path.stem}_deblurred{path.suffix}")
    try:
        format_name(output, "")
    except OutputError:
        output = output.with_suffix(".mkv")
    return str(output)


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
    """Restore every frame of `source` into `output`, and keep everything else as it was.

    source: a video file, a PNG or JPEG, an image pattern (`frames/%05d.png`, with framerate and
    start_number), or `-` for standard input. output: None is `default_output(source)`. model: a
    name of the catalogue, a module, or a `Deblurrer` (which then decides weights, device,
    precision, tile and strength); None is the network of the weights, or mimo-unet-guided. batch:
    frames at once; see `batch_size`. exposure: for a network that is guided by motion, how long the
    shutter was open: "auto" finds out, "1/60" is seconds, 0.5 a share of a frame's time. read: how
    to read the source; start, duration, framerate, start_number and hwaccel are its fields, for
    short, and replace those of `read`. check: compare the output with the
    source (cheaply) before it gets its final name. choose: frames for which it is False go to the
    encoder as they were decoded. guide: what knows more of the motion than the pictures, and of the
    exposure. complete: called with the finished output under its temporary name, before the check.
    on_progress(frames so far, frames expected or None) is called from this thread. cancel: when
    set, Cancelled is raised and nothing is left behind.

    Raises the errors of `vdeblur.errors`; nothing stands under the final name unless it returns.
    """
    # Long: half of it is the signature and its documentation.
    began = time.monotonic()
    destination = default_output(source) if output is None else output
    # The keywords are what most calls need, so they stay beside the object that they make up.
    read = ReadOptions.of(
        read,
        start=start,
        duration=duration,
        framerate=framerate,
        start_number=start_number,
        hwaccel=hwaccel,
    )
    deblurrer = Deblurrer.of(
        model, weights=weights, device=device, precision=precision, tile=tile, strength=strength
    )
    batch_size(batch, deblurrer)  # an impossible one is said before anything is opened
    asked = exposure_of(exposure)  # and so is an impossible exposure
    guide = guide or Guide(asked)
    guided = getattr(deblurrer, "guided", False) and not deblurrer.changes_nothing
    report = Report(str(source), str(destination))
    notes_of_run = deblurrer.notes.begin_run()
    chosen = _Chosen(choose)
    with (
        VideoReader(source, read, on_device=deblurrer.device.type == "cuda") as reader,
        VideoWriter(
            destination, reader, encode=encode, overwrite=overwrite, format=format
        ) as writer,
    ):
        size = batch_size(batch, deblurrer, size=(reader.info.height, reader.info.width))
        with ExitStack() as running:
            items, encoded, workers = _start(
                running, reader, writer, deblurrer, guide if guided else None, size, cancel
            )
            for item, replaced in restore(items, Overlap(deblurrer), size, choose=chosen):
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


def _start(
    running: ExitStack,
    reader: VideoReader,
    writer: VideoWriter,
    deblurrer: Deblurrer,
    guide: Guiding | None,
    size: int,
    cancel: threading.Event | None,
) -> tuple[Iterable[Any], Drain[Any], list[Any]]:
    """Start the threads on both sides of the network; they end with `running`.

    Args:
        running: Holds the threads.
        reader: What is decoded.
        writer: What is encoded into.
        deblurrer: The network, with its device.
        guide: Finds the motion of frames; None for a network that takes none.
        size: Frames of a batch.
        cancel: Stops the threads when set.

    Returns:
        Items for the network, the queue for restored items, and all threads in order.
    """
    depth = size * _QUEUE_BATCHES
    source_items = reader.items()
    if deblurrer.device.type == "cuda":
        source_items = adopt(source_items, deblurrer.device, note=reader.notes.append)
    decoded = running.enter_context(
        background(source_items, depth=depth, name="decode", cancel=cancel, patience_seconds=1.0)
    )
    workers: list[Any] = [decoded]
    if guide is not None:
        guided = guide.run(decoded, threads=motion_threads(deblurrer.device))
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
    encoded = running.enter_context(Drain(writer.write, depth=depth, name="encode"))
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
        complete(reader, writer)
    if check and reader.path is not None and writer.temporary is not None:
        report.differences, report.lost = _check(reader, writer)
    writer.finish()
    report.kept, report.lost = writer.kept, writer.lost + report.lost
    report.damage = reader.damage.notes


class _Chosen:
    """`choose` of deblur_video, asked once a frame, with a count of what it refused."""

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
    """Restore pictures one after another: (H, W, 3) uint8 RGB in, the same out, in order.

    A generator: at most a batch of frames is held, and for a network that is guided by motion a few
    more. Sizes may change from frame to frame; frames that show different scenes, and a single one,
    have no motion. exposure: as for `deblur_video`, though there are no seconds here. InputError
    for an array of another shape or dtype, UsageError for an exposure in seconds.
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
    """The quick part of `vdeblur verify`, on the output under its temporary name.

    Returns what differs, and what another kind of container, asked for, could not take over.
    """
    if not reader.options.whole or is_pattern(str(writer.destination)) or not writer.verifiable:
        return [], []
    assert reader.path is not None
    assert writer.temporary is not None
    checks = verify(
        reader.path,
        writer.temporary,
        quick=True,
        expected=Expectations(
            known_losses=writer.known_losses,
            stream_map=writer.stream_map,
            frame_times=reader.frame_times,
        ),
        conversion=writer.converts,
    )
    return (
        [f"{c.name}: {c.detail}" for c in checks if not c.passed],
        [
            f"{c.name}, in this container: {c.detail.removeprefix(BY_CONTAINER)}"
            for c in checks
            if c.detail.startswith(BY_CONTAINER)
        ],
    )
