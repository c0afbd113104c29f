"""A large attachment is not held by the reader and by the check of the output at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np

_MEGABYTES = 32
_MOST = 8  # times its size: libav holds it three times in an input, and twice while muxing

_RUN = """
import resource, sys
from vdeblur.cli.main import main
for name in sys.argv[1:]:
    status = main(["video", name, "-o", "out-" + name, "--model", "identity"])
    print("peak", status, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def _film(path: Path, attached: bytes) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if attached:
            output.add_attachment("a.bin", "application/octet-stream", attached)
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        for packet in [*stream.encode(picture), *stream.encode()]:
            output.mux(packet)


def test_a_large_attachment_is_held_a_few_times_at_most(tmp_path: Path) -> None:
    _film(tmp_path / "plain.mkv", b"")
    _film(tmp_path / "large.mkv", os.urandom(_MEGABYTES << 20))

    run = subprocess.run(
        [sys.executable, "-c", _RUN, "plain.mkv", "large.mkv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    plain, large = (line.split()[1:] for line in run.stdout.splitlines() if line[:5] == "peak ")
    assert (plain[0], large[0]) == ("0", "0"), run.stderr
    assert int(large[1]) - int(plain[1]) < _MOST * _MEGABYTES
    with av.open(str(tmp_path / "out-large.mkv")) as output:
        assert len(output.streams.attachments[0].data) == _MEGABYTES << 20
