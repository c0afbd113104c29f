"""Batches of pairs in files."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.batches import Data, DataOptions
from vdeblur.datasets.layouts import PairFiles, picture_size
from vdeblur.datasets.pictures import RGBImage, load_picture
from vdeblur.datasets.pool import Batch
from vdeblur.errors import InputError

_HELD_OUT = 24  # pairs to score on, at most


class FolderPairs(Data):
    """Random crops of pairs in files: each pair once an epoch, in an order drawn for each epoch.

    Args:
        pairs: The files.
        options: Size of the batches, and how they are varied.
        cache: Bytes of decoded pictures to keep, shared by the workers.
        held_out: Files for validation.
        name: Suffix of the summary, to say where the pairs are from.

    Raises:
        InputError: There are no pairs, or one is too small, or its pictures differ in size.
    """

    def __init__(
        self,
        pairs: Sequence[PairFiles],
        options: DataOptions | None = None,
        *,
        cache: int = 8 << 30,
        held_out: Sequence[PairFiles] = (),
        name: str = "",
    ) -> None:
        if not pairs:
            raise InputError("no pairs to train on: give a folder with some")
        options = options or DataOptions()
        self.files, self.batch, self.crop = list(pairs), options.batch, options.crop
        self.seed, self.augment = options.seed, options.augment or Augment()
        self.pairs = len(self.files)
        self._sizes = _sizes(self.files, self.crop)
        self._cache = _Cache([size for size in self._sizes for _ in range(2)], cache)
        self._held_out = list(held_out)
        self.summary = f"{len(self.files)} pairs{name}"
        if held_out:
            kept = min(_HELD_OUT, len(held_out))
            self.held_out_summary = f"{kept} of {len(held_out)} pairs kept aside"

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Return a batch of uint8 pictures (batch, 3, crop, crop), of unknown motion."""
        count = self.batch // shard[1]
        first = index * self.batch + shard[0] * count
        crops = []
        for number in range(first, first + count):
            rng = np.random.default_rng([self.seed, number])
            epoch, place = divmod(number, len(self.files))
            crops.append(self._crop(int(self._order(epoch)[place]), rng))
        blurred, sharp = torch.stack(crops, dim=1)
        return Batch(blurred, sharp)

    def held_out(self, *, side: int = 256) -> Batch | None:
        """Return center crops of up to 24 of the pairs kept aside, evenly spread."""
        if not self._held_out:
            return None
        step = max(1, len(self._held_out) // _HELD_OUT)
        some = self._held_out[::step][:_HELD_OUT]
        side = min(side, *(min(size) for size in _sizes(some, 0)))
        cuts = []
        for pair in some:
            pictures = [load_picture(path) for path in (pair.blurred, pair.sharp)]
            top, left = (pictures[0].shape[0] - side) // 2, (pictures[0].shape[1] - side) // 2
            both = np.stack([p[top : top + side, left : left + side] for p in pictures])
            cuts.append(torch.from_numpy(both).permute(0, 3, 1, 2))
        return Batch(*torch.stack(cuts, dim=1))

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.files))

    def _crop(self, number: int, rng: np.random.Generator) -> Tensor:
        """A crop of pair `number`, blurred and sharp: (2, 3, crop, crop)."""
        pair = self.files[number]
        height, width = self._sizes[number]
        top = int(rng.integers(height - self.crop + 1))
        left = int(rng.integers(width - self.crop + 1))
        both = [
            self._cache.get(2 * number + k, path)[top : top + self.crop, left : left + self.crop]
            for k, path in enumerate((pair.blurred, pair.sharp))
        ]
        pictures = torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2)
        pictures = self.augment.turn(pictures, rng)
        if self.augment.colors:
            pictures = self.augment.color(pictures.float().div(255), rng).mul(255).round().byte()
        return pictures


class _Cache:
    """Decoded pictures in anonymous memory that forked workers share; nothing on disk.

    Every picture has its place from the start; pages are allocated when written. The memory does
    not travel to spawned processes, where each decodes anew.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], limit: int) -> None:
        self.places: list[int | None] = []
        end = 0
        for height, width in sizes:
            fits = end + height * width * 3 <= limit
            self.places.append(end if fits else None)
            end += height * width * 3 if fits else 0
        self.sizes = sizes
        self._memory: mmap.mmap | None = mmap.mmap(-1, end) if end else None
        # A byte each, in memory of the same kind: 1 once the picture is there.
        self._ready: mmap.mmap | None = mmap.mmap(-1, max(len(sizes), 1))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None, "_ready": None}

    def get(self, number: int, path: Path) -> RGBImage:
        """Return picture `number`, decoded from `path` the first time."""
        place = self.places[number]
        if place is None or self._memory is None or self._ready is None:
            return load_picture(path)
        height, width = self.sizes[number]
        shape = (height, width, 3)
        held = np.frombuffer(self._memory, np.uint8, height * width * 3, place).reshape(shape)
        if not self._ready[number]:
            # Two workers may both decode it: they write the same bytes.
            picture = load_picture(path)
            if picture.shape != shape:
                raise InputError(f"{path} changed while it was used: start again")
            held[...] = picture
            self._ready[number] = 1
        return held


def _sizes(pairs: Sequence[PairFiles], crop: int) -> list[tuple[int, int]]:
    """(height, width) of each pair, from the headers; InputError for one that cannot serve."""
    sizes = []
    for pair in pairs:
        blurred, sharp = picture_size(pair.blurred), picture_size(pair.sharp)
        if blurred != sharp:
            raise InputError(
                f"{pair.blurred} is {blurred[1]}x{blurred[0]} and {pair.sharp} is "
                f"{sharp[1]}x{sharp[0]}: a pair must be of one size; vdeblur data check lists them"
            )
        if min(blurred) < crop:
            raise InputError(
                f"{pair.blurred} is {blurred[1]}x{blurred[0]}: too small for crops of {crop} pixels"
            )
        sizes.append(blurred)
    return sizes
