"""Colour: against the equations in float64, exact identities, chroma sites, fields."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.color import (
    add_correction,
    correction_to_planes,
    merge_fields,
    planes_to_rgb,
    split_fields,
)
from vdeblur.frames import ChromaSiting, Matrix, PlaneLayout

MATRICES: tuple[Matrix, ...] = ("bt601", "bt709", "bt2020", "smpte240m", "fcc", "ycgco")
SITINGS: tuple[ChromaSiting, ...] = ("left", "center", "topleft")
SHIFTS = ((0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (2, 2))
WEIGHTS = {
    "bt601": (0.299, 0.587, 0.114),
    "bt709": (0.2126, 0.7152, 0.0722),
    "bt2020": (0.2627, 0.678, 0.0593),
    "smpte240m": (0.212, 0.701, 0.087),
    "fcc": (0.30, 0.59, 0.11),
}


def random_planes(layout: PlaneLayout, count: int = 2, seed: int = 0) -> list[Tensor]:
    """Every code of the depth, legal or not."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.uint8 if layout.depth == 8 else torch.uint16
    top = 1 << layout.depth
    return [
        torch.randint(0, top, (count, *shape), generator=generator, dtype=torch.int32).to(dtype)
        for shape in layout.shapes
    ]


def rgb_to_codes(rgb: NDArray[np.float64], layout: PlaneLayout) -> list[NDArray[np.float64]]:
    """The textbook's equations, colour by colour: (3, …) RGB → three codes, not rounded."""
    r, g, b = rgb
    if layout.matrix == "ycgco":
        y, cb, cr = (r + 2 * g + b) / 4, (2 * g - r - b) / 4, (r - b) / 2
    else:
        kr, kg, kb = WEIGHTS[layout.matrix]
        y = kr * r + kg * g + kb * b
        cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    n = 2 ** (layout.depth - 8)
    if layout.full_range:
        top = 2**layout.depth - 1
        return [y * top, cb * top + 128 * n, cr * top + 128 * n]
    return [(219 * y + 16) * n, (224 * cb + 128) * n, (224 * cr + 128) * n]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
@pytest.mark.parametrize("full_range", [False, True])
def test_codes_of_known_colors_become_those_colors(
    matrix: Matrix, depth: int, full_range: bool
) -> None:
    grid = np.array(list(itertools.product((0.0, 0.25, 0.5, 1.0), repeat=3))).T.reshape(3, 8, 8)
    layout = PlaneLayout(
        8, 8, depth=depth, matrix=matrix, full_range=full_range, chroma_shift=(0, 0)
    )
    dtype = torch.uint8 if depth == 8 else torch.uint16
    codes = [np.rint(c).clip(0, 2**depth - 1) for c in rgb_to_codes(grid, layout)]
    planes = [torch.from_numpy(c.astype(np.int32))[None].to(dtype) for c in codes]
    rgb = planes_to_rgb(planes, layout)[0].numpy()
    # The codes are rounded by up to ½ (full-range chroma is clipped at ½ more): 2 codes in RGB.
    assert np.abs(rgb - grid).max() < 2.2 / (219 * 2 ** (depth - 8))


def test_the_colors_everyone_knows() -> None:
    def color(*codes: int, **changes: object) -> list[float]:
        layout = replace(PlaneLayout(1, 1, chroma_shift=(0, 0)), **changes)  # type: ignore[arg-type]
        planes = [torch.full((1, 1, 1), code, dtype=torch.uint8) for code in codes]
        return [float(v) for v in planes_to_rgb(planes, layout).flatten()]

    assert color(235, 128, 128) == pytest.approx([1, 1, 1], abs=1e-6)
    assert color(16, 128, 128) == pytest.approx([0, 0, 0], abs=1e-6)
    assert color(81, 90, 240, matrix="bt601") == pytest.approx([1, 0, 0], abs=0.01)
    assert color(63, 102, 240) == pytest.approx([1, 0, 0], abs=0.01)
    assert color(255, 128, 128, full_range=True) == pytest.approx([1, 1, 1], abs=1e-6)
    # Super-white and blacker-than-black are kept for what they are.
    assert color(255, 128, 128)[0] > 1.09
    assert color(0, 128, 128)[0] < -0.07


