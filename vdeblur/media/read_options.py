"""How a source is read: options, and the part of it that they choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Self

import av

_TOLERANCE = 1e-9  # seconds: times are floats here


@dataclass(frozen=True)
class ReadOptions:
    """How to read a source; None leaves a choice to the reader.

    Attributes:
        start: Seconds into the source at which the part to read begins.
        duration: Seconds of the part; None reads to the end.
        framerate: Frames a second of an image sequence (25).
        start_number: Number of the first picture of an image sequence (the lowest that exists).
        hwaccel: libav's type of a device that decodes, such as "cuda"; None or "none" is the CPU.
    """

    start: float | None = None
    duration: float | None = None
    framerate: Fraction | None = None
    start_number: int | None = None
    hwaccel: str | None = None

    @classmethod
    def of(cls, options: Self | None, **given: Any) -> Self:
        """Return `options`, or the defaults, with every field of `given` that is not None."""
        return replace(options or cls(), **{k: v for k, v in given.items() if v is not None})

    @property
    def whole(self) -> bool:
        """True if all of the source is read."""
        return not self.start and self.duration is None


@dataclass(frozen=True)
class Clip:
    """The part of a source from `start` to `end`, whose times are shifted to begin at 0.

    Attributes:
        start: Seconds after the first time of the source.
        end: Seconds after the first time of the source; None is its end.
        origin: The first time of the source in seconds; times may begin anywhere.
        shift: Ticks to subtract from the times of each stream, by its index; empty for all of the
            source, whose times stay as they are.
    """

    start: float = 0.0
    end: float | None = None
    origin: float = 0.0
    shift: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, options: ReadOptions, container: Any) -> Self:
        """Return the part of a libav input container that the options ask for."""
        if options.whole:
            return cls()
        start = options.start or 0.0
        end = None if options.duration is None else start + options.duration
        origin = (container.start_time or 0) / av.time_base
        shift = {
            stream.index: round((origin + start) / stream.time_base)
            for stream in container.streams
            if stream.time_base
        }
        return cls(start, end, origin, shift)

    @property
    def is_part(self) -> bool:
        """True if times are compared and shifted."""
        return bool(self.shift)

    def contains(self, seconds: float) -> bool:
        """Tell whether a time of the source is in the part."""
        return seconds - self.origin >= self.start - _TOLERANCE and not self.is_over(seconds)

    def is_over(self, seconds: float) -> bool:
        """Tell whether the part has ended at a time of the source."""
        return self.end is not None and seconds - self.origin >= self.end - _TOLERANCE

    def is_behind(self, packet: av.Packet[Any]) -> bool:
        """Tell whether a packet lies behind the end of the part."""
        at = packet.pts if packet.pts is not None else packet.dts
        return at is not None and self.is_over(float(at * packet.time_base))

    def take(self, packet: av.Packet[Any]) -> bool:
        """Shift the times of a packet; False if it lies outside the part. One without is kept."""
        at = packet.pts if packet.pts is not None else packet.dts
        if not self.shift or at is None:
            return True
        if not self.contains(float(at * packet.time_base)):
            return False
        shift = self.shift[packet.stream.index]
        packet.pts = None if packet.pts is None else packet.pts - shift
        packet.dts = None if packet.dts is None else packet.dts - shift
        return True
