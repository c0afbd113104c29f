"""Sinks outside this process: standard output, servers, players.

A process of its own sends to a server (`push`, or an installed ffmpeg), since a server that does
not answer would stop the whole program. If it cannot send in time, it is replaced by another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import Any

import av.error

from vdeblur.errors import OutputError
from vdeblur.live import subprocesses
from vdeblur.live.encoding import Chunk, Template
from vdeblur.live.sinks.muxing import Descriptor, Muxer
from vdeblur.live.sinks.sink import Gone, Sink, SinkOptions
from vdeblur.live.sources.timing import Backoff


class PipeSink(Sink):
    """Standard output: one stream; the sink ends when the reader goes.

    Raises:
        OutputError: If standard output is a terminal.
    """

    again = False

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self.name = "standard output"
        if os.isatty(sys.stdout.fileno()):
            raise OutputError(
                "standard output is a terminal, which cannot show a stream: "
                "pipe it into a program (| ffplay -), or name a file"
            )
        self._descriptor = os.dup(sys.stdout.fileno())
        self._times_opened = 0

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """See `Sink.opened`."""
        if self._times_opened and self.options.pipe_format != "mpegts":
            raise OutputError(
                "the picture's format changed, which a pipe cannot follow: "
                "use `pipe_format='mpegts'`, or a file"
            )
        self._times_opened += 1
        # A reader may pause: the queue bounds what waits meanwhile.
        pipe = Descriptor(self._descriptor, 3600.0)
        return Muxer(pipe, self.options.pipe_format, template, {"flush_packets": "1"}, hold=0)

    def ended(self) -> None:
        """See `Sink.ended`."""
        os.close(self._descriptor)


class PushSink(Sink):
    """A server or an address, to which a process sends what it reads as NUT; see `push`."""

    up_when_open = False

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self._program: subprocesses.Program | None = None
        self._answer = threading.Event()
        self._since = 0.0

    def launched(self) -> subprocesses.Program:
        """Start the process; it sets `_answer` once it is connected."""
        answer = self._answer = threading.Event()
        # On standard input, so that no password is on the command line.
        order = json.dumps({"address": self.address}).encode() + b"\n"
        words = [sys.executable, "-m", "vdeblur.live.sinks.push"]
        return subprocesses.Program(words, order=order, writes=True, on_line=lambda _: answer.set())

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """See `Sink.opened`."""
        self._program = program = self.launched()
        self._since = time.monotonic()
        assert program.process.stdin is not None
        pipe = Descriptor(program.process.stdin.fileno(), self.options.timeout)
        try:
            return Muxer(pipe, "nut", template, {"flush_packets": "1"}, hold=0)
        except BrokenPipeError as error:
            raise self._gone() from error

    def write(self, muxer: Muxer, chunk: Chunk) -> None:
        """See `Sink.write`."""
        self.check()
        try:
            super().write(muxer, chunk)
        except BrokenPipeError as error:
            raise self._gone() from error

    def check(self) -> None:
        """Raise if the process has ended, or has not connected in time."""
        if self._program is not None and not self._program.running:
            raise self._gone()
        if self.connected:
            return
        if self._answer.is_set():
            self.up()
        elif time.monotonic() - self._since > 2 * self.options.timeout + 5:
            raise Gone(f"the server did not answer in {2 * self.options.timeout + 5:g} s")

    def _gone(self) -> Gone:
        said = self._program.last_words(self.address) if self._program is not None else ""
        return Gone(said or "the connection ended")

    def close(self, muxer: Muxer) -> None:
        """End the input, so that the process closes the connection; kill it if it does not."""
        self.connected = False
        with contextlib.suppress(OSError, av.error.FFmpegError, ValueError):
            muxer.close()
        program, self._program = self._program, None
        if program is not None:
            program.end(1.5, ask=False)

    def abandon(self, muxer: Muxer | None) -> None:
        """Kill the process."""
        program, self._program = self._program, None
        if program is not None:
            program.process.kill()
        with contextlib.suppress(OSError, av.error.FFmpegError, ValueError):
            super().abandon(muxer)
        if program is not None:
            program.end()


class FfmpegSink(PushSink):
    """A server by a protocol that PyAV's wheels lack (SRT, RIST), through an installed ffmpeg."""

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        subprocesses.need_ffmpeg(self.name)
        if "mode=listener" in address:
            # It failed since nobody connected: listen again at once.
            self._backoff = Backoff(0.2, 0.5)

    def launched(self) -> subprocesses.Program:
        """See `PushSink.launched`."""
        answer = self._answer = threading.Event()
        return subprocesses.written_by_ffmpeg(self.address, purpose=self.name, taken=answer.set)
