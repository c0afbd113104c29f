"""The preview's page in a real Chromium: pictures that move, a divider, "no signal", a token."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import CHROMIUM, Page
from vdeblur.errors import UsageError
from vdeblur.frames import Frame
from vdeblur.live.options import SessionOptions
from vdeblur.live.preview import Preview
from vdeblur.live.session import Session

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


def test_another_address_needs_its_token() -> None:
    with Preview("0.0.0.0:0") as preview:
        assert len(preview.token) >= 20
        here = preview.url.replace("0.0.0.0", "127.0.0.1")
        assert b"vdeblur" in fetch(here)
        bare = here.partition("?")[0]
        for url in (bare, f"{bare}stats", f"{bare}stream.mjpeg?camera=1&token=wrong"):
            with pytest.raises(urllib.error.HTTPError, match="403") as refused:
                fetch(url)
            refused.value.close()


def test_a_page_of_elsewhere_cannot_read_it() -> None:
    with Preview("0") as preview:
        facts: dict[str, Any] = json.loads(fetch(f"{preview.url}stats"))
        assert facts["cameras"] == []
        with pytest.raises(urllib.error.HTTPError, match="403") as refused:
            fetch(preview.url, Host="evil.example")
        refused.value.close()
        for path in ("etc/passwd", "stream.mjpeg?camera=99"):
            with pytest.raises(urllib.error.HTTPError, match="404") as missing:
                fetch(preview.url + path)
            missing.value.close()
    with pytest.raises(UsageError, match="PORT, such"):
        Preview("somewhere")


def test_nothing_is_taken_while_nobody_looks() -> None:
    with Preview("0", webrtc=False) as preview:
        assert not preview.wants_before()
        with preview.looking():
            assert preview.wants_before()
        assert not preview.wants_before()
