"""Train a MIMO-UNet on blur made from sharp photographs, within a budget of wall time.

python pipelines/train_synthetic.py PHOTOS --out weights.safetensors --budget 1500 \
    [--pairs DIR] [--base 16] [--blocks 2] [--unshuffle 2] [--state run.pt] [--device cuda]

Run it again with the same --state to go on; PHOTOS held out for validation are the last 20 by name.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from vdeblur.checkpoints import save_weights
from vdeblur.models.mimo_unet import MIMOUNet
from vdeblur.training.blur import BlurOptions
from vdeblur.training.data import SyntheticPairs, load_picture, pair_files, picture_files
from vdeblur.training.evaluate import score_pairs, to_picture
from vdeblur.training.loop import Progress, TrainOptions, train


def main() -> None:
    """Parse arguments, train, save the averaged weights as fp16 safetensors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=1500, help="seconds, all runs together")
    parser.add_argument("--pairs", type=Path, help="folder with blur/ and sharp/ to watch")
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--unshuffle", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--frequency", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="checkpoint to write and to resume from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    files = picture_files(args.photos)
    held_out = 20 if len(files) > 100 else max(1, len(files) // 10)
    data = SyntheticPairs(files[:-held_out], batch=args.batch, crop=args.crop, seed=args.seed)
    # A validation batch of one seed: blurred and sharp inputs are reported apart.
    blurry = BlurOptions(sharp_share=0.0, length_power=1.0)
    check = next(
        iter(SyntheticPairs(files[-held_out:], batch=24, crop=256, options=blurry, seed=1))
    )
    validation = [
        (str(i), to_picture(b[None].float() / 255), to_picture(s[None].float() / 255))
        for i, (b, s) in enumerate(zip(*check, strict=True))
    ]
    clean = [(name, sharp, sharp) for name, _, sharp in validation]
    pairs = (
        [(b.stem, load_picture(b), load_picture(s)) for b, s in pair_files(args.pairs)]
        if args.pairs
        else []
    )
    model = MIMOUNet(base=args.base, blocks=args.blocks, unshuffle=args.unshuffle)
    model.start_as_identity()
    device = torch.device(args.device)
    reports = 0

    def report(progress: Progress, averaged: MIMOUNet) -> None:
        nonlocal reports
        reports += 1
        line = (
            f"{progress.elapsed:7.0f} s  step {progress.step}  {progress.megapixels:8.1f} Mpx  "
            f"loss {progress.loss:.4f}  lr {progress.learning_rate:.1e}  "
            f"waiting {progress.waiting:.0%}"
        )
        if reports % 3 == 0 or progress.elapsed >= args.budget:

            def restore(x: torch.Tensor) -> torch.Tensor:
                restored: torch.Tensor = averaged(x.to(device))
                return restored

            scores = score_pairs(restore, validation)
            line += f"  synthetic {sum(s.gain for s in scores) / len(scores):+.2f} dB"
            scores = score_pairs(restore, clean)
            line += f"  sharp kept to {sum(s.after for s in scores) / len(scores):.1f} dB"
            if pairs:
                scores = score_pairs(restore, pairs)
                line += "  pairs " + " ".join(f"{s.gain:+.2f}" for s in scores)
                line += f" mean {sum(s.gain for s in scores) / len(scores):+.3f}"
            save_weights(
                args.out, averaged.state_dict(), network="mimo-unet", config=averaged.config
            )
        print(line, flush=True)

    loader = DataLoader(
        data, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None
    )
    options = TrainOptions(
        budget_seconds=args.budget, learning_rate=args.lr, frequency_weight=args.frequency
    )
    averaged = train(model, loader, options, device=device, state_file=args.state, on_report=report)
    save_weights(args.out, averaged.state_dict(), network="mimo-unet", config=averaged.config)


if __name__ == "__main__":
    main()
