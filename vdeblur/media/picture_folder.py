"""The pictures of a sequence: in a folder of their own until they are complete, then named.

Naming many files is no single step. So the complete folder gets a visible name and a note of what
it holds first; a run that is killed in between loses nothing, and the next one finishes the work.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from vdeblur.errors import OutputError
from vdeblur.system.files import COMPLETE, Temporary, claimed, flush_folder
from vdeblur.system.renaming import move

_FOLDER = re.compile(r"\.?vdeblur-[0-9a-f]{16}")


class PictureFolder:
    """A folder beside the final names of the pictures.

    Args:
        pattern: The final names.
        source: What is read, for the note.
        replace: Whether files of these names are replaced.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, pattern: Path, source: str, *, replace: bool) -> None:
        self._pattern, self._source, self._replace = pattern, source, replace
        self._held = Temporary(pattern.parent, folder=True)
        self._complete = False

    @property
    def path(self) -> Path:
        """The path to open the folder by."""
        return self._held.path

    def files(self) -> list[Path]:
        """Return the pictures in it."""
        return _pictures(self.path)

    def finish(self) -> None:
        """Give the complete pictures their final names.

        Raises:
            OutputError: A name is taken, or cannot be had: the pictures are kept in a folder.
            OSError: The disk failed.
        """
        self._held.flush()
        folder = self._pattern.parent
        names = [picture.name for picture in self.files()]
        taken = None if self._replace else next((n for n in names if _exists(folder / n)), None)
        if taken is None:
            self._note(len(names))
        self._held.show()
        if taken is not None:
            raise self._kept(folder / taken, "was made by another program meanwhile")
        self._complete = True
        try:
            _name_all(self.path, folder, replace=self._replace)
        except FileExistsError as error:
            raise self._kept(error.filename2 or error.filename, "was made meanwhile") from error
        except OSError as error:
            raise self._kept(self._pattern, f"cannot be written ({error.strerror})") from error
        self._held.remove()

    def _kept(self, name: str | Path, why: str) -> OutputError:
        self._complete = True
        self._held.close()
        return OutputError(
            f"{name} {why}: the pictures that have no names yet are kept in folder "
            f"{self._held.name}"
        )

    def remove(self) -> None:
        """Remove the pictures, unless they are complete and some have no names yet."""
        # Once it is let go of, it can be found by its name alone.
        if self._complete and _pictures(self._held.name):
            self._held.close()
        else:
            self._held.remove()

    def _note(self, count: int) -> None:
        facts = {
            "pattern": self._pattern.name,
            "pictures": count,
            "replace": self._replace,
            "source": _absolute(self._source),
        }
        note = self.path / f"{COMPLETE}.new"
        note.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        note.replace(self.path / COMPLETE)
        flush_folder(self.path)

    @staticmethod
    def recover(pattern: Path, source: str) -> int | None:
        """Finish what runs that were killed while they named their pictures have left.

        Returns:
            The number of pictures, if one of these runs had the same pattern and source.
        """
        found = None
        for folder in sorted(pattern.parent.iterdir()):
            if not _FOLDER.fullmatch(folder.name):
                continue
            with contextlib.suppress(OSError, ValueError, LookupError), claimed(folder) as dead:
                facts = json.loads((folder / COMPLETE).read_text("utf-8")) if dead else {}
                if facts.get("pattern") != pattern.name:
                    continue
                _name_all(folder, pattern.parent, replace=bool(facts["replace"]))
                (folder / COMPLETE).unlink()
                folder.rmdir()
                if facts["source"] == _absolute(source):
                    found = int(facts["pictures"])
        return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith(COMPLETE))


def _name_all(folder: Path, target: Path, *, replace: bool) -> None:
    """Move the pictures of a folder into another, whatever interrupts it; then raise that."""
    interruption: BaseException | None = None
    while pictures := _pictures(folder):
        try:
            for picture in pictures:
                move(picture, target / picture.name, replace=replace)
        except OSError:
            raise
        except BaseException as error:
            interruption = error  # half of the pictures are of no use: the rest is named first
    flush_folder(target)
    if interruption is not None:
        raise interruption


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def _absolute(source: str) -> str:
    return source if source == "-" else str(Path(source).absolute())
