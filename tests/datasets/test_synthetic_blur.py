"""Synthetic blur and cameras by their definitions: what is moved, lit, noisy and coded, and how."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from vdeblur.datasets import camera_effects
from vdeblur.datasets.blur_options import PURE, BlurOptions, lightly
from vdeblur.datasets.camera_motion import (
    Motion,
    chord_and_bend,
    random_paths,
    random_times,
    sampled,
)
from vdeblur.datasets.path_blur import camera_blur, convolve, transfer
from vdeblur.datasets.synthetic_blur import make_pairs, random_masks
from vdeblur.evaluation.metrics import psnr
from vdeblur.training.recipes import from_texts


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharp(count: int = 4, size: int = 48) -> Tensor:
    coarse = torch.rand(count, 3, 12, 12, generator=seeded(5))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="nearest")


def smooth(count: int = 1, size: int = 64) -> Tensor:
    """Pictures without the highest frequencies: a shift of them has one right answer."""
    coarse = torch.rand(count, 3, 12, 12, generator=seeded(6))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def one(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value)


def level(a: Tensor, b: Tensor) -> float:
    """PSNR of two pictures as 8-bit."""
    first, second = (x.clamp(0, 1).mul(255).round().byte().numpy() for x in (a, b))
    return psnr(first, second)


# --- motion --------------------------------------------------------------------------------------


def test_paths() -> None:
    options = BlurOptions(max_length=20, light_share=0)
    paths = random_paths(64, options, seeded())
    assert paths.shape == (64, options.steps, 2)
    assert bool((paths[:, options.steps // 2] == 0).all())  # sharp is mid-exposure
    length = (paths[:, 1:] - paths[:, :-1]).norm(dim=-1).sum(dim=1)
    assert float(length.max()) <= 20.001
    assert float(length.max()) > 12
    light = random_paths(64, replace(options, light_share=1.0, light_length=3), seeded())
    assert float((light[:, 1:] - light[:, :-1]).norm(dim=-1).sum(dim=1).max()) <= 3.001


def shares(steps: int) -> Tensor:
    """The moments of an exposure's steps, from −½ to ½: (steps, 1)."""
    return ((torch.arange(steps) + 0.5) / steps - 0.5)[:, None]


def test_the_chord_and_the_bend_of_a_parabola() -> None:
    s, start = shares(64), torch.tensor([3.0, -2.0])
    chord, bend = torch.tensor([7.0, -5.0]), torch.tensor([0.5, 9.0])
    path = start + chord * s + bend * s * s
    assert torch.allclose(chord_and_bend(path), torch.cat([chord, bend]), atol=1e-4)
    several = torch.stack([path, 2 * path, 0 * path]).view(3, 1, 64, 2)
    found = chord_and_bend(several)
    assert found.shape == (3, 1, 4)
    assert torch.allclose(found[1, 0], 2 * found[0, 0], atol=1e-4)
    assert float(found[2].abs().max()) == 0
    # What a parabola cannot follow is left out: a cubic has the chord of its slope on the whole.
    cubic = torch.cat([s**3, 0 * s], dim=1)
    assert chord_and_bend(cubic).tolist() == pytest.approx([0.15, 0, 0, 0], abs=1e-3)


def test_calm_paths_are_nearly_parabolas() -> None:
    missed = {}
    for calm in (0.0, 1.0):
        options = BlurOptions(calm_share=calm, light_share=0, length_power=0, max_length=20)
        paths = random_paths(200, options, seeded())
        fitted = chord_and_bend(paths)
        s = shares(options.steps)
        parabolas = fitted[:, None, :2] * s + fitted[:, None, 2:] * s * s
        rest = paths - parabolas
        off = (rest - rest.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)
        missed[calm] = float(off.median())
    assert missed[1.0] < 0.5  # of 20 pixels
    assert missed[0.0] > 2 * missed[1.0]
    bends = chord_and_bend(random_paths(200, BlurOptions(calm_share=1.0), seeded()))[:, 2:]
    assert float(bends.norm(dim=1).quantile(0.9)) > 1  # but not straight


