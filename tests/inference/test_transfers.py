"""Overlap: on the CPU a plain call; elsewhere in the right order, which a simulated device
holds."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vdeblur.frames import Frame, FrameBatch, Plane, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import BatchTimes, Overlap, settle
from vdeblur.motion.neighbours import Around, View
from vdeblur.networks.mimo_unet import MIMOUNet

LAYOUT = PlaneLayout(12, 8)
DEEP = PlaneLayout(12, 8, depth=10)


def make_frame(pts: int, layout: PlaneLayout = LAYOUT) -> Frame:
    """A frame whose codes tell its number; its planes have gaps in memory, as decoded ones do."""
    planes: list[Plane] = []
    for rows, columns in layout.shapes:
        wide: Any = np.zeros((rows, columns + 5), layout.dtype)
        plane: Plane = wide[:, :columns]
        plane[...] = (np.arange(rows * columns).reshape(rows, columns) + 3 * pts) % 200
        planes.append(plane)
    return Frame(tuple(planes), layout, pts, Fraction(1, 25))


def make_batches(*sizes: int, layout: PlaneLayout = LAYOUT) -> list[FrameBatch]:
    pts = iter(range(sum(sizes)))
    return [FrameBatch([make_frame(next(pts), layout) for _ in range(size)]) for size in sizes]


class PlusOne:
    """Adds 1 to every code, and how far the frame moves; calls every seventh frame damaged."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.inputs: list[list[Tensor]] = []

    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        self.inputs.append(list(planes))
        damaged = planes[0][:, 0, 0].int() % 7 == 0
        return [plane_plus_one(plane, motion) for plane in planes], damaged


def plane_plus_one(plane: Tensor, motion: Tensor | None) -> Tensor:
    more = 0 if motion is None else motion[:, :1, -1, -1:].to(torch.int32)
    return (plane.to(torch.int32) + 1 + more).to(plane.dtype)


def check_restored(batches: list[FrameBatch], results: list[tuple[FrameBatch, list[bool]]]) -> None:
    assert [batch for batch, _ in results] == batches
    pts = 0
    for batch, replaced in results:
        assert len(replaced) == len(batch)
        for frame, flag in zip(batch.frames, replaced, strict=True):
            assert frame.pts == pts
            source = make_frame(pts, batch.layout)
            assert flag == (int(source.planes[0][0, 0]) % 7 == 0)
            for before, after in zip(source.planes, frame.planes, strict=True):
                assert np.array_equal(before + 1, after)
            pts += 1


@pytest.mark.parametrize("layout", [LAYOUT, DEEP], ids=["8 bits", "10 bits"])
def test_on_the_cpu_it_is_a_plain_call(layout: PlaneLayout) -> None:
    batches = make_batches(1, 3, 2, 1, layout=layout)
    timeline: list[BatchTimes] = []
    results = list(Overlap(PlusOne(), timeline=timeline).run(batches))
    check_restored(batches, results)
    assert [times.frames for times in timeline] == [1, 3, 2, 1]
    assert all(0 <= times.compute[0] <= times.compute[1] for times in timeline)


def test_on_the_cpu_one_frame_is_computed_on_its_own_memory_and_given_at_once() -> None:
    deblurrer = PlusOne()
    (batch,) = make_batches(1)
    results = Overlap(deblurrer, depth=4).run(iter([batch, *make_batches(1)]))
    next(results)
    assert len(deblurrer.inputs) == 1
    for seen, plane in zip(deblurrer.inputs[0], batch.frames[0].planes, strict=True):
        assert np.shares_memory(seen.numpy(), plane)


def test_the_real_deblurrer_fits_in() -> None:
    batches = make_batches(2, 1)
    for batch, replaced in Overlap(Deblurrer("identity", device="cpu")).run(batches):
        assert replaced == [False] * len(batch)
        for frame in batch.frames:
            assert np.array_equal(frame.planes[0], make_frame(frame.pts).planes[0])


