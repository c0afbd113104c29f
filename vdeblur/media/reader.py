"""A file, an image sequence or a pipe → decoded frames, and the packets of every other stream.

Frames come as writable planes over the decoder's own memory, so that their times, side data and
color tags stay with them. Knows libav; knows no torch, no CUDA, no network and no output.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import av.error

from vdeblur.errors import InputError
from vdeblur.frames import Frame, VideoInfo
from vdeblur.media.cut_off import end_notes
from vdeblur.media.damage import Damage
from vdeblur.media.decoding import StreamDecoder
from vdeblur.media.frame_factory import FrameFactory, GpuPicture
from vdeblur.media.image_sequences import is_image
from vdeblur.media.libav_errors import reason
from vdeblur.media.matroska import LeanFile
from vdeblur.media.metadata import carry
from vdeblur.media.opening import name_of, open_source, path_of
from vdeblur.media.picture_reader import PictureReader
from vdeblur.media.pixel_formats import layout_of, planar_format, software_format
from vdeblur.media.probing import LateDescriptions, late_streams
from vdeblur.media.read_options import Clip, ReadOptions
from vdeblur.media.stream_facts import rate_of, repeats_field
from vdeblur.media.stream_roles import streams_of
from vdeblur.media.timeline import RESTARTING, Timeline
from vdeblur.system.closing import ClosingGuard

_PATIENCE_SECONDS = 1.0  # for a read that does not return, before the source is left open
_PACKETS_BEHIND = 1000  # of other streams, that are read behind the last picture of a part
_AHEAD_BYTES = 64 << 20  # of packets that wait for a first picture whose size is not known


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
        gpu: With hwaccel "cuda", the index of the GPU whose CUDA context is current on this thread
            (`vdeblur.inference.gpu_frames.current_context`): frames also carry their decoded planes
            in its memory (`Frame.on_device`).

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
        templates: Streams that describe those of `container` that libav knows too little of at its
            opening, by their index.
        frame_times: Times of the frames so far (pts), by stream; 8 bytes a frame.
        telecined: Video streams whose pictures repeat fields, as films on DVD (soft telecine) do.
        late_streams: Streams that appeared while reading, and could not be read.
        damage: What could not be decoded so far.
        notes: What else a user should know.
        lean: The source as libav gets it, where that is not all of it.

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
        gpu: int | None = None,
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
        self.late_streams, self.telecined = list[str](), set[int]()
        self._guard = ClosingGuard()
        self._reached = 0.0  # seconds: the latest end of any packet so far
        self._place = -1  # of the last packet in the file
        self._late: LateDescriptions | None = None
        self._decoders: dict[int, StreamDecoder] = {}
        # Orientation of a single picture, and whether its file is cut off; before libav holds it.
        self._picture, names = _picture_facts(self.path)
        opened = open_source(source, self.options, gpu=gpu)
        self.notes = opened.notes
        self._pictures = opened.pictures
        self.pictures = opened.pictures.pictures if opened.pictures is not None else None
        self.picture_metadata = names if opened.pictures is None else opened.pictures.metadata
        self._clipped = 0  # ticks that the times of an image sequence are shifted by
        self._container, self._file = opened.container, opened.file
        self.lean = opened.file if isinstance(opened.file, LeanFile) else None
        try:
            streams = streams_of(self._container, self.path, self.name, self.damage)
            self.roles, self.tracks, self.iso = streams.roles, streams.tracks, streams.iso
            self.video_streams = streams.videos
            self._decoders = {
                index: StreamDecoder(self._container.streams[index], self.damage, self._note_device)
                for index in self.video_streams
            }
            wanted = self.options.hwaccel not in (None, "none") and not self.notes
            if wanted and not all(decoder.on_device for decoder in self._decoders.values()):
                self._note_device("decodes only some of the video")
            self._late = LateDescriptions(self._container, self.path)
            self.templates = self._late.templates
            first = self._container.streams[self.video_streams[0]]
            self._ahead: deque[Frame | av.Packet[Any]] = deque()
            self._reading: Iterator[Frame | av.Packet[Any]] | None = None
            known: Any = first.codec_context
            picture = None
            if opened.pictures is None and not (known.width and known.height):
                picture = self._read_ahead(first.index)
            self.info = _info_of(
                first, self._container.duration, self.options, opened.pictures, picture
            )
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
        if self._late is not None:
            self._late.close()
        self._decoders.clear()  # a device's are few
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
        reading, self._reading = self._reading or self._items(), None
        while self._ahead:
            yield self._ahead.popleft()
        while True:
            with self._guard.in_use():
                try:
                    item = next(reading)
                except StopIteration:
                    return
            yield item

    def _read_ahead(self, index: int) -> av.VideoFrame:
        """Read up to the first picture of a stream whose size libav does not know."""
        self._reading = self._items()
        size = 0
        for item in self._reading:
            self._ahead.append(item)
            if isinstance(item, Frame):
                if item.stream == index:
                    return cast(av.VideoFrame, item.source_frame)
                size += sum(plane.nbytes for plane in item.planes)
            else:
                size += item.size
            if size > _AHEAD_BYTES:
                break
        raise InputError(
            f"no picture of {self.name} could be decoded: the file is damaged"
            + ("" if self._picture else ", or a part of a recording that has no keyframe")
        )

    def _items(self) -> Iterator[Frame | av.Packet[Any]]:
        clip = Clip.of(self.options, self._container)
        factories: dict[int, FrameFactory] = {}
        ended: set[int] = set()
        # Sound may lie behind the pictures of its time.
        sound = {s.index for s in self._container.streams.audio if self.roles[s.index] == "copy"}
        behind = 0
        leads: dict[int, int | None] = {}  # first packets that are no keyframes, their times
        if clip.start:
            self._seek(clip)
        if self._pictures is not None:
            yield from self._sequence(self._pictures, clip)
            return
        for packet in self._packets():
            index = packet.stream.index
            role = self.roles.get(index, "dropped")
            if role == "video":
                leads.setdefault(index, None if packet.is_keyframe else packet.pts)
                self.telecined |= {index} if repeats_field(packet) else set()
                decoder = self._decoders[index]
                for picture, on_gpu in () if index in ended else decoder.decode(packet):
                    if index not in factories and self.options.whole:
                        _note_lead(leads[index], picture, packet.stream, self.damage)
                    frame = self._frame(picture, packet.stream, factories, on_gpu)
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
        self,
        picture: av.VideoFrame,
        stream: Any,
        factories: dict[int, FrameFactory],
        on_gpu: GpuPicture | None = None,
    ) -> Frame:
        factory = factories.get(stream.index)
        if factory is None:
            decoding_times = self._container.format.name == "avi"
            factory = FrameFactory(stream, picture, self.damage, decoding_times=decoding_times)
            factories[stream.index] = factory
        frame = factory.frame(picture)
        if on_gpu is not None and on_gpu.size == (frame.layout.width, frame.layout.height):
            frame.on_device = on_gpu
        return frame

    def _note_device(self, what: str) -> None:
        self.notes.append(f"{self.options.hwaccel} {what}: the CPU decodes the rest")

    def _seek(self, clip: Clip) -> None:
        """Go to a keyframe before the clip, where the source can be sought."""
        # MPEG-TS seeks are late or impossible (no index, and a clock that may begin again). In a
        # cut MP4, libav searches the hidden samples, too.
        cut = any(track.is_cut for track in self.tracks.values())
        if self.path is None or self._container.format.name in RESTARTING or cut:
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
            except (StopIteration, IndexError):
                # IndexError: at the end PyAV looks for streams that appeared meanwhile.
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

    def _check_complete(self) -> None:
        """Note a source that ends before the end that it states, and streams that were not read."""
        self.late_streams = late_streams(self._container)
        if self.path is None:
            return
        if self._picture is not None and self._picture[1]:
            self.damage.note(f"{self.path.name} is cut off: its end is missing")
        stated = (self._container.duration or 0) / av.time_base if self.options.whole else 0.0
        demuxer = self._container.format.name
        for text in end_notes(self.path, demuxer, self._place, self._reached, stated):
            self.damage.note(text)


def _picture_facts(path: Path | None) -> tuple[tuple[int, bool] | None, list[str]]:
    """Return what `carry.inspect` says of a picture file, and the names of its metadata."""
    if path is None or not (is_image(path) or path.suffix.lower() == ".gif"):
        return None, []
    try:
        data = path.read_bytes()
    except OSError:
        return None, []  # its opening tells why
    return carry.inspect(data) if is_image(path) else None, carry.read(data).names


def _note_lead(begin: int | None, picture: av.VideoFrame, stream: Any, damage: Damage) -> None:
    """Note pictures before the first keyframe: decoders drop them without a word."""
    if begin is None or picture.pts is None:
        return
    lost = float((picture.pts - begin) * stream.time_base)
    if lost > 1.5 / (rate_of(stream) or 25):
        damage.note(
            f"the first {lost:.2f} s cannot be decoded: the source begins before its first keyframe"
        )


def _info_of(
    stream: Any,
    container_duration: int | None,
    options: ReadOptions,
    sequence: PictureReader | None,
    picture: av.VideoFrame | None,
) -> VideoInfo:
    """Describe a stream, or the part of it that is read.

    Args:
        stream: The libav stream.
        container_duration: Of the whole, in microseconds.
        options: Which part is read.
        sequence: The pictures of an image sequence.
        picture: The first one, where the stream does not state its size.
    """
    context = stream.codec_context
    pix_fmt = software_format(stream) or "yuv420p"
    width, height = context.width, context.height
    if picture is not None:
        pix_fmt, width, height = picture.format.name, picture.width, picture.height
    rate = rate_of(stream)
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
    if count is None and seconds and rate:
        count = max(1, round(seconds * rate))
    return VideoInfo(
        width=width,
        height=height,
        pix_fmt=pix_fmt,
        codec=context.codec.canonical_name,
        fps=rate,
        time_base=stream.time_base,
        duration_seconds=seconds,
        frame_count=count,
        layout=layout_of(
            planar_format(pix_fmt),
            width,
            height,
            color_range=int(context.color_range),
            colorspace=int(context.colorspace),
            interlaced=False,
            codec=context.codec.canonical_name,
        ),
    )
