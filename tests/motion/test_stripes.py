"""Stripes: how long a blur is, by the spectra of many windows together."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.motion.test_flow import texture
from vdeblur.motion.spectra import WINDOW
from vdeblur.motion.stripes import StripeSums, measure_stripes

Floats = NDArray[np.float32]
SCENE = texture(400, 600, seed=3) / 255


def blurred(length: float, degrees: float) -> Floats:
    """The scene, blurred by so many pixels at constant speed."""
    side = 65
    middle, turn = side // 2, math.radians(degrees)
    kernel = np.zeros((side, side), np.float32)
    for place in np.linspace(-0.5, 0.5, 400):
        x, y = middle + place * length * math.cos(turn), middle + place * length * math.sin(turn)
        left, top = int(x), int(y)
        across, down = x - left, y - top
        for row, column, share in (
            (top, left, (1 - across) * (1 - down)),
            (top, left + 1, across * (1 - down)),
            (top + 1, left, (1 - across) * down),
            (top + 1, left + 1, across * down),
        ):
            kernel[row, column] += share
    return np.asarray(cv2.filter2D(SCENE, -1, kernel / kernel.sum()), np.float32)


def windows_of(picture: Floats, count: int = 24) -> Tensor:
    codes = np.clip(picture * 255, 0, 255).round() / 255
    all_of_it = torch.from_numpy(codes.astype(np.float32)).unfold(0, WINDOW, 24)
    windows = all_of_it.unfold(1, WINDOW, 24).flatten(0, 1)
    return windows[:: len(windows) // count][:count]


def shown(picture: Floats, way: float, degrees: float, count: int = 24) -> StripeSums:
    turn = math.radians(degrees)
    ways = torch.tensor([[way * math.cos(turn), way * math.sin(turn)]])
    return measure_stripes(windows_of(picture, count), ways.expand(count, 2))


@pytest.mark.parametrize("length", [4.0, 8.0, 13.0, 20.0])
@pytest.mark.parametrize("degrees", [0.0, 37.0, 110.0])
def test_the_length_of_a_blur(length: float, degrees: float) -> None:
    way = length / 0.6
    found = shown(blurred(length, degrees), way, degrees).fit()
    assert found.share == pytest.approx(0.6, rel=0.08)
    assert found.pixels == pytest.approx(length, rel=0.08)
    # Of long ones a window shows few stripes, and less of the first.
    assert found.explained > (0.1 if length < 16 else 0.015)
    assert found.distinct > 0.35
    # A blur has no sign.
    back = shown(blurred(length, degrees), -way, degrees).fit()
    assert back.share == pytest.approx(found.share, rel=1e-3)


def test_windows_of_all_directions_and_lengths_tell_one_share_together() -> None:
    parts = []
    for length, degrees in ((5.0, 10.0), (9.0, 80.0), (14.0, 150.0)):
        parts.append(shown(blurred(length, degrees), length / 0.45, degrees, count=6))
    total = parts[0] + parts[1] + parts[2]
    assert total.windows == 18
    assert total.fit().share == pytest.approx(0.45, rel=0.08)
    assert total.fit().distinct > 0.35


@pytest.mark.parametrize("picture", ["sharp", "out of focus", "noise", "blurred across"])
def test_other_pictures_have_no_stripes(picture: str) -> None:
    made = {
        "sharp": SCENE,
        "out of focus": cv2.GaussianBlur(SCENE, (0, 0), 2.0),
        "noise": np.random.default_rng(0).normal(0.5, 0.1, SCENE.shape),
        "blurred across": blurred(10, 90),
    }[picture]
    found = shown(np.asarray(made, np.float32), 15, 0).fit()
    assert found.explained < 0.013 or found.distinct < 0.15


def test_noise_hides_some_of_them() -> None:
    noise = np.random.default_rng(0).normal(0, 2 / 255, SCENE.shape)
    found = shown(np.asarray(blurred(10, 30) + noise, np.float32), 20, 30).fit()
    assert found.share == pytest.approx(0.5, rel=0.1)
    assert found.explained > 0.02


def test_flat_windows_say_nothing() -> None:
    flat = measure_stripes(
        torch.full((2, WINDOW, WINDOW), 0.5), torch.tensor([[9.0, 1.0], [4.0, 4.0]])
    )
    found = flat.fit()
    assert math.isfinite(found.share)
    assert found.explained < 0.01


def test_a_share_is_within_what_is_tried() -> None:
    """Also where what explains most is at an end, and no top can be fitted."""
    for way in (3.0, 150.0):
        for degrees in (0.0, 70.0):
            found = shown(blurred(40, 0), way, degrees).fit()
            assert 0.09 < found.share < 1.5
