"""Optical flow of the frames of synthetic films, in this process or in processes beside it.

Pictures are reduced and matched as those of a video are, by `vdeblur.motion.flow`. Pairs that a GPU
makes keep several cores busy with this: a pair of 304² takes 9 ms of one. A ninth of that holds
Python's lock, so that threads would block each other, and the training; so it is done in processes,
to which small pictures and small fields travel. Knows pictures and flow only.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.motion.flow import match_pictures
from vdeblur.motion.movement import each_interval


class Matched(NamedTuple):
    """The flow from N frames to their neighbors before and after, on the CPU.

    Args:
        ways: (2, N, 2, *grid): displacement of each place in the neighbors, in pixels; 0 where
            nothing matches.
        found: (2, N) bool: where something matches.
        motion: (N, 4, *grid): chord and bend from frame to frame.
    """

    ways: Tensor
    found: Tensor
    motion: Tensor


#: Frames, those before and those after, uint8 (3, N, H, W) on any device; by how much each is made
#: smaller to be matched; and the (height, width) of fields.
Matching = Callable[[Tensor, list[int], tuple[int, int]], Matched]

_Three = list[NDArray[np.uint8]]  # a reduced frame, the one before and the one after
_Fields = tuple[NDArray[np.float32], list[bool]]
_AT_ONCE = 4  # frames handed to a process: few enough that all end at about the same time
_MOST = 60  # processes, as many as Windows can wait for


def matched(
    frames: Tensor,
    reductions: list[int],
    grid: tuple[int, int],
    *,
    each: Callable[[Callable[[_Three], _Fields], Iterable[_Three]], Iterable[_Fields]] = map,
) -> Matched:
    """Match frames, see `Matching`; `each` maps a function over them."""
    luma = frames.cpu().numpy()
    count, height, width = luma.shape[1:]
    whole, found = torch.zeros(count, 8, *grid), torch.zeros(count, 2, dtype=torch.bool)
    sizes = [(max(1, round(width / ratio)), max(1, round(height / ratio))) for ratio in reductions]
    # A generator, so that the first are matched while others are reduced.
    small = (
        [_reduced(picture, size) for picture in luma[:, number]]
        for number, size in enumerate(sizes)
    )
    for number, (fields, sides) in enumerate(each(_fields, small)):
        found[number] = torch.tensor(sides)
        if any(sides):
            scale = [width / sizes[number][0], height / sizes[number][1]]
            whole[number] = _on_grid(fields, scale, grid)
    ways = torch.stack([whole[:, :2], whole[:, 2:4]])
    return Matched(ways, found.T.contiguous(), whole[:, 4:].contiguous())


def _reduced(luma: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) luma at the `size` (width, height) of matching."""
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)


def _fields(three: _Three) -> _Fields:
    """(8, h, w) in reduced pixels: the flow to the frame before and to the one after, 0 where there
    is none, then chord and bend from frame to frame; and which of the two were found.
    """
    here, *around = three
    pairs = [match_pictures(here, there) for there in around]
    back, ahead = (None if pair is None else pair[0] for pair in pairs)
    sides = [back is not None, ahead is not None]
    if not any(sides):
        return np.zeros((8, 1, 1), np.float32), sides
    motion = each_interval(ahead, back)
    nothing = np.zeros_like(motion[:2])
    ways = [nothing if flow is None else flow.field for flow in (back, ahead)]
    return np.concatenate([*ways, motion]), sides


def _on_grid(field: NDArray[np.float32], scale: list[float], grid: tuple[int, int]) -> Tensor:
    """Vectors (C, h, w), x and y alternating, in reduced pixels → (C, *grid) in pixels."""
    vectors = F.interpolate(
        torch.from_numpy(field)[None], size=grid, mode="bilinear", align_corners=False
    )[0]
    return vectors * vectors.new_tensor(scale * (len(vectors) // 2))[:, None, None]


@contextlib.contextmanager
def in_processes(count: int) -> Iterator[Matching]:
    """Yield a `Matching` that uses up to `count` processes; with 0, this thread.

    The processes start when they are first needed, and end with the context. Results do not depend
    on their number.
    """
    if not count:
        yield matched
        return
    # Forked from a process without threads and GPU: a copy of this one might hang.
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    context.set_forkserver_preload([__name__])
    processes = ProcessPoolExecutor(min(count, _MOST), mp_context=context, initializer=_begin)
    try:
        yield functools.partial(matched, each=functools.partial(processes.map, chunksize=_AT_ONCE))
    finally:
        processes.shutdown(cancel_futures=True)


def _begin() -> None:
    """Leave Ctrl-C and SIGTERM to the training process, which ends its helpers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the parent: one that is killed cannot end its helpers, which would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
