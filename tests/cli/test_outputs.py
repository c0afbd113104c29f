"""Files that a command was not told to replace are as they were: logs, plots, scores, runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import gopro_clips, pictures
from tests.helpers.clips import scene, write_frames
from vdeblur import InputError, OutputError, deblur_video, verify
from vdeblur.cli import main as cli
from vdeblur.datasets.pictures import write_bytes
from vdeblur.evaluation import comparison_page
from vdeblur.system import streams

Run = Callable[..., tuple[int, str]]
posix = pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """A command: its exit code, and its errors."""

    def call(*arguments: object) -> tuple[int, str]:
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "film.mkv", (scene(n) for n in range(3)))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for kind in ("blur", "sharp"):
        for number in range(2):
            pictures.put(tmp_path / "pairs" / kind / f"{number}.png", seed=number)
    return tmp_path / "pairs"


def test_a_log_is_appended_to_logs_only(tmp_path: Path, film: Path, run: Run) -> None:
    before = film.read_bytes()
    output = tmp_path / "o.mkv"
    arguments = ("video", film, "-o", output, "--model", "identity", "--log-file")
    code, said = run(*arguments, film)
    assert (code, output.exists(), film.read_bytes() == before) == (1, False, True)
    assert "exists and is no log: name a new file" in said
    own, new, empty = tmp_path / "notes.txt", tmp_path / "new", tmp_path / "empty"
    own.write_text("Monday\n")
    empty.touch()
    for log in (own, new, new, empty):
        assert run(*arguments, log, "--force")[0] == 0
    assert own.read_text().startswith("Monday\n2")
    assert new.read_text().count("exit code 0") == 2


@posix
def test_a_log_into_a_pipe_is_refused(tmp_path: Path, film: Path, run: Run) -> None:
    os.mkfifo(tmp_path / "log")
    code, said = run("verify", film, film, "--log-file", tmp_path / "log")
    assert (code, "is a pipe: name a file for the log" in said) == (1, True)


@posix
def test_an_index_that_is_written_last_goes_into_no_pipe(
    tmp_path: Path, film: Path, run: Run
) -> None:
    os.mkfifo(tmp_path / "o.mp4")
    for arguments in (
        ("video", film, "-o", tmp_path / "o.mp4", "--model", "identity"),
        ("video", film, "-o", "-", "--format", "mov", "--model", "identity"),
        ("compare", film, film, "-o", tmp_path / "o.mp4"),
    ):
        code, said = run(*arguments)
        assert (code, said.count("\n")) == (1, 1)
        assert "whose index is written last: pipe Matroska or MPEG-TS" in said


@posix
def test_a_pipe_without_a_reader_ends_the_command(
    tmp_path: Path, film: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_READER_SECONDS", 0.1)
    for name in ("o.mkv", "o.html"):
        os.mkfifo(tmp_path / name)
        code, said = run("compare", film, film, "-o", tmp_path / name)
        assert (code, said.count("\n"), "nobody reads this pipe" in said) == (1, 1, True)


@posix
def test_scores_are_appended_to_what_standard_output_is(tmp_path: Path, pairs: Path) -> None:
    log = tmp_path / "log"
    log.write_text("precious\n")
    words = ["eval", "--pairs", str(pairs), "--baseline", "--quiet", "--csv", "/dev/stdout"]
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-m", "vdeblur", *words], stdout=file, check=True)
    assert log.read_text().startswith("precious\n")


def test_scores_replace_nothing_that_is_scored(tmp_path: Path, pairs: Path, run: Run) -> None:
    films = [
        write_frames(tmp_path / f"{name}.mkv", (scene(n) for n in range(3))) for name in ("a", "b")
    ]
    before = {path: path.read_bytes() for path in (*films, *pairs.rglob("*.png"))}
    common = ("eval", "--baseline", "--quiet", "--force", "--pairs")
    for arguments in (
        (*films, "--csv", films[0]),
        (*films, "--json", films[1]),
        (pairs, "--report", pairs / "blur" / "0.png"),
        (pairs, "--panels", pairs / "sharp"),
    ):
        code, said = run(*common, *arguments)
        assert (code, said.count("\n")) == (1, 1)
        assert "is the input itself" in said or "is among the pictures of" in said
    assert all(path.read_bytes() == content for path, content in before.items())
    assert run(*common, pairs, "--csv", pairs / "scores.csv")[0] == 0


def test_two_scores_in_one_file_are_refused(pairs: Path, run: Run) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pairs)
        code, said = run("eval", "--baseline", "--pairs", pairs, "--csv", "x", "--json", "./x")
    assert (code, "would both go to" in said) == (2, True)


def test_a_chart_replaces_nothing_unasked(tmp_path: Path, film: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    chart = pictures.put(tmp_path / "chart.png", seed=0)
    before = chart.read_bytes()
    arguments = ("bench", film, "--model", "identity", "--frames", 2, "--rounds", 1)
    code, said = run(*arguments, "--chart", chart)
    assert (code, "exists already: use --force" in said) == (1, True)
    assert chart.read_bytes() == before
    assert run(*arguments, "--chart", chart, "--force")[0] == 0
    assert chart.read_bytes() != before


def test_a_plan_replaces_no_picture_unasked(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    footage = gopro_clips.footage(tmp_path, ("GX010042.MP4",))
    plot = footage.chapters[0].with_name("GX010042_blur.png")
    plot.write_text("precious")
    assert cli.main(["gopro", str(footage.chapters[0]), "--plan", "--model", "identity"]) == 0
    assert "exists already: use --force" in capfd.readouterr().out
    assert plot.read_text() == "precious"
    assert run("gopro", footage.chapters[0], "--plan", "--model", "identity", "--force")[0] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_run_replaces_no_weights_of_others(tmp_path: Path, pairs: Path, run: Run) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "weights.safetensors").write_text("precious")
    words = ("--steps", 1, "--crop", 16, "--batch", 1, "--workers", 0, "--model", "mimo-unet-lite")
    code, said = run("train", "--data", pairs, "-o", out, *words)
    assert (code, "holds weights.safetensors, which is of no run there" in said) == (1, True)
    assert [(p.name, p.read_text()) for p in out.iterdir()] == [("weights.safetensors", "precious")]


def test_a_leftover_that_is_read_is_not_removed(tmp_path: Path, film: Path, run: Run) -> None:
    salvaged = film.rename(tmp_path / ".vdeblur-0123456789abcdef.mkv")
    for arguments in (
        ("video", salvaged, "-o", tmp_path / "o.mkv", "--model", "identity"),
        ("compare", salvaged, salvaged, "-o", tmp_path / "o.html"),
    ):
        code, said = run(*arguments)
        assert (code, "which the next run removes: rename it" in said) == (1, True)
    assert salvaged.exists()


@posix
def test_folders_with_the_characters_of_patterns(tmp_path: Path, run: Run) -> None:
    for name in ("[a]", "what?", "a*b"):
        for number in range(3):
            pictures.put(tmp_path / name / f"{number:03d}.png", seed=number)
        numbered = tmp_path / name / "%03d.png"
        code, said = run("video", numbered, "-o", tmp_path / f"{name}.mkv", "--model", "identity")
        assert code == 0, said
        out = f"{tmp_path / name}-out/"
        code, said = run("video", tmp_path / name / "*.png", "-o", out, "--model", "identity")
        assert (code, len(list(Path(out).iterdir()))) == (0, 3), said


@posix
def test_a_page_of_films_whose_names_are_not_utf8(tmp_path: Path, film: Path, run: Run) -> None:
    try:
        odd = film.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mkv"))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    code, said = run("compare", odd, odd, "-o", tmp_path / "o.html")
    assert code == 0, said
    assert r"caf\udce9" in (tmp_path / "o.html").read_text(encoding="utf-8")


@posix
def test_standard_output_that_takes_nothing(film: Path) -> None:
    for words, output in (
        ("verify FILM FILM", "/dev/full"),
        ("video FILM -o - --model identity", "&-"),
    ):
        command = f"{sys.executable} -m vdeblur {words.replace('FILM', str(film))} >{output}"
        if output == "/dev/full" and not Path(output).exists():
            continue
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert done.stderr.startswith("vdeblur: standard output cannot be")


@pytest.mark.parametrize(
    "words",
    [
        "video FILM -o EMPTY",
        "gopro FILM -o EMPTY",
        "data average FILM -o EMPTY",
        "train --data EMPTY",
        "compare FILM FILM -o o.mkv --encoder EMPTY",
        "compare FILM FILM -o o.mkv --height 99999999999999999999",
        "compare FILM FILM -o o.mkv --mode wipe --period inf",
        "eval --pairs FILM FILM --every 99999999999999999999",
        "bench FILM --batch 99999999999999999999",
        "bench FILM --stage none --model identity",
        "data average FILM -o o --max-blur nan",
        "data synth FILM -o o --crop 99999999999999999999",
        "train --data FILM --workers 99999999999999999999",
        "train --data FILM --seed 99999999999999999999",
        "camera FILM -o o.mkv --keyframes 99999999999999999999",
        "camera FILM -o o.mkv --rotate-size 0.1",
    ],
)
def test_values_that_mean_nothing(
    words: str, film: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(film.parent)
    given = [{"FILM": film.name, "EMPTY": ""}.get(word, word) for word in words.split()]
    code, said = run(*given)
    assert (code, said.count("\n")) == (2, 1), said
    assert "fault of vdeblur" not in said
    assert [path.name for path in film.parent.iterdir()] == [film.name]


def test_a_preset_in_other_digits(film: Path, tmp_path: Path, run: Run) -> None:
    words = ("-o", tmp_path / "o.mkv", "--model", "identity", "--encoder", "libx264")
    code, said = run("video", film, *words, "--preset", "\u0663")
    assert (code, said.count("\n"), "has no preset" in said) == (1, 1, True)


def test_a_folder_that_was_made_for_nothing_goes(tmp_path: Path, run: Run) -> None:
    chapter = gopro_clips.footage(tmp_path, ("GX010042.MP4",)).chapters[0]
    output = f"{tmp_path}/new/deep/"
    code, _ = run("gopro", chapter, "-o", output, "--model", "identity", "--preset", "none")
    assert (code, (tmp_path / "new").exists()) == (1, False)


@posix
def test_a_file_larger_than_its_disk_takes(film: Path, tmp_path: Path) -> None:
    """Of 4 GB on FAT, or less by a limit of the shell."""
    words = f"video {film} -o {tmp_path / 'o.mkv'} --model identity"
    command = f"ulimit -f 1; {sys.executable} -m vdeblur {words}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "o.mkv is larger than a file may be here: choose another disk" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [film.name]


@posix
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps the folder until it is left")
def test_a_present_folder_that_has_gone(film: Path, tmp_path: Path) -> None:
    words = f"video {film} -o {tmp_path / 'o.mkv'} --model identity"
    command = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m vdeblur {words}"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the present folder does not exist any more" in done.stderr


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(film: Path, tmp_path: Path, run: Run) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    try:
        for words in (
            ("video", closed),
            ("video", film, "-o", closed / "o.mkv", "--model", "identity"),
            ("gopro", closed),
            ("data", "synth", closed, "-o", tmp_path / "o"),
            ("data", "check", closed),
            ("compare", film, film, "-o", closed / "o.mkv"),
        ):
            code, said = run(*words)
            assert (code, said.count("\n")) == (1, 1), said
            assert "may not be" in said
            assert "permissions" in said
    finally:
        closed.chmod(0o700)


def test_a_page_that_is_not_written_leaves_no_copies(
    film: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run was quicker."""
    page = tmp_path / "o.html"

    def late(*arguments: Any, **named: Any) -> None:
        page.write_text("precious")
        write_bytes(*arguments, **named)

    monkeypatch.setattr(comparison_page, "write_bytes", late)
    code, said = run("compare", film, film, "-o", page, "--embed", "never")
    assert (code, said.count("\n")) == (1, 1), said
    assert page.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {film.name, "o.html"}


def test_names_that_cannot_be(film: Path, tmp_path: Path, run: Run) -> None:
    code, said = run("video", film, "-o", "a\0.mkv", "--model", "identity")
    assert (code, said.count("\n"), "leave it out" in said) == (2, 1, True)
    with pytest.raises(OutputError, match="is no possible name of a file"):
        deblur_video(film, "a\0.mkv", model="identity")
    with pytest.raises(InputError, match="cannot be read"):
        verify(film, tmp_path / ("x" * 300))
