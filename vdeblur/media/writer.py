"""Frames and packets → a container that keeps what its source had; temporary until complete.

The output is configured from the source's streams and first decoded frames; every stream that is
not restored is copied. Knows libav; knows no torch, no CUDA, no network.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import av.container
import av.error

from vdeblur.errors import InputError, OutputError
from vdeblur.frames import Frame
from vdeblur.media import avi
from vdeblur.media.containers import Container, muxer_options
from vdeblur.media.copied_streams import CopiedStreams
from vdeblur.media.encoders import EncodeOptions, side_data_bytes
from vdeblur.media.first_pictures import FirstPictures
from vdeblur.media.header_trial import is_refusal, refused_streams
from vdeblur.media.image_sequences import writes_sequence
from vdeblur.media.libav_errors import reported, text_of
from vdeblur.media.losses import Losses
from vdeblur.media.metadata import carry, exif
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.graft import graft, trailer_name
from vdeblur.media.mp4.tracks import sample_times
from vdeblur.media.names import check_destination
from vdeblur.media.output_file import OutputFile
from vdeblur.media.picture_formats import is_lossless
from vdeblur.media.picture_output import PictureOutput
from vdeblur.media.reader import VideoReader
from vdeblur.media.stale_tags import kept_file_tags
from vdeblur.media.stream_roles import label_of
from vdeblur.media.video_output import VideoOutput, VideoSource, add_video
from vdeblur.system.closing import ClosingGuard

_MOST_REFUSALS = 16  # of packets of pictures, one after the other
_PATIENCE_SECONDS = 5.0  # for an encoder or a pipe that does not return, before it is left open
_MOST_NAMES = 40  # in one line of a report
_NO_GAP = Fraction(1, 500)  # seconds between chapters that are rounded
_VARIES = 1.2  # longest to shortest duration of frames from which on their rate is variable


class VideoWriter:
    """Write the items of a `VideoReader` to a file, and keep all that its container can hold.

    Nothing stands under the final name before `finish`. Leaving the context by an exception, or
    without `finish`, leaves nothing behind.

    Args:
        destination: A path, whose extension decides the container, an image, an image pattern, or
            "-" for standard output.
        reader: The source.
        encode: What is asked of the encoders.
        overwrite: Whether files that exist are replaced.
        format: libav's name of the muxer, in place of the extension's.
        display_matrix: How players turn the pictures of the first video stream, as the nine
            numbers of FFmpeg's AV_PKT_DATA_DISPLAYMATRIX; None is as in the source.
        first_frames: First frames by stream, where they differ from those of the reader.
        also_read: Files besides the source that must not be replaced.

    Attributes:
        destination: As given.
        stream_map: Streams of the output by those of the source.
        converts: The output is another kind of container, with tags and a clock of its own.

    Raises:
        OutputError: The destination cannot be written, exists, or names no container.
    """

    def __init__(
        self,
        destination: str | Path,
        reader: VideoReader,
        *,
        encode: EncodeOptions | None = None,
        overwrite: bool = False,
        format: str | None = None,
        display_matrix: Sequence[int] | None = None,
        first_frames: Mapping[int, av.VideoFrame] | None = None,
        also_read: Sequence[Path] = (),
    ) -> None:
        self.destination, self.reader = destination, reader
        self.stream_map: dict[int, int] = {}
        self._encode_options = encode or EncodeOptions()
        self._display_matrix = display_matrix
        self._losses = Losses()
        self._demuxer: str = reader.container.format.name
        check_destination(destination)
        self._container = Container.of(
            destination,
            self._demuxer,
            format,
            source=reader.path,
            is_sequence=writes_sequence(destination, reader.source),
        )
        self.converts = not self._container.is_written_by(self._demuxer) or (
            reader.path is not None
            and reader.path.suffix.lower() != Path(destination).suffix.lower()
        )
        self._output: av.container.OutputContainer | None = None
        self._videos: dict[int, VideoOutput] = {}
        self._copied: CopiedStreams | None = None
        self._pictures: PictureOutput | None = None
        self._waiting = FirstPictures(reader, first_frames or {})
        self._refusals = 0  # of packets of pictures, since one was taken
        self._finished = False
        self._guard = ClosingGuard()
        self._file = OutputFile(destination, reader, overwrite=overwrite, also_read=also_read)

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

    # -- what was done ---------------------------------------------------------------------------

    @property
    def kept(self) -> list[str]:
        """What was copied, a line each."""
        return self._losses.kept

    @property
    def lost(self) -> list[str]:
        """What could not be kept and why, a line each."""
        return self._losses.lost

    @property
    def known_losses(self) -> set[int | str]:
        """For `verify`: source streams that were dropped, and checks that a stated loss fails."""
        return self._losses.known

    @property
    def frames_written(self) -> int:
        """Frames encoded so far, of all streams."""
        return sum(video.frames for video in self._videos.values())

    @property
    def encoder(self) -> str:
        """libav's names of the encoders in use, once the first frame is written."""
        return ", ".join(dict.fromkeys(v.choice.encoder for v in self._videos.values()))

    @property
    def temporary(self) -> Path | None:
        """The path to open the unfinished file, or folder of images, by; None for a stream."""
        return self._file.temporary

    @property
    def recovered(self) -> int | None:
        """Pictures of a killed run that are complete now; then nothing is left to write."""
        return self._file.recovered

    @property
    def temporary_name(self) -> Path | None:
        """The same by its name on disk, whose extension is that of the output."""
        return self._file.temporary_name

    @property
    def verifiable(self) -> bool:
        """True if the output is one file in a container that states times and streams."""
        return self.temporary is not None and self._container.verifiable

    # -- writing ---------------------------------------------------------------------------------

    def write(self, item: Frame | av.Packet[Any]) -> None:
        """Encode a frame or copy a packet. Both must come from this writer's reader.

        Raises:
            EncoderError: The encoder is missing, or refuses the settings.
            OutputError: The output cannot be written.
        """
        with self._guard.in_use():
            self._take(item)

    def _take(self, item: Frame | av.Packet[Any]) -> None:
        if self._output is not None:
            self._write(item)
            return
        if self._waiting.add(item):
            self._start()

    def _start(self) -> None:
        """Begin the output, and write what waited for it."""
        with reported(self.destination):
            self._open()
        for item in self._waiting.take():
            self._write(item)

    def _write(self, item: Frame | av.Packet[Any]) -> None:
        with reported(self.destination):
            if isinstance(item, Frame):
                self._encode(item)
            else:
                self._copy(item)

    def _encode(self, frame: Frame) -> None:
        video = self._videos.get(frame.stream)
        if video is None:
            return
        if self._container.is_image and not self._container.is_sequence and self.frames_written:
            raise OutputError(
                f"{self.destination} is one picture and the source has several: "
                "number them, as in frame_%05d.png"
            )
        self._mux(video.encode(frame))

    def _mux(self, packets: list[av.Packet[Any]]) -> None:
        assert self._output is not None
        for packet in packets:
            try:
                if self._pictures is not None:
                    self._pictures.write(packet)
                else:
                    self._output.mux(packet)
            except (av.error.FFmpegError, OSError) as error:
                self._refusals += 1
                if not is_refusal(error) or self._refusals > _MOST_REFUSALS:
                    raise
                # It may be another stream's packet that waited for this one: `verify` tells.
                self.reader.damage.note(
                    f"{self._container.name} refused a packet near "
                    f"{float((packet.pts or 0) * packet.time_base):.2f} s ({text_of(error)})"
                )
            else:
                self._refusals = 0

    def _copy(self, packet: av.Packet[Any]) -> None:
        assert self._copied is not None
        self._copied.copy(packet)

    # -- configuring -----------------------------------------------------------------------------

    def _open(self) -> None:
        source = self.reader.container
        options = muxer_options(self._container, self.reader, self._losses)
        copies = {
            stream.index: self.reader.templates.get(stream.index, stream)
            for stream in source.streams
            if _is_copied(self.reader, self._container, stream)
        }
        videos = [source.streams[index] for index in self.reader.video_streams]
        self._output = av.open(
            self._file.target,
            "w",
            format=self._container.name,
            container_options=options,
            metadata_errors="surrogateescape",
        )
        self._output.metadata.update(kept_file_tags(source.metadata))
        _keep_chapters(self._output, self.reader, self._losses, iso=self._container.iso)
        self._copied = CopiedStreams(
            self._output,
            self._container,
            self._demuxer,
            converts=self.converts,
            whole=self.reader.options.whole,
            refused=refused_streams(self._container.name, options, videos, copies),
            losses=self._losses,
        )
        for stream in source.streams:
            self._add(stream, self._copied)
        self.stream_map.update(self._copied.stream_map)
        if self._container.name == "image2":
            index = self.reader.video_streams[0]
            matrix = self._display_matrix or _turn_of(
                self.reader, index, self._waiting.pictures.get(index)
            )
            self._pictures = PictureOutput(self._file, self.reader, self._losses, matrix)
        self._output.start_encoding()

    def _add(self, stream: Any, copied: CopiedStreams) -> None:
        """Add the output's stream for one of the source, or state its loss."""
        index = stream.index
        role, track = self.reader.roles[index], self.reader.tracks.get(index)
        label = label_of(stream, track)
        if role == "video":
            self._add_video(stream)
        elif role == "cover":
            copied.add_cover(stream, self._waiting.items)
        elif _is_grafted(self.reader, self._container, index):
            pass
        elif role == "copy":
            copied.add(stream, label, self.reader.templates.get(index), _data(self.reader, stream))
        elif role == "dropped" and track is not None and stream.type == "data":
            self._losses.lose(f"{label}: it has no samples", index)
        elif role == "dropped":
            _lose_stream(self.reader, self._losses, index, "libav does not know its codec")
        elif role == "graft":
            why = "only a whole MP4 or MOV can carry this track"
            _lose_stream(self.reader, self._losses, index, why)
        elif track is not None and track.fourcc == "tmcd" and not self._container.has_timecode:
            self._losses.lose(f"{label}: only MP4 and MOV have timecode tracks", index)

    def _add_video(self, stream: Any) -> None:
        assert self._output is not None
        first = self._waiting.pictures.get(stream.index)
        if first is None:
            why = "none of its pictures can be decoded"
            _lose_stream(self.reader, self._losses, stream.index, why)
            return
        _state_speed(self.reader, stream, self._losses)
        asked = self._display_matrix if stream.index == self.reader.video_streams[0] else None
        matrix = asked or _turn_of(self.reader, stream.index, first)
        if matrix and not self._container.has_rotation:
            why = f"{self._container.name} has no place for it"
            self._losses.lose(f"rotation: {why}", "display matrix")
        source = VideoSource(
            stream,
            self._demuxer,
            first,
            self.reader.info.layout,
            variable=_is_variable(self.reader, self._container, stream.index),
            display_matrix=matrix,
            lossless=is_lossless(self.reader.first_picture) is True,
        )
        video = add_video(self._output, self._container, source, self._encode_options, self._losses)
        self._videos[stream.index] = video
        self.stream_map[stream.index] = video.stream.index

    # -- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Flush the encoders and complete the temporary file; it keeps its temporary name.

        Raises:
            InputError: No frame was written.
            OutputError: The output cannot be written.
        """
        if self._output is None:
            if not self._waiting.pictures:
                raise InputError(_why_no_frame(self.reader))
            self._start()
        assert self._output is not None
        with reported(self.destination):
            for video in self._videos.values():
                self._mux(video.flush())
            self._output.close()
        self._lose_unread()
        self._complete()

    def _lose_unread(self) -> None:
        """State what turned out while reading: streams without packets, and ones that came late."""
        assert self._copied is not None
        for index in self._copied.lose_empty():
            self.stream_map.pop(index, None)
        for index, video in self._videos.items():
            if not video.frames:
                why = "none of its pictures were decoded"
                _lose_stream(self.reader, self._losses, index, why)
        _lose_unreadable(self.reader, self._losses)

    def _complete(self) -> None:
        """Add what libav's muxers cannot write: maker's boxes and tracks."""
        if self._pictures is not None:
            self._pictures.close()
        elif self._container.name == "apng" and self.temporary:
            _carry_to_apng(self, self.temporary, self._losses)
        else:
            _lose_picture_metadata(self.reader, self._losses)
        if self._container.name == "avi" and self.temporary and self._copied:
            with reported(self.destination):
                avi.time_sound_by_frames(self.temporary, self._copied.framed_sound())
        elif self.reader.path and self.reader.iso and self._container.iso and self.temporary:
            with reported(self.destination):
                _graft(self.reader, self._container, self.temporary, self._losses)
        _lose_trailer(self.reader, self._container, self._losses)

    def finish(self) -> None:
        """Give the complete output its final name (after `close`).

        Raises:
            OutputError: The name is taken or cannot be had: the output is kept under another.
        """
        self._file.finish()
        self._finished = True

    def abort(self) -> None:
        """Close without completing and remove the temporary file."""
        self._finished = True
        self._guard.close(self._close_unfinished, _PATIENCE_SECONDS)
        self._file.remove()

    def _close_unfinished(self) -> None:
        if self._output is not None:
            with contextlib.suppress(Exception):
                self._output.close()


def _why_no_frame(reader: VideoReader) -> str:
    if reader.options.whole:
        return f"no frame of {reader.name} could be decoded: the file is damaged"
    return f"{reader.name} has no frame in the part asked for: check `start` and `duration`"


def _keep_chapters(
    output: av.container.OutputContainer, reader: VideoReader, losses: Losses, *, iso: bool
) -> None:
    chapters = reader.container.chapters()
    if chapters and reader.options.whole:
        output.set_chapters(chapters)
        ends = [Fraction(0), *(c["end"] * (c["time_base"] or 1) for c in chapters)]
        starts = [c["start"] * (c["time_base"] or 1) for c in chapters]
        gaps = (abs(start - end) for start, end in zip(starts, ends, strict=False))
        # Those of an MP4 can be written again; a GoPro's highlights are read as chapters, too.
        if iso and not reader.iso and max(gaps) > _NO_GAP:
            text = "gaps and overlaps of chapters: in MP4 and MOV each lasts until the next"
            losses.lose(text, "chapters")
        losses.kept.append(f"{len(chapters)} chapter" + ("" if len(chapters) == 1 else "s"))
    elif chapters:
        losses.lose(
            "chapters: they belong to the whole video, and a part was asked for", "chapters"
        )


def _lose_stream(reader: VideoReader, losses: Losses, index: int, why: str) -> None:
    """State the loss of a stream; that of a video is damage, and no plain end."""
    stream = reader.container.streams[index]
    text = f"{label_of(stream, reader.tracks.get(index))}: {why}"
    losses.lose(text, index)
    if stream.type == "video":
        reader.damage.note(f"a whole video stream is missing ({text})")


def _data(reader: VideoReader, stream: Any) -> Iterator[bytes] | None:
    """Return a large attached file in blocks; None for what its stream holds."""
    if reader.lean is None or stream.type != "attachment":
        return None
    return reader.lean.blocks(stream.data)


def _lose_unreadable(reader: VideoReader, losses: Losses) -> None:
    """State what could not be read, appeared too late or was seen only while reading."""
    if reader.lean is not None:
        for text in reader.lean.left_out:
            losses.lose(text)
    if reader.telecined:
        losses.lose(
            "marks of repeated fields (soft telecine): the times of the pictures say how long each "
            "is shown"
        )
    for name in reader.late_streams:
        losses.lose(f"{name}: it begins too far into the source to be found")
        if name.startswith("video"):
            reader.damage.note(f"a whole video stream is missing ({name})")


def _turn_of(reader: VideoReader, index: int, first: av.VideoFrame | None) -> Sequence[int] | None:
    """Return how players turn the pictures of a source's stream, as its first picture says."""
    if reader.orientations:
        return exif.display_matrix(reader.orientations[0])
    codec = reader.container.streams[index].codec_context.codec.canonical_name
    said = side_data_bytes(first, codec).get("DISPLAYMATRIX", b"") if first is not None else b""
    return struct.unpack("<9i", said[:36]) if len(said) >= 36 else None


