"""A sweep over backend, precision, batch and tile for one network and picture size: `bench --tune`.

One axis after another, each from the best so far: all combinations would take hours. A candidate is
measured in interleaved rounds with what it would replace, at first the default. It does so when it
is faster in every round, by 3 % in the middle one, and agrees with fp32 torch.
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
from vdeblur.inference.batching import GAIN
from vdeblur.inference.deblurrer import Deblurrer
from vdeblur.inference.devices import (
    device_name,
    find_device,
    free_memory,
    synchronize,
)
from vdeblur.inference.export import random_motion, random_pictures
from vdeblur.inference.kernels import color, convolution
from vdeblur.inference.memory_plan import Plan
from vdeblur.inference.runtimes import EIGHT_BITS
from vdeblur.inference.settings import Setting, store_setting
from vdeblur.inference.tiling import MIN_TILE
from vdeblur.motion.neighbours import Around
from vdeblur.networks import GlobalMean, Identity, Network
from vdeblur.networks.base import traits_of
from vdeblur.system.optional import installed

#: A restored picture's signal-to-noise ratio to that of fp32 torch, in dB; less is not kept.
AGREEMENT = runtimes.AGREEMENT
_BATCHES = (1, 2, 4, 8, 16, 32)
_TILES = (1024, 512, 256)


@dataclass
class Trial:
    """One setting, as measured: frames/s by round, dB to fp32 torch, and why it failed if it did.

    memory: bytes it was predicted to take.
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
        """Whether it won each of the last rounds, which both were measured in, the middle by GAIN.

        A machine's other work slows both of a round, so rounds are compared in pairs.
        """
        if not self.rate or not other.rate:
            return self.rate > other.rate
        pairs = zip(self.rounds[-rounds:], other.rounds[-rounds:], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs]
        return min(ratios) > 1 and statistics.median(ratios) >= GAIN


