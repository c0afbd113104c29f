"""PSNR of a network on pairs of blurred and sharp pictures, beside unsharp masking at its best.

python pipelines/score_pairs.py PAIRS [--model mimo-unet-small] [--weights FILE] [--save FOLDER]

PAIRS holds blur/ and sharp/ with pictures of the same names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from vdeblur import Deblurrer
from vdeblur.training.data import load_picture, pair_files
from vdeblur.training.evaluate import best_unsharp_mask, score_pairs, to_picture, to_tensor


def main() -> None:
    """Print a line a pair and the means; --save keeps the restored pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="mimo-unet-small")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()

    deblurrer = Deblurrer(args.model, weights=args.weights, device=args.device)
    pairs = [(b.stem, load_picture(b), load_picture(s)) for b, s in pair_files(args.pairs)]
    ours = score_pairs(deblurrer, pairs)
    sigma, amount, unsharp = best_unsharp_mask(pairs)
    kept = score_pairs(deblurrer, [(name, sharp, sharp) for name, _, sharp in pairs])
    print(f"{'pair':<26} {'blurred':>8} {args.model:>16} {'unsharp mask':>13} {'sharp kept':>11}")
    for a, b, c in zip(ours, unsharp, kept, strict=True):
        print(f"{a.name:<26} {a.before:8.2f} {a.gain:+16.2f} {b.gain:+13.2f} {c.after:11.1f}")
    means = [sum(s.gain for s in scores) / len(scores) for scores in (ours, unsharp)]
    print(f"{'mean gain, dB':<26} {'':8} {means[0]:+16.3f} {means[1]:+13.3f}")
    print(f"unsharp mask: the best of a grid, sigma {sigma:g}, amount {amount:g}")
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        for name, blurred, _ in pairs:
            Image.fromarray(to_picture(deblurrer(to_tensor(blurred)))).save(
                args.save / f"{name}.png"
            )


if __name__ == "__main__":
    main()
