"""A whole run: data opened, network built, trained, watched, written with its card. `vdeblur train`
is this with options; knows no command line.

A run's folder holds weights.safetensors and weights.json (its model card), metrics.jsonl, and
state.pt to go on from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vdeblur.datasets.batches import LENGTHS, Augment, Batch, Course, Data, load_picture, open_data
from vdeblur.datasets.layouts import find_pairs, recognise
from vdeblur.datasets.motion_errors import MotionErrors, with_errors
from vdeblur.datasets.synthetic_blur import BlurOptions
from vdeblur.errors import DeviceError, InputError, OutputError, UsageError
from vdeblur.motion.single_picture import motion_shown
from vdeblur.networks import FAMILIES, build, names, spec, taps
from vdeblur.networks.base import Network
from vdeblur.training.dead_channels import dead_share, revive, start_well
from vdeblur.training.pruning import operations, prune
from vdeblur.training.recipes import Recipe, facts
from vdeblur.training.run_log import METRICS, RunLog, read_metrics
from vdeblur.training.trainer import (
    Diverged,
    Outcome,
    Progress,
    RunOptions,
    processes,
    read_state,
    train,
)
from vdeblur.weights import load, save_weights, write_card

_SAMPLE_BATCHES = 8  # that say which channels are dead, or of little use: a few dozen crops


@dataclass(frozen=True)
class RunSettings:
    """What a run is made of, beside its recipe.

    data: a folder of pairs, or "synth:DIR" for blur made from photographs; blur, augment, layout:
    as `data.open_data` takes them. out: the run's folder. state: its state file, when not
    out/state.pt. val: a folder of pairs to watch. init: weights to start from (a file, or
    "shipped"), before the recipe's own; teacher: a weights file, or a name of the catalogue.
    validate_seconds: how often the held-out pictures are scored and the weights written.
    tensorboard: curves and pictures.
    """

    data: str
    out: Path
    state: Path | None = None
    val: str | None = None
    init: str | None = None
    teacher: str | None = None
    seed: int = 0
    workers: int = 1
    validate_seconds: float = 300.0
    tensorboard: bool = False
    blur: BlurOptions | None = None
    augment: Augment | None = None
    layout: str = "auto"


@dataclass(frozen=True)
class Scores:
    """Means over the held-out pictures, in dB. gain: PSNR won on blurred input; sharp_kept: PSNR of
    what a sharp input becomes, to itself (at most 99). dead_share: see `health.dead_share`.
    more: what else `ByLength` measures.
    """

    gain: float
    sharp_kept: float
    dead_share: float
    more: Mapping[str, float] = field(default_factory=dict)


class Validation:
    """Held-out pairs, (3, H, W) uint8 each, that a network is scored on as training goes."""

    def __init__(self, blurred: Sequence[Tensor], sharp: Sequence[Tensor]) -> None:
        self.pairs = list(zip(blurred, sharp, strict=True))

    def score(self, network: Network) -> tuple[Scores, Tensor]:
        """The scores, and a picture of the first pair, (3, H, 3·W) in 0..1: blurred, restored,
        sharp.

        Values are rounded to 8 bits first, as they are in a file.
        """
        gains, kept = [], []
        picture = torch.empty(0)
        for blurred, sharp in self.pairs:
            restored = _restored(network, blurred)
            gains.append(_psnr(restored, sharp) - _psnr(blurred, sharp))
            kept.append(_psnr(_restored(network, sharp), sharp))
            if not len(picture):
                picture = _side_by_side(blurred, restored, sharp)
        scores = Scores(_mean(gains), _mean(kept), _dead(network, self.pairs[0][0]))
        return scores, picture


class ByLength(Validation):
    """Held-out pairs of which the motion is known, equally many of each of LENGTHS, in its order.

    A guided network sees it as it is, as it would be measured, and not at all; its gain is that of
    motion as measured. Sharp pictures are given no motion, and a false one. films: frames with what
    is known of those around them, which a guided network sees, too, and each by itself.
    """

    def __init__(self, batch: Batch, films: Batch | None = None) -> None:
        super().__init__(list(batch.blurred), list(batch.sharp))
        assert batch.motion is not None
        generator = torch.Generator().manual_seed(1)
        measured = with_errors(batch.motion, MotionErrors(none_share=0), generator)
        self.motions = {"exact": batch.motion, "measured": measured, "none": None}
        self.films = films
        self.lengths = [length for length in LENGTHS for _ in range(len(measured) // len(LENGTHS))]

    def score(self, network: Network) -> tuple[Scores, Tensor]:
        """The scores and a picture, as `Validation` gives them; more holds the gain by length and
        kind of motion (exact_8_db …), and for a guided network sharp_false_db; with films also the
        gain on them with neighbours and without, film_db and film_single_db.
        """
        before = [_psnr(blurred, sharp) for blurred, sharp in self.pairs]
        kinds = self.motions if network.guided else {"none": None}
        more: dict[str, float] = {}
        means: dict[str, float] = {}
        for kind, motion in kinds.items():
            gains = [
                _psnr(_restored(network, blurred, _nth(motion, i)), sharp) - before[i]
                for i, (blurred, sharp) in enumerate(self.pairs)
            ]
            means[kind] = more[f"{kind}_db"] = _mean(gains)
            for length in LENGTHS:
                of_it = [g for g, at in zip(gains, self.lengths, strict=True) if at == length]
                more[f"{kind}_{length}_db"] = _mean(of_it)
        some = [sharp for _, sharp in self.pairs[:: len(LENGTHS)]]
        kept = _mean([_psnr(_restored(network, sharp), sharp) for sharp in some])
        if network.guided:
            told = [_false_motion(i, len(some)) for i in range(len(some))]
            more["sharp_false_db"] = _mean(
                [_psnr(_restored(network, s, m), s) for s, m in zip(some, told, strict=True)]
            )
            if self.films is not None:
                more |= _on_films(network, self.films)
        longest = len(self.pairs) - 1
        blurred, sharp = self.pairs[longest]
        restored = _restored(network, blurred, _nth(self.motions["measured"], longest))
        gain = means["measured" if network.guided else "none"]
        scores = Scores(gain, kept, _dead(network, blurred), more)
        return scores, _side_by_side(blurred, restored, sharp)


class Both(Validation):
    """Pairs to watch, whose gain counts, beside pairs of known motion."""

    def __init__(self, watched: Validation, known: ByLength) -> None:
        self.watched, self.known = watched, known

    def score(self, network: Network) -> tuple[Scores, Tensor]:
        """The scores and a picture of the watched pairs; more as of the others."""
        scores, picture = self.watched.score(network)
        return replace(scores, more=self.known.score(network)[0].more), picture


def run_recipe(
    recipe: Recipe,
    settings: RunSettings,
    *,
    run: RunOptions | None = None,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train as the recipe says, writing into the run's folder; goes on with a state that is there.

    say: called with a line for every report, by the first process only. InputError, ModelError,
    OutputError, UsageError for data, weights, folders and options that cannot work; Diverged, with
    the last sound weights written, for a run that ran away.
    """
    with _folder_of_run(settings.out):
        return _run(recipe, settings, run or RunOptions(), say, stop)


