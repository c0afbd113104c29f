"""`vdeblur data average`: pairs from video of a high frame rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.clips import write_frames
from tests.helpers.pictures import scenery
from vdeblur.cli.main import main
from vdeblur.datasets.average import (
    AverageOptions,
    average,
    average_video,
    blur_measure,
    response_table,
)
from vdeblur.datasets.camera_motion import Motion
from vdeblur.datasets.layouts import recognise
from vdeblur.datasets.path_blur import camera_blur
from vdeblur.datasets.pictures import load_picture
from vdeblur.errors import InputError, OutputError, UsageError


def pan(
    path: Path,
    *,
    frames: int = 30,
    step: int = 2,
    cut: int | None = None,
    still: int = 0,
    rate: int = 240,
) -> Path:
    """A video that pans over a picture; from `cut` on another one; first `still` frames alike."""
    scenes = [scenery(240, 96, seed, hard=True) for seed in (1, 2)]

    def pictures() -> Iterator[av.VideoFrame]:
        for number in range(frames):
            scene = scenes[cut is not None and number >= cut]
            x = step * max(0, number - still)
            yield av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, x : x + 96]), "rgb24")

    return write_frames(path, (f.reformat(format="bgr0") for f in pictures()), "ffv1", rate=rate)


def test_average_by_hand() -> None:
    frames = np.zeros((2, 1, 1, 3), np.uint8)
    frames[1] = 255
    assert average(frames, response_table("linear"))[0, 0, 0] == 128
    assert average(frames, response_table("gamma:2.2"))[0, 0, 0] == round(255 * 0.5 ** (1 / 2.2))
    assert average(frames, response_table("srgb"))[0, 0, 0] == 188
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)[..., None]
    assert np.array_equal(average(codes, response_table("srgb")), codes[0])  # nothing moved


def test_response_curves_of_files(tmp_path: Path) -> None:
    file = tmp_path / "curve.txt"
    file.write_text("\n".join(str(3 * (n / 255) ** 2 + 5) for n in range(256)))
    assert np.allclose(response_table(str(file)), response_table("gamma:2"))
    file.write_text("1 2 3")
    with pytest.raises(InputError, match="holds 3 numbers: a response curve is 256 rising"):
        response_table(str(file))
    file.write_text(" ".join(["1"] * 256))
    with pytest.raises(InputError, match="do not rise"):
        response_table(str(file))
    for bad in ("gamma:x", "gamma:0", "none.txt"):
        with pytest.raises(UsageError):
            response_table(bad)


def test_average_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pan(tmp_path / "ride.mkv")
    command = ["data", "average", str(source), "-o", str(tmp_path / "out"), "--frames", "7"]
    assert main(command) == 0
    assert "4 pairs, read by pyav" in capsys.readouterr().err
    folder = tmp_path / "out" / "ride"
    names = ["000003.png", "000010.png", "000017.png", "000024.png"]
    for kind in ("blur", "blur_gamma", "sharp"):
        assert [f.name for f in sorted((folder / kind).iterdir())] == names
    # The sharp picture is the middle frame, and the blurred one the mean of the seven about it.
    scene = scenery(240, 96, 1, hard=True)
    assert np.array_equal(load_picture(folder / "sharp" / names[0]), scene[:, 6:102])
    window = np.stack([scene[:, x : x + 96] for x in range(0, 14, 2)])
    expected = window.astype(float).mean(axis=0).round()
    assert np.abs(load_picture(folder / "blur" / names[0]) - expected).max() <= 1
    by_light = load_picture(folder / "blur_gamma" / names[0]).astype(float)
    assert by_light.mean() > expected.mean() + 1
    assert recognise(tmp_path / "out").name == "gopro"
    made = json.loads((folder / "made.json").read_text())
    assert made["response"] == "gamma:2.2"
    assert made["pairs"][1] == {"name": "000010", "first_frame": 7, "frames": 7}
    # Nothing is replaced without --force, and nothing unfinished is left.
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*command, "--force", "--response", "linear"]) == 0
    assert not (folder / "blur_gamma").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ride"]


def test_slow_video_is_averaged_with_a_word_of_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "average", "-o", str(tmp_path / "out"), "--frames", "7"]
    assert main([*words, str(pan(tmp_path / "slow.mkv", rate=30))]) == 0
    said = capsys.readouterr().err
    assert "slow.mkv has 30 frames a second: a mean of 7 of them spans 0.23 s" in said
    assert main([*words, str(pan(tmp_path / "fast.mkv", rate=120)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert main([*words, "x.mkv", "--seed", "-1"]) == 2


def test_windows_that_are_left_out(tmp_path: Path) -> None:
    options = AverageOptions(frames=(7, 7))
    cut = average_video(
        pan(tmp_path / "cut.mkv", cut=10, step=1), tmp_path / "out", options=options
    )
    assert (cut.pairs, dict(cut.skipped)) == (3, {"across a cut": 1})
    still = average_video(pan(tmp_path / "still.mkv", still=5), tmp_path / "out", options=options)
    assert (still.pairs, dict(still.skipped)) == (3, {"with repeated frames": 1})
    strict = AverageOptions(frames=(7, 7), max_blur=0.05)
    with pytest.raises(InputError, match=r"all windows were left out \(4 already blurred\)"):
        average_video(pan(tmp_path / "soft.mkv"), tmp_path / "out", options=strict)
    with pytest.raises(InputError, match="fewer than 7 frames"):
        average_video(pan(tmp_path / "short.mkv", frames=5), tmp_path / "out", options=options)
    assert not (tmp_path / "out" / "soft").exists()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
    (tmp_path / "text.mkv").write_text("not a video")
    for name, why in (("none", "does not exist"), ("text", "not a video that can be read")):
        with pytest.raises(InputError, match=why):
            average_video(tmp_path / f"{name}.mkv", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    for bad in ((8, 8), (1, 5), (9, 7)):
        with pytest.raises(UsageError):
            AverageOptions(frames=bad)
    with pytest.raises(OutputError, match="exists already"):
        average_video(tmp_path / "cut.mkv", tmp_path / "out", options=options)


def test_strides_and_random_counts(tmp_path: Path) -> None:
    source = pan(tmp_path / "ride.mkv", frames=60)
    overlapping = AverageOptions(frames=(7, 7), stride=3, response="linear")
    report = average_video(source, tmp_path / "a", options=overlapping)
    assert report.pairs == 18  # from 0, 3 … 51
    drawn = AverageOptions(frames=(7, 13), response="linear", seed=4)
    average_video(source, tmp_path / "b", options=drawn)
    counts = [p["frames"] for p in json.loads((tmp_path / "b/ride/made.json").read_text())["pairs"]]
    assert set(counts) <= {7, 9, 11, 13}
    assert len(set(counts)) > 1


def test_decord_reads_the_same_windows(tmp_path: Path) -> None:
    pytest.importorskip("decord", reason="decord has no wheels for this platform")
    # Grey: readers may enlarge chroma differently.
    scene = scenery(240, 96, 1, hard=True)[..., :1].repeat(3, axis=2)
    frames = (
        av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, 2 * n : 2 * n + 96]), "rgb24")
        for n in range(60)
    )
    source = write_frames(
        tmp_path / "ride.mp4",
        (f.reformat(format="yuv420p") for f in frames),
        "libx264",
        options={"crf": "4", "g": "12"},
        colour=(1, 6, 6, 6),
    )
    reports = {}
    for reader in ("decord", "pyav"):
        options = AverageOptions(frames=(7, 7), stride=22, response="linear", reader=reader)
        reports[reader] = average_video(source, tmp_path / reader, options=options)
    assert reports["decord"].reader == "decord"
    assert reports["decord"].pairs == reports["pyav"].pairs == 3
    for name in ("000003.png", "000025.png", "000047.png"):
        a, b = (load_picture(tmp_path / r / "ride" / "sharp" / name).astype(int) for r in reports)
        assert np.abs(a - b).mean() < 2.5
    options = AverageOptions(frames=(7, 7), stride=22, response="linear")
    assert average_video(source, tmp_path / "auto", options=options).reader == "decord"


def test_blur_measure_tells_blurred_from_sharp() -> None:
    picture = torch.tensor(scenery(192, 192)).permute(2, 0, 1)[None].float()
    path = torch.stack([torch.linspace(-6, 6, 64), torch.zeros(64)], dim=1)[None]
    blurred = camera_blur(picture, Motion(path)).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    assert blur_measure(blurred) > blur_measure(scenery(192, 192)) + 0.15
    assert blur_measure(np.zeros((16, 16, 3), np.uint8)) == 0
