"""Networks on GPUs: compiled and recorded, with compilers and recorders that a CPU has."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vdeblur.errors import DeviceError, UsageError
from vdeblur.inference import devices
from vdeblur.inference.runtimes import cuda, with_runtime
from vdeblur.networks.mimo_unet import MIMOUNet

CPU = torch.device("cpu")
Call = Callable[[Tensor], Tensor]


def double(x: Tensor) -> Tensor:
    return x * 2


class Recorded:
    """A recorder that remembers what it recorded; its results bear a mark too small to be wrong."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, call: Call, x: Tensor) -> Call:
        self.shapes.append(tuple(x.shape))
        return lambda new: call(new) + 1e-5


def graphs(
    quick: Call = double, record: Any = None, note: Any = pytest.fail, **more: Any
) -> cuda.Graphs:
    return cuda.Graphs(double, quick, name="quick", note=note, record=record, **more)


def marked(result: Tensor, x: Tensor) -> bool:
    return bool((result != double(x)).all())


def test_a_shape_is_recorded_when_it_comes_again() -> None:
    record = Recorded()
    made = graphs(record=record, shapes=2)
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
    """Record as a graph is: from a tensor that replays write to."""
    static = x.clone()

    def replay(new: Tensor) -> Tensor:
        return call(static.copy_(new))

    return replay


def test_cameras_and_files_share_a_network() -> None:
    """Tensors that were made in torch's inference mode may not be written to outside of it."""
    made, x = graphs(record=with_static_input), torch.rand(1, 3, 4, 4)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            for _ in range(3):
                assert torch.equal(made(x), double(x))


def test_passes_that_launching_does_not_bound_are_not_recorded() -> None:
    record = Recorded()
    made = graphs(record=record)
    small, large = torch.ones(1, 3, 1088, 1920), torch.ones(2, 3, 1080, 1920)
    for x in (small, small, large, large, large):
        made(x)
    assert record.shapes == [(1, 3, 1088, 1920)]


def test_what_cannot_be_recorded_is_called_and_it_is_said_once() -> None:
    notes: list[str] = []

    def record(call: object, x: Tensor) -> Call:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    made = graphs(record=record, note=notes.append)
    assert [float(made(torch.ones(1, 3, n, 1))[0, 0, 0]) for n in (1, 1, 1, 2, 2)] == [2] * 5
    assert notes == [
        "CUDA graphs cannot be used here (operation not permitted when stream is capturing): "
        "going on without them"
    ]


def fails(x: Tensor) -> Tensor:
    raise ValueError("no C compiler\nat all")


@pytest.mark.parametrize(
    ("quick", "reason"),
    [
        (fails, "no C compiler"),
        (lambda x: x * 2 + 0.1, "agrees with torch to 26 dB only, less than 50 dB"),
        (lambda x: x * math.nan, "agrees with torch to -74 dB only, less than 50 dB"),
        (lambda x: x[:, :1], "gives (1, 1, 4, 4) instead of (1, 3, 4, 4)"),
    ],
)
def test_what_fails_or_computes_something_else_is_left_to_torch(quick: Call, reason: str) -> None:
    notes: list[str] = []
    record = Recorded()
    made, x = graphs(quick, record, notes.append), torch.ones(1, 3, 4, 4)
    # Recorded is then what torch does.
    assert [marked(made(x), x) for _ in range(3)] == [False, True, True]
    assert notes == [f"backend quick cannot be used here ({reason}): going on with torch"]
    assert len(record.shapes) == 1


def test_bf16_is_held_to_its_own_roundings() -> None:
    x = torch.rand(1, 3, 64, 64)
    half = x + torch.randn_like(x) * 10 ** (-40 / 20)
    assert cuda.differs(x.bfloat16(), half.bfloat16()) is None
    assert cuda.differs(x.half(), half.half()) is not None
    assert cuda.differs(x.bfloat16(), x.bfloat16() + 0.1) is not None


def test_a_recording_that_gives_something_else_is_not_used() -> None:
    notes: list[str] = []
    made = graphs(record=lambda call, x: torch.zeros_like, note=notes.append)
    x = torch.ones(1, 3, 4, 4)
    assert [float(made(x)[0, 0, 0, 0]) for _ in range(3)] == [2] * 3
    (note,) = notes
    assert note.startswith("CUDA graphs cannot be used here (agrees with torch to ")


def test_memory_that_runs_out_is_no_fault_of_graphs() -> None:
    """What is kept goes first; then the batch has to be halved, and nothing is said of graphs."""
    room = 2

    def record(call: Call, x: Tensor) -> Call:
        if len(made._made) + len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda new: call(new) + 1e-5

    made = graphs(record=record)
    one, other = torch.ones(1, 3, 1, 1), torch.ones(1, 3, 2, 1)
    for x in (one, other):
        assert [marked(made(x), x) for _ in range(2)] == [False, True]
    room = 1
    third = torch.ones(1, 3, 3, 1)
    # Two graphs fill the memory: they go, and the call is made. It is recorded the next time.
    assert [marked(made(third), third) for _ in range(3)] == [False, False, True]
    assert len(made._made) == 1
    room = 0
    with pytest.raises(torch.OutOfMemoryError):
        for _ in range(4):
            made(one)


@pytest.fixture
def network() -> MIMOUNet:
    torch.manual_seed(0)
    return MIMOUNet(base=8, blocks=1).eval().requires_grad_(False)


@pytest.mark.parametrize("runtime", ["compile", "tensorrt"])
def test_a_compiled_network_gives_torchs_correction(
    runtime: Any, network: MIMOUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[int, ...]] = []

    def compiler(graph: Any, inputs: list[Tensor], options: Any = None) -> Any:
        # Engines that cannot be built are not to be replaced by torch unsaid.
        assert options == ({"pass_through_build_failures": True} if runtime == "tensorrt" else None)
        compiled.append(tuple(next(x.shape for x in inputs if x.ndim == 4 and x.shape[1] == 3)))
        return graph.forward

    if runtime == "tensorrt":
        monkeypatch.setitem(sys.modules, "torch_tensorrt", SimpleNamespace())
        torch._dynamo.register_backend(compiler, name="tensorrt")
    else:
        monkeypatch.setattr(cuda, "installed", lambda name: True)
        monkeypatch.setitem(cuda._COMPILED, "compile", {"backend": compiler})
    notes: list[str] = []
    there = with_runtime(network, runtime=runtime, device=CPU, note=notes.append)
    x, last = torch.rand(2, 3, 32, 40), torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        for given in (x, x, x, last):
            expected = network.correction(given)
            assert torch.allclose(there.correction(given), expected, rtol=0, atol=1e-5)
    # Not the last batch of a video.
    assert compiled == [(2, 3, 32, 40)]
    assert not notes


def test_missing_compilers_are_said(network: MIMOUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "installed", lambda name: False)
    with pytest.raises(DeviceError, match="compile needs Triton, which comes with PyTorch's build"):
        with_runtime(network, runtime="compile", device=CPU)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(UsageError, match=r"torch_tensorrt.*pip install 'vdeblur\[tensorrt\]'"):
        with_runtime(network, runtime="tensorrt", device=CPU)


def test_memory_of_graphs_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [
        {"device": 0, "segment_pool_id": (0, 0), "total_size": 50, "allocated_size": 20},
        {"device": 0, "segment_pool_id": (0, 1), "total_size": 40, "allocated_size": 5},
        {"device": 1, "segment_pool_id": (0, 2), "total_size": 500, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 90)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 25)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert devices.free_memory(torch.device("cuda", 0)) == 1000 + 30
