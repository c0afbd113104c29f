"""The base of all sinks: a thread, a bounded queue, a start at a keyframe, and retries.

A sink that fails is opened again, without effect on the others. The kinds of sinks are in `files`
and `servers`. Knows no encoder and no source.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vdeblur.errors import OutputError
from vdeblur.live.encoding import Chunk, Template
from vdeblur.live.protocols import EventHandler, ignore_event
from vdeblur.live.sinks.muxing import Muxer
from vdeblur.live.sources.timing import Backoff
from vdeblur.system.masking import masked

#: Packets that wait for a sink at most; 20 s at 25 frames/s with sound would be 1500.
_WAITING = 400
_WAITING_BYTES = 64 << 20


@dataclass(frozen=True)
class SinkOptions:
    """How sinks write.

    Attributes:
        rotate_seconds: Seconds after which a file sink goes on in a new file, at a keyframe.
        rotate_bytes: Bytes after which it does.
        keep: Number of files to keep, of those that this run has written; None keeps all.
        timeout: Seconds after which a server that takes nothing counts as gone.
        hls_seconds: Length of an HLS segment, in seconds.
        hls_size: Number of segments in the HLS playlist.
        pipe_format: libav's name of the container for standard output.
        retry_cap: Seconds of the longest wait between two tries.
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
    """A new segment begins, with these streams."""

    template: Template
    reason: str


class Gone(OutputError):
    """The sink takes no more; it is retried."""


class _Stop(Exception):
    """Ends the sink's thread."""


