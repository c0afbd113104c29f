"""Find the frames before and after each frame of a film, and keep copies of them.

Frames are restored in place, but their neighbors need them as they were decoded: a `View` is a copy
of one picture, with its motion. The `Around` of a frame refers to its own view and those of its
neighbors; views do not refer to each other, so that they are freed with their frames. Knows no
files, no threads and no networks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdeblur.frames import Frame, PlaneLayout
from vdeblur.motion.flow import Floats
from vdeblur.motion.movement import Movement

#: Items, and frames among them, that may wait for a neighbor, which is then given up.
_MOST_ITEMS, _MOST_FRAMES = 256, 16


Put = Callable[[Tensor], Tensor]


class View:
    """One picture of a film as it was decoded, and its motion.

    `vdeblur.inference.guidance` keeps here what it derives from the picture, for the next user.

    Attributes:
        planes: (rows, columns) each, copies, or the tensors that a GPU decoded.
        motion: (4, h, w) as in `Frame.motion`.
        made_for: what the derived tensors are for.
        given: input of a network, (1, C, H, W), freed once the frame itself is restored.
        luma: (1, 1, H, W), for neighbors.
        added: (1, K, H, W), for neighbors.
        making: lock for the derived tensors, since frames are restored side by side.
        restored: planes of the restored picture, for the frame after it
            (`vdeblur.inference.steadying`).
    """

    def __init__(self, frame: Frame) -> None:
        assert frame.motion is not None
        there = frame.on_device if isinstance(frame.on_device, tuple) else None
        self.planes: tuple[Tensor, ...] = (
            there
            or frame.staged
            or tuple(torch.from_numpy(np.array(plane, order="C")) for plane in frame.planes)
        )
        self.layout: PlaneLayout = frame.layout
        self.motion = torch.from_numpy(np.array(frame.motion, np.float32))
        self.made_for: object = None
        self.given: Tensor | None = None
        self.luma: Tensor | None = None
        self.added: Tensor | None = None
        self.restored: tuple[Tensor, ...] | None = None
        self.making = threading.RLock()
        self._decoded_there = there is not None
        self._moved = False

    def move(self, put: Put, share: Callable[[Tensor], object] = lambda tensor: None) -> None:
        """Move the tensors to a device by `put`, once; call `share` for those that are there."""
        if self._moved:
            return
        self._moved = True
        self.motion = put(self.motion)
        if self._decoded_there:
            for plane in self.planes:
                share(plane)
        else:
            self.planes = tuple(put(plane) for plane in self.planes)


#: A neighbor, and the displacement of each place to it, (2, h, w) float32, x and y in pixels of the
#: luma plane.
Link = tuple[View, Tensor]


@dataclass(frozen=True)
class Around:
    """A frame and its neighbors.

    Attributes:
        here: the frame itself.
        before: the frame before, or None if that does not show the same scene.
        after: the same of the frame after.
        at_hand: use only what was derived from neighbors when they were restored themselves, as
            there is no time for more.
    """

    here: View
    before: Link | None
    after: Link | None = None
    at_hand: bool = False

    @property
    def links(self) -> tuple[Link | None, Link | None]:
        """The frame before and the frame after."""
        return self.before, self.after

    def moved(self, put: Put, share: Callable[[Tensor], object] = lambda tensor: None) -> Around:
        """Return the same with all tensors on a device, see `View.move`."""
        self.here.move(put, share)
        links: list[Link | None] = []
        for known in self.links:
            if known is not None:
                known[0].move(put, share)
            links.append(None if known is None else (known[0], put(known[1])))
        return replace(self, before=links[0], after=links[1])


def around_of(frames: Sequence[Frame]) -> list[Around | None] | None:
    """Return what is around each frame; None if no frame has a neighbor."""
    found: list[Around | None] = [frame.around for frame in frames]
    return found if any(found) else None


def with_neighbours(items: Iterable[tuple[Any, Movement | None]]) -> Iterator[Any]:
    """Yield items in their order, frames with what is `around` them.

    A frame waits for the next picture of its stream, if that shows the same scene. Frames that
    repeat one picture have the same neighbors.

    Args:
        items: items with their movement, as of `vdeblur.motion.movement.follow`, and frames with
            their `motion`.
    """
    waiting: deque[_Waiting] = deque()
    streams: dict[int, _Shown] = {}
    frames = 0
    for item, movement in items:
        entry = _Waiting(item)
        waiting.append(entry)
        if isinstance(item, Frame):
            frames += 1
            streams.setdefault(item.stream, _Shown()).add(entry, movement)
        while waiting and (
            waiting[0].settled or len(waiting) > _MOST_ITEMS or frames > _MOST_FRAMES
        ):
            first = waiting.popleft()
            frames -= isinstance(first.item, Frame)
            yield first.give()
            del first
        del item, entry  # not to be kept alive while waiting for the next
    while waiting:
        yield waiting.popleft().give()


def view_of(frame: Frame, movement: Movement | None) -> View | None:
    """Return a view of a frame that has or may be a neighbor; None for an interlaced one."""
    if movement is None or frame.motion is None or frame.layout.interlaced:
        return None
    return View(frame)


def link(view: View | None, there: View | None, way: Floats | None) -> Link | None:
    """Link two pictures, if both exist, have one layout, and the displacement is known."""
    if view is None or there is None or way is None or view.layout != there.layout:
        return None
    return there, torch.from_numpy(way)


class _Waiting:
    """An item that waits in its place for its neighbors."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.here: View | None = None
        self.before: Link | None = None
        self.after: Link | None = None
        self.settled = True

    def give(self) -> Any:
        item, self.item = self.item, None
        if isinstance(item, Frame):
            item.around = None
            if self.here is not None and (self.before or self.after):
                item.around = Around(self.here, self.before, self.after)
        return item


@dataclass
class _Shown:
    """The last picture of a stream, and the frames that wait with it for the next one."""

    movement: Movement | None = None
    view: View | None = None
    before: Link | None = None
    waiting: list[_Waiting] = field(default_factory=list)

    def add(self, entry: _Waiting, movement: Movement | None) -> None:
        """Add the next frame, and settle those that wait for it."""
        view = entry.here = view_of(entry.item, movement)
        if movement is None or movement is not self.movement:
            self.before = link(view, self.view, movement.back if movement is not None else None)
            for copy in self.waiting:
                copy.after = link(copy.here, view, self.movement.ahead if self.movement else None)
                copy.settled = True
            self.waiting.clear()
        self.movement, self.view = movement, view
        entry.before = self.before
        if view is not None and movement is not None and movement.ahead is not None:
            entry.settled = False
            self.waiting.append(entry)