def test_averaged_frames_have_gaps() -> None:
    whole, split = random_times(8, 64, 0.0, seeded()), random_times(8, 64, 1.0, seeded())
    assert torch.allclose(whole, torch.linspace(0, 1, 64).expand(8, 64))
    assert float(split.min()) >= 0
    assert float(split.max()) <= 1
    # 7 to 13 frames have 6 to 12 gaps that are longer than the steps within a frame.
    gaps = [int((row.diff() > 1.5 * row.diff().median()).sum()) for row in split]
    assert all(n == 0 or 6 <= n <= 12 for n in gaps)
    assert sum(n > 0 for n in gaps) >= 6  # at a duty near 1 there is none to see
    path = torch.stack([torch.arange(9.0), torch.zeros(9)], dim=1)[None]
    assert torch.allclose(
        sampled(path, torch.tensor([[0.0, 0.3, 1.0]]))[0, :, 0] / 8, torch.tensor([0.0, 0.3, 1.0])
    )


def test_transfer_functions_by_hand() -> None:
    still = transfer(torch.zeros(1, 8, 2), (16, 18))
    assert still.shape == (1, 16, 10)
    assert torch.allclose(still, torch.ones_like(still), atol=1e-6)
    image = torch.rand(1, 3, 16, 18, generator=seeded())
    right = torch.tensor([3.0, 0.0]).expand(1, 8, 2)
    assert torch.allclose(convolve(image, transfer(right, (16, 18))), image.roll(3, 3), atol=1e-5)
    up = torch.tensor([0.0, -2.0]).expand(1, 8, 2)
    assert torch.allclose(convolve(image, transfer(up, (16, 18))), image.roll(-2, 2), atol=1e-5)
    # Light is neither made nor lost, whatever the path.
    paths = random_paths(4, BlurOptions(), seeded())
    assert torch.allclose(transfer(paths, (16, 18))[:, 0, 0].real, torch.ones(4), atol=1e-5)


def test_a_fraction_of_a_pixel_moves_and_does_not_blur() -> None:
    wave = torch.sin(2 * math.pi * 0.2 * torch.arange(40.0)).expand(1, 1, 40, 40)
    moved = convolve(wave, transfer(torch.tensor([0.5, 0.0]).expand(1, 4, 2), (40, 40)))
    expected = torch.sin(2 * math.pi * 0.2 * (torch.arange(40.0) - 0.5))
    assert torch.allclose(moved[0, 0, 0], expected, atol=1e-4)
    # A motion down leaves what is across it: drawn bilinearly it would lose a tenth and more.
    down = torch.stack([torch.full((64,), 0.3), torch.linspace(-6, 6, 64)], dim=1)[None]
    assert float(convolve(wave, transfer(down, (40, 40))).std()) > 0.99 * float(wave.std())


def test_edges_do_not_ring_far() -> None:
    """White beside black, five times brighter than white, moved by a fraction of a pixel."""
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32:] = 5.0
    path = torch.tensor([0.4, 0.0]).expand(1, 4, 2)
    moved = convolve(image, transfer(path, (64, 64)))
    assert float(moved[..., 12:22].abs().max()) < 0.02


def test_the_path_depends_on_the_place() -> None:
    path = torch.zeros(1, 5, 2)
    swing = torch.linspace(-1, 1, 5)[None]
    size = (100, 200)
    assert not Motion(path).varies
    roll = Motion(path, roll=swing * 0.1)
    assert roll.varies
    assert torch.allclose(roll.at(0, 0, size), path)
    assert torch.allclose(roll.at(1, 0, size)[0, -1], torch.tensor([0.0, 10.0]))
    zoom = Motion(path, zoom=swing * 0.1)
    assert torch.allclose(zoom.at(1, -1, size)[0, -1], torch.tensor([10.0, -5.0]))
    tilt = Motion(path, tilt=torch.stack([swing, 0 * swing], dim=-1) * 0.1)
    assert torch.allclose(tilt.at(1, 1, size)[0, -1], torch.tensor([10.0, 5.0]))
    assert torch.allclose(tilt.at(-1, 1, size)[0, -1], torch.tensor([10.0, -5.0]))
    straight = Motion(torch.ones(1, 5, 2) * 4, depth=torch.tensor([[0.0, 0.5]]))
    assert torch.allclose(straight.at(0, 1, size), torch.full((1, 5, 2), 6.0))
    assert torch.allclose(straight.at(0, -1, size), torch.full((1, 5, 2), 2.0))
    assert straight.spread(size) == [2.0]
    held = straight.within(3.0, size)
    assert float(held.at(1, 1, size).abs().max()) == pytest.approx(3.0)


