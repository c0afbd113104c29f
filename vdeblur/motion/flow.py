"""Dense optical flow between two pictures, both ways, and whether they show the same scene.

Pictures are reduced to half their size, within 320 × 180 to 640 × 360, and matched both ways by DIS
(T. Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016). Places whose way
back does not return are hidden in one of the two pictures, and filled from trusted places around
them. Pictures of different scenes are not matched. Knows no files and no networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vdeblur.frames import Frame

Floats = NDArray[np.float32]

#: Limits of the area, in pixels, that pictures are reduced to before they are matched: a quarter of
#: theirs, by a whole ratio. Live pictures, which must not wait, are always reduced to the first.
LEAST_AREA, MOST_AREA = 320 * 180, 640 * 360
_LEAST = 16  # pixels per side that DIS needs; smaller pictures show no visible motion
#: Reduced pixels per vector of the field, in rows and in columns.
_STEP = 4
#: Gaussian kernels (sigma in steps, weight) that vectors are averaged with: where nothing near is
#: trusted, places farther away decide.
_KERNELS = ((0.75, 1.0), (3.0, 0.02), (12.0, 0.0004))
#: Thresholds of the share of places whose way back returns (measured: at most 0.16 in 323 cuts,
#: 0.37 with a shift; at least 0.83 in one scene whose shift was found). Below the first, a shift of
#: the whole picture is tried; below the second it is a cut; between them the detail of the matched
#: pictures must correlate by the third (cuts: at most 0.25).
_SURE, _CUT, _ALIKE = 0.5, 0.12, 0.35


@dataclass(frozen=True)
class Flow:
    """Displacement of places to another picture.

    Attributes:
        field: (2, h, w) float32, x and y in reduced pixels.
        trust: (h, w) float32 in [0, 1].
    """

    field: Floats
    trust: Floats


#: Flow from one picture to another, and back.
FlowPair = tuple[Flow, Flow]


# --- pictures -----------------------------------------------------------------------------------


def reduced(
    frame: Frame, *, most: int = MOST_AREA
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Return a reduced 8-bit copy of a frame's luma, for matching.

    Args:
        frame: any frame; of an interlaced one, the upper field is used.
        most: approximate upper limit of the copy's area in pixels.

    Returns:
        The copy (h, w), and the pixels of the luma plane per pixel of the copy (x, y).
    """
    rows, layout = plane_rows(frame), frame.layout
    height, width = rows.shape
    area = layout.width * layout.height
    wanted = min(max(area / 4, LEAST_AREA), most)
    ratio = max(1, round(math.sqrt(area / wanted)))
    down = max(1, ratio // 2) if layout.interlaced else ratio
    size = max(1, round(width / ratio)), max(1, round(height / down))
    if not rows.flags.c_contiguous and rows.strides[1] != rows.itemsize:
        rows = np.ascontiguousarray(rows)
    small = cv2.resize(rows, size, interpolation=cv2.INTER_AREA)
    if layout.depth > 8:
        small = cv2.convertScaleAbs(small, alpha=1 / (1 << (layout.depth - 8)))
    elif small is rows or np.shares_memory(small, rows):
        small = small.copy()
    return np.asarray(small, np.uint8), (layout.width / size[0], layout.height / size[1])


def plane_rows(frame: Frame) -> NDArray[Any]:
    """Return the plane that carries luma (green of RGB); of interlaced frames, the upper field."""
    plane: NDArray[Any] = frame.planes[0]
    return plane[::2] if frame.layout.interlaced else plane


def same_picture(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> bool:
    """Return whether two reduced pictures are one picture shown twice, equal except for coding.

    They must nowhere differ by more than a motion of a twelfth of a pixel would cause.
    """
    if here.shape != there.shape:
        return False
    size = max(1, here.shape[1] // 8), max(1, here.shape[0] // 8)
    apart = cv2.resize(cv2.absdiff(here, there), size, interpolation=cv2.INTER_AREA)
    if apart.max() > 12:
        return False
    across = cv2.absdiff(here[:, 1:], here[:, :-1]) if here.shape[1] > 1 else here
    slope = cv2.resize(across, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return bool((apart <= 1 + slope / 12).all())


# --- matching -----------------------------------------------------------------------------------


def match_pictures(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> FlowPair | None:
    """Return the flow from one reduced picture to another, and back; None for different scenes.

    Args:
        here: (h, w), as `reduced` returns it.
        there: the same of the other picture.
    """
    if min(here.shape) < _LEAST:
        return None
    contrasts = sorted(float(cv2.meanStdDev(picture)[1][0, 0]) for picture in (here, there))
    if contrasts[0] < 0.1 * contrasts[1] - 0.2:
        return None  # one of them is blank
    there = _in_light_of(here, there)
    found = _both_ways(here, there, None)
    if found.share < _SURE:
        # Too far for DIS to find, or another scene.
        shift = _shift(here, there)
        moved = None if shift is None else _both_ways(here, there, shift)
        if moved is not None and moved.share > max(_SURE, found.share):
            found = moved
        elif found.share < _CUT or _likeness(here, there, found.forth) < _ALIKE:
            return None
    # Cuts need a strict measure; weights of places are better from a lenient one.
    return (
        _smoothed(found.forth, np.sqrt(np.sqrt(found.sure_forth))),
        _smoothed(found.back, np.sqrt(np.sqrt(found.sure_back))),
    )


@dataclass(frozen=True)
class _Found:
    """Flow forth and back, (h, w, 2) in its own pixels, at half the size of the reduced pictures.

    sure_forth, sure_back: (h, w) in [0, 1], how closely one returns to where the other began.
    """

    forth: Floats
    back: Floats
    sure_forth: Floats
    sure_back: Floats

    @property
    def share(self) -> float:
        """Share of the places in both pictures whose way back returns.

        It is near 0 for pictures of different scenes, however their light changes.
        """
        height, width = self.forth.shape[:2]
        x, y = (float(np.median(self.forth[..., i] - self.back[..., i])) / 2 for i in (0, 1))
        overlap = max(1 - abs(x) / width, 0) * max(1 - abs(y) / height, 0)
        found = float(self.sure_forth.mean() + self.sure_back.mean()) / 2
        return found / overlap if overlap > 0.1 else 0.0


def _in_light_of(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `there` with the brightness and contrast of `here`, after a fade or a flash."""
    (mean, deviation), (other, others) = (
        (float(m[0, 0]), float(d[0, 0])) for m, d in (cv2.meanStdDev(p) for p in (here, there))
    )
    if abs(mean - other) < 3:
        return there
    gain = min(max((deviation + 1) / (others + 1), 1 / 3), 3.0)
    return np.asarray(cv2.convertScaleAbs(there, alpha=gain, beta=mean - gain * other), np.uint8)


def _both_ways(
    here: NDArray[np.uint8], there: NDArray[np.uint8], shift: tuple[float, float] | None
) -> _Found:
    library: Any = cv2  # whose types lack this
    dis = library.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # Down to half the size instead of a quarter: neighbors are warped by this flow, and an error
    # of a pixel shows as a faint double edge. 2 refinements do as well as the preset's 5.
    dis.setFinestScale(1)
    dis.setVariationalRefinementIterations(2)
    start = None if shift is None else np.full((*here.shape, 2), shift, np.float32)
    ahead = dis.calc(here, there, start)
    # After a large shift, the search for the way back starts from its opposite.
    start = None if shift is None else np.full((*here.shape, 2), (-shift[0], -shift[1]), np.float32)
    forth, back = (_halved(flow) for flow in (ahead, dis.calc(there, here, start)))
    return _Found(forth, back, _returns(forth, back), _returns(back, forth))


def _halved(flow: Floats) -> Floats:
    half = (flow.shape[1] + 1) // 2, (flow.shape[0] + 1) // 2
    return np.asarray(cv2.resize(flow, half, interpolation=cv2.INTER_AREA) * np.float32(0.5))


def _shift(here: NDArray[np.uint8], there: NDArray[np.uint8]) -> tuple[float, float] | None:
    """Return the shift of the whole picture in pixels, by phase correlation; None if small."""
    size = max(here.shape[1] // 2, 1), max(here.shape[0] // 2, 1)
    a, b = (
        cv2.resize(p, size, interpolation=cv2.INTER_AREA).astype(np.float32) for p in (here, there)
    )
    (x, y), _ = cv2.phaseCorrelate(a, b, cv2.createHanningWindow(size, cv2.CV_32F))
    if not (math.isfinite(x) and math.isfinite(y)) or abs(x) + abs(y) < 8:
        return None
    return 2 * x, 2 * y


def _places(flow: Floats) -> tuple[Floats, Floats]:
    height, width = flow.shape[:2]
    x = np.asarray(flow[..., 0] + np.arange(width), np.float32)
    y = np.asarray(flow[..., 1] + np.arange(height)[:, None], np.float32)
    return x, y


def _returns(flow: Floats, back: Floats) -> Floats:
    """Return 1 where the way back ends where the flow began, falling to 0; 0 outside the picture.

    The tolerance is that of N. Sundaram et al., ECCV 2010, equation 5, in reduced pixels.
    """
    x, y = _places(flow)
    there = cv2.remap(back, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = flow + there
    error = apart[..., 0] ** 2 + apart[..., 1] ** 2
    length = flow[..., 0] ** 2 + flow[..., 1] ** 2
    inside = (x >= 0) & (y >= 0) & (x <= flow.shape[1] - 1) & (y <= flow.shape[0] - 1)
    return np.asarray(inside * np.exp(-error / (0.02 * length + 0.125)), np.float32)


def _likeness(here: NDArray[np.uint8], there: NDArray[np.uint8], flow: Floats) -> float:
    """Return the correlation, −1 to 1, of the detail of `here` and of `there` warped to it.

    Changes of light do not count. Where the only detail is grain, it is about 0.
    """
    x, y = _places(flow)
    size = flow.shape[1], flow.shape[0]
    a, b = (
        np.asarray(cv2.resize(p, size, interpolation=cv2.INTER_AREA), np.float32)
        for p in (here, there)
    )
    b = np.asarray(
        cv2.remap(b, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
    )
    inside = (x >= 0) & (y >= 0) & (x <= size[0] - 1) & (y <= size[1] - 1)
    if not inside.any():
        return 0.0
    a, b = ((p - cv2.GaussianBlur(p, (0, 0), 3))[inside] for p in (a, b))
    return float(np.dot(a, b) / np.sqrt((np.dot(a, a) + a.size) * (np.dot(b, b) + a.size)))


def _smoothed(flow: Floats, sure: Floats) -> Flow:
    """Return the flow on the field's grid, in reduced pixels, untrusted places filled."""
    size = max(1, round(flow.shape[1] * 2 / _STEP)), max(1, round(flow.shape[0] * 2 / _STEP))
    weighed = cv2.resize(
        cv2.merge([flow[..., 0] * sure, flow[..., 1] * sure, sure]),
        size,
        interpolation=cv2.INTER_AREA,
    )
    trust = np.maximum(weighed[..., 2], np.float32(1e-3))
    mixed = np.full(weighed.shape, 1e-12, np.float32)
    for sigma, share in _KERNELS:
        wide = cv2.GaussianBlur(weighed, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        mixed += np.float32(share) * np.asarray(wide, np.float32)
    field = (2 * mixed[..., :2] / mixed[..., 2:]).transpose(2, 0, 1)
    return Flow(np.ascontiguousarray(field), trust)
