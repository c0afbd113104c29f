"""How well the exposure of films is read that are made of photographs under a hand's motion.

    python -m tests.trials.score_exposure PHOTOS --crf 24
    python -m tests.trials.score_exposure PHOTOS --noise 3 --restore

prints, for each exposure and for slow and fast films, how many were read right (to a quarter; of
sharp ones, that nothing would be done), too short, too long, or taken for sharp; with --restore the
gain of restoring them, and what sharp ones come back as. A film has six frames; speeds are 1 to 20
pixels a frame, slow ones below 4.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.trials.score_films import Pictures, frames_of, restored
from vdeblur.evaluation.metrics import psnr
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.motion.guide import Guide
from vdeblur.motion.meter import ExposureMeter
from vdeblur.motion.movement import follow
from vdeblur.motion.windows import FrameSample

WIDTH, HEIGHT, FPS, FRAMES = 512, 288, 30, 6
SPEEDS = (1.0, 2.0, 3.0, 4.5, 7.0, 12.0, 20.0)
SHARES = (0.0, 0.2, 0.5, 0.9)
SLOW = 4.0  # pixels a frame
#: Pixels of blur that nobody sees on a sharp film.
UNSEEN = 0.4

Place = Callable[[float], tuple[NDArray[np.float64], float]]


def path(dice: np.random.Generator, speed: float) -> Place:
    """Where a hand looks at a moment in seconds (x and y in pixels, and an angle), at so many
    pixels a frame on the mean: sways of 0.4 to 6 Hz, and a drift.
    """
    rates = dice.uniform(0.4, 6, 6)
    phases = dice.uniform(0, math.tau, (6, 2))
    sizes = dice.normal(0, 1, (6, 2)) / rates[:, None]
    drift = dice.normal(0, 1, 2) * dice.choice([0.9, 4.5])

    def at(t: float) -> NDArray[np.float64]:
        swayed = (sizes * np.sin(math.tau * rates[:, None] * t + phases)).sum(axis=0)
        return np.asarray(swayed + drift * t)

    half = 0.5 / FPS
    moved = [np.hypot(*(at(k / FPS + half) - at(k / FPS - half))) for k in range(FRAMES)]
    scale = speed / float(np.mean(moved))
    turn, rate, phase = dice.normal(0, 0.001) * speed, dice.uniform(0.5, 4), dice.uniform(0, 6)
    return lambda t: (at(t) * scale, turn * math.sin(math.tau * rate * t + phase))


def film(photo: Path, dice: np.random.Generator, speed: float, share: float) -> Any:
    """(blurred, sharp), (FRAMES, HEIGHT, WIDTH, 3) uint8 each; None of a picture that is too small
    or cannot be read. Light is averaged, at a gamma of 2.2.
    """
    picture = cv2.imread(str(photo))
    if picture is None:
        return None
    scale = min(1.0, max(1.5 * WIDTH / picture.shape[1], 1.7 * HEIGHT / picture.shape[0]))
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = picture.shape[:2]
    if height < HEIGHT or width < WIDTH:
        return None
    light = (np.asarray(picture, np.float32) / 255) ** 2.2
    place = path(dice, speed)
    begin, _ = place((FRAMES - 1) / 2 / FPS)

    def view(t: float) -> NDArray[np.float32]:
        (x, y), angle = place(t)
        c, s = math.cos(angle), math.sin(angle)
        x += width / 2 - begin[0] - (c * WIDTH - s * HEIGHT) / 2
        y += height / 2 - begin[1] - (s * WIDTH + c * HEIGHT) / 2
        way = np.array([[c, -s, x], [s, c, y]], np.float32)
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        seen = cv2.warpAffine(
            light, way, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT
        )
        return np.asarray(seen, np.float32)

    def shown(seen: NDArray[np.float32]) -> Pictures:
        codes = (np.clip(seen, 0, 1) ** (1 / 2.2) * 255).round().astype(np.uint8)
        return codes[..., ::-1]

    steps = max(5, min(17, int(2 * speed * share) | 1))
    moments = share * ((np.arange(steps) + 0.5) / steps - 0.5)
    sharp = [view(k / FPS) for k in range(FRAMES)]
    blurred = [
        np.mean([view((k + moment) / FPS) for moment in moments], axis=0) if share else sharp[k]
        for k in range(FRAMES)
    ]
    return np.stack([shown(p) for p in blurred]), np.stack([shown(p) for p in sharp])


def coded(pictures: Pictures, crf: int) -> Pictures:
    """The pictures as x264 leaves them, 4:2:0."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as container:
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack(decoded).astype(np.uint8)


