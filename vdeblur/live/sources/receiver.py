"""A thread that reads one source for weeks: decodes, connects again, puts all times on one line.

Gives out frames, sound and what happened to the connection; keeps nothing. Knows libav.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av
import av.error

from vdeblur.errors import InputError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.live.addresses import masked
from vdeblur.live.encoding import Sound
from vdeblur.live.sources.source import Missing, Refused, Source, SourceOptions
from vdeblur.live.sources.timing import Backlog, Backoff, Clock, Held, Pacer, Rate, Timeline
from vdeblur.media.reader import layout_of, planar_format, planes_of

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


class Taker(Protocol):
    """Whom a receiver gives to; called from its thread, and not to wait for anything."""

    def format(self, format: Format, sound: Sound | None) -> None:
        """Frames of this format follow."""

    def frame(self, frame: Frame, captured: float, arrived: float, decoding: float) -> None:
        """A frame, timed on the line; the monotonic times of its taking and of its arrival; seconds
        that its decoding took."""

    def sound(self, chunks: list[Any], captured: float) -> None:
        """Packets of sound (`encoding.Chunk`)."""

    def event(self, name: str, **facts: Any) -> None:
        """What happened: connected, outage, retry, corrupt, jump, old, decoding, ended, failed."""


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
    #: Calls of libav that never come back, each with a thread and a socket, before it gives up.
    MOST_LEFT = 8

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
        #: Seconds after which a call of libav that has not come back counts as stuck.
        self.patience = 4 * self.options.timeout + 30
        self._left: list[threading.Thread] = []
        self._open = opener
        self._connected = self._connected_once = False
        self._prepare()

    def _prepare(self) -> None:
        self._alive = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop,), name="receive", daemon=True
        )

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

    def check(self) -> None:
        """To be called now and then while nothing comes: a call that libav does not come back from
        (its own limits do not cover all) is left to itself, and another connection made."""
        stuck = time.monotonic() - self._alive
        if stuck < self.patience or self._stop.is_set() or self.ended.is_set():
            return
        self._stop.set()
        if self._connected:
            self._connected = False
            self.taker.event("outage", reason=f"libav did not come back for {stuck:.0f} s")
        self._left = [thread for thread in (*self._left, self._thread) if thread.is_alive()]
        if len(self._left) > self.MOST_LEFT:
            self.error = InputError(
                f"libav did not come back from {len(self._left)} connections to "
                f"{masked(self.address)}: start the program again"
            )
            self.ended.set()
            self.taker.event("failed", reason=str(self.error))
            return
        self._prepare()
        self.start()

    def _run(self, stop: threading.Event) -> None:
        error: VdeblurError | None = None
        try:
            self._for_ever(stop)
        except VdeblurError as found:
            error = found
        except Exception as found:
            error = InputError(f"reading failed in a way that was not foreseen: {found!r}")
        if stop is not self._stop:
            return  # left to itself by `check`; another thread reads now
        self.error = error
        self.ended.set()
        if error is not None and not stop.is_set():
            self.taker.event("failed", reason=str(error))
        else:
            self.taker.event("ended", stopped=stop.is_set())

    def _for_ever(self, stop: threading.Event) -> None:
        backoff = Backoff(self.retry.first, self.retry.cap)
        while not stop.is_set():
            began = self._alive = time.monotonic()
            reason: InputError
            try:
                with self._open(self.address, self.options, stop) as source:
                    began = time.monotonic()
                    _Connection(self, source, stop).read()
                    if source.finite or stop.is_set():
                        return
                    if source.kind == "file":  # --loop
                        backoff.reset()
                        stop.wait(0.01)
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
            if stop.is_set():
                return
            if self._connected and time.monotonic() - began > self.HELD:
                backoff.reset()
            if self._connected:
                self.taker.event("outage", reason=str(reason))
            self._connected = False
            if self.retry.tries is not None and backoff.tries >= self.retry.tries:
                if self.retry.tries == 0:
                    raise reason
                tries = "a try" if self.retry.tries == 1 else f"{self.retry.tries} tries in a row"
                raise InputError(f"{reason} (given up after {tries})") from reason
            wait = backoff.next(slow=isinstance(reason, Refused))
            self.taker.event("retry", reason=str(reason), seconds=round(wait, 2))
            self._alive = time.monotonic() + wait  # which is no call of libav
            stop.wait(wait)

    def alive(self) -> None:
        """libav has come back."""
        self._alive = time.monotonic()

    def announce(
        self, source: Source, picture: Any, sound: Sound | None, rate: float, stated: Fraction
    ) -> None:
        """Tell the taker of a format that is not the one before. rate: as it is measured, or 0."""
        video = source.video
        assert video is not None
        old = self.format
        if old is not None and self._connected and not rate:
            fps = old.rate
        elif rate:
            fps = Fraction(round(rate)) if round(rate) else Fraction(rate).limit_denominator(1000)
        else:
            fps = stated
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


class _Connection:
    """One connection, read from its beginning to its end."""

    #: Seconds of packets without a picture after which the connection is worth nothing: with signs
    #: that there should have been one, and without (some cameras send a keyframe in a minute).
    BLIND, NO_KEYFRAME = 10.0, 60.0
    #: Pictures in a row without a time after which the source is one that gives none.
    UNTIMED = 5

    def __init__(self, receiver: Receiver, source: Source, stop: threading.Event) -> None:
        self._to, self._source, self._stop = receiver, source, stop
        self._sound = Sound(source.audio) if source.audio is not None else None
        self._pacer = Pacer(stop) if source.paced else None
        video = source.video
        assert video is not None
        self._stated = _stated(video)
        self._rate = Rate(1 / float(self._stated))
        self._context, self._time_base = video.codec_context, video.time_base or Fraction(1, TICKS)
        self._relief = _Relief(video.codec_context, receiver.limit)
        self._backlog = Backlog(receiver.limit) if self._pacer is None else None
        self._jumps = receiver.timeline.jumps
        self._last: Fraction | None = None
        self._pictured, self._signs = time.monotonic(), 0
        self._untimed = 0

    def read(self) -> None:
        """Read to the end; InputError where that is no proper one."""
        self._to.timeline.begin()
        self._to.clock.reset()
        try:
            for packet in self._source.packets():
                self._to.alive()
                if self._stop.is_set():
                    return
                if packet.stream is self._source.video:
                    self._video(packet)
                elif self._sound is not None and packet.size:
                    self._chunks(self._sound, packet)
        except av.error.EOFError:
            pass
        finally:
            if not self._stop.is_set():
                self._drained()

    def _video(self, packet: Any) -> None:
        now = time.monotonic()
        if self._relief.before(packet.is_keyframe):
            self._tell("decoding", frames=self._relief.STEPS[self._relief.step].lower())
        try:
            pictures = packet.decode()
        except av.error.EOFError:
            raise
        except (av.error.FFmpegError, OSError):
            self._signs += 1
            self._tell("corrupt")
            pictures = []
        else:
            if packet.is_corrupt and not pictures:
                self._tell("corrupt")
        decoding = time.monotonic() - now
        self._signs += packet.is_keyframe
        for picture in pictures:
            if picture.is_corrupt:
                # Parts of it are grey, or of other pictures: not what the camera saw.
                self._tell("corrupt")
                continue
            if self._stop.is_set():
                return
            self._pictured, self._signs = now, 0
            self._picture(picture, packet.dts, now, decoding)
            decoding = 0.0
        blind = now - self._pictured
        if blind > (self.BLIND if self._signs > 1 else self.NO_KEYFRAME):
            raise InputError(
                f"{self._source.name}: no picture could be decoded for {blind:.0f} s "
                f"({self._context.codec.canonical_name} at the beginning)"
            )

    def _picture(self, picture: Any, dts: int | None, now: float, decoding: float) -> None:
        timeline = self._to.timeline
        at = picture.pts if picture.pts is not None else dts
        if at is None:
            # RTSP's first packets bear none before the server has told its clock. No times at all
            # (some MJPEG): those of arrival.
            self._untimed += 1
            if self._untimed <= self.UNTIMED:
                return
            own = Fraction(now)
        else:
            self._untimed = 0
            own = at * (picture.time_base or self._time_base)
        seconds = timeline.place("picture", own, now)
        if self._pacer is not None:
            now = self._pacer.wait(seconds)
        if self._last is not None and seconds <= self._last:
            seconds = self._last + Fraction(1, 1000)
        self._last = seconds
        if timeline.jumps != self._jumps:
            self._jumps = timeline.jumps
            self._drained()
            self._to.clock.reset()
            self._tell("jump", seconds=round(float(seconds), 3))
        rate = 0.0 if self._relief.step else self._rate.of(float(seconds))
        held = Held(picture, seconds, now, decoding, rate)
        if self._backlog is None:
            self._give(held)
        elif self._backlog.add(held):
            self._drained()
        if self._pacer is None:
            late = now - self._to.clock.captured(float(seconds), now)
            self._relief.after(decoding, late)

    def _drained(self) -> None:
        """The backlog is over: what is not too old goes on."""
        backlog, self._backlog = self._backlog, None
        if backlog is None or not backlog.held:
            return
        for held in backlog.held:
            self._to.clock.captured(float(held.seconds), held.arrived)
        backlog.held[0].rate = self._rate.begin(backlog.steps)
        if backlog.left_out:
            self._tell("old", frames=backlog.left_out)
        for held in backlog.held:
            self._give(held)

    def _give(self, held: Held) -> None:
        to, seconds, arrived = self._to, held.seconds, held.arrived
        to.announce(self._source, held.picture, self._sound, held.rate, self._stated)
        captured = arrived
        if self._pacer is None:
            captured = to.clock.captured(float(seconds), arrived)
        frame = _frame(held.picture, seconds, self._context.codec.canonical_name)
        to.taker.frame(frame, captured, arrived, held.decoding)

    def _chunks(self, sound: Sound, packet: Any) -> None:
        now = time.monotonic()
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return
        seconds = self._to.timeline.place("sound", at * packet.time_base, now)
        try:
            chunks = sound.chunks(packet, seconds)
        except (av.error.FFmpegError, OSError, ValueError):
            self._tell("corrupt")
            return
        if chunks:
            # Not by the clock: sound and picture come by different ways, each with its own delay.
            pacer = self._pacer
            self._to.taker.sound(chunks, now if pacer is None else pacer.time_of(seconds))

    def _tell(self, name: str, **facts: Any) -> None:
        self._to.taker.event(name, **facts)


def _stated(video: Any) -> Fraction:
    """Frames a second as the stream says; 25 where it does not.

    What libav guesses comes last: of H.264 in MPEG-TS it is the rate of fields, before it has
    measured anything.
    """
    for rate in (video.average_rate, video.codec_context.framerate, video.guessed_rate):
        if rate and 1 <= rate <= 240:
            return Fraction(rate)
    return Fraction(25)


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