def test_rgb_planes_are_g_b_r_and_gray_is_three_times_itself() -> None:
    layout = PlaneLayout(4, 2, kind="rgb", depth=10, full_range=True)
    g, b, r = random_planes(layout)
    rgb = planes_to_rgb([g, b, r], layout)
    expected = torch.stack([p.to(torch.int32).float() / 1023 for p in (r, g, b)], 1)
    assert torch.allclose(rgb, expected)
    for full_range, black, white in ((False, 16, 235), (True, 0, 255)):
        gray = PlaneLayout(2, 1, kind="gray", full_range=full_range)
        plane = torch.tensor([[[black, white]]], dtype=torch.uint8)
        assert planes_to_rgb([plane], gray)[0, :, 0].tolist() == [[0, 1]] * 3


def all_layouts() -> list[PlaneLayout]:
    matrices: tuple[Matrix, ...] = ("bt709", "ycgco")
    layouts = [
        PlaneLayout(13, 11, depth, "yuv", shift, full, matrix, siting)
        for depth, shift, full, matrix, siting in itertools.product(
            (8, 10, 16), SHIFTS, (False, True), matrices, SITINGS
        )
    ]
    layouts += [PlaneLayout(13, 11, depth, "rgb") for depth in (8, 9, 14, 16)]
    layouts += [PlaneLayout(13, 11, depth, "gray") for depth in (8, 12, 16)]
    return layouts


