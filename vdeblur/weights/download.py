"""Download one file on request: resumed, checked, and complete or absent.

What has arrived stays beside the target as NAME.part, with the address (without its secrets) and
the server's version of the file in NAME.part.json, so that the same request resumes there.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.system.files import held_alone, sha256_of
from vdeblur.system.masking import masked, masked_download
from vdeblur.system.renaming import move
from vdeblur.version import __version__
from vdeblur.weights.redirects import Redirects, opened

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
#: Bytes that must arrive in each such time: some servers send one now and then, for ever.
LEAST_BYTES, PATIENCE_SECONDS = 60_000, 60.0
#: Bytes of the largest file: with its length stated, and without.
LARGEST, LARGEST_UNSTATED = 50 * 10**9, 5 * 10**9
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
    if not re.fullmatch(r"(?i:https?)://[^/?#\s]+[^\x00-\x1f\x7f]*", url):
        raise UsageError(
            f"{shown!r} is no address to fetch from: give one that begins with https://"
        )
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UsageError(f"{sha256!r} is no sha256: give its 64 hexadecimal digits")
    part = target.with_name(target.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with held_alone(part.with_name(part.name + ".lock")) as alone:
            if not alone:
                raise OutputError(f"{target} is being downloaded by another run: wait for it")
            _bring(url, part, resumable=bool(sha256), on_progress=on_progress)
            if sha256 and (digest := sha256_of(part)) != sha256.lower():
                _forget(part)
                raise ModelError(
                    f"{shown} gave a file with sha256 {digest}, not {sha256.lower()}: it was "
                    "deleted, for it is not what was stated"
                )
            move(part, target, replace=True)
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
    if part.is_symlink() or (part.exists() and not part.is_file()):
        _forget(part)
    have = part.stat().st_size if part.exists() else 0
    known = _facts(part)
    # Without the server's name for this version of the file, only a checksum can tell whether the
    # halves belong together.
    if known.get("url") != shown or not (known.get("version") or resumable):
        have = 0
    _log.info("downloading %s from byte %d", shown, have)
    try:
        response = opened(
            _request(url, have, known.get("version", "")), Redirects(url), seconds=TIMEOUT_SECONDS
        )
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
        _check_kind(response, shown)
        version = response.headers.get("ETag", "")
        if not version or version.startswith("W/"):  # RFC 9110 forbids weak ones for ranges
            version = response.headers.get("Last-Modified", "")
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            start = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span)
            same = resumable or version == known.get("version")
            if start is None or int(start[1]) != have or not same:
                if not have:
                    raise ModelError(f"{shown} gives a part of the file that nobody asked for")
                _forget(part)
                return _bring(url, part, resumable=resumable, on_progress=on_progress)
        else:
            have = 0  # the server sends it from its start
        total = _total(response, have, shown)
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise OutputError(
                f"{part.parent} has no room for the {total / 1e6:.0f} MB of {shown}: free some"
            )
        if not have:
            _forget(part)
        _facts_file(part).unlink(missing_ok=True)
        # Made anew or opened as they are: a link that somebody puts there is not followed.
        with _facts_file(part).open("x", encoding="utf-8") as file:
            json.dump({"url": shown, "version": version}, file)
        create = 0 if have else os.O_CREAT | os.O_EXCL
        flags = os.O_RDWR | create | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(part, flags, 0o666), "r+b") as file:
            file.seek(have)
            file.truncate()
            have = _copy(response, file, have, total, shown, on_progress)
    if total is not None and have < total:
        raise ModelError(
            f"{shown} broke off after {have / 1e6:.1f} of {total / 1e6:.1f} MB: the same command "
            "goes on from there"
        )


def _request(url: str, start: int, version: str) -> urllib.request.Request:
    """Return the request for a file from a byte on, with the user and password of the address."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    plain = urlunsplit(parts._replace(netloc=host, fragment=""))
    request = urllib.request.Request(quote(plain, safe="%/:=&?~+!$,;'@()*[]"))
    request.add_header("User-Agent", f"vdeblur/{__version__}")
    request.add_header("Accept-Encoding", "identity")
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        # Redirections do not carry it elsewhere.
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _check_kind(response: http.client.HTTPResponse, shown: str) -> None:
    if response.status not in (200, 206):
        raise ModelError(f"{shown} cannot be fetched: the server answers {response.status}")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise ModelError(f"{shown} gives a web page, not a file: download it in a browser")
    coding = response.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("identity", ""):
        raise ModelError(f"{shown} sends the file in a coding that was not asked for ({coding!r})")


def _total(response: http.client.HTTPResponse, have: int, shown: str) -> int | None:
    """Return the size of the whole file as the server states it, or None."""
    length = response.headers.get("Content-Length")
    if length is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise ModelError(f"{shown} states a length that is none ({length!r:.40})")
    total = have + int(length)
    if total > LARGEST:
        raise ModelError(
            f"{shown} is {total / 1e9:.0f} GB, more than weights have: check the address"
        )
    return total


def _copy(
    response: http.client.HTTPResponse,
    file: Any,
    have: int,
    total: int | None,
    shown: str,
    on_progress: Progress | None,
) -> int:
    """Write the body to a file, and return its size then."""
    since, had = time.monotonic(), have
    while True:
        try:
            piece = response.read1(_PIECE)
        except OSError as error:
            if isinstance(error, _NETWORK_ERRORS):
                raise
            raise ConnectionError(error.errno, error.strerror or str(error)) from error
        if not piece:
            return have
        file.write(piece)
        have += len(piece)
        if on_progress is not None:
            on_progress(have, total)
        if have > (LARGEST_UNSTATED if total is None else total):
            raise ModelError(f"{shown} does not end: it states no length and sends on and on")
        if time.monotonic() - since > PATIENCE_SECONDS:
            if have - had < LEAST_BYTES:
                raise TimeoutError
            since, had = time.monotonic(), have


def _facts_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _facts(part: Path) -> dict[str, str]:
    file = _facts_file(part)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        # They become headers of the request.
        if isinstance(facts, dict) and all(
            isinstance(value, str) and value.isprintable() for value in facts.values()
        ):
            return facts
    return {}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _facts_file(part).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return the cause of a network error in words."""
    cause: Any = getattr(error, "reason", error)
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (404, 410):
            return f"the server answers {error.code}, the file is not there any more"
        if error.code in (401, 403):
            return f"the server answers {error.code}, it wants a password or a token"
        if 300 <= error.code < 400:
            return f"the server answers {error.code}, and redirects without end"
        said = "".join(c for c in str(error.reason) if c.isprintable())
        return f"the server answers {error.code}, {said:.80}"
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
