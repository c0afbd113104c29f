"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from vdeblur.cli import values
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vidoe", "a.mp4"], "there is no command 'vidoe' (did you mean video?)"),
        (["ride.mp4"], "'ride.mp4' is no command: vdeblur video restores a file or a folder"),
        (["sharpen"], "there is no command 'sharpen': name one of video, camera"),
        (["video", "a.mp4", "--strenght", "1"], "(did you mean --strength?); see vdeblur video"),
        (["gopro", "a.mp4", "--nonsense"], "arguments: --nonsense; see vdeblur gopro --help"),
        (["camera", "test", "-o", "a.mkv", "--max-latency", "300"], "max_latency is 300 s: choose"),
    ],
)
def test_words_that_mean_something_else(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    message = capsys.readouterr().err
    assert code == 2
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5", 1.5), ("1.5s", 1.5), ("300ms", 0.3), ("2m", 120), ("1:30", 90), ("1:00:00.5", 3600.5)],
)
def test_times(text: str, seconds: float) -> None:
    assert values.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "1:30s", "-1s", "nan", "1.2.3s", "5 minutes", "1e99s"])
def test_no_times(text: str) -> None:
    for parse in (values.seconds, values.duration):
        with pytest.raises(argparse.ArgumentTypeError):
            parse(text)
