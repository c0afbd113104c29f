"""One file from an address, because someone asked for it: resumed, checked, or said why not.

What has arrived stays beside the target as NAME.part, with the address and the server's version of
the file in NAME.part.json, so that the same request goes on where the last one ended.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.system.files import sha256_of
from vdeblur.version import __version__

TIMEOUT_SECONDS = 30.0
_PIECE = 1 << 18  # bytes
# Most are OSErrors too, as a full disk is.
_NETWORK_ERRORS = (
    http.client.HTTPException,
    urllib.error.URLError,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
    ValueError,
)

#: on_progress(bytes so far, bytes in all or None)
Progress = Callable[[int, int | None], None]


def download(
    url: str, target: Path, *, sha256: str = "", on_progress: Progress | None = None
) -> None:
    """Bring the file at `url` (http or https) to `target`, going on from an earlier attempt.

    sha256: that it must have, in hexadecimal; what has another is deleted. UsageError for an
    address or a digest that cannot be one; ModelError when the server does not give the file;
    OutputError when it cannot be written. Whatever interrupts it, `target` is complete or absent.
    """
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(f"{url!r} is no address to fetch from: give one that begins with https://")
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{sha256!r} is no sha256: give its 64 hexadecimal digits")
    part = target.with_name(target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _bring(url, part, resumable=bool(sha256), on_progress=on_progress)
        if sha256 and (digest := sha256_of(part)) != sha256.lower():
            _forget(part)
            raise ModelError(
                f"{url} gave a file with sha256 {digest}, not {sha256.lower()}: it was deleted, "
                "for it is not what was stated"
            )
        part.replace(target)
        _forget(part)
    except _NETWORK_ERRORS as error:
        kept = part.stat().st_size / 1e6 if part.exists() else 0
        again = f"; {kept:.1f} MB are kept, the same command goes on from there" if kept else ""
        raise ModelError(f"{url} cannot be fetched: {_reason(error)}{again}") from error
    except OSError as error:
        raise OutputError(f"{part} cannot be written ({error.strerror or error})") from error


def _bring(url: str, part: Path, *, resumable: bool, on_progress: Progress | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    known = _facts(part)
    # Without the server's word for this version of the file, only a checksum can tell that the
    # halves belong together.
    if known.get("url") != url or not (known.get("version") or resumable):
        have = 0
    headers = {"User-Agent": f"vdeblur/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code != 416 or not have:
            raise
        if whole and int(whole[1]) == have:
            return  # all of it had come
        _forget(part)
        return _bring(url, part, resumable=resumable, on_progress=on_progress)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ModelError(f"{url} gives a web page, not a file: download it in a browser")
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status != 206 or span is None or int(span[1]) != have:
            have = 0  # the server begins at the beginning
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        version = response.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # a weak one may not be compared for ranges
            version = response.headers.get("Last-Modified", "")
        facts = json.dumps({"url": url, "version": version})
        _facts_file(part).write_text(facts, encoding="utf-8")
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while piece := response.read(_PIECE):
                file.write(piece)
                have += len(piece)
                if on_progress is not None:
                    on_progress(have, total)
    if total is not None and have < total:
        raise ModelError(
            f"{url} broke off after {have / 1e6:.1f} of {total / 1e6:.1f} MB: the same command "
            "goes on from there"
        )


def _facts_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _facts(part: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads(_facts_file(part).read_text(encoding="utf-8"))
        if isinstance(facts, dict):
            return facts
    return {}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _facts_file(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """What went wrong, in words for a person."""
    cause: Any = getattr(error, "reason", error)
    if isinstance(error, urllib.error.HTTPError):
        gone = "the file is not there any more" if error.code in (404, 410) else error.reason
        return f"the server answers {error.code}, {gone}"
    if isinstance(cause, socket.gaierror):
        return "its server's name is not known; is this machine online?"
    if isinstance(cause, TimeoutError):
        return "the server does not answer"
    if isinstance(cause, ssl.SSLError):
        return f"the connection is not trustworthy ({cause.reason or cause})"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection broke off"
    if isinstance(cause, OSError) and cause.strerror:
        return str(cause.strerror).lower()
    return str(cause) or type(cause).__name__
