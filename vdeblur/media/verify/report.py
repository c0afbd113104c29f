"""Checks as text for the terminal and as data for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vdeblur.media.verify.checks import EXCUSES, Check
from vdeblur.system.printable import printable


def format_checks(checks: Sequence[Check]) -> str:
    """Format checks as a table for the terminal: a line each, and a last line with the totals."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lost = check.passed and check.detail.startswith(EXCUSES)
        mark = "lost" if lost else "ok" if check.passed else "FAIL"
        lines.append(f"{mark:<5} {check.name:<{width}}  {printable(check.detail)}".rstrip())
    failed = sum(not check.passed for check in checks)
    losses = sum(line.startswith("lost ") for line in lines)
    total = f"{len(checks)} checks"
    reasons = f" ({losses} lost, for the reasons given)" if losses else ""
    lines.append(f"{failed} of {total} failed" if failed else f"all {total} passed{reasons}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> dict[str, Any]:
    """Return plain data: {"passed": bool, "checks": [{"name", "passed", "detail"}, …]}."""
    return {
        "passed": all(check.passed for check in checks),
        "checks": [
            {"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks
        ],
    }
