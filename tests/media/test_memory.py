"""Large parts of a file beside its pictures are held a few times at most, and only while needed."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vdeblur.media.metadata import jpeg, png
from vdeblur.media.mp4 import boxes

_MEGABYTES = 32
_BYTES = _MEGABYTES << 20

# Each run is the child of a process that has loaded everything: its peak is its own.
_RUN = """
import os, sys
import vdeblur.deblur
from vdeblur.cli.main import main
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        os._exit(main(["video", name, "-o", "out-" + name, "--model", "identity"]))
    _, status, usage = os.wait4(child, 0)
    print("peak", os.waitstatus_to_exitcode(status), usage.ru_maxrss >> 10)
"""


def _film(path: Path, attached: bytes = b"") -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if attached:
            output.add_attachment("a.bin", "application/octet-stream", attached)
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        for packet in [*stream.encode(picture), *stream.encode()]:
            output.mux(packet)
    return path


def _picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(file, form)
    return file.getvalue()


def _attachment(folder: Path, large: bool) -> Path:
    return _film(folder / "film.mkv", os.urandom(_BYTES) if large else b"")


def _maker_box(folder: Path, large: bool) -> Path:
    path = _film(folder / "film.mp4")
    with path.open("r+b") as file:
        place, moov = boxes.read_moov(file)
        atoms = [*boxes.children(moov), (b"Xmak", bytes(_BYTES if large else 1))]
        file.seek(place.start)
        file.write(boxes.build(b"moov", boxes.build_all(atoms)))
        file.truncate()
    return path


def _png_text(folder: Path, large: bool) -> Path:
    text = png.Chunk(b"tEXt", b"Comment\0" + b"x" * (_BYTES if large else 1))
    data = _picture("PNG")
    path = folder / "picture.png"
    path.write_bytes(data[:33] + b"".join(text.parts()) + data[33:])
    return path


def _jpeg_segments(folder: Path, large: bool) -> Path:
    data, part = _picture("JPEG"), jpeg.segment(jpeg.APP0 + 15, bytes(jpeg.LONGEST))
    path = folder / "picture.jpg"
    path.write_bytes(data[:2] + part * (_BYTES // len(part) if large else 1) + data[2:])
    return path


@pytest.mark.parametrize(
    ("form", "most"),
    [(_attachment, 4), (_maker_box, 4), (_png_text, 5), (_jpeg_segments, 5)],
)
def test_large_parts_are_held_a_few_times(
    tmp_path: Path, form: Callable[[Path, bool], Path], most: float
) -> None:
    """As often as their size: by libav, which holds some of them three times, and here."""
    large = form(tmp_path, True)
    plain = large.with_stem("plain")
    large.rename(large.with_stem("large"))
    form(tmp_path, False).rename(plain)

    run = subprocess.run(
        [sys.executable, "-c", _RUN, plain.name, large.with_stem("large").name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    small, big = (line.split()[1:] for line in run.stdout.splitlines() if line[:5] == "peak ")
    assert (small[0], big[0]) == ("0", "0"), run.stderr
    assert int(big[1]) - int(small[1]) < most * _MEGABYTES
    output = tmp_path / f"out-large{large.suffix}"
    assert output.stat().st_size > 0.9 * _BYTES, "it is not kept"


def test_segments_without_number(tmp_path: Path) -> None:
    """More segments than any picture has are left out with a line, in the time of reading them."""
    data, most = _picture("JPEG"), jpeg.MOST_SEGMENTS
    empty = struct.pack(">BBH", 0xFF, jpeg.APP0 + 15, 2)
    found = jpeg.Jpeg.parse(data[:2] + empty * (most + 100) + data[2:])
    whole = jpeg.Jpeg.parse(data)
    assert found.left_out == 100 + sum(one.marker == jpeg.APP0 for one in whole.segments)
    assert (found.components, found.end is not None) == (3, True)
