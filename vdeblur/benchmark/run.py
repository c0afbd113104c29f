"""Frames per second of each stage alone and of the pipeline, in interleaved rounds.

Device work is synchronised before a clock is read. Overlap efficiency is the pipeline's rate over
that of its slowest stage alone: 1 means that everything else is hidden behind it. What a network
could reach at most comes from large products and a copy, measured in the same rounds.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vdeblur.benchmark import roofline
from vdeblur.color import add_correction, correction_to_planes, planes_to_rgb
from vdeblur.deblur import motion_threads
from vdeblur.errors import ModelError, UsageError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.batching import batch_size, restore
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import device_name, fastest_convolutions, synchronize
from vdeblur.inference.export import random_motion
from vdeblur.inference.kernels import color
from vdeblur.inference.transfers import Overlap
from vdeblur.media import demo_scene
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.guide import Guide
from vdeblur.motion.movement import Movement
from vdeblur.motion.neighbours import Around, View, with_neighbours
from vdeblur.networks import Network, build, spec
from vdeblur.networks.base import traits_of
from vdeblur.networks.cost import work_of
from vdeblur.system.memory import peak_bytes, reset_peak
from vdeblur.system.thread_shares import with_one_torch_thread
from vdeblur.system.workers import Drain, background
from vdeblur.weights import load

#: What runs beside each other in the pipeline; colour and network take turns on the device.
STAGES = ("decode", "upload", "colour", "network", "download", "encode")
#: And what is measured beside them.
MORE = ("asynchronous", "planes to planes", "pipeline", "published network", "published frames")

_HELD_BYTES = 1 << 29  # decoded frames that are kept in memory
_NAME = max(map(len, (*STAGES, *MORE)))  # the widest name of a table
_ROUND_SECONDS = 2.0  # of the network, where the number of frames is left open


@dataclass(frozen=True)
class Rates:
    """Frames per second, by round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The slowest and the fastest round."""
        return min(self.rounds), max(self.rounds)


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    rates: by name, of STAGES and MORE; upload and download are missing where nothing is copied,
    colour and network where nothing is computed, the published ones unless they were asked for.
    "planes to planes" is in memory, without codecs; "asynchronous" is the network by a clock that
    does not wait for the device. network_flop: of one frame. peak_flops, copy_bytes: what the
    device did in a second, of large products in `precision` (see `roofline.peaks`) and of a copy,
    reads and writes counted. ceiling: frames/s of a network whose convolutions, each with its bias,
    ReLU and addition, run at these peaks; None where its layers are not known. memory_bytes: the
    peak of `memory_of`, the "GPU"'s allocations or the whole "process"; memory_predicted: what one
    batch was predicted to take of it.
    """

    clip: str
    size: str
    frames: int
    rounds: int
    model: str
    device: str
    backend: str
    precision: str
    tile: int | None
    batch: int
    encoder: str
    rates: dict[str, Rates]
    network_flop: float | None
    peak_flops: float
    copy_bytes: float
    ceiling: float | None
    memory_bytes: int | None
    memory_predicted: int
    memory_of: str = "process"
    notes: list[str] = field(default_factory=list)

    def rate(self, name: str) -> float:
        """Median frames per second of a stage."""
        return self.rates[name].median

    @property
    def slowest(self) -> str:
        """The stage that bounds the pipeline."""
        return min((s for s in STAGES if s in self.rates), key=self.rate)

    @property
    def efficiency(self) -> float:
        """Pipeline rate over the slowest stage's own."""
        return self.rate("pipeline") / self.rate(self.slowest)

    @property
    def network_flops(self) -> float | None:
        """Floating-point operations per second in the network."""
        if self.network_flop is None or "network" not in self.rates:
            return None
        return self.network_flop * self.rate("network")

    def ratio(self, ours: str, theirs: str) -> Rates:
        """ours / theirs, round by round."""
        pairs = zip(self.rates[ours].rounds, self.rates[theirs].rounds, strict=True)
        return Rates(tuple(a / b for a, b in pairs))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        more: dict[str, Any] = {
            "rates": {
                name: {"median": rates.median, "rounds": list(rates.rounds)}
                for name, rates in self.rates.items()
            },
            "slowest": self.slowest,
            "efficiency": self.efficiency,
            "network_ms": 1000 / self.rate("network") if "network" in self.rates else None,
            "network_flops": self.network_flops,
        }
        if "published frames" in self.rates:
            for name, (ours, theirs) in _AGAINST.items():
                ratio = self.ratio(ours, theirs)
                more[name] = {"median": ratio.median, "spread": ratio.spread}
        return asdict(self) | more


