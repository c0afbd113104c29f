"""Open a file, an image sequence or standard input with libav, accelerated if possible.

Knows how opening fails; knows no streams.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import av.container
import av.error
from av.codec.hwaccel import HWAccel, HWDeviceType

from vdeblur.errors import InputError, UsageError
from vdeblur.media.avi import check_texts
from vdeblur.media.decoding import DEVICE_FAILURES
from vdeblur.media.image_sequences import NumberedPictures, is_pattern
from vdeblur.media.input_formats import open_container, refused_kind
from vdeblur.media.joined_file import for_libav
from vdeblur.media.libav_errors import reason
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import check_index, read_tracks
from vdeblur.media.names import check_source, descriptor_of, is_read_once
from vdeblur.media.picture_formats import check_picture, is_readable_demuxer
from vdeblur.media.picture_reader import PictureReader
from vdeblur.media.pipes import InputPipe
from vdeblur.media.pixel_formats import software_format
from vdeblur.media.read_options import ReadOptions

_log = logging.getLogger(__name__)

_SPOOL_BYTES = 1 << 20  # read at once
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"uuid")


@dataclass
class OpenSource:
    """An open libav container and what it needs.

    Attributes:
        container: The libav input container.
        pictures: Decodes the pictures of an image sequence; None for other sources.
        file: A Python file that libav reads from, to be closed after the container.
        notes: What a user should know of the opening.
    """

    container: av.container.InputContainer
    pictures: PictureReader | None = None
    file: IO[bytes] | InputPipe | None = None
    notes: list[str] = field(default_factory=list)


def name_of(source: str | Path) -> str:
    """Return what messages call a source."""
    return "standard input" if str(source) == "-" else str(source)


def path_of(source: str | Path) -> Path | None:
    """Return the file on disk of a source, or None for a pipe or an image pattern.

    None also stands for a path that is a pipe, such as `/dev/stdin`: nothing may look at it first.
    """
    if str(source) == "-" or is_pattern(source) or is_read_once(source):
        return None
    return source if isinstance(source, Path) else Path(source)


def open_source(source: str | Path, options: ReadOptions, *, gpu: int | None = None) -> OpenSource:
    """Open a source for reading.

    Args:
        source: A path, an image2 pattern, or "-" for standard input.
        options: Of these hwaccel, framerate and start_number matter here.
        gpu: With hwaccel "cuda", the index of the GPU whose CUDA context is current on this thread:
            decoded pictures stay in its memory if possible.

    Raises:
        InputError: The source is missing, empty, unreadable or no video.
        UsageError: The type of device is unknown.
    """
    if is_pattern(source):
        return _open_sequence(str(source), options)
    path = path_of(source)
    file: Any
    check_source(source, once=True)
    if path is not None:
        check_picture(path)
        check_index(path)
        check_texts(path)
    file = _pipe(source) if path is None else for_libav(path)
    kept = None if isinstance(file, str) else file
    notes: list[str] = []
    container = None
    try:
        if options.hwaccel and options.hwaccel != "none":
            container = _accelerated(file, options.hwaccel, gpu)
            if container is None:
                notes.append(f"no {options.hwaccel} decoder here: decoding on the CPU")
        if container is None:
            container = _on_the_cpu(source, file)
            _log.debug("decoding %s on the CPU, format %s", source, container.format.name)
        _check_kind(container, name_of(source))
    except BaseException:
        if kept is not None:
            kept.close()
        raise
    return OpenSource(container, None, kept, notes)


def _open_sequence(pattern: str, options: ReadOptions) -> OpenSource:
    pictures = NumberedPictures.find(pattern, options.start_number)
    notes = pictures.notes()
    if options.hwaccel and options.hwaccel != "none":
        notes.append(f"pictures are not decoded by {options.hwaccel}: decoding on the CPU")
    reader = PictureReader(pictures, {"framerate": str(options.framerate or 25)})
    return OpenSource(reader.container, reader, None, notes)


def _accelerated(file: Any, hwaccel: str, gpu: int | None) -> av.container.InputContainer | None:
    """Open with a decoder of a device; None where none can be had, with `file` at its beginning."""
    pipe = file if isinstance(file, InputPipe) else None
    if pipe is not None:
        pipe.remember()
    try:
        for acceleration in _accelerations(hwaccel, gpu if hwaccel == "cuda" else None):
            try:
                container = open_container(file, acceleration=acceleration)
            except DEVICE_FAILURES as error:  # an error of the file itself comes again on the CPU
                _log.info("decoding by %s is refused: %s", hwaccel, error)
            else:
                contexts = (s for s in container.streams.video if s.codec_context is not None)
                if all(software_format(stream) for stream in contexts):
                    _log.info("decoding by %s", hwaccel)
                    return container
                _log.info("decoding by %s: its pictures have no format known here", hwaccel)
                container.close()
            if pipe is not None:
                pipe.rewind()
            elif not isinstance(file, str):
                file.seek(0)
    finally:
        if pipe is not None:
            pipe.forget()
    return None


def _accelerations(hwaccel: str, gpu: int | None) -> Iterator[HWAccel]:
    """Yield what to ask for a decoder, best first.

    None falls back to the CPU by itself: it would do so without a word, and in one thread.
    """
    if hwaccel not in HWDeviceType.__members__:
        known = ", ".join(kind for kind in HWDeviceType.__members__ if kind != "none")
        raise UsageError(f"there is no hardware decoder {hwaccel!r}: choose one of {known}")
    if gpu is not None:
        # The context that torch has made current: PyAV's default would set the primary one's
        # flags, which fails (EOPNOTSUPP) once torch has it.
        context: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
        yield HWAccel(hwaccel, str(gpu), False, context, is_hw_owned=True)
    yield HWAccel(hwaccel, allow_software_fallback=False)


def _on_the_cpu(source: str | Path, file: Any) -> av.container.InputContainer:
    name = name_of(source)
    try:
        return open_container(file)
    except PermissionError:
        raise InputError(f"{name} may not be read: check its permissions") from None
    except FileNotFoundError as error:
        raise InputError(f"{name} was not found: check the path") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        path = path_of(source)
        if path is not None and (kind := refused_kind(path)) is not None:
            raise InputError(
                f"{name} is {kind}, which names other files or addresses, and those are not "
                "followed: give the video files themselves"
            ) from error
        if isinstance(error, av.error.InvalidDataError) and _lacks_index(path):
            raise InputError(
                f"{name} has lost its index (moov box): the recording was cut off; "
                "repair it with a tool such as untrunc first"
            ) from error
        raise InputError(
            f"{name} is not a video that can be read ({reason(error)}): "
            "give a video file, an image or an image pattern"
        ) from error


def _check_kind(container: av.container.InputContainer, name: str) -> None:
    """Refuse pictures that are read but not restored."""
    demuxer = container.format.name
    if not is_readable_demuxer(demuxer):
        container.close()
        raise InputError(
            f"{name} is a picture in the format {demuxer.removesuffix('_pipe')}, which is not "
            "restored: convert it to PNG or 16-bit TIFF in RGB first"
        )


def _lacks_index(path: Path | None) -> bool:
    """Tell whether a file is an MP4 without a readable moov box."""
    try:
        return path is not None and boxes.is_iso(path) and not read_tracks(path)
    except (InputError, OSError):
        return True


def _pipe(source: str | Path) -> Any:
    """A pipe as it is, or spooled to a file without a name where libav has to seek."""
    pipe = InputPipe(_descriptor(source))
    try:
        head = pipe.peek(12)
        if not head:
            raise InputError(f"{name_of(source)} is empty: pipe a video into vdeblur")
        if head[4:8] not in _ISO_BOXES:
            return pipe
        # An MP4 needs its index, which may come last.
        spool = tempfile.TemporaryFile()  # noqa: SIM115
        while part := pipe.read(_SPOOL_BYTES):
            spool.write(part)
        spool.seek(0)
    except BaseException:
        pipe.close()
        raise
    pipe.close()
    return spool


def _descriptor(source: str | Path) -> int:
    """Open a pipe; what this process has open is not opened again, which sockets refuse."""
    number = descriptor_of(source)
    if str(source) == "-":
        number = sys.stdin.fileno()
    try:
        return os.open(source, os.O_RDONLY) if number is None else os.dup(number)
    except OSError as error:
        raise InputError(f"{name_of(source)} cannot be read ({error.strerror})") from error
