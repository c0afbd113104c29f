"""Encoded chunks → files, HLS folders, standard output, servers; each with a thread and a bound.

A sink that fails is opened again, and begins with a keyframe; the others do not notice. Knows
libav; knows no encoder and no source.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import av
import av.error
from av.bitstream import BitStreamFilterContext

from vdeblur.camera.addresses import masked, sink_kind
from vdeblur.camera.encoding import TICKS, Chunk, Template
from vdeblur.camera.receiving import Backoff
from vdeblur.camera.sources import end_process, start_ffmpeg
from vdeblur.errors import OutputError, UsageError

#: Packets that wait for a sink at most; 20 seconds of 25 frames/s with sound would be 1500.
_WAITING = 400
_WAITING_BYTES = 64 << 20


@dataclass(frozen=True)
class SinkOptions:
    """How sinks write.

    rotate_seconds, rotate_bytes: a file sink goes on in a new file at the next keyframe. keep: of
    the files that this run has written, the newest so many stay. timeout: seconds after which a
    server that takes nothing counts as gone. hls_seconds, hls_size: length and number of segments
    in the playlist. pipe_format: what is written to standard output.
    """

    rotate_seconds: float | None = None
    rotate_bytes: int | None = None
    keep: int | None = None
    timeout: float = 5.0
    hls_seconds: float = 2.0
    hls_size: int = 6
    pipe_format: str = "matroska"
    retry_cap: float = 30.0


@dataclass(frozen=True)
class _Begin:
    """From here on the streams are these; a new segment."""

    template: Template
    reason: str


class Gone(OutputError):
    """The sink took no more; it is tried again."""


class Sink:
    """One output in a thread of its own. `offer` never waits; what does not fit is dropped.

    on_event(name, sink=…, **facts) tells of segments, of failures and of recoveries. keyframe():
    asks the encoder for one, so that the sink can begin.
    """

    #: Whether to go on after a failure.
    again = True

    def __init__(
        self,
        address: str,
        options: SinkOptions,
        *,
        on_event: Callable[..., None] = lambda name, **facts: None,
        keyframe: Callable[[], None] = lambda: None,
    ) -> None:
        self.address, self.options = address, options
        self.name = masked(address)
        self.on_event, self.keyframe = on_event, keyframe
        self.written = self.dropped = self.bytes = self.failures = 0
        self.connected = False
        self.error: OutputError | None = None
        self._items: deque[Chunk | _Begin] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._ending = False
        self._skipping = True  # until a keyframe
        self._template: _Begin | None = None
        self._open = False
        self._base = 0
        self._last: dict[str, int] = {}
        self._backoff = Backoff(0.5, options.retry_cap)
        self._again_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"sink {self.name}", daemon=True)

    # -- from the session's threads --------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def begin(self, template: Template, reason: str) -> None:
        """Other streams, or another stretch of them: a new segment from the next keyframe on."""
        with self._changed:
            self._items.append(_Begin(template, reason))
            self._changed.notify()

    def cut(self, template: Template) -> None:
        """After an outage, the same streams: a file goes on in a new segment, a server stays."""

    def offer(self, chunk: Chunk) -> None:
        """Take a chunk, or drop it (and all up to the next keyframe) where too many wait."""
        with self._changed:
            if self._waiting_bytes > _WAITING_BYTES or len(self._items) >= _WAITING:
                kept = [item for item in self._items if isinstance(item, _Begin)]
                self.dropped += len(self._items) - len(kept) + 1
                self._items = deque(kept[-1:])
                self._waiting_bytes = 0
                self._skipping = True
                self.keyframe()
            if self._skipping:
                if not (chunk.kind == "video" and chunk.keyframe):
                    self.dropped += 1
                    return
                self._skipping = False
            self._items.append(chunk)
            self._waiting_bytes += len(chunk.data)
            self._changed.notify()

    def end(self) -> None:
        """Write what waits, finish, and end."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, patience: float) -> bool:
        """Wait for the end; False if it is stuck, and left behind."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Chunks that wait."""
        return len(self._items)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    while not self._items and not self._ending:
                        self._changed.wait(0.25)
                        if self._open:
                            self._changed.release()
                            try:
                                self._look()
                            finally:
                                self._changed.acquire()
                    if not self._items:
                        break
                    item = self._items.popleft()
                    if isinstance(item, Chunk):
                        self._waiting_bytes -= len(item.data)
                self._take(item)
        except _Stop:
            pass
        finally:
            self._finish()
            self.connected = False
            with contextlib.suppress(OSError):
                self.ended()

    def _look(self) -> None:
        try:
            self.check()
        except Exception as error:
            self._failed(error)

    def _take(self, item: Chunk | _Begin) -> None:
        try:
            if isinstance(item, _Begin):
                self._finish()
                self._template = item
                self._skip()
                return
            if not self._open and not self._begin_with(item):
                return
            if self._rotates(item):
                template = self._template
                assert template is not None
                self._finish()
                self._template = _Begin(template.template, "rotation")
                if not self._begin_with(item):
                    return
            if item.pts < self._base:
                return  # sound of before the segment's first picture
            # Muxers want decoding times that rise.
            last = self._last.get(item.kind)
            if last is not None and item.dts <= last:
                self.dropped += 1
                return
            self._last[item.kind] = item.dts
            self.write(item, self._base)
            self.written += 1
            self.bytes += len(item.data)
        except Exception as error:  # whatever it is: the other sinks go on, and this one returns
            self._failed(error)

    def _begin_with(self, item: Chunk) -> bool:
        """Open with this chunk, if it is a keyframe and the time to try again has come."""
        if self._template is None or not (item.kind == "video" and item.keyframe):
            self.dropped += 1
            return False
        if time.monotonic() < self._again_at:
            self.dropped += 1
            self._skip()
            return False
        self._base, self._last = item.pts, {}
        self.open(self._template.template, item)
        self._open = True
        if not isinstance(self, PushSink):  # which says so when the server has answered
            self.up(self._template.reason)
        return True

    def up(self, reason: str) -> None:
        """It takes what it is given."""
        self.connected = True
        if self._backoff.tries:
            self.on_event("sink_back", sink=self.name)
        self._backoff.reset()
        self.on_event("segment", sink=self.name, file=self.current, reason=reason)

    @property
    def current(self) -> str:
        """What is being written to, for people."""
        return self.name

    def _skip(self) -> None:
        with self._changed:
            self._skipping = True
        if time.monotonic() >= self._again_at:
            self.keyframe()

    def _failed(self, error: BaseException) -> None:
        text = masked(str(getattr(error, "strerror", None) or error)).rstrip(".")
        self.failures += 1
        self.connected = self._open = False
        with contextlib.suppress(Exception):
            self.abandon()
        if not self.again:
            self.error = error if isinstance(error, OutputError) else OutputError(text)
            self.on_event("sink_ended", sink=self.name, reason=text)
            raise _Stop
        wait = self._backoff.next()
        self._again_at = time.monotonic() + wait
        self._skip()
        self.on_event("sink_gone", sink=self.name, reason=text, seconds=round(wait, 2))

    def _finish(self) -> None:
        if self._open:
            self._open = False
            try:
                self.close()
            except Exception as error:
                self.on_event("sink_gone", sink=self.name, reason=masked(str(error)), seconds=0)

    def _rotates(self, item: Chunk) -> bool:
        return False

    # -- what kinds of sinks do ------------------------------------------------------------------

    def open(self, template: Template, first: Chunk) -> None:
        """Open, to begin with this chunk."""
        raise NotImplementedError

    def write(self, chunk: Chunk, base: int) -> None:
        """Write a chunk, `base` ticks earlier."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Let go after a failure."""
        self.close()

    def check(self) -> None:
        """Raise if it has gone; called while nothing comes."""

    def ended(self) -> None:
        """Nothing more will come."""


