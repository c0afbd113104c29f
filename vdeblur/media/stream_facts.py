"""Facts of libav streams that may not be known: what is not is None or 0, and nothing raises.

PyAV's own attributes raise, or end the process, for some streams: one of an unknown codec has no
codec context, and reading the layout of sound in a custom channel order frees libav's map of it.
Knows streams; opens no file.
"""

from __future__ import annotations

import ctypes
from fractions import Fraction
from typing import Any, NamedTuple

_EXTENSION = b"\0\0\1\xb5"  # start code of an extension of MPEG-2
_HEAD = 1024  # bytes of a packet that its headers end in


class SoundFormat(NamedTuple):
    """What a stream of sound holds; 0 and "" are unknown."""

    rate: int  # samples per second
    channels: int
    layout: str


def codec_of(stream: Any) -> str | None:
    """Return libav's canonical name of the codec; None where libav does not know or decode it."""
    context = stream.codec_context
    if context is not None:
        return str(context.codec.canonical_name)
    # PyAV asks the missing context of sound, video and subtitles for their name.
    return stream.name if stream.type == "data" else None


def rate_of(stream: Any) -> Fraction | None:
    """Return the frames a second of a video stream."""
    average, guessed = (getattr(stream, f"{name}_rate", None) for name in ("average", "guessed"))
    if average and guessed and average * stream.time_base == 1:
        average = None  # a picture a tick: of raw DV, libav counts its fine ticks
    rate = average or guessed
    return Fraction(rate) if rate else None


def repeats_field(packet: Any) -> bool:
    """Tell whether an MPEG-2 picture shows one of its fields twice (repeat_first_field)."""
    if codec_of(packet.stream) != "mpeg2video":
        return False
    head = memoryview(packet)[:_HEAD].tobytes()
    at = head.find(_EXTENSION)
    while at >= 0 and at + 8 < len(head):
        if head[at + 4] >> 4 == 8:  # picture coding extension (ITU-T H.262, 6.2.3.1)
            return bool(head[at + 7] & 2)
        at = head.find(_EXTENSION, at + 4)
    return False


def sound_of(stream: Any) -> SoundFormat:
    """Return the format of a stream of sound."""
    context = stream.codec_context
    if context is None or stream.type != "audio":
        return SoundFormat(0, 0, "")
    layout = context.layout
    # PyAV 18.1 copies libav's struct with its pointer to the map of a custom order, and frees that
    # map with the copy, which the context frees again: the copy has to stay.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    try:
        name = layout.name
    except (RuntimeError, ValueError):
        name = ""
    return SoundFormat(context.sample_rate, layout.nb_channels, name)


def settle_layout(stream: Any) -> SoundFormat:
    """Make it safe to decode a stream of sound, and to read its layout, and return its format.

    A custom order of channels becomes the plain number of channels, before anything is decoded.
    """
    sound = sound_of(stream)
    named = sound.layout and "channels" not in sound.layout and "+" not in sound.layout
    if sound.channels and not stream.codec_context.is_open:
        try:
            stream.codec_context.layout = sound.layout if named else f"{sound.channels}C"
        except ValueError:
            stream.codec_context.layout = f"{sound.channels}C"
    return sound


def name_layout(stream: Any) -> None:
    """Call one or two channels without places mono or stereo, as players take them.

    The box of MP4 for PCM has no form for such channels, and its muxer fails at the end.
    """
    sound = sound_of(stream)
    name = {1: "mono", 2: "stereo"}.get(sound.channels)
    if name is not None and sound.layout == f"{sound.channels} channels":
        stream.codec_context.layout = name


def is_described(stream: Any) -> bool:
    """Tell whether libav knows what a header of the stream needs: its size, or rate and channels.

    A codec that libav does not know has no description at all, and never will: True.
    """
    context = stream.codec_context
    if context is None:
        return True
    if stream.type == "video":
        return bool(context.width and context.height)
    if stream.type == "audio":
        sound = sound_of(stream)
        return bool(sound.rate and sound.channels)
    return True