@dataclass
class Sweep:
    """What was tried, in order, and the best; kept: whether it is used from now on."""

    model: str
    device: str
    size: str
    trials: list[Trial]
    best: Trial
    kept: bool
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, where infinity is no number."""
        trials = [asdict(trial) | {"frames_per_second": trial.rate} for trial in self.trials]
        for trial in trials:
            if not math.isfinite(trial["decibels"]):
                trial["decibels"] = None
        chosen = self.trials.index(self.best)
        return asdict(self) | {"trials": trials, "best": trials[chosen]}


def tune(
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    size: tuple[int, int] = (1280, 720),
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    batch: int | Literal["auto"] = "auto",
    tile: int | Literal["auto"] | None = "auto",
    rounds: int = 5,
    on_trial: Callable[[Trial], None] | None = None,
    **options: Any,
) -> Sweep:
    """Find and keep the fastest setting for pictures of size (width, height).

    What is not "auto" is not varied. 8 bits are tried when asked for, and never kept. options:
    others of `Deblurrer`. on_trial is called with each trial once it is measured.
    """
    if rounds < 1:
        raise UsageError("--rounds must be 1 or more")
    width, height = size
    where = find_device(device)
    network, name, notes = load_for_speed(model, weights)
    if isinstance(network, Identity):
        raise UsageError(f"{name} computes nothing, so there is nothing to tune: leave --tune out")
    tiles_differ = any(isinstance(layer, GlobalMean) for layer in network.modules())
    bench = _Bench(model, weights, where, size, rounds, options)
    pairs = list(_pairs(where, precision, backend))

    trials: list[Trial] = []

    def better(old: Trial | None, new: list[Trial]) -> Trial:
        """What is to stand after `new` were measured beside `old`; the first of them without."""
        bench.measure([*([old] if old else []), *new])
        trials.extend(new)
        if on_trial is not None:
            for trial in new:
                on_trial(trial)
        if old is None or not old.rate:
            old = next((t for t in new if t.rate), None) or _best(trials)
        ranked = sorted(new, key=lambda trial: trial.rate, reverse=True)
        return next((t for t in ranked if t.beats(old, rounds=rounds)), old)

    first_tile = tile if tile != "auto" else bench.tile_that_fits(*pairs[0])
    # The default first: it stands unless another is clearly faster.
    usual = _usual(network, where, precision, backend)
    pairs.sort(key=lambda pair: pair != usual)
    best = better(None, [Trial(b, p, bench.usual_batch(b, p, batch), first_tile) for b, p in pairs])
    bench.let_go(best)
    if batch == "auto":
        begun = best
        for sizes in (_BATCHES, _BATCHES[::-1]):  # doublings, then halves, until one gains nothing
            for size_ in sizes:
                if (size_ > begun.batch) != (sizes is _BATCHES) or size_ == begun.batch:
                    continue
                trial = Trial(best.backend, best.precision, size_, best.tile)
                if not bench.fits(trial) or better(best, [trial]) is not trial:
                    break
                best = trial
            if best is not begun or where.type != "cpu":
                break
    if tile == "auto" and not tiles_differ:
        sides = [side for side in _TILES if MIN_TILE <= side < max(size)]
        tiled = [Trial(best.backend, best.precision, best.batch, side) for side in sides]
        if tiled:
            best = better(best, tiled)
    setting = Setting(best.backend, best.precision, best.batch, best.tile, best.rate)
    untrained = any("untrained" in note for note in notes)
    kept = False
    if best.precision not in EIGHT_BITS and not untrained:
        kept = store_setting(network, where, (height, width), setting)
    return Sweep(name, device_name(where), f"{width}x{height}", trials, best, kept, notes)


def _best(trials: list[Trial]) -> Trial:
    best = max(trials, key=lambda trial: trial.rate)
    if not best.rate:
        raise DeviceError(
            "no setting could be measured: "
            + "; ".join(f"{t.backend} {t.precision}: {t.failure or 'disagrees'}" for t in trials)
        )
    return best


def _usual(
    network: torch.nn.Module, device: torch.device, precision: str, backend: str
) -> tuple[str, str]:
    """(backend, precision) that a `Deblurrer` takes here by itself."""
    if precision == "auto":
        half = device.type == "cuda" and traits_of(network).supports_half
        precision = "fp16" if half else "fp32"
        if device.type == "cpu" and runtimes.prefers_bf16(network, backend):  # type: ignore[arg-type]
            precision = "bf16"
    if backend != "auto":
        return backend, precision
    wanted = (
        "openvino"
        if device.type == "cpu" and isinstance(network, Network) and installed("openvino")
        else "torch"
    )
    return wanted, precision


def _pairs(device: torch.device, precision: str, backend: str) -> Iterable[tuple[str, str]]:
    """(backend, precision) to try on a device."""
    gpu = device.type == "cuda"
    names = ["torch"]
    if gpu:
        names += ["cudagraphs", *(["triton"] if convolution.available() else [])]
    elif device.type == "cpu":
        names += [name for name in ("openvino", "onnxruntime") if installed(name)]
    if backend != "auto":
        names = [backend]
    elif gpu and precision in EIGHT_BITS:
        names = ["triton"]
    for name in names:
        precisions = ["fp32"]
        if name == "torch" and gpu:
            precisions = ["fp16", "bf16", "fp32"]
        elif name in ("torch", "openvino") and device.type == "cpu" and devices.multiplies_bf16():
            precisions = ["fp32", "bf16"]
        elif name in ("cudagraphs", "triton"):
            # bf16 is as fast and coarser, fp32 slower; each would compile for a minute.
            precisions = ["fp16"]
        yield from ((name, p) for p in ([precision] if precision != "auto" else precisions))


class _Bench:
    """Trials on one size, each backend and precision prepared once."""

    def __init__(
        self,
        model: str | None,
        weights: str | Path | None,
        device: torch.device,
        size: tuple[int, int],
        rounds: int,
        options: dict[str, Any],
    ) -> None:
        self.device, self.rounds, self.options = device, rounds, options
        self.model, self.weights = model, weights
        self.width, self.height = size
        self.layout = PlaneLayout(*size)
        self._ready: dict[tuple[str, str], Deblurrer | str] = {}
        picture = random_pictures(1, self.height, self.width)
        luma = picture.mean(1).mul(219).add(16).to(torch.uint8)
        chroma = [torch.full((1, *shape), 128, dtype=torch.uint8) for shape in self.layout.shapes]
        self._planes = [luma, *chroma[1:]]
        self._reference: Tensor | None = None

    def deblurrer(self, trial: Trial) -> Deblurrer | str:
        """For a trial's backend and precision, or why there is none."""
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
        """What is asked for, or what this backend is given by default; on a GPU, a middling one."""
        if asked != "auto":
            return asked
        if self.device.type != "cpu":
            return 4
        ready = self.deblurrer(Trial(backend, precision, 1, None))
        return 1 if isinstance(ready, str) else ready.side_by_side(self.height, self.width)

    def tile_that_fits(self, backend: str, precision: str) -> int | None:
        """None where whole pictures are predicted to fit the memory that is free."""
        ready = self.deblurrer(Trial(backend, precision, 1, None))
        free = free_memory(self.device)
        if free is None or isinstance(ready, str):
            return None
        fits = ready.memory_needed(self.height, self.width) < free / 2
        return None if fits else _TILES[1]

    def fits(self, trial: Trial) -> bool:
        """Whether the memory that is free is predicted to do."""
        ready = self.deblurrer(trial)
        if isinstance(ready, str):
            return False
        return trial.batch <= ready.fitting_batch(self.height, self.width)

    def let_go(self, best: Trial) -> None:
        """Free what other backends and precisions hold; graphs have memory of their own."""
        for key in set(self._ready) - {(best.backend, best.precision)}:
            del self._ready[key]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measure(self, trials: list[Trial]) -> None:
        """All trials in turn, round by round, after each was prepared and held to fp32 torch."""
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
        # Colour is no part of what is tried: without its kernels all trials go the same way.
        harmless = (color.FALLBACK, runtimes.NOT_KEPT)
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


