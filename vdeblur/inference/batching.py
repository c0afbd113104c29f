"""Frames into batches and back, and how large a batch is.

Knows frames, packets as they pass through, and what a `Deblurrer` measures of itself.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vdeblur.errors import UsageError
from vdeblur.frames import Frame, FrameBatch
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import synchronize
from vdeblur.inference.settings import KeyParts
from vdeblur.inference.transfers import Overlap
from vdeblur.system import cache

#: A larger batch has to be this much faster a frame to be worth its memory and its delay.
GAIN = 1.03
#: A group is closed after this many items even if its batch is not full: packets may not pile up.
_GROUP_ITEMS = 256
_KIND = "batch"
_PROBE_SECONDS = 15.0  # spent once, since the result is kept
_LARGEST_BATCH = 32
#: In the first call of a shape algorithms are picked, in the second a graph is recorded.
_WARM_UP = 2
_TIMED = 3  # the median counts


def restore(
    items: Iterable[Any],
    overlap: Overlap,
    batch: int,
    *,
    choose: Callable[[Frame], bool] | None = None,
) -> Iterator[tuple[Any, bool]]:
    """Restore the frames among items in place; yield the items in the same order.

    Frames are gathered into batches of one layout; other items (packets), and frames for which
    `choose` is False, keep their place among them.

    Args:
        items: Frames and other objects.
        overlap: Restores batches.
        batch: Frames at once.
        choose: Whether a frame is restored; None restores all.

    Yields:
        (item, whether the frame's restoration was rejected).
    """
    groups: deque[tuple[list[Any], set[int]]] = deque()

    def batches() -> Iterator[FrameBatch]:
        group: list[Any] = []
        frames: list[Frame] = []
        held = 0  # frames in the group, sent or not: a group may not hold more than a batch of them

        def close() -> FrameBatch:
            nonlocal group, frames, held
            groups.append((group, {id(frame) for frame in frames}))
            closed = FrameBatch(frames)
            group, frames, held = [], [], 0
            return closed

        for item in items:
            is_frame = isinstance(item, Frame)
            wanted = is_frame and (choose is None or choose(item))
            if frames and wanted and item.layout != frames[0].layout:
                yield close()
            group.append(item)
            held += is_frame
            if wanted:
                frames.append(item)
            if held >= batch or len(group) >= _GROUP_ITEMS:
                yield close()
        if group:
            yield close()

    for _, replaced in overlap.run(batches()):
        flags = iter(replaced)
        group, sent = groups.popleft()
        for item in group:
            if isinstance(item, Frame):
                item.around = None  # also of a frame that did not go through the network
            yield item, id(item) in sent and next(flags)


def batch_size(
    batch: int | Literal["auto"], deblurrer: Deblurrer, *, size: tuple[int, int] | None = None
) -> int:
    """Return how many frames to restore at once.

    "auto" is what `vdeblur bench --tune` found for pictures of `size`; else, on a GPU, the fastest
    that fits its memory, measured on it; on a CPU, as many as the runtime computes side by side
    (OpenVINO: one a thread), or 1.

    Args:
        batch: What is asked for.
        deblurrer: What restores.
        size: Height and width of the frames, in pixels; if None, "auto" is 8 on a GPU, else 1.

    Raises:
        UsageError: batch is less than 1.
    """
    if batch == "auto":
        if size is not None and (tuned := deblurrer.tuned.get(size)) is not None:
            return tuned.batch
        if deblurrer.device.type == "cpu":
            return 1 if size is None else deblurrer.side_by_side(*size)
        if size is None:
            return 8
        return kept_fastest_batch(
            deblurrer,
            deblurrer.cache_key_parts,
            *size,
            backend=deblurrer.backend,
            precision=deblurrer.precision,
        )
    if batch < 1:
        raise UsageError(f"batch is {batch}: choose 1 or more")
    return batch


class _Restores(Protocol):
    device: torch.device

    def __call__(self, images: Tensor) -> Tensor: ...

    def fitting_batch(self, height: int, width: int) -> int: ...


def fastest_batch(
    deblurrer: _Restores,
    height: int,
    width: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measure which batch, of those predicted to fit the memory, has the most frames per second.

    Batches are doubled from 1 as long as that gains, and for some seconds at most: each is a new
    shape, for which libraries search for algorithms.

    Args:
        deblurrer: What restores.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        clock: Returns seconds.
    """
    largest = min(_LARGEST_BATCH, deblurrer.fitting_batch(height, width))
    best, best_rate = 1, 0.0
    began = clock()
    size = 1
    while size <= largest:
        images = torch.rand(size, 3, height, width, device=deblurrer.device)
        times = []
        for _ in range(_WARM_UP + _TIMED):
            synchronize(deblurrer.device)
            start = clock()
            deblurrer(images)
            synchronize(deblurrer.device)
            times.append(clock() - start)
        rate = size / max(median(times[_WARM_UP:]), 1e-9)
        if rate < best_rate * GAIN:
            break
        best, best_rate = size, rate
        if clock() - began > _PROBE_SECONDS:
            break
        size *= 2
    return best


def kept_fastest_batch(
    deblurrer: _Restores,
    key_parts: KeyParts | None,
    height: int,
    width: int,
    *,
    backend: str,
    precision: str,
) -> int:
    """Return `fastest_batch`, kept in the user's cache for these key parts and settings.

    Args:
        deblurrer: What restores.
        key_parts: What measurements of its network on its device depend on; None keeps nothing.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        backend: The runtime.
        precision: The precision.
    """
    if key_parts is not None:
        key_parts = key_parts | {
            "backend": backend,
            "precision": precision,
            "size": f"{width}x{height}",
        }
        if (folder := cache.find_entry(_KIND, key_parts)) is not None:
            with suppress(OSError, ValueError):
                kept = int((folder / "batch").read_text(encoding="ascii"))
                return max(1, min(kept, deblurrer.fitting_batch(height, width)))
    best = fastest_batch(deblurrer, height, width)
    if key_parts is not None:

        def make(folder: Path) -> None:
            (folder / "batch").write_text(str(best), encoding="ascii")

        cache.store_entry(_KIND, key_parts, make)
    return best
