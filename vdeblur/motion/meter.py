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

#: Share of a frame's time that is taken, instead of `USUAL_SHARE`, where so little moves that
#: nothing could tell, and little is to be restored: a sharp film stays as it is, to 50 dB.
_CAREFUL_SHARE = 0.25
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture, but for errors of the flow
_TOO_LONG = 1.25  # share from which on the flow is not what blurred a picture: it turned meanwhile
_EAGER = 4  # frames of a shot that are read at once
_EVERY = 16  # after those, one of so many
_ENOUGH = 4  # readings before a film's first frame is given out
_KEPT = 12  # readings that count, the last ones
_FULL = 16  # windows from which on they are believed
#: How much of the spectra stripes have to explain, and how much of that no other length may: up to
#: the first they are taken for chance, from the second on for a blur. Of 74 sharp films the first
#: is 0.014 at most, or the second below 0.2. But what was enlarged is soft across and down more
#: than aslant, like a blur of 4 pixels that explains 0.03: short ones have to explain more; and so
#: do few windows, of which more is chance.
_SHORT, _LONG, _DISTINCT = (0.028, 0.042), (0.0145, 0.0185), (0.2, 0.35)
#: The same of what was found as of a film that was coded, be it short or long. Near to each other:
#: by half of its length a blur is not restored by half, but hardly at all.
_IF_CODED = 0.0165, 0.018
_SHORT_PIXELS, _LONG_PIXELS = 4.5, 6.5
_MANY = 80  # windows
#: How much of what spectra changed by changes of blur have to explain, how much of such changes
#: has to be seen, and, of short blurs, at least: up to the first of each they are taken for chance.
#: The last is enough by itself, and has to be something in any case. Blurs of less than a pixel are
#: not worth the risk, and longer or stronger ones than there can be are something else.
_CHANGED, _STRENGTH, _AT_LEAST, _NOT_BELOW = (0.012, 0.02), (0.12, 0.2), (0.15, 0.3), (0.0, 0.1)
_SHORTEST_PIXELS, _MOST_SHARE, _MOST_STRENGTH = (0.5, 0.7), 1.15, 2.0
#: The first where all turns too fast to be followed: the ways are not sure, and so is what they
#: explain, unless it is much.
_TURNING = 0.08, 0.12
#: What a blur of half of the way would explain: up to the first nothing can be told of it. And what
#: it has to be, and how little be explained, for a film to be sharp whatever a picture looks like.
_TELLING, _TELLING_MUCH, _NOTHING = (0.006, 0.012), 0.12, 0.003


def stripe_confidence(found: StripeFit) -> float:
    """How far what was found is to be taken for a blur, 0 … 1."""
    length = np.interp(found.pixels, [_SHORT_PIXELS, _LONG_PIXELS], [0, 1])
    of_length = [length * b + (1 - length) * a for a, b in zip(_SHORT, _LONG, strict=True)]
    more = math.sqrt(max(1.0, _MANY / max(found.windows, 1)))
    limits = [more * limit for limit in (_IF_CODED if found.coded else of_length)]
    explained = np.interp(found.explained, limits, [0, 1])
    return float(explained * np.interp(found.distinct, _DISTINCT, [0, 1]))


def change_confidence(found: ChangeFit) -> float:
    """How far what changed is to be taken for a blur's doing, 0 … 1."""
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

    def found(self) -> Result: ...


class _Readings(Generic[Result]):
    """The last readings of a kind, and what they tell together; of one shot after another."""

    def __init__(self) -> None:
        self._last: deque[_Seen[Result]] = deque(maxlen=_KEPT)
        self._anew = True
        self.found: Result | None = None
        self.unit = 0.0  # seconds of the ways that it is of

    def __len__(self) -> int:
        return len(self._last)

    def new_shot(self) -> None:
        """What is known stays until the shot tells of itself."""
        self._anew = True

    def next_unit(self, interval: float) -> float:
        """That of the next reading, where pictures come `interval` seconds apart."""
        return interval if self._anew else self.unit

    def add(self, seen: _Seen[Result], unit: float) -> None:
        """One more, in ways of `next_unit`."""
        if self._anew:
            self._last.clear()
        self.unit, self._anew = unit, False
        self._last.append(seen)
        self.found = functools.reduce(operator.add, self._last).found()


class ExposureMeter:
    """The exposure of one stream, from what its pictures show."""

    def __init__(self) -> None:
        self.shot = -1
        self._stripes = _Readings[StripeFit]()
        self._changes = _Readings[ChangeFit]()
        self._frames = self._followed = 0  # of this shot; but for those that turn too fast

    @property
    def measured(self) -> bool:
        """Whether the pictures say anything of it."""
        change = self._changes.found
        return self._stripes.found is not None or (
            change is not None and max(change_confidence(change), _telling(change)) > 0.5
        )

    @property
    def sure(self) -> bool:
        """Whether the pictures surely are blurred, as long as is known."""
        found, change = self._stripes.found, self._changes.found
        return (found is not None and stripe_confidence(found) > 0.5) or (
            change is not None and change_confidence(change) > 0.5
        )

    @property
    def sharp(self) -> bool:
        """Whether there is no blur, whatever a picture looks like by itself."""
        change, found = self._changes.found, self._stripes.found
        if change is None or (found is not None and stripe_confidence(found) > 0):
            return False
        return change.explained < _NOTHING and change.telling > _TELLING_MUCH

    @property
    def settled(self) -> bool:
        """Whether waiting for more frames would not tell much more."""
        return self._followed >= _EAGER or len(self._stripes) >= _ENOUGH

    @property
    def wants_before(self) -> bool:
        """Whether the next frame is to be compared with the one before it, should that be of the
        same shot.
        """
        return self._frames < _EAGER or self._frames % _EVERY == 0

    def see(
        self, frame: Frame, movement: Movement | None, before: FrameSample | None = None
    ) -> None:
        """Read the frame, if it is time to. before: the frame before it."""
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
            if seen is not None and not _impossible(seen.found(), unit / interval):
                self._stripes.add(seen, unit)

    def seconds(self, interval: float) -> float:
        """How long the shutter is open, where pictures come `interval` seconds apart."""
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
    """How far changes would tell of a blur, 0 … 1."""
    sure = 1.0 if change.explained < _NOTHING else 1 - change.turning
    return float(sure * np.interp(change.telling, _TELLING, [0, 1]))


def _impossible(found: StripeFit, unit: float) -> bool:
    """Whether a blur is longer than the way to the next picture, which is 1 / unit of the found
    one's: it turned meanwhile, and what is known of its motion is not what blurred it.
    """
    return stripe_confidence(found) > 0 and found.share * unit > _TOO_LONG
