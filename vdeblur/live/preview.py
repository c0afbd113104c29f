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
from vdeblur.live.access import Access
from vdeblur.live.counters import Snapshot, host_port
from vdeblur.live.frame_line import QueuedFrame
from vdeblur.live.preview_pairs import NewestPairs, side_by_side
from vdeblur.system.optional import installed, optional

_REACH = (
    "other computers can connect to the preview, too: whoever has this address with its token sees "
    "the picture, and nothing is encrypted"
)


class Preview:
    """Serves the page; a context manager, and a `Viewer` of a session.

    Needs aiohttp, of the extra `live`.

    Args:
        address: `PORT` or `HOST:PORT`; port 0 is any free one.
        webrtc: Whether to offer WebRTC, if aiortc is installed.

    Attributes:
        url: Where the page is, with the token without which no picture is sent.
        reach: Who else can connect, as a sentence; empty if only programs of this machine can.
        snapshot: Returns the counts to show; set it to `Session.snapshot`.

    Raises:
        UsageError: If the address is invalid or aiohttp is not installed.
        OutputError: If the port cannot be listened at.
    """

    def __init__(self, address: str, *, webrtc: bool = True) -> None:
        host, port = host_port(address)
        optional("aiohttp", extra="live", purpose="the preview's page")
        from vdeblur.live.preview_server import PreviewServer

        self.token = secrets.token_urlsafe(18)
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
        self.url = f"http://{name}:{self.port}/?token={self.token}"
        access = Access(host, self.port)
        self.reach = "" if access.local else _REACH
        self._server = PreviewServer(
            listener,
            self._pairs,
            access=access,
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
