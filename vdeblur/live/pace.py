"""Tells when few of a camera's frames are restored, and when most are again. Knows only counts."""

from __future__ import annotations

from typing import Any

from vdeblur.live.frame_line import FrameLine

#: Shares of the frames: below the first, few are restored; from the second on, most are again.
FEW, MOST = 0.5, 0.8


class Pace:
    """Judges the frames of one line over some seconds each.

    Args:
        line: The line whose frames are counted.
    """

    #: Seconds that are judged at once; seconds for the network to begin; and seconds after which
    #: it may be said again that few are restored.
    WINDOW, BEGINNING, AGAIN = 5.0, 8.0, 60.0

    def __init__(self, line: FrameLine) -> None:
        self._line = line
        self._since: float | None = None
        self._counts = (0, 0, 0)
        self._few = self._begun = False
        self._said = float("-inf")

    def judge(self) -> tuple[str, dict[str, Any]] | None:
        """Return `few_restored` or `restored_again` with its counts, when that has changed."""
        line, now = self._line, self._line.clock()
        counts = (line.restored, line.passed, line.dropped)
        if self._since is None or (counts[0] and not self._begun):
            # The first frames pass while the network warms up.
            self._begun = counts[0] > 0
            if any(counts):
                self._since, self._counts = now, counts
            return None
        seconds = now - self._since
        if seconds < (self.WINDOW if self._begun else self.BEGINNING):
            return None
        restored, passed, dropped = (a - b for a, b in zip(counts, self._counts, strict=True))
        self._since, self._counts = now, counts
        frames = restored + passed + dropped
        if frames < 5:  # an outage
            return None
        few = restored < frames * (MOST if self._few else FEW)
        if few == self._few or (few and now - self._said < self.AGAIN):
            return None
        self._few = few
        self._said = now if few else self._said
        facts: dict[str, Any]
        facts = {"restored": restored, "passed": passed, "dropped": dropped, "frames": frames}
        facts |= {"seconds": round(seconds, 1), "limit_ms": round(line.limit * 1000)}
        return ("few_restored" if few else "restored_again"), facts
