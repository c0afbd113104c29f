"""The command: exit codes, one clear sentence, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

import vdeblur
from tests.helpers.clips import (
    MKV,
    MP4,
    PLAIN,
    Media,
    make,
    picture,
    read_frames,
    same_frames,
    scene,
    write_frames,
)
from vdeblur import VideoWriter
from vdeblur.cli import main as cli
from vdeblur.inference.network_pass import NetworkPass
from vdeblur.media.verify import CHECKS

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`vdeblur video ARGUMENTS --model identity`: exit code, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(
        *arguments: object, command: str = "video", model: bool = True
    ) -> tuple[int, str, str]:
        words = [command, *map(str, arguments), *(["--model", "identity"] if model else [])]
        capfd.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("clip") / "clip.mkv", (scene(n) for n in range(6)))


@pytest.fixture(scope="session")
def movie(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MP4 with its index at the end."""
    path = tmp_path_factory.mktemp("movie") / "movie.mp4"
    frames = (scene(n, size=(96, 64)) for n in range(30))
    return write_frames(path, frames, "libx264", sound="aac").read_bytes()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def one_sentence(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert re.match(r"vdeblur( \w+)?: ", lines[0])
    assert "Traceback" not in text
    return lines[0]


# --- what works ----------------------------------------------------------------------------------


def test_done(tmp_path: Path, clip: Path, run: Run) -> None:
    source = tmp_path / "ride.mkv"
    source.write_bytes(clip.read_bytes())
    code, out, err = run(source)
    assert (code, out) == (0, "")
    assert re.search(r"ride_deblurred\.mkv: 6 frames in \d+\.\d s \([\d.]+ frames/s\)", err)
    assert same_frames(tmp_path / "ride_deblurred.mkv", source)
    assert names(tmp_path) == {"ride.mkv", "ride_deblurred.mkv"}


def test_quiet_and_json(tmp_path: Path, clip: Path, run: Run) -> None:
    assert run(clip, "-o", tmp_path / "a.mkv", "--quiet") == (0, "", "")
    code, out, err = run(clip, "-o", tmp_path / "b.mkv", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    report = json.loads(out)
    assert report["frames"] == 6
    assert report["output"] == str(tmp_path / "b.mkv")
    assert {"lost", "kept", "damage", "differences", "replaced", "seconds"} <= set(report)


def test_quiet_with_every_encoder(tmp_path: Path, clip: Path, run: Run) -> None:
    source = write_frames(tmp_path / "a.mkv", [scene(0), scene(1)])
    for encoder in ("libx264", "libx265", "libvpx-vp9", "libsvtav1"):
        output = tmp_path / f"{encoder}.mkv"
        assert run(source, "-o", output, "--quiet", "--encoder", encoder) == (0, "", "")


@pytest.mark.parametrize("name", ["two words.mkv", "Überfahrt 東京.mkv", "100%.mkv", "a[1].mkv"])
def test_odd_names(tmp_path: Path, clip: Path, run: Run, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(clip.read_bytes())
    assert run(source)[0] == 0
    stem = source.stem
    assert same_frames(tmp_path / f"{stem}_deblurred.mkv", source)


def test_a_name_that_begins_with_a_dash(
    tmp_path: Path, clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-a.mkv").write_bytes(clip.read_bytes())
    assert run("./-a.mkv", "-o", "./-b.mkv")[0] == 0
    assert run("--model", "identity", "--", "-a.mkv", model=False)[0] == 0
    assert names(tmp_path) == {"-a.mkv", "-b.mkv", "-a_deblurred.mkv"}


def test_numbered_pictures_that_are_restored_apart_may_be_a_film(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (7, 8, 9):
        picture = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"f{number:04d}.png"), picture)
    code, _, err = run(folder, "-o", f"{tmp_path / 'out'}/")
    assert code == 0
    assert f"come out better as one, {folder}/f%04d.png" in err
    (folder / "f0008.png").unlink()
    assert "f%04d" not in run(folder, "-o", f"{tmp_path / 'out2'}/")[2]


def test_many(tmp_path: Path, clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mkv", "b.MKV", "c_deblurred.mkv", ".hidden.mkv", "notes.txt"):
        (folder / name).write_bytes(clip.read_bytes())
    assert run(folder, "-o", f"{tmp_path / 'out'}/")[0] == 0
    assert names(tmp_path / "out") == {"a_deblurred.mkv", "b_deblurred.MKV"}
    monkeypatch.chdir(folder)
    assert run("[ab].*", "a.mkv", "-o", f"{tmp_path / 'out2'}/")[0] == 0
    assert names(tmp_path / "out2") == {"a_deblurred.mkv", "b_deblurred.MKV"}
    code, _, err = run("a.mkv", "b.MKV", "-o", tmp_path / "one.mkv")
    assert code == 2
    assert "folder" in one_sentence(err)


def test_one_failure_does_not_stop_the_others(tmp_path: Path, clip: Path, run: Run) -> None:
    for name in ("a.mkv", "c.mkv"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    (tmp_path / "b.mkv").write_bytes(b"noise" * 99)
    code, out, err = run(*(tmp_path / f"{n}.mkv" for n in "abc"), "--quiet")
    assert (code, out) == (1, "")
    assert "b.mkv" in one_sentence(err)
    assert names(tmp_path) == {
        "a.mkv", "b.mkv", "c.mkv", "a_deblurred.mkv", "c_deblurred.mkv"
    }  # fmt: skip
    code, out, _ = run(*(tmp_path / f"{n}.mkv" for n in "abc"), "--json", "--force")
    assert code == 1
    assert [json.loads(line)["frames"] for line in out.splitlines()] == [6, 6]


def test_verify(tmp_path: Path, run: Run) -> None:
    source = make(tmp_path / "a.mp4", PLAIN)
    code, out, err = run(source, source, command="verify", model=False)
    assert (code, err) == (0, "")
    assert f"all {len(CHECKS)} checks passed" in out
    other = make(tmp_path / "b.mp4", MP4)
    code, out, _ = run(source, other, "--json", "--quick", command="verify", model=False)
    assert code == 1
    assert json.loads(out)["passed"] is False
    code, _, err = run(source, tmp_path / "none.mp4", command="verify", model=False)
    assert code == 1
    one_sentence(err)


@pytest.mark.parametrize(("media", "suffix"), [(MP4, ".mp4"), (MKV, ".mkv")])
@pytest.mark.parametrize(
    "part", [["--start", "0.3"], ["--duration", "0.5"], ["--start", "0:00.2", "--duration", "0.4"]]
)
def test_a_part_is_verified_as_a_part(
    tmp_path: Path, run: Run, media: Media, suffix: str, part: list[str]
) -> None:
    source, output = make(tmp_path / f"a{suffix}", media), tmp_path / f"b{suffix}"
    assert run(source, "-o", output, *part)[0] == 0
    code, out, _ = run(source, output, *part, command="verify", model=False)
    assert code == 0, out
    assert re.search(r"^lost +chapters +not kept by a part: ", out, re.M)
    assert re.search(r"^ok +timestamps ", out, re.M)
    assert re.search(rf"all {len(CHECKS)} checks passed \(\d lost, for the reasons given\)", out)
    assert run(source, output, *part, "--quick", command="verify", model=False)[0] == 0
    # It is no whole copy, and no other part.
    assert run(source, output, command="verify", model=False)[0] == 1
    code, out, _ = run(source, output, "--start", "0.1", command="verify", model=False)
    assert code == 1
    assert re.search(r"^FAIL +frame count ", out, re.M)
    code, _, err = run(source, output, "--duration", "0", command="verify", model=False)
    assert code == 2
    assert "--duration is 0" in one_sentence(err)


@pytest.mark.parametrize(("kind", "other"), [(MP4, ".mkv"), (MKV, ".mp4"), (MP4, ".mov")])
def test_another_container_is_verified_by_what_it_can_keep(
    tmp_path: Path, run: Run, kind: Media, other: str
) -> None:
    source = make(tmp_path / f"a{'.mkv' if kind is MKV else '.mp4'}", kind)
    output = tmp_path / f"b{other}"
    code, _, err = run(source, "-o", output)
    assert code == 0, err
    code, out, _ = run(source, output, command="verify", model=False)
    assert code == 0, out
    # What video says when it has written, verify says of the file.
    said = set(re.findall(r"not kept: ([\w /]+), in this container: ", err))
    found = set(re.findall(r"^lost +([\w /]+?)  +not kept by this container: ", out, re.M))
    assert said <= found
    assert run(source, "-o", output, "--duration", "0.3", "--force")[0] == 0
    assert run(source, output, command="verify", model=False)[0] == 1


# --- what cannot be done -------------------------------------------------------------------------


def failures(folder: Path, clip: bytes, movie: bytes) -> dict[str, tuple[list[Any], str]]:
    """Arguments, and words of the sentence."""
    good, taken = folder / "good.mkv", folder / "taken.mkv"
    good.write_bytes(clip)
    taken.write_bytes(b"mine")
    (folder / "empty.mp4").write_bytes(b"")
    noise = np.random.default_rng(0).bytes(40_000)
    (folder / "noise.mp4").write_bytes(noise)
    (folder / "text.mkv").write_text("no video " * 300)
    (folder / "cut.mp4").write_bytes(movie[: movie.index(b"moov") - 2000])
    with av.open(str(folder / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (folder / "void").mkdir()
    (folder / "weights.safetensors").write_bytes(b"\x08" + noise[:500])
    new = folder / "new.mkv"
    net = ["--model", "mimo-unet"]
    return {
        "missing": ([folder / "none.mp4"], "does not exist"),
        "empty": ([folder / "empty.mp4"], "empty"),
        "noise": ([folder / "noise.mp4"], "not a video"),
        "text": ([folder / "text.mkv"], "not a video"),
        "sound only": ([folder / "sound.m4a"], "no video"),
        "cut off": ([folder / "cut.mp4"], "moov"),
        "empty folder": ([folder / "void"], "no videos"),
        "glob without a match": ([folder / "x*.mp4"], "nothing matches"),
        "no folder for the output": ([good, "-o", folder / "no" / "a.mkv"], "does not exist"),
        "output exists": ([good, "-o", taken], "--force"),
        "output is the input": ([good, "-o", good, "--force"], "input itself"),
        "output without a container": ([good, "-o", folder / "name"], "extension"),
        "output of an unknown kind": ([good, "-o", folder / "a.xyzzy"], "container"),
        "unknown encoder": ([good, "-o", new, "--encoder", "libx999"], "libx999"),
        "unknown pixel format": ([good, "-o", new, "--pix-fmt", "yuv421p"], "yuv421p"),
        "pixel format it does not take": (
            [good, "-o", new, "--encoder", "libx264", "--pix-fmt", "rgb48le"],
            "rgb48le",
        ),
        "setting it does not take": (
            [good, "-o", new, "--encoder", "libx264", "--preset", "warp"],
            "libx264 has no preset 'warp': choose one of ultrafast, superfast",
        ),
        "setting the source's codec does not take": (
            [write_frames(folder / "a.mp4", [scene(0)], "libx264"), "-o", new, "--preset", "10"],
            "libx264 has no preset '10'",
        ),
        "codec the container has no room for": (
            [good, "-o", folder / "a.webm", "--encoder", "libx264"],
            "webm",
        ),
        "no such device": ([good, "-o", new, "--device", "abacus"], "abacus"),
        "unknown network": ([good, "-o", new, "--model", "magic"], "magic"),
        "weights missing": ([good, "-o", new, *net, "--weights", folder / "w.pkl"], "w.pkl"),
        "weights damaged": (
            [good, "-o", new, *net, "--weights", folder / "weights.safetensors"],
            "weights.safetensors",
        ),
        "sequence that is not there": ([folder / "%05d.png"], "%05d.png"),
        "sequence into no folder": ([good, "-o", folder / "no" / "%05d.png"], "does not exist"),
        "part beyond the end": ([good, "-o", new, "--start", "99"], "start"),
        "unknown format": ([good, "-o", new, "--format", "xyzzy"], "xyzzy"),
    }


FAILURES = [
    "missing", "empty", "noise", "text", "sound only", "cut off", "empty folder",
    "glob without a match", "no folder for the output", "output exists", "output is the input",
    "output without a container", "output of an unknown kind", "unknown encoder",
    "unknown pixel format", "pixel format it does not take", "setting it does not take",
    "setting the source's codec does not take", "codec the container has no room for",
    "no such device", "unknown network", "weights missing",
    "weights damaged", "sequence that is not there",
    "sequence into no folder", "part beyond the end", "unknown format",
]  # fmt: skip


#: Names that are in no list, and could not work anywhere.
NOWHERE = {"no such device", "unknown network", "unknown pixel format"}


@pytest.mark.parametrize("name", FAILURES)
def test_one_sentence_and_nothing_left(
    tmp_path: Path, clip: Path, movie: bytes, run: Run, name: str
) -> None:
    cases = failures(tmp_path, clip.read_bytes(), movie)
    assert set(cases) == set(FAILURES)
    arguments, words = cases[name]
    before = names(tmp_path)
    code, out, err = run(*arguments, model="--model" not in arguments)
    assert (code, out) == (2 if name in NOWHERE else 1, ""), err
    sentence = one_sentence(err)
    assert words in sentence
    assert len(sentence) < 400
    assert names(tmp_path) == before
    assert (tmp_path / "taken.mkv").read_bytes() == b"mine"
    assert (tmp_path / "good.mkv").read_bytes() == clip.read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(tmp_path: Path, clip: Path, run: Run) -> None:
    code, _, err = run(clip, "-o", tmp_path / "a.mkv", "--device", "cuda")
    assert code == 1
    assert "there is no cuda: this PyTorch" in one_sentence(err)
    assert names(tmp_path) == set()


def test_may_not_be_read(
    tmp_path: Path, clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name == clip.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return whole(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    code, _, err = run(clip, "-o", tmp_path / "a.mkv")
    assert code == 1
    assert "may not be read" in one_sentence(err)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("at", ["in the middle", "at the end"])
def test_disk_full(
    tmp_path: Path, clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch, suffix: str, at: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = VideoWriter._open

    class Full:
        """The container, on a disk that fills up."""

        def __init__(self, real: Any) -> None:
            self.real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def mux(self, packet: Any) -> None:
            if at == "in the middle":
                full()
            self.real.mux(packet)

        def close(self) -> None:
            self.real.close()
            full()

    def opened(self: VideoWriter) -> None:
        whole(self)
        self._output = Full(self._output)  # type: ignore[assignment]

    monkeypatch.setattr(VideoWriter, "_open", opened)
    code, _, err = run(clip, "-o", tmp_path / f"a{suffix}", "--encoder", "mpeg4")
    assert code == 1
    assert "disk is full" in one_sentence(err)
    assert names(tmp_path) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_standard_output_full(clip: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = command(clip, "-o", "-", stdout=full)
    assert done.returncode == 1
    assert "disk is full" in one_sentence(done.stderr.decode())


USAGE: dict[str, list[str]] = {
    "unknown option": ["--sharpness", "9"],
    "crf and bitrate": ["--crf", "20", "--bitrate", "1M"],
    "crf is no number": ["--crf", "good"],
    "bitrate is no number": ["--bitrate", "much"],
    "bitrate of nothing": ["--bitrate", "0"],
    "batch of nothing": ["--batch", "0"],
    "batch is no number": ["--batch", "all"],
    "tile too small": ["--tile", "16"],
    "tile is no number": ["--tile", "big"],
    "negative strength": ["--strength", "-1"],
    "strength is no number": ["--strength", "nan"],
    "negative start": ["--start", "-3"],
    "start is no time": ["--start", "noon"],
    "start is no number": ["--start", "nan"],
    "length without an end": ["--duration", "inf"],
    "duration of nothing": ["--duration", "0"],
    "rate of nothing": ["--framerate", "0"],
    "rate is no number": ["--framerate", "1/0"],
    "precision": ["--precision", "fp4"],
    "crf beyond every scale": ["--crf", "999"],
    "crf beyond the encoder's scale": ["--encoder", "libx264", "--crf", "99"],
    "hardware decoder unheard of": ["--hwaccel", "cudda"],
    "halo of nothing": ["--halo", "-1"],
    "stage the network has not": ["--stage", "7"],
    "weights for a network without any": ["--weights", "x.pkl"],
    "rate of what is no image sequence": ["--framerate", "30"],
    "number of what is no image sequence": ["--start-number", "1"],
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage(tmp_path: Path, clip: Path, run: Run, name: str) -> None:
    code, out, err = run(clip, "-o", tmp_path / "a.mkv", *USAGE[name])
    assert (code, out) == (2, "")
    assert one_sentence(err).startswith("vdeblur")
    assert names(tmp_path) == set()


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path, run: Run) -> None:
    code, _, err = run("x" * 300 + ".mp4", "-o", tmp_path / "a.mkv")
    assert code == 1
    assert "File name too long" in one_sentence(err)


def test_a_film_of_unsound_results_is_not_called_done(
    tmp_path: Path, clip: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NetworkPass, "_tiled", lambda self, seen, tile: seen[:, :3] * 0 + 1)
    code, _, err = run(clip, "-o", tmp_path / "a.mkv", model=False)
    assert code == 3
    assert "6 frames are left as in the source" in err


def test_a_film_does_not_go_into_one_picture(tmp_path: Path, clip: Path, run: Run) -> None:
    code, _, err = run(clip, "-o", tmp_path / "one.png")
    assert code == 1
    assert "%05d" in one_sentence(err)
    assert names(tmp_path) == set()


def test_a_pipe_does_not_go_into_a_folder(tmp_path: Path, run: Run) -> None:
    code, _, err = run("-", "-o", f"{tmp_path / 'new'}/")
    assert code == 2
    assert "standard input has no name for a folder" in one_sentence(err)
    assert names(tmp_path) == set()


def test_several_inputs_into_a_folder_that_is_not_there(
    tmp_path: Path, clip: Path, run: Run
) -> None:
    other = tmp_path / "other.mkv"
    other.write_bytes(clip.read_bytes())
    code, _, err = run(clip, other, "-o", tmp_path / "new")
    assert code == 2
    assert f"-o {tmp_path / 'new'}/" in one_sentence(err)
    code, _, _ = run(clip, other, "-o", f"{tmp_path / 'new'}/")
    assert code == 0
    assert names(tmp_path / "new") == {"clip_deblurred.mkv", "other_deblurred.mkv"}


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    with pytest.raises(SystemExit, match="2"):
        cli.main(["deblur"])
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert f"vdeblur {vdeblur.__version__}" in capsys.readouterr().out


# --- damaged but readable ------------------------------------------------------------------------


def test_cut_off_matroska(tmp_path: Path, run: Run) -> None:
    frames = (picture(n) for n in range(25))
    source = write_frames(tmp_path / "a.mkv", frames)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    count = len(read_frames(source))
    assert 5 < count < 25
    code, _, err = run(source, "-o", tmp_path / "b.mkv")
    assert code == 3
    assert "damaged source" in err
    assert re.search(r"cut off: \d+ bytes that its headers state", err)
    assert len(read_frames(tmp_path / "b.mkv")) == count


def test_cut_off_mp4_with_its_index(tmp_path: Path, run: Run) -> None:
    source = make(tmp_path / "a.mp4", PLAIN)
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    code, _, err = run(source, "-o", tmp_path / "b.mp4")
    assert code == 3
    assert "damaged source" in err
    assert 5 < len(read_frames(tmp_path / "b.mp4")) < len(PLAIN.pts)


def test_damaged_packets(tmp_path: Path, run: Run) -> None:
    source = make(tmp_path / "a.mp4", PLAIN)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        places = [
            (p.pos, float(p.pts * p.time_base))
            for p in container.demux(video=0)
            if p.size and p.pts is not None
        ]
    for place, _ in places[10:14]:
        assert place
        data[place + 4 : place + 40] = b"\xff" * 36
    source.write_bytes(data)
    code, _, err = run(source, "-o", tmp_path / "b.mp4", "--quiet")
    assert code == 3
    assert "damaged source" in err
    said = [float(text) for text in re.findall(r"(\d+\.\d\d) s", err)]
    assert said
    assert all(places[9][1] < at < places[15][1] for at in said)
    assert len(read_frames(tmp_path / "b.mp4")) >= len(PLAIN.pts) - 4


def test_size_change(tmp_path: Path, run: Run) -> None:
    parts = [
        write_frames(
            tmp_path / f"{n}.ts", (scene(i, size=size) for i in range(6)), "mpeg2video", first=6 * n
        )
        for n, size in enumerate([(64, 48), (96, 64)])
    ]
    source = tmp_path / "a.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(source)) as container:
        times = [f.pts for f in container.decode(video=0)]
    code, _, err = run(source, "-o", tmp_path / "b.ts")
    assert code == 3
    assert re.search(r"64x48 to 96x64 at 0\.\d\d s", err)
    with av.open(str(tmp_path / "b.ts")) as container:
        frames = list(container.decode(video=0))
    assert [(f.width, f.height) for f in frames] == [(64, 48)] * len(times)
    assert [f.pts for f in frames] == times
    assert len(times) >= 11


# --- processes -----------------------------------------------------------------------------------


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-m", "vdeblur", "video", *map(str, arguments)]
    words += ["--model", "identity"]
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, timeout=60, **options)


@pytest.mark.parametrize("kind", ["y4m", "mkv", "nut", "mpegts", "mp4"])
def test_pipes(tmp_path: Path, kind: str) -> None:
    suffix, codec = {"mpegts": (".ts", "libx264"), "mp4": (".mp4", "libx264")}.get(
        kind, (f".{kind}", "rawvideo" if kind in ("y4m", "nut") else "ffv1")
    )
    source = tmp_path / f"a{suffix}"
    sound = kind in ("mpegts", "mp4")
    write_frames(source, (scene(n) for n in range(8)), codec, sound="aac" if sound else "")
    with source.open("rb") as file:
        done = command("-", "-o", "-", "--crf", "1", stdin=file)
    assert done.returncode == 0, done.stderr.decode()
    output = tmp_path / ("b.mkv" if kind == "mp4" else f"b{suffix}")
    output.write_bytes(done.stdout)
    ours, theirs = read_frames(output), read_frames(source)
    assert len(ours) == len(theirs) == 8
    # Matroska cannot hold the priming of AAC before 0: all of it comes later.
    later = ours[0][0] if kind == "mp4" else 0
    for (a, x), (b, y) in zip(ours, theirs, strict=True):
        assert abs(a - b - later) <= 0.001 if kind != "mpegts" else a == b
        if codec != "libx264":
            assert all(map(np.array_equal, x, y))
        else:
            assert abs(x[0].mean() - y[0].mean()) < 0.5
    with av.open(str(output)) as container:
        assert len(container.streams.audio) == int(sound)


def test_chapters_through_a_pipe_are_not_said_to_be_lost(tmp_path: Path) -> None:
    source = ROOT / "samples" / "street_blurred.mp4"
    with source.open("rb") as file:
        done = command("-", "-o", tmp_path / "a.mkv", "--duration", "0.2", "--quiet", stdin=file)
    assert (done.returncode, done.stderr.decode()) == (
        0,
        "  not kept: chapters: they belong to the whole video, and a part was asked for\n",
    )


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """Something to do for a while."""
    path = tmp_path / "long.y4m"
    noise = np.random.default_rng(0)
    frames = [noise.bytes(320 * 240 * 3 // 2) for _ in range(8)]
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W320 H240 F25:1 C420jpeg\n")
        for n in range(160):
            file.write(b"FRAME\n" + frames[n % 8])
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_signals(long: Path, number: str, code: int) -> None:
    folder = long.parent
    words = [sys.executable, "-m", "vdeblur", "video", str(long), "-o", str(folder / "out.mkv")]
    words += ["--model", "identity", "--encoder", "libx264", "--preset", "placebo"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        give_up = time.monotonic() + 40
        while not list(folder.glob(".vdeblur-*")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up
            time.sleep(0.05)
        time.sleep(0.7)
        begin = time.monotonic()
        os.kill(process.pid, getattr(signal, number))
        _, err = process.communicate(timeout=20)
        took = time.monotonic() - begin
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert took < 10  # the film would take minutes
    assert not (folder / "out.mkv").exists()
    if number != "SIGKILL":
        assert b"Traceback" not in err
        assert b"stopped" in err
        assert names(folder) == {"long.y4m"}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_stopped_while_it_waits_for_a_pipe(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "vdeblur", "video", "-", "-o", str(tmp_path / "out.mkv")]
    process = subprocess.Popen(
        [*words, "--model", "identity"], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        frame = b"FRAME\n" + bytes(64 * 48 * 3 // 2)
        process.stdin.write(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + frame * 200)
        process.stdin.flush()
        give_up = time.monotonic() + 40
        while not list(tmp_path.iterdir()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up
            time.sleep(0.05)
        time.sleep(0.3)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        while process.poll() is None and time.monotonic() < begin + 10:
            time.sleep(0.05)
        took = time.monotonic() - begin
        assert process.returncode == 130
        assert took < 10  # the film would take minutes
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert b"Traceback" not in err
    assert list(tmp_path.iterdir()) == []
