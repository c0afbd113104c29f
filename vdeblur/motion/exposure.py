"""How long the shutter was open, and so how far every place of a frame moved meanwhile.

The exposure is what was asked for, or read off the pictures: what moves between two frames says
which way each place is blurred, and how long the blur is says for how long it moved. That is read
off the spectra of some windows (`vdeblur.motion.stripes`). A camera has one exposure, which changes
slowly: what windows say is pooled over places and over time, and anew after a cut.
Gives `Frame.motion` to the frames of a stream. Knows no files.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import cv2
import numpy as np

from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.motion.changes import Change
from vdeblur.motion.flow import Floats, Movement, follow
from vdeblur.motion.neighbours import linked
from vdeblur.motion.single_picture import Shown, luma_plane, shown_motion
from vdeblur.motion.stripes import Found
from vdeblur.motion.windows import USUAL_SHARE, Look, comparison, reading
from vdeblur.system.thread_shares import Helpers

#: Share of a frame's time that is taken, instead of `USUAL_SHARE`, where so little moves that
#: nothing could tell, and little is to be restored: a sharp film stays as it is, to 50 dB.
_CAREFUL_SHARE = 0.25
_NONE = 0.05  # share below which the shutter blurs nothing
#: Of the way that flow finds during an exposure, what is told of it. Eleven films of known
#: exposure, rendered and real, were restored best at 1.06 to 1.12: a pixel has a width, and flow
#: falls short.
TOLD = 1.06
_LONGEST_SHARE = 1.05  # a shutter closes before the next picture, but for errors of the flow
_TOO_LONG = 1.25  # share from which on the flow is not what blurred a picture: it turned meanwhile

#: Share of its places whose motion the picture itself must bear out to be believed then; a place
#: does, to half of the longer of the two and these pixels.
_BORNE_OUT, _APART, _APART_PIXELS = 0.4, 0.5, 1.0
#: Up to this a picture shows nothing of its own; and how many times the way of others is as far.
_BELIEVED, _AS_FAR = 0.5, 1.5
_RECENT = 8  # frames of a shot that tell whether it turns, and whether it is blurred
_EAGER = 4  # frames of a shot that are read at once
_EVERY = 16  # after those, one of so many
_ENOUGH = 4  # readings before a film's first frame is given out
_MOST_HELD = 6  # frames that wait for them
_MOST_ITEMS = 256  # frames and others that wait for whatever
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


@dataclass(frozen=True)
class Exposure:
    """What was asked for: seconds, a share of a frame's time, or, both None, to find out."""

    seconds: float | None = None
    share: float | None = None


AUTO = Exposure()


def exposure_of(value: str | float | Fraction | Exposure) -> Exposure:
    """`auto`; `1/60`, `0.004s` or `4ms`, seconds; `0.5`, a share of the time of a frame.

    A number is a share, a Fraction seconds. UsageError for anything else.
    """
    if isinstance(value, Exposure):
        return value
    text = str(value).strip().lower()
    if text == "auto":
        return AUTO
    if isinstance(value, Fraction):
        text += "s"
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(?:/(\d+\.?\d*))? ?(m?s)?", text)
    number, below, unit = found.groups() if found else ("0", None, None)
    size = float(number) / (float(below or 1) or math.inf) * (1e-3 if unit == "ms" else 1)
    if (below or unit) and 0 < size <= 2:
        return Exposure(seconds=size)
    if not below and not unit and 0 < size <= 2:
        return Exposure(share=size)
    hint = f"; a shutter angle of {size:g} degrees is {size / 360:g}" if 2 < size <= 360 else ""
    raise UsageError(
        f"exposure is {str(value)!r}: give auto, seconds such as 1/60 or 0.004s, or the share of a "
        f"frame's time such as 0.5{hint}"
    )


