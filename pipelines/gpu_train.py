"""Train the guided networks further on a GPU within a fixed time, and gather what to take away.

python pipelines/gpu_train.py PHOTOS --out OUT [--seconds 480] [--val PAIRS] [--init shipped]
    [--networks mimo-unet-guided-large mimo-unet-guided] [--compile] [--device cuda]

The networks are trained one after another by `vdeblur train`'s own parts, each in an equal share of
the time that is left; one that fails leaves its share to the next. Needs neither PyAV nor a
network connection. OUT receives, below 16 MiB each and rewritten as they improve:

    NAME.safetensors             fp16, the best of all reports, if it is better than the start
    NAME-averaged32.safetensors  fp32, averaged, of the end: `--init OUT` goes on from them
    NAME-last32.safetensors      fp32, the last weights
    metrics.jsonl                the reports of all networks
    train.json                   the machine, and how each part ended

docs/gpu.md says how to run it in minutes, and what each line should read.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vdeblur import VdeblurError
from vdeblur.inference import find_device
from vdeblur.networks import spec
from vdeblur.training import (
    Diverged,
    Outcome,
    RunOptions,
    RunSettings,
    recipe_of,
    run_recipe,
    with_values,
)
from vdeblur.weights import save_weights

BEGAN = time.monotonic()
NETWORKS = ("mimo-unet-guided-large", "mimo-unet-guided")
#: Seconds to open photographs and score held-out ones, and to score, write and end.
OPENING, ENDING = 25.0, 12.0
#: Changes to the recipe for a rehearsal.
QUICK = {"batch": "2", "crop": "64", "pool.pairs": "8", "films.reductions": "2"}


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


class Keeper:
    """Copies what a run writes to where it is taken from: reports, and the best weights."""

    def __init__(self, name: str, run: Path, out: Path) -> None:
        self.name, self.run, self.out = name, run, out
        self.best, self.first, self.told = -1e9, None, 0
        self.told_at, self.scoring = 0.0, 0.0  # seconds that the first scores took

    def __call__(self, text: str) -> None:
        """Print a message of the run, and look at what it wrote before."""
        before, self.told_at = self.told_at, time.monotonic()
        say(f"{self.name}: {text}")
        metrics = self.run / "metrics.jsonl"
        rows = metrics.read_text().splitlines() if metrics.exists() else []
        for number, line in enumerate(rows[self.told :], self.told + 1):
            row = json.loads(line)
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"network": self.name} | row) + "\n")
            gain = row.get("film_db", row.get("gain_db"))
            if self.first is None:
                self.first, self.scoring = gain, self.told_at - before
            if gain is not None and gain > self.best:
                self.best = gain
                if row["step"] and number == len(rows):  # the weights there are of the last row
                    shutil.copyfile(
                        self.run / "weights.safetensors", self.out / f"{self.name}.safetensors"
                    )
        self.told = len(rows)

    def keep(self, outcome: Outcome) -> None:
        """Write the weights to go on from."""
        for kind, network in (("averaged", outcome.network), ("last", outcome.last)):
            save_weights(
                self.out / f"{self.name}-{kind}32.safetensors",
                network.state_dict(),
                network=spec(self.name).family,
                config=network.config,
                half=False,
            )


def trained(
    name: str, args: argparse.Namespace, device: torch.device, work: Path, end: float
) -> Any:
    """Train a network until `end` (monotonic); return what is to be known of it."""
    recipe = with_values(
        replace(
            recipe_of(f"{name}-gpu"),
            seconds=max(end - time.monotonic() - OPENING - ENDING, 1.0),
            learning_rate=args.lr,
        ),
        QUICK if args.quick else {},
    )
    init = args.init
    if Path(init).is_dir():
        init = str(Path(init) / f"{name}-averaged32.safetensors")
    run = work / name
    keeper = Keeper(name, run, args.out)
    settings = RunSettings(
        f"synth:{args.photos}",
        run,
        val=args.val,
        init=init,
        seed=args.seed,
        workers=args.workers,
        validate_seconds=recipe.seconds / 5,
    )
    options = RunOptions(
        device=device,
        precision="fp32" if device.type == "cpu" else "bf16",
        compile=args.compile,
        report_seconds=recipe.seconds / 25,
    )
    said: dict[str, Any] = {}
    try:
        outcome: Outcome | None = run_recipe(
            recipe,
            settings,
            run=options,
            on_message=keeper,
            stop=lambda: time.monotonic() > end - max(ENDING, keeper.scoring + 3),
        )
    except Diverged as error:  # the last sound weights are as good as ever
        said["failed"], outcome = str(error), error.outcome
    if outcome is not None:
        keeper.keep(outcome)
        done = outcome.progress
        said |= {
            "finished": outcome.finished,
            "steps": done.step,
            "megapixels": round(done.megapixels),
            "seconds": round(done.elapsed),
            "mpx_per_s": round(done.megapixels / max(done.elapsed, 1e-9), 1),
        }
    said |= {"gain_at_start_db": keeper.first, "best_gain_db": keeper.best}
    if device.type == "cuda":
        said["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 1)
        torch.cuda.reset_peak_memory_stats(device)
    return said


def main(work: Path) -> int:
    """Train each network in its share of the time; return 0 if all were trained.

    Args:
        work: A folder for states, which are too large to take away.
    """
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("photos", type=Path, help="sharp photographs, see pack_photos.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--seconds", type=float, default=480, help="of the process (480)")
    parser.add_argument("--val", help="pairs of real pictures to score on, too")
    both = " and ".join(NETWORKS)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME", help=both)
    parser.add_argument(
        "--init", default="shipped", help="shipped (default), a weights file, or an earlier OUT"
    )
    parser.add_argument("--lr", type=float, default=8e-4, help="highest rate (default 8e-4)")
    parser.add_argument("--seed", type=int, default=0, help="another number makes other pairs")
    parser.add_argument("--workers", type=int, default=min(16, max(1, (os.cpu_count() or 3) - 2)))
    parser.add_argument(
        "--compile", action="store_true", help="compile networks: half a minute each"
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), rocm, xpu, cpu …")
    parser.add_argument("--quick", action="store_true", help="tiny batches, to rehearse on a CPU")
    args = parser.parse_args()
    end = BEGAN + args.seconds
    device = find_device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.compile:
        # What cannot be compiled here (no C compiler, say) runs as it is.
        importlib.import_module("torch._dynamo.config").suppress_errors = True  # type: ignore[attr-defined]
    gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name(device) if gpu else device.type
    result: dict[str, Any] = {
        "device": f"{machine}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "arguments": sys.argv[1:],
    }
    say(f"{result['device']}, torch {torch.__version__}")
    parts: dict[str, Any] = result.setdefault("networks", {})
    for number, name in enumerate(args.networks):
        now = time.monotonic()
        try:
            parts[name] = trained(
                name, args, device, work, now + (end - now) / (len(args.networks) - number)
            )
        except Exception as error:
            parts[name] = {"failed": str(error) or type(error).__name__}
            if not isinstance(error, VdeblurError):
                parts[name]["traceback"] = traceback.format_exc()[-2000:]
        (args.out / "train.json").write_text(json.dumps(result, indent=1) + "\n")
        say(f"{name}: {json.dumps(parts[name])}")
        if gpu:
            torch.cuda.empty_cache()
    return any("failed" in part for part in parts.values())


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as folder:
            sys.exit(main(Path(folder)))
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
