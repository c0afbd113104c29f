"""The format of a source, and how a receiver passes it on with frames, sound and events."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av

from vdeblur.frames import Frame
from vdeblur.live.encoding import Chunk, Sound


@dataclass(frozen=True)
class Format:
    """The format of a source's pictures and sound. A change starts a new segment of the output.

    Attributes:
        width: In pixels.
        height: In pixels.
        pix_fmt: libav's name of the pixel format.
        codec: libav's name of the codec.
        rate: Frames per second.
        aspect: Sample aspect ratio.
        color_tags: Range, primaries, transfer and matrix, as libav numbers them.
        sound: Codec, rate and channels of the sound; empty without.
    """

    width: int
    height: int
    pix_fmt: str
    codec: str
    rate: Fraction
    aspect: Fraction = Fraction(1)
    color_tags: tuple[int, int, int, int] = (0, 2, 2, 2)
    sound: str = ""


class Taker(Protocol):
    """Callbacks of a `Receiver`, called on its thread; must not block."""

    def format(self, format: Format, sound: Sound | None) -> None:
        """Frames of this format follow."""

    def frame(self, frame: Frame, captured: float, arrived: float, decoding: float) -> None:
        """Take a frame, timed on the session's line.

        Args:
            frame: The frame; its planes may be written to.
            captured: Monotonic time at which it was taken.
            arrived: Monotonic time at which it arrived.
            decoding: Seconds that decoding took.
        """

    def sound(self, chunks: list[Chunk], captured: float) -> None:
        """Take packets of sound, captured at a monotonic time."""

    def event(self, name: str, **details: Any) -> None:
        """Take an event of the connection.

        Args:
            name: connected, outage, retry, corrupt, jump, old, decoding, ended or failed.
            details: Facts of the event.
        """


class FormatAnnouncer:
    """Tells a taker of the source's format: after each connection, and whenever it changes.

    Attributes:
        connected: Whether the present connection has given a picture.
        connected_once: Whether any connection has.
    """

    def __init__(self, taker: Taker) -> None:
        self._taker = taker
        self._format: Format | None = None
        self.connected = self.connected_once = False

    def announce(
        self,
        picture: av.VideoFrame,
        video: Any,
        sound: Sound | None,
        *,
        measured_rate: float,
        stated_rate: Fraction,
    ) -> None:
        """Announce the format of a picture that is about to be passed on, if it is news.

        Args:
            picture: The decoded picture.
            video: Its stream.
            sound: The connection's sound, if it has any.
            measured_rate: Frames per second, if they were found to have changed; else 0.
            stated_rate: Frames per second as the stream says.
        """
        old = self._format
        if old is not None and self.connected and not measured_rate:
            rate = old.rate
        elif measured_rate:
            whole = round(measured_rate)
            rate = Fraction(whole) if whole else Fraction(measured_rate).limit_denominator(1000)
        else:
            rate = stated_rate
        new = Format(
            picture.width,
            picture.height,
            picture.format.name,
            video.codec_context.codec.canonical_name,
            rate,
            video.sample_aspect_ratio or Fraction(1),
            (
                int(picture.color_range),
                int(picture.color_primaries),
                int(picture.color_trc),
                int(picture.colorspace),
            ),
            sound.parameters if sound is not None else "",
        )
        if not self.connected:
            self.connected = self.connected_once = True
            self._taker.event(
                "connected", size=f"{new.width}x{new.height}", codec=new.codec, fps=float(new.rate)
            )
        elif new == old:
            return
        self._format = new
        self._taker.format(new, sound)

    def lost(self, reason: str) -> None:
        """Announce an outage, if there was a connection."""
        if self.connected:
            self.connected = False
            self._taker.event("outage", reason=reason)
