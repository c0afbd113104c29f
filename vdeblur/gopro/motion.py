"""Motion of places while the shutter is open, from the camera's gyroscope and exposure times.

A turning camera moves all places alike, near and far: gyroscope and lens state that part of the
motion exactly, for the milliseconds of the exposure, row by row of a rolling shutter. Flow between
the frames adds the rest: the camera's path, and things that move. The gyroscope is first checked
against flow at the places of the film where the camera turns most. Its clock may be some
milliseconds off, and pictures that the camera stabilized do not move as it turned: those use flow
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import VdeblurError
from vdeblur.frames import Frame
from vdeblur.gopro.telemetry import Telemetry
from vdeblur.media.reader import VideoReader
from vdeblur.motion.exposure import AUTO, Exposure
from vdeblur.motion.guide import MOTION_GAIN
from vdeblur.motion.movement import Movement, follow
from vdeblur.motion.neighbours import with_neighbours
from vdeblur.system.thread_shares import Helpers

Floats = NDArray[np.float64]

_LOOKS, _LOOK_FRAMES = 3, 14  # stretches of the film that are compared, and frames of each
_OFFSETS = np.arange(-0.06, 0.0601, 0.002)  # seconds by which the gyroscope's clock may be off
_SLOW = 1.5  # pixels from frame to frame: less motion tells little
_FAST = 0.08  # of the width: flow does not find more reliably
_FEWEST = 6  # frames that have to move
_RATIOS, _DEGREES = (0.85, 1.18), 15.0  # of flow that agrees
#: Errors of flow: pixels from frame to frame, and a share of its length.
_ERROR, _ERROR_SHARE = 0.4, 0.05


@dataclass(frozen=True)
class Agreement:
    """How well flow agrees with the gyroscope, at the places where flow is reliable.

    Attributes:
        frames: How many frames turn enough to compare.
        ratio: Length of the flow over that of the gyroscope's motion; median.
        degrees: Angle between them; median.
        offset_seconds: By how much later to read the gyroscope.
    """

    frames: int = 0
    ratio: float = float("nan")
    degrees: float = float("nan")
    offset_seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether the gyroscope is reliable."""
        return (
            self.frames >= _FEWEST
            and _RATIOS[0] <= self.ratio <= _RATIOS[1]
            and self.degrees <= _DEGREES
        )

    def __str__(self) -> str:
        return (
            f"{self.ratio:.2f} of its length, {self.degrees:.0f}° apart, "
            f"{self.frames} frames compared"
        )


class Turning:
    """Motion of places in a picture as the camera turns; x to the right, y down, in pixels.

    Args:
        sensors: Angles, focal length, lens and readout.
        offset_seconds: See `Agreement`.
    """

    def __init__(self, sensors: Telemetry, offset_seconds: float = 0.0) -> None:
        self._sensors, self._offset = sensors, offset_seconds

    def during(self, time: float, seconds: float, grid: tuple[int, int]) -> NDArray[np.float32]:
        """Return the motion during an exposure: (4, h, w) chord and bend, as `Frame.motion`.

        Args:
            time: Of the frame, in seconds. Each row is exposed around a middle of its own.
            seconds: Exposure time.
            grid: (h, w), the number of places.
        """
        rays, here = self._rays(grid)
        middle = self._rows(time, grid[0])
        end = self._moved(rays, self._sensors.turned(middle, middle + seconds / 2)) - here
        begin = self._moved(rays, self._sensors.turned(middle, middle - seconds / 2)) - here
        return np.concatenate([end - begin, 2 * (end + begin)]).astype(np.float32)

    def velocity(self, time: float, seconds: float, grid: tuple[int, int]) -> Floats:
        """Return (2, h, w) pixels a second, as flow to frames `seconds` before and after sees."""
        rays, _ = self._rays(grid)
        middle = self._rows(time, grid[0])
        ahead, back = (
            self._moved(rays, self._sensors.turned(middle, middle + s)) for s in (seconds, -seconds)
        )
        return (ahead - back) / (2 * seconds)

    def per_radian(self, grid: tuple[int, int]) -> Floats:
        """Return (3, 2, h, w) pixels a radian that a small turn about each axis moves places."""
        rays, here = self._rays(grid)
        small = 1e-4
        turns = (np.broadcast_to(axis * small, (grid[0], 3)) for axis in np.eye(3))
        return np.stack([(self._moved(rays, turn) - here) / small for turn in turns])

    def _rows(self, time: float, rows: int) -> Floats:
        share = (np.arange(rows) + 0.5) / rows
        middle: Floats = time + self._offset + self._sensors.readout * share
        return middle

    def _rays(self, grid: tuple[int, int]) -> tuple[Floats, Floats]:
        """Return directions (3, h, w) of the centers of the places, and the centers (2, h, w)."""
        width, height = self._sensors.size
        y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in grid)
        here = np.stack(np.meshgrid(x * width, y * height))
        out = np.maximum(np.hypot(*here), 1e-9)
        angle = out / self._sensors.focal
        if self._sensors.straight:
            angle = np.arctan(angle)
        rays = np.concatenate([here / out * np.sin(angle), np.cos(angle)[None]])
        return rays, here

    def _moved(self, rays: Floats, turned: Floats) -> Floats:
        """Return positions (2, h, w) after the camera has turned by (h, 3), row by row."""
        # About up, left and backwards in the sensors' order; places turn the other way.
        axis = turned[:, [1, 0, 2]].T[:, :, None]
        angle = np.maximum(np.linalg.norm(axis, axis=0), 1e-12)
        axis = np.broadcast_to(axis / angle, rays.shape)
        along = (axis * rays).sum(0)
        x, y, z = (
            rays * np.cos(angle)
            + np.cross(axis, rays, axis=0) * np.sin(angle)
            + axis * along * (1 - np.cos(angle))
        )
        across = np.maximum(np.hypot(x, y), 1e-12)
        out = np.arctan2(across, z)
        if self._sensors.straight:
            out = np.tan(np.minimum(out, 1.5))
        moved: Floats = np.stack([x, y]) / across * out * self._sensors.focal
        return moved


