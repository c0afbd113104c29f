"""How many pictures of a size are restored at once, and in tiles of which side.

Takes numbers: knows no tensors, no networks and no devices.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vdeblur.errors import DeviceError
from vdeblur.inference.settings import Setting, Size
from vdeblur.inference.tiling import FEATHER, MIN_TILE, tile_places

_log = logging.getLogger(__name__)

#: Bytes per pixel for color, beside the network: 24 float32 values of RGB, its padded copy, the
#: correction and chroma grids.
COLOR_BYTES = 4 * 24
#: Share of the free memory that is planned with; the rest is for convolution workspaces and other
#: programs.
_MEMORY_SHARE = 0.8
#: A batch on a CPU is no faster a pixel, and allocations past 32 MB fault their pages in each time.
CPU_BATCH_PIXELS = 1 << 20


@dataclass(frozen=True)
class Plan:
    """How pictures of one size are run: at most `batch` at once, in square tiles of `tile` pixels.

    tile None: the whole picture.
    """

    batch: int
    tile: int | None


@dataclass(frozen=True)
class NetworkCost:
    """What restoring with a network takes, in numbers.

    Attributes:
        bytes_per_pixel: Memory of a pass, color included.
        kept_bytes_per_pixel: Memory of a film's neighboring frames, once whatever the batch.
        multiple: Height and width of its input are multiples of this many pixels.
        margin: Pixels at a tile's edge that are computed and dropped.
        least_margin: What `margin` may shrink to in small tiles.
        device: The device's name, for messages.
        on_cpu: Whether it is a CPU.
        most_at_once: Pictures that a CPU restores side by side, at most.
    """

    bytes_per_pixel: int
    kept_bytes_per_pixel: int = 0
    multiple: int = 1
    margin: int = 0
    least_margin: int = 0
    device: str = "cpu"
    on_cpu: bool = True
    most_at_once: int = 1


@dataclass
class MemoryPlan:
    """The plans of one deblurrer, by picture height and width; each is decided once.

    Attributes:
        cost: What restoring takes.
        tile: Side in pixels of the tiles that were asked for; None for whole pictures, "auto" for
            whole pictures unless they would not fit.
        tuned: Measured settings.
        notes: Gets a line for each step that a user should know.
        plans: What worked last for each size.
    """

    cost: NetworkCost
    tile: int | Literal["auto"] | None = "auto"
    tuned: Mapping[Size, Setting] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plans: dict[Size, Plan] = field(default_factory=dict)

    def plan_for(self, height: int, width: int, *, free: int | None) -> Plan:
        """Return the plan for pictures of this size in pixels; the first call decides it.

        Args:
            height: Of the pictures.
            width: Of the pictures.
            free: Bytes of memory that are free; None if unknown.
        """
        pixels = height * width
        plan = Plan(batch=1 << 30, tile=None if self.tile == "auto" else self.tile)
        if plan.tile is not None:
            self._warn_of_overlap(height, width, plan.tile)
        if self.cost.on_cpu:
            together = self.side_by_side(height, width, free=free)
            plan = replace(plan, batch=max(together, CPU_BATCH_PIXELS // pixels))
        if free is not None and self.tile == "auto":
            left = free * _MEMORY_SHARE - self._kept(height, width)
            fitting = max(0, int(left / self.cost.bytes_per_pixel))
            if fitting >= pixels:
                plan = replace(plan, batch=min(plan.batch, fitting // pixels))
            elif max(height, width) > MIN_TILE:
                tile = max(MIN_TILE, math.isqrt(fitting))
                plan = Plan(batch=1, tile=tile)
                needed = pixels * self.cost.bytes_per_pixel + self._kept(height, width)
                self.notes.append(
                    f"{width}×{height} would take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB "
                    f"are free: going on with tiles of {tile}"
                )
        tuned = self.tuned.get((height, width))
        if tuned is not None and self.tile == "auto" and plan.tile is None:
            batch = tuned.batch if self.cost.on_cpu else plan.batch
            plan = Plan(max(1, min(batch, self._fitting(free, height, width))), tuned.tile)
        self.plans[height, width] = plan
        _log.info(
            "pictures of %d×%d on %s: %d at once, %s; %s free, %d bytes per pixel, %s",
            *(width, height, self.cost.device, plan.batch),
            "whole" if plan.tile is None else f"tiles of {plan.tile}",
            "unknown memory" if free is None else f"{free / 1e9:.1f} GB",
            self.cost.bytes_per_pixel,
            "planned by memory" if tuned is None else "as measured by `vdeblur bench --tune`",
        )
        return plan

    def shrink(self, batch: int, height: int, width: int) -> Plan:
        """Plan with less after running out of memory: a smaller batch, then tiles, then smaller.

        Args:
            batch: Pictures that did not fit at once.
            height: Of the pictures, in pixels.
            width: Of the pictures, in pixels.

        Raises:
            DeviceError: A tile of MIN_TILE does not fit.
        """
        plan = self.plans[height, width]
        if batch > 1:
            self.notes.append(f"out of memory at batch {batch}: going on with batch {batch // 2}")
            smaller = replace(plan, batch=batch // 2)
        else:
            largest = max(height, width)
            side = largest if plan.tile is None else min(plan.tile, largest)
            if side <= MIN_TILE:
                raise DeviceError(
                    f"{self.cost.device} has too little memory for the network even at {side} "
                    "pixels: close other programs, or use `device='cpu'` or a smaller network"
                )
            smaller = Plan(batch=1, tile=max(MIN_TILE, side // 2))
            failed = f"{width}×{height}" if plan.tile is None else f"tiles of {plan.tile}"
            self.notes.append(f"out of memory at {failed}: going on with tiles of {smaller.tile}")
        self.plans[height, width] = smaller
        _log.info("out of memory with %s at %d×%d: now %s", plan, width, height, smaller)
        return smaller

    def margin(self, tile: int) -> int:
        """Return the pixels to compute and drop at the edge of tiles of this side.

        A margin that nobody asked for must not be most of a small tile.
        """
        return min(self.cost.margin, max(self.cost.least_margin, (tile - FEATHER) // 4))

    def memory_needed(self, height: int, width: int, *, batch: int = 1) -> int:
        """Predict the bytes that restoring `batch` pictures at once takes, in tiles or whole."""
        plan = self.plans.get((height, width))
        tile = plan.tile if plan is not None else None if self.tile == "auto" else self.tile
        seen = height * width if tile is None else min(tile, height) * min(tile, width)
        # Tiles are computed one after another; color is computed on whole pictures.
        each = height * width * COLOR_BYTES + seen * (self.cost.bytes_per_pixel - COLOR_BYTES)
        return batch * each + self._kept(height, width)

    def fitting_batch(self, height: int, width: int, *, free: int | None) -> int:
        """Return the largest batch predicted to fit `free` bytes; at least 1."""
        return max(1, self._fitting(free, height, width))

    def side_by_side(self, height: int, width: int, *, free: int | None) -> int:
        """Return how many pictures a CPU restores side by side in `free` bytes.

        1 where one after another is no slower.
        """
        return max(1, min(self.cost.most_at_once, self.fitting_batch(height, width, free=free)))

    def _fitting(self, free: int | None, height: int, width: int) -> int:
        if free is None:
            return 1
        kept = self._kept(height, width)
        each = self.memory_needed(height, width) - kept
        return int((free * _MEMORY_SHARE - kept) / each)

    def _kept(self, height: int, width: int) -> int:
        return self.cost.kept_bytes_per_pixel * height * width

    def _warn_of_overlap(self, height: int, width: int, tile: int) -> None:
        """Warn when the requested tiles are mostly overlap."""
        overlap = 2 * self.margin(tile) + FEATHER
        multiple = self.cost.multiple
        sides, work = [], 1.0
        for length in (height, width):
            size = length + -length % multiple
            places = tile_places(size, tile, overlap, multiple)
            sides.append(places[0][1])
            work *= len(places) * sides[-1] / size
        if work >= 2:
            self.notes.append(
                f"tiles of {sides[1]}x{sides[0]} compute {work:.1f} times the picture, for they "
                f"overlap by {overlap} pixels or more: larger ones or `tile=None` are faster"
            )
