"""Measure the frames per second of each step and of the whole, on a clip or a generated scene.

python pipelines/benchmark_fps.py [CLIP] [--model identity] [--device auto] [--frames 120]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from vdeblur import VdeblurError
from vdeblur.benchmark import BenchOptions, bench, format_result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?")
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(arguments)
    options = BenchOptions(frames=args.frames, rounds=args.rounds)
    result = bench(args.clip, model=args.model, device=args.device, options=options)
    print(format_result(result))


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
