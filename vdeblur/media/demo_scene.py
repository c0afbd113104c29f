"""Generate a moving scene: a panning texture, and squares that cross it. Knows libav.

The same size yields the same scene, so measurements on it can be repeated.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import UsageError

_FPS = 30


def write(path: Path, size: tuple[int, int], *, count: int) -> Path:
    """Write the scene as H.264, 8-bit 4:2:0, at 30 frames per second.

    Args:
        path: The output.
        size: Width and height in pixels.
        count: Number of frames.

    Returns:
        The output.

    Raises:
        UsageError: The size is odd, or out of H.264's range.
    """
    width, height = size
    if width % 2 or height % 2 or not (16 <= width <= 8192 and 16 <= height <= 8192):
        raise UsageError(
            f"size is {width}x{height}: choose even numbers from 16 to 8192, such as 1280x720"
        )
    dice = np.random.default_rng(0)
    # Larger than the frame by the distance of the pan.
    reach = 4 * 60
    luma = _texture(dice, width + reach, height + reach // 2)
    blue, red = (128 + (luma[k::2, ::2] - 128) * share for k, share in ((0, 0.3), (1, -0.2)))
    planes = [np.clip(p, 16, 235).astype(np.uint8) for p in (luma, blue, red)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=_FPS, options={"preset": "veryfast", "crf": "20"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _FPS)
        for number in range(count):
            frame = av.VideoFrame(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            # Back and forth, two pixels per frame.
            left = 2 * (2 * abs(60 - number % 120) // 2)
            top = left // 4 * 2
            for k, (plane, target) in enumerate(zip(planes, frame.planes, strict=True)):
                y, x = (top, left) if k == 0 else (top // 2, left // 2)
                rows = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)  # type: ignore[call-overload]
                rows[:, : target.width] = plane[y : y + target.height, x : x + target.width]
                if k == 0:
                    _squares(rows[:, : target.width], number)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _texture(dice: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Return noise in octaves, stronger the coarser, as in photographs; nominally 16 to 235."""
    picture = np.zeros((height, width))
    for octave in range(1, 7):
        step = 1 << octave
        coarse = dice.random((-(-height // step), -(-width // step))) - 0.5
        picture += 22 * octave * np.kron(coarse, np.ones((step, step)))[:height, :width]
    return 125 + picture * (60 / max(1.0, float(picture.std())))


def _squares(luma: NDArray[np.uint8], number: int) -> None:
    height, width = luma.shape
    side = max(8, height // 6)
    for k, speed in enumerate((7, -11, 5)):
        x = (k * width // 3 + speed * number) % max(1, width - side)
        y = (k + 1) * height // 5
        luma[y : y + side, x : x + side] = (235, 16, 180)[k]
