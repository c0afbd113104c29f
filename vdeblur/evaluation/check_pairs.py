"""Look at a folder of pairs: what it holds, and what is wrong with it.

Knows files and pictures; knows no network.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vdeblur.datasets.layouts import PairFiles, picture_size, recognise
from vdeblur.datasets.pictures import load_picture
from vdeblur.errors import InputError
from vdeblur.evaluation.metrics import psnr
from vdeblur.system.printable import printable

_GAMMAS = np.arange(1.0, 3.01, 0.1)


@dataclass(frozen=True)
class PairFacts:
    """A pair, measured.

    Attributes:
        blurred: Path of the blurred picture.
        shift: (x, y) in pixels from the sharp picture to the blurred one.
        psnr: dB of the blurred picture; inf when both are identical.
        gamma: Of the response curve in whose light it was averaged; None where the pair does not
            show it.
    """

    blurred: str
    shift: tuple[float, float]
    psnr: float
    gamma: float | None


@dataclass(frozen=True)
class SplitFacts:
    """A split of a data set, and what is wrong with it.

    Attributes:
        pairs: How many it has.
        sequences: Pairs by sequence.
        sizes: Pictures by size, such as "1280x720".
        missing: Pictures without a partner, in words.
        mismatched: Pairs of two sizes, in words.
        unreadable: Files that cannot be read, in words.
        measured: A sample of the pairs.
    """

    pairs: int
    sequences: dict[str, int]
    sizes: dict[str, int]
    missing: list[str]
    mismatched: list[str]
    unreadable: list[str]
    measured: list[PairFacts]

    @property
    def sound(self) -> bool:
        """Whether training can read all of it."""
        return not (self.missing or self.mismatched or self.unreadable)

    @property
    def identical(self) -> list[str]:
        """Measured pairs whose two pictures are the same."""
        return [m.blurred for m in self.measured if math.isinf(m.psnr)]

    @property
    def shift(self) -> float:
        """Median misalignment of the measured pairs, pixels."""
        return float(np.median([math.hypot(*m.shift) for m in self.measured] or [0.0]))

    @property
    def gamma(self) -> float | None:
        """Median gamma of the pairs that show one; None when fewer than three do."""
        told = [m.gamma for m in self.measured if m.gamma is not None]
        return round(float(np.median(told)), 2) if len(told) >= 3 else None


@dataclass(frozen=True)
class FolderFacts:
    """A folder of pairs: the layout that was recognized, and its splits."""

    folder: str
    layout: str
    splits: dict[str, SplitFacts]

    @property
    def sound(self) -> bool:
        """Whether every split is."""
        return all(split.sound for split in self.splits.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an infinite PSNR is None."""
        splits = {}
        for name, split in self.splits.items():
            facts = asdict(split)
            for pair in facts["measured"]:
                pair["psnr"] = None if math.isinf(pair["psnr"]) else round(pair["psnr"], 2)
            splits[name] = facts | {
                "sound": split.sound,
                "median_shift_pixels": round(split.shift, 3),
                "gamma": split.gamma,
                "identical": split.identical,
            }
        return {
            "folder": self.folder,
            "layout": self.layout,
            "sound": self.sound,
            "splits": splits,
        }


