"""Names of outputs: taken in one step, never another's, and nothing lost without them."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.clips import PLAIN, make
from vdeblur.cli.main import main
from vdeblur.datasets.pictures import write_png
from vdeblur.datasets.synthesise import check_replaceable
from vdeblur.deblur import deblur_video
from vdeblur.errors import DiskError, OutputError
from vdeblur.media import picture_folder
from vdeblur.media.libav_errors import output_error
from vdeblur.media.reader import VideoReader
from vdeblur.media.writer import VideoWriter
from vdeblur.system.files import COMPLETE
from vdeblur.system.renaming import move

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and signals are POSIX's")


def restored(
    source: Path | str,
    output: Path,
    *,
    overwrite: bool = False,
    before_the_end: Callable[[], object] = lambda: None,
) -> None:
    def complete(reader: VideoReader, writer: VideoWriter) -> None:
        before_the_end()

    deblur_video(source, output, model="identity", overwrite=overwrite, complete=complete)


def sequence(folder: Path) -> str:
    """Six pictures, numbered from 7."""
    folder.mkdir()
    for number in range(7, 13):
        write_png(folder / f"{number:05d}.png", np.full((32, 48, 3), number * 10, np.uint8))
    return str(folder / "%05d.png")


def pictures(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return make(tmp_path / "film.mkv", PLAIN)


def test_a_file_that_appears_meanwhile_stays_and_so_does_the_film(
    film: Path, tmp_path: Path
) -> None:
    output = tmp_path / "o.mkv"
    with pytest.raises(OutputError, match=r"made by another program meanwhile.*o-2\.mkv"):
        restored(film, output, before_the_end=lambda: output.write_text("theirs"))
    assert output.read_text() == "theirs"
    assert pictures(tmp_path / "o-2.mkv") == len(PLAIN.pts)
    assert hidden(tmp_path) == []


@posix
def test_a_final_name_that_cannot_be_had_costs_no_film(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path, **options: object) -> None:
        if target.name == "o.mkv":
            raise OSError(errno.EACCES, "Permission denied")
        move(source, target, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("vdeblur.system.files.move", refuse)
    with pytest.raises(OutputError, match=r"cannot be the name .*kept as .*o-2\.mkv"):
        restored(film, tmp_path / "o.mkv")
    assert pictures(tmp_path / "o-2.mkv") == len(PLAIN.pts)


@posix
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_source_that_vanishes_costs_no_film(suffix: str, tmp_path: Path) -> None:
    source, output = make(tmp_path / f"source{suffix}", PLAIN), tmp_path / f"o{suffix}"
    report = deblur_video(
        source, output, model="identity", complete=lambda reader, writer: source.unlink()
    )
    assert pictures(output) == len(PLAIN.pts)
    assert "not compared with the source" in report.differences[0]


@posix
def test_the_input_is_replaced_under_none_of_its_names(film: Path, tmp_path: Path) -> None:
    was = film.read_bytes()
    hard, soft = tmp_path / "hard.mkv", tmp_path / "soft.mkv"
    hard.hardlink_to(film)
    soft.symlink_to(film)
    for name in (film, hard, soft):
        assert main(["video", str(film), "-o", str(name), "--force", "--model", "identity"]) == 1
    assert main(["compare", str(soft), str(film), "-o", str(hard), "--force"]) == 1
    other = make(tmp_path / "other.mkv", PLAIN)
    assert main(["compare", str(other), str(film), "-o", str(film), "--force"]) == 1
    assert film.read_bytes() == was


@posix
def test_a_link_is_replaced_and_what_it_points_to_is_not(film: Path, tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "o.mkv"
    precious.write_text("precious")
    link.symlink_to(precious)
    with pytest.raises(OutputError, match="exists already"):
        restored(film, link)
    restored(film, link, overwrite=True)
    assert (precious.read_text(), link.is_symlink(), pictures(link)) == (
        "precious",
        False,
        len(PLAIN.pts),
    )


@posix
def test_a_pipe_is_written_into(film: Path, tmp_path: Path) -> None:
    fifo, got = tmp_path / "o.mkv", tmp_path / "got.mkv"
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.write_bytes(fifo.read_bytes()))
    reader.start()
    restored(film, fifo, overwrite=True)
    reader.join(20)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert pictures(got) == len(PLAIN.pts)
    assert hidden(tmp_path) == []


def test_pictures_that_were_named_in_part_are_named_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = sequence(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    output = out / "%05d.png"

    def die(picture: Path, target: Path, *, replace: bool) -> None:
        if target.name == "00009.png":
            raise OSError(errno.EIO, "Input/output error")
        move(picture, target, replace=replace)

    monkeypatch.setattr(picture_folder, "move", die)
    with pytest.raises(OutputError, match="the pictures that have no names yet are kept in folder"):
        restored(source, output)
    names = [f"{n:05d}.png" for n in range(7, 13)]
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    assert sorted(p.name for p in out.glob("*.png")) == names[:2]
    assert sorted(p.name for p in folder.iterdir()) == [COMPLETE, *names[2:]]
    monkeypatch.undo()
    report = deblur_video(source, output, model="identity")
    assert sorted(p.name for p in out.iterdir()) == names
    assert report.frames == len(names)
    assert "killed while it named these pictures" in report.notes[0]
    with pytest.raises(OutputError, match="exists already"):
        restored(source, output)


def test_a_sequence_never_replaces_a_picture_unasked(tmp_path: Path) -> None:
    source, out = sequence(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputError, match=r"00012\.png was made by another program meanwhile"):
        restored(
            source, out / "%05d.png",
            before_the_end=lambda: (out / "00012.png").write_text("theirs"),
        )  # fmt: skip
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    assert len(list(folder.iterdir())) == 6
    assert [p.name for p in out.glob("*.png")] == ["00012.png"]
    with pytest.raises(OutputError, match="is the input itself"):
        restored(source, tmp_path / "in" / ".." / "in" / Path(source).name, overwrite=True)


@pytest.mark.parametrize(
    ("number", "words"),
    [("ENOSPC", "disk is full"), ("EDQUOT", "quota"), ("EROFS", "read-only"), ("EIO", "fails")],
)
def test_a_disk_that_takes_nothing_is_named(number: str, words: str) -> None:
    error = output_error(OSError(getattr(errno, number), "hidden"), "card/o.mp4")
    assert isinstance(error, DiskError)
    assert words in str(error)


def test_nothing_is_left_of_a_writer_that_is_given_up(film: Path, tmp_path: Path) -> None:
    with VideoReader(film) as reader, VideoWriter(tmp_path / "o.mkv", reader):
        assert hidden(tmp_path)[0].startswith(".vdeblur-")
    assert hidden(tmp_path) == []


def test_a_folder_of_other_files_is_no_folder_of_pairs(tmp_path: Path) -> None:
    check_replaceable(tmp_path)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="which is no part of pairs made earlier"):
        check_replaceable(tmp_path)
    (tmp_path / "made.json").touch()
    with pytest.raises(OutputError, match=r"holds holiday\.jpg"):
        check_replaceable(tmp_path)
    (tmp_path / "holiday.jpg").rename(tmp_path / "sharp")
    check_replaceable(tmp_path)
