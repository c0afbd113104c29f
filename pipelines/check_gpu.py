"""Run all checks that need a CUDA device: clips, tests, kernels, tuning, benchmark, 8 GB.

python pipelines/check_gpu.py --out gpu [--minutes 9] [--model mimo-unet] [--weights FILE]
    [--pairs FOLDER]

Each part is a process with its own time limit, so that a failure does not stop the others. Logs,
JSON and charts go to --out, and a summary against the targets is printed last. --pairs takes
blurred and sharp pictures as `vdeblur eval` does; on them, the default network is scored in half
precision, and with --weights also --model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

KERNELS = """
import torch, torch.nn as nn
from vdeblur.inference.kernels import autotune, convolution
from vdeblur.networks.layers import ResBlock
print(f"{'channels':>8} {'size':>14} {'torch ms':>9}  ms of each way that agrees")
for channels, h, w in ((32, 720, 1280), (64, 360, 640), (128, 180, 320)):
    for n in (1, 4):
        block = ResBlock(channels).cuda().half().eval().requires_grad_(False)
        x = torch.randn(n, channels, h, w, device='cuda', dtype=torch.half)
        x = x.contiguous(memory_format=torch.channels_last)
        block = block.to(memory_format=torch.channels_last)
        quick = convolution.FusedBlock(block)
        middle = quick.first.plain(x)
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            times, expected = {}, block(x).float()
            for name, way in quick.second.ways(middle, x).items():
                try:
                    error = float((way().float() - expected).abs().max() / expected.abs().max())
                    times[name] = f'{autotune.milliseconds(way):.3f}' if error < 2e-2 else error
                except Exception as problem:
                    times[name] = type(problem).__name__
            for name, way in quick.first.ways(x).items():
                try:
                    times['first ' + name] = f'{autotune.milliseconds(way):.3f}'
                except Exception as problem:
                    times['first ' + name] = type(problem).__name__
            plain = autotune.milliseconds(block, x)
        gb = 6 * x.numel() * 2 / 1e9
        print(f'{channels:>8} {n}x{h}x{w:>6} {plain:>9.3f}  {times} ({gb:.2f} GB unfused)')
"""

FILMS = """
from pathlib import Path
import av, numpy as np, torch
from vdeblur import Deblurrer, deblur_frames
def read(path):
    with av.open(str(path)) as container:
        return [f.to_ndarray(format='rgb24') for _, f in zip(range(40), container.decode(video=0))]
def psnr(some, others):
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(some, others)]
    return float(np.mean([10 * np.log10(255**2 / max(e, 1e-9)) for e in errors]))
def spoil():
    large = [torch.full((1 << 28,), float('nan'), device='cuda') for _ in range(4)]
    small = [torch.full((1 << 18,), float('nan'), device='cuda') for _ in range(64)]
for name in ('street', 'walk'):
    blurred, sharp = (read(Path('samples') / f'{name}_{k}.mp4') for k in ('blurred', 'sharp'))
    before = psnr(blurred, sharp)
    cpu = Deblurrer(device='cpu', precision='fp32', backend='torch')
    right = list(deblur_frames(iter(blurred), model=cpu))
    print(f'{name}: gain of the CPU in fp32 {psnr(right, sharp) - before:.3f} dB')
    for backend in ('torch', 'cudagraphs'):
        gpu = Deblurrer(device='cuda', backend=backend)
        spoil()  # what a kernel leaves unwritten shows
        got = list(deblur_frames(iter(blurred), model=gpu))
        print(f'{name}: {backend} {psnr(got, sharp) - before:.3f} dB, {psnr(got, right):.1f} dB '
              'from it', gpu.notes)
        assert psnr(got, right) > 50