class _Stop(Exception):
    """The sink's thread ends."""


class _Muxer:
    """A container of libav with the streams of a template."""

    def __init__(self, target: Any, form: str, template: Template, options: dict[str, str]) -> None:
        self.output = cast(Any, av.open(target, "w", format=form, container_options=options))
        self.streams = {"video": self.output.add_stream_from_template(template.video, opaque=True)}
        if template.sound is not None:
            self.streams["audio"] = self.output.add_stream_from_template(template.sound)
        self._repeats = (
            BitStreamFilterContext("dump_extra=freq=keyframe", template.video)
            if form in ("mpegts", "hls")
            else None
        )
        self.output.metadata["encoder"] = "vdeblur"

    def begin(self) -> None:
        """Write the header."""
        self.output.start_encoding()

    def write(self, chunk: Chunk, base: int) -> None:
        """Mux a chunk."""
        if chunk.kind not in self.streams:
            return
        packet = chunk.packet(self.streams[chunk.kind], base)
        if self._repeats is not None and chunk.kind == "video":
            ticks = packet.time_base  # the filter takes the packet's contents away
            for ready in self._repeats.filter(packet):
                ready.time_base = ticks
                ready.stream = self.streams["video"]
                self.output.mux(ready)
        else:
            self.output.mux(packet)

    def close(self) -> None:
        """Write the trailer."""
        self.output.close()


