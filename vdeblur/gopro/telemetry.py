"""Predict the length of each frame's blur from the camera's exposure times and gyroscope.

    blur length in pixels ≈ angular rate × exposure time × focal length in pixels

The package telemetry-parser reads them, for GoPro and for the other cameras that it knows (Sony,
Insta360, DJI …). Knows no pictures: `vdeblur.gopro.sharpness` measures those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import InputError
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4.tracks import read_tracks, sample_times
from vdeblur.system.optional import optional

Floats = NDArray[np.float64]

# Keys of GPMF that telemetry-parser passes on by number.
_ZFOV, _VFOV, _SROT, _ZOOM = "0x5a464f56", "0x56464f56", "0x53524f54", "0x445a4f4d"
# Focal length over picture width by GPMF's VFOV, where ZFOV does not state the angle: equidistant
# lenses of 118°, 94° and 64° across (GoPro's field-of-view table of the HERO4 and HERO5), and the
# undistorted picture of 92°. Measured on a HERO5's pan, M: 0.585.
_FOCAL_OF_VIEW = {"W": 0.485, "S": 0.485, "M": 0.607, "N": 0.89, "L": 0.483}
_MARGIN = 0.1  # seconds to extend the first and last rates by, since GPMF ends early
_ROWS = 9  # places down the picture at which a rolling shutter's blur is computed


@dataclass(frozen=True)
class Telemetry:
    """The blur of a recording, by its sensors.

    Attributes:
        camera: Maker and model.
        times: (n,) seconds from the first frame.
        angles: (n, 3) rad by which the camera has turned by then, about its up, left and backward
            axis.
        exposure_times: (m,) seconds at which a frame is taken.
        exposures: (m,) seconds for which it is exposed.
        focal: Focal length in pixels.
        focal_source: How that is known.
        readout: Seconds from the exposure of the first row to that of the last.
        size: Width and height of the picture in pixels.
        notes: What could not be read.
        straight: Whether the lens draws straight lines straight: distance from the middle = focal
            length × tan(angle). Otherwise it is focal length × angle, as for a GoPro's lens.
    """

    camera: str
    times: Floats
    angles: Floats
    exposure_times: Floats
    exposures: Floats
    focal: float
    focal_source: str
    readout: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    straight: bool = False

    def turned(self, start: Floats, end: Floats) -> Floats:
        """Return how far the camera turns between times in seconds: (…, 3) rad about its axes."""
        return self._angles(end) - self._angles(start)

    def exposure(self, times: Floats) -> Floats:
        """Return the exposure times, in seconds, of frames at times in seconds."""
        result: Floats = np.interp(times, self.exposure_times, self.exposures)
        return result

    def rate(self, times: Floats) -> Floats:
        """Return how fast the camera turns at times in seconds, in rad/s, over the exposure."""
        half = np.maximum(self.exposure(times), 1e-4) / 2
        turned = self.turned(times - half, times + half)
        result: Floats = np.linalg.norm(turned, axis=-1) / (2 * half)
        return result

    def blur(self, times: Floats) -> Floats:
        """Return the blur of frames in pixels: the root mean square over the most blurred row.

        A rolling shutter exposes the last row `readout` later than the first. Turning about the
        optical axis blurs in proportion to the distance from the middle.

        Args:
            times: Seconds from the first frame, of any shape.

        Returns:
            Of the same shape; NaN where nothing was recorded.
        """
        width, height = self.size
        at = np.asarray(times, np.float64)[..., None] + np.linspace(0, self.readout, _ROWS)
        half = self.exposure(np.asarray(times, np.float64))[..., None] / 2
        turned = self.turned(at - half, at + half)
        across = turned[..., 0] ** 2 + turned[..., 1] ** 2
        about = turned[..., 2] ** 2 * (width**2 + height**2) / 12
        result: Floats = np.sqrt(self.focal**2 * across + about).max(axis=-1)
        unknown = (np.asarray(times) < self.times[0]) | (np.asarray(times) > self.times[-1])
        return np.where(unknown, np.nan, result)

    def _angles(self, times: Floats) -> Floats:
        return np.stack(
            [np.interp(times, self.times, self.angles[:, axis]) for axis in range(3)], axis=-1
        )


@dataclass
class _Parts:
    """The chapters' telemetry, before it is merged."""

    gyro_times: list[Floats] = field(default_factory=list)
    gyro: list[Floats] = field(default_factory=list)
    exposure_times: list[Floats] = field(default_factory=list)
    exposures: list[Floats] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_telemetry(
    path: Path,
    *,
    size: tuple[int, int],
    fps: Fraction | None,
    focal: float | None = None,
) -> Telemetry:
    """Read the telemetry of a file, or of a `Joined` recording.

    Args:
        path: The file.
        size: Width and height of the picture in pixels.
        fps: Frames a second; None: 30, for exposures without times of their own.
        focal: Focal length in pixels; None: as the camera states it.

    Raises:
        InputError: It has no exposure times or no gyroscope.
        UsageError: telemetry-parser is not installed.
    """
    parser = optional("telemetry_parser", extra="gopro", purpose="reading the telemetry")
    chapters = (
        list(zip(path.chapters, path.starts, strict=True))
        if isinstance(path, Joined)
        else [(path, Fraction(0))]
    )
    parts = _Parts()
    camera, groups = "", []
    for chapter, start in chapters:
        try:
            parsed = parser.Parser(str(chapter))
            packets = parsed.telemetry()
            motion = parsed.normalized_imu()
        except BaseException as error:
            # A panic of the Rust library, over damaged telemetry, is a BaseException (PyO3).
            if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
                raise
            parts.notes.append(f"{chapter.name} has no telemetry that can be read ({error})")
            continue
        camera = camera or " ".join(dict.fromkeys(f"{parsed.camera} {parsed.model or ''}".split()))
        groups += packets[:3]
        times, rates = _gyroscope(packets, motion)
        own_times, own = _exposures(packets, _packet_times(chapter, len(packets)), fps)
        parts.gyro_times.append(times + float(start))
        parts.gyro.append(rates)
        parts.exposure_times.append(own_times + float(start))
        parts.exposures.append(own)
    times, rates = _sorted(parts.gyro_times, parts.gyro)
    exposure_times, exposures = _sorted(parts.exposure_times, parts.exposures)
    missing = [n for n, t in (("exposure times", exposures), ("gyroscope", rates)) if not len(t)]
    if missing:
        raise InputError(f"{path.name} has no {' and no '.join(missing)} in its telemetry")
    # Half of the first frame's exposure lies before the first sample.
    times = np.concatenate([times[:1] - _MARGIN, times, times[-1:] + _MARGIN])
    rates = np.concatenate([rates[:1], rates, rates[-1:]])
    length, source = (focal, "given") if focal else _focal(groups, size)
    readout = _readout(groups)
    steps = np.diff(times, prepend=times[0])[:, None]
    # By the trapezoidal rule; over a gap between chapters nothing is known to have turned.
    mean = (rates + np.concatenate([rates[:1], rates[:-1]])) / 2
    angles = np.cumsum(np.where(steps > 0.5, 0, mean * steps), axis=0)
    return Telemetry(
        camera or "camera", times, angles, exposure_times, exposures, length, source,
        readout, size, tuple(parts.notes), _straight(groups),
    )  # fmt: skip