"""

GUIDED = """
import torch
from vdeblur.inference.runtimes.cuda import Recorder
from vdeblur.inference.kernels.autotune import milliseconds
from vdeblur.networks import build, spec, taps
print('milliseconds a frame: samples along the motion, network, its trunk, network as a graph')
for model in ('mimo-unet-guided', 'mimo-unet-guided-large'):
    network = build(model, dict(spec(model).config)).eval().requires_grad_(False).cuda().half()
    network = network.to(memory_format=torch.channels_last)
    for width, height, n in ((1280, 720, 1), (1280, 720, 8), (1920, 1080, 1), (3840, 2160, 1)):
        rgb = torch.rand(n, 3, height, width, device='cuda')
        motion = torch.randn(n, 4, height // 8, width // 8, device='cuda') * 5
        x = taps.with_guidance(rgb, motion).to(torch.half, memory_format=torch.channels_last)
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=True):
            packed, _ = network.prepare(x)
            graph = Recorder()(network.correction, x)
            ways = ((lambda _: taps.with_guidance(rgb, motion), rgb), (network.correction, x),
                    (network.trunk, packed), (graph, x))
            times = [f'{milliseconds(way, given) / n:8.3f}' for way, given in ways]
        print(f'{model:>24} {width:>5}x{height:<5} batch {n}', *times)
"""

COLOUR = """
import torch
from vdeblur.inference.kernels import autotune, color
from vdeblur.color import add_correction, as_int16, correction_to_planes
from vdeblur.inference.guard import damaged
from vdeblur.frames import PlaneLayout
limits = {'block': 16, 'block_mean': 0.35, 'mean': 0.15}
print(f"{'planes':>24} {'torch ms':>18} {'kernels ms':>20}  codes off")
for layout, size in ((PlaneLayout(1280, 720), (720, 1280)),
                     (PlaneLayout(1920, 1080, 10, siting='topleft'), (1088, 1920))):
    kind = torch.uint8 if layout.depth == 8 else torch.int16
    planes = [torch.randint(60, 200, (4, *s), device='cuda').to(kind) for s in layout.shapes]
    options = {'size': size, 'dtype': torch.half}
    delta = torch.randn(4, 3, *size, device='cuda').mul(0.05).half()
    delta = delta.contiguous(memory_format=torch.channels_last)
    def to_torch(_):
        return color.in_torch(planes, layout, **options)
    def from_torch(d):
        d = d.float().contiguous()[..., : layout.height, : layout.width]
        d = d.masked_fill(damaged(d)[:, None, None, None], 0)
        return add_correction(planes, correction_to_planes(d, layout), layout)
    def to_kernel(_):
        return color.planes_to_input(planes, layout, **options)
    def from_kernel(d):
        flags = color.judge(d, layout, **limits)
        return color.add_to_planes(planes, d, layout, replaced=flags)
    off = [float((as_int16(a).int() != as_int16(b).int()).float().mean())
           for a, b in zip(from_kernel(delta), from_torch(delta))]
    there = float((to_kernel(delta).float() - to_torch(delta).float()).abs().max())
    times = [autotune.milliseconds(way, delta) / 4
             for way in (to_torch, from_torch, to_kernel, from_kernel)]
    name = f'{layout.width}x{layout.height} {layout.depth} bit'
    print(f'{name:>24} {times[0]:>9.4f}{times[1]:>9.4f} {times[2]:>10.4f}{times[3]:>10.4f}  '
          f'{max(off):.5f}, RGB off by {there:.1e} (a frame, of batches of 4)')
"""

IN_8_GB = """
import torch
from vdeblur import Deblurrer
from vdeblur.benchmark.run import load_for_speed
from vdeblur.frames import PlaneLayout
free = torch.cuda.mem_get_info()[0]
block = torch.empty(max(0, free - 8 * 10**9), dtype=torch.uint8, device='cuda')
torch.cuda.reset_peak_memory_stats()
deblurrer = Deblurrer(load_for_speed('{model}', None)[0], device='cuda')
layout = PlaneLayout(3840, 2160)
planes = [torch.zeros(1, *shape, dtype=torch.uint8) for shape in layout.shapes]
for _ in range(3):
    deblurrer.restore_planes(planes, layout)
