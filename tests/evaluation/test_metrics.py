"""PSNR and SSIM by their formulas and by scikit-image; steadiness by motion that is known."""

from __future__ import annotations

import math
import pkgutil
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vdeblur import benchmark, evaluation
from vdeblur.evaluation.metrics import flicker, psnr, ssim, warp_error
from vdeblur.evaluation.optical_flow import optical_flow, visible
from vdeblur.motion.warping import warp


@pytest.mark.parametrize("difference", [1, 5, 100])
def test_psnr_of_a_constant_difference(difference: int) -> None:
    a = np.full((7, 9, 3), 120, np.uint8)
    expected = 20 * math.log10(255 / difference)
    assert psnr(a, a + np.uint8(difference)) == pytest.approx(expected, abs=1e-9)
    assert psnr(a + np.uint8(difference), a) == pytest.approx(expected, abs=1e-9)
    scaled = torch.full((7, 9), difference / 255, dtype=torch.float64)
    assert psnr(scaled, torch.zeros(7, 9), data_range=1) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_noise() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    error = sum((int(x) - int(y)) ** 2 for x, y in zip(a.flat, b.flat, strict=True)) / a.size
    assert psnr(a, b) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)


def test_equals_and_unequal_shapes() -> None:
    a = np.zeros((14, 14, 3), np.uint8)
    assert psnr(a, a.copy()) == math.inf
    assert ssim(a, a.copy()) == ssim(a, a.copy(), volume=True) == 1
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="shapes differ"):
            measure(a, a[:12])
    with pytest.raises(ValueError, match="needs 11 pixels"):
        ssim(a[:10], a[:10])


