"""Measure how long the shutter of a stream is open, by what its pictures show.

The spectra of some windows of its frames show it (`vdeblur.motion.windows`). A camera has one
exposure, which changes slowly: readings are pooled over places and over time, and anew after a cut.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import deque
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np

from vdeblur.frames import Frame
from vdeblur.motion.changes import ChangeFit
from vdeblur.motion.movement import Movement
from vdeblur.motion.stripes import StripeFit
from vdeblur.motion.windows import USUAL_SHARE, FrameSample, comparison, reading

# Pairs of limits: up to the first a reading is taken for chance, from the second on for a blur.

#: Share of a frame's time that is assumed, instead of `USUAL_SHARE`, where so little moves that
#: nothing shows the exposure, and little needs restoring: sharp films stay as they are, to 50 dB.
_CAREFUL_SHARE = 0.25
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture; the rest is error of the flow
_TOO_LONG = 1.25  # share above which the picture turned meanwhile, and its flow is not its blur
_EAGER = 4  # first frames of a shot that are all read
_EVERY = 16  # after those, one frame in this many
_ENOUGH = 4  # readings before the first frame of a film is yielded
_KEPT = 12  # last readings that count
_FULL = 16  # windows that may lengthen an exposure fully
#: How much of the spectra stripes must explain, for short and long blurs, and how much of that no
#: other length may explain. Of 74 sharp films, the first is at most 0.014 or the second below 0.2.
#: Enlarged pictures are softer across and down than aslant, like a blur of 4 pixels that explains
#: 0.03, so that short blurs must explain more; so must few windows, where chance is larger.
_SHORT, _LONG, _DISTINCT = (0.028, 0.042), (0.0145, 0.0185), (0.2, 0.35)
#: The first limits for fits that assume compression, at any length. They are close together: a
#: blur taken for half its length is hardly restored at all.
_IF_CODED = 0.0165, 0.018
_SHORT_PIXELS, _LONG_PIXELS = 4.5, 6.5
_MANY = 80  # windows from which on the limits hold as they are
#: How much of the change of spectra a change of blur must explain; how strong it must be; how
#: strong at least, for short blurs, which is enough by itself; and how strong they must be in any
#: case. Blurs of less than a pixel are not worth the risk; impossibly long or strong ones are
#: errors.
_CHANGED, _STRENGTH, _AT_LEAST, _NOT_BELOW = (0.012, 0.02), (0.12, 0.2), (0.15, 0.3), (0.0, 0.1)
_SHORTEST_PIXELS, _MOST_SHARE, _MOST_STRENGTH = (0.5, 0.7), 1.15, 2.0
#: `_CHANGED` where all frames turn too fast to be followed, and motion is unreliable.
_TURNING = 0.08, 0.12
#: How much a blur of half the motion would explain: below, nothing shows a blur. And how much it
#: must be, and how little be explained, for a film to be sharp whatever its pictures look like.
_TELLING, _TELLING_MUCH, _NOTHING = (0.006, 0.012), 0.12, 0.003


def stripe_confidence(found: StripeFit) -> float:
    """Return the confidence that stripes are those of a blur, 0 to 1."""
    length = np.interp(found.pixels, [_SHORT_PIXELS, _LONG_PIXELS], [0, 1])
    of_length = [length * b + (1 - length) * a for a, b in zip(_SHORT, _LONG, strict=True)]
    more = math.sqrt(max(1.0, _MANY / max(found.windows, 1)))
    limits = [more * limit for limit in (_IF_CODED if found.coded else of_length)]
    explained = np.interp(found.explained, limits, [0, 1])
    return float(explained * np.interp(found.distinct, _DISTINCT, [0, 1]))


def change_confidence(found: ChangeFit) -> float:
    """Return the confidence that spectra changed because a blur did, 0 to 1."""
    if found.share > _MOST_SHARE or found.strength > _MOST_STRENGTH:
        return 0.0
    limits = [
        (1 - found.turning) * of_all + found.turning * of_turning
        for of_all, of_turning in zip(_CHANGED, _TURNING, strict=True)
    ]
    explained = np.interp(found.explained, limits, [0, 1])
    explained *= np.interp(found.strength, _STRENGTH, [0, 1])
    explained *= 1 - found.short * (1 - np.interp(found.at_least, _NOT_BELOW, [0, 1]))
    at_least = np.interp(found.at_least, _AT_LEAST, [0, 1]) * found.short * (1 - found.turning)
    return float(max(explained, at_least) * np.interp(found.pixels, _SHORTEST_PIXELS, [0, 1]))


Result = TypeVar("Result", covariant=True)


class _Seen(Protocol[Result]):
    def __add__(self, more: Any) -> Self: ...

    def fit(self) -> Result: ...


class _Readings(Generic[Result]):
    """The last readings of one kind, summed up; anew in each shot."""

    def __init__(self) -> None:
        self._last: deque[_Seen[Result]] = deque(maxlen=_KEPT)
        self._anew = True
        self.found: Result | None = None
        self.unit = 0.0  # seconds per unit of its share

    def __len__(self) -> int:
        return len(self._last)

    def new_shot(self) -> None:
        """Begin anew; the last result stays until the new shot has a reading."""
        self._anew = True

    def next_unit(self, interval: float) -> float:
        """Return the unit for the next reading, of pictures `interval` seconds apart."""
        return interval if self._anew else self.unit

    def add(self, seen: _Seen[Result], unit: float) -> None:
        """Add a reading in units of `next_unit`."""
        if self._anew:
            self._last.clear()
        self.unit, self._anew = unit, False
        self._last.append(seen)
        self.found = functools.reduce(operator.add, self._last).fit()


class ExposureMeter:
    """Measures the exposure of one stream by its pictures."""

    def __init__(self) -> None:
        self.shot = -1
        self._stripes = _Readings[StripeFit]()
        self._changes = _Readings[ChangeFit]()
        self._frames = self._followed = (
            0  # frames of this shot; of them, those that can be followed
        )

    @property
    def measured(self) -> bool:
        """Whether the pictures show the exposure at all."""
        change = self._changes.found
        return self._stripes.found is not None or (
            change is not None and max(change_confidence(change), _telling(change)) > 0.5
        )

    @property
    def sure(self) -> bool:
        """Whether the pictures surely are blurred."""
        found, change = self._stripes.found, self._changes.found
        return (found is not None and stripe_confidence(found) > 0.5) or (
            change is not None and change_confidence(change) > 0.5
        )

    @property
    def sharp(self) -> bool:
        """Whether there surely is no blur, whatever a picture looks like by itself."""
        change, found = self._changes.found, self._stripes.found
        if change is None or (found is not None and stripe_confidence(found) > 0):
            return False
        return change.explained < _NOTHING and change.telling > _TELLING_MUCH

    @property
    def settled(self) -> bool:
        """Whether more frames would not change the result much."""
        return self._followed >= _EAGER or len(self._stripes) >= _ENOUGH

    @property
    def wants_before(self) -> bool:
        """Whether to compare the next frame with the one before it, if both are of a shot."""
        return self._frames < _EAGER or self._frames % _EVERY == 0

    def see(
        self, frame: Frame, movement: Movement | None, before: FrameSample | None = None
    ) -> None:
        """Read a frame, if its turn has come.

        Args:
            frame: the next frame of the stream.
            movement: its movement; without one nothing is read.
            before: a sample of the frame before it, for a comparison.
        """
        if movement is None:
            return
        if movement.shot != self.shot:
            self.shot, self._frames, self._followed = movement.shot, 0, 0
            self._stripes.new_shot()
            self._changes.new_shot()
            before = None
        interval = movement.interval_seconds
        if before is not None and self.wants_before:
            unit = self._changes.next_unit(interval)
            compared = comparison(before, frame, movement, unit, turn=self._frames)
            if compared is not None:
                self._changes.add(compared, unit)
        self._frames += 1
        if movement.doubtful:
            return
        turn, self._followed = self._followed, self._followed + 1
        if turn < _EAGER or turn % _EVERY == 0:
            unit = self._stripes.next_unit(interval)
            share = self.seconds(interval) / interval
            seen = reading(frame, movement, unit, turn=turn, share=share)
            if seen is not None and not _impossible(seen.fit(), unit / interval):
                self._stripes.add(seen, unit)

    def seconds(self, interval: float) -> float:
        """Return the exposure in seconds, for pictures `interval` seconds apart."""
        usual, longest = USUAL_SHARE * interval, _LONGEST_SHARE * interval
        found, change = self._stripes.found, self._changes.found
        if found is None and change is None:
            return usual
        by_change = 0.0
        if change is not None:
            sure = change_confidence(change)
            by_change = sure * change.share * self._changes.unit
            if found is None:
                unknown = (1 - sure) * (1 - _telling(change))
                careful = change.turning * USUAL_SHARE + (1 - change.turning) * _CAREFUL_SHARE
                by_change += unknown * careful * interval
        if found is None:
            return float(min(by_change, longest))
        seconds = found.share * self._stripes.unit
        # Little evidence may shorten an exposure, but not lengthen it.
        if seconds > usual:
            seconds = usual + min(1.0, found.windows / _FULL) * (seconds - usual)
        sure = stripe_confidence(found)
        return float(min(sure * seconds + (1 - sure) * by_change, longest))


def _telling(change: ChangeFit) -> float:
    """Return the confidence that changes would show a blur, 0 to 1."""
    sure = 1.0 if change.explained < _NOTHING else 1 - change.turning
    return float(sure * np.interp(change.telling, _TELLING, [0, 1]))


def _impossible(found: StripeFit, unit: float) -> bool:
    """Return whether a blur is longer than the motion to the next picture.

    Then the picture turned meanwhile, and its flow is not what blurred it. unit: that of the fit,
    in intervals between pictures.
    """
    return stripe_confidence(found) > 0 and found.share * unit > _TOO_LONG
