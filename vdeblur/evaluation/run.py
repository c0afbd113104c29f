"""Score a network, or outputs that exist, on pairs of blurred and sharp pictures or videos.

Pairs arrive one by one (`vdeblur.datasets.pairs`), go through a network unless their outputs exist,
and are scored; only their scores are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdeblur.datasets.pairs import ImagePair, PairSet
from vdeblur.datasets.pictures import planes_rgb, write_png
from vdeblur.errors import InputError, UsageError
from vdeblur.evaluation.lettering import NO_LABELS, can_letter
from vdeblur.evaluation.metrics import WINDOW
from vdeblur.evaluation.panels import panel
from vdeblur.evaluation.protocols import (
    PROTOCOLS,
    ScoringProtocol,
    load_lpips,
    psnr_of,
    score_pair,
)
from vdeblur.evaluation.scores import PairScore, SetScores
from vdeblur.evaluation.temporal import Steadiness
from vdeblur.evaluation.unsharp import UnsharpGrid
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import motion_of
from vdeblur.motion.guide import Guide
from vdeblur.motion.neighbours import around_of
from vdeblur.networks.taps import MOTION_CHANNELS

#: Called with each pair's score and its blurred, restored and sharp picture, (1, 3, H, W).
FrameSample = Callable[[PairScore, Tensor, Tensor | None, Tensor], None]


@dataclass(frozen=True)
class EvalOptions:
    """What to measure.

    Attributes:
        protocol: How PSNR and SSIM are measured, a key of `PROTOCOLS`.
        sharp: Also put the sharp pictures through the network.
        unsharp: Also search the best unsharp mask of a grid.
        lpips: Also measure LPIPS with AlexNet.
        temporal: Measure flicker and warped-frame error; None measures them of videos only.
        every: Score one pair in this many.
        limit: Score this many pairs of a set.
        panels: Folder for pictures to look at.
        panel_count: Panels of each set, evenly spread.
        estimate: Estimate the motion of a video's frames for a guided network, as `deblur_video`
            does; without it the network uses the motion that frames carry already.
        exposure: As `vdeblur.motion.exposure.exposure_of` takes it.
    """

    protocol: ScoringProtocol = "8bit"
    sharp: bool = False
    unsharp: bool = False
    lpips: bool = False
    temporal: bool | None = None
    every: int = 1
    limit: int | None = None
    panels: Path | None = None
    panel_count: int = 8
    estimate: bool = True
    exposure: str = "auto"


def evaluate(
    pairs: PairSet,
    deblurrer: Deblurrer | None = None,
    *,
    options: EvalOptions | None = None,
    batch: int = 1,
    label: str = "restored",
    look: FrameSample | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> SetScores:
    """Score every pair: the blurred picture, and the restored one.

    A video's frames are restored as `deblur_video` does, planes in and planes out, along their
    motion where the network is guided, and scored before any encoder.

    Args:
        pairs: From `vdeblur.datasets.pairs.open_pairs`.
        deblurrer: The network to score; None scores the restored pictures that the pairs bring, if
            any.
        options: What to measure.
        batch: Pictures that go through the network together.
        label: What panels call the restored picture.
        look: Called with each pair's score and pictures.
        on_progress: Called with the pairs that are done, and those expected or None.

    Returns:
        The scores of all pairs, and what was measured of the set.

    Raises:
        UsageError: Options are impossible or contradict each other.
        InputError: The pictures of a pair do not fit each other, or there is no pair.
    """
    options = options or EvalOptions()
    _check_options(options, deblurrer)
    expected = pairs.expected
    if expected is not None:
        expected = -(-expected // options.every)
        expected = min(expected, options.limit) if options.limit else expected
    scoring = _Scoring(pairs, deblurrer, options, expected, label, look)
    guides: list[Guide] = []
    moved: Iterable[ImagePair] = pairs
    if options.estimate and pairs.video and deblurrer is not None and deblurrer.guided:
        for stream in ("frame", "sharp_frame") if options.sharp else ("frame",):
            guides.append(Guide(options.exposure))
            moved = _moved(moved, guides[-1], stream)
    chosen = islice(islice(moved, 0, None, options.every), options.limit)
    restored = _restored(chosen, deblurrer, batch, options.estimate)
    for number, (pair, unsound) in enumerate(restored):
        scoring.add(pair, unsound)
        if on_progress is not None:
            on_progress(number + 1, expected)
    return scoring.conclude(guides[0].notes() if guides else [])


def _check_options(options: EvalOptions, deblurrer: Deblurrer | None) -> None:
    if options.protocol not in PROTOCOLS:
        raise UsageError(f"protocol is {options.protocol!r}: choose {', '.join(PROTOCOLS)}")
    for name in ("every", "limit", "panel_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}: choose 1 or more")
    if options.temporal and options.every > 1:
        raise UsageError("temporal measures need frames that follow each other: leave `every` out")
    if options.sharp and deblurrer is None:
        raise UsageError(
            "`sharp=True` puts sharp pictures through a network: give one with `model`"
        )


def _check_pair(pair: ImagePair) -> None:
    name = "/".join(filter(None, [pair.sequence, pair.name]))
    sizes = {"blurred": pair.blurred, "sharp": pair.sharp, "restored": pair.restored}
    shapes = {k: tuple(x.shape[:1:-1]) for k, x in sizes.items() if x is not None}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"the {k} picture is {w}×{h}" for k, (w, h) in shapes.items())
        raise InputError(f"{name}: {told}; give pictures of one size")
    if min(shapes["sharp"]) < WINDOW:
        width, height = shapes["sharp"]
        raise InputError(f"{name} is {width}×{height}: SSIM needs at least {WINDOW} pixels a side")


class _Scoring:
    """Scores the pairs of a set as they pass, and keeps no picture of them."""

    def __init__(
        self,
        pairs: PairSet,
        deblurrer: Deblurrer | None,
        options: EvalOptions,
        expected: int | None,
        label: str,
        look: FrameSample | None,
    ) -> None:
        self._deblurrer, self._options, self._label, self._look = deblurrer, options, label, look
        on_gpu = deblurrer is not None and deblurrer.device.type == "cuda"
        self._device = deblurrer.device if deblurrer and on_gpu else torch.device("cpu")
        self._perceptual = load_lpips(self._device) if options.lpips else None
        temporal = pairs.video if options.temporal is None else options.temporal
        self._temporal = temporal and options.every == 1
        self._steadiness: dict[str, Steadiness] = {}
        self._grid = UnsharpGrid() if options.unsharp else None
        #: One panel in so many pairs.
        self._spread = max(1, (expected or 10 * options.panel_count) // options.panel_count)
        self._result = SetScores(pairs.name)

    def add(self, pair: ImagePair, unsound: bool) -> None:
        """Score a pair. unsound: whether the network's result was rejected."""
        _check_pair(pair)
        blurred, sharp = pair.blurred.to(self._device), pair.sharp.to(self._device)
        restored = None if pair.restored is None else pair.restored.to(self._device)
        options, result = self._options, self._result
        values = score_pair(blurred, restored, sharp, options.protocol, self._perceptual)
        if self._grid is not None:
            self._grid.add(blurred, sharp, values["psnr_blurred"])
        if options.sharp and self._deblurrer is not None:
            values["sharp_kept"], rejected = self._sharp_kept(self._deblurrer, pair, sharp)
            unsound = unsound or rejected
        number = len(result.pictures)
        result.unsound += unsound
        result.pictures.append(PairScore(pair.sequence, pair.name, values))
        if self._look is not None:
            self._look(result.pictures[-1], blurred, restored, sharp)
        if self._temporal:
            views = {"blurred": blurred, "restored": restored, "sharp": sharp}
            self._steadiness.setdefault(pair.sequence, Steadiness()).push(
                {name: view for name, view in views.items() if view is not None}
            )
        if options.panels is not None and number % self._spread == 0:
            stem = "-".join(filter(None, [result.name, pair.sequence, pair.name]))
            path = options.panels / f"{stem.replace('/', '-')}.png"
            write_png(path, panel(blurred, restored, sharp, values, label=self._label))

    def _sharp_kept(
        self, deblurrer: Deblurrer, pair: ImagePair, sharp: Tensor
    ) -> tuple[float, bool]:
        """PSNR of the sharp picture through the network, and whether the result was unsound."""
        if pair.sharp_frame is None:
            (kept,), flags = _through(deblurrer, sharp, self._options.estimate)
        else:
            (kept,), flags = _in_planes(deblurrer, [pair.sharp_frame])
        return psnr_of(kept.to(self._device), sharp, self._options.protocol), flags[0]

    def conclude(self, notes: list[str]) -> SetScores:
        """The scores, with what is known only when all pairs have passed."""
        result = self._result
        if not result.pictures:
            raise InputError(f"{result.name} has no pair: give pictures or videos with some")
        if self._grid is not None:
            result.unsharp = self._grid.conclude(result.pictures)
        result.notes = list(notes)
        if self._options.panels is not None and not can_letter():
            result.notes.append(f"panels: {NO_LABELS}")
        result.temporal = {name: steady.means() for name, steady in self._steadiness.items()}
        return result


