"""Streams that libav finds or describes only far into a file: a second, deeper look at its opening.

What a first look knows is not all there is: sound and pictures of broadcasts begin late, and the
containers without a header (MPEG-TS, MPEG-PS, FLV) name a stream with its first packet.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging

from vdeblur.media.stream_facts import is_described

# Packets that libav keeps in memory while it looks.
_DEEP_BYTES = 64 << 20
_DEEP: dict[str, str] = {"probesize": str(_DEEP_BYTES), "analyzeduration": str(2**62)}
# Demuxers that find streams while they read (FFmpeg's AVFMTCTX_NOHEADER).
_FINDS_LATE = {"flv", "live_flv", "mpegts", "mpeg", "nuv", "rm"}
_STREAM_LINE = re.compile(r"^ *Stream #\d+:(\d+)[^:]*: (.*)", re.MULTILINE)


def deeper(container: Any) -> dict[str, str]:
    """Return the options of a second opening; none where the first one knows everything.

    Args:
        container: A libav input container that nothing was read from.
    """
    described = all(is_described(stream) for stream in container.streams)
    name = container.format.name
    # FLV has a stream of each kind at most: a second one ends libav's look.
    alone = name in ("flv", "live_flv") and len(container.streams) < 2
    return dict(_DEEP) if alone or not described or name == "mpeg" else {}


def open_deep(file: Any, **arguments: Any) -> Any:
    """Open a file with libav as `av.open` does, and once more where that shows too little.

    Args:
        file: A path, or a Python file that can be sought.
        arguments: Of `av.open`.
    """
    container = av.open(file, "r", **arguments)
    options = deeper(container)
    # A pipe cannot be read twice, even where it has a name.
    named = isinstance(file, str)
    again = Path(file.removeprefix("file:")).is_file() if named else hasattr(file, "seek")
    if not options or not again:
        return container
    container.close()
    if not isinstance(file, str):
        file.seek(0)
    arguments["options"] = dict(arguments.get("options") or {}) | options
    return av.open(file, "r", **arguments)


def late_streams(container: Any) -> list[str]:
    """Return what libav found while it read, and PyAV does not hand out, in libav's words."""
    if not _FINDS_LATE & set(container.format.name.split(",")):
        return []
    # PyAV has no count of them; libav lists them in its log.
    av.logging.set_level(av.logging.INFO)
    try:
        listed = container.dumps_format()
    finally:
        av.logging.set_level(None)
    known = len(container.streams)
    found = [(int(number), text) for number, text in _STREAM_LINE.findall(listed)]
    return [_words(text) for number, text in found if number >= known]


def _words(text: str) -> str:
    """ "audio aac" for libav's "Audio: aac, 44100 Hz, stereo"."""
    kind, _, rest = text.partition(": ")
    return f"{kind.lower()} {re.split(r'[ ,(]', rest, maxsplit=1)[0]}"


class _Tail(io.RawIOBase):
    """A file from some byte on."""

    def __init__(self, file: Any, begin: int) -> None:
        super().__init__()
        self._file, self._begin = file, begin
        self.seek(0)

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase."""
        start = self._begin if whence == io.SEEK_SET else 0
        return max(0, int(self._file.seek(start + offset, whence)) - self._begin)

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class LateDescriptions:
    """Descriptions of the streams of an MPEG-TS that libav has none of at its opening.

    Its packets can be read from anywhere, so a second look begins at the stream's first packet.

    Args:
        container: The libav input container.
        path: Its file; None for a pipe, which nothing is known of but what passes.

    Attributes:
        templates: Streams of the second look, by the index that they have in the first.
    """

    def __init__(self, container: Any, path: Path | None) -> None:
        self.templates: dict[int, Any] = {}
        self._open: list[Any] = []
        if path is None or container.format.name != "mpegts":
            return
        missing = {s.id: s.index for s in container.streams if not is_described(s)}
        while missing:
            begin = _first_byte(path, set(missing))
            if begin is None:
                return
            found = self._look(path, begin, missing)
            if not found:
                return
            for number in found:
                del missing[number]

    def _look(self, path: Path, begin: int, missing: dict[int, int]) -> set[int]:
        """Describe streams by what follows a byte of the file; return their PIDs."""
        file = _Tail(path.open("rb"), begin)
        self._open.append(file)
        try:
            container = av.open(file, "r", format="mpegts", metadata_errors="surrogateescape")
        except (av.error.FFmpegError, OSError):
            return set()
        self._open.append(container)
        found = {s.id: s for s in container.streams if s.id in missing and is_described(s)}
        self.templates |= {missing[number]: stream for number, stream in found.items()}
        return set(found)

    def close(self) -> None:
        """Close the second look: the templates are no more."""
        self.templates.clear()
        while self._open:
            self._open.pop().close()


def _first_byte(path: Path, numbers: set[int]) -> int | None:
    """Where the first packet of any of some streams, by PID, lies in a file."""
    try:
        with path.open("rb") as file, av.open(file, "r", format="mpegts") as container:
            wanted = [stream for stream in container.streams if stream.id in numbers]
            for packet in container.demux(*wanted) if wanted else ():
                if packet.size and packet.pos is not None and packet.pos >= 0:
                    return int(packet.pos)
    except (av.error.FFmpegError, OSError, IndexError):
        pass
    return None
