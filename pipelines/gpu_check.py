"""Check and time vdeblur on a GPU, in one process and a fixed time.

python pipelines/gpu_check.py --out OUT [--seconds 200] [--device cuda] [--parts stages films]

Parts run in the order of their worth, each for a share of the time; one that fails, or lacks a
package, says so, and the next one runs. OUT/check.json is rewritten after each part. With
`--device cpu --quick` it is a rehearsal: all that needs a GPU says that it does.

docs/gpu.md says what each line should read, and what to do where it does not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from vdeblur import Deblurrer, Frame, FrameBatch, PlaneLayout
from vdeblur.benchmark import roofline
from vdeblur.benchmark.timing import busy_shares, hidden_copies
from vdeblur.color import add_correction, as_int16, correction_to_planes
from vdeblur.errors import VdeblurError
from vdeblur.inference.devices import (
    device_name,
    empty_cache,
    fastest_convolutions,
    find_device,
    synchronize,
)
from vdeblur.inference.export import random_input
from vdeblur.inference.runtimes import ABILITIES, TENSOR_RUNTIMES, RuntimeRequest
from vdeblur.inference.settings import Precision
from vdeblur.inference.transfers import Overlap, motion_of
from vdeblur.motion import Guide, exposure_of
from vdeblur.motion.neighbours import around_of
from vdeblur.networks import DEFAULT, build
from vdeblur.networks.base import correction_of
from vdeblur.networks.cost import work_of
from vdeblur.weights import load_network

BEGAN = time.monotonic()
LARGE = "mimo-unet-guided-large"
HD, FULL_HD, UHD = (1280, 720), (1920, 1080), (3840, 2160)
SHUTTER, SPEED = 0.75, 12  # of the film made here: share of the interval, pixels a frame


#: Runtimes that compile each shape for seconds: they are compared with torch where they are timed.
SLOW_TO_COMPILE = ("compile", "tensorrt")


class Skipped(Exception):
    """A part cannot run here, for the reason stated."""


class Check:
    """What parts share: the device, the time that is left, and results."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = find_device(args.device)
        self.gpu = self.device.type != "cpu"
        self.quick: bool = args.quick
        self.out: Path = args.out
        self.end: float = BEGAN + args.seconds
        self.part_end: float = self.end
        self.precision: Precision = "fp16" if self.gpu else "fp32"
        self.result: dict[str, Any] = {
            "machine": f"{device_name(self.device)}, {os.cpu_count()} cores",
            "versions": f"torch {torch.__version__}, NumPy {np.__version__}, "
            f"OpenCV {cv2.__version__}, Python {platform.python_version()}",
            "bars": [],
        }

    @property
    def left(self) -> float:
        """Seconds that are left to the part."""
        return self.part_end - time.monotonic()

    @property
    def runtimes(self) -> list[RuntimeRequest]:
        """The runtimes that compute tensors on this device."""
        able = [
            runtime
            for runtime, abilities in ABILITIES.items()
            if abilities.covers(self.device, self.precision) and abilities.installed
        ]
        return [runtime for runtime in able if runtime in TENSOR_RUNTIMES]

    @property
    def ready_runtimes(self) -> list[RuntimeRequest]:
        """Those of them that compile nothing, or little."""
        return [runtime for runtime in self.runtimes if runtime not in SLOW_TO_COMPILE]

    def bar(self, name: str, value: float, at_least: float) -> float:
        """Take note of a value that has to reach a bar; return it."""
        row = {"name": name, "value": round(value, 3), "at_least": at_least}
        self.result["bars"].append(row | {"reached": value >= at_least})
        return value

    def deblurrer(self, network: nn.Module | str | None = None, **options: Any) -> Deblurrer:
        """Make a Deblurrer on the device, in half precision on a GPU."""
        usual: dict[str, Any] = {"device": self.device, "precision": self.precision}
        usual["backend"] = "auto" if self.gpu else "torch"
        return Deblurrer(network, **usual | options)

    def ms(self, work: Callable[[], object], *, calls: int = 4) -> tuple[float, float]:
        """Return milliseconds a call of several in a row, and those until the host has issued it.

        Medians of rounds after two calls to warm up, of which the second may record a graph.
        """
        for _ in range(2 if self.gpu else 1):
            work()
        calls = calls if self.gpu else 1
        whole: list[float] = []
        issued: list[float] = []
        end = time.monotonic() + 0.3
        while not whole or (len(whole) < 100 and time.monotonic() < end):
            synchronize(self.device)
            begin = time.perf_counter()
            for _ in range(calls):
                work()
            issued.append((time.perf_counter() - begin) / calls)
            synchronize(self.device)
            whole.append((time.perf_counter() - begin) / calls)
        return 1000 * statistics.median(whole), 1000 * statistics.median(issued)

    def poison(self) -> None:
        """Fill the allocator's free memory with NaN: what a kernel leaves unwritten shows."""
        large, small = (1 << 18, 1 << 12) if self.quick else (1 << 28, 1 << 18)
        blocks = [torch.full((large,), float("nan"), device=self.device) for _ in range(4)]
        blocks += [torch.full((small,), float("nan"), device=self.device) for _ in range(64)]
        del blocks


