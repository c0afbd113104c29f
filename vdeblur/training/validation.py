"""Held-out pairs that a network is scored on while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.batches import LENGTHS, Data
from vdeblur.datasets.layouts import find_pairs, recognise
from vdeblur.datasets.motion_errors import MotionErrors, with_errors
from vdeblur.datasets.pictures import load_picture
from vdeblur.datasets.pool import Batch
from vdeblur.errors import InputError
from vdeblur.evaluation.metrics import psnr
from vdeblur.motion.single_picture import estimate_motions
from vdeblur.networks import taps
from vdeblur.networks.base import Network, traits_of
from vdeblur.training.dead_channels import dead_share

_BEST = 99.0  # dB, of equal pictures


@dataclass(frozen=True)
class ValidationScores:
    """Means over the held-out pictures.

    Args:
        gain: PSNR gained over the blurred input, in dB.
        sharp_kept: PSNR of a sharp input's output to the input itself, in dB, at most 99.
        dead_share: Share of the network's channels that are dead, see
            `vdeblur.training.dead_channels.dead_share`.
        more: Further scores in dB by name, see `ValidationByLength`.
    """

    gain: float
    sharp_kept: float
    dead_share: float
    more: Mapping[str, float] = field(default_factory=dict)


class Validation:
    """Held-out pairs.

    Args:
        blurred: (3, H, W) uint8 each.
        sharp: As many, of the same sizes.
    """

    def __init__(self, blurred: Sequence[Tensor], sharp: Sequence[Tensor]) -> None:
        self.pairs = list(zip(blurred, sharp, strict=True))

    def score(self, network: Network) -> tuple[ValidationScores, Tensor]:
        """Score a network. Its output is rounded to 8 bits first, as in a file.

        Returns:
            The scores, and the first pair as a picture (3, H, 3·W) in 0..1: blurred, restored,
            sharp.
        """
        gains, kept = [], []
        picture = torch.empty(0)
        for blurred, sharp in self.pairs:
            restored = _restored(network, blurred)
            gains.append(_psnr(restored, sharp) - _psnr(blurred, sharp))
            kept.append(_psnr(_restored(network, sharp), sharp))
            if not len(picture):
                picture = _side_by_side(blurred, restored, sharp)
        scores = ValidationScores(_mean(gains), _mean(kept), _dead(network, self.pairs[0][0]))
        return scores, picture


class ValidationByLength(Validation):
    """Held-out pairs of known motion, equally many of each of LENGTHS, in its order.

    A guided network receives the exact motion, motion with the errors of a measurement, and none;
    its gain is the one with measured motion. Sharp pictures come with no motion, and with a false
    one.

    Args:
        batch: The pairs, with their motion.
        films: Frames with what is known of those around them. A guided network restores them with
            their neighbors, and each by itself.
    """

    def __init__(self, batch: Batch, films: Batch | None = None) -> None:
        super().__init__(list(batch.blurred), list(batch.sharp))
        assert batch.motion is not None
        generator = torch.Generator().manual_seed(1)
        measured = with_errors(batch.motion, MotionErrors(none_share=0), generator)
        self.motions = {"exact": batch.motion, "measured": measured, "none": None}
        self.films = films
        self.lengths = [length for length in LENGTHS for _ in range(len(measured) // len(LENGTHS))]

    def score(self, network: Network) -> tuple[ValidationScores, Tensor]:
        """Score a network, as `Validation.score` does.

        Returns:
            The scores and a picture. `more` holds the gain by kind of motion and length (exact_db,
            exact_8_db …); for a guided network also sharp_false_db, and with films the gain with
            neighbors and without, film_db and film_single_db.
        """
        before = [_psnr(blurred, sharp) for blurred, sharp in self.pairs]
        kinds = self.motions if network.guided else {"none": None}
        more: dict[str, float] = {}
        means: dict[str, float] = {}
        for kind, motion in kinds.items():
            gains = [
                _psnr(_restored(network, blurred, _nth(motion, i)), sharp) - before[i]
                for i, (blurred, sharp) in enumerate(self.pairs)
            ]
            means[kind] = more[f"{kind}_db"] = _mean(gains)
            for length in LENGTHS:
                of_it = [g for g, at in zip(gains, self.lengths, strict=True) if at == length]
                more[f"{kind}_{length}_db"] = _mean(of_it)
        some = [sharp for _, sharp in self.pairs[:: len(LENGTHS)]]
        kept = _mean([_psnr(_restored(network, sharp), sharp) for sharp in some])
        if network.guided:
            false = [_false_motion(i, len(some)) for i in range(len(some))]
            more["sharp_false_db"] = _mean(
                [_psnr(_restored(network, s, m), s) for s, m in zip(some, false, strict=True)]
            )
            if self.films is not None:
                more |= _on_films(network, self.films)
        longest = len(self.pairs) - 1
        blurred, sharp = self.pairs[longest]
        restored = _restored(network, blurred, _nth(self.motions["measured"], longest))
        gain = means["measured" if network.guided else "none"]
        scores = ValidationScores(gain, kept, _dead(network, blurred), more)
        return scores, _side_by_side(blurred, restored, sharp)


class WatchedValidation(Validation):
    """Pairs that the user watches, whose scores count, beside pairs of known motion."""

    def __init__(self, watched: Validation, known: ValidationByLength) -> None:
        self.watched, self.known = watched, known

    def score(self, network: Network) -> tuple[ValidationScores, Tensor]:
        """Return scores and picture of the watched pairs; `more` is that of the known ones."""
        scores, picture = self.watched.score(network)
        return replace(scores, more=self.known.score(network)[0].more), picture


def validation_of(folder: str, *, layout: str = "auto", most: int = 24) -> Validation:
    """Read pairs of a folder to score on, whole pictures, evenly spread.

    Args:
        folder: A folder of pairs. Its validation or test split is used where it has one.
        layout: One of `vdeblur.datasets.layouts.LAYOUTS`, or "auto".
        most: How many pairs at most.

    Raises:
        InputError: The folder has no pairs.
    """
    found = recognise(Path(folder), layout=layout)
    pairs = find_pairs(
        Path(folder), layout=found.name, split=found.validation() or found.training()
    )
    some = pairs[:: max(1, len(pairs) // most)][:most]
    pictures = [
        [torch.from_numpy(load_picture(path)).permute(2, 0, 1) for path in (p.blurred, p.sharp)]
        for p in some
    ]
    if not pictures:
        raise InputError(f"{folder} has no pairs to score on: give a folder of pairs")
    return Validation([b for b, _ in pictures], [s for _, s in pictures])


def validation_for(source: Data, val: str | None, *, synthetic: bool) -> Validation | None:
    """Choose what a run is scored on.

    Args:
        source: The training data, which may hold pairs out.
        val: A folder of pairs to watch, or None.
        synthetic: Whether the training pairs are made from photographs.

    Returns:
        The watched pairs, the held-out ones, or both; None where there are none.
    """
    watched = None if val is None else validation_of(val)
    if watched is not None and not synthetic:
        return watched
    pairs = source.held_out()
    if pairs is None:
        return watched
    if pairs.motion is None:
        return Validation(list(pairs.blurred), list(pairs.sharp))
    known = ValidationByLength(pairs, source.held_out_films())
    return known if watched is None else WatchedValidation(watched, known)


@torch.no_grad()
def _restored(
    network: Network,
    picture: Tensor,
    motion: Tensor | None = None,
    around: Tensor | None = None,
) -> Tensor:
    """Restore (3, H, W) uint8, padded to the network's size multiple.

    Args:
        network: Any network; only a guided one uses the rest.
        picture: The blurred picture.
        motion: (4, h, w) of a picture whose size needs no padding; None to estimate it from the
            picture.
        around: The frames before and after as `taps.neighbour` describes them, (2, C, H, W).
    """
    height, width = picture.shape[-2:]
    device = next(network.parameters()).device
    x = _fitting(network, picture.to(device))
    if traits_of(network).guided:
        motion = estimate_motions(x) if motion is None else motion[None].to(device)
        before_after = None
        if around is not None:
            before, after = around[:, None].to(device)
            before_after = before, after
        x = taps.with_guidance(x, motion, before_after)
    restored: Tensor = network(x)[0, :, :height, :width]
    return restored.float().clamp(0, 1).mul(255).round().byte().cpu()


def _on_films(network: Network, films: Batch) -> dict[str, float]:
    """The mean gain on frames with their neighbors, and on each by itself."""
    assert films.motion is not None
    assert films.around is not None
    gains: dict[str, list[float]] = {"film_db": [], "film_single_db": []}
    for i, (blurred, sharp) in enumerate(zip(films.blurred, films.sharp, strict=True)):
        known = {"film_db": films.around[:, i], "film_single_db": None}
        for name, around in known.items():
            restored = _restored(network, blurred, films.motion[i], around)
            gains[name].append(_psnr(restored, sharp) - _psnr(blurred, sharp))
    return {name: _mean(each) for name, each in gains.items()}


def _nth(motion: Tensor | None, number: int) -> Tensor | None:
    return None if motion is None else motion[number]


def _false_motion(number: int, count: int) -> Tensor:
    """A straight motion of 8 to 32 pixels, the same everywhere: (4, 1, 1)."""
    far, angle = 8 + 24 * number / max(count - 1, 1), 2.4 * number
    return torch.tensor([far * math.cos(angle), far * math.sin(angle), 0, 0]).view(4, 1, 1)


def _dead(network: Network, picture: Tensor) -> float:
    device = next(network.parameters()).device
    return dead_share(network, _fitting(network, picture.to(device)))


def _fitting(network: Network, picture: Tensor) -> Tensor:
    """(3, H, W) uint8 → (1, 3, H', W') in 0..1, padded to the network's size multiple."""
    bottom, right = (-side % network.size_multiple for side in picture.shape[-2:])
    return F.pad(picture[None].float().div(255), (0, right, 0, bottom), mode="replicate")


def _side_by_side(*pictures: Tensor) -> Tensor:
    """(3, H, W) uint8 each → (3, H, n·W) in 0..1."""
    return torch.cat(pictures, dim=2).float().div(255)


def _psnr(a: Tensor, b: Tensor) -> float:
    return min(_BEST, psnr(a, b))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
