"""One camera of a session: a source with its line, encoder, sinks and counters.

Knows no torch and no network.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import av

from vdeblur.errors import OutputError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.live.addresses import sink_kind
from vdeblur.live.counters import CameraCounters
from vdeblur.live.encoding import Chunk, PictureEncoder, Sound
from vdeblur.live.frame_line import FrameLine, LineEvent, QueuedFrame, write_back
from vdeblur.live.options import SessionOptions
from vdeblur.live.pace import Pace
from vdeblur.live.protocols import EventHandler, Guide, Viewer
from vdeblur.live.sinks.files import FileSink, HlsSink
from vdeblur.live.sinks.servers import FfmpegSink, PipeSink, PushSink
from vdeblur.live.sinks.sink import Sink
from vdeblur.live.sinks.virtual_camera import VirtualCameras
from vdeblur.live.sound_queue import SoundQueue
from vdeblur.live.sources.format import Format
from vdeblur.live.sources.receiver import Receiver
from vdeblur.live.viewers import Viewers
from vdeblur.system.masking import masked

_log = logging.getLogger(__name__)

_SINKS: dict[str, type[Sink]] = {
    "file": FileSink,
    "hls": HlsSink,
    "pipe": PipeSink,
    "push": PushSink,
    "ffmpeg": FfmpegSink,
}


@dataclass(frozen=True)
class FormatChanged(LineEvent):
    """Frames of this format follow, with this sound; also sent after each reconnection."""

    format: Format
    sound: Sound | None


class SourceLost(LineEvent):
    """The connection is gone."""


class TimesJumped(LineEvent):
    """The source's times jumped."""


