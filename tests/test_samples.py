"""The sample clips are what samples/README.md says, and their script still makes them."""

from __future__ import annotations

import sys
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("PIL", reason="the scene is lettered with Pillow")

from samples import make_samples
from vdeblur.metrics import psnr

SAMPLES = Path(make_samples.__file__).parent
CLIPS = ("street_blurred.mp4", "street_sharp.mp4")


@cache
def pictures(name: str) -> list[NDArray[np.uint8]]:
    """All frames of a clip as (360, 640, 3) RGB, by their BT.709 tags."""
    with av.open(str(SAMPLES / name)) as file:
        return [f.to_ndarray(format="rgb24").astype(np.uint8) for f in file.decode(video=0)]


@pytest.mark.parametrize("name", CLIPS)
def test_clip_is_as_described(name: str) -> None:
    assert [p.shape for p in pictures(name)] == [(360, 640, 3)] * 60
    with av.open(str(SAMPLES / name)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert video.codec_context.name == "h264"
        assert video.average_rate == Fraction(30)
        assert (video.pix_fmt, int(video.codec_context.colorspace)) == ("yuv420p", 1)
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 48000, 2)
        assert [c["metadata"]["title"] for c in file.chapters()] == ["The optician", "The garage"]
        assert "Mill Lane" in file.metadata["title"]
        sound = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], axis=1)
    assert abs(sound.shape[1] / 48000 - 2) < 0.05
    assert np.sqrt(np.mean(sound**2)) > 0.02, "the tune is silent"


def test_clips_stay_small() -> None:
    assert sum((SAMPLES / name).stat().st_size for name in CLIPS) < 3_000_000


def test_blurred_clip_is_plausibly_blurred() -> None:
    scores = [psnr(b, s) for b, s in zip(*map(pictures, CLIPS), strict=True)]
    assert 20 < np.mean(scores) < 30
    assert min(scores) > 15
    assert max(scores) < 40


def test_script_makes_the_clips() -> None:
    index = 40
    # Fewer instants than the clip's 25 come close enough, in a third of the time.
    blurred, sharp = make_samples.frame(index, subframes=9)
    for name, made in zip(CLIPS, (blurred, sharp), strict=True):
        picture = (made.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        assert psnr(picture, pictures(name)[index]) > 30, name


def test_script_writes_both_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The pictures are tested above: here any will do.
    def grey(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = torch.full((3, 360, 640), index / 12)
        return picture, picture

    monkeypatch.setattr(make_samples, "frame", grey)
    monkeypatch.setattr(make_samples, "FRAMES", 12)
    monkeypatch.setattr(sys, "argv", ["make_samples.py", str(tmp_path / "new")])
    make_samples.main()
    assert "frame 12 of 12" in capsys.readouterr().out
    for name in CLIPS:
        with av.open(str(tmp_path / "new" / name)) as file:
            levels = [float(f.to_ndarray(format="rgb24").mean()) for f in file.decode(video=0)]
        assert levels == pytest.approx([255 * i / 12 for i in range(12)], abs=2)
