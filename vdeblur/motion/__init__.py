"""How each place of a picture moves while the shutter is open: optical flow times exposure.

    from vdeblur.motion import Guide

    for frame in Guide("1/120").run(frames):   # the same frames
        frame.motion                           # (4, h, w): chord and bend, in pixels

The modules:

    guide            frames of a film → their motion during the exposure
    movement         flow to both neighbors along a film; live streams
    flow             dense flow between two pictures
    exposure         the exposure that a caller asks for
    meter            the exposure that a film's pictures show
    windows          which parts of its pictures show it
    stripes          blur length by the zeros of a spectrum
    changes          blur length by how a spectrum changes from picture to picture
    spectra          power spectra of windows
    single_picture   the motion that a picture shows by itself
    neighbours       the frames before and after each frame
    warping          pictures along a flow

Knows no video files; only tensors, frames and, for `single_picture`, weights that ship. Names are
loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vdeblur import lazy

if TYPE_CHECKING:
    from vdeblur.motion.exposure import AUTO, Exposure, exposure_of
    from vdeblur.motion.guide import Guide
    from vdeblur.motion.meter import ExposureMeter
    from vdeblur.motion.movement import LiveTracker, Movement, follow
    from vdeblur.motion.neighbours import with_neighbours
    from vdeblur.motion.single_picture import estimate_motion, estimate_motions

__all__ = [
    "AUTO",
    "Exposure",
    "ExposureMeter",
    "Guide",
    "LiveTracker",
    "Movement",
    "estimate_motion",
    "estimate_motions",
    "exposure_of",
    "follow",
    "with_neighbours",
]

_HOMES = {
    "exposure": ("AUTO", "Exposure", "exposure_of"),
    "guide": ("Guide",),
    "meter": ("ExposureMeter",),
    "movement": ("LiveTracker", "Movement", "follow"),
    "neighbours": ("with_neighbours",),
    "single_picture": ("estimate_motion", "estimate_motions"),
}

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
