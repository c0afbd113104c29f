"""A GoPro's recordings: chapters found and joined, all kept, cards done again after a fall."""

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
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers.clips import PLAIN, failed, make
from tests.helpers.gopro_clips import Footage, footage, read_moov
from vdeblur import gopro
from vdeblur.cli import main as cli
from vdeblur.errors import InputError, OutputError
from vdeblur.gopro import recordings
from vdeblur.gopro.highlights import read_highlights
from vdeblur.gopro.journal import JOURNAL
from vdeblur.gopro.restoring import remove_leftovers
from vdeblur.media.joined_file import Joined
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.tracks import (
    chunk_extents,
    get_trak,
    read_tracks,
    sample_sizes,
    shift_chunks,
)
from vdeblur.media.reader import VideoReader
from vdeblur.media.verify import verify

ROOT = Path(__file__).parents[2]
MEDIA = ROOT / ".." / "shared" / "media"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`vdeblur COMMAND ARGUMENTS`: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = cli.main([str(word) for word in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """A recording in three chapters, with highlights in the first and the second."""
    folder = tmp_path_factory.mktemp("three") / "100GOPRO"
    return footage(folder, frames=36, marks=[[100, 900], [50], []], overlong=True)


@pytest.fixture(scope="module")
def joined(three: Footage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `vdeblur gopro` makes of it."""
    (job,) = gopro.jobs(
        [gopro.recording_of(three.chapters[1])], folder=tmp_path_factory.mktemp("joined")
    )
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.lost, report.damage, report.differences) == (108, [], [], [])
    return job.output


def packets(path: Path, kind: str) -> list[tuple[Fraction, Fraction, bytes]]:
    """(time, duration, data) of the packets of the picture, sound or telemetry ("bin_data")."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if kind in (s.type, s.name) and s.name)
        base = Fraction(stream.time_base or 1)
        return [
            (p.pts * base, (p.duration or 0) * base, bytes(p))
            for p in container.demux(stream)
            if p.size and p.pts is not None
        ]


def sound(path: Path) -> Any:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)


def samples(path: Path, fourcc: str) -> list[bytes]:
    """The samples of a track, straight from the file's own tables."""
    track = next(t for t in read_tracks(path) if t.fourcc == fourcc)
    with path.open("rb") as file:
        moov = boxes.read_moov(file)[1]
        stbl = boxes.get(get_trak(moov, track.index), b"mdia", b"minf", b"stbl") or b""
        sizes, count = sample_sizes(stbl)
        each = [int(s) for s in np.broadcast_to(np.asarray(sizes), (count,))]
        data = b""
        for at, length in chunk_extents(file, moov, track.index).tolist():
            file.seek(at)
            data += file.read(length)
    ends = np.cumsum(each).tolist()
    return [data[end - size : end] for end, size in zip(ends, each, strict=True)]


def udta(path: Path) -> dict[bytes, bytes]:
    return dict(boxes.children(boxes.get(read_moov(path), b"udta") or b""))


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["GX010042.MP4", "GX020042.MP4", "GX030042.MP4"], []),
        (["GH010007.MP4", "GH030007.MP4"], ["GH020007.MP4"]),
        (["GX020042.MP4"], ["GX010042.MP4"]),
        (["GL010042.MP4", "GL020042.MP4"], []),
        (["GS010001.360", "GS020001.360"], []),
        (["GOPR0042.MP4", "GP010042.MP4", "GP020042.MP4"], []),
        (["GOPR0042.MP4", "GP020042.MP4"], ["GP010042.MP4"]),
        (["GPFR0003.MP4", "GF010003.MP4"], []),
        (["GXAA0011.MP4", "GXAA0012.MP4", "GXAA0013.MP4"], []),
        (["G0010005.MP4", "G0010006.MP4"], []),
        (["gx010042.mp4", "gx020042.mp4"], []),
    ],
)
def test_finds_the_chapters_from_any_of_them(
    tmp_path: Path, names: list[str], missing: list[str]
) -> None:
    beside = ["GX010042.THM", "GL010042.LRV", "GOPR0042.JPG", "G0010001.JPG", "GX010099.MP4"]
    for name in {*names, *beside, "holiday.MP4", "GOPR0099.WAV"}:
        (tmp_path / name).touch()
    for name in names:
        found = gopro.recording_of(tmp_path / name)
        assert [path.name for path in found.chapters] == names
        assert list(found.missing) == missing


