"""Measure how sharp pictures are, to check the blur that telemetry predicts against them.

Knows no telemetry; decodes frames with libav.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.pixel_formats import CONVERTING

_FAR = 12  # pixels: longer blurs count as blurs of this length
_MIDDLE = (1080, 1920)  # rows and columns in the middle of the picture that are measured


def sharpness(luma: NDArray[np.generic]) -> float:
    """Measure the fineness of a picture's detail.

    The measure is the mean difference of neighbors over that of pixels twelve apart, horizontally
    or vertically, whichever is lower: motion blurs along a single direction. Contrast cancels out.

    Args:
        luma: (rows, columns), of any range and dtype.

    Returns:
        0 to about 1: lower is more blurred. NaN for a flat picture.
    """
    rows, columns = luma.shape
    top, left = max(0, (rows - _MIDDLE[0]) // 2), max(0, (columns - _MIDDLE[1]) // 2)
    picture = luma[top : top + _MIDDLE[0], left : left + _MIDDLE[1]].astype(np.float32)
    ratios = []
    for axis in (0, 1):
        near = np.abs(np.diff(picture, axis=axis)).mean()
        ahead, behind = (
            (picture[_FAR:], picture[:-_FAR])
            if axis == 0
            else (picture[:, _FAR:], picture[:, :-_FAR])
        )
        far = np.abs(ahead - behind).mean()
        ratios.append(float(near / far) if far > 0 else float("nan"))
    return float(np.nanmin(ratios)) if np.isfinite(ratios).any() else float("nan")


def measure_sharpness(
    path: Path, *, frames: int = 400
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure the sharpness of frames spread over a video.

    Measures all frames of a short video, and the keyframes, or `frames` of them, of a long one.
    Compensates the codec's ripple: pictures far from their keyframe are coded softer, so each is
    scaled by the median of the pictures at the same distance.

    Args:
        path: A file, or a `Joined` recording.
        frames: Approximate number of frames to measure.

    Returns:
        (n,) times in seconds and (n,) sharpness; see `sharpness`.
    """
    found = [item for item in _pictures(path, frames) if np.isfinite(item[1])]
    values = np.array([value for _, value, _ in found])
    distance = np.array([since for _, _, since in found])
    for since in np.unique(distance):
        alike = distance == since
        values[alike] *= np.median(values) / np.median(values[alike]) if alike.sum() > 4 else 1
    return np.array([at for at, _, _ in found]), values


def _pictures(path: Path, frames: int) -> Iterator[tuple[float, float, int]]:
    """Yield (time in seconds, sharpness, frames since the last keyframe)."""
    source = for_libav(path)
    try:
        with open_container(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            count = stream.frames or frames + 1
            if count > frames:
                stream.codec_context.skip_frame = "NONKEY"
            length = float((stream.duration or 0) * (stream.time_base or 0))
            gap = length / frames if count > frames else 0.0
            after, since = float("-inf"), 0
            for packet in container.demux(stream):
                try:
                    decoded = packet.decode()
                except av.error.FFmpegError:
                    continue
                for frame in decoded:
                    since = 0 if frame.key_frame else since + 1
                    at = frame.time or 0.0
                    if at < after:
                        continue
                    after = at + gap
                    yield at, sharpness(_luma(frame)), since
    finally:
        if not isinstance(source, str):
            source.close()


def _luma(frame: av.VideoFrame) -> NDArray[np.generic]:
    deep = frame.format.components[0].bits > 8
    if frame.format.name.startswith("yuv"):
        plane = frame.planes[0]
        dtype = np.dtype("<u2" if deep else "u1")
        rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)  # type: ignore[call-overload]
        view: NDArray[np.generic] = rows[: frame.height, : frame.width]
        return view
    return frame.to_ndarray(format="gray16le" if deep else "gray", threads=CONVERTING)


def pairwise_agreement(blurred: NDArray[np.bool_], sharp: NDArray[np.float64]) -> float:
    """Return the share of pairs whose frame predicted as blurred is the less sharp of both.

    Args:
        blurred: (n,), whether a frame is predicted as blurred; a pair has a frame of each kind.
        sharp: (n,), measured sharpness.

    Returns:
        1 for full agreement, 0.5 for chance, NaN without a pair.
    """
    bad, good = sharp[blurred], sharp[~blurred]
    if not len(bad) or not len(good):
        return float("nan")
    good = np.sort(good)
    above = len(good) - np.searchsorted(good, bad, side="right")
    return float(above.sum() / (len(bad) * len(good)))


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two (n,) arrays, −1 to 1; NaN for fewer than 8."""
    if len(a) < 8:
        return float("nan")
    ranks = [np.argsort(np.argsort(x)).astype(np.float64) for x in (a, b)]
    spread = [float(r.std()) for r in ranks]
    if not all(spread) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    product = ((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean()
    return float(product / spread[0] / spread[1])
