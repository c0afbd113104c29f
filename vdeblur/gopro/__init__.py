"""GoPro footage: recordings of many chapters, all that the camera recorded, and its own telemetry.

    from vdeblur import gopro

    for job in gopro.jobs(gopro.find(["/media/card"]), folder=Path("restored")):
        if not gopro.finished(job):
            gopro.restore(job)

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vdeblur.gopro.chapters import join
    from vdeblur.gopro.plan import Blur, Plan, estimate, look, measure_blur
    from vdeblur.gopro.recordings import Recording, find, recording_of
    from vdeblur.gopro.restoring import THRESHOLD, Job, finished, gate, jobs, restore
    from vdeblur.gopro.telemetry import Telemetry

__all__ = [
    "THRESHOLD",
    "Blur",
    "Job",
    "Plan",
    "Recording",
    "Telemetry",
    "estimate",
    "find",
    "finished",
    "gate",
    "jobs",
    "join",
    "look",
    "measure_blur",
    "recording_of",
    "restore",
]

_HOMES = {
    "recordings": ("Recording", "find", "recording_of"),
    "plan": ("Blur", "Plan", "estimate", "look", "measure_blur"),
    "restoring": ("THRESHOLD", "Job", "finished", "gate", "jobs", "restore"),
    "telemetry": ("Telemetry",),
    "chapters": ("join",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"vdeblur.gopro.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
