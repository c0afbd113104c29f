"""Train on the GoPro dataset with vdeblur's parts: an example to copy and adapt.

python pipelines/train_gopro.py GoPro --out weights.safetensors [--recipe mimo-unet-gopro] \
    [--steps 1000 | --budget 540] [--state run.pt] [--device cuda]

GoPro is the folder that contains train/ and test/. Any other folder of pairs works as well, and
synth:PHOTOS synthesizes blur from photographs. The same command resumes a stopped run. `vdeblur
train` does the same with more options, a model card and curves.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from vdeblur import OutputError, VdeblurError
from vdeblur.datasets import DataOptions, open_data
from vdeblur.inference import find_device
from vdeblur.networks import Network, build, spec
from vdeblur.training import (
    Callbacks,
    Progress,
    RunOptions,
    StateFile,
    recipe_of,
    start_well,
    train,
)
from vdeblur.weights import save_weights


def main() -> None:
    """Open the data, build the network, train, save the weights as fp16 safetensors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="mimo-unet-gopro")
    parser.add_argument("--model", help="another network of the catalogue")
    parser.add_argument("--steps", type=int, default=0, help="instead of the recipe's length")
    parser.add_argument("--budget", type=float, default=0, help="seconds, instead of its length")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--crop", type=int)
    parser.add_argument("--state", type=Path, help="checkpoint to write and to go on from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()

    for file in (args.out, args.state or args.out):
        if not file.parent.is_dir():
            raise OutputError(f"folder {file.parent} does not exist: create it first")
    device = find_device(args.device)
    recipe = recipe_of(args.recipe)
    recipe = replace(
        recipe,
        network=args.model or recipe.network,
        batch=args.batch or recipe.batch,
        crop=args.crop or recipe.crop,
    )
    if args.steps or args.budget:
        recipe = replace(recipe, steps=args.steps, seconds=args.budget, epochs=0)
    data = open_data(args.data, DataOptions(batch=recipe.batch, crop=recipe.crop))
    steps = recipe.total_steps(data.pairs)
    print(f"{recipe.name}: {data.summary}; {steps or recipe.seconds} {'steps' if steps else 's'}")

    torch.manual_seed(0)
    network = build(recipe.network, recipe.config or None)
    if recipe.start_well:
        start_well(network)
    if recipe.identity_start:
        network.start_as_identity()

    def save(kept: Network) -> None:
        family = spec(recipe.network).family
        save_weights(args.out, kept.state_dict(), network=family, config=kept.config)

    def report(progress: Progress, kept: Network) -> None:
        print(
            f"{progress.elapsed:7.0f} s  step {progress.step}  loss {progress.loss:.4f}  "
            f"{progress.images_per_second:.1f} images/s  waiting {progress.waiting:.0%}",
            flush=True,
        )
        save(kept)

    outcome = train(
        network,
        data.feed(workers=args.workers, pin=device.type == "cuda"),
        recipe,
        run=RunOptions(device=device, precision="bf16" if device.type == "cuda" else "fp32"),
        steps=steps,
        state=StateFile(args.state) if args.state else None,
        callbacks=Callbacks(on_report=report),
    )
    save(outcome.network)
    print(f"{args.out}: {outcome.progress.step} steps")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
