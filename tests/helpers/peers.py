"""Real peers on loopback, started by the tests: an RTSP server, nginx with RTMP, ffmpeg.

Each is missing with a reason, by which a test skips.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from vdeblur.live.sources.demo_scene import now_milliseconds, read_code

SYSTEM_PYTHON = "/usr/bin/python3"
_RTMP_MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


@cache
def no_rtsp_server() -> str:
    """Why there is none; empty when there is."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst; "
    probe += "Gst.init(None); assert Gst.ElementFactory.find('x264enc')"
    if (
        not Path(SYSTEM_PYTHON).exists()
        or subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode
    ):
        return "no gst-rtsp-server: apt install gir1.2-gst-rtsp-server-1.0 and its plugins"
    return ""


def no_nginx() -> str:
    """Why there is none; empty when there is."""
    there = shutil.which("nginx") or Path("/usr/sbin/nginx").exists()
    return "" if there and _RTMP_MODULE.exists() else "no nginx with RTMP: libnginx-mod-rtmp"


def no_ffmpeg() -> str:
    """Why there is none; empty when there is."""
    return "" if shutil.which("ffmpeg") else "no ffmpeg command"


@cache
def ffmpeg_knows(word: str, what: str = "-protocols") -> bool:
    """Whether a word stands in a listing of the ffmpeg command."""
    listed = subprocess.run(["ffmpeg", "-hide_banner", what], capture_output=True, text=True)
    return any(word in part.split(",") for part in listed.stdout.split())


def free_port() -> int:
    """A TCP port that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, process: subprocess.Popen[Any], seconds: float = 20) -> None:
    """Wait until somebody does."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        assert process.poll() is None, f"the peer ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the peer does not listen")


class Peer:
    """A process that can be killed and started again."""

    def __init__(self, words: list[str], port: int) -> None:
        self.words, self.port = words, port
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        listening(self.port, self.process)

    def kill(self) -> None:
        """As if its machine had lost its power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def rtsp_server(*options: str) -> Iterator[tuple[str, Peer]]:
    """(address, peer) of a server with a numbered picture."""
    port = free_port()
    script = str(Path(__file__).with_name("rtsp_server.py"))
    peer = Peer([SYSTEM_PYTHON, script, str(port), *options], port)
    try:
        peer.start()
        yield f"rtsp://127.0.0.1:{port}/live", peer
    finally:
        peer.kill()


_NGINX = """
load_module {module};
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 64; }}
rtmp {{ server {{ listen 127.0.0.1:{rtmp}; chunk_size 4096;
  application live {{ live on; record off; drop_idle_publisher 10s;
    hls on; hls_path {folder}/hls; hls_fragment 1s; hls_playlist_length 6s; }} }} }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{http}; location / {{ root {folder}/hls;
    types {{ application/vnd.apple.mpegurl m3u8; video/mp2t ts; }} }} }} }}
"""


@contextmanager
def nginx(folder: Path) -> Iterator[tuple[str, str, Peer]]:
    """(RTMP address of the application, HTTP address of the HLS folder, peer)."""
    rtmp, http = free_port(), free_port()
    (folder / "hls").mkdir(parents=True)
    folder.chmod(0o777)
    (folder / "hls").chmod(0o777)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(module=_RTMP_MODULE, folder=folder, rtmp=rtmp, http=http))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    words = [program, "-c", str(config), "-p", str(folder), "-e", str(folder / "error.log")]
    peer = Peer(words, rtmp)
    try:
        peer.start()
        yield f"rtmp://127.0.0.1:{rtmp}/live", f"http://127.0.0.1:{http}", peer
    finally:
        peer.kill()


@contextmanager
def ffmpeg(*words: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The ffmpeg command, until the block is left."""
    process = subprocess.Popen(
        ["ffmpeg", "-nostdin", "-loglevel", "error", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | (env or {}),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(*parts: tuple[bytes, float], head: bytes = b"") -> Iterator[int]:
    """The port of a TCP server that sends each client `head`, then each part evenly over its
    seconds, and then nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def send(client: socket.socket) -> None:
        with client:
            try:
                if head:
                    client.recv(4096)
                    client.sendall(head)
                for data, seconds in parts:
                    steps = max(1, round(seconds * 25))
                    for step in range(steps):
                        client.sendall(
                            data[len(data) * step // steps : len(data) * (step + 1) // steps]
                        )
                        if stop.wait(seconds / steps):
                            return
                stop.wait()
            except OSError:
                pass  # the reader has gone

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            clients.append(threading.Thread(target=send, args=(client,)))
            clients[-1].start()

    clients: list[threading.Thread] = []
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        stop.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        acceptor.join()
        for client in clients:
            client.join()


class Reader:
    """Reads a stream in a thread: what number each picture bears, and how old it was on arrival."""

    def __init__(self, address: str, **options: str) -> None:
        self.numbers: list[int] = []
        self.latencies: list[float] = []  # seconds
        self.arrivals: list[float] = []  # monotonic
        self.pts: list[float] = []
        self.unread = 0
        self.failure = ""
        self._address, self._options = address, options
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(12)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with av.open(self._address, options=self._options, timeout=(5, 8)) as container:
                    stream = container.streams.video[0]
                    stream.thread_type = "SLICE"
                    for packet in container.demux(stream):
                        if self._stop.is_set():
                            return
                        for frame in packet.decode():
                            self._look(frame)
            except (av.error.FFmpegError, OSError, IndexError) as error:
                self.failure = str(error)
            self._stop.wait(0.1)

    def _look(self, frame: av.VideoFrame) -> None:
        found = code_of(frame)
        if found is None:
            self.unread += 1
            return
        number, at = found
        self.numbers.append(number)
        self.latencies.append(((now_milliseconds() - at) & 0xFFFFFFFF) / 1000)
        self.arrivals.append(time.monotonic())
        self.pts.append(float(frame.time or 0))

    def wait(self, count: int, seconds: float = 40) -> None:
        """Until `count` pictures were read."""
        until(
            lambda: len(self.numbers) >= count,
            seconds,
            lambda: f"{len(self.numbers)}, {self.failure}",
        )


def code_of(frame: av.VideoFrame) -> tuple[int, int] | None:
    """(number, milliseconds) written in a picture."""
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    return read_code(luma[: frame.height, : frame.width])


def until(
    true: Callable[[], object], seconds: float = 40, otherwise: Callable[[], str] = lambda: ""
) -> None:
    """Wait for something to become true."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, f"it never came true: {otherwise()}"
        time.sleep(0.03)
