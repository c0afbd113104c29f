"""Recorded calls: what is recorded, when, and what happens where it cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vdeblur.inference import graphs, steadying

Call = Callable[[Tensor], Tensor]


def double(x: Tensor) -> Tensor:
    return x * 2


class FakeStream:
    """Remembers which streams it waits for."""

    def __init__(self, _: object = None) -> None:
        self.waited: list[object] = []

    def wait_stream(self, other: object) -> None:
        self.waited.append(other)


class FakeCuda(SimpleNamespace):
    """What recording needs of torch.cuda; a graph computes its call again when it is replayed."""

    def __init__(self) -> None:
        super().__init__(current=FakeStream(), recording=None, pools=[], Stream=FakeStream)

    def current_stream(self, device: torch.device) -> Any:
        return self.current

    def graph_pool_handle(self) -> object:
        return object()

    def stream(self, stream: object) -> Any:
        return torch.no_grad()

    def graph(self, graph: Any, *, pool: object, stream: object, capture_error_mode: str) -> Any:
        self.pools.append(pool)
        return torch.no_grad()


def test_graphs_share_memory_and_follow_the_stream_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda()
    results: list[Tensor] = []
    replayed: list[int] = []
    fake.CUDAGraph = lambda: SimpleNamespace(replay=lambda: replayed.append(1))

    def call(x: Tensor) -> Tensor:
        results.append(double(x))
        return results[-1]

    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(graphs, "_cuda", fake)
    record, x = graphs.Recorder(), torch.ones(1, 3, 2, 2)
    first, compute = fake.current, FakeStream()
    one = record(call, x)
    static = results[-1]
    other = record(call, x[..., :1])
    assert fake.pools[0] is fake.pools[1]
    got = one(x)
    # The next replay writes over the graph's result, not over what the caller has.
    assert torch.equal(got, double(x))
    assert got.data_ptr() != static.data_ptr()
    fake.current = compute
    one(x)
    other(x[..., :1])
    assert compute.waited == [first]
    assert len(replayed) == 3


def test_a_recording_that_fails_leaves_the_stream_and_the_allocator_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's `graph` ends neither, where ending the capture fails."""
    fake, compute = FakeCuda(), FakeStream()
    ended: list[tuple[str, int, object]] = []

    @contextmanager
    def stream(new: object) -> Iterator[None]:
        before, fake.current = fake.current, new
        try:
            yield
        finally:
            fake.current = before

    @contextmanager
    def graph(graph: object, *, pool: object, stream: object, **_: object) -> Iterator[None]:
        fake.pools.append(pool)
        fake.current = stream
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    vars(fake).update(current=compute, stream=stream, graph=graph, CUDAGraph=object)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(graphs, "_cuda", fake)
    monkeypatch.delattr(torch._C, "_cuda_endAllocateCurrentStreamToPool", raising=False)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda *given, of=name: ended.append((of, *given)), raising=False
        )
    with pytest.raises(RuntimeError, match="previous error"):
        graphs.Recorder()(double, torch.ones(1, 3, 2, 2))
    assert fake.current is compute
    (pool,) = fake.pools
    assert [(name, of) for name, _, of in ended] == [
        ("_cuda_endAllocateToPool", pool),
        ("_cuda_releasePool", pool),
    ]


class Remembers:
    """A recorder that remembers what it recorded; its results bear a mark too small to be wrong."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, call: Call, x: Tensor) -> Call:
        self.shapes.append(tuple(x.shape))
        return lambda new: call(new) + 1e-5


def off_by(expected: Tensor, got: Tensor) -> str | None:
    if expected.shape != got.shape:
        return "has another shape"
    error = float((expected - got).abs().max())
    return None if error < 1e-3 else f"is off by {error:.1f}"


def recorded(
    quick: Call = double, record: Any = None, note: Any = pytest.fail, **more: Any
) -> graphs.Recorded:
    return graphs.Recorded(
        double, quick=quick, name="quick", note=note, differs=off_by, record=record, **more
    )


def marked(result: Tensor, x: Tensor) -> bool:
    return bool((result != double(x)).all())


def test_a_shape_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "_SHAPES", 2)
    record = Remembers()
    made = recorded(record=record)
    one, two, three = (torch.ones(1, 3, n, 1) for n in (1, 2, 3))
    assert [marked(made(one), one) for _ in range(3)] == [False, True, True]
    assert record.shapes == [(1, 3, 1, 1)]
    for x in (two, three):
        assert [marked(made(x), x) for _ in range(2)] == [False, True]
    # Two are kept. The first had to go, and is recorded again when it comes often, not each time
    # that all three take turns.
    for _ in range(10):
        for x in (one, two, three):
            made(x)
    assert [shape[2] for shape in record.shapes] == [1, 2, 3]
    assert [marked(made(one), one) for _ in range(50)] == [False] * 41 + [True] * 9
    # Other strides or another type are another graph.
    assert not marked(made(one.double()), one.double())


def with_static_input(call: Call, x: Tensor) -> Call:
    """Record as a graph is: from a tensor that replays write to, outside inference mode."""
    assert not torch.is_inference_mode_enabled()
    static = x.clone()

    def replay(new: Tensor) -> Tensor:
        return call(static.copy_(new))

    return replay


def test_cameras_and_files_share_a_network() -> None:
    """Tensors that were made in torch's inference mode may not be written to outside of it."""
    made, x = recorded(record=with_static_input), torch.rand(1, 3, 4, 4)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            for _ in range(3):
                assert torch.equal(made(x), double(x))


