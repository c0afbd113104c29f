"""GoPro footage: recordings of many chapters, all that the camera recorded, its telemetry.

    from vdeblur import gopro

    for job in gopro.jobs(gopro.find_recordings(["/media/card"]), folder=Path("restored")):
        if not gopro.finished(job):
            gopro.restore(job)

`recordings` knows file names, `chapters` and `highlights` join files, `telemetry`, `motion` and
`sharpness` measure blur and motion, `job`, `restoring` and `journal` write outputs, `plan`
estimates what that takes. Networks, codecs and containers are other folders' work.

Names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.gopro.chapters import join
    from vdeblur.gopro.job import Job, jobs
    from vdeblur.gopro.journal import finished
    from vdeblur.gopro.plan import Blur, Plan, estimate, measure_blur, plan_job
    from vdeblur.gopro.recordings import Recording, find_recordings, recording_of
    from vdeblur.gopro.restoring import THRESHOLD, RestoreOptions, blur_filter, restore
    from vdeblur.gopro.telemetry import Telemetry

__all__ = [
    "THRESHOLD",
    "Blur",
    "Job",
    "Plan",
    "Recording",
    "RestoreOptions",
    "Telemetry",
    "blur_filter",
    "estimate",
    "find_recordings",
    "finished",
    "jobs",
    "join",
    "measure_blur",
    "plan_job",
    "recording_of",
    "restore",
]

_HOMES = {
    "chapters": ("join",),
    "job": ("Job", "jobs"),
    "journal": ("finished",),
    "plan": ("Blur", "Plan", "estimate", "measure_blur", "plan_job"),
    "recordings": ("Recording", "find_recordings", "recording_of"),
    "restoring": ("THRESHOLD", "RestoreOptions", "blur_filter", "restore"),
    "telemetry": ("Telemetry",),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