class Sink:
    """One output, in a thread of its own. Subclasses implement `opened`, and override the rest.

    Args:
        address: The sink, as `addresses.resolve` returns it.
        options: How to write.
        on_event: Receives segments, failures and recoveries, with the masked address as `sink`.
        keyframe: Requests a keyframe from the encoder, so that the sink can start.
    """

    #: Whether to retry after a failure.
    again = True
    #: Whether an opened sink is connected; if not, it calls `up` once the other side has answered.
    up_when_open = True

    def __init__(
        self,
        address: str,
        options: SinkOptions,
        *,
        on_event: EventHandler = ignore_event,
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
        self._begin: _Begin | None = None
        self._muxer: Muxer | None = None
        self._base = 0
        self._last: dict[str, int] = {}
        self._backoff = Backoff(0.5, options.retry_cap)
        self._again_at = self._tell_drops_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"sink {self.name}", daemon=True)

    # -- for subclasses --------------------------------------------------------------------------

    def opened(self, template: Template, first: Chunk) -> Muxer:
        """Open the output for a segment that begins with the chunk `first`."""
        raise NotImplementedError

    def write(self, muxer: Muxer, chunk: Chunk) -> None:
        """Write a chunk; times in the output count from the first picture of the segment."""
        muxer.write(chunk, self._base)

    def close(self, muxer: Muxer) -> None:
        """Finish the segment."""
        muxer.close()

    def abandon(self, muxer: Muxer | None) -> None:
        """Release the output after a failure; `muxer` is None if opening it failed."""
        if muxer is not None:
            muxer.close()

    def check(self) -> None:
        """Raise if the other side has gone; called while nothing comes."""

    def rotates(self, chunk: Chunk) -> bool:
        """Return whether a new segment begins with this chunk."""
        return False

    def cut(self, template: Template) -> None:
        """Go on after an outage with the same streams: files begin a new segment."""

    def ended(self) -> None:
        """Release what outlives segments; nothing more will come."""

    @property
    def current(self) -> str:
        """What is being written to, as shown to users."""
        return self.name

    # -- called from the session's threads -------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self, template: Template, reason: str) -> None:
        """Begin a new segment, with these streams, at the next keyframe."""
        with self._changed:
            self._items.append(_Begin(template, reason))
            # Here rather than in the thread: the keyframe may have come by then, and the frames
            # after it would be dropped.
            self._skipping = True
            self._changed.notify()

    def offer(self, chunk: Chunk) -> None:
        """Take a chunk without waiting; if too many wait, drop all up to the next keyframe."""
        if self._offer(chunk) and time.monotonic() > self._tell_drops_at:
            self._tell_drops_at = time.monotonic() + 60
            self.on_event("sink_drops", sink=self.name, dropped=self.dropped)

    def _offer(self, chunk: Chunk) -> bool:
        """Take a chunk; return whether others were dropped although the sink is connected."""
        full = False
        with self._changed:
            if self._waiting_bytes > _WAITING_BYTES or len(self._items) >= _WAITING:
                kept = [item for item in self._items if isinstance(item, _Begin)]
                self.dropped += len(self._items) - len(kept)
                self._items = deque(kept[-1:])
                self._waiting_bytes = 0
                self._skipping, full = True, self.connected
                self.keyframe()
            if self._skipping:
                if not (chunk.kind == "video" and chunk.keyframe):
                    self.dropped += 1
                    return full
                self._skipping = False
            self._items.append(chunk)
            self._waiting_bytes += len(chunk.data)
            self._changed.notify()
        return full

    def end(self) -> None:
        """Write what waits, finish, and end the thread."""
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, patience: float) -> bool:
        """Wait for the thread up to `patience` seconds; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    @property
    def depth(self) -> int:
        """Number of chunks that wait."""
        return len(self._items)

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._guarded(self._take, item)
        except _Stop:
            pass
        finally:
            self._finish()
            self.connected = False
            with contextlib.suppress(OSError):
                self.ended()

    def _next(self) -> Chunk | _Begin | None:
        """Wait for the next item, and call `check` meanwhile; None at the end."""
        while True:
            with self._changed:
                if not self._items and not self._ending:
                    self._changed.wait(0.25)
                if self._items:
                    item = self._items.popleft()
                    if isinstance(item, Chunk):
                        self._waiting_bytes -= len(item.data)
                    return item
                if self._ending:
                    return None
            if self._muxer is not None:
                self._guarded(self.check)

    def _guarded(self, do: Callable[..., None], *item: Chunk | _Begin) -> None:
        try:
            do(*item)
        except _Stop:
            raise
        except Exception as error:  # of any kind: the other sinks go on, and this one is retried
            self._failed(error)

    def _take(self, item: Chunk | _Begin) -> None:
        if isinstance(item, _Begin):
            self._finish()
            self._begin = item
            return
        muxer = self._muxer
        if muxer is not None and self.rotates(item):
            self._finish()
            assert self._begin is not None
            self._begin, muxer = _Begin(self._begin.template, "rotation"), None
        if muxer is None and (muxer := self._begin_with(item)) is None:
            return
        if item.pts < self._base:
            return  # sound from before the segment's first picture
        # Muxers need increasing decoding times.
        last = self._last.get(item.kind)
        if last is not None and item.dts <= last:
            self.dropped += 1
            return
        self._last[item.kind] = item.dts
        self.write(muxer, item)
        self.written += 1
        self.bytes += len(item.data)

    def _begin_with(self, item: Chunk) -> Muxer | None:
        """Open with this chunk, if it is a keyframe and the time of the next try has come."""
        if self._begin is None or not (item.kind == "video" and item.keyframe):
            self.dropped += 1
            return None
        if time.monotonic() < self._again_at:
            self.dropped += 1
            self._skip()
            return None
        self._base, self._last = item.pts, {}
        self._muxer = self.opened(self._begin.template, item)
        if self.up_when_open:
            self.up()
        return self._muxer

    def up(self) -> None:
        """Report that the sink is connected."""
        assert self._begin is not None
        self.connected = True
        if self._backoff.tries:
            self.on_event("sink_back", sink=self.name)
        self._backoff.reset()
        self.on_event("segment", sink=self.name, file=self.current, reason=self._begin.reason)

    def _skip(self) -> None:
        with self._changed:
            self._skipping = True
        if time.monotonic() >= self._again_at:
            self.keyframe()

    def _failed(self, error: BaseException) -> None:
        muxer, self._muxer = self._muxer, None
        self.failures += 1
        self.connected = False
        with contextlib.suppress(Exception):
            self.abandon(muxer)
        reason = self._reason(error)
        if not self.again:
            self.error = error if isinstance(error, OutputError) else OutputError(reason)
            self.on_event("sink_ended", sink=self.name, reason=reason)
            raise _Stop
        wait = self._backoff.next()
        self._again_at = time.monotonic() + wait
        self._skip()
        self.on_event("sink_gone", sink=self.name, reason=reason, seconds=round(wait, 2))

    def _finish(self) -> None:
        """Finish the open segment, if there is one; a failure is only reported."""
        muxer, self._muxer = self._muxer, None
        if muxer is None:
            return
        try:
            self.close(muxer)
        except Exception as error:
            self.failures += 1
            with contextlib.suppress(Exception):
                self.abandon(None)
            reason = self._reason(error)
            self.on_event("sink_gone", sink=self.name, reason=reason, seconds=0)

    def _reason(self, error: BaseException) -> str:
        text = str(getattr(error, "strerror", None) or error)
        return masked(text, of=self.address).rstrip(".")
