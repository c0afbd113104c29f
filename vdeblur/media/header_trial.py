"""Which streams a muxer takes: its header is tried in memory, stream by stream.

A muxer refuses its whole header for one stream, and does not say for which.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Mapping, Sequence
from typing import Any, cast

import av
import av.error
from av.format import ContainerFormat
from av.format import Flags as FormatFlags

from vdeblur.media.libav_errors import text_of
from vdeblur.media.stream_facts import codec_of, name_layout

_NO_FILE = cast(int, FormatFlags.no_file.value)
_REFUSALS = (av.error.FFmpegError, OSError, ValueError)
# What a disk or a pipe says; everything else of a muxer is about what it was given.
_SYSTEM = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EPIPE,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENOMEM,
    errno.EBADF,
    errno.ENOENT,
    errno.ENODEV,
    errno.ENXIO,
}


def is_refusal(error: BaseException) -> bool:
    """Tell whether a muxer refuses what it was given, and not the system to write it."""
    return isinstance(error, _REFUSALS) and getattr(error, "errno", None) not in _SYSTEM


def refused_streams(
    name: str, options: Mapping[str, str], videos: Sequence[Any], copied: Mapping[int, Any]
) -> dict[int, str]:
    """Return which streams of a source a muxer does not take, and why.

    Args:
        name: libav's name of the muxer.
        options: The muxer's.
        videos: Streams of the source that the output has anew: some muxers take others only beside
            them.
        copied: Streams of the source to be copied, by their index.

    Returns:
        Reasons by the index of the stream.
    """
    if not copied or ContainerFormat(name, "w").flags & _NO_FILE:
        return {}  # a muxer that opens files by itself cannot be tried in memory
    # The second copy of an MP4 that has its index first would need a file.
    options = {key: value for key, value in options.items() if key != "movflags"}
    refused = {}
    if name == "mp4":
        # PCM's box is refused with the index only: here the index comes first.
        early = options | {"movflags": "+empty_moov"}
        for index, stream in copied.items():
            error = _refusal(name, early, [stream]) if _is_pcm(stream) else None
            if error is not None:
                refused[index] = text_of(error)
    copied = {index: stream for index, stream in copied.items() if index not in refused}
    beside = list(videos)
    if _refusal(name, options, beside) is not None:
        beside = []  # coded otherwise in the output: nothing stands in for them here
    if _refusal(name, options, [*beside, *copied.values()]) is None:
        return refused
    for index, stream in copied.items():
        error = _refusal(name, options, [*beside, stream])
        if error is not None:
            refused[index] = text_of(error)
    taken = {index: stream for index, stream in copied.items() if index not in refused}
    if _refusal(name, options, [*beside, *taken.values()]) is None:
        return refused
    # Each is taken alone: the muxer holds one of a kind only.
    for index, stream in taken.items():
        error = _refusal(name, options, [*beside, stream])
        if error is None:
            beside.append(stream)
        else:
            refused[index] = text_of(error)
    return refused


def _is_pcm(stream: Any) -> bool:
    return stream.type == "audio" and (codec_of(stream) or "").startswith("pcm_")


def _refusal(name: str, options: Mapping[str, str], streams: Sequence[Any]) -> Exception | None:
    """Write a header into memory; return why it cannot be."""
    if not streams:
        return None
    output = av.open(io.BytesIO(), "w", format=name, container_options=dict(options))
    try:
        for stream in streams:
            added = output.add_stream_from_template(stream, opaque=True)
            if _is_pcm(stream):
                name_layout(added)
        output.start_encoding()
    except _REFUSALS as error:
        return error
    finally:
        with contextlib.suppress(*_REFUSALS):
            output.close()
    return None
