"""The training loop: a budget of wall time in, weights out; stops and resumes at any moment."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdeblur.models.mimo_unet import MIMOUNet
from vdeblur.training.losses import multi_scale_frequency, multi_scale_l1, target_pyramid


@dataclass(frozen=True)
class TrainOptions:
    """budget_seconds: wall time of all runs together; the learning rate follows the share of it
    that is used, with a short warm-up and a cosine to zero, so that any budget ends in usable
    weights. frequency_weight: λ of MIMO-UNet's equation 6. ema: decay of the averaged weights.
    """

    budget_seconds: float
    learning_rate: float = 1e-3
    warmup_share: float = 0.02
    frequency_weight: float = 0.1
    ema: float = 0.999
    clip: float = 0.5
    report_seconds: float = 60.0


@dataclass(frozen=True)
class Progress:
    """One report: steps and pixels so far, mean loss and share of time spent waiting for data."""

    elapsed: float
    step: int
    megapixels: float
    loss: float
    learning_rate: float
    waiting: float


def learning_rate(share: float, options: TrainOptions) -> float:
    """The rate when `share` (0..1) of the budget is used."""
    if share < options.warmup_share:
        return options.learning_rate * max(share / options.warmup_share, 0.02)
    rest = (share - options.warmup_share) / (1 - options.warmup_share)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))


def train(
    model: MIMOUNet,
    batches: Iterable[tuple[Tensor, Tensor]],
    options: TrainOptions,
    *,
    device: torch.device,
    state_file: Path | None = None,
    on_report: Callable[[Progress, MIMOUNet], None] | None = None,
) -> MIMOUNet:
    """Train until the budget is spent and return the averaged (EMA) weights as a copy.

    batches: (blurred, sharp) uint8 (N, 3, H, W). state_file: written at every report (under a
    temporary name first) and resumed from when it exists.
    """
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    used, step, pixels = 0.0, 0, 0.0
    if state_file and state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        used, step, pixels = state["used"], state["step"], state["pixels"]

    def save() -> None:
        if state_file is None:
            return
        temporary = state_file.with_suffix(".tmp")
        torch.save(
            {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimiser": optimiser.state_dict(),
                "used": used,
                "step": step,
                "pixels": pixels,
                "options": asdict(options),
            },
            temporary,
        )
        temporary.replace(state_file)

    last = reported = time.monotonic()
    waiting, losses = 0.0, torch.zeros((), device=device)
    since = 0
    for blurred, sharp in batches:
        now = time.monotonic()
        waiting += now - last
        rate = learning_rate(used / options.budget_seconds, options)
        for group in optimiser.param_groups:
            group["lr"] = rate
        x = blurred.to(device).float().div(255).contiguous(memory_format=torch.channels_last)
        y = sharp.to(device).float().div(255)
        outputs = model.forward_scales(x)
        targets = target_pyramid(y, len(outputs))
        loss = multi_scale_l1(outputs, targets)
        if options.frequency_weight:
            loss = loss + options.frequency_weight * multi_scale_frequency(outputs, targets)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimiser.step()
        step, since, pixels = step + 1, since + 1, pixels + x[:, 0].numel()
        with torch.no_grad():
            losses += loss.detach()
            decay = min(options.ema, step / (step + 10))
            for mean, value in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moment = time.monotonic()
        used, last = used + moment - last, moment
        done = used >= options.budget_seconds
        if done or moment - reported > options.report_seconds:
            if on_report:
                span = moment - reported
                mean_loss = float(losses) / since
                on_report(
                    Progress(used, step, pixels / 1e6, mean_loss, rate, waiting / span), averaged
                )
            save()
            losses.zero_()
            waiting, since, reported = 0.0, 0, time.monotonic()
            last = reported
        if done:
            break
    return averaged
