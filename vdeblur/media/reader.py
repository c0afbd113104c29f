"""A file, an image sequence or a pipe → decoded frames, and the packets of every other stream.

Frames come as writable planes over the decoder's own memory, so that their times, side data and
colour tags stay with them. Knows libav; knows no torch, no CUDA, no network and no output.
"""

from __future__ import annotations

import sys
import tempfile
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, cast

import av
import av.container
import av.error
from av.codec.context import CodecContext
from av.codec.context import Flags as CodecFlags
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext

from vdeblur.errors import InputError, UsageError
from vdeblur.frames import Frame, VideoInfo
from vdeblur.media.damage import Damage
from vdeblur.media.frame_factory import FrameFactory, to_host
from vdeblur.media.image_sequences import first_number, is_pattern
from vdeblur.media.joined_file import for_libav
from vdeblur.media.libav_errors import reason
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import Track, read_tracks
from vdeblur.media.pipes import InputPipe
from vdeblur.media.pixel_formats import layout_of, planar_format, software_format

#: How a stream of the source goes on: its frames are restored, its packets are copied, it is a
#: picture attached to the file, its track is grafted after muxing, the muxer makes it anew, or
#: nothing can carry it.
Role = Literal["video", "copy", "cover", "graft", "regenerated", "dropped"]


