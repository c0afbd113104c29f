"""A whole run: open data, build a network, train it, score it, write it with its card.

`vdeblur train` is this with options; knows no command line.

A run's folder holds weights.safetensors and weights.json (the model card), metrics.jsonl, and
state.pt to resume from.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vdeblur.datasets.augmentation import Augment
from vdeblur.datasets.batches import LENGTHS, Course, Data, DataOptions
from vdeblur.datasets.blur_options import BlurOptions
from vdeblur.datasets.training_data import open_data
from vdeblur.errors import DeviceError, InputError, OutputError, UsageError
from vdeblur.inference.devices import described, device_name, has_streams, is_out_of_memory
from vdeblur.networks import FAMILIES, build, names, spec
from vdeblur.networks.base import Network
from vdeblur.networks.cost import operations
from vdeblur.networks.limits import limited_building
from vdeblur.system.files import folder_made
from vdeblur.training.dead_channels import revive, start_well
from vdeblur.training.divergence import Diverged
from vdeblur.training.model_card import (
    WEIGHTS,
    Provenance,
    write_card_of_run,
    write_weights,
)
from vdeblur.training.options import Callbacks, Outcome, Progress, RunOptions
from vdeblur.training.processes import processes
from vdeblur.training.pruning import prune
from vdeblur.training.recipes import Recipe
from vdeblur.training.run_log import METRICS, RunLog
from vdeblur.training.state import StateFile, read_state
from vdeblur.training.trainer import Batches, train
from vdeblur.training.validation import Validation, ValidationScores, validation_for
from vdeblur.weights import load

_SAMPLE_BATCHES = 8  # for measuring channels (dead, or of little use): a few dozen crops


@dataclass(frozen=True)
class RunSettings:
    """What a run consists of, beside its recipe.

    Args:
        data: A folder of pairs, or "synth:DIR" for pairs made from the photographs in DIR.
        out: The folder of the run; created if missing.
        state: The state file, if not out/state.pt.
        val: A folder of pairs to score on.
        init: Weights to start from, before the recipe's own: a file, or "shipped".
        teacher: A weights file, or a name of the catalog.
        seed: Seed of the batches and of the first weights.
        workers: Processes that make or load batches.
        validate_seconds: Time between scores of the held-out pictures, at which the weights are
            written too.
        tensorboard: Whether to write curves and pictures for TensorBoard.
        blur: How photographs are blurred.
        augment: How pictures are varied.
        layout: Layout of a folder of pairs, see `vdeblur.datasets.layouts.LAYOUTS`.
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

    @property
    def synthetic(self) -> bool:
        """Whether pairs are made from photographs."""
        return self.data.startswith("synth:")

    @property
    def state_file(self) -> Path:
        """Where the state is."""
        return self.state or self.out / "state.pt"


