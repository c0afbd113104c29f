"""Synthetic blur by its definition; the loop learns, resumes, and is the same for the same seed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vdeblur import InputError
from vdeblur.metrics import psnr
from vdeblur.models.mimo_unet import MIMOUNet
from vdeblur.training.blur import (
    BlurOptions,
    camera_blur,
    convolve,
    make_pairs,
    random_paths,
    rasterise,
)
from vdeblur.training.data import SyntheticPairs, load_picture, pair_files, picture_files
from vdeblur.training.evaluate import score_pairs, to_picture, to_tensor
from vdeblur.training.loop import Progress, TrainOptions, learning_rate, train
from vdeblur.training.losses import multi_scale_frequency, multi_scale_l1, target_pyramid

PURE = BlurOptions(
    sharp_share=0, layer_share=0, varying_share=0, noise=0, jpeg_share=0, highlight_share=0
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sharp(count: int = 4, size: int = 48) -> Tensor:
    coarse = torch.rand(count, 3, 12, 12, generator=seeded(5))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="nearest")


def test_kernels_sum_to_one() -> None:
    paths = random_paths(16, BlurOptions(), seeded())
    kernels = rasterise(paths, (64, 64))
    assert kernels.shape == (16, 64, 64)
    assert torch.allclose(kernels.sum(dim=(1, 2)), torch.ones(16), atol=1e-5)
    assert bool((kernels >= 0).all())


def test_paths() -> None:
    options = BlurOptions(max_length=20)
    paths = random_paths(64, options, seeded())
    assert paths.shape == (64, options.steps, 2)
    assert bool((paths[:, options.steps // 2] == 0).all())  # sharp is mid-exposure
    length = (paths[:, 1:] - paths[:, :-1]).norm(dim=-1).sum(dim=1)
    assert float(length.max()) <= 20.001
    assert float(length.max()) > 5


def test_a_kernel_is_where_its_path_is() -> None:
    still = rasterise(torch.zeros(1, 8, 2), (16, 16))
    assert float(still[0, 0, 0]) == pytest.approx(1)
    right = rasterise(torch.tensor([3.0, 0.0]).expand(1, 8, 2), (16, 16))
    assert float(right[0, 0, 3]) == pytest.approx(1)
    up = rasterise(torch.tensor([0.0, -2.0]).expand(1, 8, 2), (16, 16))
    assert float(up[0, 14, 0]) == pytest.approx(1)
    between = rasterise(torch.tensor([0.25, 0.0]).expand(1, 8, 2), (16, 16))
    assert float(between[0, 0, 1]) == pytest.approx(0.25)


def test_convolution_by_hand() -> None:
    image = torch.rand(1, 3, 8, 8, generator=seeded())
    kernel = torch.zeros(1, 8, 8)
    kernel[0, 0, 0], kernel[0, 0, 1] = 0.75, 0.25
    expected = 0.75 * image + 0.25 * image.roll(1, -1)
    assert torch.allclose(convolve(image, kernel), expected, atol=1e-6)


def test_a_path_of_no_length_changes_nothing() -> None:
    image = sharp()
    none = torch.zeros(4, 48, 2)
    assert torch.allclose(camera_blur(image, none), image, atol=1e-5)
    still = torch.zeros(4, 48)
    assert torch.allclose(camera_blur(image, none, still, still), image, atol=1e-5)


def test_corners_move_apart_when_the_camera_rolls() -> None:
    image = sharp()
    roll = torch.linspace(-0.05, 0.05, 48).expand(4, 48)
    blurred = camera_blur(image, torch.zeros(4, 48, 2), roll, torch.zeros(4, 48))
    change = (blurred - image).abs().mean(dim=(0, 1))
    assert float(change[8:-8, 8:-8][12:20, 12:20].mean()) < float(change[4:12, 4:12].mean())


def test_pairs() -> None:
    blurred, target = make_pairs(sharp(), margin=8, options=PURE, generator=seeded())
    assert blurred.shape == target.shape == (4, 3, 32, 32)
    assert torch.allclose(target, sharp()[..., 8:-8, 8:-8].clamp_min(1e-4), atol=1e-4)
    assert float((blurred - target).abs().mean()) > 0.01
    assert float(blurred.min()) >= 0
    assert float(blurred.max()) <= 1
    # Blurring spreads light and makes none.
    assert float(blurred.std()) < float(target.std())


def test_sharp_pairs_are_untouched() -> None:
    for options in (replace(PURE, sharp_share=1.0), replace(PURE, max_length=0.0)):
        blurred, target = make_pairs(sharp(), margin=8, options=options, generator=seeded())
        assert torch.allclose(blurred, target, atol=2e-3)
    # Also with all else that moves.
    options = BlurOptions(sharp_share=1.0, noise=0, varying_share=1.0, layer_share=1.0)
    blurred, target = make_pairs(sharp(), margin=8, options=options, generator=seeded())
    assert float((blurred - target).abs().max()) < 5e-3


def test_the_same_seed_makes_the_same_pairs() -> None:
    options = BlurOptions()
    one, two, other = (
        make_pairs(sharp(), margin=8, options=options, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], other[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        size = (40, 30) if number == 2 else (120, 90)  # one is smaller than the crop
        Image.fromarray(pixels).resize(size).save(folder / f"{number}.png")
    return folder


def test_data(photos: Path, tmp_path: Path) -> None:
    files = picture_files(photos)
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert load_picture(files[0]).shape == (90, 120, 3)
    batches = [
        list(itertools.islice(SyntheticPairs(files, batch=2, crop=32, margin=8, seed=seed), 3))
        for seed in (0, 0, 1)
    ]
    for blurred, target in batches[0]:
        assert blurred.shape == target.shape == (2, 3, 32, 32)
        assert blurred.dtype == target.dtype == torch.uint8
    assert all(map(torch.equal, sum(batches[0], ()), sum(batches[1], ())))
    assert not torch.equal(batches[0][0][0], batches[2][0][0])
    assert not torch.equal(batches[0][0][0], batches[0][1][0])
    with pytest.raises(InputError, match="no pictures"):
        picture_files(tmp_path)


def test_pair_files(photos: Path, tmp_path: Path) -> None:
    for name in ("blur", "sharp"):
        (tmp_path / name).mkdir()
    (tmp_path / "blur" / "a.png").write_bytes((photos / "0.png").read_bytes())
    with pytest.raises(InputError, match="partner"):
        pair_files(tmp_path)
    (tmp_path / "sharp" / "a.png").write_bytes((photos / "0.png").read_bytes())
    assert pair_files(tmp_path) == [(tmp_path / "blur" / "a.png", tmp_path / "sharp" / "a.png")]


def test_losses() -> None:
    image = torch.rand(2, 3, 16, 16, generator=seeded())
    pyramid = target_pyramid(image, 3)
    assert [tuple(p.shape[2:]) for p in pyramid] == [(4, 4), (8, 8), (16, 16)]
    assert pyramid[2] is image
    assert float(multi_scale_l1(pyramid, pyramid)) == 0
    assert float(multi_scale_frequency(pyramid, pyramid)) == 0
    moved = [p + 0.1 for p in pyramid]
    assert float(multi_scale_l1(moved, pyramid)) == pytest.approx(0.3, abs=1e-5)
    assert float(multi_scale_frequency(moved, pyramid)) > 0


def test_scores() -> None:
    blurred = np.full((8, 8, 3), 100, np.uint8)
    clear = np.full((8, 8, 3), 110, np.uint8)
    (score,) = score_pairs(lambda x: x + 9 / 255, [("a", blurred, clear)])
    assert score.before == psnr(blurred, clear)
    assert score.after == psnr(clear, clear - 1)
    assert score.gain == score.after - score.before == pytest.approx(20)
    assert np.array_equal(to_picture(to_tensor(blurred)), blurred)


def toy() -> tuple[MIMOUNet, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = MIMOUNet(base=8, blocks=1, unshuffle=1)
    model.start_as_identity()
    pairs = make_pairs(sharp(2, 64), margin=16, options=PURE, generator=seeded())
    batch = tuple(image.mul(255).round().byte() for image in pairs)
    return model, [(batch[0], batch[1])] * 40


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    model, batches = toy()
    losses: list[Progress] = []
    options = TrainOptions(
        budget_seconds=3600, learning_rate=3e-3, warmup_share=0, report_seconds=0, ema=0.5
    )
    state = tmp_path / "state.pt"
    blurred, target = (t.float().div(255) for t in batches[0])

    def distance(network: MIMOUNet) -> float:
        with torch.no_grad():
            return float((network(blurred) - target).abs().mean())

    before = distance(model)
    averaged = train(
        model,
        batches,
        options,
        device=torch.device("cpu"),
        state_file=state,
        on_report=lambda progress, _: losses.append(progress),
    )
    assert losses[-1].loss < 0.96 * losses[0].loss
    assert losses[-1].step == 40
    assert distance(averaged) < 0.95 * before
    assert not any(p.requires_grad for p in averaged.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    # Going on from the state: the count, and the weights, are those of before.
    again, _ = toy()
    more: list[Progress] = []
    resumed = train(
        again,
        batches[:1],
        options,
        device=torch.device("cpu"),
        state_file=state,
        on_report=lambda progress, _: more.append(progress),
    )
    assert more[0].step == 41
    assert distance(resumed) < 0.95 * before


def test_learning_rate() -> None:
    options = TrainOptions(budget_seconds=60, learning_rate=1e-3)
    rates = [learning_rate(share, options) for share in (0, 0.1, 0.5, 0.9, 1.0, 2.0)]
    assert max(rates) <= 1e-3
    assert rates[1] > rates[2] > rates[3] > rates[4] >= 0
    assert rates[5] <= rates[4] + 1e-12
