"""Results that can be made again, kept in the cache folder under keys that cannot go stale.

A key holds everything that an entry depends on, so that a change of any part is another entry. The
folder (`vdeblur.system.folders.cache_folder`) may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from vdeblur.system.folders import cache_folder

_log = logging.getLogger(__name__)

#: Days after which an unused entry is removed, when another is made.
UNUSED_DAYS = 90


def key_of(parts: Mapping[str, str]) -> str:
    """Return the name of the entry that depends on `parts`, 40 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def find_entry(kind: str, parts: Mapping[str, str]) -> Path | None:
    """Return the folder of the entry for `parts`, or None; this counts as its last use."""
    folder = cache_folder() / kind / key_of(parts)
    if not folder.is_dir():
        _log.debug("cache: no entry of %s: %s", kind, folder)
        return None
    _log.debug("cache: found %s", folder)
    with suppress(OSError):
        os.utime(folder)
    return folder


def store_entry(kind: str, parts: Mapping[str, str], make: Callable[[Path], None]) -> Path | None:
    """Fill a new entry, which replaces the earlier one for the same `parts`.

    Args:
        kind: folder of such entries in the cache folder.
        parts: everything that the entry depends on.
        make: fills the empty folder that it is called with.

    Returns:
        The entry's folder; None when nothing can be written there.

    Raises:
        Exception: whatever `make` raises that is no OSError.
    """
    folder = cache_folder() / kind / key_of(parts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    except OSError:
        return None
    try:
        make(part)
        (part / "facts.json").write_text(json.dumps(dict(parts), indent=2), encoding="utf-8")
        if folder.exists():
            # Another process may be reading the old entry, which exists until that lets go.
            folder.replace(Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part")))
        part.replace(folder)
        _log.debug("cache: stored %s", folder)
        return folder
    except OSError as error:
        _log.info("cache: %s cannot be stored: %s", folder, error)
        return None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _clean(folder.parent)


def _clean(parent: Path) -> None:
    """Remove entries that are long unused, and leftovers of killed processes and replacements."""
    now = time.time()
    for entry in parent.iterdir():
        with suppress(OSError):
            days = (now - entry.stat().st_mtime) / 86400
            if days > (1 if entry.suffix == ".part" else UNUSED_DAYS):
                shutil.rmtree(entry, ignore_errors=True)
