"""Work in threads that share torch's."""

import copy
import gc
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial

import cv2
import pytest
import torch

from vdeblur.system.thread_shares import (
    Helpers,
    SideBySide,
    use_torch_threads,
    with_one_torch_thread,
)


@pytest.fixture(autouse=True)
def four_torch_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(usual)


def test_results_come_in_order_and_together() -> None:
    meeting = threading.Barrier(2, timeout=10)

    def work(number: int) -> tuple[int, int, str]:
        meeting.wait()  # nobody passes alone
        return number, torch.get_num_threads(), threading.current_thread().name

    found = SideBySide(4).map(work, range(3, 5))
    assert [(number, threads) for number, threads, _ in found] == [(3, 2), (4, 2)]
    assert len({name for *_, name in found}) == 2
    assert torch.get_num_threads() == 4


def test_more_work_than_threads_and_less() -> None:
    beside = SideBySide(3)
    for count, threads in ((1, 4), (2, 2), (3, 1), (11, 1)):
        found = beside.map(lambda number: (number, torch.get_num_threads()), range(count))
        assert found == [(number, threads) for number in range(count)]


def test_gradients_are_off_and_inference_mode_is_the_callers() -> None:
    beside = SideBySide(2)

    def made(_: int) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.zeros(1).is_inference()

    assert beside.map(made, range(2)) == [(False, False)] * 2
    with torch.inference_mode():
        assert beside.map(made, range(2)) == [(False, True)] * 2


def test_an_error_is_raised_when_all_have_ended() -> None:
    beside, ended = SideBySide(2), []

    def work(number: int) -> None:
        if number == 0:
            raise ValueError("zero")
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(ValueError, match="zero"):
        beside.map(work, range(3))
    assert sorted(ended) == [1, 2]
    assert beside.map(str, range(2)) == ["0", "1"]
    del beside
    gc.collect()  # the error knows where it came from


def test_threads_end_with_their_owner() -> None:
    beside = SideBySide(2)
    workers = set(beside.map(lambda _: threading.current_thread(), range(8)))
    assert any(worker.is_alive() for worker in workers)
    del beside
    gc.collect()
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def test_a_stage_has_one_of_torchs_threads_and_others_keep_theirs() -> None:
    items = with_one_torch_thread(torch.get_num_threads() for _ in range(2))
    found: list[int] = []
    stage = threading.Thread(target=lambda: found.extend(items))
    stage.start()
    stage.join()
    assert found == [1, 1]
    later: list[int] = []
    other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (later, torch.get_num_threads()) == ([4], 4)


def test_numbers_of_threads_outlast_many_that_begin() -> None:
    for _ in range(5):
        SideBySide(8).map(str, range(8))
        later: list[int] = []
        other = threading.Thread(target=lambda found=later: found.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert later == [4]


def test_ctrl_c_stops_what_is_under_way() -> None:
    beside, ended = SideBySide(2), []

    def work(number: int) -> None:
        for _ in range(500):
            time.sleep(0.01)
        ended.append(number)

    main = threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    interrupt = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    interrupt.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        beside.map(work, range(6))
    assert time.monotonic() - began < 3
    assert not ended
    interrupt.join()
    signal.signal(signal.SIGINT, before)
    assert beside.map(str, range(2)) == ["0", "1"]
    del beside
    gc.collect()


def test_a_copy_has_threads_of_its_own() -> None:
    beside = SideBySide(2)
    beside.map(str, range(2))
    other = copy.deepcopy(beside)
    assert other.map(str, range(2)) == ["0", "1"]


def test_threads_that_cannot_begin_are_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = SideBySide(2)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "picture 1":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="start new thread"):
        beside.map(str, range(2))
    monkeypatch.undo()
    assert beside.map(str, range(2)) == ["0", "1"]
    del beside
    gc.collect()


def test_a_thread_can_be_given_another_number() -> None:
    use_torch_threads(2, 4)
    assert torch.get_num_threads() == 2


def test_helpers_work_ahead_of_who_takes_the_results() -> None:
    meeting = threading.Barrier(3, timeout=10)

    def work() -> tuple[int, int]:
        meeting.wait()  # nobody passes alone
        return torch.get_num_threads(), cv2.getNumThreads()

    before = cv2.getNumThreads()
    with Helpers(3) as helpers:
        results = [helpers.begin(work) for _ in range(3)]
        assert [result() for result in results] == [(1, 1)] * 3
        later: list[int] = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert (later, torch.get_num_threads()) == ([4], 4)
    assert cv2.getNumThreads() == before


def test_helpers_in_a_stage_leave_others_their_threads() -> None:
    def made() -> Iterator[int]:
        with Helpers(2) as helpers:
            yield helpers.begin(torch.get_num_threads)()
        later: list[int] = []
        other = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        other.start()
        other.join()
        yield from later

    found: list[int] = []
    items = with_one_torch_thread(made())
    stage = threading.Thread(target=lambda: found.extend(items))
    stage.start()
    stage.join()
    assert found == [1, 4]


@pytest.mark.parametrize("count", [1, 2])
def test_a_helper_s_error_reaches_who_asks_for_the_result(count: int) -> None:
    def fail() -> None:
        raise ValueError("zero")

    with Helpers(count) as helpers, pytest.raises(ValueError, match="zero"):
        helpers.begin(fail)()
    gc.collect()


def test_what_nobody_asks_helpers_for_any_more_is_not_begun() -> None:
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.2)

    with Helpers(2) as helpers:
        for number in range(9):
            helpers.begin(partial(work, number))
    assert len(begun) <= 2