def format_sweep(sweep: Sweep) -> str:
    """The table a person reads."""
    lines = [
        f"{sweep.model} on {sweep.device}, {sweep.size}, frame to frame on the device",
        "",
        f"  {'backend':<12}{'precision':<10}{'batch':>5}{'tile':>7} {'frames/s':>10}"
        f"{'dB to fp32':>12} {'memory':>10}   slowest and fastest round",
    ]
    for trial in sweep.trials:
        tile = "whole" if trial.tile is None else str(trial.tile)
        head = f"  {trial.backend:<12}{trial.precision:<10}{trial.batch:>5}{tile:>7}"
        if trial.failure:
            lines.append(f"{head}   {trial.failure}")
            continue
        rate = statistics.median(trial.rounds)
        same = "same" if math.isinf(trial.decibels) else f"{trial.decibels:.1f}"
        remark = f"   {min(trial.rounds):.2f} to {max(trial.rounds):.2f}"
        remark += "   <- chosen" if trial is sweep.best else ""
        remark += "   differs too much" if trial.decibels < AGREEMENT else ""
        lines.append(f"{head} {rate:>10.2f}{same:>12} {trial.memory / 1e9:>7.2f} GB{remark}")
    lines.append("")
    if any(trial.rate > sweep.best.rate for trial in sweep.trials):
        lines.append(
            "  a setting replaces the one before it when it is faster in every round that both ran "
            "in, by 3 % in the middle one"
        )
    if sweep.kept:
        lines.append(f"  kept: {sweep.model} at {sweep.size} is run so here from now on")
    elif (asked := sweep.best.precision) in EIGHT_BITS:
        lines.append(
            f"  not kept: {asked} is never chosen unasked; --precision {asked} asks for it"
        )
    else:
        lines.append("  not kept")
    return "\n".join([*lines, *(f"  note: {note}" for note in sweep.notes)])
