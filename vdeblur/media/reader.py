"""A file, an image sequence or a pipe → decoded frames, and the packets of every other stream.

Frames come as writable planes over the decoder's own memory, so that their times, side data and
color tags stay with them. Knows libav; knows no torch, no CUDA, no network and no output.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import av.error
from av.codec.context import CodecContext
from av.codec.context import Flags as CodecFlags
from av.video.codeccontext import VideoCodecContext

from vdeblur.errors import InputError
from vdeblur.frames import Frame, VideoInfo
from vdeblur.media.damage import Damage
from vdeblur.media.frame_factory import FrameFactory, to_host
from vdeblur.media.image_sequences import is_image
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.libav_errors import reason
from vdeblur.media.metadata import carry
from vdeblur.media.mp4 import boxes
from vdeblur.media.opening import name_of, open_source, path_of
from vdeblur.media.picture_reader import PictureReader
from vdeblur.media.pixel_formats import layout_of, planar_format, software_format
from vdeblur.media.read_options import Clip, ReadOptions
from vdeblur.media.stream_roles import streams_of
from vdeblur.media.timeline import RESTARTING, Timeline
from vdeblur.system.closing import ClosingGuard

# Demuxers of containers that state their duration, and end without an error where they are cut off.
_STATE_DURATION = {"matroska", "webm", "avi", "flv"}
_PATIENCE_SECONDS = 1.0  # for a read that does not return, before the source is left open
_FLV_TAIL = 1 << 16  # bytes from the last packet of an FLV, in which another file would begin
_PACKETS_BEHIND = 1000  # of other streams, that are read behind the last picture of a part
_TRUNCATED_SECONDS = 0.25  # less than stated: a frame or a packet of sound may be


class VideoReader:
    """Read a video: `for frame in VideoReader(path)` iterates over its first video stream.

    Args:
        source: A path, an image2 pattern (`frames/%05d.png`), or "-" for standard input.
        options: How to read it. The other keywords are its fields, for short; they replace those
            of `options`.
        start: Seconds at which the part to read begins; its times are shifted to begin at 0.
        duration: Seconds of the part.
        framerate: Frames a second of an image sequence.
        start_number: Number of the first picture of an image sequence.
        hwaccel: libav's type of a device that decodes, such as "cuda".
        on_device: With hwaccel "cuda", frames also carry their decoded planes in the GPU's memory
            (`Frame.on_device`).

    Attributes:
        source: As given.
        name: What messages call the source.
        path: The file on disk, or None for a pipe or an image sequence.
        options: How it is read.
        pictures: The numbered pictures of an image sequence; None for other sources.
        picture_metadata: Kinds of metadata of a picture, or of a sequence's first, in words.
        container: The libav input container: the writer's template.
        info: The first video stream.
        roles: What becomes of each stream, by its index (see `vdeblur.media.stream_roles`).
        tracks: The MP4 tracks, by the index of their stream.
        iso: The source is an MP4 or MOV file whose boxes can be read.
        video_streams: Indices of the streams whose frames are restored.
        first_frames: First frames known ahead, by stream, of files with several video streams.
        frame_times: Times of the frames so far (pts), by stream; 8 bytes a frame.
        damage: What could not be decoded so far.
        notes: What else a user should know.

    Raises:
        InputError: The source is missing, empty, unreadable or no video.
        UsageError: The type of device is unknown.
    """

    def __init__(
        self,
        source: str | Path,
        options: ReadOptions | None = None,
        *,
        start: float | None = None,
        duration: float | None = None,
        framerate: Fraction | None = None,
        start_number: int | None = None,
        hwaccel: str | None = None,
        on_device: bool = False,
    ) -> None:
        self.source = source
        self.name = name_of(source)
        self.path = path_of(source)
        self.options = ReadOptions.of(
            options,
            start=start,
            duration=duration,
            framerate=framerate,
            start_number=start_number,
            hwaccel=hwaccel,
        )
        self.damage = Damage()
        self.frame_times: dict[int, array[int]] = {}
        self._guard = ClosingGuard()
        self._reached = 0.0  # seconds: the latest end of any packet so far
        self._place = -1  # of the last packet in the file
        opened = open_source(source, self.options, on_device=on_device)
        self.notes = opened.notes
        self._pictures = opened.pictures
        self.pictures = opened.pictures.pictures if opened.pictures is not None else None
        is_picture = self.path is not None and is_image(self.path)
        # Orientation of a single picture, and whether its file is cut off
        self._picture: tuple[int, bool] | None = None
        self.picture_metadata = [] if opened.pictures is None else opened.pictures.metadata
        if is_picture:
            data = cast(Path, self.path).read_bytes()
            self._picture, self.picture_metadata = carry.inspect(data), carry.read(data).names
        self._clipped = 0  # ticks that the times of an image sequence are shifted by
        self._container, self._file = opened.container, opened.file
        try:
            streams = streams_of(self._container, self.path, self.name, self.damage)
            self.roles, self.tracks, self.iso = streams.roles, streams.tracks, streams.iso
            self.video_streams = streams.videos
            self._decoders = {
                index: decoder
                for index in self.video_streams
                if (decoder := _prepare_decoder(self._container.streams[index])) is not None
            }
            first = self._container.streams[self.video_streams[0]]
            self.info = _info_of(first, self._container.duration, self.options, opened.pictures)
            if is_picture and not self.info.width:
                raise InputError(f"no picture of {self.name} could be decoded: the file is damaged")
            several = len(self.video_streams) > 1 and self.path is not None
            self.first_frames = self._peek() if several else {}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the source. Frames that were read stay valid."""
        self._guard.close(self._close, _PATIENCE_SECONDS)

    def _close(self) -> None:
        self._container.close()
        if self._file is not None:
            self._file.close()

    @property
    def container(self) -> Any:
        """The libav input container: the writer's template."""
        return self._container

    def __iter__(self) -> Iterator[Frame]:
        first = self.video_streams[0]
        for item in self.items():
            if isinstance(item, Frame) and item.stream == first:
                yield item

    def items(self) -> Iterator[Frame | av.Packet[Any]]:
        """Iterate over frames of the video streams and packets of all others, in file order.

        Packets that cannot be decoded are counted in `damage` and passed over.
        """
        items = self._items()
        while True:
            with self._guard.in_use():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def _items(self) -> Iterator[Frame | av.Packet[Any]]:
        clip = Clip.of(self.options, self._container)
        factories: dict[int, FrameFactory] = {}
        ended: set[int] = set()
        # Sound may lie behind the pictures of its time.
        sound = {s.index for s in self._container.streams.audio if self.roles[s.index] == "copy"}
        behind = 0
        if clip.start:
            self._seek(clip)
        if self._pictures is not None:
            yield from self._sequence(self._pictures, clip)
            return
        for packet in self._packets():
            index = packet.stream.index
            role = self.roles.get(index, "dropped")
            if role == "video":
                for picture in () if index in ended else self._decode(packet, index):
                    frame = self._frame(picture, packet.stream, factories)
                    if clip.is_part:
                        seconds = float(frame.pts * frame.time_base)
                        if clip.is_over(seconds):
                            ended.add(index)
                            break
                        if not clip.contains(seconds):
                            continue
                        frame.pts -= clip.shift[index]
                        frame.source_frame.pts = frame.pts
                    self.frame_times.setdefault(index, array("q")).append(frame.pts)
                    yield frame
            elif index in sound and clip.is_behind(packet):
                sound.discard(index)
            elif packet.size and (role == "cover" or (role == "copy" and clip.take(packet))):
                yield packet
            if clip.end is not None and len(ended) == len(self.video_streams):
                behind += 1
                if not sound or behind > _PACKETS_BEHIND:
                    return
        self._check_complete()

    def picture_of(self, pts: int) -> tuple[int | None, Path] | None:
        """Return the number and the file of the picture that a frame was; None if not of a picture.

        Args:
            pts: Of the frame, in ticks.
        """
        if self.pictures is not None:
            number = self.pictures.number(pts + self._clipped)
            return number, self.pictures.path(number)
        return (None, self.path) if self.path is not None and is_image(self.path) else None

    @property
    def first_picture(self) -> Path | None:
        """The file of a source that is a picture, or the first of a sequence."""
        return self.path if self.pictures is None else self.pictures.path(self.pictures.numbers[0])

    @property
    def orientations(self) -> list[int]:
        """EXIF orientations of the pictures of a source, the first one's first; none of a film."""
        if self._pictures is not None:
            return list(self._pictures.orientations)
        return [] if self._picture is None else [self._picture[0]]

    # -- reading ---------------------------------------------------------------------------------

    def _sequence(self, pictures: PictureReader, clip: Clip) -> Iterator[Frame]:
        """The frames of an image sequence; each belongs to its number, so none is retimed."""
        stream = self._container.streams[self.video_streams[0]]
        self._clipped = clip.shift.get(stream.index, 0)
        factories: dict[int, FrameFactory] = {}
        for ticks, picture in pictures.frames(self.damage):
            seconds = float(ticks * pictures.time_base)
            if clip.is_over(seconds):
                return
            if clip.contains(seconds):
                frame = self._frame(picture, stream, factories)
                frame.pts -= self._clipped
                frame.source_frame.pts = frame.pts
                self.frame_times.setdefault(stream.index, array("q")).append(frame.pts)
                yield frame

    def _frame(
        self, decoded: av.VideoFrame, stream: Any, factories: dict[int, FrameFactory]
    ) -> Frame:
        picture, on_gpu = to_host(decoded)
        factory = factories.get(stream.index)
        if factory is None:
            decoding_times = self._container.format.name == "avi"
            factory = FrameFactory(stream, picture, self.damage, decoding_times=decoding_times)
            factories[stream.index] = factory
        frame = factory.frame(picture)
        if on_gpu is not None and on_gpu.size == (frame.layout.width, frame.layout.height):
            frame.on_device = on_gpu
        return frame

    def _seek(self, clip: Clip) -> None:
        """Go to a keyframe before the clip, where the source can be sought."""
        # MPEG-TS seeks are late or impossible (no index, and a clock that may begin again).
        if self.path is None or self._container.format.name in RESTARTING:
            return
        # One second earlier: an open GOP's leading frames need what precedes them.
        target = int((clip.origin + max(0.0, clip.start - 1.0)) * av.time_base)
        try:
            self._container.seek(target, backward=True)
        except (av.error.FFmpegError, OSError):
            self.notes.append("the source cannot be sought: reading up to `start`")

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = Timeline(self._container, self._container.demux())
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError) as error:
                self.damage.packets += 1
                self.damage.note(
                    f"reading stopped at {self._reached:.2f} s: {reason(error)}; the rest is lost"
                )
                # What the decoders still hold is part of the video.
                for index in self.video_streams:
                    flush = av.Packet(0)
                    flush.stream = self._container.streams[index]
                    yield flush
                return
            self._place = packet.pos if packet.pos is not None and packet.size else self._place
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None:
                end = float((at + (packet.duration or 0)) * packet.time_base)
                self._reached = max(self._reached, end)
            yield packet

    def _decode(self, packet: av.Packet[Any], index: int) -> list[av.VideoFrame]:
        try:
            if index in self._decoders:
                decoder = self._decoders[index]
                frames = decoder.decode(packet if packet.size else None)
                for frame in frames:
                    frame.time_base = packet.stream.time_base
            else:
                frames = packet.decode()
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, av.error.EOFError):
                return []
            self.damage.packets += 1
            at = packet.pts if packet.pts is not None else packet.dts
            where = f" near {float(at * packet.time_base):.2f} s" if at is not None else ""
            self.damage.note(f"a damaged packet{where} could not be decoded ({reason(error)})")
            return []
        for frame in frames:
            if frame.is_corrupt:
                self.damage.frames += 1
                self.damage.note(f"the frame at {frame.time or 0:.2f} s is damaged in the source")
        return frames

    def _check_complete(self) -> None:
        """Note a source that ends before the end that it states."""
        if self.path is None:
            return
        if self._picture is not None and self._picture[1]:
            self.damage.note(f"{self.path.name} is cut off: its end is missing")
        if self.iso:
            missing = boxes.missing_bytes(self.path)
            if missing:
                self.damage.note(
                    f"the source is cut off: {missing} bytes that its index names are not there"
                )
        if self._container.format.name == "flv" and self._place >= 0:
            with self.path.open("rb") as file:
                file.seek(self._place)
                if b"FLV\x01" in file.read(_FLV_TAIL):
                    self.damage.note(
                        f"another FLV file begins behind {self._reached:.2f} s, which libav does "
                        "not read: restore the parts one by one"
                    )
        states = _STATE_DURATION & set(self._container.format.name.split(","))
        stated = (self._container.duration or 0) / av.time_base
        if states and self.options.whole and self._reached < stated - _TRUNCATED_SECONDS:
            self.damage.note(
                f"the source is cut off: it ends at {self._reached:.2f} s "
                f"though it states {stated:.2f} s"
            )

    def _peek(self) -> dict[int, av.VideoFrame]:
        """The first frame of every video stream, read through a second handle."""
        frames: dict[int, av.VideoFrame] = {}
        try:
            again = for_libav(cast(Path, self.path))
            with open_container(again) as container:
                for packet in container.demux(*(container.streams[i] for i in self.video_streams)):
                    index = packet.stream.index
                    if index in frames:
                        continue
                    for frame in packet.decode():
                        frames.setdefault(index, cast(av.VideoFrame, frame))
                    if len(frames) == len(self.video_streams):
                        break
        except (av.error.FFmpegError, OSError):
            pass  # damaged: the streams seen so far are described, the main pass reports
        return frames