def test_a_card_is_searched_to_the_bottom(tmp_path: Path) -> None:
    for name in (
        "DCIM/100GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX020001.MP4", "DCIM/100GOPRO/GX010002.MP4",
        "DCIM/101GOPRO/GX010001.MP4", "DCIM/100GOPRO/GX010001.LRV", "DCIM/100GOPRO/GX010003.JPG",
        "DCIM/100GOPRO/GX010002_deblurred.MP4", "DCIM/100GOPRO/.GX010009.MP4", "MISC/version.txt",
        "DCIM/100GOPRO/GXAA0001.MP4", "DCIM/100GOPRO/GXAA0002.MP4", "DCIM/100GOPRO/GXAA0007.MP4",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = gopro.find_recordings([tmp_path, tmp_path / "DCIM/100GOPRO/GX020001.MP4"])
    assert [[p.name for p in r.chapters] for r in found] == [
        ["GX010001.MP4", "GX020001.MP4"],
        ["GX010002.MP4"],
        ["GXAA0001.MP4", "GXAA0002.MP4"],
        ["GXAA0007.MP4"],  # another loop: the camera numbers on
        ["GX010001.MP4"],
    ]
    out = tmp_path / "out"
    assert [str(job.output.relative_to(out)) for job in gopro.jobs(found, folder=out)] == [
        "100GOPRO/GX010001_deblurred.MP4",
        "GX010002_deblurred.MP4",
        "GXAA0001_deblurred.MP4",
        "GXAA0007_deblurred.MP4",
        "101GOPRO/GX010001_deblurred.MP4",
    ]
    assert len(gopro.jobs(found, keep_chapters=True)) == 7
    with pytest.raises(InputError, match="no GoPro footage"):
        gopro.find_recordings([tmp_path / "MISC"])
    with pytest.raises(InputError, match="does not exist"):
        gopro.find_recordings([tmp_path / "GX010077.MP4"])
    assert recordings.read_name(Path("ride.mp4")) is None


# --- joining ------------------------------------------------------------------------------------


def test_chapters_join_without_a_seam(three: Footage, joined: Path) -> None:
    source = gopro.join(three.chapters)
    # Picture: every frame of the uncut recording, once, at its time.
    with VideoReader(source) as reader, VideoReader(three.whole) as whole:
        pairs = list(zip(reader, whole, strict=True))
        assert len(pairs) == 108
        for ours, theirs in pairs:
            assert ours.time_seconds == theirs.time_seconds
            assert all(map(np.array_equal, ours.planes, theirs.planes))
    shown = sorted(at for at, _, _ in packets(joined, "video"))
    assert shown == [n * Fraction(1001, 30000) for n in range(108)]
    # Sound: the very packets, and after decoding the very samples, of the uncut recording.
    assert packets(joined, "audio") == packets(three.whole, "audio")
    assert np.array_equal(sound(joined), sound(three.whole))
    # Telemetry: each chapter's begins with its picture.
    times = [float(t) for t, _, _ in packets(joined, "bin_data")]
    starts = [36 * n * 1001 / 30000 for n in range(3)]
    expected = [start + offset for start in starts for offset in (0, 1.001)]
    assert times == pytest.approx(expected, abs=0.0006)  # a tick of that track is 1 ms
    for fourcc in ("gpmd", "fdsc"):
        assert samples(joined, fourcc) == [
            data for chapter in three.chapters for data in samples(chapter, fourcc)
        ]
    assert [t.fourcc for t in read_tracks(joined)] == ["avc1", "mp4a", "tmcd", "gpmd", "fdsc"]
    with av.open(str(joined)) as container:
        assert container.streams.video[0].metadata["timecode"] == "10:00:00;00"
    parser = pytest.importorskip("telemetry_parser")
    said = [parser.Parser(str(path)).telemetry() for path in (joined, *three.chapters)]
    # The first packet of each file is its moov/udta/GPMF.
    assert said[0][1:] == [packet for chapter in said[1:] for packet in chapter[1:]]


def test_the_camera_s_boxes_stay(three: Footage, joined: Path) -> None:
    first, after = udta(three.chapters[0]), udta(joined)
    assert list(first) == list(after)
    changed = {kind for kind in first if first[kind] != after[kind]}
    assert changed == {b"HMMT", b"GPMF"}
    chapter = 36 * 1001 / 30
    shifted = [100, 900, round(chapter + 50)]
    assert read_highlights(after[b"HMMT"]) == shifted
    assert len(after[b"HMMT"]) == len(first[b"HMMT"])
    # GPMF's own: the time lies 16 bytes before the kind, as readers of HiLight tags expect it.
    found, gpmf = [], after[b"GPMF"]
    at = gpmf.find(b"MANL")
    while at >= 0:
        found.append(struct.unpack_from(">I", gpmf, at - 16)[0])
        at = gpmf.find(b"MANL", at + 4)
    assert found == shifted
    assert joined.name == "GX010042_deblurred.MP4"
    assert joined.stat().st_mtime_ns == three.chapters[0].stat().st_mtime_ns
    brand = three.chapters[0].read_bytes()[:20]
    assert joined.read_bytes()[:20] == brand
    moov = read_moov(joined)
    names = [
        (boxes.get(get_trak(moov, n), b"mdia", b"hdlr") or b"")[25:34].decode() for n in range(5)
    ]
    assert names == ["GoPro AVC", "GoPro AAC", "GoPro TCD", "GoPro MET", "GoPro SOS"]
    assert boxes.get(moov, b"iods") == bytes(16)


def test_verify_takes_the_chapters(three: Footage, joined: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("verify", *three.chapters, joined)
    assert code == 0, out
    assert "all 40 checks passed" in out
    code, out, _ = run("verify", *three.chapters[:2], joined)
    assert code == 1
    assert "FAIL  frame count" in out
    damaged = tmp_path / "damaged.MP4"
    damaged.write_bytes(joined.read_bytes().replace(b"LAE61011", b"LAE61012"))
    assert failed(verify(gopro.join(three.chapters), damaged)) == {"maker boxes"}


def test_a_joined_file_reads_like_one(three: Footage) -> None:
    source = gopro.join(three.chapters)
    assert isinstance(source, Joined)
    assert source == three.chapters[0]
    assert type(source.parent) is not Joined or not hasattr(source.parent, "contents")
    with source.open("rb") as file:
        whole = file.read()
        assert whole[:4] == three.chapters[0].read_bytes()[:4]
        assert file.seek(0, os.SEEK_END) == len(whole)
        for at, count in ((10, 30), (len(whole) - 5, 50), (len(whole) // 2, 70_000)):
            file.seek(at)
            assert file.read(count) == whole[at : at + count]
    assert gopro.join(three.chapters[:1]) is three.chapters[0]


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


def test_reordered_frames_join(tmp_path: Path) -> None:
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=12, reordered=2)
    source = gopro.join(made.chapters)
    with VideoReader(source) as reader, VideoReader(made.whole) as whole:
        for ours, theirs in zip(reader, whole, strict=True):
            assert ours.time_seconds == theirs.time_seconds
            assert all(map(np.array_equal, ours.planes, theirs.planes))
    (job,) = gopro.jobs([gopro.recording_of(made.chapters[0])])
    report = gopro.restore(job, model="identity")
    assert (report.frames, report.differences) == (24, [])
    assert packets(job.output, "audio") == packets(made.whole, "audio")


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


def test_chapters_that_do_not_fit(tmp_path: Path) -> None:
    footage(tmp_path, ("GX010001.MP4",), frames=4)
    footage(tmp_path / "b", ("GX020001.MP4",), frames=4, size=(64, 64))
    (tmp_path / "b" / "GX020001.MP4").rename(tmp_path / "GX020001.MP4")
    with pytest.raises(InputError, match=r"GX020001.MP4 is coded otherwise.*--keep-chapters"):
        gopro.join(sorted(tmp_path.glob("GX*.MP4")))


def test_sound_that_is_not_as_long_as_its_picture(tmp_path: Path) -> None:
    # Less than a packet off: the sound goes on without a gap. More: it begins with the picture.
    lengths = [np.full(4, 1024), np.full(4, 1024), np.full(4, 1024)]
    from vdeblur.media.mp4.join import _aligned

    assert _aligned(lengths, [0, 4000, 8200], follows=True).tolist() == [1024] * 12
    late = _aligned(lengths, [0, 6000, 10_096], follows=True)
    assert late.tolist() == [1024] * 3 + [2928] + [1024] * 8
    early = _aligned(lengths, [0, 2000, 6000], follows=False)
    assert early.tolist() == [1024, 976, 0, 0, 1024, 1024, 1024, 928, *[1024] * 4]


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


def test_a_cut_off_chapter_keeps_what_it_has(tmp_path: Path) -> None:
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=30)
    path = made.chapters[0]
    data, moov = path.read_bytes(), read_moov(path)
    at = data.rindex(b"moov") - 4
    data = (
        data[:20]
        + boxes.build(b"moov", shift_chunks(moov, 0, len(moov) + 8, wide=False))
        + data[20:at]
    )
    path.write_bytes(data[: len(data) * 2 // 3])
    source = gopro.join(made.chapters)
    assert isinstance(source, Joined)
    assert len(source.damage) == 1
    assert "frames of 30 are not there" in source.damage[0]
    with VideoReader(source) as reader:
        times = [frame.time_seconds for frame in reader]
        assert not reader.damage.notes
    assert 31 < len(times) < 60
    assert np.allclose(np.diff(times), 1001 / 30000)


def test_a_bad_sector_costs_what_lies_in_it(
    three: Footage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = gopro.join(three.chapters)
    assert isinstance(source, Joined)
    opened = Path.open

    class Bad:
        def __init__(self, file: Any) -> None:
            self.file = file

        def seek(self, at: int) -> int:
            self.at = at
            return int(self.file.seek(at))

        def readinto(self, view: memoryview) -> int:
            if self.at < 2_000 < self.at + len(view):
                raise OSError(5, "Input/output error")
            return int(self.file.readinto(view))

        def close(self) -> None:
            self.file.close()

    def bad(path: Path, *arguments: Any, **options: Any) -> Any:
        file = opened(path, *arguments, **options)
        return Bad(file) if path.name == "GX020042.MP4" else file

    monkeypatch.setattr(Path, "open", bad)
    with VideoReader(source) as reader:
        count = sum(1 for _ in reader)
    assert 0 < count <= 108
    assert source.damage == ["GX020042.MP4 cannot be read everywhere (Input/output error)"]


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
    left = out / f".GX010020_deblurred.{process.pid}.part.MP4"
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


def test_leftovers_of_the_living_stay(tmp_path: Path) -> None:
    output = tmp_path / "GX010001_deblurred.MP4"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    names = {
        f".GX010001_deblurred.{dead}.part.MP4": False,
        f".GX010001_deblurred.{dead}.part.MP4.graft": False,
        f".GX010001_deblurred.{os.getpid()}.part.MP4": True,
        f".GX010001_deblurred.{os.getppid()}.part.MP4": True,
        f".GX010002_deblurred.{dead}.part.MP4": True,
        "GX010001_deblurred.MP4": True,
    }
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(output)
    assert {name: (tmp_path / name).exists() for name in names} == names


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


def test_bit_rates_are_no_other_coding(tmp_path: Path) -> None:
    # Encoders write the bit rate that they had into esds, and each chapter has had its own.
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=4)
    path = made.chapters[1]
    data = bytearray(path.read_bytes())
    at = data.index(b"esds")
    config = data.index(b"\x04\x80\x80\x80", at) + 5  # behind the descriptor's tag and length
    data[config + 5 : config + 13] = struct.pack(">2I", 250_000, 190_000)
    path.write_bytes(data)
    assert isinstance(gopro.join(made.chapters), Joined)
    data[config] ^= 1  # the kind of coding
    path.write_bytes(data)
    with pytest.raises(InputError, match="coded otherwise"):
        gopro.join(made.chapters)


def test_a_dressed_file_has_nothing_behind_its_index(joined: Path) -> None:
    with joined.open("rb") as file:
        found = list(boxes.top_level_boxes(file))
    assert [box.kind for box in found][-1] == b"moov"
    assert found[-1].end == joined.stat().st_size


def test_random_damage_ends_in_one_sentence(tmp_path: Path) -> None:
    # Every byte of an index may be wrong: no other error, no endless loop, no huge allocation.
    random = np.random.default_rng(3)
    made = footage(tmp_path, ("GX010001.MP4", "GX020001.MP4"), frames=3)
    path = made.chapters[1]
    good = path.read_bytes()
    begin, joins = good.rindex(b"moov"), 0
    for _ in range(250):
        data = np.frombuffer(good, np.uint8).copy()
        places = random.integers(begin, len(data), random.integers(1, 5))
        data[places] = random.choice([0, 1, 2, 127, 128, 255], len(places))
        path.write_bytes(data.tobytes())
        try:
            source = gopro.join(made.chapters)
        except InputError:
            continue
        assert isinstance(source, Joined)
        joins += 1
        assert read_tracks(source)[0].sample_count in range(3, 7)
    assert joins > 50
