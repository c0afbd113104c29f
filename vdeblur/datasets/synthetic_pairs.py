"""Batches of pairs made from sharp photographs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.batches import (
    LENGTHS,
    Course,
    Data,
    DataOptions,
    NumberedStream,
    made_ahead,
)
from vdeblur.datasets.blur_options import PURE, BlurOptions, lightly
from vdeblur.datasets.camera_motion import MOTION_STEP
from vdeblur.datasets.films import FilmOptions, filmed, with_some_left_out
from vdeblur.datasets.matching import Matching, in_processes, matched
from vdeblur.datasets.motion_errors import NO_ERRORS, with_errors
from vdeblur.datasets.pictures import load_picture
from vdeblur.datasets.pool import Batch, Pool, around_of, cut_out, draw_places, joined
from vdeblur.datasets.synthetic_blur import make_pairs
from vdeblur.system.workers import background

_PAIRS_OF_A_CAMERA = 2  # of each length and each camera of VALIDATION, to score on
_FILMS = 24  # to score on
_FLAT = 0.025  # mean difference of neighbors, in rows and in columns together
_TRIES = 4  # at a part of a photograph that is not flat
#: Pictures that are blurred at once. A CPU is slower with more, which exceed its caches; on a GPU
#: each time costs some thousand launches, however many pictures there are.
_AT_ONCE = {"cpu": 8, "cuda": 256}

#: Three cameras to score on: frames averaged in coded values, a bare camera with a response curve,
#: and one that sharpens, is noisy and compresses. Everything they see moves, along paths of the
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


class SyntheticPairs(Data, IterableDataset[Batch]):
    """Pairs made from sharp photographs, which are held in memory as uint8; without end.

    On a GPU the photographs lie in its memory, and `feed` makes pairs in a thread beside training,
    with workers that find the flow of films; on the CPU the workers make pairs. Flat parts of
    photographs are mostly left out. Iterating yields the batches from the first on, shared among
    the workers of a DataLoader (with batch_size=None).

    Args:
        files: The photographs.
        options: Size and kind of the batches.
        device: Where pairs are made, and stay.
        held_out: Photographs for validation.

    Attributes:
        options: May be replaced between batches, to vary the blur.
        in_thread: Whether `feed` makes pairs in a thread.
    """

    def __init__(
        self,
        files: Sequence[Path],
        options: DataOptions | None = None,
        *,
        device: torch.device | str = "cpu",
        held_out: Sequence[Path] = (),
    ) -> None:
        super().__init__()
        self.options = options = options or DataOptions()
        self.batch, self.augment = options.batch, options.augment or Augment()
        usual = 48 if options.films.neighbours else 32
        self.margin = usual if options.margin is None else options.margin
        self._last: tuple[Any, Pool] | None = None
        self.device = torch.device(device)
        self.in_thread = self.device.type != "cpu"
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            self.pictures = [one.to(self.device) for one in threads.map(_decoded, files)]
        self._held_out = list(held_out)
        self.summary = f"{len(files)} photographs, blurred as they are used"
        if held_out:
            self.held_out_summary = f"the last {len(held_out)} photographs, held out"

    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Return a batch on the device, uint8 (batch, 3, crop, crop), with its motion.

        A different number of shards yields different pairs.
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
        """Make a pool of pairs, on the device; if pairs are used once, those of one batch.

        Args:
            number: The number of the pool.
            shard: (i, n) for the i-th of n training processes.
            share: How much of the run is done, 0 to 1.
            match: Finds the flow of frames, for `filmed`.
        """
        options = self.options
        rng, generator = self._random(number, *shard)
        count = self._pairs_of_a_pool(shard)
        most = _AT_ONCE.get(self.device.type, 8)
        parts = []
        for first in range(0, count, most):
            clean = rng.random() < options.pool.clean(share)
            pairs = make_pairs(
                self._crops(rng, min(most, count - first)),
                margin=self.margin,
                options=lightly(options.blur) if clean else options.blur,
                generator=generator,
                neighbours=options.films.neighbours,
            )
            blurred, sharp = (picture.mul(255).round() for picture in pairs[:2])
            motion, film = pairs.motion, None
            if pairs.around is not None:
                around = pairs.around._replace(blurred=pairs.around.blurred.mul(255).round() / 255)
                seen = pairs._replace(blurred=blurred / 255, around=around)
                motion, film = filmed(seen, options.films, rng, generator, match=match)
            parts.append(Pool(blurred.byte(), sharp.byte(), motion, film))
        return joined(parts)

    def held_out(self, *, side: int = 192) -> Batch | None:
        """Return pairs of each of LENGTHS, by each camera of VALIDATION; all are blurred."""
        if not self._held_out:
            return None
        options = DataOptions(
            batch=_PAIRS_OF_A_CAMERA, crop=side, margin=48, seed=1, errors=NO_ERRORS
        )
        data = SyntheticPairs(self._held_out, options)
        batches: list[Batch] = []
        for length in LENGTHS:
            for camera in VALIDATION.values():
                data.options = replace(options, blur=replace(camera, max_length=float(length)))
                batches.append(data.batch_at(len(batches)))
        blurred, sharp, motion = (torch.cat(part) for part in list(zip(*batches, strict=True))[:3])
        return Batch(blurred, sharp, motion)

    def held_out_films(self, *, side: int = 192) -> Batch | None:
        """Return frames of a good camera, none of them sharp, with all that is known of a film."""
        if not self._held_out or not self.options.films.neighbours:
            return None
        options = DataOptions(
            batch=_FILMS,
            crop=side,
            blur=replace(lightly(BlurOptions()), sharp_share=0.0),
            seed=1,
            errors=NO_ERRORS,
            films=FilmOptions(True, 0.0, 1.0, (2,), 0.0, 0.0, 0.0),
        )
        return SyntheticPairs(self._held_out, options).batch_at(0)

    def __iter__(self) -> Iterator[Batch]:
        return iter(NumberedStream(self.batch_at, 0))

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
        size = self.options.pool.side(self.options.crop) + 2 * self.margin
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        _, height, width = picture.shape
        scale = min(float(rng.uniform(*self.options.reduce)), height / size, width / size)
        side = min(max(int(size * scale), 1), height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        part = picture[:, top : top + side, left : left + side].float().div(255)
        if side != size:
            part = F.interpolate(
                part[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )[0]
        return self.augment.color(self.augment.turn(part, rng)[None], rng)[0]

    def _batch(self, pool: Pool, index: int, shard: tuple[int, int], share: float) -> Batch:
        """Batch `index` out of its pool."""
        options = self.options
        rng, generator = self._random(index, *shard, 1)
        some = pool
        if options.pool.reuse > 1:
            number, place = divmod(index, self._batches_of_a_pool(shard))
            order = np.random.default_rng([options.seed, number, *shard, 2])
            passes = [order.permutation(len(pool.blurred)) for _ in range(options.pool.reuse)]
            count = self.batch // shard[1]
            places = draw_places(
                np.concatenate(passes)[place * count : (place + 1) * count],
                rng,
                room=(pool.blurred.shape[-1] - options.crop) // MOTION_STEP,
                flips=self.augment.flips,
                rotations=self.augment.rotations,
            )
            some = cut_out(pool, places, options.crop)
        known, around = None, None
        if some.film is not None:
            known = some.film.known
            around = with_some_left_out(around_of(some.film), options.films, generator)
        motion = with_errors(some.motion, options.errors, generator, share=share, known=known)
        return Batch(some.blurred, some.sharp, motion, around)

    def _random(self, *numbers: int) -> tuple[np.random.Generator, torch.Generator]:
        seeds = np.random.SeedSequence([self.options.seed, *numbers])
        state = int(seeds.generate_state(1, np.uint64)[0] >> 1)
        return np.random.default_rng(seeds), torch.Generator().manual_seed(state)

    def _pairs_of_a_pool(self, shard: tuple[int, int]) -> int:
        count, pool = self.batch // shard[1], self.options.pool
        return count if pool.reuse == 1 else max(pool.pairs, count)

    def _batches_of_a_pool(self, shard: tuple[int, int]) -> int:
        return self._pairs_of_a_pool(shard) * self.options.pool.reuse // (self.batch // shard[1])

    def _from(
        self, workers: int, shard: tuple[int, int], pin: bool, course: Course, start: int
    ) -> Iterator[Batch]:
        # Pools are made ahead of time; crops are cut here, so that nothing needs to travel.
        each = self._batches_of_a_pool(shard)
        first, ahead = start // each, 4 if each == 1 else 1
        make = functools.partial(_pool_of, self, shard, course, each)
        with contextlib.ExitStack() as stack:
            pools: Iterable[Pool]
            if self.in_thread:
                made = self._made_beside(make, first, workers)
                pools = stack.enter_context(background(made, depth=ahead, name="pairs"))
            else:
                pools = made_ahead(make, first, workers=workers, pin=pin, ahead=ahead)
            for number, pool in zip(itertools.count(first), pools, strict=False):
                _keep_until_used(pool)
                for index in range(max(start, number * each), (number + 1) * each):
                    yield self._batch(pool, index, shard, course.at(index))

    def _made_beside(self, make: Callable[..., Pool], first: int, workers: int) -> Iterator[Pool]:
        """Pools from number `first` on, for a thread of their own; each finished when yielded.

        A GPU makes them on a stream of their own, beside the training's. `workers` processes find
        the flow.
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


def _decoded(file: Path) -> Tensor:
    """A photograph as uint8 (3, H, W)."""
    return torch.from_numpy(load_picture(file)).permute(2, 0, 1).contiguous()


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
    """Keep the GPU memory of a pool from other streams until this one is done with it.

    It was allocated on the stream that made the pool, where it is free as soon as Python drops it;
    kernels that read it here may not have run by then.
    """
    for part in (*pool[:3], *(pool.film or ())):
        if part.is_cuda:
            part.record_stream(torch.cuda.current_stream(part.device))
