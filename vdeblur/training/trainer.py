"""The training loop: a recipe and batches in, weights out; it stops and resumes at any moment.

Serves one process or, under torchrun, several. Knows no files but its own state, and not where
batches come from: it asks for those from a given step on, so that a resumed run sees what an
unbroken one would have seen.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdeblur.datasets.pool import Batch
from vdeblur.errors import InputError, OutputError, UsageError, VdeblurError
from vdeblur.motion.single_picture import motion_shown
from vdeblur.networks import taps
from vdeblur.networks.base import Network
from vdeblur.system.files import replacing
from vdeblur.training.distillation import distance_to_teacher
from vdeblur.training.losses import multi_scale, parse_loss, scale_weights
from vdeblur.training.recipes import Recipe, difference, facts

#: A function of a step's number, giving the batches from it on: `Batch`, or (blurred, sharp).
Batches = Callable[[int], Iterable[Batch | tuple[Tensor, Tensor]]]

_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_HOPELESS = 30  # wild steps in a row end a run; fp16's scale has fallen by 2³⁰ by then
_SUSPECT = 10  # wild steps in a row after which nothing is saved at the end either
_WILD = 10.0  # times the lowest mean loss; of the first step's loss, a hundred times that
_MEAN_STEPS = 32
_LEAST_LOSS = 1e-4  # a loss below needs not be told from one ten times as high


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; none of it changes what is learned, but for rounding.

    precision: "fp32", "bf16", "fp16" (automatic mixed precision). checkpointing: forget activations
    and compute them again, for memory. accumulate: parts in which a batch goes through the network,
    for memory; the gradient is that of the whole. report_seconds, report_steps: a report and a
    saved state after so long, or so many steps when not 0.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "fp32"
    channels_last: bool = True
    compile: bool = False
    checkpointing: bool = False
    accumulate: int = 1
    report_seconds: float = 60.0
    report_steps: int = 0

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is none of {', '.join(_PRECISIONS)}")
        if self.accumulate < 1:
            raise UsageError(f"a batch in {self.accumulate} parts cannot be: give 1 or more")


@dataclass(frozen=True)
class Progress:
    """One report. elapsed: seconds of all runs together; share: of the run's length; loss: mean
    since the last report, of this process; waiting: share of the time spent waiting for data;
    skipped: steps without a finite gradient since the last report.
    """

    elapsed: float
    step: int
    share: float
    megapixels: float
    loss: float
    learning_rate: float
    waiting: float
    images_per_second: float
    skipped: int


@dataclass(frozen=True)
class Outcome:
    """What a run ends with: the weights to keep, the last ones, and whether it reached its end."""

    network: Network
    last: Network
    progress: Progress
    finished: bool


class Diverged(VdeblurError):
    """Training ran away. outcome: the network as it last was sound; None if it never was."""

    def __init__(self, message: str, outcome: Outcome | None) -> None:
        super().__init__(message)
        self.outcome = outcome


class _Watch:
    """How many steps in a row were wild: without a finite gradient, or of a loss far above what it
    had been. One such step is bad luck with a picture; many are a network that is lost.
    """

    def __init__(self) -> None:
        self.in_a_row, self.limit = 0, math.inf
        self._mean, self._steps = 0.0, 0

    def see(self, loss: float, *, finite: bool) -> None:
        if not finite or loss > self.limit:
            self.in_a_row += 1
            return
        self.in_a_row = 0
        self._steps += 1
        self._mean += (loss - self._mean) / min(self._steps, _MEAN_STEPS)
        if self._steps == 1:
            self.limit = 100 * _WILD * max(loss, 10 * _LEAST_LOSS)
        if self._steps >= _MEAN_STEPS:
            self.limit = min(self.limit, _WILD * max(self._mean, _LEAST_LOSS))


class _Scales(nn.Module):
    """forward_scales behind forward, which is what DDP and torch.compile wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network.forward_scales(x)


