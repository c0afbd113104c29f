"""Signals that ask to stop: one line and their exit code, wherever they come."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vdeblur.cli import main as cli
from vdeblur.cli.stopping import Stopped, Stops, stop_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
ROOT = Path(__file__).parents[2]


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        for _ in range(1000):
            pass


def imported_by_c(*numbers: int) -> None:
    """An extension whose initialization fails by the signal, and tells of something else."""
    try:
        send(*numbers)
    except BaseException as error:
        raise ImportError("initialization failed") from error


def printed_by_a_callback(*numbers: int) -> None:
    """A callback of Cython, which prints what it drops (PyErr_PrintEx) and goes on."""
    try:
        send(*numbers)
    except BaseException as error:
        sys.last_type, sys.last_value = type(error), error
        sys.excepthook(type(error), error, error.__traceback__)
    time.sleep(5)
    raise AssertionError("the signal was lost")


def without_a_cause(*numbers: int) -> None:
    failed = False
    try:
        send(*numbers)
    except BaseException:
        failed = True
    if failed:
        raise SystemError("error return without exception set")


def recursive(*numbers: int) -> None:
    try:
        send(*numbers)
    finally:
        raise RecursionError("maximum recursion depth exceeded")


def passed_over(*numbers: int) -> None:
    """An optional package: where it cannot be imported, something else is used."""
    with contextlib.suppress(ImportError):
        imported_by_c(*numbers)
    time.sleep(5)
    raise AssertionError("the signal was lost")


def in_a_destructor(*numbers: int) -> None:
    class Closed:
        def __del__(self) -> None:
            send(*numbers)

    closed = Closed()
    del closed
    time.sleep(5)
    raise AssertionError("the signal was lost")


def twice(*numbers: int) -> None:
    try:
        send(*numbers)
    finally:
        send(*numbers)  # while what is unfinished is removed
        removed.append(True)


removed: list[bool] = []


@pytest.mark.parametrize(
    "come",
    [
        send,
        imported_by_c,
        printed_by_a_callback,
        without_a_cause,
        recursive,
        passed_over,
        in_a_destructor,
        twice,
    ],
)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_is_not_lost(
    come: Callable[..., None],
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        monkeypatch.setattr("vdeblur.cli.video._run", lambda args: come(number))
        removed.clear()
        assert cli.main(["video", "a.mp4"]) == code
        assert removed == [True] * (come is twice)
        assert capfd.readouterr().err == "vdeblur: stopped; nothing unfinished was left behind\n"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_ends_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [tmp_path / f"{n}.mp4" for n in range(3)]
    for name in names:
        name.write_bytes(b"x")
    begun: list[object] = []

    def job(source: str, *_: object) -> None:
        begun.append(source)
        imported_by_c(signal.SIGTERM)

    monkeypatch.setattr("vdeblur.cli.video._one_video", job)
    assert cli.main(["video", *map(str, names), "--model", "identity"]) == 143
    assert begun == [str(names[0])]
    assert capfd.readouterr().err == "vdeblur: stopped; nothing unfinished was left behind\n"


def test_the_first_of_two_signals_counts() -> None:
    with Stops(keep=False) as stops:
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGTERM, signal.SIGHUP)
        assert stops.number == signal.SIGTERM
        assert stop_of(stopped.value) is stopped.value
        assert stop_of(ValueError()) is None
        stops.ended(143)


@pytest.mark.parametrize("closed", ["2>&-", "2>&1 | true", ">&-", "<&-"])
def test_streams_that_are_closed(closed: str, tmp_path: Path) -> None:
    shell = f"set -o pipefail; exec {sys.executable} -m vdeblur video nope.mp4 {closed}"
    if "|" in closed:
        shell = shell.replace("exec ", "")
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    said = "" if "2>" in closed else "vdeblur: nope.mp4 does not exist: check the path\n"
    assert done.stderr == said
