"""How much memory is free, and how much this process took at most."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil


def available_bytes() -> int | None:
    """Return the main memory that a new computation can have without swapping.

    None where the system does not say. A container's own limit counts only where its
    /proc/meminfo shows it (LXC's does, Docker's does not).
    """
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, RuntimeError, psutil.Error):
        return None


def reset_peak() -> None:
    """Count `peak_bytes` anew from here, where the system can: Linux, see proc(5)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int | None:
    """Return the most resident memory that this process had; None where the system does not say."""
    # psutil has the peak on Windows only, and getrusage(2) cannot be reset.
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(s for s in lines if s.startswith("VmHWM")).split()[1])
    with suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    peak_on_windows = getattr(psutil.Process().memory_info(), "peak_wset", None)
    return None if peak_on_windows is None else int(peak_on_windows)
