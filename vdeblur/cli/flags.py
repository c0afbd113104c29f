"""Names of parameters in messages of the library, as the options of the command.

Messages name parameters for users of the Python API, between backticks: `` `overwrite=True` ``.
The command replaces them by its options: ``--force``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

_PARAMETER = re.compile(r"`([a-z]\w*)(?:=([^`]+))?`")
_T = TypeVar("_T")


def flags_of(actions: Iterable[argparse.Action]) -> dict[str, str]:
    """Return the long option of each destination that `actions` fill."""
    return {
        action.dest: next(o for o in action.option_strings if o.startswith("--"))
        for action in actions
        if any(option.startswith("--") for option in action.option_strings)
    }


def with_flags(value: _T, flags: Mapping[str, str]) -> _T:
    """Replace the names of parameters in a text, or in all texts of a report as JSON holds it.

    `` `crf` `` becomes ``--crf``, `` `tile=None` `` ``--tile none``, `` `sharp=True` `` ``--sharp``
    and `` `steady=False` `` ``--no-steady``. Names that are no options stay as they are.

    Args:
        value: a text; or a list or dictionary, with texts at any depth.
        flags: the option of each parameter.
    """

    def flag(match: re.Match[str]) -> str:
        name, setting = match[1], match[2]
        if name not in flags:
            return match[0]
        option = flags[name]
        if setting is None or setting == "True":
            return option
        if setting == "False":
            return f"--no-{option[2:]}"
        shown = "none" if setting == "None" else setting.strip("'\"")
        return f"{option} {shown}"

    if isinstance(value, str):
        return _PARAMETER.sub(flag, value)  # type: ignore[return-value]
    if isinstance(value, list):
        return [with_flags(item, flags) for item in value]  # type: ignore[return-value]
    if isinstance(value, dict):
        return {key: with_flags(item, flags) for key, item in value.items()}  # type: ignore[return-value]
    return value
