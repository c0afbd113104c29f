"""Numbered pictures: none ends the sequence, and each keeps its number, time and metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.helpers.clips import read_frames
from vdeblur import EncodeOptions, InputError, deblur_video
from vdeblur.cli.main import main
from vdeblur.media.image_sequences import NumberedPictures, is_pattern, numbered


def put(path: Path, value: int = 0, size: tuple[int, int] = (32, 24), mode: str = "RGB") -> Path:
    """A picture whose level and comment are a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), value % 256, np.uint8)
    note = PngInfo()
    note.add_text("Comment", f"picture {value % 256}")
    how = (
        {"pnginfo": note}
        if path.suffix == ".png"
        else {"comment": f"picture {value % 256}".encode()}
    )
    exif = Image.Exif()
    exif[0x0112] = value % 8 + 1
    Image.fromarray(pixels).convert(mode).save(path, exif=exif, **how)
    return path


def sequence(folder: Path, numbers: Iterable[int], name: str = "%03d.png") -> str:
    for number in numbers:
        put(folder / (name % number), number)
    return str(folder / name)


def levels(folder: Path) -> dict[str, int]:
    """Level of each picture of a folder; it must have its own comment and orientation."""
    found = {}
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            value = int(np.asarray(image.convert("RGB"))[0, 0, 0])
            comment = image.info.get("Comment") or image.info["comment"].decode()
            assert comment == f"picture {value}"
            assert image.getexif()[0x0112] == value % 8 + 1
        found[path.name] = value
    return found


def run(*arguments: object) -> int:
    return main(["video", *map(str, arguments), "--model", "identity", "--quiet"])


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([1, 2, 3, 4, 6, 7], "has no picture 5:"),
        ([1, 2, 9, 10, 14], "has no pictures 3 to 8, 11 to 13:"),
        ([7, 8, 300], "has no pictures 9 to 299:"),
        ([0, 998, 999, 1000, 1001], "has no pictures 1 to 997:"),
    ],
)
def test_missing_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], numbers: list[int], said: str
) -> None:
    """A gap of any size is said; the pictures after it keep their numbers and their times."""
    source = sequence(tmp_path / "in", numbers)
    (tmp_path / "out").mkdir()
    assert run(source, "-o", tmp_path / "out" / "%03d.png") == 3
    assert said in capsys.readouterr().err
    assert levels(tmp_path / "out") == {f"{n:03d}.png": n % 256 for n in numbers}
    assert run(source, "-o", tmp_path / "film.mkv", "--framerate", "10", "--encoder", "ffv1") == 3
    frames = read_frames(tmp_path / "film.mkv")
    assert [time for time, _ in frames] == [Fraction(n - numbers[0], 10) for n in numbers]


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("%d.png", [8, 9, 10, 11]),
        ("%05d.png", [99998, 99999, 100000]),
        ("%04d_v2.png", [1, 2, 3]),
        ("v2_%04d_1080p.png", [1, 2, 3]),
        ("3x%d_100%%.png", [1, 2, 3]),
        ("%5d.png", [1, 2]),
        ("%03d.jpg", [16, 32, 48]),
        ("%04d.png", [10, 20, 30, 40]),
    ],
)
def test_names(tmp_path: Path, name: str, numbers: list[int]) -> None:
    """Any number of a name may be that of the pattern; outputs take it over."""
    for number in numbers:
        put(tmp_path / "in" / numbered(name, number), number)
    (tmp_path / "out").mkdir()
    assert run(tmp_path / "in" / name, "-o", tmp_path / "out" / name) == 0
    expected = {numbered(name, n): n % 256 for n in numbers}
    assert levels(tmp_path / "out") == expected
    (tmp_path / "part").mkdir()
    assert run(tmp_path / "in" / name, "-o", tmp_path / "part" / name, "--start", "0.04") == 0
    assert levels(tmp_path / "part") == dict(list(expected.items())[1:])


def test_numbers_in_steps_follow_each_other(tmp_path: Path) -> None:
    source = sequence(tmp_path / "in", [10, 20, 40, 50], "%04d.png")
    report = deblur_video(source, tmp_path / "film.mkv", model="identity")
    assert [time for time, _ in read_frames(tmp_path / "film.mkv")] == [
        Fraction(n, 25) for n in (0, 1, 3, 4)
    ]
    assert "steps of 10" in " ".join(report.notes)
    assert "has no picture 30:" in " ".join(report.damage)


def test_a_number_has_one_name(tmp_path: Path) -> None:
    source = sequence(tmp_path / "in", [6, 7, 8])
    put(tmp_path / "in" / "7.png", 99)
    (tmp_path / "out").mkdir()
    report = deblur_video(source, tmp_path / "out" / "%03d.png", model="identity")
    assert levels(tmp_path / "out") == {"006.png": 6, "007.png": 7, "008.png": 8}
    assert any("7.png" in note for note in report.notes)
    with pytest.raises(InputError, match=r"there is 006\.png, whose number has other digits"):
        NumberedPictures.find(str(tmp_path / "in" / "%05d.png"))
    with pytest.raises(InputError, match="its numbers end at 8, and `start_number` is 9"):
        NumberedPictures.find(source, 9)
    with pytest.raises(InputError, match="check the path"):
        NumberedPictures.find(str(tmp_path / "no" / "%05d.png"))


