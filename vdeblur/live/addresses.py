"""Addresses of sources and sinks: the kind of each, and what is written into it."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vdeblur.errors import UsageError
from vdeblur.system.masking import hide, host_of, masked

#: Protocols and devices that PyAV's wheels lack; an installed ffmpeg reads or writes them.
FFMPEG_SCHEMES = {"srt", "rist"}
FFMPEG_DEVICES = {"avfoundation", "dshow", "decklink"}
_NETWORK = {"rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "rtp"}

SourceKind = Literal["network", "v4l2", "screen", "test", "file", "ffmpeg"]
SinkKind = Literal["file", "hls", "pipe", "push", "ffmpeg", "virtual"]


def resolve(address: str) -> str:
    """Replace `env:NAME` by the environment variable's value; return other addresses unchanged.

    What is secret of the address is hidden from messages from here on.

    All users of a machine can read a command line, but not the environment of a process.

    Raises:
        UsageError: If the variable is not set.
    """
    if not address.startswith("env:"):
        hide(address)
        return address
    name = address[4:]
    value = os.environ.get(name)
    if not value:
        raise UsageError(f"{address}: the environment variable {name} is not set: export it first")
    hide(value)
    return value


def source_kind(address: str) -> SourceKind:
    """Return the kind of a source's address; UsageError if the scheme is unknown."""
    scheme = scheme_of(address)
    if address == "screen" or address.startswith("screen:"):
        return "screen"
    if address == "test" or address.startswith("test:"):
        return "test"
    if scheme in FFMPEG_SCHEMES or address.partition(":")[0] in FFMPEG_DEVICES:
        return "ffmpeg"
    if scheme in _NETWORK:
        return "network"
    if scheme and scheme != "file":
        raise UsageError(
            f"{masked(address)}: no source is known for {scheme}://: "
            "use rtsp, rtmp, http, udp, tcp or srt"
        )
    if re.fullmatch(r"/dev/video\d+|/dev/v4l/.+", address):
        return "v4l2"
    return "file"


def sink_kind(address: str) -> SinkKind:
    """Return the kind of a sink's address; UsageError if it is unknown."""
    scheme = scheme_of(address)
    if address == "-":
        return "pipe"
    if scheme in FFMPEG_SCHEMES:
        return "ffmpeg"
    if scheme in {"rtsp", "rtsps", "rtmp", "rtmps", "udp", "tcp"}:
        return "push"
    if scheme:
        raise UsageError(
            f"{masked(address)}: nothing can be sent to {scheme}://: use rtsp, rtmp, udp or srt"
        )
    if address == "virtual" or re.fullmatch(r"/dev/video\d+", address):
        return "virtual"
    if address.endswith(("/", ".m3u8")) or Path(address).is_dir():
        return "hls"
    if Path(address).suffix.lower() in (".mkv", ".mp4", ".ts", ".mov"):
        return "file"
    raise UsageError(
        f"{address}: name a file in .mkv, .mp4 or .ts, a folder for HLS (with / at its end), "
        "rtsp://, rtmp://, udp:// or srt://, virtual, or - for standard output"
    )


def unknown_host(address: str) -> str:
    """Return the host of an address if it cannot be resolved; empty if it can, or there is none.

    libav reports this as an input/output error. Asks the name service, which may take seconds.
    """
    host = host_of(address) if scheme_of(address) in _NETWORK else ""
    try:
        if host:
            socket.getaddrinfo(host, None)
    except (OSError, ValueError):  # ValueError: not a valid name
        return host
    return ""


def scheme_of(address: str) -> str:
    """Return the scheme of an address in lower case (`rtsp` of `rtsp://…`); empty if none."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", address)
    return match[1].lower() if match else ""


@dataclass(frozen=True)
class Scene:
    """The picture of the source `test`, in pixels and frames per second."""

    width: int = 640
    height: int = 360
    rate: int = 25

    @classmethod
    def of(cls, address: str) -> Scene:
        """Parse `test` or `test:WIDTHxHEIGHT@RATE`; UsageError for anything else."""
        if address == "test":
            return cls()
        match = re.fullmatch(r"test:(\d+)x(\d+)(?:@(\d+))?", address)
        width, height, rate = (int(n or 25) for n in match.groups()) if match else (0, 0, 0)
        if not (match and 160 <= width <= 7680 and 90 <= height <= 4320 and 1 <= rate <= 240):
            raise UsageError(
                f"{address!r} is no test scene: write test or test:1280x720@30 "
                "(from 160x90, up to 240 frames a second)"
            )
        return cls(width - width % 2, height - height % 2, rate)


def numbered(template: str, number: int, count: int) -> str:
    """Replace `{camera}` in a sink's address by the camera's number, which counts from 1.

    Raises:
        UsageError: If several cameras would write to the same address.
    """
    if count > 1 and "{camera}" not in template:
        raise UsageError(
            f"{masked(template)} would be written by {count} cameras: "
            "put {camera} into it, as in cam_{camera}.mkv"
        )
    return template.replace("{camera}", str(number))


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_LONGEST = 1e9  # seconds: 31 years
_LARGEST = 1e18  # bytes
_SIZES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def duration_seconds(text: str) -> float:
    """Parse `300ms`, `5s`, `10m`, `1h` or a number of seconds; ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)?\s*", text.lower())
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
    if not 0 < seconds <= _LONGEST:
        raise ValueError(f"{text!r} is not a length of time: write 300ms, 5s, 10m or 1h")
    return seconds


def size_bytes(text: str) -> int:
    """Parse `500M`, `2G` or a number of bytes; ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    size = float(match[1]) * _SIZES[match[2]] if match else 0.0
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"{text!r} is not a size: write 500M or 2G")
    return int(size)
