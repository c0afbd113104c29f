"""Show two videos or pictures beside each other, in one video.

The planes of the source are put together as they are, so that the comparison shows what the files
hold. Knows no networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.format import VideoFormat
from numpy.typing import NDArray

from vdeblur.errors import InputError, UsageError
from vdeblur.evaluation.lettering import NO_LABELS, can_letter, label
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.media.encoders import EncodeOptions
from vdeblur.media.image_sequences import pictures_of
from vdeblur.media.pixel_formats import CONVERTING, color_arguments, planar_format, planes_of
from vdeblur.media.read_options import ReadOptions
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter

Mode = Literal["side", "stack", "split", "wipe"]
MODES = ("side", "stack", "split", "wipe")

# The display matrix of no turning: frames are composed upright.
_UPRIGHT = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


@dataclass(frozen=True)
class CompareOptions:
    """How to show two videos in one.

    Attributes:
        mode: "side" by side, "stack" one above the other, "split" half and half of one picture, or
            "wipe" with a line that goes to and fro.
        labels: What the two are called; None letters nothing. Labels need Pillow.
        height: Of each picture in pixels; None is that of the first video.
        period: Seconds from one end of a wipe to the other and back.
        start: Seconds into both videos; None is their start.
        duration: Seconds of both videos; None is all.
    """

    mode: Mode = "side"
    labels: tuple[str, str] | None = ("before", "after")
    height: int | None = None
    period: float = 6.0
    start: float | None = None
    duration: float | None = None


def _check(options: CompareOptions) -> None:
    if options.mode not in MODES:
        raise UsageError(f"mode is {options.mode!r}: choose {', '.join(MODES)}")
    if options.height is not None and options.height < 16:
        raise UsageError(f"height is {options.height}: choose 16 pixels or more")
    if not 0 < options.period < math.inf:
        raise UsageError(f"period is {options.period:g}: choose more than 0 seconds")


def compare_video(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    *,
    options: CompareOptions | None = None,
    encode: EncodeOptions | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> list[str]:
    """Write two videos as one video, or two pictures as one picture.

    Frames are matched by their time from each video's first frame. `after` is scaled to the size of
    `before` and converted to its format.

    Args:
        before: A video or picture; sound and all else come from it.
        after: A video or picture.
        output: The file to write.
        options: How to show them.
        encode: As `VideoWriter` takes it.
        overwrite: Replace an output that exists.
        on_progress: Called with the frames written, and those expected or None.

    Returns:
        Notes for the user.

    Raises:
        UsageError: Options are impossible.
        InputError: A file cannot be read.
        OutputError: The output cannot be written.
    """
    options = options or CompareOptions()
    _check(options)
    notes = []
    if options.labels is not None and not can_letter():
        options = replace(options, labels=None)
        notes.append(NO_LABELS)
    read = ReadOptions(start=options.start, duration=options.duration)
    with VideoReader(before, read) as source, VideoReader(after, read) as other:
        partners = _Partners(other)
        compositor = _Compositor(options)
        shown = source.video_streams[0]
        frames = 0

        def composed() -> Iterator[Any]:
            for item in source.items():
                if isinstance(item, Frame) and item.stream == shown:
                    yield compositor.compose(item, partners.at(item))
                else:
                    yield item

        items = composed()
        held: list[Any] = []
        first_frames: dict[int, av.VideoFrame] = {}
        for item in items:
            held.append(item)
            if isinstance(item, Frame) and item.stream == shown:
                # Of several videos the reader knows the first frames ahead: this one has grown.
                first_frames[shown] = item.source_frame
                break
        with VideoWriter(
            output,
            source,
            encode=encode,
            overwrite=overwrite,
            display_matrix=_UPRIGHT,
            first_frames=first_frames,
            also_read=pictures_of(str(after)),
        ) as writer:
            for item in chain(held, items):
                writer.write(item)
                if isinstance(item, Frame) and item.stream == shown:
                    frames += 1
                    if on_progress is not None:
                        on_progress(frames, source.info.frame_count)
            writer.close()
            writer.finish()
            return [*notes, *partners.notes(), *(f"not kept: {line}" for line in writer.lost)]


class _Partners:
    """Finds the other video's frame for a time: the nearest, counted from its first frame."""

    def __init__(self, reader: VideoReader) -> None:
        self.name = reader.name
        self.frames = iter(reader)
        self.now = next(self.frames, None)
        if self.now is None:
            raise InputError(f"no frame of {reader.name} could be decoded: the file is damaged")
        self.begin = self.now.time_seconds
        self.next = next(self.frames, None)
        self.origin: float | None = None
        self.apart = 0.0

    def at(self, frame: Frame) -> Frame:
        if self.origin is None:
            self.origin = frame.time_seconds
        time = frame.time_seconds - self.origin
        assert self.now is not None
        while self.next is not None and self._distance(self.next, time) <= self._distance(
            self.now, time
        ):
            self.now, self.next = self.next, next(self.frames, None)
        self.apart = max(self.apart, self._distance(self.now, time))
        return self.now

    def _distance(self, frame: Frame, time: float) -> float:
        return abs(frame.time_seconds - self.begin - time)

    def notes(self) -> list[str]:
        found = []
        if self.apart > 0.001:
            found.append(
                f"the frames of {self.name} are up to {self.apart:.3f} s away from those beside "
                "them: the nearest in time are shown"
            )
        if self.next is not None:
            found.append(f"{self.name} is longer: its end is not shown")
        return found


