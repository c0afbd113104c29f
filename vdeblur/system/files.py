"""Files that appear complete or not at all: temporary names, final names, and leftovers.

A new file has a temporary name in its target's folder that nobody can foresee, and is locked for as
long as its run lives, so that a later run can tell a leftover from a file that is being written. It
is flushed to the disk before it gets its final name, in one step that replaces nothing unless asked
to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Self

import psutil

from vdeblur.errors import DiskError, OutputError
from vdeblur.system.renaming import exchange, flush_disk, move
from vdeblur.system.streams import is_stream, open_stream

if sys.platform != "win32":
    import fcntl

#: Errors of a disk that another file on it meets as well: full, over quota, read-only, broken.
DISK_ERRORS = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO")
    if hasattr(errno, name)  # Windows has no quota of this name
)

#: Name of the note in a folder whose content is complete: it is no leftover.
COMPLETE = ".vdeblur.json"

_TEMPORARY = re.compile(r"\.vdeblur-[0-9a-f]{16}(\.\w{1,12})?")
# Where a lock tells of every process that can reach the file. Elsewhere (NFS, SMB, FUSE) another
# machine may hold it unseen.
_LOCAL = frozenset({
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "msdos",
    "ntfs3", "overlay", "ramfs", "reiserfs", "tmpfs", "ufs", "vfat", "xfs", "zfs",
})  # fmt: skip
_FORGOTTEN_SECONDS = 86400.0  # what nobody has written to for this long, on other file systems
_LONGEST_NAME = 255  # bytes
_ASIDE = "aside"  # in a temporary folder: what it replaces, where names cannot be exchanged


# --- temporary files ----------------------------------------------------------------------------


class Temporary:
    """A new file or folder under a temporary name, locked until it gets its final name.

    As a context manager it is removed at the end, unless it has got its final name.

    Args:
        parent: The folder to make it in; it must be on the disk of the final name.
        suffix: An extension that the program writing it asks for; left out if it is long.
        folder: Make a folder, which only its owner may enter, and not a file.
        mode: Permissions of a file, less those that the umask takes.

    Attributes:
        name: Its name on disk.
        path: The path to open it by. On Linux it goes by the open file, so that nobody who may
            write to the folder can put a link in its place (proc(5), /proc/pid/fd).

    Raises:
        OSError: It cannot be made.
    """

    def __init__(
        self, parent: Path, *, suffix: str = "", folder: bool = False, mode: int = 0o666
    ) -> None:
        self._parent, self._folder = parent.absolute(), folder
        self._suffix = suffix if re.fullmatch(r"\.\w{1,12}", suffix) else ""
        self._descriptor: int | None = None
        self.locked = False
        for _ in range(100):
            self.name = self._parent / f".vdeblur-{secrets.token_hex(8)}{self._suffix}"
            try:
                self._make(mode)
                # A run that looks for leftovers may have come between the making and the lock.
                if self._hold():
                    break
            except FileExistsError:
                continue
            except BaseException:
                # A signal may come before the descriptor is known.
                self._delete()
                raise
            self.close()
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self._parent))
        by_descriptor = Path(f"/proc/self/fd/{self._descriptor}")
        linux = sys.platform == "linux" and self._descriptor is not None
        self.path = by_descriptor if linux and by_descriptor.exists() else self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __del__(self) -> None:
        # Of an owner that a signal ended before it knew of this file.
        if self._descriptor is not None:
            self.remove()

    def _make(self, mode: int) -> None:
        binary, here = getattr(os, "O_BINARY", 0), getattr(os, "O_NOFOLLOW", 0)
        if self._folder:
            self.name.mkdir(mode=0o700)
            if os.name == "posix":  # Windows opens no folders
                self._descriptor = os.open(self.name, os.O_RDONLY | here)
        else:
            self._descriptor = os.open(
                self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | binary | here, mode
            )

    def _hold(self) -> bool:
        """Lock it where locks work; return False if it was removed as a leftover meanwhile."""
        if self._descriptor is None or sys.platform == "win32":
            return True  # Windows removes no file that is open
        held = _lock(self._descriptor)
        if held is False:
            return False
        try:
            if not os.path.samestat(os.fstat(self._descriptor), self.name.lstat()):
                return False
        except FileNotFoundError:
            return False
        self.locked = held is True
        if self.locked and not self._folder and not self._others_can_write():
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self.locked = False
        return True

    def _others_can_write(self) -> bool:
        """Whether libav can write to the file: SMB's locks keep all other openings out."""
        other = os.open(self.name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            os.write(other, b"\0")
            os.ftruncate(other, 0)
        except OSError:
            return False
        finally:
            os.close(other)
        return True

    def flush(self) -> None:
        """Write a file's data to the disk, or of a folder's disk everything.

        Raises:
            OSError: The disk does not take it.
        """
        if self._descriptor is None:
            return
        try:
            if self._folder:
                flush_disk(self._descriptor)
            else:
                os.fsync(self._descriptor)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise  # other errors tell of file systems that cannot flush

    def take(self, target: Path, *, replace: bool) -> None:
        """Give a flushed file its final name, in one step.

        Args:
            target: The name, on the same disk.
            replace: Replace a regular file or a symbolic link that has the name. What the link
                points to is left alone.

        Raises:
            FileExistsError: The name is taken, and must not be replaced.
            OSError: It cannot be given. The file keeps its temporary name.
        """
        if sys.platform == "win32":
            self.close()  # Windows renames no file that is open
        move(self.name, target, replace=replace, descriptor=self._descriptor)
        self.close()
        flush_folder(target.parent)

    def show(self) -> None:
        """Give a complete folder a visible name, where that can be done."""
        visible = self.name.with_name(self.name.name.removeprefix("."))
        with contextlib.suppress(OSError):
            self.name.rename(visible)
            if self.path == self.name:
                self.path = visible
            self.name = visible

    def keep(self, target: Path) -> Path:
        """Give it a free name like `target`, for a final name that cannot be had.

        Returns:
            The name; the temporary one if no other can be had, which the next run removes.
        """
        plain = self._parent / self.name.name.removeprefix(".")
        names = [spare_name(target, number) for number in range(2, 100)]
        for name in [*names, plain]:
            try:
                self.take(name, replace=False)
            except FileExistsError:
                continue
            except OSError:
                if name != plain:
                    continue
            else:
                return name
        self.close()
        return self.name

    def remove(self) -> None:
        """Remove it, unless it has got a final name; errors are ignored."""
        if self._descriptor is None and os.name == "posix":
            return
        if sys.platform == "win32":
            self.close()
        self._delete()
        self.close()

    def _delete(self) -> None:
        with contextlib.suppress(OSError):
            if self._folder:
                shutil.rmtree(self.name)
            else:
                self.name.unlink()

    def close(self) -> None:
        """Let go of it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path, *, only_new: bool = False) -> Iterator[Path]:
    """Yield a path to write to; what was written becomes `path` if the block ends without error.

    A file that is replaced hands on its permissions. On an error the temporary file is removed, and
    `path` is as it was. A pipe or a character device at `path` is written into.

    Args:
        path: The file. Of a symbolic link the link is replaced, not what it points to.
        only_new: Replace nothing.

    Raises:
        FileExistsError: `path` is there, and is no regular file or may not be replaced.
        OSError: The folder cannot be written, or `path` cannot be replaced.
    """
    if is_stream(path):
        with open_stream(path) as stream, tempfile.TemporaryDirectory(prefix="vdeblur-") as folder:
            whole = Path(folder) / "whole"
            yield whole
            with whole.open("rb") as file:
                shutil.copyfileobj(file, stream)
        return
    _swept(path.parent.absolute())
    with Temporary(path.parent, mode=_mode_of(path)) as temporary:
        yield temporary.path
        temporary.flush()
        temporary.take(path, replace=not only_new)


@contextlib.contextmanager
def replacing_folder(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `path` if the block ends without error.

    On an error it is removed, and `path` is as it was. Folders above `path` are made.

    Args:
        path: The folder.
        replace: Remove a folder of that name once the new one is complete; else only an empty one.

    Raises:
        OSError: The folder cannot be written, or `path` cannot be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _swept(path.parent.absolute())
    with Temporary(path.parent, folder=True) as held:
        new = held.path / "new"
        new.mkdir()
        yield new
        held.flush()
        _take_folder(held.name, path, replace=replace and os.path.lexists(path))
    flush_folder(path.parent)


def _take_folder(held: Path, path: Path, *, replace: bool) -> None:
    """Give the folder `new` in a temporary one its name; what it replaces is left in its place."""
    new, aside = held / "new", held / _ASIDE / path.name
    if replace and exchange(new, path):
        return
    try:
        if replace:
            # Under its own name: after a kill, the next run puts it back.
            aside.parent.mkdir()
            path.rename(aside)
        new.rename(path)
    except BaseException:  # a signal, too
        _put_back(held)
        raise


def _put_back(held: Path) -> None:
    """Give a folder that was to be replaced its name again, if nothing has it.

    Raises:
        OSError: It cannot be had.
    """
    for folder in (held / _ASIDE).glob("*"):
        name = held.parent / folder.name
        if not os.path.lexists(name):
            folder.rename(name)


@contextlib.contextmanager
def folder_made(path: Path) -> Iterator[None]:
    """Make a folder and those above it; on an error, remove what was made and is empty.

    Raises:
        OSError: It cannot be made.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it is not empty
            for folder in missing:
                folder.rmdir()
        raise


@contextlib.contextmanager
def held_alone(path: Path) -> Iterator[bool]:
    """Hold a lock file while the block runs; yield False if another run holds it.

    Args:
        path: The lock file, which is made and removed. Links are not followed.

    Raises:
        OSError: It cannot be opened.
    """
    if sys.platform == "win32":
        yield True
        return
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            if _lock(descriptor) is False:
                yield False
                return
            # The run before may have removed it between the opening and the lock.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    try:
                        yield True
                    finally:
                        path.unlink(missing_ok=True)
                    return
        finally:
            os.close(descriptor)


@lru_cache(maxsize=256)
def _swept(folder: Path) -> None:
    remove_leftovers(folder)  # once for each process: many small files may follow each other


def _mode_of(path: Path) -> int:
    """Permissions for a file that will replace `path`."""
    with contextlib.suppress(OSError):
        found = path.lstat().st_mode
        if stat.S_ISREG(found):
            return stat.S_IMODE(found) & 0o777
    return 0o666


def is_temporary_name(path: Path) -> bool:
    """Tell whether a file has a name that leftovers of dead runs have."""
    return _TEMPORARY.fullmatch(path.name) is not None


def spare_name(target: Path, number: int) -> Path:
    """Return a name like `target` with a number: `ride-2.mp4`, shortened where it is too long."""
    end = f"-{number}{target.suffix}"
    stem = os.fsencode(target.stem)[: max(1, _LONGEST_NAME - len(os.fsencode(end)))]
    return target.with_name(stem.decode(errors="ignore") + end)


def flush_folder(folder: Path) -> None:
    """Write a folder's names to the disk, where that can be done."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- leftovers ----------------------------------------------------------------------------------


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that dead runs left in a folder.

    A run that lives holds a lock on its files, whatever its process id and container. Where locks
    do not work, nothing is removed; where another machine's locks may not be seen (NFS, SMB), only
    what has not been written to for a day.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_dead(Path(entry.path))


def _remove_if_dead(path: Path) -> None:
    if sys.platform == "win32":
        if path.is_file():
            path.unlink()  # refused while it is open
        return
    with claimed(path) as owned:
        if owned and path.is_dir():
            if not (path / COMPLETE).exists():
                _put_back(path)
                shutil.rmtree(path)
        elif owned:
            path.unlink()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Lock a file or folder of a dead run; yield False if a run holds it, or may hold it.

    Raises:
        OSError: It cannot be opened.
    """
    if sys.platform == "win32":
        yield False
        return
    found = path.lstat()
    regular, folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
    if found.st_uid != os.geteuid() or not (regular or folder):
        yield False
        return
    # NFS locks only what is open for writing.
    access = os.O_RDWR if regular else os.O_RDONLY
    descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        owned = _lock(descriptor) is True and os.path.samestat(os.fstat(descriptor), path.lstat())
        if owned and _file_system(path.parent) not in _LOCAL:
            owned = time.time() - found.st_mtime > _FORGOTTEN_SECONDS
        yield owned
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another holds it, None if its file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _file_system(folder: Path) -> str:
    """The type of the file system that holds a folder, such as "ext4"."""
    resolved = folder.resolve()
    holding = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(part.mountpoint)
    ]
    return max(holding, key=lambda found: found[0])[1] if holding else ""


