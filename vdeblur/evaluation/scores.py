"""Scores of pairs and their means. Knows numbers and text only.

The values of a score, by name: psnr_, ssim_ and lpips_ blurred, restored and gain (restored −
blurred; for LPIPS less is better); unsharp_gain, of PSNR, by unsharp masking; sharp_kept, the PSNR
of a sharp picture put through the network to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Rows = Literal["auto", "picture", "sequence", "total"]

_FEW = 20  # pictures of a set that "auto" lists one by one, when they are one sequence


@dataclass
class PairScore:
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

    Attributes:
        name: The set's.
        pictures: The scores of its pairs, in their order.
        temporal: By sequence: `warp_`, `flicker_` and `unrest_` (the flicker of the difference from
            the sharp picture) of "blurred", "restored", "sharp" (8-bit levels), and "ratio"
            (restored / blurred).
        unsharp: The best unsharp mask: sigma in pixels, and amount.
        unsound: Pictures that were scored as they came, for the network's result was rejected.
        notes: What else a reader should know, such as the exposure that was found.
    """

    name: str
    pictures: list[PairScore] = field(default_factory=list)
    temporal: dict[str, dict[str, float]] = field(default_factory=dict)
    unsharp: tuple[float, float] | None = None
    unsound: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Row:
        """Means over all pictures."""
        return _mean(self.name, self.pictures)

    @property
    def sequences(self) -> list[Row]:
        """Means over the pictures of each sequence."""
        groups: dict[str, list[PairScore]] = {}
        for score in self.pictures:
            groups.setdefault(score.sequence, []).append(score)
        return [_mean(name or self.name, scores) for name, scores in groups.items()]

    def rows(self, rows: Rows = "auto") -> list[Row]:
        """Make the lines of a table, the total last; "auto" lists pictures where they are few."""
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
        """The scores for JSON; infinities, which it lacks, are the strings "inf" and "-inf"."""

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


def _mean(name: str, scores: Sequence[PairScore]) -> Row:
    names = dict.fromkeys(key for score in scores for key in score.values)
    means = {key: mean_of(s.values[key] for s in scores if key in s.values) for key in names}
    return Row(name, len(scores), means)


def mean_of(values: Iterable[float]) -> float:
    """Average values without rounding errors; their sum where one is not finite."""
    listed = list(values)
    return math.fsum(listed) / len(listed) if all(map(math.isfinite, listed)) else sum(listed)


def _plain(values: dict[str, float]) -> dict[str, float | str]:
    return {k: round(v, 6) if math.isfinite(v) else str(v) for k, v in values.items()}
