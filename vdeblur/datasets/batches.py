"""Where training batches come from: sharp photographs that are blurred, and folders of pairs.

Batch number i is made from the seed and i alone: a resumed run, another number of loading processes
and several training processes see the same pictures. Knows no network.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from vdeblur.datasets.films import FilmOptions, filmed, with_some_left_out
from vdeblur.datasets.layouts import Pair, find_pairs, picture_files, picture_size, recognise
from vdeblur.datasets.matching import Matching, in_processes, matched
from vdeblur.datasets.motion_errors import NO_ERRORS, MotionErrors, with_errors
from vdeblur.datasets.pool import Batch, Pool, PoolOptions, around_of, cut_out, draw_places, joined
from vdeblur.datasets.synthetic_blur import MOTION_STEP, PURE, BlurOptions, lightly, make_pairs
from vdeblur.errors import InputError, UsageError
from vdeblur.system.optional import optional
from vdeblur.system.workers import background

__all__ = [
    "LENGTHS",
    "Augment",
    "Batch",
    "Course",
    "Data",
    "FolderPairs",
    "SyntheticPairs",
    "load_picture",
    "open_data",
    "pair_files",
    "picture_files",
]

HELD_OUT = 20  # photographs kept for validation, the last by name
#: Lengths of blur to score on, in pixels, each on so many pairs of each camera of VALIDATION.
LENGTHS = (2, 4, 8, 16, 32)
_PAIRS_OF_A_CAMERA = 2
_FILMS = 24  # to score on
_FLAT = 0.025  # mean difference of neighbours, in rows and in columns together
_TRIES = 4  # at a part of a photograph that is not flat
#: Pictures that are blurred at once. More are slower on a CPU, whose caches they leave; on a GPU
#: each time costs some thousand launches, however many pictures there are.
_AT_ONCE = {"cpu": 8, "cuda": 256}
_T = TypeVar("_T")


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
            pictures = torch.stack([pictures[:, k] for k in rng.permutation(3)], dim=1)
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


class Course:
    """How much of a run is done when it sees a batch, for whoever makes it: 0..1.

    Of a run that is counted in steps, by the batch's number; of one that has a budget of time, as
    the loop last said, also in the processes that load data.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps
        self._now = torch.zeros((), dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]

    def note(self, share: float) -> None:
        """The loop says where it is."""
        self._now.fill_(share)

    def at(self, index: int) -> float:
        """The share that is done when batch `index` is seen."""
        return min(index / self.steps, 1.0) if self.steps else float(self._now)


class Data(ABC):
    """Pairs to train on. pairs: how many an epoch has, None where they have no end."""

    pairs: int | None = None
    batch: int
    summary: str
    held_out_summary: str = ""

    @abstractmethod
    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Batch number `index`: uint8 pictures (N, 3, crop, crop).

        shard: (i, n) for the i-th of n equal parts of it. share: how much of the run is done.
        """

    @abstractmethod
    def held_out(self, *, side: int = 256) -> Batch | None:
        """Pairs for validation, always the same; None where there are none.

        uint8 (N, 3, S, S), S being `side` or, where files are smaller, less. Where their motion is
        known, it is so exactly, and there are equally many of each of LENGTHS, in this order.
        """

    def held_out_films(self, *, side: int = 192) -> Batch | None:
        """The same with the frames around them, their motion being what flow tells of it; None
        where pairs have no neighbours.
        """
        return None

    def feed(
        self,
        *,
        workers: int = 0,
        shard: tuple[int, int] = (0, 1),
        pin: bool = False,
        course: Course | None = None,
    ) -> Callable[[int], Iterable[Batch]]:
        """A function of a batch's number that gives the batches from it on, without end.

        workers: processes that make batches ahead of time, or help to. shard: (i, n), every process
        of n gets the i-th part of each batch. pin: in page-locked memory, for a GPU. course: how
        much of the run is done, for what changes in its course.
        """
        if self.batch % shard[1]:
            raise UsageError(f"a batch of {self.batch} cannot be shared by {shard[1]} evenly")
        return functools.partial(self._from, workers, shard, pin, course or Course())

    def _from(
        self, workers: int, shard: tuple[int, int], pin: bool, course: Course, start: int
    ) -> Iterable[Batch]:
        make = functools.partial(_batch_of, self, shard, course)
        return _made(make, start, workers=workers, pin=pin, ahead=4)


def _batch_of(data: Data, shard: tuple[int, int], course: Course, index: int) -> Batch:
    return data.batch_at(index, shard, course.at(index))


def _made(
    make: Callable[[int], _T], start: int, *, workers: int, pin: bool = False, ahead: int
) -> Iterable[_T]:
    """What `make` gives for the numbers from `start` on, by `workers` processes ahead of time."""
    stream = _Stream(make, start)
    if not workers:
        return stream
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=ahead,
        pin_memory=pin,
        worker_init_fn=_ignore_interrupt,
    )


class _Stream(IterableDataset[_T], Generic[_T]):
    """What a function makes of the numbers from `start` on.

    A DataLoader asks its workers in turn, so that what they make comes in the order of the numbers.
    """

    def __init__(self, make: Callable[[int], _T], start: int) -> None:
        super().__init__()
        self.make, self.start = make, start

    def __iter__(self) -> Iterator[_T]:
        info = torch.utils.data.get_worker_info()
        index, step = self.start, 1
        if info is not None:
            torch.set_num_threads(1)
            index, step = index + info.id, info.num_workers
        while True:
            yield self.make(index)
            index += step


def _ignore_interrupt(_: int) -> None:
    """Ctrl-C and SIGTERM of a process group are the training process's: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class SyntheticPairs(Data, IterableDataset[Batch]):
    """Pairs made from sharp photographs, which are held in memory as uint8; without end.

    device: where pairs are made and given. On a GPU the photographs lie in its memory, and `feed`
    makes pairs in a thread beside training, with workers that find the flow of films; on the CPU
    the workers make pairs. reduce: photographs are made smaller by a factor out of it, which makes
    crops sharper and shows more of the scene; flat parts of them are mostly left out. margin: how
    far anything moves at most; by default more where there are neighbours. pool: whether pairs are
    used more than once, and how clean they are. errors: what is wrong with the motion that is given
    with them. films: whether they come with the frames around them. Iterating gives the batches
    from the first on, shared among the workers of a DataLoader (with batch_size=None) that it is
    given to.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        batch: int = 8,
        crop: int = 192,
        margin: int | None = None,
        options: BlurOptions | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        held_out: Sequence[Path] = (),
        reduce: tuple[float, float] = (1.0, 2.8),
        pool: PoolOptions | None = None,
        errors: MotionErrors | None = None,
        films: FilmOptions | None = None,
    ) -> None:
        super().__init__()
        self.pool, self.errors = pool or PoolOptions(), errors or MotionErrors()
        self.films = films or FilmOptions()
        self._last: tuple[Any, Pool] | None = None
        self.batch, self.crop, self.seed = batch, crop, seed
        # From frame to frame things go farther than in an exposure.
        self.margin = margin if margin is not None else 48 if self.films.neighbours else 32
        self.options = options or BlurOptions()
        self.augment, self.reduce = augment or Augment(), reduce
        self.device = torch.device(device)
        self.in_thread = self.device.type != "cpu"  # whether `feed` makes pairs in a thread
        self.pictures = [self._load(file) for file in files]
        self._held_out = list(held_out)
        self.summary = f"{len(files)} photographs, blurred as they are used"
        if held_out:
            self.held_out_summary = f"the last {len(held_out)} photographs, held out"

    def _load(self, file: Path) -> Tensor:
        return torch.from_numpy(load_picture(file)).permute(2, 0, 1).contiguous().to(self.device)

    def _crops(self, rng: np.random.Generator, count: int) -> Tensor:
        """Parts of photographs, (count, 3, side, side) in 0..1, seldom flat."""
        crops = torch.stack([self._crop(rng) for _ in range(count)])
        for _ in range(_TRIES - 1):
            change = sum(crops.diff(dim=d).abs().mean(dim=(1, 2, 3)) for d in (2, 3))
            assert isinstance(change, Tensor)
            flat = (change < _FLAT).nonzero()[:, 0].tolist()
            for number in flat:
                crops[number] = self._crop(rng)
            if not flat:
                break
        return crops

    def _crop(self, rng: np.random.Generator) -> Tensor:
        size = self.pool.side(self.crop) + 2 * self.margin
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

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Batch number `index`: uint8 (batch, 3, crop, crop) on the device, with its motion.

        Of another number of shards the pairs are others.
        """
        number = index // self._batches_of_a_pool(shard)
        if self._last is None or self._last[0] != (number, shard):
            self._last = (number, shard), self.pool_at(number, shard, share)
        return self._batch(self._last[1], index, shard, share)

    def pool_at(
        self,
        number: int,
        shard: tuple[int, int] = (0, 1),
        share: float = 0.0,
        *,
        match: Matching = matched,
    ) -> Pool:
        """Pool number `number`, on the device; with pairs that are used once, that of one batch.

        match: finds the flow of frames, for `filmed`.
        """
        rng, generator = self._random(number, *shard)
        count = self._pairs_of_a_pool(shard)
        most = _AT_ONCE.get(self.device.type, 8)
        parts = []
        for first in range(0, count, most):
            clean = rng.random() < self.pool.clean(share)
            pairs = make_pairs(
                self._crops(rng, min(most, count - first)),
                margin=self.margin,
                options=lightly(self.options) if clean else self.options,
                generator=generator,
                neighbours=self.films.neighbours,
            )
            blurred, sharp = (picture.mul(255).round() for picture in pairs[:2])
            motion, film = pairs.motion, None
            if pairs.around is not None:
                around = pairs.around._replace(blurred=pairs.around.blurred.mul(255).round() / 255)
                seen = pairs._replace(blurred=blurred / 255, around=around)
                motion, film = filmed(seen, self.films, rng, generator, match=match)
            parts.append(Pool(blurred.byte(), sharp.byte(), motion, film))
        return joined(parts)

    def _batch(self, pool: Pool, index: int, shard: tuple[int, int], share: float) -> Batch:
        """Batch `index` out of the pool that it belongs to."""
        rng, generator = self._random(index, *shard, 1)
        some = pool
        if self.pool.reuse > 1:
            number, place = divmod(index, self._batches_of_a_pool(shard))
            order = np.random.default_rng([self.seed, number, *shard, 2])
            passes = [order.permutation(len(pool.blurred)) for _ in range(self.pool.reuse)]
            count = self.batch // shard[1]
            places = draw_places(
                np.concatenate(passes)[place * count : (place + 1) * count],
                rng,
                room=(pool.blurred.shape[-1] - self.crop) // MOTION_STEP,
                flips=self.augment.flips,
                rotations=self.augment.rotations,
            )
            some = cut_out(pool, places, self.crop)
        known, around = None, None
        if some.film is not None:
            known = some.film.known
            around = with_some_left_out(around_of(some.film), self.films, generator)
        motion = with_errors(some.motion, self.errors, generator, share=share, known=known)
        return Batch(some.blurred, some.sharp, motion, around)

    def _random(self, *numbers: int) -> tuple[np.random.Generator, torch.Generator]:
        seeds = np.random.SeedSequence([self.seed, *numbers])
        state = int(seeds.generate_state(1, np.uint64)[0] >> 1)
        return np.random.default_rng(seeds), torch.Generator().manual_seed(state)

    def _pairs_of_a_pool(self, shard: tuple[int, int]) -> int:
        count = self.batch // shard[1]
        return count if self.pool.reuse == 1 else max(self.pool.pairs, count)

    def _batches_of_a_pool(self, shard: tuple[int, int]) -> int:
        return self._pairs_of_a_pool(shard) * self.pool.reuse // (self.batch // shard[1])

    def _from(
        self, workers: int, shard: tuple[int, int], pin: bool, course: Course, start: int
    ) -> Iterator[Batch]:
        # Pools are made ahead of time; crops of them are cut here, for which nothing need travel.
        each = self._batches_of_a_pool(shard)
        first, ahead = start // each, 4 if each == 1 else 1
        make = functools.partial(_pool_of, self, shard, course, each)
        with contextlib.ExitStack() as stack:
            pools: Iterable[Pool]
            if self.in_thread:
                made = self._made_beside(make, first, workers)
                pools = stack.enter_context(background(made, depth=ahead, name="pairs"))
            else:
                pools = _made(make, first, workers=workers, pin=pin, ahead=ahead)
            for number, pool in zip(itertools.count(first), pools, strict=False):
                _keep_until_used(pool)
                for index in range(max(start, number * each), (number + 1) * each):
                    yield self._batch(pool, index, shard, course.at(index))

    def _made_beside(self, make: Callable[..., Pool], first: int, workers: int) -> Iterator[Pool]:
        """Pools from number `first` on, for a thread of their own: each finished when it is given.

        On a GPU they are made on a stream of their own, beside the training's. Flow is found by
        `workers` processes.
        """
        with contextlib.ExitStack() as stack:
            match = stack.enter_context(in_processes(workers))
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            for number in itertools.count(first):
                pool = make(number, match=match)
                if stream is not None:
                    stream.synchronize()
                yield pool

    def __iter__(self) -> Iterator[Batch]:
        return iter(_Stream(self.batch_at, 0))

    def held_out(self, *, side: int = 192) -> Batch | None:
        """Pairs of each of LENGTHS, by each camera in VALIDATION; all are blurred."""
        if not self._held_out:
            return None
        data = SyntheticPairs(
            self._held_out,
            batch=_PAIRS_OF_A_CAMERA,
            crop=side,
            margin=48,
            seed=1,
            errors=NO_ERRORS,
        )
        batches: list[Batch] = []
        for length in LENGTHS:
            for camera in VALIDATION.values():
                data.options = replace(camera, max_length=float(length))
                batches.append(data.batch_at(len(batches)))
        blurred, sharp, motion = (torch.cat(part) for part in list(zip(*batches, strict=True))[:3])
        return Batch(blurred, sharp, motion)

    def held_out_films(self, *, side: int = 192) -> Batch | None:
        """Frames of a good camera, none of them sharp, with all that is known of a film's."""
        if not self._held_out or not self.films.neighbours:
            return None
        data = SyntheticPairs(
            self._held_out,
            batch=_FILMS,
            crop=side,
            options=replace(lightly(BlurOptions()), sharp_share=0.0),
            seed=1,
            errors=NO_ERRORS,
            films=FilmOptions(True, 0.0, 1.0, (2,), 0.0, 0.0, 0.0),
        )
        return data.batch_at(0)


