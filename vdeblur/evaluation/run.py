"""What a network is worth on pairs of blurred and sharp pictures or videos: `vdeblur eval`.

Pairs come one by one (`pairs.py`), go through a network unless their outputs exist, and are scored;
nothing is kept of them but their scores. Measures live in `metrics.py`, tables in `scores.py`, the
page with pictures in `report.py`.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdeblur.datasets.pairs import Pair, PairSet
from vdeblur.datasets.pictures import (
    Picture,
    largest_change,
    planes_rgb,
    put_label,
    to_picture,
    write_png,
)
from vdeblur.errors import InputError, UsageError
from vdeblur.evaluation.metrics import WINDOW, flicker, psnr, ssim, warp_error
from vdeblur.evaluation.optical_flow import optical_flow, visible
from vdeblur.evaluation.scores import Score, SetScores
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import motion_of
from vdeblur.motion.exposure import Guide
from vdeblur.motion.neighbours import around_of
from vdeblur.networks.taps import MOTION_CHANNELS
from vdeblur.system.optional import optional

Protocol = Literal["8bit", "float", "matlab"]
#: Called with each pair's score and its blurred, restored and sharp picture, (1, 3, H, W).
Look = Callable[[Score, Tensor, Tensor | None, Tensor], None]

#: How each protocol measures, in words: printed under every table.
PROTOCOLS: dict[str, str] = {
    "8bit": "restored picture clamped and rounded to 8 bits, PSNR over all pixels and channels "
    "with peak 255; SSIM with the 11×11 Gaussian window (σ 1.5) of Wang et al. (2004), the mean of "
    "R, G and B; whole picture; means of the pictures' values",
    "float": "restored picture clamped to [0, 1] and not rounded, as MIMO-UNet's eval.py measures: "
    "PSNR with peak 1; SSIM as in 8bit, on the same values; whole picture; means of the pictures' "
    "values",
    "matlab": "8 bits as MPRNet's and later papers' MATLAB script: psnr(A, ref) as in 8bit, and "
    "ssim(A, ref), which takes rows × columns × RGB for a volume (11×11×11 window, edges repeated) "
    "and gives higher values; whole picture; means of the pictures' values",
}

_SIGMAS = (1.0, 2.0, 3.0, 5.0, 8.0, 12.0)
_AMOUNTS = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)
_FLOW_SIDE = 640  # pixels: motion is estimated on pictures of at most this longer side


@dataclass(frozen=True)
class EvalOptions:
    """What to measure.

    protocol: a key of PROTOCOLS. sharp: put the sharp pictures through the network too. unsharp:
    the best unsharp mask of a grid. lpips: AlexNet's LPIPS. temporal: flicker and warped-frame
    error; None is for videos only. every: one pair in so many. limit: so many pairs of a set.
    panels: a folder for pictures to look at, `panel_count` of each set, evenly spread. estimate:
    tell a guided network the motion of a video's frames as `vdeblur video` finds it; else only what
    they bear already. exposure: as `vdeblur.motion.exposure.exposure_of` takes it.
    """

    protocol: Protocol = "8bit"
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
    look: Look | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> SetScores:
    """Score every pair: the blurred picture, and the restored one by `deblurrer` or as it came.

    A video's frames are restored as `vdeblur video` does, planes in and planes out, along their
    motion where the network is guided, before any encoder. label: what to call the restored picture
    on panels. on_progress(pairs done, pairs expected or None).

    UsageError for options that cannot be had; InputError for pairs that do not fit each other.
    """
    options = options or EvalOptions()
    _check_options(options, deblurrer)
    device = torch.device("cpu")
    if deblurrer is not None and deblurrer.device.type == "cuda":
        device = deblurrer.device
    perceptual = _lpips(device) if options.lpips else None
    expected = pairs.expected
    if expected is not None:
        expected = -(-expected // options.every)
        expected = min(expected, options.limit) if options.limit else expected
    temporal = pairs.video if options.temporal is None else options.temporal
    temporal = temporal and options.every == 1
    result = SetScores(pairs.name)
    steadiness: dict[str, _Steadiness] = {}
    grid = _UnsharpGrid() if options.unsharp else None
    spread = max(1, (expected or 10 * options.panel_count) // max(1, options.panel_count))
    streams = ("frame", "sharp_frame") if options.sharp else ("frame",)
    guides: list[Guide] = []
    moved: Iterable[Pair] = pairs
    if options.estimate and pairs.video and deblurrer is not None and deblurrer.guided:
        for stream in streams:
            guides.append(Guide(options.exposure))
            moved = _moved(moved, guides[-1], stream)
    chosen = islice(moved, 0, None, options.every)
    some = islice(chosen, options.limit)
    for number, (pair, unsound) in enumerate(_restored(some, deblurrer, batch, options.estimate)):
        _check_pair(pair)
        blurred, sharp = pair.blurred.to(device), pair.sharp.to(device)
        restored = None if pair.restored is None else pair.restored.to(device)
        values = _measure(blurred, restored, sharp, options.protocol, perceptual)
        if grid is not None:
            grid.add(blurred, sharp, values["psnr_blurred"])
        if options.sharp and deblurrer is not None:
            if pair.sharp_frame is None:
                (kept,), flags = _through(deblurrer, sharp, options.estimate)
            else:
                (kept,), flags = _in_planes(deblurrer, [pair.sharp_frame])
            unsound = unsound or flags[0]
            values["sharp_kept"] = _psnr(kept.to(device), sharp, options.protocol)
        result.unsound += unsound
        result.pictures.append(Score(pair.sequence, pair.name, values))
        if look is not None:
            look(result.pictures[-1], blurred, restored, sharp)
        if temporal:
            views = {"blurred": blurred, "restored": restored, "sharp": sharp}
            steadiness.setdefault(pair.sequence, _Steadiness()).push(
                {name: view for name, view in views.items() if view is not None}
            )
        if options.panels is not None and number % spread == 0:
            stem = "-".join(filter(None, [pairs.name, pair.sequence, pair.name]))
            path = options.panels / f"{stem.replace('/', '-')}.png"
            write_png(path, panel(blurred, restored, sharp, values, label=label))
        if on_progress is not None:
            on_progress(number + 1, expected)
    if not result.pictures:
        raise InputError(f"{pairs.name} has no pair: give pictures or videos with some")
    if grid is not None:
        result.unsharp = grid.conclude(result.pictures)
    result.notes = guides[0].notes() if guides else []
    result.temporal = {name: steady.means() for name, steady in steadiness.items()}
    return result


def _check_options(options: EvalOptions, deblurrer: Deblurrer | None) -> None:
    if options.protocol not in PROTOCOLS:
        raise UsageError(f"protocol is {options.protocol!r}: choose {', '.join(PROTOCOLS)}")
    for name in ("every", "limit", "panel_count"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}: choose 1 or more")
    if options.temporal and options.every > 1:
        raise UsageError("temporal measures need frames that follow each other: leave --every out")
    if options.sharp and deblurrer is None:
        raise UsageError("--sharp puts sharp pictures through a network: give one with --model")


def _check_pair(pair: Pair) -> None:
    name = "/".join(filter(None, [pair.sequence, pair.name]))
    sizes = {"blurred": pair.blurred, "sharp": pair.sharp, "restored": pair.restored}
    shapes = {k: tuple(x.shape[:1:-1]) for k, x in sizes.items() if x is not None}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"the {k} picture is {w}×{h}" for k, (w, h) in shapes.items())
        raise InputError(f"{name}: {told}; give pictures of one size")
    if min(shapes["sharp"]) < WINDOW:
        width, height = shapes["sharp"]
        raise InputError(f"{name} is {width}×{height}: SSIM needs at least {WINDOW} pixels a side")


# -- restoring and scoring -----------------------------------------------------------------------


def _moved(pairs: Iterable[Pair], guide: Guide, stream: str) -> Iterator[Pair]:
    """The pairs, their `stream` ("frame", "sharp_frame") with its motion: a few wait for that."""
    waiting: deque[Pair] = deque()

    def frames() -> Iterator[Frame]:
        for pair in pairs:
            waiting.append(pair)
            yield getattr(pair, stream)

    for _ in guide.run(frames()):
        yield waiting.popleft()


def _restored(
    pairs: Iterable[Pair], deblurrer: Deblurrer | None, batch: int, estimate: bool
) -> Iterator[tuple[Pair, bool]]:
    """The pairs with their restored pictures, and whether the network's result was unsound.

    Neighbours of one kind go through together.
    """
    if deblurrer is None:
        yield from ((pair, False) for pair in pairs)
        return
    group: list[Pair] = []

    def flush() -> Iterator[tuple[Pair, bool]]:
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

    def kind(pair: Pair) -> object:
        return pair.blurred.shape, pair.frame.layout if pair.frame else None

    for pair in pairs:
        if group and (len(group) == batch or kind(pair) != kind(group[0])):
            yield from flush()
        group.append(pair)
    yield from flush()


def _in_planes(deblurrer: Deblurrer, frames: list[Frame]) -> tuple[list[Tensor], list[bool]]:
    """Frames of one kind restored as `vdeblur video` does: (1, 3, H, W) each, and which unsound."""
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
    """(N, 3, H, W) restored, (1, 3, H, W) each, and of which the network's result was unsound.

    estimate: a guided network is told the motion that each picture shows by itself. Unsound ones
    come back as they were. So do pictures that the network leaves alone: of the few that are
    unchanged to the last bit, `restore_planes` tells.
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


