"""How sharp the pictures are, by themselves: what the telemetry's estimate is checked against.

Knows no telemetry; reads frames through `vdeblur.media.reader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from vdeblur.media.joined_file import for_libav

_FAR = 12  # pixels: longer blurs are as unsharp as blurs of this length
_MIDDLE = (1080, 1920)  # rows and columns that are looked at


def sharpness(luma: NDArray[np.generic]) -> float:
    """How fine the detail of a picture (rows, columns) is, 0 to about 1: lower is more blurred.

    The mean difference of neighbours over that of pixels twelve apart, across or down, whichever is
    the lower: motion blurs along one direction. Contrast cancels out; a flat picture gives NaN.
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


def measure(path: Path, *, frames: int = 400) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(times in seconds, sharpness) of at most about `frames` frames, spread over the video.

    All frames of a short video; of a long one the keyframes, or as many of them as are asked for.
    A codec's own ripple is taken out: pictures far from their keyframe are coded softer, so each is
    compared with the others at its distance.
    """
    found = [item for item in _pictures(path, frames) if np.isfinite(item[1])]
    values = np.array([value for _, value, _ in found])
    distance = np.array([since for _, _, since in found])
    for since in np.unique(distance):
        alike = distance == since
        values[alike] *= np.median(values) / np.median(values[alike]) if alike.sum() > 4 else 1
    return np.array([at for at, _, _ in found]), values


def _pictures(path: Path, frames: int) -> Iterator[tuple[float, float, int]]:
    """(time in seconds, sharpness, frames since the last keyframe)."""
    source = for_libav(path)
    try:
        with av.open(source) as container:
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
    return frame.to_ndarray(format="gray16le" if deep else "gray")


def agreement(blurred: NDArray[np.bool_], sharp: NDArray[np.float64]) -> float:
    """Of all pairs of a frame said to be blurred and one said not to be, the share in which the
    first is the less sharp: 1 is full agreement, 0.5 chance. NaN without such a pair.
    """
    bad, good = sharp[blurred], sharp[~blurred]
    if not len(bad) or not len(good):
        return float("nan")
    good = np.sort(good)
    above = len(good) - np.searchsorted(good, bad, side="right")
    return float(above.sum() / (len(bad) * len(good)))


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's: −1 when one falls wherever the other rises, 0 when nothing connects them."""
    if len(a) < 8:
        return float("nan")
    ranks = [np.argsort(np.argsort(x)).astype(np.float64) for x in (a, b)]
    spread = [float(r.std()) for r in ranks]
    if not all(spread) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    product = ((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean()
    return float(product / spread[0] / spread[1])