def check_folder(
    folder: Path,
    *,
    layout: str = "auto",
    sample: int = 20,
    on_progress: Callable[[int, int], None] | None = None,
) -> FolderFacts:
    """Read every file's header, and measure a sample of the pairs.

    Args:
        folder: That of the data set.
        layout: A name of `vdeblur.datasets.layouts`, or "auto".
        sample: Pairs of each split to measure, evenly spread.
        on_progress: Called with the pairs done, and with their number.

    Raises:
        InputError: The folder is missing, or of no known layout.
    """
    found = recognise(folder, layout=layout)
    total = sum(len(pairs) for pairs in found.splits.values())
    done = 0
    splits = {}
    for name, pairs in found.splits.items():
        missing, mismatched, unreadable, whole = [], [], [], []
        sizes: Counter[str] = Counter()
        for pair in pairs:
            done += 1
            if on_progress:
                on_progress(done, total)
            gone = [path for path in (pair.sharp, pair.blurred) if not path.is_file()]
            if gone:
                missing.append(f"{gone[0]} is missing, the partner of {pair.blurred.name}")
                continue
            try:
                blurred, sharp = picture_size(pair.blurred), picture_size(pair.sharp)
            except InputError as error:
                unreadable.append(str(error))
                continue
            sizes[f"{blurred[1]}x{blurred[0]}"] += 1
            if blurred == sharp:
                whole.append(pair)
            else:
                mismatched.append(
                    f"{pair.blurred} is {blurred[1]}x{blurred[0]}, "
                    f"{pair.sharp} is {sharp[1]}x{sharp[0]}"
                )
        measured = []
        for pair in _spread(whole, sample):
            try:
                measured.append(measure_pair(pair))
            except InputError as error:
                unreadable.append(str(error))
        splits[name] = SplitFacts(
            len(pairs),
            dict(sorted(Counter(pair.sequence for pair in pairs).items())),
            dict(sizes.most_common()),
            missing,
            mismatched,
            unreadable,
            measured,
        )
    return FolderFacts(str(folder), found.name, splits)


def _spread(pairs: Sequence[PairFiles], count: int) -> list[PairFiles]:
    """`count` of the pairs, evenly spread."""
    places = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)
    return [pairs[int(i)] for i in dict.fromkeys(places.tolist())]


def measure_pair(pair: PairFiles) -> PairFacts:
    """Measure shift, PSNR and gamma of a pair of pictures of one size."""
    blurred, sharp = load_picture(pair.blurred), load_picture(pair.sharp)
    x, y = shift_between(grey(sharp), grey(blurred))
    distance = psnr(blurred, sharp)
    gamma = None if math.isinf(distance) else light_gamma(blurred, sharp)
    return PairFacts(str(pair.blurred), (round(x, 3), round(y, 3)), distance, gamma)