@contextlib.contextmanager
def _folder_of_run(out: Path) -> Iterator[None]:
    """The run's folder is there; what was made for a run that never began goes again."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be a folder for this run ({error.strerror}): give another --out"
        ) from error
    try:
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()
        raise


def _run(
    recipe: Recipe,
    settings: RunSettings,
    run: RunOptions,
    say: Callable[[str], None],
    stop: Callable[[], bool],
) -> Outcome:
    rank, world = processes()
    state_file = settings.state or settings.out / "state.pt"
    if not state_file.parent.is_dir():
        raise OutputError(f"folder {state_file.parent} does not exist: create it for --state")
    state = read_state(state_file) if state_file.exists() else None
    each = recipe.batch // world
    if run.accumulate > each:
        raise UsageError(
            f"--accumulate is {run.accumulate}, and a process has {each} crops a step: give "
            f"{each} parts or fewer, or a larger --batch"
        )

    family = FAMILIES[spec(recipe.network).family]
    # A GPU blurs photographs itself, and processes beside this one match them; or they read files.
    on_device = settings.data.startswith("synth:") and run.device.type == "cuda"
    source = open_data(
        settings.data,
        batch=recipe.batch,
        crop=recipe.crop,
        seed=settings.seed,
        options=settings.blur,
        augment=settings.augment,
        layout=settings.layout,
        device=run.device if on_device else "cpu",
        pool=recipe.pool,
        errors=recipe.errors,
        # Nobody else looks at them.
        films=recipe.films if family.guided else replace(recipe.films, neighbours=False),
    )
    validation = None if rank else _validation(settings, source)
    steps = recipe.total_steps(source.pairs)
    network, begun_from = _network(recipe, settings, source, state, run.device)
    multiple = network.size_multiple
    for side in (recipe.crop, *(side for _, side in recipe.patches)):
        if side % multiple:
            raise UsageError(
                f"a crop of {side} pixels does not fit {recipe.network!r}: choose a multiple of "
                f"{multiple}, such as {max(multiple, side // multiple * multiple)}"
            )
    teacher = _teacher(settings.teacher) if recipe.teacher_weight else None
    course = Course(steps)
    batches = source.feed(
        workers=settings.workers,
        shard=(rank, world),
        pin=run.device.type == "cuda" and not on_device,
        course=course,
    )
    log = None
    if not rank:
        done = int(state["step"]) if state else 0
        log = RunLog(settings.out, step=done, tensorboard=settings.tensorboard)
        say(_opening(recipe, network, source, steps, run, world, done))
        before = state["recipe"].get("learning_rate") if state else None
        if before not in (None, recipe.learning_rate):
            say(f"the learning rate is {recipe.learning_rate:g} from here on; it was {before:g}")
    last_scored = -1e9 if state is None else float(state["used"])
    scored: Scores | None = None

    def on_report(progress: Progress, kept: Network) -> None:
        nonlocal last_scored, scored
        assert log is not None
        row: dict[str, float | int | None] = {
            "step": progress.step,
            "seconds": round(progress.elapsed, 1),
            "share": round(progress.share, 4),
            "megapixels": round(progress.megapixels, 2),
            "loss": progress.loss,
            "learning_rate": progress.learning_rate,
            "waiting": round(progress.waiting, 4),
            "images_per_second": round(progress.images_per_second, 2),
            "skipped": progress.skipped,
        }
        picture = None
        due = progress.elapsed - last_scored >= settings.validate_seconds
        if due or progress.share >= 1 or stop():
            last_scored = progress.elapsed
            _write_weights(settings.out, recipe, kept)
            if validation is not None:
                scored, picture = validation.score(kept)
                row |= {"gain_db": scored.gain, "sharp_kept_db": scored.sharp_kept}
                row["dead_share"] = round(scored.dead_share, 4)
                row |= {name: round(value, 3) for name, value in scored.more.items()}
        log.add(row, picture)
        say(_line(progress, scored if picture is not None else None))

    try:
        outcome = train(
            network,
            batches,
            recipe,
            run=run,
            steps=steps,
            seed=settings.seed,
            state_file=state_file,
            teacher=teacher,
            on_report=on_report,
            on_share=course.note,
            stop=stop,
        )
    except Diverged as error:
        if not rank and error.outcome is not None:
            weights = _write_weights(settings.out, recipe, error.outcome.network)
            card = _card(recipe, settings, run, error.outcome, source, None, begun_from, world)
            write_card(weights, card)
        raise
    except torch.cuda.OutOfMemoryError as error:
        raise DeviceError(
            f"the memory of {device_name(run.device)} does not hold a step: take --accumulate 2 or "
            "more, --checkpointing, or a smaller --batch or --crop"
        ) from error
    except InputError as error:
        # A loading process hands its traceback over, with the sentence in the last line.
        if "Original Traceback" not in str(error):
            raise
        sentence = str(error).strip().splitlines()[-1].partition(": ")[2]
        # Without its frames, which would keep the loading processes.
        raise InputError(sentence) from error.with_traceback(None)
    finally:
        if log is not None:
            log.close()
    if not rank:
        if validation is not None and scored is None:
            scored, _ = validation.score(outcome.network)
        weights = _write_weights(settings.out, recipe, outcome.network)
        card = _card(recipe, settings, run, outcome, source, scored, begun_from, world)
        write_card(weights, card)
    if world > 1:
        dist.barrier()
    return outcome


def _network(
    recipe: Recipe,
    settings: RunSettings,
    source: Data,
    state: dict[str, Any] | None,
    device: torch.device,
) -> tuple[Network, str]:
    """The network to train, and in words what its weights begin from."""
    if state is not None:
        if state["network"] != recipe.network:
            raise UsageError(
                f"the state there is of {state['network']!r}, the recipe trains "
                f"{recipe.network!r}: give another --out"
            )
        return build(recipe.network, state["config"]), str(state["recipe"].get("init") or "")
    torch.manual_seed(settings.seed)
    init = settings.init or recipe.init
    config = dict(spec(recipe.network).config) | dict(recipe.config)
    if not spec(recipe.network).trained:
        raise UsageError(f"{recipe.network!r} has nothing to train: choose another network")
    if not init:
        if recipe.prune:
            raise UsageError("pruning needs trained weights: give --init FILE")
        network = build(recipe.network, config)
        if recipe.start_well:
            start_well(network)
        if recipe.identity_start:
            network.start_as_identity()
        return network, ""
    if recipe.config:
        raise UsageError("--init brings the network's configuration: leave --config out")
    loaded = load(recipe.network, None if init == "shipped" else init).network
    assert isinstance(loaded, Network)  # it has a name of the catalogue
    network = loaded.requires_grad_(True).train()
    if recipe.revive or recipe.prune:
        network.to(device)
        batches = [source.batch_at(number) for number in range(_SAMPLE_BATCHES)]
        sample = [(batch.blurred.to(device), batch.sharp.to(device)) for batch in batches]
    if recipe.revive:
        count = revive(network, torch.cat([blurred for blurred, _ in sample]).float().div(255))
        init += f", {count} dead channels revived"
    if recipe.prune:
        before = operations(network)
        network = prune(network, recipe.prune, sample).train()
        init += f", pruned to {operations(network) / before:.0%} of its operations"
    return network, init


def _teacher(weights: str | None) -> nn.Module:
    if weights is None:
        raise UsageError("the recipe learns from a teacher: give --teacher FILE")
    return load(weights).network if weights in names() else load(None, weights).network


def validation_of(folder: str, *, layout: str = "auto", most: int = 24) -> Validation:
    """Pairs of a folder to score on, whole: of its own split for that, or of all; `most`, evenly
    spread. InputError where there are none.
    """
    found = recognise(Path(folder), layout=layout)
    pairs = find_pairs(
        Path(folder), layout=found.name, split=found.validation() or found.training()
    )
    some = pairs[:: max(1, len(pairs) // most)][:most]
    pictures = [
        [torch.from_numpy(load_picture(path)).permute(2, 0, 1) for path in (p.blurred, p.sharp)]
        for p in some
    ]
    if not pictures:
        raise InputError(f"{folder} has no pairs to score on: give a folder of pairs")
    return Validation([b for b, _ in pictures], [s for _, s in pictures])


def _validation(settings: RunSettings, source: Data) -> Validation | None:
    watched = None if settings.val is None else validation_of(settings.val)
    if watched is not None and not settings.data.startswith("synth:"):
        return watched
    pairs = source.held_out()
    if pairs is None:
        return watched
    if pairs.motion is None:
        return Validation(list(pairs.blurred), list(pairs.sharp))
    known = ByLength(pairs, source.held_out_films())
    return known if watched is None else Both(watched, known)


def _write_weights(out: Path, recipe: Recipe, network: Network) -> Path:
    weights = out / "weights.safetensors"
    family = spec(recipe.network).family
    save_weights(weights, network.state_dict(), network=family, config=network.config)
    return weights


def _card(
    recipe: Recipe,
    settings: RunSettings,
    run: RunOptions,
    outcome: Outcome,
    source: Data,
    scored: Scores | None,
    begun_from: str,
    world: int,
) -> dict[str, Any]:
    network, progress = outcome.network, outcome.progress
    rows = [row for row in read_metrics(settings.out / METRICS) if "gain_db" in row]
    card: dict[str, Any] = {
        "network": recipe.network,
        "config": dict(network.config),
        "parameters": sum(p.numel() for p in network.parameters()),
        "operations_per_pixel": round(operations(network) / 256**2),
        "date": datetime.date.today().isoformat(),
        "data": {"training": source.summary, "validation": settings.val or source.held_out_summary},
        "recipe": facts(replace(recipe, init=begun_from))
        | {"teacher": settings.teacher or "", "seed": settings.seed}
        | ({"blur": dataclasses.asdict(settings.blur)} if settings.blur else {})
        | ({"augment": dataclasses.asdict(settings.augment)} if settings.augment else {}),
        "steps": progress.step,
        "megapixels": round(progress.megapixels, 1),
        "wall_seconds": round(progress.elapsed, 1),
        "finished": outcome.finished,
        "device": f"{world} × {device_name(run.device)}, {run.precision}",
        "torch": torch.__version__,
        "curve": {
            "columns": ["seconds", "step", "gain dB", "sharp kept dB"],
            "rows": [
                [r["seconds"], r["step"], round(r["gain_db"], 3), round(r["sharp_kept_db"], 1)]
                for r in rows
            ],
        },
    }
    if scored is not None:
        card["scores"] = {
            "validation_gain_db": round(scored.gain, 3),
            "validation_sharp_kept_db": round(scored.sharp_kept, 1),
            "dead_channels_share": round(scored.dead_share, 3),
        } | {f"synthetic_{name}": round(value, 3) for name, value in scored.more.items()}
    return card


def device_name(device: torch.device) -> str:
    """The device in words: a GPU's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.get_num_threads()} threads)"


