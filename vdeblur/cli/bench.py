"""vdeblur bench: frames per second of each step and of the whole, and the fastest settings."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from vdeblur.cli.options import (
    add_encode_options,
    add_network_options,
    add_read_options,
    tile_of,
)
from vdeblur.cli.output import check_new_file, in_options, print_json, say
from vdeblur.cli.values import picture_size
from vdeblur.errors import UsageError
from vdeblur.system.allocator import keep_pages

if TYPE_CHECKING:
    from vdeblur.benchmark.sweep import Trial
    from vdeblur.cli.options import Commands

_SIZE = "1280x720"
_NETWORK = ("halo", "stage", "ensemble")  # options that are passed on as they are


def add(commands: Commands) -> None:
    """Register the subcommand."""
    bench = commands.add_parser(
        "bench",
        help="measure frames per second of each step and of the whole",
        description="Measure frames/s of decoding, copies, color conversion, network and encoding "
        "alone, and of the whole pipeline; with --tune, find the fastest settings, which later "
        "runs use.",
    )
    bench.add_argument(
        "clip", metavar="CLIP", nargs="?", help="a video file (default: a generated moving scene)"
    )
    add_network_options(bench)
    bench.add_argument(
        "--size",
        type=picture_size,
        metavar="WxH",
        help=f"of the generated scene, and of the pictures of --tune (default {_SIZE}, or that of "
        "CLIP)",
    )
    add_encode_options(bench, "encoder", "preset")
    add_read_options(bench, "hwaccel")
    bench.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="frames to measure (default: as many as take about two seconds)",
    )
    bench.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="rounds; the median counts (default 3, and 5 for each setting of --tune)",
    )
    bench.add_argument(
        "--against",
        choices=("published",),
        help="also run the network as the scripts of its authors do, and print the ratio",
    )
    bench.add_argument(
        "--tune",
        action="store_true",
        help="try runtimes, precisions, batches and tiles; later runs use the fastest",
    )
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.add_argument("--chart", metavar="FILE", help="draw the figures into a PNG file")
    bench.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace a chart that exists"
    )
    bench.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vdeblur.benchmark import chart
    from vdeblur.benchmark.report import format_result, format_sweep
    from vdeblur.benchmark.run import BenchOptions, bench
    from vdeblur.benchmark.sweep import TuneOptions, tune
    from vdeblur.media.encoders import EncodeOptions
    from vdeblur.media.reader import VideoReader
    from vdeblur.system.optional import optional

    if args.chart and Path(args.chart).suffix.lower() != ".png":
        raise UsageError(f"--chart {args.chart}: give a name that ends in .png")
    if args.chart:  # said before anything is measured
        clip = [Path(args.clip)] if args.clip else []
        check_new_file(Path(args.chart), force=args.overwrite, sources=clip)
        optional("matplotlib", extra="plots", purpose="--chart")
    if args.clip == "-":
        raise UsageError("CLIP is read several times, which a pipe cannot be: name a file")
    if args.clip and args.size and not args.tune:
        raise UsageError("--size is of the generated scene: leave it out, or CLIP")
    size = args.size or picture_size(_SIZE)
    if args.clip and not args.size:
        with VideoReader(args.clip) as reader:
            size = reader.info.width, reader.info.height
    keep_pages()
    tile = tile_of(args)
    common = {name: getattr(args, name) for name in ("model", "weights", *_NETWORK)}
    chosen = {"device": args.device, "precision": args.precision, "backend": args.backend}
    rounds = {} if args.rounds is None else {"rounds": args.rounds}
    sweep = None
    if args.tune:
        tuning = TuneOptions(size=size, batch=args.batch, tile=tile, **chosen, **rounds)
        sweep = tune(options=tuning, on_trial=None if args.json else _tell, **common)
        if not args.json:
            print(in_options(format_sweep(sweep)), end="\n\n")
    options = BenchOptions(
        batch=args.batch,
        size=size,
        encode=EncodeOptions(encoder=args.encoder, preset=args.preset),
        hwaccel=args.hwaccel,
        frames=args.frames,
        against=args.against,
        **rounds,
    )
    result = bench(args.clip, options=options, tile=tile, **chosen, **common)
    if args.json:
        more = {} if sweep is None else {"sweep": sweep.as_dict()}
        print_json(result.as_dict() | more)
    else:
        print(in_options(format_result(result)))
    if args.chart:
        chart.write(Path(args.chart), result, sweep, overwrite=args.overwrite)
    return 0


def _tell(trial: Trial) -> None:
    tile = "whole" if trial.tile is None else f"tiles of {trial.tile}"
    tried = f"{trial.backend} {trial.precision}, batch {trial.batch}, {tile}"
    if trial.failure:
        say(f"{tried}: {trial.failure}")
        return
    slow, fast = min(trial.rounds), max(trial.rounds)
    rate = statistics.median(trial.rounds)
    say(f"{tried}: {rate:.2f} frames/s ({slow:.2f} to {fast:.2f})")
