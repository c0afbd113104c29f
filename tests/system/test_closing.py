"""What one thread uses is not closed by another."""

from __future__ import annotations

import threading

import pytest

from vdeblur.errors import Cancelled
from vdeblur.system.closing import ClosingGuard


def test_closing_waits_for_the_thread_inside() -> None:
    guard, order = ClosingGuard(), list[str]()
    inside, leave = threading.Event(), threading.Event()

    def use() -> None:
        with guard.in_use():
            inside.set()
            leave.wait(10)
            order.append("left")

    user = threading.Thread(target=use)
    user.start()
    inside.wait(10)
    threading.Timer(0.1, leave.set).start()
    guard.close(lambda: order.append("closed"), 10.0)
    user.join()
    assert order == ["left", "closed"]
    with pytest.raises(Cancelled), guard.in_use():
        order.append("used after closing")


def test_what_a_stuck_thread_uses_stays_open() -> None:
    guard, closed = ClosingGuard(), list[str]()
    with guard.in_use():
        guard.close(lambda: closed.append("closed"), 0.05)
    assert closed == []
