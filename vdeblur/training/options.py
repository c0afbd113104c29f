"""What a caller hands to a training run, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from vdeblur.errors import UsageError
from vdeblur.networks.base import Network

#: Precisions of a run and the dtype that autocast uses for them; None for no autocast.
PRECISIONS: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out. None of it changes what is learned, except by rounding.

    Args:
        device: Where the network is trained.
        precision: "fp32", or "bf16" or "fp16" for automatic mixed precision.
        channels_last: Store tensors with the channels innermost.
        compile: Compile the network with `torch.compile`.
        checkpointing: Recompute activations in the backward pass, to save memory.
        accumulate: Number of parts in which a batch passes through the network, to save memory. The
            gradient is that of the whole batch.
        report_seconds: Time between reports, each of which also saves the state.
        report_steps: Steps between reports, instead of `report_seconds`; 0 to count seconds.

    Raises:
        UsageError: The precision is unknown, or `accumulate` is below 1.
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
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if self.accumulate < 1:
            raise UsageError(f"accumulate is {self.accumulate}: choose 1 or more")


@dataclass(frozen=True)
class Progress:
    """One report of a run.

    Args:
        elapsed: Seconds of training so far, including those before the run was resumed.
        step: Batches seen so far.
        share: Share of the run's length that is done, 0 to 1.
        megapixels: Pixels seen so far, in millions.
        loss: Mean since the last report, of this process.
        learning_rate: The rate of the last step.
        waiting: Share of the time since the last report spent waiting for data.
        images_per_second: Mean since the last report, of all processes.
        skipped: Updates without a finite gradient since the last report.
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
class Callbacks:
    """Functions that a run calls.

    Args:
        on_report: Receives every report and the network whose weights are kept (the averaged one
            where the recipe averages). Only the first process calls it.
        on_share: Receives the share of the run that is done, before every step.
        stop: Asked after every step; True ends the run with its state saved.
    """

    on_report: Callable[[Progress, Network], None] | None = None
    on_share: Callable[[float], None] = lambda share: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Args:
        network: The network with the weights to keep: averaged where the recipe averages.
        last: The network with the weights of the last step.
        progress: The last report.
        finished: Whether the run reached its end, rather than being stopped.
    """

    network: Network
    last: Network
    progress: Progress
    finished: bool
