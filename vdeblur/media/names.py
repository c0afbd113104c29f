"""Names of sources and outputs: what they mean here, and how libav is told of them.

libav takes a relative name with a colon for a protocol (`12:30.mp4`), and one with a percent sign
for a numbered sequence; it gets absolute names of the protocol `file` only.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vdeblur.errors import InputError, OutputError
from vdeblur.system.files import is_temporary_name
from vdeblur.system.masking import masked

# One slash is what is left of two where a name has been a Path.
_ADDRESS = re.compile(
    r"(?i)(?:[a-z][a-z0-9+.-]+://|(?:https?|ftps?|sftp|rtsps?|rtmp[a-z]*|srt|udp|tcp|s3|file):/)"
)
_LIVE = re.compile(r"(?i)(rtsps?|rtmp[a-z]*|srt|udp|rtp|tcp|whep|v4l2):")
# Names under which a process reaches what it has open; a shell's <(...) is one.
_OWN_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|thread-self|\d+))/(?:stdin|stdout|fd/(\d+))")


def libav_name(path: str | Path) -> str:
    """Return the name by which libav finds a file, whatever characters are in it."""
    return f"file:{Path(path).absolute()}"


def is_address(name: str | Path) -> bool:
    """Tell whether a name is an address such as `http://host/film.mp4`, and no file."""
    return _ADDRESS.match(str(name)) is not None and not os.path.lexists(name)


def is_descriptor(path: str | Path) -> bool:
    """Tell whether a path such as `/dev/fd/63` stands for what a process has open."""
    return _OWN_DESCRIPTOR.fullmatch(str(path)) is not None


def descriptor_of(path: str | Path) -> int | None:
    """Return the number of an open file that a name such as `/dev/fd/63` stands for, else None."""
    found = _OWN_DESCRIPTOR.fullmatch(str(path))
    if found is None or (str(path).startswith("/proc/") and found[1] is None):
        return None
    if found[1] is None:
        return 0 if str(path).endswith("stdin") else 1
    own = str(path).startswith(("/dev/", "/proc/self/", f"/proc/{os.getpid()}/"))
    return int(found[1]) if own else None


def is_read_once(path: str | Path) -> bool:
    """Tell whether a path is a pipe or socket, whose bytes are gone once they are read."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def check_source(source: str | Path, *, once: bool = False, unfinished: bool = False) -> None:
    """Check, without reading from a pipe, that a source can be one.

    Args:
        source: A path; "-" and image patterns are not checked.
        once: A source that can be read only once is welcome, too.
        unfinished: So is an output that has no final name yet.

    Raises:
        InputError: It is an address, is missing or empty, or is no file.
    """
    if str(source) == "-":
        if not once:
            raise InputError(
                "standard input can be read only once, and here it has to be read several times: "
                "save it as a file first"
            )
        if sys.stdin is not None and sys.stdin.isatty():
            raise InputError("standard input is a terminal: pipe a video into vdeblur")
        return
    if is_address(source):
        raise InputError(about_address(str(source)))
    path = source if isinstance(source, Path) else Path(source)
    if is_temporary_name(path) and not unfinished:
        raise InputError(
            f"{path} has the name of an unfinished output, which the next run removes: rename it"
        )
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder: give a video file")
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise InputError(
                f"{path} is a device and no file: `vdeblur camera` restores what a camera sends"
            )
        if is_read_once(path):
            if not once:
                raise InputError(
                    f"{path} is a pipe, which can be read only once, and here it has to be read "
                    "several times: save it as a file first"
                )
            return
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes): copy or record it again")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the path") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read: check its permissions") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL byte
        raise InputError(f"{str(path)!r} is no possible name of a file ({error})") from error


def check_destination(destination: str | Path) -> None:
    """Check that an output is named as a file.

    Raises:
        OutputError: It is an address, or no possible name.
    """
    if "\0" in str(destination):
        raise OutputError(f"{str(destination)!r} is no possible name of a file: leave the NUL out")
    if is_address(destination):
        name = _shown(str(destination))
        raise OutputError(
            f"{name} is an address, and a file is written here: give a path"
            + (", or stream with `vdeblur camera`" if _LIVE.match(name) else "")
        )


def about_address(name: str) -> str:
    """Say what is right in place of an address."""
    shown = _shown(name)
    if name.lower().startswith("file:"):
        path = unquote(urlsplit(name).path)
        return f"{shown} is an address, and files are read here: give the path {path}"
    if _LIVE.match(name):
        return f"{shown} is an address, and files are read here: `vdeblur camera` reads streams"
    return (
        f"{shown} is an address, and files are read here: download it first, or read a live "
        "stream with `vdeblur camera`"
    )


def _shown(address: str) -> str:
    """Return an address without its secrets, with both slashes even if a Path has taken one."""
    return masked(re.sub(r":/+", "://", address, count=1))
