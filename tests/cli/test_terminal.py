"""Nothing that comes from a file or another program acts on the terminal."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from pathlib import Path

import av
import pytest
from tqdm import tqdm

from tests.helpers.live import clip
from vdeblur.cli import output
from vdeblur.cli.logs import logging_to
from vdeblur.cli.main import main
from vdeblur.cli.streams import mask_tracebacks, printable_streams
from vdeblur.evaluation.tables import as_markdown, as_text
from vdeblur.media.verify import Check
from vdeblur.media.verify.report import format_checks
from vdeblur.system.printable import printable

NAMES = {
    "\x1b]0;pwned\a\x1b[2Jx": r"\x1b]0;pwned\x07\x1b[2Jx",
    "\x9b2Jx": r"\x9b2Jx",
    "a\rvdeblur: done": r"a\rvdeblur: done",
    "a\nvdeblur: done": r"a\nvdeblur: done",
    "a\x7f\x08": r"a\x7f\x08",
    "a\u202egpj.exe": r"a\u202egpj.exe",
    "a\u2066b\u2069": r"a\u2066b\u2069",
    "a\u2028b\u2029\u0085": r"a\u2028b\u2029\x85",
    "a\udcff": r"a\udcff",
}


def acts(text: str) -> bool:
    return any(
        (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c in "\u202e\u2028\u2029\u2066\u2069"
        for c in text
    )


@pytest.mark.parametrize("name", NAMES)
def test_control_characters_are_shown(name: str) -> None:
    assert printable(name) == NAMES[name]
    assert not acts(printable(name, lines=True))


def test_other_text_stays() -> None:
    for name in ("Übung – 東京 – עברית – café", "👩‍👩‍👧", "1280×720 “x” \\x1b"):
        assert printable(name) == printable(name, lines=True) == name
    assert printable("a\n\tb", lines=True) == "a\n\tb"


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["video", f"{name}.mp4"],
        ["verify", __file__, name],
        ["compare", name, name, "-o", "b.mp4"],
        ["camera", f"{name}.mp4", "-o", "x.mkv", "--model", "identity", "--retry", "0"],
        ["models", "add", name, "--name", name],
        ["data", "check", name],
    ):
        assert main(words) in (1, 2), words
        said = capsys.readouterr()
        assert NAMES[name] in said.err, words
        assert not acts(said.out + said.err), words
    option = f"--{name}".replace(" ", "")
    for words in (["video", "a.mp4", "--crf", name], [name], ["video", option]):
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr()
        assert not acts(said.out + said.err), words
        assert "\n" not in said.err.rstrip("\n")
    with printable_streams():
        print(name)
        print(name, file=sys.stderr)
        output.print_json({"name": name})
    said = capsys.readouterr()
    assert not acts(said.out + said.err)
    assert json.loads(said.out.splitlines()[-1])["name"] == name


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_logs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest would keep the records, and xdist cannot send what is not UTF-8.
    monkeypatch.setattr(logging.getLogger("vdeblur"), "propagate", False)
    for table in (
        format_checks([Check("tags", False, name)]),
        as_text([["", "PSNR"], [name, "1"]]),
        as_markdown([["", "PSNR"], [name, "1"]]),
    ):
        assert NAMES[name].replace("|", "\\|") in table
        assert not acts(table)
    assert "<b>" not in as_markdown([["", "PSNR"], ["<b>", "1"]])
    log = tmp_path / "log.txt"
    with logging_to(2, str(log), ["video", name]):
        logging.getLogger("vdeblur.x").info("opened %s", name)
        try:
            raise ValueError(name)
        except ValueError:
            logging.getLogger("vdeblur.x").exception("it failed")
    for text in (log.read_text("utf-8"), capsys.readouterr().err):
        assert not acts(text)
        assert f"opened {NAMES[name]}" in text


def test_the_names_inside_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;pwned\a\x1b[2Jx\r"
    source = tmp_path / "a.mkv"
    clip(source, frames=5)
    tagged = tmp_path / "evil.mkv"
    with av.open(str(source)) as read, av.open(str(tagged), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        written.metadata["title"] = written.metadata[f"T{evil}"] = evil
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                written.mux(packet)
    code = main(["video", str(tagged), "-o", str(tmp_path / "b.mp4"), "--model", "identity"])
    assert code in (0, 3)
    main(["verify", str(tagged), str(tmp_path / "b.mp4")])
    main(["verify", str(tagged), str(source)])
    said = capsys.readouterr()
    assert not acts(said.out + said.err)
    assert "pwned" in said.out + said.err


def test_progress_bars_move_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (io.StringIO(),):
        monkeypatch.setattr(sys, "stderr", stream)
        with printable_streams():
            for _ in tqdm(range(3), desc="a\x1b[2J\r\nb", mininterval=0):
                pass
        text = stream.getvalue()
        assert "\r" + r"a\x1b[2J\r\nb: " in text
        assert "\x1b[2J" not in text


def test_a_terminal_that_knows_only_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    with printable_streams():
        print("Übung \udcff")
    assert raw.getvalue() == b"\\xdcbung \\udcff\n"


def test_tracebacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    mask_tracebacks()
    error = ValueError("rtsp://admin:s3cr3t@10.0.0.5/live\x1b[2J")
    sys.excepthook(ValueError, error, None)
    said = capsys.readouterr().err
    assert "rtsp://admin:***@10.0.0.5" in said
    assert not acts(said)