def _measure(
    blurred: Tensor,
    restored: Tensor | None,
    sharp: Tensor,
    protocol: Protocol,
    perceptual: Callable[[Tensor, Tensor], float] | None,
) -> dict[str, float]:
    values: dict[str, float] = {}
    peak = 1.0 if protocol == "float" else 255.0
    reference = _pixels(sharp, protocol)
    for name, picture in (("blurred", blurred), ("restored", restored)):
        if picture is None:
            continue
        pixels = _pixels(picture, protocol)
        values[f"psnr_{name}"] = psnr(pixels, reference, data_range=peak)
        values[f"ssim_{name}"] = ssim(
            pixels, reference, data_range=peak, volume=protocol == "matlab"
        )
        if perceptual is not None:
            values[f"lpips_{name}"] = perceptual(picture, sharp)
    for measure in ("psnr", "ssim", "lpips"):
        before, after = (values.get(f"{measure}_{x}") for x in ("blurred", "restored"))
        if before is not None and after is not None:
            # Two infinities have no difference, and mean that nothing was won or lost.
            values[f"{measure}_gain"] = 0.0 if before == after else after - before
    return values


def _pixels(picture: Tensor, protocol: Protocol) -> Tensor:
    """(1, 3, H, W) in [0, 1] → (H, W, 3) as the protocol counts."""
    pixels = picture[0].clamp(0, 1).permute(1, 2, 0)
    return pixels if protocol == "float" else pixels.mul(255).round()