def _sorted(times: list[Floats], values: list[Floats]) -> tuple[Floats, Floats]:
    if not times or not sum(map(len, times)):
        return np.zeros(0), np.zeros(0)
    kept = [(t, v) for t, v in zip(times, values, strict=True) if len(t)]
    at, of = np.concatenate([t for t, _ in kept]), np.concatenate([v for _, v in kept])
    order = np.argsort(at, kind="stable")
    return at[order], of[order]


def _values(packets: Sequence[Any], group: str, key: str) -> Iterator[Any]:
    for packet in packets:
        if isinstance(packet, Mapping) and isinstance(packet.get(group), Mapping):
            value = packet[group].get(key)
            if value is not None:
                yield value


def _gyroscope(packets: Sequence[Any], motion: Sequence[Any]) -> tuple[Floats, Floats]:
    """Return (seconds, rad/s about the axes (n, 3)), from the attitude if nothing else exists."""
    known = [item for item in motion if item.get("gyro") is not None]
    if known:
        times = np.array([item["timestamp_ms"] for item in known]) / 1000
        return times, np.radians(np.array([item["gyro"] for item in known], np.float64))
    turns = [
        (item["t"] / 1000, [item["v"][axis] for axis in "wxyz"])
        for data in _values(packets, "Quaternion", "Data")
        for item in data
    ]
    if len(turns) < 2:
        return np.zeros(0), np.zeros((0, 3))
    times, attitude = np.array([t for t, _ in turns]), np.array([q for _, q in turns])
    before, after = attitude[:-1], attitude[1:]
    # The vector part of conj(before) × after is half the angle turned, for small turns.
    w = (before * after).sum(1)
    v = before[:, :1] * after[:, 1:] - after[:, :1] * before[:, 1:]
    v -= np.cross(before[:, 1:], after[:, 1:])
    steps = np.maximum(np.diff(times), 1e-6)
    return times[1:], 2 * np.sign(w)[:, None] * v / steps[:, None]


