"""The user's own weights: copies under a name, each with its facts and sha256 beside it.

They lie in the user's data folder: VDEBLUR_DATA, or where the system keeps such things. Knows no
networks.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vdeblur.errors import ModelError, OutputError, UsageError
from vdeblur.system.files import replacing, sha256_of
from vdeblur.system.folders import data_folder

#: Words that `vdeblur models` takes for itself.
RESERVED = frozenset({"add", "remove", "fetch"})
# Windows takes these for devices, whatever follows the dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(?<!\.)")
_SUFFIXES = frozenset({".pkl", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".safetensors"})


@dataclass(frozen=True)
class Kept:
    """Weights that were added.

    file: its name in the weights folder. network: what was recognised in it, as a sentence's part.
    source: the path or address that it came from. added: date, ISO 8601.
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
        """Where the copy lies."""
        return weights_folder() / self.file


def weights_folder() -> Path:
    """Where kept weights lie; it need not exist."""
    return data_folder() / "weights"


def check_name(name: str) -> None:
    """UsageError when kept weights cannot be called this."""
    if not _NAME.fullmatch(name) or _DEVICES.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a name of weights: use up to 64 letters, digits, and . _ - "
            "after the first"
        )
    if name in RESERVED:
        raise UsageError(f"{name!r} is a word of `vdeblur models` itself: choose another name")


def kept() -> list[Kept]:
    """All weights that were added, by name; records that cannot be read are left out."""
    found = []
    for record in sorted(weights_folder().glob("*.json")):
        try:
            found.append(_read(record))
        except ModelError:
            continue
    return found


def find(name: str) -> Kept | None:
    """The weights kept under a name; ModelError when its record is damaged."""
    record = weights_folder() / f"{name}.json"
    return _read(record) if _NAME.fullmatch(name) and record.is_file() else None


def kept_for(name: str) -> Path | None:
    """The file kept under a name, its sha256 checked; None when there is none."""
    entry = find(name)
    return None if entry is None else _checked(entry)


def locate(weights: Path | str) -> Path:
    """A file that exists, or else the kept one of this name, its sha256 checked.

    ModelError when it is neither, or not what was added any more.
    """
    path = Path(weights)
    if path.exists():
        return path
    entry = find(str(weights))
    if entry is not None:
        return _checked(entry)
    have = ", ".join(entry.name for entry in kept()) or "none yet, see `vdeblur models add`"
    what = "weights file" if path.suffix in _SUFFIXES or len(path.parts) > 1 else "file or name"
    meant = near(str(weights), [entry.name for entry in kept()])
    hint = f"; did you mean {meant}?" if meant else ""
    raise ModelError(f"{what} {weights} does not exist: check the path; kept by name: {have}{hint}")


def near(name: str, known: Sequence[str]) -> str | None:
    """Which of the known names somebody may have meant, if any."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return found[0] if found else None


def keep(
    file: Path, *, name: str, network: str, source: str, sha256: str, replace: bool = False
) -> Kept:
    """Copy a file under a name; it is there completely or not at all.

    sha256: that the copy must have. UsageError when the name cannot be used, or is taken and
    `replace` is False; OutputError when the folder cannot be written.
    """
    check_free(name, replace=replace)
    folder = weights_folder()
    # The record names its file: until it is replaced, the earlier file is the one.
    target = folder / f"{name}-{sha256[:12]}{suffix_of(file.name)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
            if sha256_of(temporary) != sha256:
                raise ModelError(f"{file} changed while it was being copied: try again")
        entry = Kept(
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
    """The suffix of a file of weights, ".bin" if it is none of the usual ones."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _SUFFIXES else ".bin"


def check_free(name: str, *, replace: bool) -> None:
    """UsageError when weights cannot be kept under this name."""
    check_name(name)
    if not replace and (weights_folder() / f"{name}.json").exists():
        raise UsageError(f"weights are kept as {name!r} already: choose another name, or --force")


def remove(name: str) -> None:
    """Delete what is kept under a name, a damaged record too; ModelError when nothing is."""
    record = weights_folder() / f"{name}.json"
    if not _NAME.fullmatch(name) or not record.is_file():
        have = [entry.name for entry in kept()]
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


def _read(record: Path) -> Kept:
    try:
        entry = Kept(**json.loads(record.read_text(encoding="utf-8")))
        sound = entry.name == record.stem and Path(entry.file).name == entry.file
    except (OSError, ValueError, TypeError):
        sound = False
    if not sound:
        raise ModelError(
            f"{record} is damaged: `vdeblur models remove {record.stem}` and add the weights again"
        )
    return entry


def _checked(entry: Kept) -> Path:
    try:
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