def run_recipe(
    recipe: Recipe,
    settings: RunSettings,
    *,
    run: RunOptions | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train by a recipe, writing into the run's folder; resumes from a state that is there.

    Args:
        recipe: What decides the weights.
        settings: Data, folder and everything else that the run consists of.
        run: How the run is carried out; one CPU process in fp32 by default.
        on_message: Receives a line of text for the start and for every report, in the first process
            only.
        stop: Asked after every step; True ends the run with its state saved.

    Returns:
        The trained network; its weights and their card are in the folder.

    Raises:
        InputError: Data or state cannot be read.
        ModelError: Starting weights or teacher cannot be used.
        OutputError: The folder or a file in it cannot be written.
        UsageError: Options contradict each other, or belong to another run than the state.
        DeviceError: The GPU's memory does not hold a step.
        Diverged: The run ran away; the last sound weights are written.
    """
    run = run or RunOptions()
    _check_folder(settings)
    with _folder_of_run(settings.out):
        prepared = _prepare(recipe, settings, run)
        reporter = None if prepared.rank else Reporter(prepared, on_message, stop)
        try:
            with _plain_errors(run.device):
                if reporter is not None:
                    reporter.begin()
                outcome = _train(prepared, reporter, stop)
        except Diverged as error:
            if reporter is not None and error.outcome is not None:
                reporter.write(error.outcome, None)
            raise
        finally:
            if reporter is not None:
                reporter.close()
        return _finish(prepared, reporter, outcome)


@dataclass(frozen=True)
class Run:
    """A run whose data is open and whose network is built."""

    recipe: Recipe
    settings: RunSettings
    options: RunOptions
    source: Data
    validation: Validation | None  # None in all processes but the first, too
    steps: int | None  # None if the run is counted in seconds
    network: Network
    begun_from: str  # description of the starting weights
    teacher: nn.Module | None
    course: Course
    batches: Batches
    state: dict[str, Any] | None  # the state that the run resumes from
    rank: int
    world: int


def _prepare(recipe: Recipe, settings: RunSettings, options: RunOptions) -> Run:
    """Check the options, open the data and build the network."""
    rank, world = processes()
    folder = settings.state_file.parent
    if not folder.is_dir():
        raise OutputError(f"folder {folder} does not exist: create it for `state`")
    state = read_state(settings.state_file) if settings.state_file.exists() else None
    each = recipe.batch // world
    if options.accumulate > each:
        raise UsageError(
            f"`accumulate` is {options.accumulate}, and a process has {each} crops a step: give "
            f"{each} parts or fewer, or a larger `batch`"
        )
    # A GPU blurs photographs itself, while processes beside this one match frames or read files.
    on_device = settings.synthetic and options.device.type == "cuda"
    source = _open(recipe, settings, options.device if on_device else torch.device("cpu"))
    validation = None
    if not rank:
        validation = validation_for(source, settings.val, synthetic=settings.synthetic)
    steps = recipe.total_steps(source.pairs)
    network, begun_from = _network(recipe, settings, source, state, options.device)
    _check_sides(recipe, network)
    course = Course(steps)
    return Run(
        recipe=recipe,
        settings=settings,
        options=options,
        source=source,
        validation=validation,
        steps=steps,
        network=network,
        begun_from=begun_from,
        teacher=_teacher(settings.teacher) if recipe.teacher_weight else None,
        course=course,
        batches=source.feed(
            workers=settings.workers,
            shard=(rank, world),
            pin=has_streams(options.device) and not on_device,
            course=course,
        ),
        state=state,
        rank=rank,
        world=world,
    )


def _open(recipe: Recipe, settings: RunSettings, device: torch.device) -> Data:
    guided = FAMILIES[spec(recipe.network).family].guided
    options = DataOptions(
        batch=recipe.batch,
        crop=recipe.crop,
        seed=settings.seed,
        augment=settings.augment,
        blur=settings.blur or BlurOptions(),
        pool=recipe.pool,
        errors=recipe.errors,
        # Only a guided network looks at neighbors.
        films=recipe.films if guided else replace(recipe.films, neighbours=False),
    )
    return open_data(settings.data, options, layout=settings.layout, device=device)


def _check_sides(recipe: Recipe, network: Network) -> None:
    """Raise UsageError for crops and patches that the network does not accept."""
    multiple = network.size_multiple
    for side in (recipe.crop, *(side for _, side in recipe.patches)):
        if side % multiple:
            raise UsageError(
                f"a crop of {side} pixels does not fit {recipe.network!r}: choose a multiple of "
                f"{multiple}, such as {max(multiple, side // multiple * multiple)}"
            )


def _train(prepared: Run, reporter: Reporter | None, stop: Callable[[], bool]) -> Outcome:
    settings = prepared.settings
    return train(
        prepared.network,
        prepared.batches,
        prepared.recipe,
        run=prepared.options,
        steps=prepared.steps,
        state=StateFile(settings.state_file, settings.seed),
        teacher=prepared.teacher,
        callbacks=Callbacks(
            on_report=None if reporter is None else reporter.report,
            on_share=prepared.course.note,
            stop=stop,
        ),
    )


def _finish(prepared: Run, reporter: Reporter | None, outcome: Outcome) -> Outcome:
    """Score the network if no report did, and write it with its card."""
    if reporter is not None:
        if prepared.validation is not None and reporter.scores is None:
            reporter.scores, _ = prepared.validation.score(outcome.network)
        reporter.write(outcome, reporter.scores)
    if prepared.world > 1:
        dist.barrier()
    return outcome


class Reporter:
    """Writes what becomes known of a run: messages, metrics, weights and their card.

    Args:
        run: The run.
        on_message: Receives a line of text for the start and for every report.
        stop: Whether the run is about to stop: then the weights are scored and written.

    Attributes:
        scores: The last scores; None before the first.
    """

    def __init__(
        self, run: Run, on_message: Callable[[str], None], stop: Callable[[], bool]
    ) -> None:
        self._run, self._on_message, self._stop = run, on_message, stop
        self.scores: ValidationScores | None = None
        self._scored = -1e9 if run.state is None else float(run.state["used"])
        done = int(run.state["step"]) if run.state else 0
        self._log = RunLog(run.settings.out, step=done, tensorboard=run.settings.tensorboard)
        on_message(_opening(run, done))
        rate = run.recipe.learning_rate
        before = run.state["recipe"].get("learning_rate") if run.state else None
        if before not in (None, rate):
            on_message(f"the learning rate is {rate:g} from here on; it was {before:g}")

    def begin(self) -> None:
        """Score the weights that a new run begins from, to see whether it improves on them."""
        run = self._run
        if run.state is not None or not run.begun_from or run.validation is None:
            return
        scores, _ = run.validation.score(run.network.to(run.options.device).eval())
        self._log.add({"step": 0, "seconds": 0.0, "share": 0.0} | _scores_row(scores))
        self._on_message(f"at the start:{_in_words(scores)}")

    def report(self, progress: Progress, kept: Network) -> None:
        """Log a report; from time to time, score the network and write its weights."""
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
        scores = picture = None
        due = progress.elapsed - self._scored >= self._run.settings.validate_seconds
        if due or progress.share >= 1 or self._stop():
            self._scored = progress.elapsed
            write_weights(self._run.settings.out, self._run.recipe, kept)
            if self._run.validation is not None:
                scores, picture = self._run.validation.score(kept)
                self.scores = scores
                row |= _scores_row(scores)
        self._log.add(row, picture)
        self._on_message(_line(progress, scores))

    def write(self, outcome: Outcome, scores: ValidationScores | None) -> None:
        """Write the outcome's weights and their card."""
        run, settings = self._run, self._run.settings
        provenance = Provenance(
            training=run.source.summary,
            validation=settings.val or run.source.held_out_summary,
            settings={"init": run.begun_from, "teacher": settings.teacher or ""}
            | {"seed": settings.seed}
            | ({"blur": dataclasses.asdict(settings.blur)} if settings.blur else {})
            | ({"augment": dataclasses.asdict(settings.augment)} if settings.augment else {}),
            device=_device(run),
        )
        weights = write_weights(settings.out, run.recipe, outcome.network)
        write_card_of_run(weights, run.recipe, outcome, provenance, scores, settings.out / METRICS)

    def close(self) -> None:
        """Close the log."""
        self._log.close()


def _check_folder(settings: RunSettings) -> None:
    """Check that the weights in a run's folder are its own.

    Raises:
        OutputError: They are others.
    """
    earlier = (settings.state_file, settings.out / METRICS)
    if (settings.out / WEIGHTS).exists() and not any(file.exists() for file in earlier):
        raise OutputError(
            f"{settings.out} holds {WEIGHTS}, which is of no run there: give another `out`, or "
            "move it away"
        )


@contextlib.contextmanager
def _folder_of_run(out: Path) -> Iterator[None]:
    """Create the run's folder; remove it again if the run never began."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_made(out))
        except OSError as error:
            raise OutputError(
                f"{out} cannot be a folder for this run ({error.strerror}): give another `out`"
            ) from error
        yield


@contextlib.contextmanager
def _plain_errors(device: torch.device) -> Iterator[None]:
    """Turn errors of torch and of loading processes into sentences."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"the memory of {device_name(device)} does not hold a step: take `accumulate=2` or "
            "more, `checkpointing=True`, or a smaller `batch` or `crop`"
        ) from error
    except InputError as error:
        # A loading process passes on its traceback, with the sentence in the last line.
        if "Original Traceback" not in str(error):
            raise
        sentence = str(error).strip().splitlines()[-1].partition(": ")[2]
        # Without its frames, which would keep the loading processes alive.
        raise InputError(sentence) from error.with_traceback(None)


