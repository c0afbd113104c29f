"""Frames per second of each stage alone and of the pipeline, in interleaved rounds.

Device work is synchronised before a clock is read. Overlap efficiency is the pipeline's rate over
that of its slowest stage alone: 1 means that everything else is hidden behind it.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vdeblur.deblur import batch_size, restore
from vdeblur.deblurrer import Deblurrer, Precision
from vdeblur.encoders import EncodeOptions
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.overlap import Overlap
from vdeblur.reader import VideoReader
from vdeblur.stages import Drain, background
from vdeblur.writer import VideoWriter


@dataclass(frozen=True)
class BenchResult:
    """Medians over the rounds, in frames per second; efficiency is pipeline / slowest stage."""

    clip: str
    size: str
    frames: int
    rounds: int
    model: str
    device: str
    encoder: str
    batch: int
    decode: float
    network: float
    encode: float
    pipeline: float

    @property
    def slowest(self) -> str:
        """The stage that bounds the pipeline."""
        return min(("decode", "network", "encode"), key=lambda stage: float(getattr(self, stage)))

    @property
    def efficiency(self) -> float:
        """Pipeline rate over the slowest stage's own."""
        return self.pipeline / float(getattr(self, self.slowest))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"slowest": self.slowest, "efficiency": self.efficiency}


def bench(
    clip: str | Path,
    *,
    model: str = "mimo-unet-small",
    weights: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch: int | Literal["auto"] = "auto",
    tile: int | Literal["auto"] | None = "auto",
    encoder: str = "auto",
    preset: str | None = None,
    frames: int = 120,
    rounds: int = 3,
) -> BenchResult:
    """Measure on the first `frames` frames of `clip`; every round measures every stage once."""
    if frames < 1 or rounds < 1:
        raise UsageError("--frames and --rounds must be 1 or more")
    deblurrer = Deblurrer(model, weights=weights, device=device, precision=precision, tile=tile)
    size = batch_size(batch, deblurrer)
    encode = EncodeOptions(encoder=encoder, preset=preset)
    used_encoder = ""

    def only_frames(reader: VideoReader) -> Iterator[Frame]:
        for number, frame in enumerate(reader, 1):
            yield frame
            if number == frames:
                return

    def synchronise() -> None:
        if deblurrer.device.type == "cuda":
            torch.cuda.synchronize(deblurrer.device)

    def decode() -> float:
        with VideoReader(clip) as reader:
            return _timed(lambda: sum(1 for _ in only_frames(reader)))

    def network() -> float:
        with VideoReader(clip) as reader:
            held = list(only_frames(reader))

            def work() -> int:
                count = sum(1 for _ in restore(held, Overlap(deblurrer), size))
                synchronise()
                return count

            return _timed(work)

    def encoding() -> float:
        nonlocal used_encoder
        with VideoReader(clip) as reader:
            held = list(only_frames(reader))
            with tempfile.TemporaryDirectory() as folder, _writer(folder, reader, encode) as writer:

                def work() -> int:
                    for frame in held:
                        writer.write(frame)
                    writer.close()
                    return len(held)

                rate = _timed(work)
                used_encoder = writer.encoder
                return rate

    def pipeline() -> float:
        with (
            VideoReader(clip) as reader,
            tempfile.TemporaryDirectory() as folder,
            _writer(folder, reader, encode) as writer,
        ):

            def work() -> int:
                count = 0
                with (
                    background(only_frames(reader), depth=2 * size, name="decode") as source,
                    Drain(writer.write, depth=2 * size, name="encode") as sink,
                ):
                    for frame, _ in restore(source, Overlap(deblurrer), size):
                        sink.put(frame)
                        count += 1
                writer.close()
                return count

            return _timed(work)

    stages: dict[str, Callable[[], float]] = {
        "decode": decode,
        "network": network,
        "encode": encoding,
        "pipeline": pipeline,
    }
    network()  # the first forward allocates, picks algorithms and compiles
    rates: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            rates[name].append(stage())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    with VideoReader(clip) as reader:
        info = reader.info
        count = min(frames, sum(1 for _ in only_frames(reader)))
    return BenchResult(
        clip=Path(clip).name,
        size=f"{info.width}x{info.height}",
        frames=count,
        rounds=rounds,
        model=model,
        device=_device_name(deblurrer.device),
        encoder=used_encoder,
        batch=size,
        **medians,
    )


def format_result(result: BenchResult) -> str:
    """The table a person reads."""
    lines = [
        f"{result.clip} {result.size}, {result.frames} frames, {result.rounds} rounds, "
        f"{result.model} on {result.device}, batch {result.batch}",
        *(
            f"  {name:<9} {getattr(result, name):8.1f} frames/s"
            + ("   <- slowest stage" if name == result.slowest else "")
            + (f"   ({result.encoder})" if name == "encode" else "")
            for name in ("decode", "network", "encode", "pipeline")
        ),
        f"  pipeline / slowest stage {result.efficiency:.2f}",
    ]
    return "\n".join(lines)


def _timed(work: Callable[[], int]) -> float:
    begin = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - begin)


def _writer(folder: str, reader: VideoReader, encode: EncodeOptions) -> VideoWriter:
    suffix = Path(str(reader.source)).suffix or ".mkv"
    return VideoWriter(Path(folder) / f"out{suffix}", reader, encode=encode)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
