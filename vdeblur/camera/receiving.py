"""A thread that reads one source for weeks: decodes, connects again, puts all times on one line.

Gives out frames, sound and what happened to the connection; keeps nothing. Knows libav.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import av
import av.error

from vdeblur.camera.encoding import Sound
from vdeblur.camera.sources import Missing, Refused, Source, SourceOptions
from vdeblur.errors import InputError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.reader import layout_of, planar_format, planes_of

#: Ticks a second of the line that all times are put on: MPEG's, which every rate in use divides.
TICKS = 90_000


@dataclass(frozen=True)
class Format:
    """What a source gives; another one is another segment of the output."""

    width: int
    height: int
    pix_fmt: str
    codec: str
    rate: Fraction
    aspect: Fraction = Fraction(1)
    colour: tuple[int, int, int, int] = (0, 2, 2, 2)  # range, primaries, transfer, matrix
    sound: str = ""  # the sound's own parameters, in words


@dataclass
class Timeline:
    """Source times → seconds on one line that neither jumps nor goes back.

    The source's own intervals are kept exactly; only where it jumps (a clock set, a counter wrapped
    round, another connection) is the line carried on by the time that really passed. Sound and
    picture of a connection share one offset. jumps: how often it had to.
    """

    jumps: int = 0
    _offset: Fraction | None = None
    _end: Fraction = Fraction(0)
    _end_at: float = 0.0
    _streams: dict[str, tuple[Fraction, Fraction, float]] = field(default_factory=dict)

    #: Seconds that a stream may go back, and forward beyond the time that passed, by itself.
    BACK, FORWARD = Fraction(1, 2), 2.0

    def begin(self) -> None:
        """Another connection: its times have nothing to do with those before."""
        self._streams.clear()
        self._offset = None

    def place(self, stream: str, at: Fraction, now: float) -> Fraction:
        """Seconds on the line of source time `at` (seconds), which arrived at monotonic `now`."""
        known = self._streams.get(stream)
        started = self._end_at > 0
        expected = self._end + Fraction(max(0.0, now - self._end_at)) if started else Fraction(0)
        if known is not None:
            last, offset, last_at = known
            step = at - last
            if -self.BACK <= step <= self.FORWARD + (now - last_at):
                return self._moved(stream, at, offset, now)
        # The other stream may have made the same jump already.
        if self._offset is not None and abs(at + self._offset - expected) < self.FORWARD:
            return self._moved(stream, at, self._offset, now)
        if known is not None:
            self.jumps += 1
        self._offset = expected - at
        return self._moved(stream, at, self._offset, now)

    def _moved(self, stream: str, at: Fraction, offset: Fraction, now: float) -> Fraction:
        self._streams[stream] = (at, offset, now)
        placed = at + offset
        if placed > self._end or self._end_at == 0:
            self._end, self._end_at = placed, now
        return placed


class Clock:
    """When a time of the line was, on the monotonic clock, if nothing had been in its way.

    The quickest arrivals of the last half minute tell; slower ones were held up, and are that late
    already. So latency counts from the moment the source could have been here.
    """

    WINDOW = 15.0  # seconds; two of them are looked at

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Another connection, another delay."""
        self._best = self._earlier = float("inf")
        self._since = 0.0

    def captured(self, seconds: float, now: float) -> float:
        """The monotonic time of line time `seconds`, which arrived at `now`; never after it."""
        if now - self._since > self.WINDOW:
            self._earlier, self._best, self._since = self._best, float("inf"), now
        self._best = min(self._best, now - seconds)
        return seconds + min(self._best, self._earlier)


