"""The pictures of a numbered sequence → decoded frames, each by itself.

A picture that cannot be read is one that is missing; no other takes its time or its number. Knows
libav; knows no motion and no output.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import av.error
from av.codec.context import CodecContext
from av.video.codeccontext import VideoCodecContext

from vdeblur.errors import InputError
from vdeblur.media.damage import Damage
from vdeblur.media.image_sequences import NumberedPictures
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.libav_errors import reason
from vdeblur.media.metadata import carry
from vdeblur.media.picture_formats import check_picture

_FAILURES = (av.error.FFmpegError, OSError, ValueError, IndexError, InputError)
_MAGIC = 2  # leading bytes that tell formats of pictures apart
_MOST_THREADS = 8


class PictureReader:
    """Decode the pictures of a sequence, some of them ahead.

    Args:
        pictures: The sequence.
        settings: Options of libav's demuxer.

    Attributes:
        pictures: The sequence.
        container: The libav input container of the first picture that can be decoded.
        time_base: Seconds from one number to the next.
        orientations: EXIF orientations of the pictures so far, with their number; the first is that
            of `container`.
        metadata: Kinds of metadata of that first picture, in words.

    Raises:
        InputError: No picture can be decoded.
    """

    def __init__(self, pictures: NumberedPictures, settings: dict[str, str]) -> None:
        self.pictures = pictures
        first: str | None = None
        for number in pictures.numbers:
            try:
                path = pictures.path(number)
                check_picture(path)
                data = path.read_bytes()
                self.container = open_container(for_libav(path), settings)
                stream = self.container.streams.video[0]
                self.time_base = stream.time_base or Fraction(1, 25)
                self._codec = stream.codec_context.codec.name
                kind = self.container.format.name
                self._whole = kind == "image2" or kind.endswith("_pipe")  # a file is a packet
                self._magic = data[:_MAGIC]
                self._decode(path, data)
                self.orientations = Counter({carry.inspect(data)[0]: 0})
                self.metadata = carry.read(data).names
            except _FAILURES as error:
                first = first or f"{pictures.path(number)}: {reason(error)}"
            else:
                break
        else:
            raise InputError(
                f"no picture of {pictures.pattern} could be decoded ({first}): the files are "
                "damaged"
            )

    def frames(self, damage: Damage) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode all pictures in order.

        Args:
            damage: Told of pictures that are missing, unreadable or cut off.

        Yields:
            The time of a picture's number, in frames from the first, and the picture.
        """
        gaps = self.pictures.gaps()
        if gaps:
            damage.note(gaps)
        base = self.time_base
        numbers = self.pictures.numbers
        ends = [self.pictures.ticks(number) for number in numbers[1:]] + [self.pictures.length]
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        ahead: deque[tuple[int, int, Future[tuple[av.VideoFrame, int, bool]]]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="pictures") as pool:
            todo = zip(numbers, ends, strict=True)
            while True:
                while len(ahead) <= threads and (following := next(todo, None)) is not None:
                    ahead.append((*following, pool.submit(self._read, following[0])))
                if not ahead:
                    return
                number, end, result = ahead.popleft()
                try:
                    frame, orientation, cut_off = result.result()
                except _FAILURES as error:
                    damage.packets += 1
                    damage.note(f"{self.pictures.path(number)} cannot be decoded ({reason(error)})")
                    continue
                self.orientations[orientation] += 1
                if cut_off:
                    damage.frames += 1
                    damage.note(f"{self.pictures.path(number)} is cut off: its end is missing")
                ticks = self.pictures.ticks(number)
                frame.pts, frame.time_base, frame.duration = ticks, base, end - ticks
                yield ticks, frame

    def _read(self, number: int) -> tuple[av.VideoFrame, int, bool]:
        """Return a picture, its EXIF orientation, and whether its file is cut off."""
        path = self.pictures.path(number)
        check_picture(path)
        data = path.read_bytes()
        return self._decode(path, data), *carry.inspect(data)

    def _decode(self, path: Path, data: bytes) -> av.VideoFrame:
        if not data:
            raise ValueError("it is empty")
        if self._whole and data[:_MAGIC] == self._magic:
            return _decode(data, self._codec)
        with open_container(for_libav(path)) as container:
            return _first(container.decode(video=0))


def _decode(data: bytes, codec: str) -> av.VideoFrame:
    """Decode a file that is one packet, as those of pictures are, on this thread."""
    context = cast(VideoCodecContext, CodecContext.create(codec, "r"))
    context.thread_count = 1
    return _first([*context.decode(av.Packet(data)), *context.decode(None)])


def _first(frames: Iterable[av.VideoFrame]) -> av.VideoFrame:
    for frame in frames:
        return frame
    raise ValueError("it holds no picture")