def test_camera_blur_is_what_its_anchors_say() -> None:
    image = sharp()
    none = Motion(torch.zeros(4, 48, 2))
    assert torch.allclose(camera_blur(image, none), image, atol=1e-5)
    swing = torch.linspace(-0.05, 0.05, 48).expand(4, 48)
    assert torch.allclose(camera_blur(image, Motion(none.path, roll=0 * swing)), image, atol=1e-4)
    blurred = camera_blur(image, Motion(none.path, roll=swing))
    change = (blurred - image).abs().mean(dim=(0, 1))
    middle, corners = change[18:30, 18:30].mean(), change[::36, ::36][:2, :2].mean()
    assert float(middle) < 0.5 * float(corners)
    assert torch.allclose(blurred.mean(dim=(2, 3)), image.mean(dim=(2, 3)), atol=0.02)


def test_masks() -> None:
    masks = random_masks(60, (48, 64), seeded(), torch.device("cpu"))
    assert masks.shape == (60, 1, 48, 64)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    covered = masks.mean(dim=(1, 2, 3))
    assert 0.03 < float(covered.mean()) < 0.6
    # The steepest of each edge: from nearly a step to a ramp of three pixels.
    across, down = (masks.diff(dim=d).abs().amax(dim=(1, 2, 3)) for d in (3, 2))
    steps = across.maximum(down)[covered > 0.01]
    assert float(steps.max()) > 0.6
    assert 0.2 < float(steps.min()) < 0.5


# --- cameras -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gamma", "offset", "contrast"), [(2.2, 0, 0), (2.4, 0.055, 0.5), (1.8, 0.1, -0.2)]
)
def test_response_curves_and_back(gamma: float, offset: float, contrast: float) -> None:
    curve = camera_effects.Response(one(gamma), one(offset), one(contrast))
    codes = torch.linspace(0, 1, 256).view(1, 1, 1, 256)
    light = curve.to_light(codes)
    assert bool((light.diff() >= 0).all())
    assert float(light[..., 0]) == pytest.approx(0, abs=1e-6)
    assert float(light[..., -1]) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(curve.to_coded(light), codes, atol=2e-4)
    if not contrast and not offset:
        assert torch.allclose(light, codes.clamp_min(1e-4) ** gamma, atol=1e-5)


def test_srgb_is_one_of_them() -> None:
    codes = torch.linspace(0, 1, 256).view(1, 1, 1, 256)
    srgb = torch.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)
    light = camera_effects.Response(one(2.4), one(0.055), one(0)).to_light(codes)
    assert float((light - srgb).abs().max()) < 2e-3


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_noise_has_the_deviation_it_is_given(spread: float) -> None:
    grey = torch.full((1, 3, 128, 128), 0.18)
    noise = camera_effects.sensor_noise(grey, one(0.01), one(0.5), one(spread), seeded()) - grey
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.var())
    assert neighbours == pytest.approx(
        2 / 3 if spread == 1 else 0 if spread == 0 else 0.42, abs=0.1
    )
    bright = (
        camera_effects.sensor_noise(grey * 4, one(0.01), one(1.0), one(spread), seeded()) - grey * 4
    )
    assert float(bright.std()) == pytest.approx(0.02, rel=0.05)  # shot noise: √4 of it


def test_filters_by_hand() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1.0
    box = camera_effects.box(dot, 1)
    assert torch.allclose(box[0, 0, 3:6, 3:6], torch.full((3, 3), 1 / 9))
    assert float(box.sum()) == pytest.approx(1)
    soft = camera_effects.gaussian(dot, one(1.0))
    assert float(soft.sum()) == pytest.approx(1, abs=1e-4)
    assert float(soft[0, 0, 4, 5] / soft[0, 0, 4, 4]) == pytest.approx(math.exp(-0.5), rel=1e-3)
    picture = smooth()
    assert torch.equal(camera_effects.sharpen(picture, one(1.0), one(0.0)), picture)
    assert float(
        camera_effects.sharpen(picture, one(1.0), one(1.0)).diff().abs().mean()
    ) > 1.05 * float(picture.diff().abs().mean())
    texture = 0.5 + 0.01 * torch.randn(1, 3, 48, 48, generator=seeded())
    edge = torch.cat([texture - 0.3, texture + 0.3], dim=3)
    level_out = camera_effects.smear(edge, one(0.03))
    assert float(level_out[..., :40].std()) < 0.35 * float(edge[..., :40].std())  # texture goes
    assert float(level_out[..., 49].mean() - level_out[..., 46].mean()) > 0.55  # edges stay


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_by_its_arithmetic_is_jpeg(quality: int) -> None:
    picture = smooth(2, 52) * 0.8 + 0.2 * sharp(2, 52)[:, :, :52, :52].clamp(0, 1)
    for offset in ((0, 0), (3, 13)):
        qualities = torch.tensor([quality, quality])
        by_file = camera_effects.jpeg_files(picture, qualities, offset=offset)
        by_blocks = camera_effects.jpeg_blocks(picture, qualities, offset=offset)
        assert by_file.shape == by_blocks.shape == picture.shape
        assert level(by_file, by_blocks) > level(by_file, picture) + 6