def _network(
    recipe: Recipe,
    settings: RunSettings,
    source: Data,
    state: dict[str, Any] | None,
    device: torch.device,
) -> tuple[Network, str]:
    """The network to train, and a description of its starting weights."""
    if state is not None:
        if state["network"] != recipe.network:
            raise UsageError(
                f"the state there is of {state['network']!r}, the recipe trains "
                f"{recipe.network!r}: give another `out`"
            )
        with limited_building(len(state["model"]), sum(t.numel() for t in state["model"].values())):
            network = build(recipe.network, state["config"])
        return network, str(state["recipe"].get("init") or "")
    torch.manual_seed(settings.seed)
    init = settings.init or recipe.init
    config = dict(spec(recipe.network).config) | dict(recipe.config)
    if not spec(recipe.network).trained:
        raise UsageError(f"{recipe.network!r} has nothing to train: choose another network")
    if not init:
        if recipe.prune:
            raise UsageError("pruning needs trained weights: give `init=FILE`")
        network = build(recipe.network, config)
        if recipe.start_well:
            start_well(network)
        if recipe.identity_start:
            network.start_as_identity()
        return network, ""
    if recipe.config:
        raise UsageError("`init` brings the network's configuration: leave `config` out")
    loaded = load(recipe.network, None if init == "shipped" else init).network
    assert isinstance(loaded, Network)  # a network of the catalog
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
        raise UsageError("the recipe learns from a teacher: give `teacher=FILE`")
    return load(weights).network if weights in names() else load(None, weights).network