def _lose_trailer(reader: VideoReader, container: Container, losses: Losses) -> None:
    """State the loss of what lies behind the last box of an MP4, where it is not copied."""
    whole, path = reader.options.whole, reader.path
    if path is None or not reader.iso or (whole and container.iso):
        return
    try:
        with boxes.open_input(path) as file:
            name = trailer_name(file)
    except InputError:
        return  # the source has gone meanwhile; whether there was one is not known
    if name is not None:
        why = f"{container.name} has no place for it" if whole else "it is of the whole"
        losses.lose(f"{name}: {why}")


def _is_variable(reader: VideoReader, container: Container, index: int) -> bool:
    """Whether an MP4 goes to an MP4 and its pictures' durations vary (the last apart)."""
    track = reader.tracks.get(index)
    if track is None or not container.iso or reader.path is None:
        return False
    runs = sample_times(reader.path, track.index)
    if runs and runs[-1][0] == 1:
        runs = runs[:-1]
    lengths = [length for _, length in runs]
    return bool(lengths) and max(lengths) > _VARIES * min(lengths)


def _lose_picture_metadata(reader: VideoReader, losses: Losses) -> None:
    """State what is lost of pictures that become a film."""
    if len(set(reader.orientations)) > 1:
        losses.lose(
            "EXIF orientations: the pictures have several, and the film has the first one's"
        )
    if reader.picture_metadata:
        losses.lose(f"{', '.join(reader.picture_metadata)} of the source: not in a film")


