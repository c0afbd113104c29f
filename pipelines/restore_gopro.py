"""Restore the recordings of a GoPro card with `vdeblur.gopro`: an example to copy and adapt.

python pipelines/restore_gopro.py CARD FOLDER [--model mimo-unet-guided] [--only-blurred 1.5]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vdeblur import Deblurrer, VdeblurError, gopro


def restore(job: gopro.Job, deblurrer: Deblurrer, only_blurred: float | None) -> str:
    """Restore a recording and return a line about it."""
    if gopro.finished(job):
        return "finished already"
    try:
        report = gopro.restore(
            job, gopro.RestoreOptions(only_blurred=only_blurred), model=deblurrer
        )
    except VdeblurError as error:  # an error in one recording does not stop the others
        return f"not done: {error}"
    lines = [f"{report.frames - report.unchosen} of {report.frames} frames restored"]
    lines += [f"not kept: {text}" for text in report.lost]
    lines += [f"damaged: {text}" for text in report.damage]
    return "; ".join(lines + report.notes + report.differences)


def main() -> None:
    """Find the recordings, read their telemetry, and restore them in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", help="a card, a folder or any chapter of a recording")
    parser.add_argument("folder", type=Path, help="where the restored recordings go")
    parser.add_argument("--model", default="mimo-unet-guided")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-blurred", type=float, metavar="PX")
    args = parser.parse_args()

    deblurrer = Deblurrer(args.model, device=args.device)
    for job in gopro.jobs(gopro.find_recordings([args.card]), folder=args.folder):
        names = " + ".join(chapter.name for chapter in job.chapters)
        print(f"{names} -> {job.output}: {restore(job, deblurrer, args.only_blurred)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
