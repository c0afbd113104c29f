"""Files moved to a final name in one step, which replaces nothing unless asked to.

Also the calls for this that Python does not have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any

# Answers of file systems and kernels that lack a way of renaming.
_LACKING = frozenset(
    getattr(errno, name) for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "EPERM")
    if hasattr(errno, name)
)  # fmt: skip


def move(source: Path, target: Path, *, replace: bool, descriptor: int | None = None) -> None:
    """Move a file to another name on its disk.

    Args:
        source: The file.
        target: Its new name.
        replace: Replace a regular file or a symbolic link of that name; a file that is replaced
            hands on its permissions.
        descriptor: The file, open: what has the name `source` must be this very file.

    Raises:
        FileExistsError: The name is taken, and must not be replaced.
        OSError: The file cannot be moved.
    """
    while True:
        taken = _mode(target) if replace else None
        if taken is None:
            try:
                _move_to_free_name(source, target, descriptor)
            except FileExistsError:
                if replace and _mode(target) is not None:
                    continue  # it has just appeared
                raise
            return
        if not (stat.S_ISREG(taken) or stat.S_ISLNK(taken)):
            raise FileExistsError(errno.EEXIST, "it is no regular file", str(target))
        _check(source, descriptor)
        if stat.S_ISREG(taken):
            # A nicety: network and FUSE file systems refuse it.
            with contextlib.suppress(OSError):
                source.chmod(stat.S_IMODE(taken) & 0o777)
        source.replace(target)
        return


def _mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _check(source: Path, descriptor: int | None) -> None:
    """Check that nobody has put another file under the name."""
    if descriptor is not None and not os.path.samestat(os.fstat(descriptor), source.lstat()):
        raise OSError(errno.ESTALE, "another program has replaced the temporary file", str(source))


def _move_to_free_name(source: Path, target: Path, descriptor: int | None) -> None:
    """Move a file by the safest way that its file system has."""
    if sys.platform == "win32":
        source.rename(target)  # which replaces nothing there
        return
    try:
        if descriptor is not None and sys.platform == "linux":
            # By the open file: its name may be another file's by now. Python follows the link only
            # if it is given a folder's descriptor, which an absolute path does not use (linkat(2)).
            os.link(f"/proc/self/fd/{descriptor}", target, src_dir_fd=descriptor)
        else:
            os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # No hard links (FAT, exFAT, some of SMB and FUSE), or an error that the next way meets too.
        _check(source, descriptor)
        _rename_to_free_name(source, target)
        return
    with contextlib.suppress(OSError):
        source.unlink()


def _rename_to_free_name(source: Path, target: Path) -> None:
    # RENAME_NOREPLACE, RENAME_EXCL
    call = _rename_call(4 if sys.platform == "darwin" else 1)
    if call is not None:
        if call(os.fsencode(source), os.fsencode(target)) == 0:
            return
        number = ctypes.get_errno()
        if number not in _LACKING:
            raise OSError(number, os.strerror(number), str(source), None, str(target))
    # The name is taken first, and the file put in its place.
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        source.replace(target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def exchange(one: Path, other: Path) -> bool:
    """Swap the names of two files or folders in one step; False where that is not possible.

    Raises:
        OSError: They cannot be renamed.
    """
    call = _rename_call(2)  # RENAME_EXCHANGE, RENAME_SWAP
    if call is None:
        return False
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _LACKING:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _rename_call(flag: int) -> Any:
    """The system's rename with a flag: renameat2(2) of Linux, renamex_np(2) of macOS."""
    library, here = _library(), -100  # AT_FDCWD
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda old, new: library.renameat2(here, old, here, new, flag)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda old, new: library.renamex_np(old, new, flag)
    return None


def flush_disk(descriptor: int) -> None:
    """Write everything on the disk of an open file to it (syncfs(2), sync(2)).

    Raises:
        OSError: The disk does not take it.
    """
    if sys.platform == "linux" and hasattr(_library(), "syncfs"):
        if _library().syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    elif sys.platform != "win32":
        os.sync()


@cache
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True)
