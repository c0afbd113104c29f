"""What of a source cannot be decoded: counts, and places in words."""

from __future__ import annotations

from dataclasses import dataclass, field

_NOTES = 20  # a badly damaged file has thousands of places


@dataclass
class Damage:
    """What could not be decoded of one source.

    Attributes:
        packets: Packets that no decoder took, and the end of reading where the source broke off.
        frames: Frames that were decoded with errors; they are part of the video.
        notes: The first 20 places, one line each, without repetition.
    """

    packets: int = 0
    frames: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a line, unless it is known or there are 20 already."""
        if len(self.notes) < _NOTES and text not in self.notes:
            self.notes.append(text)