def test_depth_must_be_something() -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        Overlap(PlusOne(), depth=0)


@dataclass
class FakeEvent:
    number: int
    stream: FakeStream | None = None
    position: int = 0  # how much of its stream must have happened


@dataclass
class FakeStream:
    """Operations that have been issued; those before `done` have happened."""

    name: str
    issued: list[Any] = field(default_factory=list)
    done: int = 0


class FakeDevice:
    """A device that does nothing until it is waited for, and then only what that takes.

    It is the laziest that streams and events allow: memory that is refilled or read too early holds
    the wrong values.
    """

    def __init__(self) -> None:
        self.copy_in, self.compute, self.copy_out = map(
            FakeStream, ("copy-in", "compute", "copy-out")
        )
        self.log: list[str] = []
        self.uploads: list[tuple[int, ...]] = []
        self.current = self.compute
        self.pinned_at: set[int] = set()
        self.pinned_held = self.most_pinned = 0
        self.shared: list[tuple[int, str]] = []
        self.events = 0
        self.clock = 0.0
        self.happened: dict[int, float] = {}

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def event(self) -> FakeEvent:
        self.events += 1
        return FakeEvent(self.events)

    def record(self, event: FakeEvent, stream: FakeStream) -> None:
        stream.issued.append(lambda: self.happened.update({event.number: self.clock}))
        event.stream, event.position = stream, len(stream.issued)

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        # What the event stands for now; it may be recorded again later.
        target, position = event.stream, event.position
        assert target is not None
        stream.issued.append(lambda: self.run(target, position))

    def synchronize(self, event: FakeEvent) -> None:
        assert event.stream is not None
        self.log.append(f"wait for {event.stream.name}")
        self.run(event.stream, event.position)

    def seconds(self, start: FakeEvent, end: FakeEvent) -> float:
        return self.happened[end.number] - self.happened[start.number]

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = torch.zeros(shape, dtype=dtype)
        self.pinned_at.add(made.data_ptr())
        self.pinned_held += 1
        self.most_pinned = max(self.most_pinned, self.pinned_held)
        weakref.finalize(made, self._let_go)
        return made

    def _let_go(self) -> None:
        self.pinned_held -= 1

    def resident(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert self.current is self.copy_in, "the stream that writes it first must own the memory"
        return torch.zeros(shape, dtype=dtype)

    def copy(self, target: Tensor, source: Tensor) -> None:
        if not self.log or self.log[-1] != self.current.name:
            self.log.append(self.current.name)
        if self.current is self.copy_out:
            assert (source.data_ptr(), "copy-out") in self.shared
        elif source.data_ptr() in self.pinned_at:
            self.uploads.append(tuple(source.shape))
        self.issue(lambda: target.copy_(source))

    def share(self, tensor: Tensor, stream: FakeStream) -> None:
        self.shared.append((tensor.data_ptr(), stream.name))

    def issue(self, operation: Any) -> None:
        self.current.issued.append(operation)

    def run(self, stream: FakeStream, position: int) -> None:
        while stream.done < position:
            operation, stream.issued[stream.done] = stream.issued[stream.done], None
            stream.done += 1
            self.clock += 1.0
            operation()


class LazyPlusOne(PlusOne):
    """PlusOne on the fake device: its results are not there before the compute stream has run."""

    def __init__(self, device: FakeDevice, fail_at: int = -1) -> None:
        super().__init__()
        self.fake, self.fail_at, self.calls = device, fail_at, 0

    def restore_planes(
        self,
        planes: Sequence[Tensor],
        layout: PlaneLayout,
        motion: Tensor | None = None,
        around: Sequence[Around | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        assert self.fake.current is self.fake.compute
        if self.calls == self.fail_at:
            raise RuntimeError("the network broke")
        self.calls += 1
        results = [torch.zeros_like(plane) for plane in planes]
        replaced = torch.zeros(len(planes[0]), dtype=torch.bool)

        def compute() -> None:
            for plane, result in zip(planes, results, strict=True):
                result.copy_(plane_plus_one(plane, motion))
            replaced.copy_(planes[0][:, 0, 0].int() % 7 == 0)

        self.fake.issue(compute)
        return results, replaced


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("layout", [LAYOUT, DEEP], ids=["8 bits", "10 bits"])
def test_a_lazy_device_gives_the_right_results_in_order(depth: int, layout: PlaneLayout) -> None:
    device = FakeDevice()
    batches = make_batches(4, 4, 4, 4, 4, 3, layout=layout)
    overlap = Overlap(LazyPlusOne(device), depth=depth, ops=device)
    results = list(overlap.run(batches))
    check_restored(batches, results)
    # Three planes in of each frame, three out and the flags, of each of `depth` batches.
    assert device.most_pinned <= (3 * 4 + 4) * (depth + 1)
    del results, batches
    assert device.pinned_held == 0


def test_other_threads_may_copy_to_and_from_pinned_memory() -> None:
    device = FakeDevice()
    batches = make_batches(2, 1)
    frames = [frame for batch in batches for frame in batch.frames]
    overlap = Overlap(LazyPlusOne(device), ops=device, deferred=True)
    items = ["packet", *frames]
    assert list(overlap.staged(iter(items))) == items
    for frame in frames:
        for plane in frame.planes:
            plane[...] = 0  # what was copied counts
    held = device.pinned_held
    assert held == 3 * len(frames)
    results = list(overlap.run(batches))
    assert all(frame.staged is None for frame in frames)
    assert not any(frame.planes[0].any() for frame in frames)
    for frame in frames:
        settle(frame)
        assert frame.restored is None
    check_restored(batches, results)
    settle(frames[0])  # once: nothing is left to copy
    check_restored(batches, results)


def test_the_next_upload_is_issued_before_a_download_is_waited_for() -> None:
    device = FakeDevice()
    list(Overlap(LazyPlusOne(device), depth=2, ops=device).run(make_batches(2, 2, 2)))
    batch = ["copy-in", "copy-out"]
    wait = ["wait for copy-out"]
    assert device.log == [*batch, *batch, *wait, *batch, *wait, *wait]


def test_depth_1_gives_each_batch_before_it_takes_the_next() -> None:
    device = FakeDevice()
    taken = 0

    def source() -> Iterator[FrameBatch]:
        nonlocal taken
        for batch in make_batches(1, 1, 1):
            taken += 1
            yield batch

    overlap = Overlap(LazyPlusOne(device), depth=1, ops=device)
    for given, _ in enumerate(overlap.run(source()), start=1):
        assert taken == given


def test_never_more_than_depth_batches_are_in_flight() -> None:
    device = FakeDevice()
    taken = 0

    def source() -> Iterator[FrameBatch]:
        nonlocal taken
        for batch in make_batches(*[1] * 9):
            taken += 1
            yield batch

    overlap = Overlap(LazyPlusOne(device), depth=3, ops=device)
    for given, _ in enumerate(overlap.run(source()), start=1):
        assert taken - given <= 2
    assert taken == 9


@pytest.mark.parametrize("lazy", [False, True])
def test_each_frame_s_motion_goes_along(lazy: bool) -> None:
    batches = make_batches(3, 2, 2, 2)
    frames = [frame for batch in batches for frame in batch.frames]
    moves = [5, None, 9, 2, 4, None, None, None, 7]
    for frame, length in zip(frames, moves, strict=True):
        if length is not None:
            frame.motion = np.full((4, 1, 2), length, np.float32)
    device = FakeDevice()
    overlap = Overlap(LazyPlusOne(device), ops=device) if lazy else Overlap(PlusOne())
    list(overlap.run(batches))
    for frame, length in zip(frames, moves, strict=True):
        for before, after in zip(make_frame(frame.pts).planes, frame.planes, strict=True):
            assert np.array_equal(before + 1 + (length or 0), after)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_around_each_frame_goes_along_and_is_let_go(lazy: bool) -> None:
    class Looks(LazyPlusOne):
        """Keeps what it is told is around, and what the compute stream sees of it."""

        def __init__(self, device: FakeDevice) -> None:
            super().__init__(device)
            self.told: list[Around | None] = []
            self.seen: list[tuple[int, float]] = []

        def restore_planes(
            self, planes: Sequence[Tensor], layout: PlaneLayout, *more: Any
        ) -> tuple[list[Tensor], Tensor]:
            self.told += more[1]

            def look(around: Around) -> None:
                assert around.before is not None
                there, way = around.before
                self.seen.append((int(there.planes[0][0, 0]), float(way[0, 0, 0])))

            for around in more[1]:
                if around is not None:
                    self.fake.issue(lambda around=around: look(around))
            return super().restore_planes(planes, layout, more[0])

    batches = make_batches(2, 2)
    frames = [frame for batch in batches for frame in batch.frames]
    for frame in frames:
        frame.motion = np.zeros((4, 1, 2), np.float32)
    all_ = [View(frame) for frame in frames]
    for number in (1, 2, 3):
        way = torch.full((2, 1, 2), 10.0 + number)
        frames[number].around = Around(all_[number], (all_[number - 1], way))
    device = FakeDevice()
    deblurrer = Looks(device)
    list(Overlap(deblurrer, ops=device if lazy else None).run(batches))
    if not lazy:
        device.run(device.compute, len(device.compute.issued))
    first, *others = deblurrer.told
    assert first is None
    assert [around and around.here for around in others] == all_[1:]
    # The codes that the frame before came with: it has 1 more now.
    assert deblurrer.seen == [(0, 11.0), (3, 12.0), (6, 13.0)]
    # Each frame crosses the bus once, though it is a neighbor too; but the first is not told so.
    assert device.uploads.count((8, 12)) == (len(frames) + 1 if lazy else 0)
    assert all(frame.around is None for frame in frames)


def test_layouts_may_change_and_batches_may_be_empty() -> None:
    device = FakeDevice()
    small = PlaneLayout(4, 4, kind="gray")
    batches = [
        FrameBatch([make_frame(0)]),
        FrameBatch([]),
        FrameBatch([make_frame(1, DEEP), make_frame(2, DEEP)]),
        FrameBatch([make_frame(3, small)]),
        FrameBatch([make_frame(4), make_frame(5), make_frame(6)]),
        FrameBatch([]),
        FrameBatch([]),
    ]
    for backend in (device, None):
        again = [FrameBatch([make_frame(f.pts, f.layout) for f in b.frames]) for b in batches]
        deblurrer = LazyPlusOne(device) if backend else PlusOne()
        results = list(Overlap(deblurrer, ops=backend).run(again))
        assert [batch for batch, _ in results] == again
        for batch, replaced in results:
            assert len(replaced) == len(batch)
            for frame in batch.frames:
                source = make_frame(frame.pts, frame.layout)
                for before, after in zip(source.planes, frame.planes, strict=True):
                    assert np.array_equal(before + 1, after)


@pytest.mark.parametrize("depth", [1, 2])
def test_buffers_are_used_again_only_where_they_fit(depth: int) -> None:
    device = FakeDevice()
    batches = [
        FrameBatch([make_frame(i, layout) for i in range(size)])
        for size, layout in (
            *((2, LAYOUT), (2, DEEP)) * 3,
            *((2, PlaneLayout(12, 8, chroma_shift=(0, 0))), (2, PlaneLayout(12, 16))) * 3,
            *((size, LAYOUT) for size in (1, 3, 2, 4, 1, 5)),
        )
        for _ in range(depth)
    ]
    for batch, _ in Overlap(LazyPlusOne(device), depth=depth, ops=device).run(batches):
        for frame in batch.frames:
            source = make_frame(frame.pts, frame.layout)
            for before, after in zip(source.planes, frame.planes, strict=True):
                assert np.array_equal(before + 1, after)


def test_a_failure_is_itself_and_leaves_nothing_in_flight() -> None:
    device = FakeDevice()
    results = Overlap(LazyPlusOne(device, fail_at=2), depth=3, ops=device).run(
        make_batches(1, 1, 1, 1)
    )
    with pytest.raises(RuntimeError, match="the network broke"):
        list(results)
    assert device.log.count("wait for copy-out") == 2


def test_leaving_early_waits_for_the_copies_under_way() -> None:
    device = FakeDevice()
    results = Overlap(LazyPlusOne(device), depth=3, ops=device).run(make_batches(1, 1, 1, 1))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert device.log.count("wait for copy-out") == 3


def test_the_timeline_is_by_the_device_s_clock() -> None:
    device = FakeDevice()
    timeline: list[BatchTimes] = []
    overlap = Overlap(LazyPlusOne(device), ops=device, timeline=timeline)
    list(overlap.run(make_batches(2, 2, 1)))
    assert [times.frames for times in timeline] == [2, 2, 1]
    for times in timeline:
        assert 0 <= times.upload[0] < times.upload[1]
        assert times.upload[1] <= times.compute[1] <= times.download[1]


def small_network() -> MIMOUNet:
    """Untrained, with a correction small enough to pass for one."""
    torch.manual_seed(0)
    network = MIMOUNet(base=8, blocks=1)
    with torch.no_grad():
        for parameter in network.feat_extract[5].parameters():
            parameter.mul_(0.1)
    return network


no_cuda = not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA")


@pytest.mark.skipif(no_cuda, reason="no CUDA GPU here (VDEBLUR_REQUIRE_CUDA makes this a failure)")
@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("interlaced", [False, True])
def test_cuda_gives_what_the_cpu_gives(depth: int, interlaced: bool) -> None:
    layout = PlaneLayout(320, 180, depth=depth, interlaced=interlaced)
    results = {}
    for device in ("cpu", "cuda"):
        batches = make_batches(4, 4, 4, 2, layout=layout)
        deblurrer = Deblurrer(small_network(), device=device, precision="fp32")
        for _, replaced in Overlap(deblurrer).run(batches):
            assert not any(replaced)
        results[device] = [f.planes for batch in batches for f in batch.frames]
    for ours, theirs in zip(results["cuda"], results["cpu"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            # TF32 and another order of summing: a code of 8 bits, four of 10.
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1 << (depth - 8)


@pytest.mark.skipif(no_cuda, reason="no CUDA GPU here (VDEBLUR_REQUIRE_CUDA makes this a failure)")
def test_cuda_identity_is_exact_and_runs_side_by_side() -> None:
    layout = PlaneLayout(1920, 1080, depth=16)
    batches = make_batches(4, 4, 4, 4, layout=layout)
    for _ in Overlap(Deblurrer("identity", device="cuda"), depth=3).run(batches):
        pass
    for batch in batches:
        for frame in batch.frames:
            source = make_frame(frame.pts, layout)
            for a, b in zip(frame.planes, source.planes, strict=True):
                assert np.array_equal(a, b)
    batches = make_batches(4, 4, 4, 4, layout=PlaneLayout(1920, 1080))
    timeline: list[BatchTimes] = []
    network = MIMOUNet(base=32, blocks=8)
    network.start_as_identity()
    list(Overlap(Deblurrer(network, device="cuda"), depth=2, timeline=timeline).run(batches))
    for before, after in itertools.pairwise(timeline[1:]):
        # The upload of a batch is over before the computation of the one before it is.
        assert after.upload[1] < before.compute[1]
        assert after.compute[0] >= before.compute[1] - 1e-4
