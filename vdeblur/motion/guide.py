"""Give the frames of a film their motion: flow over the time that the shutter was open.

The exposure is the one that was asked for, or is read off the pictures (`vdeblur.motion.meter`).
Sets `Frame.motion` of the frames of a stream. Knows no files.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import cv2
import numpy as np

from vdeblur.frames import Frame
from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
from vdeblur.motion.flow import Floats
from vdeblur.motion.meter import ExposureMeter
from vdeblur.motion.movement import Movement, follow
from vdeblur.motion.neighbours import with_neighbours
from vdeblur.motion.single_picture import BlurEstimate, estimate_motion, luma_plane
from vdeblur.motion.windows import USUAL_SHARE, FrameSample
from vdeblur.system.thread_shares import Helpers

_log = logging.getLogger(__name__)

_NONE = 0.05  # share below which the exposure blurs nothing
#: Factor of the motion that flow finds during an exposure. Eleven films of known exposure, rendered
#: and real, were restored best at 1.06 to 1.12: a pixel has a width, and flow is too short.
MOTION_GAIN = 1.06
#: Share of the places whose flow the picture's own blur must bear out for the flow to be used; in a
#: place it does if both differ by at most this share of the longer one plus these pixels.
_BORNE_OUT, _APART, _APART_PIXELS = 0.4, 0.5, 1.0
#: Confidence below which a picture shows no blur of its own; and how many times the motion of other
#: frames counts as about the same.
_BELIEVED, _AS_FAR = 0.5, 1.5
_RECENT = 8  # frames that decide whether a shot turns, and whether it is blurred
_MOST_HELD = 6  # frames that wait for readings of the exposure
_MOST_ITEMS = 256  # frames and other items that wait


class Guide:
    """Sets the motion of a film's frames.

    For live pictures, which must not wait, see `vdeblur.live.restorer.LiveGuide`.

    Args:
        exposure: as `exposure_of` takes it.
    """

    def __init__(self, exposure: str | float | Fraction | Exposure = AUTO) -> None:
        self.exposure = exposure_of(exposure)
        self._meters: dict[int, ExposureMeter] = {}
        self._samples: dict[int, FrameSample] = {}  # of the frames before
        self._shots: dict[int, _Shot] = {}
        self._moved = False  # whether any picture had a neighbor that shows the same scene
        self._shares, self._seconds_read, self._guessed = array("d"), array("d"), array("d")

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """Yield the items in their order, frames with their `motion` and what is `around` them.

        Both are None where they are not known. The first frames of a shot wait for a few more, so
        that their exposure is known; each frame waits for the next one's motion.

        Args:
            items: frames and other items of a reader.
            threads: with two or more, work on that many frames and a few more at once.
        """
        with Helpers(threads) as helpers:
            yield from with_neighbours(self._guided(items, helpers))

    def _guided(
        self, items: Iterable[Any], helpers: Helpers
    ) -> Iterator[tuple[Any, Movement | None]]:
        held: deque[tuple[Any, Movement | None]] = deque()
        coming: deque[deque[_Pending]] = deque()
        frames = 0
        for item, movement in follow(items, helpers=helpers):
            is_frame = isinstance(item, Frame)
            if is_frame and held and self._new_shot(item, movement):
                coming.append(self._prepare(held, helpers))
                yield from self._finish(coming, helpers.ahead)
                frames = 0
            held.append((item, movement))
            frames += is_frame
            if is_frame:
                self._measure(item, movement)
            del item
            if (
                frames > _MOST_HELD
                or len(held) > _MOST_ITEMS
                or all(meter.settled for meter in self._meters.values())
            ):
                coming.append(self._prepare(held, helpers))
                yield from self._finish(coming, helpers.ahead)
                frames = 0
        coming.append(self._prepare(held, helpers))
        yield from self._finish(coming, 0)

    def notes(self) -> list[str]:
        """Return lines for a report about the exposure, after frames were yielded."""
        if self.exposure != AUTO or not self._moved:
            return []
        if not self._shares:
            taken = float(np.median(self._guessed)) if self._guessed else USUAL_SHARE
            return [
                "the pictures do not tell how long the shutter was open: "
                f"taken as {taken:.2g} of a frame's time"
            ]
        shares, seconds = np.array(self._shares), np.array(self._seconds_read)
        low, share, high = np.quantile(shares, [0.1, 0.5, 0.9])
        spread = f", at times {low:.2f}, at times {high:.2f}" if high > 1.5 * low + 0.05 else ""
        if share < _NONE:
            # Or strong compression left little of the stripes.
            return [
                "the shutter was open too shortly to blur what moves, by what the pictures tell: "
                "it is left as it is; if it is blurred, give an exposure such as 0.5"
            ]
        time = float(np.median(seconds))
        return [
            f"the shutter was open for about {share:.2f} of a frame's time "
            f"(1/{1 / time:.0f} s){spread}"
            if 1 / time >= 1.5
            else f"the shutter was open for about {share:.2f} of a frame's time{spread}"
        ]

    def _meter(self, frame: Frame) -> ExposureMeter:
        return self._meters.setdefault(frame.stream, ExposureMeter())

    def _new_shot(self, frame: Frame, movement: Movement | None) -> bool:
        meter = self._meters.get(frame.stream)
        return meter is not None and (movement is None or movement.shot != meter.shot)

    def _measure(self, frame: Frame, movement: Movement | None) -> None:
        if self.exposure == AUTO:
            meter, before = self._meter(frame), self._samples.pop(frame.stream, None)
            meter.see(frame, movement, before)
            if movement is not None and meter.wants_before:
                self._samples[frame.stream] = FrameSample.at(frame, movement)

    def _prepare(
        self, held: deque[tuple[Any, Movement | None]], helpers: Helpers
    ) -> deque[_Pending]:
        """Take the frames that wait, with what is known of them by now."""
        # How a shot turns depends on all of these frames.
        for item, movement in held:
            if isinstance(item, Frame) and movement is not None:
                self._shot(item, movement).see(movement)
        pending: deque[_Pending] = deque()
        for item, movement in held:
            entry = _Pending(item, movement)
            pending.append(entry)
            if not isinstance(item, Frame):
                continue
            flow = None
            if movement is not None:
                entry.shot = shot = self._shot(item, movement)
                entry.seconds = self._seconds(item, movement)
                entry.read = self.exposure == AUTO and self._meter(item).measured
                vibrates = sum(shot.turns) > len(shot.turns) / 2
                if not vibrates and not movement.doubtful:
                    continue
                # The flow of a vibration is wrong, and so is an exposure that is read with it.
                if entry.read:
                    meter = self._meter(item)
                    if meter.sharp:
                        continue
                    entry.like_others = meter.sure and not vibrates and shot.knows(movement)
                interval = movement.interval_seconds
                short = entry.seconds <= _NONE * interval
                flow = movement.during(USUAL_SHARE * interval if short else entry.seconds)[:2]
            entry.shown = helpers.begin(partial(estimate_of_frame, item, flow))
        held.clear()
        return pending

    def _finish(
        self, coming: deque[deque[_Pending]], ahead: int
    ) -> Iterator[tuple[Any, Movement | None]]:
        """Yield frames with their motion, except the last `ahead` ones, which threads work on."""
        while coming and (
            all(entry.shown is None for entry in coming[0])
            or sum(map(len, coming)) > _MOST_ITEMS
            or sum(isinstance(entry.item, Frame) for pending in coming for entry in pending) > ahead
        ):
            pending = coming.popleft()
            shown = deque(None if entry.shown is None else entry.shown() for entry in pending)
            for entry, own in zip(pending, shown, strict=True):
                if own is not None and entry.shot is not None:
                    entry.shot.blurred.append(own.blurred)
            while pending:
                entry = pending.popleft()
                if isinstance(entry.item, Frame):
                    self._set_motion(entry, shown.popleft())
                else:
                    shown.popleft()
                yield entry.item, entry.movement
                del entry

    def _seconds(self, frame: Frame, movement: Movement) -> float:
        """Return the exposure in seconds: as asked for, or as read from the pictures so far."""
        if self.exposure.seconds is not None:
            return self.exposure.seconds
        if self.exposure.share is not None:
            return self.exposure.share * movement.interval_seconds
        return self._meter(frame).seconds(movement.interval_seconds)

    def _shot(self, frame: Frame, movement: Movement) -> _Shot:
        shot = self._shots.get(frame.stream)
        if shot is None or shot.number != movement.shot:
            shot = self._shots[frame.stream] = _Shot(movement.shot)
            seconds = self._seconds(frame, movement)
            measured = self.exposure == AUTO and self._meter(frame).measured
            _log.info(
                "stream %d, shot %d: exposure %.5f s, %.2f of the frame interval, %s",
                *(frame.stream, movement.shot, seconds, seconds / movement.interval_seconds),
                "requested" if self.exposure != AUTO else "measured" if measured else "assumed",
            )
        return shot

    def _set_motion(self, pending: _Pending, shown: BlurEstimate | None) -> None:
        frame, movement, shot = pending.item, pending.movement, pending.shot
        frame.motion = None
        if movement is None or shot is None:
            # No neighbor shows the same scene.
            frame.motion = None if shown is None else shown.motion * np.float32(shown.blurred)
            return
        self._moved = True
        interval, seconds = movement.interval_seconds, pending.seconds
        frame.motion = movement.during(MOTION_GAIN * seconds)
        if shown is not None:
            # Flow and exposure are unreliable for a vibration.
            believed = shot.believed(shown)
            still = shown.motion * np.float32(believed)
            # A picture without visible blur, or with more blur than it can have moved, bears out
            # nothing.
            longer = _length(still) > _length(movement.during(interval))
            others = pending.like_others and (believed < _BELIEVED or longer)
            if seconds <= _NONE * interval or not (others or borne_out(frame.motion, still)):
                frame.motion = still
                return
        if pending.read:
            self._shares.append(seconds / interval)
            self._seconds_read.append(seconds)
        else:
            self._guessed.append(seconds / interval)


@dataclass
class _Pending:
    """An item with its movement, on its way out.

    seconds: exposure of a frame. read: whether that was read off the pictures. shot: of a frame
    with a neighbor in it. like_others: the frame turns too fast to be followed, but its shot does
    not and is surely blurred, and the frame moves about as far as its others. shown: waits for what
    the picture shows by itself, where nothing else is sure.
    """

    item: Any
    movement: Movement | None
    seconds: float = 0.0
    read: bool = False
    shot: _Shot | None = None
    like_others: bool = False
    shown: Callable[[], BlurEstimate | None] | None = None


class _Shot:
    """A shot: which of its last frames turn too fast to be followed, and how blurred those are."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.turns: deque[bool] = deque(maxlen=_RECENT)
        self.blurred: deque[float] = deque(maxlen=_RECENT)
        self.ways: deque[float] = deque(maxlen=_RECENT)  # per second, of frames that do not turn

    def see(self, movement: Movement) -> None:
        """Add the movement of the next frame."""
        self.turns.append(movement.doubtful)
        if not movement.doubtful:
            self.ways.append(_length(movement.field))

    def knows(self, movement: Movement) -> bool:
        """Return whether other frames move about as fast, unlike one matched with another scene."""
        return bool(self.ways) and _length(movement.field) <= _AS_FAR * max(self.ways)

    def believed(self, shown: BlurEstimate) -> float:
        """Return the confidence in a frame's own blur, 0 to 1.

        The frames of a shot have one exposure: if half of them are blurred, those that a vibration
        leaves nearly sharp are blurred a little as well.
        """
        return max(shown.blurred, min(1.0, 2 * sum(self.blurred) / len(self.blurred)))