def _opening(
    recipe: Recipe,
    network: Network,
    source: Data,
    steps: int | None,
    run: RunOptions,
    world: int,
    done: int,
) -> str:
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    length = f"{recipe.seconds:g} s" if recipe.seconds else f"{steps} steps"
    return (
        f"{recipe.name}: {recipe.network}, {parameters:.2f} M parameters, "
        f"{operations(network) / 256**2 / 1e3:.1f} k operations a pixel; {source.summary}; "
        f"{length} on {world} × {device_name(run.device)}, {run.precision}"
        + (f"; goes on at step {done}" if done else "")
    )


def _line(progress: Progress, scores: Scores | None) -> str:
    line = (
        f"{progress.elapsed:7.0f} s {progress.share:4.0%}  step {progress.step}  "
        f"{progress.megapixels:.1f} Mpx  loss {progress.loss:.4f}  "
        f"lr {progress.learning_rate:.1e}  {progress.images_per_second:.1f} images/s  "
        f"waiting {progress.waiting:.0%}"
    )
    if progress.skipped:
        line += f"  {progress.skipped} steps skipped (gradient not finite)"
    if scores is not None:
        line += f"  gain {scores.gain:+.3f} dB  sharp kept to {scores.sharp_kept:.1f} dB"
        if "exact_db" in scores.more:
            line += "  of exact motion " + " ".join(
                f"{scores.more[f'exact_{length}_db']:+.2f} ({length} px)" for length in LENGTHS
            )
        if "film_db" in scores.more:
            line += (
                f"  films {scores.more['film_db']:+.2f} dB, {scores.more['film_single_db']:+.2f} "
                "frame by frame"
            )
        if scores.dead_share > 0.1:
            line += f"  {scores.dead_share:.0%} of the channels are dead"
    return line


