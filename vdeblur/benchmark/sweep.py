"""Search for the fastest backend, precision, batch and tile for a network and a picture size.

The search varies one axis after another from the best so far: all combinations would take hours. A
candidate is measured in interleaved rounds with the setting that it would replace, at first the
default. It replaces it when it is faster in every round, by 3 % in the median one, and agrees with
fp32 torch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vdeblur.benchmark.run import load_for_speed, surrounded
from vdeblur.color import planes_to_rgb
from vdeblur.errors import DeviceError, UsageError, VdeblurError
from vdeblur.frames import PlaneLayout
from vdeblur.inference import devices, runtimes
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import (
    device_name,
    empty_cache,
    find_device,
    free_memory,
    synchronize,
)
from vdeblur.inference.export import random_motion, random_pictures
from vdeblur.inference.kernels import color, guidance
from vdeblur.inference.memory_plan import Plan
from vdeblur.inference.runtimes import RuntimeRequest
from vdeblur.inference.settings import Setting, store_setting, usual_precision
from vdeblur.inference.tiling import MIN_TILE
from vdeblur.motion.neighbours import Around
from vdeblur.networks import GlobalMean, Identity

#: A restored picture's signal-to-noise ratio to that of fp32 torch, in dB; less is not kept.
AGREEMENT = runtimes.AGREEMENT
_GAIN = 1.03  # what a change has to be worth
_BATCHES = (1, 2, 4, 8, 16, 32)
_TILES = (1024, 512, 256)


@dataclass
class Trial:
    """A setting, as measured.

    Attributes:
        backend: The runtime.
        precision: That of the network.
        batch: Pictures that go through the network together.
        tile: Pixels a side; None for whole pictures.
        rounds: Frames/s by round.
        decibels: PSNR of the result to that of fp32 torch.
        memory: Bytes it was predicted to take.
        failure: Why it failed; empty if it did not.
    """

    backend: str
    precision: str
    batch: int
    tile: int | None
    rounds: list[float] = field(default_factory=list)
    decibels: float = math.inf
    memory: int = 0
    failure: str = ""

    @property
    def rate(self) -> float:
        """Median frames per second; 0 for one that failed or does not agree."""
        if self.failure or not self.rounds or not self.decibels >= AGREEMENT:
            return 0.0
        return statistics.median(self.rounds)

    def beats(self, other: Trial, *, rounds: int) -> bool:
        """Whether it won all of the last rounds, which both ran in, and the median one by _GAIN.

        A machine's other work slows both of a round, so rounds are compared in pairs.
        """
        if not self.rate or not other.rate:
            return self.rate > other.rate
        pairs = zip(self.rounds[-rounds:], other.rounds[-rounds:], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        return min(ratios) > 1 and statistics.median(ratios) >= _GAIN


@dataclass
class Sweep:
    """The trials in order, the best of them, and whether it is kept for later runs."""

    model: str
    device: str
    size: str
    trials: list[Trial]
    best: Trial
    kept: bool
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The figures for JSON, where infinity is None."""
        trials = [asdict(trial) | {"frames_per_second": trial.rate} for trial in self.trials]
        for trial in trials:
            if not math.isfinite(trial["decibels"]):
                trial["decibels"] = None
        chosen = self.trials.index(self.best)
        return asdict(self) | {"trials": trials, "best": trials[chosen]}


@dataclass(frozen=True)
class TuneOptions:
    """What to tune for; what is not "auto" is not varied.

    Attributes:
        size: Width and height of the pictures.
        device: As `Deblurrer` takes it.
        precision: int8 is tried when asked for, and never kept.
        backend: The runtime.
        batch: Pictures that go through the network together.
        tile: Pixels a side; None for whole pictures.
        rounds: Every round measures all candidates once.
    """

    size: tuple[int, int] = (1280, 720)
    device: str = "auto"
    precision: str = "auto"
    backend: RuntimeRequest = "auto"
    batch: int | Literal["auto"] = "auto"
    tile: int | Literal["auto"] | None = "auto"
    rounds: int = 5


