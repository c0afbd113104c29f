"""Sinks on this machine's disks: files, and folders for HLS players."""

from __future__ import annotations

import os
import re
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

import av.error

from vdeblur.errors import OutputError
from vdeblur.live.encoding import TICKS, Chunk, Template
from vdeblur.live.sinks.muxing import Muxer
from vdeblur.live.sinks.sink import Sink, SinkOptions
from vdeblur.media.input_formats import open_container
from vdeblur.media.mp4.boxes import cut_torn_moof, is_iso
from vdeblur.media.names import libav_name
from vdeblur.system.renaming import move


class FileSink(Sink):
    """A file, or a series of files: `cam.mkv`, `cam_0001.mkv`, …

    Never replaces a file. While a file is written it is called NAME.part.mkv, and can be played up
    to its last second even if the program is killed. It gets its name when it is complete. A file
    that cannot be finished (the disk is full) keeps the temporary name, and is deleted if it holds
    no picture.

    Args:
        address: A path; strftime codes in its name are filled in.
        options: When to start another file, and how many to keep.
        **more: See `Sink`.

    Raises:
        OutputError: If the folder does not exist or cannot be written to.
    """

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self._path = Path(address)
        if not self._path.parent.is_dir():
            raise OutputError(f"folder {self._path.parent} does not exist: create it first")
        _writable(self._path.parent)
        self._number = 0
        self._began = self._size = 0
        self._asked = False
        self._files: deque[Path] = deque()
        self._disk: _Disk | None = None
        self._part = self._final = self._path

    @property
    def current(self) -> str:
        """The final name of the present file."""
        return str(self._final)

    def cut(self, template: Template) -> None:
        """See `Sink.cut`."""
        self.begin(template, "outage")

    def _names(self) -> tuple[Path, Path]:
        """Return the temporary and the final name of a file, neither of which exists."""
        base = self._path.with_name(datetime.now().astimezone().strftime(self._path.name))
        while True:
            final = base
            if self._number:
                final = base.with_name(f"{base.stem}_{self._number:04d}{base.suffix}")
            part = final.with_name(f"{final.stem}.part{final.suffix}")
            if not final.exists() and not part.exists():
                return part, final
            self._number += 1

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """See `Sink.opened`."""
        if "%" in self._path.name:
            self._number = 0
        self._part, self._final = self._names()
        suffix = self._path.suffix.lower()
        form = {".mkv": "matroska", ".ts": "mpegts", ".mov": "mov"}.get(suffix, "mp4")
        options = {"flush_packets": "1"}
        if form == "matroska":
            options |= {"cluster_time_limit": "1000"}
        elif form == "mpegts":
            options |= {"muxdelay": "0", "muxpreload": "0"}
        else:
            # Playable after a crash, and an ordinary file once it is finished.
            options |= {
                "movflags": "+hybrid_fragmented+frag_keyframe+delay_moov",
                "frag_duration": "1000000",
                "use_editlist": "1",
            }
        self._began, self._size, self._asked = first.pts, 0, False
        now = datetime.now().astimezone().isoformat()
        self._disk = _Disk(self._part)
        return Muxer(self._disk, form, template, options, {"creation_time": now})

    def rotates(self, chunk: Chunk) -> bool:
        """See `Sink.rotates`."""
        limits = self.options
        full = (
            limits.rotate_seconds is not None
            and chunk.pts - self._began >= limits.rotate_seconds * TICKS
        ) or (limits.rotate_bytes is not None and self._size >= limits.rotate_bytes)
        if full and not self._asked:
            self._asked = True
            self.keyframe()
        return full and chunk.kind == "video" and chunk.keyframe

    def write(self, muxer: Muxer, chunk: Chunk) -> None:
        """See `Sink.write`."""
        super().write(muxer, chunk)
        self._size += len(chunk.data)

    def close(self, muxer: Muxer) -> None:
        """Finish the file, and give it its final name."""
        muxer.close()
        assert self._disk is not None
        self._disk.close()
        self._disk = None
        while True:
            try:
                move(self._part, self._final, replace=False)
                break
            except FileExistsError:  # created by another program meanwhile
                _, self._final = self._names()
        self._keep(self._final)

    def abandon(self, muxer: Muxer | None) -> None:
        """Keep an unfinished file under its temporary name, if any of it can be played."""
        disk, self._disk = self._disk, None
        if disk is None:
            return  # it could not be created
        disk.refuse(OSError("the file was given up"))
        try:
            super().abandon(muxer)
        finally:
            disk.close()
            # Otherwise each try on a full disk would leave an empty file.
            if self._part.exists():
                if is_iso(self._part):
                    cut_torn_moof(self._part)
                if _plays(self._part):
                    self._keep(self._part)
                else:
                    self._part.unlink()

    def _keep(self, file: Path) -> None:
        self._files.append(file)
        while self.options.keep is not None and len(self._files) > self.options.keep:
            self._files.popleft().unlink(missing_ok=True)


