"""Frames per second of each step alone and of the pipeline, in interleaved rounds.

Device work is synchronised before a clock is read. Overlap efficiency is the pipeline's rate over
that of its slowest step alone: 1 means that everything else is hidden behind it. What a network
could reach at most comes from large products and a copy, measured in the same rounds.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vdeblur.benchmark import roofline
from vdeblur.benchmark.result import BenchResult, Rates
from vdeblur.benchmark.timing import busy_shares, hidden_copies, inputs_of, timed
from vdeblur.color import add_correction, correction_to_planes, planes_to_rgb
from vdeblur.deblur import motion_threads, start_threads
from vdeblur.errors import ModelError, UsageError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.batching import batch_size, restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import (
    accelerator,
    device_name,
    fastest_convolutions,
    has_streams,
    synchronize,
)
from vdeblur.inference.export import random_motion
from vdeblur.inference.gpu_frames import adopt, current_context
from vdeblur.inference.kernels import color
from vdeblur.inference.setup import choose_output, threads_for
from vdeblur.inference.transfers import BatchTimes, Overlap, settle
from vdeblur.media import demo_scene
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.guide import Guide
from vdeblur.motion.movement import Movement
from vdeblur.motion.neighbours import Around, View, with_neighbours
from vdeblur.networks import build, spec
from vdeblur.networks.base import traits_of
from vdeblur.networks.cost import work_of
from vdeblur.system.memory import peak_bytes, reset_peak
from vdeblur.system.thread_shares import with_one_torch_thread
from vdeblur.system.workers import Drain, background
from vdeblur.weights import load

_HELD_BYTES = 1 << 29  # decoded frames that are kept in memory
_ROUND_SECONDS = 2.0  # of restoring, where the number of frames is left open
_MOST_FRAMES = 120  # that are decoded and encoded in a round


def load_for_speed(
    model: str | None, weights: str | Path | None
) -> tuple[nn.Module, str, list[str]]:
    """Load a network to measure its speed, untrained where the catalogue's has no weights here.

    Weights do not change how fast a network is.

    Returns:
        The network, its name, and notes for people.
    """
    try:
        loaded = load(model, weights)
    except ModelError:
        if model is None or weights is not None:
            raise
        spec(model)
        torch.manual_seed(0)  # the same each time
        network = build(model).eval().requires_grad_(False)
        return network, model, [f"{model} has no weights here: measured with untrained ones"]
    return loaded.network, loaded.name, list(loaded.notes)


@dataclass(frozen=True)
class BenchOptions:
    """What to measure, and how often.

    Attributes:
        batch: Frames that go through the network together; "auto" is what `deblur_video` takes.
        size: Width and height of the generated scene, in pixels.
        encode: The encoder of the pipeline and its settings.
        hwaccel: FFmpeg's name of a decoder in hardware; None decodes on the CPU.
        frames: Frames of a round, from the beginning; None is what the network does in about two
            seconds, 2 batches to 120 frames.
        rounds: Every round measures every step once.
        against: "published" also runs the network as its authors' scripts do: eager, fp32, channels
            first, one frame at a time, converted to floats on the host.
    """

    batch: int | Literal["auto"] = "auto"
    size: tuple[int, int] = (1280, 720)
    encode: EncodeOptions = field(default_factory=EncodeOptions)
    hwaccel: str | None = None
    frames: int | None = None
    rounds: int = 3
    against: Literal["published"] | None = None


def bench(
    clip: str | Path | None = None,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    options: BenchOptions | None = None,
    **network: Any,
) -> BenchResult:
    """Measure frames per second of every step alone, and of the pipeline.

    Args:
        clip: A video file; None is a generated moving scene.
        model: The network, as `Deblurrer` takes it. Without weights here it is measured untrained,
            for weights do not change its speed.
        weights: As `Deblurrer` takes them.
        options: What to measure.
        **network: Other options of `Deblurrer`.

    Raises:
        UsageError: Options are impossible.
        InputError: The clip cannot be read.
    """
    options = options or BenchOptions()
    if options.rounds < 1 or (options.frames is not None and options.frames < 1):
        raise UsageError("`frames` and `rounds` must be 1 or more")
    module, name, notes = load_for_speed(model, weights)
    plain = copy.deepcopy(module)  # the Deblurrer may turn its own into whatever is faster
    if (stage := network.get("stage")) is not None:
        choose_output(plain, stage)
    deblurrer = Deblurrer(module, **network)
    deblurrer.name = name
    # Of the products: other runtimes are given fp32, and round inside.
    dtype = torch.bfloat16 if deblurrer.precision == "bf16" else deblurrer.dtype
    with tempfile.TemporaryDirectory() as folder:
        source = clip
        if source is None:
            width, height = options.size
            scene = Path(folder) / f"scene {width}x{height}.mp4"
            source = demo_scene.write(scene, options.size, count=120)
        measure = _Measurement(source, deblurrer, options)
        steps = measure.steps()
        if options.against is not None and not deblurrer.changes_nothing:
            steps |= measure.published(copy.deepcopy(plain))
        rates, peaks = _measure_rounds(steps, options.rounds, deblurrer.device, dtype)
        memory = measure.memory_peak()
    height, width = measure.height, measure.width
    plan = deblurrer.plans.get((height, width))
    work = work_of(plain, height, width, dtype)
    peak_flops, copy_bytes = peaks
    return BenchResult(
        clip="a generated scene" if clip is None else Path(clip).name,
        size=f"{width}x{height}",
        frames=measure.count,
        rounds=options.rounds,
        model=deblurrer.name,
        device=device_name(deblurrer.device),
        backend=deblurrer.backend,
        precision=deblurrer.precision,
        tile=None if plan is None else plan.tile,
        batch=measure.batch,
        encoder=measure.encoder,
        rates=rates,
        network_flop=None if work is None else work.flop,
        peak_flops=peak_flops,
        copy_bytes=copy_bytes,
        ceiling=None if work is None else work.ceiling(peak_flops, copy_bytes),
        memory_bytes=memory,
        memory_predicted=deblurrer.memory_needed(height, width, batch=measure.batch),
        copies_hidden=measure.copies_hidden,
        busy=measure.busy,
        memory_of="GPU" if has_streams(deblurrer.device) else "process",
        notes=[*notes, *measure.notes, *deblurrer.about, *deblurrer.notes],
    )


def _measure_rounds(
    steps: dict[str, Callable[[], float]], rounds: int, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, Rates], tuple[float, float]]:
    """The rates of every step, and the device's peaks, measured in the same rounds."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    peaks: list[tuple[float, float]] = []
    for _ in range(rounds):
        for name, step in steps.items():
            rates[name].append(step())
        peaks.append(roofline.peaks(device, dtype))
    flops, copied = zip(*peaks, strict=True)
    return {name: Rates(tuple(each)) for name, each in rates.items()}, (max(flops), max(copied))


