"""Plans from numbers alone: what fits, what was measured, and less when memory runs out."""

from __future__ import annotations

import pytest

from vdeblur.errors import DeviceError
from vdeblur.inference.memory_plan import (
    COLOR_BYTES,
    CPU_BATCH_PIXELS,
    MemoryPlan,
    NetworkCost,
    Plan,
)
from vdeblur.inference.settings import Setting
from vdeblur.inference.tiling import FEATHER, MIN_TILE

GPU = NetworkCost(bytes_per_pixel=1000, device="cuda:0", on_cpu=False)
CPU = NetworkCost(bytes_per_pixel=1000)


def test_whole_pictures_where_they_fit() -> None:
    memory = MemoryPlan(GPU)
    # 80 % of the memory are planned with.
    assert memory.plan_for(100, 200, free=10 * 100 * 200 * 1000) == Plan(8, None)
    assert memory.plan_for(100, 300, free=None).tile is None
    assert memory.plans.keys() == {(100, 200), (100, 300)}
    assert not memory.notes


def test_tiles_where_they_do_not() -> None:
    memory = MemoryPlan(GPU)
    assert memory.plan_for(1000, 2000, free=200 * 200 * 1250) == Plan(1, 200)
    assert memory.notes == [
        "2000×1000 would take 2.0 GB and 0.1 GB are free: going on with tiles of 200"
    ]
    assert memory.plan_for(1000, 1000, free=0) == Plan(1, MIN_TILE)
    # Tiles of a picture as small as a tile would gain nothing.
    assert memory.plan_for(MIN_TILE, MIN_TILE, free=0).tile is None


def test_frames_that_are_kept_are_counted_once() -> None:
    memory = MemoryPlan(NetworkCost(1000, kept_bytes_per_pixel=300, on_cpu=False))
    assert memory.memory_needed(10, 20) == 200 * 1300
    assert memory.memory_needed(10, 20, batch=3) == 200 * 3300
    free = 10 * 200 * 1000
    assert memory.fitting_batch(10, 20, free=free) == (8000 - 300) // 1000
    assert memory.plan_for(10, 20, free=free).batch == 7
    assert memory.fitting_batch(10, 20, free=0) == memory.fitting_batch(10, 20, free=None) == 1


def test_color_is_computed_on_whole_pictures() -> None:
    memory = MemoryPlan(GPU, tile=MIN_TILE)
    seen = MIN_TILE * MIN_TILE * (1000 - COLOR_BYTES)
    assert memory.memory_needed(512, 512) == 512 * 512 * COLOR_BYTES + seen
    memory.plans[512, 512] = Plan(1, None)
    assert memory.memory_needed(512, 512) == 512 * 512 * 1000


def test_a_cpu_takes_small_pictures_together() -> None:
    plenty = 1 << 40
    assert MemoryPlan(CPU).plan_for(64, 64, free=plenty).batch == CPU_BATCH_PIXELS // 64**2
    assert MemoryPlan(CPU).plan_for(2160, 3840, free=plenty).batch == 1
    beside = MemoryPlan(NetworkCost(1000, most_at_once=6))
    assert beside.side_by_side(2160, 3840, free=plenty) == 6
    assert beside.plan_for(2160, 3840, free=plenty).batch == 6
    assert beside.side_by_side(1000, 1000, free=3 * 10**9) == 2
    assert beside.side_by_side(1000, 1000, free=None) == 1


def test_measured_settings_count_for_whole_pictures_alone() -> None:
    tuned = {(100, 100): Setting("torch", "fp32", 5, 256, 9.0)}
    assert MemoryPlan(CPU, tuned=tuned).plan_for(100, 100, free=1 << 40) == Plan(5, 256)
    # As many as fit; and no tiles where others, or none, were asked for.
    assert MemoryPlan(CPU, tuned=tuned).plan_for(100, 100, free=25 * 10**6) == Plan(2, 256)
    assert MemoryPlan(CPU, tile=None, tuned=tuned).plan_for(100, 100, free=1 << 40).tile is None
    # On a GPU the batch is the caller's.
    assert MemoryPlan(GPU, tuned=tuned).plan_for(100, 100, free=20 * 10**6) == Plan(1, 256)


def test_less_and_less_when_memory_runs_out() -> None:
    memory = MemoryPlan(GPU, tile=None)
    memory.plan_for(300, 500, free=None)
    assert memory.shrink(8, 300, 500) == Plan(4, None)
    assert memory.plans[300, 500] == Plan(4, None)
    assert memory.shrink(1, 300, 500) == Plan(1, 250)
    assert memory.shrink(1, 300, 500) == Plan(1, MIN_TILE)
    with pytest.raises(DeviceError, match=r"cuda:0 has too little memory .* even at 128 pixels"):
        memory.shrink(1, 300, 500)
    assert memory.notes == [
        "out of memory at batch 8: going on with batch 4",
        "out of memory at 500×300: going on with tiles of 250",
        "out of memory at tiles of 250: going on with tiles of 128",
    ]
    memory.plan_for(20, 30, free=None)
    with pytest.raises(DeviceError, match="even at 30 pixels"):
        memory.shrink(1, 20, 30)


def test_margins_shrink_in_small_tiles_unless_asked_for() -> None:
    memory = MemoryPlan(NetworkCost(1000, margin=100, least_margin=32))
    assert memory.margin(1000) == 100
    assert memory.margin(4 * 50 + FEATHER) == 50
    assert memory.margin(MIN_TILE) == 32
    assert MemoryPlan(NetworkCost(1000, margin=100, least_margin=100)).margin(MIN_TILE) == 100


def test_tiles_that_are_mostly_overlap_are_noted() -> None:
    cost = NetworkCost(1000, multiple=16, margin=40, least_margin=40)
    memory = MemoryPlan(cost, tile=130)
    memory.plan_for(360, 640, free=None)
    (note,) = memory.notes
    assert note.startswith("tiles of 144x144 compute ")
    assert note.endswith("overlap by 96 pixels or more: larger ones or `tile=None` are faster")
    assert MemoryPlan(cost, tile=640).plan_for(360, 640, free=None) == Plan(4, 640)
