"""A thread that reads one source for weeks, and reconnects whenever the connection is lost.

Passes frames, sound and events on, and keeps nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from vdeblur.errors import InputError, VdeblurError
from vdeblur.live.sources.connection import Connection
from vdeblur.live.sources.format import FormatAnnouncer, Taker
from vdeblur.live.sources.source import Missing, Refused, Source, SourceOptions
from vdeblur.live.sources.timing import Backoff, Clock, Timeline
from vdeblur.system.masking import masked


@dataclass(frozen=True)
class RetryOptions:
    """When to reconnect.

    Attributes:
        tries: Consecutive failed connections after which to give up; None never does.
        cap: Seconds of the longest wait between two tries.
        first: Seconds of the first wait.
    """

    tries: int | None = None
    cap: float = 30.0
    first: float = 0.5


class Receiver:
    """Reads a source in a thread of its own until `stop`.

    Args:
        address: The source, as `addresses.resolve` returns it.
        taker: Receives frames, sound and events.
        options: How the source is opened.
        retry: When to reconnect.
        limit: Seconds of the session's latency limit.
        opener: Opens the source.

    Attributes:
        error: Why it gave up, if it did.
        ended: Set once it has ended or given up.
        patience: Seconds after which a call of libav that has not returned counts as stuck.
    """

    #: Seconds that a connection has to hold; a shorter one counts as a failed try.
    HELD = 2.0
    #: Stuck calls of libav, each with a thread and a socket, before it gives up.
    MOST_LEFT = 8

    def __init__(
        self,
        address: str,
        taker: Taker,
        *,
        options: SourceOptions | None = None,
        retry: RetryOptions | None = None,
        limit: float = 0.3,
        opener: Callable[[str, SourceOptions, threading.Event], Source] = Source,
    ) -> None:
        self.address, self.taker = address, taker
        self.options, self.retry = options or SourceOptions(), retry or RetryOptions()
        self.limit = limit
        self.error: VdeblurError | None = None
        self.ended = threading.Event()
        self._timeline, self._clock = Timeline(), Clock()
        self._announcer = FormatAnnouncer(taker)
        self.patience = 4 * self.options.timeout + 30
        self._left: list[threading.Thread] = []
        self._open = opener
        self._prepare()

    def _prepare(self) -> None:
        self._alive = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stop,), name="receive", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end; a read under way ends within the source's timeout."""
        self._stop.set()

    def join(self, patience: float) -> bool:
        """Wait for the thread up to `patience` seconds; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(patience)
        return not self._thread.is_alive()

    def check(self) -> None:
        """Abandon a stuck call of libav and reconnect; to be called while nothing comes.

        libav's own time limits do not cover everything.
        """
        stuck = time.monotonic() - self._alive
        if stuck < self.patience or self._stop.is_set() or self.ended.is_set():
            return
        self._stop.set()
        self._announcer.lost(f"libav did not come back for {stuck:.0f} s")
        self._left = [thread for thread in (*self._left, self._thread) if thread.is_alive()]
        if len(self._left) > self.MOST_LEFT:
            self.error = InputError(
                f"libav did not come back from {len(self._left)} connections to "
                f"{masked(self.address)}: start the program again"
            )
            self.ended.set()
            self.taker.event("failed", reason=str(self.error))
            return
        self._prepare()
        self.start()

    def _run(self, stop: threading.Event) -> None:
        error: VdeblurError | None = None
        try:
            self._keep_reading(stop)
        except VdeblurError as found:
            error = found
        except Exception as found:
            error = InputError(f"reading failed in a way that was not foreseen: {found!r}")
        if stop is not self._stop:
            return  # abandoned by `check`; another thread reads now
        self.error = error
        self.ended.set()
        if error is not None and not stop.is_set():
            self.taker.event("failed", reason=str(error))
        else:
            self.taker.event("ended", stopped=stop.is_set())

    def _keep_reading(self, stop: threading.Event) -> None:
        backoff = Backoff(self.retry.first, self.retry.cap)
        while not stop.is_set():
            began = self._alive = time.monotonic()
            reason: InputError
            try:
                with self._open(self.address, self.options, stop) as source:
                    began = time.monotonic()
                    self._connection(source, stop).read()
                    if source.finite or stop.is_set():
                        return
                    if source.kind == "file":  # --loop
                        backoff.reset()
                        stop.wait(0.01)
                        continue
                    reason = InputError(f"{source.name} ended")
            except Missing:
                if not self._announcer.connected_once:
                    raise
                reason = InputError("it is not there any more")
            except Refused as error:
                if not self._announcer.connected_once:
                    raise
                reason = error
            except InputError as error:
                reason = error
            if stop.is_set():
                return
            if self._announcer.connected and time.monotonic() - began > self.HELD:
                backoff.reset()
            self._announcer.lost(str(reason))
            if self.retry.tries is not None and backoff.tries >= self.retry.tries:
                if self.retry.tries == 0:
                    raise reason
                tries = "a try" if self.retry.tries == 1 else f"{self.retry.tries} tries in a row"
                raise InputError(f"{reason} (given up after {tries})") from reason
            wait = backoff.next(slow=isinstance(reason, Refused))
            self.taker.event("retry", reason=str(reason), seconds=round(wait, 2))
            self._alive = time.monotonic() + wait  # waiting is not a stuck call
            stop.wait(wait)

    def _connection(self, source: Source, stop: threading.Event) -> Connection:
        return Connection(
            source,
            self.taker,
            self._announcer,
            self._timeline,
            self._clock,
            limit=self.limit,
            stop=stop,
            on_packet=self._returned,
        )

    def _returned(self) -> None:
        self._alive = time.monotonic()
