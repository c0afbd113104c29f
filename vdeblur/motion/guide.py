"""Give the frames of a film their motion: flow over the time that the shutter was open.

The exposure is the one that was asked for, or is read off the pictures (`vdeblur.motion.meter`).
Sets `Frame.motion` of the frames of a stream. Knows no files.
"""

from __future__ import annotations

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

_NONE = 0.05  # share below which the shutter blurs nothing
#: Of the way that flow finds during an exposure, what is told of it. Eleven films of known
#: exposure, rendered and real, were restored best at 1.06 to 1.12: a pixel has a width, and flow
#: falls short.
MOTION_GAIN = 1.06
#: Share of its places whose motion the picture itself must bear out to be believed then; a place
#: does, to half of the longer of the two and these pixels.
_BORNE_OUT, _APART, _APART_PIXELS = 0.4, 0.5, 1.0
#: Up to this a picture shows nothing of its own; and how many times the way of others is as far.
_BELIEVED, _AS_FAR = 0.5, 1.5
_RECENT = 8  # frames of a shot that tell whether it turns, and whether it is blurred
_MOST_HELD = 6  # frames that wait for them
_MOST_ITEMS = 256  # frames and others that wait for whatever


class Guide:
    """Gives the frames of a film their motion. exposure: as `exposure_of` takes it.

    Of live pictures, which may not wait, `vdeblur.live.restorer.LiveGuide` does.
    """

    def __init__(self, exposure: str | float | Fraction | Exposure = AUTO) -> None:
        self.exposure = exposure_of(exposure)
        self._meters: dict[int, ExposureMeter] = {}
        self._looks: dict[int, FrameSample] = {}  # of the frame before
        self._shots: dict[int, _Shot] = {}
        self._moved = False  # whether any picture had a neighbour that shows the same scene
        self._shares, self._seconds_read, self._guessed = array("d"), array("d"), array("d")

    def run(self, items: Iterable[Any], *, threads: int = 1) -> Iterator[Any]:
        """The items in their order, frames with their `motion` and what is `around` them, or None
        where there is none.

        The first frames of a shot wait for a few more, so that their exposure is known already;
        each waits for the next one's motion. threads: with two or more, that many frames and some
        are looked ahead at, at once.
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
                coming.append(self._told(held, helpers))
                yield from self._given(coming, helpers.ahead)
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
                coming.append(self._told(held, helpers))
                yield from self._given(coming, helpers.ahead)
                frames = 0
        coming.append(self._told(held, helpers))
        yield from self._given(coming, 0)

    def notes(self) -> list[str]:
        """What a report should say of the exposure, once frames were given out."""
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
            # Or the film was coded so strongly that little is left of the stripes.
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
            meter, before = self._meter(frame), self._looks.pop(frame.stream, None)
            meter.see(frame, movement, before)
            if movement is not None and meter.wants_before:
                self._looks[frame.stream] = FrameSample.at(frame, movement)

    def _told(self, held: deque[tuple[Any, Movement | None]], helpers: Helpers) -> deque[_Pending]:
        """What is known of those that wait, by now; they wait no more."""
        # All tell how their shot turns, and what they show, before any is given out.
        for item, movement in held:
            if isinstance(item, Frame) and movement is not None:
                self._shot(item, movement).see(movement)
        told: deque[_Pending] = deque()
        for item, movement in held:
            entry = _Pending(item, movement)
            told.append(entry)
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
                # Off a vibration, whose flow is wrong, no exposure is read, or none at all.
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
        return told

    def _given(
        self, coming: deque[deque[_Pending]], ahead: int
    ) -> Iterator[tuple[Any, Movement | None]]:
        """Those that were looked at; the last `ahead` frames may wait to be."""
        while coming and (
            all(entry.shown is None for entry in coming[0])
            or sum(map(len, coming)) > _MOST_ITEMS
            or sum(isinstance(entry.item, Frame) for told in coming for entry in told) > ahead
        ):
            told = coming.popleft()
            shown = deque(None if entry.shown is None else entry.shown() for entry in told)
            for entry, own in zip(told, shown, strict=True):
                if own is not None and entry.shot is not None:
                    entry.shot.blurred.append(own.blurred)
            while told:
                entry = told.popleft()
                if isinstance(entry.item, Frame):
                    self._give(entry, shown.popleft())
                else:
                    shown.popleft()
                yield entry.item, entry.movement
                del entry

    def _seconds(self, frame: Frame, movement: Movement) -> float:
        """How long the shutter was open, as asked for or as far as the pictures tell by now."""
        if self.exposure.seconds is not None:
            return self.exposure.seconds
        if self.exposure.share is not None:
            return self.exposure.share * movement.interval_seconds
        return self._meter(frame).seconds(movement.interval_seconds)

    def _shot(self, frame: Frame, movement: Movement) -> _Shot:
        shot = self._shots.get(frame.stream)
        if shot is None or shot.number != movement.shot:
            shot = self._shots[frame.stream] = _Shot(movement.shot)
        return shot

    def _give(self, told: _Pending, shown: BlurEstimate | None) -> None:
        frame, movement, shot = told.item, told.movement, told.shot
        frame.motion = None
        if movement is None or shot is None:
            # No neighbour shows the same scene.
            frame.motion = None if shown is None else shown.motion * np.float32(shown.blurred)
            return
        self._moved = True
        interval, seconds = movement.interval_seconds, told.seconds
        frame.motion = movement.during(MOTION_GAIN * seconds)
        if shown is not None:
            # Of a vibration the flow knows little, and no exposure was read off it.
            believed = shot.believed(shown)
            still = shown.motion * np.float32(believed)
            # A picture that shows nothing bears nothing out, nor does one that seems to have been
            # blurred by more than it moved.
            longer = _length(still) > _length(movement.during(interval))
            others = told.like_others and (believed < _BELIEVED or longer)
            if seconds <= _NONE * interval or not (others or borne_out(frame.motion, still)):
                frame.motion = still
                return
        if told.read:
            self._shares.append(seconds / interval)
            self._seconds_read.append(seconds)
        else:
            self._guessed.append(seconds / interval)


@dataclass
class _Pending:
    """An item with its movement. Of a frame, how long the shutter was open, and whether that was
    read off the pictures; its shot, if it has a neighbour there; and what gives what it shows by
    itself, where nothing else tells how it moved; and whether, of a shot that is surely blurred and
    does not turn, it alone turns too fast to be followed, and moves about as far as others do.
    """

    item: Any
    movement: Movement | None
    seconds: float = 0.0
    read: bool = False
    shot: _Shot | None = None
    like_others: bool = False
    shown: Callable[[], BlurEstimate | None] | None = None


class _Shot:
    """A shot of a stream: which of its last frames turn too fast to be followed, and how far what
    those show is to be believed.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.turns: deque[bool] = deque(maxlen=_RECENT)
        self.blurred: deque[float] = deque(maxlen=_RECENT)
        self.ways: deque[float] = deque(maxlen=_RECENT)  # a second, of those that do not turn

    def see(self, movement: Movement) -> None:
        """The movement of the next frame."""
        self.turns.append(movement.doubtful)
        if not movement.doubtful:
            self.ways.append(_length(movement.field))

    def knows(self, movement: Movement) -> bool:
        """Whether others move about as fast: what was matched with another scene does not."""
        return bool(self.ways) and _length(movement.field) <= _AS_FAR * max(self.ways)

    def believed(self, shown: BlurEstimate) -> float:
        """0 … 1. A shot whose frames are blurred has one exposure: those that vibration leaves
        nearly sharp are blurred a little. Half of them must show it.
        """
        return max(shown.blurred, min(1.0, 2 * sum(self.blurred) / len(self.blurred)))


