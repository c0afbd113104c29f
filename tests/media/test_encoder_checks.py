"""What is asked of an encoder is checked before any work, and said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clips import scene, write_frames
from vdeblur.cli.main import main
from vdeblur.errors import EncoderError, UsageError
from vdeblur.media.encoders import EncodeOptions


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoder": "aac"}, "encoder aac makes sound, not video"),
        ({"encoder": "pcm_s16le"}, "makes sound, not video"),
        ({"encoder": "srt"}, "encoder srt makes subtitles, not video"),
        ({"encoder": "ass"}, "makes subtitles, not video"),
        ({"encoder": "nosuch"}, "encoder 'nosuch' is not in this build of libav: leave"),
        ({"encoder": "libx246"}, r"\(did you mean .*libx264"),
        ({"encoder": "LIBX265"}, r"\(did you mean .*libx265"),
        ({"encoder": ""}, "encoder '' is not"),
        ({"encoder": "libsvtav1", "crf": 71}, "crf is 71: .* to 70 for encoder libsvtav1"),
        ({"encoder": "libx264", "crf": 52}, "to 51 for encoder libx264"),
        ({"encoder": "h264", "crf": 52}, "to 51 for encoder libx264"),
        ({"crf": 256}, "crf is 256"),
        ({"crf": float("nan")}, "crf is nan"),
        ({"crf": -1}, "crf is -1"),
        ({"encoder": "libsvtav1", "preset": "slow"}, "a number from -2 .* to 13"),
        ({"encoder": "libsvtav1", "preset": "14"}, "a number from -2 .* to 13"),
        ({"encoder": "libvpx-vp9", "preset": "9"}, "a number from -8 .* to 8"),
        ({"encoder": "libvpx", "preset": "-17"}, "a number from -16 .* to 16"),
        ({"encoder": "libx265", "preset": "turbo"}, "choose one of ultrafast"),
        ({"encoder": "libx264", "preset": "10"}, "choose one of ultrafast"),
        ({"bitrate": 0}, "bitrate is 0"),
        ({"bitrate": 10**15}, "bitrate is 1000000000000000"),
        ({"pix_fmt": "nosuch"}, "pixel format 'nosuch' is unknown"),
    ],
)
def test_what_no_encoder_can_do_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises((UsageError, EncoderError), match=said):
        EncodeOptions(**options)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--encoder", "aac"], 2, "makes sound, not video: leave --encoder out"),
        (["--encoder", "nosuch"], 1, "'nosuch' is not in this build of libav"),
        (["--encoder", "rawvideo"], 1, "mp4 cannot hold video by rawvideo"),
        (["--encoder", "h264_v4l2m2m"], 1, "choose --encoder libx264, which runs on the CPU"),
        (["--encoder", "libsvtav1", "--preset", "99"], 1, "libsvtav1 has no preset '99'"),
        (["--strength", "1e9"], 2, "strength is 1e+09"),
        (["--strength", "nan"], 2, "strength is nan"),
    ],
)
def test_the_command_writes_nothing_then(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.mkv"
    write_frames(source, [scene(i) for i in range(2)])
    arguments = ["video", str(source), "-o", str(tmp_path / "o.mp4"), "--model", "identity"]
    assert main([*arguments, *words]) == code
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


@pytest.mark.parametrize(
    "words",
    [
        ["--bitrate", "inf"], ["--bitrate", "999T"], ["--start", "1e300"], ["--start", "nan"],
        ["--framerate", "1e400"], ["--framerate", "1e-400"], ["--framerate", "1e999999999"],
        ["--duration", "9" * 50],
    ],
)  # fmt: skip
def test_numbers_that_overflow_are_bad_usage(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["video", str(tmp_path / "a.mkv"), *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_name_of_a_coding_is_that_of_its_encoder(tmp_path: Path) -> None:
    """h264 is libx264 with its quality, not with libav's."""
    source = tmp_path / "a.mkv"
    write_frames(source, [scene(i) for i in range(3)])
    qualities = []
    for encoder in ("h264", "libx264"):
        output = tmp_path / f"{encoder}.mp4"
        arguments = ["video", str(source), "-o", str(output), "--model", "identity"]
        assert main([*arguments, "--encoder", encoder]) == 0
        # x264 writes its settings into the stream; its pictures differ by bytes from run to run.
        qualities.append(output.read_bytes().partition(b" crf=")[2].partition(b" ")[0])
    assert qualities[0] == qualities[1] != b""
