"""Training batches by number: what any source of pairs has in common.

Batch number i depends on the seed and on i alone: a resumed run, a different number of loading
processes, and several training processes see the same pictures. Knows no network.
"""

from __future__ import annotations

import functools
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset

from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.blur_options import BlurOptions
from vdeblur.datasets.films import FilmOptions
from vdeblur.datasets.motion_errors import MotionErrors
from vdeblur.datasets.pool import Batch, PoolOptions
from vdeblur.errors import UsageError

#: Lengths of blur in pixels of held-out pairs with known motion, and of the pans that are scored.
LENGTHS = (2, 4, 8, 16, 32)
_T = TypeVar("_T")


@dataclass(frozen=True)
class DataOptions:
    """How pairs become batches. All after `augment` is for photographs only.

    Args:
        batch: Crops of a batch.
        crop: Side of the crops in pixels.
        seed: With a batch's number, decides everything random.
        augment: How pictures are varied. By default flips and quarter turns, and from `open_data`
            colors of photographs too.
        blur: How photographs are blurred.
        pool: Whether pairs are used more than once, and how clean they are.
        errors: What is wrong with the motion that comes with pairs.
        films: Whether pairs come with the frames around them.
        reduce: Photographs are made smaller by a factor drawn from this range, which makes crops
            sharper and shows more of the scene.
        margin: How far anything moves at most, in pixels; by default 32, or 48 where there are
            frames around: from frame to frame things move farther than in an exposure.
    """

    batch: int = 8
    crop: int = 192
    seed: int = 0
    augment: Augment | None = None
    blur: BlurOptions = field(default_factory=BlurOptions)
    pool: PoolOptions = field(default_factory=PoolOptions)
    errors: MotionErrors = field(default_factory=MotionErrors)
    films: FilmOptions = field(default_factory=FilmOptions)
    reduce: tuple[float, float] = (1.0, 2.8)
    margin: int | None = None


class Course:
    """How much of a run is done when it sees a batch, 0 to 1; also in processes that load data.

    Args:
        steps: The run's length. The share then follows from a batch's number; for a run with a
            budget of time (None), it is the one last reported by `note`.
    """

    def __init__(self, steps: int | None = None) -> None:
        self.steps = steps
        self._now = torch.zeros((), dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]

    def note(self, share: float) -> None:
        """Take note of the share that is done now."""
        self._now.fill_(share)

    def at(self, index: int) -> float:
        """Return the share that is done when batch `index` is seen."""
        return min(index / self.steps, 1.0) if self.steps else float(self._now)


class Data(ABC):
    """A source of pairs to train on.

    Attributes:
        pairs: Pairs of an epoch; None for a source without end.
        batch: Crops of a batch.
        summary: A description for reports and model cards.
        held_out_summary: A description of the pairs held out.
    """

    pairs: int | None = None
    batch: int
    summary: str
    held_out_summary: str = ""

    @abstractmethod
    def batch_at(self, index: int, shard: tuple[int, int] = (0, 1), share: float = 0.0) -> Batch:
        """Return a batch of uint8 pictures (N, 3, crop, crop).

        Args:
            index: The number of the batch.
            shard: (i, n) for the i-th of n equal parts of it.
            share: How much of the run is done, 0 to 1.
        """

    @abstractmethod
    def held_out(self, *, side: int = 256) -> Batch | None:
        """Return pairs for validation, always the same; None where there are none.

        Where their motion is known, it is exact, and there are equally many of each of LENGTHS, in
        this order.

        Args:
            side: Side of the pictures in pixels; smaller where files are smaller.

        Returns:
            uint8 pictures (N, 3, side, side).
        """

    def held_out_films(self, *, side: int = 192) -> Batch | None:
        """Return pairs as `held_out` does, with the frames around them; None if there are none.

        Their motion is the one that optical flow measures.
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
        """Return a function of a batch's number that yields the batches from there on, without end.

        Args:
            workers: Processes that make batches ahead of time, or help to.
            shard: (i, n) where this is the i-th of n training processes, which share each batch.
            pin: Whether batches lie in page-locked memory, for a GPU.
            course: How much of the run is done, for pairs that change in its course.

        Raises:
            UsageError: The processes cannot share a batch evenly.
        """
        if self.batch % shard[1]:
            raise UsageError(f"a batch of {self.batch} cannot be shared by {shard[1]} evenly")
        return functools.partial(self._from, workers, shard, pin, course or Course())

    def _from(
        self, workers: int, shard: tuple[int, int], pin: bool, course: Course, start: int
    ) -> Iterable[Batch]:
        make = functools.partial(_batch_of, self, shard, course)
        return made_ahead(make, start, workers=workers, pin=pin, ahead=4)


def _batch_of(data: Data, shard: tuple[int, int], course: Course, index: int) -> Batch:
    return data.batch_at(index, shard, course.at(index))


def made_ahead(
    make: Callable[[int], _T], start: int, *, workers: int, pin: bool = False, ahead: int
) -> Iterable[_T]:
    """Make items by number in other processes, ahead of time.

    Args:
        make: Makes the item of a number.
        start: The first number.
        workers: Processes; with 0, items are made in this one, when needed.
        pin: Whether tensors lie in page-locked memory.
        ahead: Items that each process makes ahead.

    Returns:
        The items from `start` on, in order and without end.
    """
    stream = NumberedStream(make, start)
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


class NumberedStream(IterableDataset[_T], Generic[_T]):
    """The items that a function makes of the numbers from `start` on.

    A DataLoader asks its workers in turn, so that the items arrive in the order of their numbers.
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
    """Leave Ctrl-C and SIGTERM to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
