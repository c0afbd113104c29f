"""Scores of pairs, their means, and the tables they are printed in. Knows numbers and text only.

The values of a score, by name: psnr_, ssim_ and lpips_ blurred, restored and gain (restored −
blurred; for LPIPS less is better); unsharp_gain, of PSNR, by unsharp masking; sharp_kept, the PSNR
of a sharp picture put through the network to itself.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["auto", "picture", "sequence", "total"]

_FEW = 20  # pictures of a set that "auto" lists one by one, when they are one sequence


@dataclass
class Score:
    """The values of one pair."""

    sequence: str
    name: str
    values: dict[str, float]


@dataclass
class Row:
    """A line of a table: a picture, or the means of a sequence or of a whole set."""

    name: str
    pictures: int
    values: dict[str, float]


@dataclass
class SetScores:
    """The scores of a set of pairs.

    unsharp: (sigma in pixels, amount) of the best unsharp mask. temporal: by sequence, warp_,
    flicker_ and unrest_ (the flicker of what differs from the sharp one) blurred, restored, sharp
    (8-bit levels) and ratio (restored / blurred). unsound: of how many pictures the network's
    result was rejected, so that they were scored as they came. notes: what else a reader should
    know, such as the exposure that was found.
    """

    name: str
    pictures: list[Score] = field(default_factory=list)
    temporal: dict[str, dict[str, float]] = field(default_factory=dict)
    unsharp: tuple[float, float] | None = None
    unsound: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Row:
        """The means over all pictures."""
        return _mean(self.name, self.pictures)

    @property
    def sequences(self) -> list[Row]:
        """The means over the pictures of each sequence."""
        groups: dict[str, list[Score]] = {}
        for score in self.pictures:
            groups.setdefault(score.sequence, []).append(score)
        return [_mean(name or self.name, scores) for name, scores in groups.items()]

    def rows(self, rows: Rows = "auto") -> list[Row]:
        """The lines of a table, the total last. auto: sequences, or pictures where they are few."""
        sequences = self.sequences
        if rows == "auto":
            single = len(sequences) == 1
            few = single and len(self.pictures) <= _FEW
            rows = "picture" if few else "total" if single else "sequence"
        lines: list[Row] = []
        if rows == "picture":
            for score in self.pictures:
                name = "/".join(filter(None, [score.sequence, score.name]))
                lines.append(Row(name, 1, score.values))
        elif rows == "sequence":
            lines = sequences
        total = self.total
        return [*lines, Row(f"{total.name}, mean" if lines else total.name, *_rest(total))]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; infinities, which JSON cannot say, are the strings "inf" and "-inf"."""

        def row(row: Row) -> dict[str, Any]:
            return {"name": row.name, "pictures": row.pictures} | _plain(row.values)

        return {
            "name": self.name,
            "unsound": self.unsound,
            "notes": self.notes,
            "total": row(self.total),
            "sequences": [row(sequence) for sequence in self.sequences],
            "temporal": {name or self.name: _plain(v) for name, v in self.temporal.items()},
            "unsharp_mask": self.unsharp and {"sigma": self.unsharp[0], "amount": self.unsharp[1]},
            "scores": [
                {"sequence": s.sequence, "name": s.name} | _plain(s.values) for s in self.pictures
            ],
        }


def _rest(row: Row) -> tuple[int, dict[str, float]]:
    return row.pictures, row.values


def _mean(name: str, scores: Sequence[Score]) -> Row:
    names = dict.fromkeys(key for score in scores for key in score.values)
    means = {key: _average(s.values[key] for s in scores if key in s.values) for key in names}
    return Row(name, len(scores), means)


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if all(map(math.isfinite, listed)) else sum(listed)


def _plain(values: dict[str, float]) -> dict[str, float | str]:
    return {k: round(v, 6) if math.isfinite(v) else str(v) for k, v in values.items()}


# -- tables --------------------------------------------------------------------------------------

_Format = Callable[[float], str]


def _fixed(digits: int, *, sign: bool = False) -> _Format:
    return lambda value: f"{value:{'+' if sign else ''}.{digits}f}"


#: Column: heading, format. `{label}` is what the restored picture is called.
_COLUMNS: dict[str, tuple[str, _Format]] = {
    "psnr_blurred": ("PSNR blurred", _fixed(2)),
    "psnr_restored": ("{label}", _fixed(2)),
    "psnr_gain": ("gain", _fixed(2, sign=True)),
    "unsharp_gain": ("unsharp mask", _fixed(2, sign=True)),
    "ssim_blurred": ("SSIM blurred", _fixed(4)),
    "ssim_restored": ("{label}", _fixed(4)),
    "ssim_gain": ("gain", _fixed(4, sign=True)),
    "lpips_blurred": ("LPIPS blurred", _fixed(4)),
    "lpips_restored": ("{label}", _fixed(4)),
    "lpips_gain": ("change", _fixed(4, sign=True)),
    "sharp_kept": ("sharp kept", _fixed(1)),
}
_TEMPORAL: dict[str, tuple[str, _Format]] = {
    f"{measure}_{name}": (heading.format(what=title), _fixed(2))
    for measure, title in (
        ("warp", "warped-frame error"),
        ("flicker", "flicker"),
        ("unrest", "flicker of the error"),
    )
    for name, heading in (
        ("blurred", "{what} blurred"),
        ("restored", "{{label}}"),
        ("sharp", "sharp"),
        ("ratio", "restored / blurred"),
    )
}

Table = list[list[str]]  # the heading first


def score_table(
    sets: Sequence[SetScores], *, rows: Rows = "auto", label: str = "restored"
) -> Table:
    """A line a picture, sequence or set; only the columns that were measured."""
    lines = [row for scores in sets for row in scores.rows(rows)]
    shown = [name for name in _COLUMNS if any(name in row.values for row in lines)]
    heading = ["", "pictures", *(_COLUMNS[name][0].format(label=label) for name in shown)]
    return [
        heading,
        *(
            [row.name, str(row.pictures), *(_cell(row.values, n, _COLUMNS) for n in shown)]
            for row in lines
        ),
    ]


def temporal_table(sets: Sequence[SetScores], *, label: str = "restored") -> Table:
    """Warped-frame error and flicker, a line a sequence; no line when nothing was measured."""
    lines = [
        (name or scores.name, values)
        for scores in sets
        for name, values in scores.temporal.items()
        if values
    ]
    shown = [name for name in _TEMPORAL if any(name in values for _, values in lines)]
    heading = ["", *(_TEMPORAL[name][0].format(label=label) for name in shown)]
    return [heading, *([name, *(_cell(v, n, _TEMPORAL) for n in shown)] for name, v in lines)]


def summary_table(sets: Sequence[SetScores], *, label: str = "restored") -> Table:
    """A line a set: its means, its worst picture, how steady it is, what is left of sharp ones."""
    heading = [
        "", "pictures", "PSNR blurred", label, "gain", "worst picture", "SSIM blurred", label,
        "gain", "flicker of the error, restored / blurred", "sharp kept",
    ]  # fmt: skip
    shown = (
        "psnr_blurred", "psnr_restored", "psnr_gain", "psnr_worst", "ssim_blurred", "ssim_restored",
        "ssim_gain", "unrest_ratio", "sharp_kept",
    )  # fmt: skip
    columns = _COLUMNS | _TEMPORAL | {"psnr_worst": _COLUMNS["psnr_gain"]}
    lines = []
    for scores in sets:
        values = dict(scores.total.values)
        gains = [s.values["psnr_gain"] for s in scores.pictures if "psnr_gain" in s.values]
        if gains:
            values["psnr_worst"] = min(gains)
        ratios = [v["unrest_ratio"] for v in scores.temporal.values() if "unrest_ratio" in v]
        if ratios:
            values["unrest_ratio"] = _average(ratios)
        cells = [_cell(values, name, columns) for name in shown]
        lines.append([scores.name, str(len(scores.pictures)), *cells])
    return [heading, *lines]


def length_table(by_length: dict[int, dict[str, SetScores]]) -> Table:
    """A line for each length of blur in pixels: the blurred PSNR, and the gain by what was told."""
    told = list(dict.fromkeys(name for sets in by_length.values() for name in sets))
    lines = []
    for pixels, sets in by_length.items():
        totals = [sets[name].total.values for name in told]
        blurred = _cell(totals[0], "psnr_blurred", _COLUMNS)
        lines.append([f"{pixels} px", blurred, *(_cell(t, "psnr_gain", _COLUMNS) for t in totals)])
    return [["length of blur", "PSNR blurred", *told], *lines]


def _cell(values: dict[str, float], name: str, columns: dict[str, tuple[str, _Format]]) -> str:
    value = values.get(name)
    return "–" if value is None or math.isnan(value) else columns[name][1](value)


def as_text(table: Table) -> str:
    """Columns of equal width, names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        parts = [
            name.ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)),
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    heading, *lines = ([cell.replace("|", "\\|") for cell in line] for line in table)
    rule = ["---", *["---:"] * (len(heading) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, rule, *lines])


def as_csv(sets: Sequence[SetScores]) -> str:
    """A line a picture, with every value that was measured; UTF-8, a heading first."""
    shown = [n for n in _COLUMNS if any(n in p.values for s in sets for p in s.pictures)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["set", "sequence", "name", *shown])
    for scores in sets:
        for score in scores.pictures:
            values = (score.values.get(name) for name in shown)
            cells = ["" if v is None else f"{v:.6g}" if math.isfinite(v) else v for v in values]
            writer.writerow([scores.name, score.sequence, score.name, *cells])
    return text.getvalue()
