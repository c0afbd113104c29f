"""The preview's page in a real Chromium: pictures that move, a divider, "no signal", a token."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.helpers import peers
from tests.helpers.browser import CHROMIUM, Page
from vdeblur.errors import OutputError, UsageError
from vdeblur.frames import Frame, PlaneLayout
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.live.options import SessionOptions
from vdeblur.live.preview import Preview
from vdeblur.live.session import Session

pytest.importorskip("aiohttp")

#: Where screenshots are kept, if anywhere else than with the test's own files.
PICTURES = os.environ.get("VDEBLUR_TEST_PICTURES")


class Darkening:
    """Makes the picture visibly another: before and after must not be the same."""

    levels: Sequence[str] = ("darker",)

    def restore(self, frames: Sequence[Frame], level: int) -> list[bool]:
        for frame in frames:
            frame.planes[0][...] = frame.planes[0] // 2 + 8
        return [False] * len(frames)


class Shown:
    """A session of the test scene with its preview, and the page in a browser."""

    def __init__(self, stack: ExitStack, folder: Path, *, webrtc: bool, script: str = "") -> None:
        self.preview = stack.enter_context(Preview("0", webrtc=webrtc))
        self.session = Session(
            ["test:640x360@20"],
            [],
            Darkening(),
            options=SessionOptions(max_latency=1.0),
            viewers=[self.preview],
        )
        self.preview.snapshot = self.session.snapshot
        stack.enter_context(self.session)
        blank = folder / "blank.html"
        blank.write_text("<!doctype html>")
        self.page = stack.enter_context(Page(blank, folder / "profile", width=1000, height=760))
        if script:
            self.page.call("Page.enable")
            self.page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.page.call("Page.navigate", url=self.preview.url)
        self.page.wait("window.preview !== undefined")

    def pixel(self, x: float, y: float) -> int:
        """The grey value at a place of the canvas, in shares of its sides."""
        script = f"""(() => {{ const c = document.querySelector('canvas');
            const d = c.getContext('2d').getImageData({x} * c.width, {y} * c.height, 1, 1).data;
            return (d[0] + d[1] + d[2]) / 3 }})()"""
        return int(self.page.value(script))

    def look(self, how: str, file: Path) -> None:
        page = self.page
        page.wait("window.preview.drawn > 5 && window.preview.live")
        assert page.value("window.preview.how") == how
        first = page.value("document.querySelector('canvas').toDataURL()")
        drawn = page.value("window.preview.drawn")
        page.wait(f"window.preview.drawn > {drawn + 10}")
        assert page.value("document.querySelector('canvas').toDataURL()") != first
        # The top is of one grey in the scene: as it came on the left, darkened on the right.
        before, after = self.pixel(0.4, 0.2), self.pixel(0.9, 0.2)
        assert before - after > 25, (before, after)
        # Drag the divider to the right: what was after there is before now.
        box = page.value(
            "(r => [r.left, r.top, r.width, r.height])"
            "(document.getElementById('stage').getBoundingClientRect())"
        )
        left, top, width, height = box
        middle = top + height / 2
        page.mouse("Pressed", left + width * 0.5, middle, clickCount=1)
        page.mouse("Moved", left + width * 0.95, middle)
        page.mouse("Released", left + width * 0.95, middle, clickCount=1)
        page.wait("document.getElementById('stage').getAttribute('aria-valuenow') === '95'")
        time.sleep(0.3)
        assert abs(self.pixel(0.9, 0.2) - before) < 15
        page.wait("parseFloat(document.getElementById('fps').textContent) > 3")
        page.wait("document.getElementById('p95').textContent.endsWith('ms')")
        page.mouse("Pressed", left + width * 0.5, middle, clickCount=1)
        page.mouse("Released", left + width * 0.5, middle, clickCount=1)
        time.sleep(0.3)
        keep(page, file)


def keep(page: Page, file: Path) -> None:
    page.screenshot(file)
    assert file.stat().st_size > 10_000
    if PICTURES:
        (Path(PICTURES) / file.name).write_bytes(file.read_bytes())


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
@pytest.mark.parametrize("kind", ["webrtc", "mjpeg", "fallback"])
def test_the_page_shows_the_live_picture(kind: str, tmp_path: Path) -> None:
    if kind != "mjpeg":
        pytest.importorskip("aiortc")
    # A browser that begins with WebRTC, and cannot go through with it.
    broken = "RTCPeerConnection.prototype.setRemoteDescription = () => Promise.reject('no')"
    with ExitStack() as stack:
        script = broken if kind == "fallback" else ""
        shown = Shown(stack, tmp_path, webrtc=kind != "mjpeg", script=script)
        how = "WebRTC" if kind == "webrtc" else "MJPEG"
        shown.look(how, tmp_path / f"preview-{kind}.png")
        # The source goes: the page says so, and shows no old picture as if it were new.
        shown.session.stop()
        shown.page.wait("document.getElementById('none').style.display === 'flex'")
        assert shown.page.value("document.querySelector('#none b').textContent") == "no signal"
        keep(shown.page, tmp_path / f"preview-{kind}-no-signal.png")


def fetch(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        data: bytes = answer.read()
        return data


def status(
    preview: Preview,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | str | None = None,
    token: str | None = None,
    **headers: str,
) -> int:
    """What the server answers to a request as no library would make it."""
    client = http.client.HTTPConnection("127.0.0.1", preview.port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is None:
        names["Authorization"] = f"Bearer {preview.token}"
    try:
        client.request(method, path + (f"?token={token}" if token else ""), body, names)
        answer = client.getresponse()
        if answer.getheader("Content-Type", "").startswith("multipart/"):
            return answer.status
        answer.read()
        assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
        assert answer.getheader("X-Frame-Options") == "DENY"
        assert answer.getheader("Cache-Control") == "no-store"
        assert "frame-ancestors 'none'" in answer.getheader("Content-Security-Policy", "")
        assert answer.getheader("Access-Control-Allow-Origin") is None
        return answer.status
    finally:
        client.close()


ROUTES = ["/stats", "/stream.mjpeg?camera=1", "/offer"]


@pytest.mark.parametrize("address", ["0", "0.0.0.0:0"])
def test_no_picture_without_the_token(address: str) -> None:
    with Preview(address, webrtc=False) as preview:
        assert len(preview.token) >= 20
        assert bool(preview.reach) == (address != "0")
        assert b"vdeblur" in fetch(preview.url.replace("0.0.0.0", "127.0.0.1"))
        assert status(preview, token="") == 200  # the page by itself holds nothing
        for token in ("", "wrong", preview.token[:-1], "%ff"):
            assert status(preview, "/stats", token=token) == 403
            assert status(preview, "/stream.mjpeg", token=token) == 403
            assert status(preview, "/offer", method="POST", body=b"{}", token=token) == 403
        assert status(preview, "/stats", token=preview.token) == 200
        assert status(preview, "/stats") == 200


@pytest.mark.parametrize(
    ("headers", "page"),
    [
        ({"Origin": "https://other.example", "Sec_Fetch_Site": "cross-site"}, 403),
        ({"Origin": "https://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),  # another port of this machine
        (
            {
                "Sec_Fetch_Site": "cross-site",
                "Sec_Fetch_Mode": "navigate",
                "Sec_Fetch_Dest": "iframe",
            },
            403,
        ),
        (
            {
                "Sec_Fetch_Site": "cross-site",
                "Sec_Fetch_Mode": "navigate",
                "Sec_Fetch_Dest": "document",
            },
            200,
        ),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1:{port}.evil.example"}, 403),
        ({"Host": "127.0.0.1:{port}@evil.example"}, 403),
        ({"Host": "localhost.evil.example:{port}"}, 403),
        ({"Host": ""}, 403),
    ],
)
def test_requests_of_other_pages_are_refused(headers: dict[str, str], page: int) -> None:
    """Even if they know the token."""
    with Preview("0", webrtc=False) as preview:
        sent = {name: value.format(port=preview.port) for name, value in headers.items()}
        assert status(preview, **sent) == page
        for path in ROUTES:
            method = "POST" if path == "/offer" else "GET"
            assert status(preview, path, method=method, **sent) == 403, path


def test_own_requests_are_answered() -> None:
    with Preview("0", webrtc=False) as preview:
        for host in (f"127.0.0.1:{preview.port}", f"LocalHost:{preview.port}"):
            own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
            assert status(preview, "/stats", **own) == 200
        for path in ("/etc/passwd", "/stream.mjpeg?camera=99", "/stream.mjpeg?camera=%d9%a1"):
            assert status(preview, path) == 404
        for method, path in (("POST", "/"), ("OPTIONS", "/offer"), ("GET", "/offer")):
            assert status(preview, path, method=method) == 405
        facts: dict[str, Any] = json.loads(fetch(preview.url.replace("?", "stats?")))
        assert facts["cameras"] == []
    with pytest.raises(UsageError, match="PORT, such"):
        Preview("somewhere")


def test_a_host_other_than_loopback_is_named_by_its_number_or_name() -> None:
    with Preview("0.0.0.0:0", webrtc=False) as preview:
        for host in ("192.168.1.9:8080", "[fd00::1]:8080", "localhost", socket.gethostname()):
            assert status(preview, "/stats", Host=host) == 200, host
        assert status(preview, "/stats", Host="rebound.example") == 403


def test_nothing_is_taken_while_nobody_looks() -> None:
    with Preview("0", webrtc=False) as preview:
        assert not preview.wants_before()
        with preview.looking():
            assert preview.wants_before()
        assert not preview.wants_before()


def shown(number: int) -> QueuedFrame:
    """A picture of noise, whose JPEG is large."""
    picture = av.VideoFrame(640, 360, "yuv420p")
    dice = np.random.default_rng(number)
    for plane in picture.planes:
        plane.update(dice.integers(16, 235, plane.buffer_size, np.uint8).tobytes())
    layout = PlaneLayout(640, 360)
    frame = Frame((), layout, number, Fraction(1, 25), source_frame=picture)
    return QueuedFrame(frame, 0.0, 0.0)


@contextmanager
def running(preview: Preview) -> Iterator[list[float]]:
    """Pictures at 50 a second; the list is of the seconds that handing each one over took."""
    stop, took = threading.Event(), []
    pictures = [shown(number) for number in range(4)]

    def run() -> None:
        number = 0
        while not stop.wait(0.02):
            began = time.monotonic()
            preview.picture(1, None, pictures[number % 4], 0.0)
            took.append(time.monotonic() - began)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def connected(preview: Preview, request: str) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(10)
    client.connect(("127.0.0.1", preview.port))
    client.sendall(request.format(token=preview.token, port=preview.port).encode())
    return client


def ended(client: socket.socket) -> bool:
    """Whether the server has ended the connection, read to its end."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


