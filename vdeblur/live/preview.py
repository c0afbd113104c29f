"""A page with the live picture before and after a divider that can be dragged; counts beside it.

Both pictures travel as one, side by side, so that they are of the same moment: over WebRTC where
aiortc is installed and the browser can, else as JPEG pictures over HTTP. Only the newest picture is
kept, and nothing is encoded while nobody looks. Knows libav; knows no torch and no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import io
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Self, cast
from urllib.parse import parse_qs, urlsplit

import av
import numpy as np

from vdeblur.errors import OutputError
from vdeblur.live.counters import Snapshot, host_port
from vdeblur.live.encoding import copy_of
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.system.optional import installed

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
#: Pixels of each half's width at most: a preview, not the picture itself.
_WIDEST = 960
_BOUNDARY = "vdeblur"


class _Newest:
    """The newest pair of one camera, with its number; whoever waits gets the one after theirs."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.number = 0
        self.pair: av.VideoFrame | None = None
        self.state = "connecting"
        self._jpeg: tuple[int, bytes] = (0, b"")

    def put(self, pair: av.VideoFrame | None) -> None:
        with self.changed:
            self.number += 1
            self.pair = pair
            self.changed.notify_all()

    def after(self, number: int, timeout: float) -> tuple[int, av.VideoFrame | None]:
        with self.changed:
            if self.number <= number:
                self.changed.wait(timeout)
            return self.number, self.pair

    def jpeg(self, number: int, pair: av.VideoFrame) -> bytes:
        """The pair as JPEG, made once for all who look."""
        with self.changed:
            if self._jpeg[0] != number:
                self._jpeg = (number, _jpeg(pair))
            return self._jpeg[1]


class Preview:
    """Serves the page; a context manager. address: `PORT` or `HOST:PORT`.

    url: where the page is. On another host than this machine itself it carries a token, without
    which nothing is answered. snapshot: set to what gives the counts.
    """

    def __init__(self, address: str, *, webrtc: bool = True) -> None:
        host, port = host_port(address)
        self.local = host in _LOOPBACK
        self.token = "" if self.local else secrets.token_urlsafe(18)
        self.snapshot: Callable[[], Sequence[Snapshot]] = list
        self.webrtc = webrtc and installed("aiortc")
        self._cameras: dict[int, _Newest] = {}
        self._lock = threading.Lock()
        self._looking = 0
        self._calls: _Calls | None = None
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"preview": self})
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = type("Server", (_Server,), {"address_family": family})
            self._server = server((host, port), handler)
        except OSError as error:
            raise OutputError(
                f"the preview cannot listen at {address} ({error.strerror}): name another port"
            ) from error
        self.port = int(self._server.server_port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/" + (f"?token={self.token}" if self.token else "")
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="preview", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for newest in list(self._cameras.values()):
            newest.put(None)
        if self._calls is not None:
            self._calls.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2)

    # -- what the session gives (vdeblur.live.protocols.Viewer) ----------------------------------

    def wants_before(self) -> bool:
        """See `Viewer`."""
        return self._looking > 0

    def picture(
        self, camera: int, before: av.VideoFrame | None, frame: QueuedFrame, latency: float
    ) -> None:
        """See `Viewer`."""
        if self._looking:
            after = frame.frame.carrier
            self.newest(camera).put(_pair(before if before is not None else after, after))

    def signal(self, camera: int, state: str) -> None:
        """See `Viewer`."""
        newest = self.newest(camera)
        newest.state = state
        if state != "live":
            newest.put(None)  # an old picture must not pass for what is there now

    def newest(self, camera: int) -> _Newest:
        """The slot of a camera."""
        with self._lock:
            return self._cameras.setdefault(camera, _Newest())

    @contextlib.contextmanager
    def looking(self) -> Any:
        """While it lasts, pictures are taken."""
        with self._lock:
            self._looking += 1
        try:
            yield
        finally:
            with self._lock:
                self._looking -= 1

    def stats(self) -> list[dict[str, Any]]:
        """What the page shows beside the picture."""
        keys = ("camera", "source", "state", "reason", "fps", "fps_out", "restored", "passed",
                "dropped", "reconnects", "latency_ms", "level_name", "size")  # fmt: skip
        return [{key: status[key] for key in keys} for status in self.snapshot()]

    def answer(self, offer: dict[str, Any]) -> dict[str, str]:
        """WebRTC: the answer to a browser's offer."""
        with self._lock:
            if self._calls is None:
                self._calls = _Calls(self)
        return self._calls.answer(offer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Streams end with `closing`; a viewer that reads nothing must not hold up the end.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A viewer that left is no error."""


class _Handler(BaseHTTPRequestHandler):
    preview: Preview
    server_version, sys_version = "vdeblur", ""
    protocol_version = "HTTP/1.1"
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address may hold the token."""

    def _allowed(self) -> bool:
        preview = self.preview
        if preview.local:
            # A page elsewhere may name this machine as its own by DNS; its Host gives it away.
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
            allowed = host in _LOOPBACK
        else:
            given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
            allowed = hmac.compare_digest(given.encode(), preview.token.encode())
        if not allowed:
            self._send(403, "text/plain", b"not without the token of the printed address\n")
        return allowed

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """The page, the counts, the pictures."""
        if not self._allowed():
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if parts.path == "/":
            page = resources.files("vdeblur.live").joinpath("preview.html").read_bytes()
            self._send(200, "text/html; charset=utf-8", page)
        elif parts.path == "/stats":
            facts = {"webrtc": self.preview.webrtc, "cameras": self.preview.stats()}
            self._send(200, "application/json", json.dumps(facts).encode())
        elif parts.path == "/stream.mjpeg":
            camera = query.get("camera", ["1"])[0]
            if camera.isdigit() and 1 <= int(camera) <= max(1, len(self.preview.snapshot())):
                self._stream(int(camera))
            else:
                self._send(404, "text/plain", b"there is no such camera\n")
        else:
            self._send(404, "text/plain", b"there is no such page\n")

    def do_POST(self) -> None:
        """WebRTC's offer."""
        if not self._allowed():
            return
        length = int(self.headers.get("Content-Length") or 0)
        if urlsplit(self.path).path != "/offer" or not self.preview.webrtc or length > 1 << 18:
            self._send(404, "text/plain", b"there is no such page\n")
            return
        try:
            answer = self.preview.answer(json.loads(self.rfile.read(length)))
        except Exception as error:  # of a browser's making: it falls back to JPEG
            self._send(400, "text/plain", f"{type(error).__name__}\n".encode())
            return
        self._send(200, "application/json", json.dumps(answer).encode())

    def _stream(self, camera: int) -> None:
        """JPEG after JPEG, the newest each time: a slow viewer sees fewer, not later ones."""
        preview = self.preview
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        newest, number = preview.newest(camera), 0
        with preview.looking():
            while not preview.closing.is_set():
                at, pair = newest.after(number, 1.0)
                if pair is None or at == number:
                    number = at
                    continue
                number = at
                jpeg = newest.jpeg(number, pair)
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\n"
                head += f"Content-Length: {len(jpeg)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                except OSError:
                    return


class _Calls:
    """WebRTC connections, in a thread with an event loop of its own."""

    def __init__(self, preview: Preview) -> None:
        from vdeblur.system.optional import optional

        self._rtc = optional("aiortc", extra="live", purpose="WebRTC in the preview")
        self._preview = preview
        self._connections: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="webrtc", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def answer(self, offer: dict[str, Any]) -> dict[str, str]:
        future = asyncio.run_coroutine_threadsafe(self._answer(offer), self._loop)
        return future.result(15)

    async def _answer(self, offer: dict[str, Any]) -> dict[str, str]:
        rtc = self._rtc
        if len(self._connections) >= 16:
            raise RuntimeError("too many viewers")
        # No STUN server: the viewer is on this machine or its network, and no one else is asked.
        connection = rtc.RTCPeerConnection(rtc.RTCConfiguration(iceServers=[]))
        self._connections.add(connection)
        track = _track(rtc, self._preview, int(offer.get("camera", 1)))

        @connection.on("connectionstatechange")  # type: ignore[untyped-decorator, unused-ignore]
        async def changed() -> None:
            if connection.connectionState in ("failed", "closed", "disconnected"):
                track.stop()
                await connection.close()
                self._connections.discard(connection)

        await connection.setRemoteDescription(
            rtc.RTCSessionDescription(str(offer["sdp"]), str(offer["type"]))
        )
        connection.addTrack(track)
        await connection.setLocalDescription(await connection.createAnswer())
        return {
            "sdp": connection.localDescription.sdp,
            "type": connection.localDescription.type,
        }

    def close(self) -> None:
        async def end() -> None:
            await asyncio.gather(
                *(connection.close() for connection in list(self._connections)),
                return_exceptions=True,
            )
            rest = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)


