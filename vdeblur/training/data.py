"""Where training batches come from: sharp photographs that are blurred, and folders of pairs.

Batch number i is made from the seed and i alone: a resumed run, another number of loading processes
and several training processes see the same pictures. Knows no network.
"""

from __future__ import annotations

import mmap
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vdeblur.errors import InputError, UsageError
from vdeblur.extras import optional
from vdeblur.training.blur import PURE, BlurOptions, make_pairs
from vdeblur.training.layouts import Pair, find_pairs, picture_files, picture_size, recognise

__all__ = [
    "Augment",
    "Data",
    "FolderPairs",
    "SyntheticPairs",
    "load_picture",
    "open_data",
    "pair_files",
    "picture_files",
]

Batch = tuple[Tensor, Tensor]
HELD_OUT = 20  # photographs kept for validation, the last by name


def load_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB; InputError when it cannot be read."""
    pillow = optional("PIL.Image", extra="train", purpose="reading pictures")
    try:
        with pillow.open(path) as image:
            return np.array(image.convert("RGB"))
    except OSError as error:
        reason = error.strerror or "it is none, or damaged"
        raise InputError(f"{path} cannot be read as a picture ({reason}): remove it") from error


def pair_files(folder: Path) -> list[tuple[Path, Path]]:
    """(blurred, sharp) files of one name in `folder/blur` and `folder/sharp`."""
    return [(p.blurred, p.sharp) for p in find_pairs(folder, layout="plain")]


@dataclass(frozen=True)
class Augment:
    """How pictures are varied, blurred and sharp alike. Each strength is the most; 0 is never.

    flips: left and right, top and bottom; rotations: by quarter turns. brightness, contrast,
    saturation: factors from 1 − s to 1 + s, of half of the pictures. channels: share of the
    pictures whose colour channels change places.
    """

    flips: bool = True
    rotations: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    channels: float = 0.0

    def turn(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """(…, S, S), turned and flipped at random."""
        quarters, across, down = int(rng.integers(4)), rng.random() < 0.5, rng.random() < 0.5
        if self.rotations:
            picture = torch.rot90(picture, quarters, (-2, -1))
        elif self.flips and down and picture.shape[-1] == picture.shape[-2]:
            picture = picture.flip(-2)
        return picture.flip(-1) if self.flips and across else picture

    def colour(self, pictures: Tensor, rng: np.random.Generator) -> Tensor:
        """(K, 3, H, W) in 0..1: one scene's pictures, all changed alike."""
        if rng.random() < self.channels:
            pictures = pictures[:, torch.from_numpy(rng.permutation(3)).to(pictures.device)]
        factors = 1 + rng.uniform(-1, 1, 3) * (self.brightness, self.contrast, self.saturation)
        if np.all(factors == 1) or rng.random() < 0.5:
            return pictures
        brightness, contrast, saturation = (float(f) for f in factors)
        # The mid grey of the last, which is the sharp one, serves all of them.
        grey = pictures[-1].mean()
        pictures = ((pictures - grey) * contrast + grey) * brightness
        luma = pictures.mean(dim=1, keepdim=True)
        return (luma + (pictures - luma) * saturation).clamp(0, 1)


#: For photographs: their colours are varied before they are blurred.
PHOTO_COLOURS = Augment(brightness=0.3, contrast=0.25, saturation=0.4, channels=0.1)


class Data(ABC):
    """Pairs to train on. pairs: how many an epoch has, None where they have no end."""

    pairs: int | None = None
    batch: int
    summary: str
    held_out_summary: str = ""

    @abstractmethod
    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """Batch number `index`: (blurred, sharp) uint8 (N, 3, crop, crop).

        shard: (i, n) for the i-th of n equal parts of it.
        """

    @abstractmethod
    def held_out(self, *, side: int = 256) -> Batch | None:
        """Pairs for validation, always the same; None where there are none.

        uint8 (N, 3, S, S), S being `side` or, where files are smaller, less.
        """

    def feed(
        self, *, workers: int = 0, shard: tuple[int, int] = (0, 1), pin: bool = False
    ) -> Callable[[int], Iterable[Batch]]:
        """A function of a batch's number that gives the batches from it on, without end.

        workers: processes that make batches ahead of time. shard: (i, n), every process of n gets
        the i-th part of each batch. pin: in page-locked memory, for a GPU.
        """
        if self.batch % shard[1]:
            raise UsageError(f"a batch of {self.batch} cannot be shared by {shard[1]} evenly")

        def batches(start: int) -> Iterable[Batch]:
            stream = _Stream(self, start, shard)
            if not workers:
                return stream
            return DataLoader(
                stream,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=4,
                pin_memory=pin,
                worker_init_fn=_ignore_interrupt,
            )

        return batches


