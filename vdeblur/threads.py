"""Work in threads, each with its share of torch's own. Knows no pictures.

torch cuts each operation into as many parts as it has threads, and waits for all of them. Where
other threads are at work too, the parts are not done at once, and each operation waits for the
slowest: on two cores, ten small operations of a picture take 5 times as long beside a decoder than
alone. Whole pictures side by side, one a thread, wait for each other once.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


def use_torch_threads(count: int) -> None:
    """Let torch use `count` threads for what the calling thread asks of it from now on.

    Others keep theirs: torch's number is each thread's own, but threads that begin later take the
    one that any thread set last.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()


def with_one_torch_thread(items: Iterable[T]) -> Iterator[T]:
    """The items, made by a thread that has one of torch's threads: for a stage beside others."""
    use_torch_threads(1)
    yield from items


class SideBySide:
    """Threads for up to `most` pieces of work at once, which share torch's threads equally.

    They are begun when they are first needed and end with this object. Work that asks for less than
    `most` at once has more of torch's threads for each.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        # By how many, and of which process: threads do not follow into one that is forked.
        self._jobs: dict[tuple[int, int], queue.SimpleQueue[_Job | None]] = {}

    def map(self, work: Callable[[int], T], numbers: range) -> list[T]:
        """[work(n) for n in numbers]; the first error is raised once all have ended.

        In other threads gradients are not recorded, and inference mode is the caller's.
        """
        if min(len(numbers), self.most) < 2:
            return [work(number) for number in numbers]
        count = 2
        while count < min(len(numbers), self.most):
            count *= 2  # a power of two, so that few are begun
        jobs = self._begun(min(count, self.most))
        inference = torch.is_inference_mode_enabled()

        def one(number: int) -> T:
            with torch.inference_mode(inference), torch.no_grad():
                return work(number)

        futures: list[Future[T]] = []
        for number in numbers:
            futures.append(Future())
            jobs.put((futures[-1], partial(one, number)))
        wait(futures)
        try:
            return [future.result() for future in futures]
        finally:
            del futures  # an error would keep them, and they it

    def _begun(self, count: int) -> queue.SimpleQueue[_Job | None]:
        key = count, os.getpid()
        if key not in self._jobs:
            jobs = self._jobs[key] = queue.SimpleQueue[_Job | None]()
            each = max(1, torch.get_num_threads() // count)
            for number in range(count):
                # Daemons: a long picture is not to keep a program from ending.
                name = f"picture {number}"
                threading.Thread(target=_work, args=(jobs, each), name=name, daemon=True).start()
            weakref.finalize(self, _end, jobs, count)
        return self._jobs[key]


def _end(jobs: queue.SimpleQueue[_Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[_Job | None], torch_threads: int) -> None:
    use_torch_threads(torch_threads)
    while (job := jobs.get()) is not None:
        future, call = job
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del job, future, call  # not to be kept alive while waiting for the next
