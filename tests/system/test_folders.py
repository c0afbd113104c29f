"""The per-user folders: the same on each system as ever."""

from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
from platformdirs.unix import Unix
from platformdirs.windows import Windows

from vdeblur.system.folders import cache_folder, data_folder

HOME = Path.home()
BOTH = [("VDEBLUR_DATA", data_folder), ("VDEBLUR_CACHE", cache_folder)]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VDEBLUR_DATA", "VDEBLUR_CACHE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("name", "folder"), BOTH)
def test_a_variable_names_another_folder(
    name: str, folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "~/elsewhere")
    assert folder() == HOME / "elsewhere"


def test_the_folders_on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(platformdirs, "PlatformDirs", Unix)
    assert data_folder() == HOME / ".local" / "share" / "vdeblur"
    assert cache_folder() == HOME / ".cache" / "vdeblur"
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", nothing)
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert data_folder() == HOME / ".local" / "share" / "vdeblur"
        assert cache_folder() == HOME / ".cache" / "vdeblur"
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cached")
    assert data_folder() == Path("/somewhere/vdeblur")
    assert cache_folder() == Path("/cached/vdeblur")


@pytest.mark.parametrize("xdg", ["", "/somewhere"])
def test_the_folders_on_macos(xdg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv("XDG_DATA_HOME", xdg)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert data_folder() == HOME / "Library" / "Application Support" / "vdeblur"
    assert cache_folder() == HOME / "Library" / "Caches" / "vdeblur"


def test_the_folders_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(platformdirs, "PlatformDirs", Windows)
    monkeypatch.setattr("platformdirs.windows.get_win_folder", {"CSIDL_LOCAL_APPDATA": "/l"}.get)
    assert data_folder() == Path("/l/vdeblur")
    assert cache_folder() == Path("/l/vdeblur/Cache")
