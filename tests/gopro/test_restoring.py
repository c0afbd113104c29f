"""Recordings restored: all kept, cards done again after a fall."""

from __future__ import annotations

import json
import os
import runpy
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import pytest

from tests.helpers.clips import PLAIN, failed, make
from tests.helpers.gopro_clips import Footage, footage, packets, read_moov, samples, udta
from vdeblur import gopro
from vdeblur.errors import OutputError
from vdeblur.gopro import recordings
from vdeblur.gopro.journal import JOURNAL
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    read_tracks,
    shift_chunks,
)
from vdeblur.media.verify import CHECKS, verify

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / ".." / "shared" / "media"

Run = Callable[..., tuple[int, str, str]]


def test_verify_takes_the_chapters(three: Footage, joined: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("verify", *three.chapters, joined)
    assert code == 0, out
    assert f"all {len(CHECKS)} checks passed" in out
    code, out, _ = run("verify", *three.chapters[:2], joined)
    assert code == 1
    assert "FAIL  frame count" in out
    damaged = tmp_path / "damaged.MP4"
    damaged.write_bytes(joined.read_bytes().replace(b"LAE61011", b"LAE61012"))
    assert failed(verify(gopro.join(three.chapters), damaged)) == {"maker boxes"}


@pytest.mark.parametrize(
    "layout", ["moov first", "co64", "unknown box", "mdat of 64 bits", "beyond 4 GiB"]
)
def test_other_layouts_of_a_chapter(tmp_path: Path, layout: str) -> None:
    made = footage(tmp_path / "a", ("GX010001.MP4", "GX020001.MP4"), frames=4)
    before = [samples(path, "gpmd") for path in made.chapters]
    for path in made.chapters:
        data, moov = path.read_bytes(), read_moov(path)
        at = data.rindex(b"moov") - 4
        if layout == "moov first":
            grown = boxes.build(b"moov", shift_chunks(moov, 0, len(moov) + 8, wide=False))
            data = data[:20] + grown + data[20:at]
        elif layout == "co64":
            data = data[:at] + boxes.build(b"moov", shift_chunks(moov, 0, 0, wide=True))
            assert b"co64" in data
        elif layout == "unknown box":
            box = boxes.build(b"uuid", bytes(range(40)))
            data = data[:20] + box + data[20:at]
            data += boxes.build(b"moov", shift_chunks(moov, 0, len(box), wide=False))
        elif layout == "beyond 4 GiB":
            hole = 5 << 30
            mdat = data.index(b"mdat") - 4
            size = int.from_bytes(data[mdat : mdat + 4], "big") + 8 + hole
            with path.open("wb") as file:  # sparse: it takes no more room than before
                file.write(data[:mdat] + struct.pack(">I4sQ", 1, b"mdat", size))
                file.seek(hole, os.SEEK_CUR)
                file.write(data[mdat + 8 : at])
                grown = shift_chunks(moov, mdat + 8, 8 + hole, wide=True)
                file.write(boxes.build(b"moov", grown))
            continue
        else:
            mdat = data.index(b"mdat") - 4
            size = int.from_bytes(data[mdat : mdat + 4], "big") + 8
            header = struct.pack(">I4sQ", 1, b"mdat", size)
            data = data[:mdat] + header + data[mdat + 8 : at]
            data += boxes.build(b"moov", shift_chunks(moov, mdat + 8, 8, wide=False))
        path.write_bytes(data)
    assert [samples(path, "gpmd") for path in made.chapters] == before
    (job,) = gopro.jobs(gopro.find_recordings([tmp_path / "a"]))
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.differences) == (8, [])
    assert boxes.moov_first(job.output) == (layout == "moov first")
    kept = {k: v for k, v in udta(made.chapters[0]).items() if k != b"free"}
    assert {k: v for k, v in udta(job.output).items() if k != b"free"} == kept
    assert b"GoPro TCD" in read_moov(job.output)
    assert samples(job.output, "gpmd") == before[0] + before[1]
    assert packets(job.output, "audio") == packets(made.whole, "audio")
    if layout == "unknown box":
        assert bytes(range(40)) in job.output.read_bytes()


def test_two_pictures_in_one_file(tmp_path: Path) -> None:
    # As the MAX records its two lenses.
    for name in ("GS010001.360", "GS020001.360"):
        (tmp_path / name).write_bytes(
            make(tmp_path / "lenses.mp4", replace(PLAIN, second_video=True)).read_bytes()
        )
    (job,) = gopro.jobs(gopro.find_recordings([tmp_path]))
    assert job.output.name == "GS010001_deblurred.360"
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.differences) == (96, [])
    assert [t.sample_count for t in read_tracks(job.output)] == [48, 48]
    assert gopro.finished(job)


