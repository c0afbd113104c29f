"""The training loop: a recipe and batches in, weights out. A run can stop at any step and resume.

Serves a single process or, under torchrun, several. Knows no files except its own state, and not
where batches come from: it requests them from a given step on, so that a resumed run sees the
batches that an unbroken one would have seen.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdeblur.datasets.pool import Batch
from vdeblur.errors import UsageError
from vdeblur.inference.devices import has_streams
from vdeblur.inference.guidance import Inputs
from vdeblur.inference.kernels import guidance
from vdeblur.motion.single_picture import estimate_motions
from vdeblur.networks import taps
from vdeblur.networks.base import Network, traits_of
from vdeblur.training.distillation import distance_to_teacher
from vdeblur.training.divergence import HOPELESS, SUSPECT, Divergence
from vdeblur.training.losses import multi_scale, parse_loss, scale_weights
from vdeblur.training.options import PRECISIONS, Callbacks, Outcome, Progress, RunOptions
from vdeblur.training.processes import agree, all_have, processes
from vdeblur.training.recipes import Recipe
from vdeblur.training.state import StateFile, Totals, unusable

_log = logging.getLogger(__name__)

#: Updates that a device may be behind the host, by its type: reading a loss waits for its step.
_AHEAD = {"cuda": 4, "xpu": 4}

#: A function of a step's number that returns the batches from there on: `Batch`, or (blurred,
#: sharp).
Batches = Callable[[int], Iterable[Batch | tuple[Tensor, Tensor]]]


def train(
    network: Network,
    batches: Batches,
    recipe: Recipe,
    *,
    run: RunOptions | None = None,
    steps: int | None = None,
    state: StateFile | None = None,
    teacher: nn.Module | None = None,
    callbacks: Callbacks | None = None,
) -> Outcome:
    """Train `network` in place to the end of the recipe.

    Under torchrun every process calls this; reports and the state are those of the first process.

    Args:
        network: The network to train. A guided network also sees the motion of a batch that has
            some, and the frames around it.
        batches: Called with a step's number, returns the batches from there on: those of this
            process, where there are several. The run ends early if they do.
        recipe: What decides the weights.
        run: How the run is carried out; one CPU process in fp32 by default.
        steps: The length of the run, where the recipe counts epochs.
        state: Where to save the state, and to resume from if the file exists.
        teacher: A network of any kind, RGB to RGB, whose outputs are second targets.
        callbacks: Functions to call for reports, and to be asked whether to stop.

    Returns:
        The weights to keep and the last ones. A run that was finished before takes no step.

    Raises:
        UsageError: The recipe has no length or lacks its teacher, or the state belongs to another
            run.
        InputError: The state is damaged.
        OutputError: The state cannot be written.
        Diverged: Gradient or loss stay infinite, or the loss far above its usual level. State and
            reports then end with the last sound weights.
    """
    trainer = Trainer(
        network, recipe, run=run or RunOptions(), steps=steps, state=state, teacher=teacher
    )
    trainer.resume()
    return trainer.run(batches, callbacks or Callbacks())


@dataclass
class _Interval:
    """Sums since the last report."""

    images: int  # seen before it
    began: float = field(default_factory=time.monotonic)
    waiting: float = 0.0
    loss: float = 0.0
    updates: int = 0
    skipped: int = 0


class Trainer:
    """A network in training: what `train` does, in parts.

    Call `resume` before the first step; `run` calls `step`, `report` and `save`.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        *,
        run: RunOptions,
        steps: int | None = None,
        state: StateFile | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.network, self.recipe, self.options, self.teacher = network, recipe, run, teacher
        self.rank, self.world = processes()
        self.device = run.device
        self._steps, self._state = steps or recipe.steps or None, state
        if not self._steps and not recipe.seconds:
            raise UsageError("a run needs a length: give seconds or steps")
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # crops have one size
        if recipe.teacher_weight and teacher is None:
            raise UsageError(
                "the recipe has a teacher's weight but no teacher: give `teacher=FILE`"
            )
        channels_last = run.channels_last and self.device.type != "mps"  # which reads them wrongly
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._beside = has_streams(self.device)
        network.to(device=self.device, memory_format=self._layout).train()  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(network).eval().requires_grad_(False)
        if teacher is not None:
            teacher.to(device=self.device, memory_format=self._layout).eval()  # type: ignore[call-overload]
            teacher.requires_grad_(False)
        self.kept = self.averaged if recipe.ema else network
        self._guided = network.guided or (teacher is not None and traits_of(teacher).guided)
        self._guide = Inputs(self.device, torch.float32)
        if self._guided and self._beside and guidance.available():
            self._guide.kernels = guidance.Kernels(_log.warning)
        self._terms = parse_loss(recipe.loss)
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._ahead = _AHEAD.get(self.device.type, 1)
        self._fused = True if self._ahead > 1 else None  # all parameters in one launch
        self._optimizer = self._make_optimizer()
        self._dtype = PRECISIONS[run.precision]
        enabled = self._dtype == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)
        self._random_state: Tensor | None = None
        self._model: Any = None
        self.totals, self.divergence = Totals(), Divergence()
        self._rate = 0.0
        self._sound: dict[str, Tensor] | None = None
        self._interval = _Interval(0)
        self._unread: list[Tensor] = []  # loss and size of the gradient, of the last updates
        self.progress = self._idle()

    def _make_optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimiser]
        optimizer: torch.optim.Optimizer = kind(
            self._parameters,
            lr=recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=self._fused,
        )
        return optimizer

    @property
    def share(self) -> float:
        """The share of the run that is done; 1 or more at its end."""
        if self.recipe.seconds:
            return self.totals.used / self.recipe.seconds
        return self.totals.step / self._steps if self._steps else 1.0

    def resume(self) -> None:
        """Continue from the state file, if it exists, and make the network ready for steps."""
        state = self._state.read(self.recipe, self.network) if self._state is not None else None
        if state is not None:
            assert self._state is not None
            try:
                self.network.load_state_dict(state["model"])
                self.averaged.load_state_dict(state["averaged"])
                for group in state["optimiser"]["param_groups"]:
                    group["fused"] = self._fused  # as on this device, not where it was saved
                self._optimizer.load_state_dict(state["optimiser"])
                self._scaler.load_state_dict(state["scaler"])
            # The file is damaged, or made by hand.
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise unusable(self._state.path) from error
            self.totals = Totals(**{part.name: state[part.name] for part in fields(Totals)})
            self._random_state = state["random"]
        if self.options.checkpointing:
            forget_activations(self.network)
        model: Any = _Outputs(self.network)
        if self.options.compile:
            model = torch.compile(model)
        if self.world > 1:
            ids = [self.device.index or 0] if self._beside else None
            model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        self._model = model
        self.progress = self._idle()

    def run(self, batches: Batches, callbacks: Callbacks) -> Outcome:
        """Take steps to the end of the run, or until `callbacks.stop`; as `train` describes."""
        if self.share >= 1:
            return Outcome(self.kept, self.network, self.progress, True)
        began, used_before = time.monotonic(), self.totals.used
        self._interval = _Interval(self.totals.images, began)
        self._sound = _copied(self.kept) if self.totals.step else None
        reported_step = self.totals.step
        callbacks.on_share(self.share)
        iterator = iter(batches(self.totals.step))
        if self._random_state is not None:
            # After the loader has drawn its own seed, so that the network's draws continue.
            torch.set_rng_state(self._random_state)
        with contextlib.ExitStack() as leaving:
            # Threads and processes that make batches end with the run, however it ends.
            leaving.callback(getattr(iterator, "close", lambda: None))
            while True:
                batch = self._next(iterator)
                if batch is not None:
                    callbacks.on_share(self.share)
                    self.step(batch)
                now = time.monotonic()
                used = used_before + now - began
                self.totals.used, stopped = agree(used, callbacks.stop(), self.device)
                finished = batch is None or self.share >= 1
                ending = finished or stopped
                if ending or self._due(now):
                    self._read()
                wild = self._check_divergence(finished, stopped)
                # A report of a wild step waits for a sound one: it may be the first of many.
                if (ending and wild < SUSPECT) or (
                    not ending
                    and not wild
                    and agree(0.0, self._due(now), self.device)[1]
                    and self.totals.step > reported_step
                ):
                    self.report(now, callbacks)
                    reported_step = self.totals.step
                if ending:
                    break
        if wild >= SUSPECT and self._sound is not None:
            self.kept.load_state_dict(self._sound)
        return Outcome(self.kept, self.network, self.progress, finished)

    def step(self, batch: Batch) -> None:
        """Train on one batch, in as many updates as the recipe asks for at this point."""
        recipe, share = self.recipe, self.share
        self._rate = recipe.schedule.rate(recipe.learning_rate, share)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate
        blurred, sharp = self._inputs(batch)
        if side := _patch_side(recipe, share):
            blurred, sharp = cut(blurred, side), cut(sharp, side)
        self.totals.step += 1
        self.totals.pixels += blurred[:, 0].numel() * self.world
        count = min(_at(recipe.updates, share, 1), len(blurred))
        for part in zip(blurred.chunk(count), sharp.chunk(count), strict=True):
            self._update(*part, share)
            if len(self._unread) >= self._ahead:
                self._read()
            self.totals.updates += 1
            if recipe.ema:
                updates = self.totals.updates
                _average(self.averaged, self.network, min(recipe.ema, updates / (updates + 10)))

    def report(self, now: float, callbacks: Callbacks) -> None:
        """Save the state, and pass the progress at time `now` (monotonic) to `on_report`."""
        interval = self._interval
        span = max(now - interval.began, 1e-9)
        self.progress = Progress(
            elapsed=self.totals.used,
            step=self.totals.step,
            share=min(self.share, 1.0),
            megapixels=self.totals.pixels / 1e6,
            loss=interval.loss / interval.updates if interval.updates else math.nan,
            learning_rate=self._rate,
            waiting=min(interval.waiting / span, 1.0),
            images_per_second=(self.totals.images - interval.images) / span,
            skipped=interval.skipped,
        )
        self._sound = _copied(self.kept)
        self.save()
        if callbacks.on_report is not None and not self.rank:
            callbacks.on_report(self.progress, self.kept)
            self.network.train()
        self._interval = _Interval(self.totals.images)

    def save(self) -> None:
        """Write the state file, if the run has one and this is the first process."""
        if self._state is None or self.rank:
            return
        self._state.write(
            {
                "model": self.network.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimiser": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "network": self.recipe.network,
                "config": dict(self.network.config),
                "recipe": self.recipe.as_dict(),
                **asdict(self.totals),
                "random": torch.get_rng_state(),
            }
        )

    def _idle(self) -> Progress:
        """The progress before the first report."""
        totals = self.totals
        return Progress(
            totals.used, totals.step, self.share, totals.pixels / 1e6, math.nan, 0.0, 0.0, 0.0, 0
        )

    def _due(self, now: float) -> bool:
        if self.options.report_steps:
            return self.totals.step % self.options.report_steps == 0
        return now - self._interval.began >= self.options.report_seconds

    def _next(self, iterator: Iterator[Batch | tuple[Tensor, Tensor]]) -> Batch | None:
        """The next batch; None as soon as any process has none."""
        asked = time.monotonic()
        batch = next(iterator, None)
        self._interval.waiting += time.monotonic() - asked
        if not all_have(batch is not None, self.device):
            return None
        assert batch is not None
        return Batch(*batch)

    def _inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the network sees of a batch (N, 3 or more, H, W), and its targets (N, 3, H, W)."""
        blurred, sharp = (
            _as_float(part.to(self.device, non_blocking=self._beside)) for part in batch[:2]
        )
        if self.recipe.keep_sharp:
            first = self.totals.images + self.rank * len(blurred)
            share = self.recipe.keep_sharp
            blurred = with_sharp_input(blurred, sharp, first=first, share=share)
        self.totals.images += len(blurred) * self.world
        if not self._guided:
            return blurred, sharp
        # Pairs of files have no known motion: it is estimated from each picture, as for stills.
        motion = estimate_motions(blurred) if batch.motion is None else batch.motion
        if motion is None:
            return blurred, sharp
        with torch.no_grad():
            motion = motion.to(self.device, non_blocking=self._beside)
            seen = self._guide.alone(blurred, motion)
            if batch.around is not None:
                before, after = batch.around.to(self.device, non_blocking=self._beside)
                taps.place((before, after), seen[:, 3 + taps.OWN_CHANNELS :])
            return seen, sharp

    def _read(self) -> None:
        """Take note of the latest updates, for which the device must have done them."""
        for loss, size in torch.stack(self._unread).tolist() if self._unread else []:
            finite = math.isfinite(loss) and math.isfinite(size)
            if finite:
                self._interval.loss += loss
                self._interval.updates += 1
            else:
                self._interval.skipped += 1
            self.divergence.see(loss, finite=finite)
        self._unread.clear()

    def _update(self, blurred: Tensor, sharp: Tensor, share: float) -> None:
        """Change the weights once, unless loss or gradient are not finite."""
        blurred = blurred.contiguous(memory_format=self._layout)
        self._optimizer.zero_grad(set_to_none=True)
        parts = min(self.options.accumulate, len(blurred))
        chunks = list(zip(blurred.chunk(parts), sharp.chunk(parts), strict=True))
        losses = []
        for number, (x, y) in enumerate(chunks):
            whole = self.world == 1 or number == len(chunks) - 1
            with contextlib.nullcontext() if whole else self._model.no_sync():
                loss = self._loss(x, y, share) * (len(x) / len(blurred))
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self.recipe.clip or math.inf)
        self._unread.append(torch.stack([torch.stack(losses).sum(), norm.to(losses[0])]))
        infinite = ~self._unread[-1].isfinite().all()
        if self._fused and not self._scaler.is_enabled():
            # The device itself leaves the update out, as for a scaler, and the host need not wait.
            self._optimizer.found_inf = infinite.float()  # type: ignore[attr-defined]
        elif not self._fused and bool(infinite):
            self._optimizer.zero_grad(set_to_none=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _loss(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """The recipe's loss when `share` of the run is done; a scalar."""
        recipe = self.recipe
        mixed = functools.partial(
            torch.autocast, self.device.type, dtype=self._dtype, enabled=self._dtype is not None
        )
        with mixed():
            outputs: Sequence[Tensor] = self._model(x if self.network.guided else x[:, :3])
        weights = scale_weights(
            outputs, recipe.scales, share=share, coarse_first=recipe.coarse_first
        )
        loss = multi_scale(outputs, y, self._terms, weights)
        if self.teacher is not None and recipe.teacher_weight:
            with torch.no_grad(), mixed():
                taught = _taught(self.teacher, x)
            loss = loss + recipe.teacher_weight * distance_to_teacher(outputs, taught, weights)
        return loss

    def _check_divergence(self, finished: bool, stopped: bool) -> int:
        """Return the consecutive wild updates; raise Diverged where nothing else can be done."""
        wild = int(agree(self.divergence.in_a_row, False, self.device)[0])
        nothing_sound = finished or (stopped and self._sound is None)
        if wild < HOPELESS and not (nothing_sound and wild >= SUSPECT):
            return wild
        outcome = None
        if self._sound is not None:
            self.kept.load_state_dict(self._sound)
            outcome = Outcome(self.kept, self.network, self.progress, False)
        raise self.divergence.error(
            wild, self.totals.step, outcome, resumable=self._state is not None
        )