def processes() -> tuple[int, int]:
    """(this process's number, how many there are); (0, 1) outside torchrun."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def cut(image: Tensor, side: int) -> Tensor:
    """Squares of `side` from (N, C, H, W), as many as fit, centred: (N·k, C, side, side)."""
    n, c, height, width = image.shape
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    part = image[..., top : top + rows * side, left : left + columns * side]
    tiles = part.reshape(n, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, c, side, side)


def with_sharp_input(blurred: Tensor, sharp: Tensor, *, first: int, share: float) -> Tensor:
    """`blurred` with a share of its pictures replaced by their targets, evenly.

    first: how many pictures came before. The choice depends on nothing else, so that a resumed run
    makes the same.
    """
    numbers = torch.arange(first, first + len(blurred), dtype=torch.float64)
    chosen = ((numbers + 1) * share).floor() > (numbers * share).floor()
    return torch.where(chosen.to(blurred.device)[:, None, None, None], sharp, blurred)


def forget_activations(network: nn.Module) -> None:
    """Have the network's stages compute their activations again in the backward pass.

    A stage is an outermost module of two convolutions or more below the network (lists of modules
    are looked into). See Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
    """
    for child in network.children():
        convolutions = sum(
            isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) for m in child.modules()
        )
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            forget_activations(child)
        elif convolutions >= 2:
            # An attribute of the instance: state dicts and the class stay as they are.
            child.forward = functools.partial(checkpoint, child.forward, use_reentrant=False)


def train(
    network: Network,
    batches: Batches,
    recipe: Recipe,
    *,
    run: RunOptions | None = None,
    steps: int | None = None,
    seed: int = 0,
    state_file: Path | None = None,
    teacher: nn.Module | None = None,
    on_report: Callable[[Progress, Network], None] | None = None,
    on_share: Callable[[float], None] = lambda share: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train `network` in place to the end of the recipe.

    batches: called with a step's number, gives the batches from it on, those of this process where
    there are several; giving no more of them ends the run early. A guided network sees the motion
    of a batch that has one, and the frames around it. steps: the length, where the recipe counts
    epochs. teacher: any network, RGB to RGB. state_file: written at every report (under a temporary
    name first) and resumed from when it exists; seed is held to the one in it, the learning rate is
    not.
    on_share: called before every step with the share of the run that is done. stop: asked after
    every step.
    Under torchrun the reports and the state are the first process's.
    InputError for a state that is damaged, UsageError for another recipe's, OutputError when it
    cannot be written; Diverged when the loss or the gradient stays infinite, or the loss far above
    what it was: state and reports then end with the last sound ones.
    """
    run = run or RunOptions()
    rank, world = processes()
    device = run.device
    steps = steps or recipe.steps or None
    if not steps and not recipe.seconds:
        raise UsageError("a run needs a length: give seconds or steps")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # crops are of one size
    if recipe.teacher_weight and teacher is None:
        raise UsageError("the recipe has a teacher's weight but no teacher: give --teacher FILE")
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    network.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    if teacher is not None:
        teacher.to(device=device, memory_format=layout).eval()  # type: ignore[call-overload]
        teacher.requires_grad_(False)
    parameters = [p for p in network.parameters() if p.requires_grad]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
    fused = True if device.type == "cuda" else None  # all parameters in one launch
    optimiser: torch.optim.Optimizer = kind(
        parameters,
        lr=recipe.learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
    dtype = _PRECISIONS[run.precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    used, step, updates, images, pixels = 0.0, 0, 0, 0, 0.0
    random_state: Tensor | None = None
    if state_file is not None and state_file.exists():
        state = read_state(state_file)
        _check_same_run(state, recipe, network, seed, state_file)
        network.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for group in state["optimiser"]["param_groups"]:
            group["fused"] = fused  # as it is here, not where the state was saved
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        used, step, updates = (state[k] for k in ("used", "step", "updates"))
        images, pixels = state["images"], state["pixels"]
        random_state = state["random"]

    if run.checkpointing:
        forget_activations(network)
    model: Any = _Scales(network)
    if run.compile:
        model = torch.compile(model)
    if world > 1:
        ids = [device.index or 0] if device.type == "cuda" else None
        model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    terms = parse_loss(recipe.loss)

    def share_done() -> float:
        return used / recipe.seconds if recipe.seconds else step / steps if steps else 1.0

    def save() -> None:
        if state_file is None or rank:
            return
        content = {
            "model": network.state_dict(),
            "averaged": averaged.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scaler": scaler.state_dict(),
            "network": recipe.network,
            "config": dict(network.config),
            "recipe": facts(recipe),
            "seed": seed,
            "used": used,
            "step": step,
            "updates": updates,
            "images": images,
            "pixels": pixels,
            "random": torch.get_rng_state(),
        }
        try:
            with replacing(state_file) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError) as error:  # torch's own, of a full disk
            reason = getattr(error, "strerror", None) or "is the disk full?"
            raise OutputError(
                f"{state_file} cannot be written ({reason}): the run goes on from its last state "
                "when there is room"
            ) from error

    guided = network.guided or getattr(teacher, "guided", False)

    def losses_of(x: Tensor, y: Tensor, weights_at: float) -> Tensor:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs: Sequence[Tensor] = model(x if network.guided else x[:, :3])
        weights = scale_weights(
            outputs, recipe.scales, share=weights_at, coarse_first=recipe.coarse_first
        )
        loss = multi_scale(outputs, y, terms, weights)
        if teacher is not None and recipe.teacher_weight:
            with (
                torch.no_grad(),
                torch.autocast(device.type, dtype=dtype, enabled=dtype is not None),
            ):
                taught = _taught(teacher, x)
            loss = loss + recipe.teacher_weight * distance_to_teacher(outputs, taught, weights)
        return loss

    def update(blurred: Tensor, sharp: Tensor, share: float) -> tuple[float, bool]:
        """One change of the weights: the loss, and whether it and its gradient are finite."""
        blurred = blurred.contiguous(memory_format=layout)
        optimiser.zero_grad(set_to_none=True)
        parts = min(run.accumulate, len(blurred))
        chunks = list(zip(blurred.chunk(parts), sharp.chunk(parts), strict=True))
        losses = []
        for number, (x, y) in enumerate(chunks):
            last_part = number == len(chunks) - 1
            with contextlib.nullcontext() if world == 1 or last_part else model.no_sync():
                loss = losses_of(x, y, share) * (len(x) / len(blurred))
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip or math.inf)
        # The one wait for the device, so that times are those of the work.
        value, size = torch.stack([torch.stack(losses).sum(), norm.to(losses[0])]).tolist()
        finite = math.isfinite(value) and math.isfinite(size)
        if finite:
            scaler.step(optimiser)
        else:
            optimiser.zero_grad(set_to_none=True)
        scaler.update()
        return value, finite

    began = reported = time.monotonic()
    used_before = used
    waiting, total, counted, skipped, seen, rate = 0.0, 0.0, 0, 0, images, 0.0
    reported_step = step
    watch = _Watch()
    kept = averaged if recipe.ema else network
    finished = share_done() >= 1
    progress = Progress(used, step, share_done(), pixels / 1e6, math.nan, 0.0, 0.0, 0.0, 0)
    if finished:
        return Outcome(kept, network, progress, True)
    sound: dict[str, Tensor] | None = _copied(kept) if step else None
    on_share(share_done())
    iterator = iter(batches(step))
    if random_state is not None:
        # After the loader has drawn its own seed: whatever the network draws goes on as it was.
        torch.set_rng_state(random_state)
    with contextlib.ExitStack() as leaving:
        # Whatever makes batches beside this thread ends with the run, however that ends.
        leaving.callback(getattr(iterator, "close", lambda: None))
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            waiting += time.monotonic() - asked
            if not _all_have(batch is not None, device):
                finished = True
            else:
                assert batch is not None
                share = share_done()
                on_share(share)
                rate = recipe.schedule.rate(recipe.learning_rate, share)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                given = Batch(*batch)
                blurred, sharp = (_as_float(p.to(device, non_blocking=True)) for p in given[:2])
                if recipe.keep_sharp:
                    first = images + rank * len(blurred)
                    blurred = with_sharp_input(blurred, sharp, first=first, share=recipe.keep_sharp)
                images += len(blurred) * world
                if guided:
                    # Pairs of files know no motion: it is read off the pictures, as of single ones.
                    motion = motion_shown(blurred) if given.motion is None else given.motion
                    if motion is not None:
                        with torch.no_grad():
                            moved = motion.to(device, non_blocking=True)
                            around = None
                            if given.around is not None:
                                before, after = given.around.to(device, non_blocking=True)
                                around = before, after
                            blurred = taps.with_guidance(blurred, moved, around)
                if side := _patch_side(recipe, share):
                    blurred, sharp = cut(blurred, side), cut(sharp, side)
                step, pixels = step + 1, pixels + blurred[:, 0].numel() * world
                count = min(_at(recipe.updates, share, 1), len(blurred))
                for part in zip(blurred.chunk(count), sharp.chunk(count), strict=True):
                    loss_value, finite = update(*part, share)
                    if finite:
                        total, counted = total + loss_value, counted + 1
                    else:
                        skipped += 1
                    watch.see(loss_value, finite=finite)
                    updates += 1
                    if recipe.ema:
                        _average(averaged, network, min(recipe.ema, updates / (updates + 10)))
                finished = False
            now = time.monotonic()
            used = used_before + now - began
            used, asked_to_stop = _agree(used, stop(), device)
            finished = finished or share_done() >= 1
            wild = int(_agree(watch.in_a_row, False, device)[0])
            # Then nothing else could be handed back.
            lost = finished or (asked_to_stop and sound is None)
            if wild >= _HOPELESS or (lost and wild >= _SUSPECT):
                raise _diverged(wild, step, watch.limit, progress, state_file, kept, network, sound)
            ending = finished or asked_to_stop
            due = now - reported >= run.report_seconds
            if run.report_steps:
                due = step % run.report_steps == 0
            # A report of a wild step waits for a sound one: it may be the first of many.
            if (ending and wild < _SUSPECT) or (
                not ending and not wild and _agree(0.0, due, device)[1] and step > reported_step
            ):
                span = max(now - reported, 1e-9)
                mean = total / counted if counted else math.nan
                progress = Progress(
                    elapsed=used,
                    step=step,
                    share=min(share_done(), 1.0),
                    megapixels=pixels / 1e6,
                    loss=mean,
                    learning_rate=rate,
                    waiting=min(waiting / span, 1.0),
                    images_per_second=(images - seen) / span,
                    skipped=skipped,
                )
                sound = _copied(kept)
                save()
                if on_report is not None and not rank:
                    on_report(progress, kept)
                    network.train()
                waiting, total, counted, skipped, seen = 0.0, 0.0, 0, 0, images
                reported, reported_step = time.monotonic(), step
            if ending:
                break
    if wild >= _SUSPECT and sound is not None:
        kept.load_state_dict(sound)
    return Outcome(kept, network, progress, finished)


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _diverged(
    wild: int,
    step: int,
    limit: float,
    progress: Progress,
    state_file: Path | None,
    kept: Network,
    network: Network,
    sound: dict[str, Tensor] | None,
) -> Diverged:
    """The error of a run that ran away, with the network as it was at the last report."""
    above = f" or the loss above {limit:.3g}" if math.isfinite(limit) else ""
    said = f"training ran away: the gradient is not finite{above} for {wild} steps, at step {step}"
    if sound is None:
        return Diverged(
            f"{said}; nothing was kept: start again with a lower --lr, or with --precision fp32",
            None,
        )
    kept.load_state_dict(sound)
    again = "the same command with a lower --lr" if state_file is not None else "a lower --lr"
    return Diverged(
        f"{said}; what is kept is of step {progress.step}: go on from there with {again}, or with "
        "--precision fp32",
        Outcome(kept, network, progress, False),
    )


