"""Recordings → restored files: what there is to do, what is done already, and doing one.

The composition of the package's parts; open this first. `vdeblur.cli.gopro` says what it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vdeblur.deblur import Guiding, Report, deblur_video
from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.gopro import telemetry
from vdeblur.gopro.chapters import join
from vdeblur.gopro.motion import SensorGuide, compare
from vdeblur.gopro.recordings import SUFFIX, Recording
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.headers import restore_headers
from vdeblur.media.mp4.tracks import get_trak, parse_tracks, read_tracks
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.exposure import AUTO, Exposure, Guide, exposure_of
from vdeblur.system.files import replacing

#: Blur below this many pixels is nothing that a viewer sees or a network improves.
THRESHOLD = 1.5
#: In the folder of the outputs: what was restored from what, for `finished`.
JOURNAL = ".vdeblur-gopro.json"


@dataclass(frozen=True)
class Job:
    """A file to be written: from the chapters of a recording, or from one of them."""

    chapters: tuple[Path, ...]
    output: Path
    missing: tuple[str, ...] = ()

    def open(self) -> Path:
        """The source: a plain path, or one that opens as all chapters. InputError: none can be."""
        return join(self.chapters)


def jobs(
    recordings: Iterable[Recording],
    *,
    folder: Path | None = None,
    keep_chapters: bool = False,
) -> list[Job]:
    """What is to be written, named after the first chapter with "_deblurred".

    folder: where to; None: beside the chapters. Recordings of one name from different folders go
    into folders of their own in it.
    """
    found: list[tuple[tuple[Path, ...], tuple[str, ...]]] = []
    for recording in recordings:
        if keep_chapters:
            found += [((chapter,), ()) for chapter in recording.chapters]
        else:
            found.append((recording.chapters, recording.missing))
    names = [chapters[0].name.lower() for chapters, _ in found]
    result = []
    for chapters, missing in found:
        first = chapters[0]
        place = first.parent if folder is None else folder
        if folder is not None and names.count(first.name.lower()) > 1:
            place = folder / first.resolve().parent.name
        result.append(Job(chapters, place / f"{first.stem}{SUFFIX}{first.suffix}", missing))
    outputs = [job.output for job in result]
    for job in result:
        if outputs.count(job.output) > 1:
            raise OutputError(
                f"several recordings would be written to {job.output}: restore them one by one"
            )
    return result


def check_complete(job: Job) -> None:
    """InputError that names the chapters which the numbers of the others say should be there."""
    if job.missing:
        names = ", ".join(job.missing)
        what = "chapter" if len(job.missing) == 1 else "chapters"
        raise InputError(
            f"{what} {names} of {job.chapters[0]} not found: copy what is missing beside it, or go "
            "on without by --allow-missing"
        )


def restore(
    job: Job,
    *,
    model: str | Deblurrer = "mimo-unet-guided",
    batch: int | Literal["auto"] = "auto",
    exposure: str | float | Fraction | Exposure = AUTO,
    encode: EncodeOptions | None = None,
    hwaccel: str | None = None,
    only_blurred: float | None = None,
    focal: float | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Report:
    """Restore a job's recording into its output, and keep all that the camera recorded.

    model, batch, exposure, encode, hwaccel: as in `vdeblur.deblur_video`. only_blurred: frames
    whose blur is shorter, in pixels, stay as they are (all are restored where there is no
    telemetry). focal: the lens's focal length in pixels, where the telemetry does not say. Where
    there is telemetry, exposure "auto" is what that says. Raises the errors of `vdeblur.errors`;
    the output takes its name when it is complete.
    """
    if not allow_missing:
        check_complete(job)
    if job.output.exists() and not overwrite:
        raise OutputError(
            f"{job.output} is there already"
            + ("" if finished(job) else " and is no whole copy of this recording")
            + ": use --force to replace it"
        )
    source = job.open()
    notes = [f"{name} is missing: the film jumps over it" for name in job.missing]
    notes += source.notes if isinstance(source, Joined) else []
    choose = None
    if only_blurred is not None:
        try:
            choose = gate(source, only_blurred, focal=focal)
        except InputError as error:
            notes.append(f"{error}: every frame is restored")
    deblurrer = model if isinstance(model, Deblurrer) else Deblurrer(model)
    guided = deblurrer.guided and not deblurrer.changes_nothing
    guide = guide_of(source, exposure, focal=focal) if guided else None
    with contextlib.suppress(OSError):
        job.output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(job.output)

    def complete(reader: VideoReader, writer: VideoWriter) -> None:
        assert writer.temporary is not None
        try:
            if reader.iso:
                restore_headers(source, writer.temporary)
        except VdeblurError as error:
            if isinstance(error.__cause__, OSError):
                raise
            # Hours of restored frames are not thrown away for a damaged header.
            notes.append(f"the camera's own headers could not be put back ({error})")
        stat = source.stat()
        os.utime(writer.temporary, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    report = deblur_video(
        source,
        job.output,
        model=deblurrer,
        batch=batch,
        encode=encode,
        hwaccel=hwaccel,
        # libav does not know the name, but a .360 is an MP4.
        format="mp4" if source.suffix.lower() == ".360" else None,
        overwrite=overwrite,
        choose=choose,
        guide=guide,
        complete=complete,
        on_progress=on_progress,
    )
    report.notes += notes
    if isinstance(source, Joined):
        report.damage = source.damage + report.damage
    _note_finished(job)
    return report


def guide_of(
    source: Path,
    exposure: str | float | Fraction | Exposure = AUTO,
    *,
    focal: float | None = None,
) -> Guiding:
    """What gives frames their motion: the telemetry, where there is some; else the pictures."""
    asked = exposure_of(exposure)
    try:
        sensors = _sensors(source, focal)
    except (InputError, UsageError):  # none recorded, or no package to read it with
        return Guide(asked)
    return SensorGuide(sensors, compare(source, sensors), asked)


def gate(source: Path, threshold: float, *, focal: float | None = None) -> Callable[[Frame], bool]:
    """Whether a frame's blur is `threshold` pixels or longer, or not known, by the telemetry.

    InputError when the source has none; UsageError without telemetry-parser.
    """
    sensors = _sensors(source, focal)

    def choose(frame: Frame) -> bool:
        length = float(sensors.blur(np.array(frame.time_seconds)))
        return not length < threshold

    return choose


def _sensors(source: Path, focal: float | None) -> telemetry.Telemetry:
    with VideoReader(source) as reader:
        info = reader.info
    return telemetry.read(source, size=(info.width, info.height), fps=info.fps, focal=focal)


# --- what is finished ---------------------------------------------------------------------------


def finished(job: Job) -> bool:
    """Whether the output is there, whole, and made of these chapters.

    Either the journal says so of an output and of chapters of these very sizes, or the indexes do:
    every track has as many samples as the source's, none behind the end of the file, and the
    pictures are not the source's own (a copy by that name is no restored film).
    """
    if not job.output.is_file():
        return False
    try:
        if boxes.missing_bytes(job.output) or not read_tracks(job.output):
            return False
        entry = _journal(job.output.parent).get(job.output.name)
        if entry is not None:
            return bool(entry == _entry(job))
        return _holds_all(job.open(), job.output)
    except (InputError, OSError):
        return False


def _holds_all(source: Path, output: Path) -> bool:
    def counts(path: Path) -> dict[tuple[bytes, str, int], int]:
        found: dict[tuple[bytes, str, int], int] = {}
        for track in read_tracks(path):
            fourcc = "" if track.handler == b"vide" else track.fourcc
            rank = sum(key[:2] == (track.handler, fourcc) for key in found)
            found[track.handler, fourcc, rank] = track.sample_count
        return found

    ours = counts(output)
    same = all(ours.get(kind, 0) == count for kind, count in counts(source).items())
    return same and _picture_sizes(source) != _picture_sizes(output)


def _picture_sizes(path: Path) -> bytes:
    """The sizes of the coded pictures, as they stand in the index."""
    with boxes.open_input(path) as file:
        moov = boxes.read_moov(file)[1]
        for track in parse_tracks(moov):
            if track.handler == b"vide":
                stbl = boxes.get(get_trak(moov, track.index), b"mdia", b"minf", b"stbl")
                return boxes.get(stbl or b"", b"stsz") or b""
    return b""


def _entry(job: Job) -> dict[str, Any]:
    """What of a job's files changes when they do; times on disk survive no card reader."""
    return {
        "chapters": [[chapter.name, chapter.stat().st_size] for chapter in job.chapters],
        "size": job.output.stat().st_size,
    }


def _journal(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note_finished(job: Job) -> None:
    """Enter a finished job; without a journal the indexes have to do."""
    with contextlib.suppress(OSError):
        journal = _journal(job.output.parent) | {job.output.name: _entry(job)}
        with replacing(job.output.parent / JOURNAL) as path:
            path.write_text(json.dumps(journal, indent=1, sort_keys=True), encoding="utf-8")


def remove_leftovers(output: Path) -> None:
    """Removes what a killed run left of this output under temporary names.

    Those of a process that is still running stay. Only where a process can be asked for by its
    number without harm: not on Windows.
    """
    if os.name != "posix" or not output.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(output.stem)}\.(\d+)\.part{re.escape(output.suffix)}.*")
    for path in output.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found is None or int(found[1]) == os.getpid():
            continue
        try:
            os.kill(int(found[1]), 0)
        except (ProcessLookupError, OverflowError):
            with contextlib.suppress(OSError):
                path.unlink()
        except OSError:
            continue