def _psnr(picture: Tensor, sharp: Tensor, protocol: Protocol) -> float:
    peak = 1.0 if protocol == "float" else 255.0
    return psnr(_pixels(picture, protocol), _pixels(sharp, protocol), data_range=peak)


def _lpips(device: torch.device) -> Callable[[Tensor, Tensor], float]:
    """LPIPS of R. Zhang et al. (CVPR 2018), version 0.1 with AlexNet, by the authors' package."""
    try:
        package = optional("lpips", extra="eval", purpose="--lpips")
    # torchvision, which it needs, fails in ways of its own beside another build of torch.
    except (RuntimeError, OSError, AttributeError) as error:
        raise UsageError(
            f"--lpips needs a torchvision that was built for torch {torch.__version__}, and this "
            "one was not: install torch and torchvision of one release, or leave --lpips out"
        ) from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        # The package would fetch them unasked; a measurement should not need a network.
        raise InputError(
            f"LPIPS needs AlexNet's weights at {weights}, which are not there: run "
            "python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\" once"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about how the package calls it
        network = package.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(picture: Tensor, sharp: Tensor) -> float:
        a, b = (x.clamp(0, 1).mul(255).round().div(127.5) - 1 for x in (picture, sharp))
        return float(network(a, b))

    return distance


class _UnsharpGrid:
    """The gain of unsharp masking at every strength of a grid: the line to be above."""

    def __init__(self) -> None:
        self.strengths = [(sigma, amount) for sigma in _SIGMAS for amount in _AMOUNTS]
        self.gains: list[list[float]] = []

    def add(self, blurred: Tensor, sharp: Tensor, before: float) -> None:
        """Measure one picture, as 8 bits."""
        reference = _pixels(sharp, "8bit")
        gains = []
        for sigma in _SIGMAS:
            detail = blurred - _gaussian(blurred, sigma)
            for amount in _AMOUNTS:
                masked = torch.add(blurred, detail, alpha=amount)
                after = psnr(_pixels(masked, "8bit"), reference)
                gains.append(0.0 if before == after else after - before)
        self.gains.append(gains)

    def conclude(self, scores: list[Score]) -> tuple[float, float]:
        """Enter the gains of the strength with the highest mean; returns its (sigma, amount)."""
        means = [sum(column) / len(column) for column in zip(*self.gains, strict=True)]
        best = max(range(len(means)), key=means.__getitem__)
        for score, gains in zip(scores, self.gains, strict=True):
            score.values["unsharp_gain"] = gains[best]
        return self.strengths[best]


def _gaussian(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, 3, H, W), sigma in pixels, edges repeated."""
    radius = max(1, round(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


class _Steadiness:
    """Warped-frame error and flicker of a sequence and of its error, from one frame to the next.

    The motion is that of the sharp frames, the same for all: what differs is the pictures.
    """

    def __init__(self) -> None:
        self.before: list[dict[str, Tensor]] = []  # the last frame, and the one before it
        self.flows: tuple[Tensor, Tensor] | None = None  # of the last frame to its predecessor
        self.values: dict[str, list[float]] = {}

    def push(self, now: dict[str, Tensor]) -> None:
        if self.before and self.before[-1]["sharp"].shape != now["sharp"].shape:
            self.before, self.flows = [], None
        if not self.before:
            self.before = [now]
            return
        last = self.before[-1]
        forward = _flow(last["sharp"], now["sharp"])
        backward = _flow(now["sharp"], last["sharp"])
        seen = visible(backward, forward)
        for name, frame in now.items():
            self._add(f"warp_{name}", warp_error(last[name], frame, backward, seen, data_range=1))
        if self.flows is not None:
            to_before, seen_before = self.flows
            both = visible(forward, backward) & seen_before
            for name in now:
                value = flicker(
                    self.before[0][name], last[name], now[name], to_before, forward, both,
                    data_range=1,
                )  # fmt: skip
                self._add(f"flicker_{name}", value)
            for name in set(now) - {"sharp"}:
                one, two, three = (
                    shown[name] - shown["sharp"] for shown in (self.before[0], last, now)
                )
                value = flicker(one, two, three, to_before, forward, both, data_range=1)
                self._add(f"unrest_{name}", value)
        self.before = [last, now]
        self.flows = backward, seen

    def _add(self, name: str, value: float) -> None:
        if not math.isnan(value):
            self.values.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Means over the frames; and restored over blurred, where there is a restored one."""
        means = {name: sum(values) / len(values) for name, values in self.values.items()}
        for measure in ("warp", "flicker", "unrest"):
            before, after = (means.get(f"{measure}_{x}") for x in ("blurred", "restored"))
            if before and after is not None:
                means[f"{measure}_ratio"] = after / before
        return means


def _flow(here: Tensor, there: Tensor) -> Tensor:
    height, width = here.shape[2:]
    longer = max(height, width)
    if longer <= _FLOW_SIDE:
        return optical_flow(here, there)
    size = [max(1, round(side * _FLOW_SIDE / longer)) for side in (height, width)]
    small = [F.interpolate(x, size=size, mode="area") for x in (here, there)]
    flow = F.interpolate(
        optical_flow(*small), size=(height, width), mode="bilinear", align_corners=False
    )
    return flow * torch.tensor([width / size[1], height / size[0]]).to(flow).view(1, 2, 1, 1)


# -- panels --------------------------------------------------------------------------------------


def panel(
    blurred: Tensor,
    restored: Tensor | None,
    sharp: Tensor,
    values: dict[str, float],
    *,
    label: str = "restored",
    width: int = 560,
) -> Picture:
    """blurred | restored | sharp; below each the place that the network changed most, enlarged.

    Without a restored picture: the place where the blurred one is farthest from the sharp. All
    (1, 3, H, W) in [0, 1]; each column is `width` pixels wide, or as wide as the picture.
    """
    rows, columns = sharp.shape[2:]
    width = min(width, columns)
    crop = max(1, rows // 5), max(1, columns // 5)
    top, left = largest_change(blurred, sharp if restored is None else restored, crop)

    def score(name: str) -> str:
        return f"{values[f'psnr_{name}']:.2f} dB  {values[f'ssim_{name}']:.3f}"

    views = [(f"blurred  {score('blurred')}", blurred)]
    if restored is not None:
        views.append((f"{label}  {score('restored')}", restored))
    views.append(("sharp", sharp))
    gap = 6
    stacks = []
    for title, view in views:
        height = max(1, round(rows * width / columns))
        whole = to_picture(
            F.interpolate(
                view.float(),
                size=(height, width),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        ).copy()
        scale = width / columns
        box = [round(v * scale) for v in (top, left, top + crop[0], left + crop[1])]
        put_label(whole, title, height=max(12, width // 20))
        _outline(whole, *box)
        part = view[..., top : top + crop[0], left : left + crop[1]].float()
        zoom = to_picture(F.interpolate(part, size=(height, width), mode="bicubic"))
        stacks.append(np.pad(np.concatenate([whole, zoom]), ((0, 0), (0, gap), (0, 0))))
    return np.concatenate(stacks, axis=1)[:, :-gap]


def _outline(picture: Picture, top: int, left: int, bottom: int, right: int) -> None:
    """A yellow frame of two pixels, in place."""
    yellow = (255, 220, 0)
    picture[top : top + 2, left:right] = picture[bottom - 2 : bottom, left:right] = yellow
    picture[top:bottom, left : left + 2] = picture[top:bottom, right - 2 : right] = yellow
