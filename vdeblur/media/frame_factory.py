"""Decoded pictures → frames with writable planes.

Knows pictures of libav in memory; knows no files and no packets.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange

from vdeblur.frames import Frame
from vdeblur.media.damage import Damage
from vdeblur.media.pixel_formats import CONVERTING, layout_of, planar_format, planes_of
from vdeblur.media.stream_facts import rate_of


class GpuPicture:
    """A decoded picture in a GPU's memory, which lives as long as this object.

    Attributes:
        size: Width and height in pixels.
    """

    def __init__(self, picture: av.VideoFrame) -> None:
        self._picture = picture
        self.size = picture.width, picture.height

    @property
    def planes(self) -> tuple[Any, ...]:
        """Objects with `__dlpack__`: luma, then Cb and Cr interleaved."""
        return tuple(self._picture.planes)


def to_host(picture: av.VideoFrame, coded: str) -> tuple[av.VideoFrame, GpuPicture | None]:
    """Copy a picture that a device decoded to host memory, where the writer needs it.

    The copy waits for the decoder, so that the planes on the GPU may be read after it.

    Args:
        picture: On the GPU, or in host memory already.
        coded: The planar format of what the stream codes, as decoders on the CPU give it; devices
            interleave chroma, and keep 10 and 12 bits at the high end of 16.

    Returns:
        The picture with its properties in host memory; and the same picture on the GPU, if it is
        there.

    Raises:
        ValueError: The device gives less than is coded.
    """
    form, wanted = picture.sw_format or picture.format, VideoFormat(coded)
    if _chroma(form) != _chroma(wanted) or form.components[0].bits < wanted.components[0].bits:
        raise ValueError(f"pictures in {form.name} instead of {coded}")
    # Only the name of yuvj says that its range is full.
    full = ColorRange.JPEG if coded.startswith("yuvj") else None
    host = picture.reformat(
        format=coded, src_color_range=full, dst_color_range=full, threads=CONVERTING
    )
    host.duration = picture.duration
    return host, None if picture.sw_format is None else GpuPicture(picture)


def _chroma(pixel: VideoFormat) -> tuple[bool, int, int]:
    return len(pixel.components) > 2, pixel.chroma_width(64), pixel.chroma_height(64)


def frame_of(
    picture: av.VideoFrame,
    *,
    pts: int,
    time_base: Fraction,
    codec: str,
    stream: int = 0,
    pix_fmt: str | None = None,
    size: tuple[int, int] | None = None,
) -> Frame:
    """Return a frame over the memory of a picture, which is converted where it has to be.

    Args:
        picture: A decoded picture in host memory; the frame takes it over.
        pts: Presentation time in units of `time_base`.
        time_base: Seconds.
        codec: libav's canonical name of the codec.
        stream: Index of the stream in its file.
        pix_fmt: A format of `planar_format`; None is the picture's own.
        size: Width and height to scale to, in pixels; None is the picture's own.
    """
    width, height = size or (picture.width, picture.height)
    target = pix_fmt or planar_format(picture.format.name)
    flipped = picture.planes[0].line_size < 0  # raw video and BMP may be stored bottom up
    if flipped and target in ("bgr24", picture.format.name):
        target = "gbrp"  # conversion to its own format would leave a picture upside down
    if (width, height, target) != (picture.width, picture.height, picture.format.name):
        duration = picture.duration
        picture = picture.reformat(width, height, target, threads=CONVERTING)
        picture.duration = duration
    picture.make_writable()
    picture.pts, picture.time_base = pts, time_base
    layout = layout_of(
        picture.format.name,
        width,
        height,
        color_range=int(picture.color_range),
        colorspace=int(picture.colorspace),
        interlaced=picture.interlaced_frame,
        codec=codec,
    )
    return Frame(
        planes=planes_of(picture),
        layout=layout,
        pts=pts,
        time_base=time_base,
        duration=picture.duration or 0,
        stream=stream,
        source_frame=picture,
    )


def _has_alpha(picture: av.VideoFrame) -> bool:
    """Whether a color that a picture uses of its palette is transparent."""
    used = np.unique(np.frombuffer(cast(Any, picture.planes[0]), np.uint8))
    alpha = np.frombuffer(cast(Any, picture.planes[1]), np.uint8)[3:1024:4]
    return bool(alpha[used].min() < 255)


class FrameFactory:
    """Make the frames of one stream of a file: of one size and format, with increasing times.

    Args:
        stream: The libav stream.
        first: Its first decoded picture, whose size and format all frames get.
        damage: Told of changes of the size.
        decoding_times: Time frames by when they are decoded: AVI has no other times, and the
            presentation times that libav guesses for it go back and forth.
    """

    def __init__(
        self, stream: Any, first: av.VideoFrame, damage: Damage, *, decoding_times: bool
    ) -> None:
        self._index: int = stream.index
        self._codec: str = stream.codec_context.codec.canonical_name
        self._size = first.width, first.height
        self._format = planar_format(first.format.name)
        if first.format.has_palette and not _has_alpha(first):
            self._format = "rgb24"
        self._time_base: Fraction = stream.time_base or first.time_base or Fraction(1, 90000)
        rate = rate_of(stream) or Fraction(25)
        self._step = max(1, round(1 / (rate * self._time_base)))
        self._damage = damage
        self._decoding_times = decoding_times
        self._noted: tuple[int, int] | None = None  # the size of the last reported change
        self._formats = {first.format.name}  # those that are known, or reported
        self._next: int | None = None
        self._last = 0

    def frame(self, picture: av.VideoFrame) -> Frame:
        """Return the frame of the stream's next picture (in host memory)."""
        size = picture.width, picture.height
        if size not in (self._size, self._noted):
            self._noted = size
            self._damage.note(
                f"the picture changes from {self._size[0]}x{self._size[1]} to "
                f"{size[0]}x{size[1]} at {picture.time or 0:.2f} s: scaled to the first"
            )
        form = picture.format.name
        if form not in self._formats:
            self._formats.add(form)
            if picture.format.has_palette:
                form = "rgba" if _has_alpha(picture) else "rgb24"
            if _loses(form, self._format):
                self._damage.note(
                    f"the picture changes from {self._format} to {form} at "
                    f"{picture.time or 0:.2f} s: converted to the first"
                )
        return frame_of(
            picture,
            pts=self._time(picture),
            time_base=self._time_base,
            codec=self._codec,
            stream=self._index,
            pix_fmt=self._format,
            size=self._size,
        )

    def _time(self, picture: av.VideoFrame) -> int:
        pts = picture.dts if self._decoding_times else picture.pts
        if pts is None:
            pts = self._next if self._next is not None else 0
        elif self._next is not None and pts < self._last + 1:
            # Two pictures of one time (or a step back) would stop the muxer.
            pts = self._last + 1
        self._last = pts
        self._next = pts + (picture.duration or self._step)
        return pts


def _loses(before: str, after: str) -> bool:
    """Whether pixel format `after` cannot hold all of `before`."""
    a, b = VideoFormat(before), VideoFormat(after)
    return (
        a.components[0].bits > b.components[0].bits
        or a.chroma_width(64) > b.chroma_width(64)
        or a.chroma_height(64) > b.chroma_height(64)
        or (a.has_palette or len(a.components) > 2) > (len(b.components) > 2)
        or any(c.is_alpha for c in a.components) > any(c.is_alpha for c in b.components)
    )