@torch.no_grad()
def _restored(
    network: Network,
    picture: Tensor,
    motion: Tensor | None = None,
    around: Tensor | None = None,
) -> Tensor:
    """(3, H, W) uint8 → the same, through the network, padded to what it takes.

    motion (4, h, w): what a guided network is told, and no other, of a picture of a size that it
    takes; None is read off the picture. around: what it sees of the frames before and after, as
    `taps.neighbour` gives it, (2, C, H, W).
    """
    height, width = picture.shape[-2:]
    device = next(network.parameters()).device
    x = _fitting(network, picture.to(device))
    if getattr(network, "guided", False):
        told = motion_shown(x) if motion is None else motion[None].to(device)
        before_after = None
        if around is not None:
            before, after = around[:, None].to(device)
            before_after = before, after
        x = taps.with_guidance(x, told, before_after)
    restored: Tensor = network(x)[0, :, :height, :width]
    return restored.float().clamp(0, 1).mul(255).round().byte().cpu()


def _on_films(network: Network, films: Batch) -> dict[str, float]:
    """The mean gain on frames with their neighbours, and on each by itself."""
    assert films.motion is not None
    assert films.around is not None
    gains: dict[str, list[float]] = {"film_db": [], "film_single_db": []}
    for i, (blurred, sharp) in enumerate(zip(films.blurred, films.sharp, strict=True)):
        known = {"film_db": films.around[:, i], "film_single_db": None}
        for name, around in known.items():
            restored = _restored(network, blurred, films.motion[i], around)
            gains[name].append(_psnr(restored, sharp) - _psnr(blurred, sharp))
    return {name: _mean(each) for name, each in gains.items()}


