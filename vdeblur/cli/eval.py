"""vdeblur eval: PSNR, SSIM and steadiness on pairs of blurred and sharp pictures or videos."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import (
    add_exposure_option,
    add_network_options,
    add_pairs_options,
    deblurrer_of,
    network_option_given,
)
from vdeblur.cli.output import check_new_file, in_options, say
from vdeblur.errors import OutputError, UsageError
from vdeblur.media.image_sequences import is_image
from vdeblur.system.allocator import keep_pages

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.datasets.pairs import PairSet
    from vdeblur.datasets.pans import Photograph
    from vdeblur.evaluation.report_page import Gallery
    from vdeblur.evaluation.run import EvalOptions, FrameSample
    from vdeblur.evaluation.scores import SetScores

_MODEL = "mimo-unet-guided"
_DESCRIPTION = """\
Score a network, or existing outputs, on pairs of blurred and sharp pictures or videos.

protocols:
  8bit    the restored picture is clamped and rounded to 8 bits; PSNR over all pixels and
          channels with peak 255; SSIM with the 11x11 Gaussian window (sigma 1.5) of Wang et al.
          (2004), valid positions only, averaged over R, G and B (agrees with scikit-image)
  float   clamped to [0, 1] but not rounded, as in eval.py of MIMO-UNet for PSNR; SSIM as in
          8bit, on these values
  matlab  8 bits, and SSIM as ssim(A, ref) of MATLAB computes it for an RGB picture: rows x
          columns x channels form one volume with repeated edges. The script of MPRNet and the
          tables of many later papers use it; the values are higher
All protocols measure the whole picture; the figures of a sequence and of a set are the means over
their pictures. Videos are decoded to RGB with their own matrix, range and depth; their frames are
restored as by `vdeblur video` and scored before any encoder (score an encoded file with
--restored).

steadiness, for videos (in 8-bit levels, along the motion of the sharp video by the DIS flow of
OpenCV; places hidden in one of the frames are left out; a perfect restoration has the figure of the
sharp video):
  warped-frame error  root mean square of frame t minus frame t-1 warped to it along the motion
                      (Lai et al., ECCV 2018)
  flicker             mean of |frame t minus the mean of frames t-1 and t+1 warped to it|
  flicker of the error  the same for the difference from the sharp video: recovered detail counts
                      in favor of the restoration here, and against it above
  restored / blurred  1: as steady as the source; more: the restoration added flicker