def compare_with_flow(source: Path, sensors: Telemetry) -> Agreement:
    """Compare the gyroscope with flow at the places of a film where the camera turns most."""
    with VideoReader(source) as reader:
        info = reader.info
    step = 1 / float(info.fps or 30)
    times = np.arange(max(sensors.times[0], 0), sensors.times[-1], step)
    speed = sensors.focal * np.linalg.norm(sensors.turned(times, times + step)[:, :2], axis=1)
    speed[speed > _FAST * info.width] = 0
    seen: list[tuple[float, Movement]] = []
    for first in _liveliest(speed):
        start = float(times[first])
        try:
            with VideoReader(source, start=start, duration=_LOOK_FRAMES * step) as reader:
                seen += [
                    (start + item.time_seconds, movement)  # which begin at 0 there
                    for item, movement in follow(reader.items())
                    if isinstance(item, Frame) and movement is not None
                ]
        except VdeblurError:
            continue  # a damaged part of the film; the others suffice
    return measure_agreement(seen, sensors)


def measure_agreement(seen: Iterable[tuple[float, Movement]], sensors: Telemetry) -> Agreement:
    """Compare the gyroscope with movements of frames.

    Args:
        seen: (time of a frame in seconds, its movement by flow).
        sensors: The telemetry.
    """
    # Of each frame: pixels from frame to frame of places where flow is reliable, and how many a
    # radian about each axis moves them.
    frames: list[tuple[float, float, Floats, Floats]] = []
    turning = Turning(sensors)
    for time, movement in seen:
        trusted = movement.trust > 0.5
        if trusted.mean() < 0.1:
            continue
        seconds, grid = movement.interval_seconds, trusted.shape
        moves = turning.per_radian(grid)
        rows, columns = (k[:: max(1, len(k) // 200)] for k in np.nonzero(trusted))
        flow = movement.field[:2, rows, columns].astype(np.float64) * seconds
        frames.append((time, seconds, flow, moves[:, :, rows, columns]))

    def predicted(offset: float) -> list[Floats]:
        result = []
        for time, seconds, _, moves in frames:
            middle = time + offset + sensors.readout / 2
            turned = sensors.turned(np.array(middle - seconds), np.array(middle + seconds)) / 2
            result.append(np.tensordot(turned, moves, axes=1))
        return result

    if not frames:
        return Agreement()
    errors = [
        np.mean(
            [np.median(np.hypot(*(f[2] - t))) for f, t in zip(frames, predicted(o), strict=True)]
        )
        for o in _OFFSETS
    ]
    offset = float(_OFFSETS[int(np.argmin(errors))])
    ratios, angles, count = [], [], 0
    for (_, _, flow, _), by_gyroscope in zip(frames, predicted(offset), strict=True):
        length = np.hypot(*by_gyroscope)
        moves = length > _SLOW
        if moves.mean() < 0.5:
            continue
        count += 1
        a, b = flow[:, moves], by_gyroscope[:, moves]
        dot, cross = (a * b).sum(0), a[0] * b[1] - a[1] * b[0]
        ratios.append(dot / length[moves] ** 2)
        angles.append(np.degrees(np.abs(np.arctan2(cross, dot))))
    if not count:
        return Agreement()
    ratio, degrees = (float(np.median(np.concatenate(v))) for v in (ratios, angles))
    return Agreement(count, ratio, degrees, offset)


def _liveliest(speed: Floats) -> Iterator[int]:
    """Return the first frames of the stretches of strongest turning, without overlap."""
    sums = np.convolve(speed, np.ones(_LOOK_FRAMES), "valid")
    for _ in range(_LOOKS):
        if not len(sums) or sums.max() <= 0:
            return
        first = int(np.argmax(sums))
        yield first
        sums[max(0, first - _LOOK_FRAMES) : first + _LOOK_FRAMES] = 0


class SensorGuide:
    """Sets the motion of frames, as `vdeblur.motion.guide.Guide`, from the camera's sensors.

    Args:
        sensors: The telemetry.
        agreement: See `compare_with_flow`; without agreement, flow alone is used.
        exposure: Overrides the telemetry's exposure times.
    """

    def __init__(self, sensors: Telemetry, agreement: Agreement, exposure: Exposure = AUTO) -> None:
        self._sensors, self._agreement, self.exposure = sensors, agreement, exposure
        self._turning = Turning(sensors, agreement.offset_seconds)

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """Yield the items in order, with `motion` and `around` of the frames set.

        Args:
            items: Frames and other items of a reader.
            threads: With two or more, work on that many frames and a few more at once.
        """
        with Helpers(threads) as helpers:
            yield from with_neighbours(self._guided(items, helpers))

    def _guided(
        self, items: Iterable[Any], helpers: Helpers
    ) -> Iterator[tuple[Any, Movement | None]]:
        for item, movement in follow(items, helpers=helpers):
            if isinstance(item, Frame):
                item.motion = self._motion(item, movement)
            yield item, movement
            del item

    def notes(self) -> list[str]:
        """Return lines for a report."""
        lines = []
        if self.exposure == AUTO:
            short, usual, long = np.quantile(self._sensors.exposures, [0.05, 0.5, 0.95])
            spread = f" (1/{1 / long:.0f} to 1/{1 / short:.0f} s)" if long > 1.1 * short else ""
            lines.append(f"the camera recorded exposures of 1/{1 / usual:.0f} s{spread}")
        found = self._agreement
        if found.agrees:
            lines.append(
                f"motion by the gyroscope ({1000 * found.offset_seconds:+.0f} ms), with what moves "
                f"besides by flow: the pictures move as it says ({found})"
            )
        elif found.frames >= _FEWEST:
            lines.append(
                "motion by flow alone: the pictures do not move as the gyroscope says "
                f"({found}), as stabilised ones do not"
            )
        else:
            lines.append("motion by flow alone: the camera hardly turned where that can be checked")
        return lines

    def _motion(self, frame: Frame, movement: Movement | None) -> NDArray[np.float32] | None:
        time = frame.time_seconds
        sensors, asked = self._sensors, self.exposure
        if asked.seconds is not None:
            seconds = asked.seconds
        elif asked.share is not None:
            seconds = asked.share * (movement.interval_seconds if movement is not None else 1 / 30)
        else:
            seconds = float(sensors.exposure(np.array(time)))
        if not self._agreement.agrees or not sensors.times[0] <= time <= sensors.times[-1]:
            return None if movement is None else movement.during(MOTION_GAIN * seconds)
        if movement is None:
            grid = max(1, frame.layout.height // 16), max(1, frame.layout.width // 16)
            return self._turning.during(time, seconds, grid)
        grid = movement.trust.shape
        interval = movement.interval_seconds
        motion = self._turning.during(time, seconds, grid)
        rest = movement.field[:2] - self._turning.velocity(time, interval, grid)
        # Motion within flow's error counts as none.
        length = np.hypot(movement.field[0], movement.field[1]) * interval
        error = (_ERROR + _ERROR_SHARE * length) / np.maximum(movement.trust, 0.1)
        beyond = np.hypot(rest[0], rest[1]) * interval / error
        motion[:2] += rest * seconds * (1 - np.exp(-0.5 * beyond**2))
        return motion