class FileSink(Sink):
    """A file, or a row of them: `cam.mkv`, `cam_0001.mkv`, …; strftime codes in the name count too.

    Never replaces a file. While it is written it is called NAME.part.mkv, and can be played up to
    its last second even if the program is killed; it gets its name when it is complete.
    """

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self._path = Path(address)
        if not self._path.parent.is_dir():
            raise OutputError(f"folder {self._path.parent} does not exist: create it first")
        self._muxer: _Muxer | None = None
        self._number = 0
        self._began = 0
        self._size = 0
        self._asked = False
        self._finished: deque[Path] = deque()
        self._part: Path | None = None
        self._final: Path | None = None

    @property
    def current(self) -> str:
        """The file's final name."""
        return str(self._final or self._path)

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

    def open(self, template: Template, first: Chunk) -> None:
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
        self._muxer = _Muxer(str(self._part), form, template, options)
        now = datetime.now().astimezone()
        self._muxer.output.metadata["creation_time"] = now.isoformat()
        self._muxer.begin()
        self._began, self._size, self._asked = first.pts, 0, False

    def _rotates(self, item: Chunk) -> bool:
        limits = self.options
        full = (
            limits.rotate_seconds is not None
            and item.pts - self._began >= limits.rotate_seconds * TICKS
        ) or (limits.rotate_bytes is not None and self._size >= limits.rotate_bytes)
        if full and not self._asked:
            self._asked = True
            self.keyframe()
        return full and item.kind == "video" and item.keyframe

    def write(self, chunk: Chunk, base: int) -> None:
        """See `Sink`."""
        assert self._muxer is not None
        self._muxer.write(chunk, base)
        self._size += len(chunk.data)

    def close(self) -> None:
        """Finish the file and give it its name."""
        muxer, self._muxer = self._muxer, None
        if muxer is None:
            return
        muxer.close()
        assert self._part is not None
        assert self._final is not None
        if self._final.exists():  # made by someone else meanwhile
            return
        self._part.replace(self._final)
        self._finished.append(self._final)
        while self.options.keep is not None and len(self._finished) > self.options.keep:
            self._finished.popleft().unlink(missing_ok=True)


class HlsSink(Sink):
    """A folder with a playlist and MPEG-TS segments; old segments are deleted."""

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
        self._muxer: _Muxer | None = None
        self._opened = 0

    def open(self, template: Template, first: Chunk) -> None:
        """See `Sink`."""
        flags = "delete_segments+append_list+omit_endlist+program_date_time+temp_file"
        flags += "+independent_segments"
        if self._opened or self._playlist.exists():
            flags += "+discont_start"
        self._opened += 1
        stem = self._playlist.with_suffix("")
        self._muxer = _Muxer(
            str(self._playlist),
            "hls",
            template,
            {
                "hls_time": f"{self.options.hls_seconds:g}",
                "hls_list_size": str(self.options.hls_size),
                "hls_flags": flags,
                "hls_delete_threshold": "2",
                "hls_segment_filename": f"{stem}_%06d.ts",
                "hls_segment_options": "mpegts_flags=+resend_headers",
                "hls_start_number_source": "generic",
            },
        )
        self._muxer.begin()

    def write(self, chunk: Chunk, base: int) -> None:
        """See `Sink`."""
        assert self._muxer is not None
        self._muxer.write(chunk, base)

    def close(self) -> None:
        """See `Sink`."""
        muxer, self._muxer = self._muxer, None
        if muxer is not None:
            muxer.close()

    def ended(self) -> None:
        """Let players know; libav would tell them at every change of format, too."""
        if self._opened and self._playlist.exists():
            with self._playlist.open("a") as playlist:
                playlist.write("#EXT-X-ENDLIST\n")


