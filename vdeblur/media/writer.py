"""Frames and packets → a container that keeps what its source had; temporary until complete.

The output is configured from the source's streams and first decoded frames; every stream that is
not restored is copied. Knows libav; knows no torch, no CUDA, no network.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import av
import av.container
import av.error
from av.codec.context import Flags as CodecFlags
from av.format import ContainerFormat
from av.format import Flags as FormatFlags
from av.video.format import VideoFormat
from av.video.reformatter import ColorRange

from vdeblur.errors import EncoderError, InputError, OutputError
from vdeblur.frames import Frame
from vdeblur.media import avi, image_metadata
from vdeblur.media.encoders import (
    FRAME_COUNTING,
    Choice,
    EncodeOptions,
    candidates,
    check_preset,
    choose_settings,
    opens,
    side_data_bytes,
)
from vdeblur.media.image_sequences import is_image, is_pattern
from vdeblur.media.libav_errors import output_error, text_of
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.graft import graft
from vdeblur.media.mp4.tracks import sample_times
from vdeblur.media.pipes import OutputPipe
from vdeblur.media.pixel_formats import color_arguments, default_matrix, software_format
from vdeblur.media.reader import VideoReader
from vdeblur.media.stream_roles import label_of
from vdeblur.system.files import default_mode

_log = logging.getLogger(__name__)

# Tags that the muxer writes itself, or that describe the file that was.
_CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_STREAM_TAGS = {"encoder", "rotate", "duration"}

# Tags that FFmpeg's mov muxer stores as iTunes or user-data atoms; others need mdta keys
# (movflags use_metadata_tags).
_MP4_TAGS = {
    "timecode",
    "title",
    "artist",
    "album_artist",
    "album",
    "date",
    "comment",
    "genre",
    "copyright",
    "lyrics",
    "description",
    "synopsis",
    "show",
    "episode_id",
    "network",
    "track",
    "disc",
    "composer",
    "grouping",
    "creation_time",
    "location",
    "keywords",
    "year",
    "hd_video",
    "media_type",
    "gapless_playback",
    "compilation",
    "encoded_by",
    "tmpo",
}

_FORMATS = {
    ".m4v": "mp4",
    ".mkv": "matroska",
    ".ts": "mpegts",
    ".mts": "mpegts",
    ".m2ts": "mpegts",
    ".mpg": "vob",
    ".mpeg": "vob",
    ".vob": "vob",
    ".y4m": "yuv4mpegpipe",
    ".wmv": "asf",
    ".264": "h264",
    ".265": "hevc",
}

_FLAGS = {
    name: cast(int, getattr(FormatFlags, name).value)
    for name in ("global_header", "ts_negative", "ts_nonstrict")
}

_PIPE_FORMATS = {
    "yuv4mpegpipe": "yuv4mpegpipe",
    "nut": "nut",
    "mpegts": "mpegts",
    "matroska,webm": "matroska",
}


def format_name(destination: str | Path, source_format: str, asked: str | None = None) -> str:
    """libav's muxer name for an output path, or for `-` the source's own pipe format.

    OutputError when neither the extension nor `asked` (--format) names one.
    """
    if asked is not None:
        name = asked
    elif str(destination) == "-":
        name = _PIPE_FORMATS.get(source_format, "matroska")
    elif is_image(destination):
        name = "image2"
    else:
        suffix = Path(destination).suffix.lower()
        if not suffix:
            raise OutputError(
                f"{destination} has no extension to choose a container by: add one such as .mkv"
            )
        name = _FORMATS.get(suffix, "")
        if not name:
            for candidate in sorted(av.format.formats_available):
                with contextlib.suppress(ValueError):
                    form = ContainerFormat(candidate, "w")
                    if suffix[1:] in form.extensions and candidate not in ("ipod", "psp", "ismv"):
                        name = candidate
                        break
    try:
        ContainerFormat(name, "w")
    except ValueError as error:
        raise OutputError(
            f"no container is known for {asked or destination}: use .mp4, .mov, .mkv, .webm or .ts"
        ) from error
    return name


def _muxers(demuxer: str) -> set[str]:
    """Names of muxers that write the kind of file that libav's demuxer `demuxer` reads."""
    names = set(demuxer.split(","))
    if "mov" in names:
        names |= {"mov", "mp4", "ipod", "3gp", "3g2"}
    return names | ({"vob"} if "mpeg" in names else set())