# --- names that an output may have --------------------------------------------------------------


def check_target(path: Path, *, overwrite: bool, sources: Sequence[Path] = ()) -> None:
    """Check that a file can be written under a name, before the work and not after.

    Args:
        path: The name.
        overwrite: Whether a file of this name is replaced.
        sources: Files that must not be replaced in any case.

    Raises:
        OutputError: It cannot be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"folder {path.parent} does not exist: create it first")
    if is_stream(path):
        return
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
        with contextlib.suppress(OSError):
            kind = stat.S_IFMT(path.stat().st_mode)  # of what a link points to
    except FileNotFoundError:
        kind = 0
    except PermissionError as error:
        raise OutputError(f"{path} may not be written: check the folder's permissions") from error
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}): change the name"
        ) from error
    if kind == stat.S_IFDIR:
        raise OutputError(f"{path} is a folder: name a file")
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise OutputError(f"{path} is a device or a socket and cannot be replaced: name a file")
    for source in sources if kind else ():
        with contextlib.suppress(OSError):
            if path.samefile(source):
                raise OutputError(f"{path} is the input itself: choose another output")
    if kind and not overwrite:
        raise OutputError(f"{path} exists already: use `overwrite=True` to replace it")
    if not os.access(path.parent, os.W_OK):
        with contextlib.suppress(OSError, AttributeError):  # Windows has none
            if os.statvfs(path.parent).f_flag & os.ST_RDONLY:
                raise DiskError.of(errno.EROFS, str(path))
        raise OutputError(f"{path} may not be written: check the folder's permissions")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
