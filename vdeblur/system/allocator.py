"""What the process's memory allocator is told. Knows nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from functools import lru_cache


@lru_cache
def keep_pages() -> None:
    """Have glibc keep freed memory: a network's tensors would fault every page in again.

    Half of the time of a frame's colour conversion on a CPU is page faults without this; see
    mallopt(3). 32 MB is the highest M_MMAP_THRESHOLD that glibc takes. For the whole process.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD
