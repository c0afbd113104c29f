"""Checks of the form of pictures: size, format, colors, orientation, HDR and captions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from av.video.format import VideoFormat
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from vdeblur.media.verify.checks import Finding
from vdeblur.media.verify.matching import Match
from vdeblur.media.verify.wording import ratio


def check_looks(match: Match) -> Iterator[Finding]:
    """Compare what every frame says of itself, up to the first difference of each kind."""
    for name, (same, show) in _LOOKS.items():
        problems, found = [], set()
        for source, output in match.videos:
            a, b = source.looks.get(name), output.looks.get(name)
            if a is None or b is None:
                continue
            difference = a.first_difference(b, same)
            if difference:
                number, before, after = difference
                problems.append(f"{source.name} frame {number}: {show(before)} -> {show(after)}")
            found |= {show(value) for value in b.values}
        few = sorted(found)[:3]
        if show is _show_digest:
            few = ["equal" if found - {"none"} else "none"]
        yield Finding(name, problems, ", ".join(few))


def check_geometry(match: Match) -> Iterator[Finding]:
    """Compare the shape of a pixel, and where chroma samples lie."""
    problems = [
        f"{source.name}: {ratio(source.aspect)} -> {ratio(output.aspect)}"
        for source, output in match.videos
        if source.aspect != output.aspect
    ]
    shapes = ", ".join(ratio(output.aspect) for _, output in match.videos)
    yield Finding("sample aspect ratio", problems, shapes)
    problems, places = [], []
    for source, output in match.videos:
        # MPEG-2, H.264 and HEVC mean left when they say nothing.
        before, after = source.chroma_location or "left", output.chroma_location or "left"
        places.append(output.chroma_location or "unspecified")
        if before != after:
            problems.append(f"{source.name}: {before} -> {after}")
    yield Finding("chroma location", problems, ", ".join(places))


def _same_format(before: str, after: str) -> bool:
    """Whether pixel format `after` holds all of `before`: depth, chroma, alpha, color model."""
    if before.replace("yuvj", "yuv") == after.replace("yuvj", "yuv"):
        return True
    a, b = _pixel(before), _pixel(after)
    return a[0] <= b[0] and a[1] >= b[1] and a[2] >= b[2] and a[3] <= b[3] and a[4:] == b[4:]


def _pixel(name: str) -> tuple[int, int, int, bool, bool, bool]:
    """(bits, columns and rows a chroma sample covers, alpha, RGB, has chroma)."""
    pixel = VideoFormat(name)
    bits = max(component.bits for component in pixel.components)
    chroma = len(pixel.components) > 2
    across, down = 64 // pixel.chroma_width(64), 64 // pixel.chroma_height(64)
    alpha = any(component.is_alpha for component in pixel.components)
    return bits, across, down, alpha, pixel.is_rgb or pixel.has_palette, chroma


def _enum_name(kind: Any) -> Callable[[int], str]:
    def name(value: int) -> str:
        try:
            return str(kind(value).name).lower()
        except ValueError:
            return str(value)

    return name


def _show_matrix(value: tuple[int, ...]) -> str:
    a, b, c, d = value
    angle = round(math.degrees(math.atan2(b, a))) % 360
    flipped = " mirrored" if a * d - b * c < 0 else ""
    return f"{angle}°{flipped}"


def _show_mastering(value: tuple[Fraction, ...] | None) -> str:
    if value is None:
        return "none"
    return f"{float(value[8]):g} to {float(value[9]):g} cd/m²"


def _show_digest(value: str | None) -> str:
    return value or "none"


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


# Name → (whether an output's value keeps the source's, how a value is shown).
_LOOKS: dict[str, tuple[Callable[[Any, Any], bool], Callable[[Any], str]]] = {
    "picture size": (_equal, lambda size: f"{size[0]}x{size[1]}"),
    "pixel format": (_same_format, str),
    "colour range": (_equal, lambda value: {1: "limited", 2: "full"}.get(value, str(value))),
    "colour primaries": (_equal, _enum_name(ColorPrimaries)),
    "transfer characteristics": (_equal, _enum_name(ColorTrc)),
    "matrix coefficients": (_equal, _enum_name(Colorspace)),
    "display matrix": (_equal, _show_matrix),
    "field order": (_equal, str),
    "mastering display": (_equal, _show_mastering),
    "content light level": (
        _equal,
        lambda value: "none" if value is None else f"MaxCLL {value[0]}, MaxFALL {value[1]} cd/m²",
    ),
    "dynamic HDR": (_equal, _show_digest),
    "closed captions": (_equal, _show_digest),
    "user data": (_equal, _show_digest),
}
