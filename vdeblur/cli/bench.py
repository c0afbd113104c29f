"""vdeblur bench: frames per second of each stage and of the whole."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from vdeblur.cli.common import keep_pages, network_options

if TYPE_CHECKING:
    from vdeblur.cli.common import Commands


def add(commands: Commands) -> None:
    """Enter the command."""
    bench = commands.add_parser(
        "bench",
        help="measure frames per second of each stage and of the whole",
        description="Frames/s of decoding, network and encoding alone, and of the pipeline.",
    )
    bench.add_argument("clip", metavar="CLIP", help="a video file")
    network_options(bench)
    bench.add_argument("--encoder", default="auto", help="libav encoder name, or auto")
    bench.add_argument("--preset", help="the encoder's speed preset")
    bench.add_argument("--frames", type=int, default=120, help="frames to measure (default 120)")
    bench.add_argument("--rounds", type=int, default=3, help="rounds; medians count (default 3)")
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vdeblur.bench import bench, format_result

    keep_pages()
    result = bench(
        args.clip,
        model=args.model,
        weights=args.weights,
        device=args.device,
        precision=args.precision,
        batch=args.batch,
        tile=None if args.tile == "none" else args.tile,
        encoder=args.encoder,
        preset=args.preset,
        frames=args.frames,
        rounds=args.rounds,
    )
    print(json.dumps(result.as_dict()) if args.json else format_result(result))
    return 0
