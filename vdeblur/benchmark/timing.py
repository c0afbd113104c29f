"""What measured times say: copies that computing hides, and which thread holds the others up.

Knows no video, no network and no device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vdeblur.inference.transfers import BatchTimes
from vdeblur.system.workers import WorkerTimes


def timed(work: Callable[[], int]) -> float:
    """Return the frames per second of a call that returns their number."""
    begin = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - begin)


def hidden_copies(timeline: Sequence[BatchTimes]) -> float | None:
    """Return the share of the time of copies in which the device computed; None without copies.

    The first upload and the last download are left out: there is nothing to hide them behind.
    """
    copies = [times.upload for times in timeline[1:]] + [times.download for times in timeline[:-1]]
    whole = sum(end - begin for begin, end in copies)
    computing = [times.compute for times in timeline]
    hidden = sum(
        max(0.0, min(end, until) - max(begin, since))
        for begin, end in copies
        for since, until in computing
    )
    return hidden / whole if whole > 0 else None


def busy_shares(
    sources: Sequence[WorkerTimes], restoring: float, sink: WorkerTimes, seconds: float
) -> dict[str, float]:
    """Return the share of a pipeline's time in which each thread worked instead of waiting.

    Args:
        sources: Of the threads before the one that restores, in order. Each takes from the one
            before, and has counted its waiting for that as work.
        restoring: Seconds that the thread that restores took, waiting included.
        sink: Of the thread behind it.
        seconds: That the pipeline took.
    """
    waited = [0.0, *(times.owner_seconds for times in sources)]
    busy = {
        times.name: times.busy_seconds - before
        for times, before in zip(sources, waited, strict=False)
    }
    busy |= {"restoring": restoring - waited[-1] - sink.owner_seconds, sink.name: sink.busy_seconds}
    return {name: max(0.0, part) / seconds for name, part in busy.items()}


def inputs_of(network: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    """Return copies of what a network is given during a call: its dtype, layout, tiles and views.

    Args:
        network: Called as `vdeblur.inference.network_pass.NetworkPass` calls it.
        run: Calls it.
    """
    name = "correction" if hasattr(network, "correction") else "forward"
    plain, given = getattr(network, name), list[Tensor]()

    def record(seen: Tensor) -> Tensor:
        given.append(seen.clone())
        output: Tensor = plain(seen)
        return output

    network.__dict__[name] = record
    try:
        run()
    finally:
        del network.__dict__[name]
    return given
