"""Triton kernels against torch: on CPU tensors in Triton's interpreter, on a GPU where one is.

Whether the interpreter is used is decided when Triton is imported, so the comparison is a process
of its own. CPU builds of PyTorch come without Triton: the test then skips.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vdeblur.inference.kernels import autotune, convolution
from vdeblur.networks.mimo_unet import MIMOUNet

COMPARE = """
import sys
import torch, torch.nn.functional as F
from vdeblur.inference.kernels import autotune, convolution
from vdeblur.networks.mimo_unet import MIMOUNet

device, dtype = sys.argv[1], getattr(torch, sys.argv[2])
tolerance = 1e-5 if dtype == torch.float32 else 2e-2
torch.manual_seed(5)
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

def close(a, b):
    worst = float((a.float() - b.float()).abs().max() / b.float().abs().max())
    assert a.shape == b.shape and a.dtype == b.dtype and worst < tolerance, worst

for size, channels, out in (((5, 7), 16, 32), ((6, 37), 48, 16)):
    x = torch.randn(2, channels, *size, device=device).to(dtype)
    w = torch.randn(out, channels, 3, 3, device=device).to(dtype) / channels
    b = torch.randn(out, device=device).to(dtype)
    z = torch.randn(2, out, *size, device=device).to(dtype)
    plain, packed = F.conv2d(x, w, b, padding=1), convolution.pack(w)
    for launch in convolution.LAUNCHES[-1:] if device == "cpu" else convolution.LAUNCHES:
        close(convolution.conv3x3(x, packed, b, launch=launch), plain)
        close(convolution.conv3x3(x, packed, b, relu=True, launch=launch), plain.relu())
        close(convolution.conv3x3(x, packed, b, added=z, launch=launch), plain + z)

if device == "cpu":  # which has no clock of a GPU: torch's own way comes first, and takes longest
    times = iter(range(10**6, 0, -1))
    autotune.milliseconds = lambda way: next(times)
# A pruned block's middle is narrower.
network = MIMOUNet(base=16, blocks=1, hidden=[16, 32, 64, 64, 16, 16]).eval().to(device, dtype)
x = torch.rand(1, 3, 8, 12, device=device).to(dtype)
with torch.no_grad():
    quick = convolution.fuse(network)
    blocks = [m for m in quick.modules() if isinstance(m, convolution.FusedBlock)]
    assert len(blocks) == 6
    close(quick.correction(x), network.correction(x))
names = {name.split()[0] for name in autotune.chosen.values()}
assert device == "cuda" or names == {"triton", "torch"}, names
print("agree")
"""


def compare(device: str, dtype: str, *, interpret: bool) -> None:
    run(COMPARE, "agree", device, dtype, interpret=interpret)


def run(program: str, last: str, *words: str, interpret: bool) -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1" if interpret else "0")
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(f"{last}\n")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_agree_with_torch_in_the_interpreter() -> None:
    compare("cpu", "float32", interpret=True)


@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA"),
    reason="no CUDA device",
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_agree_with_torch_on_a_gpu(dtype: str) -> None:
    compare("cuda", dtype, interpret=False)


#: Compiles a kernel for an H200 (sm_90), which takes no device. kinds: of arguments but i32.
BUILD = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from vdeblur.inference.kernels.convolution import Launch

def built(kernel, kinds, constants, launch=Launch()):
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # A pointer whose alignment is not known is not copied from in parts of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
               if name not in constants and signature[name].startswith("*")}
    source = ASTSource(
        fn=kernel, signature=signature | dict.fromkeys(constants, "constexpr"), attrs=aligned,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.metadata.shared <= 227 * 1024, made.metadata.shared  # what a processor has
    return made.asm["ptx"]
"""

