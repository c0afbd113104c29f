"""Matroska headers that libav would hold several times, or lose its place in."""

from __future__ import annotations

import contextlib
import os
import random
import struct
from pathlib import Path

import av
import pytest

from vdeblur import deblur_video, verify
from vdeblur.errors import VdeblurError
from vdeblur.media.matroska import LeanFile, lean_file
from vdeblur.media.reader import VideoReader

_ATTACHMENTS = b"\x19\x41\xa4\x69"
_LARGE = 3 << 20


def film(path: Path, *attached: bytes, comment: str = "short", kind: str = "font/ttf") -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, data in enumerate(attached):
            output.add_attachment(f"file {number}", kind, data)
        output.metadata.update(title="Ride", comment=comment)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    return path


def element(kind: bytes, data: bytes) -> bytes:
    return kind + ((1 << 56) | len(data)).to_bytes(8, "big") + data


def test_chapters_within_chapters_without_end(tmp_path: Path) -> None:
    last = element(b"\xec", bytes(17 << 20))
    heads, size = b"", len(last)
    kinds = [*[b"\xb6"] * 2000, b"\x45\xb9", b"\x10\x43\xa7\x70", b"\x18\x53\x80\x67"]
    for kind in kinds:
        head = kind + ((1 << 56) | size).to_bytes(8, "big")
        heads, size = head + heads, size + len(head)
    path = tmp_path / "deep.mkv"
    path.write_bytes(element(b"\x1a\x45\xdf\xa3", b"") + heads + last)
    assert lean_file(path) is None


def attachments_behind(path: Path) -> Path:
    """Move the attachments of a file behind its clusters, where a SeekHead finds them."""
    data = path.read_bytes()
    at = data.index(_ATTACHMENTS, data.index(_ATTACHMENTS) + 4)
    size = int.from_bytes(data[at + 4 : at + 12], "big") & ((1 << 56) - 1)
    whole = data[at : at + 12 + size]
    segment = data.index(b"\x18\x53\x80\x67") + 12
    place = struct.pack(">Q", len(data) - segment)
    seek = element(b"\x53\xab", _ATTACHMENTS) + element(b"\x53\xac", place)
    head = element(b"\x11\x4d\x9b\x74", element(b"\x4d\xbb", seek))
    void = element(b"\xec", bytes(len(whole) - len(head) - 9))
    moved = data[:at] + head + void + data[at + len(whole) :] + whole
    length = ((1 << 56) | len(moved) - segment).to_bytes(8, "big")
    path.write_bytes(moved[: segment - 8] + length + moved[segment:])
    return path


def attached_to(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [stream.data for stream in container.streams.attachments]


@pytest.mark.parametrize("behind", [False, True])
def test_large_attachments_are_kept(tmp_path: Path, behind: bool) -> None:
    files = [os.urandom(_LARGE), b"small", os.urandom(_LARGE)]
    source = film(tmp_path / "source.mkv", *files)
    if behind:
        attachments_behind(source)
    assert attached_to(source) == files
    with VideoReader(source) as reader:
        held = [len(s.data) for s in reader.container.streams if s.type == "attachment"]
        assert held[1] == 5
        assert max(held) < 100
    output = tmp_path / "output.mkv"
    report = deblur_video(source, output, model="identity")
    assert (report.lost, report.differences) == ([], [])
    assert report.kept == ["attachment file 0", "attachment file 1", "attachment file 2"]
    assert attached_to(output) == files
    with av.open(str(output)) as container:
        assert {s.mimetype for s in container.streams.attachments} == {"font/ttf"}


def test_a_large_attachment_that_differs_is_told(tmp_path: Path) -> None:
    data = os.urandom(_LARGE)
    source = film(tmp_path / "source.mkv", data)
    output = film(tmp_path / "output.mkv", data[:-1] + bytes([data[-1] ^ 1]))
    failed = {check.name: check.detail for check in verify(source, output) if not check.passed}
    assert failed == {"attachments": "file 0 is missing or differs"}
    report = deblur_video(source, tmp_path / "output.mp4", model="identity")
    assert "attachment file 0: mp4 cannot hold it" in report.lost


def test_a_text_that_libav_does_not_read_costs_itself(tmp_path: Path) -> None:
    """libav would look for the next element in the middle of it, and find all streams twice."""
    source = film(tmp_path / "source.mkv", comment="x" * (17 << 20))
    output = tmp_path / "output.mkv"
    report = deblur_video(source, output, model="identity")
    assert report.lost == [f"a text of {17 << 20} bytes: longer than can be read"]
    assert (report.damage, report.differences) == ([], [])
    with av.open(str(output)) as container:
        assert len(container.streams) == 1
        assert container.metadata["title"] == "Ride"


def test_other_files_are_opened_by_name(tmp_path: Path) -> None:
    assert lean_file(film(tmp_path / "plain.mkv", b"small")) is None
    assert lean_file(film(tmp_path / "cover.mkv", bytes(_LARGE), kind="image/png")) is None
    assert lean_file(film(tmp_path / "film.mp4")) is None


def test_mutated_headers_are_read_or_refused(tmp_path: Path) -> None:
    source = film(tmp_path / "source.mkv", bytes(_LARGE))
    data, path, chance = source.read_bytes(), tmp_path / "mutated.mkv", random.Random(14)
    for _ in range(40):
        mutated = bytearray(data)
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(4, 700)
            mutated[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        path.write_bytes(mutated)
        with LeanFile(path) as lean:
            assert len(lean.read()) > 0
            assert lean.seek(0, os.SEEK_END) == len(mutated)
    for size in (b"\x01" + b"\xff" * 7, b"\x01\x00\x00\x7f" + b"\xff" * 4, b"\x00"):
        path.write_bytes(data[: data.index(_ATTACHMENTS) - 20] + _ATTACHMENTS + size)
        with contextlib.suppress(VdeblurError):
            VideoReader(path).close()