class _Compositor:
    """Puts pairs of frames together, upright, as new frames of the first one's format."""

    def __init__(self, options: CompareOptions) -> None:
        self.options = options
        self.origin: float | None = None
        self.format = ""

    def compose(self, before: Frame, after: Frame) -> Frame:
        if self.origin is None:
            self.origin = before.time_seconds
        if not self.format:
            self._set_size(before)
        planes = self._planes(before, None)
        others = self._planes(after, before)
        across, down = self._steps
        width = planes[0].shape[1] // across * across
        height = planes[0].shape[0] // down * down
        mode = self.options.mode
        size = (width * (1 + (mode == "side")), height * (1 + (mode == "stack")))
        picture = av.VideoFrame(*size, self.format)
        layout = replace(before.layout, width=size[0], height=size[1], kind=self._kind)
        place = self._line(before.time_seconds - self.origin, width)
        for target, a, b in zip(planes_of(picture), planes, others, strict=True):
            scale = target.shape[1] / size[0], target.shape[0] / size[1]
            columns, rows = round(width * scale[0]), round(height * scale[1])
            a, b = a[:rows, :columns], b[:rows, :columns]
            if mode in ("side", "stack"):
                target[...] = np.concatenate([a, b], axis=1 if mode == "side" else 0)
            else:
                at = round(place * scale[0])
                target[:, :at], target[:, at:] = a[:, :at], b[:, at:]
        self._letter(planes_of(picture), layout, (width, height), place)
        for name in ("color_range", "colorspace", "color_primaries", "color_trc", "time_base"):
            setattr(picture, name, getattr(before.source_frame, name))
        picture.pts, picture.duration = before.pts, before.duration
        return replace(before, planes=planes_of(picture), layout=layout, source_frame=picture)

    def _set_size(self, frame: Frame) -> None:
        self.format = _without_alpha(planar_format(frame.source_frame.format.name))
        self._rotation = int(getattr(frame.source_frame, "rotation", 0)) % 360
        pixel = VideoFormat(self.format, 64, 64)
        self._kind: Literal["yuv", "rgb", "gray"] = "rgb" if pixel.is_rgb else "yuv"
        if len(pixel.components) == 1:
            self._kind = "gray"
        if self._rotation % 180 and self._kind == "yuv":
            # Turned by a quarter, columns become rows: only equal subsampling stays what it is.
            if pixel.chroma_width() != pixel.chroma_height():
                deep = pixel.components[0].bits
                self.format = "yuv444p" if deep == 8 else f"yuv444p{deep}le"
            pixel = VideoFormat(self.format, 64, 64)
        chroma = (pixel.chroma_width(), pixel.chroma_height()) if self._kind == "yuv" else (64, 64)
        self._steps = 64 // chroma[0], 64 // chroma[1]  # pixels a sample of chroma, across and down
        height = self.options.height
        turned = self._rotation % 180 != 0
        shown = frame.layout.width if turned else frame.layout.height
        scale = 1 if height is None else height / shown
        # The coded size, before turning.
        self._width = max(16, round(frame.layout.width * scale))
        self._height = max(16, round(frame.layout.height * scale))

    def _planes(self, frame: Frame, like: Frame | None) -> list[NDArray[Any]]:
        """Bring a frame's planes upright, to this size and format, in the colours of `like`."""
        rotation = int(getattr(frame.source_frame, "rotation", 0)) % 360
        width, height = self._width, self._height
        if (rotation - self._rotation) % 180:
            width, height = height, width
        source_frame, layout = frame.source_frame, frame.layout
        colours = like is not None and (layout.matrix, layout.full_range, layout.kind) != (
            like.layout.matrix, like.layout.full_range, like.layout.kind,
        )  # fmt: skip
        if (source_frame.width, source_frame.height, source_frame.format.name) != (
            width, height, self.format,
        ) or colours:  # fmt: skip
            conversion = {}
            if colours and like is not None:
                target = like.layout
                conversion = color_arguments(
                    "src", layout.matrix, full_range=layout.full_range
                ) | color_arguments("dst", target.matrix, full_range=target.full_range)
            source_frame = source_frame.reformat(
                width, height, self.format, threads=CONVERTING, **conversion
            )
        return [np.rot90(plane, rotation // 90) for plane in planes_of(source_frame)]

    def _line(self, time: float, width: int) -> int:
        """The line's place in pixels: a multiple of 8, for subsampled chroma."""
        share = 0.5
        if self.options.mode == "wipe":
            share = 0.5 - 0.5 * math.cos(2 * math.pi * time / self.options.period)
        return round(width * share / 8) * 8

    def _letter(self, planes: Any, layout: PlaneLayout, size: tuple[int, int], place: int) -> None:
        width, height = size
        mode = self.options.mode
        cover = np.zeros((layout.height, layout.width), np.float32)
        white = np.zeros_like(cover)
        if self.options.labels is not None:
            tall = max(12, min(width, height) // 16)
            left, right = (label(text, tall, width) for text in self.options.labels)
            starts = {"side": (0, width), "stack": (height, 0)}.get(mode, (0, -1))
            for (box, letters), (top, begin) in zip((left, right), ((0, 0), starts), strict=True):
                begin = layout.width - box.shape[1] if begin < 0 else begin
                spot = np.s_[top : top + tall, begin : begin + box.shape[1]]
                cover[spot], white[spot] = box, letters
            if mode in ("split", "wipe"):
                # A label belongs to its side of the line.
                cover[:, place:][:, : max(0, left[0].shape[1] - place)] = 0
                lost = place - (layout.width - right[0].shape[1])
                cover[:, layout.width - right[0].shape[1] :][:, : max(0, lost)] = 0
                white[cover == 0] = 0
        if mode in ("split", "wipe"):
            thick = max(2, width // 320)
            line = np.s_[:, max(0, place - thick) : place + thick]
            cover[line], white[line] = 1, 1
        touched = np.flatnonzero(cover.any(axis=0))
        if touched.size:
            _paint(planes, layout, cover, white)


def _paint(
    planes: Any, layout: PlaneLayout, cover: NDArray[np.float32], white: NDArray[np.float32]
) -> None:
    """Paint premultiplied gray in [0, 1] over planes, in place, as far as it covers."""
    top = (1 << layout.depth) - 1
    unit = 1 << (layout.depth - 8)
    full = layout.full_range or layout.kind == "rgb"
    for number, plane in enumerate(planes):
        chroma = layout.kind == "yuv" and number > 0
        alpha, value = cover, white
        if chroma:
            down = [-(-n // m) for n, m in zip(cover.shape, plane.shape, strict=True)]
            alpha = cover[:: down[0], :: down[1]][: plane.shape[0], : plane.shape[1]]
        if chroma:
            gray: Any = 128 * unit * alpha
        else:
            low, high = (0, top) if full else (16 * unit, 235 * unit)
            gray = low * alpha + (high - low) * value
        spots = alpha > 0
        mixed = plane[spots] * (1 - alpha[spots]) + gray[spots]
        plane[spots] = np.clip(np.round(mixed), 0, top).astype(plane.dtype)


def _without_alpha(name: str) -> str:
    table = {"rgba": "rgb24", "bgra": "rgb24", "argb": "rgb24", "abgr": "rgb24", "ya8": "gray",
             "ya16le": "gray16le", "rgba64le": "rgb48le", "bgra64le": "rgb48le"}  # fmt: skip
    return table.get(name, name.replace("yuva", "yuv").replace("gbrap", "gbrp"))