COMPILE = """
from vdeblur.inference.kernels import convolution

kernel = convolution._conv3x3_kernel
numbers = ("pixels", "height", "width")
kinds = {name: "*fp16" for name in kernel.arg_names if name not in numbers}
for channels in (32, 64, 128):
    constants = {"CHANNELS": channels, "OUT": channels, "BLOCK": min(channels, 64),
                 "OUTS": min(channels, 64), "RELU": False, "ADD": True}
    for launch in convolution.LAUNCHES:
        ptx = built(kernel, kinds, constants | {"ROWS": launch.rows}, launch)
        # Its tensor cores multiply, and copies run beside them where there are stages for it.
        assert "wgmma" in ptx and ("cp.async" in ptx) == (launch.stages > 1), (channels, launch)
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_compiles_for_hopper_and_fits_its_shared_memory() -> None:
    run(BUILD + COMPILE, "compiled", interpret=False)


class Clock:
    """Says how long ways take, by name, and remembers which were asked for."""

    def __init__(self, ways: dict[str, autotune.Way], times: dict[str, float]) -> None:
        self.names = {way: name for name, way in ways.items()}
        self.times, self.asked = times, list[str]()

    def __call__(self, way: Any) -> float:
        self.asked.append(self.names[way])
        return self.times[self.asked[-1]]


def test_the_fastest_way_that_agrees_is_taken_and_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Tensor:
        raise RuntimeError("out of resources")

    x = torch.rand(1, 4, 8, 8)
    ways: dict[str, autotune.Way] = {
        "torch": lambda: 2 * x, "slow": lambda: x * 2.0, "wrong": lambda: x + 1, "broken": broken,
        "quick": lambda: x + x * 1.001,
    }  # fmt: skip
    times = {"torch": 3.0, "slow": 5.0, "wrong": 0.1, "broken": 0.1, "quick": 2.0}
    clock = Clock(ways, times)
    monkeypatch.setattr(autotune, "milliseconds", clock)
    monkeypatch.setattr(autotune, "chosen", {})
    for _ in range(2):
        assert torch.equal(autotune.fastest(("test", 1), ways, x), x + x * 1.001)
    assert clock.asked == ["torch", "slow", "quick"]
    # Another shape is measured anew; there torch's own wins.
    times["torch"] = 1.0
    assert torch.equal(autotune.fastest(("test", 1), ways, x[..., :4]), 2 * x)
    assert torch.equal(autotune.fastest(("test", 1), ways, x), x + x * 1.001)


@pytest.mark.parametrize("works", [True, False], ids=["NVIDIA", "AMD"])
def test_cudnns_fused_call_has_the_place_of_convolution_and_relu(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Triton, as PyTorch for Windows is; torch's call exists and fails on AMD's GPUs."""
    called: list[tuple[int, ...]] = []

    def fused_call(x: Tensor, weight: Tensor, bias: Tensor, *sizes: Any) -> Tensor:
        if not works:
            raise NotImplementedError("Could not run 'aten::cudnn_convolution_relu'")
        called.append(tuple(weight.shape))
        return torch.nn.functional.conv2d(x, weight, bias, *sizes).relu()

    monkeypatch.setattr(convolution, "triton", None)
    monkeypatch.setattr(convolution, "_cudnn_relu", fused_call)
    monkeypatch.setattr(autotune, "chosen", {})
    times = iter(range(10**6, 0, -1))
    monkeypatch.setattr(autotune, "milliseconds", lambda way: next(times))
    network = MIMOUNet(base=8, blocks=1).eval().requires_grad_(False)
    x = torch.rand(1, 3, 16, 24)
    quick: Any = convolution.fuse(network)
    for _ in range(2):
        called.clear()
        assert torch.allclose(quick.correction(x), network.correction(x), rtol=0, atol=1e-6)
    assert len(called) == (21 if works else 0)
    # Only where ReLU follows the convolution at once, but of any size and stride.
    assert {shape[2] for shape in called} == ({1, 3} if works else set())


def test_packed_weights_are_ordered_by_tap_input_output() -> None:
    weight = torch.rand(32, 16, 3, 3)
    packed = convolution.pack(weight)
    assert packed.shape == (9, 16, 32)
    assert torch.equal(packed[5, 3], weight[:, 3, 1, 2])
