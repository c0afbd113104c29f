"""What travels between the parts: pictures as Y'CbCr (or RGB, or gray) planes with their times.

Value types only: knows no files, no networks, no threads. `Frame.carrier` is whatever the reader
needs to hand to the writer with the planes (the decoded `av.VideoFrame`, whose memory the planes
are); everything between treats it as opaque.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.uint8] | NDArray[np.uint16]
Matrix = Literal["bt601", "bt709", "bt2020", "smpte240m", "fcc", "ycgco"]
ChromaSiting = Literal["left", "center", "topleft"]


@dataclass(frozen=True)
class PlaneLayout:
    """How the planes of a frame are to be read.

    kind: "yuv" (planes Y', Cb, Cr), "rgb" (planes G, B, R, as FFmpeg's gbrp) or "gray" (Y').
    depth: bits that carry the sample, 8 to 16, in the low bits of uint8 (8) or uint16 (more).
    chroma_shift: log2 of the horizontal and vertical chroma subsampling; a chroma plane is
    ceil(height / 2^v) rows by ceil(width / 2^h) columns, as in FFmpeg.
    full_range: codes 0…2^depth − 1 are black to white (rgb is always full range).
    interlaced: rows of two moments alternate; each field is a picture of its own. Chroma rows
    alternate likewise.
    An alpha plane is not part of this: it stays with the carrier, untouched.
    """

    width: int
    height: int
    depth: int = 8
    kind: Literal["yuv", "rgb", "gray"] = "yuv"
    chroma_shift: tuple[int, int] = (1, 1)
    full_range: bool = False
    matrix: Matrix = "bt709"
    siting: ChromaSiting = "left"
    interlaced: bool = False

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each plane."""
        luma = (self.height, self.width)
        if self.kind == "gray":
            return (luma,)
        if self.kind == "rgb":
            return (luma, luma, luma)
        h, v = self.chroma_shift
        chroma = (-(-self.height >> v), -(-self.width >> h))
        return (luma, chroma, chroma)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """uint8 for 8 bits, uint16 above."""
        return np.uint8 if self.depth == 8 else np.uint16


@dataclass
class Frame:
    """One decoded picture. `planes` are writable views: whoever restores writes into them.

    pts and duration count `time_base` seconds; stream is the index of the stream in its file.
    """

    planes: tuple[Plane, ...]
    layout: PlaneLayout
    pts: int
    time_base: Fraction
    duration: int = 0
    stream: int = 0
    carrier: Any = None
    #: The same picture in a GPU's memory, for who can take it from there: decoded hardware planes,
    #: or tensors (rows, columns) of the layout (see `vdeblur.inference.gpu_frames`).
    on_device: Any = None
    #: (4, h, w) float32 at any size: how each place moves while the shutter is open, chord x, y and
    #: bend x, y in pixels of the luma plane (see `vdeblur.networks.taps`). None: not known.
    motion: NDArray[np.float32] | None = None
    #: The frames before and after, as far as they show the same scene: a
    #: `vdeblur.motion.neighbours.Around`.
    around: Any = None

    @property
    def time_seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass
class FrameBatch:
    """Frames of one layout, to be restored together."""

    frames: Sequence[Frame]

    @property
    def layout(self) -> PlaneLayout:
        """The layout that all frames share."""
        return self.frames[0].layout

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class VideoInfo:
    """What a reader knows of a video stream before and after the first frame is decoded.

    frame_count and duration_seconds are what the container claims, None when it claims nothing;
    fps is the average rate.
    """

    width: int
    height: int
    pix_fmt: str
    codec: str
    fps: Fraction | None
    time_base: Fraction
    duration_seconds: float | None
    frame_count: int | None
    layout: PlaneLayout
