"""vdeblur video: deblur video files, images, image sequences or a pipe."""

from __future__ import annotations

import argparse
import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import (
    bitrate,
    deblurrer_of,
    exposure_option,
    keep_pages,
    network_options,
    rate,
    say,
    seconds,
)
from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError
from vdeblur.media.image_sequences import IMAGE_SUFFIXES, is_pattern

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.deblur import Report

_VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".avi",
        ".flv",
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
_FEWEST_OF_A_FILM = 3  # numbered pictures that are taken for one


def add(commands: Commands) -> None:
    """Enter the command."""
    video = commands.add_parser(
        "video",
        help="deblur video files, images, image sequences or a pipe",
        description="Deblur INPUT; by default into INPUT's name with _deblurred, beside it.",
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
        help="output file; a folder, which ends with a slash where it is to be made; or - for a "
        "pipe (default: INPUT's name with _deblurred, beside it)",
    )
    video.add_argument("--force", action="store_true", help="replace an output that exists")
    network_options(video)
    exposure_option(video)
    video.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="S",
        help="share of the correction to apply: 0 is the source, 1 the network's (default 1)",
    )
    video.add_argument(
        "--encoder",
        default="auto",
        help="libav encoder name, nvenc, or auto: the source's own codec (default)",
    )
    video.add_argument(
        "--crf",
        type=float,
        metavar="N",
        help="constant quality, on the encoder's own scale: less is better",
    )
    video.add_argument("--bitrate", type=bitrate, metavar="RATE", help="bits a second, such as 12M")
    video.add_argument("--preset", help="the encoder's speed preset, such as x264's fast or slow")
    video.add_argument("--pix-fmt", help="pixel format to encode, such as yuv420p10le")
    video.add_argument("--format", help="container format, where the name does not tell (pipes)")
    video.add_argument(
        "--start", type=seconds, metavar="TIME", help="begin here: seconds or [HH:]MM:SS"
    )
    video.add_argument(
        "--duration", type=seconds, metavar="TIME", help="restore this much: seconds or [HH:]MM:SS"
    )
    video.add_argument(
        "--framerate", type=rate, metavar="R", help="frames a second of an image sequence (25)"
    )
    video.add_argument(
        "--start-number",
        type=int,
        metavar="N",
        help="first number of an image sequence (default: the lowest that is there)",
    )
    video.add_argument(
        "--hwaccel", metavar="TYPE", help="decode in hardware: cuda, qsv, videotoolbox …"
    )
    video.add_argument(
        "--json", action="store_true", help="print the report as JSON, a line a file"
    )
    video.add_argument("--quiet", action="store_true", help="print errors and losses only")
    video.set_defaults(run=_run)


def _expand(inputs: Sequence[str]) -> list[str]:
    """Folders and globs → files; names that do not exist stay, to be reported one by one."""
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
    """The pattern of pictures that are numbered one after another, as frames of a film are."""
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
    from vdeblur.deblur import default_output

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
    if args.crf is not None and args.bitrate is not None:
        raise UsageError("--crf and --bitrate exclude each other: give one")
    if args.crf is not None and not 0 <= args.crf <= 255:
        raise UsageError(f"--crf is {args.crf:g}: encoders' scales begin at 0 (best); x264's is 51")
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
    worst = 0
    for source, output in jobs:
        try:
            report = _one_video(source, output, deblurrer, args)
        except UsageError:
            raise
        except VdeblurError as error:
            if len(jobs) == 1:
                raise
            say(f"vdeblur: {error}")
            worst = 1
            continue
        if report.damage or report.differences or report.replaced:
            worst = worst or 3
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


def _one_video(source: str, output: str, deblurrer: Any, args: argparse.Namespace) -> Report:
    from tqdm import tqdm

    from vdeblur.deblur import deblur_video
    from vdeblur.media.encoders import EncodeOptions

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
            encode=EncodeOptions(
                encoder=args.encoder,
                crf=args.crf,
                bitrate=args.bitrate,
                preset=args.preset,
                pix_fmt=args.pix_fmt,
            ),
            start=args.start,
            duration=args.duration,
            framerate=args.framerate,
            start_number=args.start_number,
            hwaccel=args.hwaccel,
            format=args.format,
            overwrite=args.force,
            on_progress=progress,
        )
    if args.json:
        print(json.dumps(report.as_dict()), file=sys.stderr if output == "-" else sys.stdout)
    else:
        _conclude(report, quiet=args.quiet)
    return report


def _conclude(report: Report, *, quiet: bool) -> None:
    if not quiet:
        kept = f"; kept {', '.join(report.kept)}" if report.kept else ""
        where = "standard output" if report.output == "-" else report.output
        say(
            f"{where}: {report.frames} frame{'s' * (report.frames != 1)} in {report.seconds:.1f} s "
            f"({report.frames_per_second:.3g} frames/s){kept}"
        )
        for note in report.notes:
            say(f"  note: {note}")
    for line in report.lost:
        say(f"  not kept: {line}")
    if report.replaced:
        say(f"  {report.replaced} frames stand as in the source: the network's result was unsound")
    for line in report.damage:
        say(f"  damaged source: {line}")
    for line in report.differences:
        say(f"  differs from the source: {line}")
