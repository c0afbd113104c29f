"""One line of time for a source whose clock begins again, such as `cat a.ts b.ts`.

Camcorders and dashboard cameras cut their recordings into parts, and downloads of HLS are parts;
joined byte by byte they are one file whose times jump. The second part then follows the first, and
one offset for all streams keeps the sound with its picture. Knows packets; knows no decoder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Self

#: Demuxers of formats without an index, whose clocks count 33 bits and may begin again: no place in
#: such a file can be found by its time.
RESTARTING = frozenset({"mpegts", "mpeg"})
# Demuxers that read on into a second file behind the first, whose times go back to zero.
_JOINABLE = RESTARTING | {"matroska,webm", "nut", "flv"}

_WRAP = Fraction(1 << 33, 90_000)  # seconds after which the clock of MPEG-TS and -PS is at 0 again
_BACK = {True: Fraction(1, 10), False: Fraction(1, 2)}  # seconds, of formats that restart or not
# MPEG-TS has a time every 0.7 s at least (ISO/IEC 13818-1, 2.7.4). A gap of this many seconds in
# all of several streams, or in the only one, is another clock; shorter ones stay.
_GAP, _GAP_OF_ONE = Fraction(10), Fraction(60)
_NEAR = Fraction(10)  # seconds between streams of one part
_LOOK_AHEAD = 1000  # packets
_LOOK_AHEAD_BYTES = 1 << 26
_PICTURES = 24  # of a new part, among which its first picture is


@dataclass
class _Part:
    """A run of packets on one clock.

    Attributes:
        offset: Seconds to add to its times.
        latest: The last time seen, in seconds as stored.
        begins: Stream → the time as stored of its first packet in this part.
        open: Other streams may begin in it later than was looked ahead.
    """

    offset: Fraction = Fraction(0)
    latest: Fraction = Fraction(0)
    begins: dict[int, Fraction] = field(default_factory=dict)
    open: bool = False


@dataclass
class _Stream:
    """Where a stream of pictures or sound has come to."""

    part: int = 0
    last: Fraction | None = None  # decoding time in seconds as stored
    end: Fraction | None = None  # of what was played so far, on the common line
    step: Fraction = Fraction(0)  # between its last two packets


@dataclass
class _Ahead:
    """What the packets ahead say of one stream."""

    last: Fraction | None
    end: Fraction | None
    count: int = 0  # before its jump
    place: int = 0  # of the last of these in the queue
    begins: list[Fraction] = field(default_factory=list)  # behind its jump
    jump: Fraction | None = None
    first: Fraction = Fraction(0)  # behind the jump
    entered: int = 0  # place of that in the queue


class Timeline:
    """Iterate over a container's packets, their times on one line.

    Args:
        container: A libav input container.
        packets: Its packets; those of formats that no clock restarts in pass unchanged.
    """

    def __init__(self, container: Any, packets: Iterator[Any]) -> None:
        name = container.format.name
        self._packets = packets
        self._active = name in _JOINABLE
        self._restarts = name in RESTARTING
        self._back = _BACK[self._restarts]
        self._parts = [_Part()]
        self._streams: dict[int, _Stream] = {
            stream.index: _Stream()
            for stream in container.streams
            if stream.type in ("video", "audio")
        }
        self._videos = {stream.index for stream in container.streams.video}
        self._begun = False
        self._queue: deque[Any] = deque()
        self._queued = 0  # bytes
        self._error: BaseException | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._active:
            return next(self._packets)
        packet = self._next()
        stream = self._streams.get(packet.stream.index)
        time = _seconds(packet, packet.dts)
        if stream is None or time is None:
            return self._placed(packet, time)
        if stream.last is None:  # the first of its stream, perhaps amid the others
            stream.part = len(self._parts) - 1
            stream.last = max(time, self._parts[-1].latest - _BACK[False]) if self._begun else time
            self._begun = True
        jump = time - stream.last
        if not self._jumps(jump):
            return self._placed(packet, time)
        later = self._later_part(packet.stream.index, time)
        if later is None:
            self._queue.appendleft(packet)
            self._queued += packet.size
            part = self._part_ahead(packet.stream.index)
            self._next()
            if part is not None:
                self._parts.append(part)
                later = len(self._parts) - 1
        if later is not None:
            stream.part = later
        return self._placed(packet, time)

    def _next(self) -> Any:
        if self._queue:
            packet = self._queue.popleft()
            self._queued -= packet.size
            return packet
        if self._error is not None:
            raise self._error
        return next(self._packets)

    def _fill(self) -> bool:
        """Queue one more packet; False at the end, or where enough wait."""
        if len(self._queue) >= _LOOK_AHEAD or self._queued >= _LOOK_AHEAD_BYTES:
            return False
        if self._error is not None:
            return False
        try:
            packet = next(self._packets)
        except BaseException as error:  # it is the reader's, behind what precedes it
            self._error = error
            return False
        self._queue.append(packet)
        self._queued += packet.size
        return True

    def _jumps(self, jump: Fraction) -> bool:
        return jump < -self._back or (self._restarts and jump > _GAP)

    def _later_part(self, index: int, time: Fraction) -> int | None:
        """The part that another stream has entered already, if this time begins in it, too."""
        for number in range(self._streams[index].part + 1, len(self._parts)):
            part = self._parts[number]
            if part.begins.get(index) == time:
                return number
            if part.open and index not in part.begins and abs(time - part.latest) < _NEAR:
                return number
        return None

    def _placed(self, packet: Any, time: Fraction | None) -> Any:
        """The packet with its times on the common line."""
        stream = self._streams.get(packet.stream.index)
        if stream is not None:
            number = stream.part
        else:
            number = self._part_near(_seconds(packet, packet.pts) if time is None else time)
        part = self._parts[number]
        if part.offset:
            shift = round(part.offset / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        if stream is not None and time is not None:
            if stream.last is not None and 0 < time - stream.last < _GAP:
                stream.step = time - stream.last
            stream.last = part.latest = time
            stream.end = _later(stream.end, _end(packet, stream.step))
        return packet

    def _part_near(self, time: Fraction | None) -> int:
        """The part of a packet of a sparse stream, such as a subtitle."""
        numbers = range(len(self._parts) - 1, -1, -1)
        if time is None:
            return numbers[0]
        return min(numbers, key=lambda number: abs(self._parts[number].latest - time))

    def _part_ahead(self, index: int) -> _Part | None:
        """The new part that begins at the head of the queue with a packet of this stream.

        None where it is no new part: another stream goes on as before.
        """
        newest = self._parts[-1].latest
        ahead = {
            i: _Ahead(newest if s.last is None else s.last, s.end) for i, s in self._streams.items()
        }
        number, cut_short = 0, False
        while number < len(self._queue) or self._fill():
            packet = self._queue[number]
            number += 1
            state, time = ahead.get(packet.stream.index), _seconds(packet, packet.dts)
            if state is None or time is None:
                continue
            if state.last is not None and self._jumps(time - state.last):
                if state.jump is not None:  # the part after that, to which others may have come
                    for other in ahead.values():
                        if number - other.entered < other.entered - state.entered:
                            other.jump = None
                    break
                state.jump, state.first, state.entered = time - state.last, time, number
            state.last = time
            if state.jump is None:
                state.count, state.place = state.count + 1, number
            else:
                shown = _seconds(packet, packet.pts)
                state.begins.append(time if shown is None else shown)
            if state.jump is None:
                offset = self._parts[self._streams[packet.stream.index].part].offset
                step = self._streams[packet.stream.index].step
                state.end = _later(state.end, _end(packet, step) + offset)
            if all(self._is_clear(i, state, number) for i, state in ahead.items()):
                break
        else:
            cut_short = self._error is None
        jumped = {i: state for i, state in ahead.items() if state.jump is not None}
        for i, state in ahead.items():
            if i not in jumped and state.count and 2 * state.place > number:
                return None  # it goes on beside the new times
        gap = _GAP if len(jumped) > 1 else _GAP_OF_ONE
        if all(0 < state.jump < gap for state in jumped.values() if state.jump is not None):
            return None
        known = [s.end for s in self._streams.values() if s.end is not None]
        offset = max(
            (max(known) if state.end is None else state.end) - min(state.begins)
            for state in jumped.values()
        )
        before = self._parts[self._streams[index].part].offset
        if self._restarts and abs(offset - before - _WRAP) < 1:
            offset = before + _WRAP
        begins = {i: state.first for i, state in jumped.items()}
        return _Part(offset, begins[index], begins, open=cut_short)

    def _is_clear(self, index: int, state: _Ahead, number: int) -> bool:
        """Whether enough of a stream was seen behind its jump, or none is expected.

        As many packets follow a jump as precede it, unless it is one of the part after that.
        """
        if self._streams[index].last is None:
            return True
        enough = len(state.begins) >= (_PICTURES if index in self._videos else 1)
        return enough and number >= 2 * state.entered


def _seconds(packet: Any, ticks: int | None) -> Fraction | None:
    return None if ticks is None or not packet.time_base else ticks * packet.time_base


def _later(a: Fraction | None, b: Fraction) -> Fraction:
    return b if a is None else max(a, b)


def _end(packet: Any, step: Fraction) -> Fraction:
    """When a packet ends, in seconds; step: how long it lasts if it does not say."""
    at = packet.dts if packet.pts is None else packet.pts
    end: Fraction = at * packet.time_base + ((packet.duration or 0) * packet.time_base or step)
    return end