def test_h264_takes_more_at_a_higher_rate_factor() -> None:
    picture = smooth(1, 50) * 0.7 + 0.3 * torch.rand(1, 3, 50, 50, generator=seeded())
    for code in (camera_effects.h264_stream, camera_effects.h264_blocks):
        levels = [
            level(code(picture, torch.tensor([crf]), offset=(2, 5)), picture)
            for crf in (14.0, 22.0, 34.0)
        ]
        assert levels[0] > levels[1] > levels[2] > 15
    # What stands for it on other devices takes about as much.
    real, made = (
        level(code(picture, torch.tensor([24.0])), picture)
        for code in (camera_effects.h264_stream, camera_effects.h264_blocks)
    )
    assert abs(real - made) < 4


def test_h264_without_pyav_is_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, crf = smooth(1, 50), torch.tensor([30.0])
    monkeypatch.setitem(sys.modules, "av", None)
    camera_effects._has_x264.cache_clear()
    try:
        made = camera_effects.h264(picture, crf)
    finally:
        camera_effects._has_x264.cache_clear()
    assert torch.equal(made, camera_effects.h264_blocks(picture, crf))


# --- pairs ---------------------------------------------------------------------------------------


def test_pairs() -> None:
    blurred, target, *_ = make_pairs(sharp(), margin=8, options=PURE, generator=seeded())
    assert blurred.shape == target.shape == (4, 3, 32, 32)
    assert torch.equal(target, sharp()[..., 8:-8, 8:-8])
    assert float((blurred - target).abs().mean()) > 0.01
    assert float(blurred.min()) >= 0
    assert float(blurred.max()) <= 1
    # Blurring spreads light and makes none.
    assert float(blurred.std()) < float(target.std())


def test_sharp_pairs_come_back_as_they_are() -> None:
    options = BlurOptions(sharp_share=1.0, varying_share=1.0, layer_share=1.0, noise_share=1.0)
    blurred, target, *_ = make_pairs(sharp(), margin=8, options=options, generator=seeded())
    assert torch.equal(blurred, target)
    bare = replace(PURE, sharp_share=1.0, varying_share=1.0, layer_share=1.0)
    for options in (bare, replace(PURE, max_length=0.0)):
        blurred, target, motion, _ = make_pairs(
            sharp(), margin=8, options=options, generator=seeded()
        )
        assert float(motion.abs().max()) < 1e-4
        assert torch.allclose(blurred, target, atol=2e-3)
        assert torch.allclose(target, sharp()[..., 8:-8, 8:-8], atol=2e-3)


_LONGER = 64 / 63  # 64 steps that lie 63 gaps apart are an exposure of 64


