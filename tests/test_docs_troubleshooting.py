"""The messages that docs/troubleshooting.md explains are ones that the program has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import vdeblur
from vdeblur.cli.flags import with_flags
from vdeblur.cli.main import flags_of_commands

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
PACKAGE = Path(vdeblur.__file__).parent


def texts() -> set[str]:
    """The strings of the program, with options as it shows them; a value filled in is a NUL."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found | {with_flags(text, flags) for flags in flags_of_commands() for text in found}


def messages() -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| (.*?) \|", PAGE.read_text("utf-8"), re.M)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@pytest.mark.skipif(not PAGE.exists(), reason="not in this distribution")
def test_each_message_of_the_page_is_one_of_the_program() -> None:
    have = texts()
    explained = messages()
    assert len(explained) > 250

    def known(message: str) -> bool:
        parts = [part.strip() for part in message.split("…")]
        return any(all(part in text for part in parts) for text in have)

    assert [message for message in explained if not known(message)] == []