# -- restoring -----------------------------------------------------------------------------------


def _moved(pairs: Iterable[ImagePair], guide: Guide, stream: str) -> Iterator[ImagePair]:
    """Yield the pairs with the motion of their `stream`, "frame" or "sharp_frame"; a few wait."""
    waiting: deque[ImagePair] = deque()

    def frames() -> Iterator[Frame]:
        for pair in pairs:
            waiting.append(pair)
            yield getattr(pair, stream)

    for _ in guide.run(frames()):
        yield waiting.popleft()


def _restored(
    pairs: Iterable[ImagePair], deblurrer: Deblurrer | None, batch: int, estimate: bool
) -> Iterator[tuple[ImagePair, bool]]:
    """Yield the pairs with their restored pictures, and whether the network's result was unsound.

    Neighbours of the same size and layout go through together.
    """
    if deblurrer is None:
        yield from ((pair, False) for pair in pairs)
        return
    group: list[ImagePair] = []

    def flush() -> Iterator[tuple[ImagePair, bool]]:
        if not group:
            return
        frames = [pair.frame for pair in group if pair.frame is not None]
        if frames:
            results, unsound = _in_planes(deblurrer, frames)
        else:
            images = torch.cat([pair.blurred for pair in group])
            results, unsound = _through(deblurrer, images, estimate)
        for pair, result, flag in zip(group, results, unsound, strict=True):
            yield replace(pair, restored=result), flag
        group.clear()

    def kind(pair: ImagePair) -> object:
        return pair.blurred.shape, pair.frame.layout if pair.frame else None

    for pair in pairs:
        if group and (len(group) == batch or kind(pair) != kind(group[0])):
            yield from flush()
        group.append(pair)
    yield from flush()


