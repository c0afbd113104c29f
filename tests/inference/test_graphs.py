"""Recorded calls: what is recorded, when, and what happens where it cannot be."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vdeblur.inference import graphs


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


def test_what_is_recorded_in_inference_mode_is_replayed_outside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda()
    fake.CUDAGraph = lambda: SimpleNamespace(replay=lambda: None)
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(graphs, "_cuda", fake)
    with torch.inference_mode():
        replay = graphs.Recorder()(double, torch.ones(2, 3))
    assert torch.equal(replay(torch.ones(2, 3)), torch.full((2, 3), 2.0))


class Fake:
    """A recorder that remembers what it recorded; replays are calls that it counts."""

    def __init__(self, error: Exception | None = None, wrong: int = 0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays, self.error, self.wrong = 0, error, wrong

    def __call__(self, call: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
        self.shapes.append(tuple(inputs[0].shape))
        if self.error is not None:
            raise self.error

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            self.replays += 1
            return tuple(part + self.wrong for part in call(*given))

        return replay


def sums(kind: int, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x + y + kind, x


def test_what_comes_a_second_time_is_recorded_by_kind_and_shape() -> None:
    record, notes = Fake(), list[str]()
    recorded = graphs.Recorded(sums, note=notes.append, record=record)
    wide, small = torch.arange(12).view(3, 4), torch.arange(4)
    for x, times in ((wide, 3), (small, 2)):
        for kind in (1, 5):
            for _ in range(times):
                total, same = recorded(kind, x, 2 * x)
                assert torch.equal(total, 3 * x + kind)
                assert torch.equal(same, x)
    assert record.shapes == [(3, 4), (3, 4), (4,), (4,)]
    # Once each to be compared, and once of each kind of the wide ones.
    assert record.replays == 4 + 2
    assert not notes


def test_what_cameras_recorded_in_inference_mode_is_not_for_others() -> None:
    def record(call: Callable[..., Any], *inputs: Tensor) -> Callable[..., Any]:
        static = [x.clone() for x in inputs]
        return lambda *new: call(*(x.copy_(y) for x, y in zip(static, new, strict=True)))

    recorded, x = graphs.Recorded(sums, note=pytest.fail, record=record), torch.arange(4)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            for _ in range(3):
                assert torch.equal(recorded(1, x, x)[0], 2 * x + 1)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Fake(RuntimeError("operation not permitted\nwhen a stream is capturing")),
         "operation not permitted"),
        (Fake(torch.OutOfMemoryError("CUDA out of memory")), "CUDA out of memory"),
        (Fake(wrong=1), "they give other codes"),
    ],
)  # fmt: skip
def test_where_nothing_can_be_recorded_calls_stay_plain_and_it_is_said_once(
    record: Fake, reason: str
) -> None:
    notes = list[str]()
    recorded = graphs.Recorded(sums, note=notes.append, record=record)
    for x in (torch.arange(4), torch.arange(6)):
        for _ in range(3):
            assert torch.equal(recorded(1, x, x)[0], 2 * x + 1)
    assert record.shapes == [(4,)]
    assert notes == [f"CUDA graphs cannot be used here ({reason}): going on without them"]
