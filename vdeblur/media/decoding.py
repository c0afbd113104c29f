"""The decoder of one video stream: on the CPU, or on a device such as NVDEC as long as that works.

What a device fails at is known only by trying: a codec's profile, a size, its memory, an error in
the middle. Knows codec contexts and packets; knows no files and no torch.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, cast

import av
import av.error
from av.codec.context import CodecContext
from av.codec.context import Flags as CodecFlags
from av.video.codeccontext import VideoCodecContext

from vdeblur.media.damage import Damage
from vdeblur.media.frame_factory import GpuPicture, to_host
from vdeblur.media.libav_errors import reason
from vdeblur.media.pixel_formats import planar_format, software_format

#: What decoders of devices raise: which it is depends on the device.
DEVICE_FAILURES = (av.error.FFmpegError, OSError, ValueError, RuntimeError)

#: A picture in host memory, and the same in a GPU's, where one decoded it and left it there.
Decoded = tuple[av.VideoFrame, GpuPicture | None]

_HELD = 32  # packets whose pictures a device may still hold; codecs reorder 16 at most
_KEPT_BYTES = 256 << 20


class StreamDecoder:
    """Decode a stream, and count what cannot be decoded.

    Where the stream was opened with a device, packets are kept from a keyframe on, so that the CPU
    goes on without losing a picture at the first error of the device.

    Args:
        stream: The libav stream, of a file that is open for reading.
        damage: Told of what cannot be decoded.
        note: Told how a device failed.
    """

    def __init__(self, stream: Any, damage: Damage, note: Callable[[str], object]) -> None:
        self._stream, self._damage, self._note = stream, damage, note
        other = prepare_decoder(stream)
        self._context: Any = other or stream.codec_context
        self.on_device: bool = self._context.is_hwaccel
        if self.on_device:
            # Threads take turns on a device, and each takes surfaces, of which NVDEC has 32.
            self._context.thread_count = 1
            self._context.flags |= int(CodecFlags.copy_opaque)
        self._kept: deque[av.Packet[Any]] = deque()
        self._kept_bytes = self._count = 0
        # Pictures of the device by their packets, which are numbered: some files have no times.
        self._given = Counter[Any]()
        self._coded = planar_format(software_format(stream) or "yuv420p")
        self._cut_short = "mov" in stream.container.format.name

    def decode(self, packet: av.Packet[Any]) -> list[Decoded]:
        """Return the pictures that a packet completes; an empty one completes all."""
        if not self.on_device:
            return [
                (picture, None) for picture in self._decode(packet) if not self._was_given(picture)
            ]
        self._keep(packet)
        try:
            pictures = self._context.decode(packet if packet.size else None)
            found = [to_host(picture, self._coded) for picture in pictures]
        except DEVICE_FAILURES as error:
            self._note(f"failed{_place(packet)} ({reason(error)})")
            self.on_device = False
            self._context = _decoder_of(self._stream)
            self._context.flags |= int(CodecFlags.copy_opaque)
            again = [picture for kept in self._kept for picture in self._decode(kept)]
            self._kept.clear()
            return [(picture, None) for picture in again if not self._was_given(picture)]
        self._given.update(picture.opaque for picture in pictures)
        self._describe([picture for picture, _ in found])
        return found

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame]:
        pictures: list[av.VideoFrame] = []
        try:
            if packet.is_corrupt and self._cut_short:
                # The last packet of a file that was cut off: threads of the decoder would lose the
                # pictures before it with it.
                pictures = self._context.decode(None)
                self._context.flush_buffers()
            pictures += self._context.decode(packet if packet.size else None)
        except (av.error.FFmpegError, OSError) as error:
            if not isinstance(error, av.error.EOFError):
                self._damage.packets += 1
                self._damage.note(
                    f"a damaged packet{_place(packet)} could not be decoded ({reason(error)})"
                )
        self._describe(pictures)
        return pictures

    def _describe(self, pictures: list[av.VideoFrame]) -> None:
        for picture in pictures:
            picture.time_base = self._stream.time_base
            if picture.is_corrupt:
                self._damage.frames += 1
                self._damage.note(
                    f"the frame at {picture.time or 0:.2f} s is damaged in the source"
                )

    def _keep(self, packet: av.Packet[Any]) -> None:
        """Keep a packet, and drop those before the last keyframe whose pictures are all out."""
        packet.opaque = self._count
        self._count += 1
        if packet.is_keyframe:
            out = max(0, len(self._kept) - _HELD)
            begin = max((n for n in range(out) if self._kept[n].is_keyframe), default=0)
            for _ in range(begin):
                self._drop()
        self._kept.append(packet)
        self._kept_bytes += packet.size
        while self._kept_bytes > _KEPT_BYTES:
            self._drop()

    def _drop(self) -> None:
        packet = self._kept.popleft()
        self._kept_bytes -= packet.size
        del self._given[packet.opaque]

    def _was_given(self, picture: av.VideoFrame) -> bool:
        """Whether the device has given this picture already; each picture is asked for once."""
        given = self._given[picture.opaque] > 0
        self._given[picture.opaque] -= given
        return given


def prepare_decoder(stream: Any) -> VideoCodecContext | None:
    """Set up the decoder of a libav video stream; return another one where that is better."""
    context = _set_up(stream.codec_context)
    if stream.metadata.get("alpha_mode") != "1" or context.name not in ("vp8", "vp9"):
        return None
    # The native decoders drop the alpha plane (FFmpeg ticket 8344); libvpx keeps it.
    return _decoder_of(stream, "libvpx" if context.name == "vp8" else "libvpx-vp9")


def _decoder_of(stream: Any, name: str | None = None) -> VideoCodecContext:
    """Make a decoder of a stream on the CPU."""
    known = stream.codec_context
    decoder = cast(VideoCodecContext, CodecContext.create(name or known.name, "r"))
    decoder.extradata = known.extradata
    decoder.width, decoder.height = known.width, known.height  # some codecs do not state them
    return _set_up(decoder)


def _set_up(context: VideoCodecContext) -> VideoCodecContext:
    context.thread_type = "AUTO"
    # Without it libav rounds a left crop to what its SIMD likes, and the picture grows.
    context.flags |= int(CodecFlags.unaligned)
    return context


def _place(packet: av.Packet[Any]) -> str:
    at = packet.pts if packet.pts is not None else packet.dts
    return "" if at is None else f" near {float(at * packet.time_base):.2f} s"