def _pool_of(
    data: SyntheticPairs,
    shard: tuple[int, int],
    course: Course,
    each: int,
    number: int,
    *,
    match: Matching = matched,
) -> Pool:
    return data.pool_at(number, shard, course.at(number * each), match=match)


def _keep_until_used(pool: Pool) -> None:
    """Have a GPU's memory of a pool not given to another stream before this one is done with it.

    It was taken on the stream that the pool was made on, where it is free as soon as nobody in
    Python has it; what reads it may not have run by then.
    """
    for part in (*pool[:3], *(pool.film or ())):
        if part.is_cuda:
            part.record_stream(torch.cuda.current_stream(part.device))


#: Three cameras to score on: frames averaged in coded values, a bare camera with a response curve,
#: and one that sharpens, is noisy and compresses. All that they see moves, along paths of the
#: largest length.
VALIDATION: dict[str, BlurOptions] = {
    "averaged": replace(
        PURE,
        length_power=0.0,
        varying_share=0.5,
        layer_share=0.4,
        at_rest_share=0.0,
        frames_share=1.0,
    ),
    "linear": replace(
        PURE,
        length_power=0.0,
        varying_share=0.5,
        layer_share=0.4,
        at_rest_share=0.0,
        coded_share=0.0,
        highlight_share=0.3,
    ),
    "camera": replace(
        BlurOptions(),
        length_power=0.0,
        light_share=0.0,
        sharp_share=0.0,
        at_rest_share=0.0,
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

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Batch number `index`: uint8 pictures (batch, 3, crop, crop), of unknown motion."""
        count = self.batch // shard[1]
        first = index * self.batch + shard[0] * count
        crops = []
        for number in range(first, first + count):
            rng = np.random.default_rng([self.seed, number])
            epoch, place = divmod(number, len(self.files))
            crops.append(self._crop(int(self._order(epoch)[place]), rng))
        blurred, sharp = torch.stack(crops, dim=1)
        return Batch(blurred, sharp)

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
        return Batch(*torch.stack(cuts, dim=1))


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
    pool: PoolOptions | None = None,
    errors: MotionErrors | None = None,
    films: FilmOptions | None = None,
) -> Data:
    """What to train on: "synth:DIR" for a folder of sharp photographs, or a folder of pairs.

    Of photographs the last 20 by name are held out for validation (a tenth, where there are no
    more than 100); of pairs, those of the data set's own "val" or "test" split. options: how
    photographs are blurred. augment: by default flips and quarter turns, and colours of photographs
    too. device: a GPU makes the pairs of photographs itself; pairs of files come from the CPU.
    pool, errors, films: as SyntheticPairs takes them, for photographs.

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
            pool=pool,
            errors=errors,
            films=films,
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