def tune(
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    options: TuneOptions | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    **network: Any,
) -> Sweep:
    """Find the fastest setting for pictures of a size, and keep it for later runs.

    Args:
        model: The network, as `Deblurrer` takes it; an untrained one's setting is not kept.
        weights: As `Deblurrer` takes them.
        options: What to tune for.
        on_trial: Called with each trial once it is measured.
        **network: Other options of `Deblurrer`.

    Raises:
        UsageError: Options are impossible, or the network computes nothing.
        DeviceError: No setting could be measured.
    """
    options = options or TuneOptions()
    if options.rounds < 1:
        raise UsageError("`rounds` must be 1 or more")
    width, height = options.size
    device = find_device(options.device)
    loaded, name, notes = load_for_speed(model, weights)
    if isinstance(loaded, Identity):
        raise UsageError(f"{name} computes nothing, so there is nothing to tune: leave `tune` out")
    runner = _TrialRunner(model, weights, device, options, network)
    search = _Search(runner, options, on_trial)
    pairs = list(_pairs(device, options.precision, options.backend))
    # The default first: it stands unless another is clearly faster.
    usual = _usual(loaded, device, options)
    best = search.try_precisions(sorted(pairs, key=lambda pair: pair != usual), pairs[0])
    runner.let_go(best)
    if options.batch == "auto":
        best = search.try_batches(best)
    if options.tile == "auto" and not _tiles_differ(loaded):
        best = search.try_tiles(best)
    setting = Setting(best.backend, best.precision, best.batch, best.tile, best.rate)
    untrained = any("untrained" in note for note in notes)
    kept = False
    if best.precision != "int8" and not untrained:
        kept = store_setting(loaded, device, (height, width), setting)
    size = f"{width}x{height}"
    return Sweep(name, device_name(device), size, search.trials, best, kept, notes)


def _tiles_differ(network: torch.nn.Module) -> bool:
    """Whether tiles change what the network computes, through means over the whole picture."""
    return any(isinstance(layer, GlobalMean) for layer in network.modules())


