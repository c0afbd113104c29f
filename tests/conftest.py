"""What every test gets: few threads, and none left over."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from vdeblur.system import masking

# Two threads on a machine that is busy wait for each other: twenty times slower at these sizes.
torch.set_num_threads(1)
# Converting networks takes seconds a network; tests/inference/test_runtimes.py asks for it.
os.environ["VDEBLUR_BACKEND"] = "torch"
# "auto" would be bf16 on CPUs that have it.
os.environ["VDEBLUR_PRECISION"] = "fp32"


@pytest.fixture(scope="session", autouse=True)
def _folders_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a user has tuned, converted or kept is no part of a test."""
    for name in ("VDEBLUR_CACHE", "VDEBLUR_DATA"):
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))


@pytest.fixture(autouse=True)
def _no_address_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are masked more strictly once a process has opened an address."""
    monkeypatch.setattr(masking, "_in_use", {})


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    give_up = time.monotonic() + 2
    left = set(threading.enumerate()) - before
    while left and time.monotonic() < give_up:
        time.sleep(0.02)
        left = {thread for thread in left if thread.is_alive()}
    # tqdm keeps one thread for all of its bars.
    assert not {thread for thread in left if type(thread).__name__ != "TMonitor"}