def _length(motion: Floats) -> float:
    """Return the median length of chords (2 or more, h, w)."""
    return float(np.median(np.hypot(*motion[:2])))


def borne_out(motion: Floats, still: Floats) -> bool:
    """Return whether a frame's flow agrees with the blur that its picture shows by itself.

    Args:
        motion: (4, h, w), from the flow.
        still: (4, h, w) of any size, from `estimate_motion`. Places without blur do not count.
    """
    size = still.shape[2], still.shape[1]
    there = np.stack([cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in motion[:2]])
    lengths = np.hypot(*there), np.hypot(*still[:2])
    # The direction of a blur has no sign.
    apart = np.minimum(np.hypot(*(there - still[:2])), np.hypot(*(there + still[:2])))
    near = apart <= _APART * np.maximum(*lengths) + _APART_PIXELS
    seen = np.maximum(*lengths) > _APART_PIXELS
    return bool(near[seen].mean() >= _BORNE_OUT) if seen.any() else True


def estimate_of_frame(frame: Frame, flow: Floats | None = None) -> BlurEstimate | None:
    """Return `estimate_motion` of a frame, in pixels of the frame, starting from its flow."""
    luma = luma_plane(frame)
    rows = np.array([[[1]], [[frame.layout.height / luma.shape[0]]]], np.float32)
    shown = estimate_motion(luma, None if flow is None else flow / rows)
    if shown is not None:
        shown.motion[:2] *= rows
    return shown