def _track(rtc: Any, preview: Preview, camera: int) -> Any:
    """A video track of the newest pairs."""

    class Pairs(rtc.VideoStreamTrack):  # type: ignore[misc]
        kind = "video"

        def __init__(self) -> None:
            super().__init__()
            self._number = 0
            self._began = time.monotonic()
            self._looking = preview.looking()
            self._looking.__enter__()
            self._left = False

        async def recv(self) -> av.VideoFrame:
            newest = preview.newest(camera)
            while True:
                if preview.closing.is_set() or self.readyState != "live":
                    raise rtc.mediastreams.MediaStreamError
                if newest.number > self._number:
                    self._number, pair = newest.after(self._number, 0)
                    if pair is not None:
                        break
                await asyncio.sleep(0.005)
            frame = copy_of(pair)  # the encoder's own: JPEG viewers read the same pair
            frame.pts = int((time.monotonic() - self._began) * 90_000)
            frame.time_base = Fraction(1, 90_000)
            return frame

        def stop(self) -> None:
            super().stop()
            if not self._left:
                self._left = True
                self._looking.__exit__(None, None, None)

    return Pairs()


def _pair(before: Any, after: Any) -> av.VideoFrame:
    """Before and after side by side, as yuv420p of at most 2 × 960 pixels' width."""
    width = min(_WIDEST, after.width)
    width -= width % 2
    height = max(2, round(after.height * width / after.width) & ~1)
    both = av.VideoFrame(2 * width, height, "yuv420p")
    for side, picture in enumerate((before, after)):
        small = picture.reformat(width, height, "yuv420p", dst_color_range=1)
        for to, of in zip(both.planes, small.planes, strict=True):
            a = np.frombuffer(cast(Any, to), np.uint8).reshape(-1, to.line_size)
            b = np.frombuffer(cast(Any, of), np.uint8).reshape(-1, of.line_size)
            a[: of.height, side * of.width : (side + 1) * of.width] = b[: of.height, : of.width]
    both.color_range = 1
    return both


def _jpeg(pair: av.VideoFrame) -> bytes:
    encoder = cast(Any, av.CodecContext.create("mjpeg", "w"))
    picture = pair.reformat(format="yuvj420p", src_color_range=1, dst_color_range=2)
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "yuvj420p"
    encoder.color_range = 2
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "3", "qmax": "3"}
    picture.pts = 0
    data = io.BytesIO()
    for packet in [*encoder.encode(picture), *encoder.encode(None)]:
        data.write(bytes(packet))
    return data.getvalue()