class Camera:
    """One source with everything that its pictures pass through. Made by `Session`.

    Implements `vdeblur.live.sources.format.Taker`. Three threads work on it besides those of the
    receiver and of the sinks: one encodes, one looks at motion (if guided), and the scheduler's.

    Args:
        number: From 1.
        address: The source, as `addresses.resolve` returns it.
        sinks: Addresses of sinks.
        options: The session's options.
        viewers: Receive every outgoing picture.
        on_event: Receives the camera's events.
        guide: Sets the motion of the frames, for networks that use it.
    """

    def __init__(
        self,
        number: int,
        address: str,
        sinks: Sequence[str],
        options: SessionOptions,
        viewers: Sequence[Viewer],
        on_event: EventHandler,
        guide: Guide | None = None,
    ) -> None:
        self.guide, self._shot = guide, 0
        self.number, self.options = number, options
        self._viewers = Viewers(number, viewers)
        self._on_event = on_event
        self.counters = CameraCounters(masked(address))
        self.line = FrameLine(options.max_latency, capacity=64, guided=guide is not None)
        self._pace = Pace(self.line)
        self.receiver = Receiver(
            address, self, options=options.source, retry=options.retry, limit=options.max_latency
        )
        self.encoder: PictureEncoder | None = None
        self._format: Format | None = None
        self.error: VdeblurError | None = None
        self.finished = threading.Event()
        self._stopping = False
        kinds = [(sink, sink_kind(sink)) for sink in sinks]
        self._virtual = VirtualCameras(
            [sink for sink, kind in kinds if kind == "virtual"], on_event=self.event
        )
        self.sinks: list[Sink] = [
            _SINKS[kind](sink, options.sink, on_event=self.event, keyframe=self._keyframe)
            for sink, kind in kinds
            if kind != "virtual"
        ]
        self.sound_queue = SoundQueue()
        self._encoding = threading.Thread(target=self._encode_thread, name="encode", daemon=True)
        self._seeing = threading.Thread(target=self._motion_thread, name="motion", daemon=True)

    # -- Taker: called from the receiver's thread ------------------------------------------------

    def format(self, format: Format, sound: Sound | None) -> None:
        """See `Taker.format`."""
        per_limit = self.options.max_latency * float(format.rate)
        self.line.capacity = max(8, min(256, int(per_limit) + 6))
        self.line.forget()
        self._shot += 1
        self.line.put(FormatChanged(format, sound))

    def frame(self, frame: Frame, captured: float, arrived: float, decoding: float) -> None:
        """See `Taker.frame`."""
        self.counters.received += 1
        self.counters.stages["decode"].add(decoding)
        self.line.put(QueuedFrame(frame, captured, arrived, shot=self._shot))

    def sound(self, chunks: list[Chunk], captured: float) -> None:
        """See `Taker.sound`."""
        self.sound_queue.put(chunks, captured)

    def event(self, name: str, **details: Any) -> None:
        """See `Taker.event`; sinks report here too."""
        counters = self.counters
        if name == "corrupt":
            counters.corrupt += 1
            if counters.corrupt & (counters.corrupt - 1):  # report the 1st, 2nd, 4th, 8th …
                return
            details["count"] = counters.corrupt
        elif name == "connected":
            if (outage := counters.end_outage()) is not None:
                details["outage_seconds"] = round(outage, 2)
            self._set_state("live")
        elif name == "outage":
            counters.begin_outage(details["reason"])
            self._set_state("outage")
            self.line.put(SourceLost())
        elif name == "retry":
            counters.reason = details["reason"]
        elif name == "old":
            counters.received += details["frames"]
            self.line.left_out(details["frames"])
        elif name == "jump":
            counters.jumps += 1
            self._shot += 1
            self.line.put(TimesJumped())
        elif name in ("ended", "failed"):
            self._set_state(name)
            self.line.close()
        _log.info("camera %d: %s %s", self.number, name, details)
        self._on_event(name, camera=self.number, **details)

    def _set_state(self, state: str) -> None:
        self.counters.state = state
        self._viewers.signal(state)

    # -- motion ----------------------------------------------------------------------------------

    def _motion_thread(self) -> None:
        """Look at frames while the network has the one before, so that it costs no latency."""
        guide, shot = self.guide, 0
        assert guide is not None
        try:
            while not self.finished.is_set():
                queued = self.line.unseen(0.5)
                if queued is None:
                    if self.line.closed:
                        return
                    continue
                if queued.shot != shot:
                    guide.forget()
                    shot = queued.shot
                began = time.monotonic()
                guide.see(queued.frame)
                self.counters.stages["motion"].add(time.monotonic() - began)
                self.line.seen(queued)
        except Exception as error:
            self.event("motion_failed", reason=repr(error))
        finally:
            self.line.all_seen()
            guide.close()

    # -- encoding --------------------------------------------------------------------------------

    def _encode_thread(self) -> None:
        try:
            self._encode_all()
        except VdeblurError as error:
            self.error = error
        except Exception as error:
            self.error = OutputError(f"encoding failed in a way that was not foreseen: {error!r}")
        finally:
            if self.error is not None:
                self.event("failed", reason=str(self.error))
            self.receiver.stop()
            with contextlib.suppress(Exception):  # an encoder that failed may fail at this too
                self._finish_encoder()
            self._virtual.close()
            for sink in self.sinks:
                sink.end()
            self.finished.set()

    def _encode_all(self) -> None:
        while True:
            if changed := self._pace.judge():
                self.event(changed[0], **changed[1])
            item = self.line.next()
            if isinstance(item, QueuedFrame):
                self._encode(item)
            elif item is not None:
                self._handle(item)
            else:
                # No picture: sound goes alone once it has waited for longer than the limit.
                old = time.monotonic() - self.options.max_latency - 0.1
                self._send(self.sound_queue.older_than(old))
                self.receiver.check()
                # A read under way may last as long as its time limit: `stop` need not wait for it.
                over = self.receiver.ended.is_set() or self._stopping
                if over and not self.line.depth:
                    self._send(self.sound_queue.until(float("inf")))
                    return
            if self.sinks and all(sink.error is not None for sink in self.sinks):
                error = self.sinks[0].error
                assert error is not None
                raise error

    def _handle(self, event: LineEvent) -> None:
        if isinstance(event, FormatChanged):
            self._change_format(event.format, event.sound)
        elif isinstance(event, TimesJumped):
            self._keyframe()

    def _change_format(self, format: Format, sound: Sound | None) -> None:
        encoder = self.encoder
        same, self._format = format == self._format, format
        if encoder is not None and same:
            # Back as it was: servers stay connected, files go on in another segment.
            encoder.keyframe()
            for sink in self.sinks:
                sink.cut(encoder.template)
            return
        self._finish_encoder()
        self.counters.size = f"{format.width}x{format.height}"
        self.counters.codec, self.counters.fps = format.codec, float(format.rate)
        if self.sinks:
            self.encoder = PictureEncoder(
                self.options.encoding,
                width=format.width,
                height=format.height,
                rate=format.rate,
                aspect=format.aspect,
                color_tags=format.color_tags,
                sound=sound,
            )
            for sink in self.sinks:
                sink.begin(self.encoder.template, "format")

    def _finish_encoder(self) -> None:
        """Flush the encoder, once: libav takes a second time for an error."""
        encoder, self.encoder = self.encoder, None
        if encoder is not None:
            self._send(encoder.finish())

    def _encode(self, queued: QueuedFrame) -> None:
        began = time.monotonic()
        picture: av.VideoFrame = queued.frame.source_frame
        before = None
        if queued.restored is not None:
            before = self._viewers.before(picture)
            write_back(queued)
        # Sound up to this time, so that it waits exactly as long as its picture.
        self._send(self.sound_queue.until(queued.frame.pts))
        if self.encoder is not None:
            self._send(self.encoder.encode(picture))
        now = time.monotonic()
        self.line.encoded(now - began)
        counters = self.counters
        counters.encoded += 1
        counters.latency.add(now - queued.captured)
        counters.stages["encode"].add(now - began)
        counters.stages["wait"].add(began - queued.arrived)
        if queued.state == "done":
            counters.stages["network"].add(queued.network)
        self._virtual.show(picture, max(1.0, counters.fps), now)
        self._viewers.picture(before, queued, now - queued.captured)

    def _send(self, chunks: Iterable[Chunk]) -> None:
        for chunk in chunks:
            for sink in self.sinks:
                sink.offer(chunk)

    def _keyframe(self) -> None:
        if self.encoder is not None:
            self.encoder.keyframe()

    # -- starting and ending ---------------------------------------------------------------------

    def start(self) -> None:
        """Start all threads."""
        for sink in self.sinks:
            sink.start()
        self._encoding.start()
        if self.guide is not None:
            self._seeing.start()
        self.receiver.start()

    def stop(self) -> None:
        """Receive no more; frames in the line still go out."""
        self._stopping = True
        self.receiver.stop()
        self.line.close()

    def join(self, patience: float) -> bool:
        """Wait until the files are complete; return False if a sink is stuck and was left.

        Args:
            patience: Seconds to wait at most.
        """
        give_up = time.monotonic() + patience

        def left() -> float:
            return max(0.05, give_up - time.monotonic())

        if self._encoding.ident is None:
            return True
        self._encoding.join(left())
        done = not self._encoding.is_alive()
        if self._seeing.ident is not None:
            self._seeing.join(left())
        for sink in self.sinks:
            done = sink.join(left()) and done
        # A read under way ends by its own time limit; nothing depends on it any more.
        self.receiver.join(min(1.0, left()))
        return done
