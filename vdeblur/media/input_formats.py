"""Opens files with libav, in formats whose films lie in the file itself.

A playlist or a script names other files and addresses, so that a film from a stranger would have
libav open what only its reader may see.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import av
import av.container
from av.codec.hwaccel import HWAccel
from av.format import ContainerFormat
from av.format import Flags as FormatFlags

from vdeblur.media.probing import open_deep

# What opens other files or a network by what it reads, and text that libav draws as a picture.
_REFUSED = {
    "concat", "hls", "dash", "imf", "webm_dash_manifest", "sdp", "sap", "rtp", "rtsp", "lavfi",
    "vobsub", "avisynth", "vapoursynth", "tty",
}  # fmt: skip
# First bytes, without white space, of files that are refused, and what they are.
_HEADS = (
    (b"#EXTM3U", "an HLS playlist"),
    (b"ffconcat", "a list of files (ffconcat)"),
    (b"<?xml", "an XML file such as a DASH manifest"),
    (b"<MPD", "a DASH manifest"),
    (b"v=0", "a session description (SDP)"),
    (b"[playlist]", "a playlist"),
    (b"[InternetShortcut]", "a link"),
)


@functools.cache
def readable_formats() -> str:
    """Return the names of the demuxers that are let in, as libav's `format_whitelist` takes them.

    Devices, which have no file, are not among them.
    """
    names = []
    for name in sorted(av.format.formats_available):
        try:
            form = ContainerFormat(name, "r")
        except ValueError:  # a muxer
            continue
        device = form.flags & cast(int, FormatFlags.no_file.value) and name != "image2"
        if not device and not _REFUSED & set(name.split(",")):
            names.append(form.name)
    return ",".join(names)


def confinement() -> dict[str, str]:
    """Return libav's options by which reading a file reads nothing else."""
    return {
        "format_whitelist": readable_formats(),
        "protocol_whitelist": "file",
        "pattern_type": "none",  # the name is that of a file
    }


def refused_kind(path: Path) -> str | None:
    """Return what a file is that names other files, in words; None for any other."""
    try:
        with path.open("rb") as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return None
    return next((what for begin, what in _HEADS if head.startswith(begin)), None)


def open_container(
    file: Any,
    settings: Mapping[str, str] | None = None,
    acceleration: HWAccel | None = None,
) -> av.container.InputContainer:
    """Open a file with libav, which reads nothing but it.

    Args:
        file: What `for_libav` returns, or a Python file.
        settings: Options of the format.
        acceleration: The device that decodes.
    """
    container: av.container.InputContainer = open_deep(
        file,
        options=confinement() | dict(settings or {}),
        hwaccel=acceleration,
        metadata_errors="surrogateescape",
    )
    return container
