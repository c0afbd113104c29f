"""Streams of a source whose packets are copied into the output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, cast

import av
import av.container
import av.error

from vdeblur.media.containers import Container, copy_tags
from vdeblur.media.header_trial import is_refusal
from vdeblur.media.libav_errors import text_of
from vdeblur.media.losses import Losses
from vdeblur.media.stale_tags import kept_stream_tags
from vdeblur.media.stream_facts import codec_of, name_layout
from vdeblur.media.stream_roles import label_of

#: Seconds of hidden sound before the first that is played: HE-AAC needs 4096 samples.
PRIMING = Fraction(1, 10)

_FRAMED_SOUND = {"aac", "ac3", "mp3"}  # codecs that AVI times by frames


class CopiedStreams:
    """The streams of an output that hold packets of the source.

    Args:
        output: The libav output container.
        container: Its kind.
        demuxer: libav's name of the source's format.
        converts: The output is another kind of container than the source.
        whole: All of the source is copied.
        refused: Why the muxer does not take a stream, by the index in the source.
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
        whole: bool,
        refused: Mapping[int, str],
        losses: Losses,
    ) -> None:
        self.stream_map: dict[int, int] = {}
        self._output, self._container, self._demuxer = output, container, demuxer
        self._converts, self._whole = converts, whole
        self._refused, self._losses = refused, losses
        self._streams: dict[int, Any] = {}
        self._codecs: dict[int, str] = {}
        self._labels: dict[int, str] = {}
        self._counts: dict[int, int] = {}
        self._last_dts: dict[int, int] = {}
        self._refusing: set[int] = set()
        # Packets that are hidden before the first that is shown; None behind that.
        self._hidden: dict[int, list[av.Packet[Any]] | None] = {}

    def add(
        self,
        source: Any,
        label: str,
        template: Any | None = None,
        attached: Iterable[bytes] | None = None,
    ) -> None:
        """Add a stream for one of the source.

        Args:
            source: The source's stream.
            label: What reports call it.
            template: A stream that describes it better.
            attached: The file that it is, in blocks, where the stream does not hold it.
        """
        # These are taken as streams and then refused with the whole header.
        alien = source.type == "attachment" and self._container.name != "matroska"
        if alien or (source.type == "data" and self._converts):
            self._losses.lose(f"{label}: {self._container.name} cannot hold it", source.index)
            return
        codec = codec_of(source)
        if source.type in ("audio", "subtitle") and codec and not self._container.labels(codec):
            why = f"{self._container.name} has no label for {codec}: players would find only data"
            self._losses.lose(f"{label}: {why}", source.index)
            return
        if attached is not None:
            name = source.metadata.get("filename", f"attachment {source.index}")
            kind = source.metadata.get("mimetype", "application/octet-stream")
            stream: Any = self._output.add_attachment(name, kind, b"".join(attached))
        else:
            stream = self._template(source, label, template=template)
        if stream is None:
            return
        if self._container.name == "mp4" and codec and codec.startswith("pcm_"):
            name_layout(stream)
        if source.type == "subtitle" and codec == "mov_text":
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
                attachment.metadata.update(kept_stream_tags(source.metadata, unchanged=True))
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
        for shown in self._shown(packet, index):
            self._write(shown, index, target)

    def _shown(self, packet: av.Packet[Any], index: int) -> list[av.Packet[Any]]:
        """The packets to write now: what an edit list hides must not play in the output.

        A decoder needs what a sound hides at its beginning, and an MP4 hides it again. Another
        container does not: there it may be no longer than an encoder's priming.
        """
        waiting = self._hidden.get(index, [])
        if not packet.is_discard or packet.pts is None:
            self._hidden[index] = None
            return [*(waiting or ()), packet]
        if waiting is None or not self._whole:
            return []
        if self._container.iso:
            return [packet]
        first = cast(int, waiting[0].pts) if waiting else packet.pts
        if (packet.pts - first) * packet.time_base > PRIMING:
            self._hidden[index] = None
        else:
            self._hidden[index] = [*waiting, packet]
        return []

    def _write(self, packet: av.Packet[Any], index: int, target: Any) -> None:
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
        at = cast(int, packet.dts) * packet.time_base if packet.time_base else 0
        packet.stream = target
        try:
            self._output.mux(packet)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if not is_refusal(error):
                raise
            self._refuse(index, float(at), error)
            return
        self._counts[index] = self._counts.get(index, 0) + 1

    def _refuse(self, index: int, seconds: float, error: BaseException) -> None:
        """State that packets of a stream were refused; the film goes on without them."""
        if index not in self._refusing:
            self._refusing.add(index)
            self._losses.lose(
                f"{self._labels[index]}: {self._container.name} refuses packets of it from "
                f"{seconds:.2f} s on ({text_of(error)})",
                "packet count",
                "packet data",
                "packet timestamps",
                "packet duration",
            )

    def lose_empty(self) -> list[int]:
        """State which streams have no packets, of which the container keeps no trace.

        Returns:
            Their indices in the source.
        """
        if self._container.keeps_empty_streams:
            return []
        empty = [index for index in self._labels if not self._counts.get(index)]
        for index in empty:
            label = self._labels[index]
            self._losses.kept.remove(label)
            self._losses.known.add(index)
            if index not in self._refusing:
                where = "" if self._whole else " in the part"
                self._losses.lose(f"{label}: it has no packets{where}", index)
        return empty

    def framed_sound(self) -> list[int]:
        """Return the number of packets of each stream of sound that AVI times by frames."""
        return [
            self._counts.get(index, 0)
            for index, codec in self._codecs.items()
            if codec in _FRAMED_SOUND
        ]

    def _template(
        self, source: Any, label: str, *, template: Any | None = None, opaque: bool | None = None
    ) -> Any | None:
        """Add a stream like one of the source; None, with the loss, if the container has none."""
        why = self._refused.get(source.index)
        if why is None:
            try:
                return self._output.add_stream_from_template(template or source, opaque=opaque)
            except (ValueError, av.error.FFmpegError) as error:
                why = text_of(error)
        self._losses.lose(f"{label}: {self._container.name} cannot hold it ({why})", source.index)
        return None

    def _take(self, stream: Any, source: Any, kept: str) -> None:
        copy_tags(stream, source, self._container, self._demuxer, unchanged=self._whole)
        if source.type == "attachment":
            # Matroska requires both, and refuses the header without them.
            stream.metadata.setdefault("filename", f"attachment {source.index}")
            stream.metadata.setdefault("mimetype", "application/octet-stream")
        else:
            self._streams[source.index] = stream
            self._labels[source.index] = kept
        self._codecs[source.index] = codec_of(source) or ""
        self.stream_map[source.index] = stream.index
        self._losses.kept.append(kept)
