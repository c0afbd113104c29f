"""Stages of a pipeline: threads, bounded queues, end, failure and cancel.

Works over any iterables and callables; knows no tensors, no pictures and no files. Every queue has
a bound, every thread an owner that joins it, and every failure reaches the caller as itself.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from vdeblur.errors import Cancelled

T = TypeVar("T")

# A waiting thread looks up this often, in seconds: for a cancel that notifies nobody, and because
# on Windows a lock without a timeout does not let Ctrl-C through.
_LOOK_UP = 0.1


@dataclass
class StageTimes:
    """Where a stage's thread spent its time, in seconds, up to now.

    busy: in the stage's own work. input: waiting for an item to work on. output: waiting for room
    to put the result. The stage that is hardly ever waiting is the bottleneck.
    """

    name: str
    items: int = 0
    busy_seconds: float = 0.0
    input_seconds: float = 0.0
    output_seconds: float = 0.0
    owner_seconds: float = 0.0


class _Channel(Generic[T]):
    """A queue of at most `depth` items from one thread to another; either end can leave."""

    def __init__(self, depth: int, cancel: threading.Event | None) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}: a queue holds at least 1 item")
        self._depth, self._cancel = depth, cancel
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Wait until an item may be put; False once the taker has left or the work is cancelled."""
        with self._changed:
            while not self._left and not self._cancelled() and len(self._items) >= self._depth:
                self._changed.wait(_LOOK_UP)
            return not self._left and not self._cancelled()

    def put(self, item: T) -> None:
        """Append, after `wait_for_room`."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No more items: the taker gets those that are there, then the error or the end."""
        with self._changed:
            self._ended = True
            self._error = self._error or error
            self._changed.notify_all()

    def take(self) -> T:
        """The next item; StopIteration at the end, the other side's error, or Cancelled."""
        with self._changed:
            while not self._items and not self._ended and not self._cancelled():
                self._changed.wait(_LOOK_UP)
            if self._cancelled():
                raise Cancelled("the work was stopped before its end")
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def leave(self) -> None:
        """The taker will take no more: what is queued is dropped, a waiting putter is let go."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()

    def _cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()


class _Stage:
    """A thread that its owner starts on entering and joins on leaving."""

    def __init__(self, name: str) -> None:
        self.times = StageTimes(name)
        # A daemon, so that a thread stuck in a system call cannot keep the program from ending.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._finished = threading.Event()

    def _main(self) -> None:
        try:
            self._run()
        finally:
            self._finished.set()

    def _run(self) -> None:
        raise NotImplementedError

    def _join(self, patience_seconds: float | None = None) -> None:
        if self._thread.ident is None:
            return  # never started
        give_up = None if patience_seconds is None else time.monotonic() + patience_seconds
        # Waiting for the event, since a Thread.join that Ctrl-C interrupts takes a running thread
        # for a stopped one (CPython issue 90882, up to 3.12).
        while not self._finished.wait(_LOOK_UP):
            if give_up is not None and time.monotonic() > give_up:
                warnings.warn(
                    f"stage {self.times.name!r} did not stop within {patience_seconds} s: "
                    "left to end by itself",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return
        self._thread.join()


class Background(_Stage, Generic[T]):
    """An iterable run in a thread of its own, up to `depth` items ahead; made by `background`."""

    def __init__(
        self,
        items: Iterable[T],
        *,
        depth: int,
        name: str,
        cancel: threading.Event | None,
        patience_seconds: float | None,
    ) -> None:
        super().__init__(name)
        self._source = items
        self._channel: _Channel[T] = _Channel(depth, cancel)
        self._patience_seconds = patience_seconds

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        start = time.perf_counter()
        try:
            return self._channel.take()
        finally:
            self.times.owner_seconds += time.perf_counter() - start

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.leave()
        self._join(self._patience_seconds)

    def _run(self) -> None:
        failure: BaseException | None = None
        iterator: Iterator[T] | None = None
        try:
            iterator = iter(self._source)
            self._produce(iterator)
        except BaseException as error:
            failure = error
        finally:
            # Here and not in the owner's thread: a generator's `finally` may own what it opened
            # here.
            try:
                if (close := getattr(iterator, "close", None)) is not None:
                    close()
            except BaseException as error:
                failure = failure or error
            self._channel.end(failure)

    def _produce(self, iterator: Iterator[T]) -> None:
        times = self.times
        while True:
            start = time.perf_counter()
            # Room first: an item made and not yet queued would be one more than `depth` ahead.
            if not self._channel.wait_for_room():
                return
            ready = time.perf_counter()
            times.output_seconds += ready - start
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                times.busy_seconds += time.perf_counter() - ready
            times.items += 1
            self._channel.put(item)
            del item  # it is the taker's: not to be kept alive here while waiting for room


def background(
    items: Iterable[T],
    *,
    depth: int,
    name: str,
    cancel: threading.Event | None = None,
    patience_seconds: float | None = None,
) -> Background[T]:
    """Run an iterable in a thread, at most `depth` items ahead of whoever takes them.

    Use as a context manager that gives the iterator; its `times` is a StageTimes, in which all that
    the iterable does is "busy". An exception of the iterable is raised, as itself, after the items
    before it. Leaving the context stops the thread and joins it; a generator is closed in its own
    thread; an exception that nobody was there to take any more is dropped. cancel: once set, taking
    an item raises Cancelled. patience_seconds: how long leaving waits for an iterable that is stuck
    in a call; after that it warns and lets the thread go. None waits for as long as it takes.
    """
    return Background(
        items, depth=depth, name=name, cancel=cancel, patience_seconds=patience_seconds
    )


class Drain(_Stage, Generic[T]):
    """A callable run in a thread on each item put, in order; at most `depth` items wait.

    A context manager: leaving it normally waits until all is done (`close`); leaving it by an
    exception drops what waits and joins after the call under way. An exception of the callable is
    raised, as itself, by the next `put` or by `close`, and nothing is called after it.
    cancel: once set, `put` and `close` raise Cancelled.
    """

    def __init__(
        self,
        work: Callable[[T], object],
        *,
        depth: int,
        name: str,
        cancel: threading.Event | None = None,
    ) -> None:
        super().__init__(name)
        self._work = work
        self._channel: _Channel[T] = _Channel(depth, cancel)
        self._failure: BaseException | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def put(self, item: T) -> None:
        """Hand an item over; waits while `depth` items are waiting already."""
        if self._closed:
            raise ValueError(f"stage {self.times.name!r} is closed: nothing more can be put")
        start = time.perf_counter()
        room = self._channel.wait_for_room()
        self.times.owner_seconds += time.perf_counter() - start
        if self._failure is not None:
            raise self._failure
        if not room:
            raise Cancelled("the work was stopped before its end")
        self._channel.put(item)

    def close(self) -> None:
        """Wait until every item is worked on; raise what the callable raised. Twice is once."""
        self._closed = True
        self._channel.end()
        self._join()
        if self._failure is not None:
            raise self._failure

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self.close()
            except BaseException:
                # Also for Ctrl-C while waiting: nobody is left who would join the thread.
                self._abort()
                raise
        else:
            self._abort()

    def _abort(self) -> None:
        self._closed = True
        self._channel.leave()
        self._channel.end()
        self._join()

    def _run(self) -> None:
        times = self.times
        try:
            while True:
                start = time.perf_counter()
                try:
                    item = self._channel.take()
                except StopIteration:
                    return
                ready = time.perf_counter()
                times.input_seconds += ready - start
                try:
                    self._work(item)
                finally:
                    times.busy_seconds += time.perf_counter() - ready
                times.items += 1
                del item  # done with: not to be kept alive while waiting for the next
        except BaseException as error:
            self._failure = error
            self._channel.leave()
