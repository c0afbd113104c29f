"""Frames spread evenly over videos, for measuring what their pictures are like."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import av
import av.container
import numpy as np
from numpy.typing import NDArray

from vdeblur.errors import InputError
from vdeblur.media.image_sequences import is_pattern
from vdeblur.media.input_formats import open_container
from vdeblur.media.joined_file import for_libav
from vdeblur.media.opening import open_source, path_of
from vdeblur.media.pixel_formats import CONVERTING
from vdeblur.media.read_options import ReadOptions

#: Pictures that are taken of all sources together; ranges hardly change beyond.
COUNT = 24
_DECODED = 240  # frames of a source without enough keyframes


def sample_frames(sources: Sequence[str | Path], *, count: int = COUNT) -> list[NDArray[np.uint8]]:
    """Return up to `count` RGB pictures (H, W, 3), spread evenly over the sources.

    A source that cannot be read twice, or at all (a pipe, a damaged file), yields no pictures:
    restoring it reports what is wrong with it.
    """
    # What can be read only once is read by the restoration itself.
    readable = [s for s in sources if path_of(s) is not None or is_pattern(s)][:count]
    pictures = []
    for source in readable:
        share = max(1, count // len(readable))
        with suppress(av.FFmpegError, OSError, ValueError, IndexError, InputError):
            frames = _keyframes(source, share)
            if len(frames) < share / 2:  # a short clip, or one of few keyframes
                frames = _first_frames(source, share)
            pictures += [
                np.asarray(f.to_ndarray(format="rgb24", threads=CONVERTING), np.uint8)
                for f in frames
            ]
    return pictures


def _opened(source: str | Path) -> av.container.InputContainer:
    path = path_of(source)
    if path is None:
        return open_source(source, ReadOptions()).container
    return open_container(for_libav(path))


def _keyframes(source: str | Path, count: int) -> list[av.VideoFrame]:
    """Keyframes at or before evenly spread times, each once: none that need others are decoded."""
    found: dict[int | None, av.VideoFrame] = {}
    with _opened(source) as container:
        video = container.streams.video[0]
        video.codec_context.skip_frame = "NONKEY"
        for part in range(count if container.duration else 1):  # pictures have no duration
            if container.duration:  # microseconds
                place = container.duration * part // count
                container.seek((container.start_time or 0) + place)
            frame = next(container.decode(video), None)
            if frame is not None:
                found[frame.pts] = frame
    return list(found.values())


def _first_frames(source: str | Path, count: int) -> list[av.VideoFrame]:
    """Frames spread over the first _DECODED of a source."""
    with _opened(source) as container:
        video = container.streams.video[0]
        # Matroska does not count its frames.
        seconds = (container.duration or 0) / 1_000_000
        expected = video.frames or round(seconds * (video.average_rate or 0)) or _DECODED
        total = min(expected, _DECODED)
        frames = itertools.islice(container.decode(video), total)
        return list(itertools.islice(frames, 0, None, max(1, total // count)))[:count]