STREAM = "GET /stream.mjpeg?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"


def test_a_viewer_that_takes_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vdeblur.live.preview_server._PATIENCE", 1.5)
    with Preview("0", webrtc=False) as preview, running(preview) as took:
        stuck = connected(preview, STREAM)
        with urllib.request.urlopen(preview.url.replace("?", "stream.mjpeg?"), timeout=10) as quick:
            pictures = 0
            while pictures < 30:
                pictures += quick.readline().startswith(b"Content-Length")
        # The quick one has left, and the stuck one is disconnected: nobody looks any more.
        peers.until(lambda: not preview.wants_before(), 20)
        assert ended(stuck)
        stuck.close()
        assert sorted(took)[len(took) // 2] < 0.05


def test_the_end_waits_for_no_viewer() -> None:
    with ExitStack() as stack:
        preview = stack.enter_context(Preview("0", webrtc=False))
        stuck = connected(preview, STREAM)
        with running(preview):
            peers.until(preview.wants_before)
            time.sleep(1)
        began = time.monotonic()
        stack.pop_all().close()
        assert time.monotonic() - began < 5
        assert ended(stuck)
        stuck.close()


@pytest.mark.parametrize(
    "request_",
    [
        "",
        "GET / HTTP/1.1\r\nHost: 127",
        "POST /offer?token={token} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n[",
    ],
)
def test_a_client_that_says_nothing_is_disconnected(
    request_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdeblur.live.preview_server._PATIENCE", 0.5)
    with Preview("0") as preview:
        client = connected(preview, request_)
        assert ended(client)
        client.close()
        assert b"vdeblur" in fetch(preview.url)


def offer(preview: Preview, body: bytes, kind: str = "application/json") -> int:
    return status(preview, "/offer", method="POST", body=body, Content_Type=kind)


def test_offers_that_are_none_leave_nothing_behind() -> None:
    pytest.importorskip("aiortc")
    with Preview("0") as preview:
        offers: list[Any] = [{"sdp": "v=0", "type": "answer"}, {"type": "offer"}, {"camera": 99}]
        offers += [{"sdp": SDP, "type": "offer", "camera": wrong} for wrong in ("1", True, 1e9)]
        many = SDP + "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n" * 50
        offers += [{"sdp": many, "type": "offer"}, {"sdp": "m=video \r\n" + "a\r\n" * 2000,
                                                    "type": "offer"}]  # fmt: skip
        for wrong in [*offers, [], 3]:
            for _ in range(20):  # more than may call at once
                assert offer(preview, json.dumps(wrong).encode()) == 400
        for nested in (b"[" * 60_000, b'{"a":' * 10_000, b"\xff", b""):
            assert offer(preview, nested) == 400
        assert offer(preview, b"x" * (1 << 19)) == 413
        body = json.dumps({"sdp": SDP, "type": "offer"}).encode()
        for kind in ("text/plain;charset=UTF-8", "application/x-www-form-urlencoded"):
            assert offer(preview, body, kind) == 415
        assert not preview.wants_before()


SDP = "\r\n".join(
    [
        *("v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "a=group:BUNDLE 0"),
        *("m=video 9 UDP/TLS/RTP/SAVPF 96", "c=IN IP4 127.0.0.1", "a=recvonly", "a=mid:0"),
        *("a=rtcp-mux", "a=rtpmap:96 VP8/90000"),
        "a=candidate:1 1 udp 2130706431 {host} {port} typ host",
        *("a=end-of-candidates", "a=ice-ufrag:abcd", "a=ice-pwd:" + "a" * 32),
        *("a=fingerprint:sha-256 " + ":".join(["AA"] * 32), "a=setup:passive", ""),
    ]
)


def test_a_viewer_that_never_connects_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a packet sent to an address of the offer that is not the viewer's own."""
    pytest.importorskip("aiortc")
    monkeypatch.setattr("vdeblur.live.preview_server._CONNECTING", 1.0)
    with Preview("0") as preview, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        sdp = SDP.format(host="127.0.0.2", port=other.getsockname()[1])
        body = json.dumps({"sdp": sdp, "type": "offer", "camera": 1}).encode()
        codes = [offer(preview, body) for _ in range(17)]
        assert codes == [200] * 16 + [503]
        assert preview.wants_before()
        peers.until(lambda: not preview.wants_before(), 20)
        assert offer(preview, body) == 200
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1500)


def test_without_aiohttp_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UsageError, match=r"the preview's page needs .* 'vdeblur\[live\]'"):
        Preview("0")


def test_a_port_that_is_taken() -> None:
    with Preview("0") as first, pytest.raises(OutputError, match="name another port"):
        Preview(str(first.port))