def _plays(path: Path) -> bool:
    """Return whether any packet can be read: of MP4, the first fragment must be complete."""
    try:
        with open_container(libav_name(path)) as container:
            return any(packet.size and not packet.is_corrupt for packet in container.demux())
    except (av.error.FFmpegError, OSError):
        return False


class _Disk:
    """A new file for libav that refuses all writes after the first that failed.

    libav writes the trailer regardless; for fragmented MP4 it would overwrite the beginning, which
    makes the rest playable. Raises FileExistsError for a file that exists.
    """

    def __init__(self, path: Path) -> None:
        self.name = libav_name(path)
        self._file = path.open("xb", buffering=0)
        self._error: OSError | None = None

    def refuse(self, error: OSError) -> None:
        """Refuse all further writes."""
        self._error = self._error or error

    def write(self, data: Any) -> int:
        """Write all of the data."""
        rest = memoryview(bytes(data))
        while rest:
            if self._error is not None:
                raise self._error
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                self.refuse(error)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file; libav may have closed it."""
        self._file.close()


class HlsSink(Sink):
    """A folder with a playlist and MPEG-TS segments; old segments are deleted.

    Args:
        address: A folder, or a playlist in `.m3u8`.
        options: Length and number of the segments.
        **more: See `Sink`.

    Raises:
        OutputError: If the folder cannot be created or written to.
    """

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        path = Path(address)
        self._playlist = path if path.suffix == ".m3u8" else path / "index.m3u8"
        try:
            self._playlist.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"folder {self._playlist.parent} cannot be made: {error.strerror}"
            ) from error
        _writable(self._playlist.parent)
        self._number = self._next_number()
        self._times_opened = 0

    def _next_number(self) -> int:
        """Return the number of the first segment if there is no playlist to go on with.

        Raises:
            OutputError: The playlist is of another program: libav would delete its segments.
        """
        segment = re.compile(re.escape(self._playlist.stem) + r"_(\d{6,})\.ts")
        try:
            lines = self._playlist.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            found = (segment.fullmatch(file.name) for file in self._playlist.parent.iterdir())
            return max((int(match[1]) + 1 for match in found if match), default=0)
        except OSError as error:
            raise OutputError(f"{self._playlist} cannot be read ({error.strerror})") from error
        names = [line for line in lines[1:] if line and not line.startswith("#")]
        if lines[:1] != ["#EXTM3U"] or not all(map(segment.fullmatch, names)):
            raise OutputError(
                f"{self._playlist} is no playlist of an earlier run: name another, or move it away"
            )
        return 0

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """See `Sink.opened`."""
        flags = "delete_segments+append_list+omit_endlist+program_date_time+temp_file"
        flags += "+independent_segments"
        if self._times_opened or self._playlist.exists():
            flags += "+discont_start"
        self._times_opened += 1
        # A percent sign of its own is doubled where libav puts a number in.
        stem = libav_name(self._playlist.with_suffix("")).replace("%", "%%")
        options = {
            "hls_time": f"{self.options.hls_seconds:g}",
            "hls_list_size": str(self.options.hls_size),
            "hls_flags": flags,
            "hls_delete_threshold": "2",
            "hls_segment_filename": f"{stem}_%06d.ts",
            "hls_segment_options": "mpegts_flags=+resend_headers",
            "hls_start_number_source": "generic",
            "start_number": str(self._number),
        }
        return Muxer(libav_name(self._playlist), "hls", template, options)

    def ended(self) -> None:
        """Write the end of the playlist here: libav would write it at each change of format."""
        if self._times_opened and self._playlist.exists():
            with self._playlist.open("a") as playlist:
                playlist.write("#EXT-X-ENDLIST\n")


def _writable(folder: Path) -> None:
    """Raise OutputError unless files can be created in the folder."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"folder {folder} may not be written to: name another, or allow it")
