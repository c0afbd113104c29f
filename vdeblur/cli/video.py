"""vdeblur video: deblur video files, images, image sequences or a pipe."""

from __future__ import annotations

import argparse
import contextlib
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import (
    add_encode_options,
    add_exposure_option,
    add_network_options,
    add_read_options,
    add_strength_option,
    deblurrer_of,
    encode_options_of,
)
from vdeblur.cli.output import (
    check_new_file,
    on_disk_of,
    print_json,
    say,
    say_report,
    sentence_of,
)
from vdeblur.cli.stopping import stop_of
from vdeblur.errors import DiskError, InputError, OutputError, UsageError, VdeblurError
from vdeblur.media.image_sequences import IMAGE_SUFFIXES, is_pattern, writes_sequence
from vdeblur.media.names import check_destination, check_source, is_address, is_read_once
from vdeblur.system.allocator import keep_pages

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.deblur import Report
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.media.encoders import EncodeOptions

_log = logging.getLogger(__name__)
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


def _expand(name: str) -> list[str]:
    """Expand a folder or a glob; another name stays, to be reported with its job."""
    path = Path(name)
    if is_address(name):
        return [name]
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
        return files
    if not path.exists() and any(c in name for c in "*?["):
        # A folder may have these characters in its name; glob takes an absolute or a relative
        # pattern, which Path.glob does not.
        folder, last = os.path.split(name)
        if folder and Path(folder).is_dir():
            if is_pattern(last):
                return [name]
            name = os.path.join(glob.escape(folder), last)  # noqa: PTH118
        matches = glob.glob(name, recursive=True)  # noqa: PTH207
        files = sorted(f for f in matches if Path(f).is_file())
        if not files:
            raise InputError(f"nothing matches {name}: check the pattern")
        return files
    return [name]


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
        if row and len(numbers) >= _FEWEST_OF_A_FILM:
            folder, name = os.path.split(before)
            return os.path.join(folder, f"{name.replace('%', '%%')}%0{digits}d{after}")  # noqa: PTH118
    return None


class _Jobs:
    """The outputs to make, of which one that fails does not end the others.

    Args:
        args: The options of the command.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.worst = 0
        self._alone = len(args.inputs) == 1
        output = args.output
        self._folder: Path | None = None
        if output is not None and output != "-":
            check_destination(output)
            if output.endswith(("/", os.sep)) or Path(output).is_dir():
                self._folder = Path(output)
        self.inputs: list[str] = []
        for name in args.inputs:
            with self.attempt(name):
                self.inputs += _expand(name)
        self.inputs = list(dict.fromkeys(self.inputs))

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Say an error in the block and go on, unless there is nothing else to do."""
        try:
            yield
        except UsageError:
            raise
        except Exception as error:
            if self._alone or stop_of(error) is not None:
                raise
            _log.info("%s failed", name, exc_info=True)
            text = sentence_of(error)
            say(f"vdeblur: {text if isinstance(error, VdeblurError) else f'{name}: {text}'}")
            self.worst = 1

    def planned(self) -> list[tuple[str, str]]:
        """Return source and output of each job that can be begun, and say why others cannot.

        All of it is known before a network is loaded.
        """
        if len(self.inputs) > 1 and self._args.output is not None and self._folder is None:
            raise UsageError(
                f"{len(self.inputs)} inputs and one output {self._args.output}: a folder that is "
                f"to be made ends with a slash, -o {self._args.output}/"
            )
        self._alone = len(self.inputs) == 1 and not self.worst
        jobs = []
        for name in self.inputs:
            with self.attempt(name):
                output = self._output(name)
                self._check(name, output)
                jobs.append((name, output))
        names = [output for _, output in jobs if output != "-"]
        if len(set(names)) < len(names):
            raise UsageError("two inputs would be written to one name: restore them one by one")
        if jobs and self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"folder {self._folder} cannot be made ({error.strerror})"
                ) from error
        return jobs

    def _output(self, source: str) -> str:
        from vdeblur.media.default_names import default_output

        args = self._args
        if args.output is not None and self._folder is None:
            return str(args.output)
        if self._folder is not None and source == "-":
            raise UsageError("standard input has no name for a folder: give a file with -o")
        output = default_output(source, start=args.start, duration=args.duration)
        return output if self._folder is None else str(self._folder / Path(output).name)

    def _check(self, source: str, output: str) -> None:
        from vdeblur.media.containers import format_name

        path = None
        if not is_pattern(source):
            check_source(source, once=True)
            path = None if source == "-" or is_read_once(source) else Path(source)
        format_name(output, "", self._args.format, source=path)
        if output == "-":
            if sys.stdout is not None and sys.stdout.isatty():
                raise OutputError(
                    "standard output is a terminal: pipe it into a program, or name a file with -o"
                )
            return
        target = Path(output)
        if writes_sequence(output, source):
            if self._folder is None and not target.parent.is_dir():
                raise OutputError(f"folder {target.parent} does not exist: create it first")
        elif self._folder is None or self._folder.exists():
            sources = [] if path is None else [path]
            check_new_file(target, force=self._args.overwrite, sources=sources)


def _run(args: argparse.Namespace) -> int:
    keep_pages()
    encode = encode_options_of(args)
    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration is {args.duration:g}: give more than 0 seconds")
    jobs = _Jobs(args)
    _check_sequence_options(jobs.inputs, args)
    film = _film_of(jobs.inputs)
    if film and not (args.quiet or args.json):
        say(
            f"{len(jobs.inputs)} inputs, restored each by itself: frames of a film come out better "
            f"as one, {film}"
        )
    planned = jobs.planned()
    if not planned:
        return jobs.worst
    calibration = _calibration([source for source, _ in planned], args)
    deblurrer = deblurrer_of(args, strength=args.strength, calibration=calibration)
    worst, broken, skipped = 0, set[Path](), 0
    for source, output in planned:
        if on_disk_of(Path(output).parent, broken):
            skipped += 1
            continue
        with jobs.attempt(source):
            try:
                report = _one_video(source, output, deblurrer, encode, args)
            except DiskError:
                broken.add(Path(output).parent)
                raise
            if report.damage or report.differences or report.replaced:
                worst = 3
    if skipped:
        say(f"{skipped} input{'s' * (skipped != 1)} for the same disk left alone")
    return jobs.worst or worst


def _calibration(sources: Sequence[str], args: argparse.Namespace) -> list[Any]:
    """Return pictures of the sources for a network in int8, none for others."""
    if args.precision != "int8":
        return []
    from vdeblur.inference.calibration import to_tensor
    from vdeblur.media.sample_frames import sample_frames

    if not (args.quiet or args.json):
        say("int8: measuring ranges on frames of the input, some seconds the first time")
    return [to_tensor(picture) for picture in sample_frames(sources)]


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
