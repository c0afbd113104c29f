"""The composition: reader → batches → network → writer, with a thread and a bounded queue between.

The file to open first. Each part is in a module of its own; this one only connects them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vdeblur.deblurrer import Deblurrer, Precision
from vdeblur.encoders import EncodeOptions
from vdeblur.errors import InputError, OutputError, UsageError
from vdeblur.frames import Frame, FrameBatch
from vdeblur.overlap import Overlap
from vdeblur.reader import VideoReader, is_pattern
from vdeblur.stages import Drain, StageTimes, background
from vdeblur.verify import verify
from vdeblur.writer import VideoWriter, format_name

#: Items that wait in each queue, in batches: enough to hide a slow moment, few enough for memory.
_QUEUE_BATCHES = 2
#: A group is closed after this many items even if its batch is not full: packets may not pile up.
_GROUP_ITEMS = 256


@dataclass
class Report:
    """What was done to one source.

    frames: written. seconds: wall time. replaced: frames whose restoration was rejected, so that
    the source's picture stands. kept, lost: streams and properties carried over, and those that
    could not be, with the reason. damage: what of the source could not be decoded. notes: what else
    a user should know. differences: failed checks of the finished output against its source.
    """

    source: str
    output: str
    frames: int = 0
    seconds: float = 0.0
    replaced: int = 0
    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    stages: list[StageTimes] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        """Frames written per second of wall time."""
        return self.frames / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"frames_per_second": round(self.frames_per_second, 3)}


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
    model: str | nn.Module | Deblurrer = "mimo-unet-small",
    weights: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch: int | Literal["auto"] = "auto",
    tile: int | Literal["auto"] | None = "auto",
    strength: float = 1.0,
    encode: EncodeOptions | None = None,
    start: float | None = None,
    duration: float | None = None,
    framerate: Fraction | None = None,
    start_number: int | None = None,
    hwaccel: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    check: bool = True,
    on_progress: Callable[[int, int | None], None] | None = None,
    cancel: threading.Event | None = None,
) -> Report:
    """Restore every frame of `source` into `output`, and keep everything else as it was.

    source: a video file, a PNG or JPEG, an image pattern (`frames/%05d.png`, with framerate and
    start_number), or `-` for standard input. output: None is `default_output(source)`. model: a
    name of the catalogue, a module, or a `Deblurrer` (which then decides weights, device,
    precision, tile and strength). batch: frames at once; "auto" is 8 on a GPU, 1 on a CPU.
    start, duration: seconds. hwaccel: libav device type for decoding. check: compare the output
    with the source (cheaply) before it gets its final name. on_progress(frames so far, frames
    expected or None) is called from this thread. cancel: when set, Cancelled is raised and nothing
    is left behind.

    Raises the errors of `vdeblur.errors`; nothing stands under the final name unless it returns.
    """
    began = time.monotonic()
    destination = default_output(source) if output is None else output
    deblurrer = (
        model
        if isinstance(model, Deblurrer)
        else Deblurrer(
            model,
            weights=weights,
            device=device,
            precision=precision,
            tile=tile,
            strength=strength,
        )
    )
    size = batch_size(batch, deblurrer)
    report = Report(str(source), str(destination))
    before = len(deblurrer.notes)
    with (
        VideoReader(
            source,
            start=start,
            duration=duration,
            framerate=framerate,
            start_number=start_number,
            hwaccel=hwaccel,
        ) as reader,
        VideoWriter(
            destination, reader, encode=encode, overwrite=overwrite, format=format
        ) as writer,
    ):
        depth = size * _QUEUE_BATCHES
        with (
            background(
                reader.items(), depth=depth, name="decode", cancel=cancel, patience_seconds=1.0
            ) as items,
            Drain(writer.write, depth=depth, name="encode") as encoded,
        ):
            for item, replaced in restore(items, Overlap(deblurrer), size):
                encoded.put(item)
                report.replaced += replaced
                if isinstance(item, Frame):
                    report.frames += 1
                    if on_progress is not None:
                        on_progress(report.frames, reader.info.frame_count)
            encoded.close()
            report.stages = [items.times, encoded.times]
        writer.close()
        report.frames = writer.frames_written
        if check and reader.path is not None and writer.temporary is not None:
            report.differences, report.lost = _check(reader, writer)
        writer.finish()
        report.kept, report.lost = writer.kept, writer.lost + report.lost
        report.damage = reader.damage.notes
        report.notes = reader.notes + deblurrer.notes[before:]
    report.seconds = time.monotonic() - began
    return report


def restore(items: Iterable[Any], overlap: Overlap, batch: int) -> Iterator[tuple[Any, bool]]:
    """Items in, the same items out in the same order, their frames restored in place.

    Frames are gathered into batches of one layout; other items (packets) keep their place among
    them. Yields (item, whether the frame's restoration was rejected).
    """
    groups: deque[list[Any]] = deque()

    def batches() -> Iterator[FrameBatch]:
        group: list[Any] = []
        frames: list[Frame] = []
        for item in items:
            is_frame = isinstance(item, Frame)
            if frames and is_frame and item.layout != frames[0].layout:
                groups.append(group)
                yield FrameBatch(frames)
                group, frames = [], []
            group.append(item)
            if is_frame:
                frames.append(item)
            if len(frames) >= batch or len(group) >= _GROUP_ITEMS:
                groups.append(group)
                yield FrameBatch(frames)
                group, frames = [], []
        if group:
            groups.append(group)
            yield FrameBatch(frames)

    for _, replaced in overlap.run(batches()):
        flags = iter(replaced)
        for item in groups.popleft():
            yield item, isinstance(item, Frame) and next(flags)


def deblur_frames(
    frames: Iterable[NDArray[np.uint8]],
    *,
    model: str | nn.Module | Deblurrer = "mimo-unet-small",
    weights: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch: int | Literal["auto"] = "auto",
    strength: float = 1.0,
) -> Iterator[NDArray[np.uint8]]:
    """Restore pictures one after another: (H, W, 3) uint8 RGB in, the same out, in order.

    A generator: at most a batch of frames is held. Sizes may change from frame to frame. InputError
    for an array of another shape or dtype.
    """
    deblurrer = (
        model
        if isinstance(model, Deblurrer)
        else Deblurrer(
            model, weights=weights, device=device, precision=precision, strength=strength
        )
    )
    size = batch_size(batch, deblurrer)
    source = iter(frames)
    pending: list[NDArray[np.uint8]] = []

    def flush() -> Iterator[NDArray[np.uint8]]:
        if pending:
            stack = torch.from_numpy(np.stack(pending)).permute(0, 3, 1, 2).float().div_(255)
            restored = deblurrer(stack).mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1)
            yield from restored.cpu().numpy()
            pending.clear()

    for frame in source:
        array = np.asarray(frame)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise InputError(
                f"a frame has shape {array.shape} and dtype {array.dtype}: "
                "pass (height, width, 3) uint8 RGB"
            )
        if pending and array.shape != pending[0].shape:
            yield from flush()
        pending.append(array)
        if len(pending) == size:
            yield from flush()
    yield from flush()


def batch_size(batch: int | Literal["auto"], deblurrer: Deblurrer) -> int:
    """Frames at once: "auto" is 8 on a GPU, 1 on a CPU, where larger batches gain nothing."""
    if batch == "auto":
        return 8 if deblurrer.device.type == "cuda" else 1
    if batch < 1:
        raise UsageError(f"batch is {batch}: choose 1 or more")
    return batch


#: What any container must keep; the rest of the checks depends on what a container can say.
_ESSENTIAL = {
    "container",
    "decoding",
    "frame count",
    "packet count",
    "packet data",
    "A/V offset",
    "picture size",
}


def _check(reader: VideoReader, writer: VideoWriter) -> tuple[list[str], list[str]]:
    """The quick part of `vdeblur verify`, on the output under its temporary name.

    Returns what differs, and what another kind of container, asked for, could not take over.
    """
    whole = not reader.start and reader.duration is None
    if not whole or is_pattern(str(writer.destination)) or not writer.verifiable:
        return [], []
    assert reader.path is not None
    assert writer.temporary is not None
    checks = verify(
        reader.path,
        writer.temporary,
        quick=True,
        known_losses=writer.known_losses,
        stream_map=writer.stream_map,
        frame_times=reader.frame_times,
    )
    failed = [check for check in checks if not check.passed]
    own = [c for c in failed if writer.converts and c.name not in _ESSENTIAL]
    return (
        [f"{c.name}: {c.detail}" for c in failed if c not in own],
        [f"{c.name}, in this container: {c.detail}" for c in own],
    )
