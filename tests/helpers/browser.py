"""A page in a real Chromium without a screen, spoken to over its debugging pipe: no other package.

Chrome DevTools Protocol with --remote-debugging-pipe: JSON messages ended by a zero byte, read by
the browser from descriptor 3 and written to 4.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Copies first: either descriptor may be 3 or 4 itself.
_CONNECT = """import os, sys
copies = [os.dup(int(number)) for number in sys.argv[1:3]]
os.dup2(copies[0], 3)
os.dup2(copies[1], 4)
os.set_inheritable(3, True)  # dup2 of a descriptor to itself leaves it as it was
os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])"""
_SECONDS = 60.0  # on a machine that is busy with other things


class Page:
    """`with Page(file, profile_folder) as page`: run JavaScript, press keys, drag the mouse."""

    def __init__(self, file: Path, profile: Path, *, width: int = 800, height: int = 600) -> None:
        assert CHROMIUM is not None
        to_browser, ours = os.pipe()
        theirs, from_browser = os.pipe()

        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _CONNECT, str(to_browser), str(from_browser)),
                CHROMIUM,
                "--headless=new",
                "--remote-debugging-pipe",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--autoplay-policy=no-user-gesture-required",
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._in, self._out, self._number, self._rest = ours, theirs, 0, b""
        self._session: str | None = None
        try:
            self._open(file)
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        os.close(self._in)
        os.close(self._out)
        self._process.terminate()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        give_up = time.monotonic() + _SECONDS
        while True:
            while b"\0" not in self._rest:
                left = give_up - time.monotonic()
                assert left > 0, f"{method}: no answer"
                if select.select([self._out], [], [], left)[0]:
                    part = os.read(self._out, 1 << 20)
                    assert part, f"{method}: the browser ended"
                    self._rest += part
            text, self._rest = self._rest.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, script: str) -> Any:
        """What an expression of JavaScript is worth in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until an expression is true."""
        give_up = time.monotonic() + _SECONDS
        while not self.value(condition):
            assert time.monotonic() < give_up, f"never: {condition}"
            time.sleep(0.05)

    def key(self, key: str, text: str = "") -> None:
        """Press a key and let it go."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """A mouse event: Pressed, Moved, Released or Wheel."""
        held = {"button": "left", "buttons": 1} if kind != "Wheel" else {}
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **held, **more)

    def screenshot(self, file: Path) -> None:
        """The page as it is seen, as PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
