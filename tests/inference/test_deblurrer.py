"""A batch in, a batch out: exactness, sizes, tiles, precision, memory, harm, fields."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.color import merge_fields, split_fields
from vdeblur.errors import DeviceError, UsageError
from vdeblur.frames import PlaneLayout
from vdeblur.inference import deblurrer as module
from vdeblur.inference import tiling
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import find_device, free_memory
from vdeblur.inference.guard import damaged
from vdeblur.inference.memory_plan import Plan
from vdeblur.inference.runtimes import torch_cpu
from vdeblur.inference.settings import PrecisionRequest
from vdeblur.inference.tiling import MARGIN, MIN_TILE, in_tiles
from vdeblur.networks.mimo_unet import MIMOUNet

LAYOUTS = [
    PlaneLayout(33, 21),
    PlaneLayout(33, 21, 10, "yuv", (1, 0), False, "bt2020", "topleft"),
    PlaneLayout(33, 21, 8, "yuv", (2, 0), True, "bt601", "center"),
    PlaneLayout(33, 21, 16, "rgb"),
    PlaneLayout(33, 21, 12, "gray"),
    PlaneLayout(33, 21, 8, interlaced=True),
    PlaneLayout(33, 22, 10, interlaced=True),
]


class Returns(nn.Module):
    """Its input, by the general path."""

    size_multiple = 8

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 8 == 0
        assert x.shape[3] % 8 == 0
        return x.clone()


class Adds(nn.Module):
    """Its input and a constant; remembers the shapes it saw."""

    def __init__(self, value: float = 0.05, multiple: int = 1) -> None:
        super().__init__()
        self.value, self.size_multiple, self.seen = value, multiple, list[tuple[int, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return x + self.value


class Limited(Adds):
    """Runs out of memory above so many pixels in a call."""

    def __init__(self, pixels: int, error: type[Exception] = torch.cuda.OutOfMemoryError) -> None:
        super().__init__()
        self.pixels, self.error = pixels, error

    def forward(self, x: Tensor) -> Tensor:
        if x[:, 0].numel() > self.pixels:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return super().forward(x)


def small_network(unshuffle: int = 1) -> MIMOUNet:
    """Untrained, with a correction small enough to pass for one."""
    torch.manual_seed(1)
    network = MIMOUNet(base=8, blocks=1, unshuffle=unshuffle)
    with torch.no_grad():
        for parameter in network.feat_extract[5].parameters():
            parameter.mul_(0.1)
    return network


def planes_of(
    layout: PlaneLayout, count: int = 2, low: float = 0.0, high: float = 1.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    dtype = torch.uint8 if layout.depth == 8 else torch.uint16
    lowest, highest = int(low * 2**layout.depth), int(high * 2**layout.depth)
    return [
        torch.randint(lowest, highest, (count, *shape), generator=generator, dtype=torch.int32).to(
            dtype
        )
        for shape in layout.shapes
    ]


def changes(before: Tensor, after: Tensor) -> list[int]:
    """By how many codes a plane has changed: each value that occurs."""
    difference = after.to(torch.int32) - before.to(torch.int32)
    values: list[int] = np.unique(difference.numpy()).tolist()
    return values


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.to(torch.int32), b.to(torch.int32))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_network_that_changes_nothing_changes_no_code(
    layout: PlaneLayout, precision: PrecisionRequest
) -> None:
    planes = planes_of(layout)
    networks: tuple[nn.Module | str, ...] = (Returns(), "identity")
    for network in networks:
        deblurrer = Deblurrer(network, device="cpu", precision=precision)
        restored, replaced = deblurrer.restore_planes(planes, layout)
        assert replaced.tolist() == [False, False]
        for before, after in zip(planes, restored, strict=True):
            assert same(before, after)


def test_strength_scales_the_correction() -> None:
    layout = PlaneLayout(8, 6, kind="gray", full_range=True)
    planes = planes_of(layout, low=0.2, high=0.5)
    for strength, change in ((0.0, 0), (0.5, 13), (1.0, 26), (2.0, 52)):
        deblurrer = Deblurrer(Adds(0.102), device="cpu", strength=strength)
        (after,), _ = deblurrer.restore_planes(planes, layout)
        assert changes(planes[0], after) == [change]
    for impossible in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="strength is"):
            Deblurrer(Adds(), device="cpu", strength=impossible)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_planes_get_what_the_picture_gets(layout: PlaneLayout) -> None:
    """A brighter picture is brighter by so many codes, in every layout and in both fields."""
    planes = planes_of(layout, low=0.3, high=0.6)
    restored, _ = Deblurrer(Adds(0.05), device="cpu").restore_planes(planes, layout)
    full = layout.full_range or layout.kind == "rgb"
    scale = 2**layout.depth - 1 if full else 219 * 2 ** (layout.depth - 8)
    change = restored[0].to(torch.int32) - planes[0].to(torch.int32)
    assert float((change - 0.05 * scale).abs().max()) <= 0.6
    if layout.kind == "yuv":
        for before, after in zip(planes[1:], restored[1:], strict=True):
            assert same(before, after)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 5), (8, 8), (9, 17), (40, 31)])
def test_any_size_works(size: tuple[int, int]) -> None:
    height, width = size
    network = small_network(unshuffle=2)
    deblurrer = Deblurrer(network, device="cpu")
    x = torch.rand(1, 3, height, width)
    assert deblurrer(x).shape == x.shape
    layout = PlaneLayout(width, height, interlaced=height > 4)
    restored, _ = deblurrer.restore_planes(planes_of(layout), layout)
    assert tuple(tuple(p.shape[1:]) for p in restored) == layout.shapes
    padded = Adds(multiple=8)
    Deblurrer(padded, device="cpu")(x)
    assert padded.seen == [(1, 3, -(-height // 8) * 8, -(-width // 8) * 8)]


def test_an_image_is_what_the_network_makes_of_it() -> None:
    network = small_network()
    x = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        expected = network(x).clamp(0, 1)
    deblurrer = Deblurrer(network, device="cpu")
    restored = deblurrer(x)
    assert torch.allclose(restored, expected, atol=1e-5)
    restored.add_(1)  # an ordinary tensor, free to be changed
    assert deblurrer(x.half()).dtype == torch.float16
    assert Deblurrer("identity", device="cpu")(x) is not x
    for bad in (
        torch.rand(3, 4, 4),
        torch.rand(1, 1, 4, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="pass \\(N, 3, H, W\\)"):
            deblurrer(bad)


def test_half_precision_stays_close() -> None:
    x = torch.rand(1, 3, 32, 32)
    exact = Deblurrer(small_network(), device="cpu", precision="fp32")(x)
    cases: tuple[tuple[PrecisionRequest, float], ...] = (("fp16", 3e-4), ("bf16", 3e-3))
    for precision, tolerance in cases:
        half = Deblurrer(small_network(), device="cpu", precision=precision)(x)
        # The picture itself is not rounded: bf16 alone would cost it up to 2e-3 everywhere.
        assert 0 < float((half - exact).abs().max()) < tolerance
        assert float((half - exact).abs().mean()) < tolerance / 4


@pytest.mark.parametrize(("height", "width"), [(400, 64), (72, 428), (340, 340)])
def test_tiles_with_the_full_halo_are_the_whole_picture(height: int, width: int) -> None:
    network = small_network().eval().requires_grad_(False)
    with torch.no_grad():
        # Untrained, far pixels hardly count; made to count, a wrong halo shows.
        for parameter in network.parameters():
            parameter.mul_(1.5)
    x = torch.rand(1, 3, height, width)
    shapes = set()

    def run(tile: Tensor) -> Tensor:
        shapes.add(tuple(tile.shape))
        return network.correction(tile)

    whole = network.correction(x)
    tiled = in_tiles(
        run, x, tile=160, margin=network.receptive_radius, multiple=network.size_multiple
    )
    assert len(shapes) == 1
    assert max(shapes)[2:] != (height, width)
    assert float((tiled - whole).abs().max()) < 1e-5
    cheap = in_tiles(run, x, tile=160, margin=4, multiple=network.size_multiple)
    assert float((cheap - whole).abs().max()) > 1e-5


def test_tiles_are_aligned_equal_and_cover_everything() -> None:
    for size, tile, overlap, multiple in itertools.product(
        (16, 128, 144, 720, 1088, 1920, 2704), (128, 200, 512), (0, 40, 80, 126), (1, 8, 16)
    ):
        if size % multiple:
            continue
        places = tiling.tile_places(size, tile, overlap, multiple)
        assert places[0][0] == 0
        assert places[-1][1] == size
        assert len({end - start for start, end in places}) == 1
        assert all(start % multiple == 0 for start, _ in places)
        for (_, end), (start, _) in itertools.pairwise(places):
            assert end - start >= overlap
        for context, feather in ((overlap // 4, max(1, overlap // 2)),):
            fades = tiling._fades(places, size, context, feather, torch.device("cpu"))
            total = torch.zeros(size)
            for (start, end), fade in zip(places, fades, strict=True):
                total[start:end] += fade
                assert not start or not fade[:context].any()
            if overlap >= 2 * context + feather:
                assert torch.allclose(total, torch.ones(size))


def test_tiles_of_a_constant_are_seamless_and_of_one_shape() -> None:
    network = Adds(0.1, multiple=16)
    deblurrer = Deblurrer(network, device="cpu", tile=150)
    x = torch.full((2, 3, 300, 410), 0.5)
    assert torch.allclose(deblurrer(x), torch.full_like(x, 0.6), atol=1e-6)
    assert set(network.seen) == {(2, 3, 160, 160)}
    with pytest.raises(UsageError, match="tile is 64"):
        Deblurrer(network, device="cpu", tile=64)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError, MemoryError])
def test_out_of_memory_halves_the_batch_and_remembers(error: type[Exception]) -> None:
    network = Limited(2 * 40 * 30, error)
    deblurrer = Deblurrer(network, device="cpu")
    layout = PlaneLayout(40, 30, kind="gray", full_range=True)
    planes = planes_of(layout, count=8, low=0.2, high=0.6)
    (after,), replaced = deblurrer.restore_planes(planes, layout)
    assert torch.equal(after.int() - planes[0].int(), torch.full((8, 30, 40), 13))
    assert replaced.tolist() == [False] * 8
    assert deblurrer.notes == [
        "out of memory at batch 8: going on with batch 4",
        "out of memory at batch 4: going on with batch 2",
    ]
    assert deblurrer.plans == {(30, 40): Plan(2, None)}
    network.seen.clear()
    deblurrer.restore_planes(planes, layout)
    assert [shape[0] for shape in network.seen] == [2, 2, 2, 2]
    assert len(deblurrer.notes) == 2


def test_out_of_memory_goes_on_in_tiles_and_drops_nothing() -> None:
    network = Limited(130 * 130)
    deblurrer = Deblurrer(network, device="cpu", tile=None)
    layout = PlaneLayout(300, 200, 10)
    planes = planes_of(layout, count=3, low=0.3, high=0.6)
    after, replaced = deblurrer.restore_planes(planes, layout)
    assert after[0].shape == planes[0].shape
    assert after[0].dtype == torch.uint16
    assert changes(planes[0], after[0]) == [44]
    assert not replaced.any()
    assert deblurrer.notes == [
        "out of memory at batch 3: going on with batch 1",
        "out of memory at 300×200: going on with tiles of 150",
        "out of memory at tiles of 150: going on with tiles of 128",
    ]
    assert deblurrer.plans == {(200, 300): Plan(1, MIN_TILE)}


def test_too_little_memory_for_anything_is_an_error() -> None:
    deblurrer = Deblurrer(Limited(100), device="cpu")
    with pytest.raises(DeviceError, match="cpu has too little memory for the network even at 128"):
        deblurrer(torch.rand(1, 3, 200, 200))
    with pytest.raises(DeviceError, match="even at 20 pixels") as caught:
        deblurrer(torch.rand(1, 3, 20, 20))
    assert isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)


def test_other_errors_are_themselves() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("expected 3 channels")

    with pytest.raises(RuntimeError, match="expected 3 channels"):
        Deblurrer(Broken(), device="cpu")(torch.rand(1, 3, 4, 4))


def test_auto_tile_follows_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Adds()
    network.activations_per_pixel = 1000  # type: ignore[assignment]
    pixels = 4096 * 200 * 200
    monkeypatch.setattr(module, "free_memory", lambda device: pixels)
    deblurrer = Deblurrer(network, device="cpu")
    deblurrer(torch.full((1, 3, 400, 500), 0.5))
    side = deblurrer.plans[400, 500].tile
    assert side is not None
    assert MIN_TILE <= side <= 200
    assert set(network.seen) == {(1, 3, side, side)}
    assert len(deblurrer.notes) == 1
    assert (
        "500×400 would take 0.8 GB and 0.2 GB are free: going on with tiles of"
        in deblurrer.notes[0]
    )
    deblurrer(torch.full((4, 3, 100, 100), 0.5))
    assert network.seen[-1] == (1, 3, 100, 100)
    assert deblurrer.plans[100, 100] == Plan(3, None)
    assert len(deblurrer.notes) == 1


def test_memory_figures_can_be_had() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1 << 20
    assert free_memory(torch.device("meta")) is None
    assert MARGIN < MIN_TILE


class Spoils(nn.Module):
    """Damages the pictures of a batch that are darker than 0.5 in a way of its own choosing."""

    def __init__(self, damage: str) -> None:
        super().__init__()
        self.damage = damage

    def forward(self, x: Tensor) -> Tensor:
        y = x + 0.05
        for picture, source in zip(y, x, strict=True):
            if float(source.mean()) > 0.5:
                continue
            if self.damage == "nan":
                picture[1, 3, 4] = float("nan")
            elif self.damage == "inf":
                picture[:, -1, -1] = float("inf")
            elif self.damage == "blot":
                picture[2, 16:32, 16:32] += 0.5
            elif self.damage == "checkerboard":
                picture[:, 0::2] += 0.3
                picture[:, 1::2] -= 0.3
        return y


@pytest.mark.parametrize("damage", ["nan", "inf", "blot", "checkerboard"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_damaged_picture_is_replaced_by_its_source(damage: str, interlaced: bool) -> None:
    layout = PlaneLayout(50, 70, 8, "rgb", interlaced=interlaced)
    planes = planes_of(layout, count=3, low=0.6, high=0.7)
    for plane in planes:
        plane[1] -= 100  # the second frame is dark
    after, replaced = Deblurrer(Spoils(damage), device="cpu").restore_planes(planes, layout)
    assert replaced.tolist() == [False, True, False]
    for before, now in zip(planes, after, strict=True):
        assert [changes(before[i], now[i]) for i in range(3)] == [[13], [0], [13]]
    images = torch.stack([torch.full((3, 70, 50), v) for v in (0.7, 0.2)])
    restored = Deblurrer(Spoils(damage), device="cpu")(images)
    assert torch.equal(restored[1], images[1])
    assert torch.allclose(restored[0], images[0] + 0.05)


def test_one_bad_field_replaces_the_frame() -> None:
    layout = PlaneLayout(40, 60, kind="gray", full_range=True, interlaced=True)
    planes = [torch.full((2, 60, 40), 200, dtype=torch.uint8)]
    planes[0][1, 1::2] = 50  # only the bottom field of the second frame is dark
    (after,), replaced = Deblurrer(Spoils("nan"), device="cpu").restore_planes(planes, layout)
    assert replaced.tolist() == [False, True]
    assert torch.equal(after[1], planes[0][1])
    assert changes(planes[0][0], after[0]) == [13]


def test_what_a_deblurrer_does_is_no_harm() -> None:
    """Fine black and white text out of gray: single pixels move by half the range."""
    text = (torch.arange(64)[:, None] // 2 + torch.arange(64) // 3) % 2
    sharp = text.float().expand(1, 3, 64, 64).clone()
    sharp[:, :, :48] = 1.0  # most of a page is paper
    blurred = F.avg_pool2d(sharp, 5, 1, 2, count_include_pad=False)
    assert float((sharp - blurred).abs().max()) > 0.4
    assert damaged(sharp - blurred).tolist() == [False]
    assert damaged(torch.zeros(2, 3, 5, 40)).tolist() == [False, False]


def test_fields_are_pictures_of_their_own() -> None:
    """Interlaced planes restore to what their fields, as pictures, restore to."""
    layout = PlaneLayout(24, 32, 10, interlaced=True)
    planes = planes_of(layout, low=0.3, high=0.6)
    deblurrer = Deblurrer(small_network(), device="cpu")
    after, _ = deblurrer.restore_planes(planes, layout)
    fields, field = split_fields(planes, layout)
    expected, _ = deblurrer.restore_planes(fields, field)
    for a, b in zip(after, merge_fields(expected, layout), strict=True):
        assert same(a, b)
    assert not same(after[0], planes[0])


def test_planes_with_gaps_in_memory_are_read() -> None:
    layout = PlaneLayout(20, 12, 10)
    wide = [torch.zeros(1, h, w + 7, dtype=torch.uint16) for h, w in layout.shapes]
    planes = [plane[:, :, :w] for plane, (_, w) in zip(wide, layout.shapes, strict=True)]
    for plane in planes:
        plane.copy_(torch.full_like(plane, 500))
    after, _ = Deblurrer(Adds(0.1), device="cpu").restore_planes(planes, layout)
    assert np.unique(after[0].numpy()).tolist() == [588]


def test_devices_precisions_and_names_that_do_not_exist() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cuda", "xpu", "mps", "cpu")
    with pytest.raises(UsageError, match="there is no device 'gpu'"):
        Deblurrer("identity", device="gpu")
    with pytest.raises(DeviceError, match="there is no cuda:99: this PyTorch, built for"):
        Deblurrer("identity", device="cuda:99")
    assert Deblurrer("identity", device="cpu").dtype == torch.float32
    with pytest.raises(UsageError, match="precision is 'int4'"):
        Deblurrer("identity", precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="there is no network"):
        Deblurrer("unheard-of", device="cpu")
    with pytest.raises(UsageError, match="weights go with a network's name"):
        Deblurrer(Adds(), weights=Path("x.safetensors"), device="cpu")


def test_an_empty_batch_is_an_empty_batch() -> None:
    layout = PlaneLayout(8, 8)
    empty = [torch.zeros(0, *shape, dtype=torch.uint8) for shape in layout.shapes]
    deblurrer = Deblurrer(Adds(), device="cpu")
    assert deblurrer(torch.zeros(0, 3, 8, 8)).shape == (0, 3, 8, 8)
    restored, replaced = deblurrer.restore_planes(empty, layout)
    assert [len(p) for p in restored] == [0, 0, 0]
    assert replaced.tolist() == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_precision_that_this_cpu_computes_slowly_is_said(
    precision: PrecisionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = MIMOUNet(base=8, blocks=1).eval().requires_grad_(False)
    monkeypatch.setattr(torch_cpu, "computes", lambda dtype: dtype == torch.float32)
    said = Deblurrer(network, device="cpu", backend="torch", precision=precision).about
    slow = [line for line in said if "`precision='fp32'` is up to ten times as fast" in line]
    assert len(slow) == (precision != "fp32")
    monkeypatch.setattr(torch_cpu, "computes", lambda _: True)
    able = Deblurrer(network, device="cpu", backend="torch", precision=precision)
    assert able.slow_precision == ""


def test_what_two_parts_say_of_a_run_is_told_once() -> None:
    deblurrer = Deblurrer("identity", device="cpu")
    for _ in range(2):
        told = deblurrer.notes.begin_run()
        for _ in range(2):  # the network and steadying
            deblurrer.notes.append("CUDA graphs cannot be used here (…): going on without them")
        assert told().count(deblurrer.notes[-1]) == 1
