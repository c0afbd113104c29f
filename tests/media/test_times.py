"""Times that are one line: priming, edits, and parts whose clock begins again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.clips import MP4, PLAIN, failed, make
from vdeblur.deblur import deblur_video
from vdeblur.media.verify import verify

EVEN = replace(PLAIN, rotation=None, pts=tuple(n * 3000 for n in range(30)), last_duration=3000)
SOUND = replace(EVEN, audio=MP4.audio[:1])


@pytest.mark.parametrize("start", [None, 0.4], ids=["whole", "a part"])
@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".ts"])
def test_priming_is_no_difference(tmp_path: Path, suffix: str, start: float | None) -> None:
    source = make(tmp_path / "source.mp4", SOUND)
    first = deblur_video(source, tmp_path / f"first{suffix}", model="identity", start=start)
    assert not first.differences
    if start is None:
        back = deblur_video(tmp_path / f"first{suffix}", tmp_path / "back.mp4", model="identity")
        assert not back.differences


def test_priming_at_high_frame_rates(tmp_path: Path) -> None:
    # The priming of 21 ms is more than two frames here.
    fast = tuple(n * 750 for n in range(120))
    source = make(tmp_path / "source.mp4", replace(SOUND, pts=fast, last_duration=750))
    assert not deblur_video(source, tmp_path / "output.mkv", model="identity").differences


def test_less_sound_is_a_difference(tmp_path: Path) -> None:
    longer = replace(SOUND, pts=EVEN.pts[:20])
    source = make(tmp_path / "source.mp4", longer)
    output = make(tmp_path / "output.mkv", replace(longer, audio=()))
    assert "duration" in failed(verify(source, output, conversion=True))
