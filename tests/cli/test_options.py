"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vdeblur.cli.main import main


class _Reached(BaseException):
    """The command called the library."""


def test_gopro_passes_the_exposure_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "GX010042.MP4").write_bytes(b"a recording")
    seen: dict[str, Any] = {}

    def restore(job: Any, options: Any, **_: Any) -> None:
        seen.update(vars(options))
        raise _Reached

    monkeypatch.setattr("vdeblur.gopro.restore", restore)
    with pytest.raises(_Reached):
        main(["gopro", str(tmp_path), "--model", "identity", "--exposure", "1/60", "--quiet"])
    assert seen["exposure"] == "1/60"
