"""Work in threads, each with its share of torch's own, and of OpenCV's. Knows no pictures.

torch cuts each operation into as many parts as it has threads, and waits for all of them. Where
other threads are at work too, the parts are not done at once, and each operation waits for the
slowest; what is done by one thread alone leaves the others idle. Whole pictures side by side, one a
thread, wait for each other once.
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
# Seconds after which a waiting thread looks up: on Windows a lock without a timeout does not let
# Ctrl-C through. And those that work under way is waited for when it is given up.
_LOOK_UP, _PATIENCE = 0.1, 10.0
_setting = threading.Lock()


def use_torch_threads(count: int, usual: int) -> None:
    """Let torch use `count` threads for what the calling thread asks of it from now on, and `usual`
    for what threads ask that begin later.

    torch's number is each thread's own, but threads that begin take the one that was set last.
    """
    with _setting:
        torch.get_num_threads()  # a thread's first question sets both to what was set last
        torch.set_num_threads(count)
        restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
        restore.start()
        restore.join()


def with_one_torch_thread(items: Iterable[T]) -> Iterator[T]:
    """The items, made by a thread that has one of torch's threads: for a stage beside others."""
    usual = torch.get_num_threads()

    def made() -> Iterator[T]:
        use_torch_threads(1, usual)
        yield from items

    return made()


class _OpenCV:
    """Whoever wants OpenCV to have one thread, and the number that it had before the first did."""

    wanting = 0
    usual = 0


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """OpenCV does each operation in the calling thread meanwhile; in the whole process, for it has
    one number for all threads.
    """
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
    """Threads, `count` of them, that work ahead of whoever takes the results; with less than two
    there are none, and work is done when it is begun.

    A context manager, which begins and ends them. Each has one of torch's threads; so has OpenCV
    meanwhile, whose own would only be in the way.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count if count > 1 else 0
        #: Pieces of work that may be begun before the first result is taken: enough for all, and
        #: some for when whoever takes them is busy for a moment.
        self.ahead = self.count + 4 if self.count else 0
        self._crew: _Crew | None = None
        self._futures: set[Future[Any]] = set()  # whose work is not done
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
        """Begin a piece of work; what is returned waits for its result, or raises its error."""
        if self._crew is None:
            result = call()
            return lambda: result
        future = self._crew.begin(call)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return partial(_result, future)


def _usual() -> int:
    """How many of torch's threads one has that begins now."""
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
    """Threads for up to `most` pieces of work at once, which share torch's threads equally.

    They are begun when they are first needed and end with this object. Work that asks for less than
    `most` at once has more of torch's threads for each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._crews: dict[int, _Crew] = {}  # by their number

    def __reduce__(self) -> tuple[type[SideBySide], tuple[int]]:
        return SideBySide, (self.most,)  # a copy has threads of its own

    def map(self, work: Callable[[int], T], numbers: range) -> list[T]:
        """[work(n) for n in numbers]; the first error is raised once all have ended.

        In other threads gradients are not recorded, and inference mode is the caller's. A Ctrl-C
        stops what is under way.
        """
        if min(len(numbers), self.most) < 2:
            return [work(number) for number in numbers]
        count = 2
        while count < min(len(numbers), self.most):
            count *= 2  # a power of two, so that few are begun
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
            del futures  # an error would keep them, and they it


class _Crew:
    """`count` threads that take work from one queue, with so many of torch's threads each; usual:
    what others have that begin later.
    """

    def __init__(
        self, count: int, torch_threads: int, usual: int, *, name: str = "picture"
    ) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._end = weakref.finalize(self, _end, self._jobs, count)
        set_up = threading.Semaphore(0)
        for number in range(count):
            # Daemons: a program's end does not wait for work that nobody waits for.
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
        """End all threads; at once: what they are at too, as Ctrl-C would, after the operation
        under way.

        A thread that is inside torch or OpenVINO when the interpreter ends takes the process down.
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
            del job, future, call  # not to be kept alive while waiting for the next
    except KeyboardInterrupt:
        pass  # by `stop`, between two pieces of work
