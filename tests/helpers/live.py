"""What tests of live streams share: a session with a network of any speed, clips, the command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import av.error
import numpy as np
import pytest

from tests.helpers import peers
from vdeblur.frames import Frame
from vdeblur.live.addresses import Scene
from vdeblur.live.encoding import LiveEncoding
from vdeblur.live.options import SessionOptions
from vdeblur.live.session import Session
from vdeblur.live.sinks.sink import SinkOptions
from vdeblur.live.sources.demo_scene import draw
from vdeblur.live.sources.receiver import RetryOptions
from vdeblur.live.sources.source import SourceOptions

ROOT = Path(__file__).parents[2]
needs_rtsp = pytest.mark.skipif(bool(peers.no_rtsp_server()), reason=peers.no_rtsp_server())
needs_nginx = pytest.mark.skipif(bool(peers.no_nginx()), reason=peers.no_nginx())
needs_ffmpeg = pytest.mark.skipif(bool(peers.no_ffmpeg()), reason=peers.no_ffmpeg())


class Network:
    """Changes nothing, in a given time; what it must not do is not change the picture's code."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.levels, self.seconds = ("whole",), seconds

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        time.sleep(self.seconds)
        return [False] * len(frames)


class Events(list[tuple[str, dict[str, Any]]]):
    """What happened, in order."""

    def __call__(self, name: str, **facts: Any) -> None:
        self.append((name, facts))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [facts for found, facts in list(self) if found == name]


QUICK = SessionOptions(
    source=SourceOptions(timeout=1.5),
    retry=RetryOptions(first=0.2, cap=1.0),
    sink=SinkOptions(timeout=1.5, retry_cap=1.0),
    encoding=LiveEncoding(preset="ultrafast", keyframes=1.0),
)


@contextmanager
def session(
    source: str | list[str],
    *sinks: object,
    network: Network | None = None,
    options: SessionOptions = QUICK,
) -> Iterator[tuple[Session, Events]]:
    events = Events()
    sources = [source] if isinstance(source, str) else source
    live = Session(
        sources, [str(s) for s in sinks], network or Network(), options=options, on_event=events
    )
    with live:
        yield live, events


def numbers_of(path: Path | str, *, torn: bool = False) -> list[int]:
    """The numbers in a file's pictures, in order. torn: its end may be half a packet."""
    found = []
    with av.open(str(path)) as container:
        try:
            for frame in container.decode(video=0):
                code = peers.code_of(frame)
                assert code is not None
                found.append(code[0])
        except av.error.InvalidDataError:
            assert torn
    return found


def goes_on(numbers: list[int]) -> bool:
    """Whether pictures follow each other; where a machine stalls, the scene itself skips some."""
    steps = [b - a for a, b in pairwise(numbers)]
    return min(steps) > 0 and sum(step > 3 for step in steps) <= 1 + len(steps) // 20


def count(live: Session, key: str = "encoded", camera: int = 0) -> int:
    return int(live.snapshot()[camera][key])


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def clip(
    file: Path,
    *,
    frames: int = 50,
    size: str = "160x90",
    rate: int = 25,
    codec: str = "libx264",
    first: int = 0,
    start: float = 0.0,
    sound_seconds: float = 0.0,
) -> Path:
    """A file of numbered pictures, the first of number `first` at `start` seconds; and silence."""
    scene = Scene.of(f"test:{size}@{rate}")
    options = {"muxdelay": "0", "muxpreload": "0"} if file.suffix == ".ts" else {}
    with av.open(str(file), "w", container_options=options) as output:
        fast = {"preset": "ultrafast", "tune": "zerolatency"} if codec.startswith("libx26") else {}
        stream = cast(Any, output.add_stream(codec, rate=rate, options=fast))
        stream.width, stream.height, stream.gop_size = scene.width, scene.height, rate
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        base = Fraction(1, rate if codec == "mpeg2video" else 90000)
        stream.codec_context.time_base = stream.time_base = base
        audio: Any = None
        if sound_seconds:
            audio = output.add_stream("aac", rate=48000, layout="mono")
        for number in range(frames):
            picture = av.VideoFrame(scene.width, scene.height, stream.pix_fmt)
            for plane, values in zip(picture.planes, draw(scene, first + number), strict=True):
                view = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
                view[: values.shape[0], : values.shape[1]] = values
            picture.pts, picture.time_base = round(start / base) + round(number / rate / base), base
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
        for block in range(int(sound_seconds * 48000 / 1024)):
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            quiet.sample_rate, quiet.time_base = 48000, Fraction(1, 48000)
            quiet.pts = round(start * 48000) + block * 1024
            output.mux(audio.encode(quiet))
    return file


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "vdeblur", "camera", *map(str, words)]


def started(*words: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
    )
