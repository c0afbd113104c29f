"""Each `vdeblur …` command of the README and of docs/ parses, and runs on small clips if it can."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

import vdeblur
from vdeblur.cli.main import _parser as parser_of_vdeblur
from vdeblur.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# The site is no part of a source distribution.
pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in this distribution")


@dataclass(frozen=True)
class Command:
    """A command of a page. words: without `vdeblur`. piped: another program feeds or reads it."""

    page: str
    line: int
    words: tuple[str, ...]
    piped: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {shlex.join(self.words)}"


# -- finding them ----------------------------------------------------------------------------------


def shell_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of blocks of shell, of indented blocks, and after `$ ` in other blocks."""
    fence = ""
    number, lines = 0, text.splitlines()
    while number < len(lines):
        line = lines[number]
        number += 1
        at = number
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip()[3:] or "text"
            continue
        shell = fence in ("sh", "powershell")
        if shell or (not fence and re.match(r" {4}(python3|vdeblur)", line)):
            while line.endswith("\\"):
                line = line[:-1] + lines[number]
                number += 1
            yield at, line.strip()
        elif fence and line.startswith("$ "):
            yield at, line[2:]
        else:
            assert not (fence and line.startswith("vdeblur ")), f"line {at} is in no block of shell"


def commands_in(page: Path) -> Iterator[Command]:
    for number, line in shell_lines(page.read_text("utf-8")):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        found = 0
        for start in (i for i, word in enumerate(words) if word == "vdeblur"):
            end = next((i for i in range(start, len(words)) if set(words[i]) <= set("|&<>;")), None)
            yield Command(page.name, number, tuple(words[start + 1 : end]), "|" in words)
            found += 1
        bare = line.partition(" #")[0]
        told = len(re.findall(r"(?<![\w./'\"\[])vdeblur(?= )", bare))
        assert found == told, f"{page.name}:{number} has {told} commands, and {found} were read"


COMMANDS = [command for page in PAGES for command in commands_in(page)]


# -- what is parsed only ---------------------------------------------------------------------------


def of_a_gpu(args: argparse.Namespace) -> bool:
    given = vars(args)
    return (
        str(given.get("device", "")).startswith("cuda")
        or given.get("backend") in ("cudagraphs", "compile", "tensorrt")
        or given.get("encoder") == "nvenc"
        or bool(given.get("hwaccel"))
    )


def of_others(args: argparse.Namespace) -> bool:
    """Weights that are not distributed: their authors' files, and what is kept of them by name."""
    given = [str(value) for value in vars(args).values() if isinstance(value, str | Path)]
    given += getattr(args, "words", [])
    return any(word.endswith(".pkl") or word == "mimo-unet-plus" for word in given)


#: Why a command is parsed and no more, by what it is. Everything else runs.
PARSED_ONLY: dict[str, Callable[[Command, argparse.Namespace], bool]] = {
    "needs a camera, a screen or a server, and runs until it is stopped": lambda c, a: (
        c.words[0] == "camera" and c.words[1] != "list" and not a.service
    ),
    "trains for minutes": lambda c, a: c.words[0] == "train" and not a.list_recipes,
    "measures for minutes": lambda c, a: c.words[0] == "bench" and a.frames is None,
    "needs a GPU": lambda c, a: of_a_gpu(a),
    "downloads": lambda c, a: c.words[:2] == ("models", "fetch"),
    "needs the weights of other authors": lambda c, a: of_others(a),
    "is between other programs": lambda c, a: c.piped,
    "is of a network that test_docs.py builds": lambda c, a: c.page == "adding-a-network.md",
}


def parsed(command: Command) -> argparse.Namespace:
    return parser_of_vdeblur().parse_args(command.words)


def reason_not_to_run(command: Command) -> str | None:
    if command.words == ("--version",):
        return None
    args = parsed(command)
    return next((why for why, rule in PARSED_ONLY.items() if rule(command, args)), None)


# -- what they run on ------------------------------------------------------------------------------