def test_no_correction_returns_every_code_of_every_layout() -> None:
    for layout in all_layouts():
        planes = random_planes(layout)
        zero = torch.zeros(2, 3, layout.height, layout.width)
        after = add_correction(planes, correction_to_planes(zero, layout), layout)
        for a, b in zip(planes, after, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert torch.equal(a.to(torch.int32), b.to(torch.int32)), layout


def test_a_flat_change_of_color_arrives_in_every_layout() -> None:
    """planes → RGB, + Δ, → planes, against the equations: every depth, grid and siting."""
    start, change = np.array([0.4, 0.5, 0.45]), np.array([0.1, -0.05, 0.15])
    for layout in all_layouts():
        dtype = torch.uint8 if layout.depth == 8 else torch.uint16
        if layout.kind == "rgb":
            top = 2**layout.depth - 1
            before, target = ([c[i] * top for i in (1, 2, 0)] for c in (start, start + change))
        else:
            before, target = (rgb_to_codes(c, layout) for c in (start, start + change))
        planes = [
            torch.full((1, *shape), round(float(code)), dtype=torch.int32).to(dtype)
            for code, shape in zip(before, layout.shapes, strict=False)
        ]
        delta = torch.from_numpy(change).float()[None, :, None, None]
        delta = delta.expand(1, 3, layout.height, layout.width)
        after = add_correction(planes, correction_to_planes(delta, layout), layout)
        for plane, code in zip(after, target, strict=False):
            error = (plane.to(torch.int32).float() - float(code)).abs().max()
            # Both ends are rounded; float32 costs 16-bit codes a little more.
            assert error <= 1.01, (layout, error)


def test_forward_and_back_are_each_other_s_inverse() -> None:
    """4:4:4, any codes a to any codes b: the change of RGB makes exactly the change of planes."""
    for matrix, depth, full_range in itertools.product(MATRICES, (8, 10, 12), (False, True)):
        layout = PlaneLayout(31, 17, depth, "yuv", (0, 0), full_range, matrix)
        a, b = random_planes(layout, seed=1), random_planes(layout, seed=2)
        delta = planes_to_rgb(b, layout) - planes_to_rgb(a, layout)
        after = add_correction(a, correction_to_planes(delta, layout), layout)
        for wanted, got in zip(b, after, strict=True):
            assert torch.equal(wanted.to(torch.int32), got.to(torch.int32)), layout


def chroma_sites(count: int, factor: int, cosited: bool) -> Tensor:
    """Where the chroma samples sit, in pixels."""
    return torch.arange(count) * factor + (0 if cosited else (factor - 1) / 2)


@pytest.mark.parametrize("siting", SITINGS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_ramp_of_chroma_stays_that_ramp(shift: tuple[int, int], siting: ChromaSiting) -> None:
    """Linear interpolation and symmetric averages keep a ramp, if the sites are the right ones."""
    layout = PlaneLayout(32, 24, 16, "yuv", shift, True, "bt709", siting)
    h, v = shift
    rows, columns = layout.shapes[1]
    slope_x, slope_y = 800, 300
    x = chroma_sites(columns, 1 << h, siting != "center")
    y = chroma_sites(rows, 1 << v, siting == "topleft")
    ramp = 20000 + slope_x * x + slope_y * y[:, None]
    luma = torch.full((1, 24, 32), 30000, dtype=torch.int32).to(torch.uint16)
    flat = torch.full((1, rows, columns), 1 << 15, dtype=torch.int32).to(torch.uint16)
    cr = ramp[None].to(torch.int32).to(torch.uint16)
    red = planes_to_rgb([luma, flat, cr], layout)[0, 0]
    pixels = 20000 + slope_x * torch.arange(32) + slope_y * torch.arange(24)[:, None]
    expected = (30000 + (pixels - (1 << 15)) * 2 * (1 - 0.2126)) / 65535
    inside = (slice(4, -4), slice(4, -4))
    assert torch.allclose(red[inside], expected[inside], atol=1e-5)

    # The way back: a ramp in the red channel alone, seen from the same sites.
    delta = torch.zeros(1, 3, 24, 32)
    delta[0, 0] = pixels / 65535
    change = correction_to_planes(delta, layout)[2][0]
    wanted = ramp * 0.5
    inside = (slice(1, -1), slice(1, -1))
    assert torch.allclose(change[inside], wanted[inside].float(), rtol=1e-4)


def test_edges_repeat_their_last_sample() -> None:
    layout = PlaneLayout(5, 3, siting="left")
    planes = [torch.full((1, *shape), 128, dtype=torch.uint8) for shape in layout.shapes]
    planes[1] = torch.tensor([[[60, 128, 200], [60, 128, 200]]], dtype=torch.uint8)
    blue = planes_to_rgb(planes, layout)[0, 2]
    assert torch.equal(blue[0], blue[2])
    # Sites at columns 0, 2, 4; the columns between are halfway.
    assert blue[0].diff().tolist() == pytest.approx(
        [float(blue[0, 4] - blue[0, 0]) / 4] * 4, rel=0.1
    )
    ones = correction_to_planes(torch.ones(1, 3, 3, 5), layout)
    assert torch.allclose(ones[0], torch.full((1, 3, 5), 219.0))
    assert float(torch.cat([ones[1], ones[2]]).abs().max()) < 1e-4


def test_gray_changes_by_luma() -> None:
    layout = PlaneLayout(1, 1, kind="gray", full_range=True, matrix="bt601")
    delta = torch.tensor([0.1, 0.2, 0.3])[None, :, None, None]
    (change,) = correction_to_planes(delta, layout)
    assert float(change) == pytest.approx(255 * (0.0299 + 0.1174 + 0.0342), rel=1e-4)


def test_corrections_round_to_nearest_and_stop_at_the_ends() -> None:
    layout = PlaneLayout(5, 1, kind="gray", depth=16)
    plane = torch.tensor([[[0, 100, 40000, 65530, 65535]]], dtype=torch.int32).to(torch.uint16)
    change = torch.tensor([[[-9.0, 0.6, -0.4, 99.0, -0.6]]])
    (after,) = add_correction([plane], [change], layout)
    assert after.to(torch.int32).tolist() == [[[0, 101, 40000, 65535, 65534]]]
    (signed,) = add_correction([plane.view(torch.int16)], [change], layout)
    assert signed.dtype == torch.int16
    assert torch.equal(signed.view(torch.uint16).to(torch.int32), after.to(torch.int32))


def test_half_precision_output_and_wrong_planes() -> None:
    layout = PlaneLayout(6, 4)
    assert planes_to_rgb(random_planes(layout), layout, torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match="planes of"):
        planes_to_rgb(random_planes(replace(layout, width=8)), layout)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 7, 10, 16])
@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (2, 2)])
@pytest.mark.parametrize("depth", [8, 10])
def test_fields_come_apart_and_together(height: int, shift: tuple[int, int], depth: int) -> None:
    layout = PlaneLayout(6, height, depth, chroma_shift=shift, interlaced=True)
    planes = random_planes(layout, count=3)
    fields, field = split_fields(planes, layout)
    assert not field.interlaced
    assert tuple(tuple(plane.shape[1:]) for plane in fields) == field.shapes
    assert fields[0].shape[0] == 6
    luma, top, bottom = (p.to(torch.int32) for p in (planes[0], fields[0][2], fields[0][3]))
    assert torch.equal(top, luma[1, 0::2])
    assert torch.equal(bottom[: height // 2], luma[1, 1::2])
    if height % 2:
        assert torch.equal(bottom[-1], luma[1, max(height - 2, 0)])  # its own last row, again
    for before, after in zip(planes, merge_fields(fields, layout), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(before.to(torch.int32), after.to(torch.int32))
