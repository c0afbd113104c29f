"""The user's own weights: copies under a name, each with a record that states its sha256.

They lie in `weights` in the data folder (`vdeblur.system.folders.data_folder`). Knows no networks.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import errno
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from dataclasses import replace as replaced
from pathlib import Path

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.system.files import replacing, sha256_of
from vdeblur.system.folders import data_folder
from vdeblur.system.masking import masked_download

#: Names that `vdeblur models` uses as words of its own.
RESERVED = frozenset({"add", "remove", "fetch"})
# Windows reserves these for devices, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?<!\.)")
_SUFFIXES = frozenset({".pkl", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".safetensors"})


@dataclass(frozen=True)
class StoredWeights:
    """The record of stored weights.

    Attributes:
        name: the name that they are used by.
        file: name of the copy in the weights folder.
        sha256: checksum of the copy, in hexadecimal.
        size_bytes: size of the copy.
        network: the recognised network and its configuration, in words.
        source: path or address that they came from, without secrets.
        added: date, ISO 8601.
    """

    name: str
    file: str
    sha256: str
    size_bytes: int
    network: str
    source: str
    added: str

    @property
    def path(self) -> Path:
        """The copy."""
        return weights_folder() / self.file


def weights_folder() -> Path:
    """Return the folder of the copies and their records; it need not exist."""
    return data_folder() / "weights"


def check_name(name: str) -> None:
    """Raise UsageError when a name cannot be used for stored weights."""
    if not _NAME.fullmatch(name) or _DEVICES.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a name of weights: use up to 64 letters, digits, and . _ - "
            "after the first"
        )
    if name in RESERVED:
        raise UsageError(f"{name!r} is a word of `vdeblur models` itself: choose another name")


def stored_weights() -> list[StoredWeights]:
    """Return all readable records, sorted by name."""
    found = []
    for record in sorted(weights_folder().glob("*.json")):
        if not record.is_file():  # reading a pipe would wait
            continue
        try:
            found.append(_read_record(record))
        except ModelError:
            continue
    return found


def find_weights(name: str) -> StoredWeights | None:
    """Return the record of a name, or None.

    Raises:
        ModelError: the record is damaged.
    """
    record = weights_folder() / f"{name}.json"
    return _read_record(record) if _NAME.fullmatch(name) and record.is_file() else None


def stored_file(name: str) -> Path | None:
    """Return the copy under a name, its sha256 checked, or None when nothing has this name.

    Raises:
        ModelError: the record is damaged, or the copy is not the file that was added.
    """
    entry = find_weights(name)
    return None if entry is None else _checked(entry)


def locate(weights: Path | str) -> Path:
    """Return a file that exists, or else the copy stored under this name, its sha256 checked.

    Raises:
        ModelError: there is neither, or the copy is not the file that was added.
    """
    path = Path(weights)
    # Names that no file can have: with a NUL, or too long.
    with contextlib.suppress(OSError, ValueError):
        if path.exists():
            return path
    entry = find_weights(str(weights))
    if entry is not None:
        return _checked(entry)
    stored = [entry.name for entry in stored_weights()]
    have = ", ".join(stored) or "none yet, see `vdeblur models add`"
    what = "weights file" if path.suffix in _SUFFIXES or len(path.parts) > 1 else "file or name"
    meant = closest_name(str(weights), stored)
    hint = f"; did you mean {meant}?" if meant else ""
    raise ModelError(f"{what} {weights} does not exist: check the path; kept by name: {have}{hint}")


def closest_name(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that a mistyped one resembles, or None."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return found[0] if found else None


def store_weights(
    file: Path, *, name: str, network: str, source: str, sha256: str, replace: bool = False
) -> StoredWeights:
    """Copy a weights file to the store; the copy is complete or absent.

    Args:
        file: the file to copy.
        name: the name to store it under.
        network: the recognised network, in words, for the record.
        source: path or address that the file came from, for the record; without secrets.
        sha256: checksum that the copy must have.
        replace: replace weights that have this name already.

    Raises:
        UsageError: the name cannot be used, or is taken and `replace` is False.
        ModelError: the file changed while it was copied.
        OutputError: the folder cannot be written.
    """
    check_free(name, replace=replace)
    folder = weights_folder()
    # The record names its copy: until the record is replaced, the earlier copy stays in use.
    target = folder / f"{name}-{sha256[:12]}{suffix_of(file.name)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
            if sha256_of(temporary) != sha256:
                raise ModelError(f"{file} changed while it was being copied: try again")
        entry = StoredWeights(
            name,
            target.name,
            sha256,
            target.stat().st_size,
            network,
            source,
            datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        )
        with replacing(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(asdict(entry), indent=2) + "\n", encoding="utf-8")
        for other in _files_of(name):
            if other != target:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror or error})") from error
    return entry


def suffix_of(name: str) -> str:
    """Return the suffix of a weights file's name; ".bin" unless it is a usual one."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _SUFFIXES else ".bin"


def check_free(name: str, *, replace: bool) -> None:
    """Raise UsageError when a name cannot be used, or is taken and `replace` is False."""
    check_name(name)
    if not replace and (weights_folder() / f"{name}.json").exists():
        raise UsageError(
            f"weights are kept as {name!r} already: choose another name, or `replace=True`"
        )


def remove_weights(name: str) -> None:
    """Delete the weights stored under a name, even if their record is damaged.

    Raises:
        ModelError: nothing is stored under this name.
        OutputError: the folder cannot be written.
    """
    record = weights_folder() / f"{name}.json"
    if not _NAME.fullmatch(name) or not record.is_file():
        have = [entry.name for entry in stored_weights()]
        there = f"there is {', '.join(have)}" if have else "nothing is kept at all"
        raise ModelError(f"nothing is kept as {name!r}: {there}")
    try:
        record.unlink()
        for file in _files_of(name):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{record} cannot be removed ({error.strerror})") from error


def _files_of(name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{12}\.[a-z]+")
    return [path for path in weights_folder().iterdir() if pattern.fullmatch(path.name)]


def _read_record(record: Path) -> StoredWeights:
    try:
        entry = StoredWeights(**json.loads(record.read_text(encoding="utf-8")))
        types = {field.name: int if field.name == "size_bytes" else str for field in fields(entry)}
        if any(type(getattr(entry, name)) is not kind for name, kind in types.items()):
            raise TypeError("a value of another type")
        if "://" in entry.source:  # records of earlier versions hold addresses with their secrets
            entry = replaced(entry, source=masked_download(entry.source))
        sound = entry.name == record.stem and Path(entry.file).name == entry.file
    except (OSError, ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ModelError(
            f"{record} is damaged: `vdeblur models remove {record.stem}` and add the weights again"
        )
    return entry


def _checked(entry: StoredWeights) -> Path:
    try:
        if entry.path.exists() and not entry.path.is_file():
            raise OSError(errno.EINVAL, "it is no regular file")
        digest = sha256_of(entry.path)
    except OSError as error:
        raise ModelError(
            f"{entry.path}, kept as {entry.name!r}, cannot be read ({error.strerror}): "
            f"`vdeblur models remove {entry.name}` and add the weights again"
        ) from error
    if digest != entry.sha256:
        raise ModelError(
            f"{entry.path} is not the file that was added as {entry.name!r}: "
            f"`vdeblur models remove {entry.name}` and add the weights again"
        )
    return entry.path
