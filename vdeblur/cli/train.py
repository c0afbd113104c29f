"""vdeblur train: train a network on pairs, or on photographs that it blurs as it goes."""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import signal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vdeblur.cli.options import add_layout_option
from vdeblur.cli.output import in_options, say
from vdeblur.cli.values import duration
from vdeblur.errors import UsageError
from vdeblur.system.allocator import keep_pages

if TYPE_CHECKING:
    import torch

    from vdeblur.cli.options import Commands
    from vdeblur.training.recipes import Recipe
    from vdeblur.training.run import RunSettings


def add(commands: Commands) -> None:
    """Register the subcommand."""
    train = commands.add_parser(
        "train",
        help="train a network on pairs, or on photographs that it blurs",
        description="Train a network by a recipe. The same command resumes a run that was "
        "stopped;\nCtrl-C stops it after the current step. RUN receives weights.safetensors with "
        "its model\ncard, metrics.jsonl and state.pt.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n"
        "  vdeblur train --recipe mimo-unet-gopro --data GoPro/train --val GoPro/test --out run\n"
        "  vdeblur train --data synth:photos --budget 25m --out run\n"
        "  vdeblur train --recipe fine-tune --data text-pairs --out run --budget 10m\n"
        "  torchrun --nproc-per-node 4 -m vdeblur train --recipe mprnet-gopro --data GoPro/train",
    )
    _add_run_options(train)
    _add_recipe_options(train)
    _add_machine_options(train)
    train.set_defaults(run=_run)


def _add_run_options(train: argparse.ArgumentParser) -> None:
    what = train.add_argument_group("run")
    what.add_argument(
        "--recipe",
        metavar="NAME",
        help="network, loss, optimizer, schedule and length (default mimo-unet-guided; with a "
        "--model that takes no motion, mimo-unet-lite)",
    )
    what.add_argument("--list-recipes", action="store_true", help="list the recipes and exit")
    what.add_argument(
        "--json", action="store_true", help="list them with all their values, as JSON"
    )
    what.add_argument(
        "--data", metavar="DATA", help="folder of pairs, or synth:FOLDER of photographs"
    )
    what.add_argument(
        "--val", metavar="DATA", help="folder of pairs for validation, instead of a part of DATA"
    )
    what.add_argument(
        "-o", "--out", metavar="RUN", default="run", help="folder of the run (default run)"
    )
    what.add_argument(
        "--state", metavar="FILE", help="file of the state to resume from (default RUN/state.pt)"
    )
    what.add_argument(
        "--init", metavar="FILE", help='initial weights; "shipped": those of the package'
    )
    what.add_argument("--teacher", metavar="FILE", help="weights or network to learn from")
    add_layout_option(what)
    for option, text in (
        ("--blur", "how photographs are blurred, such as max_length=60 (BlurOptions)"),
        ("--augment", "how pictures are varied, such as brightness=0.2 (Augment)"),
    ):
        what.add_argument(
            option, metavar="KEY=VALUE", action="append", default=[], help=f"{text}; repeatable"
        )


def _add_recipe_options(train: argparse.ArgumentParser) -> None:
    change = train.add_argument_group(
        "changes to the recipe", "All of these default to the value of the recipe."
    )
    change.add_argument("--model", metavar="NAME", help="another network (see `vdeblur models`)")
    change.add_argument(
        "--config",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="configuration of the network, such as blocks=[1,1,1]; repeatable",
    )
    change.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a value of the recipe, such as clip=1 or schedule.shape=step; repeatable",
    )
    change.add_argument(
        "--budget",
        dest="seconds",
        type=duration,
        metavar="TIME",
        help="length in wall time, such as 25m or 2h",
    )
    change.add_argument("--steps", type=int, metavar="N", help="length in steps")
    change.add_argument("--epochs", type=int, metavar="N", help="length in passes over the pairs")
    change.add_argument("--batch", type=int, metavar="N", help="crops per step, over all processes")
    change.add_argument("--crop", type=int, metavar="PIXELS", help="side of a crop")
    change.add_argument(
        "--lr", dest="learning_rate", type=float, metavar="RATE", help="learning rate"
    )
    change.add_argument("--loss", metavar="SUM", help='sum of terms, such as "l1 + 0.1*msfr"')
    change.add_argument(
        "--ema", type=float, metavar="D", help="decay of the averaged weights; 0 for none"
    )
    change.add_argument(
        "--teacher-weight", type=float, metavar="W", help="weight of the outputs of the teacher"
    )
    change.add_argument(
        "--prune", type=float, metavar="SHARE", help="share of the blocks' work to prune first"
    )
    change.add_argument("--seed", type=int, default=0, help="seed of all randomness (default 0)")


