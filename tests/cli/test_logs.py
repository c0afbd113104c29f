"""--verbose and --log-file: what is shown and recorded, and that nothing is without them."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.clips import scene, write_frames
from vdeblur.cli.logs import logging_to
from vdeblur.cli.main import main


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_frames(folder / "clip.mkv", (scene(n) for n in range(3)))


def restored(clip: Path, output: Path, *words: str) -> int:
    return main(["video", str(clip), "-o", str(output), "--model", "identity", "--quiet", *words])


def test_silent_by_default(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert restored(clip, tmp_path / "a.mkv") == 0
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_the_library_is_silent_without_a_configuration() -> None:
    program = (
        "import logging, vdeblur; logging.getLogger('vdeblur.media.writer').error('something')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_verbose_shows_device_and_runtime(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert restored(clip, tmp_path / "a.mkv", "-v", "--device", "cpu") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(
        r"^\d{4}-\d\d-\d\d [\d:,]+ INFO vdeblur\.inference\.deblurrer: "
        r"network identity on cpu .*: runtime torch, precision fp32",
        err,
        re.M,
    )
    assert " DEBUG " not in err
    assert logging.getLogger("vdeblur").handlers[1:] == []


def test_the_log_file_takes_everything(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    assert restored(clip, tmp_path / "a.mkv", "--log-file", str(log)) == 0
    assert capfd.readouterr() == ("", "")
    text = log.read_text("utf-8")
    assert re.search(r" INFO vdeblur\.cli\.logs: vdeblur [\d.]+.*, Python 3", text)
    assert re.search(r" INFO vdeblur\.media\.video_output: encoder for \w+ in matroska: ", text)
    assert " DEBUG vdeblur." in text
    assert "exit code 0" in text
    assert restored(clip, tmp_path / "a.mkv", "--log-file", str(log)) == 1  # it exists
    assert log.read_text("utf-8").startswith(text)
    assert "Traceback" in log.read_text("utf-8")


@pytest.mark.parametrize("name", ["", "no/log.txt"])
def test_a_log_that_cannot_be_written_is_an_error_before_anything_starts(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    log = tmp_path / name
    assert restored(clip, tmp_path / "a.mkv", "--log-file", str(log)) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert str(log) in err
    assert list(tmp_path.iterdir()) == []


def test_passwords_are_masked(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    address = "rtsp://user:hunter2@10.0.0.5/stream"
    with logging_to(0, str(log), ["camera", address]):
        logger = logging.getLogger("vdeblur.live")
        logger.info("connecting to %s", address)
        try:
            raise OSError(f"{address} refused")
        except OSError:
            logger.exception("it failed")
    text = log.read_text("utf-8")
    assert "hunter2" not in text
    assert text.count("rtsp://user:***@10.0.0.5/stream") >= 3