class _Descriptor:
    """A pipe's writing end for libav, with a time limit; OSError when nobody reads."""

    def __init__(self, descriptor: int, timeout: float) -> None:
        self._descriptor, self._timeout = descriptor, timeout

    def write(self, data: Any) -> int:
        rest = memoryview(bytes(data))
        give_up = time.monotonic() + self._timeout
        while rest:
            if sys.platform != "win32":
                left = give_up - time.monotonic()
                if left <= 0 or not select.select([], [self._descriptor], [], left)[1]:
                    raise TimeoutError(f"nothing was taken for {self._timeout:g} s")
            # A pipe that is ready takes this much without waiting.
            rest = rest[os.write(self._descriptor, rest[: select.PIPE_BUF]) :]
        return len(data)


class PipeSink(Sink):
    """Standard output: one stream to its end; when the reader goes, the sink is over."""

    again = False

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self.name = "standard output"
        self._descriptor = os.dup(sys.stdout.fileno())
        self._muxer: _Muxer | None = None
        self._began = False

    def open(self, template: Template, first: Chunk) -> None:
        """See `Sink`."""
        if self._began and self.options.pipe_format != "mpegts":
            raise OutputError(
                "the picture's format changed, which a pipe cannot follow: "
                "use --pipe-format mpegts, or a file"
            )
        self._began = True
        # A reader may pause: what waits meanwhile is bounded by the queue.
        pipe = _Descriptor(self._descriptor, 3600.0)
        self._muxer = _Muxer(pipe, self.options.pipe_format, template, {"flush_packets": "1"})
        self._muxer.begin()

    def write(self, chunk: Chunk, base: int) -> None:
        """See `Sink`."""
        assert self._muxer is not None
        self._muxer.write(chunk, base)

    def close(self) -> None:
        """See `Sink`."""
        muxer, self._muxer = self._muxer, None
        if muxer is not None:
            muxer.close()


