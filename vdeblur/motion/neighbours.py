"""Which frames of a film are neighbours, and copies of them for whoever restores those beside.

Frames are restored in place, and a neighbour is wanted as it was decoded: a `View` is a copy of one
picture, with its motion. A frame's `Around` names its own view and those of its neighbours, but no
view names another, so that a film's views go as its frames do. Knows no files, no threads and no
networks.
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

#: Items, and frames among them, that may wait for a neighbour. Then it is given up.
_MOST_ITEMS, _MOST_FRAMES = 256, 16


Put = Callable[[Tensor], Tensor]


class View:
    """One picture of a film as it was decoded, and how it moves.

    planes: (rows, columns) each, own copies, or the tensors that a GPU decoded. motion: (4, h, w)
    as `Frame.motion` has it. What is made of them is kept for who comes next by whoever makes it
    (`vdeblur.inference.guidance`): made_for says for what, given is a network's input (1, C, H, W),
    which goes once the frame itself was restored; luma (1, 1, H, W) and added (1, K, H, W) are for
    its neighbours. making is held meanwhile, for frames are restored side by side. restored: the
    planes that the picture was given out with, for the frame after it
    (`vdeblur.inference.steadying`).
    """

    def __init__(self, frame: Frame) -> None:
        assert frame.motion is not None
        there = frame.on_device if isinstance(frame.on_device, tuple) else None
        self.planes: tuple[Tensor, ...] = there or tuple(
            torch.from_numpy(np.array(plane, order="C")) for plane in frame.planes
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
        """Have `put` bring it to a device, the first time; `share` is told of what is there."""
        if self._moved:
            return
        self._moved = True
        self.motion = put(self.motion)
        if self._decoded_there:
            for plane in self.planes:
                share(plane)
        else:
            self.planes = tuple(put(plane) for plane in self.planes)


#: A neighbour, and (2, h, w) float32: how far away, x and y in pixels of the luma plane, each place
#: of the frame at hand is found in it.
Link = tuple[View, Tensor]


@dataclass(frozen=True)
class Around:
    """A frame and its neighbours; None where the film has none that shows the same scene.

    at_hand: of neighbours only what was made of them for themselves is used, for there is no time.
    """

    here: View
    before: Link | None
    after: Link | None = None
    at_hand: bool = False

    @property
    def links(self) -> tuple[Link | None, Link | None]:
        """The frame before, and the one after."""
        return self.before, self.after

    def moved(self, put: Put, share: Callable[[Tensor], object] = lambda tensor: None) -> Around:
        """The same with all on a device, see `View.move`."""
        self.here.move(put, share)
        links: list[Link | None] = []
        for known in self.links:
            if known is not None:
                known[0].move(put, share)
            links.append(None if known is None else (known[0], put(known[1])))
        return replace(self, before=links[0], after=links[1])


def around_of(frames: Sequence[Frame]) -> list[Around | None] | None:
    """What is around each frame; None if nothing is around any."""
    found: list[Around | None] = [frame.around for frame in frames]
    return found if any(found) else None


def with_neighbours(items: Iterable[tuple[Any, Movement | None]]) -> Iterator[Any]:
    """The items in their order, frames with what is `around` them.

    items: each with its movement, as `vdeblur.motion.movement.follow` gives it, frames with their
    `motion`. A frame waits for the next picture of its stream, if that shows the same scene. Copies
    of one picture, which a film shows several times, have the same neighbours.
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
    """A view of a frame that has, or may be, a neighbour; of the fields of interlaced ones none."""
    if movement is None or frame.motion is None or frame.layout.interlaced:
        return None
    return View(frame)


def link(view: View | None, there: View | None, way: Floats | None) -> Link | None:
    """From one picture to another, if both are there, of one kind, and the way is known."""
    if view is None or there is None or way is None or view.layout != there.layout:
        return None
    return there, torch.from_numpy(way)


class _Waiting:
    """An item that has its place in the stream, and will have its neighbours."""

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
    """The last picture of a stream: its movement, one view of it, the one before, and its copies
    that wait.
    """

    movement: Movement | None = None
    view: View | None = None
    before: Link | None = None
    waiting: list[_Waiting] = field(default_factory=list)

    def add(self, entry: _Waiting, movement: Movement | None) -> None:
        """The next frame; settles those that wait for it."""
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
