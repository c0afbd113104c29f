"""Folders of pairs in their layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.pictures import build, put
from vdeblur.datasets.layouts import LAYOUTS, find_pairs, recognise
from vdeblur.errors import InputError, UsageError


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, tmp_path: Path) -> None:
    build(tmp_path, layout)
    found = recognise(tmp_path)
    assert found.name == ("gopro" if layout == "gopro-gamma" else layout)
    pairs = find_pairs(tmp_path, layout=layout)
    assert len(pairs) == 2
    for pair in pairs:
        assert pair.blurred != pair.sharp
        assert {pair.blurred.is_file(), pair.sharp.is_file()} == {True}
        words = {part.lower() for part in pair.sharp.parts}
        assert words & {"sharp", "gt", "train_sharp"}
        assert not words & {"blur", "train_blur", "input"}
    if layout == "gopro-gamma":
        assert {p.blurred.parent.name for p in pairs} == {"blur_gamma"}
    if layout not in ("hide", "plain"):
        assert len({pair.sequence for pair in pairs}) == 2
    assert find_pairs(tmp_path, layout=layout, split=found.validation() or "")
    with pytest.raises(InputError, match="no pairs of a split 'none'"):
        find_pairs(tmp_path, layout=layout, split="none")


def test_splits_of_known_data_sets(tmp_path: Path) -> None:
    build(tmp_path / "dvd", "dvd")
    (pair,) = find_pairs(tmp_path / "dvd", split="test")
    assert pair.sequence.endswith("IMG_0030")
    build(tmp_path / "bsd", "bsd")
    assert list(recognise(tmp_path / "bsd").splits) == ["train", "val", "test"]
    build(tmp_path / "hide", "hide")
    assert [p.sequence for p in find_pairs(tmp_path / "hide", split="test")] == [
        "test-close-ups",
        "test-long-shot",
    ]
    (tmp_path / "hide" / "test-far.txt").write_text("test/test-long-shot/4.png 1 2 3 4\n")
    assert [p.blurred.name for p in find_pairs(tmp_path / "hide", split="test")] == ["4.png"]


def test_other_ways_to_lay_pairs_out(tmp_path: Path) -> None:
    # A split's own folder; a nested archive; the folder names of image restoration in general.
    build(tmp_path / "gopro", "gopro")
    assert len(find_pairs(tmp_path / "gopro" / "train", split="test")) == 2
    for kind in ("blur", "sharp"):
        put(
            tmp_path / "reds" / f"train_{kind}" / "train" / f"train_{kind}" / "007" / "00000001.png"
        )
    (pair,) = find_pairs(tmp_path / "reds")
    assert (recognise(tmp_path / "reds").name, pair.sequence) == ("reds", "007")
    for number, (b, s) in enumerate((("input", "target"), ("lq", "gt"), ("blurry", "sharp"))):
        put(tmp_path / str(number) / b / "x" / "1_blur.png")
        put(tmp_path / str(number) / s / "x" / "1_sharp.jpg")
        (pair,) = find_pairs(tmp_path / str(number))
        assert (pair.sharp.name, pair.sequence) == ("1_sharp.jpg", "x")
    (again,) = find_pairs(tmp_path / "2", layout="plain")
    assert (again.blurred, again.sharp) == (pair.blurred, pair.sharp)


def test_folders_that_are_none(tmp_path: Path, photos: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        find_pairs(tmp_path / "none")
    with pytest.raises(InputError, match=r"no pairs found .* expected blur/ and sharp/"):
        find_pairs(photos)
    with pytest.raises(InputError, match="no the layout reds found"):
        find_pairs(photos, layout="reds")
    with pytest.raises(UsageError, match="none of auto, gopro"):
        find_pairs(photos, layout="gopros")
    put(tmp_path / "blur" / "a.png")
    (tmp_path / "sharp").mkdir()
    with pytest.raises(InputError, match=r"a\.png has no sharp partner: expected .*sharp/a\.png"):
        find_pairs(tmp_path)
    build(tmp_path / "rb", "realblur")
    next((tmp_path / "rb").rglob("scene001/blur/*.png")).unlink()
    with pytest.raises(InputError, match="has no blurred partner"):
        find_pairs(tmp_path / "rb")