def _add_machine_options(train: argparse.ArgumentParser) -> None:
    how = train.add_argument_group("machine and reports")
    how.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, rocm, xpu, mps …"
    )
    how.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="number format of the computation: auto is bf16 on GPUs and CPUs that support it, "
        "else fp32",
    )
    how.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that load data, 0 for none (default half of the cores, 8 at most); on a "
        "GPU they match the frames made of photographs (default all cores but two, 16 at most)",
    )
    how.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="N",
        help="split each batch into N parts, to save memory (default 1)",
    )
    how.add_argument(
        "--checkpointing", action="store_true", help="use less memory and a third more work"
    )
    how.add_argument(
        "--compile", action="store_true", help="compile the network with torch.compile"
    )
    how.add_argument(
        "--no-channels-last", action="store_true", help="keep the default memory order of torch"
    )
    how.add_argument(
        "--report",
        type=duration,
        default=60.0,
        metavar="TIME",
        help="how often to print a line and save the state (default 60s)",
    )
    how.add_argument(
        "--validate",
        type=duration,
        default=300.0,
        metavar="TIME",
        help="how often to score the held-out pictures and write the weights (default 5m)",
    )
    how.add_argument(
        "--log", choices=("tensorboard",), help="write curves and pictures to RUN/tensorboard"
    )


def _run(args: argparse.Namespace) -> int:
    if args.json and not args.list_recipes:
        raise UsageError("--json is for --list-recipes: give both, or leave it out")
    if args.list_recipes:
        return _list_recipes(as_json=args.json)
    _check(args)
    recipe = _recipe(args)

    import torch.distributed as dist

    from vdeblur.inference.devices import find_device
    from vdeblur.training.options import RunOptions
    from vdeblur.training.processes import processes, start_processes
    from vdeblur.training.run import run_recipe

    keep_pages()
    device = start_processes(find_device(args.device))
    run = RunOptions(
        device=device,
        precision=_precision(args.precision, device),
        channels_last=not args.no_channels_last,
        compile=args.compile,
        checkpointing=args.checkpointing,
        accumulate=args.accumulate,
        report_seconds=args.report,
    )
    settings = _settings(args, device.type)
    atexit.register(_end_workers)
    with _Stop() as stop:
        try:
            outcome = run_recipe(recipe, settings, run=run, on_message=say, stop=stop)
        finally:
            if processes()[1] > 1:
                dist.destroy_process_group()
    if stop.signal:
        say(
            f"vdeblur: stopped at step {outcome.progress.step}; the same command goes on from there"
        )
        return 128 + stop.signal
    if int(os.environ.get("RANK", "0")) == 0:
        print(settings.out / "weights.safetensors")
    return 0


def _list_recipes(*, as_json: bool) -> int:
    from vdeblur.training.recipes import RECIPES

    if as_json:
        print(json.dumps(in_options([recipe.as_dict() for recipe in RECIPES.values()]), indent=2))
    else:
        for recipe in RECIPES.values():
            print(in_options(f"{recipe.name:<22} {recipe.summary}\n{'':<22} {_in_words(recipe)}"))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that cannot work together."""
    if args.data is None:
        raise UsageError("there is nothing to train on: give --data FOLDER or --data synth:FOLDER")
    if args.workers is not None and args.workers < 0:
        raise UsageError(f"--workers is {args.workers}: give 0 (none) or more")
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}: give 0 or more")
    photographs = args.data.startswith("synth:")
    if args.blur and not photographs:
        raise UsageError("--blur is for photographs (--data synth:FOLDER): leave it out for pairs")
    if args.layout != "auto" and photographs:
        raise UsageError("--layout is for a folder of pairs: leave it out for photographs")


def _settings(args: argparse.Namespace, device_type: str) -> RunSettings:
    from vdeblur.datasets.augmentation import Augment
    from vdeblur.datasets.blur_options import BlurOptions
    from vdeblur.training.processes import processes
    from vdeblur.training.recipes import from_texts
    from vdeblur.training.run import RunSettings

    workers = args.workers
    if workers is None:
        # Pairs made on a GPU wait for their optical flow; two cores feed the GPU.
        cores = os.cpu_count() or 2
        if args.data.startswith("synth:") and device_type == "cuda":
            workers = min(16, max(1, cores // processes()[1] - 2))
        else:
            workers = min(8, cores // 2)
    return RunSettings(
        data=args.data,
        out=Path(args.out),
        state=Path(args.state) if args.state else None,
        val=args.val,
        init=args.init,
        teacher=args.teacher,
        seed=args.seed,
        workers=workers,
        validate_seconds=args.validate,
        tensorboard=args.log == "tensorboard",
        blur=from_texts(BlurOptions(), _pairs(args.blur, "--blur")) if args.blur else None,
        augment=from_texts(Augment(), _pairs(args.augment, "--augment")) if args.augment else None,
        layout=args.layout,
    )


def _end_workers() -> None:
    """Kill the processes that load data when the program ends after an error.

    They ignore the signals that stop a run, SIGTERM among them. Python ends its children by
    SIGTERM and would wait for them forever.
    """
    for worker in multiprocessing.active_children():
        worker.kill()


class _Stop:
    """Whether Ctrl-C or SIGTERM came: the first waits for the end of a step, a second does not."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return bool(self.signal)

    def __enter__(self) -> _Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        say("vdeblur: stopping after this step (again to stop at once)")
        signal.signal(number, self._before[number])


