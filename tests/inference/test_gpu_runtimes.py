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


@pytest.mark.parametrize(
    ("got", "wrong"),
    [
        (lambda x: x + 1e-3, None),
        (lambda x: x + 0.1, "agrees with torch to 26 dB only, less than 50 dB"),
        (lambda x: x * math.nan, "agrees with torch to -74 dB only, less than 50 dB"),
        (lambda x: x[:, :1], "gives (1, 1, 4, 4) instead of (1, 3, 4, 4)"),
    ],
)
def test_corrections_are_compared(got: Callable[[Tensor], Tensor], wrong: str | None) -> None:
    x = torch.full((1, 3, 4, 4), 2.0)
    assert cuda.differs(x, got(x)) == wrong


def test_bf16_is_held_to_its_own_roundings() -> None:
    x = torch.rand(1, 3, 64, 64)
    half = x + torch.randn_like(x) * 10 ** (-40 / 20)
    assert cuda.differs(x.bfloat16(), half.bfloat16()) is None
    assert cuda.differs(x.half(), half.half()) is not None
    assert cuda.differs(x.bfloat16(), x.bfloat16() + 0.1) is not None


def test_passes_that_launching_does_not_bound_are_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[tuple[int, ...]] = []

    def record(call: Any, x: Tensor) -> Any:
        recorded.append(tuple(x.shape))
        return call

    monkeypatch.setattr(cuda, "Recorder", lambda: record)
    plain = torch.nn.Identity()
    run = cuda.create_runner(
        plain, runtime="cudagraphs", device=torch.device("cuda"), note=pytest.fail
    )
    for shape in ((1, 3, 1088, 1920), (2, 3, 1080, 1920)):
        for _ in range(3):
            assert not run(torch.ones(shape)).any()
    assert recorded == [(1, 3, 1088, 1920)]


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