def grey(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average R, G and B of (H, W, 3) uint8: (H, W) float32 codes."""
    mean: NDArray[np.float32] = picture.mean(axis=2, dtype=np.float32)
    return mean


def shift_between(first: NDArray[np.float32], second: NDArray[np.float32]) -> tuple[float, float]:
    """Find the shift from one picture to another.

    Phase correlation finds whole pixels, then the slope of the phase over low frequencies the rest
    (Stone et al., IEEE TGRS 2001). For a blurred picture it is the shift of its kernel's center of
    gravity.

    Args:
        first: (H, W).
        second: (H, W).

    Returns:
        (x, y) in pixels by which `second` lies right of and below `first`.
    """
    height, width = first.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    fx, fy = np.fft.rfftfreq(width)[None], np.fft.fftfreq(height)[:, None]

    def spectrum(image: NDArray[np.float32]) -> NDArray[np.complex128]:
        inside = image - (image * window).sum() / window.sum()
        transformed: NDArray[np.complex128] = np.fft.rfft2(inside * window)
        return transformed

    a, b = spectrum(first), spectrum(second)
    cross = b * a.conj()
    power = np.abs(cross)
    # Low frequencies survive blur: the peak is sought in them alone.
    smooth = np.exp(-(fx**2 + fy**2) / (2 * 0.06**2))
    surface = np.fft.irfft2(cross / (power + 1e-6 * power.max()) * smooth, s=first.shape)
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    dy = float((row + height // 2) % height - height // 2)
    dx = float((column + width // 2) % width - width // 2)
    low = (np.hypot(fx, fy) < 0.05) & (np.hypot(fx, fy) > 1.5 / min(height, width))
    for _ in range(3):  # the window does not move with the picture: what is left is asked again
        residue = cross * np.exp(2j * np.pi * (fx * dx + fy * dy))
        weight = np.where(low, power, 0.0)
        angle = np.angle(residue)
        grid_x, grid_y = np.broadcast_to(fx, power.shape), np.broadcast_to(fy, power.shape)
        xx, xy, yy = ((weight * p).sum() for p in (grid_x**2, grid_x * grid_y, grid_y**2))
        bx, by = (-(weight * angle * g).sum() / (2 * np.pi) for g in (grid_x, grid_y))
        determinant = xx * yy - xy * xy
        if determinant <= 0:
            break
        dx += float((yy * bx - xy * by) / determinant)
        dy += float((xx * by - xy * bx) / determinant)
    return dx, dy


def light_gamma(blurred: NDArray[np.uint8], sharp: NDArray[np.uint8]) -> float | None:
    """Find the gamma in whose light a blurred picture has the same mean as its sharp one.

    Averaging keeps the mean of the values that were averaged: coded values (gamma 1), or light,
    where a mix of dark and bright comes out brighter.

    Args:
        blurred: (H, W, 3).
        sharp: (H, W, 3).

    Returns:
        The gamma; None where the blur is too slight, or the brightness changed too much, to decide.
    """
    side = 64
    height, width = (length // side * side for length in sharp.shape[:2])
    if not height or not width:
        return None
    b, s = (p[:height, :width].astype(np.float32) / 255 for p in (blurred, sharp))
    clipped = np.maximum(s, b).max(axis=2, keepdims=True) > 0.98

    def blocks(values: NDArray[np.float32]) -> NDArray[np.float64]:
        split = values.reshape(height // side, side, width // side, side, -1)
        means: NDArray[np.float64] = split.mean(axis=(1, 3, 4), dtype=np.float64)
        return means

    usable = blocks(clipped.astype(np.float32)) < 0.01
    if usable.sum() < 8:
        return None
    errors = []
    for gamma in _GAMMAS:
        difference = (blocks(b**gamma) - blocks(s**gamma)) / blocks(s**gamma).clip(1e-4)
        errors.append(float(np.median(difference[usable])))
    signs = np.sign(errors)
    # How much the choice of gamma changes the means says whether there was blur enough.
    if max(errors) - min(errors) < 0.01:
        return None
    crossing = np.nonzero(np.diff(signs))[0]
    if len(crossing) == 0:
        return 1.0 if abs(errors[0]) < 0.003 else None
    i = int(crossing[0])
    step = errors[i] / (errors[i] - errors[i + 1])
    return round(float(_GAMMAS[i] + 0.1 * step), 2)


def format_facts(facts: FolderFacts) -> str:
    """Lay the facts out as lines for people."""
    lines = [f"{facts.folder}: layout {facts.layout}"]
    for name, split in facts.splits.items():
        sizes = ", ".join(f"{count} of {size}" for size, count in split.sizes.items())
        lines.append(
            f"{name}: {split.pairs} pairs in {len(split.sequences)} "
            f"sequence{'s' * (len(split.sequences) != 1)}; {sizes}"
        )
        if len(split.sequences) > 1:
            lines += [f"  {sequence or '.'}: {n}" for sequence, n in split.sequences.items()]
        for kind, found in (
            ("without a partner", split.missing),
            ("of two sizes", split.mismatched),
            ("unreadable", split.unreadable),
        ):
            if found:
                lines.append(f"  {len(found)} {kind}, the first: {found[0]}")
        if split.measured:
            lines += [f"  {line}" for line in _measured_lines(split)]
    return "\n".join(printable(line) for line in lines)


def _measured_lines(split: SplitFacts) -> list[str]:
    measured = split.measured
    worst = sorted(measured, key=lambda m: -math.hypot(*m.shift))[:3]
    lines = [
        f"shift between blurred and sharp, {len(measured)} pairs measured: "
        f"median {split.shift:.2f} pixels; most:"
    ]
    lines += [
        f"  {math.hypot(*m.shift):.2f} ({m.shift[0]:+.2f}, {m.shift[1]:+.2f}) {m.blurred}"
        for m in worst
    ]
    finite = [m.psnr for m in measured if not math.isinf(m.psnr)]
    if finite:
        lines.append(f"PSNR of blurred to sharp: {np.median(finite):.2f} dB at the median")
    if split.identical:
        lines.append(
            f"{len(split.identical)} of them are identical, the first: {split.identical[0]}"
        )
    if split.gamma is not None:
        meaning = "coded values" if split.gamma < 1.3 else f"light of about gamma {split.gamma:.1f}"
        lines.append(f"averaged in {meaning}, by the pictures' means")
    return lines