def scene(index: int, width: int, height: int) -> NDArray[np.uint8]:
    """A textured picture that moves by two pixels a frame."""
    random = np.random.default_rng(5)
    coarse = random.integers(0, 256, (height // 4 + 1, (width + 240) // 4 + 1, 3), np.uint8)
    whole = coarse.repeat(4, 0).repeat(4, 1)
    return np.ascontiguousarray(whole[:height, 2 * index : 2 * index + width])


def write_clip(path: Path, frames: int = 24) -> None:
    """Two seconds of 64×48 at 12 frames/s."""
    form = "mov" if path.suffix.lower() == ".mov" else "mp4"
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("libx264", rate=12, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(index, 64, 48), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_pictures(folder: Path, names: list[str], side: int = 64) -> None:
    image = pytest.importorskip("PIL.Image")
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        image.fromarray(scene(index, side, side)).save(folder / name)


def made_from(*words: str) -> Callable[[Path], None]:
    """A file that another command of vdeblur makes, in the folder that is the current one."""

    def make(path: Path) -> None:
        assert main([*words, "--model", "identity", "--quiet"]) == 0
        assert path.exists(), path

    return make


def write_pairs(folder: Path) -> None:
    for kind in ("blur", "sharp"):
        write_pictures(folder / kind, ["a.png", "b.png"])


def write_weights(path: Path) -> None:
    """Those that ship, as if they had been trained."""
    shipped = next(Path(vdeblur.__file__).parent.rglob("mimo-unet-guided.safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shipped, path)


#: What the names of the pages stand for. Names of clips that are not here are written as clips.
MADE: dict[str, Callable[[Path], None]] = {
    "part.mp4": made_from(
        "video", "ride.mp4", "--start", "1", "--duration", "0.5", "-o", "part.mp4"
    ),
    "GX010042_deblurred.MP4": made_from("gopro", "GX010042.MP4"),
    "card": lambda path: write_recording(path / "DCIM" / "100GOPRO"),
    "frames/%05d.png": lambda path: write_pictures(
        path.parent, [f"{n:05d}.png" for n in range(1, 4)]
    ),
    "photo.jpg": lambda path: write_pictures(path.parent, [path.name]),
    "photos": lambda path: write_pictures(path, ["one.png", "two.png"], side=640),
    "GoPro": write_pairs,
    "PAIRS": write_pairs,
    "*.mov": lambda path: write_clip(path.with_name("a.mov")),
    "run/weights.safetensors": write_weights,
}
#: Long or large, where little shows the same; a folder of the system's.
CHANGED = {"/media/card": "card", "/media/card/": "card"}
SMALLER = {"--count": "2"}
#: Options whose values a command writes.
OUTPUTS = ("-o", "--csv", "--json", "--report", "--panels")


def write_recording(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_clip(folder / "GX010042.MP4")


def prepared(command: Command) -> list[str]:
    """The command's words for the current folder, with all that they name made there."""
    words = [CHANGED.get(word, word) for word in command.words]
    for option, value in SMALLER.items():
        if option in words:
            words[words.index(option) + 1] = value
    outputs = {words[i + 1] for i, word in enumerate(words[:-1]) if word in OUTPUTS}
    # What another one is made from comes first.
    for word in sorted(dict.fromkeys(words), key=lambda word: word in MADE):
        path = Path(word.rstrip("/"))
        if word in outputs or path.exists():
            continue
        if str(path) in MADE:
            MADE[str(path)](path)
        elif path.suffix.lower() == ".mp4":
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path)
    for folder in (Path(name).parent for name in outputs):
        folder.mkdir(parents=True, exist_ok=True)
    short = words[0] == "video" and "--duration" not in words
    if short and any(word.lower().endswith((".mp4", ".mov")) for word in words):
        words += ["--duration", "0.25"]
    # As a shell does; vdeblur itself takes quoted patterns.
    return [
        name
        for word in words
        for name in ((sorted(map(str, Path().glob(word))) or [word]) if "*" in word else [word])
    ]


# -- the tests -------------------------------------------------------------------------------------


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 80
    assert {"README.md", "index.md", "files.md", "camera.md", "gopro.md"} <= {
        command.page for command in COMMANDS
    }
    commands = {command.words[0] for command in COMMANDS}
    listed = parser_of_vdeblur().format_help().partition("commands:")[2]
    assert set(re.findall(r"^    (\w+)", listed, re.M)) <= commands, "a command has no example"


def test_each_command_runs_or_has_a_reason_not_to() -> None:
    reasons = [reason_not_to_run(command) for command in COMMANDS]
    assert reasons.count(None) >= 50
    assert set(PARSED_ONLY) == {reason for reason in reasons if reason is not None}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_it_parses_and_runs(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if command.words == ("--version",):
        with pytest.raises(SystemExit) as ended:
            main(command.words)
        assert ended.value.code == 0
        return
    parsed(command)
    if reason_not_to_run(command) is not None:
        return
    monkeypatch.chdir(tmp_path)
    words = prepared(command)
    capsys.readouterr()
    code = main(words)
    assert code == 0, capsys.readouterr().err


def test_the_programs_of_the_pages_exist() -> None:
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    for module in set(re.findall(r"python3? -m (tests\.[\w.]+\w)", text)):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for program in set(re.findall(r"\b(?:pipelines|tests|samples)/[\w/]+\.py", text)):
        # The one that the page on adding a network asks its reader to write.
        assert program == "tests/networks/test_plain.py" or (ROOT / program).is_file(), program
