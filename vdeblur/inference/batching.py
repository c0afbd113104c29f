"""Frames into batches and back, and how large a batch is.

Knows frames, packets as they pass through, and what a `Deblurrer` measures of itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from vdeblur.errors import UsageError
from vdeblur.frames import Frame, FrameBatch
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.graphs import MOST_PIXELS
from vdeblur.inference.transfers import Overlap

#: A group is closed after this many items even if its batch is not full: packets may not pile up.
_GROUP_ITEMS = 256
#: Most frames of a batch on a GPU. More than a CUDA graph's pixels kept an H100 hardly busier than
#: the graph (docs/performance.md).
_GPU_FRAMES = 8


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

    "auto" is what `vdeblur bench --tune` found for pictures of `size`; else, on a GPU, as many as
    keep it busy and fit its memory; on a CPU, as many as the runtime computes side by side
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
            return _GPU_FRAMES
        most = min(_GPU_FRAMES, MOST_PIXELS // (size[0] * size[1]))
        return max(1, min(most, deblurrer.fitting_batch(*size)))
    if batch < 1:
        raise UsageError(f"batch is {batch}: choose 1 or more")
    return batch
