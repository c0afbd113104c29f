"""Train the network that estimates the direction and length of the blur of a window.

python pipelines/train_blur_field.py PHOTOS --out weights.safetensors [--budget 1500] [--seed 0] \
    [--init vdeblur/weights/blur-field.safetensors]

PHOTOS is a folder of sharp photographs; the last ones by name are held out. Each report prints the
median errors of the likeliest direction and length in held-out windows that moved by more than 4
pixels, and saves the averaged weights in fp16, as `vdeblur.motion.single_picture` loads them. With
--budget 0, the weights of --init are only scored.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn

from vdeblur import OutputError, VdeblurError
from vdeblur.datasets import Batch, BlurOptions, DataOptions, PoolOptions, open_data
from vdeblur.datasets.camera_motion import MOTION_STEP
from vdeblur.datasets.motion_errors import NO_ERRORS
from vdeblur.datasets.pool import turned_vectors
from vdeblur.motion.single_picture import blur_field_network
from vdeblur.networks import taps
from vdeblur.networks.blur_field import (
    DIRECTIONS,
    LENGTHS,
    WINDOW,
    BlurFieldNetwork,
    class_shares,
    spectra,
)
from vdeblur.system.files import replacing
from vdeblur.training import Schedule

#: Longer blur, calmer paths and fewer moving layers than a restoring network is trained on.
BLUR = replace(
    BlurOptions(),
    length_power=1.0,
    calm_share=0.6,
    light_share=0.12,
    sharp_share=0.08,
    frames_share=0.4,
    layer_share=0.3,
    sharpen_share=0.35,
    sharpen=0.8,
    jpeg_share=0.25,
    h264_crf=(14.0, 28.0),
)
#: Windows of a pair; steps on windows that are known before others come; windows that are kept.
PER_PAIR, STEPS_A_BATCH, KEPT = 24, 6, 24000
RATE, DECAY = Schedule(warmup=0.03), 0.998


def windows_of_pairs(batch: Batch, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cut random windows from the blurred pictures.

    Returns luma, (N · count, WINDOW, WINDOW) in [0, 1], and the mean chord of the middle of each
    window, (N · count, 2).
    """
    assert batch.motion is not None
    luma = taps.luma_of(batch.blurred.float() / 255)[:, 0]
    room = luma.shape[-1] - WINDOW
    windows, chords = [], []
    for picture, motion in zip(luma, batch.motion, strict=True):
        for y, x in torch.randint(room + 1, (count, 2), generator=generator).tolist():
            windows.append(picture[y : y + WINDOW, x : x + WINDOW])
            top, left = ((at + WINDOW // 4) // MOTION_STEP for at in (y, x))
            side = WINDOW // 2 // MOTION_STEP
            chords.append(motion[:2, top : top + side, left : left + side].mean(dim=(1, 2)))
    return torch.stack(windows), torch.stack(chords)


def turned(windows: Tensor, chords: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Randomly transpose and mirror all windows; the sign of a chord does not matter."""
    transposed, across = torch.randint(2, (2, 1), generator=generator)
    windows = windows.transpose(1, 2) if transposed else windows
    field = torch.cat([chords, chords], dim=1)[..., None, None]
    field = turned_vectors(field, transposed, torch.zeros(1), across)
    return windows.flip(2) if across else windows, field[:, :2, 0, 0]


@torch.no_grad()
def errors(network: BlurFieldNetwork, windows: Tensor, chords: Tensor) -> str:
    """Describe the median errors of the likeliest class."""
    seen = windows[chords.norm(dim=1) > 4]
    true = chords[chords.norm(dim=1) > 4]
    likeliest = torch.cat([network(spectra(part)) for part in torch.split(seen, 128)])
    likeliest = likeliest[:, :-1].argmax(dim=1)
    angle = (likeliest // len(LENGTHS)) * (math.pi / DIRECTIONS)
    off = (angle - torch.atan2(true[:, 1], true[:, 0])) % math.pi
    off = torch.minimum(off, math.pi - off).median() * 180 / math.pi
    ratio = torch.tensor(LENGTHS)[likeliest % len(LENGTHS)] / true.norm(dim=1)
    return f"angle {off:.1f} degrees, length {ratio.log().abs().median():.2f} in the logarithm"


def save(network: BlurFieldNetwork, chords: Tensor, path: Path) -> None:
    """Save the weights, and the frequency of each class."""
    network.prior = class_shares(chords).mean(dim=0).clamp_min(1e-5).log()
    tensors = {
        name: value.contiguous() if name == "prior" else value.half().contiguous()
        for name, value in network.state_dict().items()
    }
    with replacing(path) as temporary:
        temporary.write_bytes(serialized(tensors))


def main() -> None:
    """Make pairs and train on their windows in turn, in a single thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=1500, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="weights to begin with")
    parser.add_argument("--every", type=float, default=60, help="seconds from report to report")
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        raise OutputError(f"folder {args.out.parent} does not exist: create it first")

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    network = BlurFieldNetwork()
    if args.init:
        network.load_state_dict(blur_field_network(args.init).state_dict())
    pool = PoolOptions(clean_first=0.3, clean_last=0.3)
    data = open_data(
        f"synth:{args.photos}",
        DataOptions(batch=4, crop=256, seed=args.seed, blur=BLUR, pool=pool, errors=NO_ERRORS),
    )
    held_out = data.held_out(side=256)
    assert held_out is not None
    aside = windows_of_pairs(held_out, 16, torch.Generator().manual_seed(0))
    print(f"{data.summary}; at the start: {errors(network, *aside)}", flush=True)
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99), weight_decay=1e-3)
    windows, chords = torch.empty(0, WINDOW, WINDOW, dtype=torch.half), torch.empty(0, 2)
    began = reported = time.monotonic()
    step = 0
    while (share := (time.monotonic() - began) / max(args.budget, 1e-9)) < 1:
        if step % STEPS_A_BATCH == 0:
            more = windows_of_pairs(data.batch_at(step // STEPS_A_BATCH), PER_PAIR, generator)
            windows = torch.cat([windows[-KEPT:], more[0].half()])
            chords = torch.cat([chords[-KEPT:], more[1]])
        rows = torch.randint(len(windows), (64,), generator=generator)
        some, true = turned(windows[rows].float(), chords[rows], generator)
        optimiser.param_groups[0]["lr"] = RATE.rate(1e-3, share)
        loss = nn.functional.cross_entropy(network(spectra(some)), class_shares(true))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        pairs = zip(averaged.parameters(), network.parameters(), strict=True)
        for mean, value in pairs:
            mean.data.lerp_(value.data, 1 - min(DECAY, step / (step + 10)))
        if time.monotonic() - reported > args.every:
            reported = time.monotonic()
            print(f"{reported - began:6.0f} s  step {step}  loss {loss:.3f}  "
                  f"{errors(averaged, *aside)}", flush=True)  # fmt: skip
            save(averaged, chords, args.out)
    if step:
        save(averaged, chords, args.out)
        print(f"{args.out}: {step} steps; {errors(averaged, *aside)}")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
