"""Open a file, an image sequence or standard input with libav, accelerated if possible.

Knows how opening fails; knows no streams.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import av
import av.container
import av.error
from av.codec.hwaccel import HWAccel, HWDeviceType

from vdeblur.errors import InputError, UsageError
from vdeblur.media.image_sequences import first_number, is_pattern, libav_pattern
from vdeblur.media.input_formats import readable_formats, refused_kind
from vdeblur.media.joined_file import for_libav
from vdeblur.media.libav_errors import reason
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import read_tracks
from vdeblur.media.names import check_source, descriptor_of, is_read_once
from vdeblur.media.picture_formats import check_picture, is_readable_demuxer
from vdeblur.media.pipes import InputPipe
from vdeblur.media.pixel_formats import software_format
from vdeblur.media.read_options import ReadOptions

_log = logging.getLogger(__name__)

# What a device that is missing raises depends on its kind, in spite of allow_software_fallback.
_FAILURES = (av.error.FFmpegError, OSError, ValueError, NotImplementedError)
_SPOOL_BYTES = 1 << 20  # read at once
_ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"uuid")


@dataclass
class OpenSource:
    """An open libav container and what it needs.

    Attributes:
        container: The libav input container.
        start_number: Number of the first picture of an image sequence, else None.
        file: A Python file that libav reads from, to be closed after the container.
        notes: What a user should know of the opening.
    """

    container: av.container.InputContainer
    start_number: int | None = None
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


def open_source(source: str | Path, options: ReadOptions, *, on_device: bool) -> OpenSource:
    """Open a source for reading.

    Args:
        source: A path, an image2 pattern, or "-" for standard input.
        options: Of these hwaccel, framerate and start_number matter here.
        on_device: With hwaccel "cuda", leave decoded pictures in the GPU's memory if possible.

    Raises:
        InputError: The source is missing, empty, unreadable or no video.
        UsageError: The type of device is unknown.
    """
    path = path_of(source)
    form: str | None = None
    settings: dict[str, str] = {}
    number = options.start_number
    file: Any
    if is_pattern(source):
        file, form = libav_pattern(source), "image2"
        if number is None:
            number = first_number(str(source))  # libav itself looks at 0 to 4 only
        settings = {"framerate": str(options.framerate or 25), "start_number": str(number)}
    else:
        check_source(source, once=True)
        if path is not None:
            check_picture(path)
        file = _pipe(source) if path is None else for_libav(path)
    kept = None if isinstance(file, str) else file
    notes: list[str] = []
    container = None
    try:
        if options.hwaccel and options.hwaccel != "none":
            container = _accelerated(file, form, settings, options.hwaccel, on_device)
            if container is None:
                notes.append(f"no {options.hwaccel} decoder here: decoding on the CPU")
        if container is None:
            container = _on_the_cpu(source, file, form, settings)
            _log.debug("decoding %s on the CPU, format %s", source, container.format.name)
        _check_kind(container, name_of(source))
    except BaseException:
        if kept is not None:
            kept.close()
        raise
    return OpenSource(container, number, kept, notes)


def open_container(
    file: Any,
    form: str | None = None,
    settings: Mapping[str, str] | None = None,
    acceleration: HWAccel | None = None,
) -> av.container.InputContainer:
    """Open a file with libav, which reads nothing but it.

    Args:
        file: What `for_libav` returns, or a Python file.
        form: libav's name of the format; None finds it.
        settings: Options of the format.
        acceleration: The device that decodes.
    """
    confined = {
        "format_whitelist": readable_formats(),
        "protocol_whitelist": "file",
        "pattern_type": "none" if form is None else "sequence",  # the name is that of a file
    }
    container: av.container.InputContainer = av.open(
        file,
        "r",
        format=form,
        options=confined | dict(settings or {}),
        hwaccel=acceleration,
        metadata_errors="surrogateescape",
    )
    return container


def _accelerated(
    file: Any, form: str | None, settings: dict[str, str], hwaccel: str, on_device: bool
) -> av.container.InputContainer | None:
    """Open with a decoder of a device; None where none can be had, with `file` at its beginning."""
    pipe = file if isinstance(file, InputPipe) else None
    if pipe is not None:
        pipe.remember()
    try:
        for acceleration in _accelerations(hwaccel, on_device and hwaccel == "cuda"):
            try:
                container = open_container(file, form, settings, acceleration)
            except _FAILURES as error:  # an error of the file itself comes again on the CPU
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


def _accelerations(hwaccel: str, on_device: bool) -> Iterator[HWAccel]:
    """Yield what to ask for a decoder, best first."""
    if hwaccel not in HWDeviceType.__members__:
        known = ", ".join(kind for kind in HWDeviceType.__members__ if kind != "none")
        raise UsageError(f"there is no hardware decoder {hwaccel!r}: choose one of {known}")
    if on_device:
        # The context that torch has made current: PyAV's default would set the primary one's
        # flags, which fails (EOPNOTSUPP) once torch has it.
        context: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
        yield HWAccel(
            device_type=hwaccel, allow_software_fallback=True, is_hw_owned=True, options=context
        )
    yield HWAccel(device_type=hwaccel, allow_software_fallback=True)


def _on_the_cpu(
    source: str | Path, file: Any, form: str | None, settings: dict[str, str]
) -> av.container.InputContainer:
    name = name_of(source)
    try:
        return open_container(file, form, settings, None)
    except PermissionError:
        raise InputError(f"{name} may not be read: check its permissions") from None
    except FileNotFoundError as error:
        raise InputError(
            f"{name} was not found: check the path"
            + (" and `start_number`" if form == "image2" else "")
        ) from error
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
