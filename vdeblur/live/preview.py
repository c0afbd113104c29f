"""A page with the live picture before and after a divider that can be dragged; counts beside it.

Both pictures travel as one, side by side, so that they show the same moment: over WebRTC where
aiortc is installed and the browser supports it, else as JPEG pictures over HTTP. Nothing is encoded
while nobody looks. Knows no torch and no network.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

import av

from vdeblur.errors import OutputError
from vdeblur.live.counters import Snapshot, host_port
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.live.preview_pairs import NewestPairs, side_by_side
from vdeblur.system.optional import installed, optional

#: Hosts at which only programs of this machine can connect.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Preview:
    """Serves the page; a context manager, and a `Viewer` of a session.

    Needs aiohttp, of the extra `live`.

    Args:
        address: `PORT` or `HOST:PORT`; port 0 is any free one.
        webrtc: Whether to offer WebRTC, if aiortc is installed.

    Attributes:
        url: Where the page is. On a host other than this machine itself, it contains a token,
            without which every request is refused.
        snapshot: Returns the counts to show; set it to `Session.snapshot`.

    Raises:
        UsageError: If the address is invalid or aiohttp is not installed.
        OutputError: If the port cannot be listened at.
    """

    def __init__(self, address: str, *, webrtc: bool = True) -> None:
        host, port = host_port(address)
        optional("aiohttp", extra="live", purpose="the preview's page")
        from vdeblur.live.preview_server import PreviewServer

        self.token = "" if host in LOOPBACK else secrets.token_urlsafe(18)
        self.snapshot: Callable[[], Sequence[Snapshot]] = list
        self._pairs = NewestPairs()
        try:
            listener = _listener(host, port)
        except OSError as error:
            raise OutputError(
                f"the preview cannot listen at {address} ({error.strerror}): name another port"
            ) from error
        self.port = int(listener.getsockname()[1])
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self.port}/" + (f"?token={self.token}" if self.token else "")
        self._server = PreviewServer(
            listener,
            self._pairs,
            hosts=frozenset() if self.token else LOOPBACK,
            token=self.token,
            stats=self.stats,
            webrtc=webrtc and installed("aiortc"),
        )

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def looking(self) -> contextlib.AbstractContextManager[None]:
        """Take pictures for as long as the context lasts."""
        return self._pairs.looking()

    def stats(self) -> list[dict[str, Any]]:
        """Return the counts that the page shows beside the picture, one dict per camera."""
        keys = ("camera", "source", "state", "reason", "fps", "fps_out", "restored", "passed",
                "dropped", "reconnects", "latency_ms", "level_name", "size")  # fmt: skip
        return [{key: status[key] for key in keys} for status in self.snapshot()]

    # -- Viewer: called from the session's threads -----------------------------------------------

    def wants_before(self) -> bool:
        """See `Viewer.wants_before`."""
        return self._pairs.watched

    def picture(
        self, camera: int, before: av.VideoFrame | None, frame: QueuedFrame, latency: float
    ) -> None:
        """See `Viewer.picture`."""
        if self._pairs.watched:
            after = frame.frame.source_frame
            self._pairs.of(camera).put(side_by_side(after if before is None else before, after))

    def signal(self, camera: int, state: str) -> None:
        """See `Viewer.signal`."""
        if state != "live":
            self._pairs.of(camera).put(None)  # an old picture must not pass for the present one


def _listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this one address, not at others that a name may have."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if sys.platform != "win32":  # where it would let another program take the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener
