"""Names of parameters in messages of the library become options of the command."""

from __future__ import annotations

import pytest

from vdeblur.cli.flags import with_flags

FLAGS = {"overwrite": "--force", "tile": "--tile", "steady": "--steady", "crf": "--crf"}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a.mkv exists already: use `overwrite=True`", "a.mkv exists already: use --force"),
        ("larger ones or `tile=None` are faster", "larger ones or --tile none are faster"),
        ("use `steady=False`", "use --no-steady"),
        ('use `tile="auto"` or `crf=20`', "use --tile auto or --crf 20"),
        ("check `crf`", "check --crf"),
        ("run `vdeblur bench --tune`", "run `vdeblur bench --tune`"),
        ("`another` is no option", "`another` is no option"),
    ],
)
def test_a_message(message: str, shown: str) -> None:
    assert with_flags(message, FLAGS) == shown
    assert with_flags({"notes": [message], "n": 1}, FLAGS) == {"notes": [shown], "n": 1}
