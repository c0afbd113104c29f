"""Boxes on files that libav writes, on files bent by hand, and on damaged ones."""

from __future__ import annotations

import hashlib
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.packet import Packet

from vdeblur import deblur_video, verify
from vdeblur.errors import InputError, OutputError
from vdeblur.media.mp4 import boxes
from vdeblur.media.mp4.graft import _tkhd_duration, graft
from vdeblur.media.mp4.tracks import (
    get_trak,
    read_maker_boxes,
    read_tracks,
    sample_times,
    shift_chunks,
    timescale_and_duration,
    track_digest,
)

MEDIA = Path(__file__).resolve().parents[2] / ".." / "shared" / "media"
GOPRO = {
    "karma.mp4": ["FIRM", "LENS", "CAME", "SETT", "AMBA", "MUID", "HMMT", "BCID", "GUMI"],
    "max-heromode.mp4": [
        "©xyz",
        "FIRM",
        "LENS",
        "CAME",
        "SETT",
        "MUID",
        "HMMT",
        "BCID",
        "GUMI",
        "GPMF",
    ],
}


def make(path: Path, *, data: bool = False, options: dict[str, str] | None = None) -> Path:
    """A small mp4 with video, and with a GoPro telemetry track if asked for."""
    with av.open(str(path), "w", container_options=options or {}) as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        telemetry = container.add_data_stream("bin_data") if data else None
        if telemetry is not None:
            telemetry.time_base = Fraction(1, 1000)
        for number in range(10):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for plane in frame.planes:
                plane.update(bytes([16 * number]) * plane.buffer_size)
            container.mux(video.encode(frame))
            if telemetry is not None:
                packet = Packet(f"DEVC{number:04}".encode() * (number + 1))
                packet.stream, packet.time_base = telemetry, Fraction(1, 1000)
                packet.pts = packet.dts = number * 40
                packet.duration = 40
                container.mux(packet)
        container.mux(video.encode(None))
    return path


def camera(path: Path) -> Path:
    """What a camera writes and libav does not: an `fdsc` track without a codec, maker boxes."""
    make(path, data=True)
    change(path, b"gpmd", b"fdsc")
    moov = read_moov(path)
    udta = boxes.build_all(
        [(b"FIRM", b"HD1.0"), (b"\xa9mod", b"\0\4\x15\xc7Hero"), (b"free", b"--")]
    )
    reference = boxes.build_all([(b"cdsc", struct.pack(">I", 1)), (b"hint", struct.pack(">I", 9))])
    atoms = boxes.children(moov)
    at = max(n for n, (kind, _) in enumerate(atoms) if kind == b"trak")
    atoms[at] = (b"trak", atoms[at][1] + boxes.build(b"tref", reference))
    atoms = [atom for atom in atoms if atom[0] != b"udta"] + [(b"udta", udta + bytes(4))]
    write_moov(path, boxes.build_all(atoms))
    return path


def read_moov(path: Path) -> bytes:
    with path.open("rb") as file:
        return boxes.read_moov(file)[1]


def write_moov(path: Path, moov: bytes) -> None:
    """Replaces a moov that is the last box."""
    with path.open("r+b") as file:
        box, _ = boxes.read_moov(file)
        file.seek(box.start)
        file.write(boxes.build(b"moov", moov))
        file.truncate()


