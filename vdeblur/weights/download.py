"""Download one file on request: resumed, checked, and complete or absent.

What has arrived stays beside the target as NAME.part, with the address (without its secrets) and
the server's version of the file in NAME.part.json, so that the same request resumes there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
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
from vdeblur.system.masking import masked, masked_download
from vdeblur.version import __version__

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
_PIECE = 1 << 18  # bytes
# Most are subclasses of OSError, as the error of a full disk is.
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
    """Download the file at an address to `target`, resuming an earlier attempt.

    Whatever interrupts it, `target` is complete or absent. Messages show the address without its
    secrets.

    Args:
        url: an http or https address.
        target: the file to make; its folder is made as well.
        sha256: checksum that the file must have, in hexadecimal; a file with another is deleted.
        on_progress: called with the number of bytes so far and in all (None when unknown).

    Raises:
        UsageError: the address or the checksum cannot be one.
        ModelError: the server does not send the file, or it has another checksum.
        OutputError: the file cannot be written.
    """
    shown = masked_download(url)
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError(
            f"{shown!r} is no address to fetch from: give one that begins with https://"
        )
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{sha256!r} is no sha256: give its 64 hexadecimal digits")
    part = target.with_name(target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _bring(url, part, resumable=bool(sha256), on_progress=on_progress)
        if sha256 and (digest := sha256_of(part)) != sha256.lower():
            _forget(part)
            raise ModelError(
                f"{shown} gave a file with sha256 {digest}, not {sha256.lower()}: it was deleted, "
                "for it is not what was stated"
            )
        part.replace(target)
        _forget(part)
        _log.info("downloaded %s", target)
    except _NETWORK_ERRORS as error:
        kept = part.stat().st_size / 1e6 if part.exists() else 0
        again = f"; {kept:.1f} MB are kept, the same command goes on from there" if kept else ""
        reason = masked(_reason(error), of=url)
        raise ModelError(f"{shown} cannot be fetched: {reason}{again}") from error
    except OSError as error:
        raise OutputError(f"{part} cannot be written ({error.strerror or error})") from error


def _bring(url: str, part: Path, *, resumable: bool, on_progress: Progress | None) -> None:
    shown = masked_download(url)
    have = part.stat().st_size if part.exists() else 0
    known = _facts(part)
    # Without the server's name for this version of the file, only a checksum can tell whether the
    # halves belong together.
    if known.get("url") != shown or not (known.get("version") or resumable):
        have = 0
    headers = {"User-Agent": f"vdeblur/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]
    _log.info("downloading %s from byte %d", shown, have)
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if error.code != 416 or not have:
            raise
        if whole and int(whole[1]) == have:
            return  # it was complete
        _forget(part)
        return _bring(url, part, resumable=resumable, on_progress=on_progress)
    with response:
        if response.headers.get_content_type() == "text/html":
            raise ModelError(f"{shown} gives a web page, not a file: download it in a browser")
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status != 206 or span is None or int(span[1]) != have:
            have = 0  # the server sends it from its start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        version = response.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # RFC 9110 forbids weak ones for ranges
            version = response.headers.get("Last-Modified", "")
        facts = json.dumps({"url": shown, "version": version})
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
            f"{shown} broke off after {have / 1e6:.1f} of {total / 1e6:.1f} MB: the same command "
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
    """Return the cause of a network error in words."""
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
