"""Streams of a source whose packets are copied into the output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import av
import av.container
import av.error

from vdeblur.media.containers import Container, copy_tags, stream_tags
from vdeblur.media.libav_errors import text_of
from vdeblur.media.losses import Losses
from vdeblur.media.stream_roles import label_of

_FRAMED_SOUND = {"aac", "ac3", "mp3"}  # codecs that AVI times by frames


class CopiedStreams:
    """The streams of an output that hold packets of the source.

    Args:
        output: The libav output container.
        container: Its kind.
        demuxer: libav's name of the source's format.
        converts: The output is another kind of container than the source.
        losses: Told of what is kept, and of what the container cannot hold.

    Attributes:
        stream_map: Indices of the output's streams by those of the source.
    """

    def __init__(
        self,
        output: av.container.OutputContainer,
        container: Container,
        demuxer: str,
        *,
        converts: bool,
        losses: Losses,
    ) -> None:
        self.stream_map: dict[int, int] = {}
        self._output, self._container, self._demuxer = output, container, demuxer
        self._converts, self._losses = converts, losses
        self._streams: dict[int, Any] = {}
        self._codecs: dict[int, str] = {}
        self._counts: dict[int, int] = {}
        self._last_dts: dict[int, int] = {}

    def add(self, source: Any, label: str) -> None:
        """Add a stream for one of the source; label: what reports call it."""
        # These are taken as streams and then refused with the whole header.
        attached = source.type == "attachment" and self._container.name != "matroska"
        if attached or (source.type == "data" and self._converts):
            self._losses.lose(f"{label}: {self._container.name} cannot hold it", source.index)
            return
        stream = self._template(source, label)
        if stream is None:
            return
        if source.type == "subtitle" and source.codec_context.name == "mov_text":
            # The demuxer leaves the bit rate box in, and the muxer adds it again.
            header = source.codec_context.extradata
            if header and header[-20:-12] == b"\0\0\0\x14btrt":
                stream.codec_context.extradata = header[:-20]
        self._take(stream, source, label)

    def add_cover(self, source: Any, waiting: Iterable[Any]) -> None:
        """Add a cover picture; waiting: the first items of the source, for Matroska."""
        label = label_of(source)
        if self._container.name not in ("matroska", "webm"):
            stream = self._template(source, label, opaque=True)
            if stream is not None:
                self._take(stream, source, "cover picture")
            return
        # A Matroska cover is an attachment; its packet is the first of its stream.
        for item in waiting:
            if isinstance(item, av.Packet) and item.stream.index == source.index:
                name = source.metadata.get("filename", "cover.jpg")
                mime = source.metadata.get("mimetype", "image/jpeg")
                attachment = self._output.add_attachment(name, mime, bytes(item))
                attachment.metadata.update(stream_tags(source.metadata))
                self.stream_map[source.index] = attachment.index
                self._losses.kept.append("cover picture")
                return
        self._losses.lose(f"{label}: its picture could not be read", source.index)

    def copy(self, packet: av.Packet[Any]) -> None:
        """Write a packet of the source, if its stream is copied."""
        index = packet.stream.index
        target = self._streams.get(index)
        if target is None:
            return
        if packet.pts is None and packet.dts is None:
            # A cover picture has no time; anything else follows its predecessor.
            packet.pts = packet.dts = self._last_dts.get(index, -1) + 1
        elif packet.dts is None:
            packet.dts = packet.pts
        dts = cast(int, packet.dts)
        last = self._last_dts.get(index)
        if last is not None:
            loose = target.type in ("subtitle", "data") or self._container.equal_times
            lowest = last if loose else last + 1
            if dts < lowest:
                packet.dts = lowest
                if packet.pts is not None and packet.pts < lowest:
                    packet.pts = lowest
        self._last_dts[index] = cast(int, packet.dts)
        packet.stream = target
        self._counts[index] = self._counts.get(index, 0) + 1
        self._output.mux(packet)

    def framed_sound(self) -> list[int]:
        """Return the number of packets of each stream of sound that AVI times by frames."""
        return [
            self._counts.get(index, 0)
            for index, codec in self._codecs.items()
            if codec in _FRAMED_SOUND
        ]

    def _template(self, source: Any, label: str, *, opaque: bool | None = None) -> Any | None:
        """Add a stream like one of the source; None, with the loss, if the container has none."""
        try:
            return self._output.add_stream_from_template(source, opaque=opaque)
        except (ValueError, av.error.FFmpegError) as error:
            self._losses.lose(
                f"{label}: {self._container.name} cannot hold it ({text_of(error)})", source.index
            )
            return None

    def _take(self, stream: Any, source: Any, kept: str) -> None:
        copy_tags(stream, source, self._container, self._demuxer)
        self._streams[source.index] = stream
        if source.codec_context is not None:
            self._codecs[source.index] = source.codec_context.codec.canonical_name
        self.stream_map[source.index] = stream.index
        self._losses.kept.append(kept)