torch.cuda.synchronize()
used = torch.cuda.max_memory_allocated() - block.numel()
print(f'3840x2160: {{used / 1e9:.2f}} GB at the peak,', deblurrer.plans, deblurrer.notes)
"""


def main() -> int:
    """Run the parts in turn; return 0 if all succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--model", default="mimo-unet")
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--weights", help="of --model, to score it on --pairs")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here: run it on a machine with one")
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    # What is tuned here is for this run, and comes back with it.
    environment = {"VDEBLUR_REQUIRE_CUDA": "1", "VDEBLUR_CACHE": str(args.out / "cache")}
    environment["PYTHONUNBUFFERED"] = "1"  # a part that is cut short has still said something

    def part(name: str, words: list[str], limit: float) -> bool:
        left = min(limit, end - time.monotonic())
        if left < 5:
            print(f"{name}: no time left", flush=True)
            return False
        began, log = time.monotonic(), args.out / f"{name}.log"
        with log.open("w") as file:
            try:
                code = subprocess.run(
                    [sys.executable, *words], env=dict(os.environ) | environment,
                    stdout=file, stderr=subprocess.STDOUT, timeout=left, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired:
                code = 124
        tail = log.read_text(errors="replace")[-1500:] if name != "bench" or code else ""
        print(f"== {name}: {code} after {time.monotonic() - began:.0f} s\n{tail}", flush=True)
        return code == 0

    def bench(name: str, *words: str, limit: float) -> bool:
        # JSON on standard output, what is said on standard error: one log holds both.
        chart = ["--chart", str(args.out / f"{name}.png")]
        done = part(name, ["-m", "vdeblur", "bench", "--json", *chart, *words], limit)
        if done:
            lines = (args.out / f"{name}.log").read_text().splitlines()
            print(summary(json.loads([line for line in lines if line.startswith("{")][-1])))
        return done

    model = ["--model", args.model]
    # Checks of the device first; the others share the remaining time.
    results = [
        part("films", ["-c", FILMS], 60),
        part("guided", ["-c", GUIDED], 40),
        part("colour", ["-c", COLOUR], 30),
        part("kernels", ["-c", KERNELS], 90),
        bench("torch", *model, "--backend", "torch", "--against", "published", limit=70),
        bench("tuned", *model, "--tune", limit=150),
        part(
            "tests",
            # pytest-benchmark, where it happens to be installed, warns of xdist: an error here.
            [
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:benchmark",
                "--continue-on-collection-errors",
                "-k",
                "cuda or gpu",
            ],
            120,
        ),
        part("in-8-gb", ["-c", IN_8_GB.format(model=args.model)], 40),
        bench("1080p", *model, "--size", "1920x1080", "--rounds", "2", limit=50),
        bench("nvdec", *model, "--hwaccel", "cuda", "--rounds", "2", limit=50),
        bench("default", "--tune", "--rounds", "2", limit=90),
    ]
    words = ["-m", "vdeblur", "eval", "--pairs", str(args.pairs), "--device", "cuda", "--precision"]
    if args.pairs:
        results.append(part("pairs", [*words, "fp16"], 40))
    if args.pairs and args.weights:
        results.append(part("pairs-own", [*words, "fp16", *model, "--weights", args.weights], 40))
    return 0 if all(results) else 1


def summary(said: dict[str, Any]) -> str:
    """Format the figures of a benchmark beside their targets."""
    rates = {name: values["median"] for name, values in said["rates"].items()}
    lines = [
        f"   {said['model']} {said['size']}: {said['backend']} {said['precision']}, "
        f"batch {said['batch']}, tile {said['tile']}",
        "   " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
        f"   network: {rates['network']:.1f} frames/s (bars at 1280x720: 110, 165, 276)",
        "   planes to planes / restoring: "
        f"{rates['planes to planes'] / rates['restoring']:.3f} (bar 0.95)",
    ]
    if said["ceiling"]:
        lines.append(f"   share of the ceiling: {rates['network'] / said['ceiling']:.2f}")
    for name in ("network_against_published", "frames_against_published"):
        if name in said:
            ratio = said[name]
            lines.append(f"   {name}: {ratio['median']:.2f}, {ratio['spread']} (bar 10)")
    for trial in said.get("sweep", {}).get("trials", []):
        lines.append(f"   {trial}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
