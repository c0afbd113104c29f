"""Plan the restoration of a recording: time, space, blur, and what cannot be kept.

Estimates come from a few frames of the recording itself, run through the network and the encoder.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.pictures import write_png
from vdeblur.deblur import deblur_video
from vdeblur.errors import InputError, UsageError, VdeblurError
from vdeblur.frames import FrameBatch
from vdeblur.gopro.blur_plot import plot
from vdeblur.gopro.job import Job
from vdeblur.gopro.sharpness import measure_sharpness, pairwise_agreement, rank_correlation
from vdeblur.gopro.telemetry import Telemetry, read_telemetry
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import Overlap
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4.tracks import sample_times
from vdeblur.media.reader import VideoReader
from vdeblur.system.files import check_target

Floats = NDArray[np.float64]

_SAMPLE_PIXELS = 24 * 1920 * 1080  # encoded to estimate the size; 6 to 24 frames
_NETWORK_FRAMES = 2


@dataclass(frozen=True)
class Blur:
    """A recording's blur by its sensors, and the sharpness of its pictures.

    Attributes:
        sensors: The telemetry.
        threshold: Pixels of blur from which on frames are chosen.
        times: (n,) seconds of the frames.
        lengths: (n,) pixels of blur, NaN where unknown.
        sharp_times: (m,) seconds of the pictures that were measured.
        sharp: (m,) their sharpness; see `measure_sharpness`.
    """

    sensors: Telemetry
    threshold: float
    times: Floats
    lengths: Floats
    sharp_times: Floats
    sharp: Floats

    @property
    def chosen(self) -> int:
        """Number of frames with a blur at or above the threshold, or unknown."""
        return int((~(self.lengths < self.threshold)).sum())

    @property
    def correlation(self) -> float:
        """Rank correlation of blur and sharpness: −1 where they agree."""
        return rank_correlation(self._estimate, self.sharp)

    @property
    def agreement(self) -> float:
        """Share of pairs that agree on which frame is less sharp; see `pairwise_agreement`."""
        return pairwise_agreement(self._estimate >= self.threshold, self.sharp)

    @property
    def _estimate(self) -> Floats:
        return np.nan_to_num(self.sensors.blur(self.sharp_times))

    def lines(self) -> list[str]:
        """Return lines for a report."""
        count, known = len(self.lengths), self.lengths[np.isfinite(self.lengths)]
        result = [
            f"blur: {self.chosen} of {count} frames ({100 * self.chosen / max(count, 1):.1f} %) "
            f"at {self.threshold:g} px or more"
        ]
        if len(known):
            longest = int(np.nanargmax(self.lengths))
            result[0] += (
                f"; median {np.median(known):.2f} px, longest {self.lengths[longest]:.2f} px at "
                f"{clock(float(self.times[longest]))}"
            )
        sensors = self.sensors
        exposure = np.percentile(sensors.exposures, [5, 95]) * 1000
        result.append(
            f"by {sensors.camera}: exposures of {exposure[0]:.2f} to {exposure[1]:.2f} ms, focal "
            f"length {sensors.focal:.0f} px ({sensors.focal_source}), "
            + (f"read out in {1000 * sensors.readout:.1f} ms" if sensors.readout else "")
            + ("" if sensors.readout else "rolling shutter not said")
        )
        looked = f"the pictures ({len(self.sharp)} looked at)"
        if np.isfinite(self.agreement):
            result.append(
                f"{looked}: a frame above the threshold is less sharp than one below it in "
                f"{100 * self.agreement:.0f} % of pairs (50 % would be chance)"
            )
        elif len(known) and known.max() < self.threshold:
            result.append(f"{looked}: no frame's blur is long enough to be told by its sharpness")
        if np.isfinite(self.correlation):
            result.append(f"rank correlation of blur and sharpness: {self.correlation:+.2f}")
        return [*result, *sensors.notes]

    def draw(self, path: Path, title: str, *, overwrite: bool = False) -> None:
        """Write a plot over time as a PNG; OutputError if it cannot be written."""
        if path.parent.is_dir():
            check_target(path, overwrite=overwrite)
        sensors = self.sensors
        subtitle = (
            f"{sensors.camera}, focal length {sensors.focal:.0f} px ({sensors.focal_source}); "
            f"{self.chosen} of {len(self.lengths)} frames at {self.threshold:g} px or more"
        )
        picture = plot(
            self.times,
            self.lengths,
            threshold=self.threshold,
            sharp_times=self.sharp_times,
            sharp=self.sharp,
            title=title,
            subtitle=subtitle,
        )
        write_png(path, picture, only_new=not overwrite)


@dataclass
class Plan:
    """The input of a job, and its estimated cost.

    Attributes:
        job: The job.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        codec: The source's.
        bits: Of a sample.
        fps: Frames a second; None if unknown.
        frames: How many frames the source has.
        duration_seconds: How long it lasts.
        source_bytes: Size of all chapters.
        seconds: How long the job will take; None before `estimate`, or if that fails.
        output_bytes: Size of the output; None as `seconds`.
        blur: None without telemetry.
        notes: What cannot be kept, and what is not known.
        damage: What is damaged in the source.
    """

    job: Job
    width: int
    height: int
    codec: str
    bits: int
    fps: Fraction | None
    frames: int
    duration_seconds: float
    source_bytes: int
    seconds: float | None = None
    output_bytes: int | None = None
    blur: Blur | None = None
    notes: list[str] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def plan_job(
    job: Job,
    *,
    threshold: float,
    focal: float | None = None,
    blur: bool = True,
) -> Plan:
    """Describe a job by its source's index and telemetry.

    Args:
        job: The job.
        threshold: See `Blur`.
        focal: Focal length in pixels, where the telemetry does not state it.
        blur: Measure the blur, too.

    Raises:
        InputError: The source cannot be read.
    """
    source = job.open()
    with VideoReader(source) as reader:
        info, streams = reader.info, reader.container.streams
        unknown = [streams[i] for i, role in reader.roles.items() if role == "dropped"]
        plan = Plan(
            job,
            info.width,
            info.height,
            info.codec,
            info.layout.depth,
            info.fps,
            info.frame_count or 0,
            info.duration_seconds or 0.0,
            sum(chapter.stat().st_size for chapter in job.chapters),
        )
        plan.notes += [f"not kept: stream {s.index}, which has no samples" for s in unknown]
    if isinstance(source, Joined):
        plan.damage += source.damage
        plan.notes += [f"not kept: {n}" if "joined file has" in n else n for n in source.notes]
    plan.notes += [f"{name} is missing: the film jumps over it" for name in job.missing]
    if blur:
        try:
            plan.blur = measure_blur(source, threshold, focal=focal)
        except (InputError, UsageError) as error:
            plan.notes.append(f"blur not known: {error}")
    return plan


def measure_blur(source: Path, threshold: float, *, focal: float | None = None) -> Blur:
    """Compute the blur of every frame, and measure the sharpness of some.

    Args:
        source: A file, or a `Joined` recording.
        threshold: See `Blur`.
        focal: Focal length in pixels, where the telemetry does not state it.

    Raises:
        InputError: The source has no telemetry.
        UsageError: telemetry-parser is not installed.
    """
    with VideoReader(source) as reader:
        info = reader.info
        track = reader.tracks.get(reader.video_streams[0])
        runs = sample_times(source, track.index) if track is not None else []
    sensors = read_telemetry(source, size=(info.width, info.height), fps=info.fps, focal=focal)
    if runs and track is not None:
        lengths = np.repeat([d for _, d in runs], [n for n, _ in runs]).astype(np.float64)
        times = (np.cumsum(lengths) - lengths) / track.timescale
    else:
        times = np.arange(info.frame_count or 0) / float(info.fps or 30)
    sharp_times, sharp = measure_sharpness(source)
    return Blur(sensors, threshold, times, sensors.blur(times), sharp_times, sharp)


def estimate(
    plan: Plan, deblurrer: Deblurrer, *, encode: EncodeOptions | None = None, share: float = 1.0
) -> None:
    """Fill in a plan's `seconds` and `output_bytes` from frames amid its first chapter.

    A file that cannot be tried out leaves both as they are.

    Args:
        plan: Changed in place.
        deblurrer: To measure the network with.
        encode: Encoder and its settings.
        share: Share of the frames that go through the network.
    """
    chapter = plan.job.chapters[0]
    fps = float(plan.fps or 30)
    count = int(np.clip(_SAMPLE_PIXELS // max(1, plan.width * plan.height), 6, 24))
    middle = max(0.0, plan.duration_seconds / len(plan.job.chapters) / 2 - count / fps)
    with contextlib.suppress(VdeblurError, OSError), tempfile.TemporaryDirectory() as folder:
        with VideoReader(chapter, start=middle, duration=(_NETWORK_FRAMES + 1) / fps) as reader:
            frames = list(islice(reader, _NETWORK_FRAMES + 1))
        overlap = Overlap(deblurrer, depth=1)
        rates = []
        for frame in frames:
            began = time.monotonic()
            list(overlap.run([FrameBatch([frame])]))
            rates.append(time.monotonic() - began)
        network = min(rates[1:] or rates)
        output = Path(folder) / f"sample{'.mp4' if chapter.suffix == '.360' else chapter.suffix}"
        identity = Deblurrer("identity", device="cpu")
        report = deblur_video(
            chapter, output, model=identity, encode=encode, start=middle, duration=count / fps,
            check=False,
        )  # fmt: skip
        coding = report.seconds / max(report.frames, 1)
        beside = deblurrer.device.type != "cpu"  # another device computes beside the encoder
        network *= share
        each = max(network, coding) if beside else network + coding
        plan.seconds = each * plan.frames
        plan.output_bytes = round(output.stat().st_size / max(report.frames, 1) * plan.frames)


def clock(seconds: float) -> str:
    """Format a position in a film: 12.3 s, 3:07 or 1:03:07."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )


def span(seconds: float) -> str:
    """Format a time to wait, roughly: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Format a number of bytes: 4.1 MB, 11.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
