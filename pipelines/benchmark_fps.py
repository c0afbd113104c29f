"""Frames per second of decoding, network, encoding and the whole, on one clip.

python pipelines/benchmark_fps.py CLIP [--model identity] [--device auto] [--frames 120]
"""

from __future__ import annotations

import argparse

from vdeblur.bench import bench, format_result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip")
    parser.add_argument("--model", default="mimo-unet-small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--frames", type=int, default=120)
    args = parser.parse_args()
    result = bench(args.clip, model=args.model, device=args.device, frames=args.frames)
    print(format_result(result))


if __name__ == "__main__":
    main()
