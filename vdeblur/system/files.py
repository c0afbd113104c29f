"""Files that appear complete or not at all, their mode and their checksum."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` that takes its place if the block ends without error.

    The file has the mode of the one that it replaces, or else that of any new file. On an error
    the temporary file is removed, and `path` is as it was.

    Raises:
        OSError: the folder cannot be written, or `path` cannot be replaced.
    """
    number, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    os.close(number)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp and some libraries that write to its file make it readable by its owner only.
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else default_mode())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def default_mode() -> int:
    """Return the permissions of a new file under the process's umask."""
    # Only setting the umask tells what it was.
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
