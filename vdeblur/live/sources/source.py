"""Open an address as a stream of packets: network, device, screen, file or generated scene.

One connection: `receiver` reconnects. Everything that can block has a time limit. Knows libav;
knows no torch and no sinks.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, cast

import av
import av.container
import av.error
import numpy as np

from vdeblur.errors import InputError, UsageError
from vdeblur.live import subprocesses
from vdeblur.live.addresses import (
    FFMPEG_DEVICES,
    Scene,
    scheme_of,
    source_kind,
    unknown_host,
)
from vdeblur.live.sources import demo_scene
from vdeblur.media.input_formats import confinement
from vdeblur.media.names import libav_name
from vdeblur.system.masking import masked, secret


class Refused(InputError):
    """The server refuses the credentials."""


class Missing(InputError):
    """Waiting will not help: the file does not exist, or is not a video."""


@dataclass(frozen=True)
class SourceOptions:
    """How a source is opened.

    Attributes:
        timeout: Seconds without a connection, or without data, that count as a failure.
        transport: Of RTSP.
        size: Width and height requested from a device or the screen.
        rate: Frames per second requested from a device or the screen.
        input_format: Pixel or stream format requested from a v4l2 device (`mjpeg`, `yuyv422`).
        loop: Whether a file begins again at its end.
        audio: Whether to take the sound.
    """

    timeout: float = 5.0
    transport: Literal["tcp", "udp"] = "tcp"
    size: tuple[int, int] | None = None
    rate: Fraction | None = None
    input_format: str | None = None
    loop: bool = False
    audio: bool = True


class Source:
    """One open connection, as a context manager.

    Args:
        address: As `addresses.resolve` returns it.
        options: How to open it.
        stop: Ends `packets` when set.

    Attributes:
        video: The stream of the picture.
        audio: The stream of the sound; None without, or if `SourceOptions.audio` is false.
        paced: Whether it delivers faster than real time (a file, an HLS playlist), and has to be
            slowed down to its own times.
        finite: Whether its end is an end rather than an outage.

    Raises:
        Refused: If the server refuses the credentials.
        Missing: If waiting will not help.
        InputError: If it cannot be opened now. No message contains a password.
    """

    def __init__(self, address: str, options: SourceOptions, stop: threading.Event) -> None:
        self.address, self.options = address, options
        self.name = masked(address)
        self.kind = source_kind(address)
        self._program: subprocesses.Program | None = None
        self._painter: threading.Thread | None = None
        self._stop, self._closed = stop, threading.Event()
        try:
            self.container: av.container.InputContainer = self._open()
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self._fail(error, "open")
        videos = [s for s in self.container.streams.video if s.codec_context is not None]
        self.video = videos[0] if videos else None
        if self.video is None:
            self.close()
            raise InputError(f"{self.name} gives no picture: is it a camera's stream?")
        audios = [s for s in self.container.streams.audio if s.codec_context is not None]
        self.audio = audios[0] if audios and options.audio else None
        # Frame threads would delay each picture by as many frames as there are threads.
        self.video.thread_type = "SLICE"
        formats = self.container.format.name.split(",")
        self.finite = self.kind == "file" and not options.loop
        self.paced = self.kind == "file" or "hls" in formats

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; may block for as long as the server takes."""
        self._closed.set()
        self._end_helpers()
        with contextlib.suppress(av.error.FFmpegError, OSError):
            self.container.close()

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield packets of the picture and the sound, until the end.

        Raises:
            InputError: If the connection breaks, or sends no picture for the timeout, even if it
                sends sound or other data.
        """
        seen = time.monotonic()
        # All streams: with a selection, PyAV would wait for their next packet without limit, and
        # skip whatever else comes.
        packets = self.container.demux()
        while not self._stop.is_set():
            try:
                packet = next(packets)
            except StopIteration:
                self._ended()
                return
            except (av.error.FFmpegError, OSError) as error:
                self._fail(error, "read")
            now = time.monotonic()
            if packet.stream is self.video:
                seen = now
            elif now - seen > self.options.timeout + 1:
                raise InputError(f"{self.name}: no picture for {now - seen:.0f} s, only other data")
            if packet.stream is self.video or packet.stream is self.audio:
                yield packet
                # The picture may have been held back until its time.
                seen += time.monotonic() - now

    def _ended(self) -> None:
        if self._program is not None and self._program.process.poll():
            raise InputError(f"{self.name}: ffmpeg ended: {self._last_words()}")

    # -- opening ---------------------------------------------------------------------------------

    def _open(self) -> av.container.InputContainer:
        opener: Callable[[], av.container.InputContainer] = getattr(self, f"_open_{self.kind}")
        return opener()

    def _av(
        self, file: Any, format: str | None = None, **options: str
    ) -> av.container.InputContainer:
        timeout = self.options.timeout
        container = av.open(
            file, format=format, options=options, timeout=(max(timeout, 1.0) * 2, timeout)
        )
        assert isinstance(container, av.container.InputContainer)
        return container

    def _open_network(self) -> av.container.InputContainer:
        scheme = scheme_of(self.address)
        microseconds = str(int(self.options.timeout * 1e6))
        # One second to analyze the streams instead of libav's five, by which every outage would be
        # longer; the rate is measured later. Not `nobuffer`, which discards what was read
        # meanwhile, the first keyframe among it: `timing.Backlog` finds out how old that is.
        options = {"analyzeduration": "1000000", "probesize": "2000000", "fpsprobesize": "0"}
        if scheme in ("rtsp", "rtsps"):
            options |= {
                "rtsp_transport": self.options.transport,
                "timeout": microseconds,
                # For reordering with UDP; libav's half second for a lost packet is too long.
                "max_delay": "100000",
            }
        elif scheme in ("rtmp", "rtmps", "http", "https"):
            options |= {"rw_timeout": microseconds}
        elif scheme in ("udp", "rtp"):
            options |= {
                "timeout": microseconds,
                "fifo_size": "8192",  # × 188 bytes; what does not fit is lost
                "overrun_nonfatal": "1",
            }
        if scheme in ("udp", "tcp", "rtp", "http", "https"):
            # If an MPEG-TS program changes its numbers, go on with the same streams.
            options |= {"merge_pmt_versions": "1"}
        return self._av(self.address, **options)

    def _open_file(self) -> av.container.InputContainer:
        if not Path(self.address).exists():
            raise Missing(f"{self.name} does not exist: name a camera's address, or a file")
        return self._av(libav_name(self.address), **confinement())

    def _device_options(self) -> dict[str, str]:
        options: dict[str, str] = {}
        if self.options.size is not None:
            options["video_size"] = "{}x{}".format(*self.options.size)
        if self.options.rate is not None:
            options["framerate"] = str(self.options.rate)
        return options

    def _open_v4l2(self) -> av.container.InputContainer:
        if not Path(self.address).exists():
            # Not `Missing`: an unplugged camera may come back.
            raise InputError(f"{self.name} is not there: `vdeblur camera list` shows what is")
        options = self._device_options()
        if self.options.input_format is not None:
            options["input_format"] = self.options.input_format
        # Times of the system's clock, like those of other sources; raw ones count from boot.
        return self._av(self.address, "v4l2", **options)

    def _open_screen(self) -> av.container.InputContainer:
        if not sys.platform.startswith("linux"):
            raise UsageError(
                "screen is for X11: name avfoundation:… on macOS, or dshow:… on Windows"
            )
        display = self.address.partition(":")[2] or os.environ.get("DISPLAY", "")
        if not display:
            wayland = "WAYLAND_DISPLAY" in os.environ
            raise Missing(
                "there is no X display to take the picture of"
                + (" (under Wayland only an X server's windows can be)" if wayland else "")
                + ": set DISPLAY, or write screen::0"
            )
        options = {"framerate": "25", "draw_mouse": "1"} | self._device_options()
        return self._av(display if ":" in display else f":{display}", "x11grab", **options)

    def _open_test(self) -> av.container.InputContainer:
        """Open a generated scene with a tone, which a thread writes into a pipe as NUT."""
        reading, writing = os.pipe()
        painter = threading.Thread(
            target=_paint,
            args=(Scene.of(self.address), writing, self._stop, self._closed, self.options.audio),
            name="scene",
            daemon=True,
        )
        painter.start()
        self._painter = painter
        return self._av(_Pipe(reading, self.options.timeout), "nut", **_NUT_QUICKLY)

    def _open_ffmpeg(self) -> av.container.InputContainer:
        """Open what PyAV's wheels cannot, through an installed ffmpeg that copies it into NUT."""
        options: dict[str, Any] = {"analyzeduration": 1_000_000}
        address = self.address
        device, _, rest = address.partition(":")
        if device in FFMPEG_DEVICES:
            address = rest
            options = {"f": device, **self._device_options()}
            if device == "avfoundation":
                options.setdefault("framerate", "30")
        self._program = subprocesses.read_by_ffmpeg(address, options, purpose=self.name)
        assert self._program.process.stdout is not None
        # It connects and analyzes the streams first.
        descriptor = os.dup(self._program.process.stdout.fileno())
        pipe = _Pipe(descriptor, self.options.timeout, first=15.0)
        return self._av(pipe, "nut", **_NUT_QUICKLY)

    # -- ending and explaining -------------------------------------------------------------------

    def _end_helpers(self) -> None:
        self._closed.set()
        if self._program is not None:
            self._program.end()
        if self._painter is not None:
            self._painter.join(2)

    def _last_words(self) -> str:
        said = self._program.last_words(self.address) if self._program is not None else ""
        return said or "it did not say why"

    def _fail(self, error: BaseException, doing: str) -> NoReturn:
        """Raise the error as one sentence, with a class that says whether to retry."""
        explained = self._explained(error, doing)
        self._end_helpers()
        # libav's own error contains the address, which a traceback would print.
        raise explained from (None if secret(self.address) else error)

    def _explained(self, error: BaseException, doing: str) -> InputError:
        if isinstance(error, InputError):
            return error
        if self._program is not None and not isinstance(error, TimeoutError):
            said = self._last_words()  # ffmpeg ends a moment after its output
            if not self._program.running:
                return InputError(f"{self.name}: ffmpeg: {said}")
        text = masked(str(getattr(error, "strerror", None) or error), of=self.address).rstrip(".")
        if isinstance(error, (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)):
            return Refused(f"{self.name} refuses the name or the password ({text}): check them")
        if isinstance(error, av.error.ExitError | TimeoutError) or "timed out" in text.lower():
            return InputError(f"{self.name}: nothing came for {self.options.timeout:g} s")
        if isinstance(error, ConnectionRefusedError):
            return InputError(f"{self.name} refuses the connection: is the server running?")
        if isinstance(error, av.error.ProtocolNotFoundError):
            return Missing(f"{self.name}: libav has no such protocol here: use rtsp, rtmp or http")
        if isinstance(error, PermissionError):
            return Missing(f"{self.name} may not be read: {text.lower()}")
        if self.kind == "file" and doing == "open":
            return Missing(f"{self.name} is not a video that can be read: {text.lower()}")
        lost = doing == "open" and text.lower() == "input/output error"
        if lost and (host := unknown_host(self.address)):
            return InputError(f"{self.name}: no computer called {host} is known: check it")
        what = "cannot be opened" if doing == "open" else "broke off"
        return InputError(f"{self.name} {what}: {text.lower()}")


