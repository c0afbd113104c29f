"""Guidance in Triton kernels against `vdeblur.networks.taps`: in Triton's interpreter, on a GPU
where one is.

See `tests/helpers/triton_kernels.py` for why the comparison is a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.helpers.triton_kernels import BUILD, run
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.kernels import guidance
from vdeblur.inference.transfers import motion_of
from vdeblur.motion.neighbours import Around, Link, View, around_of

COMPARE = """
import sys
import torch
from tests.inference.test_guidance_kernels import restored
from vdeblur.inference.kernels import guidance

device = torch.device(sys.argv[1])
notes = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    assert guidance.Kernels(notes.append).usable(device, dtype) and not notes, (dtype, notes)
# A film is restored to the same codes: pictures padded and not, one at a time and in batches.
for height, batch in ((40, 1), (36, 3)):
    plain, quick = (restored(device, height, batch, wanted) for wanted in (False, True))
    off = (plain.int() - quick.int()).abs()
    # OpenCV rounds positions to 1/32 of a pixel on a CPU.
    assert int(off.max()) <= 3 and float(off.float().mean()) < 0.05, (
        height, batch, int(off.max()), float(off.float().mean()))
print("agree")
"""


WIDTH = 56  # the interpreter is slow


def film(height: int) -> list[Frame]:
    """Blurred frames of a moving pattern, the first and the last with one neighbor."""
    layout = PlaneLayout(WIDTH, height)
    rng, frames = np.random.default_rng(3), []
    world = np.kron(rng.integers(40, 220, (2 + height // 6, 40)), np.ones((6, 6))).astype(np.uint8)
    for number in range(3):
        start = 20 + 7 * number
        luma = np.mean([world[:height, start + s : start + s + WIDTH] for s in range(8)], 0)
        chroma = [np.full(shape, 128, np.uint8) for shape in layout.shapes[1:]]
        frame = Frame((luma.astype(np.uint8), *chroma), layout, number, Fraction(1, 25))
        frame.motion = np.zeros((4, 5, 7), np.float32)
        frame.motion[0] = 7
        frames.append(frame)
    views = [View(frame) for frame in frames]
    for number, frame in enumerate(frames):
        links: list[Link | None] = []
        for other in (number - 1, number + 1):
            way = torch.zeros(2, 5, 7)
            way[0] = 7 * (other - number)
            links.append((views[other], way) if 0 <= other < len(views) else None)
        frame.around = Around(views[number], links[0], links[1])
    return frames


def restored(device: torch.device, height: int, batch: int, kernels: bool) -> torch.Tensor:
    """The luma of the film's frames, (N, rows, columns), restored `batch` at a time."""
    deblurrer = Deblurrer(device=device, precision="fp32", backend="torch", steady=False)
    deblurrer.use_kernels(kernels)
    frames, planes = film(height), []
    for start in range(0, len(frames), batch):
        some = frames[start : start + batch]
        pairs = zip(*(frame.planes for frame in some), strict=True)
        stacked = [torch.from_numpy(np.stack(same)) for same in pairs]
        results, replaced = deblurrer.restore_planes(
            stacked, some[0].layout, motion_of(some), around_of(some)
        )
        assert not replaced.any()
        planes.append(results[0].cpu())
    assert not [note for note in deblurrer.notes if guidance.FALLBACK in note]
    before = torch.from_numpy(np.stack([frame.planes[0] for frame in frames]))
    assert (torch.cat(planes).int() - before.int()).abs().max() > 20
    return torch.cat(planes)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_agree_with_torch_in_the_interpreter() -> None:
    run(COMPARE, "agree", "cpu", interpret=True)


@pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA"),
    reason="no CUDA device",
)
def test_kernels_agree_with_torch_on_a_gpu() -> None:
    run(COMPARE, "agree", "cuda", interpret=False)


COMPILE = """
from vdeblur.inference.kernels import guidance

pointers = dict.fromkeys(("luma", "other", "added", "motion", "way", "table"), "*fp32")
scales = dict.fromkeys(("scale_y", "scale_x", "way_scale_y", "way_scale_x"), "fp32")
for dtype in ("*fp16", "*fp32"):
    kinds = pointers | scales | dict.fromkeys(("out", "pictures", "directions"), dtype)
    for last in ({}, {"step_c": 1}, {"step_x": 1}):  # of any strides, channels-last, planes
        built(guidance._own_kernel, kinds, guidance._OWN_CONSTANTS | last)
        built(guidance._neighbour_kernel, kinds, guidance._NEIGHBOUR_CONSTANTS | last)
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compile_for_hopper() -> None:
    run(BUILD + COMPILE, "compiled", interpret=False)


def test_kernels_that_fail_are_told_once_and_torch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction\nat line 3")

    monkeypatch.setattr(guidance, "guidance", broken)
    here, frames = torch.device("cpu"), film(40)
    deblurrer = Deblurrer(device=here, precision="fp32", backend="torch", steady=False)
    deblurrer.use_kernels()
    planes = [torch.from_numpy(plane[None]) for plane in frames[1].planes]
    arguments = planes, frames[1].layout, motion_of(frames[1:2]), around_of(frames[1:2])
    for _ in range(2):
        assert not torch.equal(deblurrer.restore_planes(*arguments)[0][0], planes[0])
    said = [note for note in deblurrer.notes if "kernels" in note]
    assert f"{guidance.FALLBACK}, its kernels cannot be used here (no such instruction)" in said
