"""A running session: receivers → lines → one network → encoders → sinks, for one or more cameras.

    receive ──► line ──► (newest) ──► network          one thread a camera; one network for all
                  │ ◄────────────────────┘
                  └──► encode ──► sink, sink, …        one thread a camera, one a sink
                          └────► viewers               preview, Python, virtual camera: the newest

Knows no torch and no network: what restores is a `scheduling.Restorer`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol

import av

from vdeblur.errors import OutputError, UsageError, VdeblurError
from vdeblur.frames import Frame
from vdeblur.live.addresses import Scene, masked, numbered, resolve, sink_kind, source_kind
from vdeblur.live.counters import Snapshot, Watch, quantiles_ms
from vdeblur.live.encoding import Chunk, PictureEncoder, Sound, copy_of
from vdeblur.live.options import SessionOptions
from vdeblur.live.scheduler import Guide, Line, Notice, Picture, Restorer, Scheduler, write_back
from vdeblur.live.sinks.files import FileSink, HlsSink
from vdeblur.live.sinks.servers import FfmpegSink, PipeSink, PushSink
from vdeblur.live.sinks.sink import Sink
from vdeblur.live.sinks.virtual_camera import VirtualCamera
from vdeblur.live.sources.receiver import Format, Receiver
from vdeblur.live.sources.timing import Backoff

#: Packets of sound that wait for their picture, at most: ten seconds and more.
_SOUND = 1024
_SINKS: dict[str, type[Sink]] = {
    "file": FileSink,
    "hls": HlsSink,
    "pipe": PipeSink,
    "push": PushSink,
    "ffmpeg": FfmpegSink,
}


class Viewer(Protocol):
    """Whoever looks at pictures as they leave; it keeps the newest, and never waits."""

    def picture(
        self, camera: int, before: av.VideoFrame | None, picture: Picture, latency: float
    ) -> None:
        """A picture. before: as it came, if `wants_before` said so and it differs."""

    def wants_before(self) -> bool:
        """Whether somebody looks, so that a copy is worth its time."""

    def signal(self, camera: int, state: str) -> None:
        """The camera's state: connecting, live, outage, ended, failed."""


@dataclass
class _Shown:
    """A virtual camera, and when to try it again."""

    camera: VirtualCamera
    backoff: Backoff = field(default_factory=Backoff)
    again_at: float = 0.0