class _Stream(IterableDataset[Batch]):
    """The batches of one process from `start` on.

    A DataLoader asks its workers in turn, so that their batches come in the order of their numbers.
    """

    def __init__(self, data: Data, start: int, shard: tuple[int, int]) -> None:
        super().__init__()
        self.data, self.start, self.shard = data, start, shard

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        index, step = self.start, 1
        if info is not None:
            torch.set_num_threads(1)
            index, step = index + info.id, info.num_workers
        while True:
            yield self.data.batch_at(index, self.shard)
            index += step


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C and SIGTERM of a process group are the training process's: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SyntheticPairs(Data, IterableDataset[Batch]):
    """Pairs made from sharp photographs, which are held in memory as uint8; without end.

    device: where pairs are made and given. On a GPU the photographs lie in its memory and no worker
    is needed; on the CPU, give `feed` some workers. reduce: photographs are made smaller by a
    factor out of it, which makes crops sharper and shows more of the scene. Iterating gives the
    batches from the first on, shared among the workers of a DataLoader (with batch_size=None) that
    it is given to.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        batch: int = 8,
        crop: int = 192,
        margin: int = 32,
        options: BlurOptions | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        held_out: Sequence[Path] = (),
        reduce: tuple[float, float] = (1.0, 2.0),
    ) -> None:
        super().__init__()
        self.batch, self.crop, self.margin, self.seed = batch, crop, margin, seed
        self.options = options or BlurOptions()
        self.augment, self.reduce = augment or Augment(), reduce
        self.device = torch.device(device)
        self.pictures = [self._load(file) for file in files]
        self._held_out = list(held_out)
        self.summary = f"{len(files)} photographs, blurred as they are used"
        if held_out:
            self.held_out_summary = f"the last {len(held_out)} photographs, held out"

    def _load(self, file: Path) -> Tensor:
        return torch.from_numpy(load_picture(file)).permute(2, 0, 1).contiguous().to(self.device)

    def _crop(self, rng: np.random.Generator) -> Tensor:
        size = self.crop + 2 * self.margin
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        _, height, width = picture.shape
        scale = min(float(rng.uniform(*self.reduce)), height / size, width / size)
        side = min(max(int(size * scale), 1), height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        part = picture[:, top : top + side, left : left + side].float().div(255)
        if side != size:
            part = F.interpolate(
                part[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )[0]
        return self.augment.colour(self.augment.turn(part, rng)[None], rng)[0]

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """Batch number `index`: (blurred, sharp) uint8 (batch, 3, crop, crop) on the device.

        Of another number of shards the pairs are others.
        """
        seeds = np.random.SeedSequence([self.seed, index, *shard])
        rng = np.random.default_rng(seeds)
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
        sharp = torch.stack([self._crop(rng) for _ in range(self.batch // shard[1])])
        blurred, target, _ = make_pairs(
            sharp, margin=self.margin, options=self.options, generator=generator
        )
        return blurred.mul(255).round().byte(), target.mul(255).round().byte()

    def __iter__(self) -> Iterator[Batch]:
        return iter(_Stream(self, 0, (0, 1)))

    def held_out(self, *, side: int = 256) -> Batch | None:
        """24 pairs: 8 of each kind in VALIDATION, all blurred."""
        if not self._held_out:
            return None
        kinds = [
            SyntheticPairs(self._held_out, batch=8, crop=side, margin=48, options=options, seed=1)
            for options in VALIDATION.values()
        ]
        batches = [kind.batch_at(number) for number, kind in enumerate(kinds)]
        return torch.cat([b for b, _ in batches]), torch.cat([s for _, s in batches])


#: Three cameras to score on: frames averaged in coded values, a bare camera with a response curve,
#: and one that sharpens, is noisy and compresses. Paths are up to 40 pixels, evenly.
VALIDATION: dict[str, BlurOptions] = {
    "averaged": replace(
        PURE, length_power=1.0, varying_share=0.5, layer_share=0.4, frames_share=1.0
    ),
    "linear": replace(
        PURE,
        length_power=1.0,
        varying_share=0.5,
        layer_share=0.4,
        coded_share=0.0,
        highlight_share=0.3,
    ),
    "camera": replace(
        BlurOptions(),
        length_power=1.0,
        light_share=0.0,
        sharp_share=0.0,
        noise_share=1.0,
        coded_share=0.0,
        sharpen_share=0.7,
        jpeg_share=0.5,
        h264_share=0.5,
    ),
}


class _Cache:
    """Decoded pictures in anonymous memory that forked workers share; nothing on disk.

    Every picture has its place from the start; pages are taken when written. Where processes are
    spawned instead, it does not travel, and each decodes anew.
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
        # A byte each, in memory of the same kind: 1 when the picture is there.
        self._ready: mmap.mmap | None = mmap.mmap(-1, max(len(sizes), 1))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": None, "_ready": None}

    def get(self, number: int, path: Path) -> NDArray[np.uint8]:
        """(H, W, 3) of picture `number`, decoded from `path` the first time."""
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