def change(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def packets(path: Path, stream: int = 0) -> list[tuple[object, ...]]:
    with av.open(str(path)) as container:
        return [
            (p.pts, p.dts, p.duration, hashlib.sha256(bytes(p)).digest())
            for p in container.demux(container.streams[stream])
            if p.size
        ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return camera(tmp_path / "camera.mp4")


def test_looks_at_a_file(tmp_path: Path, source: Path) -> None:
    fast = make(tmp_path / "fast.mp4", options={"movflags": "+faststart"})
    other = tmp_path / "text.txt"
    other.write_text("no video at all")
    assert [boxes.is_iso(path) for path in (source, fast, other, tmp_path)] == [1, 1, 0, 0]
    assert [boxes.moov_first(path) for path in (source, fast, other)] == [False, True, False]
    video, data = read_tracks(source)
    assert (video.index, video.track_id, video.handler) == (0, 1, b"vide")
    assert (video.fourcc, video.timescale, video.sample_count) == ("mp4v", 12800, 10)
    assert video.duration == 10 * 512
    assert (data.fourcc, data.handler, data.timescale) == ("fdsc", b"meta", 1000)
    assert sample_times(source, 1) == [(10, 40)]
    assert read_maker_boxes(source) == [
        (b"FIRM", b"\0\0\0\x0dFIRMHD1.0"),
        (b"\xa9mod", b"\0\0\0\x10\xa9mod\0\4\x15\xc7Hero"),
    ]


def test_finds_the_chapter_track(tmp_path: Path) -> None:
    path = tmp_path / "chapters.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.set_chapters(
            [
                {
                    "id": 1,
                    "start": 0,
                    "end": 5,
                    "time_base": Fraction(1, 25),
                    "metadata": {"title": "One"},
                }
            ]
        )
        for number in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert [track.is_chapter_track for track in read_tracks(path)] == [False, True]


def layout(path: Path, kind: str) -> Path:
    """One of the ways in which a muxer may lay out a file."""
    fast = kind in ("moov first", "moov first, free behind")
    make(path, options={"movflags": "+faststart"} if fast else {})
    data = path.read_bytes()
    with path.open("rb") as file:
        found = list(boxes.top_level_boxes(file))
        moov = boxes.read_moov(file)[0]
    mdat = next(box for box in found if box.kind == b"mdat")
    if kind == "moov first, free behind":
        # As encoders reserve room: a free box, behind which the samples lie.
        room = boxes.build(b"free", bytes(4000))
        body = shift_chunks(read_moov(path), moov.end, len(room), wide=False)
        data = data[: moov.start] + boxes.build(b"moov", body) + room + data[moov.end :]
    elif kind == "moov in the middle":
        data += boxes.build(b"uuid", bytes(32))
    elif kind == "mdat of 64 bits":  # libav leaves 8 bytes of free space in front for it
        size = mdat.end - mdat.start + 8
        data = (
            data[: mdat.start - 8]
            + struct.pack(">I4sQ", 1, b"mdat", size)
            + data[mdat.start + mdat.header :]
        )
    elif kind == "mdat to the end":
        body = shift_chunks(read_moov(path), 0, moov.end - moov.start, wide=False)
        data = (
            data[: mdat.start]
            + boxes.build(b"moov", body)
            + struct.pack(">I4s", 0, b"mdat")
            + data[mdat.start + 8 : mdat.end]
        )
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "moov last",
        "moov first",
        "moov first, free behind",
        "moov in the middle",
        "mdat of 64 bits",
        "mdat to the end",
    ],
)
def test_grafts_into_every_layout(
    tmp_path: Path, source: Path, kind: str, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = layout(tmp_path / "output.mp4", kind)
    before, first = packets(output), boxes.moov_first(output)
    length, digest = output.stat().st_size, track_digest(output, 0)
    if wide:  # as if the file were over 4 GiB
        monkeypatch.setattr("vdeblur.media.mp4.graft.LAST_STCO", 0)
    added = graft(source, output, track_indices=[1])
    monkeypatch.undo()
    assert added == ["udta FIRM", "udta ©mod", "track fdsc"]
    assert packets(output) == before
    assert boxes.moov_first(output) == first
    assert read_maker_boxes(output) == read_maker_boxes(source)
    data = read_tracks(output)[1]
    assert (data.track_id, data.fourcc, data.timescale, data.sample_count) == (2, "fdsc", 1000, 10)
    assert track_digest(output, 1) == track_digest(source, 1)
    assert sample_times(output, 1) == sample_times(source, 1)
    assert track_digest(output, 0) == digest
    assert not Path(f"{output}.graft").exists()
    trak = get_trak(read_moov(output), 1)
    assert boxes.children(boxes.get(trak, b"tref") or b"") == [(b"cdsc", struct.pack(">I", 1))]
    stbl = boxes.get(trak, b"mdia", b"minf", b"stbl") or b""
    assert (boxes.get(stbl, b"co64") is not None) == wide
    assert (boxes.get(read_moov(output), b"mvhd") or b"")[-4:] == struct.pack(">I", 3)
    if kind == "moov first, free behind":
        assert output.stat().st_size - length == 8 + sum(8 * (n + 1) for n in range(10))


def test_movie_timescales_are_converted(tmp_path: Path, source: Path) -> None:
    # A day at 90 000 ticks a second does not fit 32 bits: the headers become version 1.
    output = make(tmp_path / "output.mp4", options={"movie_timescale": "90000"})
    day = 86_400 * 1000
    moov = boxes.edit(
        read_moov(source),
        (b"trak", b"tkhd"),
        lambda kind, p: (kind, p[:20] + struct.pack(">I", day) + p[24:]),
    )
    moov = boxes.edit(
        moov, (b"mvhd",), lambda kind, p: (kind, p[:16] + struct.pack(">I", day) + p[20:])
    )
    edit = boxes.build(b"elst", struct.pack(">3IiI", 0, 1, day, -1, 1 << 16))
    atoms = boxes.children(moov)
    at = max(n for n, (kind, _) in enumerate(atoms) if kind == b"trak")
    others = [atom for atom in boxes.children(atoms[at][1]) if atom[0] != b"edts"]
    atoms[at] = (b"trak", boxes.build_all([*others, (b"edts", edit)]))
    write_moov(source, boxes.build_all(atoms))
    graft(source, output, track_indices=[1], udta=False)
    moov = read_moov(output)
    trak = get_trak(moov, 1)
    tkhd, elst = boxes.get(trak, b"tkhd") or b"", boxes.get(trak, b"edts", b"elst") or b""
    assert tkhd[0] == elst[0] == 1
    assert _tkhd_duration(tkhd) == 86_400 * 90_000
    assert struct.unpack(">QqI", elst[8:]) == (86_400 * 90_000, -1, 1 << 16)
    assert timescale_and_duration(boxes.get(moov, b"mvhd") or b"") == (90_000, 86_400 * 90_000)
    assert read_maker_boxes(output) == []
    assert len(packets(output)) == 10


def test_boxes_beside_the_tracks_are_kept_and_told(tmp_path: Path, source: Path) -> None:
    atoms = boxes.children(read_moov(source))
    write_moov(source, boxes.build_all([*atoms, (b"Xmak", b"one"), (b"uuid", bytes(20))]))
    output = tmp_path / "output.mp4"
    report = deblur_video(source, output, model="identity")
    assert "maker's boxes FIRM \xa9mod Xmak uuid" in report.kept
    assert not report.differences
    assert boxes.get(read_moov(output), b"Xmak") == b"one"
    assert read_maker_boxes(output) == read_maker_boxes(source)
    bare = make(tmp_path / "bare.mp4")
    failed = [check.detail for check in verify(source, bare) if check.name == "maker boxes"]
    assert "Xmak is missing" in failed[0]


def test_boxes_without_number_are_damage_and_told(tmp_path: Path, source: Path) -> None:
    atoms = [atom for atom in boxes.children(read_moov(source)) if atom[0] != b"udta"]
    write_moov(source, boxes.build_all([*atoms, (b"udta", boxes.build(b"abcd", b"") * 70_000)]))
    report = deblur_video(source, tmp_path / "output.mp4", model="identity")
    assert any("there are more than 65536 boxes in one" in line for line in report.lost)
    assert all(len(line) < 500 for line in report.kept + report.lost + report.differences)


def test_long_tags_are_told_by_their_beginning(tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    for path, title in ((long, "title " * 9000), (tmp_path / "short.mp4", "")):
        with av.open(str(path), "w") as container:
            container.metadata["title"] = title
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height = 64, 48
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
            container.mux(stream.encode(None))
    details = {check.name: check.detail for check in verify(long, tmp_path / "short.mp4")}
    assert "(54000 characters) is missing" in details["metadata"]
    assert len(details["metadata"]) < 500


def test_a_second_graft_adds_no_udta_twice(tmp_path: Path, source: Path) -> None:
    output = make(tmp_path / "output.mp4")
    assert graft(source, output, track_indices=[]) == ["udta FIRM", "udta ©mod"]
    data = output.read_bytes()
    assert graft(source, output, track_indices=[]) == []
    assert output.read_bytes() == data


def test_fragmented_output_is_refused(tmp_path: Path, source: Path) -> None:
    output = make(tmp_path / "f.mp4", options={"movflags": "+frag_keyframe+empty_moov"})
    data = output.read_bytes()
    with pytest.raises(OutputError, match="fragmented"):
        graft(source, output, track_indices=[1])
    assert output.read_bytes() == data
    fragmented = make(
        tmp_path / "g.mp4", data=True, options={"movflags": "+frag_keyframe+empty_moov"}
    )
    with pytest.raises(InputError, match="fragments"):
        graft(fragmented, make(tmp_path / "h.mp4"), track_indices=[1])


def test_a_fragmented_file_that_is_cut_off_can_be_read_up_to_there(tmp_path: Path) -> None:
    flags = {"movflags": "+frag_every_frame+empty_moov"}
    whole = make(tmp_path / "whole.mp4", options=flags).read_bytes()
    first = whole.index(b"moof") - 4
    second = whole.index(b"moof", first + 8) - 4
    torn = tmp_path / "torn.mp4"
    counts = []
    for length in range(second, second + whole.index(b"moof", second + 8) - second, 5):
        torn.write_bytes(whole[:length])
        boxes.cut_torn_moof(torn)
        with av.open(str(torn)) as container:
            counts.append(sum(1 for packet in container.demux() if packet.size))
    assert counts[0] == 1
    assert set(counts) <= {1, 2}
    torn.write_bytes(whole)
    boxes.cut_torn_moof(torn)
    assert torn.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d[: len(d) - 40], "moov"),
        (lambda d: d.replace(b"moov", b"xxxx"), "there is no moov"),
        (lambda d: d.replace(b"stsd", b"xxxx")[: d.find(b"moov") - 4], "there is no moov"),
        (lambda d: d[:28] + struct.pack(">I", 5) + d[32:], "size of 5"),
        (lambda d: b"", "there is no moov"),
    ],
)
def test_damaged_source(tmp_path: Path, source: Path, damage: object, message: str) -> None:
    assert callable(damage)
    output = make(tmp_path / "output.mp4")
    before = output.read_bytes()
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(InputError, match=message):
        graft(source, output, track_indices=[1])
    assert output.read_bytes() == before