def _device(run: Run) -> str:
    return f"{run.world} × {described(run.options.device)}, {run.options.precision}"


def _opening(run: Run, done: int) -> str:
    """The first message of a run that resumes at step `done`, or starts."""
    recipe, network = run.recipe, run.network
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    length = f"{recipe.seconds:g} s" if recipe.seconds else f"{run.steps} steps"
    return (
        f"{recipe.name}: {recipe.network}, {parameters:.2f} M parameters, "
        f"{operations(network) / 256**2 / 1e3:.1f} k operations a pixel; {run.source.summary}; "
        f"{length} on {_device(run)}" + (f"; goes on at step {done}" if done else "")
    )


def _line(progress: Progress, scores: ValidationScores | None) -> str:
    """The message of a report."""
    line = (
        f"{progress.elapsed:7.0f} s {progress.share:4.0%}  step {progress.step}  "
        f"{progress.megapixels:.1f} Mpx  loss {progress.loss:.4f}  "
        f"lr {progress.learning_rate:.1e}  {progress.images_per_second:.1f} images/s  "
        f"waiting {progress.waiting:.0%}"
    )
    if progress.skipped:
        line += f"  {progress.skipped} steps skipped (gradient not finite)"
    return line if scores is None else line + _in_words(scores)


def _in_words(scores: ValidationScores) -> str:
    """The part of a message that states scores."""
    line = f"  gain {scores.gain:+.3f} dB  sharp kept to {scores.sharp_kept:.1f} dB"
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


def _scores_row(scores: ValidationScores) -> dict[str, float]:
    """Scores as values of metrics.jsonl."""
    return {
        "gain_db": scores.gain,
        "sharp_kept_db": scores.sharp_kept,
        "dead_share": round(scores.dead_share, 4),
    } | {name: round(value, 3) for name, value in scores.more.items()}