def test_a_number_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A date among frame numbers is not thousands of missing pictures."""
    source = sequence(tmp_path / "in", [1, 2, 3, 20261128], "%d.png")
    assert run(source, "-o", tmp_path / "film.mkv") == 1
    assert "jump from 3 to 20261128" in capsys.readouterr().err
    assert not (tmp_path / "film.mkv").exists()


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": data[:20], "text": b"no picture at all " * 9}[how])


@pytest.mark.parametrize("how", ["empty", "cut", "text"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("which", [1, 3, 6])
def test_damaged_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, suffix: str, which: int
) -> None:
    """One that cannot be decoded is named; no other takes its number, time or metadata."""
    name = f"%03d{suffix}"
    source = sequence(tmp_path / "in", range(1, 7), name)
    damaged(tmp_path / "in" / (name % which), how)
    (tmp_path / "out").mkdir()
    assert run(source, "-o", tmp_path / "out" / name) == 3
    assert f"00{which}{suffix} cannot be decoded" in capsys.readouterr().err
    kept = [n for n in range(1, 7) if n != which]
    assert levels(tmp_path / "out") == {name % n: n for n in kept}
    assert run(source, "-o", tmp_path / "film.mkv") == 3
    times = [time for time, _ in read_frames(tmp_path / "film.mkv")]
    assert times == [Fraction(n - 1, 25) for n in kept]


def test_no_picture_can_be_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sequence(tmp_path / "in", range(3))
    for path in (tmp_path / "in").iterdir():
        damaged(path, "cut")
    assert run(source, "-o", tmp_path / "film.mkv") == 1
    assert "no picture of" in capsys.readouterr().err


def test_a_picture_that_is_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The decoder fills the rest with gray and reports nothing."""
    rng = np.random.default_rng(0)
    for n in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / f"{n}.jpg")
    cut = tmp_path / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-900])
    assert run(tmp_path / "%d.jpg", "-o", tmp_path / "film.mkv") == 3
    assert "1.jpg is cut off" in capsys.readouterr().err
    assert run(cut, "-o", tmp_path / "one.jpg") == 3
    assert "1.jpg is cut off" in capsys.readouterr().err


def test_other_sizes_and_formats(tmp_path: Path) -> None:
    """A picture of another size or form is part of the film; what it loses is said."""
    folder = tmp_path / "in"
    for n in range(6):
        put(folder / f"{n}.png", 40 * n)
    put(folder / "1.png", 40, size=(64, 48))
    put(folder / "2.png", 80, mode="L")
    put(folder / "x.jpg", 120).replace(folder / "3.png")
    put(folder / "4.png", 160, mode="RGBA")
    Image.fromarray(np.full((24, 32), 200 * 257, np.uint16)).save(folder / "5.png")
    encode = EncodeOptions(encoder="ffv1")
    film = tmp_path / "film.mkv"
    report = deblur_video(folder / "%d.png", film, model="identity", encode=encode)
    assert "from 32x24 to 64x48 at 0.04 s" in report.damage[0]
    assert "from rgb24 to rgba at 0.16 s" in report.damage[1]
    assert "from rgb24 to gray16be at 0.20 s" in report.damage[2]
    assert len(report.damage) == 3
    with av.open(str(film)) as container:
        shown = [f.to_ndarray(format="rgb24")[0, 0, 0] for f in container.decode(video=0)]
    assert np.allclose(shown, [0, 40, 80, 120, 160, 200], atol=1)  # 16 bits are rounded


def test_pictures_of_a_film_count_on(tmp_path: Path) -> None:
    source = sequence(tmp_path / "in", [1, 2, 4])
    deblur_video(source, tmp_path / "film.mkv", model="identity")
    for start, names in ((None, [1, 2, 3]), (7, [7, 8, 9])):
        folder = tmp_path / str(start)
        folder.mkdir()
        deblur_video(
            tmp_path / "film.mkv", folder / "%02d.png", model="identity", start_number=start
        )
        assert sorted(p.name for p in folder.iterdir()) == [f"{n:02d}.png" for n in names]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("a%05d.png", True), ("100%%.png", False), ("100%%d.png", False), ("a%%%d.png", True)],
)
def test_patterns(name: str, pattern: bool) -> None:
    assert is_pattern(name) == pattern
    if pattern:
        assert numbered(name, 7) == name.replace("%05d", "00007").replace("%%%d", "%7")


def test_a_damaged_picture_among_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is one line and exit 1; the others are restored."""
    for name in ("a", "b", "c"):
        put(tmp_path / "in" / f"{name}.png", 5)
    good = (tmp_path / "in" / "b.png").read_bytes()
    size = (2**31 - 1).to_bytes(4, "big")
    zero = bytes(4)
    for data in (good[:20], good[:16] + zero * 2 + good[24:], good[:16] + size * 2 + good[24:]):
        (tmp_path / "in" / "b.png").write_bytes(data)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert main(["video", str(tmp_path / "in"), "-o", f"{out}/", "--model", "identity"]) == 1
        assert "b.png" in capsys.readouterr().err
        assert sorted(p.name for p in out.iterdir()) == ["a_deblurred.png", "c_deblurred.png"]


def test_json_names_the_gap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = sequence(tmp_path / "in", [1, 3])
    code = main(["video", source, "-o", str(tmp_path / "f.mkv"), "--model", "identity", "--json"])
    assert code == 3
    report = json.loads(capsys.readouterr().out)
    assert "has no picture 2:" in report["damage"][0]
