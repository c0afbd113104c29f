"""Residual blocks in 8 bits: what codes are, what they cost, and the kernels against torch.

See `test_convolution_kernels.py` for why the comparison with kernels is a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tests.inference.test_convolution_kernels import BUILD, run
from vdeblur.errors import DeviceError, ModelError, UsageError
from vdeblur.inference import runtimes
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.export import random_pictures
from vdeblur.inference.kernels import convolution, quantised
from vdeblur.inference.kernels.quantised import (
    KINDS,
    Kind,
    QuantisedBlock,
    Scale,
    blocks_of,
    measure_ranges,
    quantise,
)
from vdeblur.inference.runtimes import choose_runtime, cuda, with_runtime
from vdeblur.networks.layers import ResBlock
from vdeblur.networks.mimo_unet import MIMOUNet
from vdeblur.weights import load_network, save_weights

BOTH = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
GPU = torch.device("cuda", 0)


def network(**config: int | list[int]) -> MIMOUNet:
    """Untrained, with a correction of about a trained one's size."""
    torch.manual_seed(1)
    made = MIMOUNet(**({"base": 32, "blocks": 1, "unshuffle": 4} | config)).eval()  # type: ignore[arg-type]
    made.requires_grad_(False)
    for parameter in made.feat_extract[5].parameters():
        parameter.mul_(0.1)
    return made


def ratio(got: Tensor, expected: Tensor) -> float:
    """Signal to noise, in dB."""
    noise = (got - expected).square().mean()
    return float(10 * torch.log10(expected.square().mean() / noise))


COMPARE = """
import sys
import torch
from vdeblur.inference.kernels import convolution, quantised
from vdeblur.networks.layers import ResBlock
from vdeblur.inference.kernels.quantised import KINDS, QuantisedBlock

device, dtype, kind = sys.argv[1], getattr(torch, sys.argv[2]), KINDS[sys.argv[3]]
torch.manual_seed(5)
# Wider and higher than a tile of the block kernel; small ones for the interpreter, which is slow.
height, width = 20, 36
if device == "cpu":
    quantised.TILE_ROWS, quantised.TILE_COLUMNS, height, width = 4, 8, 6, 11
for channels, hidden in ((32, 32), (32, 20), (64, 96)):
    block = ResBlock(channels, hidden).eval().requires_grad_(False).to(device, dtype)
    x = torch.randn(2, channels, height, width, device=device).to(dtype)
    middle = block.main[0](x)
    ranges = [(float(a.min()), float(a.max())) for a in (x, middle)]
    coded = QuantisedBlock(block, tuple(ranges), kind)
    expected, plain = coded.reference(x).float(), block(x).float()
    ways = coded.ways()
    assert any("one kernel" in name for name in ways) == (hidden != 96)
    # A code may fall to the other side where fp32 sums in another order. The interpreter makes fp8
    # of fp32 by its own arithmetic (3.9: no carry into the exponent): only structure is held.
    step = float((expected - plain).abs().mean())
    allowed = 4 if kind.name == "fp8" and device == "cpu" else 0.02
    for name, way in list(ways.items())[:: 1 if device == "cuda" else 3]:
        got = way(x)
        assert got.shape == x.shape and got.dtype == dtype
        off = float((got.float() - expected).abs().mean())
        assert off < allowed * step, (channels, hidden, name, off, step)
        assert off < 0.2 * float((plain - x.float()).abs().mean()), (name, off)
if device == "cuda":
    assert float((coded(x).float() - plain).abs().mean()) < 2 * step
print("agree")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@BOTH
def test_kernels_are_the_reference_in_the_interpreter(kind: Kind) -> None:
    run(COMPARE, "agree", "cpu", "float32", kind.name, interpret=True)


@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA"),
    reason="no CUDA device",
)
@BOTH
def test_kernels_are_the_reference_on_a_gpu(kind: Kind) -> None:
    run(COMPARE, "agree", "cuda", "float16", kind.name, interpret=False)


START = """
import torch
from vdeblur.inference.kernels import quantised
from vdeblur.inference.runtimes import cuda, with_runtime
from vdeblur.networks.base import correction_of
from tests.inference.test_quantised_kernels import network, ratio
from vdeblur.inference.export import random_pictures

quantised.TILE_ROWS, quantised.TILE_COLUMNS = 4, 8
cuda.require = lambda *_: None
net, x = network(), random_pictures(1, 32, 32)
there = with_runtime(net, runtime="triton", device=torch.device("cpu"), precision="int8",
               calibration=[x], note=print)
