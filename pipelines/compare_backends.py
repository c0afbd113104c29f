"""Compare backends and precisions on a CPU with the way a network's authors run it.

python pipelines/compare_backends.py torch:bf16 openvino:bf16:2 [--config base=16 blocks=2]

A way is BACKEND:PRECISION or BACKEND:PRECISION:BATCH. Each runs in its own process, and they take
turns, so that other load affects all equally. The authors' way is eager, fp32, channels first, a
single frame, all outputs. Prints ratios of wall time and of processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

from vdeblur import Deblurrer, UsageError, VdeblurError
from vdeblur.benchmark import load_for_speed
from vdeblur.inference import random_motion
from vdeblur.networks import DEFAULT, Network, build, taps

AUTHORS = "authors"


def network_of(model: str, config: list[str]) -> Network:
    """Build the network untrained, since weights do not affect the speed."""
    if not config:
        found = load_for_speed(model, None)[0]
        assert isinstance(found, Network)
        return found
    torch.manual_seed(0)
    pairs = (entry.partition("=") for entry in config)
    chosen = {key: json.loads(value) for key, _, value in pairs}
    return build(model, chosen).eval().requires_grad_(False)


def serve(args: argparse.Namespace, way: str) -> None:
    """Serve a way: for each line of input, print the wall and processor milliseconds per frame."""
    network, (width, height) = network_of(args.model, args.config), map(int, args.size.split("x"))
    parts: list[Any] = way.split(":")
    backend, precision, count = parts + ["auto", "1"][len(parts) - 1 :]
    pictures = torch.rand(int(count), 3, height, width)
    motion = random_motion(len(pictures)) if network.guided else None
    below, right = -height % network.size_multiple, -width % network.size_multiple
    padded = F.pad(pictures, (0, right, 0, below), mode="replicate")
    deblurrer = (
        None
        if backend == AUTHORS
        else Deblurrer(network, device="cpu", backend=backend, precision=precision)
    )

    def run() -> None:
        with torch.no_grad():
            if deblurrer is not None:
                deblurrer.correction(pictures, motion)
            elif motion is not None:  # sampling along it is part of both ways
                network.forward_scales(taps.with_guidance(padded, motion))
            else:
                network.forward_scales(padded)

    run()
    run()  # what is compiled and laid out at first is no part of it
    print("ready", flush=True)
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(args.passes):
            run()
        frames = args.passes * len(pictures)
        taken = time.perf_counter() - clock, time.process_time() - processor
        print(json.dumps([1000 * seconds / frames for seconds in taken]), flush=True)


def main() -> None:
    """Run all ways in turn and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--model", default=DEFAULT)
    parser.add_argument("--config", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passes", type=int, default=4)
    args = parser.parse_args()
    if os.environ.get("VDEBLUR_WAY"):
        serve(args, os.environ["VDEBLUR_WAY"])
        return
    ways = [AUTHORS, *args.ways]
    children = []
    for way in ways:
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"VDEBLUR_WAY": way}
        words = [sys.executable, *sys.argv]
        pipe = subprocess.PIPE
        child = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True)
        children.append(child)
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            for other in children:
                other.kill()
                other.communicate()
            raise UsageError(f"{way} cannot be run: see what it said")
    rounds: list[list[list[float]]] = []
    for _ in range(args.rounds):
        rounds.append([])
        for child in children:
            assert child.stdin is not None
            assert child.stdout is not None
            print(file=child.stdin, flush=True)
            rounds[-1].append(json.loads(child.stdout.readline()))
    for child in children:
        child.communicate()
    for number, way in enumerate(ways):
        clock, processor = (
            statistics.median(first[0][kind] / first[number][kind] for first in rounds)
            for kind in (0, 1)
        )
        took = statistics.median(each[number][0] for each in rounds)
        print(f"{way:<20} {took:8.1f} ms a frame, {clock:.2f} times by the clock, {processor:.2f}")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
