"""Sinks on this machine's disks: files in a row, and a folder for HLS players."""

from __future__ import annotations

import os
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any

import av
import av.error

from vdeblur.errors import OutputError
from vdeblur.live.encoding import TICKS, Chunk, Template
from vdeblur.live.sinks.muxing import Muxer
from vdeblur.live.sinks.sink import Sink, SinkOptions
from vdeblur.media.mp4.boxes import cut_torn_moof, is_iso


class FileSink(Sink):
    """A file, or a row of them: `cam.mkv`, `cam_0001.mkv`, …; strftime codes in the name count too.

    Never replaces a file. While it is written it is called NAME.part.mkv, and can be played up to
    its last second even if the program is killed; it gets its name when it is complete. A file that
    could not be finished (a full disk) keeps the first name, or goes if it holds no picture.
    OutputError where the folder is not there or may not be written to.
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
        """The file's final name."""
        return str(self._final)

    def cut(self, template: Template) -> None:
        """See `Sink`."""
        self.begin(template, "outage")

    def _names(self) -> tuple[Path, Path]:
        """(part, final) of a file that does not exist yet."""
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
        """See `Sink`."""
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
            # Readable after a crash, and an ordinary file once it is finished.
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
        """See `Sink`."""
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
        """See `Sink`."""
        super().write(muxer, chunk)
        self._size += len(chunk.data)

    def close(self, muxer: Muxer) -> None:
        """Finish the file and give it its name."""
        muxer.close()
        assert self._disk is not None
        self._disk.close()
        self._disk = None
        if self._final.exists():  # made by someone else meanwhile
            _, self._final = self._names()
        self._part.replace(self._final)
        self._keep(self._final)

    def abandon(self, muxer: Muxer | None) -> None:
        """What could not be finished stays under its first name, if it is worth something."""
        disk, self._disk = self._disk, None
        if disk is None:
            return  # it could not even be made
        disk.refuse(OSError("the file was given up"))
        try:
            super().abandon(muxer)
        finally:
            disk.close()
            # Or each try on a full disk would leave an empty file.
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
    """Whether anything whole can be read from it: of MP4, its first fragment must be complete."""
    try:
        with av.open(str(path)) as container:
            return any(packet.size and not packet.is_corrupt for packet in container.demux())
    except (av.error.FFmpegError, OSError):
        return False


class _Disk:
    """A file for libav that takes nothing more once it could not take something.

    libav ends a file all the same; of fragmented MP4 it would write over the beginning, which made
    what is there playable. FileExistsError for a file that exists.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = path.open("xb", buffering=0)
        self._error: OSError | None = None

    def refuse(self, error: OSError) -> None:
        """Take nothing more."""
        self._error = self._error or error

    def write(self, data: Any) -> int:
        """All of it."""
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
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it is."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file; libav may have done so."""
        self._file.close()


class HlsSink(Sink):
    """A folder with a playlist and MPEG-TS segments; old segments are deleted.

    OutputError where the folder cannot be made, or may not be written to.
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
        self._times_opened = 0

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """See `Sink`."""
        flags = "delete_segments+append_list+omit_endlist+program_date_time+temp_file"
        flags += "+independent_segments"
        if self._times_opened or self._playlist.exists():
            flags += "+discont_start"
        self._times_opened += 1
        stem = self._playlist.with_suffix("")
        options = {
            "hls_time": f"{self.options.hls_seconds:g}",
            "hls_list_size": str(self.options.hls_size),
            "hls_flags": flags,
            "hls_delete_threshold": "2",
            "hls_segment_filename": f"{stem}_%06d.ts",
            "hls_segment_options": "mpegts_flags=+resend_headers",
            "hls_start_number_source": "generic",
        }
        return Muxer(str(self._playlist), "hls", template, options)

    def ended(self) -> None:
        """Let players know; libav would tell them at every change of format, too."""
        if self._times_opened and self._playlist.exists():
            with self._playlist.open("a") as playlist:
                playlist.write("#EXT-X-ENDLIST\n")


def _writable(folder: Path) -> None:
    """OutputError unless files can be made in it: better now than with the first picture."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"folder {folder} may not be written to: name another, or allow it")