def test_hevc_of_10_bits(tmp_path: Path) -> None:
    made = footage(
        tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=4, codec="libx265",
        pix_fmt="yuv420p10le",
    )  # fmt: skip
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])])
    report = gopro.restore(job, model="identity")
    assert report.differences == report.lost == []
    with av.open(str(job.output)) as container:
        video = container.streams.video[0]
        frame = next(container.decode(video=0))
        assert (video.codec_context.codec_tag, frame.format.name) == ("hvc1", "yuv420p10le")
        assert int(frame.color_range) == 2
    assert samples(job.output, "gpmd") == [s for c in made.chapters for s in samples(c, "gpmd")]


def test_a_missing_chapter_is_named(three: Footage, tmp_path: Path, run: Run) -> None:
    for number in (0, 2):
        (tmp_path / three.chapters[number].name).write_bytes(three.chapters[number].read_bytes())
    code, _, err = run("gopro", tmp_path / "GX030042.MP4", "--model", "identity")
    assert code == 1
    assert "chapter GX020042.MP4 of" in err
    assert "--allow-missing" in err
    assert not list(tmp_path.glob("*_deblurred*"))
    code, _, err = run("gopro", tmp_path / "GX030042.MP4", "--model", "identity", "--allow-missing")
    assert code == 0, err
    assert "GX020042.MP4 is missing: the film jumps over it" in err
    assert "the time code of GX030042.MP4 is 36 frames ahead of the recording's" in err
    output = tmp_path / "GX010042_deblurred.MP4"
    assert len(packets(output, "video")) == 72
    starts = [float(t) for t, _, _ in packets(output, "bin_data")]
    assert starts[2] == pytest.approx(36 * 1001 / 30000, abs=0.0006)


def test_chapters_kept_apart(three: Footage, tmp_path: Path, run: Run) -> None:
    code, _, err = run(
        "gopro", three.chapters[2], "-o", tmp_path, "--keep-chapters", "--model", "identity"
    )
    assert code == 0, err
    for chapter in three.chapters:
        output = tmp_path / f"{chapter.stem}_deblurred.MP4"
        assert udta(output) == udta(chapter)
        assert samples(output, "tmcd") == samples(chapter, "tmcd")
        assert not failed(verify(chapter, output))


# --- damage -------------------------------------------------------------------------------------


def test_a_damaged_chapter_costs_only_itself(three: Footage, tmp_path: Path, run: Run) -> None:
    for chapter in three.chapters:
        data = chapter.read_bytes()
        lost = chapter is three.chapters[1]
        (tmp_path / chapter.name).write_bytes(data[: len(data) // 2] if lost else data)
    code, _, err = run("gopro", tmp_path / "GX010042.MP4", "--model", "identity")
    assert code == 3
    assert "damaged source" in err
    assert "GX020042.MP4 is damaged: there is no moov box: left out" in err
    output = tmp_path / "GX010042_deblurred.MP4"
    assert len(packets(output, "video")) == 72
    assert len(samples(output, "gpmd")) == 4
    code, _, err = run("gopro", tmp_path / "GX010042.MP4", "--model", "identity")
    assert (code, "finished already" in err) == (0, True)


# --- a card -------------------------------------------------------------------------------------


def test_a_card_is_gone_on_with_after_a_kill(tmp_path: Path, run: Run) -> None:
    one = footage(tmp_path / "one", ("GX010001.MP4",), frames=4).chapters[0].read_bytes()
    card, out = tmp_path / "DCIM" / "100GOPRO", tmp_path / "out"
    card.mkdir(parents=True)
    for number in range(1, 21):
        (card / f"GX01{number:04}.MP4").write_bytes(one)
    (card / "GX010007.MP4").write_bytes(one[: len(one) // 2])
    words = [sys.executable, "-m", "vdeblur", "gopro", str(tmp_path / "DCIM"), "-o", str(out)]
    words += ["--model", "identity", "--encoder", "libx264", "--preset", "ultrafast"]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while len(list(out.glob("GX*.MP4"))) < 3 and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat() for path in out.glob("GX*.MP4")}
    assert 3 <= len(done) < 20
    left = out / ".vdeblur-0123456789abcdef.MP4"
    left.write_bytes(one[:100])  # what a kill in the middle of the last one would leave
    code, _, err = run("gopro", tmp_path / "DCIM", "-o", out, *words[-6:])
    assert code == 1  # the seventh cannot be read, which is said, and stops nothing
    assert err.count("vdeblur: ") == 1
    assert "GX010007.MP4" in err
    assert len(list(out.glob("GX*.MP4"))) == 19
    for name, stat in done.items():
        now = (out / name).stat()
        assert (now.st_ino, now.st_size) == (stat.st_ino, stat.st_size)
    names = {path.name for path in out.iterdir()}
    assert names == {f"GX01{n:04}_deblurred.MP4" for n in range(1, 21) if n != 7} | {JOURNAL}
    assert all(
        not failed(verify(card / "GX010020.MP4", path, quick=True)) for path in out.glob("GX*")
    )


def test_what_is_finished_cannot_be_feigned(tmp_path: Path, run: Run) -> None:
    made = footage(tmp_path / "a", ("GX010001.MP4",), frames=6)
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])])
    assert not gopro.finished(job)
    job.output.write_bytes(made.chapters[0].read_bytes())
    assert not gopro.finished(job)  # a copy of the source
    code, _, err = run("gopro", made.chapters[0], "--model", "identity")
    assert code == 1
    assert "is no whole copy of this recording: use --force" in err
    code, _, err = run("gopro", made.chapters[0], "--model", "identity", "--force")
    assert code == 0
    assert gopro.finished(job)
    journal = job.output.parent / JOURNAL
    assert json.loads(journal.read_text())[job.output.name]["chapters"][0][0] == "GX010001.MP4"
    journal.unlink()
    assert gopro.finished(job)  # by the indexes
    whole = job.output.read_bytes()
    moov = whole.rindex(b"moov") - 4
    first = shift_chunks(whole[moov + 8 :], 0, len(whole) - moov, wide=False)
    data = whole[:20] + boxes.build(b"moov", first) + whole[20:moov]
    job.output.write_bytes(data)
    assert gopro.finished(job)
    job.output.write_bytes(data[:-50])  # cut off in copying
    assert not gopro.finished(job)
    job.output.write_bytes(whole)
    assert gopro.finished(job)
    other = footage(tmp_path / "b", ("GX010001.MP4",), frames=7)
    other.chapters[0].replace(made.chapters[0])  # another recording by that name
    assert not gopro.finished(job)


