"""vdeblur: deblur video files, GoPro footage and live camera streams.

    import vdeblur

    report = vdeblur.deblur_video("ride.mp4")            # writes ride_deblurred.mp4
    for sharp in vdeblur.deblur_frames(frames):          # (H, W, 3) uint8 RGB arrays
        ...

Names are loaded on first use, so that importing the package costs nothing. The package logs below
the logger "vdeblur", which is silent until the program that imports it configures logging.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from vdeblur import lazy
from vdeblur.version import __version__ as __version__

if TYPE_CHECKING:
    from vdeblur.deblur import Report, deblur_frames, deblur_video
    from vdeblur.errors import (
        Cancelled,
        DeviceError,
        EncoderError,
        InputError,
        MissingPackageError,
        ModelError,
        OutputError,
        UsageError,
        VdeblurError,
    )
    from vdeblur.frames import Frame, FrameBatch, PlaneLayout, VideoInfo
    from vdeblur.inference.deblurrer import Deblurrer
    from vdeblur.live.options import SessionOptions
    from vdeblur.live.stream import LiveFrame, Stream, deblur_stream
    from vdeblur.media.encoders import EncodeOptions
    from vdeblur.media.read_options import ReadOptions
    from vdeblur.media.reader import VideoReader
    from vdeblur.media.verify import Check, verify
    from vdeblur.media.writer import VideoWriter

__all__ = [
    "Cancelled",
    "Check",
    "Deblurrer",
    "DeviceError",
    "EncodeOptions",
    "EncoderError",
    "Frame",
    "FrameBatch",
    "InputError",
    "LiveFrame",
    "MissingPackageError",
    "ModelError",
    "OutputError",
    "PlaneLayout",
    "ReadOptions",
    "Report",
    "SessionOptions",
    "Stream",
    "UsageError",
    "VdeblurError",
    "VideoInfo",
    "VideoReader",
    "VideoWriter",
    "deblur_frames",
    "deblur_stream",
    "deblur_video",
    "verify",
]

_HOMES = {
    "deblur": ("Report", "deblur_frames", "deblur_video"),
    "live.options": ("SessionOptions",),
    "live.stream": ("LiveFrame", "Stream", "deblur_stream"),
    "inference.deblurrer": ("Deblurrer",),
    "media.encoders": ("EncodeOptions",),
    "errors": (
        "Cancelled",
        "DeviceError",
        "EncoderError",
        "InputError",
        "MissingPackageError",
        "ModelError",
        "OutputError",
        "UsageError",
        "VdeblurError",
    ),
    "frames": ("Frame", "FrameBatch", "PlaneLayout", "VideoInfo"),
    "media.read_options": ("ReadOptions",),
    "media.reader": ("VideoReader",),
    "media.verify": ("Check", "verify"),
    "media.writer": ("VideoWriter",),
}


logging.getLogger(__name__).addHandler(logging.NullHandler())

# torch's runtime reads this once, when torch is imported. By default, its threads spin while they
# wait for each other, and take the cores from encoders and other programs.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
elif "OMP_WAIT_POLICY" not in os.environ:
    logging.getLogger(__name__).info(
        "torch was imported before vdeblur: its waiting threads keep the cores busy, which is slow "
        "next to other programs; import vdeblur first, or set OMP_WAIT_POLICY=PASSIVE"
    )

# Likewise: operations that torch lacks on Apple's GPUs are computed on the CPU.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__getattr__, __dir__ = lazy.loader(__name__, _HOMES)