class Camera:
    """One source with its line, encoder, sinks and counts. Made by `Session`."""

    def __init__(
        self,
        number: int,
        address: str,
        sinks: Sequence[str],
        options: SessionOptions,
        viewers: Sequence[Viewer],
        on_event: Callable[..., None],
        guide: Guide | None = None,
    ) -> None:
        self.guide, self._shot = guide, 0
        self.number, self.options, self.viewers = number, options, viewers
        self._tell = on_event
        self.watch = Watch(number, masked(address))
        self.line = Line(options.max_latency, capacity=64, guided=guide is not None)
        self.receiver = Receiver(
            address, self, options=options.source, retry=options.retry, limit=options.max_latency
        )
        self.encoder: PictureEncoder | None = None
        self._format: Format | None = None
        self.error: VdeblurError | None = None
        self.finished = threading.Event()
        self._stopping = False
        self.virtual = [_Shown(VirtualCamera(s)) for s in sinks if sink_kind(s) == "virtual"]
        self.sinks: list[Sink] = [
            _SINKS[kind](s, options.sink, on_event=self.event, keyframe=self._keyframe)
            for s in sinks
            if (kind := sink_kind(s)) != "virtual"
        ]
        self._sound: deque[tuple[Chunk, float]] = deque()
        self._sound_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="encode", daemon=True)
        self._seeing = threading.Thread(target=self._see, name="motion", daemon=True)

    # -- what the receiver gives (vdeblur.live.sources.receiver.Taker)
    # --------------------------------

    def format(self, format: Format, sound: Sound | None) -> None:
        """See `Taker`."""
        per_limit = self.options.max_latency * float(format.rate)
        self.line.capacity = max(8, min(256, int(per_limit) + 6))
        self.line.forget()
        self._shot += 1
        self.line.put(Notice("format", (format, sound)))

    def frame(self, frame: Frame, captured: float, arrived: float, decoding: float) -> None:
        """See `Taker`."""
        self.watch.received += 1
        self.watch.stages["decode"].add(decoding)
        self.line.put(Picture(frame, captured, arrived, shot=self._shot))

    def sound(self, chunks: list[Any], captured: float) -> None:
        """See `Taker`."""
        with self._sound_lock:
            for chunk in chunks:
                self._sound.append((chunk, captured))
            while len(self._sound) > _SOUND:
                self._sound.popleft()
                self.watch.sound_dropped += 1

    def event(self, name: str, **facts: Any) -> None:
        """See `Taker`; sinks use it too."""
        watch = self.watch
        if name == "corrupt":
            watch.corrupt += 1
            if watch.corrupt & (watch.corrupt - 1):  # 1, 2, 4, 8 … are told
                return
            facts["count"] = watch.corrupt
        elif name == "connected":
            if watch.down_since is not None:
                facts["outage_seconds"] = round(time.monotonic() - watch.down_since, 2)
                watch.outage_seconds += time.monotonic() - watch.down_since
                watch.down_since = None
                watch.reconnects += 1
            self._state("live")
        elif name == "outage":
            watch.outages += 1
            watch.down_since = time.monotonic()
            watch.reason = facts["reason"]
            self._state("outage")
            self.line.put(Notice("outage"))
        elif name == "retry":
            watch.reason = facts["reason"]
        elif name == "old":
            watch.received += facts["frames"]
            self.line.left_out(facts["frames"])
        elif name == "jump":
            watch.jumps += 1
            self._shot += 1
            self.line.put(Notice("jump"))
        elif name in ("ended", "failed"):
            self._state(name)
            self.line.close()
        self._tell(name, camera=self.number, **facts)

    def _state(self, state: str) -> None:
        self.watch.state = state
        for viewer in self.viewers:
            viewer.signal(self.number, state)

    # -- encoding --------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        for sink in self.sinks:
            sink.start()
        self._thread.start()
        if self.guide is not None:
            self._seeing.start()
        self.receiver.start()

    def _see(self) -> None:
        """Beside the network, which has the frame before: what is seen meanwhile costs no time."""
        guide, shot = self.guide, 0
        assert guide is not None
        try:
            while not self.finished.is_set():
                picture = self.line.unseen(0.5)
                if picture is None:
                    if self.line.closed:
                        return
                    continue
                if picture.shot != shot:
                    guide.forget()
                    shot = picture.shot
                began = time.monotonic()
                guide.see(picture.frame)
                self.watch.stages["motion"].add(time.monotonic() - began)
                self.line.seen(picture)
        except Exception as error:
            self.event("motion_failed", reason=repr(error))
        finally:
            self.line.all_seen()
            guide.close()

    def _run(self) -> None:
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
            for shown in self.virtual:
                shown.camera.close()
            for sink in self.sinks:
                sink.end()
            self.finished.set()

    def _encode_all(self) -> None:
        while True:
            item = self.line.next()
            if isinstance(item, Picture):
                self._encode(item)
            elif isinstance(item, Notice):
                self._notice(item)
            else:
                self._release_sound(None)
                self.receiver.check()
                # A read under way may take as long as its time limit: whoever stops need not wait.
                over = self.receiver.ended.is_set() or self._stopping
                if over and not self.line.depth:
                    self._release_sound(float("inf"))
                    return
            if self.sinks and all(sink.error is not None for sink in self.sinks):
                error = self.sinks[0].error
                assert error is not None
                raise error

    def _notice(self, notice: Notice) -> None:
        encoder = self.encoder
        if notice.name == "format":
            format, sound = notice.payload
            same, self._format = format == self._format, format
            if encoder is not None and same:
                # Back as it was: servers stay connected, files go on in another segment.
                encoder.keyframe()
                for sink in self.sinks:
                    sink.cut(encoder.template)
                return
            self._finish_encoder()
            self.watch.size = f"{format.width}x{format.height}"
            self.watch.codec, self.watch.fps = format.codec, float(format.rate)
            if self.sinks:
                self.encoder = PictureEncoder(
                    self.options.encoding,
                    width=format.width,
                    height=format.height,
                    rate=format.rate,
                    aspect=format.aspect,
                    colour=format.colour,
                    sound=sound,
                )
                for sink in self.sinks:
                    sink.begin(self.encoder.template, "format")
        elif notice.name == "jump" and encoder is not None:
            encoder.keyframe()

    def _finish_encoder(self) -> None:
        """Give what it still holds, once: a second time is an error to libav."""
        encoder, self.encoder = self.encoder, None
        if encoder is not None:
            for chunk in encoder.finish():
                self._give(chunk)

    def _encode(self, picture: Picture) -> None:
        began = time.monotonic()
        carrier: av.VideoFrame = picture.frame.carrier
        before = None
        if picture.restored is not None:
            if any(viewer.wants_before() for viewer in self.viewers):
                before = carrier.reformat(format="yuv420p", width=carrier.width & ~1)
                if before is carrier:
                    before = copy_of(carrier)
            write_back(picture)
        self._release_sound(picture.frame.pts)
        if self.encoder is not None:
            for chunk in self.encoder.encode(carrier):
                self._give(chunk)
        now = time.monotonic()
        self.line.encoded(now - began)
        self.watch.encoded += 1
        self.watch.latency.add(now - picture.captured)
        self.watch.stages["encode"].add(now - began)
        self.watch.stages["wait"].add(began - picture.arrived)
        if picture.state == "done":
            self.watch.stages["network"].add(picture.network)
        for shown in self.virtual:
            self._show(shown, carrier, now)
        for viewer in self.viewers:
            viewer.picture(self.number, before, picture, now - picture.captured)

    def _show(self, shown: _Shown, carrier: av.VideoFrame, now: float) -> None:
        """A picture for a virtual camera. One that never was there is an error; one that goes is
        tried again, as any sink is."""
        name = masked(shown.camera.name)
        if now < shown.again_at:
            return
        try:
            shown.camera.show(carrier, max(1.0, self.watch.fps))
        except OutputError as error:
            if not shown.camera.written:
                raise
            wait = shown.backoff.next()
            shown.again_at = now + wait
            self.event("sink_gone", sink=name, reason=str(error), seconds=round(wait, 2))
        else:
            if shown.backoff.tries:
                self.event("sink_back", sink=name)
            shown.backoff.reset()

    def _release_sound(self, until: float | None) -> None:
        """Send sound up to a time of the line, so that it waits as long as its picture.

        Without a picture, whatever has waited for the limit and longer.
        """
        old = time.monotonic() - self.options.max_latency - 0.1
        while True:
            with self._sound_lock:
                if not self._sound:
                    return
                chunk, captured = self._sound[0]
                ready = chunk.pts <= until if until is not None else captured < old
                if not ready:
                    return
                self._sound.popleft()
            self._give(chunk)

    def _give(self, chunk: Chunk) -> None:
        for sink in self.sinks:
            sink.offer(chunk)

    def _keyframe(self) -> None:
        if self.encoder is not None:
            self.encoder.keyframe()

    # -- watching and ending ---------------------------------------------------------------------

    def snapshot(self, scheduler: Scheduler) -> Snapshot:
        """Counts and times now."""
        watch, line = self.watch, self.line
        down = time.monotonic() - watch.down_since if watch.down_since is not None else 0.0
        return {
            "camera": self.number,
            "source": watch.source,
            "state": watch.state,
            "up": watch.state == "live",
            "size": watch.size,
            "codec": watch.codec,
            "fps": round(watch.fps, 3),
            "fps_out": round(watch.latency.rate(), 2),
            "received": watch.received,
            "encoded": watch.encoded,
            "restored": line.restored,
            "passed": line.passed,
            "dropped": line.dropped,
            "late": line.late,
            "corrupt": watch.corrupt,
            "jumps": watch.jumps,
            "reconnects": watch.reconnects,
            "outages": watch.outages,
            "outage_seconds": round(watch.outage_seconds + down, 2),
            "reason": watch.reason if watch.state != "live" else "",
            "line": line.depth,
            "sound_waiting": len(self._sound),
            "sound_dropped": watch.sound_dropped,
            "level": scheduler.level,
            "level_name": scheduler.restorer.levels[scheduler.level],
            "network_ms": round(scheduler.seconds_a_call() * 1000, 1),
            "exposure_ms": self._exposure_ms(),
            "latency_ms": quantiles_ms(watch.latency),
            "stage_ms": {name: quantiles_ms(r) for name, r in watch.stages.items()},
            "sinks": [
                {
                    "sink": sink.name,
                    "connected": sink.connected,
                    "written": sink.written,
                    "dropped": sink.dropped,
                    "bytes": sink.bytes,
                    "failures": sink.failures,
                    "depth": sink.depth,
                }
                for sink in self.sinks
            ],
        }

    def _exposure_ms(self) -> float | None:
        seconds = self.guide.exposure_seconds if self.guide is not None else None
        return None if seconds is None else round(seconds * 1000, 2)

    def stop(self) -> None:
        """Take no more; what is in the line goes out."""
        self._stopping = True
        self.receiver.stop()
        self.line.close()

    def join(self, patience: float) -> bool:
        """Wait until the files are complete; False if a sink is stuck and was left."""
        give_up = time.monotonic() + patience

        def left() -> float:
            return max(0.05, give_up - time.monotonic())

        if self._thread.ident is None:
            return True
        self._thread.join(left())
        done = not self._thread.is_alive()
        if self._seeing.ident is not None:
            self._seeing.join(left())
        for sink in self.sinks:
            done = sink.join(left()) and done
        # A read under way ends by its own time limit; nothing depends on it any more.
        self.receiver.join(min(1.0, left()))
        return done