class Guide:
    """Gives the frames of a film their motion. exposure: as `exposure_of` takes it.

    Of live pictures, which may not wait, `vdeblur.live.restorer.LiveGuide` does.
    """

    def __init__(self, exposure: str | float | Fraction | Exposure = AUTO) -> None:
        self.exposure = exposure_of(exposure)
        self._meters: dict[int, Meter] = {}
        self._looks: dict[int, Look] = {}  # of the frame before
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
            yield from linked(self._guided(items, helpers))

    def _guided(
        self, items: Iterable[Any], helpers: Helpers
    ) -> Iterator[tuple[Any, Movement | None]]:
        held: deque[tuple[Any, Movement | None]] = deque()
        coming: deque[deque[_Told]] = deque()
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

    def _meter(self, frame: Frame) -> Meter:
        return self._meters.setdefault(frame.stream, Meter())

    def _new_shot(self, frame: Frame, movement: Movement | None) -> bool:
        meter = self._meters.get(frame.stream)
        return meter is not None and (movement is None or movement.shot != meter.shot)

    def _measure(self, frame: Frame, movement: Movement | None) -> None:
        if self.exposure == AUTO:
            meter, before = self._meter(frame), self._looks.pop(frame.stream, None)
            meter.see(frame, movement, before)
            if movement is not None and meter.wants_before:
                self._looks[frame.stream] = Look.at(frame, movement)

    def _told(self, held: deque[tuple[Any, Movement | None]], helpers: Helpers) -> deque[_Told]:
        """What is known of those that wait, by now; they wait no more."""
        # All tell how their shot turns, and what they show, before any is given out.
        for item, movement in held:
            if isinstance(item, Frame) and movement is not None:
                self._shot(item, movement).see(movement)
        told: deque[_Told] = deque()
        for item, movement in held:
            entry = _Told(item, movement)
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
            entry.shown = helpers.begin(partial(shown_by, item, flow))
        held.clear()
        return told

    def _given(
        self, coming: deque[deque[_Told]], ahead: int
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

    def _give(self, told: _Told, shown: Shown | None) -> None:
        frame, movement, shot = told.item, told.movement, told.shot
        frame.motion = None
        if movement is None or shot is None:
            # No neighbour shows the same scene.
            frame.motion = None if shown is None else shown.motion * np.float32(shown.blurred)
            return
        self._moved = True
        interval, seconds = movement.interval_seconds, told.seconds
        frame.motion = movement.during(TOLD * seconds)
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
class _Told:
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
    shown: Callable[[], Shown | None] | None = None


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

    def believed(self, shown: Shown) -> float:
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


def shown_by(frame: Frame, flow: Floats | None = None) -> Shown | None:
    """`shown_motion` of a frame, in its pixels, given its flow."""
    luma = luma_plane(frame)
    rows = np.array([[[1]], [[frame.layout.height / luma.shape[0]]]], np.float32)
    shown = shown_motion(luma, None if flow is None else flow / rows)
    if shown is not None:
        shown.motion[:2] *= rows
    return shown


def plain(found: Found) -> float:
    """How far what was found is to be taken for a blur, 0 … 1."""
    length = np.interp(found.pixels, [_SHORT_PIXELS, _LONG_PIXELS], [0, 1])
    of_length = [length * b + (1 - length) * a for a, b in zip(_SHORT, _LONG, strict=True)]
    more = math.sqrt(max(1.0, _MANY / max(found.windows, 1)))
    limits = [more * limit for limit in (_IF_CODED if found.coded else of_length)]
    explained = np.interp(found.explained, limits, [0, 1])
    return float(explained * np.interp(found.distinct, _DISTINCT, [0, 1]))


def changed(found: Change) -> float:
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


class Meter:
    """The exposure of one stream, from what its pictures show."""

    def __init__(self) -> None:
        self.shot = -1
        self._stripes = _Readings[Found]()
        self._changes = _Readings[Change]()
        self._frames = self._followed = 0  # of this shot; but for those that turn too fast

    @property
    def measured(self) -> bool:
        """Whether the pictures say anything of it."""
        change = self._changes.found
        return self._stripes.found is not None or (
            change is not None and max(changed(change), _telling(change)) > 0.5
        )

    @property
    def sure(self) -> bool:
        """Whether the pictures surely are blurred, as long as is known."""
        found, change = self._stripes.found, self._changes.found
        return (found is not None and plain(found) > 0.5) or (
            change is not None and changed(change) > 0.5
        )

    @property
    def sharp(self) -> bool:
        """Whether there is no blur, whatever a picture looks like by itself."""
        change, found = self._changes.found, self._stripes.found
        if change is None or (found is not None and plain(found) > 0):
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

    def see(self, frame: Frame, movement: Movement | None, before: Look | None = None) -> None:
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
            sure = changed(change)
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
        sure = plain(found)
        return float(min(sure * seconds + (1 - sure) * by_change, longest))


def _telling(change: Change) -> float:
    """How far changes would tell of a blur, 0 … 1."""
    sure = 1.0 if change.explained < _NOTHING else 1 - change.turning
    return float(sure * np.interp(change.telling, _TELLING, [0, 1]))


def _impossible(found: Found, unit: float) -> bool:
    """Whether a blur is longer than the way to the next picture, which is 1 / unit of the found
    one's: it turned meanwhile, and what is known of its motion is not what blurred it.
    """
    return plain(found) > 0 and found.share * unit > _TOO_LONG
