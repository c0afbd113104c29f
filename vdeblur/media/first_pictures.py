"""Items that wait until the first picture of every video stream is known, within bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import av.error

from vdeblur.frames import Frame
from vdeblur.media.decoding import prepare_decoder
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.pixel_formats import planar_format, software_format
from vdeblur.media.reader import VideoReader

_HELD_BYTES = 64 << 20
_ITEM_BYTES = 1 << 10  # what a packet takes beside its data


class FirstPictures:
    """The first pictures of a source's video streams, and the items that wait for them.

    Encoders are configured from them, before anything is written. Where one stays away too long,
    the source is read ahead through a second handle; a pipe, of which there is none, is taken at
    the word of its header.

    Args:
        reader: The source.
        known: Pictures that are known already, by stream.

    Attributes:
        pictures: By stream.
        items: That wait, in order.
        assumed: Streams whose pictures are made of their header.
    """

    def __init__(self, reader: VideoReader, known: Mapping[int, av.VideoFrame]) -> None:
        self.pictures = dict(known)
        self.items: list[Frame | av.Packet[Any]] = []
        self.assumed: set[int] = set()
        self._reader = reader
        self._size = 0

    def add(self, item: Frame | av.Packet[Any]) -> bool:
        """Hold an item; return True once nothing needs to wait any longer."""
        self.items.append(item)
        if isinstance(item, Frame):
            self.pictures.setdefault(item.stream, item.source_frame)
            self._size += sum(plane.nbytes for plane in item.planes)
        else:
            self._size += item.size
        self._size += _ITEM_BYTES
        missing = self.missing
        if missing and self._size > _HELD_BYTES:
            if self._reader.path is not None:
                self.pictures |= look_ahead(self._reader.path, missing)
            else:
                self._assume()
            return True
        return not missing

    @property
    def missing(self) -> set[int]:
        """Streams whose first picture is not known."""
        return set(self._reader.video_streams) - set(self.pictures)

    def take(self) -> list[Frame | av.Packet[Any]]:
        """Return what waited, and hold nothing more."""
        items, self.items = self.items, []
        return items

    def _assume(self) -> None:
        for index in self.missing:
            stream = self._reader.container.streams[index]
            context = stream.codec_context
            if not context.width or not context.height:
                continue
            form = planar_format(software_format(stream) or "yuv420p")
            picture = av.VideoFrame(context.width, context.height, form)
            picture.color_range = int(context.color_range)
            picture.color_primaries = int(context.color_primaries)
            picture.color_trc = int(context.color_trc)
            picture.colorspace = int(context.colorspace)
            picture.pts = stream.start_time or 0
            picture.time_base = stream.time_base
            self.pictures[index] = picture
            self.assumed.add(index)


def look_ahead(path: Path, streams: Iterable[int]) -> dict[int, av.VideoFrame]:
    """Return the first pictures of video streams, read through a handle of its own.

    Args:
        path: The file.
        streams: Indices of the streams.

    Returns:
        Pictures by stream; none of a stream that nothing can be decoded of.
    """
    frames: dict[int, av.VideoFrame] = {}
    missing = set(streams)
    try:
        with open_container(for_libav(path)) as container:
            wanted = [container.streams[index] for index in sorted(missing)]
            decoders: dict[int, Any] = {
                s.index: prepare_decoder(s) or s.codec_context for s in wanted
            }
            for packet in container.demux(*wanted):
                index = packet.stream.index
                if index not in missing:
                    continue
                with contextlib.suppress(av.error.FFmpegError, OSError):
                    for frame in decoders[index].decode(packet if packet.size else None)[:1]:
                        frames[index] = frame
                        missing.remove(index)
                if not missing:
                    break
    except (av.error.FFmpegError, OSError, IndexError):
        pass  # damaged: the streams seen so far are described, the main pass reports
    return frames