def read(pictures: Pictures) -> float:
    """The share of a frame's time that is known when a film's first frame is given out."""
    meter, before = ExposureMeter(), None
    for frame, movement in follow(frames_of(pictures, FPS)):
        meter.see(frame, movement, before)
        before = FrameSample.at(frame, movement) if movement and meter.wants_before else None
        if meter.settled:
            break
    return meter.seconds(1 / FPS) * FPS


def verdict(share: float, found: float, speed: float) -> str:
    """How far what was read is right."""
    if share == 0:
        return "right" if found * speed < UNSEEN else "long"
    if found < 0.1:
        return "sharp"
    if abs(found - share) < 0.25 * share:
        return "right"
    return "short" if found < share else "long"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of sharp photographs")
    parser.add_argument("--films", type=int, default=42, help="so many for each exposure (42)")
    parser.add_argument("--seed", type=int, default=3, help="of photographs and motions (3)")
    parser.add_argument("--noise", type=float, default=0.0, help="its deviation, in 8-bit levels")
    parser.add_argument("--crf", type=int, help="coded by x264; by default not at all")
    parser.add_argument("--restore", action="store_true", help="print what restoring gains, too")
    args = parser.parse_args(argv)
    found = sorted(p for p in args.photos.rglob("*") if p.suffix.lower() in (".jpg", ".png"))
    dice = np.random.default_rng(args.seed)
    photos = itertools.cycle([found[k] for k in dice.permutation(len(found))])
    deblurrer = Deblurrer("mimo-unet-guided", device="cpu") if args.restore else None
    counts: dict[tuple[bool, float], Counter[str]] = defaultdict(Counter)
    gains: dict[tuple[bool, float], list[float]] = defaultdict(list)
    kept: dict[tuple[bool, float], list[float]] = defaultdict(list)
    done = 0
    for photo in photos:
        speed, seed = SPEEDS[done % len(SPEEDS)], args.seed + done
        for share in SHARES:
            made = film(photo, np.random.default_rng(seed), speed, share)
            if made is None:
                break
            blurred, sharp = made
            if args.noise:
                noise = dice.normal(0, args.noise, blurred.shape)
                blurred = np.clip(blurred + noise, 0, 255).round().astype(np.uint8)
            if args.crf is not None:
                blurred = coded(blurred, args.crf)
            kind = (speed < SLOW, share)
            counts[kind][verdict(share, read(blurred), speed)] += 1
            if deblurrer is not None:
                result = restored(deblurrer, blurred, Guide(), FPS)
                triples = list(zip(result, blurred, sharp, strict=True))
                gains[kind] += [min(psnr(r, s), 99) - min(psnr(b, s), 99) for r, b, s in triples]
                kept[kind] += [min(psnr(r, b), 99) for r, b, _ in triples]
        else:
            done += 1
        if done == args.films:
            break
    print(
        "films  exposure  right  short  long  taken for sharp"
        + "   gain, dB  least, dB  to itself, dB" * args.restore
    )
    for (slow, share), count in sorted(counts.items()):
        line = f"{'slow' if slow else 'fast':5} {share:9.1f} "
        line += f"{count['right']:6} {count['short']:6} {count['long']:5} {count['sharp']:16}"
        if deblurrer is not None:
            kind = (slow, share)
            line += f"{mean(gains[kind]):12.2f} {min(gains[kind]):10.2f} {min(kept[kind]):14.1f}"
        print(line)


if __name__ == "__main__":
    main()
