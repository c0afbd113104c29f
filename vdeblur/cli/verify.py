"""vdeblur verify: prove that an output kept everything of its source."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vdeblur.cli.common import Commands


def add(commands: Commands) -> None:
    """Enter the command."""
    check = commands.add_parser(
        "verify",
        help="prove that an output kept everything of its source",
        description="Compare OUT with IN: frames, times, copied packets, colour, tags. "
        "Exit 1 on a difference.",
    )
    check.add_argument(
        "source", metavar="IN", nargs="+", help="the source, or the chapters that OUT joins"
    )
    check.add_argument("output", metavar="OUT")
    check.add_argument("--quick", action="store_true", help="compare packets only, decode nothing")
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    check.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from vdeblur.gopro.joining import join
    from vdeblur.verify import as_json, format_checks, verify

    chapters = [Path(name) for name in args.source]
    source = join(chapters) if len(chapters) > 1 else chapters[0]
    checks = verify(source, args.output, quick=args.quick)
    print(json.dumps(as_json(checks)) if args.json else format_checks(checks))
    return 0 if all(check.passed for check in checks) else 1
