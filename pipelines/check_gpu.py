"""Everything that needs a CUDA device, in one run: its tests, kernels, tuning, benchmark, 8 GB.

python pipelines/check_gpu.py --out gpu [--minutes 9] [--model mimo-unet]

Each part is a process with a time limit of its own, so that one that fails leaves the others; logs,
JSON and charts go to --out, and a summary against the bars is printed last.
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

KERNELS = """
import torch, torch.nn as nn
from vdeblur import fused
from vdeblur.models.layers import ResBlock
print(f"{'channels':>8} {'size':>14} {'torch ms':>9}  ms of each way that agrees")
for channels, h, w in ((32, 720, 1280), (64, 360, 640), (128, 180, 320)):
    for n in (1, 4):
        block = ResBlock(channels).cuda().half().eval().requires_grad_(False)
        x = torch.randn(n, channels, h, w, device='cuda', dtype=torch.half)
        x = x.contiguous(memory_format=torch.channels_last)
        block = block.to(memory_format=torch.channels_last)
        quick = fused.FusedBlock(block, whole=channels <= 64)
        with torch.no_grad(), torch.backends.cudnn.flags(benchmark=True):
            times, expected = {}, block(x).float()
            for name, way in quick.ways().items():
                try:
                    error = float((way(x).float() - expected).abs().max() / expected.abs().max())
                    times[name] = f'{fused._milliseconds(way, x):.3f}' if error < 2e-2 else error
                except Exception as problem:
                    times[name] = type(problem).__name__
            plain = fused._milliseconds(block, x)
        gb = 6 * x.numel() * 2 / 1e9
        print(f'{channels:>8} {n}x{h}x{w:>6} {plain:>9.3f}  {times} ({gb:.2f} GB unfused)')
"""

IN_8_GB = """
import torch
from vdeblur import Deblurrer
from vdeblur.bench import load_for_speed
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
    """Run the parts one after another; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--model", default="mimo-unet")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    # What is tuned here is for this run, and comes back with it.
    environment = {"VDEBLUR_REQUIRE_CUDA": "1", "VDEBLUR_CACHE": str(args.out / "cache")}

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
            print(summary(json.loads((args.out / f"{name}.log").read_text().splitlines()[-1])))
        return done

    model = ["--model", args.model]
    results = [
        part("kernels", ["-c", KERNELS], 100),
        bench("torch", *model, "--backend", "torch", "--against", "published", limit=80),
        bench("tuned", *model, "--tune", limit=200),
        part(
            "tests",
            ["-m", "pytest", "-q", "--continue-on-collection-errors", "-k", "cuda or gpu"],
            150,
        ),
        part("in-8-gb", ["-c", IN_8_GB.format(model=args.model)], 40),
        bench("1080p", *model, "--size", "1920x1080", "--rounds", "2", limit=50),
        bench("nvdec", *model, "--hwaccel", "cuda", "--rounds", "2", limit=50),
        bench("small", "--model", "mimo-unet-small", "--tune", "--rounds", "2", limit=100),
    ]
    return 0 if all(results) else 1


def summary(said: dict[str, Any]) -> str:
    """A benchmark's figures beside the bars that they are held to."""
    rates = {name: values["median"] for name, values in said["rates"].items()}
    lines = [
        f"   {said['model']} {said['size']}: {said['backend']} {said['precision']}, "
        f"batch {said['batch']}, tile {said['tile']}",
        "   " + ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items()),
        f"   network: {rates['network']:.1f} frames/s (bars at 1280x720: 110, 165, 276)",
        f"   planes to planes / network: {rates['memory'] / rates['network']:.3f} (bar 0.95)",
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
