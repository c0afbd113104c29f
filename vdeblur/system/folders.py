"""Per-user folders: where the cache and the user's data lie on each system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import platformdirs

_APP = "vdeblur"


def cache_folder() -> Path:
    """Return the folder for files that can be made again; it need not exist.

    `VDEBLUR_CACHE`, or else the system's place for caches: `$XDG_CACHE_HOME/vdeblur`
    (`~/.cache/vdeblur`), `~/Library/Caches/vdeblur` or `%LOCALAPPDATA%\\vdeblur\\Cache`.
    """
    if chosen := os.environ.get("VDEBLUR_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return _library() / "Caches" / _APP
    return platformdirs.user_cache_path(_APP, appauthor=False)


def data_folder() -> Path:
    """Return the folder for the user's own data; it need not exist.

    `VDEBLUR_DATA`, or else the system's place for data: `$XDG_DATA_HOME/vdeblur`
    (`~/.local/share/vdeblur`), `~/Library/Application Support/vdeblur` or
    `%LOCALAPPDATA%\\vdeblur`.
    """
    if chosen := os.environ.get("VDEBLUR_DATA"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return _library() / "Application Support" / _APP
    return platformdirs.user_data_path(_APP, appauthor=False)


def _library() -> Path:
    # platformdirs follows XDG_* on macOS too, which would move the files of users who set them.
    return Path.home() / "Library"