def _length(motion: Floats) -> float:
    """Of chords (2 or more, h, w), the median."""
    return float(np.median(np.hypot(*motion[:2])))


def borne_out(motion: Floats, still: Floats) -> bool:
    """Whether the motion of a frame (4, h, w) is the one that the picture shows by itself, in most
    of the places where that shows any.
    """
    size = still.shape[2], still.shape[1]
    there = np.stack([cv2.resize(part, size, interpolation=cv2.INTER_AREA) for part in motion[:2]])
    lengths = np.hypot(*there), np.hypot(*still[:2])
    # A blur has no sign.
    apart = np.minimum(np.hypot(*(there - still[:2])), np.hypot(*(there + still[:2])))
    near = apart <= _APART * np.maximum(*lengths) + _APART_PIXELS
    seen = np.maximum(*lengths) > _APART_PIXELS
    return bool(near[seen].mean() >= _BORNE_OUT) if seen.any() else True


def estimate_of_frame(frame: Frame, flow: Floats | None = None) -> BlurEstimate | None:
    """`estimate_motion` of a frame, in its pixels, given its flow."""
    luma = luma_plane(frame)
    rows = np.array([[[1]], [[frame.layout.height / luma.shape[0]]]], np.float32)
    shown = estimate_motion(luma, None if flow is None else flow / rows)
    if shown is not None:
        shown.motion[:2] *= rows
    return shown