def read_state(path: Path) -> dict[str, Any]:
    """The content of a state file, on the CPU; InputError when it is none."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not {"model", "averaged", "optimiser", "recipe", "images", "updates"} <= set(state):
            raise ValueError("something else is in it")
        return state
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        LookupError,  # torch's unpickler looks an unknown opcode up
        ValueError,
        TypeError,
    ) as error:
        raise InputError(
            f"{path} is not a state of a training run that this version can go on with: "
            "move it away, or give another --out"
        ) from error


def start_processes(chosen: torch.device) -> torch.device:
    """Join the other processes that torchrun started, if it did, and give this one's device.

    Call `dist.destroy_process_group` at the end where `processes()` counts more than one.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(chosen)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return chosen


def _check_same_run(
    state: dict[str, Any], recipe: Recipe, network: Network, seed: int, path: Path
) -> None:
    other = difference(state["recipe"], facts(recipe))
    if state["config"] != dict(network.config):
        other.append("config")
    if state["seed"] != seed:
        other.append("seed")
    if other:
        raise UsageError(
            f"{path} is the state of another run (its {', '.join(other)} differ): "
            "repeat that run's options to go on with it, or give another --out"
        )


def _as_float(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float().div(255)


def _taught(teacher: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x if getattr(teacher, "guided", False) else x[:, :3]
    return teacher.forward_scales(x) if isinstance(teacher, Network) else (teacher(x),)


def _patch_side(recipe: Recipe, share: float) -> int:
    """The side of the patches at this share of the run; 0 for whole crops."""
    side = _at(recipe.patches, share, recipe.crop)
    return 0 if side == recipe.crop else side


def _at(changes: Sequence[tuple[float, int]], share: float, default: int) -> int:
    """The value of the last of (share of the run, value) that has come; `default` before all."""
    return next((value for start, value in reversed(changes) if share >= start), default)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
    for mean, value in zip(averaged.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


def _agree(value: float, flag: bool, device: torch.device) -> tuple[float, bool]:
    """The largest value of all processes, and whether any has the flag: they must end together."""
    if processes()[1] == 1:
        return value, flag
    both = torch.tensor([value, float(flag)], dtype=torch.float64, device=device)
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return float(both[0]), bool(both[1])


def _all_have(flag: bool, device: torch.device) -> bool:
    return not _agree(0.0, not flag, device)[1]
