"""Colour in Triton kernels against `vdeblur.color`: in Triton's interpreter, on a GPU where one is.

See `tests/helpers/triton_kernels.py` for why the comparison is a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.triton_kernels import BUILD, run
from tests.inference.test_deblurrer import LAYOUTS, planes_of, same, small_network
from vdeblur.color import as_int16, matrices, planes_to_rgb
from vdeblur.frames import PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.kernels import color
from vdeblur.networks.taps import luma_of

COMPARE = """
import sys
import torch
from tests.inference.test_deblurrer import LAYOUTS, Adds, Returns, planes_of, same, small_network
from vdeblur.inference.kernels import color
from vdeblur.color import add_correction, as_int16, correction_to_planes
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.guard import damaged
from vdeblur.frames import PlaneLayout

device, dtype = sys.argv[1], getattr(torch, sys.argv[2])
torch.manual_seed(5)

def off_by(ours, theirs):
    worst, share = 0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        off = (as_int16(a).int() - as_int16(b).int()).abs() & 0xFFFF
        worst, share = max(worst, int(off.max())), max(share, float((off > 0).float().mean()))
    return worst, share

layouts = [layout for layout in LAYOUTS if not layout.interlaced] + [
    PlaneLayout(34, 20, 12, "yuv", (1, 1), False, "bt2020", "topleft"),
    PlaneLayout(18, 17, 8, "yuv", (0, 0), True, "ycgco"),
    PlaneLayout(31, 23, 8, "yuv", (2, 2), False, "bt601", "topleft"),
    PlaneLayout(5, 3, 16, "yuv", (1, 1), False, "bt709", "center"),
]
for layout in layouts:
    planes = [plane.to(device) for plane in planes_of(layout)]
    height, width = layout.height, layout.width
    # To a multiple, reflected; much larger than there is to reflect.
    for size in ((-(-height // 8) * 8, -(-width // 8) * 8), (44, 72)):
        got = color.planes_to_input(planes, layout, size=size, dtype=dtype)
        expected = color.in_torch(planes, layout, size=size, dtype=dtype)
        assert got.is_contiguous(memory_format=torch.channels_last), layout
        worst = float((got.float() - expected.float()).abs().max())
        assert worst <= 2 * max(torch.finfo(dtype).eps, 1e-6), (layout, size, worst)
    # Of padded size and of any strides, as networks return it.
    delta = torch.randn(2, 3, height + 5, width + 3, device=device).mul(0.1).to(dtype)
    cropped = delta[..., :height, :width].float() * 0.5
    expected = add_correction(planes, correction_to_planes(cropped, layout), layout)
    for strided in (delta, delta.contiguous(memory_format=torch.channels_last)):
        got = color.add_to_planes(planes, strided, layout, strength=0.5)
        worst, share = off_by(got, expected)
        # One code, and seldom: the sums are taken in another order.
        assert worst <= 1 and share < 0.002, (layout, worst, share)
    # What is held back changes no code, though it be not finite.
    broken = delta.clone()
    broken[1] = float("nan")
    replaced = torch.tensor([False, True], device=device)
    got = color.add_to_planes(planes, broken, layout, strength=0.5, replaced=replaced)
    assert off_by([p[:1] for p in got], [p[:1] for p in expected])[0] <= 1
    assert all(same(a[1:], b[1:]) for a, b in zip(got, planes, strict=True)), layout
    zero = color.add_to_planes(planes, torch.zeros_like(delta), layout)
    assert all(same(a, b) for a, b in zip(zero, planes, strict=True)), layout

# What is judged: blots, patterns, what is not finite; not blots beyond the last whole block.
layout = PlaneLayout(40, 37)
fine = torch.randn(8, 3, 40, 48, device=device) * 0.05
fine[1, 2, 16:32, 0:16] += 0.5
fine[2] = torch.randn(3, 40, 48) * 0.5
fine[3, 0, 36, 39] = float("nan")
fine[4, 1, 3, 3] = float("inf")
fine[5, 0, 32:37, 32:40] += 5
fine[6, :, 37:, 40:] = float("nan")
limits = {"block": 16, "block_mean": 0.35, "mean": 0.15}
for delta in (fine, fine.to(dtype).contiguous(memory_format=torch.channels_last)):
    flags = color.judge(delta, layout, **limits)
    assert flags.tolist() == damaged(delta[..., :37, :40].float()).tolist()
    assert flags.tolist() == [False, True, True, True, True, False, False, False]

# A deblurrer gives the same planes with and without, and harm is held back with both.
notes = []
for layout in (LAYOUTS[1], LAYOUTS[5], PlaneLayout(12, 9)):
    planes = [plane.to(device) for plane in planes_of(layout, low=0.2, high=0.7)]
    for network in (small_network(), Returns(), Adds(0.6, multiple=4)):
        restored = []
        for quick in (False, True):
            deblurrer = Deblurrer(network, device=device, precision="fp32", strength=0.7)
            deblurrer.use_kernels(quick)
            restored.append(deblurrer.restore_planes(planes, layout))
            notes += [note for note in deblurrer.notes if color.FALLBACK in note]
        (plain, told), (quick, also_told) = restored
        worst, share = off_by(quick, plain)
        assert worst <= 1 and share < 0.002, (layout, network, worst, share)
        assert told.tolist() == also_told.tolist() == [getattr(network, "value", 0) > 0.5] * 2
assert not notes, notes
ensemble = []
for quick in (False, True):
    deblurrer = Deblurrer(small_network(), device=device, precision="fp32", ensemble=True)
    deblurrer.use_kernels(quick)
    ensemble.append(deblurrer.restore_planes(planes, layout)[0])
    notes += [note for note in deblurrer.notes if color.FALLBACK in note]
worst, share = off_by(*ensemble)
assert worst <= 1 and share < 0.002 and not notes
print("agree")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_colour_kernels_agree_with_torch_in_the_interpreter() -> None:
    run(COMPARE, "agree", "cpu", "float16", interpret=True)


@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA"),
    reason="no CUDA device",
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_colour_kernels_agree_with_torch_on_a_gpu(dtype: str) -> None:
    run(COMPARE, "agree", "cuda", dtype, interpret=False)


COMPILE = """
from vdeblur.inference.kernels import color
from vdeblur.frames import PlaneLayout

for depth, plane in ((8, "*u8"), (10, "*i16")):
    for shift, siting in (((1, 1), "left"), ((1, 1), "topleft"), ((0, 0), "center")):
        layout = PlaneLayout(1920, 1080, depth, "yuv", shift, siting=siting)
        constants = color._constants(layout)
        planes = dict.fromkeys(("plane0", "plane1", "plane2", "new0", "new1", "new2"), plane)
        built(color._input_kernel, planes | {
              "table": "*fp32", "target": "*fp16", "luma": "*fp32"},
              constants | {"REFLECT": True, "LUMA": True, "PIXELS": 512})
        built(color._planes_kernel, planes | {
              "delta": "*fp16", "replaced": "*u8", "table": "*fp32", "strength": "fp32",
              "top": "fp32"}, constants | {"TOGETHER": 1, "SAMPLES": 128})
kinds = {"delta": "*fp16", "sums": "*fp32", "limit": "fp32"}
built(color._judge_kernel, kinds, {"BLOCK": 16})
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_colour_kernels_compile_for_hopper() -> None:
    run(BUILD + COMPILE, "compiled", interpret=False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_matrices_are_those_of_the_conversion(layout: PlaneLayout) -> None:
    """On planes of one code each, where there is nothing to interpolate."""
    planes = [plane[:, :1, :1].expand(-1, *shape).contiguous() for plane, shape in zip(
        planes_of(layout, low=0.2, high=0.45), layout.shapes, strict=True)]  # fmt: skip
    to_rgb, offset, to_codes = matrices(layout)
    codes = torch.stack([as_int16(plane)[:, 0, 0].double() for plane in planes], 1)
    codes = torch.cat([codes, torch.zeros(2, 3 - codes.shape[1], dtype=torch.float64)], 1)
    rgb = codes @ torch.tensor(to_rgb).double().T + torch.tensor(offset).double()
    expected = planes_to_rgb(planes, layout)[..., 0, 0].double()
    assert torch.allclose(rgb, expected, rtol=0, atol=1e-5)
    back = torch.tensor(to_codes).double() @ torch.tensor(to_rgb).double()
    if layout.kind != "gray":
        assert torch.allclose(back, torch.eye(3).double(), rtol=0, atol=1e-5)


def test_kernels_that_fail_are_told_once_and_torch_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nat line 3")

    monkeypatch.setattr(color, "planes_to_input", broken)
    deblurrer = Deblurrer(small_network(), device="cpu", backend="torch")
    assert deblurrer.color_kernels is None
    expected = [deblurrer.restore_planes(planes_of(layout), layout) for layout in LAYOUTS]
    deblurrer.use_kernels()
    for layout, (planes, replaced) in zip(LAYOUTS, expected, strict=True):
        again, also = deblurrer.restore_planes(planes_of(layout), layout)
        assert also.tolist() == replaced.tolist()
        assert all(same(a, b) for a, b in zip(again, planes, strict=True))
    assert deblurrer.notes == [
        "color is converted by torch, its kernels cannot be used here (no such instruction)"
    ]


def test_kernels_that_give_other_codes_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(planes: list[torch.Tensor], layout: PlaneLayout, **options: object) -> torch.Tensor:
        options.pop("luma")
        return color.in_torch(planes, layout, **options) + 0.01  # type: ignore[arg-type]

    notes: list[str] = []
    monkeypatch.setattr(color, "planes_to_input", off)
    layout = LAYOUTS[0]
    kernels = color.Kernels(notes.append)
    for _ in range(2):
        assert not kernels.usable(planes_of(layout), layout, size=(21, 33), dtype=torch.float32)
    assert notes == [
        "color is converted by torch, its kernels cannot be used here (RGB differs by 1.0e-02)"
    ]


@pytest.mark.parametrize(
    ("depth", "others", "usable"), [(8, 1, True), (16, 1, True), (8, 4, False)]
)
def test_a_rounding_in_a_tiny_picture_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, depth: int, others: int, usable: bool
) -> None:
    def right(planes: list[Tensor], layout: PlaneLayout, **options: Any) -> Tensor:
        luma = options.pop("luma")
        rgb = color.in_torch(planes, layout, **options)
        luma.copy_(luma_of(rgb))
        return rgb

    def off(planes: list[Tensor], delta: Tensor, layout: PlaneLayout) -> list[Tensor]:
        codes = [as_int16(plane).clone() for plane in planes]  # without a change
        for plane in codes:
            plane.flatten()[:others] -= 1
        return [codes.view(plane.dtype) for codes, plane in zip(codes, planes, strict=True)]

    monkeypatch.setattr(color, "planes_to_input", right)
    monkeypatch.setattr(color, "add_to_planes", off)
    layout = PlaneLayout(16, 16, depth)  # 64 codes of chroma
    codes = [np.full((1, *shape), 1 << (depth - 1), layout.dtype) for shape in layout.shapes]
    kernels = color.Kernels(lambda text: None)
    planes = [torch.from_numpy(plane) for plane in codes]
    assert kernels.usable(planes, layout, size=(16, 16), dtype=torch.float32) is usable


def test_running_out_of_memory_is_not_taken_for_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(color, "planes_to_input", full)
    notes: list[str] = []
    kernels, layout = color.Kernels(notes.append), LAYOUTS[0]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        kernels.usable(planes_of(layout), layout, size=(21, 33), dtype=torch.float32)
    assert not notes
