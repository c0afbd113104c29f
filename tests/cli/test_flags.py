"""Names of parameters in messages of the library become options of the command."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vdeblur
from vdeblur.cli.flags import with_flags
from vdeblur.cli.main import flags_of_commands, main

FLAGS = {"overwrite": "--force", "tile": "--tile", "steady": "--steady", "crf": "--crf"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.mkv exists already: use `overwrite=True`", "a.mkv exists already: use --force"),
        ("larger ones or `tile=None` are faster", "larger ones or --tile none are faster"),
        ("use `steady=False`", "use --no-steady"),
        ("use `tile='auto'` or `crf=20`", "use --tile auto or --crf 20"),
        ("check `crf`", "check --crf"),
        ("run `vdeblur bench --tune`", "run `vdeblur bench --tune`"),
        ("`another` is no option", "`another` is no option"),
    ],
)
def test_a_message(message: str, shown: str) -> None:
    assert with_flags(message, FLAGS) == shown
    assert with_flags({"notes": [message], "n": 1}, FLAGS) == {"notes": [shown], "n": 1}


def messages() -> Iterator[tuple[Path, int, str]]:
    """(file, line, text) of each string of the library that is no docstring."""
    package = Path(vdeblur.__file__).parent
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cli"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or id(node) in docstrings:
                continue
            if isinstance(node.value, str):
                yield path, node.lineno, node.value


def test_the_library_names_no_options() -> None:
    """But in commands to run, and in the unit of systemd, which is one."""
    found = [
        (path.name, line, text)
        for path, line, text in messages()
        if re.search(r"(?<![\w`-])--[a-z]", re.sub(r"`vdeblur [^`]*", "", text))
        and path.name != "systemd.py"
    ]
    assert found == []


def test_each_parameter_in_a_message_has_an_option() -> None:
    flags = [*flags_of_commands()[0], "last"]  # a value of a recipe, for --set schedule.last
    named = [
        (path.name, line, match[1])
        for path, line, text in messages()
        for match in re.finditer(r"`([a-z]\w*)(?:=[^`]*)?`", text)
    ]
    assert len(named) > 50
    assert [each for each in named if each[2] not in flags] == []


def test_the_command_says_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["video", "-", "-o", str(tmp_path / "a.mkv"), "--model", "identity"]
    assert main([*words, "--weights", "x.pkl"]) == 2
    assert "leave --weights out" in capsys.readouterr().err
    assert main([*words, "--precision", "int8", "--backend", "torch"]) == 2
    assert "use --device cpu with --backend openvino, or --precision" in capsys.readouterr().err