def _carry_to_apng(writer: VideoWriter, output: Path, losses: Losses) -> None:
    """Copy metadata from one animated PNG into another."""
    reader = writer.reader
    if reader.path is None or reader.container.format.name != "apng":
        _lose_picture_metadata(reader, losses)
        return
    with reported(writer.destination):
        data, lost = carry.carry(reader.path.read_bytes(), output.read_bytes())
        output.write_bytes(data)
    for text in lost:
        losses.lose(text, "picture metadata")


def _graft(reader: VideoReader, container: Container, output: Path, losses: Losses) -> None:
    """Copy tracks and the maker's boxes from one MP4 into another."""
    assert reader.path is not None
    streams = [index for index in reader.roles if _is_grafted(reader, container, index)]
    tracks = [reader.tracks[index].index for index in streams]
    try:
        grafted = graft(reader.path, output, track_indices=tracks, trailer=reader.options.whole)
    except InputError as error:
        # Hours of restored frames are not thrown away for a damaged telemetry track.
        losses.lose(f"data tracks and maker's boxes: {error}", *streams, "maker boxes")
        return
    places = ("udta ", "moov ")
    makers = list(dict.fromkeys(name[5:] for name in grafted if name.startswith(places)))
    losses.kept.extend(name for name in grafted if not name.startswith(places))
    if makers:
        more = f" and {len(makers) - _MOST_NAMES} more" if len(makers) > _MOST_NAMES else ""
        losses.kept.append(f"maker's boxes {' '.join(makers[:_MOST_NAMES])}{more}")


