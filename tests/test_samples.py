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
from vdeblur.evaluation.metrics import psnr

SAMPLES = Path(make_samples.__file__).parent
FILMS = make_samples.FILMS


@cache
def pictures(name: str) -> list[NDArray[np.uint8]]:
    """All frames of a clip as (360, 640, 3) RGB, by their BT.709 tags."""
    with av.open(str(SAMPLES / name)) as file:
        return [f.to_ndarray(format="rgb24").astype(np.uint8) for f in file.decode(video=0)]


def clips(film: str) -> tuple[str, str]:
    return f"{film}_blurred.mp4", f"{film}_sharp.mp4"


@pytest.mark.parametrize("name", [name for film in FILMS for name in clips(film)])
def test_clip_is_as_described(name: str) -> None:
    assert [p.shape for p in pictures(name)] == [(360, 640, 3)] * 60
    with av.open(str(SAMPLES / name)) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert video.codec_context.name == "h264"
        assert video.average_rate == Fraction(30)
        assert (video.pix_fmt, int(video.codec_context.colorspace)) == ("yuv420p", 1)
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 48000, 2)
        film = FILMS[name.split("_")[0]]
        assert [c["metadata"]["title"] for c in file.chapters()] == list(film.chapters)
        assert film.title in file.metadata["title"]
        sound = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], axis=1)
    assert abs(sound.shape[1] / 48000 - 2) < 0.05
    assert np.sqrt(np.mean(sound**2)) > 0.02, "the tune is silent"


@pytest.mark.parametrize("film", FILMS)
def test_clips_stay_small(film: str) -> None:
    assert sum((SAMPLES / name).stat().st_size for name in clips(film)) < 3_000_000


@pytest.mark.parametrize("film", FILMS)
def test_blurred_clip_is_plausibly_blurred(film: str) -> None:
    scores = [psnr(b, s) for b, s in zip(*map(pictures, clips(film)), strict=True)]
    assert 20 < np.mean(scores) < 30
    assert min(scores) > 15
    assert max(scores) < 40


def test_blur_of_the_walk_is_a_telephones() -> None:
    motions = [make_samples.motion(index, FILMS["walk"]) for index in (0, 12, 30)]
    lengths = [np.hypot(m[0], m[1]).mean() for m in motions]
    assert all(5.5 < length < 10.5 for length in lengths)


@pytest.mark.parametrize("film", FILMS)
def test_script_makes_the_clips(film: str) -> None:
    index = 40
    # Fewer instants than the clip's 25 come close enough, in a third of the time.
    blurred, sharp = make_samples.frame(index, subframes=9, film=FILMS[film])
    for name, made in zip(clips(film), (blurred, sharp), strict=True):
        picture = (made.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        assert psnr(picture, pictures(name)[index]) > 30, name


def test_script_writes_the_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The pictures are tested above: here any will do.
    def grey(index: int, film: make_samples.Film) -> tuple[torch.Tensor, torch.Tensor]:
        picture = torch.full((3, 360, 640), index / 12)
        return picture, picture

    monkeypatch.setattr(make_samples, "frame", grey)
    monkeypatch.setattr(make_samples, "FRAMES", 12)
    monkeypatch.setattr(sys, "argv", ["make_samples.py", str(tmp_path / "new"), "walk"])
    make_samples.main()
    assert "frame 12 of 12" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(clips("walk"))
    for name in clips("walk"):
        with av.open(str(tmp_path / "new" / name)) as file:
            levels = [float(f.to_ndarray(format="rgb24").mean()) for f in file.decode(video=0)]
        assert levels == pytest.approx([255 * i / 12 for i in range(12)], abs=2)
    monkeypatch.setattr(sys, "argv", ["make_samples.py", str(tmp_path), "ride"])
    with pytest.raises(SystemExit):
        make_samples.main()
    assert "there is no film ride" in capsys.readouterr().err
