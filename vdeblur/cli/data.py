"""vdeblur data: check folders of pairs, and make pairs from video or from photographs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import add_layout_option
from vdeblur.cli.output import check_new_file, print_json, say
from vdeblur.cli.values import count_range
from vdeblur.errors import UsageError, VdeblurError

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.datasets.blur_options import BlurOptions


def add(commands: Commands) -> None:
    """Register the subcommand."""
    data = commands.add_parser(
        "data",
        help="check folders of pairs; make pairs from video or photographs",
        description="Pairs of blurred and sharp pictures, for training and evaluation.",
    )
    data.set_defaults(run=lambda _: _nothing(data))
    actions = data.add_subparsers(title="actions", metavar="ACTION")
    _add_check(actions)
    _add_average(actions)
    _add_synth(actions)


def _add_check(actions: Commands) -> None:
    check = actions.add_parser(
        "check",
        help="report layout, counts, sizes, misalignment",
        description="Report the contents of a folder of pairs and what is wrong with it. "
        "Exit 1 if training on it would fail.",
    )
    check.add_argument("folder", metavar="DIR", type=Path, help="folder of pairs")
    add_layout_option(check)
    check.add_argument(
        "--sample",
        type=int,
        default=20,
        metavar="N",
        help="pairs to measure in each split (default 20)",
    )
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.set_defaults(run=_check)


def _add_average(actions: Commands) -> None:
    average = actions.add_parser(
        "average",
        help="make pairs from sharp high-frame-rate video, by averaging frames",
        description="Average 7 to 13 frames of sharp high-frame-rate video (120 frames/s or more) "
        "into each blurred picture; the middle frame is the sharp one: "
        "OUT/NAME/{blur,blur_gamma,sharp}.",
    )
    average.add_argument("sources", metavar="SRC", nargs="+", type=Path, help="video files")
    average.add_argument(
        "-o",
        "--output",
        dest="out",
        metavar="OUT",
        type=Path,
        required=True,
        help="folder to write to",
    )
    average.add_argument(
        "--frames",
        type=count_range,
        default=(7, 13),
        metavar="A..B",
        help="number of frames to average, an odd number drawn from this range (default 7..13)",
    )
    average.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="frames between the starts of two windows (default: end to end)",
    )
    average.add_argument(
        "--response",
        default="gamma:2.2",
        metavar="CURVE",
        help="camera response of blur_gamma: gamma:G, srgb, linear, or a file of 256 numbers "
        "(default gamma:2.2); blur averages the codes themselves",
    )
    average.add_argument(
        "--max-blur",
        type=float,
        default=0.5,
        metavar="B",
        help="skip windows whose middle frame is more blurred (0 to 1; default 0.5; 1: skip none)",
    )
    average.add_argument(
        "--reader",
        choices=("auto", "decord", "pyav"),
        default="auto",
        help="decord seeks, pyav reads all frames; auto is decord for windows that are far apart, "
        "if it is installed",
    )
    average.add_argument("--seed", type=int, default=0, help="seed of the counts (default 0)")
    average.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace existing pairs"
    )
    average.add_argument("--json", action="store_true", help="print one report per line, as JSON")
    average.set_defaults(run=_average)


def _add_synth(actions: Commands) -> None:
    synth = actions.add_parser(
        "synth",
        help="make pairs from photographs, as training makes them",
        description="Blur sharp photographs with random motion and cameras, as `vdeblur train "
        "--data synth:DIR` does during training, into OUT/blur and OUT/sharp.",
    )
    synth.add_argument("folder", metavar="DIR", type=Path, help="sharp photographs")
    synth.add_argument(
        "-o", "--output", dest="out", metavar="OUT", type=Path, help="folder for the pairs"
    )
    synth.add_argument(
        "--count", type=int, default=100, metavar="N", help="pairs to make (default 100)"
    )
    synth.add_argument(
        "--crop", type=int, default=512, metavar="PIXELS", help="side of a pair (default 512)"
    )
    synth.add_argument("--seed", type=int, default=0, help="the same seed makes the same pairs")
    synth.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the blur, such as max_length=60 or noise=0; repeatable",
    )
    synth.add_argument(
        "--sheet", metavar="PICTURE", type=Path, help="draw examples of each ingredient"
    )
    synth.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace existing files"
    )
    synth.set_defaults(run=_synth)


def _nothing(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return 2


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"--seed is {seed}: give 0 or more")


def _check(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vdeblur.evaluation.check_pairs import check_folder, format_facts

    if args.sample < 0:
        raise UsageError(f"--sample is {args.sample}: give 0 or more")
    with tqdm(desc="pairs", unit="pair", disable=args.json or None, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        facts = check_folder(
            args.folder, layout=args.layout, sample=args.sample, on_progress=progress
        )
    print(json.dumps(facts.as_dict()) if args.json else format_facts(facts))
    return 0 if facts.sound else 1


def _average(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vdeblur.datasets.average import AverageOptions, AverageReport, average_video

    _check_seed(args.seed)
    options = AverageOptions(
        frames=args.frames,
        stride=args.stride,
        response=args.response,
        max_blur=args.max_blur,
        reader=args.reader,
        seed=args.seed,
    )
    if len({source.stem for source in args.sources}) < len(args.sources):
        raise UsageError("two sources would be written to one folder: average them one by one")
    worst = 0
    for source in args.sources:
        with tqdm(desc=source.name, unit="pair", disable=args.json or None, leave=False) as bar:

            def progress(report: AverageReport, bar: Any = bar) -> None:
                bar.update(report.pairs - bar.n)

            try:
                report = average_video(
                    source,
                    args.out,
                    options=options,
                    overwrite=args.overwrite,
                    on_progress=progress,
                )
            except UsageError:
                raise
            except VdeblurError as error:
                if len(args.sources) == 1:
                    raise
                say(f"vdeblur: {error}")
                worst = 1
                continue
        if args.json:
            print_json(report.as_dict())
        else:
            skipped = "".join(f"; {n} windows skipped {why}" for why, n in report.skipped.items())
            say(f"{report.folder}: {report.pairs} pairs, read by {report.reader}{skipped}")
            for note in report.notes:
                say(f"  note: {note}")
    return worst


def _synth(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from vdeblur.datasets.layouts import picture_files
    from vdeblur.datasets.synthesise import write_pairs, write_sheet

    if args.out is None and args.sheet is None:
        raise UsageError("nothing to write: give -o OUT for pairs, --sheet PICTURE, or both")
    if args.count < 1 or args.crop < 16:
        raise UsageError(
            f"{args.count} pairs of {args.crop} pixels cannot be: give 1 or more of 16 or more"
        )
    _check_seed(args.seed)
    options = _blur_options(args.set)
    if args.sheet is not None:
        check_new_file(args.sheet, force=args.overwrite)
        write_sheet(
            picture_files(args.folder),
            args.sheet,
            seed=args.seed,
            options=options,
            crop=min(args.crop, 128),
        )
        say(f"{args.sheet}: examples of each ingredient, and of pairs as training makes them")
    if args.out is not None:
        with tqdm(total=args.count, unit="pair", disable=None, leave=False) as bar:

            def progress(done: int) -> None:
                bar.update(done - bar.n)

            write_pairs(
                args.folder,
                args.out,
                count=args.count,
                crop=args.crop,
                seed=args.seed,
                options=options,
                overwrite=args.overwrite,
                on_progress=progress,
            )
        say(f"{args.out}: {args.count} pairs of {args.crop} pixels, seed {args.seed}")
    return 0


def _blur_options(settings: list[str]) -> BlurOptions:
    from vdeblur.datasets.blur_options import BlurOptions
    from vdeblur.training.recipes import from_texts

    values = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text} has no value: give KEY=VALUE, such as noise=0")
        values[key] = value
    return from_texts(BlurOptions(), values)
