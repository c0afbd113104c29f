"""Figures of memory, as the system states them."""

import sys
from pathlib import Path

import psutil
import pytest

from vdeblur.system import memory


def test_free_memory_is_what_the_system_states() -> None:
    free = memory.available_bytes()
    assert free is not None
    assert 1 << 20 < free < psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_free_memory_on_linux_is_that_of_meminfo() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    stated = next(int(s.split()[1]) for s in lines if s.startswith("MemAvailable")) * 1024
    assert memory.available_bytes() == pytest.approx(stated, rel=0.2)


def test_a_system_that_does_not_say_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> None:
        raise RuntimeError("host_statistics64() failed")

    monkeypatch.setattr(psutil, "virtual_memory", unknown)
    assert memory.available_bytes() is None


def test_the_peak_holds_what_was_given_back() -> None:
    memory.reset_peak()
    taken = bytearray(64 << 20)
    size = len(taken)
    del taken
    peak = memory.peak_bytes()
    assert peak is not None
    assert peak > size
