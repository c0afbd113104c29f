"""Files that appear complete or not at all, with the mode of any other file."""

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vdeblur.errors import DiskError, OutputError
from vdeblur.system import renaming, streams
from vdeblur.system.files import (
    Temporary,
    check_target,
    remove_leftovers,
    replacing,
    replacing_folder,
    sha256_of,
    spare_name,
)
from vdeblur.system.renaming import move
from vdeblur.system.streams import is_stream

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and locks are POSIX's")


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
        temporary.write_text("a")
    assert mode(path) == 0o640


@posix
@pytest.mark.usefixtures("umask")
def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for kept in (0o600, 0o644, 0o755):
        path.touch()
        path.chmod(kept)
        with replacing(path) as temporary:
            assert mode(temporary) & 0o077 <= kept & 0o077  # nobody reads it while it is written
            temporary.write_text(f"{kept}")
        assert (path.read_text(), mode(path)) == (f"{kept}", kept)


@posix
def test_a_refused_mode_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    path = tmp_path / "a.txt"
    path.touch(mode=0o600)
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    with replacing(path) as temporary:
        temporary.write_text("a")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("a", [path])


def test_an_error_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(ValueError, match="stop"), replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(FileExistsError), replacing(path, only_new=True) as temporary:
        temporary.write_text("mine")
        path.write_text("theirs")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("theirs", [path])


