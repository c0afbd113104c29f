"""vdeblur verify: prove that an output kept everything of its source."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vdeblur.cli.output import say
from vdeblur.cli.values import seconds
from vdeblur.errors import UsageError

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands


def add(commands: Commands) -> None:
    """Register the subcommand."""
    check = commands.add_parser(
        "verify",
        help="prove that an output kept everything of its source",
        description="Compare OUT with IN: frames, times, copied packets, color, tags; never the "
        "picture itself. Exit 1 on a difference. Properties that another kind of container cannot "
        "keep are marked lost and are no difference.",
    )
    check.add_argument(
        "source",
        metavar="IN",
        nargs="+",
        help="the source, or the chapters of the recording that OUT joins",
    )
    check.add_argument("output", metavar="OUT", help="the output that was made from IN")
    check.add_argument(
        "--start",
        type=seconds,
        metavar="TIME",
        help="OUT is the part of IN that begins here, as from `vdeblur video --start`",
    )
    check.add_argument(
        "--duration", type=seconds, metavar="TIME", help="OUT is a part of IN with this length"
    )
    check.add_argument(
        "--quick",
        action="store_true",
        help="compare packets; decode only the first frame of each video stream",
    )
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    check.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vdeblur.gopro.chapters import join
    from vdeblur.media.default_names import part_of_name
    from vdeblur.media.verify import as_json, format_checks, verify

    if args.duration is not None and args.duration <= 0:
        raise UsageError(f"--duration is {args.duration:g}: give more than 0 seconds")
    chapters = [Path(name) for name in args.source]
    source = join(chapters) if len(chapters) > 1 else chapters[0]
    checks = verify(
        source,
        args.output,
        quick=args.quick,
        start=args.start,
        duration=args.duration,
        conversion=True,
    )
    print(json.dumps(as_json(checks)) if args.json else format_checks(checks))
    if all(check.passed for check in checks):
        return 0
    part = part_of_name(args.output)
    if part is not None and args.start is None and args.duration is None:
        start, duration = part
        options = f"--start {start:g}" + ("" if duration is None else f" --duration {duration:g}")
        say(f"{args.output} is a part of its source by its name: verify it with {options}")
    return 1