def waves(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture and a dulled, dirty one, the same on every machine."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 90 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)]
    sharp = np.stack(channels, 2).round().astype(np.uint8)
    dirt = (x * 7 + y * 13) % 29 - 14
    return sharp, (sharp * 0.9 + dirt[..., None]).clip(0, 255).round().astype(np.uint8)


# Of scikit-image 0.26: peak_signal_noise_ratio(sharp, dirty, data_range=255), and
# structural_similarity(sharp, dirty, channel_axis=2, gaussian_weights=True, sigma=1.5,
# use_sample_covariance=False, data_range=255); the last of the red channel alone.
SCIKIT = {
    (48, 64): (24.0886711994425, 0.9153521261938432, 0.914863163564746),
    (31, 43): (24.067932300544843, 0.9143012791013186, 0.9126830209473137),
}


@pytest.mark.parametrize("size", SCIKIT)
def test_metrics_agree_with_scikit_image(size: tuple[int, int]) -> None:
    sharp, dirty = waves(*size)
    expected = SCIKIT[size]
    assert psnr(dirty, sharp) == pytest.approx(expected[0], abs=1e-9)
    assert ssim(dirty, sharp) == pytest.approx(expected[1], abs=1e-9)
    assert ssim(dirty[..., 0], sharp[..., 0]) == pytest.approx(expected[2], abs=1e-9)
    halves = (torch.from_numpy(x).double() / 255 for x in (dirty, sharp))
    assert ssim(*halves, data_range=1) == pytest.approx(expected[1], abs=1e-9)


def test_metrics_agree_with_scikit_image_as_installed() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    random = np.random.default_rng(1)
    sharp = random.integers(0, 256, (40, 33, 3), dtype=np.uint8)
    noisy = (sharp + random.normal(0, 25, sharp.shape)).clip(0, 255).astype(np.uint8)
    theirs = metrics.peak_signal_noise_ratio(sharp, noisy, data_range=255)
    assert psnr(noisy, sharp) == pytest.approx(theirs, abs=1e-9)
    theirs = metrics.structural_similarity(
        sharp,
        noisy,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert ssim(noisy, sharp) == pytest.approx(theirs, abs=1e-9)


def test_ssim_of_a_volume_by_its_definition() -> None:
    """MATLAB's ssim of an RGB picture, written out as one three-dimensional window."""
    sharp, dirty = (x.astype(np.float64) for x in waves(13, 15))
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.einsum("i,j,k->ijk", g, g, g) / g.sum() ** 3

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.pad(values, 5, mode="edge")
        views = np.lib.stride_tricks.sliding_window_view(padded, (11, 11, 11))
        means: NDArray[np.float64] = np.einsum("abcijk,ijk->abc", views, window)
        return means

    a, b = mean(sharp), mean(dirty)
    aa, bb, ab = mean(sharp**2) - a * a, mean(dirty**2) - b * b, mean(sharp * dirty) - a * b
    c1, c2 = 2.55**2, 7.65**2
    expected = (2 * a * b + c1) * (2 * ab + c2) / ((a * a + b * b + c1) * (aa + bb + c2))
    assert ssim(dirty, sharp, volume=True) == pytest.approx(expected.mean(), abs=1e-9)
    assert ssim(dirty, sharp, volume=True) != pytest.approx(ssim(dirty, sharp), abs=1e-4)


@pytest.mark.parametrize("folder", [benchmark, evaluation])
def test_a_folder_s_public_names_are_there_and_no_module_hides_them(folder: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(folder.__path__)}
    assert sorted(folder.__all__) == sorted(set(folder.__all__) - modules)
    for name in folder.__all__:
        assert getattr(folder, name) is not None
    assert set(folder.__all__) <= set(dir(folder))
    with pytest.raises(AttributeError, match="no attribute 'elsewhere'"):
        _ = folder.elsewhere


# -- motion --------------------------------------------------------------------------------------


def texture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(1, 3, height, width) of blotches of all sizes, as scenes have."""
    random, scene = torch.manual_seed(seed), torch.zeros(1, 3, height, width)
    for size in (4, 8, 16, 32):
        noise = torch.rand(1, 3, height // size, width // size, generator=random)
        scene += F.interpolate(noise, size=(height, width), mode="bicubic") / 4
    return scene.clamp(0, 1)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (1, -2), (7, 4), (-13, 6)])
def test_flow_finds_known_shifts(dx: int, dy: int) -> None:
    scene = texture(128, 160)
    here = scene[..., 24:104, 24:136]
    there = scene[..., 24 - dy : 104 - dy, 24 - dx : 136 - dx]
    flow = optical_flow(here, there)  # what is at p here is at p + (dx, dy) there
    inner = flow[..., 24:-24, 24:-24]  # nearer the edges, what is here has left the picture there
    error = (inner - torch.tensor([dx, dy]).view(1, 2, 1, 1)).norm(dim=1)
    assert float(error.median()) < 0.02
    assert float(error.quantile(0.9)) < 0.1


def test_flow_finds_parts_of_a_pixel() -> None:
    scene = texture(96, 96)
    moved = warp(scene, torch.tensor([0.5, -0.25]).view(1, 2, 1, 1).expand(1, 2, 96, 96))
    inner = optical_flow(moved, scene)[..., 8:-8, 8:-8].mean((0, 2, 3))
    assert inner.tolist() == pytest.approx([0.5, -0.25], abs=0.01)


@pytest.mark.parametrize("size", [(11, 40), (40, 11), (12, 12)])
def test_flow_of_pictures_smaller_than_dis_takes(size: tuple[int, int]) -> None:
    scene = texture(64, 64)[..., : size[0], : size[1]]
    flow = optical_flow(scene.repeat(2, 1, 1, 1), scene.repeat(2, 1, 1, 1))
    assert flow.shape == (2, 2, *size)
    assert float(flow.abs().max()) < 0.1


def test_a_thing_that_moves_hides_what_is_behind_it() -> None:
    behind, thing = texture(96, 128), texture(96, 128, seed=1)

    def frame(left: int) -> torch.Tensor:
        picture = behind.clone()
        picture[..., 32:64, left : left + 32] = thing[..., 32:64, :32]
        return picture

    here, there = frame(32), frame(40)
    seen = visible(optical_flow(here, there), optical_flow(there, here))[0, 0]
    assert float(seen[34:62, 34:60].float().mean()) > 0.9  # the thing itself
    assert float(seen[34:62, 66:71].float().mean()) < 0.5  # what it hides next
    assert float(seen[:24].float().mean()) > 0.95  # what stands still


def test_what_is_hidden_or_leaves_the_picture_is_not_visible() -> None:
    flow = torch.zeros(1, 2, 20, 30)
    flow[:, 0] = 5
    seen = visible(flow, -flow)[0, 0]
    assert seen[:, :25].all()
    assert not seen[:, 25:].any()
    there_and_elsewhere = visible(flow, torch.zeros_like(flow))
    assert not there_and_elsewhere.any()


def test_steadiness_follows_the_motion_and_sees_what_comes_and_goes() -> None:
    scene = texture(96, 128)
    frames = [scene[..., 16:80, 16 + 3 * n : 96 + 3 * n] for n in range(3)]
    back = optical_flow(frames[1], frames[0]), optical_flow(frames[0], frames[1])
    onward = optical_flow(frames[1], frames[2]), optical_flow(frames[2], frames[1])
    seen = visible(*back) & visible(*onward)
    assert float(seen.float().mean()) > 0.7

    def measured(views: list[torch.Tensor]) -> tuple[float, float]:
        warped = warp_error(views[0], views[1], back[0], seen, data_range=1)
        unrest = flicker(views[0], views[1], views[2], back[0], onward[0], seen, data_range=1)
        return warped, unrest

    moved = float((frames[1] - frames[0]).square().mean().sqrt()) * 255
    warped, unrest = measured(frames)
    assert warped < moved / 8
    assert unrest < 1
    fading = [frame + 0.02 * n for n, frame in enumerate(frames)]
    assert measured(fading)[1] == pytest.approx(unrest, abs=1e-3)
    blinking = [frame + 0.1 * (n == 1) for n, frame in enumerate(frames)]
    assert measured(blinking)[1] == pytest.approx(25.5, abs=1)
    assert measured(blinking)[0] == pytest.approx(25.5, abs=1)
    assert math.isnan(warp_error(frames[0], frames[1], back[0], seen & False))