# --- a film --------------------------------------------------------------------------------------


def film(layout: PlaneLayout, count: int) -> Iterator[Frame]:
    """Frames of a camera that pans over a texture, blurred along the way."""
    rng = np.random.default_rng(0)
    height, width = layout.height, layout.width + SPEED * (count + 2)
    canvas = np.full((height, width, 3), 0.1, np.float32)
    cells = 4
    while cells < height:  # of many sizes, the smaller the fainter, as in photographs
        noise = rng.random((cells, cells * width // height + 1, 3), np.float32)
        canvas += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR) / cells**0.25
        cells *= 2
    canvas = cv2.blur(canvas / canvas.max(), (round(SHUTTER * SPEED), 1))
    shift = layout.depth - 8
    kind = torch.uint8 if layout.depth == 8 else torch.int16
    black = 0 if layout.full_range or layout.kind == "rgb" else 16
    plain = replace(layout, interlaced=False)
    for number in range(count):
        part = canvas[:, SPEED * number : SPEED * number + layout.width]
        rgb = torch.from_numpy(part.transpose(2, 0, 1)[None].copy())
        start = [
            torch.full((1, *shape), (128 if i and layout.kind == "yuv" else black) << shift)
            for i, shape in enumerate(layout.shapes)
        ]
        codes = [plane.to(kind) for plane in start]
        codes = [p if p.dtype == torch.uint8 else p.view(torch.uint16) for p in codes]
        planes = add_correction(codes, correction_to_planes(rgb, plain), plain)
        yield Frame(tuple(p[0].numpy() for p in planes), layout, number, Fraction(1, 30), 1)


def guided(frames: Iterator[Frame]) -> list[Frame]:
    """Frames with the motion that is found in them, and what is around them."""
    return list(Guide(exposure_of(SHUTTER)).run(frames, threads=min(8, os.cpu_count() or 1)))


def restored(deblurrer: Deblurrer, frames: Sequence[Frame]) -> tuple[list[Tensor], Tensor]:
    """Restore frames as one batch: their planes, on the CPU, and which were replaced."""
    planes = stacked(frames)
    got, replaced = deblurrer.restore_planes(
        planes, frames[0].layout, motion_of(frames), around_of(frames)
    )
    return [plane.cpu() for plane in got], replaced.cpu()


def stacked(frames: Sequence[Frame]) -> list[Tensor]:
    """Planes (N, rows, columns) of frames."""
    return [
        torch.from_numpy(np.stack(same))
        for same in zip(*(frame.planes for frame in frames), strict=True)
    ]


def codes_off(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Differences of planes, all values in one line, in codes."""
    pairs = zip(some, others, strict=True)
    return torch.cat([(unsigned(a) - unsigned(b)).flatten() for a, b in pairs])


def unsigned(plane: Tensor) -> Tensor:
    """Codes as int32; torch computes little in uint16."""
    return as_int16(plane).int() & 0xFFFF


def decibels(off: Tensor, depth: int) -> float:
    """PSNR of planes that differ by these codes; 99 where they are equal."""
    error = float((off.double() / ((1 << depth) - 1)).square().mean())
    return 99.0 if error < 1e-10 else -10 * float(np.log10(error))


# --- parts ---------------------------------------------------------------------------------------


def ceilings(c: Check) -> dict[str, Any]:
    """What the device reaches at most: products, copies on it, copies to and from it."""
    dtype = torch.float16 if c.gpu else torch.float32
    flops, copied = roofline.peaks(c.device, dtype)
    rows: dict[str, Any] = {"tflops": flops / 1e12, "copy_tb_s": copied / 1e12}
    if c.gpu:
        host = torch.randint(0, 255, (1 << 28,), dtype=torch.uint8).pin_memory()
        there = host.to(c.device)
        for name, to, of in (("upload_gb_s", there, host), ("download_gb_s", host, there)):
            ms, _ = c.ms(lambda to=to, of=of: to.copy_(of, non_blocking=True))  # type: ignore[misc]
            rows[name] = host.numel() / ms / 1e6
    return rows


LAYOUTS = {
    "8 bit 4:2:0": PlaneLayout(480, 272),
    "10 bit 4:2:0, chroma at the top left": PlaneLayout(480, 272, 10, siting="topleft"),
    "8 bit 4:2:2, odd size": PlaneLayout(355, 201, chroma_shift=(1, 0)),
    "16 bit 4:4:4, full range": PlaneLayout(320, 184, 16, "yuv", (0, 0), True),
    "8 bit RGB": PlaneLayout(320, 184, kind="rgb", chroma_shift=(0, 0), full_range=True),
    "8 bit 4:2:0, interlaced": PlaneLayout(320, 184, interlaced=True),
}


def correctness(c: Check) -> dict[str, Any]:
    """The default network with neighbors on this device, against fp32 on the CPU."""
    reference = Deblurrer(device="cpu", precision="fp32", backend="torch")
    ways = {runtime: c.deblurrer(backend=runtime) for runtime in c.ready_runtimes}
    rows: dict[str, Any] = {}
    worst = 99.0
    for name, layout in LAYOUTS.items():
        if c.left < 2:
            rows["stopped"] = {"skipped": "no time left"}
            break
        size = replace(layout, width=128, height=96) if c.quick else layout
        frames = guided(film(size, 4))
        source, (expected, _) = stacked(frames), restored(reference, frames)
        changed = codes_off(expected, source)
        for runtime, deblurrer in ways.items():
            for _ in range(3 if c.gpu else 1):  # plain, recorded, replayed
                c.poison()
                got, replaced = restored(deblurrer, guided(film(size, 4)))
            off = codes_off(got, expected)
            db = decibels(off, layout.depth)
            worst = min(worst, db if not bool(replaced.any()) else 0.0)
            rows[f"{name}, {runtime}"] = {
                "db": db,
                "db_of_the_change": decibels(changed, layout.depth),
                "worst_code": int(off.abs().max()),
                "replaced": int(replaced.sum()),
            }
        c.poison()
    c.bar("correctness: dB to fp32 on the CPU, worst layout", worst, 50)
    return rows | {"notes": {runtime: list(d.notes) for runtime, d in ways.items()}}


def stages(c: Check) -> dict[str, Any]:
    """Milliseconds a frame of each stage of the default network, in a film."""
    cases = ((HD, 1), (HD, 8), (FULL_HD, 1), (FULL_HD, 4), (UHD, 1))
    rows: dict[str, Any] = {}
    steady, plain = c.deblurrer(), c.deblurrer(steady=False)
    for (width, height), batch in (((160, 96), 2),) if c.quick else cases:
        if c.left < 4:
            rows["stopped"] = "no time left"
            break
        layout = PlaneLayout(width, height)
        first, *frames, _ = guided(film(layout, batch + 2))  # those with neighbors on both sides
        host = [p.pin_memory() if c.gpu else p for p in stacked(frames)]
        planes = [plane.to(c.device) for plane in host]
        motion, around = motion_of(frames), around_of(frames)
        assert motion is not None
        assert around is not None
        motion = motion.to(c.device)
        around = [known and known.moved(lambda tensor: tensor.to(c.device)) for known in around]
        assert around[0] is not None
        assert around[0].before is not None
        around[0].before[0].restored = tuple(torch.from_numpy(p).to(c.device) for p in first.planes)
        x = random_input(plain.network, batch, height, width + -width % 8)
        x = x.to(c.device, plain.dtype).contiguous(memory_format=torch.channels_last)
        rgb = x[:, :3, :, :width].float().contiguous()
        call = correction_of(plain.network)

        def copy_up(host: Any = host, planes: Any = planes) -> None:
            for to, of in zip(planes, host, strict=True):
                to.copy_(of, non_blocking=True)

        def copy_down(host: Any = host, planes: Any = planes) -> None:
            for of, to in zip(planes, host, strict=True):
                to.copy_(of, non_blocking=True)

        def whole(
            d: Deblurrer, p: Any = planes, at: Any = layout, m: Any = motion, a: Any = around
        ) -> Any:
            return d.restore_planes(p, at, m, a)

        with torch.no_grad(), fastest_convolutions(c.device):
            network, _ = c.ms(lambda call=call, x=x: call(x))  # type: ignore[misc]
        correct, _ = c.ms(lambda r=rgb, m=motion, a=around: plain.correction(r, m, a))  # type: ignore[misc]
        unsteadied, _ = c.ms(lambda: whole(plain))
        steadied, issued = c.ms(lambda: whole(steady))
        row = {
            "upload": c.ms(copy_up)[0],
            "color": unsteadied - correct,
            "guidance": correct - network,
            "network": network,
            "steadying": steadied - unsteadied,
            "download": c.ms(copy_down)[0],
            "planes to planes": steadied,
            "issued by the host in": issued,
        }
        if plain.color_kernels is not None:
            plain.use_kernels(wanted=False)
            row["planes to planes, not steadied"] = unsteadied
            row["the same without kernels"] = c.ms(lambda: whole(plain))[0]
            plain.use_kernels()
        rows[f"{width}x{height}, batch {batch}"] = {k: v / batch for k, v in row.items()}
        del x, rgb, planes, around
        empty_cache(c.device)
    return rows | {"notes": list(steady.notes)}


def overlap(c: Check) -> dict[str, Any]:
    """Copies beside computing, on the device's own clock, and the same pictures as in turn."""
    rows: dict[str, Any] = {}
    cases = ((HD, 4, 10), (FULL_HD, 2, 10)) if not c.quick else (((160, 96), 2, 3),)
    deblurrer = c.deblurrer()
    for (width, height), batch, count in cases:
        layout = PlaneLayout(width, height)
        frames = guided(film(layout, batch * count))
        expected = [restored(deblurrer, part)[0] for part in parted(frames, batch)]
        timeline: list[Any] = []
        runner = Overlap(deblurrer, timeline=timeline)
        frames = list(runner.staged(guided(film(layout, batch * count))))
        begin = time.perf_counter()
        for _ in runner.run(FrameBatch(part) for part in parted(frames, batch)):
            pass
        seconds = time.perf_counter() - begin
        apart = [
            int(codes_off(stacked(part), e).abs().max())
            for part, e in zip(parted(frames, batch), expected, strict=True)
        ]
        computing = [times.compute for times in timeline]
        busy = sum(end - start for start, end in computing)
        row: dict[str, Any] = {
            "frames_per_s": batch * count / seconds,
            "computing_share": busy / max(computing[-1][1] - computing[0][0], 1e-9),
            "worst_code_to_in_turn": max(apart),
        }
        hidden = hidden_copies(timeline)
        if hidden is not None:
            row["copies_hidden"] = c.bar(f"overlap: copies hidden, {width}x{height}", hidden, 0.9)
            row["ms"] = [
                [round(1000 * t, 2) for t in (*times.upload, *times.compute, *times.download)]
                for times in timeline[2:6]
            ]
        rows[f"{width}x{height}, batch {batch}"] = row
    return rows


def parted(frames: Sequence[Frame], batch: int) -> list[list[Frame]]:
    """Frames in batches."""
    return [list(frames[k : k + batch]) for k in range(0, len(frames), batch)]


def published(c: Check) -> dict[str, Any]:
    """MIMO-UNet in each runtime beside its authors' way: eager, fp32, channels first, one frame."""
    torch.manual_seed(0)
    network = build("mimo-unet").eval().requires_grad_(False)
    for parameter in network.feat_extract[5].parameters():  # type: ignore[index, union-attr]
        parameter.mul_(0.1)  # untrained: small corrections, as trained ones are
    (width, height), batches = ((160, 96), (1,)) if c.quick else (HD, (1, 4))
    authors = copy.deepcopy(network).to(c.device)
    rng = np.random.default_rng(1)
    host = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    picture = torch.rand(1, 3, height, width, device=c.device)

    def frame() -> Any:
        x = torch.from_numpy(host).permute(2, 0, 1).contiguous().float().div(255)
        result = authors.forward_scales(x[None].to(c.device))[-1]
        return result.clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).cpu().numpy().astype("u1")

    with torch.no_grad(), fastest_convolutions(c.device):
        alone, _ = c.ms(lambda: authors.forward_scales(picture))
        whole, _ = c.ms(frame)
    rows = in_runtimes(c, network, [((width, height), batch) for batch in batches])
    rates = [r["frames_per_s"] for r in rows.values() if r.get("db_to_torch", 99) >= 50]
    best = max((rate for rate in rates if rate), default=0.0)
    rows["authors' way"] = {"network_ms": alone, "frame_ms": whole}
    rows["best"] = {"frames_per_s": best, "times_authors_frames": best * whole / 1000}
    if c.gpu:
        c.bar("mimo-unet at 1280x720: frames/s of the network", best, 150)
        c.bar("mimo-unet at 1280x720: times the authors' way", best * whole / 1000, 10)
    return rows


def runtimes(c: Check) -> dict[str, Any]:
    """The default network and its larger sister in each runtime."""
    rows: dict[str, Any] = {}
    cases = [((160, 96), 1)] if c.quick else [(HD, 1), (HD, 8), (FULL_HD, 1)]
    for name in (DEFAULT, LARGE):
        found = in_runtimes(c, load_network(name), cases)
        rows |= {f"{name}, {case}": row for case, row in found.items()}
    return rows


def in_runtimes(c: Check, network: nn.Module, cases: Sequence[Any]) -> dict[str, Any]:
    """Time the network alone, and compare it with torch's result on the same input."""
    rows: dict[str, Any] = {}
    top = c.result.get("ceilings", {})
    for runtime in c.runtimes:
        slow = runtime in SLOW_TO_COMPILE
        if c.left < (20 if slow else 4):
            rows[runtime] = {"skipped": "no time left"}
            continue
        try:
            deblurrer = c.deblurrer(copy.deepcopy(network), backend=runtime)
            call = correction_of(deblurrer.network)
            for (width, height), batch in cases[:1] if slow else cases:
                x = random_input(network, batch, height, width + -width % 16)
                x = x.to(c.device, deblurrer.dtype).contiguous(memory_format=torch.channels_last)
                plain = copy.deepcopy(network).to(c.device, deblurrer.dtype)
                with torch.no_grad(), fastest_convolutions(c.device):
                    begin = time.perf_counter()
                    for _ in range(3 if c.gpu else 1):  # plain, compiled and recorded, as it stays
                        got = call(x).float()
                    synchronize(c.device)
                    ready = time.perf_counter() - begin
                    expected = correction_of(plain)(x).float()
                    ms, issued = c.ms(lambda call=call, x=x: call(x))  # type: ignore[misc]
                error = float((got - expected).square().mean())
                row = {
                    "frames_per_s": 1000 * batch / ms,
                    "ms": ms / batch,
                    "issued_in_ms": issued / batch,
                    "ready_after_s": ready,
                    "db_to_torch": min(99.0, -10 * float(np.log10(max(error, 1e-10)))),
                }
                work = work_of(network, height, width, deblurrer.dtype)
                if work is not None and "tflops" in top:
                    most = work.ceiling(top["tflops"] * 1e12, top["copy_tb_s"] * 1e12)
                    row["of_ceiling"] = row["frames_per_s"] / most if most else 0.0
                rows[f"{runtime}, {width}x{height}, batch {batch}"] = row
                del x, plain
            if deblurrer.notes:
                rows[f"{runtime}, notes"] = {"notes": list(deblurrer.notes)}
            del deblurrer, call
        except Exception as error:
            rows[runtime] = failed(error)
        empty_cache(c.device)
    return rows


def files(c: Check) -> dict[str, Any]:
    """A film from file to file, by decoders on the CPU and on the GPU, and what bounds it."""
    needs_av()
    from vdeblur import EncodeOptions, deblur_video
    from vdeblur.media import demo_scene

    size, count = ((160, 96), 8) if c.quick else (HD, 360)
    rows: dict[str, Any] = {}
    ways: dict[str, tuple[str | None, dict[str, str]]] = {"decoded on the CPU": (None, {})}
    if c.gpu:
        fast = {"preset": "veryfast"}
        ways["decoded on the CPU, x264 veryfast"] = None, fast
        ways["decoded on the GPU, x264 veryfast"] = "cuda", fast
        ways["decoded and encoded on the GPU"] = "cuda", {"encoder": "nvenc"}
    with tempfile.TemporaryDirectory() as folder:
        scene = demo_scene.write(Path(folder) / "scene.mp4", size, count=count)
        deblurrer = c.deblurrer()
        for name, (hwaccel, encode) in ways.items():
            if c.left < 8:
                rows[name] = {"skipped": "no time left"}
                continue
            times: list[float] = []
            begin = time.perf_counter()
            try:
                report = deblur_video(
                    scene,
                    Path(folder) / "out.mp4",
                    model=deblurrer,
                    overwrite=True,
                    exposure=0.5,  # so that there is something to restore
                    hwaccel=hwaccel,
                    encode=EncodeOptions(**encode),  # type: ignore[arg-type]
                    on_progress=lambda *_, times=times: times.append(time.perf_counter()),
                )
            except Exception as error:
                rows[name] = failed(error)
                continue
            # The thread that restores also opens and checks the files.
            *sources, sink = report.stages
            busy = busy_shares(sources, report.seconds, sink, report.seconds)
            # Without opening, compiling and recording, and what is checked after the last frame.
            later = times[len(times) // 4 :]
            rows[name] = {
                "frames_per_s": (len(later) - 1) / (later[-1] - later[0]),
                "first_frame_s": times[0] - begin,
                "busy": busy,
                "bound_by": max(busy, key=lambda stage: busy[stage]),
                "seconds": report.seconds,
                "differences": report.differences,
                "notes": report.notes,
            }
    return rows


def films(c: Check) -> dict[str, Any]:
    """The gain on the samples, on this device and in fp32 on the CPU."""
    needs_av()
    import av

    from vdeblur import deblur_frames

    def read(name: str) -> list[Any]:
        with av.open(str(Path(__file__).parents[1] / "samples" / f"{name}.mp4")) as container:
            frames = zip(range(4 if c.quick else 40), container.decode(video=0), strict=False)
            return [frame.to_ndarray(format="rgb24") for _, frame in frames]

    def psnr(some: Sequence[Any], others: Sequence[Any]) -> float:
        errors = [
            float(np.mean((a.astype(np.float32) - b) ** 2))
            for a, b in zip(some, others, strict=True)
        ]
        return float(np.mean([10 * np.log10(255**2 / max(e, 1e-9)) for e in errors]))

    rows: dict[str, Any] = {}
    cpu = Deblurrer(device="cpu", precision="fp32", backend="torch")
    for name in ("street", "walk"):
        blurred, sharp = read(f"{name}_blurred"), read(f"{name}_sharp")
        before = psnr(blurred, sharp)
        right = list(deblur_frames(iter(blurred), model=cpu))
        row = {"gain_db on the CPU in fp32": psnr(right, sharp) - before}
        for runtime in c.ready_runtimes if c.gpu else ():
            c.poison()
            got = list(deblur_frames(iter(blurred), model=c.deblurrer(backend=runtime)))
            row[f"gain_db, {runtime}"] = psnr(got, sharp) - before
            row[f"db to the CPU, {runtime}"] = c.bar(
                f"films: {name} by {runtime}, dB to fp32 on the CPU", psnr(got, right), 50
            )
        rows[name] = row
    return rows


def memory(c: Check) -> dict[str, Any]:
    """Peaks of one picture of 3840x2160, beside predictions; and in 8 GB."""
    if c.device.type != "cuda":
        raise Skipped("needs a CUDA device")
    rows: dict[str, Any] = {}
    width, height = UHD
    layout = PlaneLayout(width, height)
    planes = [torch.full((1, *s), 90, dtype=torch.uint8) for s in layout.shapes]
    for name, gb in ((DEFAULT, None), (LARGE, None), ("mimo-unet", None), ("mimo-unet", 8)):
        empty_cache(c.device)
        network = build(name).eval().requires_grad_(False)
        free = torch.cuda.mem_get_info(c.device)[0]
        block = torch.empty(
            max(0, free - gb * 10**9) if gb else 0, dtype=torch.uint8, device=c.device
        )
        deblurrer = c.deblurrer(network)
        torch.cuda.reset_peak_memory_stats(c.device)
        motion = torch.full((1, 4, 2, 2), 5.0) if deblurrer.guided else None
        for _ in range(2):
            deblurrer.restore_planes(planes, layout, motion)
        synchronize(c.device)
        peak = torch.cuda.max_memory_allocated(c.device) - block.numel()
        rows[f"{name}, in {gb} GB" if gb else name] = {
            "peak_gb": peak / 1e9,
            "predicted_gb": deblurrer.memory_needed(height, width) / 1e9,
            "plan": str(deblurrer.plans.get((height, width))),
            "notes": list(deblurrer.notes),
        }
        del block, deblurrer
    return rows


def tests(c: Check) -> dict[str, Any]:
    """The tests that need a GPU, in a process of their own."""
    if c.device.type != "cuda":
        raise Skipped("needs a CUDA device")
    words = ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    words += ["-k", "cuda or gpu", "--continue-on-collection-errors", "-rf", "tests"]
    environment = dict(os.environ) | {"VDEBLUR_REQUIRE_CUDA": "1"}
    log = c.out / "tests.log"
    try:
        with log.open("w") as file:
            code = subprocess.run(
                [sys.executable, *words],
                cwd=Path(__file__).parents[1],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=c.left,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        code = -1
    lines = log.read_text(errors="replace").splitlines()
    if any("No module named pytest" in line for line in lines):
        raise Skipped("pytest is not installed")
    bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"code": code, "bad": bad[:60], "last": lines[-1] if lines else "no time left"}


#: The parts, by their worth, and the seconds that each takes of 200 at most.
PARTS: dict[Callable[[Check], dict[str, Any]], float] = {
    ceilings: 5,
    correctness: 30,
    stages: 25,
    overlap: 20,
    published: 50,
    runtimes: 55,
    files: 60,
    films: 20,
    memory: 15,
    tests: 60,
}


# --- the run -------------------------------------------------------------------------------------


def needs_av() -> None:
    """Skip a part where PyAV is missing."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise Skipped(f"needs PyAV ({error})") from error


def failed(error: BaseException) -> dict[str, Any]:
    """What is to be known of an error: its sentence, and its last calls."""
    calls = traceback.format_exception(error)
    text = str(error).strip()
    sentence = text.splitlines()[0][:300] if text else ""
    return {"failed": f"{type(error).__name__}: {sentence}", "calls": "".join(calls)[-1200:]}


def rounded(value: Any) -> Any:
    """Round floats to four significant digits, to be read."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def show(name: str, said: dict[str, Any], seconds: float) -> None:
    """Print what a part found, a line a row."""
    print(f"== {name}, {seconds:.1f} s", flush=True)
    for key, row in said.items():
        if key != "calls":
            print(f"   {key}: {json.dumps(row, ensure_ascii=False)}", flush=True)


def main() -> int:
    """Run the parts in turn; return 0 if none failed and all bars were reached."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--out", type=Path, required=True, help="folder of check.json")
    parser.add_argument("--seconds", type=float, default=200, help="of the process (default 200)")
    parser.add_argument("--device", default="cuda", help="cuda (default), rocm, xpu, cpu …")
    names = [part.__name__ for part in PARTS]
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    parser.add_argument("--quick", action="store_true", help="tiny pictures, to rehearse on a CPU")
    args = parser.parse_args()
    c = Check(args)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{c.result['machine']}; {c.result['versions']}", flush=True)
    bad = 0
    for part, most in PARTS.items():
        name, began = part.__name__, time.monotonic()
        if name not in args.parts:
            continue
        c.part_end = min(c.end, began + most * args.seconds / 200)
        try:
            if c.left < 3:
                raise Skipped("no time left")
            said = rounded(part(c))
        except Skipped as reason:
            said = {"skipped": str(reason)}
        except Exception as error:
            said, bad = failed(error), bad + 1
        c.result[name] = said
        (c.out / "check.json").write_text(json.dumps(c.result, indent=1, ensure_ascii=False))
        show(name, said, time.monotonic() - began)
        empty_cache(c.device)
    for bar in c.result["bars"]:
        verdict = "reached" if bar["reached"] else "MISSED"
        print(f"{verdict}: {bar['name']}: {bar['value']} (at least {bar['at_least']})")
    missed = sum(not bar["reached"] for bar in c.result["bars"])
    print(f"{bad} parts failed, {missed} bars missed; {args.out / 'check.json'}")
    return 1 if bad or missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
