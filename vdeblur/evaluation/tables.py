"""Tables of scores, as text, Markdown and CSV."""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Sequence

from tabulate import tabulate

from vdeblur.evaluation.scores import Rows, SetScores, mean_of
from vdeblur.system.printable import printable

#: Lines of cells, the heading first. The first column holds names, all others numbers.
Table = list[list[str]]
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


def score_table(
    sets: Sequence[SetScores], *, rows: Rows = "auto", label: str = "restored"
) -> Table:
    """Build a line a picture, sequence or set, with only the columns that were measured."""
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
    """Build a line a sequence of warped-frame error and flicker; none if nothing was measured."""
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
    """Build a line a set: means, worst picture, steadiness, and what is kept of sharp pictures."""
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
            values["unrest_ratio"] = mean_of(ratios)
        cells = [_cell(values, name, columns) for name in shown]
        lines.append([scores.name, str(len(scores.pictures)), *cells])
    return [heading, *lines]


def length_table(by_length: dict[int, dict[str, SetScores]]) -> Table:
    """Build a line a length of blur: the blurred PSNR, and the gain by the motion that was given.

    Args:
        by_length: Scores by the length in pixels, and by what the network knew of the motion.
    """
    known = list(dict.fromkeys(name for sets in by_length.values() for name in sets))
    lines = []
    for pixels, sets in by_length.items():
        totals = [sets[name].total.values for name in known]
        blurred = _cell(totals[0], "psnr_blurred", _COLUMNS)
        lines.append([f"{pixels} px", blurred, *(_cell(t, "psnr_gain", _COLUMNS) for t in totals)])
    return [["length of blur", "PSNR blurred", *known], *lines]


def _cell(values: dict[str, float], name: str, columns: dict[str, tuple[str, _Format]]) -> str:
    value = values.get(name)
    return "–" if value is None or math.isnan(value) else columns[name][1](value)


def as_text(table: Table) -> str:
    """Lay a table out in columns, names to the left, numbers to the right."""
    cells = [[printable(cell) for cell in line] for line in table]
    return tabulate(cells, (), "plain", colalign=_alignment(table), disable_numparse=True)


def as_markdown(table: Table) -> str:
    """Write a table in GitHub's Markdown."""
    heading, *lines = (
        [html.escape(printable(cell), quote=False).replace("|", "\\|") for cell in line]
        for line in table
    )
    return tabulate(lines, heading, "pipe", colalign=_alignment(table), disable_numparse=True)


def _alignment(table: Table) -> list[str]:
    return ["left", *["right"] * (len(table[0]) - 1)]


def as_csv(sets: Sequence[SetScores]) -> str:
    """Write a line a picture with every value that was measured, a heading first."""
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
