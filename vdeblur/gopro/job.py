"""Jobs: which file to write from which chapters of a recording."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vdeblur.errors import InputError, OutputError
from vdeblur.gopro.chapters import join
from vdeblur.gopro.recordings import SUFFIX, Recording


@dataclass(frozen=True)
class Job:
    """A file to write.

    Attributes:
        chapters: Its sources: all chapters of a recording, in order, or one of them.
        output: The file.
        missing: Names of chapters that the recording should have and does not.
    """

    chapters: tuple[Path, ...]
    output: Path
    missing: tuple[str, ...] = ()

    def open(self) -> Path:
        """Return the source: a plain path, or one that opens as all chapters.

        Raises:
            InputError: No chapter can be read, or they do not fit together.
        """
        return join(self.chapters)


def jobs(
    recordings: Iterable[Recording],
    *,
    folder: Path | None = None,
    keep_chapters: bool = False,
) -> list[Job]:
    """List the files to write, each named after its first chapter with "_deblurred".

    Args:
        recordings: The recordings to restore.
        folder: Where to write; None: beside the chapters. Recordings of the same name from
            different folders go into folders of their own in it.
        keep_chapters: Write a file for each chapter, not for each recording.

    Raises:
        OutputError: Several recordings would be written to the same file.
    """
    found: list[tuple[tuple[Path, ...], tuple[str, ...]]] = []
    for recording in recordings:
        if keep_chapters:
            found += [((chapter,), ()) for chapter in recording.chapters]
        else:
            found.append((recording.chapters, recording.missing))
    names = [chapters[0].name.lower() for chapters, _ in found]
    result = []
    for chapters, missing in found:
        first = chapters[0]
        place = first.parent if folder is None else folder
        if folder is not None and names.count(first.name.lower()) > 1:
            place = folder / first.resolve().parent.name
        result.append(Job(chapters, place / f"{first.stem}{SUFFIX}{first.suffix}", missing))
    outputs = [job.output for job in result]
    for job in result:
        if outputs.count(job.output) > 1:
            raise OutputError(
                f"several recordings would be written to {job.output}: restore them one by one"
            )
    return result


def check_complete(job: Job) -> None:
    """Check that no chapter is missing.

    Raises:
        InputError: Names the chapters that, by the numbers of the others, should be there.
    """
    if job.missing:
        names = ", ".join(job.missing)
        what = "chapter" if len(job.missing) == 1 else "chapters"
        raise InputError(
            f"{what} {names} of {job.chapters[0]} not found: copy what is missing beside it, or go "
            "on without by `allow_missing=True`"
        )
