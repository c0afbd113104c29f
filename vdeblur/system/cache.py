"""What can be made again, kept in the user's cache folder under keys that cannot go stale.

The folder is VDEBLUR_CACHE, or where the system keeps such things. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

#: An entry that nobody used for so long is removed when another is made.
UNUSED_DAYS = 90


def cache_folder() -> Path:
    """Where a user's cache lies; it need not exist."""
    if chosen := os.environ.get("VDEBLUR_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "vdeblur" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vdeblur"
    # The XDG base directory specification: a relative path there is to be ignored.
    share = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (share if share.is_absolute() else Path.home() / ".cache") / "vdeblur"


def key_of(facts: Mapping[str, str]) -> str:
    """One name for all that an entry depends on: another fact is another entry."""
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def find(kind: str, facts: Mapping[str, str]) -> Path | None:
    """The folder that was kept for `facts`; None when there is none."""
    folder = cache_folder() / kind / key_of(facts)
    if not folder.is_dir():
        return None
    with suppress(OSError):
        os.utime(folder)  # it was used
    return folder


def keep(kind: str, facts: Mapping[str, str], make: Callable[[Path], None]) -> Path | None:
    """Have `make` fill a new folder, which replaces what was kept for `facts`.

    None when nothing can be written there; what `make` itself raises is raised.
    """
    folder = cache_folder() / kind / key_of(facts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part"))
    except OSError:
        return None
    try:
        make(part)
        (part / "facts.json").write_text(json.dumps(dict(facts), indent=2), encoding="utf-8")
        if folder.exists():
            # Another process may be reading the old one: it goes on to exist until that lets go.
            folder.replace(Path(tempfile.mkdtemp(dir=folder.parent, suffix=".part")))
        part.replace(folder)
        return folder
    except OSError:
        return None
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _clean(folder.parent)


def _clean(parent: Path) -> None:
    """Remove what was not used for long, and what a killed process or a replacement left."""
    now = time.time()
    for entry in parent.iterdir():
        with suppress(OSError):
            days = (now - entry.stat().st_mtime) / 86400
            if days > (1 if entry.suffix == ".part" else UNUSED_DAYS):
                shutil.rmtree(entry, ignore_errors=True)