class PushSink(Sink):
    """A server or an address: NUT into a process that sends it on (see `push`).

    What cannot be sent in time means that the process is ended, and another started.
    """

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        self._process: subprocess.Popen[bytes] | None = None
        self._muxer: _Muxer | None = None
        self._said: deque[str] = deque(maxlen=4)
        self._readers: list[threading.Thread] = []
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._since = 0.0

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "vdeblur.camera.push"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A Ctrl-C at the terminal is for this process, which then ends the other in order.
            start_new_session=True,
        )
        assert process.stdin is not None
        order = {"address": self.address, "options": {}}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        return process

    def open(self, template: Template, first: Chunk) -> None:
        """See `Sink`."""
        self._said.clear()
        self._answers = queue.SimpleQueue()
        self._process = process = self._start()
        assert process.stdin is not None
        self._readers = []
        answers, said = self._answers, self._said
        for pipe, keep in ((process.stdout, answers.put), (process.stderr, said.append)):
            if pipe is None or (pipe is process.stderr and self._reads_itself()):
                continue
            reader = threading.Thread(target=_listen, args=(pipe, keep), name="push", daemon=True)
            reader.start()
            self._readers.append(reader)
        self._since = time.monotonic()
        self._muxer = _Muxer(
            _Descriptor(process.stdin.fileno(), self.options.timeout),
            "nut",
            template,
            {"flush_packets": "1"},
        )
        self._muxer.begin()

    def _reads_itself(self) -> bool:
        return False

    def write(self, chunk: Chunk, base: int) -> None:
        """See `Sink`."""
        assert self._muxer is not None
        self.check()
        try:
            self._muxer.write(chunk, base)
        except BrokenPipeError as error:
            self._wait_for_words()
            raise Gone(self._reason()) from error

    def check(self) -> None:
        """Whether the process lives, and has connected in time."""
        process = self._process
        if process is None:
            return
        if process.poll() is not None:
            self._wait_for_words()
            raise Gone(self._reason())
        if not self.connected:
            try:
                self._answers.get_nowait()
            except queue.Empty:
                if time.monotonic() - self._since > 2 * self.options.timeout + 5:
                    raise Gone(
                        f"the server did not answer in {2 * self.options.timeout:g} s"
                    ) from None
            else:
                assert self._template is not None
                self.up(self._template.reason)

    def _reason(self) -> str:
        return masked("; ".join(self._said)) or "the connection ended"

    def _wait_for_words(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        for reader in self._readers:
            reader.join(0.5)

    def close(self) -> None:
        """End the input; the process tells the server, or is ended."""
        muxer, self._muxer = self._muxer, None
        process, self._process = self._process, None
        self.connected = False
        if muxer is not None:
            with contextlib.suppress(OSError, av.error.FFmpegError, ValueError):
                muxer.close()
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(1.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for reader in self._readers:
            reader.join(1)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def abandon(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
        self.close()


class FfmpegSink(PushSink):
    """What the wheels have no protocol for (SRT), through an installed ffmpeg."""

    def __init__(self, address: str, options: SinkOptions, **more: Any) -> None:
        super().__init__(address, options, **more)
        import shutil

        if shutil.which("ffmpeg") is None:
            raise UsageError(
                f"{self.name} needs an installed ffmpeg, and there is none: "
                "apt install ffmpeg, brew install ffmpeg, or winget install ffmpeg"
            )

    def _start(self) -> subprocess.Popen[bytes]:
        return start_ffmpeg(
            lambda ffmpeg: ffmpeg.input("pipe:", format="nut", fflags="nobuffer").output(
                self.address,
                format="mpegts",
                codec="copy",
                flush_packets=1,
                muxdelay=0,
                **{"bsf:v": "dump_extra=freq=keyframe"},
            ),
            purpose=self.name,
            said=self._said,
            reads=False,
        )

    def _reads_itself(self) -> bool:
        return True

    def check(self) -> None:
        """Whether ffmpeg lives; it does not say when it has connected."""
        if self._process is not None and self._process.poll() is not None:
            self._wait_for_words()
            raise Gone(self._reason())
        if not self.connected and time.monotonic() - self._since > 1.0:
            assert self._template is not None
            self.up(self._template.reason)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        end_process(process, patience=1.5)


def _listen(pipe: Any, keep: Callable[[str], None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            keep(line.decode(errors="replace").strip())


class VirtualCamera:
    """Pictures into a virtual camera that other programs open (pyvirtualcam, v4l2loopback).

    Not a `Sink`: it takes pictures, not packets; the newest only.
    """

    def __init__(self, address: str, rate: float) -> None:
        from vdeblur.extras import optional

        self._module = optional("pyvirtualcam", extra="virtualcam", purpose="a virtual camera")
        self._device = None if address == "virtual" else address
        self.name, self.rate = address, rate
        self._camera: Any = None
        self.written = 0

    def show(self, picture: av.VideoFrame) -> None:
        """One picture, now. OutputError where there is no such device."""
        size = (picture.width, picture.height)
        if self._camera is not None and (self._camera.width, self._camera.height) != size:
            self.close()
        if self._camera is None:
            try:
                self._camera = self._module.Camera(*size, self.rate, device=self._device)
            except RuntimeError as error:
                raise OutputError(
                    f"there is no virtual camera ({error}): on Linux load v4l2loopback "
                    "(modprobe v4l2loopback), elsewhere install OBS"
                ) from error
        self._camera.send(picture.to_ndarray(format="rgb24"))
        self.written += 1

    def close(self) -> None:
        """Let go of the device."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


_CLASSES: dict[str, type[Sink]] = {
    "file": FileSink,
    "hls": HlsSink,
    "pipe": PipeSink,
    "push": PushSink,
    "ffmpeg": FfmpegSink,
}


def sink_of(address: str, options: SinkOptions, **more: Any) -> Sink:
    """The sink that an address (of `addresses.sink_kind`) names; not for a virtual camera."""
    kind = sink_kind(address)
    if kind == "virtual":
        raise ValueError("a virtual camera takes pictures: it is a VirtualCamera")
    return _CLASSES[kind](address, options, **more)


def camera_name(template: str, number: int, count: int) -> str:
    """A sink's address for camera `number` (from 1): `{camera}` in it stands for the number."""
    if count > 1 and "{camera}" not in template:
        raise UsageError(
            f"{masked(template)} would be written by {count} cameras: "
            "put {camera} into it, as in cam_{camera}.mkv"
        )
    return re.sub(r"\{camera\}", str(number), template)
