"""Speed: frames per second of each step, the fastest settings, and the ceilings of the device.

    from vdeblur.benchmark import BenchOptions, bench, format_result

    print(format_result(bench("ride.mp4", options=BenchOptions(rounds=5))))

`bench` measures, `tune` searches the fastest setting and keeps it, `format_result` and
`format_sweep` lay the figures out for people. Knows the whole pipeline, and changes nothing in it.
Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.benchmark.report import format_result, format_sweep
    from vdeblur.benchmark.result import BenchResult, Rates
    from vdeblur.benchmark.run import BenchOptions, bench, load_for_speed
    from vdeblur.benchmark.sweep import Sweep, Trial, TuneOptions, tune

__all__ = [
    "BenchOptions",
    "BenchResult",
    "Rates",
    "Sweep",
    "Trial",
    "TuneOptions",
    "bench",
    "format_result",
    "format_sweep",
    "load_for_speed",
    "tune",
]

_HOMES = {
    "report": ("format_result", "format_sweep"),
    "result": ("BenchResult", "Rates"),
    "run": ("BenchOptions", "bench", "load_for_speed"),
    "sweep": ("Sweep", "Trial", "TuneOptions", "tune"),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
