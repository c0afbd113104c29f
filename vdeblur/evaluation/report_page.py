"""The page of `vdeblur eval --report`: figures, and pictures at their own size, in one HTML file.

Knows scores and pictures; knows no networks and no videos.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from vdeblur.datasets.pictures import RGBImage, png_bytes, to_picture
from vdeblur.evaluation.pages import filled
from vdeblur.evaluation.panels import largest_change
from vdeblur.evaluation.scores import PairScore, SetScores
from vdeblur.evaluation.tables import Table

_CROP = 260, 400  # rows and columns of a picture on the page; three stand beside each other
_CANDIDATES = 32  # pictures of a set that are kept until it is known which is in the middle


@dataclass(frozen=True)
class Shown:
    """A place of a picture.

    Attributes:
        score: That of the whole picture.
        place: Its top row and left column.
        crops: (h, w, 3) uint8 each, by "blurred", "restored" and "sharp".
    """

    score: PairScore
    place: tuple[int, int]
    crops: dict[str, RGBImage]


@dataclass
class Gallery:
    """Keeps the worst of the pairs that pass, and some to find a median one; memory stays bounded.

    The place shown is where blurred and sharp differ most, whatever the network made of it.
    """

    worst: Shown | None = None
    _some: list[Shown] = field(default_factory=list)
    _stride: int = 1
    _seen: int = 0

    def look(
        self, score: PairScore, blurred: Tensor, restored: Tensor | None, sharp: Tensor
    ) -> None:
        """Take a pair, (1, 3, H, W) in [0, 1] each, if it is the worst so far or one of a few."""
        worse = self.worst is None or merit(score) < merit(self.worst.score)
        chosen = self._seen % self._stride == 0
        self._seen += 1
        if not (worse or chosen):
            return
        rows, columns = (min(most, size) for most, size in zip(_CROP, sharp.shape[2:], strict=True))
        top, left = largest_change(blurred, sharp, (rows, columns))
        views = {"blurred": blurred, "restored": restored, "sharp": sharp}
        shown = Shown(
            score,
            (top, left),
            {
                name: to_picture(view[..., top : top + rows, left : left + columns]).copy()
                for name, view in views.items()
                if view is not None
            },
        )
        if worse:
            self.worst = shown
        if chosen:
            self._some.append(shown)
            if len(self._some) > _CANDIDATES:
                del self._some[1::2]
                self._stride *= 2

    def median(self, scores: Sequence[PairScore]) -> Shown | None:
        """Return the kept picture that is nearest to the median of all."""
        if not self._some:
            return None
        middle = sorted(map(merit, scores))[len(scores) // 2]
        return min(self._some, key=lambda shown: abs(merit(shown.score) - middle))


def merit(score: PairScore) -> float:
    """Rank a picture by its gain, or by its PSNR where nothing was restored."""
    value = score.values.get("psnr_gain", score.values["psnr_blurred"])
    return min(max(value, -1e3), 1e3)  # infinities have no distance to a median


def page(
    sets: Sequence[tuple[SetScores, Gallery]],
    tables: Sequence[tuple[str, Table]],
    *,
    label: str,
    notes: Sequence[str],
) -> str:
    """Lay out the page.

    Args:
        sets: The scores of each set, and the pictures to show of it.
        tables: A heading and a table each.
        label: What the restored pictures are called.
        notes: Lines below everything.

    Returns:
        HTML that needs no other file.
    """
    parts = [_table(heading, table) for heading, table in tables]
    for scores, gallery in sets:
        parts.append(f"<h2>{html.escape(scores.name)}</h2>")
        parts += [f"<p>{html.escape(note)}</p>" for note in scores.notes]
        parts.append(_chart(scores))
        shown = [("worst", gallery.worst), ("median", gallery.median(scores.pictures))]
        parts += [_views(kind, one, label) for kind, one in shown if one is not None]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    return filled("report_page.html", f"vdeblur eval: {label}", body="\n".join(parts))


def _table(heading: str, table: Table) -> str:
    first, *lines = ([html.escape(cell) for cell in line] for line in table)
    head = "".join(f"<th>{cell}</th>" for cell in first)
    body = "\n".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in lines
    )
    return (
        f"<h2>{html.escape(heading)}</h2>\n<table><thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table>"
    )


def _chart(scores: SetScores) -> str:
    """Draw the gain of every picture in their order, or the PSNR where nothing was restored."""
    values = [merit(score) for score in scores.pictures]
    finite = [value for value in values if abs(value) < 1e3]
    if len(finite) < 2:
        return ""
    name = "gain" if "psnr_gain" in scores.pictures[0].values else "PSNR blurred"
    low, high = min(finite), max(finite)
    if name == "gain":
        low, high = min(low, 0.0), max(high, 0.0)
    high += 0.05 * (high - low) or 1.0
    wide, tall, left = 820, 140, 60

    def place(number: int, value: float) -> tuple[float, float]:
        x = left + (wide - left - 10) * number / (len(values) - 1)
        return x, 10 + (tall - 20) * (high - min(max(value, low), high)) / (high - low)

    points = " ".join("{:.1f},{:.1f}".format(*place(n, v)) for n, v in enumerate(values))
    marks = []
    for level in dict.fromkeys((low, 0.0 if name == "gain" else low, max(finite))):
        y = place(0, level)[1]
        marks.append(f'<line x1="{left}" x2="{wide - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{left - 8}" y="{y + 4:.1f}">{level:.2f}</text>')
    return (
        f"<figure><figcaption>{name} of each picture in dB, in their order</figcaption>"
        f'<svg viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" role="img" '
        f'aria-label="{name} of each picture">{"".join(marks)}'
        f'<polyline points="{points}"/></svg></figure>'
    )


def _views(kind: str, shown: Shown, label: str) -> str:
    values = shown.score.values
    name = "/".join(filter(None, [shown.score.sequence, shown.score.name]))
    gain = values.get("psnr_gain")
    told = "" if gain is None else f", gain {gain:+.2f} dB"
    top, left = shown.place
    figures = []
    for view, crop in shown.crops.items():
        score = values.get(f"psnr_{view}")
        words = label if view == "restored" else view
        if score is not None:
            words += f", {score:.2f} dB" if math.isfinite(score) else ", equal to sharp"
        data = base64.b64encode(png_bytes(crop)).decode()
        figures.append(
            f'<figure><img width="{crop.shape[1]}" height="{crop.shape[0]}" '
            f'alt="{html.escape(view)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(words)}</figcaption></figure>"
        )
    return (
        f"<h3>{kind}: {html.escape(name)}{told}</h3>\n"
        f'<div class="views" title="from column {left}, row {top}">{"".join(figures)}</div>'
    )