class _Search:
    """Varies one axis after another from the best so far, and remembers all trials."""

    def __init__(
        self,
        runner: _TrialRunner,
        options: TuneOptions,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self.trials: list[Trial] = []
        self._runner, self._options, self._on_trial = runner, options, on_trial

    def try_precisions(self, pairs: list[tuple[str, str]], first: tuple[str, str]) -> Trial:
        """Measure pairs of backend and precision, the default first; return the best.

        `first` is the pair by whose memory the tile is chosen.
        """
        options = self._options
        tile = options.tile if options.tile != "auto" else self._runner.tile_that_fits(*first)
        trials = []
        for backend, precision in pairs:
            batch = self._runner.usual_batch(backend, precision, options.batch)
            trials.append(Trial(backend, precision, batch, tile))
        return self._better(None, trials)

    def try_batches(self, best: Trial) -> Trial:
        """Double the batch, then halve it, until a step gains nothing; return the best."""
        begun = best
        for sizes in (_BATCHES, _BATCHES[::-1]):
            for size in sizes:
                if (size > begun.batch) != (sizes is _BATCHES) or size == begun.batch:
                    continue
                trial = Trial(best.backend, best.precision, size, best.tile)
                if not self._runner.fits(trial) or self._better(best, [trial]) is not trial:
                    break
                best = trial
            if best is not begun or self._runner.device.type != "cpu":
                break
        return best

    def try_tiles(self, best: Trial) -> Trial:
        """Measure all tiles that are smaller than the picture; return the best."""
        sides = [side for side in _TILES if MIN_TILE <= side < max(self._options.size)]
        tiled = [Trial(best.backend, best.precision, best.batch, side) for side in sides]
        return self._better(best, tiled) if tiled else best

    def _better(self, old: Trial | None, new: list[Trial]) -> Trial:
        """Measure `new` beside `old`; return the one to go on from, `old` in doubt.

        Without `old` the first of `new` that could be measured takes its place.
        """
        self._runner.measure([*([old] if old else []), *new])
        self.trials.extend(new)
        if self._on_trial is not None:
            for trial in new:
                self._on_trial(trial)
        if old is None or not old.rate:
            old = next((t for t in new if t.rate), None) or _best(self.trials)
        ranked = sorted(new, key=lambda trial: trial.rate, reverse=True)
        return next((t for t in ranked if t.beats(old, rounds=self._options.rounds)), old)


def _best(trials: list[Trial]) -> Trial:
    best = max(trials, key=lambda trial: trial.rate)
    if not best.rate:
        raise DeviceError(
            "no setting could be measured: "
            + "; ".join(f"{t.backend} {t.precision}: {t.failure or 'disagrees'}" for t in trials)
        )
    return best


def _usual(network: torch.nn.Module, device: torch.device, options: TuneOptions) -> tuple[str, str]:
    """(backend, precision) that `Deblurrer` chooses here by itself."""
    backend, precision = options.backend, options.precision
    if precision == "auto":
        precision = usual_precision(network, device, backend)
    return runtimes.choose_runtime(backend, network, device, precision), precision


def _pairs(device: torch.device, precision: str, backend: str) -> Iterable[tuple[str, str]]:
    """(backend, precision) to try on a device."""
    gpu = device.type != "cpu"
    names: list[str] = [
        name
        for name, able in runtimes.ABILITIES.items()
        if able.installed
        and (not able.devices or device.type in able.devices)
        and (name in runtimes.TENSOR_RUNTIMES or not gpu)
    ]
    for name in names if backend == "auto" else [backend]:
        precisions = ["fp32"]
        if name == "torch" and gpu:
            precisions = ["fp16", "bf16", "fp32"]
        elif name in ("torch", "openvino") and not gpu and devices.multiplies_bf16():
            precisions = ["fp32", "bf16"]
        elif gpu:
            # bf16 is as fast and coarser, fp32 slower; each would compile for a minute.
            precisions = ["fp16"]
        yield from ((name, p) for p in ([precision] if precision != "auto" else precisions))


class _TrialRunner:
    """Measures trials on pictures of one size; each backend and precision is prepared once."""

    def __init__(
        self,
        model: str | None,
        weights: str | Path | None,
        device: torch.device,
        options: TuneOptions,
        network: dict[str, Any],
    ) -> None:
        self.device, self.rounds, self.options = device, options.rounds, network
        self.model, self.weights = model, weights
        self.width, self.height = options.size
        self.layout = PlaneLayout(*options.size)
        self._ready: dict[tuple[str, str], Deblurrer | str] = {}
        picture = random_pictures(1, self.height, self.width)
        luma = picture.mean(1).mul(219).add(16).to(torch.uint8)
        chroma = [torch.full((1, *shape), 128, dtype=torch.uint8) for shape in self.layout.shapes]
        self._planes = [luma, *chroma[1:]]
        self._reference: Tensor | None = None

    def deblurrer(self, trial: Trial) -> Deblurrer | str:
        """Return the deblurrer of a trial's backend and precision, or why there is none."""
        key = trial.backend, trial.precision
        if key not in self._ready:
            try:
                network, _, _ = load_for_speed(self.model, self.weights)
                self._ready[key] = Deblurrer(
                    network,
                    device=self.device,
                    precision=trial.precision,  # type: ignore[arg-type]
                    backend=trial.backend,  # type: ignore[arg-type]
                    **self.options,
                )
            except (VdeblurError, RuntimeError) as error:
                self._ready[key] = str(error).split("\n")[0]
        ready = self._ready[key]
        if isinstance(ready, Deblurrer):
            ready.tile = trial.tile
            # As asked: a CPU would take larger pictures one at a time.
            ready.plans[self.height, self.width] = Plan(trial.batch, trial.tile)
        return ready

    def usual_batch(self, backend: str, precision: str, asked: int | Literal["auto"]) -> int:
        """Return the batch asked for, or this backend's default; on a GPU, a middling one."""
        if asked != "auto":
            return asked
        if self.device.type != "cpu":
            return 4
        ready = self.deblurrer(Trial(backend, precision, 1, None))
        return 1 if isinstance(ready, str) else ready.side_by_side(self.height, self.width)

    def tile_that_fits(self, backend: str, precision: str) -> int | None:
        """Return a tile that fits the free memory; None where whole pictures do."""
        ready = self.deblurrer(Trial(backend, precision, 1, None))
        free = free_memory(self.device)
        if free is None or isinstance(ready, str):
            return None
        fits = ready.memory_needed(self.height, self.width) < free / 2
        return None if fits else _TILES[1]

    def fits(self, trial: Trial) -> bool:
        """Whether the free memory is predicted to suffice."""
        ready = self.deblurrer(trial)
        if isinstance(ready, str):
            return False
        return trial.batch <= ready.fitting_batch(self.height, self.width)

    def let_go(self, best: Trial) -> None:
        """Free what other backends and precisions hold; graphs have memory of their own."""
        for key in set(self._ready) - {(best.backend, best.precision)}:
            del self._ready[key]
        empty_cache(self.device)

    def measure(self, trials: list[Trial]) -> None:
        """Measure all trials in turn, round by round, after comparing each with fp32 torch."""
        for trial in trials:
            if not trial.rounds and not trial.failure:
                self._prepare(trial)
        for _ in range(self.rounds):
            for trial in trials:
                if not trial.failure:
                    trial.rounds.append(self._once(trial, seconds=0.3))

    def _prepare(self, trial: Trial) -> None:
        ready = self.deblurrer(trial)
        if isinstance(ready, str):
            trial.failure = ready
            return
        trial.memory = ready.memory_needed(self.height, self.width, batch=trial.batch)
        try:
            self._restore(ready, trial)
            planes = self._restore(ready, trial)
        except (VdeblurError, RuntimeError, MemoryError) as error:
            trial.failure = str(error).split("\n")[0] or "out of memory"
            return
        # Color and guidance are no part of what is tried: without kernels all trials do the same.
        harmless = (color.FALLBACK, guidance.FALLBACK, runtimes.NOT_KEPT)
        told = [note for note in ready.notes if not note.startswith(harmless)]
        if told:
            trial.failure = told[-1]
            ready.notes.remove(told[-1])
            return
        rgb = planes_to_rgb([plane[:1].cpu() for plane in planes], self.layout)
        if self._reference is None:
            self._reference = self._fp32(trial, rgb)
        distance = float((rgb - self._reference).square().mean())
        trial.decibels = -10 * math.log10(distance) if distance > 0 else math.inf

    def _fp32(self, trial: Trial, rgb: Tensor) -> Tensor:
        if (trial.backend, trial.precision, trial.tile) == ("torch", "fp32", None):
            return rgb
        plain = Trial("torch", "fp32", 1, None)
        ready = self.deblurrer(plain)
        if isinstance(ready, str):
            raise DeviceError(ready)
        ready.tile = "auto"  # whole, if it fits
        ready.plans.clear()
        planes = self._restore(ready, plain)
        self.deblurrer(trial)  # its tiles again
        return planes_to_rgb([plane.cpu() for plane in planes], self.layout)

    def _restore(self, ready: Deblurrer, trial: Trial) -> list[Tensor]:
        planes = [plane.repeat(trial.batch, 1, 1).to(self.device) for plane in self._planes]
        restored, _ = ready.restore_planes(planes, self.layout, *self._told(planes))
        return restored

    def _told(self, planes: list[Tensor]) -> tuple[Tensor, list[Around]]:
        motion = random_motion(len(planes[0])).to(self.device)
        return motion, surrounded(planes, self.layout, motion)

    def _once(self, trial: Trial, *, seconds: float) -> float:
        """Frames per second of a run of at least `seconds`, and of one batch."""
        ready = self.deblurrer(trial)
        assert isinstance(ready, Deblurrer)
        planes = [plane.repeat(trial.batch, 1, 1).to(self.device) for plane in self._planes]
        told = self._told(planes)
        synchronize(self.device)
        begin, count = time.perf_counter(), 0
        while True:
            ready.restore_planes(planes, self.layout, *told)
            count += trial.batch
            # Queued work is waited for as a whole: one batch after another keeps the device busy.
            if self.device.type == "cpu" or count >= 4 * trial.batch:
                synchronize(self.device)
                passed = time.perf_counter() - begin
                if passed >= seconds:
                    return count / passed
