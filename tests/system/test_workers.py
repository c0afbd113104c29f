"""Threads and queues on plain lists: order, bounds, ends, failures, cancel; no thread is left."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from vdeblur.errors import Cancelled
from vdeblur.system.workers import Drain, background


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def wait_until(condition: object, seconds: float = 5.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_background_gives_everything_in_order() -> None:
    with background(range(1000), depth=3, name="count") as items:
        assert list(items) == list(range(1000))
        assert next(items, "ended") == "ended"
    assert items.times.items == 1000


def test_background_runs_in_its_own_thread_and_never_more_than_depth_ahead() -> None:
    made = 0
    threads = set()

    def source() -> Iterator[int]:
        nonlocal made
        for i in range(30):
            threads.add(threading.current_thread().name)
            made += 1
            yield i

    with background(source(), depth=4, name="ahead") as items:
        wait_until(lambda: made == 4)
        for taken, _ in enumerate(items, start=1):
            time.sleep(0.002)
            assert made - taken <= 4
    assert threads == {"ahead"}


def test_background_raises_the_source_s_own_exception_after_its_items() -> None:
    error = OSError("disk on fire")

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    taken: list[int] = []

    def take_all() -> None:
        with background(source(), depth=8, name="failing") as items:
            for item in items:
                taken.append(item)

    with pytest.raises(OSError, match="disk on fire") as caught:
        take_all()
    assert caught.value is error
    assert taken == [1, 2]


def test_leaving_early_closes_the_generator_in_its_own_thread() -> None:
    closed_in = []

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed_in.append(threading.current_thread().name)

    start = time.monotonic()
    with background(source(), depth=2, name="endless") as items:
        assert next(items) == 0
    assert closed_in == ["endless"]
    assert time.monotonic() - start < 2


def test_an_exception_of_the_consumer_is_not_swallowed_and_stops_a_blocked_producer() -> None:
    def consume() -> None:
        with background(range(10**9), depth=1, name="blocked") as items:
            next(items)
            wait_until(lambda: items.times.items == 2)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        consume()


def test_a_failure_that_nobody_reads_ahead_to_is_dropped() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("further on")

    with background(source(), depth=5, name="ahead") as items:
        assert next(items) == 1


def test_leaving_waits_for_a_stuck_source_only_so_long() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        release.wait(10)

    def take_one() -> None:
        with background(source(), depth=2, name="stuck", patience_seconds=0.2) as items:
            next(items)
            time.sleep(0.05)

    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match="'stuck' did not stop within"):
        take_one()
    assert time.monotonic() - start < 2
    release.set()
    wait_until(lambda: "stuck" not in {thread.name for thread in threading.enumerate()})


def test_cancel_reaches_the_consumer() -> None:
    cancel = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        while not cancel.is_set():
            time.sleep(0.01)

    with background(source(), depth=2, name="live", cancel=cancel) as items:
        assert next(items) == 1
        threading.Timer(0.05, cancel.set).start()
        with pytest.raises(Cancelled):
            next(items)
    time.sleep(0.01)


def test_depth_must_hold_something() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        background([], depth=0, name="none")


def test_drain_works_on_everything_in_order_before_it_is_left() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.001)
        done.append(item)

    with Drain(slow, depth=3, name="write") as drain:
        for i in range(50):
            drain.put(i)
            # depth items wait, one is worked on
            assert i + 1 - len(done) <= 4 + 1
    assert done == list(range(50))
    assert drain.times.items == 50
    with pytest.raises(ValueError, match="closed"):
        drain.put(0)


def test_drain_holds_its_bound() -> None:
    release = threading.Event()
    put = 0

    def stuck(item: int) -> None:
        release.wait(10)

    def feed(drain: Drain[int]) -> None:
        nonlocal put
        for i in range(10):
            drain.put(i)
            put += 1

    with Drain(stuck, depth=3, name="bounded") as drain:
        feeder = threading.Thread(target=feed, args=(drain,))
        feeder.start()
        wait_until(lambda: put == 4)  # one under way, three waiting
        time.sleep(0.05)
        assert put == 4
        release.set()
        feeder.join()
    assert drain.times.owner_seconds > 0.04


def test_drain_raises_the_worker_s_own_exception_at_once_even_from_a_blocked_put() -> None:
    error = OSError("disk full")
    begun = threading.Event()

    def work(item: int) -> None:
        begun.wait(5)
        raise error

    calls = 0

    def feed() -> None:
        nonlocal calls
        with Drain(work, depth=1, name="w") as drain:
            drain.put(0)
            wait_until(lambda: drain.times.input_seconds > 0)
            drain.put(1)
            threading.Timer(0.05, begun.set).start()
            while calls < 100:
                drain.put(2)
                calls += 1

    with pytest.raises(OSError, match="disk full") as caught:
        feed()
    assert caught.value is error
    assert calls <= 1


def test_drain_raises_on_close_what_the_last_item_did() -> None:
    def work(item: int) -> NoReturn:
        raise OSError("too late for put")

    drain = Drain(work, depth=5, name="last")
    with drain:
        drain.put(1)
        with pytest.raises(OSError, match="too late"):
            drain.close()
        with pytest.raises(OSError, match="too late"):
            drain.close()
        drain._failure = None  # seen; leaving would raise it once more


def test_leaving_a_drain_by_an_exception_drops_what_waits() -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.05)
        done.append(item)

    def feed() -> None:
        with Drain(slow, depth=100, name="aborted") as drain:
            for i in range(100):
                drain.put(i)
            raise KeyError("mine")

    start = time.monotonic()
    with pytest.raises(KeyError, match="mine"):
        feed()
    assert time.monotonic() - start < 2
    assert len(done) < 20


def test_cancel_stops_a_drain() -> None:
    cancel = threading.Event()

    def feed() -> None:
        with Drain(print, depth=1, name="c", cancel=cancel) as drain:
            cancel.set()
            drain.put(1)

    with pytest.raises(Cancelled):
        feed()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.parametrize("where", ["take", "put", "close"])
def test_ctrl_c_gets_through(where: str) -> None:
    stop = threading.Event()

    def nothing() -> Iterator[int]:
        stop.wait(10)
        yield from ()

    def interrupt(*_: object) -> NoReturn:
        interrupted.append(time.monotonic())
        # What the second one would do is the same; the source and the worker may end now.
        stop.set()
        raise KeyboardInterrupt

    def work(item: int) -> None:
        stop.wait(10)
        time.sleep(0.1)  # leaving must wait for this, though it was interrupted

    def wait() -> None:
        if where == "take":
            with background(nothing(), depth=1, name="source") as items:
                next(items)
        else:
            with Drain(work, depth=1, name="worker") as drain:
                for i in range(3 if where == "put" else 1):
                    drain.put(i)

    interrupted: list[float] = []
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - interrupted[0] < 0.5


def test_times_tell_who_was_waiting() -> None:
    def slow_source() -> Iterator[int]:
        for i in range(5):
            time.sleep(0.02)
            yield i

    got: list[int] = []
    with (
        background(slow_source(), depth=2, name="in") as items,
        Drain(got.append, depth=2, name="out") as drain,
    ):
        for item in items:
            drain.put(item)
    assert items.times.busy_seconds > 0.09
    assert items.times.owner_seconds > 0.05
    assert drain.times.input_seconds > 0.05
    assert drain.times.busy_seconds < 0.05
    with background(range(5), depth=1, name="fast") as items2:
        for _ in items2:
            time.sleep(0.02)
    assert items2.times.output_seconds > 0.05


def test_two_stages_chained() -> None:
    done: list[int] = []
    with (
        background(range(200), depth=2, name="a") as first,
        background((x * x for x in first), depth=2, name="b") as second,
        Drain(done.append, depth=2, name="c") as drain,
    ):
        for item in second:
            drain.put(item)
    assert done == [x * x for x in range(200)]