class _Measurement:
    """The steps between a clip and a deblurrer: each measures itself and returns frames/s."""

    def __init__(self, clip: str | Path, deblurrer: Deblurrer, options: BenchOptions) -> None:
        self.clip, self.deblurrer, self._options = clip, deblurrer, options
        self.device, self.encoder = deblurrer.device, ""
        self.count = 1
        with self._reader() as reader:
            first = next(self._frames(reader))
            self.notes = list(reader.notes)
        self.layout = first.layout
        self.height, self.width = self.layout.height, self.layout.width
        self.batch = batch_size(options.batch, deblurrer, size=(self.height, self.width))
        planes = [np.stack([plane] * self.batch) for plane in first.planes]
        self._host = [self._pinned(torch.from_numpy(plane)) for plane in planes]
        self._planes = [plane.to(self.device) for plane in self._host]
        self._rgb = planes_to_rgb(self._planes, self.layout).contiguous()
        # A guided network is told a motion in memory; the whole pipeline finds the film's own.
        self._motion = random_motion(self.batch).to(self.device) if deblurrer.guided else None
        self._around: list[Around] | None = None
        if self._motion is not None:
            self._around = surrounded(self._planes, self.layout, self._motion)
        self._given: list[Tensor] = []
        rate = math.inf
        if not deblurrer.changes_nothing:
            self._restore(2)  # allocates, picks algorithms, compiles; records, where graphs are
            rate = self._restore(1)
            self._given = inputs_of(deblurrer.network, self._correct)
        frames = options.frames
        if frames is None:
            frames = int(min(max(rate * _ROUND_SECONDS, 2 * self.batch), _MOST_FRAMES))
        nbytes = sum(plane.nbytes for plane in first.planes)
        self.count = max(1, min(frames, _HELD_BYTES // nbytes))
        with self._reader() as reader:
            self.count = sum(1 for _ in self._frames(reader))
        # Of whole batches: a device does not do half of one twice as fast. A device that is done
        # with the frames at once gets them again.
        again = 1 if options.frames is not None or math.isinf(rate) else rate * _ROUND_SECONDS
        self.batches = -(-int(max(self.count, again)) // self.batch)
        #: Share of the copies' time that computing hides, and of the pipeline's time in which each
        #: thread works; of the last round.
        self.copies_hidden: float | None = None
        self.busy: dict[str, float] = {}
        self._restoring = 0.0

    @contextmanager
    def _reader(self) -> Iterator[VideoReader]:
        with (
            current_context(self.device) as gpu,
            VideoReader(self.clip, hwaccel=self._options.hwaccel, gpu=gpu) as reader,
        ):
            yield reader

    def _frames(self, reader: VideoReader) -> Iterator[Frame]:
        return islice(adopt(reader, self.device, note=reader.notes.append), self.count)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if has_streams(self.device) else tensor

    def steps(self) -> dict[str, Callable[[], float]]:
        """The steps by name, in the order in which a frame meets them."""
        steps: dict[str, Callable[[], float]] = {"decode": self.decode}
        if self.device.type != "cpu":
            steps["upload"] = self.upload
        computes = not self.deblurrer.changes_nothing
        if self.device.type != "cpu":
            steps["download"] = self.download
        steps["encode"] = self.encode
        if computes:
            if self.deblurrer.guided:
                steps["motion"] = self.motion
            steps |= {"colour": self.colour, "network": self.network}
            steps["asynchronous"] = partial(self.network, synchronised=False)
        steps["planes to planes"] = self.in_memory
        if computes:
            steps["restoring"] = lambda: self._restoring
        return steps | {"pipeline": self.pipeline}

    def decode(self) -> float:
        """Decode a file into planes."""
        with self._reader() as reader:
            return timed(lambda: sum(1 for _ in self._frames(reader)))

    def motion(self) -> float:
        """Find the motion and the exposure of a film in memory, with the pipeline's threads."""
        with self._reader() as reader:
            held = list(self._frames(reader))
        moved = with_one_torch_thread(Guide().run(held, threads=motion_threads(self.device)))
        return timed(lambda: sum(1 for _ in moved))

    def _on_device(
        self, work: Callable[[], object], batches: int | None = None, synchronised: bool = True
    ) -> float:
        batches = batches or self.batches
        synchronize(self.device)

        def run() -> int:
            for _ in range(batches):
                work()
            if synchronised:
                synchronize(self.device)
            return batches * self.batch

        rate = timed(run)
        synchronize(self.device)
        return rate

    def upload(self) -> float:
        """Copy planes from pinned memory to the device."""

        def work() -> None:
            for target, source in zip(self._planes, self._host, strict=True):
                target.copy_(source, non_blocking=has_streams(self.device))

        return self._on_device(work)

    def download(self) -> float:
        """Copy planes from the device to pinned memory."""

        def work() -> None:
            for target, source in zip(self._host, self._planes, strict=True):
                target.copy_(source, non_blocking=has_streams(self.device))

        return self._on_device(work)

    def colour(self) -> float:
        """Convert planes to RGB, and add a correction to planes."""
        delta = torch.zeros_like(self._rgb)
        kernels, dtype = self.deblurrer.color_kernels, self.deblurrer.dtype
        size = self.height, self.width
        if kernels and kernels.usable(self._planes, self.layout, size=size, dtype=dtype):
            delta = delta.to(dtype, memory_format=torch.channels_last)

            def passes() -> None:
                color.planes_to_input(self._planes, self.layout, size=size, dtype=dtype)
                color.add_to_planes(self._planes, delta, self.layout)

            return self._on_device(passes)

        def work() -> None:
            planes_to_rgb(self._planes, self.layout)
            changes = correction_to_planes(delta, self.layout)
            add_correction(self._planes, changes, self.layout)

        return self._on_device(work)

    def _correct(self) -> object:
        return self.deblurrer.correction(self._rgb, self._motion, self._around)

    def _restore(self, batches: int) -> float:
        def work() -> None:
            self.deblurrer.restore_planes(self._planes, self.layout, self._motion, self._around)

        return self._on_device(work, batches)

    @torch.no_grad()
    def network(self, *, synchronised: bool = True) -> float:
        """Compute corrections of what the network is given, on the device, and nothing else."""
        network, given = self.deblurrer.network, self._given
        run = getattr(network, "correction", network)
        threads = threads_for(network, self.device, self.deblurrer.backend)

        def work() -> None:
            with fastest_convolutions(self.device):
                if threads is None:
                    for seen in given:
                        run(seen)
                else:
                    threads.map(lambda number: run(given[number]), range(len(given)))

        return self._on_device(work, synchronised=synchronised)

    def encode(self) -> float:
        """Encode planes into a file."""
        with self._reader() as reader:
            held = list(self._frames(reader))
            with tempfile.TemporaryDirectory() as folder, self._writer(folder, reader) as writer:

                def work() -> int:
                    for frame in held:
                        writer.write(frame)
                    writer.close()
                    return len(held)

                rate = timed(work)
                self.encoder = writer.encoder
                return rate

    def in_memory(self) -> float:
        """Restore planes in memory: copies, colour and network overlap.

        The timeline of the same run tells how long the device restores.
        """
        with self._reader() as reader:
            held = list(self._frames(reader))
        for frame in held:
            frame.on_device = None  # they come again: from the host each time
        movements = [_moving(frame) for frame in held] if self.deblurrer.guided else []

        def run(count: int, timeline: list[BatchTimes] | None = None) -> int:
            overlap, depth = (
                Overlap(self.deblurrer, deferred=True, timeline=timeline),
                2 * self.batch,
            )
            items: Iterable[Any] = overlap.staged(
                replace(one) for one in islice(cycle(held), count)
            )
            if movements:
                items = with_neighbours(zip(items, cycle(movements), strict=False))
            with ExitStack() as running:
                source = running.enter_context(background(items, depth=depth, name="read"))
                sink = running.enter_context(Drain(settle, depth=depth, name="write"))
                for frame, _ in restore(source, overlap, self.batch):
                    sink.put(frame)
            return count

        run(min(3 * self.batch, self.count))  # allocates what the copies need
        timeline: list[BatchTimes] = []
        rate = timed(lambda: run(max(self.count, self.batches * self.batch), timeline))
        self.copies_hidden = hidden_copies(timeline)
        computing = sum(times.compute[1] - times.compute[0] for times in timeline)
        self._restoring = sum(times.frames for times in timeline) / max(computing, 1e-9)
        return rate

    def pipeline(self) -> float:
        """Restore a file into a file, as `deblur_video` does."""
        with (
            self._reader() as reader,
            tempfile.TemporaryDirectory() as folder,
            self._writer(folder, reader) as writer,
        ):

            def work() -> int:
                count, begin = 0, time.perf_counter()
                overlap = Overlap(self.deblurrer, deferred=True)
                guided = self.deblurrer.guided and not self.deblurrer.changes_nothing
                with ExitStack() as running:
                    items, sink, workers = start_threads(
                        running,
                        islice(reader, self.count),
                        reader,
                        writer,
                        overlap,
                        Guide() if guided else None,
                        self.batch,
                    )
                    for frame, _ in restore(items, overlap, self.batch):
                        sink.put(frame)
                        count += 1
                    restored = time.perf_counter() - begin
                drained = time.perf_counter()
                writer.close()
                end = time.perf_counter()
                sink.times.busy_seconds += end - drained  # the encoder's last frames
                sources = [worker.times for worker in workers[:-1]]
                self.busy = busy_shares(sources, restored, sink.times, end - begin)
                return count

            return timed(work)

    def _writer(self, folder: str, reader: VideoReader) -> VideoWriter:
        suffix = Path(str(reader.source)).suffix or ".mkv"
        number = "" if reader.pictures is None else "_%05d"
        target = Path(folder) / f"out{number}{suffix}"
        return VideoWriter(target, reader, encode=self._options.encode)

    def published(self, network: nn.Module) -> dict[str, Callable[[], float]]:
        """Run the network as its authors' scripts do, synchronised: alone, and from frame to frame.

        RGB bytes → floats on the host → device → network → clamp → host → bytes.
        """
        network = network.eval().to(self.device)  # fp32, channels first, as it was loaded
        multiple = traits_of(network).size_multiple
        # What the scripts compute: all scales, where training compares several.
        run = getattr(network, "forward_scales", network)
        height, width = (n // multiple * multiple for n in (self.height, self.width))
        rgb = self._rgb[0, :, :height, :width].mul(255).clamp(0, 255).permute(1, 2, 0)
        picture = rgb.to("cpu", torch.uint8).numpy()
        alone = self._rgb[:1, :, :height, :width].contiguous()
        count = max(1, min(self.count, 32))

        @torch.no_grad()
        def frames() -> int:
            for _ in range(count):
                host = torch.from_numpy(picture).permute(2, 0, 1).contiguous().float().div(255)
                outputs = run(host[None].to(self.device))
                output: Tensor = outputs[-1] if isinstance(outputs, tuple) else outputs
                output.clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).cpu().numpy().astype("u1")
            return count

        @torch.no_grad()
        def network_alone() -> int:
            for _ in range(count):
                run(alone)
                synchronize(self.device)
            return count

        def measured(work: Callable[[], int]) -> float:
            with fastest_convolutions(self.device):  # which their scripts ask for too
                return timed(work)

        measured(network_alone)
        return {
            "published network": lambda: measured(network_alone),
            "published frames": lambda: measured(frames),
        }

    def memory_peak(self) -> int | None:
        """Peak bytes while a batch is restored: of the GPU's allocations, or of the process."""
        module = accelerator(self.device) if has_streams(self.device) else None
        if module is not None:
            module.reset_peak_memory_stats(self.device)
        else:
            reset_peak()
        self.deblurrer.restore_planes(self._planes, self.layout, self._motion, self._around)
        return peak_bytes() if module is None else int(module.max_memory_allocated(self.device))


def surrounded(planes: Sequence[Tensor], layout: PlaneLayout, motion: Tensor) -> list[Around]:
    """Make neighbours for measurements: the same picture before and after, restored already.

    Args:
        planes: (N, rows, columns) each.
        layout: That of the planes.
        motion: (N, 4, h, w), as `random_motion` makes it.
    """
    frames = [
        Frame(tuple(p.numpy() for p in same), layout, number, Fraction(1), motion=moved.numpy())
        for number, (moved, *same) in enumerate(
            zip(motion.cpu(), *(plane.cpu() for plane in planes), strict=True)
        )
    ]
    before, after = View(frames[0]), View(frames[-1])
    way = random_motion(1)[0, :2] / 4
    found = [Around(View(frame), (before, way), (after, way)) for frame in frames]
    return [around.moved(lambda tensor: tensor.to(motion.device)) for around in found]


def _moving(frame: Frame) -> Movement:
    """Let a frame move somewhere; return how its places are found again in its neighbours."""
    frame.motion = random_motion(1)[0].numpy()
    way = frame.motion[:2] / np.float32(4)
    return Movement(frame.motion, np.ones_like(way[0]), 1.0, ahead=way, back=way)