got, expected = there.correction(x), net.correction(x)
assert not torch.equal(got, expected) and ratio(got, expected) > 25, ratio(got, expected)
print("agree")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_a_network_starts_in_8_bits() -> None:
    run(START, "agree", interpret=True)


COMPILE = """
from vdeblur.inference.kernels import quantised

channels = 64
for codes, integer, operands in (("*i8", True, "s32.s8.s8"), ("*fp8e4nv", False, "f32.e4m3.e4m3")):
    kinds = dict.fromkeys(("weights", "weights1", "weights2", "scratch"), codes)
    kinds |= dict.fromkeys(("factors", "factors1", "factors2", "bias", "bias1", "bias2"), "*fp32")
    kinds |= dict.fromkeys(("zero", "zero1", "zero2", "inverse1", "inverse2"), "fp32")
    kinds |= dict.fromkeys(("inverse", "inverse_out", "zero_out"), "fp32")
    launch = quantised._LAUNCHES[0]
    constants = {"CHANNELS": channels, "OUT": channels, "BLOCK": channels, "OUTS": channels,
                 "ROWS": launch.rows, "INTEGER": integer}
    for last in (False, True):
        more = {"source": codes, "added": "*fp16", "target": "*fp16" if last else codes}
        ptx = built(quantised._conv_kernel, kinds | more, constants | {"LAST": last}, launch)
        assert "wgmma" in ptx and operands in ptx
    launch = quantised._BLOCK_LAUNCHES[-1]
    constants = {"CHANNELS": channels, "HIDDEN": channels, "ROWS": launch.rows,
                 "TILE_ROWS": quantised.TILE_ROWS, "TILE_COLUMNS": quantised.TILE_COLUMNS,
                 "PROGRAMS": launch.programs, "INTEGER": integer}
    more = {"source": "*fp16", "target": "*fp16"}
    ptx = built(quantised._block_kernel, kinds | more, constants, launch)
    assert "wgmma" in ptx and operands in ptx and "cp.async" in ptx
    more = {"source": "*fp16", "target": codes}
    built(quantised._codes_kernel, kinds | more, {"INTEGER": integer, "BLOCK": 1024})
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compile_to_hoppers_8_bit_tensor_cores() -> None:
    run(BUILD + COMPILE, "compiled", interpret=False)


@pytest.mark.parametrize("measured", [(-1.0, 3.0), (0.0, 2.0), (0.5, 2.0), (-2.0, -1.0), (0, 0)])
@BOTH
def test_zero_has_a_code_and_ranges_use_all_codes(
    measured: tuple[float, float], kind: Kind
) -> None:
    scale = Scale.of(measured, kind)
    assert kind.low <= scale.zero <= kind.high
    assert scale.zero == round(scale.zero)
    ends = [min(measured[0], 0.0), max(measured[1], 0.0)]
    codes = [end * scale.inverse + scale.zero for end in ends]
    assert kind.low - 0.5 <= codes[0] <= codes[1] <= kind.high + 0.5
    if any(measured):
        span = codes[1] - codes[0] if kind.integer else max(-codes[0], codes[1])
        assert span == pytest.approx(255 if kind.integer else 448)


@BOTH
def test_a_block_on_codes_is_nearly_the_block_at_the_edges_too(kind: Kind) -> None:
    torch.manual_seed(2)
    block = ResBlock(32, 20).eval().requires_grad_(False)
    # Values far from 0 all over: an edge padded with the wrong code would stand out.
    x = torch.rand(2, 32, 9, 12) + 1
    middle = block.main[0](x)
    ranges = ((0.0, 2.0), (0.0, float(middle.max())))
    coded = QuantisedBlock(block, ranges, kind, kernels=False)
    branch, expected = coded(x) - x, block(x) - x
    wanted = 30 if kind.integer else 20
    assert ratio(branch, expected) > wanted
    edge = torch.ones(9, 12, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert ratio(branch[..., edge], expected[..., edge]) > wanted
    # In fp32, the picture itself is not rounded to codes.
    small = QuantisedBlock(block, ranges, kind, kernels=False)
    for conv in (small.first, small.second):
        conv.get_buffer("factors").zero_()
        conv.get_buffer("bias").zero_()
    assert torch.equal(small(x), x)


def test_weights_have_a_scale_for_each_output_and_are_ordered_by_tap_output_input() -> None:
    block = ResBlock(32).eval().requires_grad_(False)
    block.main[0].main[0].weight[3].mul_(100)  # type: ignore[union-attr,index]
    conv = QuantisedBlock(block, ((-1, 1), (0, 1)), KINDS["int8"]).first
    codes = conv.get_buffer("codes")
    assert codes.dtype == torch.int8
    assert codes.shape == (9, 32, 32)
    assert codes.abs().amax(dim=(0, 2)).tolist() == [127] * 32
    weight = block.main[0].main[0].weight  # type: ignore[union-attr,index]
    values = codes[5].float() * conv.get_buffer("factors")[:, None] * conv.scale.inverse
    steps = weight.abs().amax(dim=(1, 2, 3)) / 127
    assert bool(((values - weight[:, :, 1, 2]).abs() <= steps[:, None] * 0.51).all())


@BOTH
def test_a_network_in_8_bits_is_nearly_the_network(kind: Kind) -> None:
    # Pruned in one block; the channels of another are no multiple of what tensor cores take.
    net, x = network(hidden=[32, 40, 128, 128, 64, 32]), random_pictures(1, 64, 96)
    ranges = measure_ranges(net, net.correction, [x, x.flip(3)])
    assert set(ranges) == set(blocks_of(net))
    assert len(ranges) == 6
    assert not any(module._forward_pre_hooks for module in net.modules())
    before = net.correction(x)
    coded = quantise(net, ranges, kind, kernels=False)
    assert sum(isinstance(layer, QuantisedBlock) for layer in coded.modules()) == 6
    assert torch.equal(net.correction(x), before)
    distance = ratio(coded.correction(x), before)  # type: ignore[operator]
    assert (25 if kind.integer else 20) < distance < 80


def test_blocks_of_other_widths_are_left() -> None:
    assert not blocks_of(network(base=4, unshuffle=1))
    assert len(blocks_of(network(base=24, unshuffle=1))) == 2  # 24, 48, 96
    assert len(blocks_of(network(base=16, unshuffle=1))) == 4


def test_the_widest_range_of_all_pictures_counts() -> None:
    net = network()
    dark, bright = (random_pictures(1, 64, 64) * light for light in (0.1, 1.0))
    one, both = (measure_ranges(net, net.correction, some) for some in ([dark], [dark, bright]))
    name = "Encoder.0.layers.0"
    assert both[name][0][1] > 2 * one[name][0][1]
    assert both == measure_ranges(net, net.correction, [bright, dark])


def test_pictures_on_which_the_network_fails_are_told() -> None:
    net = network()
    ranges = measure_ranges(net, net.correction, [torch.full((1, 3, 32, 32), float("nan"))])
    with pytest.raises(ModelError, match="precision fp8: the network's values are not finite"):
        quantise(net, ranges, KINDS["fp8"])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_8_bits_are_refused_in_a_sentence(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(convolution, "available", lambda: False)
    with pytest.raises(DeviceError, match=f"precision {precision} on cuda:0 needs Triton"):
        cuda.require(net, precision, GPU)
    monkeypatch.setattr(convolution, "available", lambda: True)
    cuda.require(net, precision, GPU)
    with pytest.raises(ModelError, match=f"{precision} on cuda:0 is for networks with residual"):
        cuda.require(network(base=4, unshuffle=1), precision, GPU)
    # The default network has other blocks.
    with pytest.raises(ModelError) as refused:
        with_runtime(load_network(), runtime="triton", device=GPU, precision=precision)
    assert str(refused.value) == (
        f"precision {precision} on cuda:0 is for networks with residual blocks of 32, 64, … "
        "channels, such as mimo-unet, which MIMOUNetGuided is not: use `precision='auto'`"
    )
    capability = (7, 5)
    with pytest.raises(DeviceError, match=r"compute capability 8\.\d or more, and cuda:0 has 7\.5"):
        cuda.require(net, precision, GPU)
    with pytest.raises(ModelError, match=f"{precision} needs pictures"):
        cuda.create_8_bit_runner(
            net, device=GPU, precision=precision, calibration=(), note=lambda _: None
        )


def test_8_bits_are_for_whom_they_are() -> None:
    net, cpu = network(), torch.device("cpu")
    assert (
        choose_runtime("auto", net, GPU, "int8")
        == choose_runtime("triton", net, GPU, "int8")
        == "triton"
    )
    assert choose_runtime("auto", net, GPU, "fp8") == "triton"
    assert choose_runtime("auto", net, cpu, "int8") == "openvino"
    for backend, device, precision in (
        ("torch", GPU, "int8"),
        ("cudagraphs", GPU, "fp8"),
        ("openvino", GPU, "int8"),
        ("torch", cpu, "fp8"),
    ):
        with pytest.raises(UsageError, match=rf"precision {precision} is for .*, not for "):
            choose_runtime(backend, net, device, precision)  # type: ignore[arg-type]
    with pytest.raises((DeviceError, UsageError), match="precision fp8 is for Triton on CUDA"):
        Deblurrer(network(), device="cpu", precision="fp8")


@pytest.mark.parametrize("precision", runtimes.EIGHT_BITS)
def test_without_pictures_the_first_that_come_are_measured(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, list[Tensor]]] = []

    def start(net: MIMOUNet, **options: object) -> object:
        given.append((str(options["precision"]), list(options["calibration"])))  # type: ignore[call-overload]
        return net.correction

    monkeypatch.setattr(cuda, "create_8_bit_runner", start)
    monkeypatch.setattr(cuda, "require", lambda *_: None)
    net, first = network(), torch.rand(1, 3, 32, 32)
    there = with_runtime(net, runtime="triton", device=torch.device("cpu"), precision=precision)
    assert not given
    for picture in (first, torch.rand(1, 3, 32, 32)):
        assert torch.equal(there.correction(picture), net.correction(picture))
    ((asked, pictures),) = given
    assert asked == precision
    assert pictures == [first]
    with_runtime(
        net, runtime="triton", device=torch.device("cpu"), precision=precision,
        calibration=[first, first],
    )  # fmt: skip
    assert len(given[1][1]) == 2


def test_edges_are_padded_with_the_code_of_zero() -> None:
    """A convolution by itself, against one of the values that its codes stand for."""
    torch.manual_seed(3)
    conv = torch.nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False)
    coded = quantised.QuantisedConv(conv, (-0.5, 2.0), KINDS["int8"], outputs=32, inputs=32)
    codes = coded.quantise(torch.rand(1, 32, 5, 6) * 2.5 - 0.5)
    values = (codes - coded.scale.zero) / coded.scale.inverse
    weight = coded.get_buffer("codes").float() * coded.get_buffer("factors")[:, None]
    weight = weight.mul(coded.scale.inverse).view(3, 3, 32, 32).permute(2, 3, 0, 1)
    expected = F.conv2d(values, weight, conv.bias, padding=1)
    assert torch.allclose(coded(codes), expected, rtol=0, atol=1e-4)


def test_what_8_bits_cost_on_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("blur", "sharp"):
        (tmp_path / "pairs" / kind).mkdir(parents=True)
    for number, sharp in enumerate(random_pictures(3, 64, 96)):
        for kind, picture in (("sharp", sharp), ("blur", F.avg_pool2d(sharp, 5, 1, 2))):
            pixels = picture.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / "pairs" / kind / f"{number}.png")

    def score(*words: object) -> str:
        monkeypatch.setattr("sys.argv", ["score_8_bits.py", *map(str, words)])
        program = Path(__file__).parents[2] / "pipelines" / "score_8_bits.py"
        runpy.run_path(str(program), run_name="__main__")
        return capsys.readouterr().out

    net = network()
    for parameter in net.feat_extract[5].parameters():
        parameter.mul_(8)  # as much as a trained one does to such pictures
    save_weights(tmp_path / "net.safetensors", net.state_dict(), network="mimo-unet",
                 config=net.config, half=False)  # fmt: skip
    model = ("--weights", tmp_path / "net.safetensors")
    said = score(tmp_path / "pairs", *model).splitlines()
    assert len(said) == 3 * 4 + 3
    for kind, line in zip((*KINDS, "bf16"), said[-3:], strict=True):
        mean, worst = (float(word) for word in re.findall(r"[+-]\d+\.\d+", line))
        assert line.startswith(f"{kind}: loses ")
        assert mean <= worst < 0.05
    # Weights that are not trained, and pictures of no camera: near fp32 all the same.
    near = [float(word) for word in re.findall(r"([\d.]+) dB to fp32", "\n".join(said))]
    assert len(near) == 9
    assert 60 < min(near) <= max(near) < 95
    clip = Path(__file__).parents[2] / "samples" / "street_blurred.mp4"
    assert score(tmp_path / "pairs", *model, "--calibrate", clip).splitlines() != said
    with pytest.raises(SystemExit, match="no weights of 'mimo-unet' are here: pass `weights=FILE`"):
        score(tmp_path / "pairs")
    for other in ("identity", "mimo-unet-guided"):
        with pytest.raises(SystemExit, match=f"^{other} has no residual blocks of 32"):
            score(tmp_path / "pairs", "--model", other)
