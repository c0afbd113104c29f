"""The checks: their names, their outcomes, and which of them a conversion or a part may fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

#: The names of all checks, in the order in which they are reported.
CHECKS = (
    "container",
    "streams",
    "decoding",
    "frame count",
    "timestamps",
    "frame duration",
    "start time",
    "duration",
    "A/V offset",
    "picture size",
    "sample aspect ratio",
    "pixel format",
    "picture coding",
    "picture colours",
    "picture metadata",
    "colour range",
    "colour primaries",
    "transfer characteristics",
    "matrix coefficients",
    "chroma location",
    "display matrix",
    "field order",
    "mastering display",
    "content light level",
    "dynamic HDR",
    "closed captions",
    "user data",
    "codec parameters",
    "packet count",
    "packet data",
    "packet timestamps",
    "packet duration",
    "language",
    "stream metadata",
    "disposition",
    "chapters",
    "metadata",
    "attachments",
    "cover art",
    "telemetry",
    "timecode",
    "maker boxes",
    "data tracks",
    "faststart",
)

#: What any container must keep; the other checks depend on what a container can express.
ESSENTIAL = frozenset(
    {
        "container",
        "decoding",
        "frame count",
        "packet count",
        "packet data",
        "A/V offset",
        "picture size",
        "picture coding",
        "picture colours",
    }
)
#: What both ISO files (MP4, MOV) and Matroska can express.
OF_BOTH = frozenset(
    {
        "duration",
        "chapters",
        "pixel format",
        "sample aspect ratio",
        "colour range",
        "colour primaries",
        "transfer characteristics",
        "matrix coefficients",
    }
)
#: What belongs to a whole video, and is left out of a part of it.
OF_THE_WHOLE = frozenset({"streams", "chapters", "telemetry", "timecode", "data tracks"})

#: Prefix of the detail of a check that fails for a loss which the caller has accepted.
KNOWN_LOSS = "known loss: "
#: Prefix of the detail of a check that only a whole video has to pass.
NOT_IN_PART = "not kept by a part: "
#: Prefix of the detail of a check that another kind of container need not pass.
BY_CONTAINER = "not kept by this container: "
#: All of these prefixes: a check that passed in spite of a loss.
EXCUSES = (KNOWN_LOSS, NOT_IN_PART, BY_CONTAINER)


@dataclass(frozen=True)
class Check:
    """The outcome of one comparison.

    Attributes:
        name: A name in `CHECKS`.
        passed: Whether the output kept what the source has, or its loss is excused.
        detail: What was found: the output's values, or the first differences.
    """

    name: str
    passed: bool
    detail: str


class Finding(NamedTuple):
    """A comparison before excuses: its problems, and what to say where there is none."""

    name: str
    problems: Sequence[str]
    detail: str = ""


def conclude(findings: Iterable[Finding], excused: Mapping[str, str]) -> list[Check]:
    """Turn findings, one for each name in `CHECKS`, into checks in that order.

    Args:
        findings: In any order.
        excused: Name of a check that passes in spite of problems → prefix of its detail.
    """
    checks = {}
    for name, problems, detail in findings:
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            detail = excused.get(name, "") + "; ".join(problems[:3]) + more
        checks[name] = Check(name, not problems or name in excused, detail)
    return [checks[name] for name in CHECKS]
