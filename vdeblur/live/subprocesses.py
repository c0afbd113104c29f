"""Other programs: started without a password on their command line, listened to, and ended.

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
from vdeblur.live.addresses import masked


class Program:
    """A running program. What it says on standard error is read, and its last lines are kept:
    unread, they would fill the pipe and stop it (kkroening/ffmpeg-python#195).

    order: what it reads first; standard input is closed after it unless `writes`. reads: its
    standard output is for the caller, `process.stdout`; else its lines go to `told`. files:
    descriptors that it inherits, closed here.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        order: bytes = b"",
        writes: bool = False,
        reads: bool = False,
        told: Callable[[str], None] = lambda line: None,
        files: Sequence[int] = (),
    ) -> None:
        self._said: deque[str] = deque(maxlen=8)
        try:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=files,
                # A Ctrl-C at the terminal is for this process, which ends the other in order.
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
        listened = [(process.stderr, self._said.append)]
        if not reads:
            listened.append((process.stdout, told))
        self._listeners = [
            threading.Thread(target=_listen, args=pair, name="listen", daemon=True)
            for pair in listened
        ]
        for listener in self._listeners:
            listener.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def last_words(self, address: str = "") -> str:
        """What it said last, waited for a moment if it has just ended; passwords are masked."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0.5)
        if not self.running:
            for listener in self._listeners:
                listener.join(0.5)
        # Without where in ffmpeg it was said, and what says no more than that it did not open.
        said = [re.sub(r"^(\[[^\]]* @ 0x\w+\] )+", "", line) for line in self._said]
        told = [s for s in said if not s.startswith(("pipe:0: ", "Impossible to open"))]
        return masked("; ".join(told), of=address)

    def end(self, patience: float = 1.0, *, ask: bool = True) -> None:
        """Close its input, wait, and see to it; ask: tell it to end, besides."""
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
    """UsageError where no ffmpeg is installed. purpose: the subject of its sentence."""
    if shutil.which("ffmpeg") is None:
        raise UsageError(
            f"{purpose} needs an installed ffmpeg, and there is none: "
            "apt install ffmpeg, brew install ffmpeg, or winget install ffmpeg"
        )


def read_by_ffmpeg(address: str, options: dict[str, Any], *, purpose: str) -> Program:
    """ffmpeg that copies an address's streams to its standard output as NUT."""
    import ffmpeg

    need_ffmpeg(purpose)
    order = b""
    if "://" in address:
        # A list of one, read from standard input: a command line is seen by all users.
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
    """ffmpeg that sends the NUT on its standard input to an address as MPEG-TS.

    taken() is called, from another thread, whenever more has been sent.
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
    address, hidden = _without_passphrase(address)
    files: list[int] = []
    if hidden:
        # A preset's file may be a pipe: a command line is seen by all users.
        reading, writing = os.pipe()
        os.write(writing, f"passphrase={hidden}\n".encode())
        os.close(writing)
        files.append(reading)
        options["fpre"] = f"/dev/fd/{reading}"
    quickly = {"analyzeduration": 0, "probesize": 32, "fpsprobesize": 0}
    graph = ffmpeg.input("pipe:0", format="nut", **quickly).output(address, **options)
    progress = ("-progress", "pipe:1")  # lines of name=value, twice a second
    words = graph.global_args("-nostdin", "-hide_banner", "-loglevel", "error", *progress).compile()

    def told(line: str) -> None:
        name, _, value = line.partition("=")
        if name == "total_size" and value.isdigit() and int(value):
            taken()

    return Program(words, writes=True, told=told, files=files)


def _without_passphrase(address: str) -> tuple[str, str]:
    """An SRT address without its passphrase, and that; as they were where it has none."""
    start, mark, query = address.partition("?")
    found = [part for part in query.split("&") if part.startswith("passphrase=")]
    if not found or sys.platform == "win32":  # where descriptors have no names
        return address, ""
    rest = "&".join(part for part in query.split("&") if part not in found)
    return start + (mark + rest if rest else ""), found[-1].partition("=")[2]