_AGAINST = {
    "network_against_published": ("network", "published network"),
    "frames_against_published": ("planes to planes", "published frames"),
}


def load_for_speed(
    model: str | None, weights: str | Path | None
) -> tuple[nn.Module, str, list[str]]:
    """A network, its name, notes: untrained where the catalogue's has no weights here.

    Weights don't change how fast a network is.
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


def bench(
    clip: str | Path | None = None,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    batch: int | Literal["auto"] = "auto",
    size: tuple[int, int] = (1280, 720),
    encoder: str = "auto",
    preset: str | None = None,
    hwaccel: str | None = None,
    frames: int | None = None,
    rounds: int = 3,
    against: Literal["published"] | None = None,
    **network: Any,
) -> BenchResult:
    """Measure on the first `frames` frames of `clip`; every round measures every stage once.

    clip: None is a generated moving scene of `size` (width, height). frames: None is what the
    network does in about two seconds, 2 batches to 120 frames. against: "published" also runs the
    network as its authors' scripts do: eager, fp32, channels first, one frame at a time, converted
    to floats on the host. network: options of `Deblurrer`.
    """
    if rounds < 1 or (frames is not None and frames < 1):
        raise UsageError("--frames and --rounds must be 1 or more")
    module, name, notes = load_for_speed(model, weights)
    plain = copy.deepcopy(module)  # the Deblurrer may turn its own into whatever is faster
    if (stage := network.get("stage")) is not None and isinstance(plain, Network):
        plain.stage = stage
    deblurrer = Deblurrer(module, **network)
    deblurrer.name = name
    # Of the products: other runtimes are given fp32, and round inside.
    dtype = torch.bfloat16 if deblurrer.precision == "bf16" else deblurrer.dtype
    with tempfile.TemporaryDirectory() as folder:
        made = clip is None
        if clip is None:
            clip = demo_scene.write(
                Path(folder) / f"scene {size[0]}x{size[1]}.mp4", size, count=120
            )
        measure = _Measurement(
            clip, deblurrer, batch, EncodeOptions(encoder=encoder, preset=preset), hwaccel, frames
        )
        stages = measure.stages()
        if against is not None and not deblurrer.changes_nothing:
            stages |= measure.published(copy.deepcopy(plain))
        rates: dict[str, list[float]] = {stage: [] for stage in stages}
        peaks: list[tuple[float, float]] = []
        for _ in range(rounds):
            for stage, run in stages.items():
                rates[stage].append(run())
            peaks.append(roofline.peaks(deblurrer.device, dtype))
        memory = measure.memory_peak()
    peak_flops, copy_bytes = (max(values) for values in zip(*peaks, strict=True))
    height, width = measure.height, measure.width
    plan = deblurrer.plans.get((height, width))
    work = work_of(plain, height, width, dtype)
    return BenchResult(
        clip="a generated scene" if made else Path(clip).name,
        size=f"{width}x{height}",
        frames=measure.count,
        rounds=rounds,
        model=deblurrer.name,
        device=device_name(deblurrer.device),
        backend=deblurrer.backend,
        precision=deblurrer.precision,
        tile=None if plan is None else plan.tile,
        batch=measure.batch,
        encoder=measure.encoder,
        rates={stage: Rates(tuple(values)) for stage, values in rates.items()},
        network_flop=None if work is None else work.flop,
        peak_flops=peak_flops,
        copy_bytes=copy_bytes,
        ceiling=None if work is None else work.ceiling(peak_flops, copy_bytes),
        memory_bytes=memory,
        memory_predicted=deblurrer.memory_needed(height, width, batch=measure.batch),
        memory_of="GPU" if deblurrer.device.type == "cuda" else "process",
        notes=[*notes, *measure.notes, *deblurrer.about, *deblurrer.notes],
    )


class _Measurement:
    """One clip, one deblurrer, and the stages between them as callables that give frames/s."""

    def __init__(
        self,
        clip: str | Path,
        deblurrer: Deblurrer,
        batch: int | Literal["auto"],
        encode: EncodeOptions,
        hwaccel: str | None,
        frames: int | None,
    ) -> None:
        self.clip, self.deblurrer, self._encode = clip, deblurrer, encode
        self.device = deblurrer.device
        self._hwaccel, self.encoder = hwaccel, ""
        with self._reader() as reader:
            first = next(iter(reader))
            self.notes = list(reader.notes)
        self.layout = first.layout
        self.height, self.width = self.layout.height, self.layout.width
        self.batch = batch_size(batch, deblurrer, size=(self.height, self.width))
        planes = [np.stack([plane] * self.batch) for plane in first.planes]
        self._host = [self._pinned(torch.from_numpy(plane)) for plane in planes]
        self._planes = [plane.to(self.device) for plane in self._host]
        self._rgb = planes_to_rgb(self._planes, self.layout).contiguous()
        # A guided network is told a motion in memory; the whole pipeline finds the film's own.
        self._motion = random_motion(self.batch).to(self.device) if deblurrer.guided else None
        self._around: list[Around] | None = None
        if self._motion is not None:
            self._around = surrounded(self._planes, self.layout, self._motion)
        if not deblurrer.changes_nothing:
            self.network(2)  # allocates, picks algorithms, compiles; records, where graphs are
        if frames is None:
            rate = math.inf if deblurrer.changes_nothing else self.network(1)
            frames = int(min(max(rate * _ROUND_SECONDS, 2 * self.batch), 120))
        nbytes = sum(plane.nbytes for plane in first.planes)
        self.count = max(1, min(frames, _HELD_BYTES // nbytes))
        with self._reader() as reader:
            self.count = sum(1 for _ in self._frames(reader))
        # Of whole batches: a device does not do half of one twice as fast.
        self.batches = -(-self.count // self.batch)

    def _reader(self) -> VideoReader:
        return VideoReader(self.clip, hwaccel=self._hwaccel)

    def _frames(self, reader: VideoReader) -> Iterator[Frame]:
        return islice(reader, self.count)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def stages(self) -> dict[str, Callable[[], float]]:
        """By name, in the order that a frame meets them."""
        stages: dict[str, Callable[[], float]] = {"decode": self.decode}
        if self.device.type != "cpu":
            stages["upload"] = self.upload
        computes = not self.deblurrer.changes_nothing
        if computes:
            stages |= {"colour": self.colour, "network": partial(self.network, self.batches)}
        if self.device.type != "cpu":
            stages["download"] = self.download
        stages["encode"] = self.encode
        if computes:
            stages["asynchronous"] = partial(self.network, self.batches, synchronised=False)
        return stages | {"planes to planes": self.in_memory, "pipeline": self.pipeline}

    def decode(self) -> float:
        """A file → planes."""
        with self._reader() as reader:
            return _timed(lambda: sum(1 for _ in self._frames(reader)))

    def _on_device(self, work: Callable[[], object], batches: int, synchronised: bool) -> float:
        synchronize(self.device)

        def run() -> int:
            for _ in range(batches):
                work()
            if synchronised:
                synchronize(self.device)
            return batches * self.batch

        rate = _timed(run)
        synchronize(self.device)
        return rate

    def upload(self) -> float:
        """Planes in pinned memory → the device."""

        def work() -> None:
            for target, source in zip(self._planes, self._host, strict=True):
                target.copy_(source, non_blocking=True)

        return self._on_device(work, self.batches, True)

    def download(self) -> float:
        """Planes on the device → pinned memory."""

        def work() -> None:
            for target, source in zip(self._host, self._planes, strict=True):
                target.copy_(source, non_blocking=True)

        return self._on_device(work, self.batches, True)

    def colour(self) -> float:
        """Planes → RGB, and a correction back into planes."""
        delta = torch.zeros_like(self._rgb)
        kernels, dtype = self.deblurrer.color_kernels, self.deblurrer.dtype
        size = self.height, self.width
        if kernels and kernels.usable(self._planes, self.layout, size=size, dtype=dtype):
            delta = delta.to(dtype, memory_format=torch.channels_last)

            def passes() -> None:
                color.planes_to_input(self._planes, self.layout, size=size, dtype=dtype)
                color.add_to_planes(self._planes, delta, self.layout)

            return self._on_device(passes, self.batches, True)

        def work() -> None:
            planes_to_rgb(self._planes, self.layout)
            changes = correction_to_planes(delta, self.layout)
            add_correction(self._planes, changes, self.layout)

        return self._on_device(work, self.batches, True)

    def network(self, batches: int, *, synchronised: bool = True) -> float:
        """RGB → correction, with padding, tiles and precision."""
        return self._on_device(
            lambda: self.deblurrer.correction(self._rgb, self._motion, self._around),
            batches,
            synchronised,
        )

    def encode(self) -> float:
        """Planes → a file."""
        with self._reader() as reader:
            held = list(self._frames(reader))
            with tempfile.TemporaryDirectory() as folder, self._writer(folder, reader) as writer:

                def work() -> int:
                    for frame in held:
                        writer.write(frame)
                    writer.close()
                    return len(held)

                rate = _timed(work)
                self.encoder = writer.encoder
                return rate

    def in_memory(self) -> float:
        """Planes in memory → restored planes in memory: copies, colour and network overlapped."""
        with self._reader() as reader:
            held = list(self._frames(reader))
        if self.deblurrer.guided:
            held = list(with_neighbours(map(_moving, held)))
        overlap = Overlap(self.deblurrer)
        return _timed(lambda: sum(1 for _ in restore(held, overlap, self.batch)))

    def pipeline(self) -> float:
        """A file → a restored file, as `deblur_video` does it."""
        with (
            self._reader() as reader,
            tempfile.TemporaryDirectory() as folder,
            self._writer(folder, reader) as writer,
        ):

            def work() -> int:
                count, depth = 0, 2 * self.batch
                with ExitStack() as running:
                    source = running.enter_context(
                        background(self._frames(reader), depth=depth, name="decode")
                    )
                    if self.deblurrer.guided:
                        threads = motion_threads(self.deblurrer.device)
                        moved = with_one_torch_thread(Guide().run(source, threads=threads))
                        source = running.enter_context(
                            background(moved, depth=depth, name="motion")
                        )
                    sink = running.enter_context(Drain(writer.write, depth=depth, name="encode"))
                    for frame, _ in restore(source, Overlap(self.deblurrer), self.batch):
                        sink.put(frame)
                        count += 1
                writer.close()
                return count

            return _timed(work)

    def _writer(self, folder: str, reader: VideoReader) -> VideoWriter:
        suffix = Path(str(reader.source)).suffix or ".mkv"
        return VideoWriter(Path(folder) / f"out{suffix}", reader, encode=self._encode)

    def published(self, network: nn.Module) -> dict[str, Callable[[], float]]:
        """The network as its authors' scripts run it, synchronised: alone, and from frame to frame.

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

        def timed(work: Callable[[], int]) -> float:
            with fastest_convolutions(self.device):  # which their scripts ask for too
                return _timed(work)

        timed(network_alone)
        return {
            "published network": lambda: timed(network_alone),
            "published frames": lambda: timed(frames),
        }

    def memory_peak(self) -> int | None:
        """Bytes while a batch is restored: of the GPU's allocations, or of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.deblurrer.restore_planes(self._planes, self.layout, self._motion, self._around)
            return torch.cuda.max_memory_allocated(self.device)
        reset_peak()
        self.deblurrer.restore_planes(self._planes, self.layout, self._motion, self._around)
        return peak_bytes()


def surrounded(planes: Sequence[Tensor], layout: PlaneLayout, motion: Tensor) -> list[Around]:
    """What is around pictures (N, rows, columns) that move so (N, 4, h, w), for measurements: the
    same picture, before and after, which others have been restored beside already.
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


