"""How well the films of `tests/helpers/films.py` are restored, whose truth is known.

    python -m tests.trials.score_films --films walk,pan --weights FILE --exposure true
    python -m tests.trials.score_films --footage karma.mp4 max-heromode.mp4 --start 20 --frames 10

prints a line a film: the gain over its blurred frames, and what was read of its exposure. Footage
is made into films: means of a few frames, in linear light, of every few and one more, as the GoPro
dataset was made (Nah et al., CVPR 2017).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.helpers import films
from tests.helpers.films import FILMS, Rendered
from vdeblur.evaluation.metrics import psnr
from vdeblur.frames import Frame, FrameBatch, PlaneLayout
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.transfers import Overlap
from vdeblur.motion.guide import Guide

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """Of a film: PSNR of its blurred frames; gains, a frame each; the exposure read, a share of a
    frame's time, or None; how many of its sharp frames came back to the last bit; and how much the
    error changes from frame to frame, restored / blurred.
    """

    blurred: float
    gains: tuple[float, ...]
    exposure: float | None
    kept: int
    flicker: float


def frames_of(pictures: Pictures, fps: int) -> list[Frame]:
    """RGB pictures (N, H, W, 3) as frames of a stream."""
    layout = PlaneLayout(pictures.shape[2], pictures.shape[1], kind="rgb", full_range=True)
    return [
        Frame(tuple(np.ascontiguousarray(picture[..., c]) for c in (1, 2, 0)), layout, k,
              Fraction(1, fps), 1)
        for k, picture in enumerate(pictures)
    ]  # fmt: skip


def averaged(footage: Path, *, take: int, start: int, count: int) -> Rendered:
    """A film of real frames, at most 640 pixels wide: each the mean of `take` frames, of which one
    more is left out before the next; the sharp one is in their middle. Its motion is not known.

    start, count: of its frames.
    """
    first, end = start * (take + 1), (start + count) * (take + 1)
    frames = []
    with av.open(str(footage)) as container:
        for picture in islice(container.decode(video=0), first, end):
            width = min(640, picture.width)
            height = round(picture.height * width / picture.width)
            frame = picture.to_ndarray(format="rgb24")
            frames.append(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
    groups = [frames[k : k + take] for k in range(0, len(frames) - take + 1, take + 1)]
    linear = [np.mean((np.stack(group) / 255) ** 2.2, axis=0) for group in groups]
    return Rendered(
        footage.stem,
        films.FPS,
        take / (take + 1),
        np.stack([(mean ** (1 / 2.2) * 255).round().astype(np.uint8) for mean in linear]),
        np.stack([group[take // 2] for group in groups]),
        np.zeros((0, 4, 1, 1), np.float32),
        np.zeros((0, 2), np.float32),
        (),
    )


def restored(deblurrer: Deblurrer, pictures: Pictures, guide: Guide, fps: int) -> Pictures:
    """The pictures as `vdeblur video` restores them, but for its 4:2:0 and its encoder."""
    batches = (FrameBatch([frame]) for frame in guide.run(frames_of(pictures, fps)))
    out = []
    for batch, _ in Overlap(deblurrer).run(batches):
        green, blue, red = batch.frames[0].planes
        out.append(np.stack([red, green, blue], axis=-1))
    return np.stack(out)


def score(deblurrer: Deblurrer, film: Rendered, exposure: str) -> Score:
    """exposure: as `--exposure` of the command line takes it, or `true`: the film's own."""
    asked = film.shutter if exposure == "true" else exposure
    guide = Guide(asked)
    result = restored(deblurrer, film.blurred, guide, film.fps)
    before = [psnr(b, s) for b, s in zip(film.blurred, film.sharp, strict=True)]
    after = [psnr(r, s) for r, s in zip(result, film.sharp, strict=True)]
    found = re.search(r"about (\d\.\d+) of", "".join(guide.notes()))
    short = "too shortly" in "".join(guide.notes())
    kept = restored(deblurrer, film.sharp, Guide(), film.fps)
    return Score(
        mean(before),
        tuple(a - b for a, b in zip(after, before, strict=True)),
        float(found[1]) if found else 0.0 if short else None,
        sum(map(np.array_equal, kept, film.sharp)),
        _unrest(result, film) / _unrest(film.blurred, film),
    )


def _unrest(pictures: Pictures, film: Rendered) -> float:
    """Mean change of the error from one frame of a shot to the next, in 8-bit levels."""
    errors = pictures.astype(np.float32) - film.sharp
    pairs = [(k, a, b) for k, (a, b) in enumerate(pairwise(errors), 1) if k not in film.cuts]
    return mean(float(np.abs(b - a).mean()) for _, a, b in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--films", default=",".join(FILMS), help="of %(default)s: all")
    parser.add_argument("--model", default="mimo-unet-guided", help="a guided network")
    parser.add_argument("--weights", type=Path, help="of it; those that ship")
    parser.add_argument("--exposure", default="auto", help="auto (default), true, or a share")
    parser.add_argument("--frames", type=int, help="only the first so many")
    parser.add_argument("--footage", type=Path, nargs="+", help="real films instead")
    parser.add_argument("--take", type=int, default=5, help="frames that make one (5)")
    parser.add_argument("--start", type=int, default=0, help="the first of footage's films (0)")
    args = parser.parse_args(argv)
    made = (
        (
            averaged(p, take=args.take, start=args.start, count=args.frames or 10)
            for p in args.footage
        )
        if args.footage
        else (films.render(name, args.frames) for name in args.films.split(","))
    )
    deblurrer = Deblurrer(args.model, weights=args.weights)
    print("film      blurred   gain  least  exposure  read  flicker  sharp frames kept")
    gains = []
    for film in made:
        found = score(deblurrer, film, args.exposure)
        gains.append(mean(found.gains))
        read = "" if found.exposure is None else f"{found.exposure:.2f}"
        print(
            f"{film.name[:9]:9} {found.blurred:7.2f} {gains[-1]:6.2f} {min(found.gains):6.2f} "
            f"{film.shutter:9.2f} {read:>5} {found.flicker:8.2f}  "
            f"{found.kept} of {len(film.sharp)}",
            flush=True,
        )
    print(f"{'mean':9} {'':7} {mean(gains):6.2f}")


if __name__ == "__main__":
    main()