@pytest.mark.parametrize("lacking", ["nothing", "hard links", "hard links and renameat2"])
def test_a_name_is_taken_in_one_step(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on FAT, exFAT and what else knows no hard links."""
    if lacking != "nothing":

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    if lacking.endswith("renameat2"):
        monkeypatch.setattr(renaming, "_rename_call", lambda _: None)
    for name in ("free", "taken"):
        source, target = tmp_path / "source", tmp_path / name
        source.write_text("new")
        if name == "taken":
            target.write_text("old")
            with pytest.raises(FileExistsError):
                move(source, target, replace=False)
            assert (source.read_text(), target.read_text()) == ("new", "old")
        move(source, target, replace=name == "taken")
        assert (source.exists(), target.read_text()) == (False, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["free", "taken"]


@posix
def test_only_regular_files_and_links_are_replaced(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "folder"
    precious.write_text("precious")
    folder.mkdir()
    link = tmp_path / "link"
    link.symlink_to(precious)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert (link.read_text(), link.is_symlink(), precious.read_text()) == ("new", False, "precious")
    with pytest.raises(FileExistsError), replacing(folder) as temporary:
        temporary.write_text("new")
    assert folder.is_dir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with Temporary(tmp_path) as held, pytest.raises(FileExistsError):
        held.take(fifo, replace=True)
    assert fifo.is_fifo()
    assert len(list(tmp_path.iterdir())) == 4


@posix
def test_pipes_and_devices_are_written_into(tmp_path: Path) -> None:
    fifo, film = tmp_path / "fifo", tmp_path / "film"
    os.mkfifo(fifo)
    film.touch()
    assert is_stream(fifo)
    assert is_stream(Path(os.devnull))
    assert is_stream(Path("/dev/stdout"))
    assert not is_stream(film)
    assert not is_stream(tmp_path)
    assert not is_stream(tmp_path / "none")
    with replacing(Path(os.devnull)) as path:
        path.write_text("gone")
    assert Path(os.devnull).is_char_device()


@posix
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_link_put_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    precious, target = tmp_path / "precious", tmp_path / "target"
    precious.write_text("precious")
    with Temporary(tmp_path) as held:
        held.name.unlink()
        held.name.symlink_to(precious)
        held.path.write_text("new")
        target.touch()
        with pytest.raises(OSError, match="another program"):
            held.take(target, replace=True)
    assert (precious.read_text(), target.read_text()) == ("precious", "")


@posix
def test_a_temporary_name_is_short_and_cannot_be_foreseen(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 125 + ".mp4")
    for suffix in (".mp4", "." + "x" * 250, ""):
        with Temporary(tmp_path, suffix=suffix) as one, Temporary(tmp_path, suffix=suffix) as two:
            assert one.name != two.name
            assert len(one.name.name) < 40
            one.take(target, replace=True)
    assert list(tmp_path.iterdir()) == [target]
    assert len(os.fsencode(spare_name(target, 2).name)) <= 255


_HOLDER = """
import sys, time
from pathlib import Path
from vdeblur.system.files import Temporary
held = Temporary(Path(sys.argv[1]), suffix=".mkv"), Temporary(Path(sys.argv[1]), folder=True)
(held[1].name / "00001.png").touch()
print("held", flush=True)
time.sleep(60)
"""


@posix
def test_leftovers_of_dead_runs_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        (tmp_path / ".vdeblur-notes").touch()  # no name of ours
        remove_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 3
    finally:
        process.kill()
        process.communicate()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".vdeblur-notes"]


@posix
def test_what_another_machine_may_hold_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.system.files._file_system", lambda folder: "nfs4")
    new, old = (tmp_path / f".vdeblur-{digit * 16}.mkv" for digit in "ab")
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


@posix
def test_a_target_is_checked_before_the_work(tmp_path: Path) -> None:
    film, link = tmp_path / "film", tmp_path / "link"
    film.touch()
    link.symlink_to(tmp_path / "nothing")
    for overwrite, path, message in (
        (False, film, "exists already: use `overwrite=True`"),
        (False, link, "exists already"),
        (True, tmp_path, "is a folder"),
        (True, tmp_path / "none" / "film", "does not exist"),
        (True, tmp_path / ("x" * 256), "cannot be written .*name.*too long"),
    ):
        with pytest.raises(OutputError, match=message):
            check_target(path, overwrite=overwrite)
    hard = tmp_path / "hard"
    hard.hardlink_to(film)
    with pytest.raises(OutputError, match="is the input itself"):
        check_target(hard, overwrite=True, sources=[film])
    check_target(film, overwrite=True)
    check_target(Path(os.devnull), overwrite=False)


def test_the_checksum_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content" * 1000)
    assert sha256_of(path) == hashlib.sha256(b"content" * 1000).hexdigest()


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    target = tmp_path / "out"
    if not swaps:  # some file systems, and older kernels
        monkeypatch.setattr(renaming, "_rename_call", lambda _: None)

    def fill(content: str, *, replace: bool) -> None:
        with replacing_folder(target, replace=replace) as new:
            (new / "a").write_text(content)
            if content == "broken":
                raise OSError("broken")

    fill("first", replace=False)
    with pytest.raises(OSError, match="broken"):
        fill("broken", replace=True)
    with pytest.raises(OSError, match="not empty"):  # another run was quicker
        fill("second", replace=False)
    assert (target / "a").read_text() == "first"
    fill("second", replace=True)
    assert (target / "a").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@posix
@pytest.mark.parametrize("killed", [True, False])
def test_a_folder_moved_aside_is_found_again(tmp_path: Path, killed: bool) -> None:
    """Where names cannot be exchanged, an end may come between two renames."""
    target = tmp_path / "out"
    (target / "sharp").mkdir(parents=True)
    (target / "sharp" / "a").write_text("precious")
    end = "os._exit(9)" if killed else "raise KeyboardInterrupt"
    program = f"""
import os
from pathlib import Path
from vdeblur.system import files, renaming
renaming._rename_call = lambda _: None
rename = Path.rename
def ending(self, target):
    rename(self, target)
    {end}
with files.replacing_folder(Path({str(target)!r}), replace=True):
    Path.rename = ending
"""
    subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False)
    if killed:
        assert not target.exists()
        remove_leftovers(tmp_path)
    assert (target / "sharp" / "a").read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@posix
def test_a_pipe_that_nobody_reads_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_READER_SECONDS", 0.1)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="nobody reads"), replacing(fifo):
        pass
    with subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE) as reader:
        monkeypatch.setattr(streams, "_READER_SECONDS", 30)
        with replacing(fifo) as path:
            path.write_text("read")
        assert reader.stdout is not None
        assert reader.stdout.read() == b"read"


@posix
def test_what_standard_output_is_appended_to_is_not_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("precious\n")
    program = """
from pathlib import Path
from vdeblur.system.files import replacing
with replacing(Path("/dev/stdout")) as path:
    path.write_text("new")
"""
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert log.read_text() == "precious\nnew"


def test_a_planted_name_is_no_temporary_folder_of_pairs(tmp_path: Path) -> None:
    precious = tmp_path / ".out-partial"
    precious.mkdir()
    (precious / "mine").touch()
    with replacing_folder(tmp_path / "out", replace=False):
        pass
    assert (precious / "mine").exists()


@posix
@pytest.mark.parametrize("folder", [False, True])
def test_a_signal_while_it_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    original = os.open

    def interrupted(*args: Any, **named: Any) -> int:
        monkeypatch.undo()
        os.close(original(*args, **named))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Temporary(tmp_path, folder=folder)
    assert list(tmp_path.iterdir()) == []


@posix
def test_what_its_owner_never_knew_of_is_removed(tmp_path: Path) -> None:
    Temporary(tmp_path)
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_disk_that_is_read_only_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Facts:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="check the folder's permissions"):
        check_target(tmp_path / "a", overwrite=False)
    monkeypatch.setattr(os, "statvfs", lambda _: Facts)
    with pytest.raises(DiskError, match="is read-only"):
        check_target(tmp_path / "a", overwrite=False)