def _in_planes(deblurrer: Deblurrer, frames: list[Frame]) -> tuple[list[Tensor], list[bool]]:
    """Restore frames of one layout as `deblur_video` does: (1, 3, H, W) each, and which unsound."""
    layout = frames[0].layout
    stacks = zip(*(frame.planes for frame in frames), strict=True)
    planes = [torch.from_numpy(np.stack(stack)) for stack in stacks]
    restored, replaced = deblurrer.restore_planes(
        planes, layout, motion_of(frames), around_of(frames)
    )
    for frame in frames:
        frame.around = None
    restored = [plane.cpu() for plane in restored]
    pictures = [
        planes_rgb([plane[i : i + 1] for plane in restored], layout) for i in range(len(frames))
    ]
    return pictures, replaced.tolist()


def _through(
    deblurrer: Deblurrer, images: Tensor, estimate: bool
) -> tuple[list[Tensor], list[bool]]:
    """Restore (N, 3, H, W): (1, 3, H, W) each, and whether the network's result was unsound.

    With `estimate` a guided network gets the motion that each picture shows by itself. Unsound
    results come back as the input, and so do pictures that the network leaves alone;
    `restore_planes` tells which of the two holds for a picture that is unchanged to the last bit.
    """
    motion = None
    if not estimate:
        motion = images.new_zeros(len(images), MOTION_CHANNELS, 1, 1)
    restored = deblurrer(images, motion)
    unsound = [False] * len(images)
    layout = PlaneLayout(images.shape[3], images.shape[2], kind="rgb", full_range=True)
    for number, (before, after) in enumerate(zip(images, restored, strict=True)):
        if torch.equal(before.clamp(0, 1), after):
            red, green, blue = before[:, None].clamp(0, 1).mul(255).round().byte()
            moved = None if motion is None else motion[number : number + 1]
            _, replaced = deblurrer.restore_planes([green, blue, red], layout, moved)
            unsound[number] = bool(replaced[0])
    return list(torch.split(restored, 1)), unsound