def test_what_cannot_be_recorded_is_called_and_it_is_said_once() -> None:
    notes: list[str] = []

    def record(call: object, x: Tensor) -> Call:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    made = recorded(record=record, note=notes.append)
    assert [float(made(torch.ones(1, 3, n, 1))[0, 0, 0]) for n in (1, 1, 1, 2, 2)] == [2] * 5
    assert notes == [
        "CUDA graphs cannot be used here (operation not permitted when stream is capturing): "
        "going on without them"
    ]


def fails(x: Tensor) -> Tensor:
    raise ValueError("no C compiler\nat all")


@pytest.mark.parametrize(
    ("quick", "reason"),
    [(fails, "no C compiler"), (lambda x: x * 2 + 0.5, "is off by 0.5")],
)
def test_what_fails_or_computes_something_else_is_left_to_torch(quick: Call, reason: str) -> None:
    notes: list[str] = []
    record = Remembers()
    made, x = recorded(quick, record, notes.append), torch.ones(1, 3, 4, 4)
    # Recorded is then what torch does.
    assert [marked(made(x), x) for _ in range(3)] == [False, True, True]
    assert notes == [f"backend quick cannot be used here ({reason}): going on with torch"]
    assert len(record.shapes) == 1


def test_a_recording_that_gives_something_else_is_not_used() -> None:
    notes: list[str] = []
    made = recorded(record=lambda call, x: torch.zeros_like, note=notes.append)
    x = torch.ones(1, 3, 4, 4)
    assert [float(made(x)[0, 0, 0, 0]) for _ in range(3)] == [2] * 3
    assert notes == ["CUDA graphs cannot be used here (is off by 2.0): going on without them"]


def test_memory_that_runs_out_is_no_fault_of_graphs() -> None:
    """What is kept goes first, then the graph that does not fit; nothing is said of graphs."""
    room = 2

    def record(call: Call, x: Tensor) -> Call:
        if len(made._made) + len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda new: call(new) + 1e-5

    made = recorded(record=record)
    one, other = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 2, 1)
    for x in (one, other):
        assert [marked(made(x), x) for _ in range(2)] == [False, True]
    room = 1
    third = torch.ones(1, 3, 3, 1)
    # Two graphs fill the memory: they go, and the call is made. It is recorded the next time.
    assert [marked(made(third), third) for _ in range(3)] == [False, False, True]
    assert len(made._made) == 1
    room = 0
    assert [marked(made(one), one) for _ in range(5)] == [False] * 5
    assert list(made._made.values()) == [double]


def test_a_batch_that_does_not_fit_is_for_the_caller_to_halve() -> None:
    tries = 0

    def full(x: Tensor) -> Tensor:
        nonlocal tries
        tries += 1
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return double(x)

    made = graphs.Recorded(full, note=pytest.fail, differs=off_by, record=Remembers())
    one = torch.ones(1, 3, 1, 1)
    made(one)
    made(one)
    tries = 0
    with pytest.raises(torch.OutOfMemoryError):
        made(torch.ones(2, 3, 1, 1))
    # Once more without the graph of the other shape.
    assert tries == 2


def sums(kind: int, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x + y + kind, x


def test_what_is_no_tensor_is_a_kind_of_its_own() -> None:
    shapes: list[tuple[int, ...]] = []

    def record(call: Callable[..., Any], kind: int, *inputs: Tensor) -> Callable[..., Any]:
        shapes.append(tuple(inputs[0].shape))
        return lambda _, *given: call(kind, *given)

    made = graphs.Recorded(sums, note=pytest.fail, differs=steadying.other_codes, record=record)
    wide, small = torch.arange(12).view(3, 4), torch.arange(4)
    for x in (wide, small):
        for kind in (1, 5):
            for _ in range(3):
                total, same = made(kind, x, 2 * x)
                assert torch.equal(total, 3 * x + kind)
                assert torch.equal(same, x)
    assert shapes == [(3, 4), (3, 4), (4,), (4,)]


def test_planes_are_held_to_the_same_codes() -> None:
    planes = [torch.tensor([[60000]], dtype=torch.uint16), torch.tensor([[3]], dtype=torch.uint16)]
    assert steadying.other_codes(planes, [plane.clone() for plane in planes]) is None
    assert steadying.other_codes(planes, planes[::-1]) == "they give other codes"