def test_pairs_know_their_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A straight path, one that bends, and a roll, as they were drawn."""
    time = torch.linspace(-0.5, 0.5, PURE.steps)[:, None]
    straight = torch.tensor([10.0, -6.0]) * time
    bent = straight + torch.tensor([4.0, 8.0]) * time * time
    for path in (straight, bent):
        motion = Motion(path.expand(2, -1, -1))
        monkeypatch.setattr("vdeblur.datasets.synthetic_blur.camera_motion", lambda *_, m=motion: m)
        pairs = make_pairs(sharp(2, 64), margin=16, options=PURE, generator=seeded())
        assert pairs.motion.shape == (2, 4, 8, 8)
        bend = _LONGER**2 * torch.tensor([4.0, 8.0]) * (path is bent)
        expected = torch.cat([_LONGER * torch.tensor([10.0, -6.0]), bend])
        assert torch.allclose(pairs.motion, expected[:, None, None].expand(2, 4, 8, 8), atol=0.05)
    # A roll moves each place across the line from the middle of the picture.
    roll = Motion(torch.zeros(2, PURE.steps, 2), roll=0.1 * time[:, 0].expand(2, -1))
    monkeypatch.setattr("vdeblur.datasets.synthetic_blur.camera_motion", lambda *_: roll)
    pairs = make_pairs(sharp(2, 96), margin=16, options=PURE, generator=seeded())
    off = torch.arange(16) * 4 + 2.0 - 32  # the middles of cells, from the picture's
    assert torch.allclose(
        pairs.motion[0, 0], -0.1 * _LONGER * off[:, None].expand(16, 16), atol=0.01
    )
    assert torch.allclose(pairs.motion[0, 1], 0.1 * _LONGER * off.expand(16, 16), atol=0.01)
    assert float(pairs.motion[:, 2:].abs().max()) < 0.01


def test_layers_bring_their_own_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer on the left half; the camera is at rest, so that nothing else moves."""
    time = torch.linspace(-0.5, 0.5, PURE.steps)[:, None]

    def paths(count: int, *_: object) -> Tensor:
        return (torch.tensor([0.0, 12.0]) * time).expand(count, -1, -1)

    def left(count: int, size: tuple[int, int], *_: object) -> Tensor:
        mask = torch.zeros(count, 1, *size)
        mask[..., : size[1] // 2 + 2] = 1.0  # to the middle of a cell of four pixels
        return mask

    still = Motion(torch.zeros(2, PURE.steps, 2))
    monkeypatch.setattr("vdeblur.datasets.synthetic_blur.camera_motion", lambda *_: still)
    monkeypatch.setattr("vdeblur.datasets.synthetic_blur.random_paths", paths)
    monkeypatch.setattr("vdeblur.datasets.synthetic_blur.random_masks", left)
    options = replace(PURE, layer_share=1.0, layers=1, at_rest_share=0.0)
    pairs = make_pairs(sharp(2, 64), margin=16, options=options, generator=seeded())
    across = pairs.motion[0, 1, 4]
    assert across.tolist() == pytest.approx(
        [12 * _LONGER] * 4 + [6 * _LONGER] + [0.0] * 3, abs=0.01
    )
    assert float(pairs.motion[:, [0, 2]].abs().max()) < 0.01
    assert torch.allclose(pairs.blurred[..., 20:], pairs.sharp[..., 20:], atol=1e-3)


def test_light_degradation_leaves_motion_alone() -> None:
    mild = lightly(BlurOptions(max_length=50))
    assert (mild.max_length, mild.layer_share) == (50, BlurOptions().layer_share)
    assert mild.noise < BlurOptions().noise
    assert mild.h264_share == 0
    assert lightly(PURE) == replace(PURE, **{k: getattr(lightly(PURE), k) for k in _UNUSED})


#: Of what PURE has a share of 0 of.
_UNUSED = ("noise", "sharpen", "jpeg_quality")


def test_light_is_averaged_as_light() -> None:
    """Half black and half white, mixed: half of the light is more than half of the code."""
    bars = torch.zeros(4, 3, 96, 96)
    bars[..., (torch.arange(96) // 4 % 2).bool()] = 1.0
    means = {}
    for name, share in (("coded", 1.0), ("light", 0.0)):
        options = replace(
            PURE, coded_share=share, gammas=(2.2, 2.2), max_offset=0.0, contrasts=(0, 0)
        )
        blurred, target, *_ = make_pairs(bars, margin=20, options=options, generator=seeded(2))
        means[name] = float(blurred.mean() - target.mean())
    assert abs(means["coded"]) < 0.02
    assert means["light"] > 0.05


def test_highlights_saturate_after_averaging() -> None:
    lamp = torch.full((8, 3, 96, 96), 0.2)
    lamp[..., 44:52, 44:52] = 1.0
    plain, bright = (
        make_pairs(
            lamp, margin=24, options=replace(PURE, highlight_share=share), generator=seeded(3)
        )
        for share in (0.0, 1.0)
    )
    assert torch.equal(plain[1], bright[1])  # white is white in the sharp picture
    assert float((bright[0] > 0.95).float().mean()) > 1.3 * float((plain[0] > 0.95).float().mean())
    lit = replace(PURE, lights_share=1.0)
    blurred, target, *_ = make_pairs(lamp * 0, margin=24, options=lit, generator=seeded(3))
    assert float(target.max()) == 1.0
    assert float(blurred.max()) > 0.3


def test_layers_cover_what_is_behind_them() -> None:
    options = replace(PURE, layer_share=1.0, max_length=12.0)
    plain = make_pairs(sharp(4, 64), margin=16, options=PURE, generator=seeded(4))
    blurred, target, *_ = make_pairs(sharp(4, 64), margin=16, options=options, generator=seeded(4))
    changed = (target - plain[1]).abs().amax(dim=1) > 0.05
    assert 0.02 < float(changed.float().mean()) < 0.9
    assert float(blurred.min()) >= 0
    assert not torch.equal(blurred, target)
    # A camera at rest leaves sharp what no layer covers.
    rest = replace(options, at_rest_share=2.0)
    blurred, target, *_ = make_pairs(sharp(8, 64), margin=16, options=rest, generator=seeded(4))
    same = ((blurred - target).abs().amax(dim=1) < 2e-3).float().mean(dim=(1, 2))
    assert float(same.max()) > 0.3


def test_a_camera_sharpens_both_and_adds_noise_to_one() -> None:
    still = replace(PURE, max_length=0.0)
    picture = smooth(4, 64)
    crop = picture[..., 16:-16, 16:-16]
    sharpened = replace(still, sharpen_share=1.0, sharpen=2.0)
    blurred, target, *_ = make_pairs(picture, margin=16, options=sharpened, generator=seeded())
    assert torch.allclose(blurred, target, atol=2e-3)
    assert float(target.diff().abs().mean()) > 1.05 * float(crop.diff().abs().mean())
    for dirty in (
        replace(still, noise_share=1.0, noise=0.1),
        replace(still, smear_share=1.0, smear=0.1),
        replace(still, jpeg_share=1.0, jpeg_quality=(20, 30)),
        replace(still, h264_share=1.0, h264_crf=(34.0, 36.0)),
    ):
        blurred, target, *_ = make_pairs(picture, margin=16, options=dirty, generator=seeded())
        assert torch.allclose(target, crop, atol=1e-3)
        assert level(blurred, target) < 45


def test_the_same_seed_makes_the_same_pairs() -> None:
    picture = sharp(6, 64)
    before = picture.clone()
    first, again, other = (
        make_pairs(picture, margin=16, options=BlurOptions(), generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, first[:3], again[:3]))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(picture, before)
    assert np.isfinite(first[0].numpy()).all()


@pytest.mark.parametrize("seed", range(6))
def test_any_draw_gives_pictures(seed: int) -> None:
    blurred, target, *_ = make_pairs(
        sharp(3, 56), margin=12, options=BlurOptions(), generator=seeded(seed)
    )
    for picture in (blurred, target):
        assert picture.shape == (3, 3, 32, 32)
        assert bool(picture.isfinite().all())
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1


def test_nothing_of_a_pair_is_made_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device "meta", which has shapes and no values, and takes no tensor of the CPU."""
    monkeypatch.setattr("vdeblur.datasets.camera_motion.Draw.on_device", lambda self: None)
    shares = {name: 0.6 for name in BlurOptions.__dataclass_fields__ if name.endswith("_share")}
    shares |= {"jpeg_share": 0.5, "h264_share": 0.5}
    options = from_texts(BlurOptions(), {name: str(share) for name, share in shares.items()})
    for seed in range(3):
        blurred, target, motion, _ = make_pairs(
            sharp(5, 64).to("meta"), margin=16, options=options, generator=seeded(seed)
        )
        assert blurred.device.type == target.device.type == motion.device.type == "meta"
        assert blurred.shape == target.shape == (5, 3, 32, 32)
        assert motion.shape == (5, 4, 8, 8)


no_cuda = not torch.cuda.is_available() and not os.environ.get("VDEBLUR_REQUIRE_CUDA")


@pytest.mark.skipif(no_cuda, reason="no CUDA GPU here (VDEBLUR_REQUIRE_CUDA makes this a failure)")
def test_a_gpu_makes_the_pairs_of_the_cpu() -> None:
    moving = replace(BlurOptions(), noise_share=0.0, jpeg_share=0.0, h264_share=0.0)
    picture = sharp(6, 96)
    for seed in range(3):
        ours, theirs = (
            make_pairs(picture.to(device), margin=24, options=moving, generator=seeded(seed))
            for device in ("cuda", "cpu")
        )
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            assert a.device.type == "cuda"
            # Response curves are so steep at black that a rounding error of light shows there.
            assert float(((a.cpu() - b).abs() > 5e-3).float().mean()) < 1e-3
    whole = replace(BlurOptions(), noise_share=1.0, jpeg_share=0.5, h264_share=0.5)
    first, again = (
        make_pairs(picture.cuda(), margin=24, options=whole, generator=seeded(1)) for _ in range(2)
    )
    assert all(map(torch.equal, first[:3], again[:3]))
    assert level(first[0].cpu(), first[1].cpu()) > 10
