"""Encode pictures once for all sinks, and sound as AAC; AAC is copied.

A sink that opens later creates its streams from a `Template`, so that it needs neither the encoder
nor the source. Knows libav.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import av
import av.error
import numpy as np
from av.audio.resampler import AudioResampler
from av.codec.context import Flags as CodecFlags

from vdeblur.errors import EncoderError
from vdeblur.media.encoders import EncodeOptions, choose_settings
from vdeblur.media.pixel_formats import CONVERTING
from vdeblur.media.stream_facts import settle_layout

#: Ticks per second of the session's line of time: MPEG's, a multiple of all common frame rates.
TICKS = 90_000
_BASE = Fraction(1, TICKS)


@dataclass(frozen=True)
class Chunk:
    """An encoded packet, independent of any container; times in ticks of the session's line."""

    kind: Literal["video", "audio"]
    data: bytes
    pts: int
    dts: int
    duration: int
    keyframe: bool

    def packet(self, stream: Any, shift: int = 0) -> av.Packet[Any]:
        """Return a new packet for a sink's stream, `shift` ticks earlier."""
        packet: av.Packet[Any] = av.Packet(self.data)
        packet.pts, packet.dts = self.pts - shift, self.dts - shift
        packet.duration, packet.time_base = self.duration, _BASE
        packet.is_keyframe = self.keyframe
        packet.stream = stream
        return packet


@dataclass(frozen=True)
class Template:
    """Streams that sinks copy their own from: codec parameters, extradata, colors and sizes.

    Attributes:
        holder: Keeps the container of the streams alive; it is never written to.
        video: The stream of the picture.
        sound: The stream of the sound, if there is any.
    """

    holder: Any
    video: Any
    sound: Any = None


class Sound:
    """The sound of one connection, as AAC on the session's line.

    Args:
        stream: The source's stream.
    """

    def __init__(self, stream: Any) -> None:
        context = stream.codec_context
        sound = settle_layout(stream)
        self.copied = context.codec.canonical_name == "aac" and bool(context.extradata)
        self._stream = stream
        self._holder: Any = av.open(io.BytesIO(), "w", format="nut")
        self._resampler: AudioResampler | None = None
        self._next: int | None = None
        if self.copied:
            self.template = self._holder.add_stream_from_template(stream)
            self.rate = int(context.sample_rate)
        else:
            # AAC has few sample rates; those of telephony go up to the next.
            rates = (16000, 22050, 24000, 32000, 44100, 48000)
            self.rate = next((r for r in rates if r >= context.sample_rate), 48000)
            layout = "mono" if sound.channels == 1 else "stereo"
            self.template = self._holder.add_stream("aac", rate=self.rate, layout=layout)
            self.template.codec_context.flags |= CodecFlags.global_header
            self.template.bit_rate = 64_000 if layout == "mono" else 128_000
            self.template.codec_context.time_base = Fraction(1, self.rate)
            self._layout = layout
            self._holder.start_encoding()
        name = context.codec.canonical_name
        self.parameters = f"{name} {sound.rate} Hz {sound.channels} ch"

    @property
    def holder(self) -> Any:
        """The container that keeps `template` alive."""
        return self._holder

    def chunks(self, packet: Any, seconds: Fraction) -> list[Chunk]:
        """Return the AAC packets of a packet that begins at `seconds` on the session's line."""
        if self.copied:
            ticks = round(seconds * TICKS)
            duration = round((packet.duration or 0) * packet.time_base * TICKS)
            return [Chunk("audio", bytes(packet), ticks, ticks, duration, True)]
        made: list[Chunk] = []
        frames = packet.decode()
        at = seconds
        for frame in frames:
            start = round(at * self.rate)
            at += Fraction(frame.samples, frame.sample_rate)
            if self._next is None or abs(start - self._next) > self.rate // 20:
                # A gap: the resampler would close it, and the sound run ahead of the picture.
                self._resampler = AudioResampler("fltp", self._layout, self.rate, frame_size=1024)
                self._next = start
                self._begin, self._done = start, 0
            assert self._resampler is not None
            self._next += round(Fraction(frame.samples * self.rate, frame.sample_rate))
            frame.pts = None
            for part in self._resampler.resample(frame):
                part.pts, part.time_base = self._begin + self._done, Fraction(1, self.rate)
                self._done += part.samples
                for encoded in self.template.encode(part):
                    made.append(self._chunk(encoded))
        return made

    def _chunk(self, packet: Any) -> Chunk:
        base = packet.time_base or Fraction(1, self.rate)
        ticks = round((packet.pts or 0) * base * TICKS)
        duration = round((packet.duration or 1024) * base * TICKS)
        return Chunk("audio", bytes(packet), ticks, ticks, duration, True)


@dataclass(frozen=True)
class LiveEncoding:
    """How the picture is encoded.

    Attributes:
        encoder: libav's name.
        crf: Constant quality; None is 21 for libx264, and else as for `EncodeOptions`.
        bitrate: Bits per second at most, with a buffer of one second.
        preset: Of the encoder; None is veryfast for libx264, and similarly fast for others.
        keyframes: Seconds between keyframes.
        pix_fmt: libav's name; all players support yuv420p.
    """

    encoder: str = "libx264"
    crf: float | None = None
    bitrate: int | None = None
    preset: str | None = None
    keyframes: float = 2.0
    pix_fmt: str = "yuv420p"