def _prepare_decoder(stream: Any) -> VideoCodecContext | None:
    """Set up the decoder of a video stream; return another one where that is better."""
    stream.thread_type = "AUTO"
    context = stream.codec_context
    # Without it libav rounds a left crop to what its SIMD likes, and the picture grows.
    context.flags |= int(CodecFlags.unaligned)
    if stream.metadata.get("alpha_mode") != "1" or context.name not in ("vp8", "vp9"):
        return None
    # The native decoders drop the alpha plane (FFmpeg ticket 8344); libvpx keeps it.
    name = "libvpx" if context.name == "vp8" else "libvpx-vp9"
    decoder = cast(VideoCodecContext, CodecContext.create(name, "r"))
    decoder.extradata = context.extradata
    return decoder


def _info_of(
    stream: Any,
    container_duration: int | None,
    options: ReadOptions,
    sequence: PictureReader | None,
) -> VideoInfo:
    """Describe a stream, or the part of it that is read; container_duration: in microseconds."""
    context = stream.codec_context
    pix_fmt = software_format(stream) or "yuv420p"
    seconds = None
    if sequence is not None:
        seconds = float(sequence.pictures.length * sequence.time_base)
    elif stream.duration:
        seconds = float(stream.duration * stream.time_base)
    elif container_duration:
        seconds = container_duration / av.time_base
    count = stream.frames or None
    if sequence is not None:
        count = len(sequence.pictures.numbers)
    if not options.whole:
        whole = seconds or 0.0
        part = max(0.0, whole - (options.start or 0.0))
        part = min(part, options.duration) if options.duration is not None else part
        count = round(count * part / whole) if count and whole else None
        seconds = part if whole else options.duration
    if count is None and seconds and stream.average_rate:
        count = max(1, round(seconds * stream.average_rate))
    return VideoInfo(
        width=context.width,
        height=context.height,
        pix_fmt=pix_fmt,
        codec=context.codec.canonical_name,
        fps=stream.average_rate,
        time_base=stream.time_base,
        duration_seconds=seconds,
        frame_count=count,
        layout=layout_of(
            planar_format(pix_fmt),
            context.width,
            context.height,
            color_range=int(context.color_range),
            colorspace=int(context.colorspace),
            interlaced=False,
            codec=context.codec.canonical_name,
        ),
    )
