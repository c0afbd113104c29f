"""The films that the tests render are blurred as their truth says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("PIL", reason="the scenes are lettered with Pillow")

from samples import make_samples
from tests.helpers import films
from tests.helpers.films import FILMS, Rendered
from tests.trials import score_films
from vdeblur.datasets.pictures import frame_to_rgb, to_picture
from vdeblur.evaluation.metrics import psnr
from vdeblur.media.reader import VideoReader
from vdeblur.motion.meter import ExposureMeter
from vdeblur.motion.movement import follow
from vdeblur.motion.warping import warp

STEPS = 9


def film(name: str, frames: int = 1) -> Rendered:
    return films.render(name, frames, STEPS)


def at(picture: NDArray[np.uint8], x: NDArray[np.float32], y: NDArray[np.float32]) -> torch.Tensor:
    """A picture in linear light at places x, y pixels away: (3, H, W)."""
    light = torch.from_numpy(make_samples.decode(picture.astype(np.float32) / 255))
    way = torch.from_numpy(np.stack([x, y]).astype(np.float32))
    return warp(light.permute(2, 0, 1)[None], way[None])[0]


def inside(picture: torch.Tensor) -> NDArray[np.uint8]:
    """Coded, without the edges, which show what came from outside."""
    coded = make_samples.encode(picture)[:, 24:-24, 24:-24]
    return coded.mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("name", ["walk", "bicycle", "pan", "cut", "follow"])
def test_blur_is_what_the_motion_says(name: str) -> None:
    shown = film(name)
    blurred, sharp, motion = (a[0] for a in (shown.blurred, shown.sharp, shown.motion))
    total = torch.zeros(3, films.HEIGHT, films.WIDTH)
    for k in range(STEPS):
        s = (k - STEPS // 2) / STEPS
        # What is at a place at s came from where it is at mid-exposure.
        x, y = (-motion[i] * s - motion[i + 2] * s * s for i in (0, 1))
        total += at(sharp, x, y) / STEPS
    before = psnr(blurred[24:-24, 24:-24], sharp[24:-24, 24:-24])
    after = psnr(blurred[24:-24, 24:-24], inside(total))
    # Where something hides another thing no motion of one picture makes the blur.
    assert after > before + (1.5 if name == "follow" else 5)


@pytest.mark.parametrize("name", ["walk", "pan"])
def test_motion_points_to_the_next_frame(name: str) -> None:
    shown = film(name, 2)
    here, there = shown.sharp
    way = shown.motion[0] / shown.shutter
    back = shown.motion[1] / shown.shutter

    def agreement(sign: int) -> float:
        chord = sign * (way[:2] + back[:2]) / 2
        light = at(there, chord[0], chord[1])
        return psnr(inside(light), here[24:-24, 24:-24])

    assert agreement(1) > agreement(-1) + 4
    assert np.hypot(*shown.camera[0]) > 2
    middle = shown.motion[0, :2, 96, 160]
    if name == "pan":  # nothing there but the wall
        assert shown.camera[0] == pytest.approx(middle, abs=0.05)


def test_a_still_camera_sees_only_the_van_move() -> None:
    shown = film("fence")
    length = np.hypot(shown.motion[0, 0], shown.motion[0, 1])
    van = 13.0 / 6.4 * films.FOCAL * shown.shutter / films.FPS  # m/s, metres away, pixels
    assert np.median(length[length > 5]) == pytest.approx(van, rel=0.05)
    assert 0.05 < (length > 5).mean() < 0.4
    assert (length < 0.01).mean() > 0.5
    still = length < 0.01
    same = np.abs(shown.blurred[0].astype(int) - shown.sharp[0])[still].mean()
    assert same < 3  # but for what the van hides for a while
    assert np.abs(shown.blurred[0].astype(int) - shown.sharp[0])[~still].mean() > 4 * same
    # Turning with it, the van stays and the rest goes.
    followed = film("follow")
    assert np.hypot(*followed.camera[0]) > 8
    length = np.hypot(followed.motion[0, 0], followed.motion[0, 1])
    assert 0.08 < (length < 2).mean() < 0.4


def test_what_makes_each_film_hard() -> None:
    sun = film("sun")
    assert psnr(sun.blurred[0], sun.sharp[0]) > 45
    night = film("night")
    white = [(p.min(axis=2) >= 250).mean() for p in (night.sharp[0], night.blurred[0])]
    assert white[1] > 1.5 * white[0] > 0  # lamps leave trails that are as white
    quiet = make_samples.frame(0, STEPS, FILMS["night"].shots[0][0])[0]
    noise = night.blurred[0].astype(float) - to_picture(quiet[None])
    assert 1 < noise.std() < 12
    assert abs(noise.mean()) < 1
    shots = FILMS["cut"].shots
    assert sum(count for _, count in shots) == films.FRAMES
    longer = replace(FILMS["cut"], shots=((shots[0][0], 1), (shots[1][0], 1)))
    FILMS["short"] = longer
    try:
        cut = film("short", 2)
    finally:
        del FILMS["short"]
    assert cut.cuts == (1,)
    assert psnr(cut.sharp[0], cut.sharp[1]) < 15


def test_films_become_files(tmp_path: Path) -> None:
    shown = film("walk", 2)
    blurred, sharp = films.write(shown, tmp_path / "new")
    assert (blurred.name, sharp.name) == ("walk_blurred.mp4", "walk_sharp.mp4")
    for path, pictures in ((blurred, shown.blurred), (sharp, shown.sharp)):
        with VideoReader(path) as reader:
            frames = list(reader)
            assert reader.info.fps == films.FPS
        assert len(frames) == 2
        for frame, picture in zip(frames, pictures, strict=True):
            assert psnr(to_picture(frame_to_rgb(frame)), picture) > 32  # 4:2:0 takes its share


def test_films_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    score_films.main(["--films", "pan,sun", "--frames", "3"])
    pan, sun = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert pan[0] == "pan"
    assert float(pan[2]) > 1 < float(pan[3]) + 0.5
    assert float(pan[5]) == pytest.approx(films.FILMS["pan"].shots[0][0].shutter, rel=0.25)
    assert sun[2:4] == ["0.00", "0.00"]
    assert sun[-3:] == pan[-3:] == ["3", "of", "3"]


@pytest.mark.parametrize("fenced", [False, True])
def test_a_van_before_a_sharp_wall_tells_the_exposure(fenced: bool) -> None:
    """Of windows that show both, only the van has to be looked at: with the wall 0 was read, and
    behind a fence, whose posts stand still and are sharp, too.
    """
    scene = FILMS["fence"].shots[0][0]
    if not fenced:
        scene = replace(scene, layers=lambda: films.race()[:-1], shutter=0.5)
    name = "fenced van" if fenced else "van"
    FILMS[name] = films.Shots(((scene, 5),))
    try:
        van = film(name, 5)
    finally:
        del FILMS[name]
    for pictures, share in ((van.blurred, scene.shutter), (van.sharp, 0.0)):
        meter = ExposureMeter()
        for item, movement in follow(score_films.frames_of(pictures, van.fps)):
            meter.see(item, movement)
        assert meter.measured
        assert meter.seconds(1 / van.fps) * van.fps == pytest.approx(share, rel=0.35, abs=0.01)
