"""Measure the effect of changes to a recipe: train variants on the same batches and compare them.

python pipelines/compare_recipes.py DATA --score pairs=PAIRS --steps 600 --out runs \
    "plain" "MSFR loss: loss=l1 + 0.1*msfr" "wider: config.widths=[24,60,120]"

A variant is a name and, after a colon, changes to the recipe, separated by semicolons: its values,
those of the network (config.KEY), init and teacher. A second run continues; trained variants are
only scored.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from vdeblur import UsageError, VdeblurError
from vdeblur.inference import find_device
from vdeblur.networks import operations
from vdeblur.training import (
    Recipe,
    RunOptions,
    RunSettings,
    recipe_of,
    run_recipe,
    validation_of,
    with_values,
)


def variant(recipe: Recipe, text: str) -> tuple[str, Recipe, dict[str, str]]:
    """Parse a variant: its name, the changed recipe, and other changes (init, teacher)."""
    name, _, changes = text.partition(":")
    try:
        values = dict(part.strip().split("=", 1) for part in changes.split(";") if part.strip())
        config = {key[7:]: json.loads(v) for key, v in values.items() if key.startswith("config.")}
    except ValueError as error:
        raise UsageError(f"{text!r} is no variant: give NAME: KEY=VALUE; KEY=VALUE") from error
    files = {key: text for key, text in values.items() if key in ("init", "teacher")}
    rest = {k: v for k, v in values.items() if not k.startswith("config.") and k not in files}
    recipe = replace(with_values(recipe, rest), config=dict(recipe.config) | config)
    return name.strip(), recipe, files


def main() -> None:
    """Train and score all variants; print a table and write it to OUT/table.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("variants", nargs="+", metavar="NAME[: KEY=VALUE; …]")
    parser.add_argument("--recipe", default="mimo-unet-guided")
    parser.add_argument("--score", action="append", default=[], metavar="NAME=PAIRS")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    run = RunOptions(device=find_device(args.device), report_seconds=30)
    base = replace(recipe_of(args.recipe), seconds=0.0, epochs=0, steps=args.steps)
    sets = {name: validation_of(path) for name, _, path in (s.partition("=") for s in args.score)}
    rows = []
    for text in args.variants:
        name, recipe, files = variant(base, text)
        out = args.out / name.replace(" ", "-")
        settings = RunSettings(args.data, out, workers=args.workers, validate_seconds=1e9, **files)  # type: ignore[arg-type]
        began = time.monotonic()
        outcome = run_recipe(
            recipe, settings, run=run, on_message=lambda text: print(text, file=sys.stderr)
        )
        row: dict[str, float | str] = {
            "variant": name,
            "parameters": sum(p.numel() for p in outcome.network.parameters()),
            "operations_per_pixel": round(operations(outcome.network) / 256**2),
            "megapixels": round(outcome.progress.megapixels, 1),
            "seconds": round(outcome.progress.elapsed or time.monotonic() - began, 1),
        }
        for which, scored in sets.items():
            kept, _ = scored.score(outcome.network.eval())
            last, _ = scored.score(outcome.last.eval())
            row |= {
                f"{which} gain": round(kept.gain, 3),
                f"{which} gain, last weights": round(last.gain, 3),
                f"{which} sharp kept": round(kept.sharp_kept, 1),
                "dead channels": f"{kept.dead_share:.0%}",
            }
        rows.append(row)
        (args.out / "table.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    try:
        main()
    except VdeblurError as error:  # its message is a sentence for the user
        raise SystemExit(str(error)) from error
