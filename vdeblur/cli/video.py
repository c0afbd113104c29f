"""vdeblur video: deblur video files, images, image sequences or a pipe."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdeblur.cli.options import (
    add_encode_options,
    add_exposure_option,
    add_network_options,
    add_read_options,
    add_strength_option,
    deblurrer_of,
    encode_options_of,
)
from vdeblur.cli.output import on_disk_of, print_json, say, say_report
from vdeblur.errors import DiskError, InputError, OutputError, UsageError, VdeblurError
from vdeblur.media.image_sequences import IMAGE_SUFFIXES, is_pattern
from vdeblur.system.allocator import keep_pages

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.deblur import Report
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.media.encoders import EncodeOptions

_VIDEO_SUFFIXES = frozenset(
    [
        ".360",
        ".3g2",
        ".3gp",
        ".apng",
        ".avi",
        ".flv",
        ".gif",
        ".insv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".nut",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
_FEWEST_OF_A_FILM = 3  # numbered pictures that count as the frames of a video


def add(commands: Commands) -> None:
    """Register the subcommand."""
    video = commands.add_parser(
        "video",
        help="deblur video files, images, image sequences or a pipe",
        description="Deblur INPUT; by default into the name of INPUT with _deblurred, beside it.",
    )
    video.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a file, a folder, a glob, an image pattern such as frames/%%05d.png, or - for a pipe",
    )
    video.add_argument(
        "-o",
        "--output",
        help="output file; or a folder, with a slash at its end if it does not exist yet; or - for "
        "a pipe (default: the name of INPUT with _deblurred, beside it)",
    )
    video.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace an output that exists"
    )
    add_network_options(video)
    add_exposure_option(video)
    add_strength_option(video)
    add_encode_options(video)
    video.add_argument(
        "--format", metavar="NAME", help="container format, if the name does not tell it (pipes)"
    )
    add_read_options(video)
    video.add_argument("--json", action="store_true", help="print one report per line, as JSON")
    video.add_argument("--quiet", action="store_true", help="print only errors and losses")
    video.set_defaults(run=_run)


def _expand(inputs: Sequence[str]) -> list[str]:
    """Expand folders and globs; names that do not exist stay, to be reported one by one."""
    found: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(
                str(p)
                for p in path.iterdir()
                if p.is_file()
                and p.suffix.lower() in _VIDEO_SUFFIXES | IMAGE_SUFFIXES
                and not p.stem.endswith("_deblurred")
                and not p.name.startswith(".")
            )
            if not files:
                raise InputError(f"no videos or images in folder {name}: give a folder with some")
            found += files
        elif not path.exists() and any(c in name for c in "*?["):
            # glob takes an absolute or a relative pattern, which Path.glob does not.
            matches = glob.glob(name, recursive=True)  # noqa: PTH207
            files = sorted(f for f in matches if Path(f).is_file())
            if not files:
                raise InputError(f"nothing matches {name}: check the pattern")
            found += files
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _film_of(inputs: Sequence[str]) -> str | None:
    """Return the pattern of pictures that are numbered consecutively, like frames of a video."""
    found: dict[tuple[str, int, str], list[int]] = {}
    for name in inputs:
        parts = re.fullmatch(r"(.*?)(\d+)(\.\w+)", name)
        if parts and parts[3].lower() in IMAGE_SUFFIXES:
            before, digits, after = parts.groups()
            found.setdefault((before, len(digits), after), []).append(int(digits))
    for (before, digits, after), numbers in found.items():
        row = max(numbers) - min(numbers) == len(numbers) - 1
        if row and len(numbers) >= _FEWEST_OF_A_FILM and "%" not in before:
            return f"{before}%0{digits}d{after}"
    return None


def _outputs(inputs: Sequence[str], output: str | None) -> Iterator[tuple[str, str]]:
    from vdeblur.media.default_names import default_output

    if output is None:
        yield from ((name, default_output(name)) for name in inputs)
    elif output == "-" or not (output.endswith(("/", os.sep)) or Path(output).is_dir()):
        if len(inputs) > 1:
            raise UsageError(
                f"{len(inputs)} inputs and one output {output}: a folder that is to be made ends "
                f"with a slash, -o {output}/"
            )
        yield inputs[0], output
    else:
        if "-" in inputs:
            raise UsageError("standard input has no name for a folder: give a file with -o")
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"folder {output} cannot be made ({error.strerror})") from error
        for name in inputs:
            yield name, str(Path(output) / Path(default_output(name)).name)


def _run(args: argparse.Namespace) -> int:
    keep_pages()
    encode = encode_options_of(args)
    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration is {args.duration:g}: give more than 0 seconds")
    inputs = _expand(args.inputs)
    _check_sequence_options(inputs, args)
    film = _film_of(inputs)
    if film and not (args.quiet or args.json):
        say(
            f"{len(inputs)} inputs, restored each by itself: frames of a film come out better as "
            f"one, {film}"
        )
    jobs = list(_outputs(inputs, args.output))
    clash = {out for _, out in jobs if out != "-"}
    if len(clash) < len([out for _, out in jobs if out != "-"]):
        raise UsageError("two inputs would be written to one name: restore them one by one")

    calibration = []
    if args.precision in ("int8", "fp8"):
        from vdeblur.inference.calibration import to_tensor
        from vdeblur.media.sample_frames import sample_frames

        if not (args.quiet or args.json):
            say(
                f"{args.precision}: measuring ranges on frames of the input, "
                "some seconds the first time"
            )
        calibration = [to_tensor(p) for p in sample_frames([source for source, _ in jobs])]
    deblurrer = deblurrer_of(args, strength=args.strength, calibration=calibration)
    worst, broken, skipped = 0, set[Path](), 0
    for source, output in jobs:
        if on_disk_of(Path(output).parent, broken):
            skipped += 1
            continue
        try:
            report = _one_video(source, output, deblurrer, encode, args)
        except UsageError:
            raise
        except VdeblurError as error:
            if len(jobs) == 1:
                raise
            say(f"vdeblur: {error}")
            worst = 1
            if isinstance(error, DiskError):
                broken.add(Path(output).parent)
            continue
        if report.damage or report.differences or report.replaced:
            worst = worst or 3
    if skipped:
        say(f"{skipped} input{'s' * (skipped != 1)} for the same disk left alone")
    return worst


def _check_sequence_options(inputs: Sequence[str], args: argparse.Namespace) -> None:
    given = {"--framerate": args.framerate, "--start-number": args.start_number}
    for option, value in given.items():
        for name in inputs:
            if value is not None and not is_pattern(name):
                what = "standard input" if name == "-" else name
                raise UsageError(
                    f"{option} is for an image sequence such as frames/%05d.png, and {what} is "
                    "none: leave it out"
                )


def _one_video(
    source: str, output: str, deblurrer: Deblurrer, encode: EncodeOptions, args: argparse.Namespace
) -> Report:
    from tqdm import tqdm

    from vdeblur.deblur import deblur_video
    from vdeblur.media.read_options import ReadOptions

    silent = args.quiet or args.json
    name = "standard input" if source == "-" else Path(source).name
    with tqdm(desc=name, unit="frame", disable=silent or None, dynamic_ncols=True) as bar:

        def progress(frames: int, expected: int | None) -> None:
            if expected is not None and bar.total != expected:
                bar.total = expected
            bar.update(frames - bar.n)

        report = deblur_video(
            source,
            output,
            model=deblurrer,
            batch=args.batch,
            exposure=args.exposure,
            encode=encode,
            read=ReadOptions(
                start=args.start,
                duration=args.duration,
                framerate=args.framerate,
                start_number=args.start_number,
                hwaccel=args.hwaccel,
            ),
            format=args.format,
            overwrite=args.overwrite,
            on_progress=progress,
        )
    if args.json:
        print_json(report.as_dict(), file=sys.stderr if output == "-" else sys.stdout)
    else:
        say_report(report, quiet=args.quiet)
    return report
