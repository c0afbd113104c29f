"""The journal of finished outputs: a file in their folder that says what was made from what."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from vdeblur.errors import InputError
from vdeblur.gopro.job import Job
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import by_kind, get_trak, parse_tracks, read_tracks
from vdeblur.system.files import replacing

#: Name of the journal in the folder of the outputs.
JOURNAL = "vdeblur-gopro.json"


def finished(job: Job) -> bool:
    """Return whether a job's output is there, whole, and made of its chapters.

    The journal decides, if it knows the output: chapters and output must have the sizes that stand
    there. Otherwise the indexes do: every track has as many samples as the source's, none behind
    the end of the file, and the pictures are not the source's own (a copy by that name is not
    restored).
    """
    if not job.output.is_file():
        return False
    try:
        if boxes.missing_bytes(job.output) or not read_tracks(job.output):
            return False
        entry = _read_journal(job.output.parent).get(job.output.name)
        if entry is not None:
            return bool(entry == _entry(job))
        return _holds_all(job.open(), job.output)
    except (InputError, OSError):
        return False


def note_finished(job: Job) -> None:
    """Enter a finished job; without a writable journal `finished` goes by the indexes."""
    with contextlib.suppress(OSError):
        journal = _read_journal(job.output.parent) | {job.output.name: _entry(job)}
        with replacing(job.output.parent / JOURNAL) as path:
            path.write_text(json.dumps(journal, indent=1, sort_keys=True), encoding="utf-8")


def _holds_all(source: Path, output: Path) -> bool:
    """Whether every track of the source is in the output, and the pictures were coded anew."""
    source_counts, output_counts = (
        {kind: track.sample_count for kind, track in by_kind(read_tracks(path)).items()}
        for path in (source, output)
    )
    same = all(output_counts.get(kind, 0) == count for kind, count in source_counts.items())
    return same and _picture_sizes(source) != _picture_sizes(output)


def _picture_sizes(path: Path) -> bytes:
    """The table of the sizes of the coded pictures (stsz)."""
    with boxes.open_input(path) as file:
        moov = boxes.read_moov(file)[1]
        for track in parse_tracks(moov):
            if track.handler == b"vide":
                stbl = boxes.get(get_trak(moov, track.index), b"mdia", b"minf", b"stbl")
                return boxes.get(stbl or b"", b"stsz") or b""
    return b""


def _entry(job: Job) -> dict[str, Any]:
    """What changes when a job's files do: sizes, for times survive no card reader."""
    return {
        "chapters": [[chapter.name, chapter.stat().st_size] for chapter in job.chapters],
        "size": job.output.stat().st_size,
    }


def _read_journal(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
