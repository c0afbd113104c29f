"""Pictures for int8: spread over a video, and never the reason that a run fails."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from tests.helpers.clips import scene, write_frames
from vdeblur.media.sample_frames import sample_frames


def test_pictures_are_spread_over_a_video(tmp_path: Path) -> None:
    clip = write_frames(tmp_path / "clip.mkv", (scene(n) for n in range(60)))
    for count in (4, 12):
        pictures = sample_frames([clip], count=count)
        assert len(pictures) == count
        assert all(p.ndim == 3 and p.shape[2] == 3 and p.dtype == np.uint8 for p in pictures)
        for one, other in itertools.pairwise(pictures):
            assert not np.array_equal(one, other)


def test_sources_share_and_bad_ones_give_none(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    clips = [write_frames(tmp_path / f"{i}.mkv", (scene(n) for n in range(8))) for i in range(2)]
    assert len(sample_frames(clips, count=6)) == 6
    assert sample_frames([text, tmp_path / "none.mp4", "-"]) == []
    assert len(sample_frames([text, clips[0]], count=6)) == 3
