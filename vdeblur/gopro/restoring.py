"""Restore a job: the composition of the package's parts; open this first.

`vdeblur.cli.gopro` describes the outcome for users of the command.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from vdeblur.deblur import Guiding, Report, deblur_video
from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.gopro.job import Job, check_complete
from vdeblur.gopro.journal import finished, note_finished
from vdeblur.gopro.motion import SensorGuide, compare_with_flow
from vdeblur.gopro.telemetry import Telemetry, read_telemetry
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4.headers import restore_headers
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.guide import Guide
from vdeblur.system.files import folder_made

#: Pixels of blur that neither viewers see nor networks improve: shorter blur counts as none.
THRESHOLD = 1.5


@dataclass(frozen=True)
class RestoreOptions:
    """How to restore a recording.

    Attributes:
        batch: Frames per network call; see `vdeblur.deblur_video`.
        exposure: How long the shutter was open; see `vdeblur.deblur_video`. Where there is
            telemetry, "auto" takes its exposure times.
        encode: Encoder and its settings; None: those that `vdeblur.deblur_video` chooses.
        hwaccel: Hardware decoder, such as "cuda"; None: the CPU.
        only_blurred: Frames with a shorter blur, in pixels, stay as they are; None restores all.
            Without telemetry all frames are restored.
        focal: The lens's focal length in pixels, where the telemetry does not state it.
        allow_missing: Join recordings that lack a chapter.
        overwrite: Replace an output that exists.
    """

    batch: int | Literal["auto"] = "auto"
    exposure: str | float | Fraction | Exposure = AUTO
    encode: EncodeOptions | None = None
    hwaccel: str | None = None
    only_blurred: float | None = None
    focal: float | None = None
    allow_missing: bool = False
    overwrite: bool = False


def restore(
    job: Job,
    options: RestoreOptions | None = None,
    *,
    model: str | Deblurrer = "mimo-unet-guided",
    on_progress: Callable[[int, int | None], None] | None = None,
) -> Report:
    """Restore a job's recording into its output, and keep all that the camera recorded.

    Args:
        job: What to read and to write.
        options: None: the defaults.
        model: A network's name, or a `Deblurrer` to use for several jobs.
        on_progress: Called with the frames written and the frames expected, None if unknown.

    Returns:
        The report of `vdeblur.deblur_video`, with notes on the recording.

    Raises:
        VdeblurError: As `vdeblur.deblur_video`. The output takes its name only when complete.
    """
    options = options or RestoreOptions()
    if not options.allow_missing:
        check_complete(job)
    if job.output.exists() and not options.overwrite:
        raise OutputError(
            f"{job.output} is there already"
            + ("" if finished(job) else " and is no whole copy of this recording")
            + ": use `overwrite=True` to replace it"
        )
    source = job.open()
    notes = [f"{name} is missing: the film jumps over it" for name in job.missing]
    notes += source.notes if isinstance(source, Joined) else []
    choose = None
    if options.only_blurred is not None:
        try:
            choose = blur_filter(source, options.only_blurred, focal=options.focal)
        except InputError as error:
            notes.append(f"{error}: no frame is left out for it")
    deblurrer = Deblurrer.of(model)
    guided = deblurrer.guided and not deblurrer.changes_nothing
    guide = motion_guide(source, options.exposure, focal=options.focal) if guided else None

    def complete(reader: VideoReader, writer: VideoWriter) -> None:
        assert writer.temporary is not None
        _complete(source, writer.temporary, notes, headers=reader.iso)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the writer says why
            stack.enter_context(folder_made(job.output.parent))
        report = deblur_video(
            source,
            job.output,
            model=deblurrer,
            batch=options.batch,
            encode=options.encode,
            hwaccel=options.hwaccel,
            # libav does not know the name, but a .360 is an MP4.
            format="mp4" if source.suffix.lower() == ".360" else None,
            overwrite=options.overwrite,
            choose=choose,
            guide=guide,
            complete=complete,
            on_progress=on_progress,
        )
    report.notes += notes
    if isinstance(source, Joined):
        report.damage = source.damage + report.damage
    note_finished(job)
    return report


def _complete(source: Path, output: Path, notes: list[str], *, headers: bool) -> None:
    """Give a written output the camera's headers, if it is an MP4, and the source's times on disk.

    Adds a note where the headers cannot be restored.
    """
    try:
        if headers:
            restore_headers(source, output)
    except VdeblurError as error:
        if isinstance(error.__cause__, OSError):
            raise
        # Hours of restored frames are not thrown away for a damaged header.
        notes.append(f"the camera's own headers could not be put back ({error})")
    with contextlib.suppress(OSError):  # the source has gone, or the disk keeps times of its own
        stat = source.stat()
        os.utime(output, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def motion_guide(
    source: Path,
    exposure: str | float | Fraction | Exposure = AUTO,
    *,
    focal: float | None = None,
) -> Guiding:
    """Return the source of the frames' motion: telemetry where there is some, else the pictures.

    Args:
        source: A file, or a `Joined` recording.
        exposure: How long the shutter was open; "auto": by telemetry or pictures.
        focal: Focal length in pixels, where the telemetry does not state it.
    """
    given = exposure_of(exposure)
    try:
        sensors = _sensors(source, focal)
    except (InputError, UsageError):  # none recorded, or no package to read it with
        return Guide(given)
    return SensorGuide(sensors, compare_with_flow(source, sensors), given)


def blur_filter(
    source: Path, threshold: float, *, focal: float | None = None
) -> Callable[[Frame], bool]:
    """Return a function that tells, by the telemetry, whether to restore a frame.

    Args:
        source: A file, or a `Joined` recording.
        threshold: Pixels; frames with a blur as long or longer, or of unknown blur, are chosen.
        focal: Focal length in pixels, where the telemetry does not state it.

    Raises:
        InputError: The source has no telemetry.
        UsageError: telemetry-parser is not installed.
    """
    sensors = _sensors(source, focal)

    def choose(frame: Frame) -> bool:
        length = float(sensors.blur(np.array(frame.time_seconds)))
        return not length < threshold  # true of NaN: unknown

    return choose


def _sensors(source: Path, focal: float | None) -> Telemetry:
    with VideoReader(source) as reader:
        info = reader.info
    return read_telemetry(source, size=(info.width, info.height), fps=info.fps, focal=focal)