class _Outputs(nn.Module):
    """All outputs of a network behind `forward`, which is what DDP and torch.compile wrap."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network.forward_scales(x)


def cut(image: Tensor, side: int) -> Tensor:
    """Cut squares out of pictures, as many as fit, centered.

    Args:
        image: (N, C, H, W).
        side: Side of the squares in pixels.

    Returns:
        (N·k, C, side, side).
    """
    n, c, height, width = image.shape
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    part = image[..., top : top + rows * side, left : left + columns * side]
    tiles = part.reshape(n, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(-1, c, side, side)


def with_sharp_input(blurred: Tensor, sharp: Tensor, *, first: int, share: float) -> Tensor:
    """Replace a share of the blurred pictures by their targets, evenly spread.

    Args:
        blurred: (N, C, H, W).
        sharp: The targets, of the same shape.
        first: Number of pictures before these. The choice depends on nothing else, so that a
            resumed run makes the same one.
        share: 0 to 1.
    """
    numbers = torch.arange(first, first + len(blurred), dtype=torch.float64)
    chosen = ((numbers + 1) * share).floor() > (numbers * share).floor()
    return torch.where(chosen.to(blurred.device)[:, None, None, None], sharp, blurred)


def forget_activations(network: nn.Module) -> None:
    """Have the network's blocks recompute their activations in the backward pass.

    A block is an outermost module of two or more convolutions below the network; lists of modules
    are descended into. See Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.
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


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _as_float(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float().div(255)


def _taught(teacher: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    x = x if (teacher is not None and traits_of(teacher).guided) else x[:, :3]
    return teacher.forward_scales(x) if isinstance(teacher, Network) else (teacher(x),)


def _patch_side(recipe: Recipe, share: float) -> int:
    """The side of the patches at this share of the run; 0 for whole crops."""
    side = _at(recipe.patches, share, recipe.crop)
    return 0 if side == recipe.crop else side


def _at(changes: Sequence[tuple[float, int]], share: float, default: int) -> int:
    """The value of the last (share of the run, value) reached; `default` before the first."""
    return next((value for start, value in reversed(changes) if share >= start), default)


@torch.no_grad()
def _average(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights toward the network's by 1 − decay.

    Not `torch.optim.swa_utils.AveragedModel`: its first update copies the weights where this one
    keeps 1/11 of the first ones, and its counter and its names of tensors are not those of
    existing state files.
    """
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
    for mean, value in zip(averaged.buffers(), network.buffers(), strict=True):
        mean.copy_(value)
