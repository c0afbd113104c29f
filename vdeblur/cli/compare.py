"""vdeblur compare: show two videos or pictures side by side, as a video or a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vdeblur.cli.options import add_encode_options, add_read_options
from vdeblur.cli.output import say
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands

_PAGES = {".html", ".htm"}


def add(commands: Commands) -> None:
    """Register the subcommand."""
    command = commands.add_parser(
        "compare",
        help="show two videos beside each other, as a video or as a page with a slider",
        description="Write IN and OUT as one video (with the sound and everything else of IN), or "
        "as a page with a slider that any browser opens from disk. Two pictures work as well.",
    )
    command.add_argument("before", metavar="IN", help="a video or picture")
    command.add_argument("after", metavar="OUT", help="the restored video or picture")
    command.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="a video or picture; or a name in .html, for the page",
    )
    command.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace a FILE that exists"
    )
    command.add_argument(
        "--labels", nargs=2, metavar=("A", "B"), help="names of the two (default before and after)"
    )
    command.add_argument("--no-labels", action="store_true", help="write no names on the video")
    video = command.add_argument_group("a video")
    video.add_argument(
        "--mode",
        choices=("side", "stack", "split", "wipe"),
        help="side by side (default), one above the other, half and half of one picture, or a "
        "line that wipes back and forth",
    )
    video.add_argument("--period", type=float, metavar="S", help="seconds per wipe (default 6)")
    video.add_argument("--height", type=int, metavar="PIXELS", help="height of each picture")
    add_read_options(video, "start", "duration")
    # No default, so that the page can refuse it.
    video.add_argument("--encoder", metavar="NAME", help="libav encoder (default: codec of IN)")
    add_encode_options(video, "crf")
    page = command.add_argument_group("a page")
    page.add_argument(
        "--embed",
        choices=("auto", "always", "never"),
        help="embed the files in the page (default auto: up to 48 MB), or link to them",
    )
    command.add_argument("--quiet", action="store_true", help="print only errors and notes")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    labels = tuple(args.labels) if args.labels else ("before", "after")
    if args.labels and args.no_labels:
        raise UsageError("--labels and --no-labels exclude each other: give one")
    if Path(args.output).suffix.lower() in _PAGES:
        unfit = [n for n in ("mode", "period", "height", "start", "duration", "encoder", "crf")
                 if getattr(args, n) is not None]  # fmt: skip
        if unfit or args.no_labels:
            name = unfit[0] if unfit else "no-labels"
            raise UsageError(f"--{name} is for a video: leave it out, or write to .mp4 or .mkv")
        from vdeblur.evaluation.comparison_page import compare_page

        notes = compare_page(
            args.before,
            args.after,
            args.output,
            labels=labels,
            embed=args.embed or "auto",
            overwrite=args.overwrite,
        )
    else:
        if args.embed is not None:
            raise UsageError("--embed is for a page: leave it out, or write to a name in .html")
        notes = _video(args, None if args.no_labels else labels)
    if not args.quiet:
        say(f"{args.output}: {Path(args.before).name} and {Path(args.after).name}")
    for note in notes:
        say(f"  {note}")
    return 0


def _video(args: argparse.Namespace, labels: tuple[str, str] | None) -> list[str]:
    from tqdm import tqdm

    from vdeblur.evaluation.comparison_video import CompareOptions, compare_video
    from vdeblur.media.encoders import EncodeOptions
    from vdeblur.system.optional import optional

    if args.labels:  # without Pillow the usual ones are left out, with a note
        optional("PIL", extra="plots", purpose="--labels")
    options = CompareOptions(
        mode=args.mode or "side",
        labels=labels,
        height=args.height,
        period=6.0 if args.period is None else args.period,
        start=args.start,
        duration=args.duration,
    )
    with tqdm(desc="compare", unit="frame", disable=args.quiet or None, dynamic_ncols=True) as bar:

        def progress(frames: int, expected: int | None) -> None:
            bar.total = expected
            bar.update(frames - bar.n)

        return compare_video(
            args.before,
            args.after,
            args.output,
            options=options,
            encode=EncodeOptions(encoder=args.encoder or "auto", crf=args.crf),
            overwrite=args.overwrite,
            on_progress=progress,
        )