def test_names_that_cannot_be(tmp_path: Path, run: Run) -> None:
    code, _, err = run("gopro", tmp_path / "GX010001.MP4")
    assert (code, "does not exist" in err) == (1, True)
    code, _, err = run("gopro", tmp_path)
    assert (code, "no GoPro footage" in err) == (1, True)
    for name in ("GX010001.MP4", "GX010002.MP4"):
        (tmp_path / name).write_bytes(b"nothing")
    code, _, err = run("gopro", tmp_path, "-o", tmp_path / "out.mp4")
    assert (code, "2 recordings and one output" in err) == (2, True)
    code, _, err = run("gopro", tmp_path, "--crf", "3", "--bitrate", "3M")
    assert code == 2
    code, _, err = run("gopro", tmp_path, "--only-blurred", "-3")
    assert code == 2
    code, _, err = run("gopro", tmp_path, "--model", "identity")
    assert (code, err.count("vdeblur: ")) == (1, 2)
    with pytest.raises(OutputError, match="several recordings"):
        gopro.jobs(
            [recordings.Recording((tmp_path / n,)) for n in ("a.MP4", "a.MP4")], folder=tmp_path
        )


# --- the real thing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["karma.mp4", "max-heromode.mp4"])
def test_real_recordings_keep_everything(name: str, tmp_path: Path) -> None:
    source = MEDIA / name
    if not source.exists():
        pytest.skip("the GoPro samples are not here")
    (job,) = gopro.jobs([gopro.recording_of(source)], folder=tmp_path)
    from vdeblur.media.encoders import EncodeOptions

    report = gopro.restore(
        job, gopro.RestoreOptions(encode=EncodeOptions(preset="ultrafast")), model="identity"
    )
    assert report.differences == report.lost == report.damage == []
    assert boxes.get(read_moov(job.output), b"udta") == boxes.get(read_moov(source), b"udta")
    for fourcc in ("mp4a", "tmcd", "gpmd", "fdsc"):
        assert samples(job.output, fourcc) == samples(source, fourcc)
    assert packets(job.output, "audio") == packets(source, "audio")
    assert packets(job.output, "bin_data") == packets(source, "bin_data")
    parser = pytest.importorskip("telemetry_parser")
    ours, theirs = (parser.Parser(str(path)) for path in (job.output, source))
    assert ours.telemetry() == theirs.telemetry()
    assert ours.normalized_imu() == theirs.normalized_imu()
    assert (ours.camera, ours.model) == (theirs.camera, theirs.model)


def test_the_pipeline_does_the_same(
    three: Footage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    program = ROOT / "pipelines" / "restore_gopro.py"
    words = [str(three.chapters[1].parent), str(tmp_path), "--model", "identity"]
    monkeypatch.setattr(sys, "argv", [str(program), *words])
    runpy.run_path(str(program), run_name="__main__")
    said = capfd.readouterr().out
    assert "GX010042.MP4 + GX020042.MP4 + GX030042.MP4 ->" in said
    assert "108 of 108 frames restored" in said
    assert not failed(verify(gopro.join(three.chapters), tmp_path / "GX010042_deblurred.MP4"))