def _packet_times(path: Path, count: int) -> list[float] | None:
    """Return the start of each packet of telemetry in seconds; None without such a track."""
    try:
        tracks = [t for t in read_tracks(path) if t.fourcc in ("gpmd", "rtmd", "djmd", "camm")]
        if not tracks:
            return None
        runs = sample_times(path, tracks[0].index)
    except InputError:
        return None
    lengths = np.repeat([length for _, length in runs], [number for number, _ in runs])
    starts = (np.cumsum(lengths) - lengths) / (tracks[0].timescale or 1)
    # The settings in a GoPro's moov/udta come as a packet before those of the track.
    begins: list[float] = starts.tolist()
    return [0.0] * (count - len(begins)) + begins


def _exposures(
    packets: Sequence[Any], starts: list[float] | None, fps: Fraction | None
) -> tuple[Floats, Floats]:
    """Return (seconds, exposure in seconds) per frame, or as often as the camera records it."""
    frame = float(1 / fps) if fps else 1 / 30
    found: list[tuple[float, float]] = []
    running = 0.0
    for number, packet in enumerate(packets):
        group = packet.get("Exposure") if isinstance(packet, Mapping) else None
        if not isinstance(group, Mapping):
            continue
        start = starts[number] if starts is not None and number < len(starts) else running
        data = group.get("Data")
        if isinstance(data, list) and data and isinstance(data[0], Mapping):
            found += [(float(item["t"]), float(item["v"])) for item in data]  # Insta360
        elif isinstance(data, list) and data:  # GoPro: one for each frame of the packet
            found += [(start + n * frame, float(value)) for n, value in enumerate(data)]
            running = start + len(data) * frame
        else:
            value = _one_exposure(group, frame)
            if value is not None:
                found.append((start, value))
                running = start + frame
    found = [(t, e) for t, e in found if math.isfinite(e) and 0 < e < 10]
    return np.array([t for t, _ in found]), np.array([e for _, e in found])


def _one_exposure(group: Mapping[str, Any], frame: float) -> float | None:
    speed, angle = group.get("ShutterSpeed"), group.get("ShutterAngle")
    if isinstance(speed, Sequence) and len(speed) == 2 and speed[1]:
        return float(speed[0]) / float(speed[1])  # Sony
    if isinstance(group.get("ExposureTime"), int | float):
        return float(group["ExposureTime"])
    if isinstance(angle, int | float):
        return frame * float(angle) / 360
    return None


def _first(packets: Sequence[Any], group: str, key: str) -> float | None:
    for value in _values(packets, group, key):
        if isinstance(value, int | float) and math.isfinite(value) and value > 0:
            return float(value)
    return None


def _focal(packets: Sequence[Any], size: tuple[int, int]) -> tuple[float, str]:
    """Return the focal length in pixels, and its source."""
    width, height = size
    for profile in _values(packets, "Lens", "Data"):  # DJI and others: a calibration
        if isinstance(profile, Mapping) and "fisheye_params" in profile:
            matrix = profile["fisheye_params"]["camera_matrix"]
            of = profile.get("calib_dimension", {}).get("w") or width
            return float(matrix[0][0]) * width / of, "the camera's calibration"
    if pixels := _first(packets, "Lens", "PixelFocalLength"):
        return pixels, "the camera"
    if (lens := _first(packets, "Lens", "LensZoomNative")) and (
        sensor := _first(packets, "Default", "SensorWidth")
    ):
        return lens / sensor * width, f"{lens:g} mm on {sensor:g} mm"
    if lens := _first(packets, "Lens", "LensZoom35mm"):
        return lens / 36 * width, f"{lens:g} mm on full frame"
    if (angle := _first(packets, "Default", _ZFOV)) and 10 < angle < 180:
        # A GoPro's lens is close to equidistant: distance from the middle = focal length × angle.
        return math.hypot(width, height) / math.radians(angle), f"{angle:.0f}° diagonally"
    for view in _values(packets, "Default", _VFOV):
        if isinstance(view, str) and view[:1] in _FOCAL_OF_VIEW:
            zoom = any(v == "Y" for v in _values(packets, "Default", _ZOOM))
            known = f"field of view {view[:1]}" + (", zoomed in by an unknown factor" * zoom)
            return _FOCAL_OF_VIEW[view[:1]] * width, known
    return _FOCAL_OF_VIEW["W"] * width, "not said: taken as a GoPro's wide view"


def _straight(packets: Sequence[Any]) -> bool:
    """Return whether the lens is rectilinear, such as GoPro's linear view."""
    views = list(_values(packets, "Default", _VFOV))
    if views:
        return str(views[0])[:1] == "L"
    angle = _first(packets, "Default", _ZFOV)
    return angle is None and not any(True for _ in _values(packets, "Lens", "Data"))


def _readout(packets: Sequence[Any]) -> float:
    """Return seconds from the first row's exposure to the last's; 0 if the camera states none."""
    for group, key in (("Default", _SROT), ("Imager", "FrameReadoutTime")):
        if value := _first(packets, group, key):
            return value / 1000 if value < 100 else 0.0  # milliseconds
    return 0.0