class PictureEncoder:
    """An encoder for pictures of one format, without delay.

    Args:
        options: The encoder and its settings.
        width: In pixels; an odd one loses a column, since 4:2:0 needs even sizes.
        height: In pixels; likewise.
        rate: Frames per second.
        aspect: Sample aspect ratio.
        color_tags: Range, primaries, transfer and matrix, as libav numbers them.
        sound: Sound for the template, if there is any.

    Raises:
        EncoderError: If libav has no such encoder, or the encoder refuses the settings.
    """

    def __init__(
        self,
        options: LiveEncoding,
        *,
        width: int,
        height: int,
        rate: Fraction,
        aspect: Fraction = Fraction(1),
        color_tags: tuple[int, int, int, int] = (0, 2, 2, 2),
        sound: Sound | None = None,
    ) -> None:
        self._force = True
        self.options, self.size = options, (width, height)
        holder = cast(Any, av.open(io.BytesIO(), "w", format="nut"))
        try:
            choice = choose_settings(
                options.encoder,
                options.pix_fmt,
                EncodeOptions(
                    options.encoder,
                    options.crf,
                    options.bitrate,
                    options.preset,
                    options.pix_fmt,
                ),
            )
            stream = holder.add_stream(options.encoder, rate=rate)
        except (ValueError, av.error.FFmpegError) as error:
            raise EncoderError(
                f"encoder {options.encoder} cannot be used here ({error}): "
                "name one such as libx264, libx265 or h264_nvenc"
            ) from error
        context = stream.codec_context
        self.pix_fmt = choice.pix_fmt
        stream.width, stream.height, stream.pix_fmt = width & ~1, height & ~1, choice.pix_fmt
        context.time_base = stream.time_base = _BASE
        context.framerate = rate
        context.sample_aspect_ratio = stream.sample_aspect_ratio = aspect
        context.color_range, context.color_primaries = color_tags[:2]
        context.color_trc, context.colorspace = color_tags[2:]
        context.flags |= CodecFlags.global_header
        context.gop_size = max(1, round(rate * Fraction(options.keyframes).limit_denominator(100)))
        context.max_b_frames = 0
        settings = dict(choice.options) | _low_delay(options)
        if options.bitrate is not None:
            context.bit_rate = options.bitrate
            settings |= {"maxrate": str(options.bitrate), "bufsize": str(options.bitrate)}
        context.options = settings
        try:
            holder.start_encoding()
        except (ValueError, OSError, av.error.FFmpegError) as error:
            reason = str(getattr(error, "strerror", None) or error).lower()
            raise EncoderError(
                f"encoder {options.encoder} refuses {width}x{height} at {float(rate):g} frames/s "
                f"with {', '.join(f'{k}={v}' for k, v in settings.items())} ({reason}): "
                "try another `encoder`, `preset` or `crf`"
            ) from error
        self._stream = stream
        if sound is None:
            self.template = Template(holder, stream)
        else:
            self.template = Template((holder, sound.holder), stream, sound.template)

    def keyframe(self) -> None:
        """Encode the next picture as a keyframe, so that a sink can start with it."""
        self._force = True

    def encode(self, picture: av.VideoFrame) -> list[Chunk]:
        """Encode a picture whose `pts` is in ticks; return its packets, without delay."""
        if picture.format.name != self.pix_fmt or (picture.width, picture.height) != (
            self._stream.width,
            self._stream.height,
        ):
            pts = picture.pts
            picture = picture.reformat(
                self._stream.width, self._stream.height, self.pix_fmt, threads=CONVERTING
            )
            picture.pts = pts
        picture.time_base = _BASE
        picture.pict_type = 1 if self._force else 0  # I, or the encoder's own choice
        self._force = False
        return self._chunks(self._stream.encode(picture))

    def finish(self) -> list[Chunk]:
        """Flush the encoder; return the remaining packets."""
        return self._chunks(self._stream.encode(None))

    def _chunks(self, packets: list[Any]) -> list[Chunk]:
        return [
            Chunk(
                "video",
                bytes(packet),
                packet.pts,
                packet.dts if packet.dts is not None else packet.pts,
                packet.duration or 0,
                packet.is_keyframe,
            )
            for packet in packets
        ]


def _low_delay(options: LiveEncoding) -> dict[str, str]:
    """Return the AVOptions with which an encoder delays no picture."""
    name = options.encoder
    if name == "libx264":
        quality = {"crf": f"{21 if options.crf is None else options.crf:g}"}
        return {
            "tune": "zerolatency",
            "preset": options.preset or "veryfast",
            "forced-idr": "1",
        } | (quality if options.bitrate is None else {})
    if name == "libx265":
        return {
            "tune": "zerolatency",
            "preset": options.preset or "ultrafast",
            "forced-idr": "1",
        }
    if name.endswith("_nvenc"):
        return {"preset": options.preset or "p3", "tune": "ull", "delay": "0", "forced-idr": "1"}
    if name == "libsvtav1":
        return {"preset": options.preset or "12", "svtav1-params": "pred-struct=1"}
    if name.startswith("libvpx"):
        return {"deadline": "realtime", "cpu-used": options.preset or "8", "lag-in-frames": "0"}
    return {}


def copy_of(picture: Any) -> av.VideoFrame:
    """Copy a picture with its format, time and color tags."""
    copy = av.VideoFrame(picture.width, picture.height, picture.format.name)
    for target, source in zip(copy.planes, picture.planes, strict=True):
        a = np.frombuffer(cast(Any, target), np.uint8).reshape(-1, target.line_size)
        b = np.frombuffer(cast(Any, source), np.uint8).reshape(-1, source.line_size)
        rows, columns = (min(sides) for sides in zip(a.shape, b.shape, strict=True))
        a[:rows, :columns] = b[:rows, :columns]
    copy.pts = picture.pts
    if picture.time_base is not None:
        copy.time_base = picture.time_base
    copy.color_range, copy.colorspace = picture.color_range, picture.colorspace
    return copy
