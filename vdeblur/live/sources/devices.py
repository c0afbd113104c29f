"""List the cameras and screens of this machine. Knows the operating system."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        address: As `vdeblur camera` takes it.
        name: As shown to users.
        kind: camera, screen, test, or output (a virtual camera to write to).
    """

    address: str
    name: str
    kind: str


def devices() -> list[Device]:
    """Return all devices that can be found without special rights."""
    found = [Device("test", "a generated scene, with sound", "test")]
    if sys.platform.startswith("linux"):
        found = [*_v4l2(), *_screens(), *found]
    elif sys.platform == "darwin":
        found = [*_by_ffmpeg("avfoundation", '""'), *found]
    elif sys.platform == "win32":
        found = [*_by_ffmpeg("dshow", "dummy"), *found]
    return found


def _v4l2(root: Path = Path("/sys/class/video4linux")) -> list[Device]:
    found = []
    if not root.is_dir():
        return []
    numbers = sorted(root.iterdir(), key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
    for entry in numbers:
        path = Path("/dev") / entry.name
        name = entry.name
        with suppress(OSError):
            name = (entry / "name").read_text("utf-8", "replace").strip()
        capture, output = _abilities(path)
        if capture:
            found.append(Device(str(path), name, "camera"))
        elif output:
            found.append(Device(str(path), f"{name} (a virtual camera, to write to)", "output"))
    return found


def _abilities(path: Path) -> tuple[bool, bool]:
    """Return whether a device captures and whether it takes output, by VIDIOC_QUERYCAP.

    A camera has other nodes besides, for metadata.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except (ImportError, OSError):
        return True, False  # busy, or not permitted: still a camera
    try:
        # struct v4l2_capability: driver, card, bus, version, capabilities, device_caps.
        answer = fcntl.ioctl(descriptor, 0x80685600, bytes(104))
        capabilities, device = struct.unpack("<II", answer[84:92])
        flags = device if capabilities & 0x80000000 else capabilities
        return bool(flags & 0x1001), bool(flags & 0x2002)
    except OSError:
        return False, False
    finally:
        os.close(descriptor)


def _screens() -> list[Device]:
    folder = Path("/tmp/.X11-unix")  # where X servers listen
    sockets = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [p.name[1:] for p in sockets if p.name[1:].isdigit() and _answers(p)]
    found = [Device(f"screen::{n}", f"X display :{n}", "screen") for n in names]
    if not found and os.environ.get("DISPLAY"):
        found.append(Device("screen", f"X display {os.environ['DISPLAY']}", "screen"))
    return found


def _answers(path: Path) -> bool:
    """Return whether a server listens at a socket; a killed one leaves its socket behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(str(path)) == 0


def _by_ffmpeg(kind: str, dummy: str) -> list[Device]:
    """Return the devices that an installed ffmpeg lists."""
    if shutil.which("ffmpeg") is None:
        hint = "install ffmpeg to see and use this computer's cameras"
        return [Device(f"{kind}:…", hint, "camera")]
    words = ["ffmpeg", "-hide_banner", "-f", kind, "-list_devices", "true", "-i", dummy]
    with suppress(OSError, subprocess.TimeoutExpired):
        listing = subprocess.run(words, capture_output=True, text=True, timeout=20).stderr
        return parse_listing(kind, listing)
    return []


def parse_listing(kind: str, listing: str) -> list[Device]:
    """Parse the video devices in the output of `ffmpeg -list_devices`.

    Args:
        kind: avfoundation or dshow.
        listing: ffmpeg's standard error.
    """
    found = []
    video = kind == "dshow"
    for line in listing.splitlines():
        if kind == "avfoundation":
            if "video devices" in line:
                video = True
            elif "audio devices" in line:
                video = False
            match = re.search(r"\[(\d+)\] (.+)$", line)
            if video and match:
                found.append(Device(f"avfoundation:{match[1]}", match[2].strip(), "camera"))
        else:
            match = re.search(r'"([^"]+)" \(video\)', line)
            if match:
                found.append(Device(f"dshow:video={match[1]}", match[1], "camera"))
    return found
