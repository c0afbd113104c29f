"""The motion of single pictures: classes, windows, what is found, and how it reaches frames."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.helpers.clips import write_frames
from tests.motion.test_exposure import detailed
from tests.motion.test_flow import frame
from vdeblur.datasets.blur_options import PURE
from vdeblur.datasets.synthetic_blur import make_pairs
from vdeblur.deblur import deblur_video
from vdeblur.errors import ModelError
from vdeblur.frames import Frame
from vdeblur.motion.guide import Guide, estimate_of_frame
from vdeblur.motion.single_picture import (
    blur_field_network,
    luma_plane,
    still_motion,
    window_evidence,
)
from vdeblur.networks.blur_field import (
    CLASSES,
    DIRECTIONS,
    LENGTHS,
    STEP,
    WINDOW,
    BlurFieldNetwork,
    class_shares,
    mean_chord,
    pooled,
    spectra,
    windows_of,
)
from vdeblur.weights import packaged, save_weights

STRAIGHT = replace(PURE, calm_share=1.0, length_power=0.0)


def chord(length: float, degrees: float) -> Tensor:
    angle = math.radians(degrees)
    return torch.tensor([[length * math.cos(angle), length * math.sin(angle)]])


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0.0, 1.0, 2.0, 3.0, 7.7, 33.0, 80.0])
@pytest.mark.parametrize("degrees", [0, 5, 90, 178, 181, 270])
def test_shares_are_one_together_and_opposite_ways_are_one_way(
    length: float, degrees: float
) -> None:
    shares = class_shares(chord(length, degrees))
    assert shares.shape == (1, CLASSES)
    assert float(shares.min()) >= 0
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(shares, class_shares(chord(length, degrees + 180)), atol=1e-4)
    assert int((shares > 1e-6).sum()) <= 5


def test_shares_turn_with_the_chord() -> None:
    for step in range(DIRECTIONS):
        turned = class_shares(chord(8.0, 3.0 + step * 180 / DIRECTIONS))[0, :-1]
        first = class_shares(chord(8.0, 3.0))[0, :-1]
        assert torch.allclose(turned, first.roll(step * len(LENGTHS)), atol=1e-4)


def test_short_chords_are_too_short_to_see() -> None:
    unseen = [float(class_shares(chord(length, 40))[0, -1]) for length in (0, 1.5, 2, 2.5, 3)]
    assert unseen[0] == 1
    assert unseen == sorted(unseen, reverse=True)
    assert unseen[-1] == 0


@pytest.mark.parametrize("length", [3.0, 5.4, 12.0, 27.0, 33.0])
@pytest.mark.parametrize("degrees", [0, 11.25, 60, 84, 90, 137, 176])
def test_the_mean_of_the_shares_is_the_chord(length: float, degrees: float) -> None:
    """Between classes it is nearly that: lengths are shared by their logarithm."""
    x, y = mean_chord(class_shares(chord(length, degrees))[None])[:, 0, 0].tolist()
    assert math.hypot(x, y) == pytest.approx(length, rel=0.06)
    off = (math.degrees(math.atan2(y, x)) - degrees + 90) % 180 - 90
    assert abs(off) < 1.5


def test_what_disagrees_is_short() -> None:
    cross = (class_shares(chord(10, 20)) + class_shares(chord(10, 110))) / 2
    assert float(mean_chord(cross[None]).norm()) < 0.01


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (130, 64), (180, 321)])
def test_windows_are_around_the_middle_of_their_square(size: tuple[int, int]) -> None:
    y, x = torch.meshgrid(*(torch.arange(side).float() for side in size), indexing="ij")
    for place, axis in ((y, 0), (x, 1)):
        windows = windows_of(place)
        assert windows.shape == (-(-size[0] // STEP), -(-size[1] // STEP), WINDOW, WINDOW)
        for number in range(windows.shape[axis]):
            window = windows.select(axis, number)[0]
            middle = number * STEP + STEP / 2 - 0.5
            inside = torch.unique(window.select(axis, 0))  # whole rows are one row of the picture
            assert len(inside) == 1
            line = window.select(1 - axis, 0)
            if middle - 31.5 >= 0 and middle + 31.5 < size[axis]:
                assert float(line.mean()) == middle
                assert torch.equal(line.diff(), torch.ones(WINDOW - 1))
            else:  # reflected
                assert float(line.min()) >= 0
                assert float(line.max()) <= size[axis] - 1


def test_spectra_do_not_know_brightness_and_turn_with_the_picture() -> None:
    torch.manual_seed(0)
    windows = torch.rand(3, WINDOW, WINDOW)
    seen = spectra(windows)
    assert seen.shape == (3, 2, WINDOW, WINDOW // 2)
    assert torch.allclose(seen, spectra(windows * 1 + 0.2), atol=2e-2)
    # Hann's window is of even length and not quite symmetric: near, not alike.
    around = spectra(windows.flip(1, 2))
    assert float((seen - around).abs().mean()) < 0.15 * float(seen.std())


def test_a_long_blur_darkens_its_waves() -> None:
    """Blurred along x: less power at high frequencies across than down."""
    torch.manual_seed(0)
    picture = torch.rand(1, 1, WINDOW, WINDOW + 15)
    blurred = torch.nn.functional.avg_pool2d(picture, (1, 16), stride=1)[0]
    relative = spectra(blurred)[0, 0]
    half = WINDOW // 2
    assert float(relative[half, 8:].mean()) < float(relative[:8, 0].mean()) - 1


def test_pooling_believes_many_more_than_one() -> None:
    prior = torch.full((CLASSES,), -math.log(CLASSES))
    evidence = torch.zeros(9, 9, CLASSES)
    evidence[..., 5] = 2.0
    evidence[4, 4] = 0.0
    evidence[4, 4, 40] = 2.0
    assert int(pooled(evidence, prior, reach=1.5, belief=0.3)[4, 4].argmax()) == 5
    assert int(pooled(evidence, prior, reach=0.3, belief=1.0)[4, 4].argmax()) == 40
    sums = pooled(evidence, prior, reach=1.5, belief=0.3).sum(2)
    assert torch.allclose(sums, torch.ones(9, 9), atol=1e-5)


# --- the network that ships ----------------------------------------------------------------------


def test_its_weights_are_held_to_their_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.motion.single_picture.SHIPPED", tmp_path)
    path, card = tmp_path / "blur-field.safetensors", tmp_path / "blur-field.json"

    def load() -> BlurFieldNetwork:
        blur_field_network.cache_clear()
        return blur_field_network()

    try:
        with pytest.raises(ModelError, match="no readable model card"):
            load()
        card.write_text(json.dumps({"sha256": "0" * 64}))
        with pytest.raises(ModelError, match=r"cannot be read .*: reinstall"):
            load()
        shipped = packaged.SHIPPED / "blur-field.safetensors"
        path.write_bytes(shipped.read_bytes()[:-1] + b"!")
        card.write_text((packaged.SHIPPED / "blur-field.json").read_text())
        with pytest.raises(ModelError, match="not the file that its model card describes"):
            load()
        save_weights(path, {"some": torch.zeros(3)}, network="blur-field", config={})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        card.write_text(json.dumps({"sha256": digest}))
        with pytest.raises(ModelError, match="weights of another network than blur-field"):
            load()
    finally:
        blur_field_network.cache_clear()


def test_the_shares_before_are_those_of_training() -> None:
    network = blur_field_network()
    assert isinstance(network.prior, Tensor)
    assert network.prior.dtype == torch.float32
    assert float(network.prior.exp().sum()) == pytest.approx(1, abs=0.01)
    assert network.prior[-1] == network.prior.max()


def blurred(
    length: float, degrees: float, size: tuple[int, int] = (256, 256), seed: int = 0
) -> NDArray[np.float32]:
    """Detail under one straight blur, [0, 1], coded in 8 bits."""
    height, width = size
    angle, world = math.radians(degrees), detailed(seed)
    total = np.zeros(size, np.float32)
    for t in (np.arange(65) + 0.5) / 65 - 0.5:
        middle = (1300 + length * t * math.cos(angle), 350 + length * t * math.sin(angle))
        total += cv2.getRectSubPix(world, (width, height), middle)
    codes = np.clip(total / 65, 0, 255).round()
    return np.asarray(codes / 255, np.float32)


@pytest.mark.parametrize(("length", "degrees"), [(6, 0), (8, 160), (12, 90), (14, 35), (20, 120)])
def test_a_straight_blur_is_found(length: float, degrees: float) -> None:
    motion = still_motion(blurred(length, degrees))
    assert motion is not None
    assert motion.shape == (4, 8, 8)
    assert motion.dtype == np.float32
    assert not motion[2:].any()
    turns = (np.degrees(np.arctan2(motion[1], motion[0])) - degrees + 90) % 180 - 90
    assert abs(np.median(turns)) < 8
    assert np.median(np.abs(turns)) < 15
    assert 0.6 < np.median(np.hypot(*motion[:2])) / length < 1.3


def test_training_blur_is_found_along_its_own_motion() -> None:
    """The pairs that training makes, of each direction: the motion that it was made with."""
    rng = np.random.default_rng(1)
    corners = rng.integers(0, [700 - 352, 2600 - 352], (8, 2))
    parts = [detailed(2)[y : y + 352, x : x + 352] / 255 for y, x in corners]
    sharp = torch.from_numpy(np.stack(parts)).float()[:, None].expand(-1, 3, -1, -1)
    pairs = make_pairs(
        sharp,
        margin=48,
        options=replace(STRAIGHT, max_length=30.0),
        generator=torch.Generator().manual_seed(3),
    )
    turns, ratios = [], []
    for picture, true in zip(pairs.blurred, pairs.motion, strict=True):
        (x, y) = true[:2].mean(dim=(1, 2)).tolist()
        if math.hypot(x, y) < 5:
            continue
        found = still_motion(picture[0].numpy())
        assert found is not None
        turn = np.degrees(np.arctan2(found[1], found[0]) - math.atan2(y, x))
        turns.append(np.median(np.abs((turn + 90) % 180 - 90)))
        ratios.append(np.median(np.hypot(*found[:2])) / math.hypot(x, y))
    assert len(turns) >= 5
    assert np.median(turns) < 15
    assert 0.6 < np.median(ratios) < 1.4


def test_sharp_pictures_hardly_moved() -> None:
    motion = still_motion(blurred(0, 0))
    assert motion is not None
    assert np.median(np.hypot(*motion[:2])) < 1.2


def test_motion_differs_from_place_to_place() -> None:
    halves = [blurred(14, 0, (256, 192)), blurred(14, 90, (256, 192), seed=1)]
    motion = still_motion(np.concatenate(halves, axis=1))
    assert motion is not None
    left, right = np.abs(motion[:2, :, :4]), np.abs(motion[:2, :, -4:])
    assert np.median(left[0]) > 2 * np.median(left[1])
    assert np.median(right[1]) > 2 * np.median(right[0])


def test_large_pictures_are_reduced_and_their_motion_is_theirs() -> None:
    small = blurred(12, 35, (640, 1152))
    large = cv2.resize(small, (3456, 1920), interpolation=cv2.INTER_CUBIC)
    motion = still_motion(np.asarray(large, np.float32))
    assert motion is not None
    assert motion.shape == (4, 20, 36)  # of a third of its size
    assert np.median(np.hypot(*motion[:2])) == pytest.approx(36, rel=0.25)


@pytest.mark.parametrize("size", [(63, 200), (200, 63), (20, 20)])
def test_what_is_smaller_than_a_window_tells_nothing(size: tuple[int, int]) -> None:
    assert still_motion(np.zeros(size, np.float32)) is None


def test_one_window() -> None:
    motion = still_motion(blurred(10, 0, (WINDOW, WINDOW)))
    assert motion is not None
    assert motion.shape == (4, 2, 2)


def test_where_there_is_nothing_to_see_nothing_moved() -> None:
    """The spectrum of a clear sky has a direction, too."""
    sky = np.tile(np.linspace(0.5, 0.7, 256, dtype=np.float32), (160, 1))
    for picture in (np.full_like(sky, 0.5), (sky * 255).round() / 255):
        motion = still_motion(np.asarray(picture, np.float32))
        assert motion is not None
        assert np.hypot(*motion[:2]).max() < 2.5


def test_the_parts_of_a_picture_are_read_alike() -> None:
    """More windows than are read at once."""
    network = blur_field_network()
    luma = torch.from_numpy(blurred(9, 20, (320, 640)))
    evidence, _ = window_evidence(network, luma)
    assert evidence.shape == (10, 20, CLASSES)
    alone = window_evidence(network, luma[-64:])[0][1]
    assert torch.allclose(evidence[9], alone, atol=1e-3)  # its window needs no more of it


# --- frames --------------------------------------------------------------------------------------


def frame_of(luma: NDArray[np.float32], **options: Any) -> Frame:
    limited = 16 + luma * 219
    if options.get("depth") == 10:
        return frame((limited * 4).round().astype(np.uint16), 0, **options)
    return frame(
        (luma * 255 if options.get("full_range") else limited).round().astype(np.uint8),
        0,
        **options,
    )


@pytest.mark.parametrize("layout", [{}, {"full_range": True}, {"depth": 10}])
def test_luma_of_layouts(layout: dict[str, Any]) -> None:
    luma = blurred(0, 0, (64, 80))
    assert np.abs(luma_plane(frame_of(luma, **layout)) - luma).max() < 0.003


def test_luma_of_interlaced_and_of_rgb_frames() -> None:
    luma = blurred(0, 0, (64, 80))
    assert np.abs(luma_plane(frame_of(luma, interlaced=True)) - luma[::2]).max() < 0.003
    grey = frame_of(luma, full_range=True)
    planes = tuple(np.full((64, 80), value, np.uint8) for value in (200, 40, 90))
    layout = replace(grey.layout, kind="rgb")
    expected = (0.587 * 200 + 0.114 * 40 + 0.299 * 90) / 255
    assert luma_plane(replace(grey, planes=planes, layout=layout)) == pytest.approx(expected)


def test_the_motion_of_a_field_is_the_frames() -> None:
    """Half of the rows are looked at; the motion is in pixels of all of them."""
    luma = blurred(16, 90, (384, 256))
    whole, field = (
        estimate_of_frame(frame_of(luma)),
        estimate_of_frame(frame_of(luma, interlaced=True)),
    )
    assert whole is not None
    assert field is not None
    assert field.motion.shape == (4, 6, 8)
    for shown in (whole, field):
        motion = shown.motion
        assert shown.blurred == 1
        assert np.median(np.abs(motion[1])) == pytest.approx(16, rel=0.4)
        assert np.median(np.abs(motion[0])) < 3


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_single_picture_is_told_its_motion(suffix: str, tmp_path: Path) -> None:
    codes = (blurred(12, 0, (96, 160)) * 255).round().astype(np.uint8)
    path = tmp_path / f"still{suffix}"
    picture = av.VideoFrame.from_ndarray(np.stack([codes] * 3, axis=2), format="rgb24")
    if suffix == ".png":
        write_frames(path, [picture], "png", form="image2")
    else:
        write_frames(path, [picture.reformat(format="yuvj420p")], "mjpeg", form="image2")
    seen: list[NDArray[np.float32] | None] = []

    def look(frame: Any) -> bool:
        seen.append(frame.motion)
        return True

    deblur_video(path, tmp_path / f"out{suffix}", choose=look)
    (motion,) = seen
    assert motion is not None
    assert np.median(np.abs(motion[0])) > 6 > 3 > np.median(np.abs(motion[1]))
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        (restored,) = container.decode(video=0)
    assert (restored.width, restored.height) == (160, 96)
    assert not np.array_equal(restored.to_ndarray(format="gray"), codes)


def test_a_lone_frame_of_a_film_is_told_too() -> None:
    """Between two cuts nothing else shows the scene."""
    lone = frame_of(blurred(12, 0, (128, 192)))
    (given,) = Guide("0.5").run([lone])
    assert np.median(np.abs(given.motion[0])) > 6