class Backoff:
    """Seconds to wait before try 1, 2, …: half as much again up to `cap`, and shaken, so that many
    do not come back at once."""

    def __init__(self, first: float = 0.5, cap: float = 30.0) -> None:
        self.first, self.cap, self.tries = first, cap, 0

    def next(self, *, slow: bool = False) -> float:
        """The next wait; slow: at once the longest, as for a refused password."""
        self.tries += 1
        full = self.cap if slow else min(self.cap, self.first * 1.5 ** min(self.tries - 1, 64))
        return full * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked."""
        self.tries = 0


class Taker(Protocol):
    """Whom a receiver gives to; called from its thread, and not to wait for anything."""

    def format(self, format: Format, sound: Sound | None) -> None:
        """Frames of this format follow."""

    def frame(self, frame: Frame, seconds: Fraction, captured: float, arrived: float) -> None:
        """A frame, its time on the line, and the monotonic times of taking and of arrival."""

    def sound(self, chunks: list[Any], captured: float) -> None:
        """Packets of sound (`encoding.Chunk`)."""

    def event(self, name: str, **facts: Any) -> None:
        """What happened: connected, outage, retry, corrupt, jump, ended, failed."""


@dataclass(frozen=True)
class RetryOptions:
    """tries: failed connections in a row after which to give up; None is never. cap: seconds of
    the longest wait."""

    tries: int | None = None
    cap: float = 30.0
    first: float = 0.5


class Receiver:
    """Reads a source in a thread of its own until `stop`; `error`: why it gave up, if it did."""

    #: A connection that held this long was one; a shorter one counts as a failed try.
    HELD = 2.0

    def __init__(
        self,
        address: str,
        taker: Taker,
        *,
        options: SourceOptions | None = None,
        retry: RetryOptions | None = None,
        limit: float = 0.3,
        opener: Callable[[str, SourceOptions, threading.Event], Source] = Source,
    ) -> None:
        self.address, self.taker = address, taker
        self.options, self.retry = options or SourceOptions(), retry or RetryOptions()
        self.limit = limit
        self.error: VdeblurError | None = None
        self.ended = threading.Event()
        self.timeline, self.clock = Timeline(), Clock()
        self.format: Format | None = None
        self._open = opener
        self._stop = threading.Event()
        self._connected_once = False
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to end; a read under way ends within the source's timeout."""
        self._stop.set()

    def join(self, patience: float) -> bool:
        """Wait for its thread; False if it is still in a call of libav, which it will leave."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._for_ever()
        except VdeblurError as error:
            self.error = error
        except Exception as error:
            self.error = InputError(f"reading failed in a way that was not foreseen: {error!r}")
        finally:
            self.ended.set()
            if self.error is not None and not self._stop.is_set():
                self.taker.event("failed", reason=str(self.error))
            else:
                self.taker.event("ended", stopped=self._stop.is_set())

    def _for_ever(self) -> None:
        backoff = Backoff(self.retry.first, self.retry.cap)
        while not self._stop.is_set():
            began = time.monotonic()
            reason: InputError
            try:
                with self._open(self.address, self.options, self._stop) as source:
                    began = time.monotonic()
                    self._receive(source)
                    if source.finite or self._stop.is_set():
                        return
                    if source.kind == "file":  # --loop
                        backoff.reset()
                        self._stop.wait(0.01)
                        continue
                    reason = InputError(f"{source.name} ended")
            except Missing:
                if not self._connected_once:
                    raise
                reason = InputError("it is not there any more")
            except Refused as error:
                if not self._connected_once:
                    raise
                reason = error
            except InputError as error:
                reason = error
            if self._stop.is_set():
                return
            if self._connected and time.monotonic() - began > self.HELD:
                backoff.reset()
            if self._connected:
                self.taker.event("outage", reason=str(reason))
            self._connected = False
            if self.retry.tries is not None and backoff.tries >= self.retry.tries:
                raise InputError(
                    f"{reason}; given up after {self.retry.tries} tries in a row"
                ) from reason
            wait = backoff.next(slow=isinstance(reason, Refused))
            self.taker.event("retry", reason=str(reason), seconds=round(wait, 2))
            self._stop.wait(wait)

    _connected = False

    def _receive(self, source: Source) -> None:
        """Read a connection to its end."""
        self.timeline.begin()
        self.clock.reset()
        sound = Sound(source.audio) if source.audio is not None else None
        pacer = _Pacer(self._stop) if source.paced else None
        stated = source.video and (source.video.average_rate or source.video.guessed_rate)
        rate = _Rate(1 / float(stated) if stated and 1 <= stated <= 240 else 1 / 25)
        jumps, decoding = self.timeline.jumps, 0.0
        video = source.video
        assert video is not None
        context = video.codec_context
        relief = _Relief(context, self.limit)
        time_base = video.time_base or Fraction(1, TICKS)
        last: Fraction | None = None
        for packet in source.packets():
            now = time.monotonic()
            if packet.stream is not video:
                if sound is not None and packet.size:
                    self._sound(sound, packet, now, pacer)
                continue
            if relief.before(packet.is_keyframe):
                self.taker.event("decoding", frames=relief.STEPS[relief.step].lower())
            try:
                pictures = packet.decode()
                decoding = time.monotonic() - now
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, OSError):
                self.taker.event("corrupt")
                continue
            if packet.is_corrupt and not pictures:
                self.taker.event("corrupt")
            for picture in pictures:
                if picture.is_corrupt:
                    # Parts of it are grey, or of other pictures: not what the camera saw.
                    self.taker.event("corrupt")
                    continue
                if self._stop.is_set():
                    return
                at = picture.pts if picture.pts is not None else packet.dts
                # No times at all (some MJPEG): those of arrival.
                own = Fraction(now) if at is None else at * (picture.time_base or time_base)
                seconds = self.timeline.place("picture", own, now)
                if pacer is not None:
                    now = pacer.wait(seconds)
                if last is not None and seconds <= last:
                    seconds = last + Fraction(1, 1000)
                last = seconds
                if self.timeline.jumps != jumps:
                    jumps = self.timeline.jumps
                    self.clock.reset()
                    self.taker.event("jump", seconds=round(float(seconds), 3))
                measured = 0.0 if relief.step else rate.of(float(seconds))
                self._announce(source, picture, sound, measured)
                captured = now if pacer is not None else self.clock.captured(float(seconds), now)
                frame = _frame(picture, seconds, context.codec.canonical_name)
                self.taker.frame(frame, seconds, captured, now)
                relief.after(decoding, now - captured)
                decoding = 0.0

    def _sound(self, sound: Sound, packet: Any, now: float, pacer: _Pacer | None) -> None:
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return
        seconds = self.timeline.place("sound", at * packet.time_base, now)
        try:
            chunks = sound.chunks(packet, seconds)
        except (av.error.FFmpegError, OSError, ValueError):
            self.taker.event("corrupt")
            return
        if chunks:
            # Not by the clock: sound and picture come by different ways, each with its own delay.
            self.taker.sound(chunks, pacer.time_of(seconds) if pacer is not None else now)

    def _announce(self, source: Source, picture: Any, sound: Sound | None, rate: float) -> None:
        """Tell the taker of a format that is not the one before."""
        video = source.video
        assert video is not None
        stated = video.average_rate or video.guessed_rate
        old = self.format
        if old is not None and self._connected and not rate:
            fps = old.rate
        elif rate:
            fps = Fraction(round(rate)) if round(rate) else Fraction(rate).limit_denominator(1000)
        else:
            fps = stated if stated and 1 <= stated <= 240 else Fraction(25)
        new = Format(
            picture.width,
            picture.height,
            picture.format.name,
            video.codec_context.codec.canonical_name,
            fps,
            video.sample_aspect_ratio or Fraction(1),
            (
                int(picture.color_range),
                int(picture.color_primaries),
                int(picture.color_trc),
                int(picture.colorspace),
            ),
            sound.parameters if sound is not None else "",
        )
        if not self._connected:
            self._connected = self._connected_once = True
            self.taker.event(
                "connected", size=f"{new.width}x{new.height}", codec=new.codec, fps=float(new.rate)
            )
        elif new == old:
            return
        self.format = new
        self.taker.format(new, sound)


class _Relief:
    """When decoding itself cannot keep up, decode less: first what nothing refers to, then all but
    keyframes. After a keyframe, and only there, all is decoded again: pictures that refer to what
    was left out would be wrong ones."""

    STEPS = ("DEFAULT", "NONREF", "NONKEY")
    WINDOW = 2.0  # seconds over which it is judged

    def __init__(self, context: Any, limit: float) -> None:
        self._context, self._limit = context, limit
        self.step = self._wanted = 0
        self._spent = 0.0
        self._since = time.monotonic()

    def before(self, keyframe: bool) -> bool:
        """Before a packet is decoded; True when the step has changed."""
        if self._wanted == self.step or (self._wanted < self.step == 2 and not keyframe):
            return False
        self.step = self._wanted
        self._context.skip_frame = self.STEPS[self.step]
        return True

    def after(self, seconds: float, late: float) -> None:
        """After one was decoded, in so many seconds; late: the age of its picture."""
        self._spent += seconds
        now = time.monotonic()
        if now - self._since < self.WINDOW:
            return
        share = self._spent / (now - self._since)
        self._spent, self._since = 0.0, now
        if share > 0.9 and late > self._limit:
            self._wanted = min(2, self.step + 1)
        elif share < 0.4 and late < self._limit / 2:
            self._wanted = max(0, self.step - 1)


class _Rate:
    """The rate that frames really have, told when it is not what it was, or what was stated.

    usual: seconds between frames, as they are stated.
    """

    def __init__(self, usual: float) -> None:
        self._steps: list[float] = []
        self._last: float | None = None
        self._usual = usual

    def of(self, seconds: float) -> float:
        """Frames a second once they have changed by half or more for 25 frames; else 0."""
        if self._last is not None:
            self._steps.append(seconds - self._last)
        self._last = seconds
        if len(self._steps) < 25:
            return 0.0
        middle = sorted(self._steps)[12]
        self._steps.clear()
        if middle > 0 and not 2 / 3 < middle / self._usual < 3 / 2:
            self._usual = middle
            return 1 / middle
        return 0.0


class _Pacer:
    """Holds back what comes faster than it happened; what comes late is not hurried."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._start = stop, float("-inf")

    def wait(self, seconds: Fraction) -> float:
        """Until line time `seconds` is due; the monotonic time it was due at."""
        now = time.monotonic()
        due = self._start + float(seconds)
        if due < now - 0.05:  # the first, or the source was held up
            self._start, due = now - float(seconds), now
        self._stop.wait(max(0.0, due - now))
        return max(due, now)

    def time_of(self, seconds: Fraction) -> float:
        """When that line time is due; now, before the first picture."""
        return max(self._start + float(seconds), time.monotonic())


def _frame(picture: Any, seconds: Fraction, codec: str) -> Frame:
    """A decoded picture as planes that can be written to, timed on the line."""
    name = planar_format(picture.format.name)
    if picture.planes[0].line_size < 0:  # bottom-up
        name = "gbrp" if name == "bgr24" else name
        picture = picture.reformat(format="gbrp" if picture.format.name == name else name)
    elif name != picture.format.name:
        picture = picture.reformat(format=name)
    picture.make_writable()
    ticks = round(seconds * TICKS)
    picture.pts, picture.time_base = ticks, Fraction(1, TICKS)
    layout = layout_of(
        picture.format.name,
        picture.width,
        picture.height,
        color_range=int(picture.color_range),
        colorspace=int(picture.colorspace),
        interlaced=picture.interlaced_frame,
        codec=codec,
    )
    return Frame(
        planes=planes_of(picture),
        layout=layout,
        pts=ticks,
        time_base=Fraction(1, TICKS),
        duration=picture.duration or 0,
        carrier=picture,
    )
