"""Where training pictures come from: folders of sharp photographs, folders of pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from vdeblur.errors import InputError
from vdeblur.training.blur import BlurOptions, compress, make_pairs

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


def picture_files(folder: Path) -> list[Path]:
    """Every picture under `folder`, sorted; InputError when there is none."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"no pictures under {folder}: give a folder of PNG or JPEG files")
    return files


def load_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def pair_files(folder: Path) -> list[tuple[Path, Path]]:
    """(blurred, sharp) files of one name in `folder/blur` and `folder/sharp`."""
    pairs = []
    for blurred in picture_files(folder / "blur"):
        sharp = folder / "sharp" / blurred.relative_to(folder / "blur")
        if not sharp.is_file():
            raise InputError(f"{blurred} has no sharp partner: expected {sharp}")
        pairs.append((blurred, sharp))
    return pairs


class SyntheticPairs(IterableDataset[tuple[Tensor, Tensor]]):
    """Endless batches of synthetic pairs from sharp photographs held in memory as uint8.

    Yields (blurred, sharp) uint8 tensors (batch, 3, crop, crop). Seeded: worker w of the same seed
    always yields the same sequence. Give it to a DataLoader with batch_size=None.
    """

    def __init__(
        self,
        files: list[Path],
        *,
        batch: int = 8,
        crop: int = 192,
        margin: int = 32,
        options: BlurOptions | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch, self.crop, self.margin, self.seed = batch, crop, margin, seed
        self.options = options or BlurOptions()
        self.pictures = [torch.from_numpy(load_picture(f)).permute(2, 0, 1) for f in files]

    def _crop(self, rng: np.random.Generator) -> Tensor:
        size = self.crop + 2 * self.margin
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        _, height, width = picture.shape
        # Reducing by up to 2 makes crops sharper and shows more of the scene.
        scale = min(float(rng.uniform(1.0, 2.0)), height / size, width / size)
        side = min(max(int(size * scale), 1), height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        part = picture[:, top : top + side, left : left + side].float().div(255)
        if side != size:
            part = F.interpolate(
                part[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )[0]
        part = torch.rot90(part, int(rng.integers(4)), (1, 2))
        return part.flip(2) if rng.random() < 0.5 else part

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = torch.utils.data.get_worker_info()
        seed = self.seed * 1000 + (info.id if info else 0)
        rng = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        while True:
            sharp = torch.stack([self._crop(rng) for _ in range(self.batch)])
            blurred, target = make_pairs(
                sharp, margin=self.margin, options=self.options, generator=generator
            )
            coded = blurred.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
            compress(coded, self.options, rng)
            yield (
                torch.from_numpy(coded).permute(0, 3, 1, 2),
                target.mul(255).round().byte(),
            )
