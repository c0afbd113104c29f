"""Pictures for int8: spread over a video, and never the reason that a run fails."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from tests.media import scene, write_frames
from vdeblur.calibration import pictures_of


def test_pictures_are_spread_over_a_video(tmp_path: Path) -> None:
    clip = write_frames(tmp_path / "clip.mkv", (scene(n) for n in range(60)))
    for count in (4, 12):
        pictures = pictures_of([clip], count=count)
        assert len(pictures) == count
        shapes = {tuple(picture.shape[:2]) for picture in pictures}
        assert shapes == {(1, 3)}
        assert all(p.min() >= 0 and p.max() <= 1 and p.dtype == torch.float32 for p in pictures)
        for one, other in itertools.pairwise(pictures):
            assert not torch.equal(one, other)


def test_sources_share_and_bad_ones_give_none(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    clips = [write_frames(tmp_path / f"{i}.mkv", (scene(n) for n in range(8))) for i in range(2)]
    assert len(pictures_of(clips, count=6)) == 6
    assert pictures_of([text, tmp_path / "none.mp4", "-"]) == []
    assert len(pictures_of([text, clips[0]], count=6)) == 3
