"""Threads that share torch's and OpenCV's own threads among them. Knows no pictures.

torch divides each operation among its threads and waits for all of them. While other threads are
busy, the parts do not run at once, and each operation waits for the slowest; serial parts leave the
other threads idle. Whole pictures side by side, one per thread, wait for each other only once.
"""

from __future__ import annotations

import ctypes
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import cv2
import torch

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]
# Seconds after which a waiting thread wakes up, since a lock without a timeout blocks Ctrl-C on
# Windows; and seconds to wait for abandoned work.
_LOOK_UP, _PATIENCE = 0.1, 10.0
_setting = threading.Lock()


def use_torch_threads(count: int, usual: int) -> None:
    """Set the number of torch's threads for the calling thread.

    The number belongs to each thread, but a new thread takes the one that was set last.

    Args:
        count: for the calling thread.
        usual: for threads that start later.
    """
    with _setting:
        torch.get_num_threads()  # a thread's first query takes over the last number
        torch.set_num_threads(count)
        restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
        restore.start()
        restore.join()


def with_one_torch_thread(items: Iterable[T]) -> Iterator[T]:
    """Yield items from a thread that uses one of torch's threads, beside other workers."""
    usual = torch.get_num_threads()

    def made() -> Iterator[T]:
        use_torch_threads(1, usual)
        yield from items

    return made()


class _OpenCV:
    """Number of contexts that limit OpenCV to one thread, and its threads before the first."""

    wanting = 0
    usual = 0


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Context manager in which OpenCV uses only the calling thread, in the whole process."""
    with _setting:
        if not _OpenCV.wanting:
            _OpenCV.usual = cv2.getNumThreads()
            cv2.setNumThreads(1)
        _OpenCV.wanting += 1
    try:
        yield
    finally:
        with _setting:
            _OpenCV.wanting -= 1
            if not _OpenCV.wanting:
                cv2.setNumThreads(_OpenCV.usual)


class Helpers:
    """A context manager of threads that work ahead of the consumer of their results.

    Each uses one of torch's threads; OpenCV uses one as well meanwhile.

    Args:
        count: number of threads. With less than two there are none, and work is done at once.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count if count > 1 else 0
        #: Calls that may be begun before the first result is taken: enough for all threads, and
        #: some more for when the consumer is busy.
        self.ahead = self.count + 4 if self.count else 0
        self._crew: _Crew | None = None
        self._futures: set[Future[Any]] = set()  # of unfinished work
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        if self.count:
            with ExitStack() as ends:
                ends.enter_context(one_opencv_thread())
                self._crew = _Crew(self.count, 1, _usual(), name="helper")
                self._ends = ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._ends:
            if self._crew is not None:
                self._crew.stop(tuple(self._futures), at_once=False)
                self._crew = None

    def begin(self, call: Callable[[], T]) -> Callable[[], T]:
        """Begin a call; return a function that waits for its result, or raises its error."""
        if self._crew is None:
            result = call()
            return lambda: result
        future = self._crew.begin(call)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return partial(_result, future)


def _usual() -> int:
    """Return the number of torch's threads that a new thread uses."""
    found: list[int] = []
    with _setting:
        asking = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        asking.start()
        asking.join()
    return found[0]


def _result(future: Future[T]) -> T:
    while wait([future], _LOOK_UP).not_done:
        pass
    return future.result()


class SideBySide:
    """Threads that share torch's threads equally, for up to `most` calls at once.

    They start when they are first needed, and end with this object. With fewer calls at once, each
    uses more of torch's threads.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._crews: dict[int, _Crew] = {}  # by their number

    def __reduce__(self) -> tuple[type[SideBySide], tuple[int]]:
        return SideBySide, (self.most,)  # a copy starts its own threads

    def map(self, work: Callable[[int], T], numbers: range) -> list[T]:
        """Return [work(n) for n in numbers], computed side by side.

        The first error is raised once all calls have ended; Ctrl-C stops them. Threads record no
        gradients, and use the caller's inference mode.
        """
        if min(len(numbers), self.most) < 2:
            return [work(number) for number in numbers]
        count = 2
        while count < min(len(numbers), self.most):
            count *= 2  # powers of two, so that few sets of threads are started
        count = min(count, self.most)
        if count not in self._crews:
            usual = torch.get_num_threads()
            self._crews[count] = _Crew(count, max(1, usual // count), usual)
        crew = self._crews[count]
        inference = torch.is_inference_mode_enabled()

        def one(number: int) -> T:
            with torch.inference_mode(inference), torch.no_grad():
                return work(number)

        futures = [crew.begin(partial(one, number)) for number in numbers]
        try:
            while wait(futures, _LOOK_UP).not_done:
                pass
            return [future.result() for future in futures]
        except BaseException:
            if not all(future.done() for future in futures):
                self._crews.pop(count, None)
                crew.stop(futures)
            raise
        finally:
            del futures  # which form a cycle with an error


class _Crew:
    """Threads that take calls from one queue.

    torch_threads: torch's threads for each. usual: the same for threads that start later.
    """

    def __init__(
        self, count: int, torch_threads: int, usual: int, *, name: str = "picture"
    ) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._jobs, count)
        set_up = threading.Semaphore(0)
        for number in range(count):
            # Daemons, so that the program's end does not wait for abandoned work.
            thread = threading.Thread(
                target=_work,
                args=(self._jobs, torch_threads, usual, set_up),
                name=f"{name} {number}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        for _ in self._threads:
            set_up.acquire()  # what others begin from now on has its usual number

    def begin(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._jobs.put((future, call))
        return future

    def stop(self, futures: Iterable[Future[Any]], *, at_once: bool = True) -> None:
        """End all threads.

        A thread that is inside torch or OpenVINO when the interpreter ends crashes the process.

        Args:
            futures: work that is given up.
            at_once: interrupt running calls, as Ctrl-C does, after the current operation.
        """
        for future in futures:
            future.cancel()
        self._end()
        for thread in self._threads if at_once else ():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
        for thread in self._threads:
            thread.join(_PATIENCE)


def _end(jobs: queue.SimpleQueue[_Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _work(
    jobs: queue.SimpleQueue[_Job | None],
    torch_threads: int,
    usual: int,
    set_up: threading.Semaphore,
) -> None:
    try:
        use_torch_threads(torch_threads, usual)
        set_up.release()
        while (job := jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call  # so that they are not kept alive while waiting
    except KeyboardInterrupt:
        pass  # by `stop`, between two calls