def _nth(motion: Tensor | None, number: int) -> Tensor | None:
    return None if motion is None else motion[number]


def _false_motion(number: int, count: int) -> Tensor:
    """A straight motion of 8 to 32 pixels, the same everywhere: (4, 1, 1)."""
    far, angle = 8 + 24 * number / max(count - 1, 1), 2.4 * number
    return torch.tensor([far * math.cos(angle), far * math.sin(angle), 0, 0]).view(4, 1, 1)


def _dead(network: Network, picture: Tensor) -> float:
    device = next(network.parameters()).device
    return dead_share(network, _fitting(network, picture.to(device)))


def _side_by_side(*pictures: Tensor) -> Tensor:
    """(3, H, W) uint8 each → (3, H, n·W) in 0..1."""
    return torch.cat(pictures, dim=2).float().div(255)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _fitting(network: Network, picture: Tensor) -> Tensor:
    """(3, H, W) uint8 → (1, 3, H', W') in 0..1, padded to what the network takes."""
    bottom, right = (-side % network.size_multiple for side in picture.shape[-2:])
    return F.pad(picture[None].float().div(255), (0, right, 0, bottom), mode="replicate")


def _psnr(a: Tensor, b: Tensor) -> float:
    error = float((a.double() - b.double()).square().mean())
    return 99.0 if error == 0 else min(99.0, 10 * float(np.log10(255.0**2 / error)))