def _recipe(args: argparse.Namespace) -> Recipe:
    from dataclasses import replace

    from vdeblur.training.recipes import recipe_of, with_values

    recipe = with_values(recipe_of(args.recipe or _own(args.model)), _pairs(args.set, "--set"))
    if args.model:
        recipe = replace(recipe, network=args.model, config={})
    if args.config:
        config = _pairs(args.config, "--config", as_numbers=True)
        recipe = replace(recipe, config=dict(recipe.config) | config)
        _check_config(recipe, args.config)
    lengths = {"seconds": args.seconds, "steps": args.steps, "epochs": args.epochs}
    given = {key: value for key, value in lengths.items() if value is not None}
    if len(given) > 1:
        raise UsageError("a run has one length: give one of --budget, --steps and --epochs")
    if given:
        recipe = replace(recipe, **({"seconds": 0.0, "steps": 0, "epochs": 0} | given))
    named = {
        "batch": args.batch,
        "crop": args.crop,
        "learning_rate": args.learning_rate,
        "loss": args.loss,
        "ema": args.ema,
        "teacher_weight": args.teacher_weight,
        "prune": args.prune,
    }
    if args.crop:  # patches are no larger than the crop they are cut from
        named["patches"] = tuple((at, side) for at, side in recipe.patches if side < args.crop)
    if args.batch:  # nor are there more updates than crops
        named["updates"] = tuple((at, min(n, args.batch)) for at, n in recipe.updates)
    if args.teacher and args.teacher_weight is None and not recipe.teacher_weight:
        named["teacher_weight"] = 0.5
    return replace(recipe, **{key: value for key, value in named.items() if value is not None})


def _own(model: str | None) -> str:
    """Return the default recipe: guided networks need another one than the rest."""
    from vdeblur.networks import DEFAULT, FAMILIES, spec

    guided = FAMILIES[spec(model or DEFAULT).family].guided
    return "mimo-unet-guided" if guided else "mimo-unet-lite"


def _check_config(recipe: Recipe, texts: list[str]) -> None:
    """Raise UsageError for values of --config that the network cannot have."""
    import inspect

    import torch

    from vdeblur.errors import ModelError
    from vdeblur.networks import FAMILIES, build, spec

    entry = spec(recipe.network)
    known = list(inspect.signature(FAMILIES[entry.family]).parameters)
    for name in recipe.config:
        if name not in known:
            raise UsageError(
                f"--config {name}: {recipe.network} has no such value: "
                f"{'choose of ' + ', '.join(known) if known else 'leave it out'}"
            )
    try:
        with torch.device("meta"):
            build(recipe.network, dict(entry.config) | dict(recipe.config))
    except (ModelError, RuntimeError, ArithmeticError, LookupError) as error:
        with torch.device("meta"):
            own = build(recipe.network).config
        texts_of_own = (f"{key}={json.dumps(value)}" for key, value in own.items())
        usual = ", ".join(text.replace(" ", "") for text in texts_of_own)
        raise UsageError(
            f"no {recipe.network} can be built with --config {' '.join(texts)}: its own is {usual}"
        ) from error


def _pairs(texts: list[str], option: str, *, as_numbers: bool = False) -> dict[str, Any]:
    """Parse KEY=VALUE texts; with `as_numbers`, values that are JSON are read as JSON."""

    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} {text!r} is no KEY=VALUE: give one such as base=16")
        values[key] = value
        if as_numbers:
            try:
                values[key] = json.loads(value)
            except ValueError:
                values[key] = value
    return values


def _in_words(recipe: Recipe) -> str:
    length = (
        f"{recipe.seconds:g} s"
        if recipe.seconds
        else f"{recipe.steps} steps"
        if recipe.steps
        else f"{recipe.epochs} epochs"
    )
    return (
        f"{recipe.network}; {recipe.loss}; {recipe.optimiser} {recipe.learning_rate:g} "
        f"{recipe.schedule.shape}; {recipe.batch} crops of {recipe.crop}; {length}"
    )


def _precision(name: str, device: torch.device) -> str:
    """Resolve "auto": bf16 if the device multiplies it faster than fp32, else fp32."""
    from vdeblur.inference.devices import accelerator, has_streams, multiplies_bf16

    if name != "auto":
        return name
    if has_streams(device):
        # Older torch does not ask: each XPU that it supports has bf16.
        able = getattr(accelerator(device), "is_bf16_supported", lambda: True)()
    else:
        able = device.type == "cpu" and multiplies_bf16()
    return "bf16" if able else "fp32"