def test_samples_behind_the_end_of_the_source(tmp_path: Path, source: Path) -> None:
    moov = boxes.edit(
        read_moov(source),
        (b"trak", b"mdia", b"minf", b"stbl", b"stco"),
        lambda kind, p: (kind, p[:8] + struct.pack(">I", 1 << 30) + p[12:]),
    )
    write_moov(source, moov)
    with pytest.raises(InputError, match="behind the end"):
        track_digest(source, 1)
    with pytest.raises(InputError, match="no track 7"):
        track_digest(source, 7)
    with pytest.raises(InputError, match="cannot be read"):
        read_tracks(tmp_path / "missing.mp4")


def test_random_damage_ends_in_one_sentence(tmp_path: Path, source: Path) -> None:
    # Every byte of moov may be wrong: no other error, no endless loop, no huge allocation.
    rng = random.Random(1)
    good = source.read_bytes()
    start = good.find(b"moov")
    target = make(tmp_path / "target.mp4").read_bytes()
    output = tmp_path / "output.mp4"
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(start - 4, len(data))] = rng.choice((0, 1, 127, 128, 255))
        source.write_bytes(data)
        output.write_bytes(target)
        try:
            boxes.moov_first(source)
            read_tracks(source)
            sample_times(source, 1)
            graft(source, output, track_indices=[1])
        except InputError:
            assert output.read_bytes() == target
        else:
            assert len(read_tracks(output)) == 2


@pytest.mark.parametrize("name", GOPRO)
def test_gopro_files(tmp_path: Path, name: str) -> None:
    path = MEDIA / name
    if not path.exists():
        pytest.skip("the GoPro samples are not here")
    assert [box.decode("latin-1") for box, _ in read_maker_boxes(path)] == GOPRO[name]
    assert [t.fourcc for t in read_tracks(path)] == ["avc1", "mp4a", "tmcd", "gpmd", "fdsc"]
    output = make(tmp_path / "output.mp4", options={"movflags": "+faststart"})
    graft(path, output, track_indices=[3, 4])
    for index in (3, 4):
        copy = index - 2
        assert track_digest(output, copy) == track_digest(path, index)
        assert sample_times(output, copy) == sample_times(path, index)
    assert read_maker_boxes(output) == read_maker_boxes(path)
    assert packets(output, 1)[-1] == packets(path, 3)[-1]  # gpmd, to its last duration
