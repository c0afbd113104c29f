"""One connection to a source: packets → frames and sound, timed on the session's line.

Knows libav; knows nothing of reconnecting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av.error

from vdeblur.errors import InputError
from vdeblur.live.encoding import TICKS, Sound
from vdeblur.live.sources.format import FormatAnnouncer, Taker
from vdeblur.live.sources.source import Source
from vdeblur.live.sources.timing import Backlog, Clock, Held, Pacer, Rate, Timeline
from vdeblur.media.frame_factory import frame_of


class Connection:
    """One connection to a source, read from its beginning to its end.

    Args:
        source: The open source.
        taker: Receives frames, sound and events.
        announcer: Announces the format to the taker.
        timeline: Puts the source's times on the session's line.
        clock: Estimates when pictures were captured.
        limit: Seconds of the session's latency limit.
        stop: Ends the reading when set.
        on_packet: Called whenever libav returns.
    """

    #: Seconds of packets without a picture until the connection is given up: after signs that
    #: there should have been one, and without (some cameras send one keyframe a minute).
    BLIND, NO_KEYFRAME = 10.0, 60.0
    #: Consecutive pictures without a time after which the source counts as one without times.
    UNTIMED = 5

    def __init__(
        self,
        source: Source,
        taker: Taker,
        announcer: FormatAnnouncer,
        timeline: Timeline,
        clock: Clock,
        *,
        limit: float,
        stop: threading.Event,
        on_packet: Callable[[], None],
    ) -> None:
        self._source, self._taker, self._announcer = source, taker, announcer
        self._timeline, self._clock = timeline, clock
        self._stop, self._on_packet = stop, on_packet
        self._sound = Sound(source.audio) if source.audio is not None else None
        self._pacer = Pacer(stop) if source.paced else None
        video = source.video
        assert video is not None
        self._stated_rate = _stated_rate(video)
        self._rate = Rate(1 / float(self._stated_rate))
        self._context, self._time_base = video.codec_context, video.time_base or Fraction(1, TICKS)
        self._relief = _Relief(video.codec_context, limit)
        self._backlog = Backlog(limit) if self._pacer is None else None
        self._jumps = timeline.jumps
        self._last: Fraction | None = None
        self._pictured, self._signs = time.monotonic(), 0
        self._untimed = 0

    def read(self) -> None:
        """Read to the end; InputError if the connection breaks."""
        self._timeline.begin()
        self._clock.reset()
        try:
            for packet in self._source.packets():
                self._on_packet()
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
                self._drain_backlog()

    def _video(self, packet: Any) -> None:
        now = time.monotonic()
        if self._relief.before(packet.is_keyframe):
            self._taker.event("decoding", frames=self._relief.STEPS[self._relief.step].lower())
        try:
            pictures = packet.decode()
        except av.error.EOFError:
            raise
        except (av.error.FFmpegError, OSError):
            self._signs += 1
            self._taker.event("corrupt")
            pictures = []
        else:
            if packet.is_corrupt and not pictures:
                self._taker.event("corrupt")
        decoding = time.monotonic() - now
        self._signs += packet.is_keyframe
        for picture in pictures:
            if picture.is_corrupt:
                # Parts of it are gray, or of other pictures: not what the camera saw.
                self._taker.event("corrupt")
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
        timeline = self._timeline
        at = picture.pts if picture.pts is not None else dts
        if at is None:
            # RTSP's first packets have none until the server has sent its clock. Without any times
            # (some MJPEG), use those of arrival.
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
            self._drain_backlog()
            self._clock.reset()
            self._taker.event("jump", seconds=round(float(seconds), 3))
        rate = 0.0 if self._relief.step else self._rate.of(float(seconds))
        held = Held(picture, seconds, now, decoding, rate)
        if self._backlog is None:
            self._give(held)
        elif self._backlog.add(held):
            self._drain_backlog()
        if self._pacer is None:
            late = now - self._clock.captured(float(seconds), now)
            self._relief.after(decoding, late)

    def _drain_backlog(self) -> None:
        """End the backlog: pass on what is not too old."""
        backlog, self._backlog = self._backlog, None
        if backlog is None or not backlog.held:
            return
        for held in backlog.held:
            self._clock.captured(float(held.seconds), held.arrived)
        backlog.held[0].rate = self._rate.begin(backlog.steps)
        if backlog.left_out:
            self._taker.event("old", frames=backlog.left_out)
        for held in backlog.held:
            self._give(held)

    def _give(self, held: Held) -> None:
        seconds, arrived = held.seconds, held.arrived
        self._announcer.announce(
            held.picture,
            self._source.video,
            self._sound,
            measured_rate=held.rate,
            stated_rate=self._stated_rate,
        )
        captured = arrived
        if self._pacer is None:
            captured = self._clock.captured(float(seconds), arrived)
        frame = frame_of(
            held.picture,
            pts=round(seconds * TICKS),
            time_base=Fraction(1, TICKS),
            codec=self._context.codec.canonical_name,
        )
        self._taker.frame(frame, captured, arrived, held.decoding)

    def _chunks(self, sound: Sound, packet: Any) -> None:
        now = time.monotonic()
        at = packet.pts if packet.pts is not None else packet.dts
        if at is None:
            return
        seconds = self._timeline.place("sound", at * packet.time_base, now)
        try:
            chunks = sound.chunks(packet, seconds)
        except (av.error.FFmpegError, OSError, ValueError):
            self._taker.event("corrupt")
            return
        if chunks:
            # Not by the clock: sound and picture come by different paths, each with its own delay.
            pacer = self._pacer
            self._taker.sound(chunks, now if pacer is None else pacer.time_of(seconds))


def _stated_rate(video: Any) -> Fraction:
    """Return the frames per second that the stream states; 25 if it states none.

    libav's guess comes last: for H.264 in MPEG-TS it is the field rate until libav has measured it.
    """
    for rate in (video.average_rate, video.codec_context.framerate, video.guessed_rate):
        if rate and 1 <= rate <= 240:
            return Fraction(rate)
    return Fraction(25)


class _Relief:
    """Decodes less when decoding itself cannot keep up.

    First it skips frames that no other refers to, then all but keyframes. Only at a keyframe does
    it decode everything again: pictures that refer to skipped ones would be wrong.
    """

    STEPS = ("DEFAULT", "NONREF", "NONKEY")
    WINDOW = 2.0  # seconds over which the load is judged

    def __init__(self, context: Any, limit: float) -> None:
        self._context, self._limit = context, limit
        self.step = self._wanted = 0
        self._spent = 0.0
        self._since = time.monotonic()

    def before(self, keyframe: bool) -> bool:
        """Prepare to decode a packet; return whether the step has changed."""
        if self._wanted == self.step or (self._wanted < self.step == 2 and not keyframe):
            return False
        self.step = self._wanted
        self._context.skip_frame = self.STEPS[self.step]
        return True

    def after(self, seconds: float, late: float) -> None:
        """Report how many seconds decoding took, and how many its picture is late."""
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
