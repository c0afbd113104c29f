"""What no trial may show: the faults of an outcome, and of the files that it left."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import av
import av.error

from tests.torture.processes import Outcome
from vdeblur.gopro.journal import JOURNAL

#: Done; an error; bad usage; done, with damage or differences.
ENDS = (0, 1, 2, 3)
_MOST_MIB = 2500.0


def faults_of(outcome: Outcome, *, ends: tuple[int, ...] = ENDS) -> list[str]:
    """Return the faults that an outcome shows by itself, each as `kind: detail`."""
    found = []
    if outcome.code is None:
        found.append(f"hang: stopped after {outcome.seconds:.0f} s")
    elif outcome.code < 0 and outcome.code not in ends:
        found.append(f"crash: signal {-outcome.code}")
    elif outcome.code not in ends:
        found.append(f"exit: {outcome.code}")
    if "Traceback (most recent call last)" in outcome.text or "Exception in thread" in outcome.text:
        found.append(f"traceback: {outcome.text.strip().splitlines()[-1][:160]}")
    if outcome.code in (1, 2) and not outcome.text.strip():
        found.append("exit: an error without a word")
    if outcome.peak_mib > _MOST_MIB:
        found.append(f"memory: {outcome.peak_mib:.0f} MiB")
    return found


def leftovers(folder: Path) -> list[str]:
    """Return a fault for each hidden or temporary file in a folder."""
    return _leaked(str(path.relative_to(folder)) for path in folder.rglob("*"))


def leftovers_named(listing: Path) -> list[str]:
    """Return the same for a listing of names, such as that of a `SmallDisk`."""
    return _leaked(listing.read_text().splitlines()) if listing.exists() else []


def _leaked(names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        last = name.rpartition("/")[2]
        if last != JOURNAL and (last.startswith(".") or last.endswith(".part")):
            found.append(f"leaked: {name}")
    return found


def digest_of(folder: Path) -> dict[str, str]:
    """Return the checksum of every file in a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(files)
    }


def frames_in(path: Path) -> int:
    """Count the pictures that a plain reading of a file's first video stream decodes."""
    count = 0
    try:
        with av.open(str(path.absolute())) as container:
            if not container.streams.video:
                return 0
            packets = container.demux(container.streams.video[0])
            while True:
                try:
                    packet = next(packets)
                    frames = packet.decode()
                except StopIteration:
                    return count
                except (av.error.FFmpegError, OSError):
                    if not count:
                        return 0
                    continue
                count += len(frames)
    except (av.error.FFmpegError, OSError, ValueError):
        return count


def film(path: Path, frames: int) -> list[str]:
    """Return a fault unless a file is absent, or a complete film of so many frames."""
    if not path.exists():
        return []
    seen = frames_in(path)
    return [] if seen == frames else [f"lost: {path.name} has {seen} of {frames} frames"]