motion: a guided network receives the motion between the frames of a video, estimated as by
`vdeblur video`; pairs of pictures have none.
"""


def add(commands: Commands) -> None:
    """Register the subcommand."""
    command = commands.add_parser(
        "eval",
        help="score a network on pairs of blurred and sharp pictures or videos",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_pairs_options(command)
    command.add_argument(
        "--restored",
        action="append",
        type=Path,
        metavar="PATH",
        help="score these outputs (a folder, or a video) instead of those of a network; one for "
        "each --pairs",
    )
    command.add_argument(
        "--baseline", action="store_true", help="score only the blurred input, without a network"
    )
    add_network_options(command)
    add_exposure_option(command)
    _add_measures(command)
    _add_outputs(command)
    command.set_defaults(run=_run)


def _add_measures(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--protocol",
        choices=("8bit", "float", "matlab"),
        default="8bit",
        help="how to measure PSNR and SSIM, see above (default 8bit)",
    )
    command.add_argument(
        "--unsharp",
        action="store_true",
        help="also score the best unsharp mask of a grid: its PSNR gain",
    )
    command.add_argument(
        "--sharp",
        action="store_true",
        help="also restore the sharp pictures: PSNR of the result to the picture itself",
    )
    command.add_argument(
        "--lengths",
        nargs="?",
        const="",
        metavar="DIR",
        help="also the gain by length of blur (2 to 32 pixels), on pans over the photographs of "
        "DIR, or over sharp pictures of the pairs; for a guided network with the true motion, the "
        "estimated motion and none",
    )
    command.add_argument(
        "--lpips", action="store_true", help="also LPIPS (AlexNet), with the package lpips"
    )
    command.add_argument(
        "--temporal",
        action=argparse.BooleanOptionalAction,
        help="flicker and warped-frame error (default: for videos)",
    )
    command.add_argument(
        "--every", type=int, default=1, metavar="N", help="score one pair in N; no steadiness"
    )
    command.add_argument("--limit", type=int, metavar="N", help="score N pairs of each set")


def _add_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rows",
        choices=("auto", "picture", "sequence", "total"),
        default="auto",
        help="rows of the table (default auto: sequences, or pictures if they are few)",
    )
    command.add_argument("--markdown", action="store_true", help="print Markdown tables")
    command.add_argument(
        "--csv", metavar="FILE", help="write one line per picture; - for standard output"
    )
    command.add_argument(
        "--json", metavar="FILE", help="write everything as JSON; - for standard output"
    )
    command.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write one HTML page: tables, and the worst and the median picture of each set at "
        "100 %%",
    )
    command.add_argument(
        "--panels",
        type=Path,
        metavar="DIR",
        help="write PNGs: blurred | restored | sharp, and an enlargement of the largest change",
    )
    command.add_argument("--panel-count", type=int, metavar="N", help="panels per set (default 8)")
    command.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace files that exist"
    )
    command.add_argument("--quiet", action="store_true", help="show no progress")


def _run(args: argparse.Namespace) -> int:
    keep_pages()
    _check_outputs(args)
    outputs: list[Path | None] = list(args.restored or [])
    _check_choices(args, outputs)

    from vdeblur.datasets.pairs import open_pairs
    from vdeblur.datasets.pans import photographs_in, photographs_of
    from vdeblur.evaluation.report_page import Gallery
    from vdeblur.inference.batching import batch_size
    from vdeblur.motion.exposure import exposure_of

    options = _options(args)
    exposure_of(options.exposure)  # report an impossible one before anything is scored
    sets = [
        open_pairs(paths, restored=output, layout=args.layout, split=args.split)
        for paths, output in zip(args.pairs, outputs or [None] * len(args.pairs), strict=True)
    ]
    photographs = None
    if args.lengths is not None:
        photographs = photographs_in(Path(args.lengths)) if args.lengths else photographs_of(sets)
    deblurrer = None if args.baseline or outputs else deblurrer_of(args)
    label = "restored" if deblurrer is None else args.model or _weights_name(args.weights)
    size = 1 if deblurrer is None else batch_size(args.batch, deblurrer)
    galleries = [Gallery() for _ in sets]
    scores = [
        _one_set(
            pairs,
            deblurrer,
            options=options,
            batch=size,
            label=label,
            look=None if args.report is None else gallery.look,
            quiet=args.quiet,
        )
        for pairs, gallery in zip(sets, galleries, strict=True)
    ]
    by_length = {}
    if photographs is not None and deblurrer is not None:
        by_length = _by_length(photographs, deblurrer, options, size, quiet=args.quiet)
    for one in scores:
        for note in one.notes:
            say(f"  {one.name}: {note}")
    for note in deblurrer.notes if deblurrer is not None else []:
        say(f"  note: {note}")
    unsound = sum(one.unsound for one in scores)
    if unsound:
        say(f"  {unsound} pictures were scored as they came: the network's result was unsound")
    device = str(deblurrer.device) if deblurrer is not None else None
    _write(args, scores, by_length, label, device)
    if args.report is not None:
        _write_report(args, list(zip(scores, galleries, strict=True)), by_length, label)
    return 3 if unsound else 0


def _options(args: argparse.Namespace) -> EvalOptions:
    from vdeblur.evaluation.run import EvalOptions

    return EvalOptions(
        protocol=args.protocol,
        sharp=args.sharp,
        unsharp=args.unsharp,
        lpips=args.lpips,
        temporal=args.temporal,
        every=args.every,
        limit=args.limit,
        panels=args.panels,
        panel_count=8 if args.panel_count is None else args.panel_count,
        exposure=args.exposure,
    )


def _check_choices(args: argparse.Namespace, outputs: list[Path | None]) -> None:
    """Raise UsageError for options of a network where none runs, and for unequal counts."""
    if outputs and len(outputs) != len(args.pairs):
        raise UsageError(
            f"{len(args.pairs)} --pairs and {len(outputs)} --restored: give one for each, in order"
        )
    if outputs and (args.baseline or args.sharp):
        raise UsageError("--restored scores outputs that exist: leave --baseline and --sharp out")
    for option, usual in (("lengths", None), ("exposure", "auto")):
        if getattr(args, option) != usual and (outputs or args.baseline):
            raise UsageError(f"--{option} is for a network that is run: leave it out")
    unused = network_option_given(args) if outputs or args.baseline else None
    if unused is not None:
        chosen = "--restored scores outputs that exist" if outputs else "--baseline runs no network"
        raise UsageError(f"{chosen}: leave {unused} out")


def _check_outputs(args: argparse.Namespace) -> None:
    named = {"--csv": args.csv, "--json": args.json, "--report": args.report}
    files: dict[str, str] = {}
    for option, name in named.items():
        if name is None:
            continue
        place = "-" if str(name) == "-" else str(Path(name).absolute())
        if place in files:
            raise UsageError(f"{files[place]} and {option} would both go to {name}: give two names")
        files[place] = option
    for name in named.values():
        if name is not None and str(name) != "-":
            _check_file(Path(name), args)
    if args.panels is None:
        if args.panel_count is not None:
            raise UsageError("--panel-count is for --panels DIR: give both, or leave it out")
        return
    if args.panels.exists() and not args.panels.is_dir():
        raise OutputError(f"{args.panels} is a file: give --panels a folder")
    _check_apart(args.panels, args)
    if not args.overwrite and any(args.panels.glob("*.png")):
        raise OutputError(
            f"{args.panels} has pictures in it already: use --force to replace those of the same "
            "names, or give another folder"
        )


def _check_file(file: Path, args: argparse.Namespace) -> None:
    check_new_file(file, force=args.overwrite, sources=_scored(args))
    if file.exists() and is_image(file):
        _check_apart(file, args)


def _check_apart(output: Path, args: argparse.Namespace) -> None:
    """Check that an output cannot replace pictures that are scored."""
    for folder in _scored(args):
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise OutputError(f"{output} is among the pictures of {folder}: choose another place")


def _scored(args: argparse.Namespace) -> list[Path]:
    more = [args.lengths] if args.lengths else []
    pairs = [path for paths in args.pairs for path in paths]
    return [Path(path) for path in (*pairs, *(args.restored or []), *more)]


def _weights_name(weights: str | None) -> str:
    return _MODEL if weights is None else Path(weights).stem


def _one_set(
    pairs: PairSet,
    deblurrer: Any,
    *,
    options: EvalOptions,
    batch: int,
    label: str,
    look: FrameSample | None = None,
    quiet: bool,
) -> SetScores:
    from tqdm import tqdm

    from vdeblur.evaluation.run import evaluate

    with tqdm(desc=pairs.name, unit="pair", disable=quiet or None, dynamic_ncols=True) as bar:

        def progress(done: int, expected: int | None) -> None:
            bar.total = expected
            bar.update(done - bar.n)

        return evaluate(
            pairs,
            deblurrer,
            options=options,
            batch=batch,
            label=label,
            look=look,
            on_progress=progress,
        )


def _by_length(
    photographs: list[Photograph],
    deblurrer: Any,
    options: EvalOptions,
    batch: int,
    *,
    quiet: bool,
) -> dict[int, dict[str, SetScores]]:
    """Return the scores of pans, by length of blur and by the motion that the network receives."""
    from vdeblur.datasets.batches import LENGTHS
    from vdeblur.datasets.pans import pans
    from vdeblur.evaluation.run import EvalOptions

    motions = ("exact motion", "estimated", "no motion") if deblurrer.guided else ("gain",)
    found: dict[int, dict[str, SetScores]] = {}
    for length in LENGTHS:
        for name in motions:
            found.setdefault(length, {})[name] = _one_set(
                pans(photographs, length, motion=name == "exact motion"),
                deblurrer,
                options=EvalOptions(
                    protocol=options.protocol, temporal=False, estimate=name == "estimated"
                ),
                batch=batch,
                label=name,
                quiet=quiet,
            )
    return found


def _write(
    args: argparse.Namespace,
    scores: list[SetScores],
    by_length: dict[int, dict[str, SetScores]],
    label: str,
    device: str | None,
) -> None:
    """Write CSV and JSON, and print the tables unless one of them takes standard output."""
    from vdeblur.datasets.pictures import write_bytes
    from vdeblur.evaluation.protocols import PROTOCOLS
    from vdeblur.evaluation.tables import as_csv

    if args.csv is not None:
        table = as_csv(scores)
        if args.csv == "-":
            print(table, end="")
        else:
            write_bytes(Path(args.csv), table.encode(), only_new=not args.overwrite)
    if args.json is not None:
        everything = {
            "protocol": args.protocol,
            "protocol_in_words": PROTOCOLS[args.protocol],
            "restored": None if args.baseline else label,
            "device": device,
            "sets": in_options([one.as_dict() for one in scores]),
            "by_length": {
                str(pixels): {name: one.as_dict() for name, one in motions.items()}
                for pixels, motions in by_length.items()
            },
        }
        text = json.dumps(everything, indent=1) + "\n"
        if args.json == "-":
            print(text, end="")
            return
        write_bytes(Path(args.json), text.encode(), only_new=not args.overwrite)
    if args.csv != "-":
        _print_tables(args, scores, by_length, label)


def _print_tables(
    args: argparse.Namespace,
    scores: list[SetScores],
    by_length: dict[int, dict[str, SetScores]],
    label: str,
) -> None:
    from vdeblur.evaluation.protocols import PROTOCOLS
    from vdeblur.evaluation.tables import (
        as_markdown,
        as_text,
        length_table,
        score_table,
        temporal_table,
    )

    form = as_markdown if args.markdown else as_text
    print(form(score_table(scores, rows=args.rows, label=label)))
    steady = temporal_table(scores, label=label)
    if len(steady) > 1:
        print(f"\n{form(steady)}")
    if by_length:
        print(f"\n{form(length_table(by_length))}")
    print(f"\nPSNR and its gains in dB; {args.protocol}: {PROTOCOLS[args.protocol]}.")
    for one in scores:
        if one.unsharp is not None:
            sigma, amount = one.unsharp
            print(
                f"{one.name}, unsharp mask: PSNR gain of the best of a grid, "
                f"sigma {sigma:g}, amount {amount:g}."
            )
    if len(steady) > 1:
        print(
            "Warped-frame error (root mean square) and flicker (mean) in 8-bit levels, along the "
            "motion of the sharp video."
        )
    if args.panels is not None:
        say(f"panels in {args.panels}")


def _write_report(
    args: argparse.Namespace,
    sets: list[tuple[SetScores, Gallery]],
    by_length: dict[int, dict[str, SetScores]],
    label: str,
) -> None:
    from vdeblur.datasets.pictures import write_bytes
    from vdeblur.evaluation.protocols import PROTOCOLS
    from vdeblur.evaluation.report_page import page
    from vdeblur.evaluation.tables import length_table, score_table, summary_table

    scores = [one for one, _ in sets]
    tables = [("All sets", summary_table(scores, label=label))]
    if by_length:
        tables.append(("By length of blur", length_table(by_length)))
    if any(len(one.sequences) > 1 for one in scores):
        tables.append(("Sequences", score_table(scores, rows="sequence", label=label)))
    notes = [f"PSNR and its gains in dB; {args.protocol}: {PROTOCOLS[args.protocol]}."]
    if by_length:
        notes.append(
            "By length of blur: pans over photographs, shutter open for half of a frame's time; "
            "pixels that a place moves meanwhile."
        )
    text = page(sets, tables, label=label, notes=notes)
    write_bytes(args.report, text.encode(errors="replace"), only_new=not args.overwrite)
    say(f"report in {args.report}")
