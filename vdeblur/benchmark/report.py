"""Results of benchmarks and sweeps as text for people."""

from __future__ import annotations

import math
import statistics
from functools import partial

from tabulate import tabulate

from vdeblur.benchmark.result import AGAINST, STEPS, BenchResult, Rates
from vdeblur.benchmark.sweep import AGREEMENT, Sweep, Trial

_FASTER = 1.1  # than its slowest stage, beyond noise


def format_result(result: BenchResult) -> str:
    """Lay a result out as a table, with the network's speed against ceilings below."""
    tile = "whole pictures" if result.tile is None else f"tiles of {result.tile}"
    how = f"{result.backend}, {result.precision}, batch {result.batch}, {tile}"
    if "network" not in result.rates:
        how = "nothing is computed"
    head = [
        f"{result.clip}, {result.size}, {_counted(result.frames, 'frame')}, "
        f"{_counted(result.rounds, 'round')}",
        f"{result.model} on {result.device}: {how}",
        "",
    ]
    rows = [["", "frames/s", "ms", "slowest and fastest round"], *_step_rows(result)]
    published = _published_rows(result)
    # One table, so that the lines below the network's share its columns.
    table = tabulate(
        [*rows, *published], (), "plain", colalign=("left", "right", "right", "left"),
        disable_numparse=True,
    )  # fmt: skip
    lines = [f"  {line}".rstrip() for line in table.splitlines()]
    lines[len(rows) : len(rows)] = ["", *_pipeline_lines(result), *_network_lines(result)]
    if published:
        lines += [
            _ratio("network", result.ratio(*AGAINST["network_against_published"])),
            _ratio("frame to frame", result.ratio(*AGAINST["frames_against_published"])),
        ]
    return "\n".join([*head, *lines, *(f"  note: {note}" for note in result.notes)])


def _step_rows(result: BenchResult) -> list[list[str]]:
    rows = []
    for name in STEPS:
        if name not in result.rates:
            computed = "network" in result.rates
            missing = "the network takes none" if computed else "nothing is computed"
            missing = "nothing is copied" if name in ("upload", "download") else missing
            rows.append([name, "-", "-", missing])
            continue
        remarks = ["<- slowest stage"] if name == result.slowest else []
        remarks += [result.encoder] if name == "encode" else []
        rows.append(_row(result, name, *remarks))
    share = ""
    if "restoring" in result.rates:
        share = f": {result.rate('planes to planes') / result.rate('restoring'):.2f} of restoring"
    if result.copies_hidden is not None:
        share += f", {result.copies_hidden:.0%} of the copies hidden"
    rows += [
        _row(result, "pipeline", f"{result.efficiency:.2f} of the slowest stage"),
        _row(result, "planes to planes", f"in memory, without codecs{share}"),
    ]
    if "network" in result.rates:
        remark = "the network by a clock that does not wait for the device"
        rows.append(_row(result, "asynchronous", remark))
    return rows


def _published_rows(result: BenchResult) -> list[list[str]]:
    if "published frames" not in result.rates:
        return []
    return [
        _row(result, "published network", "eager, fp32, one frame, synchronised"),
        _row(result, "published frames", "with their conversion on the host"),
    ]


def _row(result: BenchResult, name: str, *remarks: str) -> list[str]:
    rates = result.rates[name]
    slow, fast = rates.spread
    told = "   ".join([f"{slow:.1f} to {fast:.1f}", *remarks])
    return [name, f"{rates.median:.1f}", f"{1000 / rates.median:.2f}", told]


def _pipeline_lines(result: BenchResult) -> list[str]:
    """What bounds the pipeline, and by how much."""
    if not result.busy:
        return []
    (first, most), *others = sorted(result.busy.items(), key=lambda part: -part[1])
    beside = ", ".join(f"{name} {share:.0%}" for name, share in others)
    lines = [f"  pipeline: bound by {first}, busy {most:.0%} of the time; beside it {beside}"]
    if "motion" in result.rates and result.efficiency > _FASTER:
        lines.append("  pipeline: frames that hardly move were not computed, unlike in the stages")
    return lines


