"""Who knows nothing of whom: the arrows of the design, held by walking the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vdeblur"
MODULES = sorted(PACKAGE.rglob("*.py"))
THREADS = {"threading", "queue", "concurrent", "multiprocessing", "asyncio"}
FORBIDDEN = {
    "models": {"av", "ffmpeg", "decord", *THREADS, "vdeblur.reader", "vdeblur.writer"},
    "color.py": {"av", "numpy", *THREADS, "vdeblur.reader", "vdeblur.writer", "vdeblur.models"},
    "deblurrer.py": {"av", "ffmpeg", "decord", *THREADS, "vdeblur.reader", "vdeblur.writer"},
    "overlap.py": {"av", *THREADS, "vdeblur.reader", "vdeblur.writer"},
    "stages.py": {"torch", "av", "numpy", "vdeblur.frames"},
    "frames.py": {"torch", "av"},
    "reader.py": {"torch", "vdeblur.models", "vdeblur.deblurrer", "vdeblur.overlap"},
    "writer.py": {"torch", "vdeblur.models", "vdeblur.deblurrer", "vdeblur.overlap"},
    "camera": {
        "torch",
        "vdeblur.models",
        "vdeblur.deblurrer",
        "vdeblur.overlap",
        "vdeblur.live",
        "vdeblur.deblur",
    },
}


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, with all their parents; lazy imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        ".".join(parts[: i + 1])
        for parts in (n.split(".") for n in found)
        for i in range(len(parts))
    }


def test_the_walk_sees_what_is_there() -> None:
    assert "torch.nn" in imports(PACKAGE / "models" / "mimo_unet.py")
    assert "vdeblur.frames" in imports(PACKAGE / "deblurrer.py")
    assert "threading" in imports(PACKAGE / "stages.py")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_modules_know_only_what_they_should(name: str) -> None:
    for path in (PACKAGE / name).rglob("*.py") if "." not in name else [PACKAGE / name]:
        if path.exists():
            assert not imports(path) & FORBIDDEN[name], path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_imports_the_programs_over_it(path: Path) -> None:
    assert not imports(path) & {"pipelines", "tests", "samples"}