def _moving(frame: Frame) -> tuple[Frame, Movement]:
    """A frame of a film that moves somewhere, and finds its places again in its neighbours."""
    frame.motion = random_motion(1)[0].numpy()
    way = frame.motion[:2] / np.float32(4)
    return frame, Movement(frame.motion, np.ones_like(way[0]), 1.0, ahead=way, back=way)


def _timed(work: Callable[[], int]) -> float:
    begin = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - begin)


# -- showing -------------------------------------------------------------------------------------


def format_result(result: BenchResult) -> str:
    """The table a person reads."""
    tile = "whole pictures" if result.tile is None else f"tiles of {result.tile}"
    how = f"{result.backend}, {result.precision}, batch {result.batch}, {tile}"
    if not (computes := "network" in result.rates):
        how = "nothing is computed"
    lines = [
        f"{result.clip}, {result.size}, {_counted(result.frames, 'frame')}, "
        f"{_counted(result.rounds, 'round')}",
        f"{result.model} on {result.device}: {how}",
        "",
        f"  {'':<{_NAME}} {'frames/s':>10} {'ms':>8}   slowest and fastest round",
    ]
    for name in STAGES:
        if name not in result.rates:
            missing = "copied" if name in ("upload", "download") else "computed"
            lines.append(f"  {name:<{_NAME}} {'-':>10} {'-':>8}   nothing is {missing}")
            continue
        remark = "   <- slowest stage" if name == result.slowest else ""
        remark += f"   {result.encoder}" if name == "encode" else ""
        lines.append(_line(name, result.rates[name]) + remark)
    share = ""
    if computes:
        share = f": {result.rate('planes to planes') / result.rate('network'):.2f} of the network"
    lines += [
        _line("pipeline", result.rates["pipeline"])
        + f"   {result.efficiency:.2f} of the slowest stage",
        _line("planes to planes", result.rates["planes to planes"])
        + f"   in memory, without codecs{share}",
    ]
    if computes:
        lines.append(
            _line("asynchronous", result.rates["asynchronous"])
            + "   the network by a clock that does not wait for the device"
        )
    lines += ["", *_network_lines(result)]
    if "published frames" in result.rates:
        lines += [
            _line("published network", result.rates["published network"])
            + "   eager, fp32, one frame, synchronised",
            _line("published frames", result.rates["published frames"])
            + "   with their conversion on the host",
            _ratio("network", result.ratio(*_AGAINST["network_against_published"])),
            _ratio("frame to frame", result.ratio(*_AGAINST["frames_against_published"])),
        ]
    return "\n".join([*lines, *(f"  note: {note}" for note in result.notes)])