def _network_lines(result: BenchResult) -> list[str]:
    lines = []
    if result.network_flops is not None and result.network_flop is not None:
        share = result.network_flops / result.peak_flops
        lines.append(
            f"  network: {result.network_flop / 1e9:.1f} GFLOP a frame, "
            f"{result.network_flops / 1e12:.3g} TFLOP/s, {share:.0%} of the "
            f"{result.peak_flops / 1e12:.3g} TFLOP/s of large products here"
        )
    if result.ceiling is not None and "network" in result.rates:
        reached = result.rate("network") / result.ceiling
        # Some layers' shapes suit a device better than any that was tried; fused ones save bytes.
        beyond = " (its layers are faster than the products measured)" if reached > 1 else ""
        lines.append(
            f"  ceiling: {result.ceiling:.1f} frames/s by that and a copy's "
            f"{result.copy_bytes / 1e9:.0f} GB/s, layer by layer; {reached:.0%} of it reached"
            f"{beyond}"
        )
    peak = result.memory_bytes
    whole = "the GPU's allocations" if result.memory_of == "GPU" else "the whole process"
    reached_gb = "" if peak is None else f"; {whole}, {peak / 1e9:.2f} GB at the peak"
    if "network" in result.rates:
        batch = f"a batch of {_counted(result.batch, 'frame')} predicted to take"
        lines.append(f"  memory: {batch} {result.memory_predicted / 1e9:.2f} GB{reached_gb}")
    elif peak is not None:
        lines.append(f"  memory: {whole}, {peak / 1e9:.2f} GB at the peak")
    return lines


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _ratio(name: str, ratio: Rates) -> str:
    slow, fast = ratio.spread
    return f"  {name}: {ratio.median:.2f}× the authors' way ({slow:.2f} to {fast:.2f})"


def format_sweep(sweep: Sweep) -> str:
    """Lay the trials of a sweep out as a table, with the choice and its reasons."""
    heading = ("backend", "precision", "batch", "tile", "frames/s", "dB to fp32", "memory")
    rows = [[*heading, "slowest and fastest round"], *map(partial(_trial_row, sweep), sweep.trials)]
    table = tabulate(
        rows, (), "plain", colalign=("left", "left", *["right"] * 5, "left"), disable_numparse=True
    )
    lines = [
        f"{sweep.model} on {sweep.device}, {sweep.size}, frame to frame on the device",
        "",
        *(f"  {line}".rstrip() for line in table.splitlines()),
    ]
    lines.append("")
    if any(trial.rate > sweep.best.rate for trial in sweep.trials):
        lines.append(
            "  a setting replaces the one before it when it is faster in every round that both ran "
            "in, by 3 % in the middle one"
        )
    if sweep.kept:
        lines.append(f"  kept: {sweep.model} at {sweep.size} is run so here from now on")
    elif sweep.best.precision == "int8":
        lines.append("  not kept: int8 is never chosen unasked; `precision='int8'` asks for it")
    else:
        lines.append("  not kept")
    return "\n".join([*lines, *(f"  note: {note}" for note in sweep.notes)])


def _trial_row(sweep: Sweep, trial: Trial) -> list[str]:
    tile = "whole" if trial.tile is None else str(trial.tile)
    head = [trial.backend, trial.precision, str(trial.batch), tile]
    if trial.failure:
        return [*head, "-", "-", "-", trial.failure]
    remarks = [f"{min(trial.rounds):.2f} to {max(trial.rounds):.2f}"]
    remarks += ["<- chosen"] if trial is sweep.best else []
    remarks += ["differs too much"] if trial.decibels < AGREEMENT else []
    same = "same" if math.isinf(trial.decibels) else f"{trial.decibels:.1f}"
    rate = statistics.median(trial.rounds)
    return [*head, f"{rate:.2f}", same, f"{trial.memory / 1e9:.2f} GB", "   ".join(remarks)]
