"""vdeblur gopro: restore GoPro recordings and keep everything that the camera recorded."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import (
    add_encode_options,
    add_exposure_option,
    add_network_options,
    add_read_options,
    deblurrer_of,
    encode_options_of,
)
from vdeblur.cli.output import in_options, on_disk_of, print_json, say, say_report
from vdeblur.cli.values import pixels
from vdeblur.errors import DiskError, OutputError, UsageError, VdeblurError
from vdeblur.system.allocator import keep_pages
from vdeblur.system.printable import printable

if TYPE_CHECKING:
    from vdeblur.cli.options import Commands
    from vdeblur.deblur import Report
    from vdeblur.gopro import Job, Plan
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.media.encoders import EncodeOptions

_THRESHOLD = 1.5  # vdeblur.gopro.THRESHOLD, which is costly to import


def add(commands: Commands) -> None:
    """Register the subcommand."""
    gopro = commands.add_parser(
        "gopro",
        help="restore a GoPro card or recordings: chapters joined, telemetry kept",
        description="Restore recordings, chapter by chapter, each into one file beside its first "
        "chapter. Finished recordings are skipped: after an interruption, run the command again.",
    )
    gopro.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="a card, a folder, or any chapter of a recording"
    )
    gopro.add_argument(
        "-o", "--output", metavar="FOLDER", help="output folder; or a file, for a single recording"
    )
    gopro.add_argument(
        "--plan",
        action="store_true",
        help="print what would be done without doing it, and plot the blur over time (PNG)",
    )
    gopro.add_argument(
        "--keep-chapters", action="store_true", help="write one file per chapter, not per recording"
    )
    gopro.add_argument(
        "--allow-missing", action="store_true", help="join recordings that lack a chapter"
    )
    gopro.add_argument(
        "--only-blurred",
        nargs="?",
        type=pixels,
        metavar="PX",
        const=_THRESHOLD,
        help="restore only frames whose blur, by gyroscope and exposure, has at least this length "
        "(default 1.5 px)",
    )
    gopro.add_argument(
        "--focal", type=pixels, metavar="PX", help="focal length in pixels, if none is recorded"
    )
    gopro.add_argument(
        "--force", dest="overwrite", action="store_true", help="replace outputs that exist"
    )
    add_network_options(gopro)
    add_exposure_option(gopro)
    add_encode_options(gopro, "encoder", "crf", "bitrate", "preset")
    add_read_options(gopro, "hwaccel")
    gopro.add_argument("--json", action="store_true", help="print one report per line, as JSON")
    gopro.add_argument("--quiet", action="store_true", help="print only errors and losses")
    gopro.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    keep_pages()
    encode = encode_options_of(args)
    from vdeblur.motion.exposure import exposure_of

    exposure_of(args.exposure)  # report a wrong one before anything is opened
    jobs = _jobs(args)
    return _plan(jobs, encode, args) if args.plan else _do(jobs, encode, args)


def _jobs(args: argparse.Namespace) -> list[Job]:
    from dataclasses import replace

    from vdeblur.gopro import find_recordings, jobs

    found = find_recordings(args.inputs)
    if args.output is None:
        return jobs(found, keep_chapters=args.keep_chapters)
    output = Path(args.output)
    named = output.suffix.lower() in (".mp4", ".mov", ".mkv", ".360") and not output.is_dir()
    made = jobs(found, folder=None if named else output, keep_chapters=args.keep_chapters)
    if not named:
        return made
    if len(made) > 1:
        raise UsageError(f"{len(made)} recordings and one output {output}: give a folder with -o")
    return [replace(made[0], output=output)]


# --- doing --------------------------------------------------------------------------------------


def _do(jobs: list[Job], encode: EncodeOptions, args: argparse.Namespace) -> int:
    from vdeblur.gopro import finished
    from vdeblur.gopro.plan import size

    done = [job for job in jobs if not args.overwrite and finished(job)]
    left = [job for job in jobs if job not in done]
    if not args.quiet and len(jobs) > 1:
        bytes_left = sum(c.stat().st_size for job in left for c in job.chapters if c.exists())
        say(
            f"{_count(len(jobs), 'recording')}, {len(done)} finished: {len(left)} to do "
            f"({size(bytes_left)}); --plan says how long that takes"
        )
    deblurrer = deblurrer_of(args) if left else None
    worst, broken, skipped = 0, set[Path](), 0
    for job in jobs:
        if job not in done and on_disk_of(job.output.parent, broken):
            skipped += 1
            continue
        if job in done or deblurrer is None:
            if not args.quiet:
                say(f"{job.output}: finished already (--force does it again)")
            continue
        try:
            report = _one(job, deblurrer, encode, args)
        except UsageError:
            raise
        except (VdeblurError, OSError) as error:
            # An error in one recording does not stop the others.
            if len(jobs) == 1 and isinstance(error, VdeblurError):
                raise
            say(f"vdeblur: {error}")
            worst = 1
            if isinstance(error, DiskError):
                broken.add(job.output.parent)
            continue
        if report.damage or report.differences or report.replaced:
            worst = worst or 3
    if skipped:
        say(f"{_count(skipped, 'recording')} for the same disk left alone")
    return worst


def _one(job: Job, deblurrer: Deblurrer, encode: EncodeOptions, args: argparse.Namespace) -> Report:
    from tqdm import tqdm

    from vdeblur.gopro import RestoreOptions, restore

    with tqdm(
        desc=job.chapters[0].name,
        unit="frame",
        disable=args.quiet or args.json or None,
        dynamic_ncols=True,
    ) as bar:

        def progress(frames: int, expected: int | None) -> None:
            if expected is not None and bar.total != expected:
                bar.total = expected
            bar.update(frames - bar.n)

        options = RestoreOptions(
            batch=args.batch,
            exposure=args.exposure,
            encode=encode,
            hwaccel=args.hwaccel,
            only_blurred=args.only_blurred,
            focal=args.focal,
            allow_missing=args.allow_missing,
            overwrite=args.overwrite,
        )
        report = restore(job, options, model=deblurrer, on_progress=progress)
    if args.json:
        print_json(report.as_dict())
    else:
        say_report(report, quiet=args.quiet)
        if args.only_blurred is not None and not args.quiet:
            restored = report.frames - report.unchosen
            say(f"  {restored} frames were restored, {report.unchosen} left as they were")
    return report


# --- planning -----------------------------------------------------------------------------------


def _plan(jobs: list[Job], encode: EncodeOptions, args: argparse.Namespace) -> int:
    from vdeblur.gopro import estimate, finished, plan_job
    from vdeblur.gopro.job import check_complete
    from vdeblur.gopro.plan import size, span

    deblurrer = deblurrer_of(args)
    worst = 0
    seconds, needed = 0.0, 0
    measured: dict[tuple[Any, ...], Plan] = {}
    threshold = args.only_blurred or _THRESHOLD
    for job in jobs:
        names = ", ".join(chapter.name for chapter in job.chapters)
        print(printable(f"{names} -> {job.output}"))
        if not args.overwrite and finished(job):
            print("  finished already")
            continue
        try:
            if not args.allow_missing:
                check_complete(job)
            plan = plan_job(job, threshold=threshold, focal=args.focal)
        except UsageError:
            raise
        except (VdeblurError, OSError) as error:
            print(printable(in_options(f"  cannot be done: {error}")))
            worst = 1
            continue
        share = 1.0
        if args.only_blurred is not None and plan.blur is not None:
            share = plan.blur.chosen / max(1, len(plan.blur.lengths))
        kind = (plan.width, plan.height, plan.codec, plan.bits, plan.fps, share)
        if kind in measured and measured[kind].seconds is not None:
            _scale(plan, measured[kind])
        else:
            estimate(plan, deblurrer, encode=encode, share=share)
            measured[kind] = plan
        for line in _lines(plan, deblurrer):
            print(printable(in_options(f"  {line}")))
        seconds += plan.seconds or 0.0
        needed += plan.output_bytes or 0
        if plan.blur is not None:
            picture = job.output.with_name(f"{job.chapters[0].stem}_blur.png")
            try:
                plan.blur.draw(picture, names, overwrite=args.overwrite)
                print(printable(f"  plot: {picture}"))
            except (UsageError, OutputError) as error:  # the plan is worth having without it
                print(printable(in_options(f"  not plotted: {error}")))
        worst = worst or (3 if plan.damage else 0)
    if seconds:
        folder = jobs[0].output.parent
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        total = f"in all: about {span(seconds)}, {size(needed)}; {size(free)} are free in {folder}"
        print(printable(total))
        if free < needed:
            say(f"vdeblur: that is too little space in {folder}: choose another folder with -o")
            worst = 1
    return worst


def _scale(plan: Plan, other: Plan) -> None:
    """Scale the figures of another recording of the same kind by the number of frames."""
    ratio = plan.frames / max(1, other.frames)
    plan.seconds = None if other.seconds is None else other.seconds * ratio
    plan.output_bytes = None if other.output_bytes is None else round(other.output_bytes * ratio)


def _lines(plan: Plan, deblurrer: Deblurrer) -> list[str]:
    from vdeblur.gopro.plan import clock, size, span

    rate = f"{float(plan.fps):.2f} frames/s, " if plan.fps else ""
    lines = [
        f"{plan.width}×{plan.height} {plan.codec} {plan.bits}-bit, {rate}{plan.frames} frames, "
        f"{clock(plan.duration_seconds)}, {size(plan.source_bytes)}"
    ]
    if plan.seconds and plan.output_bytes is not None:
        lines.append(
            f"about {span(plan.seconds)} ({plan.frames / plan.seconds:.2f} frames/s on "
            f"{deblurrer.device}), about {size(plan.output_bytes)}"
        )
    lines += plan.blur.lines() if plan.blur is not None else []
    return lines + plan.notes + [f"damaged: {text}" for text in plan.damage]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
