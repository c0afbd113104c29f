"""Commands in processes of their own, which may be killed, starved and judged.

A server that has imported the program forks a process for each command: a trial takes a fraction
of a second, and whatever happens in it stays in it. `fresh` starts Python anew instead, where the
imports are what is tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PRELOADED = [
    "tests.torture.processes",
    "vdeblur.cli.main",
    "vdeblur.deblur",
    "vdeblur.gopro",
    "vdeblur.evaluation",
    "vdeblur.weights",
    "av",
    "torch",
    "tqdm",
]
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_UNKNOWN = 255  # what multiprocessing says of a process whose end it did not see
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code; minus the signal that ended it; None if it had to be stopped.
        text: Standard output and standard error.
        seconds: Its time.
        peak_mib: The most memory that it had, in MiB; 0 where it could not say so.
    """

    code: int | None
    text: str
    seconds: float
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Stop:
    """Signals to send to a command.

    Attributes:
        signals: Numbers of the signals, in order.
        after: Seconds from the start to each signal.
    """

    signals: tuple[int, ...]
    after: tuple[float, ...]


def context() -> Any:
    """Return the multiprocessing context whose server has imported the program."""
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(_PRELOADED)
    return forking


def run(
    words: Sequence[str],
    folder: Path,
    *,
    seconds: float = 60.0,
    stop: Stop | None = None,
    prepare: Callable[[], None] | None = None,
) -> Outcome:
    """Run `vdeblur WORDS` in `folder`, forked from the server.

    Args:
        words: Arguments of the command.
        folder: Its working directory. Its output is kept beside that, in `FOLDER.txt`.
        seconds: It is stopped after this time.
        stop: Signals on the way.
        prepare: Called in the process before the command; it can be pickled.
    """
    said = folder.with_suffix(".txt")
    said.unlink(missing_ok=True)
    process = context().Process(target=_command, args=(list(words), folder, said, prepare))
    process.start()
    began = time.monotonic()
    if stop is not None:
        _wait_until(said.exists, 20.0)
        began = time.monotonic()
        for number, after in zip(stop.signals, stop.after, strict=True):
            process.join(max(0.0, began + after - time.monotonic()))
            if process.exitcode is None:
                os.kill(process.pid, number)
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    took = time.monotonic() - began
    process.close()
    text = said.read_bytes().decode(errors="replace") if said.exists() else ""
    text, _, end = text.partition("\n\0end ")
    own, _, peak = end.partition(" ")
    if code == _UNKNOWN:  # the server missed its end: it says so itself, or was killed
        code = int(own) if own else -signal.SIGKILL
    return Outcome(code, text, took, float(peak or 0))


def fresh(
    words: Sequence[str], folder: Path, *, seconds: float = 120.0, stop: Stop | None = None
) -> Outcome:
    """Run `python -m vdeblur WORDS`, imports and all; the arguments are those of `run`."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "vdeblur", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            for number, after in zip(stop.signals, stop.after, strict=True) if stop else ():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, began + after - time.monotonic()))
                process.send_signal(number)
            text, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return Outcome(None, text.decode(errors="replace"), time.monotonic() - began)
    took = time.monotonic() - began
    return Outcome(process.returncode, text.decode(errors="replace"), took)


@dataclass(frozen=True)
class SmallDisk:
    """Mount an empty file system over a folder, for this process alone.

    Attributes:
        folder: The folder.
        kib: Size of the file system.
        listing: File for the names of what is left in it when the process ends.
    """

    folder: Path
    kib: int
    listing: Path

    def __call__(self) -> None:
        """Mount it."""
        mount_private()
        mount(b"tmpfs", self.folder, b"tmpfs", 0, f"size={self.kib}k".encode())
        _at_end.append(self._list)

    def _list(self) -> None:
        left = [p for p in self.folder.rglob("*") if p.is_file()]
        self.listing.write_text("\n".join(str(p.relative_to(self.folder)) for p in left))


def mount_private() -> None:
    """Take a mount namespace of our own, as root of a user namespace where we are not root.

    Raises:
        OSError: It is not permitted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    flags, user, group = _CLONE_NEWNS, os.getuid(), os.getgid()
    if user != 0:
        flags |= _CLONE_NEWUSER
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount(b"none", Path("/"), None, _MS_REC | _MS_PRIVATE, None)


def mount(what: bytes, where: Path, kind: bytes | None, flags: int, options: bytes | None) -> None:
    """Mount a file system; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(what, os.fsencode(where), kind, ctypes.c_ulong(flags), options):
        raise OSError(ctypes.get_errno(), f"mount {where}")


_at_end: list[Callable[[], None]] = []


def _command(
    words: list[str], folder: Path, said: Path, prepare: Callable[[], None] | None
) -> None:
    """Be the command: never returns to multiprocessing, whose own end is none of the program's."""
    os.chdir(folder)
    code = 70
    try:
        if prepare is not None:
            prepare()
        number = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(number, 1)
        os.dup2(number, 2)
        code = _main(words)
        for task in _at_end:
            task()
    except BaseException:
        traceback.print_exc()
    finally:
        # The program has ended, and answers signals no longer; neither do we.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        sys.stdout.flush()
        sys.stderr.flush()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        os.write(2, f"\n\0end {code} {peak:.0f}".encode())
        os._exit(code)


def _main(words: list[str]) -> int:
    from vdeblur.cli.main import main

    try:
        return main(words)
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 1


def call(function: Callable[..., Any], *args: object, seconds: float = 30.0) -> Any:
    """Return what a function returns in a process of its own; None if that crashes or hangs."""
    receiver, sender = context().Pipe(duplex=False)
    process = context().Process(target=_send, args=(sender, function, args))
    process.start()
    sender.close()
    result = None
    with contextlib.suppress(EOFError):
        if receiver.poll(seconds):
            result = receiver.recv()
    process.kill()
    process.join()
    receiver.close()
    return result


def _send(sender: Any, function: Callable[..., Any], args: tuple[object, ...]) -> None:
    sender.send(function(*args))


def _wait_until(holds: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not holds() and time.monotonic() < give_up:
        time.sleep(0.002)


def stop_signals() -> list[int]:
    """Return the signals that end the program in order."""
    return [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