# Little analysis for a stream that this program, or its ffmpeg, has written.
_NUT_QUICKLY = {"analyzeduration": "1000000", "probesize": "500000", "fpsprobesize": "0"}


class _Pipe:
    """The reading end of a pipe, for libav, with a time limit; libav closes it.

    Args:
        descriptor: Its file descriptor.
        timeout: Seconds to wait for data.
        first: Seconds to wait for the first data, if more.
    """

    def __init__(self, descriptor: int, timeout: float, first: float = 0.0) -> None:
        self._descriptor, self._timeout = descriptor, timeout
        self._patience = max(first, timeout)

    def read(self, size: int) -> bytes:
        """Read what is there, at least a byte; b"" at the end; TimeoutError if nothing comes."""
        patience, self._patience = self._patience, self._timeout
        if sys.platform != "win32":  # where only sockets can be selected
            ready, _, _ = select.select([self._descriptor], [], [], patience)
            if not ready:
                raise TimeoutError(f"nothing came for {patience:g} s")
        return os.read(self._descriptor, size)

    def close(self) -> None:
        """Close the pipe, which the writer notices."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class _Writer(io.RawIOBase):
    """The writing end of a pipe, for libav; BrokenPipeError once `closed` is set."""

    def __init__(self, descriptor: int, closed: threading.Event) -> None:
        self._descriptor, self._closed = descriptor, closed
        os.set_blocking(descriptor, False)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = memoryview(bytes(data))
        while rest:
            if self._closed.is_set():
                raise BrokenPipeError("the reader has gone")
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(0.005)
        return len(data)


def _paint(
    what: Scene, descriptor: int, stop: threading.Event, closed: threading.Event, sound: bool
) -> None:
    """Draw the scene at its own pace into a pipe, with a tone at each second."""
    try:
        with av.open(
            _Writer(descriptor, closed), "w", format="nut", container_options={"flush_packets": "1"}
        ) as output:
            video = cast(Any, output.add_stream("rawvideo", rate=what.rate))
            video.width, video.height, video.pix_fmt = what.width, what.height, "yuv420p"
            video.codec_context.time_base = video.time_base = Fraction(1, 90000)
            audio: Any = (
                output.add_stream("pcm_s16le", rate=48000, layout="mono") if sound else None
            )
            samples = 0
            for number, due in demo_scene.pace(what.rate):
                if stop.wait(max(0.0, due - time.monotonic())) or closed.is_set():
                    return
                frame = av.VideoFrame(what.width, what.height, "yuv420p")
                for plane, values in zip(frame.planes, demo_scene.draw(what, number), strict=True):
                    view = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
                    view[: values.shape[0], : values.shape[1]] = values
                frame.pts, frame.time_base = number * 90000 // what.rate, Fraction(1, 90000)
                output.mux(video.encode(frame))
                if audio is not None:
                    until = (number + 1) * 48000 // what.rate
                    values16 = (demo_scene.tone(48000, samples, until - samples) * 32767).astype(
                        "<i2"
                    )
                    sound_frame = av.AudioFrame.from_ndarray(values16, "s16", "mono")
                    sound_frame.sample_rate, sound_frame.pts = 48000, samples
                    sound_frame.time_base = Fraction(1, 48000)
                    samples = until
                    output.mux(audio.encode(sound_frame))
    except (OSError, av.error.FFmpegError):
        pass  # the reader has gone
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)
