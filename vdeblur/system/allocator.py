"""Tune glibc's allocator for large, short-lived tensors."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import lru_cache


@lru_cache
def keep_pages() -> None:
    """Make glibc keep freed memory, for the whole process; on other systems this does nothing.

    Otherwise a network's tensors fault every page in again: half of the time of a frame's color
    conversion on a CPU. See mallopt(3); 32 MB is the highest M_MMAP_THRESHOLD that glibc takes.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD
