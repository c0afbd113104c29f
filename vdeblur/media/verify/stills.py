"""What a picture file is beside its pixels' form: its format, its coding, its colors at large."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import ColorRange

from vdeblur.media.metadata import carry
from vdeblur.media.picture_formats import (
    JPEG,
    PNG,
    WEBP,
    format_of_content,
    format_of_name,
    is_lossless,
)
from vdeblur.media.pixel_formats import CONVERTING, color_arguments, layout_of, planar_format
from vdeblur.media.verify.checks import Finding

#: Parts of a picture, across and down, whose mean colors are compared.
_PARTS = 4
# Of 255: what a restoration leaves of the mean color of a part, and any wrong color model does not.
_COLOR_TOLERANCE = 24


@dataclass(frozen=True)
class StillFacts:
    """Facts of a picture file.

    Attributes:
        form: The name of its format, by its content.
        named: The name of the format that its suffix says; None for another suffix.
        lossless: Whether it is coded without loss; None if the file does not say.
        metadata: Names of the metadata beside the picture.
        contents: Digests of what stays the same to the byte in the same format.
    """

    form: str
    named: str | None
    lossless: bool | None
    metadata: tuple[str, ...]
    contents: Mapping[str, bytes] = field(default_factory=dict)


def still_facts(path: Path) -> StillFacts | None:
    """Look at a picture file; None for any other file.

    Raises:
        OSError: The file cannot be read.
    """
    form = format_of_content(path)
    if form is None:
        return None
    named = format_of_name(path)
    found = carry.read(path.read_bytes())
    named_as = named.name if named is not None else None
    contents = {"ICC profile": found.icc}
    if form in (JPEG, PNG, WEBP):  # a TIFF is written anew, tag by tag
        contents |= {"EXIF data": found.exif, "comments": b"\0".join(found.comments)}
    contents |= {"XMP": found.xmp, "IPTC": found.iptc}
    digests = {name: hashlib.sha256(data).digest() for name, data in contents.items() if data}
    return StillFacts(form.name, named_as, is_lossless(path), tuple(found.names), digests)


def mean_colors(frame: Any, codec: str) -> tuple[int, ...]:
    """Return the mean R, G, B (0 to 255) of each of 4×4 parts of a decoded picture, in rows.

    Args:
        frame: The picture.
        codec: libav's canonical name of the codec, from which defaults of its colors follow.
    """
    layout = layout_of(
        planar_format(frame.format.name),
        frame.width,
        frame.height,
        color_range=int(frame.color_range),
        colorspace=int(frame.colorspace),
        interlaced=False,
        codec=codec,
    )
    colors = {"dst_color_range": int(ColorRange.JPEG)}
    if layout.kind != "rgb":
        colors |= color_arguments("src", layout.matrix, full_range=layout.full_range)
    # At full size: scaled down, halved chroma would be a quarter of a part off.
    pixels = frame.reformat(format="rgb24", threads=CONVERTING, **colors).to_ndarray()
    rows = np.array_split(pixels, min(_PARTS, frame.height), axis=0)
    parts = [p for row in rows for p in np.array_split(row, min(_PARTS, frame.width), axis=1)]
    return tuple(round(float(value)) for part in parts for value in part.mean(axis=(0, 1)))


def check_stills(match: Any) -> Iterator[Finding]:
    """Compare the formats, the coding and the colors of two picture files."""
    source, output = match.source.still, match.output.still
    problems = []
    if output is not None:
        same = output.named in (None, output.form) or {output.named, output.form} == {"PPM", "PGM"}
        if not same:
            problems.append(f"named as {output.named}, and holds {output.form}")
        kept = source is None or source.form != output.form or not source.lossless
        if not kept and output.lossless is False:
            problems.append("without loss -> with loss")
    detail = "" if output is None else output.form
    yield Finding("picture coding", problems, detail)
    yield Finding("picture metadata", _lost_metadata(source, output), "kept" if output else "")
    problems = []
    for before, after in match.videos:
        a, b = before.colors, after.colors
        if a is None or b is None:
            continue
        apart = int(np.abs(np.subtract(a, b)).max())
        if apart > _COLOR_TOLERANCE:
            problems.append(f"mean colors are up to {apart} of 255 apart")
    yield Finding("picture colours", problems, "equal at large" if output is not None else "")


def _lost_metadata(source: StillFacts | None, output: StillFacts | None) -> list[str]:
    if source is None or output is None:
        return []
    problems = [f"{name} is missing" for name in source.metadata if name not in output.metadata]
    for name, digest in source.contents.items():
        # In another format only a profile stays the same to the byte.
        kept = source.form == output.form or name == "ICC profile"
        if kept and output.contents.get(name, digest) != digest:
            problems.append(f"{name} is another")
    return problems