class FolderPairs(Data):
    """Random crops of pairs in files, each pair once an epoch, in an order drawn for each epoch.

    cache: bytes of decoded pictures to keep, shared by the workers.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        batch: int = 8,
        crop: int = 256,
        augment: Augment | None = None,
        seed: int = 0,
        cache: int = 8 << 30,
        held_out: Sequence[Pair] = (),
        name: str = "",
    ) -> None:
        if not pairs:
            raise InputError("no pairs to train on: give a folder with some")
        self.files, self.batch, self.crop, self.seed = list(pairs), batch, crop, seed
        self.pairs = len(self.files)
        self.augment = augment or Augment()
        sizes = _sizes(self.files, crop)
        self._cache = _Cache([size for size in sizes for _ in range(2)], cache)
        self._sizes = sizes
        self._held_out = list(held_out)
        self.summary = f"{len(self.files)} pairs{name}"
        if held_out:
            self.held_out_summary = f"{min(24, len(held_out))} of {len(held_out)} pairs kept aside"

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1)) -> Batch:
        """Batch number `index`: (blurred, sharp) uint8 (batch, 3, crop, crop)."""
        count = self.batch // shard[1]
        first = index * self.batch + shard[0] * count
        crops = []
        for number in range(first, first + count):
            rng = np.random.default_rng([self.seed, number])
            epoch, place = divmod(number, len(self.files))
            crops.append(self._crop(int(self._order(epoch)[place]), rng))
        blurred, sharp = torch.stack(crops, dim=1)
        return blurred, sharp

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.files))

    def _crop(self, number: int, rng: np.random.Generator) -> Tensor:
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
        a = self.augment
        if a.brightness or a.contrast or a.saturation or a.channels:
            pictures = a.colour(pictures.float().div(255), rng).mul(255).round().byte()
        return pictures

    def held_out(self, *, side: int = 256) -> Batch | None:
        """Centre crops of up to 24 of the pairs kept aside, evenly spread."""
        if not self._held_out:
            return None
        step = max(1, len(self._held_out) // 24)
        some = self._held_out[::step][:24]
        side = min(side, *(min(size) for size in _sizes(some, 0)))
        cuts = []
        for pair in some:
            pictures = [load_picture(path) for path in (pair.blurred, pair.sharp)]
            top, left = (pictures[0].shape[0] - side) // 2, (pictures[0].shape[1] - side) // 2
            both = np.stack([p[top : top + side, left : left + side] for p in pictures])
            cuts.append(torch.from_numpy(both).permute(0, 3, 1, 2))
        batch = torch.stack(cuts, dim=1)
        return batch[0], batch[1]


def _sizes(pairs: Sequence[Pair], crop: int) -> list[tuple[int, int]]:
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


def open_data(
    source: str | Path,
    *,
    batch: int = 8,
    crop: int = 192,
    seed: int = 0,
    options: BlurOptions | None = None,
    augment: Augment | None = None,
    layout: str = "auto",
    device: torch.device | str = "cpu",
) -> Data:
    """What to train on: "synth:DIR" for a folder of sharp photographs, or a folder of pairs.

    Of photographs the last 20 by name are held out for validation (a tenth, where there are no
    more than 100); of pairs, those of the data set's own "val" or "test" split. options: how
    photographs are blurred. augment: by default flips and quarter turns, and colours of photographs
    too. device: a GPU makes the pairs of photographs itself; pairs of files come from the CPU.

    InputError for a folder that is missing, empty or of no known layout.
    """
    kind, _, rest = str(source).partition(":")
    if kind == "synth":
        if not rest:
            raise UsageError("synth: lacks its folder: give synth:DIR, DIR with sharp photographs")
        files = picture_files(Path(rest))
        count = HELD_OUT if len(files) > 100 else max(1, len(files) // 10)
        if len(files) < 2:
            raise InputError(f"{rest} has one photograph: at least two are needed, one to score on")
        return SyntheticPairs(
            files[:-count],
            batch=batch,
            crop=crop,
            options=options,
            augment=augment or PHOTO_COLOURS,
            seed=seed,
            device=device,
            held_out=files[-count:],
        )
    folder = Path(source)
    found = recognise(folder, layout=layout)
    train, aside = found.training(), found.validation()
    return FolderPairs(
        find_pairs(folder, layout=found.name, split=train),
        batch=batch,
        crop=crop,
        augment=augment,
        seed=seed,
        held_out=find_pairs(folder, layout=found.name, split=aside) if aside else (),
        name=f" ({found.name})",
    )