class VideoReader:
    """Read a video: `for frame in VideoReader(path)` gives the frames of its first video stream.

    source: a path, an image2 pattern, or `-` for standard input. start and duration: seconds; the
    part to read, its times shifted so that it begins at 0. framerate and start_number are for
    image sequences. hwaccel: a libav device type such as "cuda". on_device: with "cuda", frames
    also carry their decoded planes in the GPU's memory (`Frame.on_device`).

    Raises InputError with one sentence when the source is missing, empty, unreadable, not a video.
    `damage` says afterwards what could not be decoded.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        start: float | None = None,
        duration: float | None = None,
        framerate: Fraction | None = None,
        start_number: int | None = None,
        hwaccel: str | None = None,
        on_device: bool = False,
    ) -> None:
        self.source = source
        self.name = "standard input" if str(source) == "-" else str(source)
        self.start, self.duration = start, duration
        self.framerate, self.start_number = framerate, start_number
        self.damage = Damage()
        self.notes: list[str] = []
        #: pts of the frames given so far, by stream; 8 bytes a frame.
        self.frame_times: dict[int, array[int]] = {}
        self._reached = 0.0  # seconds: the latest end of any packet so far
        self._spool: IO[bytes] | None = None
        self._container = self._open(hwaccel, on_device and hwaccel == "cuda")
        try:
            self._inspect()
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
        self._container.close()
        if self._spool is not None:
            self._spool.close()

    @property
    def container(self) -> Any:
        """The libav input container: the writer's template."""
        return self._container

    @property
    def path(self) -> Path | None:
        """The file on disk, or None for a pipe or an image pattern."""
        if str(self.source) == "-" or is_pattern(self.source):
            return None
        return self.source if isinstance(self.source, Path) else Path(self.source)

    def __iter__(self) -> Iterator[Frame]:
        first = self.video_streams[0]
        for item in self.items():
            if isinstance(item, Frame) and item.stream == first:
                yield item

    # -- opening ---------------------------------------------------------------------------------

    def _open(self, hwaccel: str | None, on_device: bool) -> av.container.InputContainer:
        options: dict[str, str] = {}
        file: Any = str(self.source)
        form: str | None = None
        if str(self.source) == "-":
            file = self._pipe()
        elif is_pattern(self.source):
            form = "image2"
            options["framerate"] = str(self.framerate or 25)
            if self.start_number is None:
                # libav itself looks at 0 to 4 only.
                self.start_number = first_number(str(self.source))
            options["start_number"] = str(self.start_number)
        else:
            self._check_path(Path(self.source))
            file = for_libav(self.path or Path(self.source))
            self._spool = None if isinstance(file, str) else file
        pipe = file if isinstance(file, InputPipe) else None
        for acceleration in self._accelerations(hwaccel, on_device):
            if pipe is not None:
                pipe.remember()
            try:
                container = self._opened(file, form, options, acceleration)
            except (av.error.FFmpegError, OSError, ValueError, NotImplementedError):
                # The error for a missing device depends on its kind, in spite of
                # allow_software_fallback. An error that is the file's is reported below.
                pass
            else:
                contexts = (s for s in container.streams.video if s.codec_context is not None)
                if all(software_format(stream) for stream in contexts):
                    if pipe is not None:
                        pipe.forget()
                    return container
                container.close()
            if pipe is not None:
                pipe.rewind()
            if self._spool is not None:
                self._spool.seek(0)
        if pipe is not None:
            pipe.forget()
        if hwaccel and hwaccel != "none":
            self.notes.append(f"no {hwaccel} decoder here: decoding on the CPU")
        try:
            return self._opened(file, form, options, None)
        except PermissionError:
            raise InputError(f"{self.name} may not be read: check its permissions") from None
        except FileNotFoundError as error:
            raise InputError(
                f"{self.name} was not found: check the path"
                + (" and --start-number" if form == "image2" else "")
            ) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, av.error.InvalidDataError) and self._lacks_moov():
                raise InputError(
                    f"{self.name} has lost its index (moov box): the recording was cut off; "
                    "repair it with a tool such as untrunc first"
                ) from error
            raise InputError(
                f"{self.name} is not a video that can be read ({reason(error)}): "
                "give a video file, an image or an image pattern"
            ) from error

    @staticmethod
    def _accelerations(hwaccel: str | None, on_device: bool) -> Iterator[Any]:
        """What to ask for a decoder, one after another. UsageError for an unknown kind."""
        if not hwaccel or hwaccel == "none":
            return
        from av.codec.hwaccel import HWAccel, HWDeviceType

        if hwaccel not in HWDeviceType.__members__:
            known = ", ".join(kind for kind in HWDeviceType.__members__ if kind != "none")
            raise UsageError(f"there is no hardware decoder {hwaccel!r}: choose one of {known}")
        if on_device:
            # The context that torch has made current: PyAV's default would set the primary one's
            # flags, which fails (EOPNOTSUPP) once torch has it.
            context: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
            yield HWAccel(
                device_type=hwaccel,
                allow_software_fallback=True,
                is_hw_owned=True,
                options=context,
            )
        yield HWAccel(device_type=hwaccel, allow_software_fallback=True)

    def _opened(
        self, file: Any, form: str | None, options: dict[str, str], acceleration: Any
    ) -> av.container.InputContainer:
        container: av.container.InputContainer = av.open(
            file,
            "r",
            format=form,
            options=dict(options),
            hwaccel=acceleration,
            metadata_errors="surrogateescape",
        )
        return container

    def _check_path(self, path: Path) -> None:
        try:
            if path.is_dir():
                raise InputError(f"{path} is a folder: give a video file")
            with path.open("rb") as file:
                if not file.read(1):
                    raise InputError(f"{path} is empty (0 bytes): copy or record it again")
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist: check the path") from error
        except PermissionError as error:
            raise InputError(f"{path} may not be read: check its permissions") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror})") from error

    def _lacks_moov(self) -> bool:
        path = self.path
        try:
            return path is not None and boxes.is_iso(path) and not read_tracks(path)
        except (InputError, OSError):
            return True

    def _pipe(self) -> Any:
        pipe = InputPipe(sys.stdin.fileno())
        head = pipe.peek(12)
        if not head:
            raise InputError("standard input is empty: pipe a video into vdeblur")
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
            # An MP4 needs its index, which may come last: spool it to a file without a name.
            self._spool = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115
            while part := pipe.read(1 << 20):
                self._spool.write(part)
            self._spool.seek(0)
            return self._spool
        return pipe

    # -- looking around --------------------------------------------------------------------------

    def _inspect(self) -> None:
        container = self._container
        self.roles: dict[int, Role] = {}
        path = self.path
        self.iso = bool(path and boxes.is_iso(path))
        tracks: dict[int, Track] = {}
        if self.iso and path is not None:
            try:
                # Covers are streams without a track: places do not agree, track numbers do.
                tracks = {t.track_id: t for t in read_tracks(path)}
            except InputError as error:
                # libav forgives more; what it reads is restored without the boxes.
                self.iso = False
                self.damage.note(f"{error}; the maker's boxes cannot be kept")
        unknown: list[str] = []
        for stream in container.streams:
            role: Role = "copy"
            track = tracks.get(stream.id)
            if track is not None and track.is_chapter_track:
                role = (
                    "regenerated"  # QuickTime chapter text: the muxer writes it from the chapters
                )
            elif path is None and stream.name == "bin_data" and stream.discard == Discard.all:
                # Through a pipe no tracks are known. libav discards a QuickTime chapter text, for
                # it has read the chapters.
                role = "regenerated"
            elif stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails):
                role = "cover"
            elif stream.type == "video":
                role = "video"
                if stream.codec_context is None:
                    role = "dropped"
                    unknown.append(f"stream {stream.index}")
            elif track is not None and track.fourcc == "tmcd":
                role = "regenerated"  # the muxer writes an equal track from the `timecode` tag
            elif stream.type == "data" and stream.name is None:
                role = "graft" if track is not None and track.sample_count else "dropped"
            self.roles[stream.index] = role
        self.tracks = {s.index: tracks[s.id] for s in container.streams if s.id in tracks}
        self.video_streams = [i for i, role in self.roles.items() if role == "video"]
        if not self.video_streams:
            if unknown:
                raise InputError(
                    f"{self.name} has video of an unknown codec ({', '.join(unknown)}): "
                    "convert it with ffmpeg first"
                )
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "no streams"
            raise InputError(f"{self.name} has no video ({kinds} only): give a file with video")
        self._decoders: dict[int, VideoCodecContext] = {}
        for index in self.video_streams:
            stream = cast(Any, container.streams[index])
            stream.thread_type = "AUTO"
            # Without it libav rounds a left crop to what its SIMD likes, and the picture grows.
            stream.codec_context.flags |= int(CodecFlags.unaligned)
            if stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in (
                "vp8",
                "vp9",
            ):
                # The native decoders drop the alpha plane (FFmpeg ticket 8344); libvpx keeps it.
                name = "libvpx" if stream.codec_context.name == "vp8" else "libvpx-vp9"
                decoder = cast(VideoCodecContext, CodecContext.create(name, "r"))
                decoder.extradata = stream.codec_context.extradata
                self._decoders[index] = decoder
        self.info = self._describe(container.streams[self.video_streams[0]])
        if len(self.video_streams) > 1 and self.path is not None:
            self._first_frames = self._peek()
        else:
            self._first_frames = {}

    def _peek(self) -> dict[int, av.VideoFrame]:
        """The first frame of every video stream, read through a second handle."""
        frames: dict[int, av.VideoFrame] = {}
        try:
            again = for_libav(cast(Path, self.path))
            with av.open(again) as container:
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

    @property
    def first_frames(self) -> dict[int, av.VideoFrame]:
        """First frames known ahead, by stream; filled for files with several video streams."""
        return self._first_frames

    def _describe(self, stream: Any) -> VideoInfo:
        context = stream.codec_context
        pix_fmt = software_format(stream) or "yuv420p"
        seconds = None
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif self._container.duration:
            seconds = self._container.duration / av.time_base
        count = stream.frames or None
        if self.duration is not None or self.start:
            whole = seconds or 0.0
            part = max(0.0, whole - (self.start or 0.0))
            part = min(part, self.duration) if self.duration is not None else part
            count = round(count * part / whole) if count and whole else None
            seconds = part if whole else self.duration
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

    # -- reading ---------------------------------------------------------------------------------

    def items(self) -> Iterator[Frame | av.Packet[Any]]:
        """Frames of the video streams and packets of all others, in the order of the file.

        Undecodable packets are counted in `damage` and passed over; nothing else is lost.
        """
        container = self._container
        factories: dict[int, FrameFactory] = {}
        shift: dict[int, int] = {}
        ended: set[int] = set()
        start = self.start or 0.0
        end = None if self.duration is None else start + self.duration
        origin = 0.0
        if start or end is not None:
            origin = (container.start_time or 0) / av.time_base if container.start_time else 0.0
            for stream in container.streams:
                if stream.time_base:
                    shift[stream.index] = round((origin + start) / stream.time_base)
        if start and self._can_seek():
            # One second earlier: an open GOP's leading frames need what precedes them.
            target = int((origin + max(0.0, start - 1.0)) * av.time_base)
            try:
                container.seek(target, backward=True)
            except (av.error.FFmpegError, OSError):
                self.notes.append("the source cannot be sought: reading up to --start")

        def inside(seconds: float) -> bool:
            at = seconds - origin
            return at >= start - 1e-9 and (end is None or at < end - 1e-9)

        for packet in self._packets():
            index = packet.stream.index
            role = self.roles.get(index, "dropped")
            if role == "video":
                if index in ended:
                    continue
                for decoded in self._decode(packet, index):
                    picture, held = to_host(decoded)
                    if index not in factories:
                        factories[index] = FrameFactory(
                            packet.stream,
                            picture,
                            self.damage,
                            decoding_times=container.format.name == "avi",
                        )
                    frame = factories[index].frame(picture)
                    if held is not None and held.size == (frame.layout.width, frame.layout.height):
                        frame.on_device = held
                    if shift:
                        seconds = float(frame.pts * frame.time_base)
                        if end is not None and seconds - origin >= end - 1e-9:
                            ended.add(index)
                            break
                        if not inside(seconds):
                            continue
                        frame.pts -= shift[index]
                        frame.carrier.pts = frame.pts
                    self.frame_times.setdefault(index, array("q")).append(frame.pts)
                    yield frame
                if end is not None and len(ended) == len(self.video_streams):
                    return
            elif role in ("copy", "cover") and packet.size:
                if shift and role == "copy":
                    at = packet.pts if packet.pts is not None else packet.dts
                    if at is not None:
                        if not inside(float(at * packet.time_base)):
                            continue
                        packet.pts = None if packet.pts is None else packet.pts - shift[index]
                        packet.dts = None if packet.dts is None else packet.dts - shift[index]
                yield packet
        self._check_complete()

    def _can_seek(self) -> bool:
        # MPEG-TS seeks are late or impossible (no index): decode linearly.
        return self.path is not None and "mpegts" not in self._container.format.name

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux()
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
        """A truncated Matroska, AVI or FLV ends without an error: see how far it got."""
        if self.iso and self.path is not None:
            missing = boxes.missing_bytes(self.path)
            if missing:
                self.damage.note(
                    f"the source is cut off: {missing} bytes that its index names are not there"
                )
        stated = (self._container.duration or 0) / av.time_base
        states = {"matroska", "webm", "avi", "flv"} & set(self._container.format.name.split(","))
        if not states or self.start or self.duration is not None or self.path is None:
            return
        if self._reached < stated - 0.25:
            self.damage.note(
                f"the source is cut off: it ends at {self._reached:.2f} s "
                f"though it states {stated:.2f} s"
            )
