"""Changes: how long a blur is, by how it differs from one picture to the next."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.motion.test_stripes import Floats, blurred, windows_of
from vdeblur.motion.changes import ChangeSums, measure_changes
from vdeblur.motion.meter import change_confidence

SHARE = 0.6


def way(length: float, degrees: float, count: int) -> Tensor:
    """The ways of windows that are blurred by so many pixels at SHARE."""
    turn = math.radians(degrees)
    x, y = length / SHARE * math.cos(turn), length / SHARE * math.sin(turn)
    return torch.tensor([[x, y]]).expand(count, 2)


def shown(
    old: Floats, new: Floats, lengths: tuple[float, float], degrees: float = 30, count: int = 24
) -> ChangeSums:
    """What two pictures of a scene that stays show, of which one was said to move so far."""
    ways = (way(length, degrees, count) for length in lengths)
    return measure_changes(windows_of(old, count), windows_of(new, count), *ways)


@pytest.mark.parametrize("degrees", [0.0, 37.0, 110.0])
@pytest.mark.parametrize("lengths", [(1.0, 2.0), (3.0, 1.5), (6.0, 9.0), (14.0, 10.0)])
def test_the_length_of_a_blur_that_changes(lengths: tuple[float, float], degrees: float) -> None:
    old, new = (blurred(length, degrees) for length in lengths)
    found = shown(old, new, lengths, degrees).fit()
    # Too short rather than too long, where it is a pixel or two.
    assert found.share == pytest.approx(SHARE, rel=0.2)
    assert change_confidence(found) == 1


def test_windows_that_move_differently_tell_one_share_together() -> None:
    total = None
    for degrees, lengths in ((20, (2.0, 5.0)), (80, (7.0, 4.0)), (150, (1.0, 3.0))):
        old, new = (blurred(length, degrees) for length in lengths)
        seen = shown(old, new, lengths, degrees, 8)
        total = seen if total is None else total + seen
    assert total is not None
    assert total.windows == 24
    assert total.fit().share == pytest.approx(SHARE, rel=0.1)


def boxes() -> Floats:
    """Things all of one width: their spectra have the stripes that a blur would make."""
    rng = np.random.default_rng(1)
    picture = np.full((400, 600), 0.4, np.float32)
    for _ in range(1400):
        x, y = int(rng.integers(0, 590)), int(rng.integers(0, 390))
        picture[y : y + rng.integers(3, 12), x : x + 8] = rng.uniform(0.1, 0.9)
    return picture


@pytest.mark.parametrize("picture", ["sharp", "soft", "boxes", "blurred alike"])
def test_what_does_not_change_with_the_motion_is_no_blur(picture: str) -> None:
    scene = blurred(0.1, 0)
    if picture == "soft":
        scene = np.asarray(cv2.GaussianBlur(scene, (0, 0), 1.5), np.float32)
    elif picture == "boxes":
        scene = boxes()
    elif picture == "blurred alike":  # by a lens, or a scan: whatever moves
        scene = blurred(7, 30)
    rng = np.random.default_rng(2)
    old, new = (scene + rng.normal(0, 1 / 255, scene.shape).astype(np.float32) for _ in "12")
    found = shown(old, new, (4.0, 9.0)).fit()
    assert found.explained < 0.003
    assert found.telling > 0.1
    assert change_confidence(found) == 0


def test_a_motion_that_stays_tells_nothing() -> None:
    old = new = blurred(6, 30)
    found = shown(old, new, (6.0, 6.0)).fit()
    assert found.telling < 0.001
    assert change_confidence(found) == 0
    assert math.isfinite(found.share)


def test_what_a_coder_leaves_is_enough() -> None:
    def coded(picture: Floats) -> Floats:
        codes = (picture * 255).clip(0, 255).round().astype(np.uint8)
        _, data = cv2.imencode(".jpg", codes, [cv2.IMWRITE_JPEG_QUALITY, 60])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.float32) / np.float32(255)

    old, new = coded(blurred(4, 30)), coded(blurred(9, 30))
    found = shown(old, new, (4.0, 9.0)).fit()
    assert found.share == pytest.approx(SHARE, rel=0.15)
    assert change_confidence(found) == 1


def test_flat_windows_say_nothing() -> None:
    flat = torch.full((4, 64, 64), 0.5)
    found = measure_changes(flat, flat, torch.full((4, 2), 3.0), torch.full((4, 2), 9.0)).fit()
    assert change_confidence(found) == 0
    assert math.isfinite(found.share)


def test_where_all_turns_fast_more_has_to_be_explained() -> None:
    old, new = blurred(3, 30), blurred(4, 30)
    rng = np.random.default_rng(3)
    old, new = (p + rng.normal(0, 0.01, p.shape).astype(np.float32) for p in (old, new))
    ways = [way(length, 30, 24) for length in (3.0, 4.0)]
    windows = [windows_of(old), windows_of(new)]
    sure, unsure = (measure_changes(*windows, *ways, turning=turning).fit() for turning in (0, 1))
    assert (sure.turning, unsure.turning) == (0, 1)
    assert sure.share == unsure.share
    assert change_confidence(sure) > change_confidence(unsure)
