"""Other programs: start them without passwords on their command lines, read their output, end them.

Knows processes and ffmpeg-python; knows no streams.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from vdeblur.errors import UsageError
from vdeblur.system.masking import masked


class Program:
    """A running program.

    Its standard error is read and the last lines are kept: unread, it would fill the pipe and block
    the program (kkroening/ffmpeg-python#195).

    Args:
        words: The command.
        order: Written to its standard input first.
        writes: Whether the caller writes to `process.stdin`; otherwise it is closed after `order`.
        reads: Whether the caller reads `process.stdout`; otherwise its lines go to `on_line`.
        on_line: Called with each line of standard output, on another thread.
        files: Descriptors that the program inherits; closed here.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        order: bytes = b"",
        writes: bool = False,
        reads: bool = False,
        on_line: Callable[[str], None] = lambda line: None,
        files: Sequence[int] = (),
    ) -> None:
        self._last_lines: deque[str] = deque(maxlen=8)
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=files,
                # Ctrl-C at the terminal is for this process, which ends the other in order.
                start_new_session=True,
            )
        finally:
            for descriptor in files:
                os.close(descriptor)
        process = self.process
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.write(order)
            process.stdin.flush()
            if not writes:
                process.stdin.close()
        listened = [(process.stderr, self._last_lines.append)]
        if not reads:
            listened.append((process.stdout, on_line))
        self._listeners = [
            threading.Thread(target=_listen, args=pair, name="listen", daemon=True)
            for pair in listened
        ]
        for listener in self._listeners:
            listener.start()

    @property
    def running(self) -> bool:
        """Whether the program has not ended."""
        return self.process.poll() is None

    def last_words(self, address: str = "") -> str:
        """Return the last lines of standard error, with passwords masked.

        Args:
            address: An address whose password to mask as well, wherever it stands.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        if not self.running:
            for listener in self._listeners:
                listener.join(0.5)
        # Drop the prefix that says where in ffmpeg, and lines that only say that it failed.
        lines = [re.sub(r"^(\[[^\]]* @ 0x\w+\] )+", "", line) for line in self._last_lines]
        reasons = [s for s in lines if not s.startswith(("pipe:0: ", "Impossible to open"))]
        return masked("; ".join(reasons), of=address)

    def end(self, patience: float = 1.0, *, ask: bool = True) -> None:
        """Close its input and wait for its end; kill it after `patience` seconds.

        Args:
            patience: Seconds.
            ask: Whether to terminate it as well, rather than to wait for it only.
        """
        process = self.process
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        if ask and self.running:
            process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for listener in self._listeners:
            listener.join(1)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()


def _listen(pipe: Any, keep: Callable[[str], None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            keep(line.decode(errors="replace").strip())


def need_ffmpeg(purpose: str) -> None:
    """Raise UsageError if no ffmpeg is installed; `purpose` is the subject of its message."""
    if shutil.which("ffmpeg") is None:
        raise UsageError(
            f"{purpose} needs an installed ffmpeg, and there is none: "
            "apt install ffmpeg, brew install ffmpeg, or winget install ffmpeg"
        )


def read_by_ffmpeg(address: str, options: dict[str, Any], *, purpose: str) -> Program:
    """Start an ffmpeg that copies the streams of an address to its standard output as NUT.

    Args:
        address: A URL or a device.
        options: ffmpeg's input options.
        purpose: See `need_ffmpeg`.
    """
    import ffmpeg

    need_ffmpeg(purpose)
    order = b""
    if "://" in address:
        # A list of one, on standard input: all users can read a command line.
        quoted = address.replace("'", r"'\''")
        lines = ["ffconcat version 1.0", f"file '{quoted}'"]
        order = "\n".join([*lines, *(f"option {k} {v}" for k, v in options.items()), ""]).encode()
        known = "file,pipe,fd,srt,rist,udp,tcp"
        given = ffmpeg.input("pipe:0", format="concat", safe=0, protocol_whitelist=known)
    else:
        given = ffmpeg.input(address, **options)
    graph = given.output("pipe:1", format="nut", codec="copy", flush_packets=1)
    words = graph.global_args("-nostdin", "-hide_banner", "-loglevel", "error").compile()
    return Program(words, order=order, reads=True)


def written_by_ffmpeg(address: str, *, purpose: str, taken: Callable[[], None]) -> Program:
    """Start an ffmpeg that sends the NUT on its standard input to an address as MPEG-TS.

    Args:
        address: A URL.
        purpose: See `need_ffmpeg`.
        taken: Called whenever more has been sent, on another thread.
    """
    import ffmpeg

    need_ffmpeg(purpose)
    options: dict[str, Any] = {
        "format": "mpegts",
        "codec": "copy",
        "flush_packets": 1,
        "muxdelay": 0,
        "max_interleave_delta": 1,
        "bsf:v": "dump_extra=freq=keyframe",
    }
    address, hidden = _without_secrets(address)
    files: list[int] = []
    if hidden:
        # A preset file may be a pipe, and all users can read a command line.
        reading, writing = os.pipe()
        os.write(writing, "".join(f"{line}\n" for line in hidden).encode())
        os.close(writing)
        files.append(reading)
        options["fpre"] = f"/dev/fd/{reading}"
    quickly = {"analyzeduration": 0, "probesize": 32, "fpsprobesize": 0}
    graph = ffmpeg.input("pipe:0", format="nut", **quickly).output(address, **options)
    progress = ("-progress", "pipe:1")  # lines of name=value, twice a second
    words = graph.global_args("-nostdin", "-hide_banner", "-loglevel", "error", *progress).compile()

    def on_line(line: str) -> None:
        name, _, value = line.partition("=")
        if name == "total_size" and value.isdigit() and int(value):
            taken()

    return Program(words, writes=True, on_line=on_line, files=files)


def _without_secrets(address: str) -> tuple[str, list[str]]:
    """Split an SRT address into the address without what is secret of it, and lines of options.

    A stream id may hold a user's name and key (SRT Access Control).
    """
    start, mark, query = address.partition("?")
    found = [part for part in query.split("&") if part.startswith(("passphrase=", "streamid="))]
    if not found or sys.platform == "win32":  # descriptors have no names there
        return address, []
    rest = "&".join(part for part in query.split("&") if part not in found)
    # In an address, libav reads + as a space.
    lines = [part.replace("+", " ") for part in found]
    return start + (mark + rest if rest else ""), lines