def _is_grafted(reader: VideoReader, container: Container, index: int) -> bool:
    """Whether a track goes from one whole MP4 to another as it is, box and all.

    Copied packet by packet, a GoPro's telemetry would last a second longer than the picture.
    """
    track, role = reader.tracks.get(index), reader.roles[index]
    kind = reader.container.streams[index].type
    # Subtitles too: the muxer puts empty samples of its own beside those of the source. And sound
    # that was cut: only its own edit list hides what it hides.
    cut = kind == "audio" and track is not None and track.is_cut and track.speed == 1
    whole = kind in ("data", "subtitle") or cut
    wanted = role == "graft" or (role == "copy" and whole)
    exists = track is not None and track.sample_count > 0
    return wanted and exists and container.iso and reader.options.whole


def _is_copied(reader: VideoReader, container: Container, stream: Any) -> bool:
    """Whether packets of a stream go into the output."""
    role = reader.roles[stream.index]
    if role == "cover":
        return container.name not in ("matroska", "webm")  # there it is an attachment
    grafted = _is_grafted(reader, container, stream.index)
    return role == "copy" and stream.type != "attachment" and not grafted


def _state_speed(reader: VideoReader, stream: Any, losses: Losses) -> None:
    """State the loss of an edit list's speed."""
    track = reader.tracks.get(stream.index)
    if track is not None and track.speed != 1:
        losses.lose(
            f"the speed of {label_of(stream)}: the edit list's is not that of the pictures",
            "packet duration",
        )
