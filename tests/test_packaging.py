"""The version, the README's commands and the constraints agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vdeblur

ROOT = Path(__file__).parent.parent
INSTALL_AND_TEST = "python3 -m pip install -c constraints.txt -e '.[test]' && python3 -m pytest"


def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    return table


def name_of(requirement: str) -> str:
    """The distribution that a requirement names, spelled as the index does."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_version_has_one_source_and_fits_the_changelog() -> None:
    assert project()["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", vdeblur.__version__)
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] in ("Unreleased", vdeblur.__version__)
    assert all(h == vdeblur.__version__ for h in headings[1:2]), "the last release is another"


def test_readme_commands_are_those_that_ci_runs() -> None:
    readme, run = ROOT / "README.md", ROOT / ".ci" / "run"
    if not run.exists():
        pytest.skip("not in this distribution")
    assert INSTALL_AND_TEST in readme.read_text("utf-8")
    assert INSTALL_AND_TEST in run.read_text("utf-8")


def test_constraints_pin_what_the_installation_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    asked = project()["dependencies"] + project()["optional-dependencies"]["test"]
    assert {name_of(r) for r in asked} <= {name_of(p) for p in pins}


def test_what_the_wheel_promises_is_there() -> None:
    package = Path(vdeblur.__file__).parent
    assert (package / "py.typed").is_file()
    assert project()["scripts"] == {"vdeblur": "vdeblur.cli.main:main"}
    assert (package / "cli" / "main.py").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")