@dataclass
class _Video:
    """One restored stream on its way out."""

    stream: Any
    choice: Choice
    counting: Fraction | None  # 1/rate, for encoders that time packets by their number
    reorders: bool
    variable: bool
    time_base: Fraction
    conversion: dict[str, int]  # matrix and range for `reformat`, where the kind of colour changes
    # pts and duration by what the encoder was given as pts, until its packet comes
    times: dict[int, tuple[int, int]] = field(default_factory=dict)
    begin: int = 0  # pts of the first frame
    frames: int = 0
    waiting: Frame | None = None


class VideoWriter:
    """Write the items of a `VideoReader` to `destination`, keeping all that the container can.

    destination: a path (its extension decides the container), an image, an image pattern, or `-`
    for standard output. Nothing stands under the final name before `finish`; leaving the context
    by an exception, or without `finish`, leaves nothing behind.

    `lost` lists what could not be kept, and why; `kept` what was copied.
    """

    def __init__(
        self,
        destination: str | Path,
        reader: VideoReader,
        *,
        encode: EncodeOptions | None = None,
        overwrite: bool = False,
        format: str | None = None,
    ) -> None:
        self.destination, self.reader = destination, reader
        self.encode = encode or EncodeOptions()
        self.overwrite = overwrite
        self.lost: list[str] = []
        self.kept: list[str] = []
        #: For `verify`: source streams that were dropped, and checks that a stated loss will fail.
        self.known_losses: set[int | str] = set()
        self.stream_map: dict[int, int] = {}
        self.frames_written = 0
        self._format = format_name(destination, reader.container.format.name, format)
        self._iso_output = self._format in ("mp4", "mov", "3gp", "3g2", "ipod", "f4v")
        self._output: av.container.OutputContainer | None = None
        self._videos: dict[int, _Video] = {}
        self._copies: dict[int, Any] = {}
        self._first: dict[int, av.VideoFrame] = dict(reader.first_frames)
        self._held: list[Frame | av.Packet[Any]] = []
        self._copied: dict[int, int] = {}
        self._last_dts: dict[int, int] = {}
        self._finished = False
        self.temporary: Path | None = None
        #: The output is another kind of container, with tags and a clock of its own.
        self.converts = self._format not in _muxers(reader.container.format.name) or (
            reader.path is not None
            and reader.path.suffix.lower() != Path(destination).suffix.lower()
        )
        self._prepare()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._finished:
            self.abort()

    def _lose(self, text: str, *known: int | str) -> None:
        self.lost.append(text)
        self.known_losses.update(known)

    @property
    def encoder(self) -> str:
        """libav names of the encoders in use, once the first frame is written."""
        return ", ".join(dict.fromkeys(v.choice.encoder for v in self._videos.values()))

    @property
    def verifiable(self) -> bool:
        """True when the output is one file in a container that states times and streams."""
        raw = self._format in ("image2", "yuv4mpegpipe", "h264", "hevc", "mpeg1video", "ivf")
        return self.temporary is not None and not raw and self._format != "gif"

    # -- names on disk ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        if str(self.destination) == "-":
            return
        target = Path(self.destination)
        folder = target.parent
        if target.is_dir():
            raise OutputError(f"{target} is a folder: name a file")
        if not folder.is_dir():
            raise OutputError(f"folder {folder} does not exist: create it first")
        if not is_pattern(target) and target.exists():
            source = self.reader.path
            if source is not None and source.exists() and target.samefile(source):
                raise OutputError(f"{target} is the input itself: choose another output")
            if not self.overwrite:
                raise OutputError(f"{target} exists already: use --force to replace it")
        if is_pattern(target):
            if str(target) == str(self.reader.source):
                raise OutputError(f"{target} is the input itself: choose another output")
            self.temporary = folder / f".vdeblur-{os.getpid()}.part"
        else:
            self.temporary = folder / f".{target.stem}.{os.getpid()}.part{target.suffix}"
        try:
            if is_pattern(target):
                self.temporary.mkdir()
            else:
                self.temporary.open("xb").close()
        except OSError as error:
            self.temporary = None
            raise output_error(error, self.destination) from error

    # -- writing ---------------------------------------------------------------------------------

    def write(self, item: Frame | av.Packet[Any]) -> None:
        """Encode a frame or copy a packet. Frames must come from this writer's reader."""
        if self._output is None:
            self._held.append(item)
            if isinstance(item, Frame):
                self._first.setdefault(item.stream, item.carrier)
            if not set(self.reader.video_streams) <= set(self._first) and len(self._held) < 4096:
                return
            self._start()
            held, self._held = self._held, []
            for earlier in held:
                self._write(earlier)
            return
        self._write(item)

    def _write(self, item: Frame | av.Packet[Any]) -> None:
        with self._reporting():
            if isinstance(item, Frame):
                self._encode(item)
            else:
                self._copy(item)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise output_error(error, self.destination) from error

    def _encode(self, frame: Frame) -> None:
        video = self._videos.get(frame.stream)
        if video is None:
            return
        if self.frames_written and is_image(self.destination) and not is_pattern(self.destination):
            raise OutputError(
                f"{self.destination} is one picture and the source has several: "
                "number them, as in frame_%05d.png"
            )
        if video.variable:
            # Where frames are reordered, mp4's durations are those between decoding times, and
            # belong to other pictures: the next frame tells.
            earlier, video.waiting = video.waiting, frame
            if earlier is None:
                return
            earlier.duration = earlier.carrier.duration = frame.pts - earlier.pts
            frame = earlier
        self._encode_now(video, frame)

    def _encode_now(self, video: _Video, frame: Frame) -> None:
        picture: av.VideoFrame = frame.carrier
        if picture.format.name != video.choice.pix_fmt or video.conversion:
            duration = picture.duration
            picture = picture.reformat(format=video.choice.pix_fmt, **video.conversion)
            picture.duration = duration
        # The source's picture types would force its I pictures on this encoder.
        picture.pict_type = 0
        picture.time_base = video.time_base
        if video.counting is not None:
            picture.pts = video.frames
            picture.duration = 1
            picture.time_base = video.counting
            if video.frames == 0:
                video.begin = frame.pts
        video.times[cast(int, picture.pts)] = (frame.pts, frame.duration)
        video.frames += 1
        self.frames_written += 1
        self._mux(video, video.stream.encode(picture))

    def _mux(self, video: _Video, packets: list[av.Packet[Any]]) -> None:
        assert self._output is not None
        for packet in packets:
            number = packet.dts if packet.dts is not None else packet.pts
            pts, duration = video.times.pop(cast(int, packet.pts), (packet.pts, 0))
            if duration:
                packet.duration = duration  # some encoders make their own of the rate
            if video.counting is not None and number is not None:
                packet.pts = pts
                # Only AVI, whose ticks are frames, has these encoders reorder.
                packet.dts = video.begin + number if video.reorders else packet.pts
                packet.time_base = video.time_base
            self._output.mux(packet)

    def _copy(self, packet: av.Packet[Any]) -> None:
        assert self._output is not None
        index = packet.stream.index
        target = self._copies.get(index)
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
            loose = target.type in ("subtitle", "data") or self._nonstrict
            lowest = last if loose else last + 1
            if dts < lowest:
                packet.dts = lowest
                if packet.pts is not None and packet.pts < lowest:
                    packet.pts = lowest
        self._last_dts[index] = cast(int, packet.dts)
        packet.stream = target
        self._copied[index] = self._copied.get(index, 0) + 1
        self._output.mux(packet)

    # -- configuring -----------------------------------------------------------------------------

    def _start(self) -> None:
        with self._reporting():
            self._open()

    def _open(self) -> None:
        source = self.reader.container
        options = self._container_options()
        target: Any = str(self.temporary)
        if str(self.destination) == "-":
            target = OutputPipe(sys.stdout.buffer)
        elif is_pattern(self.destination):
            assert self.temporary is not None
            target = str(self.temporary / Path(self.destination).name)
        output = av.open(
            target,
            "w",
            format=self._format,
            container_options=options,
            metadata_errors="surrogateescape",
        )
        self._output = output
        abilities = output.format.flags
        self._nonstrict = bool(abilities & _FLAGS["ts_nonstrict"])
        self._negative = bool(abilities & _FLAGS["ts_negative"])
        self._global_header = bool(abilities & _FLAGS["global_header"])
        shifted = not self._whole
        output.metadata.update(
            {k: v for k, v in source.metadata.items() if k.lower() not in _CONTAINER_TAGS}
        )
        if not shifted:
            chapters = source.chapters()
            if chapters:
                output.set_chapters(chapters)
                self.kept.append(_count(len(chapters), "chapter"))
        elif source.chapters():
            self._lose(
                "chapters: they belong to the whole video, and a part was asked for", "chapters"
            )
        for stream in source.streams:
            role = self.reader.roles[stream.index]
            track = self.reader.tracks.get(stream.index)
            label = label_of(stream, track)
            if role == "video":
                self._add_video(stream)
            elif role == "cover":
                self._add_cover(stream)
            elif self._to_graft(stream.index):
                pass
            elif role == "copy":
                self._add_copy(stream, label)
            elif role == "dropped":
                self._lose(f"{label}: libav does not know its codec", stream.index)
            elif role == "graft":
                self._lose(f"{label}: only a whole MP4 or MOV can carry this track", stream.index)
            elif (
                role == "regenerated"
                and track is not None
                and track.fourcc == "tmcd"
                and not self._iso_output
                and self._format != "matroska"
            ):
                self._lose(f"{label}: only MP4 and MOV have timecode tracks", stream.index)
        output.start_encoding()

    def _container_options(self) -> dict[str, str]:
        source = self.reader.container
        # Two seconds of one stream without another are enough to interleave well; no limit lets
        # memory grow (FFmpeg's max_interleave_delta).
        options = {"max_interleave_delta": "2000000"}
        if self._iso_output:
            flags = []
            path = self.reader.path
            if path is not None and self.reader.iso and boxes.moov_first(path):
                flags.append("faststart")
            covers = any(r == "cover" for r in self.reader.roles.values())
            custom = {
                key
                for key in source.metadata
                if key.lower() not in _CONTAINER_TAGS
                and key.lower().split("-")[0] not in _MP4_TAGS
                and key != "firmware"
            }
            if custom and not covers:
                flags.append("use_metadata_tags")
            elif custom:
                self._lose(
                    f"tags {', '.join(sorted(custom))}: MP4 has room for a cover or for these",
                    "metadata",
                )
            if flags:
                options["movflags"] = "+" + "+".join(flags)
            # Edit lists count in the movie timescale: a common multiple keeps offsets exact.
            scale = 1
            for stream in source.streams:
                if stream.type in ("video", "audio") and stream.time_base:
                    wider = math.lcm(scale, stream.time_base.denominator)
                    scale = wider if wider < 2**31 else scale
            options["movie_timescale"] = str(max(scale, 1000))
            options["strict"] = "unofficial"  # spherical and stereo boxes are written only then
        elif self._format in ("matroska", "webm") and "matroska" in source.format.name:
            # Opus begins before zero by its pre-skip, which Matroska states apart: no shift.
            options["avoid_negative_ts"] = "disabled"
        elif self._format == "mpegts":
            options.update({"mpegts_copyts": "1", "max_delay": "0"})
            if "mpegts" in source.format.name:
                options["avoid_negative_ts"] = "disabled"  # before a wrap of 33 bits, times are
            if Path(self.destination).suffix.lower() in (".mts", ".m2ts"):
                options["mpegts_m2ts_mode"] = "1"
        elif self._format == "image2":
            if is_pattern(self.destination):
                number = self.reader.start_number
                options["start_number"] = "1" if number is None else str(number)
            else:
                options["update"] = "1"
        elif self._format == "yuv4mpegpipe":
            options["strict"] = "-1"  # depths above 8 bits
        return options

    def _add_video(self, source: Any) -> None:
        assert self._output is not None
        first = self._first.get(source.index)
        if first is None:
            self._lose(f"{label_of(source)}: none of its first frames can be decoded", source.index)
            return
        context = source.codec_context
        codec = context.codec.canonical_name
        arriving = first.format.name
        side = side_data_bytes(first, codec)
        refusals: list[str] = []
        asked = self.encode.encoder
        default = "rawvideo" if self._format == "yuv4mpegpipe" else self._output.default_video_codec
        names = candidates(codec, arriving, asked, default)
        if self._format == "yuv4mpegpipe":
            names = ["rawvideo"]
        elif self._format in ("ogg", "ogv") and asked == "auto":
            names = ["libvpx"]  # the only coding of video that libav both encodes and puts in Ogg
        elif self._format == "image2" and asked == "auto":
            suffix = Path(self.destination).suffix.lower()
            names = ["png" if suffix == ".png" else "mjpeg"]
        rate = source.average_rate or source.guessed_rate or Fraction(25)
        encode = self.encode
        if encode.pix_fmt is not None:
            names = names[:1]  # the codec's own encoder takes it, or says what it takes
            self.known_losses.add("pixel format")
        if is_image(self.reader.source) and self._format != "image2" and asked == "auto":
            # Pictures become a film that players play: not PNG or JPEG in a video container.
            names = [name for name in names if name not in ("png", "mjpeg")] or names
            if first.format.is_rgb and first.width % 2 == first.height % 2 == 0:
                deep = first.format.components[0].bits > 8
                encode = replace(
                    encode, pix_fmt=encode.pix_fmt or ("yuv420p10le" if deep else "yuv420p")
                )
        choices = [
            choose_settings(name, arriving, encode, profile=context.profile, side_data=side)
            for name in names
        ]
        if codec in ("vp9", "av1"):
            # These encoders lack depths and chroma that their codecs have: one that keeps every bit
            # and every sample goes before the codec's own.
            choices.sort(key=lambda c: bool(c.notes))
        for choice in choices:
            name = choice.encoder
            check_preset(name, encode.preset)
            if len(names) > 1 and not opens(choice, first.width, first.height, rate):
                plain = choose_settings(name, arriving, EncodeOptions(), profile=context.profile)
                if encode != EncodeOptions() and opens(plain, first.width, first.height, rate):
                    raise EncoderError(
                        f"encoder {name} does not accept these settings: "
                        "check --crf, --bitrate, --preset and --pix-fmt"
                    )
                _log.info("encoder %s does not open with %s", name, choice)
                refusals.append(name)
                continue
            stream = self._new_stream(source, choice, codec, rate)
            if stream is not None:
                _log.info("encoder for %s in %s: %s", codec, self._format, choice)
                break
            _log.info("%s cannot hold what encoder %s makes", self._format, name)
            refusals.append(name)
        else:
            raise EncoderError(
                f"{self._format} cannot hold video by {' or '.join(refusals)}: "
                "choose another extension such as .mkv, or another --encoder"
            )
        other = self._format == "yuv4mpegpipe" or is_image(self.destination)
        if (
            choice.codec != codec
            and asked == "auto"
            and not other
            and not is_image(self.reader.source)
        ):
            self._lose(
                f"the {codec} coding: written as {choice.codec} by {choice.encoder}",
                "codec parameters",
                "pixel format",
                "chroma location",
                "matrix coefficients",  # VP8 has one only
            )
        for note in choice.notes:
            self._lose(note, "pixel format")
        self._configure(stream, source, first, choice, rate, side)

    def _new_stream(self, source: Any, choice: Choice, codec: str, rate: Fraction) -> Any:
        assert self._output is not None
        context = source.codec_context
        try:
            native = av.codec.Codec(context.codec.name, "w").name == choice.encoder
        except ValueError:
            native = False
        coded = software_format(source)
        # A hardware decoder interleaves chroma: the same samples, in another order.
        interleaved = {"yuv420p": "nv12", "yuv422p": "nv16"}.get(coded or "")
        same = context.pix_fmt is not None and choice.pix_fmt in (coded, interleaved)
        try:
            if native and same and choice.codec == codec:
                # An encoder context made from the source's parameters is the only way to keep coded
                # side data (HDR, spherical) and the chroma location in PyAV.
                stream: Any = self._output.add_stream_from_template(source, opaque=False)
                stream.codec_context.extradata = None
                stream.codec_context.bit_rate = 0
                stream.codec_context.flags = 0
                return stream
            return self._output.add_stream(choice.encoder, rate=rate)
        except (ValueError, av.error.FFmpegError):
            return None

    def _configure(
        self,
        stream: Any,
        source: Any,
        first: av.VideoFrame,
        choice: Choice,
        rate: Fraction,
        side: dict[str, bytes],
    ) -> None:
        assert self._output is not None
        context = stream.codec_context
        time_base: Fraction = source.time_base or Fraction(1, 90000)
        counting = None
        context.width, context.height = first.width, first.height
        context.pix_fmt = choice.pix_fmt
        context.framerate = rate
        if choice.encoder in FRAME_COUNTING or self._format in ("yuv4mpegpipe", "image2"):
            counting = 1 / Fraction(rate).limit_denominator(65535)
        stream.time_base = time_base
        context.time_base = counting or time_base
        if source.sample_aspect_ratio:
            context.sample_aspect_ratio = source.sample_aspect_ratio
            if self._format == "yuv4mpegpipe" and source.sample_aspect_ratio != 1:
                self._lose(f"sample aspect ratio {source.sample_aspect_ratio}: not in y4m")
        context.color_range = int(first.color_range)
        context.color_primaries = int(first.color_primaries)
        context.color_trc = int(first.color_trc)
        context.colorspace = int(first.colorspace)
        conversion = self._conversion(first, choice)
        if conversion:
            context.colorspace = conversion.get("dst_colorspace", 0)
            context.color_range = conversion["dst_color_range"]
        if choice.encoder == "mjpeg":
            context.color_range = int(
                ColorRange.JPEG
            )  # JPEG is full range; the encoder refuses anything else
        context.thread_count = 0
        context.thread_type = "AUTO"
        flags = int(CodecFlags.frame_duration)
        if self._global_header:
            flags |= int(CodecFlags.global_header)
        options = dict(choice.options)
        order = int(source.codec_context.field_order)
        if first.interlaced_frame or order >= 2:  # AV_FIELD_TT and on: some pictures are fields
            if choice.encoder in ("libx265", "libsvtav1", "libvpx", "libvpx-vp9"):
                self._lose(f"interlaced coding: {choice.encoder} codes frames only", "field order")
            flags |= int(CodecFlags.interlaced_dct) | int(CodecFlags.interlaced_me)
            options.setdefault("field_order", {3: "bb", 5: "bt"}.get(order, "tt"))
        context.flags = flags
        if choice.bit_rate is not None:
            context.bit_rate = choice.bit_rate
        begin = (first.pts or 0) * time_base
        # AVI has no presentation times: a reordering source must be reordered again.
        delay = int(source.codec_context.reorder_depth) if self._format == "avi" else 2
        reorders = delay > 0 and (self._negative or self._format == "avi" or begin * rate >= 5)
        if counting is not None and self._format != "avi":
            reorders = False
        variable = self._variable(source.index)
        if variable:
            # mp4 keeps durations between decoding times: reordered, they would be another's.
            reorders = False
        if not reorders:
            # These count frames or hold no time before zero: nothing may be coded ahead.
            if choice.encoder == "libx265":
                options["x265-params"] = options.get("x265-params", "") + ":bframes=0"
            elif choice.encoder not in ("rawvideo", "png"):
                options["bf"] = "0"
        elif choice.encoder == "mpeg4":
            options["bf"] = "2"
        elif delay == 1 and choice.encoder == "libx264":
            options["b-pyramid"] = "none"
        context.options = options
        if self._iso_output and choice.codec == "hevc":
            context.codec_tag = "hvc1"
        elif self._format == "mov" and choice.codec == source.codec_context.codec.canonical_name:
            with contextlib.suppress(ValueError):
                context.codec_tag = source.codec_context.codec_tag
        matrix = side.get("DISPLAYMATRIX")
        if matrix and len(matrix) >= 36:
            stream.set_display_matrix(struct.unpack("<9i", matrix[:36]))
        self._dress(stream, source)
        try:
            context.open(strict=False)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise EncoderError(
                f"encoder {choice.encoder} does not accept these settings ({text_of(error)}): "
                "check --crf, --bitrate, --preset and --pix-fmt, and that the device has it"
            ) from error
        self._videos[source.index] = _Video(
            stream,
            choice,
            counting,
            reorders,
            variable,
            time_base,
            conversion,
        )
        self.stream_map[source.index] = stream.index

    def _conversion(self, first: av.VideoFrame, choice: Choice) -> dict[str, int]:
        """How to convert pictures whose kind of colour the encoder does not take, else nothing."""
        before, after = first.format, VideoFormat(choice.pix_fmt)
        layout = self.reader.info.layout
        jpeg = choice.encoder == "mjpeg"
        if before.is_rgb and not after.is_rgb and layout.kind == "rgb":
            matrix = "bt601" if jpeg else default_matrix(first.width, first.height)
            return color_arguments("dst", matrix, full_range=jpeg)
        ours = color_arguments("src", layout.matrix, full_range=layout.full_range)
        if after.is_rgb and not before.is_rgb and layout.kind == "yuv":
            return ours | {"dst_color_range": int(ColorRange.JPEG)}
        if self._format == "image2" and jpeg and not is_image(self.reader.source):
            return ours | color_arguments("dst", "bt601", full_range=True)  # JFIF
        return {}

    def _dress(self, stream: Any, source: Any) -> None:
        """Tags, disposition and, in MPEG-TS, the PID."""
        stream.metadata.update(
            {k: v for k, v in source.metadata.items() if k.lower() not in _STREAM_TAGS}
        )
        if self._iso_output and "name" in source.metadata:
            stream.metadata.setdefault("title", source.metadata["name"])  # read as one, written as
        stream.disposition = source.disposition
        if self._format == "mpegts" and "mpegts" in self.reader.container.format.name:
            stream.id = source.id

    def _add_copy(self, source: Any, label: str) -> None:
        assert self._output is not None
        # These are taken as streams and then refused with the whole header.
        attached = source.type == "attachment" and self._format != "matroska"
        if attached or (source.type == "data" and self.converts):
            self._lose(f"{label}: {self._format} cannot hold it", source.index)
            return
        try:
            stream: Any = self._output.add_stream_from_template(source)
        except (ValueError, av.error.FFmpegError) as error:
            self._lose(f"{label}: {self._format} cannot hold it ({text_of(error)})", source.index)
            return
        if source.type == "subtitle" and source.codec_context.name == "mov_text":
            # The demuxer leaves the bit rate box in, and the muxer adds it again.
            header = source.codec_context.extradata
            if header and header[-20:-12] == b"\0\0\0\x14btrt":
                stream.codec_context.extradata = header[:-20]
        self._dress(stream, source)
        self._copies[source.index] = stream
        self.stream_map[source.index] = stream.index
        self.kept.append(label)

    def _add_cover(self, source: Any) -> None:
        assert self._output is not None
        label = label_of(source)
        if self._format in ("matroska", "webm"):
            # A Matroska cover is an attachment; its packet is the first of its stream.
            for item in self._held:
                if isinstance(item, av.Packet) and item.stream.index == source.index:
                    name = source.metadata.get("filename", "cover.jpg")
                    mime = source.metadata.get("mimetype", "image/jpeg")
                    attachment = self._output.add_attachment(name, mime, bytes(item))
                    attachment.metadata.update(
                        {k: v for k, v in source.metadata.items() if k.lower() not in _STREAM_TAGS}
                    )
                    self.stream_map[source.index] = attachment.index
                    self.kept.append("cover picture")
                    return
            self._lose(f"{label}: its picture could not be read", source.index)
            return
        try:
            stream: Any = self._output.add_stream_from_template(source, opaque=True)
        except (ValueError, av.error.FFmpegError) as error:
            self._lose(f"{label}: {self._format} cannot hold it ({text_of(error)})", source.index)
            return
        self._dress(stream, source)
        self._copies[source.index] = stream
        self.stream_map[source.index] = stream.index
        self.kept.append("cover picture")

    # -- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush the encoders and complete the temporary file; it keeps its temporary name."""
        if self._output is None:
            if not self._first and not self._whole:
                raise InputError(
                    f"{self.reader.name} has no frame in the part asked for: "
                    "check --start and --duration"
                )
            if not self._first:
                raise InputError(
                    f"no frame of {self.reader.name} could be decoded: the file is damaged"
                )
            self._start()
            held, self._held = self._held, []
            for item in held:
                self._write(item)
        assert self._output is not None
        with self._reporting():
            for video in self._videos.values():
                if video.waiting is not None:
                    self._encode_now(video, video.waiting)
                self._mux(video, video.stream.encode(None))
            self._output.close()
        self._graft()

    def _graft(self) -> None:
        """What libav's muxers cannot write: maker's boxes and tracks, picture metadata."""
        source = self.reader.path
        if self._format == "image2":
            with self._reporting():
                image_metadata.copy_metadata(str(self.reader.source), self._written_images())
            return
        if self._format == "avi" and self.temporary:
            streams = self.reader.container.streams
            framed = {"aac", "ac3", "mp3"}
            counts = [
                self._copied.get(i, 0)
                for i in self._copies
                if streams[i].codec_context.codec.canonical_name in framed
            ]
            with self._reporting():
                avi.time_sound_by_frames(self.temporary, counts)
        if not (source and self.reader.iso and self._iso_output and self.temporary):
            return
        streams = [i for i in self.reader.roles if self._to_graft(i)]
        tracks = [self.reader.tracks[i].index for i in streams]
        try:
            with self._reporting():
                grafted = graft(source, self.temporary, track_indices=tracks)
        except InputError as error:
            # Hours of restored frames are not thrown away for a damaged telemetry track.
            self._lose(f"data tracks and maker's boxes: {error}", *streams, "maker boxes")
            return
        makers = [name.removeprefix("udta ") for name in grafted if name.startswith("udta ")]
        self.kept.extend(name for name in grafted if not name.startswith("udta "))
        if makers:
            self.kept.append(f"maker's boxes {' '.join(makers)}")

    def _variable(self, index: int) -> bool:
        """True when an MP4 goes to an MP4 and its pictures' durations vary (the last apart)."""
        track = self.reader.tracks.get(index)
        if track is None or not self._iso_output or self.reader.path is None:
            return False
        runs = sample_times(self.reader.path, track.index)
        if runs and runs[-1][0] == 1:
            runs = runs[:-1]
        lengths = [length for _, length in runs]
        return bool(lengths) and max(lengths) > 1.2 * min(lengths)

    @property
    def _whole(self) -> bool:
        return self.reader.options.whole

    def _to_graft(self, index: int) -> bool:
        """Data tracks go from one whole MP4 to another as they are, box and all.

        Copied packet by packet, a GoPro's telemetry would last a second longer than the picture.
        """
        track = self.reader.tracks.get(index)
        # Subtitles too: the muxer puts empty samples of its own beside those of the source.
        data = self.reader.container.streams[index].type in ("data", "subtitle")
        wanted = self.reader.roles[index] in ("graft", "copy") and data
        exists = track is not None and track.sample_count > 0
        return wanted and exists and self._iso_output and self._whole

    def _written_images(self) -> list[Path]:
        if is_pattern(self.destination):
            assert self.temporary is not None
            return sorted(self.temporary.iterdir())
        return [self.temporary] if self.temporary else []

    def finish(self) -> None:
        """Give the complete output its final name (after `close`)."""
        if self.temporary is not None:
            target = Path(self.destination)
            with self._reporting():
                if is_pattern(target):
                    for image in self._written_images():
                        final = target.parent / image.name
                        if final.exists() and not self.overwrite:
                            raise OutputError(f"{final} exists already: use --force to replace it")
                    for image in self._written_images():
                        image.replace(target.parent / image.name)
                    self.temporary.rmdir()
                else:
                    self.temporary.chmod(default_mode())
                    self.temporary.replace(target)
        self._finished = True

    def abort(self) -> None:
        """Close without completing and remove the temporary file."""
        self._finished = True
        if self._output is not None:
            with contextlib.suppress(Exception):
                self._output.close()
        if self.temporary is not None:
            with contextlib.suppress(OSError):
                if self.temporary.is_dir():
                    for image in self.temporary.iterdir():
                        image.unlink()
                    self.temporary.rmdir()
                else:
                    self.temporary.unlink()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
