"""The arrows between folders are in force: the contracts hold, and a broken one fails."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")
ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command as run; run()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_folders_import_only_what_stands_below_them() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("system/files.py", "from vdeblur.media import reader"),
        ("media/reader.py", "import torch"),
        ("networks/base.py", "import av"),
        ("inference/guidance.py", "def late():\n    from vdeblur.evaluation import metrics"),
        ("evaluation/metrics.py", "from vdeblur.live import session"),
        ("deblur.py", "import tests"),
    ],
)
def test_an_arrow_against_the_order_fails(place: str, line: str, tmp_path: Path) -> None:
    for file in (ROOT / "vdeblur").rglob("*.py"):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    wrong = tmp_path / "vdeblur" / place
    wrong.write_text(f"{wrong.read_text(encoding='utf-8')}\n\n{line}\n", encoding="utf-8")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "1 broken" in done.stdout, done.stdout + done.stderr


#: The largest that a module, a class or a function may be, in lines. A longer one carries a comment
#: that begins with `# Long:` and gives the reason.
MOST_LINES = {"module": 600, "class": 350, "function": 80}


def test_nothing_grows_too_long() -> None:
    long = []
    for path in sorted((ROOT / "vdeblur").rglob("*.py")):
        source = path.read_text("utf-8")
        lines = source.splitlines()
        found = [("module", path.stem, 0, len(lines))]
        for node in ast.walk(ast.parse(source)):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                found.append((kind, node.name, node.lineno - 1, node.end_lineno))
        for kind, name, first, last in found:
            reason = any(line.strip().startswith("# Long:") for line in lines[first:last])
            if last - first > MOST_LINES[kind] and not reason:
                long.append(f"{path.relative_to(ROOT)}: {kind} {name} has {last - first} lines")
    assert not long, "\n".join(long)
