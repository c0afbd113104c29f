"""Files that appear complete or not at all, with the mode of any other file."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdeblur.system.files import default_mode, replacing, sha256_of

posix = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@posix
@pytest.mark.usefixtures("umask")
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as temporary:
        assert mode(temporary) == 0o600
        temporary.write_text("a")
    assert mode(path) == default_mode() == 0o640
    assert os.umask(0o027) == 0o027  # asking for it leaves it as it was


@posix
@pytest.mark.usefixtures("umask")
def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for kept in (0o600, 0o644, 0o755):
        path.touch()
        path.chmod(kept)
        with replacing(path) as temporary:
            temporary.write_text(f"{kept}")
        assert (path.read_text(), mode(path)) == (f"{kept}", kept)


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ValueError, match="stop"), replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_checksum_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content" * 1000)
    assert sha256_of(path) == hashlib.sha256(b"content" * 1000).hexdigest()