def _network_lines(result: BenchResult) -> list[str]:
    lines = []
    if result.network_flops is not None and result.network_flop is not None:
        share = result.network_flops / result.peak_flops
        lines.append(
            f"  network: {result.network_flop / 1e9:.1f} GFLOP a frame, "
            f"{result.network_flops / 1e12:.3g} TFLOP/s, {share:.0%} of the "
            f"{result.peak_flops / 1e12:.3g} TFLOP/s of large products here"
        )
    if result.ceiling is not None and "network" in result.rates:
        reached = result.rate("network") / result.ceiling
        # Some layers' shapes suit a device better than any that was tried; fused ones save bytes.
        beyond = " (its layers are faster than the products measured)" if reached > 1 else ""
        lines.append(
            f"  ceiling: {result.ceiling:.1f} frames/s by that and a copy's "
            f"{result.copy_bytes / 1e9:.0f} GB/s, layer by layer; {reached:.0%} of it reached"
            f"{beyond}"
        )
    peak = result.memory_bytes
    whole = "the GPU's allocations" if result.memory_of == "GPU" else "the whole process"
    reached_gb = "" if peak is None else f"; {whole}, {peak / 1e9:.2f} GB at the peak"
    if "network" in result.rates:
        batch = f"a batch of {_counted(result.batch, 'frame')} predicted to take"
        lines.append(f"  memory: {batch} {result.memory_predicted / 1e9:.2f} GB{reached_gb}")
    elif peak is not None:
        lines.append(f"  memory: {whole}, {peak / 1e9:.2f} GB at the peak")
    return lines


def _line(name: str, rates: Rates) -> str:
    slow, fast = rates.spread
    return (
        f"  {name:<{_NAME}} {rates.median:>10.1f} {1000 / rates.median:>8.2f}   "
        f"{slow:.1f} to {fast:.1f}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _ratio(name: str, ratio: Rates) -> str:
    slow, fast = ratio.spread
    return f"  {name}: {ratio.median:.2f}× the authors' way ({slow:.2f} to {fast:.2f})"
