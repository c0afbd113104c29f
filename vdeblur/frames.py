"""Value types that pass between the parts: frames of Y'CbCr, RGB or gray planes with their times.

Knows no files, no networks, no threads. `Frame.source_frame` is opaque to every part but the reader
and the writer: the decoded `av.VideoFrame`, whose memory the planes share.
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
    """Interpretation of a frame's planes.

    An alpha plane is not part of the layout: it stays with the source frame, unchanged.

    Attributes:
        width: Columns of the luma plane.
        height: Rows of the luma plane.
        depth: Bits of a sample, 8 to 16, in the low bits of uint8 (8) or uint16 (more).
        kind: "yuv" (planes Y', Cb, Cr), "rgb" (planes G, B, R, as FFmpeg's gbrp) or "gray" (Y').
        chroma_shift: log2 of the horizontal and vertical chroma subsampling. A chroma plane has
            ceil(height / 2^v) rows and ceil(width / 2^h) columns, as in FFmpeg.
        full_range: Codes 0 to 2^depth − 1 are black to white; RGB is always full range.
        matrix: Matrix from RGB to Y'CbCr.
        siting: Position of a chroma sample among its luma samples.
        interlaced: Rows of two moments alternate, chroma rows too; each field is a picture of its
            own.
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
    """A decoded picture.

    Attributes:
        planes: Writable views; restoration overwrites them.
        layout: Interpretation of the planes.
        pts: Presentation time, in units of `time_base`.
        time_base: Seconds per unit.
        duration: Time on screen, in units of `time_base`; 0 if unknown.
        stream: Index of the stream in its file.
        source_frame: The decoder's own frame, for the writer.
    """

    planes: tuple[Plane, ...]
    layout: PlaneLayout
    pts: int
    time_base: Fraction
    duration: int = 0
    stream: int = 0
    source_frame: Any = None
    #: The same picture in GPU memory: decoded hardware planes, or tensors (rows, columns) of the
    #: layout (see `vdeblur.inference.gpu_frames`).
    on_device: Any = None
    #: Copies of the planes in pinned host memory, by `vdeblur.inference.transfers.Overlap.staged`.
    staged: Any = None
    #: Restored planes that `vdeblur.inference.transfers.settle` has yet to copy into the frame's.
    restored: Any = None
    #: (4, h, w) float32 at any size: motion while the shutter is open, chord x, y and bend x, y in
    #: pixels of the luma plane (see `vdeblur.networks.taps`). None if unknown.
    motion: NDArray[np.float32] | None = None
    #: The frames before and after where they show the same scene: a
    #: `vdeblur.motion.neighbours.Around`.
    around: Any = None

    @property
    def time_seconds(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)


@dataclass
class FrameBatch:
    """Frames that share a layout and are restored together."""

    frames: Sequence[Frame]

    @property
    def layout(self) -> PlaneLayout:
        """Layout of every frame."""
        return self.frames[0].layout

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video stream.

    Attributes:
        width: Columns.
        height: Rows.
        pix_fmt: Pixel format, by FFmpeg's name.
        codec: Codec, by FFmpeg's name.
        fps: Average frames per second.
        time_base: Seconds per unit of time.
        duration_seconds: Duration that the container declares; None if it declares none.
        frame_count: Number of frames that the container declares; None if it declares none.
        layout: Interpretation of the planes.
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
