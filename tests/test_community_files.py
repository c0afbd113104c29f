"""What stands around the code agrees with it: pages for contributors, hosted checks, images."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", "RELEASING.md")
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def text_of(path: Path) -> str:
    if not path.exists():
        pytest.skip(f"{path.name} is not in this distribution")
    return path.read_text("utf-8")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def versions_in(text: str) -> set[str]:
    return set(re.findall(r'"(3\.\d+)"', text))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text_of(ROOT / page))
    ours = {target for target in targets if "://" not in target}
    if not (ROOT / "docs").exists():
        ours = {target for target in ours if not target.startswith("docs/")}
    assert not {target for target in ours if not (ROOT / target).exists()}


def test_the_source_distribution_holds_what_stands_at_the_root() -> None:
    included = pyproject()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    named = {"/" + page for page in PAGES} | {"/Dockerfile", "/Dockerfile.cuda", "/.dockerignore"}
    assert named | {"/.github", "/.ci"} <= set(included)
    assert all((ROOT / name.lstrip("/")).exists() for name in included)


def test_hosted_checks_run_the_pythons_that_are_promised() -> None:
    workflow, project = text_of(WORKFLOW), pyproject()["project"]
    promised = {
        label.rpartition(" :: ")[2]
        for label in project["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", label)
    }
    matrices = re.findall(r"^ +python: (\[.*\])$", workflow, re.MULTILINE)
    # Those that may fail, each with a reason at the head of the workflow.
    trials = versions_in("".join(re.findall(r'- python: ".*"\n +experimental: true', workflow)))
    assert versions_in(matrices[0]) == promised
    assert all(versions_in(matrix) <= promised for matrix in matrices)
    assert not trials & promised
    assert all(f"Python {version}: " in workflow for version in trials)
    oldest = min(promised, key=lambda version: int(version.partition(".")[2]))
    assert project["requires-python"] == f">={oldest}"


def test_hosted_checks_are_those_of_every_contributor() -> None:
    workflow, run = text_of(WORKFLOW), text_of(ROOT / ".ci" / "run")
    assert re.search(r"run: .*bash \.ci/run$", workflow, re.MULTILINE)
    assert "bash .ci/check static" in run  # with the tests before it: all of .ci/check
    (command,) = re.findall(
        r"^    (python3 -m pip install .* python3 -m pytest)$", run, re.MULTILINE
    )
    assert f"run: {command.replace('python3', 'python')}\n" in workflow
    # A pull request's code runs here: it is given nothing that it could misuse.
    assert "permissions:\n  contents: read\n" in workflow
    assert "secrets." not in workflow
    assert "pull_request_target" not in workflow
    assert workflow.count("uses: actions/checkout@") == workflow.count("persist-credentials: false")


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_take_the_tested_versions_and_run_as_no_root(name: str) -> None:
    recipe = text_of(ROOT / name)
    installs = re.findall(r"pip install (?:.|\\\n)*?[^\\]\n", recipe)
    assert installs
    assert all("-c /usr/share/vdeblur/constraints.txt" in install for install in installs)
    tested = re.search(r"\(Python (3\.\d+)", (ROOT / "constraints.txt").read_text("utf-8"))
    assert tested
    assert f"ARG PYTHON={tested[1]}\n" in recipe
    users = re.findall(r"^USER (.*)$", recipe, re.MULTILINE)
    assert users
    assert users[-1] not in ("root", "0")
    assert recipe.index("\nUSER ") < recipe.index('\nENTRYPOINT ["vdeblur"]\n')
    copied = re.findall(r"^COPY ((?!--from).*) \S+$", recipe, re.MULTILINE)
    allowed = set(re.findall(r"^!(.*)$", text_of(ROOT / ".dockerignore"), re.MULTILINE))
    assert {word for words in copied for word in words.split()} == allowed