class Session:
    """All cameras of a process: a context manager that finishes its files when it is left.

    sources, sinks: addresses (`{camera}` in a sink stands for the camera's number). restorer: the
    network. guide: makes each camera's, where the network is guided by motion. viewers: who looks
    at pictures. on_event(name, camera=…, **facts) is called from
    several threads, and must not wait. UsageError, OutputError and EncoderError for what cannot
    begin.
    """

    def __init__(
        self,
        sources: Sequence[str],
        sinks: Sequence[str],
        restorer: Restorer,
        *,
        options: SessionOptions | None = None,
        guide: Callable[[], Guide | None] = lambda: None,
        viewers: Sequence[Viewer] = (),
        on_event: Callable[..., None] = lambda name, **facts: None,
    ) -> None:
        self.options = options or SessionOptions()
        if not sources:
            raise UsageError("there is no source: name a camera, such as rtsp://… or test")
        if self.options.max_latency <= 0:
            raise UsageError(f"max_latency is {self.options.max_latency} s: more than 0 is needed")
        found = [resolve(source) for source in sources]
        for source in found:
            if source_kind(source) == "test":
                Scene.of(source)
        if any(sink_kind(resolve(sink)) != "virtual" for sink in sinks):
            # Tried out: better refused now than when the camera is there, perhaps at night.
            PictureEncoder(self.options.encoding, width=640, height=360, rate=Fraction(25))
        self.cameras: list[Camera] = []
        for number, source in enumerate(found, 1):
            chosen = [numbered(resolve(sink), number, len(found)) for sink in sinks]
            if len(set(chosen)) < len(chosen):
                raise UsageError("the same sink is named twice: name each once")
            self.cameras.append(
                Camera(number, source, chosen, self.options, viewers, on_event, guide())
            )
        self.scheduler = Scheduler(
            restorer,
            [camera.line for camera in self.cameras],
            together=self.options.together,
            degrade=self.options.degrade,
            on_event=on_event,
        )
        #: Whether `stop` has finished everything; False too while it goes on.
        self.complete = False

    def __enter__(self) -> Session:
        self.scheduler.start()
        for camera in self.cameras:
            camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Until every source has ended or failed; False when `timeout` seconds passed first.

        Raises the first camera's error if no camera goes on.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        while not all(camera.finished.is_set() for camera in self.cameras):
            if give_up is not None and time.monotonic() >= give_up:
                return False
            left = 0.2 if give_up is None else min(0.2, max(0.0, give_up - time.monotonic()))
            next(c for c in self.cameras if not c.finished.is_set()).finished.wait(left)
        for camera in self.cameras:
            error = camera.error or camera.receiver.error
            if error is not None:
                raise error
        return True

    def snapshot(self) -> list[Snapshot]:
        """Counts and times of every camera, now."""
        return [camera.snapshot(self.scheduler) for camera in self.cameras]

    def stop(self, patience: float = 10.0) -> bool:
        """Finish everything; False if a sink was stuck and had to be left."""
        for camera in self.cameras:
            camera.stop()
        done = True
        for camera in self.cameras:
            done = camera.join(patience) and done
        self.scheduler.stop()
        self.complete = self.scheduler.join(patience) and done
        return self.complete
