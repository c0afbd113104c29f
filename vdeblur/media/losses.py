"""What an output keeps of its source, and what it cannot."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Losses:
    """What was kept of a source and what was lost, for the report and for `verify`.

    Attributes:
        kept: What was copied, a line each.
        lost: What could not be kept and why, a line each.
        known: What `verify` need not report: indices of source streams that are not in the output,
            and names of checks that a stated loss fails.
    """

    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    known: set[int | str] = field(default_factory=set)

    def lose(self, text: str, *known: int | str) -> None:
        """Add a loss, with the streams and checks that it explains."""
        if text not in self.lost:
            self.lost.append(text)
        self.known.update(known)
