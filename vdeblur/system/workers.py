"""Threads of a pipeline, with bounded queues, and their end, failure and cancellation.

They work on any iterables and callables. Every queue has a bound, every thread has an owner that
joins it, and every exception reaches the owner as itself. Knows no tensors, pictures or files.
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

# Seconds after which a waiting thread wakes up: to see a cancellation, which notifies nobody, and
# because a lock without a timeout blocks Ctrl-C on Windows.
_LOOK_UP = 0.1


@dataclass
class WorkerTimes:
    """Where a worker's thread spent its time so far.

    The worker that hardly ever waits is the bottleneck.

    Attributes:
        name: the thread's name.
        items: number of finished items.
        busy_seconds: in the work itself.
        input_seconds: waiting for an item to work on.
        output_seconds: waiting for room for the result.
        owner_seconds: that the owner waited for this worker.
    """

    name: str
    items: int = 0
    busy_seconds: float = 0.0
    input_seconds: float = 0.0
    output_seconds: float = 0.0
    owner_seconds: float = 0.0


class _Channel(Generic[T]):
    """A queue of at most `depth` items between two threads; either end can leave."""

    def __init__(self, depth: int, cancel: threading.Event | None) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}: a queue holds at least 1 item")
        self._depth, self._cancel = depth, cancel
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._error: BaseException | None = None

    def wait_for_room(self) -> bool:
        """Wait until an item may be put; return False once the taker left or work is cancelled."""
        with self._changed:
            while not self._left and not self._cancelled() and len(self._items) >= self._depth:
                self._changed.wait(_LOOK_UP)
            return not self._left and not self._cancelled()

    def put(self, item: T) -> None:
        """Append an item, after `wait_for_room`."""
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Put no more: the taker receives the items in the queue, then the error or the end."""
        with self._changed:
            self._ended = True
            self._error = self._error or error
            self._changed.notify_all()

    def take(self) -> T:
        """Return the next item; raise StopIteration at the end, the error, or Cancelled."""
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
        """Take no more: drop the items in the queue, and release a waiting putter."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()

    def _cancelled(self) -> bool:
        return self._cancel is not None and self._cancel.is_set()


class _Worker:
    """A thread that its owner starts when it enters the context, and joins when it leaves it."""

    def __init__(self, name: str) -> None:
        self.times = WorkerTimes(name)
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
                    f"worker {self.times.name!r} did not stop within {patience_seconds} s: "
                    "left to end by itself",
                    RuntimeWarning,
                    stacklevel=3,
                )
                return
        self._thread.join()


class Background(_Worker, Generic[T]):
    """An iterable that runs in its own thread, up to `depth` items ahead; see `background`."""

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
            # In this thread, since a generator's `finally` may close what was opened in it.
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
            # Room first: otherwise a finished item that waits would be one more than `depth` ahead.
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
            del item  # so that it is not kept alive while waiting for room


def background(
    items: Iterable[T],
    *,
    depth: int,
    name: str,
    cancel: threading.Event | None = None,
    patience_seconds: float | None = None,
) -> Background[T]:
    """Run an iterable in a thread, at most `depth` items ahead of its consumer.

    The result is a context manager and the iterator. An exception of the iterable is raised, as
    itself, after the items before it. Leaving the context stops and joins the thread, and closes a
    generator in that thread; an exception after that is dropped.

    Args:
        items: the iterable.
        depth: most items in the queue, 1 or more.
        name: the thread's name, also in `times`, where all work of the iterable counts as busy.
        cancel: once set, taking an item raises Cancelled.
        patience_seconds: time that leaving waits for an iterable that is stuck in a call, before it
            warns and abandons the thread. None waits forever.
    """
    return Background(
        items, depth=depth, name=name, cancel=cancel, patience_seconds=patience_seconds
    )


class Drain(_Worker, Generic[T]):
    """Calls a function in a thread on each item that is put, in order.

    A context manager: leaving it normally waits until all items are done (`close`); leaving it by
    an exception drops the items that wait, and joins after the current call. An exception of the
    function is raised, as itself, by the next `put` or by `close`; no more calls follow it.

    Args:
        work: the function.
        depth: most items that wait, 1 or more.
        name: the thread's name.
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
        """Hand over an item; wait while `depth` items wait already."""
        if self._closed:
            raise ValueError(f"worker {self.times.name!r} is closed: nothing more can be put")
        start = time.perf_counter()
        room = self._channel.wait_for_room()
        self.times.owner_seconds += time.perf_counter() - start
        if self._failure is not None:
            raise self._failure
        if not room:
            raise Cancelled("the work was stopped before its end")
        self._channel.put(item)

    def close(self) -> None:
        """Wait until all items are done, and raise the function's error; may be called again."""
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
                # After Ctrl-C as well: nothing else would join the thread.
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
                del item  # so that it is not kept alive while waiting for the next
        except BaseException as error:
            self._failure = error
            self._channel.leave()
